//! Heap records of the second resource manager (`RM_HEAP2_ID`).

use ardent_pg_format::PgMajor;

use crate::fault::Fault;
use crate::heap::{self, ALL_VISIBLE_CLEARED, Ctid, NewTuple, Tuple, op};
use crate::page::{ItemId, PD_ALL_VISIBLE, Page, lp};
use crate::read::{Reader, U16s};
use crate::view::HintBits;
use crate::vm::{self, VmChange};
use crate::{Change, Context};

const INSERT_ALL_FROZEN_SET: u8 = 0x20;
const FREEZE_XVAC: u8 = 0x02;
const INVALID_XVAC: u8 = 0x04;
const FROZEN_XID: u32 = 2;
/// `xlhp_freeze_plan` and, in 16, `xl_heap_freeze_plan`: xmax, the two masks, flags, padding, number of tuples.
const FREEZE_PLAN_LEN: usize = 12;

/// `XLHP_*`: what an `xl_heap_prune` of 17 holds.
mod prune_flags {
    pub(super) const CLEANUP_LOCK: u8 = 0x04;
    pub(super) const FREEZE_PLANS: u8 = 0x10;
    pub(super) const REDIRECTIONS: u8 = 0x20;
    pub(super) const DEAD_ITEMS: u8 = 0x40;
    pub(super) const UNUSED_ITEMS: u8 = 0x80;
}

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    match cx.view.info & op::MASK {
        op::VISIBLE => visible(cx, page),
        _ if cx.is_map_page() => vm::clear_referenced(cx, page),
        // The three became one in 17, and say only why they were written.
        op::PRUNE | op::VACUUM | op::FREEZE_PAGE if cx.major >= PgMajor::V17 => prune_and_freeze(cx, page),
        op::PRUNE => prune(cx, page),
        op::VACUUM => vacuum(cx, page),
        op::FREEZE_PAGE if cx.major >= PgMajor::V16 => freeze_by_plans(cx, page),
        op::FREEZE_PAGE => freeze(cx, page),
        op::MULTI_INSERT => multi_insert(cx, page),
        op::LOCK_UPDATED => heap::lock_updated(cx, page),
        _ => Err(Fault::Unsupported),
    }
}

fn prune(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    main.skip(4)?;
    let (redirected, dead) = (usize::from(main.u16()?), usize::from(main.u16()?));
    let mut data = Reader::new(cx.block.data);
    let (redirected, dead) = (data.u16s(redirected * 2)?, data.u16s(dead)?);
    let unused = data.rest();
    let unused = Reader::new(unused).u16s(unused.len() / 2)?;
    set_line_pointers(page, redirected, dead, unused)?;
    page.repair_fragmentation()?;
    Ok(Change::Stamp)
}

/// `redirected` has pairs: from, to.
fn set_line_pointers(page: &mut Page<'_>, redirected: U16s<'_>, dead: U16s<'_>, unused: U16s<'_>) -> Result<(), Fault> {
    let mut redirected = redirected.iter();
    while let (Some(from), Some(to)) = (redirected.next(), redirected.next()) {
        page.set_item_id(from, ItemId::redirect(to))?;
    }
    for offnum in dead.iter() {
        page.set_item_id(offnum, ItemId::DEAD)?;
    }
    for offnum in unused.iter() {
        page.set_item_id(offnum, ItemId::UNUSED)?;
    }
    Ok(())
}

/// `xl_heap_prune` of 17: flags say which lists follow each other in the block's data.
fn prune_and_freeze(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    // The reason, which the opcode says too.
    main.skip(1)?;
    let flags = main.u8()?;
    let mut data = Reader::new(cx.block.data);
    let plans = if flags & prune_flags::FREEZE_PLANS != 0 {
        let count = data.u16()?;
        data.skip(2)?;
        data.take(usize::from(count) * FREEZE_PLAN_LEN)?
    } else {
        &[]
    };
    let mut list = |flag: u8, words: usize| {
        let count = if flags & flag != 0 { data.u16()? } else { 0 };
        data.u16s(usize::from(count) * words)
    };
    let redirected = list(prune_flags::REDIRECTIONS, 2)?;
    let dead = list(prune_flags::DEAD_ITEMS, 1)?;
    let unused = list(prune_flags::UNUSED_ITEMS, 1)?;
    if redirected.len() + dead.len() + unused.len() > 0 {
        // The second pass of VACUUM frees dead line pointers only, and moves nothing.
        let only_frees = flags & prune_flags::CLEANUP_LOCK == 0;
        if only_frees && (redirected.len() + dead.len() > 0 || !all_dead(page, unused)?) {
            return Err(Fault::Page("a line pointer to be freed is not dead"));
        }
        set_line_pointers(page, redirected, dead, unused)?;
        if only_frees { page.truncate_line_pointers()? } else { page.repair_fragmentation()? }
    }
    freeze_tuples(page, plans, data)?;
    Ok(Change::Stamp)
}

fn all_dead(page: &Page<'_>, offnums: U16s<'_>) -> Result<bool, Fault> {
    for offnum in offnums.iter() {
        let id = page.item_id(offnum)?;
        if id.state() != lp::DEAD || id.has_storage() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The second pass of VACUUM: dead line pointers, which no index knows any more, become free.
fn vacuum(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let count = Reader::new(cx.view.main_data).u16()?;
    let unused = Reader::new(cx.block.data).u16s(usize::from(count))?;
    if !all_dead(page, unused)? {
        return Err(Fault::Page("a line pointer to be freed is not dead"));
    }
    for offnum in unused.iter() {
        page.set_item_id(offnum, ItemId::UNUSED)?;
    }
    page.truncate_line_pointers()?;
    Ok(Change::Stamp)
}

fn freeze(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    main.skip(4)?;
    let count = main.u16()?;
    let mut data = Reader::new(cx.block.data);
    for _ in 0..count {
        let (xmax, offnum) = (data.u32()?, data.u16()?);
        let frozen = Frozen { xmax, infomask2: data.u16()?, infomask: data.u16()?, flags: data.u8()? };
        data.skip(1)?;
        frozen.put(&mut Tuple::at(page, offnum)?);
    }
    Ok(Change::Stamp)
}

/// `xl_heap_freeze_page` of 16: plans, each for some of the offset numbers that follow them all.
fn freeze_by_plans(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    main.skip(4)?;
    let count = main.u16()?;
    let mut data = Reader::new(cx.block.data);
    let plans = data.take(usize::from(count) * FREEZE_PLAN_LEN)?;
    freeze_tuples(page, plans, data)?;
    Ok(Change::Stamp)
}

/// Carries out freeze plans; `offnums` holds the offset numbers of all of them, one plan's after the other's.
fn freeze_tuples(page: &mut Page<'_>, plans: &[u8], mut offnums: Reader<'_>) -> Result<(), Fault> {
    for plan in plans.chunks_exact(FREEZE_PLAN_LEN) {
        let mut plan = Reader::new(plan);
        let xmax = plan.u32()?;
        let frozen = Frozen { xmax, infomask2: plan.u16()?, infomask: plan.u16()?, flags: plan.u8()? };
        plan.align(2)?;
        for offnum in offnums.u16s(usize::from(plan.u16()?))?.iter() {
            frozen.put(&mut Tuple::at(page, offnum)?);
        }
    }
    if offnums.is_empty() { Ok(()) } else { Err(Fault::Record("more offset numbers than its plans are for")) }
}

/// What freezing makes of a tuple's header (`HeapTupleFreeze`).
struct Frozen {
    xmax: u32,
    infomask2: u16,
    infomask: u16,
    flags: u8,
}

impl Frozen {
    fn put(&self, tuple: &mut Tuple<'_>) {
        tuple.set_xmax(self.xmax);
        if self.flags & FREEZE_XVAC != 0 {
            tuple.set_field3(FROZEN_XID);
        }
        if self.flags & INVALID_XVAC != 0 {
            tuple.set_field3(0);
        }
        tuple.set_infomask(self.infomask);
        tuple.set_infomask2(self.infomask2);
    }
}

/// Block 0 is the map page, block 1 the heap page.
fn visible(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    if cx.block.id == 1 {
        page.set_flags(PD_ALL_VISIBLE, 0);
        // A checksummed page must not change without a new LSN; without checksums Postgres spares the full-page image.
        return Ok(if cx.view.hint_bits == HintBits::Logged { Change::Stamp } else { Change::KeepLsn });
    }
    let mut main = Reader::new(cx.view.main_data);
    main.skip(4)?;
    let set = main.u8()? & (vm::ALL_VISIBLE | vm::ALL_FROZEN);
    let heap_block = cx.view.block(1).ok_or(Fault::Record("block 1 is missing"))?.blkno;
    if cx.block.id != 0 || vm::map_block(heap_block) != cx.block.blkno {
        return Err(Fault::Record("the map page is not the heap block's"));
    }
    let was_new = page.is_new();
    if was_new {
        page.init(0);
    }
    if vm::bits(page.bytes, heap_block) == set {
        return Ok(if was_new { Change::KeepLsn } else { Change::Nothing });
    }
    VmChange { heap_block, clear: 0, set }.apply(page.bytes);
    Ok(Change::Stamp)
}

fn multi_insert(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let flags = main.u8()?;
    main.skip(1)?;
    let count = main.u16()?;
    let init = cx.view.info & op::INIT_PAGE != 0;
    // A page made anew takes the tuples in order; otherwise their offset numbers are listed.
    let offnums = if init { None } else { Some(main.u16s(usize::from(count))?) };
    if init {
        page.init(0);
    }
    let mut data = Reader::new(cx.block.data);
    for index in 0..count {
        let offnum = match offnums {
            Some(list) => list.get(usize::from(index)).ok_or(Fault::Record("an offset number is missing"))?,
            None => index.checked_add(1).ok_or(Fault::Record("too many tuples"))?,
        };
        data.align(2)?;
        let len = data.u16()?;
        let tuple = NewTuple {
            infomask2: data.u16()?,
            infomask: data.u16()?,
            hoff: data.u8()?,
            xmin: cx.view.xid,
            xmax: 0,
            ctid: Ctid { block: cx.block.blkno, offnum },
        };
        tuple.add(page, data.take(usize::from(len))?)?;
    }
    if !data.is_empty() {
        return Err(Fault::Record("tuples do not fill their data"));
    }
    if flags & ALL_VISIBLE_CLEARED != 0 {
        page.set_flags(0, PD_ALL_VISIBLE);
    }
    if flags & INSERT_ALL_FROZEN_SET != 0 {
        page.set_flags(PD_ALL_VISIBLE, 0);
    }
    Ok(Change::Stamp)
}
