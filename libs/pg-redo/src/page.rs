//! Changing a page: header fields, line pointers, items. The layout rules are those of Postgres's `bufpage.c`; every
//! offset that comes from the page is checked before it is used.

use ardent_types::{BLCKSZ, Lsn};

use crate::fault::Fault;

pub(crate) const HEADER_LEN: usize = 24;
const ITEM_ID_LEN: usize = 4;
/// `MaxHeapTuplesPerPage`
const MAX_HEAP_TUPLES: u16 = 291;
const LAYOUT_VERSION: u16 = 4;

pub(crate) const PD_HAS_FREE_LINES: u16 = 0x0001;
pub(crate) const PD_ALL_VISIBLE: u16 = 0x0004;

const FLAGS: usize = 10;
const LOWER: usize = 12;
const UPPER: usize = 14;
const SPECIAL: usize = 16;
const SIZE_VERSION: usize = 18;
const PRUNE_XID: usize = 20;

/// `LP_UNUSED` and its siblings.
pub(crate) mod lp {
    pub(crate) const UNUSED: u32 = 0;
    pub(crate) const NORMAL: u32 = 1;
    pub(crate) const REDIRECT: u32 = 2;
    pub(crate) const DEAD: u32 = 3;
}

/// A line pointer: 15 bits of offset, 2 of state, 15 of length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ItemId(u32);

impl ItemId {
    pub(crate) const UNUSED: ItemId = ItemId(0);
    pub(crate) const DEAD: ItemId = ItemId(lp::DEAD << 15);

    #[inline]
    pub(crate) fn normal(offset: usize, len: usize) -> ItemId {
        ItemId(offset as u32 | lp::NORMAL << 15 | (len as u32) << 17)
    }

    #[inline]
    pub(crate) fn redirect(to: u16) -> ItemId {
        ItemId(u32::from(to) & 0x7FFF | lp::REDIRECT << 15)
    }

    #[inline]
    pub(crate) fn offset(self) -> usize {
        (self.0 & 0x7FFF) as usize
    }

    #[inline]
    pub(crate) fn state(self) -> u32 {
        self.0 >> 15 & 3
    }

    #[inline]
    pub(crate) fn len(self) -> usize {
        (self.0 >> 17) as usize
    }

    #[inline]
    pub(crate) fn has_storage(self) -> bool {
        self.len() != 0
    }

    #[inline]
    fn is_used(self) -> bool {
        self.state() != lp::UNUSED
    }

    #[inline]
    fn with_offset(self, offset: usize) -> ItemId {
        ItemId(self.0 & !0x7FFF | offset as u32 & 0x7FFF)
    }

    #[inline]
    fn with_len(self, len: usize) -> ItemId {
        ItemId(self.0 & 0x1_FFFF | (len as u32) << 17)
    }
}

/// What `PageAddItemExtended` does where an item is already at the wanted offset.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Heap: the line pointer must be free.
    Heap,
    /// Take over a free line pointer.
    Overwrite,
    /// Shift the later line pointers up.
    Shift,
}

pub(crate) const fn max_align(len: usize) -> usize {
    (len + 7) & !7
}

/// A page being changed.
pub(crate) struct Page<'p> {
    pub(crate) bytes: &'p mut [u8; BLCKSZ],
}

const BAD_POINTERS: Fault = Fault::Page("the page header's pointers are out of order");
const BAD_OFFSET: Fault = Fault::Page("there is no such line pointer");
const BAD_ITEM: Fault = Fault::Page("a line pointer points outside of the item space");

impl<'p> Page<'p> {
    pub(crate) fn new(bytes: &'p mut [u8; BLCKSZ]) -> Self {
        Page { bytes }
    }

    #[inline]
    pub(crate) fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    #[inline]
    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("4 bytes"))
    }

    #[inline]
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[inline]
    pub(crate) fn put_u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    #[inline]
    pub(crate) fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    #[inline]
    pub(crate) fn lsn(&self) -> Lsn {
        Lsn::new(u64::from(self.u32_at(0)) << 32 | u64::from(self.u32_at(4)))
    }

    #[inline]
    pub(crate) fn set_lsn(&mut self, lsn: Lsn) {
        let (high, low) = lsn.halves();
        self.put_u32(0, high);
        self.put_u32(4, low);
    }

    /// `PageIsNew`: never initialised.
    #[inline]
    pub(crate) fn is_new(&self) -> bool {
        self.upper() == 0
    }

    #[inline]
    pub(crate) fn lower(&self) -> usize {
        usize::from(self.u16_at(LOWER))
    }

    #[inline]
    pub(crate) fn set_lower(&mut self, lower: usize) {
        self.put_u16(LOWER, lower as u16);
    }

    #[inline]
    pub(crate) fn upper(&self) -> usize {
        usize::from(self.u16_at(UPPER))
    }

    #[inline]
    pub(crate) fn set_upper(&mut self, upper: usize) {
        self.put_u16(UPPER, upper as u16);
    }

    #[inline]
    pub(crate) fn special_at(&self) -> usize {
        usize::from(self.u16_at(SPECIAL))
    }

    #[inline]
    pub(crate) fn flags(&self) -> u16 {
        self.u16_at(FLAGS)
    }

    #[inline]
    pub(crate) fn set_flags(&mut self, set: u16, clear: u16) {
        let flags = self.flags() & !clear | set;
        self.put_u16(FLAGS, flags);
    }

    /// `PageSetPrunable`: keeps the oldest transaction that may have left something to prune.
    #[inline]
    pub(crate) fn set_prunable(&mut self, xid: u32) {
        let old = self.u32_at(PRUNE_XID);
        // TransactionIdPrecedes for normal ids: modulo-2^32 order.
        if old == 0 || xid_precedes(xid, old) {
            self.put_u32(PRUNE_XID, xid);
        }
    }

    #[inline]
    pub(crate) fn set_prune_xid(&mut self, xid: u32) {
        self.put_u32(PRUNE_XID, xid);
    }

    /// `PageInit`
    pub(crate) fn init(&mut self, special_len: usize) {
        let special_at = BLCKSZ - max_align(special_len);
        self.bytes.fill(0);
        self.set_lower(HEADER_LEN);
        self.set_upper(special_at);
        self.put_u16(SPECIAL, special_at as u16);
        self.put_u16(SIZE_VERSION, BLCKSZ as u16 | LAYOUT_VERSION);
    }

    /// The special space, which must have exactly this length.
    #[inline]
    pub(crate) fn special(&mut self, len: usize) -> Result<&mut [u8], Fault> {
        let at = self.special_offset(len)?;
        Ok(&mut self.bytes[at..])
    }

    /// Where the special space is, which must have exactly this length.
    #[inline]
    pub(crate) fn special_offset(&self, len: usize) -> Result<usize, Fault> {
        let at = self.special_at();
        if at + len == BLCKSZ { Ok(at) } else { Err(Fault::Page("the special space is not this access method's")) }
    }

    #[inline]
    pub(crate) fn max_offset(&self) -> u16 {
        (self.lower().saturating_sub(HEADER_LEN) / ITEM_ID_LEN) as u16
    }

    /// Lower, upper and special, in order and within the page.
    #[inline]
    pub(crate) fn pointers(&self) -> Result<(usize, usize, usize), Fault> {
        let (lower, upper, special) = (self.lower(), self.upper(), self.special_at());
        let fine = HEADER_LEN <= lower && lower <= upper && upper <= special && special <= BLCKSZ;
        if fine { Ok((lower, upper, special)) } else { Err(BAD_POINTERS) }
    }

    #[inline]
    fn item_id_at(offnum: u16) -> usize {
        HEADER_LEN + (usize::from(offnum) - 1) * ITEM_ID_LEN
    }

    #[inline]
    pub(crate) fn item_id(&self, offnum: u16) -> Result<ItemId, Fault> {
        if offnum == 0 || offnum > self.max_offset() || self.lower() > BLCKSZ {
            return Err(BAD_OFFSET);
        }
        Ok(ItemId(self.u32_at(Self::item_id_at(offnum))))
    }

    /// Sets a line pointer that [`Page::item_id`] accepts.
    #[inline]
    pub(crate) fn set_item_id(&mut self, offnum: u16, id: ItemId) -> Result<(), Fault> {
        self.item_id(offnum)?;
        self.put_u32(Self::item_id_at(offnum), id.0);
        Ok(())
    }

    /// Where a line pointer's item is; it must have storage.
    #[inline]
    pub(crate) fn item_range(&self, id: ItemId) -> Result<std::ops::Range<usize>, Fault> {
        let range = id.offset()..id.offset() + id.len();
        if !id.has_storage() || range.start < HEADER_LEN || range.end > BLCKSZ {
            return Err(BAD_ITEM);
        }
        Ok(range)
    }

    /// The item at `offnum`, whatever its line pointer's state.
    #[inline]
    pub(crate) fn item(&mut self, offnum: u16) -> Result<&mut [u8], Fault> {
        let range = self.item_range(self.item_id(offnum)?)?;
        Ok(&mut self.bytes[range])
    }

    /// Makes room for an item of `len` bytes at `offnum` (`PageAddItemExtended`) and returns where it goes.
    pub(crate) fn add_item_space(
        &mut self,
        offnum: u16,
        len: usize,
        place: Place,
    ) -> Result<std::ops::Range<usize>, Fault> {
        let (lower, upper, _) = self.pointers()?;
        let limit = self.max_offset() + 1;
        if offnum == 0 || offnum > limit {
            return Err(Fault::Page("the item's offset number is past the end of the line pointers"));
        }
        if place == Place::Heap && offnum > MAX_HEAP_TUPLES {
            return Err(Fault::Page("more items than a heap page can have"));
        }
        let shuffle = offnum < limit && place == Place::Shift;
        if offnum < limit && !shuffle {
            let id = self.item_id(offnum)?;
            if id.is_used() || id.has_storage() {
                return Err(Fault::Page("the line pointer is in use"));
            }
        }
        let lower = if offnum == limit || shuffle { lower + ITEM_ID_LEN } else { lower };
        let aligned = max_align(len);
        if len == 0 || lower + aligned > upper {
            return Err(Fault::Page("the item does not fit"));
        }
        let upper = upper - aligned;
        let at = Self::item_id_at(offnum);
        if shuffle {
            self.bytes.copy_within(at..lower - ITEM_ID_LEN, at + ITEM_ID_LEN);
        }
        self.put_u32(at, ItemId::normal(upper, len).0);
        self.set_lower(lower);
        self.set_upper(upper);
        Ok(upper..upper + len)
    }

    /// Adds an item (`PageAddItem`).
    pub(crate) fn add_item(&mut self, offnum: u16, item: &[u8], place: Place) -> Result<(), Fault> {
        let range = self.add_item_space(offnum, item.len(), place)?;
        self.bytes[range].copy_from_slice(item);
        Ok(())
    }

    /// Adds an item after the last line pointer.
    pub(crate) fn append_item(&mut self, item: &[u8]) -> Result<(), Fault> {
        self.add_item(self.max_offset().saturating_add(1), item, Place::Overwrite)
    }

    /// Packs the items of `keep` against the special space, in that order, and points their line pointers there. Items are
    /// given as (line pointer's offset number, where it is now).
    fn compact(&mut self, keep: &[(u16, ItemId)]) -> Result<(), Fault> {
        let special = self.special_at();
        let total: usize = keep.iter().map(|(_, id)| max_align(id.len())).sum();
        if total > special - self.lower() {
            return Err(Fault::Page("items take more room than the page has"));
        }
        // Most items are in the order of `keep`, above all that come after them: they are moved where they are. Others only change
        // places among themselves.
        let (mut in_order, mut highest_end) = (keep.len(), 0);
        for (index, (_, id)) in keep.iter().enumerate().rev() {
            if id.offset() < highest_end {
                in_order = index;
            }
            highest_end = highest_end.max(id.offset() + max_align(id.len()));
        }
        let upper = self.move_up(&keep[..in_order], special);
        let upper = self.copy_up(&keep[in_order..], upper)?;
        self.set_upper(upper);
        Ok(())
    }

    /// Packs items against `upper` that lie in the order of `keep`: none is moved over one that is still to be moved. Neighbours that stay
    /// neighbours are moved together.
    fn move_up(&mut self, keep: &[(u16, ItemId)], mut upper: usize) -> usize {
        let mut run = 0..0;
        let mut run_to = 0;
        for (offnum, id) in keep {
            let (from, len) = (id.offset(), max_align(id.len()));
            upper -= len;
            if from + len != run.start {
                self.move_run(run, run_to);
                run = from..from + len;
            }
            (run.start, run_to) = (from, upper);
            // Also where the item stays: the line pointer may be another one than before.
            self.put_u32(Self::item_id_at(*offnum), id.with_offset(upper).0);
        }
        self.move_run(run, run_to);
        upper
    }

    fn move_run(&mut self, run: std::ops::Range<usize>, to: usize) {
        if run.start != to {
            self.bytes.copy_within(run, to);
        }
    }

    /// Packs items against `upper` that lie in any order.
    fn copy_up(&mut self, keep: &[(u16, ItemId)], mut upper: usize) -> Result<usize, Fault> {
        let starts = keep.iter().map(|(_, id)| id.offset());
        let ends = keep.iter().map(|(_, id)| id.offset() + max_align(id.len()));
        let (Some(lowest), Some(highest)) = (starts.min(), ends.max()) else { return Ok(upper) };
        let old: smallvec::SmallVec<[u8; BLCKSZ]> = self.bytes.get(lowest..highest).ok_or(BAD_ITEM)?.into();
        for (offnum, id) in keep {
            let (from, len) = (id.offset() - lowest, max_align(id.len()));
            upper -= len;
            self.bytes[upper..upper + len].copy_from_slice(&old[from..from + len]);
            self.put_u32(Self::item_id_at(*offnum), id.with_offset(upper).0);
        }
        Ok(upper)
    }

    /// `PageRepairFragmentation`, for heap pages: squeezes out the room of unused items, cuts unused line pointers off the end.
    pub(crate) fn repair_fragmentation(&mut self) -> Result<(), Fault> {
        let (_, upper, special) = self.pointers()?;
        let max = self.max_offset();
        let mut keep = ItemList::new();
        let (mut last_used, mut unused) = (0, 0);
        for offnum in 1..=max {
            let id = self.item_id(offnum)?;
            if !id.is_used() {
                self.set_item_id(offnum, ItemId::UNUSED)?;
                unused += 1;
                continue;
            }
            last_used = offnum;
            if id.has_storage() {
                // The aligned end may lie past a corrupt item's own end, so it is what must fit.
                if id.offset() < upper || id.offset() + max_align(id.len()) > special {
                    return Err(BAD_ITEM);
                }
                keep.push((offnum, id));
            }
        }
        self.compact(&keep)?;
        if last_used != max {
            unused -= max - last_used;
            self.set_lower(HEADER_LEN + usize::from(last_used) * ITEM_ID_LEN);
        }
        self.set_free_lines(unused > 0);
        Ok(())
    }

    fn set_free_lines(&mut self, any: bool) {
        if any { self.set_flags(PD_HAS_FREE_LINES, 0) } else { self.set_flags(0, PD_HAS_FREE_LINES) }
    }

    /// `PageTruncateLinePointerArray`: cuts unused line pointers off the end, but leaves one line pointer.
    pub(crate) fn truncate_line_pointers(&mut self) -> Result<(), Fault> {
        let max = self.max_offset();
        let mut last = max;
        while last > 1 && !self.item_id(last)?.is_used() {
            last -= 1;
        }
        let mut hint = false;
        for offnum in (1..=last).rev() {
            if !self.item_id(offnum)?.is_used() {
                hint = true;
                break;
            }
        }
        if last != max {
            self.set_lower(HEADER_LEN + usize::from(last) * ITEM_ID_LEN);
        }
        self.set_free_lines(hint);
        Ok(())
    }

    /// An item that lies where index items must.
    fn index_item_id(&self, offnum: u16) -> Result<ItemId, Fault> {
        let (_, upper, special) = self.pointers()?;
        let id = self.item_id(offnum)?;
        let fine = id.has_storage()
            && id.offset() >= upper
            && id.offset() + max_align(id.len()) <= special
            && id.offset().is_multiple_of(8);
        if fine { Ok(id) } else { Err(BAD_ITEM) }
    }

    /// Moves the line pointers at and below `limit` bytes by `by`.
    fn shift_items(&mut self, limit: usize, by: isize) -> Result<(), Fault> {
        for offnum in 1..=self.max_offset() {
            let id = self.item_id(offnum)?;
            if id.has_storage() && id.offset() <= limit {
                let moved = id.offset().checked_add_signed(by).filter(|at| *at < BLCKSZ).ok_or(BAD_ITEM)?;
                self.set_item_id(offnum, id.with_offset(moved))?;
            }
        }
        Ok(())
    }

    /// Moves what lies between `upper` and the item at `offset` up by `by`, as when the item shrinks or goes.
    fn close_gap(&mut self, offset: usize, by: isize) -> Result<(), Fault> {
        let upper = self.upper();
        let to = upper.checked_add_signed(by).ok_or(BAD_POINTERS)?;
        if to < self.lower() || to + (offset - upper) > BLCKSZ {
            return Err(BAD_POINTERS);
        }
        self.bytes.copy_within(upper..offset, to);
        self.set_upper(to);
        Ok(())
    }

    /// `PageIndexTupleDelete`
    pub(crate) fn index_delete(&mut self, offnum: u16) -> Result<(), Fault> {
        let id = self.index_item_id(offnum)?;
        let (lower, size) = (self.lower(), max_align(id.len()) as isize);
        let at = Self::item_id_at(offnum);
        self.bytes.copy_within(at + ITEM_ID_LEN..lower, at);
        self.close_gap(id.offset(), size)?;
        self.set_lower(lower - ITEM_ID_LEN);
        self.shift_items(id.offset(), size)
    }

    /// `PageIndexMultiDelete`. The offset numbers ascend.
    pub(crate) fn index_multi_delete(
        &mut self,
        offnums: impl DoubleEndedIterator<Item = u16> + ExactSizeIterator,
    ) -> Result<(), Fault> {
        // Few items are deleted one by one, as Postgres does: the resulting layout differs from compaction.
        if offnums.len() <= 2 {
            return offnums.rev().try_for_each(|offnum| self.index_delete(offnum));
        }
        let mut doomed = offnums.peekable();
        let mut keep = ItemList::new();
        for offnum in 1..=self.max_offset() {
            let id = self.index_item_id(offnum)?;
            if doomed.next_if_eq(&offnum).is_none() {
                keep.push((keep.len() as u16 + 1, id));
            }
        }
        if doomed.next().is_some() {
            return Err(Fault::Record("offset numbers are out of order or past the page's end"));
        }
        self.set_lower(HEADER_LEN + keep.len() * ITEM_ID_LEN);
        self.compact(&keep)
    }

    /// `PageIndexTupleDeleteNoCompact`: the line pointer stays, unused, unless it is the last.
    pub(crate) fn index_delete_no_compact(&mut self, offnum: u16) -> Result<(), Fault> {
        let id = self.index_item_id(offnum)?;
        let size = max_align(id.len()) as isize;
        if offnum < self.max_offset() {
            self.set_item_id(offnum, ItemId::UNUSED)?;
        } else {
            self.set_lower(self.lower() - ITEM_ID_LEN);
        }
        self.close_gap(id.offset(), size)?;
        self.shift_items(id.offset(), size)
    }

    /// `PageIndexTupleOverwrite`: replaces an item, whatever its new length; the line pointer keeps its state.
    pub(crate) fn index_overwrite(&mut self, offnum: u16, item: &[u8]) -> Result<(), Fault> {
        let id = self.index_item_id(offnum)?;
        let shrinks_by = max_align(id.len()) as isize - max_align(item.len()) as isize;
        if item.is_empty() || -shrinks_by > (self.upper() - self.lower()) as isize {
            return Err(Fault::Page("the item does not fit"));
        }
        if shrinks_by != 0 {
            self.close_gap(id.offset(), shrinks_by)?;
            self.shift_items(id.offset(), shrinks_by)?;
        }
        let offset = id.offset().checked_add_signed(shrinks_by).ok_or(BAD_ITEM)?;
        self.set_item_id(offnum, id.with_offset(offset).with_len(item.len()))?;
        let target = self.bytes.get_mut(offset..offset + item.len()).ok_or(BAD_ITEM)?;
        target.copy_from_slice(item);
        Ok(())
    }
}

/// More line pointers than any valid page has spill to the heap; a corrupt page can't make it larger than a page.
type ItemList = smallvec::SmallVec<[(u16, ItemId); 512]>;

/// `TransactionIdPrecedes`, special ids below 3 included.
#[inline]
pub(crate) fn xid_precedes(a: u32, b: u32) -> bool {
    if a < 3 || b < 3 { a < b } else { (a.wrapping_sub(b) as i32) < 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_that_stays_where_it_is_gets_its_new_line_pointer() {
        let mut bytes = [0; BLCKSZ];
        let mut page = Page::new(&mut bytes);
        page.init(16);
        // The first item, at the page's end, is moved to the fourth line pointer by those that come before it.
        for mark in 1..=4 {
            let mut item = [mark; 24];
            item[6..8].copy_from_slice(&24u16.to_le_bytes());
            page.add_item(1, &item, Place::Shift).expect("there is room");
        }
        page.index_multi_delete([1u16, 2, 3].into_iter()).expect("they are there");
        assert_eq!((page.max_offset(), page.upper()), (1, BLCKSZ - 16 - 24));
        assert_eq!(page.item(1).expect("it is left")[0], 1);
    }

    #[test]
    fn items_in_any_order_are_packed_in_the_order_of_their_line_pointers() {
        let mut bytes = [0; BLCKSZ];
        let mut page = Page::new(&mut bytes);
        page.init(16);
        // Lengths differ, and every other item comes before the one added last.
        for (mark, offnum) in [(1u8, 1), (2, 2), (3, 2), (4, 4), (5, 3), (6, 6), (7, 5)] {
            page.add_item(offnum, &vec![mark; 8 + usize::from(mark) * 8], Place::Shift).expect("there is room");
        }
        let before: Vec<u8> = (1..=7).map(|offnum| page.item(offnum).expect("it is there")[0]).collect();
        page.index_multi_delete([2u16, 4, 6].into_iter()).expect("they are there");
        let mut end = BLCKSZ - 16;
        for (offnum, mark) in (1..=4).zip([before[0], before[2], before[4], before[6]]) {
            let id = page.item_id(offnum).expect("it is left");
            end -= id.len();
            assert_eq!(id.offset(), end, "no gap before it");
            assert!(page.item(offnum).expect("it is left").iter().all(|byte| *byte == mark), "item {offnum}");
        }
        assert_eq!(page.upper(), end);
    }
}
