//! The libraries that computes load, out of this program into a folder that any user can read.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Largest library, unpacked, in bytes.
const LIBRARY_LEN_MAX: usize = 256 << 20;

/// A library inside this program.
#[derive(Debug)]
pub struct EmbeddedLibrary {
    /// Major version of Postgres that loads it.
    pub major: u32,
    /// First bytes of its SHA-256, in hexadecimal.
    pub hash: &'static str,
    /// The library, compressed.
    zstd: &'static [u8],
}

const LIBRARIES: &[EmbeddedLibrary] = include!(concat!(env!("OUT_DIR"), "/libraries.rs"));

/// The library for this major.
pub fn embedded(major: u32) -> Option<&'static EmbeddedLibrary> {
    LIBRARIES.iter().find(|library| library.major == major)
}

/// Unpacks all libraries into `DATA/lib/HASH`, or, if other users cannot pass through to that, into `/var/tmp`. Gives the folder
/// and whether it is the second kind.
pub fn unpack(data_dir: &Path, others_must_read: bool) -> Result<(PathBuf, bool), Failure> {
    if LIBRARIES.is_empty() {
        return Err(Failure::usage("this program was built without the library that computes load").hint(
            "build it with: make build (or set ARDENT_COMPUTE_LIB_DIR to a folder that holds it, and build again)",
        ));
    }
    let hash = LIBRARIES.iter().map(|library| library.hash).collect::<Vec<_>>().join("-");
    let own = data_dir.join("lib");
    let unpacked = |parent: &Path| {
        unpack_into(parent, &hash)
            .map_err(|error| Failure::local(format!("{} cannot be written", parent.display()), &error))
    };
    let folder = unpacked(&own)?;
    if !others_must_read || others_can_reach(&folder) {
        return Ok((folder, false));
    }
    Ok((unpacked(Path::new("/var/tmp/ardent-lib"))?, true))
}

fn unpack_into(parent: &Path, hash: &str) -> io::Result<PathBuf> {
    let folder = parent.join(hash);
    for path in [parent, folder.as_path()] {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        let owner = fs::symlink_metadata(path)?;
        // In a folder that everybody can write, what has our name may be somebody else's.
        if !owner.is_dir() || owner.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::other(format!("{} belongs to somebody else", path.display())));
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    for library in LIBRARIES {
        let path = folder.join(format!("libardent_compute_{}.so", library.major));
        let bytes = zstd::bulk::decompress(library.zstd, LIBRARY_LEN_MAX)?;
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            continue;
        }
        let temporary = folder.join(format!(".new-{}", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
    }
    Ok(folder)
}

/// Whether every folder above can be passed through by others.
fn others_can_reach(path: &Path) -> bool {
    path.ancestors().all(|folder| fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & 0o001 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_behind_a_private_one_is_out_of_reach() {
        let folder = tempfile::tempdir().expect("folder");
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).expect("made");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("set");
        assert!(!others_can_reach(&inner));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).expect("set");
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).expect("set");
        assert_eq!(others_can_reach(&inner), others_can_reach(folder.path().parent().expect("a parent")));
    }
}
