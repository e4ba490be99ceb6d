//! One server per data directory.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use ardent_api::control::{ApiErrorCode, ErrorInfo};

use crate::failure::Failure;

/// In the data directory.
const LOCK_FILE: &str = "ardent.lock";
/// How long a process that was killed is waited for, whose lock is not free before all of its memory is.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the flags in `/proc/PID/stat`, the one of a process that is ending: `PF_EXITING` of Linux.
const ENDING: u64 = 4;

/// Held for as long as the server runs; the kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataLock {
    _file: Flock<File>,
}

impl DataLock {
    /// Takes the lock, or says who has it.
    pub fn take(data_dir: &Path) -> Result<Self, Failure> {
        let path = data_dir.join(LOCK_FILE);
        let failed = |error: std::io::Error| {
            let failure = Failure::local(format!("{} cannot be used", path.display()), &error);
            match error.kind() {
                std::io::ErrorKind::NotFound => failure.hint("there is no such folder: say which with --data-dir"),
                _ => failure,
            }
        };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let (mut file, errno) = match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => return Self::taken(file).map_err(failed),
            Err(refused) => refused,
        };
        if errno != Errno::EWOULDBLOCK {
            return Err(failed(errno.into()));
        }
        let mut holder = String::new();
        // Only for the message, and to know whether waiting has a point.
        let _ = file.read_to_string(&mut holder);
        let holder = holder.trim();
        if !is_there(holder)
            && let Some(file) = wait_for(file)
        {
            return Self::taken(file).map_err(failed);
        }
        let message = format!("process {holder} runs a server on {} already", data_dir.display());
        let failure = ErrorInfo::new(ApiErrorCode::Conflict, message)
            .with_hint("use that one (ardent status), stop it, or choose another folder with --data-dir");
        Err(failure.into())
    }

    /// Whether somebody ever took it.
    pub fn was_taken(data_dir: &Path) -> bool {
        data_dir.join(LOCK_FILE).exists()
    }

    /// Leaves this process's id for whoever comes next.
    fn taken(mut file: Flock<File>) -> std::io::Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(DataLock { _file: file })
    }
}

/// The lock, once it is free; `None` if that is not soon, or it cannot be waited for.
fn wait_for(file: File) -> Option<Flock<File>> {
    let (sender, locked) = mpsc::channel();
    // Where the wait is given up, so is this process, and with it the thread.
    std::thread::spawn(move || sender.send(Flock::lock(file, FlockArg::LockExclusive)));
    locked.recv_timeout(PATIENCE).ok()?.ok()
}

/// Whether a process is running: not if it is a zombie, or on its way to be one.
fn is_there(process_id: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process_id}/stat")).unwrap_or_default();
    // The name, which may have any character in it, ends with the last parenthesis. State is the first field after it, flags the seventh.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ');
    let is_ended = fields.next().is_none_or(|state| matches!(state, "Z" | "X"));
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    !is_ended && flags.is_none_or(|flags| flags & ENDING == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_has_ended() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(!DataLock::was_taken(folder.path()));
        let first = DataLock::take(folder.path()).expect("free");
        assert!(DataLock::was_taken(folder.path()));
        let failure = DataLock::take(folder.path()).expect_err("taken");
        assert_eq!(failure.info.code, ApiErrorCode::Conflict);
        assert!(failure.info.message.contains(&std::process::id().to_string()), "{}", failure.info.message);
        drop(first);
        DataLock::take(folder.path()).expect("free again");
    }

    #[test]
    fn who_names_no_data_directory_is_told_so() {
        let failure = DataLock::take(Path::new("/nonexistent/data")).expect_err("there is none");
        assert!(failure.info.hint.is_some_and(|hint| hint.contains("--data-dir")));
    }

    #[test]
    fn one_that_was_killed_is_waited_for() {
        let folder = tempfile::tempdir().expect("folder");
        let mut first = DataLock::take(folder.path()).expect("free");
        first._file.set_len(0).expect("written");
        first._file.rewind().expect("sought");
        // No process has this id.
        writeln!(first._file, "4194305").expect("written");
        let path = folder.path().to_owned();
        let (sender, taken) = mpsc::channel();
        std::thread::spawn(move || sender.send(DataLock::take(&path).map(drop)));
        assert!(taken.recv_timeout(Duration::from_millis(50)).is_err(), "it is held");
        drop(first);
        taken.recv_timeout(PATIENCE).expect("in time").expect("taken");
    }

    #[test]
    fn who_ends_is_not_there() {
        assert!(is_there(&std::process::id().to_string()));
        assert!(!is_there("4194305") && !is_there(""));
        let mut child = std::process::Command::new("true").spawn().expect("started");
        let id = child.id();
        let ended = nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(id as i32)),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        );
        ended.expect("it ends");
        assert!(!is_there(&id.to_string()), "a zombie");
        child.wait().expect("waited for");
    }
}
