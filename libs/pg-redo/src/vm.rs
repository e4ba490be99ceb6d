//! The visibility map: where its bits are, and the changes that heap records make to it without referencing its pages
//! (checklist 31 to 34). Postgres clears the bits whatever the heap page's LSN says, and leaves the map page's LSN alone.

use ardent_pg_format::{PgMajor, rmgr};
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, RelTag};
use smallvec::SmallVec;

use crate::fault::{Fault, RedoError};
use crate::heap::{self, op};
use crate::view::RecordView;

/// All tuples of the heap page are visible to everyone.
pub const ALL_VISIBLE: u8 = 0x01;
/// All tuples of the heap page are frozen.
pub const ALL_FROZEN: u8 = 0x02;
const VALID_BITS: u8 = ALL_VISIBLE | ALL_FROZEN;

const MAP_AT: usize = 24;
const MAP_LEN: u32 = (BLCKSZ - MAP_AT) as u32;
const BLOCKS_PER_BYTE: u32 = 4;
/// Heap blocks that one map page has bits for.
pub const HEAP_BLOCKS_PER_PAGE: u32 = MAP_LEN * BLOCKS_PER_BYTE;

/// The map block that holds the bits of a heap block.
pub fn map_block(heap_block: BlockNumber) -> BlockNumber {
    heap_block / HEAP_BLOCKS_PER_PAGE
}

/// A change of one heap block's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmChange {
    /// The heap block.
    pub heap_block: BlockNumber,
    /// Bits to clear ([`ALL_VISIBLE`], [`ALL_FROZEN`]).
    pub clear: u8,
    /// Bits to set after that.
    pub set: u8,
}

impl VmChange {
    /// Makes the change on the map page of the heap block.
    pub fn apply(&self, page: &mut [u8; BLCKSZ]) {
        let (at, shift) = position(self.heap_block);
        page[at] = page[at] & !(self.clear << shift) | self.set << shift;
    }
}

fn position(heap_block: BlockNumber) -> (usize, u32) {
    let within = heap_block % HEAP_BLOCKS_PER_PAGE;
    (MAP_AT + (within / BLOCKS_PER_BYTE) as usize, within % BLOCKS_PER_BYTE * 2)
}

/// The bits of a heap block on its map page.
pub fn bits(page: &[u8; BLCKSZ], heap_block: BlockNumber) -> u8 {
    let (at, shift) = position(heap_block);
    page[at] >> shift & VALID_BITS
}

/// Clears the bits of `heap_blocks` and all later heap blocks on the page.
pub(crate) fn truncate(page: &mut [u8; BLCKSZ], heap_blocks: BlockNumber) {
    let (at, shift) = position(heap_blocks);
    page[at] &= (1 << shift) - 1;
    page[at + 1..].fill(0);
}

/// What a record does to visibility-map pages that it does not reference: at most two changes, which may be on one map
/// page (then they belong into one value).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPageChanges {
    /// The visibility-map fork.
    pub rel: RelTag,
    /// The map page.
    pub block: BlockNumber,
    /// The changes on it.
    pub changes: SmallVec<[VmChange; 2]>,
}

/// The visibility-map changes that follow from a heap record, grouped by map page. Empty for all other records. The map
/// page need not exist (checklist 34): then there is nothing to clear.
pub fn vm_changes(major: PgMajor, view: &RecordView<'_>) -> Result<SmallVec<[VmPageChanges; 1]>, RedoError> {
    let mut pages: SmallVec<[VmPageChanges; 1]> = SmallVec::new();
    if view.rmid != rmgr::HEAP && view.rmid != rmgr::HEAP2 {
        return Ok(pages);
    }
    let mut clear = |block_id: u8, bits: u8| {
        let block = view.block(block_id).ok_or(RedoError::NoSuchBlock { id: block_id, lsn: view.end_lsn })?;
        let (rel, map_block) = (block.rel.with_fork(ForkNumber::Vm), map_block(block.blkno));
        let change = VmChange { heap_block: block.blkno, clear: bits, set: 0 };
        match pages.iter_mut().find(|page| page.block == map_block && page.rel == rel) {
            Some(page) if page.changes.contains(&change) => {}
            Some(page) => page.changes.push(change),
            None => pages.push(VmPageChanges { rel, block: map_block, changes: SmallVec::from_slice(&[change]) }),
        }
        Ok(())
    };
    let fault = |fault: Fault| match view.blocks.first() {
        Some(block) => RedoError::new(fault, major, view, block.rel, block.blkno),
        None => RedoError::NoSuchBlock { id: 0, lsn: view.end_lsn },
    };
    let flag_at = |at: usize| view.main_data.get(at).copied().ok_or(Fault::Record("flags are missing")).map_err(fault);
    match (view.rmid, view.info & op::MASK) {
        (rmgr::HEAP, op::INSERT) if flag_at(heap::INSERT_FLAGS_AT)? & heap::ALL_VISIBLE_CLEARED != 0 => {
            clear(0, VALID_BITS)?;
        }
        (rmgr::HEAP, op::DELETE) if flag_at(heap::DELETE_FLAGS_AT)? & heap::ALL_VISIBLE_CLEARED != 0 => {
            clear(0, VALID_BITS)?;
        }
        (rmgr::HEAP, op::UPDATE | op::HOT_UPDATE) => {
            let flags = flag_at(heap::UPDATE_FLAGS_AT)?;
            // The old page is block 1, unless old and new tuple share block 0.
            let old = if view.block(1).is_some() { 1 } else { 0 };
            if flags & heap::UPDATE_OLD_ALL_VISIBLE_CLEARED != 0 {
                clear(old, VALID_BITS)?;
            }
            if flags & heap::UPDATE_NEW_ALL_VISIBLE_CLEARED != 0 {
                clear(0, VALID_BITS)?;
            }
        }
        (rmgr::HEAP, op::LOCK) if flag_at(heap::LOCK_FLAGS_AT)? & heap::LOCK_ALL_FROZEN_CLEARED != 0 => {
            clear(0, ALL_FROZEN)?;
        }
        (rmgr::HEAP2, op::MULTI_INSERT) if flag_at(heap::MULTI_INSERT_FLAGS_AT)? & heap::ALL_VISIBLE_CLEARED != 0 => {
            clear(0, VALID_BITS)?;
        }
        (rmgr::HEAP2, op::LOCK_UPDATED) if flag_at(heap::LOCK_FLAGS_AT)? & heap::LOCK_ALL_FROZEN_CLEARED != 0 => {
            clear(0, ALL_FROZEN)?;
        }
        _ => {}
    }
    Ok(pages)
}
