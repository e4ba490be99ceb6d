//! Pages that every first connection reads, sent ahead so that they cost no round trip. Which they are was measured on a fresh server
//! without relation cache files (`pg_buffercache` after `select 1`); the numbers are catalogs' OIDs, which are also their file numbers until
//! somebody rewrites them. A page that is somewhere else by now is fetched when it is read, like any other.

use ardent_api::page_service::BackupItem;
use ardent_types::{BlockNumber, ForkNumber, Key, RelTag, oid};

use super::{Backup, BackupResult};
use crate::state::ReadState;

/// File number and first blocks in `global`: `pg_authid`, `pg_database`, their indexes, `pg_db_role_setting`'s index.
const SHARED: [(u32, BlockNumber); 7] = [(1260, 1), (1262, 1), (2671, 2), (2672, 2), (2676, 2), (2677, 2), (2965, 1)];
/// The same in a database: `pg_type`, `pg_attribute`, `pg_class`, `pg_am`, `pg_amproc`, `pg_index`, `pg_opclass` and indexes of them.
const DATABASE: [(u32, BlockNumber); 13] = [
    (1247, 1),
    (1249, 29),
    (1259, 10),
    (2601, 1),
    (2603, 5),
    (2610, 4),
    (2616, 1),
    (2655, 4),
    (2659, 7),
    (2662, 4),
    (2679, 2),
    (2687, 2),
    (2703, 4),
];
/// `template1` and `template0`: hardly anybody connects to them.
const TEMPLATES: [u32; 2] = [1, 4];
/// Pages of one base backup sent at most: databases past the first few are left out.
const PAGES_MAX: u32 = 512;

impl<S, F, E> Backup<'_, S, F>
where
    S: ReadState,
    E: std::error::Error + 'static,
    F: FnMut(BackupItem) -> Result<(), E>,
{
    /// Gives those pages. One that can't be rebuilt is left to whoever really reads it.
    pub(super) fn first_pages(&mut self, sizes: &[(RelTag, BlockNumber)]) -> BackupResult<S, E> {
        let mut sent = 0;
        for (rel, blocks) in sizes {
            for block in 0..(*blocks).min(first_blocks(rel)) {
                if sent == PAGES_MAX {
                    return Ok(());
                }
                let page = match self.state.get(Key::RelBlock(*rel, block)) {
                    Ok(page) => page.filter(|page| !page.is_empty()),
                    Err(error) if S::unreadable(&error).is_some() => None,
                    Err(error) => return Err(super::BackupError::State(error)),
                };
                if let Some(page) = page {
                    self.item(BackupItem::Page { rel: *rel, block, page })?;
                    sent += 1;
                }
            }
        }
        Ok(())
    }
}

fn first_blocks(rel: &RelTag) -> BlockNumber {
    let table: &[(u32, BlockNumber)] = match (rel.spcnode, rel.fork) {
        (oid::GLOBAL_TABLESPACE, ForkNumber::Main) => &SHARED,
        (oid::DEFAULT_TABLESPACE, ForkNumber::Main) if !TEMPLATES.contains(&rel.dbnode) => &DATABASE,
        _ => &[],
    };
    table.iter().find(|(relnode, _)| *relnode == rel.relnode).map_or(0, |(_, blocks)| *blocks)
}
