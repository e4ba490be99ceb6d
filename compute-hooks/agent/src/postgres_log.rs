//! The file that Postgres writes its messages to.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::error::ComputeError;

/// A log that has grown past this is set aside at the next start; one older log is kept.
const KEEP_LEN_MAX: u64 = 16 << 20;
/// How much of its end is quoted in an error.
const TAIL_LEN: u64 = 4096;

/// An open log.
#[derive(Debug)]
pub(crate) struct PostgresLog {
    path: PathBuf,
    pub(crate) file: File,
    /// Where this run's messages begin.
    begin: u64,
}

impl PostgresLog {
    pub(crate) fn open(path: &Path) -> Result<Self, ComputeError> {
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > KEEP_LEN_MAX) {
            std::fs::rename(path, path.with_extension("log.old"))
                .map_err(ComputeError::io("cannot set aside", path))?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let file = file.map_err(ComputeError::io("cannot open", path))?;
        let begin = file.metadata().map_err(ComputeError::io("cannot look at", path))?.len();
        Ok(PostgresLog { path: path.to_owned(), file, begin })
    }

    /// The last lines of this run.
    pub(crate) fn tail(&self) -> String {
        let read = || {
            let mut file = File::open(&self.path)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.begin.max(end.saturating_sub(TAIL_LEN))))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            std::io::Result::Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
        };
        read().unwrap_or_else(|error| format!("({} cannot be read: {error})", self.path.display()))
    }
}
