//! A stopped server's data directory.

use std::fs;
use std::path::{Path, PathBuf};

use ardent_pg_format::{ClusterState, ControlFile, PgMajor};
use ardent_types::{ForkNumber, RelTag, oid};

use super::EndError;

/// Blocks in one segment file (`RELSEG_SIZE`).
const SEGMENT_SUFFIX: char = '.';

/// The directory, and which major wrote it.
pub(super) struct DataDirectory {
    root: PathBuf,
    control: ControlFile,
}

impl DataDirectory {
    pub(super) fn open(root: &Path) -> Result<DataDirectory, EndError> {
        let path = root.join("global/pg_control");
        let bytes = fs::read(&path).map_err(|source| EndError::Io { path: path.clone(), source })?;
        let control = ControlFile::decode(&bytes).map_err(|error| EndError::File { path, what: error.to_string() })?;
        Ok(DataDirectory { root: root.to_owned(), control })
    }

    /// `pg_control`, if the server was shut down.
    pub(super) fn shut_down_control(&self) -> Result<ControlFile, EndError> {
        match self.control.state {
            ClusterState::ShutDown => Ok(self.control.clone()),
            state => Err(EndError::NotShutDown { folder: self.root.clone(), state }),
        }
    }

    pub(super) fn major(&self) -> PgMajor {
        self.control.major
    }

    /// All files, as paths relative to the directory, in order. Links of tablespaces are followed.
    pub(super) fn files(&self) -> Result<Vec<String>, EndError> {
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let full = self.root.join(&folder);
            let io = |source| EndError::Io { path: full.clone(), source };
            for entry in fs::read_dir(&full).map_err(io)? {
                let path = folder.join(entry.map_err(io)?.file_name());
                match (self.root.join(&path).is_dir(), path.to_str()) {
                    (true, _) => folders.push(path),
                    (false, Some(name)) => found.push(name.to_owned()),
                    (false, None) => {
                        return Err(EndError::File { path, what: "the name is not plain text".to_owned() });
                    }
                }
            }
        }
        found.sort();
        Ok(found)
    }

    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>, EndError> {
        let path = self.root.join(path);
        fs::read(&path).map_err(|source| EndError::Io { path, source })
    }

    /// The relation forks that have a file.
    pub(super) fn forks(&self) -> Result<Vec<RelTag>, EndError> {
        Ok(self.files()?.iter().filter_map(|path| parse_fork(path)).collect())
    }

    /// The segments of a fork, one after the other. Empty if there is no file.
    pub(super) fn fork(&self, rel: RelTag) -> Result<Vec<u8>, EndError> {
        let path = rel.path(self.major().tablespace_directory());
        let mut content = Vec::new();
        for segment in 0.. {
            let name = if segment == 0 { path.clone() } else { format!("{path}{SEGMENT_SUFFIX}{segment}") };
            if !self.root.join(&name).exists() {
                break;
            }
            content.extend(self.read(&name)?);
        }
        Ok(content)
    }
}

/// The fork whose first segment this file is.
fn parse_fork(path: &str) -> Option<RelTag> {
    let parts: Vec<&str> = path.split('/').collect();
    let (spcnode, dbnode, name) = match parts[..] {
        ["global", name] => (oid::GLOBAL_TABLESPACE, 0, name),
        ["base", db, name] => (oid::DEFAULT_TABLESPACE, db.parse().ok()?, name),
        ["pg_tblspc", spc, _, db, name] => (spc.parse().ok()?, db.parse().ok()?, name),
        _ => return None,
    };
    let (number, suffix) = name.split_at(name.find('_').unwrap_or(name.len()));
    let fork = ForkNumber::ALL.into_iter().find(|fork| fork.file_suffix() == suffix)?;
    Some(RelTag { spcnode, dbnode, relnode: number.parse().ok()?, fork })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_first_segments_of_relations_are_forks() {
        let rel = |spcnode, dbnode, relnode, fork| Some(RelTag { spcnode, dbnode, relnode, fork });
        assert_eq!(parse_fork("global/1260"), rel(1664, 0, 1260, ForkNumber::Main));
        assert_eq!(parse_fork("base/5/2619_vm"), rel(1663, 5, 2619, ForkNumber::Vm));
        assert_eq!(parse_fork("pg_tblspc/16400/PG_15_202209061/5/16401_init"), rel(16400, 5, 16401, ForkNumber::Init));
        for other in ["base/5/2619.1", "base/5/t3_16400", "base/5/PG_VERSION", "base/5/2619_old", "pg_xact/0000"] {
            assert_eq!(parse_fork(other), None, "{other}");
        }
    }
}
