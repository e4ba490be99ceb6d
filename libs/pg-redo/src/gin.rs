//! GIN records (`RM_GIN_ID`): the entry tree, posting trees, the pending list.

mod posting;

use crate::fault::Fault;
use crate::itup;
use crate::page::{Page, Place};
use crate::read::Reader;
use crate::{Change, Context};

mod op {
    pub(super) const CREATE_PTREE: u8 = 0x10;
    pub(super) const INSERT: u8 = 0x20;
    pub(super) const SPLIT: u8 = 0x30;
    pub(super) const VACUUM_PAGE: u8 = 0x40;
    pub(super) const DELETE_PAGE: u8 = 0x50;
    pub(super) const UPDATE_META_PAGE: u8 = 0x60;
    pub(super) const INSERT_LISTPAGE: u8 = 0x70;
    pub(super) const DELETE_LISTPAGE: u8 = 0x80;
    pub(super) const VACUUM_DATA_LEAF_PAGE: u8 = 0x90;
}

const DATA: u16 = 0x01;
const LEAF: u16 = 0x02;
const DELETED: u16 = 0x04;
const META: u16 = 0x08;
const LIST: u16 = 0x10;
const LIST_FULLROW: u16 = 0x20;
const INCOMPLETE_SPLIT: u16 = 0x40;
const COMPRESSED: u16 = 0x80;

/// `GinPageOpaqueData`: right link (4), number of items (2), flags (2).
const OPAQUE_LEN: usize = 8;
const RIGHT_LINK: usize = 0;
const MAX_OFFSET: usize = 4;
const FLAGS: usize = 6;

const NO_BLOCK: u32 = u32::MAX;
const CONTENTS_AT: usize = 24;
/// A data page's items start after its right bound, a TID.
const DATA_AT: usize = CONTENTS_AT + 8;
/// `GinMetaPageData`
const META_LEN: usize = 56;
/// `PostingItem`: child block, key TID.
const POSTING_ITEM_LEN: usize = 10;

const INSERT_IS_DATA: u16 = 0x01;
const INSERT_IS_LEAF: u16 = 0x02;

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    match (cx.view.rm_info(), cx.block.id) {
        (op::CREATE_PTREE, 0) => create_posting_tree(cx, page),
        (op::INSERT, 0) => insert(cx, page),
        (op::INSERT, 1) | (op::SPLIT, 3) => set_flags(page, 0, INCOMPLETE_SPLIT),
        (op::SPLIT, 0..=2) | (op::VACUUM_PAGE, 0) => Err(Fault::Record("the full-page image is missing")),
        (op::VACUUM_DATA_LEAF_PAGE, 0) => {
            posting::recompress(page, &mut Reader::new(cx.block.data))?;
            Ok(Change::Stamp)
        }
        (op::DELETE_PAGE, 0) => {
            let xid = DeletePage::read(cx)?.xid;
            page.set_prune_xid(xid);
            set_flags(page, DELETED, 0)
        }
        (op::DELETE_PAGE, 1) => delete_posting_item(page, DeletePage::read(cx)?.parent_offset),
        (op::DELETE_PAGE, 2) => set_right_link(page, DeletePage::read(cx)?.right_link),
        (op::UPDATE_META_PAGE, 0) => meta(page, Reader::new(cx.view.main_data), 16),
        (op::UPDATE_META_PAGE, 1) => update_tail(cx, page),
        (op::INSERT_LISTPAGE, 0) => insert_list_page(cx, page),
        (op::DELETE_LISTPAGE, 0) => meta(page, Reader::new(cx.view.main_data), 0),
        (op::DELETE_LISTPAGE, _) => {
            init(page, DELETED)?;
            Ok(Change::Stamp)
        }
        _ => Err(Fault::Unsupported),
    }
}

fn init(page: &mut Page<'_>, flags: u16) -> Result<usize, Fault> {
    page.init(OPAQUE_LEN);
    let opaque = page.special_offset(OPAQUE_LEN)?;
    page.put_u32(opaque + RIGHT_LINK, NO_BLOCK);
    page.put_u16(opaque + FLAGS, flags);
    Ok(opaque)
}

fn set_flags(page: &mut Page<'_>, set: u16, clear: u16) -> Result<Change, Fault> {
    let at = page.special_offset(OPAQUE_LEN)? + FLAGS;
    page.put_u16(at, page.u16_at(at) & !clear | set);
    Ok(Change::Stamp)
}

fn set_right_link(page: &mut Page<'_>, block: u32) -> Result<Change, Fault> {
    let at = page.special_offset(OPAQUE_LEN)? + RIGHT_LINK;
    page.put_u32(at, block);
    Ok(Change::Stamp)
}

fn create_posting_tree(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let len = main.u32()? as usize;
    let list = main.take(len)?;
    let opaque = init(page, DATA | LEAF | COMPRESSED)?;
    if DATA_AT + len > opaque {
        return Err(Fault::Record("a posting list is longer than a page"));
    }
    page.put(DATA_AT, list);
    page.set_lower(DATA_AT + len);
    Ok(Change::Stamp)
}

fn insert(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let flags = main.u16()?;
    let right_child = if flags & INSERT_IS_LEAF == 0 {
        main.skip(4)?;
        Some(main.take(4)?)
    } else {
        None
    };
    let mut data = Reader::new(cx.block.data);
    match (flags & INSERT_IS_DATA != 0, right_child) {
        (true, None) => posting::recompress(page, &mut data)?,
        (true, Some(right_child)) => insert_posting_item(page, &mut data, right_child)?,
        (false, right_child) => insert_entry(page, &mut data, right_child)?,
    }
    Ok(Change::Stamp)
}

fn insert_entry(page: &mut Page<'_>, data: &mut Reader<'_>, right_child: Option<&[u8]>) -> Result<(), Fault> {
    let (offnum, is_delete) = (data.u16()?, data.u8()? != 0);
    data.skip(1)?;
    if let Some(right_child) = right_child {
        // The downlink that stood for both halves of a split now leads to the right one.
        let item = page.item(offnum)?;
        let tid = item.get_mut(..6).ok_or(Fault::Page("an index tuple is cut short"))?;
        tid[..4].copy_from_slice(right_child);
        tid[4..].fill(0);
    }
    if is_delete {
        page.index_delete(offnum)?;
    }
    let (tuple, _) = itup::split_off(data.rest())?;
    page.add_item(offnum, tuple, Place::Shift)
}

/// The number of items on an inner page of a posting tree, and where it is kept.
fn posting_items(page: &Page<'_>) -> Result<(usize, usize), Fault> {
    let opaque = page.special_offset(OPAQUE_LEN)?;
    let count = usize::from(page.u16_at(opaque + MAX_OFFSET));
    if DATA_AT + count * POSTING_ITEM_LEN > opaque {
        return Err(Fault::Page("more posting items than fit"));
    }
    Ok((count, opaque + MAX_OFFSET))
}

fn insert_posting_item(page: &mut Page<'_>, data: &mut Reader<'_>, right_child: &[u8]) -> Result<(), Fault> {
    let (offnum, item) = (usize::from(data.u16()?), data.take(POSTING_ITEM_LEN)?);
    let (count, count_at) = posting_items(page)?;
    let end = DATA_AT + count * POSTING_ITEM_LEN;
    if offnum == 0 || offnum > count || end + POSTING_ITEM_LEN > count_at - MAX_OFFSET {
        return Err(Fault::Page("the posting item does not fit"));
    }
    let at = DATA_AT + (offnum - 1) * POSTING_ITEM_LEN;
    page.put(at, right_child);
    page.bytes.copy_within(at..end, at + POSTING_ITEM_LEN);
    page.put(at, item);
    page.put_u16(count_at, count as u16 + 1);
    page.set_lower(end + POSTING_ITEM_LEN);
    Ok(())
}

fn delete_posting_item(page: &mut Page<'_>, offnum: u16) -> Result<Change, Fault> {
    let (count, count_at) = posting_items(page)?;
    let offnum = usize::from(offnum);
    if offnum == 0 || offnum > count {
        return Err(Fault::Page("there is no such posting item"));
    }
    let end = DATA_AT + count * POSTING_ITEM_LEN;
    let at = DATA_AT + (offnum - 1) * POSTING_ITEM_LEN;
    page.bytes.copy_within(at + POSTING_ITEM_LEN..end, at);
    page.put_u16(count_at, count as u16 - 1);
    page.set_lower(end - POSTING_ITEM_LEN);
    Ok(Change::Stamp)
}

/// `ginxlogDeletePage`
struct DeletePage {
    parent_offset: u16,
    right_link: u32,
    xid: u32,
}

impl DeletePage {
    fn read(cx: &Context<'_, '_>) -> Result<DeletePage, Fault> {
        let mut main = Reader::new(cx.view.main_data);
        let parent_offset = main.u16()?;
        main.align(4)?;
        Ok(DeletePage { parent_offset, right_link: main.u32()?, xid: main.u32()? })
    }
}

/// The meta page, made anew from the copy that starts `at` bytes into the main data.
fn meta(page: &mut Page<'_>, mut main: Reader<'_>, at: usize) -> Result<Change, Fault> {
    main.skip(at)?;
    let content = main.take(META_LEN)?;
    init(page, META)?;
    page.put(CONTENTS_AT, content);
    page.set_lower(CONTENTS_AT + META_LEN);
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

/// The pending list's tail: more tuples on it, or a new tail after it.
fn update_tail(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    // The relation, padding, the meta page's content.
    main.skip(16 + META_LEN)?;
    let (previous_tail, new_right_link, tuples) = (main.u32()?, main.u32()?, main.u32()? as i32);
    if tuples > 0 {
        append_tuples(page, cx.block.data)?;
        let at = page.special_offset(OPAQUE_LEN)? + MAX_OFFSET;
        page.put_u16(at, page.u16_at(at).wrapping_add(1));
        Ok(Change::Stamp)
    } else if previous_tail != NO_BLOCK {
        set_right_link(page, new_right_link)
    } else {
        Ok(Change::Nothing)
    }
}

fn insert_list_page(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let right_link = Reader::new(cx.view.main_data).u32()?;
    let opaque = init(page, LIST)?;
    page.put_u32(opaque + RIGHT_LINK, right_link);
    if right_link == NO_BLOCK {
        // The tail of a sublist, the only page that counts heap rows from the start.
        page.put_u16(opaque + FLAGS, LIST | LIST_FULLROW);
        page.put_u16(opaque + MAX_OFFSET, 1);
    }
    append_tuples(page, cx.block.data)?;
    Ok(Change::Stamp)
}
