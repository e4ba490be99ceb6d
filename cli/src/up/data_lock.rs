//! One server per data directory.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use ardent_api::control::{ApiErrorCode, ErrorInfo};

use crate::failure::Failure;

/// Held for as long as the server runs; the kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataLock {
    _file: Flock<File>,
}

impl DataLock {
    /// Takes the lock, or says who has it.
    pub fn take(data_dir: &Path) -> Result<Self, Failure> {
        let path = data_dir.join("ardent.lock");
        let failed = |error: std::io::Error| Failure::local(format!("{} cannot be used", path.display()), &error);
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
                let message = format!("process {} runs a server on {} already", holder.trim(), data_dir.display());
                Err(ErrorInfo::new(ApiErrorCode::Conflict, message)
                    .with_hint("use that one (ardent status), stop it, or choose another folder with --data-dir")
                    .into())
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
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
}
