//! Heap records (`RM_HEAP_ID`).

use ardent_types::BlockNumber;

use crate::fault::Fault;
use crate::page::{PD_ALL_VISIBLE, Page, Place, lp};
use crate::read::Reader;
use crate::{Change, Context, vm};

/// `xl_info` of heap and heap2 records; the opcode is in three bits.
pub(crate) mod op {
    pub(crate) const MASK: u8 = 0x70;
    pub(crate) const INIT_PAGE: u8 = 0x80;

    pub(crate) const INSERT: u8 = 0x00;
    pub(crate) const DELETE: u8 = 0x10;
    pub(crate) const UPDATE: u8 = 0x20;
    pub(crate) const HOT_UPDATE: u8 = 0x40;
    pub(crate) const CONFIRM: u8 = 0x50;
    pub(crate) const LOCK: u8 = 0x60;
    pub(crate) const INPLACE: u8 = 0x70;

    pub(crate) const PRUNE: u8 = 0x10;
    pub(crate) const VACUUM: u8 = 0x20;
    pub(crate) const FREEZE_PAGE: u8 = 0x30;
    pub(crate) const VISIBLE: u8 = 0x40;
    pub(crate) const MULTI_INSERT: u8 = 0x50;
    pub(crate) const LOCK_UPDATED: u8 = 0x60;
}

// Where the flag bytes are in the main data; the visibility map's changes are derived from them alone.
pub(crate) const INSERT_FLAGS_AT: usize = 2;
pub(crate) const DELETE_FLAGS_AT: usize = 7;
pub(crate) const UPDATE_FLAGS_AT: usize = 7;
pub(crate) const LOCK_FLAGS_AT: usize = 7;
pub(crate) const MULTI_INSERT_FLAGS_AT: usize = 0;

/// `XLH_INSERT_ALL_VISIBLE_CLEARED` and `XLH_DELETE_ALL_VISIBLE_CLEARED`
pub(crate) const ALL_VISIBLE_CLEARED: u8 = 0x01;
pub(crate) const UPDATE_OLD_ALL_VISIBLE_CLEARED: u8 = 0x01;
pub(crate) const UPDATE_NEW_ALL_VISIBLE_CLEARED: u8 = 0x02;
const UPDATE_PREFIX_FROM_OLD: u8 = 0x20;
const UPDATE_SUFFIX_FROM_OLD: u8 = 0x40;
const DELETE_IS_SUPER: u8 = 0x08;
const DELETE_IS_PARTITION_MOVE: u8 = 0x10;
pub(crate) const LOCK_ALL_FROZEN_CLEARED: u8 = 0x01;

const HEAP_XMAX_KEYSHR_LOCK: u16 = 0x0010;
const HEAP_COMBOCID: u16 = 0x0020;
const HEAP_XMAX_EXCL_LOCK: u16 = 0x0040;
const HEAP_XMAX_LOCK_ONLY: u16 = 0x0080;
const HEAP_XMAX_COMMITTED: u16 = 0x0400;
const HEAP_XMAX_INVALID: u16 = 0x0800;
const HEAP_XMAX_IS_MULTI: u16 = 0x1000;
const HEAP_MOVED: u16 = 0xC000;
const HEAP_LOCK_MASK: u16 = HEAP_XMAX_KEYSHR_LOCK | HEAP_XMAX_EXCL_LOCK;
const HEAP_XMAX_BITS: u16 =
    HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID | HEAP_XMAX_IS_MULTI | HEAP_LOCK_MASK | HEAP_XMAX_LOCK_ONLY;
const HEAP_KEYS_UPDATED: u16 = 0x2000;
const HEAP_HOT_UPDATED: u16 = 0x4000;

/// `SizeofHeapTupleHeader`
pub(crate) const TUPLE_HEADER_LEN: usize = 23;
/// `MaxHeapTupleSize`
pub(crate) const MAX_TUPLE_LEN: usize = 8160;
/// Offset number in `t_ctid` of a tuple that moved to another partition; the block is invalid then.
const MOVED_PARTITIONS_OFFSET: u16 = 0xFFFD;

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    if cx.is_map_page() {
        return vm::clear_referenced(cx, page);
    }
    match cx.view.info & op::MASK {
        op::INSERT => insert(cx, page),
        op::DELETE => delete(cx, page),
        op::UPDATE => update(cx, page, false),
        op::HOT_UPDATE => update(cx, page, true),
        op::CONFIRM => confirm(cx, page),
        op::LOCK => lock(cx, page),
        op::INPLACE => inplace(cx, page),
        _ => Err(Fault::Unsupported),
    }
}

/// `HeapTupleHeaderData` on a page.
pub(crate) struct Tuple<'t>(&'t mut [u8]);

impl<'t> Tuple<'t> {
    /// The tuple at `offnum`, whose line pointer must be normal.
    pub(crate) fn get(page: &'t mut Page<'_>, offnum: u16) -> Result<Tuple<'t>, Fault> {
        if page.item_id(offnum)?.state() != lp::NORMAL {
            return Err(Fault::Page("the line pointer is not normal"));
        }
        Tuple::at(page, offnum)
    }

    /// The tuple at `offnum`, whatever its line pointer's state.
    pub(crate) fn at(page: &'t mut Page<'_>, offnum: u16) -> Result<Tuple<'t>, Fault> {
        let item = page.item(offnum)?;
        if item.len() < TUPLE_HEADER_LEN {
            return Err(Fault::Page("an item is shorter than a tuple header"));
        }
        Ok(Tuple(item))
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn infomask2(&self) -> u16 {
        self.u16_at(18)
    }

    fn infomask(&self) -> u16 {
        self.u16_at(20)
    }

    fn hoff(&self) -> usize {
        usize::from(self.0[22])
    }

    pub(crate) fn set_xmin(&mut self, xid: u32) {
        self.0[0..4].copy_from_slice(&xid.to_le_bytes());
    }

    pub(crate) fn set_xmax(&mut self, xid: u32) {
        self.0[4..8].copy_from_slice(&xid.to_le_bytes());
    }

    /// `t_cid` or `t_xvac`.
    pub(crate) fn set_field3(&mut self, value: u32) {
        self.0[8..12].copy_from_slice(&value.to_le_bytes());
    }

    fn set_ctid(&mut self, ctid: Ctid) {
        self.0[12..18].copy_from_slice(&ctid.to_bytes());
    }

    pub(crate) fn set_infomask2(&mut self, mask: u16) {
        self.0[18..20].copy_from_slice(&mask.to_le_bytes());
    }

    pub(crate) fn set_infomask(&mut self, mask: u16) {
        self.0[20..22].copy_from_slice(&mask.to_le_bytes());
    }

    /// Replaces the flags about xmax with those that the record names (`fix_infomask_from_infobits`).
    fn set_xmax_flags(&mut self, infobits: u8) {
        let mut infomask = self.infomask() & !(HEAP_XMAX_BITS | HEAP_MOVED);
        for (bit, flag) in [
            (0x01, HEAP_XMAX_IS_MULTI),
            (0x02, HEAP_XMAX_LOCK_ONLY),
            (0x04, HEAP_XMAX_EXCL_LOCK),
            (0x08, HEAP_XMAX_KEYSHR_LOCK),
        ] {
            if infobits & bit != 0 {
                infomask |= flag;
            }
        }
        self.set_infomask(infomask);
        let keys_updated = if infobits & 0x10 != 0 { HEAP_KEYS_UPDATED } else { 0 };
        self.set_infomask2(self.infomask2() & !HEAP_KEYS_UPDATED | keys_updated);
    }

    fn set_hot_updated(&mut self, hot: bool) {
        let hot = if hot { HEAP_HOT_UPDATED } else { 0 };
        self.set_infomask2(self.infomask2() & !HEAP_HOT_UPDATED | hot);
    }

    /// `HeapTupleHeaderSetCmax` with `FirstCommandId`.
    fn clear_command_id(&mut self) {
        self.set_field3(0);
        self.set_infomask(self.infomask() & !HEAP_COMBOCID);
    }

    /// `HEAP_XMAX_IS_LOCKED_ONLY`
    fn is_locked_only(&self) -> bool {
        let mask = self.infomask();
        mask & HEAP_XMAX_LOCK_ONLY != 0 || mask & (HEAP_XMAX_IS_MULTI | HEAP_LOCK_MASK) == HEAP_XMAX_EXCL_LOCK
    }
}

/// `ItemPointerData`: two halves of the block number, high one first, and the offset number.
#[derive(Clone, Copy)]
pub(crate) struct Ctid {
    pub(crate) block: BlockNumber,
    pub(crate) offnum: u16,
}

impl Ctid {
    pub(crate) fn to_bytes(self) -> [u8; 6] {
        let (high, low, offnum) =
            (((self.block >> 16) as u16).to_le_bytes(), (self.block as u16).to_le_bytes(), self.offnum.to_le_bytes());
        [high[0], high[1], low[0], low[1], offnum[0], offnum[1]]
    }
}

/// What WAL keeps of a new tuple's header, and the rest of the header that redo fills in.
pub(crate) struct NewTuple {
    pub(crate) infomask2: u16,
    pub(crate) infomask: u16,
    pub(crate) hoff: u8,
    pub(crate) xmin: u32,
    pub(crate) xmax: u32,
    pub(crate) ctid: Ctid,
}

impl NewTuple {
    fn header(&self) -> [u8; TUPLE_HEADER_LEN] {
        let mut header = [0; TUPLE_HEADER_LEN];
        header[0..4].copy_from_slice(&self.xmin.to_le_bytes());
        header[4..8].copy_from_slice(&self.xmax.to_le_bytes());
        header[12..18].copy_from_slice(&self.ctid.to_bytes());
        header[18..20].copy_from_slice(&self.infomask2.to_le_bytes());
        // Setting a command id clears HEAP_COMBOCID.
        header[20..22].copy_from_slice(&(self.infomask & !HEAP_COMBOCID).to_le_bytes());
        header[22] = self.hoff;
        header
    }

    /// Puts the tuple on the page.
    pub(crate) fn add(&self, page: &mut Page<'_>, content: &[u8]) -> Result<(), Fault> {
        let at = self.make_room(page, content.len())?;
        page.put(at + TUPLE_HEADER_LEN, content);
        Ok(())
    }

    /// Puts the tuple's header on the page, with room for so much content behind it, and says where it is.
    fn make_room(&self, page: &mut Page<'_>, content_len: usize) -> Result<usize, Fault> {
        let len = TUPLE_HEADER_LEN + content_len;
        if len > MAX_TUPLE_LEN {
            return Err(Fault::Record("a tuple is longer than a page can hold"));
        }
        let at = page.add_item_space(self.ctid.offnum, len, Place::Heap)?.start;
        page.put(at, &self.header());
        Ok(at)
    }
}

fn insert(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (offnum, flags) = (main.u16()?, main.u8()?);
    if cx.view.info & op::INIT_PAGE != 0 {
        page.init(0);
    }
    let mut data = Reader::new(cx.block.data);
    let tuple = NewTuple {
        infomask2: data.u16()?,
        infomask: data.u16()?,
        hoff: data.u8()?,
        xmin: cx.view.xid,
        xmax: 0,
        ctid: Ctid { block: cx.block.blkno, offnum },
    };
    tuple.add(page, data.rest())?;
    if flags & ALL_VISIBLE_CLEARED != 0 {
        page.set_flags(0, PD_ALL_VISIBLE);
    }
    Ok(Change::Stamp)
}

fn delete(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (xmax, offnum, infobits, flags) = (main.u32()?, main.u16()?, main.u8()?, main.u8()?);
    let mut tuple = Tuple::get(page, offnum)?;
    tuple.set_xmax_flags(infobits);
    tuple.set_hot_updated(false);
    if flags & DELETE_IS_SUPER == 0 {
        tuple.set_xmax(xmax);
    } else {
        tuple.set_xmin(0);
    }
    tuple.clear_command_id();
    if flags & DELETE_IS_PARTITION_MOVE != 0 {
        tuple.set_ctid(Ctid { block: BlockNumber::MAX, offnum: MOVED_PARTITIONS_OFFSET });
    } else {
        tuple.set_ctid(Ctid { block: cx.block.blkno, offnum });
    }
    page.set_prunable(cx.view.xid);
    if flags & ALL_VISIBLE_CLEARED != 0 {
        page.set_flags(0, PD_ALL_VISIBLE);
    }
    Ok(Change::Stamp)
}

/// `xl_heap_update`
struct Update {
    old_xmax: u32,
    old_offnum: u16,
    old_infobits: u8,
    flags: u8,
    new_xmax: u32,
    new_offnum: u16,
}

/// Block 0 is the new tuple's page, block 1 the old one's if that is another.
fn update(cx: &Context<'_, '_>, page: &mut Page<'_>, hot: bool) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let record = Update {
        old_xmax: main.u32()?,
        old_offnum: main.u16()?,
        old_infobits: main.u8()?,
        flags: main.u8()?,
        new_xmax: main.u32()?,
        new_offnum: main.u16()?,
    };
    let new_block = cx.view.block(0).ok_or(Fault::Record("block 0 is missing"))?.blkno;
    let two_pages = cx.view.block(1).is_some();
    let new_ctid = Ctid { block: new_block, offnum: record.new_offnum };
    if cx.block.id == 1 || !two_pages {
        update_old(cx, page, &record, new_ctid, hot)?;
    }
    if cx.block.id == 0 {
        if two_pages && cx.view.info & op::INIT_PAGE != 0 {
            page.init(0);
        }
        update_new(cx, page, &record, new_ctid, two_pages)?;
    }
    Ok(Change::Stamp)
}

fn update_old(
    cx: &Context<'_, '_>,
    page: &mut Page<'_>,
    record: &Update,
    new_ctid: Ctid,
    hot: bool,
) -> Result<(), Fault> {
    let mut tuple = Tuple::get(page, record.old_offnum)?;
    tuple.set_xmax_flags(record.old_infobits);
    tuple.set_hot_updated(hot);
    tuple.set_xmax(record.old_xmax);
    tuple.clear_command_id();
    tuple.set_ctid(new_ctid);
    page.set_prunable(cx.view.xid);
    if record.flags & UPDATE_OLD_ALL_VISIBLE_CLEARED != 0 {
        page.set_flags(0, PD_ALL_VISIBLE);
    }
    Ok(())
}

fn update_new(
    cx: &Context<'_, '_>,
    page: &mut Page<'_>,
    record: &Update,
    ctid: Ctid,
    two_pages: bool,
) -> Result<(), Fault> {
    let mut data = Reader::new(cx.block.data);
    let mut from_old = |flag| if record.flags & flag != 0 { data.u16().map(usize::from) } else { Ok(0) };
    let (prefix, suffix) = (from_old(UPDATE_PREFIX_FROM_OLD)?, from_old(UPDATE_SUFFIX_FROM_OLD)?);
    let new = NewTuple {
        infomask2: data.u16()?,
        infomask: data.u16()?,
        hoff: data.u8()?,
        xmin: cx.view.xid,
        xmax: record.new_xmax,
        ctid,
    };
    if prefix == 0 && suffix == 0 {
        new.add(page, data.rest())?;
    } else {
        if two_pages {
            return Err(Fault::Record("a prefix or suffix of a tuple on another page"));
        }
        let old = Tuple::get(page, record.old_offnum)?;
        let (old_len, old_hoff) = (old.0.len(), old.hoff());
        if old_len > MAX_TUPLE_LEN {
            return Err(Fault::Page("a tuple is longer than a page can hold"));
        }
        if old_hoff + prefix > old_len {
            return Err(Fault::Record("the prefix is too long"));
        }
        let suffix_at = old_len.checked_sub(suffix).ok_or(Fault::Record("the suffix is too long"))?;
        // With a prefix, the null bitmap and padding come from the record and stand before it.
        let bitmap_len = if prefix > 0 {
            usize::from(new.hoff).checked_sub(TUPLE_HEADER_LEN).ok_or(Fault::Record("the header is too short"))?
        } else {
            0
        };
        let (bitmap, middle) = (data.take(bitmap_len)?, data.rest());
        let old_at = page.item_range(page.item_id(record.old_offnum)?)?.start;
        let at = new.make_room(page, bitmap_len + prefix + middle.len() + suffix)?;
        // Adding an item moves no other: the old tuple is where it was.
        let mut next = at + TUPLE_HEADER_LEN;
        page.put(next, bitmap);
        next += bitmap_len;
        page.bytes.copy_within(old_at + old_hoff..old_at + old_hoff + prefix, next);
        next += prefix;
        page.put(next, middle);
        next += middle.len();
        page.bytes.copy_within(old_at + suffix_at..old_at + old_len, next);
    }
    if record.flags & UPDATE_NEW_ALL_VISIBLE_CLEARED != 0 {
        page.set_flags(0, PD_ALL_VISIBLE);
    }
    Ok(())
}

fn confirm(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let offnum = Reader::new(cx.view.main_data).u16()?;
    Tuple::get(page, offnum)?.set_ctid(Ctid { block: cx.block.blkno, offnum });
    Ok(Change::Stamp)
}

fn lock(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (xmax, offnum, infobits) = (main.u32()?, main.u16()?, main.u8()?);
    let mut tuple = Tuple::get(page, offnum)?;
    tuple.set_xmax_flags(infobits);
    if tuple.is_locked_only() {
        tuple.set_hot_updated(false);
        tuple.set_ctid(Ctid { block: cx.block.blkno, offnum });
    }
    tuple.set_xmax(xmax);
    tuple.clear_command_id();
    Ok(Change::Stamp)
}

/// `XLOG_HEAP2_LOCK_UPDATED`: a lock on a newer version of a locked row.
pub(crate) fn lock_updated(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (xmax, offnum, infobits) = (main.u32()?, main.u16()?, main.u8()?);
    let mut tuple = Tuple::get(page, offnum)?;
    tuple.set_xmax_flags(infobits);
    tuple.set_xmax(xmax);
    Ok(Change::Stamp)
}

fn inplace(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let offnum = Reader::new(cx.view.main_data).u16()?;
    let tuple = Tuple::get(page, offnum)?;
    let hoff = tuple.hoff();
    let old = tuple.0.get_mut(hoff..).ok_or(Fault::Page("a tuple's header is longer than the tuple"))?;
    if old.len() != cx.block.data.len() {
        return Err(Fault::Record("an in-place update of another length"));
    }
    old.copy_from_slice(cx.block.data);
    Ok(Change::Stamp)
}
