//! The log of what a branch ran, read from the branch's folder: also while the branch sleeps.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ardent_api::control::{ApiErrorCode, ErrorInfo, SCHEMA_VERSION};
use ardent_statement_log::{Amount, LogEnd, LogEntry, LogFilter, LogLine, LogRequest, read_log};
use ardent_types::{BranchId, with_causes};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio_util::sync::CancellationToken;

use crate::point::parse_time;
use crate::service::Control;
use crate::store::{BranchRow, iso8601_us};

/// How often whoever follows a log in which nothing comes is looked for, and whether the server stops.
const LOOK_UP_EVERY: Duration = Duration::from_secs(1);

/// A log that is to be read.
#[derive(Debug)]
pub(crate) struct LogReading {
    branch: String,
    folder: PathBuf,
    filter: LogFilter,
    amount: Amount,
    follow: bool,
    /// The server stops.
    cancel: CancellationToken,
}

impl Control {
    /// The folder of a branch's log.
    pub(crate) fn statement_log_folder(&self, branch: BranchId) -> PathBuf {
        self.context.pool.statement_log.folder(branch)
    }

    /// Prepares to read a branch's log. What its sessions have heard as done is in it by then.
    pub(crate) async fn open_statement_log(&self, name: &str, request: &LogRequest) -> Result<LogReading, ErrorInfo> {
        let branch = self.find_branch(name)?;
        refuse_root(&branch)?;
        let filter = filter(request)?;
        let amount = match request.limit {
            None => Amount::All,
            Some(limit) => Amount::Newest(usize::try_from(limit).unwrap_or(usize::MAX)),
        };
        let folder = self.written_log(&branch).await?;
        Ok(LogReading {
            branch: branch.name,
            folder,
            filter,
            amount,
            follow: request.follow,
            cancel: self.cancel.clone(),
        })
    }

    /// The folder of a branch's log, with all that was said up to now.
    pub(crate) async fn written_log(&self, branch: &BranchRow) -> Result<PathBuf, ErrorInfo> {
        let folder = self.statement_log_folder(branch.id);
        self.pool.write_log(branch.id).await;
        if !folder.exists() && self.context.pool.statement_log.bytes_max == 0 {
            let message = format!("this server keeps no log of what {} runs", branch.name);
            return Err(ErrorInfo::new(ApiErrorCode::NotFound, message)
                .with_hint("it was started with --statement-log none: ardent up --statement-log 64MB keeps one"));
        }
        Ok(folder)
    }

    /// Deletes a branch's log; fine if there is none.
    pub(crate) async fn delete_statement_log(&self, branch: BranchId) -> Result<(), ErrorInfo> {
        let folder = self.statement_log_folder(branch);
        let removing = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("the log of statements in {} cannot be removed: {error}", folder.display());
                Err(ErrorInfo::new(ApiErrorCode::Internal, message))
            }
            _ => Ok(()),
        });
        removing.await.map_err(|_| crate::branches::shutting_down())?
    }
}

/// What production runs is not known, and what it makes of a root branch is not the branch's.
pub(crate) fn refuse_root(branch: &BranchRow) -> Result<(), ErrorInfo> {
    if !branch.is_root() {
        return Ok(());
    }
    let name = &branch.name;
    let message = format!("{name} follows production: what that runs is not recorded");
    Err(ErrorInfo::new(ApiErrorCode::RootBranch, message)
        .with_hint(format!("make a branch of it: ardent branch create NAME --from {name}")))
}

fn filter(request: &LogRequest) -> Result<LogFilter, ErrorInfo> {
    let time = |flag: &str, text: &Option<String>| {
        let Some(text) = text else { return Ok(None) };
        let parsed = parse_time(text).ok_or_else(|| {
            ErrorInfo::new(ApiErrorCode::InvalidArguments, format!("{flag}: {text:?} is no time with its zone"))
                .with_hint("write it as 2026-01-31T12:00:00Z; ardent branch log also takes 10m, for ten minutes ago")
        })?;
        Ok::<_, ErrorInfo>(Some(parsed.as_microsecond()))
    };
    Ok(LogFilter {
        since_us: time("since", &request.since)?,
        until_us: time("until", &request.until)?,
        role: request.role.clone(),
        application: request.application.clone(),
        client: request.client,
        database: request.database.clone(),
        failed: request.failed,
        writes: request.writes,
        grep: request.grep.clone(),
    })
}

impl LogReading {
    /// Writes the answer. Blocks; ends when nobody reads it any more.
    pub(crate) fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let watch = match self.follow.then(|| Watch::of(&self.folder)).transpose() {
            Ok(watch) => watch,
            Err(error) => {
                let message = format!("the log of {} cannot be followed: {error}", self.branch);
                return write_line(out, &LogLine::Error { error: ErrorInfo::new(ApiErrorCode::Internal, message) });
            }
        };
        let mut amount = self.amount;
        loop {
            let mut failed = None;
            let read = read_log(&self.folder, &self.filter, amount, |entry| match write_entry(out, entry) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            let summary = match read {
                Ok(summary) => summary,
                Err(error) => {
                    let message = format!("the log of {} cannot be read: {}", self.branch, with_causes(&error));
                    let error = ErrorInfo::new(ApiErrorCode::Internal, message);
                    return write_line(out, &LogLine::Error { error });
                }
            };
            let Some(watch) = watch.as_ref().filter(|_| !self.cancel.is_cancelled()) else {
                let end = LogEnd {
                    schema_version: SCHEMA_VERSION,
                    branch: self.branch.clone(),
                    shown: summary.shown,
                    has_earlier: summary.has_earlier,
                    begins_at: summary.begins_us.map(iso8601_us),
                    is_cut: summary.is_cut,
                    damaged: summary.damaged,
                };
                return write_line(out, &LogLine::End(end));
            };
            // Whoever went away is noticed by writing.
            write_line(out, &LogLine::Waiting)?;
            out.flush()?;
            amount = Amount::After(summary.position);
            watch.wait(LOOK_UP_EVERY)?;
        }
    }
}

/// Tells when something is written to a log, by whichever process.
struct Watch(Inotify);

impl Watch {
    /// From now on. A branch that has run nothing yet gets its folder.
    fn of(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(folder, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        Ok(Watch(inotify))
    }

    /// Until something was written since the last call, or that long.
    fn wait(&self, longest: Duration) -> io::Result<()> {
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        // What it was does not matter: all that is there is read.
        match self.0.read_events() {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn write_entry(out: &mut dyn Write, entry: LogEntry) -> io::Result<()> {
    write_line(out, &LogLine::Entry(Box::new(entry)))
}

fn write_line(out: &mut dyn Write, line: &LogLine) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    writeln!(out)
}

/// Where the logs of branches are kept.
#[derive(Clone, Debug)]
pub struct StatementLogs {
    /// Folder with one folder per branch.
    pub dir: PathBuf,
    /// Bytes that are kept of each; 0: none are written.
    pub bytes_max: u64,
}

impl StatementLogs {
    /// A branch's folder.
    pub(crate) fn folder(&self, branch: BranchId) -> PathBuf {
        Path::new(&self.dir).join(branch.to_string())
    }
}
