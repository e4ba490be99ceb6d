//! One server per data directory.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use ardent_api::control::{ApiErrorCode, ErrorInfo};

use crate::failure::Failure;

/// How long a process that was killed is waited for, whose lock is not free before all of its memory is.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// Held for as long as the server runs; the kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataLock {
    _file: Flock<File>,
}

impl DataLock {
    /// Takes the lock, or says who has it.
    pub fn take(data_dir: &Path) -> Result<Self, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::try_take(data_dir) {
                Err((failure, Some(holder))) if Instant::now() >= deadline || is_there(&holder) => return Err(failure),
                Err((_, Some(_))) => std::thread::sleep(PAUSE),
                Err((failure, None)) => return Err(failure),
                Ok(lock) => return Ok(lock),
            }
        }
    }

    /// Takes the lock, or says why not; and, if another has it, that one's process id as text.
    fn try_take(data_dir: &Path) -> Result<Self, (Failure, Option<String>)> {
        let path = data_dir.join("ardent.lock");
        let failed =
            |error: std::io::Error| (Failure::local(format!("{} cannot be used", path.display()), &error), None);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let write = |file: &mut File| {
                    file.set_len(0)?;
                    file.rewind()?;
                    writeln!(file, "{}", std::process::id())
                };
                write(&mut file).map_err(failed)?;
                Ok(DataLock { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim().to_owned();
                let message = format!("process {holder} runs a server on {} already", data_dir.display());
                let failure = ErrorInfo::new(ApiErrorCode::Conflict, message)
                    .with_hint("use that one (ardent status), stop it, or choose another folder with --data-dir");
                Err((failure.into(), Some(holder)))
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

/// Whether a process is running: not if it is a zombie, or on its way to be one.
fn is_there(process_id: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process_id}/stat")).unwrap_or_default();
    // The name, which may have any character in it, ends with the last parenthesis.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_has_ended() {
        let folder = tempfile::tempdir().expect("folder");
        let first = DataLock::take(folder.path()).expect("free");
        let failure = DataLock::take(folder.path()).expect_err("taken");
        assert_eq!(failure.info.code, ApiErrorCode::Conflict);
        assert!(failure.info.message.contains(&std::process::id().to_string()), "{}", failure.info.message);
        drop(first);
        DataLock::take(folder.path()).expect("free again");
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
        let second = std::thread::spawn(move || DataLock::take(&path).map(drop));
        std::thread::sleep(PAUSE);
        assert!(!second.is_finished());
        drop(first);
        second.join().expect("no panic").expect("taken");
    }
}
