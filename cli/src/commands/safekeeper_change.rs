//! `ardent reconfigure safekeepers` while the server runs: it is asked, and followed to the end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use ardent_api::control::{
    ApiErrorCode, ChangePhase, ChangeSafekeepersRequest, ErrorInfo, SafekeeperChange, SafekeepersReply, StatusReply,
};

use crate::api::Api;
use crate::args::ReconfigureSafekeepersArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::shell_word::shell_word;

/// `schema_version` of what is printed.
const SCHEMA_VERSION: u32 = 1;
/// How often the server is asked how far it is.
const POLL: Duration = Duration::from_millis(300);
/// How long the server may not answer: it may be started again meanwhile, and goes on then.
const SERVER_AWAY_MAX: u32 = 200;

/// What the command did.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    /// `done`, `cancelled`, or the phase that a change is in that goes on.
    state: &'static str,
    /// Of the list of them.
    generation: u64,
    /// Their addresses now; those that join come with the end.
    safekeepers: Vec<String>,
    adding: Vec<String>,
    removing: Vec<String>,
    /// The folder of the server, where some that were its own may have left theirs.
    #[serde(skip)]
    data_dir: String,
}

/// Runs it.
pub fn run(output: &Output, api: &Api, args: &ReconfigureSafekeepersArgs) -> Result<(), Failure> {
    if args.cancel {
        let _: SafekeepersReply = api.delete("/v1/safekeepers/change")?;
        if !args.detach {
            wait(output, api)?;
        }
        return print(output, api, "cancelled", None);
    }
    let request = ChangeSafekeepersRequest {
        count: args.count,
        add: args.add.iter().chain(&args.with).cloned().collect(),
        add_own: u8::from(args.replace.is_some() && args.with.is_none()),
        remove: args.remove.iter().chain(&args.replace).cloned().collect(),
    };
    let begun: SafekeeperChange = api.post("/v1/safekeepers/change", &request)?;
    if args.detach {
        return print(output, api, begun.phase.as_str(), Some(&begun));
    }
    if wait(output, api)? == Some(ChangePhase::Cancelled) {
        let message = "the change of the safekeepers was given up: they are who they were";
        return Err(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint("ardent status shows them").into());
    }
    print(output, api, "done", Some(&begun))
}

/// Until no change is on its way. Gives the last phase that was seen.
fn wait(output: &Output, api: &Api) -> Result<Option<ChangePhase>, Failure> {
    let (mut said, mut last, mut away) = (String::new(), None, 0);
    loop {
        let change = match api.get::<SafekeepersReply>("/v1/safekeepers") {
            Ok(reply) => reply.change,
            Err(failure) if is_away(&failure) && away < SERVER_AWAY_MAX => {
                away += 1;
                std::thread::sleep(POLL);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        away = 0;
        let Some(change) = change else { return Ok(last) };
        last = Some(change.phase);
        let text = progress(&change);
        if text != said {
            output.note(&text);
            said = text;
        }
        std::thread::sleep(POLL);
    }
}

/// Whether nobody answered at all.
fn is_away(failure: &Failure) -> bool {
    matches!(failure.info.code, ApiErrorCode::Timeout | ApiErrorCode::StorageUnavailable | ApiErrorCode::Internal)
}

/// How far a change is, in one line.
pub fn progress(change: &SafekeeperChange) -> String {
    let what = match change.phase {
        ChangePhase::Copying => "copying to those that join",
        ChangePhase::Joint => "old and new ones decide together, and the new ones catch up",
        ChangePhase::Settled => "the new ones decide; all are told",
        ChangePhase::Cancelled => "given up; all are told",
    };
    let mut text = format!("{what}: {} of {} timelines", change.timelines_done, change.timelines);
    if let Some(problem) = &change.problem {
        text.push_str(&format!("; waits: {problem}"));
    }
    text
}

fn print(output: &Output, api: &Api, state: &'static str, change: Option<&SafekeeperChange>) -> Result<(), Failure> {
    let now: SafekeepersReply = api.get("/v1/safekeepers")?;
    let report = Report {
        schema_version: SCHEMA_VERSION,
        state,
        generation: now.generation,
        safekeepers: now.safekeepers.iter().map(|one| one.address.clone()).collect(),
        adding: change.map(|change| change.adding.clone()).unwrap_or_default(),
        removing: change.map(|change| change.removing.clone()).unwrap_or_default(),
        data_dir: api.get::<StatusReply>("/v1/status")?.data_dir,
    };
    output.data(&report, text)
}

fn text(report: &Report) -> String {
    let count = report.safekeepers.len();
    let mut out = match report.state {
        "done" => {
            let many = if count == 1 { "" } else { "s" };
            let needed = count / 2 + 1;
            format!("WAL is kept on {count} safekeeper{many} now, and {needed} must be up for a commit\n")
        }
        "cancelled" => "the change is given up; the safekeepers are\n".to_owned(),
        phase => {
            format!("the change is on its way ({phase}); ardent status shows how far it is. The safekeepers are\n")
        }
    };
    for address in &report.safekeepers {
        out.push_str(&format!("  {address}\n"));
    }
    for address in report.removing.iter().filter(|_| report.state == "done") {
        out.push_str(&match own_folder(address, &report.data_dir) {
            Some(folder) => {
                format!("not used any more, and stopped; to remove what it had: rm -r {}\n", shell_word(folder))
            }
            None => format!("not used any more, stop it and remove its folder when you like: {address}\n"),
        });
    }
    out.push_str(&format!("generation {}", report.generation));
    out
}

/// The folder of a safekeeper that `ardent up` ran on its installation's own, by its address.
fn own_folder(address: &str, data_dir: &str) -> Option<PathBuf> {
    let (socket, data_dir) = (Path::new(address.strip_prefix("unix:")?), Path::new(data_dir));
    let name = socket.file_stem()?.to_str()?;
    let is_own = socket.parent() == Some(data_dir.join("run").as_path()) && name.starts_with("safekeeper");
    is_own.then(|| data_dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_is_to_be_removed_where_it_was() {
        let said = |removing: &[&str]| {
            text(&Report {
                schema_version: SCHEMA_VERSION,
                state: "done",
                generation: 2,
                safekeepers: vec!["unix:/srv/a/run/safekeeper.sock".to_owned()],
                adding: Vec::new(),
                removing: removing.iter().map(|address| (*address).to_owned()).collect(),
                data_dir: "/srv/a".to_owned(),
            })
        };
        let own = said(&["unix:/srv/a/run/safekeeper-2.sock"]);
        assert!(own.contains("and stopped; to remove what it had: rm -r /srv/a/safekeeper-2\n"), "{own}");
        for other in ["unix:/run/ardent/safekeeper-2.sock", "tls:10.0.0.4:7431/KEY"] {
            let said = said(&[other]);
            assert!(said.contains(&format!("stop it and remove its folder when you like: {other}\n")), "{said}");
        }
    }

    #[test]
    fn progress_names_what_is_waited_for() {
        let change = SafekeeperChange {
            phase: ChangePhase::Joint,
            adding: vec!["unix:/d".to_owned()],
            removing: vec!["unix:/c".to_owned()],
            timelines_done: 3,
            timelines: 7,
            problem: Some("unix:/d does not answer".to_owned()),
        };
        let text = progress(&change);
        assert!(text.contains("3 of 7 timelines; waits: unix:/d does not answer"), "{text}");
    }
}
