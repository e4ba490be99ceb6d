//! Relation maps, prepared transactions, replication origins.

use ardent_api::page_service::BackupItem;
use ardent_pg_format::PgMajor;
use ardent_types::Key;

use super::{Backup, BackupResult};
use crate::ingest::Origins;
use crate::state::ReadState;

impl<S, F, E> Backup<'_, S, F>
where
    S: ReadState,
    E: std::error::Error + 'static,
    F: FnMut(BackupItem) -> Result<(), E>,
{
    pub(super) fn small_files(&mut self) -> BackupResult<S, E> {
        let last = Key::RelMap { spcnode: u32::MAX, dbnode: u32::MAX };
        for (key, content) in self.scan(Key::RelMap { spcnode: 0, dbnode: 0 }, last)? {
            if let Key::RelMap { spcnode, dbnode } = key {
                let path = format!("{}/pg_filenode.map", self.database_path(spcnode, dbnode));
                self.file(path, &content)?;
            }
        }
        for (key, content) in self.scan(Key::TwoPhase { xid: 0 }, Key::TwoPhase { xid: u64::MAX })? {
            if let Key::TwoPhase { xid } = key {
                // Since 17 the name has the epoch too (checklist 52).
                let long = self.major >= PgMajor::V17;
                let name = if long { format!("{xid:016X}") } else { format!("{:08X}", xid as u32) };
                self.file(format!("pg_twophase/{name}"), &content)?;
            }
        }
        if let Some(content) = self.get(Origins::KEY)? {
            self.file(Origins::PATH.to_owned(), &content)?;
        }
        Ok(())
    }
}
