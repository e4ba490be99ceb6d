//! Relation forks: the table of sizes, and unlogged relations' init forks (checklist 28).

use ardent_api::page_service::BackupItem;
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Key, RelTag};

use super::{Backup, BackupResult};
use crate::ingest::decode_size;
use crate::state::ReadState;

/// Entries in one [`BackupItem::Relations`].
const RELATIONS_PER_ITEM: usize = 4096;

impl<S, F, E> Backup<'_, S, F>
where
    S: ReadState,
    E: std::error::Error + 'static,
    F: FnMut(BackupItem) -> Result<(), E>,
{
    /// All forks that exist, in key order.
    pub(super) fn relation_sizes(&self) -> BackupResult<S, E, Vec<(RelTag, BlockNumber)>> {
        let first = *Key::rel_sizes(0, 0).start();
        let last = *Key::rel_sizes(u32::MAX, u32::MAX).end();
        let sizes = self.scan(first, last)?.into_iter();
        sizes
            .map(|(key, content)| match (key, decode_size(Some(content))) {
                (Key::RelSize(rel), Some(blocks)) => Ok((rel, blocks)),
                _ => Err(super::BackupError::Damaged { key }),
            })
            .collect()
    }

    /// An unlogged relation begins as its init fork, which nobody but us copies over its main fork.
    pub(super) fn init_forks(&mut self, sizes: &[(RelTag, BlockNumber)]) -> BackupResult<S, E> {
        for (rel, blocks) in sizes.iter().filter(|(rel, _)| rel.fork == ForkNumber::Init) {
            let mut content = Vec::with_capacity(*blocks as usize * BLCKSZ);
            for block in 0..*blocks {
                match self.get(Key::RelBlock(*rel, block))? {
                    Some(page) => content.extend_from_slice(&page),
                    None => content.resize(content.len() + BLCKSZ, 0),
                }
            }
            let version = self.major.tablespace_directory();
            self.file(rel.path(version), &content)?;
            self.file(rel.with_fork(ForkNumber::Main).path(version), &content)?;
        }
        Ok(())
    }

    /// The other relations' forks.
    pub(super) fn relation_table(&mut self, sizes: &[(RelTag, BlockNumber)]) -> BackupResult<S, E> {
        let same_relation = |a: &(RelTag, BlockNumber), b: &(RelTag, BlockNumber)| {
            a.0.with_fork(ForkNumber::Main) == b.0.with_fork(ForkNumber::Main)
        };
        let mut table = Vec::with_capacity(RELATIONS_PER_ITEM);
        for forks in sizes.chunk_by(same_relation) {
            if forks.iter().any(|(rel, _)| rel.fork == ForkNumber::Init) {
                continue;
            }
            table.extend_from_slice(forks);
            if table.len() >= RELATIONS_PER_ITEM {
                self.item(BackupItem::Relations(std::mem::take(&mut table)))?;
            }
        }
        if table.is_empty() { Ok(()) } else { self.item(BackupItem::Relations(table)) }
    }
}
