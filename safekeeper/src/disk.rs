//! The file `member` of a safekeeper's folder: a random number that no other folder has. A safekeeper that lost its disk is another one by it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use ardent_object_store::fault::FailPoints;
use ardent_types::DiskId;

use crate::control_file::sync_dir;
use crate::service::StartError;

/// Its name in the safekeeper's folder.
const FILE_NAME: &str = "member";

/// The id of the folder `dir`; made, durably, if it has none.
pub(crate) fn load_or_make(dir: &Path, faults: &FailPoints) -> Result<DiskId, StartError> {
    let path = dir.join(FILE_NAME);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|source| StartError::DiskId { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let disk = DiskId::generate();
            make(dir, disk, faults).map_err(|source| StartError::DataDir { path, source })?;
            Ok(disk)
        }
        Err(source) => Err(StartError::DataDir { path, source }),
    }
}

fn make(dir: &Path, disk: DiskId, faults: &FailPoints) -> io::Result<()> {
    let fresh = dir.join("member.new");
    faults.pass("member.create")?;
    let mut file = File::create(&fresh)?;
    faults.pass("member.write")?;
    file.write_all(format!("{disk}\n").as_bytes())?;
    faults.pass("member.fsync")?;
    file.sync_all()?;
    faults.pass("member.rename")?;
    fs::rename(&fresh, dir.join(FILE_NAME))?;
    faults.pass("member.folder_fsync")?;
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_id_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let faults = FailPoints::new();
        let disk = load_or_make(dir.path(), &faults).expect("made");
        assert_eq!(load_or_make(dir.path(), &faults).expect("read"), disk);
        let other = tempfile::tempdir().expect("a temporary folder");
        assert_ne!(load_or_make(other.path(), &faults).expect("made"), disk);
        fs::write(dir.path().join(FILE_NAME), "what\n").expect("written");
        let error = load_or_make(dir.path(), &faults).expect_err("it is no id");
        assert!(error.to_string().contains("member"), "{error}");
    }
}
