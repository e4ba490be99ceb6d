//! The visibility map, compared bit by bit: Postgres's own mask hides all of it.
//!
//! A session clears map bits before it inserts the record that tells of it, and without the map page's lock across both.
//! So the page that another session logs meanwhile can lack bits that our page still has. That is allowed only if a later
//! record clears those bits soon; until then they are remembered here.
//!
//! `CREATE DATABASE ... STRATEGY wal_log` logs map pages as if they had the standard layout, and so without the map, which
//! lies in what is then a hole. Redo, Postgres's too, makes an empty map of that. It is safe, only slow, and means that our page
//! may lack bits afterwards that the server's has; it must never have one more.

use std::collections::{BTreeMap, BTreeSet};

use ardent_pg_redo::{HEAP_BLOCKS_PER_PAGE, VmPageChanges, vm_bits};
use ardent_types::{BlockNumber, Lsn, RelTag};

use crate::store::PageBytes;

const MAP_AT: usize = 24;
const BLOCKS_PER_BYTE: u32 = 4;

/// How much WAL others can write between a session's clearing of a bit and its record: it holds the heap page's lock and does
/// nothing else meanwhile.
const EARLY_WINDOW_BYTES: u64 = 64 << 20;

/// Bits that were seen cleared ahead of their record, and map pages whose content Postgres itself lost.
#[derive(Default)]
pub(crate) struct VmCheck {
    early: BTreeMap<(RelTag, BlockNumber), (u8, Lsn)>,
    lost: BTreeSet<(RelTag, BlockNumber)>,
}

/// A difference that no concurrency explains.
pub(crate) struct VmDifference {
    /// Offset of the byte.
    pub(crate) at: usize,
}

impl VmCheck {
    /// Compares a map page after redo with the logged one.
    pub(crate) fn compare(
        &mut self,
        rel: RelTag,
        map_block: BlockNumber,
        lsn: Lsn,
        ours: &PageBytes,
        theirs: &PageBytes,
    ) -> Result<(), VmDifference> {
        let lost = self.is_lost(rel, map_block);
        for at in (MAP_AT..ours.len()).filter(|at| ours[*at] != theirs[*at]) {
            let first = map_block * HEAP_BLOCKS_PER_PAGE + (at - MAP_AT) as u32 * BLOCKS_PER_BYTE;
            for heap_block in first..first + BLOCKS_PER_BYTE {
                let (our_bits, their_bits) = (vm_bits(ours, heap_block), vm_bits(theirs, heap_block));
                if their_bits & !our_bits != 0 && !lost {
                    return Err(VmDifference { at });
                }
                let extra = our_bits & !their_bits;
                if extra != 0 {
                    self.early.insert((rel, heap_block), (extra, lsn));
                }
            }
        }
        Ok(())
    }

    /// A record that clears bits.
    pub(crate) fn cleared(&mut self, page: &VmPageChanges) {
        for change in &page.changes {
            let key = (page.rel, change.heap_block);
            if let Some((bits, _)) = self.early.get_mut(&key) {
                *bits &= !change.clear;
                if *bits == 0 {
                    self.early.remove(&key);
                }
            }
        }
    }

    /// Takes out what has waited too long for its record.
    pub(crate) fn expired(&mut self, now: Lsn) -> Vec<(RelTag, BlockNumber, Lsn)> {
        if self.early.is_empty() {
            return Vec::new();
        }
        let old = |lsn: Lsn| now.saturating_sub(lsn) > EARLY_WINDOW_BYTES;
        let expired =
            self.early.iter().filter(|(_, (_, lsn))| old(*lsn)).map(|((rel, block), (_, lsn))| (*rel, *block, *lsn));
        let expired = expired.collect();
        self.early.retain(|_, (_, lsn)| !old(*lsn));
        expired
    }

    /// Postgres logged the page without its content: what our page lacks from here on says nothing.
    pub(crate) fn content_lost(&mut self, rel: RelTag, map_block: BlockNumber) {
        self.lost.insert((rel, map_block));
    }

    /// A database's files were copied: what its pages lost, the copies lack as well.
    pub(crate) fn copy_database(&mut self, source: (u32, u32), target: (u32, u32)) {
        let of_source = |(rel, _): &&(RelTag, BlockNumber)| (rel.spcnode, rel.dbnode) == source;
        let copied =
            |(rel, block): &(RelTag, BlockNumber)| (RelTag { spcnode: target.0, dbnode: target.1, ..*rel }, *block);
        let copies: Vec<_> = self.lost.iter().filter(of_source).map(copied).collect();
        self.lost.extend(copies);
    }

    /// Whether the page's content was lost: then redo has fewer bits to clear, and stamps the page for fewer records.
    pub(crate) fn is_lost(&self, rel: RelTag, map_block: BlockNumber) -> bool {
        self.lost.contains(&(rel, map_block))
    }

    /// The page was logged whole.
    pub(crate) fn content_logged(&mut self, rel: RelTag, map_block: BlockNumber) {
        self.lost.remove(&(rel, map_block));
    }

    /// Bits that we have and Postgres had cleared, and that no record explained.
    pub(crate) fn unexplained(&self) -> impl Iterator<Item = (RelTag, BlockNumber, Lsn)> + '_ {
        self.early.iter().map(|((rel, block), (_, lsn))| (*rel, *block, *lsn))
    }
}

#[cfg(test)]
mod tests {
    use ardent_types::{BLCKSZ, ForkNumber};

    use super::*;

    #[test]
    fn what_a_map_page_lost_its_copy_in_another_database_lacks_too() {
        let map = |dbnode| RelTag { spcnode: 1663, dbnode, relnode: 16384, fork: ForkNumber::Vm };
        let (ours, mut theirs) = ([0; BLCKSZ], [0; BLCKSZ]);
        theirs[MAP_AT] = 0x03;
        let mut check = VmCheck::default();
        check.content_lost(map(5), 0);
        check.copy_database((1663, 5), (1663, 6));
        for (database, allowed) in [(5, true), (6, true), (7, false)] {
            let compared = check.compare(map(database), 0, Lsn::new(0x2000), &ours, &theirs);
            assert_eq!((compared.is_ok(), check.is_lost(map(database), 0)), (allowed, allowed), "database {database}");
        }
        assert!(check.compare(map(6), 0, Lsn::new(0x2000), &theirs, &theirs).is_ok());
        check.content_logged(map(6), 0);
        assert!(check.compare(map(6), 0, Lsn::new(0x2000), &ours, &theirs).is_err());
    }
}
