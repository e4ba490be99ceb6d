//! The visibility map: where its bits are, and the changes that heap records make to it without referencing its pages
//! (checklist 31 to 34). Postgres clears the bits whatever the heap page's LSN says, and leaves the map page's LSN alone.
//! Recent minors of 17 and 18 (17.11, 18.6) do reference the map pages, where a bit of them was set.

use ardent_pg_format::{DecodedRecord, PgMajor, rmgr};
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, RelTag};
use smallvec::SmallVec;

use crate::fault::{Fault, RedoError};
use crate::heap::{self, op};
use crate::page::Page;
use crate::view::RecordView;
use crate::{Change, Context};

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

/// The visibility-map changes that follow from a heap record without a reference to the map, grouped by map page. Empty for all
/// other records, and for those of recent minors of 17 and 18 that reference the map pages which they change: redo of those
/// blocks makes the changes. The map page need not exist (checklist 34): then there is nothing to clear.
pub fn vm_changes(major: PgMajor, view: &RecordView<'_>) -> Result<SmallVec<[VmPageChanges; 1]>, RedoError> {
    let mut pages: SmallVec<[VmPageChanges; 1]> = SmallVec::new();
    if view.blocks.iter().any(|block| block.rel.fork == ForkNumber::Vm) {
        return Ok(pages);
    }
    let cleared = cleared_bits(view).map_err(|fault| match view.blocks.first() {
        Some(block) => RedoError::new(fault, major, view, block.rel, block.blkno),
        None => RedoError::NoSuchBlock { id: 0, lsn: view.end_lsn },
    })?;
    for (rel, change) in cleared {
        let map_block = map_block(change.heap_block);
        match pages.iter_mut().find(|page| page.block == map_block && page.rel == rel) {
            Some(page) if page.changes.contains(&change) => {}
            Some(page) => page.changes.push(change),
            None => pages.push(VmPageChanges { rel, block: map_block, changes: SmallVec::from_slice(&[change]) }),
        }
    }
    Ok(pages)
}

/// Redo of a map page that a heap record references to clear bits of it. Unlike an unreferenced page it gets the record's LSN, if it
/// had one of the bits.
pub(crate) fn clear_referenced(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let on_page =
        |(rel, change): &(RelTag, VmChange)| *rel == cx.block.rel && map_block(change.heap_block) == cx.block.blkno;
    let mut done = Change::Nothing;
    for (_, change) in cleared_bits(cx.view)?.iter().filter(|cleared| on_page(cleared)) {
        if bits(page.bytes, change.heap_block) & change.clear != 0 {
            change.apply(page.bytes);
            done = Change::Stamp;
        }
    }
    Ok(done)
}

/// The bits that a heap record clears, with the map's fork: at most those of two heap blocks.
fn cleared_bits(view: &RecordView<'_>) -> Result<SmallVec<[(RelTag, VmChange); 2]>, Fault> {
    let mut cleared = SmallVec::new();
    let mut clear = |block_id: u8, bits: u8| {
        if bits == 0 {
            return Ok(());
        }
        let block = view.block(block_id).ok_or(Fault::Record("a block reference is missing"))?;
        let change = VmChange { heap_block: block.blkno, clear: bits, set: 0 };
        cleared.push((block.rel.with_fork(ForkNumber::Vm), change));
        Ok::<(), Fault>(())
    };
    let clears = Clears::of(view.rmid, view.info, view.main_data)?;
    // An update's old page is block 1, unless old and new tuple share block 0.
    clear(if view.block(1).is_some() { 1 } else { 0 }, clears.old)?;
    clear(0, clears.new)?;
    Ok(cleared)
}

/// Bits that a record's flags say it clears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Clears {
    /// Of the page that an update takes a row from.
    old: u8,
    /// Of the page that it comes to, and of a page that is all there is to a record.
    new: u8,
}

impl Clears {
    #[inline]
    fn of(rmid: u8, info: u8, main_data: &[u8]) -> Result<Clears, Fault> {
        if rmid != rmgr::HEAP && rmid != rmgr::HEAP2 {
            return Ok(Clears::default());
        }
        let flag_at = |at: usize| main_data.get(at).copied().ok_or(Fault::Record("flags are missing"));
        let bits = |at: usize, flag: u8, bits: u8| flag_at(at).map(|flags| if flags & flag != 0 { bits } else { 0 });
        let (mut old, mut new) = (0, 0);
        match (rmid, info & op::MASK) {
            (rmgr::HEAP, op::INSERT) => new = bits(heap::INSERT_FLAGS_AT, heap::ALL_VISIBLE_CLEARED, VALID_BITS)?,
            (rmgr::HEAP, op::DELETE) => new = bits(heap::DELETE_FLAGS_AT, heap::ALL_VISIBLE_CLEARED, VALID_BITS)?,
            (rmgr::HEAP, op::UPDATE | op::HOT_UPDATE) => {
                old = bits(heap::UPDATE_FLAGS_AT, heap::UPDATE_OLD_ALL_VISIBLE_CLEARED, VALID_BITS)?;
                new = bits(heap::UPDATE_FLAGS_AT, heap::UPDATE_NEW_ALL_VISIBLE_CLEARED, VALID_BITS)?;
            }
            (rmgr::HEAP, op::LOCK) | (rmgr::HEAP2, op::LOCK_UPDATED) => {
                new = bits(heap::LOCK_FLAGS_AT, heap::LOCK_ALL_FROZEN_CLEARED, ALL_FROZEN)?;
            }
            (rmgr::HEAP2, op::MULTI_INSERT) => {
                new = bits(heap::MULTI_INSERT_FLAGS_AT, heap::ALL_VISIBLE_CLEARED, VALID_BITS)?;
            }
            _ => {}
        }
        Ok(Clears { old, new })
    }
}

/// Whether [`vm_changes`] may have something to say of this record: of most it is known without a look at their blocks.
#[inline]
pub fn may_change_vm(record: &DecodedRecord<'_>) -> bool {
    Clears::of(record.header.rmid, record.header.info, record.main_data()) != Ok(Clears::default())
}

#[cfg(test)]
mod tests {
    use ardent_types::Lsn;

    use super::*;
    use crate::view::{BlockView, HintBits};
    use crate::{RedoOutcome, redo_block};

    const HEAP: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
    const END: Lsn = Lsn::new(0x2000);

    fn record<'a>(op: u8, main_data: &'a [u8], blocks: &[(RelTag, BlockNumber)]) -> RecordView<'a> {
        let block = |(id, (rel, blkno)): (usize, &(RelTag, BlockNumber))| BlockView {
            id: id as u8,
            rel: *rel,
            blkno: *blkno,
            will_init: false,
            has_applied_image: false,
            data: &[],
        };
        let blocks = blocks.iter().enumerate().map(block).collect();
        RecordView {
            end_lsn: END,
            rmid: rmgr::HEAP,
            info: op,
            xid: 9,
            hint_bits: HintBits::NotLogged,
            main_data,
            blocks,
        }
    }

    /// A map page on which all heap blocks have both bits.
    fn full_map() -> [u8; BLCKSZ] {
        let mut page = [0; BLCKSZ];
        Page::new(&mut page).init(0);
        page[MAP_AT..].fill(0xFF);
        page
    }

    #[test]
    fn checklist_31_a_referenced_map_page_is_cleared_by_its_own_redo_and_stamped() {
        let map = HEAP.with_fork(ForkNumber::Vm);
        let delete = [9, 0, 0, 0, 1, 0, 0, heap::ALL_VISIBLE_CLEARED];
        let view = record(op::DELETE, &delete, &[(HEAP, 7), (map, 0)]);
        assert!(vm_changes(PgMajor::V17, &view).expect("the record is whole").is_empty());
        let mut page = full_map();
        assert_eq!(redo_block(PgMajor::V17, &view, 1, &mut page), Ok(RedoOutcome::Applied));
        assert_eq!((bits(&page, 6), bits(&page, 7), bits(&page, 8)), (3, 0, 3));
        assert_eq!(Page::new(&mut page).lsn(), END);
        assert_eq!(redo_block(PgMajor::V17, &view, 1, &mut page), Ok(RedoOutcome::AlreadyApplied));

        // A page that lacks the bits already keeps its LSN.
        let mut page = full_map();
        VmChange { heap_block: 7, clear: VALID_BITS, set: 0 }.apply(&mut page);
        assert_eq!(redo_block(PgMajor::V17, &view, 1, &mut page), Ok(RedoOutcome::Unchanged));
        assert_eq!(Page::new(&mut page).lsn(), Lsn::INVALID);

        // Older minors do not reference the map.
        let view = record(op::DELETE, &delete, &[(HEAP, 7)]);
        assert_eq!(vm_changes(PgMajor::V17, &view).expect("the record is whole").len(), 1);
    }

    #[test]
    fn checklist_32_an_update_clears_the_bits_of_both_its_pages_on_one_referenced_map_page() {
        let map = HEAP.with_fork(ForkNumber::Vm);
        let mut update = [0; 14];
        update[heap::UPDATE_FLAGS_AT] = heap::UPDATE_OLD_ALL_VISIBLE_CLEARED | heap::UPDATE_NEW_ALL_VISIBLE_CLEARED;
        let view = record(op::UPDATE, &update, &[(HEAP, 11), (HEAP, 4), (map, 0)]);
        let mut page = full_map();
        assert_eq!(redo_block(PgMajor::V18, &view, 2, &mut page), Ok(RedoOutcome::Applied));
        assert_eq!((bits(&page, 4), bits(&page, 11), bits(&page, 5)), (0, 0, 3));

        // The old heap page's bits are on another map page.
        let far = HEAP_BLOCKS_PER_PAGE + 3;
        let view = record(op::UPDATE, &update, &[(HEAP, 11), (HEAP, far), (map, 0), (map, 1)]);
        for (block_id, cleared) in [(2, 11), (3, far)] {
            let mut page = full_map();
            assert_eq!(redo_block(PgMajor::V18, &view, block_id, &mut page), Ok(RedoOutcome::Applied));
            assert_eq!(bits(&page, cleared), 0);
            assert_eq!(page[MAP_AT..].iter().filter(|byte| **byte != 0xFF).count(), 1, "no other heap block's");
        }
    }
}
