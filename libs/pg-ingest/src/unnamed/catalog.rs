//! Rows of pg_class and pg_database, from their pages. The columns that are read stand at the same places in 15 to 18.

use std::collections::BTreeSet;

use ardent_types::{BLCKSZ, ForkNumber, Key, RelTag, oid};

use super::relation_map::RelationMap;
use super::transactions::Transactions;
use super::{PG_CLASS, UnnamedError};
use crate::ingest::decode_size;
use crate::state::ReadState;

/// Tablespace, database, number of the file.
pub(super) type MainFork = (u32, u32, u32);

const PAGE_HEADER_LEN: usize = 24;
const TUPLE_HEADER_LEN: usize = 23;
const LP_NORMAL: u32 = 1;

mod infomask {
    pub const KEYSHR_LOCK: u16 = 0x0010;
    pub const EXCL_LOCK: u16 = 0x0040;
    pub const LOCK_ONLY: u16 = 0x0080;
    pub const XMIN_COMMITTED: u16 = 0x0100;
    pub const XMIN_INVALID: u16 = 0x0200;
    pub const XMAX_COMMITTED: u16 = 0x0400;
    pub const XMAX_INVALID: u16 = 0x0800;
    pub const XMAX_IS_MULTI: u16 = 0x1000;
}

/// Catalogs at one LSN.
pub(super) struct Catalogs<'s, S> {
    pub state: &'s S,
    pub transactions: Transactions,
}

type Outcome<S, T> = Result<T, UnnamedError<<S as ReadState>::Error>>;

impl<S: ReadState> Catalogs<'_, S> {
    /// Databases' main folders: tablespace and database.
    pub fn default_folders(&self) -> Outcome<S, Vec<(u32, u32)>> {
        let first = Key::Database { spcnode: 0, dbnode: 0 };
        let last = Key::Database { spcnode: u32::MAX, dbnode: u32::MAX };
        let folders = self.state.scan(first..=last).map_err(UnnamedError::State)?;
        let folders = folders.into_iter().filter_map(|(key, content)| match key {
            Key::Database { spcnode, dbnode } if dbnode != 0 && content[..] == [1] => Some((spcnode, dbnode)),
            _ => None,
        });
        Ok(folders.collect())
    }

    pub fn map(&self, spcnode: u32, dbnode: u32) -> Outcome<S, RelationMap> {
        let place = Key::RelMap { spcnode, dbnode };
        let file = self.state.get(place).map_err(UnnamedError::State)?.unwrap_or_default();
        RelationMap::parse(&file).map_err(|what| UnnamedError::Damaged { place, what })
    }

    /// The main fork of a mapped catalog.
    pub fn mapped(&self, spcnode: u32, dbnode: u32, map: &RelationMap, catalog: u32) -> Outcome<S, RelTag> {
        let what = if catalog == PG_CLASS { "it does not have pg_class" } else { "it does not have pg_database" };
        let missing = UnnamedError::Damaged { place: Key::RelMap { spcnode, dbnode }, what };
        let relnode = map.file_of(catalog).ok_or(missing)?;
        Ok(RelTag { spcnode, dbnode, relnode, fork: ForkNumber::Main })
    }

    /// OIDs of databases.
    pub fn databases(&mut self, pg_database: RelTag) -> Outcome<S, BTreeSet<u32>> {
        let mut databases = BTreeSet::new();
        self.rows(pg_database, |row| {
            databases.insert(u32_at(row, 0)?);
            Some(())
        })?;
        Ok(databases)
    }

    /// Adds the files that a database's pg_class names. Those of mapped catalogs are 0 there.
    pub fn relations(&mut self, pg_class: RelTag, named: &mut BTreeSet<MainFork>) -> Outcome<S, ()> {
        const RELFILENODE: usize = 88;
        const RELTABLESPACE: usize = 92;
        let RelTag { spcnode, dbnode, .. } = pg_class;
        self.rows(pg_class, |row| {
            let (file, tablespace) = (u32_at(row, RELFILENODE)?, u32_at(row, RELTABLESPACE)?);
            named.insert(match tablespace {
                oid::GLOBAL_TABLESPACE => (oid::GLOBAL_TABLESPACE, 0, file),
                0 => (spcnode, dbnode, file),
                other => (other, dbnode, file),
            });
            Some(())
        })
    }

    /// Gives `each` the columns of every row that counts. `None` from it: the row is too short.
    fn rows(&mut self, catalog: RelTag, mut each: impl FnMut(&[u8]) -> Option<()>) -> Outcome<S, ()> {
        let size = self.state.get(Key::RelSize(catalog)).map_err(UnnamedError::State)?;
        for block in 0..decode_size(size).unwrap_or(0) {
            let place = Key::RelBlock(catalog, block);
            // Without a version it is a page of zeros.
            let Some(page) = self.state.get(place).map_err(UnnamedError::State)? else { continue };
            let damaged = |what| UnnamedError::Damaged { place, what };
            if page.len() != BLCKSZ {
                return Err(damaged("it has not the length of a page"));
            }
            for tuple in tuples(&page) {
                let tuple = tuple.ok_or(damaged("a row lies outside of it"))?;
                let columns = tuple.get(usize::from(tuple[22])..).ok_or(damaged("a row ends within its header"))?;
                if self.counts(tuple)? {
                    each(columns).ok_or(damaged("a row is too short"))?;
                }
            }
        }
        Ok(())
    }

    /// Whether a row is there, or may come to be, and is not known to be gone.
    fn counts(&mut self, tuple: &[u8]) -> Outcome<S, bool> {
        let (xmin, xmax) = (u32_at(tuple, 0).unwrap_or(0), u32_at(tuple, 4).unwrap_or(0));
        let mask = u16::from_le_bytes([tuple[20], tuple[21]]);
        let has = |bits: u16| mask & bits != 0;
        let inserted = if has(infomask::XMIN_COMMITTED) {
            // Both bits: frozen.
            true
        } else {
            !has(infomask::XMIN_INVALID) && self.transactions.may_commit(xmin, self.state)?
        };
        let lock_bits = infomask::XMAX_IS_MULTI | infomask::EXCL_LOCK | infomask::KEYSHR_LOCK;
        let only_locked = has(infomask::LOCK_ONLY) || mask & lock_bits == infomask::EXCL_LOCK;
        let stays = xmax == 0 || has(infomask::XMAX_INVALID | infomask::XMAX_IS_MULTI) || only_locked;
        if !inserted || stays {
            return Ok(inserted);
        }
        Ok(!has(infomask::XMAX_COMMITTED) && !self.transactions.committed(xmax, self.state)?)
    }
}

/// The tuples of a heap page; `None` for one that does not lie on it.
fn tuples(page: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let lower = usize::from(u16::from_le_bytes([page[12], page[13]])).min(page.len());
    let pointers = page.get(PAGE_HEADER_LEN..lower).unwrap_or_default().chunks_exact(4);
    pointers.filter_map(|pointer| {
        let pointer = u32::from_le_bytes(pointer.try_into().expect("4 bytes"));
        let (offset, state, len) = ((pointer & 0x7FFF) as usize, pointer >> 15 & 3, (pointer >> 17) as usize);
        (state == LP_NORMAL).then(|| page.get(offset..offset + len).filter(|tuple| tuple.len() >= TUPLE_HEADER_LEN))
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().expect("4 bytes")))
}
