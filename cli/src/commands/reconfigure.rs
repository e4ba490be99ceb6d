//! `ardent reconfigure`: what an installation was made with is changed. This is how, while no server runs; while one runs it is asked to
//! (`safekeeper_change`).

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use ardent_api::control::{ApiErrorCode, ErrorInfo, StatusReply};
use ardent_control::check_safekeeper_count;
use ardent_safekeeper::{CopiedTimeline, reconfigure};

use super::recover::{TimelineReport, known_timelines, online_only, refuse_if_changed_online, refused};
use super::safekeeper_change;
use crate::api::Api;
use crate::args::{ReconfigureCommand, ReconfigureSafekeepersArgs};
use crate::duration::bytes_text;
use crate::failure::Failure;
use crate::output::Output;
use crate::shell_word::shell_word;
use crate::up::data_lock::DataLock;
use crate::up::{self, safekeepers};

/// `schema_version` of what is printed.
const SCHEMA_VERSION: u32 = 1;
/// In the folder of one that is being added: what else is in it does not count yet.
const JOINING_FILE: &str = "joining";

/// How long it is looked whether the server that was logged into is there.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the command.
pub fn run(output: &Output, url_flag: Option<&str>, command: &ReconfigureCommand) -> Result<(), Failure> {
    match command {
        ReconfigureCommand::Safekeepers(args) => match Way::choose(url_flag, args)? {
            Way::Folder(root, count) => safekeepers(output, &root, count),
            Way::Server(api) => safekeeper_change::run(output, &api, args),
        },
    }
}

/// How it is done.
enum Way {
    /// While no server runs on this folder.
    Folder(PathBuf, u8),
    /// This server is asked.
    Server(Api),
}

impl Way {
    fn choose(url_flag: Option<&str>, args: &ReconfigureSafekeepersArgs) -> Result<Way, Failure> {
        let ReconfigureSafekeepersArgs { count, add, remove, replace, cancel, .. } = args;
        if count.is_none() && add.is_empty() && remove.is_empty() && replace.is_none() && !cancel {
            return Err(Failure::usage("it is not said how many safekeepers there are to be, or which come and go")
                .hint("give a number, --replace, --add, --remove or --cancel: ardent reconfigure safekeepers --help"));
        }
        let root = up::data_dir(args.data_dir.as_ref())?;
        if args.data_dir.is_some() {
            return Self::on_folder(url_flag, args, root);
        }
        let api = Api::new(url_flag)?;
        let Some(count) = args.count.filter(|_| url_flag.is_none() && !args.detach && root.is_dir()) else {
            return Ok(Way::Server(api));
        };
        // The server that was logged into goes first: the usual folder may be another one's.
        match Api::impatient(None, LOOK_TIMEOUT)?.get::<StatusReply>("/v1/status") {
            Err(failure) if failure.info.code == ApiErrorCode::StorageUnavailable && !is_used(&root) => {
                Ok(Way::Folder(root, count))
            }
            _ => Ok(Way::Server(api)),
        }
    }

    /// Where the folder is named it is that one, or none.
    fn on_folder(url_flag: Option<&str>, args: &ReconfigureSafekeepersArgs, root: PathBuf) -> Result<Way, Failure> {
        if is_used(&root) {
            let api = Api::new(url_flag)?;
            let status: StatusReply = api.get("/v1/status")?;
            // Another host's server may keep its data in a folder of that name.
            if !is_this_host(api.url()) || !is_same_folder(&root, Path::new(&status.data_dir)) {
                let message = format!(
                    "a server runs on {}, and {}, which this command would ask, keeps {}",
                    root.display(),
                    api.url(),
                    status.data_dir
                );
                return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message))
                    .hint("log into the server of that folder (ardent login), or say where it is with --url"));
            }
            return Ok(Way::Server(api));
        }
        let nobody = |what: &str, hint: String| {
            let message = format!("no server runs on {}, and {what}", root.display());
            Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message)).hint(hint)
        };
        let start = format!("start it: ardent up --data-dir {}", shell_word(&root));
        if url_flag.is_some() {
            return Err(nobody("a server's address is given as well", "give --data-dir or --url".to_owned()));
        }
        match args.count {
            Some(_) if args.detach => Err(nobody("--detach is for one that does", start)),
            Some(count) => Ok(Way::Folder(root, count)),
            None => Err(nobody("without one only a number can be given", start)),
        }
    }
}

/// Whether a server runs on the folder. Given up at once: whoever works on the folder takes the lock again.
fn is_used(root: &Path) -> bool {
    root.is_dir() && DataLock::take(root).is_err_and(|failure| failure.info.code == ApiErrorCode::Conflict)
}

/// Whether the server at this URL is on this host: servers listen on no other address.
fn is_this_host(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_same_folder(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole(one) == whole(other)
}

/// What `ardent reconfigure safekeepers` did.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    data_dir: String,
    /// Their folders from now on.
    safekeepers: Vec<String>,
    /// What was copied to those that lacked it.
    timelines: Vec<TimelineReport>,
    wal_bytes: u64,
    /// Folders that are not used any more.
    left: Vec<String>,
}

fn safekeepers(output: &Output, root: &Path, count: u8) -> Result<(), Failure> {
    let nothing_there = || {
        let message = format!("{} has no safekeepers yet", root.display());
        Failure::from(ErrorInfo::new(ApiErrorCode::NotFound, message)).hint(format!(
            "begin with: ardent up --data-dir {} --safekeepers {}",
            shell_word(root),
            count
        ))
    };
    if !root.is_dir() {
        return Err(nothing_there());
    }
    let _lock = DataLock::take(root)?;
    refuse_if_changed_online(root, &count.to_string())?;
    let marks = safekeepers::recorded(root)?.ok_or_else(nothing_there)?;
    let (before, after) = (marks.len(), usize::from(count));
    if after != before {
        check_safekeeper_count(after)?;
    }
    let folder = |index: usize| safekeepers::folder(root, index);
    let there: Vec<usize> =
        (0..before).filter(|index| safekeepers::mark_of(root, *index).as_ref() == Some(&marks[*index])).collect();
    if let Some(missing) = (0..before.min(after)).find(|index| !there.contains(index)) {
        let number = missing + 1;
        let message = format!("{}, which stays a safekeeper's, is not what it was", folder(missing).display());
        return Err(Failure::from(ErrorInfo::new(ApiErrorCode::StorageUnavailable, message))
            .hint(format!("mount its disk; if that is lost, run first: ardent recover safekeeper {number}")));
    }
    for index in before..after {
        join(&folder(index))?;
    }
    let known = known_timelines(root)?;
    let wanted = |timeline| known.as_ref().is_none_or(|known| known.contains(&timeline));
    let mut timelines: Vec<TimelineReport> = Vec::new();
    let done = |copied: &CopiedTimeline| timelines.push(TimelineReport::of(output, copied));
    let old: Vec<PathBuf> = there.iter().map(|index| folder(*index)).collect();
    let new: Vec<PathBuf> = (0..after).map(folder).collect();
    let online = || online_only(Some(root), &count.to_string());
    reconfigure(&old, before, &new, wanted, done).map_err(|error| refused(&error, online()))?;

    let joined = (before..after).map(|index| safekeepers::mark(root, index)).collect::<Result<Vec<_>, _>>()?;
    let marks: Vec<String> = marks.into_iter().take(after).chain(joined).collect();
    // From here on they are the members.
    safekeepers::record(root, &marks)?;
    for index in before..after {
        remove_if_there(&folder(index).join(JOINING_FILE))?;
    }
    let texts = |indexes: std::ops::Range<usize>| indexes.map(|index| folder(index).display().to_string()).collect();
    let report = Report {
        schema_version: SCHEMA_VERSION,
        data_dir: root.display().to_string(),
        safekeepers: texts(0..after),
        wal_bytes: timelines.iter().map(|timeline| timeline.wal_bytes).sum(),
        timelines,
        left: texts(after..before.max(after)),
    };
    output.data(&report, text)
}

fn text(report: &Report) -> String {
    let count = report.safekeepers.len();
    let mut out = format!(
        "{} keeps its WAL on {count} safekeeper{} now, and {} must be up for a commit\n",
        report.data_dir,
        if count == 1 { "" } else { "s" },
        count / 2 + 1
    );
    for folder in &report.safekeepers {
        out.push_str(&format!("  {folder}\n"));
    }
    if !report.timelines.is_empty() {
        let (timelines, bytes) = (report.timelines.len(), bytes_text(report.wal_bytes));
        out.push_str(&format!("copied {timelines} timelines, {bytes} of WAL each time\n"));
    }
    for folder in &report.left {
        out.push_str(&format!("not used any more; to remove it: rm -r {}\n", shell_word(folder)));
    }
    out.push_str(&format!("next: ardent up --data-dir {}", shell_word(&report.data_dir)));
    out
}

/// Makes a folder that is to hold a new one's WAL. Of an attempt that was cut off it keeps nothing: the log went on elsewhere since.
fn join(folder: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::local(format!("{} cannot be made ready", folder.display()), &error);
    fs::create_dir_all(folder).map_err(failed)?;
    let joining = folder.join(JOINING_FILE);
    let was_begun = joining.exists();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, name) = (entry.path(), entry.file_name());
        if name == JOINING_FILE || name == "lost+found" {
            continue;
        }
        if !was_begun {
            let message = format!("{} is to hold a new safekeeper's WAL, and has files in it", folder.display());
            return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message))
                .hint("move them away first, or mount an empty disk there"));
        }
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(failed)?;
    }
    if !was_begun {
        File::create(&joining).and_then(|file| file.sync_all()).map_err(failed)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::local(format!("{} cannot be removed", path.display()), &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_run_next_is_said_whole() {
        let report = Report {
            schema_version: SCHEMA_VERSION,
            data_dir: "/srv/a".to_owned(),
            safekeepers: vec!["/srv/a/safekeeper".to_owned()],
            timelines: Vec::new(),
            wal_bytes: 0,
            left: vec!["/srv/a/safekeeper-2".to_owned()],
        };
        let expect = "/srv/a keeps its WAL on 1 safekeeper now, and 1 must be up for a commit\n  /srv/a/safekeeper\n\
                      not used any more; to remove it: rm -r /srv/a/safekeeper-2\nnext: ardent up --data-dir /srv/a";
        assert_eq!(text(&report), expect);
        let report =
            Report { data_dir: "/srv/my a".to_owned(), left: vec!["/srv/my a/safekeeper-2".to_owned()], ..report };
        let said = text(&report);
        assert!(said.contains("rm -r '/srv/my a/safekeeper-2'\nnext: ardent up --data-dir '/srv/my a'"), "{said}");
        let online = online_only(Some(Path::new("/srv/a")), "3");
        assert_eq!(online, "start ardent up --data-dir /srv/a; then: ardent reconfigure safekeepers 3");
    }

    #[test]
    fn a_server_on_another_host_is_none_of_a_folder_here() {
        let check = |url: &str, expect: bool| assert_eq!(is_this_host(url), expect, "{url}");
        check("http://127.0.0.1:7437", true);
        check("http://localhost:7437/x", true);
        check("http://[::1]:7437", true);
        check("http://10.0.0.4:7437", false);
        check("https://ardent.example", false);
        check("http://127.0.0.1.example:7437", false);
    }
}
