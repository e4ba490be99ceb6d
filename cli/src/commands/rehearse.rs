//! `ardent branch rehearse`.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ardent_api::control::{
    ApiErrorCode, BranchInfo, CreateBranchReply, CreateBranchRequest, DeleteReply, DiffRequest, ErrorInfo,
    SCHEMA_VERSION, UpdateBranchRequest, WakeReply,
};
use ardent_diff::{DiffReport, Style, render_people, render_stat};
use ardent_pg_wire::ConnectConfig;
use ardent_rehearsal::{RehearsalReport, StatementState, rehearse, render};
use ardent_sql_script::{PsqlCommands, Script, ScriptError};
use ardent_types::Lsn;
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::diff::Shown;
use super::{branch, diff, pager, wait_for_signal};
use crate::api::Api;
use crate::args::BranchRehearseArgs;
use crate::config::from_or_default;
use crate::failure::Failure;
use crate::output::{Output, say};

/// The branch lives so long after the last sign of life: it goes too if this command is killed.
const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Signs of life.
const RENEWAL: Duration = Duration::from_secs(5 * 60);
/// What a shell makes of a program that SIGINT ended.
const EXIT_INTERRUPTED: i32 = 130;

/// What is printed with `--json`.
#[derive(Serialize)]
struct Reply<'a> {
    schema_version: u32,
    file: &'a str,
    branch: &'a str,
    from: Option<&'a str>,
    branch_lsn: Option<Lsn>,
    kept: bool,
    #[serde(flatten)]
    report: &'a RehearsalReport,
    diff: Option<Shown<'a>>,
}

/// Runs a migration on a branch that is made for it, tells what it did, and deletes the branch.
pub fn run(output: &Output, api: &Api, args: &BranchRehearseArgs) -> Result<(), Failure> {
    let script = script_of(&args.file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("no threads can be started", &error))?;
    // From before there is a branch, so that none is left.
    let interrupt = CancellationToken::new();
    let signals = interrupt.clone();
    runtime.spawn(async move {
        if wait_for_signal().await.is_ok() {
            say("ending the rehearsal; once more leaves its branch, which expires by itself");
            signals.cancel();
            if wait_for_signal().await.is_ok() {
                std::process::exit(EXIT_INTERRUPTED);
            }
        }
    });

    let shows_progress = !output.json && io::stderr().is_terminal();
    let starting = |number: usize| {
        if shows_progress {
            let first = script.statement(number).lines().next().unwrap_or_default();
            let text: String = first.chars().take(60).filter(|letter| !letter.is_control()).collect();
            output.note(&format!("{}/{} line {}: {text}", number + 1, script.len(), script.line(number)));
        }
    };
    let from = from_or_default(args.from.as_deref())?;
    let place = Place {
        from: from.as_deref(),
        at: args.at.as_deref(),
        role: args.role.as_deref(),
        database: args.database.as_deref(),
        keep: args.keep,
    };
    let warn = |text: &str| output.warning(text);
    let rehearsed =
        on_new_branch(api, runtime.handle(), &place, &script, &interrupt, &Told { warn: &warn, starting: &starting })?;
    let Rehearsed { branch, report, changes, not_compared, left } = rehearsed;
    if let Some(changes) = &changes {
        diff::warn_of(output, &changes.databases_not_compared);
    }
    print(output, args, &branch, &report, changes)?;
    if args.keep {
        output.note(&format!("kept branch {0}; delete it with: ardent branch delete {0}", branch.name));
    }
    left.map_or(Ok(()), Err)?;
    outcome(&report)?;
    not_compared.map_or(Ok(()), Err)
}

/// Where a migration is rehearsed, and as whom. What is absent is as for a new branch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// The branch or connector.
    pub from: Option<&'a str>,
    /// Where in its history.
    pub at: Option<&'a str>,
    /// The role.
    pub role: Option<&'a str>,
    /// The database.
    pub database: Option<&'a str>,
    /// Whether the branch stays.
    pub keep: bool,
}

/// Who is told what happens meanwhile.
pub struct Told<'a> {
    /// Of what should not be missed.
    pub warn: &'a (dyn Fn(&str) + Sync),
    /// Of the number of each statement, from 0, before it is run.
    pub starting: &'a (dyn Fn(usize) + Sync),
}

/// What comes of a rehearsal.
pub struct Rehearsed {
    /// The branch that it was made on.
    pub branch: BranchInfo,
    /// What the statements did.
    pub report: RehearsalReport,
    /// What is different afterwards; absent after an interruption, and where it could not be found out.
    pub changes: Option<DiffReport>,
    /// Why it could not.
    pub not_compared: Option<Failure>,
    /// Why the branch is still there, or not kept, against what was wanted.
    pub left: Option<Failure>,
}

/// Runs a migration on a branch that is made for it, and deletes the branch, whatever came of it. Called where blocking is allowed.
pub fn on_new_branch(
    api: &Api,
    runtime: &tokio::runtime::Handle,
    place: &Place<'_>,
    script: &Script,
    interrupt: &CancellationToken,
    told: &Told<'_>,
) -> Result<Rehearsed, Failure> {
    let branch = make_branch(api, place)?;
    let found = thread::scope(|scope| {
        let (done, ended) = mpsc::channel::<()>();
        let name = &branch.name;
        scope.spawn(move || stay_alive(told, api, name, &ended));
        let found = runtime.block_on(on_branch(api, place, &branch, script, interrupt, told));
        drop(done);
        found
    });
    let left = if place.keep { keep(api, &branch.name) } else { delete(api, &branch.name) }.err();
    match found {
        Ok((report, changes)) => {
            let (changes, not_compared) = match changes {
                Ok(changes) => (changes, None),
                Err(mut failure) => {
                    failure.info.message =
                        format!("what is different afterwards cannot be told: {}", failure.info.message);
                    (None, Some(failure))
                }
            };
            Ok(Rehearsed { branch, report, changes, not_compared, left })
        }
        Err(failure) => {
            // Both are told of.
            if let Some(left) = left {
                let hint = left.info.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                (told.warn)(&format!("{}{hint}", left.info.message));
            }
            Err(failure)
        }
    }
}

/// The migration, read and parted.
fn script_of(file: &str) -> Result<Script, Failure> {
    let mut bytes = Vec::new();
    let read = match file {
        "-" => io::stdin().read_to_end(&mut bytes).map(drop),
        path => fs::read(path).map(|content| bytes = content),
    };
    let name = name_of(file);
    read.map_err(|error| {
        let failure = Failure::local(format!("{name} cannot be read"), &error)
            .hint("give the file that has the migration's SQL, or - for standard input");
        let missing = error.kind() == io::ErrorKind::NotFound;
        if missing { failure.code(ApiErrorCode::NotFound) } else { failure }
    })?;
    parse(name, &bytes)
}

/// Parts a migration into its statements. `name` is what errors call it.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Script, Failure> {
    let script = Script::parse(bytes, PsqlCommands::Refused).map_err(|error| {
        let hint = match error {
            ScriptError::MetaCommand { .. } => "put what psql would make of it into the file; nothing was run",
            ScriptError::CopyData { .. } => "write the rows as INSERT; nothing was run",
            ScriptError::Unterminated { .. } => "psql would wait for its end; nothing was run",
            ScriptError::NotText { .. } => "save it as UTF-8; nothing was run",
        };
        Failure::usage(format!("{name}: {error}")).hint(hint)
    })?;
    if script.is_empty() {
        return Err(
            Failure::usage(format!("{name}: there is no statement in it")).hint("give a file with SQL statements")
        );
    }
    Ok(script)
}

fn name_of(file: &str) -> &str {
    if file == "-" { "standard input" } else { file }
}

fn make_branch(api: &Api, place: &Place<'_>) -> Result<BranchInfo, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    // Another for each process at each moment.
    let name = format!("rehearsal-{:x}-{:x}", now / 1000, std::process::id());
    let request = CreateBranchRequest {
        name,
        from: place.from.map(str::to_owned),
        at: place.at.map(str::to_owned),
        ttl_s: Some(LIFETIME.as_secs()),
        role: place.role.map(str::to_owned),
        ..CreateBranchRequest::default()
    };
    let reply: CreateBranchReply = api.post("/v1/branches", &request)?;
    Ok(reply.branch)
}

/// Puts the end of the branch off until it is told to stop.
fn stay_alive(told: &Told<'_>, api: &Api, name: &str, ended: &mpsc::Receiver<()>) {
    let request = UpdateBranchRequest { ttl_s: Some(LIFETIME.as_secs()), ..UpdateBranchRequest::default() };
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(RENEWAL) {
        if let Err(failure) = api.patch::<BranchInfo>(&format!("/v1/branches/{name}"), &request) {
            (told.warn)(&format!("branch {name} may expire before its time: {}", failure.info.message));
        }
    }
}

fn keep(api: &Api, name: &str) -> Result<(), Failure> {
    // It does not expire any more.
    let request = UpdateBranchRequest { ttl_s: Some(0), ..UpdateBranchRequest::default() };
    api.patch::<BranchInfo>(&format!("/v1/branches/{name}"), &request).map(drop)
}

fn delete(api: &Api, name: &str) -> Result<(), Failure> {
    let deleted = api.delete::<DeleteReply>(&format!("/v1/branches/{name}?for_good=true"));
    deleted.map(drop).map_err(|mut failure| {
        failure.info.message = format!("branch {name} is left: {}", failure.info.message);
        failure.hint(format!("it expires within {} minutes; ardent branch delete {name}", LIFETIME.as_secs() / 60))
    })
}

/// The rehearsal, and what is different afterwards.
async fn on_branch(
    api: &Api,
    place: &Place<'_>,
    branch: &BranchInfo,
    script: &Script,
    interrupt: &CancellationToken,
    told: &Told<'_>,
) -> Result<(RehearsalReport, Result<Option<DiffReport>, Failure>), Failure> {
    let name = &branch.name;
    // Its first start takes longer than a connection may.
    api.post::<WakeReply>(&format!("/v1/branches/{name}/wake"), &json!({}))?;
    let url = branch::url(api, name, place.role)?.url;
    let mut config = ConnectConfig::parse(&url).map_err(|error| Failure::of(&error))?;
    if let Some(database) = place.database {
        config = config.with_database(database);
    }
    let report = rehearse(&config, script, interrupt, told.starting).await.map_err(|error| {
        Failure::of(&error).code(ApiErrorCode::ComputeFailed).hint(match place.role {
            Some(role) => format!("is there a role {role} on production that may log in? --role names another"),
            None => "see whether a branch works: ardent branch create NAME --psql".to_owned(),
        })
    })?;
    if report.interrupted {
        return Ok((report, Ok(None)));
    }
    // What the statements did is worth telling without it.
    Ok((report, diff::ask(api, name, &DiffRequest::default()).map(Some)))
}

fn print(
    output: &Output,
    args: &BranchRehearseArgs,
    branch: &BranchInfo,
    report: &RehearsalReport,
    mut changes: Option<DiffReport>,
) -> Result<(), Failure> {
    if output.json {
        let diff = changes.as_mut().map(|changes| Shown::of(changes, args.stat)).transpose()?;
        let reply = Reply {
            schema_version: SCHEMA_VERSION,
            file: &args.file,
            branch: &branch.name,
            from: branch.parent.as_deref(),
            branch_lsn: branch.branch_lsn,
            kept: args.keep,
            report,
            diff,
        };
        return output.stream(|out| {
            serde_json::to_writer(&mut *out, &reply)?;
            writeln!(out)
        });
    }
    let terminal = io::stdout().is_terminal();
    let style = Style { color: terminal && output.colors_allowed, full: args.full };
    let text = render(report);
    let write = |out: &mut dyn Write| {
        let from = branch.parent.as_deref().unwrap_or_default();
        let lsn = branch.branch_lsn.map(|lsn| format!(" at {lsn}")).unwrap_or_default();
        writeln!(out, "rehearsal of {} on a branch of {from}{lsn}\n\n{text}", name_of(&args.file))?;
        let Some(changes) = &changes else { return Ok(()) };
        writeln!(out, "What is different afterwards:\n")?;
        if args.stat { render_stat(out, &changes.databases) } else { render_people(out, &changes.databases, style) }
    };
    if terminal { pager::show(output, write) } else { output.stream(write) }
}

/// A migration that does not come to its end is a failure.
fn outcome(report: &RehearsalReport) -> Result<(), Failure> {
    let failed = |message: String, hint: &str| -> Result<(), Failure> {
        Err(ErrorInfo::new(ApiErrorCode::ComputeFailed, message).with_hint(hint).into())
    };
    if report.succeeded {
        return Ok(());
    }
    if report.interrupted {
        return failed("the rehearsal was interrupted".to_owned(), "what was seen until then was printed");
    }
    if report.ends_in_transaction {
        return failed("the file ends inside of a transaction".to_owned(), "end it with COMMIT");
    }
    let stopped = report.statements.iter().find(|one| one.state == StatementState::Failed);
    let why = stopped.and_then(|one| one.error.as_ref().map(|error| (one.number, error)));
    let message = match why {
        Some((number, error)) => {
            format!("statement {number} fails: {} (SQLSTATE {}, line {})", error.message, error.sqlstate, error.line)
        }
        None => "not all statements were run".to_owned(),
    };
    failed(message, "mend the file, and rehearse it again")
}
