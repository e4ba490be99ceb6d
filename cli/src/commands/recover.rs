//! `ardent recover`: what was lost is made anew from what is left, while no server runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_control::DataDir;
use ardent_control::compute::discard_all;
use ardent_control::recovery::{FoundTimeline, Recovered, RecoveryError, make_database};
use ardent_control::secrets::Keyring;
use ardent_control::store::{members_in, timelines_in};
use ardent_pageserver::DESCRIPTION;
use ardent_safekeeper::{CopiedTimeline, OfflineError, rebuild};
use ardent_storage::{TimelineSurvey, survey};
use ardent_types::{Lsn, TenantId, TimelineId};

use crate::args::{RecoverCommand, RecoverControlArgs, RecoverSafekeeperArgs};
use crate::duration::bytes_text;
use crate::failure::Failure;
use crate::output::{Output, table};
use crate::shell_word::shell_word;
use crate::up::data_lock::DataLock;
use crate::up::{self, object_store, safekeepers};

/// `schema_version` of what is printed.
const SCHEMA_VERSION: u32 = 1;

/// Runs the command.
pub fn run(output: &Output, command: &RecoverCommand) -> Result<(), Failure> {
    match command {
        RecoverCommand::Control(args) => control(output, args),
        RecoverCommand::Safekeeper(args) => safekeeper(output, args),
    }
}

/// What `ardent recover control` did.
#[derive(Serialize)]
struct ControlReport {
    schema_version: u32,
    database: String,
    #[serde(flatten)]
    recovered: Recovered,
}

fn control(output: &Output, args: &RecoverControlArgs) -> Result<(), Failure> {
    let root = up::data_dir(args.choice.data_dir.as_ref())?;
    let store =
        object_store::attach(&root.join("pageserver"), args.choice.store.as_ref(), args.choice.store_ca.as_deref())?;
    let files = DataDir::new(&root);
    files.create().map_err(|error| Failure::of(&error))?;
    let _lock = DataLock::take(&root)?;
    let found = survey(&*store).map_err(|error| Failure::of(&error).code(ApiErrorCode::StorageUnavailable))?;
    for problem in &found.problems {
        output.warning(problem);
    }
    let database = root.join("control.db");
    let keyring = Keyring::open_or_create(&files.key("secrets.key")).map_err(|error| Failure::of(&error))?;
    let recovered = make_database(&database, &keyring, found.timelines.into_iter().map(timeline).collect());
    let recovered = recovered.map_err(|error| match &error {
        RecoveryError::DatabaseExists { .. } => Failure::of(&error).code(ApiErrorCode::Conflict),
        RecoveryError::NothingFound => Failure::of(&error)
            .code(ApiErrorCode::NotFound)
            .hint("is it the right store? ardent inspect store shows what is in it"),
        _ => Failure::of(&error),
    })?;
    // Caches of computes that nothing knows any more.
    discard_all(&files.computes())
        .map_err(|error| Failure::local(format!("{} cannot be cleared", files.computes().display()), &error))?;
    let report = ControlReport { schema_version: SCHEMA_VERSION, database: database.display().to_string(), recovered };
    output.data(&report, control_text)
}

fn timeline(found: TimelineSurvey) -> FoundTimeline {
    let ancestor = match (found.ancestor, found.ancestor_lsn, found.ancestor_prev_lsn) {
        (Some(ancestor), Some(lsn), Some(prev_lsn)) => Some((ancestor, lsn, prev_lsn)),
        _ => None,
    };
    FoundTimeline {
        tenant: found.tenant,
        timeline: found.timeline,
        ancestor,
        importing: found.importing,
        description: found.metadata.get(DESCRIPTION).cloned(),
    }
}

fn control_text(report: &ControlReport) -> String {
    let Recovered { connectors, branches, left } = &report.recovered;
    let mut out = format!("made {}\n\n", report.database);
    let rows: Vec<Vec<String>> = connectors
        .iter()
        .map(|connector| {
            let next = if connector.has_url {
                "-".to_owned()
            } else {
                format!("give its URL: ardent connector move {} URL", connector.name)
            };
            vec![connector.name.clone(), connector.source.clone(), next]
        })
        .collect();
    out.push_str(&table(&["CONNECTOR", "SOURCE", "TO DO"], &rows));
    let rows: Vec<Vec<String>> = branches
        .iter()
        .map(|branch| {
            let note = match (branch.is_described, branch.deleted, branch.has_passwords) {
                _ if branch.has_report == Some(false) => {
                    "how it was masked is not known: no branches of it can be made; ardent mask create makes another"
                }
                _ if branch.has_report == Some(true) => "a masked template: ardent mask list",
                (false, ..) => "had no name here: look into it, then keep it or delete it",
                (true, true, _) => "deleted; ardent branch undelete brings it back",
                (true, false, false) => "its password cannot be shown: ardent branch password sets a new one",
                (true, false, true) => "-",
            };
            let begins = branch.branch_lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
            vec![branch.name.clone(), begins, branch.timeline.to_string(), note.to_owned()]
        })
        .collect();
    out.push('\n');
    out.push_str(&table(&["BRANCH", "BEGINS AT", "TIMELINE", "NOTE"], &rows));
    if !left.is_empty() {
        out.push_str("\nleft in the store, for ardent inspect store to look into:\n");
        for timeline in left {
            out.push_str(&format!("  {}: {}\n", timeline.timeline, timeline.reason));
        }
    }
    out.push_str("\nnext: ardent up");
    out
}

/// What `ardent recover safekeeper` did.
#[derive(Serialize)]
struct SafekeeperReport {
    schema_version: u32,
    folder: String,
    timelines: Vec<TimelineReport>,
    wal_bytes: u64,
}

/// A timeline that a safekeeper was given.
#[derive(Serialize)]
pub(super) struct TimelineReport {
    tenant: TenantId,
    timeline: TimelineId,
    pub(super) wal_bytes: u64,
    end_lsn: Lsn,
}

impl TimelineReport {
    /// Says that it is done.
    pub(super) fn of(output: &Output, copied: &CopiedTimeline) -> TimelineReport {
        let CopiedTimeline { tenant, timeline, wal_bytes, end } = *copied;
        output.note(&format!("{timeline} up to {end}, {}", bytes_text(wal_bytes)));
        TimelineReport { tenant, timeline, wal_bytes, end_lsn: end }
    }
}

/// The timelines of control's database, if there is one.
pub(super) fn known_timelines(root: &Path) -> Result<Option<BTreeSet<TimelineId>>, Failure> {
    let database = root.join("control.db");
    if !database.exists() {
        return Ok(None);
    }
    timelines_in(&database).map(Some).map_err(|error| Failure::of(&error))
}

/// Why the safekeepers' folders cannot be changed, with what to do. `online`: what to do where they were changed while the server ran.
pub(super) fn refused(error: &OfflineError, online: String) -> Failure {
    let failure = Failure::of(error);
    match error {
        OfflineError::TooFew { .. } | OfflineError::NoMajority { .. } => failure
            .code(ApiErrorCode::StorageUnavailable)
            .hint("mount or copy the folders of the others, then run this again"),
        OfflineError::Folder(_) => failure.code(ApiErrorCode::Conflict),
        OfflineError::ChangedOnline { .. } => failure.code(ApiErrorCode::Conflict).hint(online),
        _ => failure,
    }
}

/// What to do instead, once safekeepers were changed while the server ran. `change`: the arguments that ask the server for the same.
pub(super) fn online_only(root: Option<&Path>, change: &str) -> String {
    let start = root.map_or("the roles".to_owned(), |root| format!("ardent up --data-dir {}", shell_word(root)));
    format!("start {start}; then: ardent reconfigure safekeepers {change}")
}

/// Once they were changed while the server ran, control's database and each timeline say who the safekeepers are, and not the folders. `change`:
/// as for [`online_only`].
pub(super) fn refuse_if_changed_online(root: &Path, change: &str) -> Result<(), Failure> {
    let database = root.join("control.db");
    if !database.exists() {
        return Ok(());
    }
    let known = members_in(&database).map_err(|error| Failure::of(&error))?;
    let Some(generation) = known.membership.map(|membership| membership.generation) else { return Ok(()) };
    let message =
        format!("the safekeepers of {} were changed while the server ran (generation {generation})", root.display());
    Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message)).hint(online_only(Some(root), change)))
}

fn safekeeper(output: &Output, args: &RecoverSafekeeperArgs) -> Result<(), Failure> {
    let plan = Plan::of(args)?;
    let known = plan.root.as_deref().map(known_timelines).transpose()?.flatten();
    let mut timelines: Vec<TimelineReport> = Vec::new();
    let done = |done: &CopiedTimeline| timelines.push(TimelineReport::of(output, done));
    // What control does not know any more was deleted while this one was away.
    let wanted = |timeline| known.as_ref().is_none_or(|known| known.contains(&timeline));
    let change = args.number.map_or("--replace ADDR --with NEW".to_owned(), |number| format!("--replace {number}"));
    let online = || online_only(plan.root.as_deref(), &change);
    rebuild(&plan.lost, &plan.others, plan.members, wanted, done).map_err(|error| refused(&error, online()))?;
    if let (Some(root), Some(number)) = (&plan.root, args.number) {
        let index = usize::from(number) - 1;
        // From here on the old folder is not the one that was there, should it come back. Until the new one has its mark, neither is.
        safekeepers::record(root, &plan.marks)?;
        safekeepers::put_mark(root, index, &plan.marks[index])?;
    }
    let wal_bytes = timelines.iter().map(|timeline| timeline.wal_bytes).sum();
    let report = SafekeeperReport {
        schema_version: SCHEMA_VERSION,
        folder: plan.lost.display().to_string(),
        timelines,
        wal_bytes,
    };
    output.data(&report, |report| {
        format!(
            "{} has {} timelines more, with {} of WAL",
            report.folder,
            report.timelines.len(),
            bytes_text(report.wal_bytes)
        )
    })
}

/// Which folders are meant.
struct Plan {
    /// The installation, unless safekeepers that run alone were named.
    root: Option<PathBuf>,
    lost: PathBuf,
    others: Vec<PathBuf>,
    members: usize,
    /// Of an installation: the marks of all folders, with another one for the lost one's.
    marks: Vec<String>,
    /// That no server runs on the installation.
    _lock: Option<DataLock>,
}

impl Plan {
    fn of(args: &RecoverSafekeeperArgs) -> Result<Plan, Failure> {
        let members = args.members.map(usize::from);
        if let (Some(into), Some(members)) = (&args.into, members) {
            return Ok(Plan {
                root: None,
                lost: into.clone(),
                others: args.from.clone(),
                members,
                marks: Vec::new(),
                _lock: None,
            });
        }
        let number = usize::from(args.number.ok_or_else(|| Failure::usage("say which safekeeper"))?);
        let root = up::data_dir(args.data_dir.as_ref())?;
        let lock = DataLock::take(&root)?;
        refuse_if_changed_online(&root, &format!("--replace {number}"))?;
        let recorded = safekeepers::recorded(&root)?;
        let members = match (recorded.as_ref().map(Vec::len), members) {
            (Some(recorded), Some(given)) if recorded != given => {
                let message = format!("{} has {recorded} safekeepers, not {given}", root.display());
                return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message)));
            }
            (Some(recorded), _) => recorded,
            (None, Some(given)) => given,
            (None, None) => {
                let message = format!("nothing in {} says how many safekeepers there are", root.display());
                return Err(Failure::usage(message).hint("say it, with the lost one: --members 3"));
            }
        };
        if number > members {
            return Err(Failure::usage(format!("there are {members} safekeepers, and none with number {number}")));
        }
        let lost = safekeepers::folder(&root, number - 1);
        // In an installation that is put together anew, the folders say themselves what they are.
        let found: Vec<Option<String>> = (0..members).map(|index| safekeepers::mark_of(&root, index)).collect();
        let mut marks = match recorded {
            Some(marks) => marks,
            None => found
                .iter()
                .cloned()
                .map(|mark| mark.map_or_else(safekeepers::new_mark, Ok))
                .collect::<Result<_, _>>()?,
        };
        let is_there = |index: usize| found[index].as_ref() == Some(&marks[index]);
        if is_there(number - 1) {
            let message = format!("{} is the folder of safekeeper {number}, as it was", lost.display());
            return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message))
                .hint("nothing is lost; move the folder away first if its files are damaged"));
        }
        if found[number - 1].is_some() {
            let message = format!("{} holds another safekeeper's files, or old ones", lost.display());
            return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message))
                .hint("move them away first: what they lack was acknowledged by the one that took their place"));
        }
        let others = (0..members)
            .filter(|index| index + 1 != number && is_there(*index))
            .map(|index| safekeepers::folder(&root, index))
            .collect();
        marks[number - 1] = safekeepers::new_mark()?;
        Ok(Plan { root: Some(root), lost, others, members, marks, _lock: Some(lock) })
    }
}
