//! Pages that every start and first connection reads, sent ahead so that they cost no round trip.

use ardent_api::page_service::BackupItem;
use ardent_types::{BlockNumber, ForkNumber, Key, RelTag, oid};

use super::{Backup, BackupResult};
use crate::state::ReadState;

/// Shared catalogs and indexes that a connection reads before it knows its database: `pg_database`, `pg_authid`, `pg_db_role_setting`,
/// `pg_tablespace` and what finds their rows. These are their OIDs, which are also their file numbers until somebody rewrites them; a
/// file that isn't there any more is only fetched later.
const SHARED: [u32; 11] = [1213, 1260, 1262, 2396, 2671, 2672, 2676, 2677, 2697, 2964, 2965];
/// Pages of one of these sent at most.
const PAGES_PER_RELATION: BlockNumber = 8;

impl<S, F, E> Backup<'_, S, F>
where
    S: ReadState,
    E: std::error::Error + 'static,
    F: FnMut(BackupItem) -> Result<(), E>,
{
    pub(super) fn first_pages(&mut self, sizes: &[(RelTag, BlockNumber)]) -> BackupResult<S, E> {
        let shared = |rel: &RelTag| {
            rel.spcnode == oid::GLOBAL_TABLESPACE && rel.fork == ForkNumber::Main && SHARED.contains(&rel.relnode)
        };
        for (rel, blocks) in sizes.iter().filter(|(rel, _)| shared(rel)) {
            for block in 0..(*blocks).min(PAGES_PER_RELATION) {
                if let Some(page) = self.get(Key::RelBlock(*rel, block))? {
                    self.item(BackupItem::Page { rel: *rel, block, page })?;
                }
            }
        }
        Ok(())
    }
}
