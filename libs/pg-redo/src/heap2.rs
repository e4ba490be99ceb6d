//! Heap records of the second resource manager (`RM_HEAP2_ID`).

use crate::fault::Fault;
use crate::heap::{self, ALL_VISIBLE_CLEARED, Ctid, NewTuple, Tuple, op};
use crate::page::{ItemId, PD_ALL_VISIBLE, Page, lp};
use crate::read::Reader;
use crate::view::HintBits;
use crate::vm::{self, VmChange};
use crate::{Change, Context};

const INSERT_ALL_FROZEN_SET: u8 = 0x20;
const FREEZE_XVAC: u8 = 0x02;
const INVALID_XVAC: u8 = 0x04;
const FROZEN_XID: u32 = 2;

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    match cx.view.info & op::MASK {
        op::PRUNE => prune(cx, page),
        op::VACUUM => vacuum(cx, page),
        op::FREEZE_PAGE => freeze(cx, page),
        op::VISIBLE => visible(cx, page),
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
    page.repair_fragmentation()?;
    Ok(Change::Stamp)
}

/// The second pass of VACUUM: dead line pointers, which no index knows any more, become free.
fn vacuum(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let count = Reader::new(cx.view.main_data).u16()?;
    for offnum in Reader::new(cx.block.data).u16s(usize::from(count))?.iter() {
        let id = page.item_id(offnum)?;
        if id.state() != lp::DEAD || id.has_storage() {
            return Err(Fault::Page("a line pointer to be freed is not dead"));
        }
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
        let (infomask2, infomask, flags) = (data.u16()?, data.u16()?, data.u8()?);
        data.skip(1)?;
        let mut tuple = Tuple::at(page, offnum)?;
        tuple.set_xmax(xmax);
        if flags & FREEZE_XVAC != 0 {
            tuple.set_field3(FROZEN_XID);
        }
        if flags & INVALID_XVAC != 0 {
            tuple.set_field3(0);
        }
        tuple.set_infomask(infomask);
        tuple.set_infomask2(infomask2);
    }
    Ok(Change::Stamp)
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
        tuple.add(page, &[data.take(usize::from(len))?])?;
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
