//! `ardent branch apply`.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ardent_api::control::{ApiErrorCode, BranchName, ConnectorInfo, DiffRequest, ErrorInfo, SCHEMA_VERSION};
use ardent_change_set::{
    Applied, ApplyError, ApplyEvent, ApplyOptions, ApplyRequest, ChangeSetFile, CommitReply, Conflict, Prefer,
    RemoteApplied, elsewhere, prepare, read_file,
};
use ardent_diff::{ChangeSet, Part};
use ardent_pg_wire::{ConfigError, driver};
use serde::Serialize;
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::branch::encode;
use super::undo_file::{UndoFile, undo_file_name};
use super::{diff, path_name};
use crate::api::Api;
use crate::args::BranchApplyArgs;
use crate::failure::Failure;
use crate::output::{Output, counted};

/// What is printed.
#[derive(Debug, Serialize)]
struct Reply {
    schema_version: u32,
    applied: bool,
    dry_run: bool,
    statements: u64,
    inserted: u64,
    updated: u64,
    deleted: u64,
    large_objects: u64,
    sequences: u64,
    already_there: u64,
    settled: u64,
    taken_along: Vec<String>,
    conflicts: Vec<Conflict>,
    conflicts_left_out: u64,
    notes: Vec<String>,
    inverse_file: Option<String>,
    /// Nothing of it was left to be done.
    #[serde(skip)]
    is_unchanged: bool,
}

/// Applies a branch's changes, or a file's, to a database.
pub fn run(output: &Output, api: &Api, args: &BranchApplyArgs) -> Result<(), Failure> {
    let path = Path::new(&args.source);
    let source = if path.is_file() {
        Source::File(path)
    } else {
        Source::Branch(path_name(&args.source).map_err(|failure| no_source(&args.source, failure))?)
    };
    let connector: Option<BranchName> = args.to.parse().ok();
    if let Some(connector) = &connector {
        // Nobody is asked about a server that is not there.
        let _: ConnectorInfo = api.get(&format!("/v1/connectors/{connector}"))?;
    }
    if let Some(connector) = &connector
        && !args.dry_run
        && !args.yes
        && !output.confirm(&format!("Change the production server that {connector} follows?"), "--yes")?
    {
        return Err(Failure::usage("nothing was changed").hint("--dry-run shows what would be"));
    }
    let url = match &connector {
        Some(_) => String::new(),
        None => url_of(&args.to)?,
    };
    // Where it goes is known, and can be written, before anything is changed.
    let undo_path = (!args.dry_run).then(|| args.inverse.clone().unwrap_or_else(|| undo_file_name(source.name())));
    if let (Source::File(file), Some(undo)) = (&source, &undo_path)
        && is_same_file(file, undo)
    {
        let message = format!("{} would be replaced by its own inverse", file.display());
        return Err(Failure::usage(message).hint("give --inverse another name"));
    }
    let undo = undo_path.map(UndoFile::at).transpose();
    let undo = undo.map_err(|failure| failure.hint("choose another place with --inverse"))?;
    let wish = Wish {
        source,
        target: connector.as_ref().map_or(Target::Url(&url), Target::Connector),
        database: args.database.as_deref(),
        options: options(args),
    };
    let Finished { done, undo } =
        apply_to(api, &wish, undo, &Told { say: &|line| output.note(line), warn: &|line| output.warning(line) })?;
    for other in &done.other_databases {
        output.warning(&format!("database {other} has changes too: they are applied with --database {other}"));
    }
    print(output, args, done.applied, undo.as_ref()).map_err(|failure| match &undo {
        Some(undo) => failure.hint(format!("the target was changed; {} undoes it", undo.display())),
        _ => failure,
    })
}

/// Whether both paths lead to one file.
fn is_same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// What is neither a file nor a branch's name.
fn no_source(source: &str, mut failure: Failure) -> Failure {
    failure.info.message = format!("there is no file {source}, and {}", failure.info.message);
    failure.hint("give a branch's name, or the path of a file that ardent branch diff -o wrote")
}

/// Where the changes are.
pub enum Source<'a> {
    /// On a branch.
    Branch(String),
    /// In a file that a diff was written to.
    File(&'a Path),
}

/// Where they go.
pub enum Target<'a> {
    /// To the production server that a connector follows.
    Connector(&'a BranchName),
    /// To a database that is reached from here.
    Url(&'a str),
}

/// What is applied, to what, and how.
pub struct Wish<'a> {
    /// What.
    pub source: Source<'a>,
    /// To what.
    pub target: Target<'a>,
    /// The database of the change set; absent: the target's.
    pub database: Option<&'a str>,
    /// How.
    pub options: ApplyOptions,
}

/// Who is told what happens meanwhile.
pub struct Told<'a> {
    /// How far it is.
    pub say: &'a dyn Fn(&str),
    /// What should not be missed.
    pub warn: &'a dyn Fn(&str),
}

/// What came of it.
pub struct Finished {
    /// What was done.
    pub done: RemoteApplied,
    /// The file with what undoes it; none where nothing was changed.
    pub undo: Option<PathBuf>,
}

/// Why it came to no end.
enum Failed {
    /// The target is as it was.
    Unchanged(Failure),
    /// The target was changed, or it was not.
    Unknown(Failure),
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Failed::Unchanged(failure)
    }
}

/// Applies changes. What undoes them is in `undo` before the target commits. Called where blocking is allowed.
pub fn apply_to(api: &Api, wish: &Wish<'_>, mut undo: Option<UndoFile>, told: &Told<'_>) -> Result<Finished, Failure> {
    let ended = match wish.target {
        Target::Connector(connector) => in_production(api, wish, connector, undo.as_mut(), told),
        Target::Url(url) => here(api, wish, url, undo.as_mut(), told),
    };
    match ended {
        Ok(done) => Ok(Finished { done, undo: undo.and_then(UndoFile::keep) }),
        Err(Failed::Unchanged(failure)) => {
            let path = undo.as_ref().map(|undo| undo.path().display().to_string()).unwrap_or_default();
            if let Some(Err(error)) = undo.map(UndoFile::take_back) {
                (told.warn)(&format!(
                    "nothing was changed, and {path} undoes nothing: it cannot be taken away: {error}"
                ));
            }
            Err(failure)
        }
        Err(Failed::Unknown(failure)) => {
            let undo = undo.and_then(UndoFile::leave);
            Err(unknown(failure, undo.as_deref(), &wish.target))
        }
    }
}

/// What is said where nobody knows whether the target was changed.
fn unknown(mut failure: Failure, undo: Option<&Path>, target: &Target<'_>) -> Failure {
    failure.info.message = format!("it is not known whether the target was changed: {}", failure.info.message);
    // A URL may have a password in it.
    let to = match target {
        Target::Connector(connector) => connector.to_string(),
        Target::Url(_) => "URL".to_owned(),
    };
    let look = "see what is there already: the same with --dry-run";
    match undo {
        Some(undo) => {
            let undo = undo.display();
            failure.hint(format!("{look}; if it was changed, this undoes it: ardent branch apply {undo} --to {to}"))
        }
        None => failure.hint(look),
    }
}

impl Source<'_> {
    fn name(&self) -> &str {
        match self {
            Source::Branch(name) => name,
            Source::File(path) => path.file_stem().and_then(|name| name.to_str()).unwrap_or("changes"),
        }
    }
}

fn options(args: &BranchApplyArgs) -> ApplyOptions {
    let choice = &args.choice;
    let part = match (choice.schema_only, choice.data_only) {
        (true, _) => Part::Schema,
        (_, true) => Part::Rows,
        _ => Part::Whole,
    };
    ApplyOptions {
        tables: choice.table.clone(),
        rows: choice.row.clone(),
        objects: choice.object.clone(),
        with_needed: choice.with_needed,
        part,
        dry_run: args.dry_run,
        prefer: args.prefer.as_deref().map(|side| if side == "branch" { Prefer::Branch } else { Prefer::Target }),
        lock_timeout_ms: args.lock_timeout,
        statement_timeout_ms: args.statement_timeout,
    }
}

/// Applies to a database that is reached from here.
fn here(
    api: &Api,
    wish: &Wish<'_>,
    url: &str,
    mut undo: Option<&mut UndoFile>,
    told: &Told<'_>,
) -> Result<RemoteApplied, Failed> {
    let target = target_of(url)?;
    let content = match &wish.source {
        Source::File(path) => content_of(path)?,
        Source::Branch(name) => {
            (told.say)(&format!("looking for what changed on {name}"));
            let report = diff::ask(api, name, &DiffRequest::default())?;
            report.databases_not_compared.iter().for_each(|database| (told.warn)(&diff::not_compared(database)));
            diff::file_content(report)
        }
    };
    let database = wish.database.or(target.config.get_dbname()).unwrap_or("postgres").to_owned();
    let ChangeSetFile { branch, from_lsn, to_lsn, databases } = content;
    let (mut wanted, others): (Vec<_>, Vec<_>) = databases.into_iter().partition(|set| set.database == database);
    if let Some(message) = elsewhere(&database, &others).filter(|_| wanted.is_empty()) {
        return Err(Failure::usage(message).hint(format!("choose: --database {}", others[0].database)).into());
    }
    let set = wanted.pop().unwrap_or_else(|| ChangeSet { database, ..ChangeSet::default() });
    let other_databases = others.into_iter().map(|set| set.database).collect();
    let mut done = RemoteApplied { branch, from_lsn, to_lsn, other_databases, applied: Applied::default() };
    let mut keep = |applied: &Applied| match &mut undo {
        Some(undo) => undo.write(&inverse_of(&done, applied)),
        None => Ok(()),
    };
    let applied = run_apply(target, &set, &wish.options, told.say, &mut keep)?;
    done.applied = applied;
    Ok(done)
}

/// What undoes `applied`, as a file's content.
fn inverse_of(done: &RemoteApplied, applied: &Applied) -> ChangeSetFile {
    ChangeSetFile {
        branch: done.branch.clone(),
        from_lsn: done.from_lsn,
        to_lsn: done.to_lsn,
        databases: vec![applied.inverse.clone()],
    }
}

/// Lets the server apply to the production server that a connector follows: its URL stays there. It commits when what undoes it is kept
/// here.
fn in_production(
    api: &Api,
    wish: &Wish<'_>,
    connector: &BranchName,
    mut undo: Option<&mut UndoFile>,
    told: &Told<'_>,
) -> Result<RemoteApplied, Failed> {
    let (branch, file) = match &wish.source {
        Source::Branch(name) => {
            (told.say)(&format!("looking for what changed on {name}"));
            (Some(name.clone()), None)
        }
        Source::File(path) => (None, Some(open(path)?)),
    };
    let request = ApplyRequest {
        branch,
        database: wish.database.map(str::to_owned),
        options: wish.options.clone(),
        confirms: undo.is_some(),
    };
    let request = serde_json::to_string(&request).map_err(|error| Failure::of(&error))?;
    let path = format!("/v1/connectors/{connector}/apply");
    let (mut ready, mut end) = (None, None);
    // From here on the server may commit.
    let mut may_commit = false;
    let read = api.post_file(&format!("{path}?request={}", encode(&request)), file, |event| {
        match event {
            ApplyEvent::Progress(line) => (told.say)(&line),
            ApplyEvent::Ready { token, done } => {
                if let Some(undo) = &mut undo {
                    undo.write(&inverse_of(&done, &done.applied))?;
                }
                may_commit = true;
                ready = Some(*done);
                let _: CommitReply = api.post(&format!("{path}/{token}/commit"), &())?;
            }
            ApplyEvent::Committed => end = ready.take().map(Ok),
            ApplyEvent::Done(done) => {
                let is_changed = done.applied.conflicts.is_empty() && !done.applied.is_unchanged();
                // An older server has committed without asking.
                if let (Some(undo), true) = (&mut undo, is_changed) {
                    may_commit = true;
                    undo.write(&inverse_of(&done, &done.applied))?;
                }
                end = Some(Ok(*done));
            }
            ApplyEvent::Error(error) => end = Some(Err(Failed::Unchanged(error.into()))),
            ApplyEvent::Unknown(error) => end = Some(Err(Failed::Unknown(error.into()))),
        }
        Ok(())
    });
    let failure = match (end, read) {
        (Some(end), _) => return end,
        (None, Err(failure)) => failure,
        (None, Ok(())) => {
            let error = ErrorInfo::new(ApiErrorCode::Internal, "the server's answer ends in the middle");
            Failure::from(error).hint("the server's log says why; --dry-run shows what would be")
        }
    };
    Err(if may_commit { Failed::Unknown(failure) } else { Failed::Unchanged(failure) })
}

/// A change set file that has something in it.
fn open(path: &Path) -> Result<fs::File, Failure> {
    let unread = |error: std::io::Error| Failure::local(format!("{} cannot be read", path.display()), &error);
    let file = fs::File::open(path).map_err(unread)?;
    if file.metadata().map_err(unread)?.len() == 0 {
        return Err(Failure::usage(format!("{} is empty: there is nothing to apply", path.display()))
            .hint("what a branch changed is written by: ardent branch diff NAME -o FILE"));
    }
    Ok(file)
}

fn content_of(path: &Path) -> Result<ChangeSetFile, Failure> {
    drop(open(path)?);
    read_file(path).map_err(|error| {
        Failure::local(format!("{} cannot be applied", path.display()), &error)
            .hint("what a branch changed is written by: ardent branch diff NAME -o FILE")
    })
}

/// How the target is reached.
struct Reached {
    config: Config,
    tls: MakeRustlsConnect,
}

/// The URL itself, or what standard input says.
fn url_of(to: &str) -> Result<String, Failure> {
    if to != "-" {
        return Ok(to.to_owned());
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| Failure::local("standard input cannot be read", &error))?;
    Ok(text)
}

fn target_of(text: &str) -> Result<Reached, Failure> {
    let (mut config, tls) = driver(text.trim()).map_err(|error| match error {
        // Its own words could repeat what is in the text.
        ConfigError::Parse(_) => Failure::usage("--to is no connection string")
            .hint("give postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE, or a connector's name"),
        other => Failure::usage(other.to_string()),
    })?;
    config.application_name("ardent branch apply");
    Ok(Reached { config, tls })
}

/// Gives what is done to `keep` before it is committed.
fn run_apply(
    target: Reached,
    set: &ChangeSet,
    options: &ApplyOptions,
    say: &dyn Fn(&str),
    keep: &mut dyn FnMut(&Applied) -> Result<(), Failure>,
) -> Result<Applied, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("no threads can be started", &error))?;
    runtime.block_on(async {
        let (client, connection) = target.config.connect(target.tls).await.map_err(|error| {
            let info = Failure::local("the target cannot be reached", &error).info;
            Failure::from(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, info.message))
                .hint("see whether the URL is right with psql; sslmode and sslrootcert mean what they mean there")
        })?;
        let connection = tokio::spawn(connection);
        let applied = run_on(&client, set, options, say, keep).await;
        drop(client);
        // Its errors reached the statements.
        let _ = connection.await;
        applied
    })
}

async fn run_on(
    client: &Client,
    set: &ChangeSet,
    options: &ApplyOptions,
    say: &dyn Fn(&str),
    keep: &mut dyn FnMut(&Applied) -> Result<(), Failure>,
) -> Result<Applied, Failed> {
    let prepared = prepare(client, set, options, say).await.map_err(failed)?;
    if prepared.changes_target() {
        keep(prepared.applied())?;
    }
    prepared.end().await.map_err(failed)
}

fn failed(error: ApplyError) -> Failed {
    match error {
        ApplyError::Choice { what, hint } => Failure::usage(what).hint(hint).into(),
        ApplyError::Unknown(_) => Failed::Unknown(Failure::of(&error).hint(error.hint())),
        error if error.is_timeout() => {
            let info = Failure::of(&error).info;
            Failure::from(ErrorInfo::new(ApiErrorCode::Timeout, info.message)).hint(error.hint()).into()
        }
        error => Failure::of(&error).hint(error.hint()).into(),
    }
}

fn print(output: &Output, args: &BranchApplyArgs, applied: Applied, inverse: Option<&PathBuf>) -> Result<(), Failure> {
    let conflicts = applied.conflicts.len() as u64 + applied.conflicts_left_out;
    let (is_unchanged, large_objects) = (applied.is_unchanged(), applied.large_objects());
    let reply = Reply {
        schema_version: SCHEMA_VERSION,
        applied: conflicts == 0 && !args.dry_run,
        dry_run: args.dry_run,
        statements: applied.statements,
        inserted: applied.rows.inserted,
        updated: applied.rows.updated,
        deleted: applied.rows.deleted,
        large_objects,
        sequences: applied.sequences,
        already_there: applied.already_there,
        settled: applied.settled,
        taken_along: applied.taken_along,
        conflicts: applied.conflicts,
        conflicts_left_out: applied.conflicts_left_out,
        notes: applied.notes,
        inverse_file: inverse.map(|path| path.display().to_string()),
        is_unchanged,
    };
    // A URL may have a password in it.
    let mut to = args.to.parse::<BranchName>().map_or_else(|_| "URL".to_owned(), |name| name.to_string());
    if let Some(database) = &args.database {
        to.push_str(&format!(" --database {database}"));
    }
    output.data(&reply, |reply| text(reply, &to))?;
    if reply.dry_run && conflicts == 0 && !reply.is_unchanged {
        output.note("nothing was changed; the same without --dry-run applies it");
    }
    match self::conflicts(conflicts) {
        None => Ok(()),
        Some(plural) => Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("{plural}: nothing was applied"))
            .with_hint("make branch and target agree, choose what to apply with --table, --row and --object, or choose a side with --prefer")
            .into()),
    }
}

/// How many, in words; nothing if there is none.
pub fn conflicts(count: u64) -> Option<String> {
    (count > 0).then(|| counted(count, "conflict"))
}

fn text(reply: &Reply, to: &str) -> String {
    let mut out = String::new();
    for conflict in &reply.conflicts {
        out.push_str(&conflict_text(conflict, "target"));
    }
    if reply.conflicts_left_out > 0 {
        out.push_str(&format!("and {} more\n", counted(reply.conflicts_left_out, "conflict")));
    }
    for object in &reply.taken_along {
        out.push_str(&format!("taken along: {object}\n"));
    }
    for note in &reply.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    if reply.conflicts.is_empty() {
        let done = if reply.is_unchanged {
            "nothing is to be done".to_owned()
        } else {
            let verb = if reply.dry_run { "would apply" } else { "applied" };
            let others = beside_rows(reply.large_objects, reply.sequences);
            format!(
                "{verb} {}; {} inserted, {} updated, {} deleted{others}",
                counted(reply.statements, "statement"),
                counted(reply.inserted, "row"),
                reply.updated,
                reply.deleted
            )
        };
        out.push_str(&format!("{done}; {}\n", already_there(reply.already_there)));
        match reply.settled {
            0 => {}
            1 => out.push_str("1 row that both had changed was settled\n"),
            several => out.push_str(&format!("{several} rows that both had changed were settled\n")),
        }
    }
    if let Some(path) = &reply.inverse_file {
        out.push_str(&format!("undo it with: ardent branch apply {path} --to {to}\n"));
    }
    out
}

/// How many changes needed nothing, in words.
pub fn already_there(count: u64) -> String {
    let verb = if count == 1 { "was" } else { "were" };
    format!("{} {verb} there already", counted(count, "change"))
}

/// How many large objects and sequences, in words behind those about rows; nothing of what there is none.
pub fn beside_rows(large_objects: u64, sequences: u64) -> String {
    let part = |count: u64, thing: &str, done: &str| match count {
        0 => String::new(),
        _ => format!("; {} {done}", counted(count, thing)),
    };
    part(large_objects, "large object", "changed") + &part(sequences, "sequence", "set")
}

/// A conflict for people. `other`: what the side is called that is not the branch.
pub fn conflict_text(conflict: &Conflict, other: &str) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
    match conflict {
        Conflict::Row { table, key, why, columns } => {
            let key: Vec<String> = key.iter().map(|(name, v)| format!("{name}={}", value(v))).collect();
            let row = if key.is_empty() { table.clone() } else { format!("{table} {}", key.join(" ")) };
            let mut out = format!("conflict: {row}: {why}\n");
            for column in columns {
                let (base, branch, target) = (value(&column.base), value(&column.branch), value(&column.target));
                out.push_str(&format!("  {}: was {base}, branch {branch}, {other} {target}\n", column.column));
            }
            out
        }
        Conflict::Schema { object, why, base, branch, target } => {
            let mut out = format!("conflict: {object}: {why}\n");
            for (side, definition) in [("was", base), ("branch", branch), (other, target)] {
                if let Some(definition) = definition {
                    out.push_str(&format!("  {side}: {definition}\n"));
                }
            }
            out
        }
        Conflict::LargeObject { oid, why } => format!("conflict: large object {oid}: {why}\n"),
        Conflict::Constraint { message, detail } => {
            let detail = detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
            format!("conflict: {message}{detail}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> Reply {
        Reply {
            schema_version: SCHEMA_VERSION,
            applied: true,
            dry_run: false,
            statements: 0,
            inserted: 0,
            updated: 0,
            deleted: 0,
            large_objects: 0,
            sequences: 0,
            already_there: 0,
            settled: 0,
            taken_along: Vec::new(),
            conflicts: Vec::new(),
            conflicts_left_out: 0,
            notes: Vec::new(),
            inverse_file: None,
            is_unchanged: false,
        }
    }

    #[test]
    fn large_objects_and_sequences_are_counted_where_there_are_any() {
        for (large_objects, sequences, words) in [
            (1, 0, "0 deleted; 1 large object changed; 0 changes"),
            (2, 1, "0 deleted; 2 large objects changed; 1 sequence set; 0 changes"),
            (0, 2, "0 deleted; 2 sequences set; 0 changes"),
            (0, 0, "nothing is to be done; 0 changes"),
        ] {
            let is_unchanged = large_objects + sequences == 0;
            let said = text(&Reply { large_objects, sequences, is_unchanged, ..reply() }, "shop");
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn one_of_each_is_no_plural() {
        let said = |count| {
            let reply = Reply { statements: count, inserted: count, already_there: count, settled: count, ..reply() };
            text(&reply, "shop")
        };
        assert_eq!(
            said(1),
            "applied 1 statement; 1 row inserted, 0 updated, 0 deleted; 1 change was there already\n\
             1 row that both had changed was settled\n"
        );
        assert_eq!(
            said(2),
            "applied 2 statements; 2 rows inserted, 0 updated, 0 deleted; 2 changes were there already\n\
             2 rows that both had changed were settled\n"
        );
    }

    #[test]
    fn where_it_is_not_known_it_is_said_how_to_see_and_to_undo() {
        let shop: BranchName = "shop".parse().expect("a name");
        let lost = || Failure::usage("the connection was lost");
        let failure = unknown(lost(), Some(Path::new("u.changes")), &Target::Connector(&shop));
        assert_eq!(failure.info.message, "it is not known whether the target was changed: the connection was lost");
        let hint = failure.info.hint.unwrap_or_default();
        assert!(hint.contains("--dry-run") && hint.ends_with("ardent branch apply u.changes --to shop"), "{hint}");
        let url = "postgresql://app:secret@db/shop";
        let hint = unknown(lost(), Some(Path::new("u")), &Target::Url(url)).info.hint.unwrap_or_default();
        assert!(hint.ends_with("--to URL"), "{hint}");
    }

    #[test]
    fn an_empty_file_is_said_to_be_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.changes");
        fs::write(&path, "").expect("written");
        let failure = content_of(&path).expect_err("nothing is in it");
        assert!(failure.info.message.ends_with("x.changes is empty: there is nothing to apply"), "{failure:?}");
    }

    #[test]
    fn a_file_that_is_not_there_is_said_to_be_so_first() {
        let failure = no_source("x.undo", path_name("x.undo").expect_err("it has a dot"));
        assert!(failure.info.message.starts_with("there is no file x.undo, and \"x.undo\" is not a"), "{failure:?}");
        assert_eq!(failure.info.code, ApiErrorCode::InvalidName);
    }
}
