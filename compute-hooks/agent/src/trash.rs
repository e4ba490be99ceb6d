//! Data directories that are of no use any more, removed behind the start's back.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
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
        let removed = std::fs::remove_dir_all(&path).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                open_up(&path);
                std::fs::remove_dir_all(&path)
            }
            _ => Err(error),
        });
        if let Err(error) = removed {
            tracing::warn!(%error, path = %path.display(), "an old data directory cannot be removed");
        }
    }
}

/// Opens folders that whoever ran there has closed. Without root we are the same user, and held up by that as they were.
fn open_up(folder: &Path) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // Where this fails, so does the removal, which says it.
        let _ = std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700));
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        // A link to a folder is none.
        let inner = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(inner.map(|entry| entry.path()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_were_closed_go_as_well() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        std::fs::create_dir_all(data.join("closed/within")).expect("made");
        std::fs::write(data.join("closed/within/file"), "x").expect("written");
        for closed in ["closed/within", "closed"] {
            std::fs::set_permissions(data.join(closed), std::fs::Permissions::from_mode(0o000)).expect("set");
        }
        discard(folder.path(), &data).expect("moved");
        empty(folder.path());
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
    }
}
