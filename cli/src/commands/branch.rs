//! `ardent branch ...`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::json;

use ardent_api::control::{
    BranchInfo, BranchList, BranchName, BranchState, CreateBranchReply, CreateBranchRequest, ErrorInfo,
    PasswordRequest, ReindexReply, ReindexedDatabase, UpdateBranchRequest, UrlReply, WakeReply,
};

use ardent_api::policy::BranchPolicy;

use super::{checkpoint, deletion, history, path_name, psql, waiting};
use crate::api::Api;
use crate::args::{
    BranchCommand, BranchCreateArgs, BranchInfoArgs, BranchListArgs, BranchPasswordArgs, BranchPolicyArgs,
    BranchSetArgs, NameArgs,
};
use crate::config::{ProjectFile, branch_or_default, default_connector};
use crate::duration::{bytes_text, milliseconds_text, set_time_text};
use crate::failure::Failure;
use crate::output::{Output, pairs, table};

/// Runs one of the commands.
pub fn run(output: &Output, api: &Api, command: &BranchCommand) -> Result<(), Failure> {
    match command {
        BranchCommand::Create(args) => create(output, api, args),
        BranchCommand::List(args) => list(output, api, args),
        BranchCommand::Info(args) => info(output, api, args),
        BranchCommand::Switch(args) => switch(output, api, args),
        BranchCommand::Diff(args) => super::diff::run(output, api, args),
        BranchCommand::Log(args) => super::log::run(output, api, args),
        BranchCommand::Blame(args) => super::log::blame(output, api, args),
        BranchCommand::Apply(args) => super::apply::run(output, api, args),
        BranchCommand::Rebase(args) => super::rebase::run(output, api, args),
        BranchCommand::Rehearse(args) => super::rehearse::run(output, api, args),
        BranchCommand::Set(args) => set(output, api, args),
        BranchCommand::Policy(args) => policy(output, api, args),
        BranchCommand::Password(args) => password(output, api, args),
        BranchCommand::Wake(args) => wake(output, api, args),
        BranchCommand::Suspend(args) => suspend(output, api, args),
        BranchCommand::Reset(args) => history::reset(output, api, args),
        BranchCommand::Restore(args) => history::restore(output, api, args),
        BranchCommand::History(args) => history::history(output, api, args),
        BranchCommand::Checkpoint(command) => checkpoint::run(output, api, command),
        BranchCommand::Rewind(args) => checkpoint::rewind(output, api, args),
        BranchCommand::Rename(args) => history::rename(output, api, args),
        BranchCommand::Delete(args) => deletion::run(output, api, args),
        BranchCommand::Undelete(args) => history::undelete(output, api, args),
    }
}

fn create(output: &Output, api: &Api, args: &BranchCreateArgs) -> Result<(), Failure> {
    let name: BranchName = args.name.parse().map_err(ErrorInfo::from)?;
    let request = CreateBranchRequest {
        name: name.as_str().to_owned(),
        from: args.from.clone(),
        connector: default_connector()?,
        masked: args.masked.clone(),
        at: args.at.clone(),
        // "never" is what absence means.
        ttl_s: args.ttl.filter(|seconds| *seconds > 0),
        idle_timeout_s: args.idle_timeout,
        role: args.role.clone(),
        no_wait: args.no_wait,
        policy: BranchPolicy {
            read_only: args.policy.read_only.unwrap_or(false),
            statement_timeout_ms: args.policy.statement_timeout,
            max_rows_changed: args.policy.max_rows_changed,
            max_bytes_written: args.policy.max_bytes_written,
        },
        password_expires_s: args.expires,
    };
    let what = format!(
        "branch {name}: the page server must have all that its parent has committed, and storage must take the branch"
    );
    let reply: CreateBranchReply = waiting::told(output, api, &what, || api.post("/v1/branches", &request))?;
    let reindexed: Option<ReindexReply> = match args.reindex_collations {
        // As long as it takes.
        true => {
            Some(api.post_long(&format!("/v1/branches/{}/reindex-collations", path_name(&args.name)?), &json!({}))?)
        }
        false => None,
    };
    for warning in reply.warnings.iter().filter(|_| reindexed.is_none()) {
        output.warning(&format!("{warning} (ardent branch create {name} --reindex-collations makes them anew)"));
    }
    if args.print_url {
        return output.line(&reply.branch.url);
    }
    let parent = reply.branch.parent.as_deref().unwrap_or("nothing");
    let what = match (reply.created, args.no_wait) {
        (true, true) => format!("making branch {name} from {parent}"),
        (true, false) => format!("made branch {name} from {parent} in {:.1} ms", reply.server_us as f64 / 1000.0),
        (false, _) => format!("branch {name} exists already"),
    };
    output.note(&what);
    if args.psql {
        return psql::open(&reply.branch.url, &[]);
    }
    for database in reindexed.iter().flat_map(|reindexed| &reindexed.databases) {
        output.note(&reindexed_text(database));
    }
    let created = Created { reply, reindexed: reindexed.map(|reindexed| reindexed.databases) };
    output.data(&created, |created| branch_text(&created.reply.branch))
}

/// What a create prints with `--json`.
#[derive(Serialize)]
struct Created {
    #[serde(flatten)]
    reply: CreateBranchReply,
    /// What was made anew, if that was asked for.
    reindexed: Option<Vec<ReindexedDatabase>>,
}

fn reindexed_text(database: &ReindexedDatabase) -> String {
    let ReindexedDatabase { database, collations, indexes } = database;
    format!(
        "database {database}: made {} indexes anew ({}) for {}",
        indexes.len(),
        indexes.join(", "),
        collations.join("; ")
    )
}

/// A branch for people.
pub fn branch_text(branch: &BranchInfo) -> String {
    let mut lines = vec![("name", branch.name.clone())];
    match (&branch.parent, branch.branch_lsn) {
        (Some(parent), Some(lsn)) => lines.push(("from", format!("{parent} at {lsn}"))),
        (Some(parent), None) => lines.push(("from", parent.clone())),
        (None, _) => lines.push(("follows", format!("connector {} (read-only; branch from it)", branch.connector))),
    }
    if let Some(template) = &branch.masked {
        lines.push(("masked", format!("by template {template}: ardent mask report {template}")));
    }
    lines.push(match unfinished(branch) {
        Some(state) => ("state", state.to_owned()),
        None => ("compute", branch.compute.as_str().to_owned()),
    });
    if let Some(problem) = &branch.compute_problem {
        lines.push(("problem", problem.clone()));
    }
    if let Some(missing) = missing_libraries(&branch.missing_libraries) {
        lines.push(("missing", missing));
    }
    lines.push(("created", branch.created_at.clone()));
    if let Some(expires) = &branch.expires_at {
        lines.push(("expires", expires.clone()));
    }
    if let Some(seconds) = branch.retention_s {
        lines.push(("history", format!("kept for {}", set_time_text(seconds))));
    }
    if !branch.is_root {
        let idle = match branch.idle_timeout_s {
            0 => "never".to_owned(),
            seconds => format!("after {} without activity", set_time_text(seconds)),
        };
        lines.push(("suspends", idle));
        lines.extend(policy_lines(branch));
        if !branch.url.is_empty() {
            lines.push(("url", branch.url.clone()));
        }
    }
    if !branch.children.is_empty() {
        lines.push(("children", branch.children.join(", ")));
    }
    pairs(&lines)
}

/// What a branch is in the middle of, if it cannot be used for that.
fn unfinished(branch: &BranchInfo) -> Option<&'static str> {
    match branch.state {
        BranchState::Ready | BranchState::Deleted => None,
        BranchState::Creating => Some("making"),
        // It never had a branch point: it could not be made.
        BranchState::Deleting if !branch.is_root && branch.branch_lsn.is_none() => Some("undoing"),
        BranchState::Deleting => Some("deleting"),
    }
}

/// What its Postgres does, or what the branch is in the middle of.
fn state_word(branch: &BranchInfo) -> &'static str {
    unfinished(branch).unwrap_or(branch.compute.as_str())
}

fn list(output: &Output, api: &Api, args: &BranchListArgs) -> Result<(), Failure> {
    if args.deleted {
        let list: BranchList = api.get("/v1/branches?deleted=true")?;
        return output.data(&list, |list| match list.branches.as_slice() {
            [] => "no deleted branches that could be had back".to_owned(),
            branches => deleted(branches),
        });
    }
    let list: BranchList = api.get("/v1/branches")?;
    output.data(&list, |list| {
        if list.branches.is_empty() {
            return "no branches; connect a database first: ardent connector create postgresql URL".to_owned();
        }
        if args.tree { tree(&list.branches) } else { flat(&list.branches) }
    })
}

fn flat(branches: &[BranchInfo]) -> String {
    let rows: Vec<Vec<String>> = branches
        .iter()
        .map(|branch| {
            vec![
                branch.name.clone(),
                branch.parent.clone().unwrap_or_else(|| "-".to_owned()),
                state_word(branch).to_owned(),
                branch.created_at.clone(),
                branch.expires_at.clone().unwrap_or_else(|| "never".to_owned()),
            ]
        })
        .collect();
    table(&["NAME", "PARENT", "COMPUTE", "CREATED", "EXPIRES"], &rows)
}

fn deleted(branches: &[BranchInfo]) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let row = |branch: &BranchInfo| {
        vec![branch.name.clone(), or_dash(&branch.parent), or_dash(&branch.deleted_at), or_dash(&branch.kept_until)]
    };
    let rows: Vec<Vec<String>> = branches.iter().map(row).collect();
    table(&["NAME", "PARENT", "DELETED", "KEPT UNTIL"], &rows)
}

/// Each branch below the one it was made from.
fn tree(branches: &[BranchInfo]) -> String {
    let mut children: BTreeMap<Option<&str>, Vec<&BranchInfo>> = BTreeMap::new();
    for branch in branches {
        children.entry(branch.parent.as_deref()).or_default().push(branch);
    }
    // Masked templates are no branches, but what their branches stand below.
    let names: BTreeSet<&str> = branches.iter().map(|branch| branch.name.as_str()).collect();
    let templates = children.keys().flatten().filter(|name| !names.contains(*name)).map(|name| (*name, None));
    let with_state = |branch: &BranchInfo| format!("{} ({})", branch.name, state_word(branch));
    let roots = children.get(&None).into_iter().flatten().map(|branch| (branch.name.as_str(), Some(*branch)));
    let mut out = String::new();
    // Depth first with a stack of our own: a chain of branches can be longer than a thread's stack likes.
    let mut stack: Vec<(&str, Option<&BranchInfo>, String, &str)> =
        roots.chain(templates).map(|(name, branch)| (name, branch, String::new(), "")).collect();
    stack.reverse();
    while let Some((name, branch, indent, mark)) = stack.pop() {
        let text = branch.map_or_else(|| name.to_owned(), with_state);
        out.push_str(&format!("{indent}{mark}{text}\n"));
        let below = match mark {
            "" => indent,
            "└── " => format!("{indent}    "),
            _ => format!("{indent}│   "),
        };
        let made = children.get(&Some(name)).map(Vec::as_slice).unwrap_or_default();
        for (position, child) in made.iter().enumerate().rev() {
            let mark = if position + 1 == made.len() { "└── " } else { "├── " };
            stack.push((&child.name, Some(child), below.clone(), mark));
        }
    }
    out
}

fn info(output: &Output, api: &Api, args: &BranchInfoArgs) -> Result<(), Failure> {
    let name = path_name(&branch_or_default(args.name.as_deref())?)?;
    if args.print_url {
        return output.line(&url(api, &name, args.role.as_deref())?.url);
    }
    let branch: BranchInfo = api.get(&format!("/v1/branches/{name}"))?;
    output.data(&branch, branch_text)
}

/// A branch's connection string with its password.
pub fn url(api: &Api, name: &str, role: Option<&str>) -> Result<UrlReply, Failure> {
    let query = role.map(|role| format!("?role={}", encode(role))).unwrap_or_default();
    api.get(&format!("/v1/branches/{}/url{query}", path_name(name)?))
}

pub fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn switch(output: &Output, api: &Api, args: &NameArgs) -> Result<(), Failure> {
    let branch: BranchInfo = api.get(&format!("/v1/branches/{}", path_name(&args.name)?))?;
    let path = ProjectFile::switch_branch(&branch.name)?;
    output.data(&branch, |branch| format!("{} is the default branch now ({})", branch.name, path.display()))
}

fn set(output: &Output, api: &Api, args: &BranchSetArgs) -> Result<(), Failure> {
    let request = UpdateBranchRequest {
        idle_timeout_s: args.idle_timeout,
        ttl_s: args.ttl,
        retention_s: args.retention,
        ..UpdateBranchRequest::default()
    };
    if request == UpdateBranchRequest::default() {
        return Err(Failure::usage("nothing to set").hint("give --idle-timeout, --ttl or --retention"));
    }
    let branch: BranchInfo = api.patch(&format!("/v1/branches/{}", path_name(&args.name)?), &request)?;
    output.data(&branch, branch_text)
}

/// The limits that there are.
fn policy_lines(branch: &BranchInfo) -> Vec<(&'static str, String)> {
    let policy = &branch.policy;
    let rows = policy.max_rows_changed.map(|max| format!("{max} ({} so far)", branch.rows_changed.unwrap_or(0)));
    [
        ("read-only", policy.read_only.then(|| "on".to_owned())),
        ("statement-timeout", policy.statement_timeout_ms.map(milliseconds_text)),
        ("max-rows-changed", rows),
        ("max-bytes-written", policy.max_bytes_written.map(bytes_text)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

fn policy(output: &Output, api: &Api, args: &BranchPolicyArgs) -> Result<(), Failure> {
    let path = format!("/v1/branches/{}", path_name(&args.name)?);
    let request = UpdateBranchRequest {
        read_only: args.policy.read_only,
        statement_timeout_ms: args.policy.statement_timeout,
        max_rows_changed: args.policy.max_rows_changed,
        max_bytes_written: args.policy.max_bytes_written,
        ..UpdateBranchRequest::default()
    };
    let changes = request != UpdateBranchRequest::default();
    let branch: BranchInfo = if changes { api.patch(&path, &request)? } else { api.get(&path)? };
    output.data(&branch, |branch| match policy_lines(branch) {
        lines if lines.is_empty() => format!("branch {} has no limits", branch.name),
        lines => pairs(&lines),
    })
}

fn password(output: &Output, api: &Api, args: &BranchPasswordArgs) -> Result<(), Failure> {
    let request = PasswordRequest { role: args.role.clone(), expires_s: args.expires };
    let reply: UrlReply = api.post(&format!("/v1/branches/{}/password", path_name(&args.name)?), &request)?;
    output.data(&reply, |reply| reply.url.clone())
}

fn wake(output: &Output, api: &Api, args: &NameArgs) -> Result<(), Failure> {
    let path = format!("/v1/branches/{}/wake", path_name(&args.name)?);
    let what = format!("branch {}: its Postgres starts as soon as storage gives what it starts from", args.name);
    let reply: WakeReply = waiting::told(output, api, &what, || api.post(&path, &json!({})))?;
    if let Some(missing) = missing_libraries(&reply.missing_libraries) {
        output.warning(&missing);
    }
    output.data(&reply, |reply| {
        let how = match (reply.was_running, reply.warm) {
            (true, _) => "was running",
            (false, true) => "started warm",
            (false, false) => "started cold",
        };
        format!("{} {how}, {} ms", args.name, reply.waited_ms)
    })
}

/// What a branch lacks of what production preloads.
fn missing_libraries(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| {
        format!(
            "production preloads {}, which this host lacks: the branch runs without; install the package here, then suspend the branch",
            names.join(", ")
        )
    })
}

fn suspend(output: &Output, api: &Api, args: &NameArgs) -> Result<(), Failure> {
    let branch: BranchInfo = api.post(&format!("/v1/branches/{}/suspend", path_name(&args.name)?), &json!({}))?;
    output.data(&branch, |branch| format!("{} is {}", branch.name, branch.compute.as_str()))
}

#[cfg(test)]
pub(super) mod tests {
    use ardent_api::control::{ComputeState, SCHEMA_VERSION};
    use ardent_types::{BranchId, Lsn, TenantId, TimelineId};

    use super::*;

    pub fn branch(name: &str, parent: Option<&str>) -> BranchInfo {
        BranchInfo {
            schema_version: SCHEMA_VERSION,
            id: BranchId::NONE,
            name: name.into(),
            state: BranchState::Ready,
            connector: "shop".into(),
            is_root: parent.is_none(),
            parent: parent.map(str::to_owned),
            masked: None,
            branch_lsn: None,
            tenant_id: TenantId::NONE,
            timeline_id: TimelineId::NONE,
            created_at: "2026-01-31T12:00:00.000Z".into(),
            expires_at: None,
            deleted_at: None,
            kept_until: None,
            retention_s: None,
            compute: ComputeState::Suspended,
            compute_problem: None,
            missing_libraries: Vec::new(),
            idle_timeout_s: 300,
            policy: BranchPolicy::default(),
            rows_changed: None,
            role: "app".into(),
            database: "shop".into(),
            url: "postgresql://app@a.localhost:7432/shop?sslmode=require".into(),
            children: Vec::new(),
        }
    }

    #[test]
    fn the_tree_shows_who_was_made_from_whom() {
        let branches = [
            branch("a", Some("shop")),
            branch("b", Some("a")),
            branch("c", Some("shop")),
            branch("d", Some("b")),
            branch("e", Some("masked.a")),
            branch("f", Some("e")),
            branch("shop", None),
        ];
        let expect = "shop (suspended)
├── a (suspended)
│   └── b (suspended)
│       └── d (suspended)
└── c (suspended)
masked.a
└── e (suspended)
    └── f (suspended)
";
        assert_eq!(tree(&branches), expect);
    }

    #[test]
    fn a_list_is_a_table() {
        let expect = "NAME  PARENT  COMPUTE    CREATED                   EXPIRES
a     shop    suspended  2026-01-31T12:00:00.000Z  never
";
        assert_eq!(flat(&[branch("a", Some("shop"))]), expect);
    }

    #[test]
    fn what_is_not_there_is_not_shown_as_suspended() {
        let begun = BranchInfo {
            state: BranchState::Creating,
            compute: ComputeState::None,
            url: String::new(),
            ..branch("ghost", Some("shop"))
        };
        let undone = BranchInfo { state: BranchState::Deleting, ..begun.clone() };
        let deleted = BranchInfo { branch_lsn: Some(Lsn::new(0x10)), ..undone.clone() };
        for (info, word) in [(&begun, "making"), (&undone, "undoing"), (&deleted, "deleting")] {
            assert!(flat(std::slice::from_ref(info)).contains(&format!("shop    {word}")));
            let text = branch_text(info);
            let has = |name: &str| text.lines().any(|line| line.starts_with(name));
            assert!(text.contains(word) && has("state") && !has("compute") && !has("url"), "{text}");
        }
    }
}
