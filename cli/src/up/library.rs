//! The library that computes load: carried in this program, unpacked where Postgres can read it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

/// The library for one major.
pub(crate) struct EmbeddedLibrary {
    pub(crate) major: u32,
    /// Of the library itself, in hexadecimal.
    pub(crate) sha256: &'static str,
    pub(crate) zstd: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/compute_libraries.rs"));

/// Unpacks the libraries into a folder below `parent` whose name is their hash, so that another build's computes keep
/// theirs. Gives the folder.
pub(crate) fn unpack(parent: &Path) -> anyhow::Result<PathBuf> {
    if EMBEDDED.is_empty() {
        bail!("this program was built without the library that computes load: build it with \"make build\"");
    }
    let hashes: String = EMBEDDED.iter().map(|library| &library.sha256[..8]).collect();
    let folder = parent.join(hashes);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for path in [parent, &folder] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot open up {}", path.display()))?;
    }
    for library in EMBEDDED {
        unpack_one(library, &folder)?;
    }
    Ok(folder)
}

fn unpack_one(library: &EmbeddedLibrary, folder: &Path) -> anyhow::Result<()> {
    let bytes = zstd::decode_all(library.zstd).context("the embedded library is damaged")?;
    let path = folder.join(format!("libardent_compute_{}.so", library.major));
    // What is there may be half written, or not ours: only the right bytes are left alone.
    if fs::read(&path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    ensure!(hex_sha256(&bytes) == library.sha256, "the embedded library is damaged");
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn hex_sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
