//! B-tree records (`RM_BTREE_ID`).

mod posting;

use self::posting::IndexTuple;
use crate::fault::Fault;
use crate::itup;
use crate::page::{Page, Place, max_align};
use crate::read::Reader;
use crate::{Change, Context};

mod op {
    pub(super) const INSERT_LEAF: u8 = 0x00;
    pub(super) const INSERT_UPPER: u8 = 0x10;
    pub(super) const INSERT_META: u8 = 0x20;
    pub(super) const SPLIT_L: u8 = 0x30;
    pub(super) const SPLIT_R: u8 = 0x40;
    pub(super) const INSERT_POST: u8 = 0x50;
    pub(super) const DEDUP: u8 = 0x60;
    pub(super) const DELETE: u8 = 0x70;
    pub(super) const UNLINK_PAGE: u8 = 0x80;
    pub(super) const UNLINK_PAGE_META: u8 = 0x90;
    pub(super) const NEWROOT: u8 = 0xA0;
    pub(super) const MARK_PAGE_HALFDEAD: u8 = 0xB0;
    pub(super) const VACUUM: u8 = 0xC0;
    pub(super) const META_CLEANUP: u8 = 0xE0;
}

const LEAF: u16 = 0x0001;
const ROOT: u16 = 0x0002;
const DELETED: u16 = 0x0004;
const META: u16 = 0x0008;
const HALF_DEAD: u16 = 0x0010;
const HAS_GARBAGE: u16 = 0x0040;
const INCOMPLETE_SPLIT: u16 = 0x0080;
const HAS_FULL_XID: u16 = 0x0100;

/// `BTPageOpaqueData`: prev, next, level, flags, cycle id.
const OPAQUE_LEN: usize = 16;
const HIGH_KEY: u16 = 1;

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    // Each opcode names what its block references are for.
    match (cx.view.rm_info(), cx.block.id) {
        (op::INSERT_LEAF | op::INSERT_UPPER | op::INSERT_META, 0) => insert(cx, page),
        (op::INSERT_POST, 0) => insert_posting_split(cx, page),
        (op::INSERT_UPPER | op::INSERT_META, 1) => clear_incomplete_split(page),
        (op::INSERT_META, 2) => restore_meta(cx, page),
        (op::SPLIT_L, 0) => split_left(cx, page, true),
        (op::SPLIT_R, 0) => split_left(cx, page, false),
        (op::SPLIT_L | op::SPLIT_R, 1) => split_right(cx, page),
        (op::SPLIT_L | op::SPLIT_R, 2) => set_prev(page, block_number(cx, 1)?),
        (op::SPLIT_L | op::SPLIT_R, 3) => clear_incomplete_split(page),
        (op::DEDUP, 0) => posting::dedup(cx, page),
        (op::DELETE, 0) => delete_items(cx, page, 4),
        (op::VACUUM, 0) => {
            delete_items(cx, page, 0)?;
            let clear = crate::major::btree_vacuum_clears_cycle_id(cx.major);
            with_opaque(page, |opaque| opaque.cycle_id = if clear { 0 } else { opaque.cycle_id })
        }
        (op::MARK_PAGE_HALFDEAD, 0) => mark_half_dead(cx, page),
        (op::MARK_PAGE_HALFDEAD, 1) => mark_half_dead_parent(cx, page),
        (op::UNLINK_PAGE | op::UNLINK_PAGE_META, 0) => unlink(cx, page),
        (op::UNLINK_PAGE | op::UNLINK_PAGE_META, 1) => {
            let right = Unlink::read(cx)?.right;
            with_opaque(page, |opaque| opaque.next = right)
        }
        (op::UNLINK_PAGE | op::UNLINK_PAGE_META, 2) => set_prev(page, Unlink::read(cx)?.left),
        (op::UNLINK_PAGE | op::UNLINK_PAGE_META, 3) => {
            let record = Unlink::read(cx)?;
            half_dead_leaf(page, record.leaf_left, record.leaf_right, record.leaf_top_parent)
        }
        (op::UNLINK_PAGE_META, 4) => restore_meta(cx, page),
        (op::NEWROOT, 0) => new_root(cx, page),
        (op::NEWROOT, 1) => clear_incomplete_split(page),
        (op::NEWROOT, 2) => restore_meta(cx, page),
        (op::META_CLEANUP, 0) => restore_meta(cx, page),
        _ => Err(Fault::Unsupported),
    }
}

/// `BTPageOpaqueData`
#[derive(Clone, Copy, Default)]
struct Opaque {
    prev: u32,
    next: u32,
    level: u32,
    flags: u16,
    cycle_id: u16,
}

impl Opaque {
    fn read(page: &mut Page<'_>) -> Result<Opaque, Fault> {
        let mut data = Reader::new(page.special(OPAQUE_LEN)?);
        Ok(Opaque {
            prev: data.u32()?,
            next: data.u32()?,
            level: data.u32()?,
            flags: data.u16()?,
            cycle_id: data.u16()?,
        })
    }

    fn write(self, page: &mut Page<'_>) -> Result<(), Fault> {
        let special = page.special(OPAQUE_LEN)?;
        special[0..4].copy_from_slice(&self.prev.to_le_bytes());
        special[4..8].copy_from_slice(&self.next.to_le_bytes());
        special[8..12].copy_from_slice(&self.level.to_le_bytes());
        special[12..14].copy_from_slice(&self.flags.to_le_bytes());
        special[14..16].copy_from_slice(&self.cycle_id.to_le_bytes());
        Ok(())
    }

    fn first_data_offset(self) -> u16 {
        // The rightmost page of a level has no high key.
        if self.next == 0 { HIGH_KEY } else { HIGH_KEY + 1 }
    }
}

fn with_opaque(page: &mut Page<'_>, change: impl FnOnce(&mut Opaque)) -> Result<Change, Fault> {
    let mut opaque = Opaque::read(page)?;
    change(&mut opaque);
    opaque.write(page)?;
    Ok(Change::Stamp)
}

fn clear_incomplete_split(page: &mut Page<'_>) -> Result<Change, Fault> {
    with_opaque(page, |opaque| opaque.flags &= !INCOMPLETE_SPLIT)
}

fn set_prev(page: &mut Page<'_>, prev: u32) -> Result<Change, Fault> {
    with_opaque(page, |opaque| opaque.prev = prev)
}

fn block_number(cx: &Context<'_, '_>, id: u8) -> Result<u32, Fault> {
    Ok(cx.view.block(id).ok_or(Fault::Record("a block reference is missing"))?.blkno)
}

fn insert(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let offnum = Reader::new(cx.view.main_data).u16()?;
    page.add_item(offnum, cx.block.data, Place::Shift)?;
    Ok(Change::Stamp)
}

/// The new tuple's heap TID belongs inside of an existing posting list: the two swap TIDs, then the tuple goes after the list.
fn insert_posting_split(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let offnum = Reader::new(cx.view.main_data).u16()?;
    let mut data = Reader::new(cx.block.data);
    let split_at = data.u16()?;
    let mut new_item = IndexTuple::copy_of(data.rest())?;
    let list = page.item(offnum.checked_sub(1).ok_or(Fault::Record("no item before the first"))?)?;
    posting::swap(&mut new_item, list, split_at)?;
    page.add_item(offnum, new_item.bytes(), Place::Shift)?;
    Ok(Change::Stamp)
}

/// `_bt_restore_page`: WAL has the items in the order of the item space, that is last item first.
fn restore_items(page: &mut Page<'_>, mut data: &[u8]) -> Result<(), Fault> {
    let mut items: smallvec::SmallVec<[&[u8]; 512]> = smallvec::SmallVec::new();
    while !data.is_empty() {
        let (item, rest) = split_off_tuple(data)?;
        items.push(item);
        data = rest;
    }
    items.iter().rev().try_for_each(|item| page.append_item(item))
}

/// The first index tuple of `data`, padding included, and the rest.
fn split_off_tuple(data: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let len = max_align(itup::len(data)?);
    data.split_at_checked(len).ok_or(Fault::Record("an index tuple is cut short"))
}

fn split_right(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let level = Reader::new(cx.view.main_data).u32()?;
    page.init(OPAQUE_LEN);
    let opaque = Opaque {
        prev: block_number(cx, 0)?,
        next: cx.view.block(2).map_or(0, |block| block.blkno),
        level,
        flags: if level == 0 { LEAF } else { 0 },
        cycle_id: 0,
    };
    opaque.write(page)?;
    restore_items(page, cx.block.data)?;
    Ok(Change::Stamp)
}

fn split_left(cx: &Context<'_, '_>, page: &mut Page<'_>, new_item_on_left: bool) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (level, first_right, new_offnum, posting_at) = (main.u32()?, main.u16()?, main.u16()?, main.u16()?);
    let right = block_number(cx, 1)?;
    let mut opaque = Opaque::read(page)?;
    let mut data = cx.block.data;
    let mut new_item = None;
    let mut replaced_offnum = 0;
    if new_item_on_left || posting_at != 0 {
        let (item, rest) = split_off_tuple(data)?;
        data = rest;
        let mut item = IndexTuple::copy_of(item)?;
        if posting_at != 0 {
            replaced_offnum = new_offnum.checked_sub(1).ok_or(Fault::Record("no item before the first"))?;
            // In place on the old page: it is the list's new form that is copied below.
            posting::swap(&mut item, page.item(replaced_offnum)?, posting_at)?;
        }
        new_item = Some(item);
    }
    let (high_key, rest) = split_off_tuple(data)?;
    if !rest.is_empty() {
        return Err(Fault::Record("more data than a new item and a high key"));
    }
    let mut old = *page.bytes;
    let mut old = Page::new(&mut old);
    page.init(OPAQUE_LEN);
    page.append_item(high_key)?;
    let new_on_left = new_item.as_ref().filter(|_| new_item_on_left);
    for offnum in opaque.first_data_offset()..first_right {
        if let Some(item) = new_on_left.filter(|_| offnum == new_offnum && offnum != replaced_offnum) {
            page.append_item(item.bytes())?;
        }
        page.append_item(old.item(offnum)?)?;
    }
    if let Some(item) = new_on_left.filter(|_| first_right == new_offnum) {
        page.append_item(item.bytes())?;
    }
    opaque.flags = INCOMPLETE_SPLIT | if level == 0 { LEAF } else { 0 };
    opaque.next = right;
    opaque.cycle_id = 0;
    opaque.write(page)?;
    Ok(Change::Stamp)
}

/// `xl_btree_vacuum`, and `xl_btree_delete` with a transaction id (`skip` bytes) before it.
fn delete_items(cx: &Context<'_, '_>, page: &mut Page<'_>, skip: usize) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    main.skip(skip)?;
    let (deleted, updated) = (usize::from(main.u16()?), usize::from(main.u16()?));
    let mut data = Reader::new(cx.block.data);
    let (deleted, updated) = (data.u16s(deleted)?, data.u16s(updated)?);
    for offnum in updated.iter() {
        let count = data.u16()?;
        let gone = data.u16s(usize::from(count))?;
        posting::remove(page, offnum, gone)?;
    }
    if deleted.len() > 0 {
        page.index_multi_delete(deleted.iter())?;
    }
    with_opaque(page, |opaque| opaque.flags &= !HAS_GARBAGE)
}

fn mark_half_dead(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    main.skip(8)?;
    let (left, right, top_parent) = (main.u32()?, main.u32()?, main.u32()?);
    half_dead_leaf(page, left, right, top_parent)
}

/// A half-dead leaf: empty but for a high key that points to the top of the subtree that is going away.
fn half_dead_leaf(page: &mut Page<'_>, left: u32, right: u32, top_parent: u32) -> Result<Change, Fault> {
    page.init(OPAQUE_LEN);
    Opaque { prev: left, next: right, level: 0, flags: HALF_DEAD | LEAF, cycle_id: 0 }.write(page)?;
    page.append_item(&posting::pivot_without_keys(top_parent))?;
    Ok(Change::Stamp)
}

/// The parent's downlink to the page takes over the right sibling's, whose own item goes.
fn mark_half_dead_parent(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let offnum = Reader::new(cx.view.main_data).u16()?;
    let next = offnum.checked_add(1).ok_or(Fault::Record("an offset number is too large"))?;
    let too_short = Fault::Page("an index tuple is cut short");
    let downlink: [u8; 4] = page.item(next)?.first_chunk().copied().ok_or(too_short)?;
    page.item(offnum)?.get_mut(..4).ok_or(too_short)?.copy_from_slice(&downlink);
    page.index_delete(next)?;
    Ok(Change::Stamp)
}

/// `xl_btree_unlink_page`
struct Unlink {
    left: u32,
    right: u32,
    level: u32,
    safe_xid: u64,
    leaf_left: u32,
    leaf_right: u32,
    leaf_top_parent: u32,
}

impl Unlink {
    fn read(cx: &Context<'_, '_>) -> Result<Unlink, Fault> {
        let mut main = Reader::new(cx.view.main_data);
        let (left, right, level) = (main.u32()?, main.u32()?, main.u32()?);
        main.align(8)?;
        Ok(Unlink {
            left,
            right,
            level,
            safe_xid: main.u64()?,
            leaf_left: main.u32()?,
            leaf_right: main.u32()?,
            leaf_top_parent: main.u32()?,
        })
    }
}

fn unlink(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let record = Unlink::read(cx)?;
    page.init(OPAQUE_LEN);
    let leaf = if record.level == 0 { LEAF } else { 0 };
    let flags = DELETED | HAS_FULL_XID | leaf;
    Opaque { prev: record.left, next: record.right, level: record.level, flags, cycle_id: 0 }.write(page)?;
    // BTDeletedPageData stands where line pointers would.
    page.put(24, &record.safe_xid.to_le_bytes());
    page.set_lower(24 + 8);
    Ok(Change::Stamp)
}

fn new_root(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    main.skip(4)?;
    let level = main.u32()?;
    page.init(OPAQUE_LEN);
    let flags = ROOT | if level == 0 { LEAF } else { 0 };
    Opaque { level, flags, ..Opaque::default() }.write(page)?;
    if level > 0 {
        restore_items(page, cx.block.data)?;
    }
    Ok(Change::Stamp)
}

/// `BTMetaPageData` at the start of the page's contents.
fn restore_meta(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    const MAGIC: u32 = 0x05_3162;
    const META_AT: usize = 24;
    const META_LEN: usize = 48;
    let mut data = Reader::new(cx.block.data);
    page.init(OPAQUE_LEN);
    page.put_u32(META_AT, MAGIC);
    // Version, root, level, fast root, fast level, pages deleted by the last cleanup.
    page.put(META_AT + 4, data.take(24)?);
    page.put(META_AT + 32, &(-1.0f64).to_le_bytes());
    page.put(META_AT + 40, &[data.u8()?]);
    page.set_lower(META_AT + META_LEN);
    Opaque { flags: META, ..Opaque::default() }.write(page)?;
    Ok(Change::Stamp)
}
