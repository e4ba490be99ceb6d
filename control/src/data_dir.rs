//! The data directory: what is where in it.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ardent_api::token::TokenIssuer;

use crate::secrets::SecretError;
use crate::service::StartError;

/// Longest path that a Unix socket can have (`sun_path` without its end).
const SOCKET_PATH_MAX: usize = 107;
/// A name as long as those of the sockets of the server's roles.
const LONGEST_SOCKET: &str = "safekeeper-2.sock";

/// The names of the files in a data directory that more than control knows.
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// The files below `root`.
    pub fn new(root: &Path) -> Self {
        DataDir { root: root.to_owned() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What control last saw of the clock.
    pub fn clock(&self) -> PathBuf {
        self.root.join("clock")
    }

    /// A socket or other run-time file.
    pub fn run(&self, name: &str) -> PathBuf {
        self.root.join("run").join(name)
    }

    /// A key file.
    pub fn key(&self, name: &str) -> PathBuf {
        self.root.join("keys").join(name)
    }

    /// Folder of all computes.
    pub fn computes(&self) -> PathBuf {
        self.root.join("computes")
    }

    /// Folder of the logs of statements.
    pub fn statement_logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Folder of temporary files: they have no names, so it always looks empty.
    pub fn spill(&self) -> PathBuf {
        self.root.join("spill")
    }

    /// Makes the folders, unless sockets in them would have too long paths: private ones 0700; the root and `computes` can be passed
    /// through, so that a compute's own user reaches its folder.
    pub fn create(&self) -> Result<(), StartError> {
        check_socket(&self.run(LONGEST_SOCKET))?;
        let make = |path: &Path, mode: u32| {
            let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
            made.map_err(|source| StartError::Folder { path: path.to_owned(), source })?;
            // Where nothing can be written, as on a disk that is mounted read-only, what is right already is left alone.
            if fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o7777 == mode) {
                return Ok(());
            }
            let set = fs::set_permissions(path, fs::Permissions::from_mode(mode));
            set.map_err(|source| StartError::FolderMode { path: path.to_owned(), mode, source })
        };
        make(&self.root, 0o711)?;
        make(&self.root.join("run"), 0o700)?;
        make(&self.root.join("keys"), 0o700)?;
        make(&self.spill(), 0o700)?;
        make(&self.statement_logs(), 0o700)?;
        make(&self.computes(), 0o711)
    }

    /// The issuer of service tokens, with a key that is made at first use.
    pub fn token_issuer(&self) -> Result<TokenIssuer, StartError> {
        let path = self.key("token-signing.pk8");
        let failed = |source| StartError::SigningKey { path: path.clone(), source };
        let key =
            crate::secrets::read_or_create(&path, || TokenIssuer::generate_key().map_err(|_| SecretError::Random))?;
        TokenIssuer::from_key(&key).map_err(failed)
    }
}

/// Whether a socket can have this path.
pub(crate) fn check_socket(path: &Path) -> Result<(), StartError> {
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(StartError::SocketPath { path: path.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_whose_sockets_would_have_no_room_is_refused_before_it_is_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("d".repeat(SOCKET_PATH_MAX));
        let error = DataDir::new(&root).create().expect_err("too long");
        assert!(error.to_string().contains("choose a shorter --data-dir"), "{error}");
        assert!(!root.exists());
    }

    #[test]
    fn folders_that_are_there_are_made_private_and_otherwise_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = DataDir::new(folder.path());
        files.create().expect("made");
        let keys = folder.path().join("keys");
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o755)).expect("set");
        let changed = |path: &Path| {
            use std::os::unix::fs::MetadataExt as _;
            let found = fs::metadata(path).expect("there");
            (found.ctime(), found.ctime_nsec(), found.mode() & 0o7777)
        };
        let before = changed(&files.spill());
        // Until the file system's clock has moved.
        let later = folder.path().join("later");
        while fs::write(&later, "x").is_ok() && changed(&later).0 == before.0 && changed(&later).1 == before.1 {}
        files.create().expect("made again");
        assert_eq!(changed(&keys).2, 0o700);
        assert_eq!(changed(&files.spill()), before, "what is right already is not written");
    }
}
