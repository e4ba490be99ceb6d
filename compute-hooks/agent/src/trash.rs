//! Data directories that are of no use any more, removed behind the start's back.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::ComputeError;

const PREFIX: &str = "trash.";

/// Moves `data` out of the way, if it is there.
pub(crate) fn discard(compute_dir: &Path, data: &Path) -> Result<(), ComputeError> {
    for number in 0_u32.. {
        let target = compute_dir.join(format!("{PREFIX}{number}"));
        if target.exists() {
            continue;
        }
        return match std::fs::rename(data, &target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ComputeError::io("cannot move away", data)(error))
            }
            _ => Ok(()),
        };
    }
    unreachable!("a folder holds fewer than 2^32 names")
}

/// Removes everything that was discarded, also by earlier runs. Failures cost space only, and are tried again next time.
pub(crate) fn empty(compute_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(compute_dir) else { return };
    let discarded =
        entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()));
    for path in discarded.map(|entry| entry.path()).collect::<Vec<PathBuf>>() {
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(%error, path = %path.display(), "an old data directory cannot be removed");
        }
    }
}
