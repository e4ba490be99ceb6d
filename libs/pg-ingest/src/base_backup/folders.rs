//! The folders of a data directory. Those of databases must exist even if they are empty (checklist 40).

use std::collections::BTreeSet;

use ardent_api::page_service::BackupItem;
use ardent_pg_format::{PgMajor, data_directory};
use ardent_types::{BlockNumber, Key, RelTag, oid};

use super::{Backup, BackupResult};
use crate::ingest::WITH_VERSION_FILE;
use crate::state::ReadState;

/// First and last key of all databases' folders.
const ALL: (Key, Key) =
    (Key::Database { spcnode: 0, dbnode: 0 }, Key::Database { spcnode: u32::MAX, dbnode: u32::MAX });

impl<S, F, E> Backup<'_, S, F>
where
    S: ReadState,
    E: std::error::Error + 'static,
    F: FnMut(BackupItem) -> Result<(), E>,
{
    /// All folders, and the version files in those of databases.
    pub(super) fn folders(&mut self, sizes: &[(RelTag, BlockNumber)]) -> BackupResult<S, E> {
        for path in data_directory::FOLDERS {
            self.item(BackupItem::Directory(path.to_owned()))?;
        }
        if self.major >= PgMajor::V17 {
            self.item(BackupItem::Directory("pg_wal/summaries".to_owned()))?;
        }
        let known = self.scan(ALL.0, ALL.1)?;
        let mut folders: BTreeSet<(u32, u32)> = sizes.iter().map(|(rel, _)| (rel.spcnode, rel.dbnode)).collect();
        let mut versions = Vec::new();
        for (key, content) in known {
            let Key::Database { spcnode, dbnode } = key else { continue };
            folders.insert((spcnode, dbnode));
            if content[..] == *WITH_VERSION_FILE {
                versions.push((spcnode, dbnode));
            }
        }
        let mut tablespaces = BTreeSet::new();
        for (spcnode, dbnode) in folders {
            if spcnode == oid::GLOBAL_TABLESPACE {
                continue;
            }
            if spcnode != oid::DEFAULT_TABLESPACE && tablespaces.insert(spcnode) {
                let version = self.major.tablespace_directory();
                self.item(BackupItem::Directory(format!("pg_tblspc/{spcnode}")))?;
                self.item(BackupItem::Directory(format!("pg_tblspc/{spcnode}/{version}")))?;
            }
            if dbnode != 0 {
                let path = self.database_path(spcnode, dbnode);
                self.item(BackupItem::Directory(path))?;
            }
        }
        let version = format!("{}\n", self.major);
        self.file("PG_VERSION".to_owned(), version.as_bytes())?;
        for (spcnode, dbnode) in versions {
            let path = format!("{}/PG_VERSION", self.database_path(spcnode, dbnode));
            self.file(path, version.as_bytes())?;
        }
        Ok(())
    }

    /// A database's folder in a tablespace; with database 0, `global`.
    pub(super) fn database_path(&self, spcnode: u32, dbnode: u32) -> String {
        match spcnode {
            oid::GLOBAL_TABLESPACE => "global".to_owned(),
            oid::DEFAULT_TABLESPACE => format!("base/{dbnode}"),
            _ => format!("pg_tblspc/{spcnode}/{}/{dbnode}", self.major.tablespace_directory()),
        }
    }
}
