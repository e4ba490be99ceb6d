//! The visibility map, compared bit by bit: Postgres's own mask hides all of it.
//!
//! A session clears map bits before it inserts the record that tells of it, and without the map page's lock across both.
//! So the page that another session logs meanwhile can lack bits that our page still has. That is allowed only if a later
//! record clears those bits; until then they are remembered here.

use std::collections::BTreeMap;

use ardent_pg_redo::{HEAP_BLOCKS_PER_PAGE, VmPageChanges, vm_bits};
use ardent_types::{BlockNumber, Lsn, RelTag};

use crate::store::PageBytes;

const MAP_AT: usize = 24;
const BLOCKS_PER_BYTE: u32 = 4;

/// Bits that were seen cleared ahead of their record.
#[derive(Default)]
pub(crate) struct VmCheck {
    early: BTreeMap<(RelTag, BlockNumber), (u8, Lsn)>,
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
        for at in (MAP_AT..ours.len()).filter(|at| ours[*at] != theirs[*at]) {
            let first = map_block * HEAP_BLOCKS_PER_PAGE + (at - MAP_AT) as u32 * BLOCKS_PER_BYTE;
            for heap_block in first..first + BLOCKS_PER_BYTE {
                let (our_bits, their_bits) = (vm_bits(ours, heap_block), vm_bits(theirs, heap_block));
                if their_bits & !our_bits != 0 {
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

    /// The relation's files were cut or replaced.
    pub(crate) fn forget(&mut self, mut doomed: impl FnMut(RelTag) -> bool) {
        self.early.retain(|(rel, _), _| !doomed(*rel));
    }

    /// Bits that we have and Postgres had cleared, and that no record explained.
    pub(crate) fn unexplained(&self) -> impl Iterator<Item = (RelTag, BlockNumber, Lsn)> + '_ {
        self.early.iter().map(|((rel, block), (_, lsn))| (*rel, *block, *lsn))
    }
}
