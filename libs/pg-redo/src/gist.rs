//! GiST records (`RM_GIST_ID`).

use ardent_types::Lsn;

use crate::fault::Fault;
use crate::itup;
use crate::page::Page;
use crate::read::Reader;
use crate::{Change, Context};

mod op {
    pub(super) const PAGE_UPDATE: u8 = 0x00;
    pub(super) const DELETE: u8 = 0x10;
    pub(super) const PAGE_SPLIT: u8 = 0x30;
    pub(super) const PAGE_DELETE: u8 = 0x60;
}

const LEAF: u16 = 0x01;
const DELETED: u16 = 0x02;
const FOLLOW_RIGHT: u16 = 0x08;
const HAS_GARBAGE: u16 = 0x10;

/// `GISTPageOpaqueData`: NSN (8), right link (4), flags (2), page id (2).
const OPAQUE_LEN: usize = 16;
const RIGHT_LINK: usize = 8;
const FLAGS: usize = 12;
const PAGE_ID: usize = 14;
const PAGE_ID_VALUE: u16 = 0xFF81;

const ROOT: u32 = 0;
const NO_BLOCK: u32 = u32::MAX;

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    match (cx.view.rm_info(), cx.block.id) {
        (op::PAGE_UPDATE, 0) => update(cx, page),
        (op::PAGE_UPDATE, 1) | (op::PAGE_SPLIT, 0) => clear_follow_right(cx, page),
        (op::DELETE, 0) => delete(cx, page),
        (op::PAGE_SPLIT, _) => split(cx, page),
        (op::PAGE_DELETE, 0) => delete_page(cx, page),
        (op::PAGE_DELETE, 1) => {
            let mut main = Reader::new(cx.view.main_data);
            main.skip(8)?;
            page.index_delete(main.u16()?)?;
            Ok(Change::Stamp)
        }
        _ => Err(Fault::Unsupported),
    }
}

/// The left half of a split whose downlink this record inserts has its NSN set even after its image was restored: the image
/// is from before that.
pub(crate) fn redo_after_image(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    match (cx.view.rm_info(), cx.block.id) {
        (op::PAGE_UPDATE, 1) | (op::PAGE_SPLIT, 0) => clear_follow_right(cx, page),
        _ => Ok(Change::Nothing),
    }
}

fn set_flags(page: &mut Page<'_>, set: u16, clear: u16) -> Result<(), Fault> {
    let at = page.special_offset(OPAQUE_LEN)? + FLAGS;
    page.put_u16(at, page.u16_at(at) & !clear | set);
    Ok(())
}

fn set_nsn(page: &mut Page<'_>, nsn: Lsn) -> Result<(), Fault> {
    let at = page.special_offset(OPAQUE_LEN)?;
    let (high, low) = nsn.halves();
    page.put_u32(at, high);
    page.put_u32(at + 4, low);
    Ok(())
}

fn clear_follow_right(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    set_nsn(page, cx.view.end_lsn)?;
    set_flags(page, 0, FOLLOW_RIGHT)?;
    Ok(Change::Stamp)
}

fn append_tuples(page: &mut Page<'_>, mut data: &[u8]) -> Result<(), Fault> {
    while !data.is_empty() {
        let (tuple, rest) = itup::split_off(data)?;
        page.append_item(tuple)?;
        data = rest;
    }
    Ok(())
}

fn update(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (deleted, inserted) = (main.u16()?, main.u16()?);
    let mut data = Reader::new(cx.block.data);
    if deleted == 1 && inserted == 1 {
        // One for one is done in place, which leaves another layout than a deletion and an addition.
        let offnum = data.u16()?;
        let (tuple, rest) = itup::split_off(data.rest())?;
        page.index_overwrite(offnum, tuple)?;
        append_tuples(page, rest)?;
        return Ok(Change::Stamp);
    }
    if deleted > 0 {
        // Minors of 15 before 15.20 also set F_TUPLES_DELETED, which nothing reads.
        page.index_multi_delete(data.u16s(usize::from(deleted))?.iter())?;
    }
    append_tuples(page, data.rest())?;
    Ok(Change::Stamp)
}

fn delete(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let offnums = crate::major::gist_delete_offsets(cx.major, &mut main)?;
    if offnums.len() > 0 {
        page.index_multi_delete(offnums.iter())?;
    }
    set_flags(page, 0, HAS_GARBAGE)?;
    Ok(Change::Stamp)
}

/// One page of a split, made anew. Block 0 is the left child's, so the split's pages start with block 1.
fn split(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let original_right = main.u32()?;
    main.align(8)?;
    let nsn = Lsn::new(main.u64()?);
    let is_leaf = main.u8()? != 0;
    main.align(2)?;
    let pages = main.u16()?;
    let mark_follow_right = main.u8()? != 0;

    let is_last = u16::from(cx.block.id) == pages;
    let is_root = cx.block.blkno == ROOT;
    // The root is listed first, and then it is not a page of the split but the parent of them.
    let root_split = cx.view.block(1).is_some_and(|block| block.blkno == ROOT);
    let next = if is_root {
        NO_BLOCK
    } else if is_last {
        original_right
    } else {
        cx.view.block(cx.block.id + 1).ok_or(Fault::Record("a page of the split is missing"))?.blkno
    };
    let follow_right = !is_root && !is_last && !root_split && mark_follow_right;
    let mut flags = if is_leaf && !is_root { LEAF } else { 0 };
    flags |= if follow_right { FOLLOW_RIGHT } else { 0 };

    page.init(OPAQUE_LEN);
    let opaque = page.special_offset(OPAQUE_LEN)?;
    page.put_u32(opaque + RIGHT_LINK, next);
    page.put_u16(opaque + FLAGS, flags);
    page.put_u16(opaque + PAGE_ID, PAGE_ID_VALUE);
    set_nsn(page, nsn)?;
    let mut data = Reader::new(cx.block.data);
    data.skip(4)?;
    append_tuples(page, data.rest())?;
    Ok(Change::Stamp)
}

fn delete_page(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let xid = Reader::new(cx.view.main_data).u64()?;
    set_flags(page, DELETED, 0)?;
    // GISTDeletedPageContents stands where line pointers would.
    page.put(24, &xid.to_le_bytes());
    page.set_lower(24 + 8);
    Ok(Change::Stamp)
}
