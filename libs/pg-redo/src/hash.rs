//! Hash index records (`RM_HASH_ID`): bucket, overflow and bitmap pages. The meta page is in [`meta`].

mod meta;

use crate::fault::Fault;
use crate::itup;
use crate::page::{Page, Place, max_align};
use crate::read::Reader;
use crate::{Change, Context};

mod op {
    pub(super) const INIT_META_PAGE: u8 = 0x00;
    pub(super) const INIT_BITMAP_PAGE: u8 = 0x10;
    pub(super) const INSERT: u8 = 0x20;
    pub(super) const ADD_OVFL_PAGE: u8 = 0x30;
    pub(super) const SPLIT_ALLOCATE_PAGE: u8 = 0x40;
    pub(super) const SPLIT_PAGE: u8 = 0x50;
    pub(super) const SPLIT_COMPLETE: u8 = 0x60;
    pub(super) const MOVE_PAGE_CONTENTS: u8 = 0x70;
    pub(super) const SQUEEZE_PAGE: u8 = 0x80;
    pub(super) const DELETE: u8 = 0x90;
    pub(super) const SPLIT_CLEANUP: u8 = 0xA0;
    pub(super) const UPDATE_META_PAGE: u8 = 0xB0;
    pub(super) const VACUUM_ONE_PAGE: u8 = 0xC0;
}

const UNUSED: u16 = 0x00;
const OVERFLOW: u16 = 0x01;
const BITMAP: u16 = 0x04;
const META: u16 = 0x08;
const NEEDS_SPLIT_CLEANUP: u16 = 0x40;
const HAS_DEAD_TUPLES: u16 = 0x80;

/// `HashPageOpaqueData`: previous block (4), next block (4), bucket (4), flags (2), page id (2).
const OPAQUE_LEN: usize = 16;
const PREVIOUS: usize = 0;
const NEXT: usize = 4;
const BUCKET: usize = 8;
const FLAGS: usize = 12;
const PAGE_ID: usize = 14;
const PAGE_ID_VALUE: u16 = 0xFF80;

const NO_BLOCK: u32 = u32::MAX;
const NO_BUCKET: u32 = u32::MAX;
const CONTENTS_AT: usize = 24;

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    match (cx.view.rm_info(), cx.block.id) {
        (op::INIT_META_PAGE, 0) => meta::init(&mut main, page),
        (op::INIT_BITMAP_PAGE, 0) => init_bitmap(page, main.u16()?),
        (op::INIT_BITMAP_PAGE, 1) => meta::add_first_bitmap(page),
        (op::INSERT, 0) => {
            page.add_item(main.u16()?, cx.block.data, Place::Shift)?;
            Ok(Change::Stamp)
        }
        (op::INSERT, 1) => meta::change_tuples(page, |tuples| tuples + 1.0),
        (op::ADD_OVFL_PAGE, 0) => add_overflow_page(cx, page),
        (op::ADD_OVFL_PAGE, 1) => set(page, NEXT, block_number(cx, 0)?),
        (op::ADD_OVFL_PAGE, 2) => set_bit(cx, page, true),
        (op::ADD_OVFL_PAGE, 3) => init_bitmap(page, main.u16()?),
        (op::ADD_OVFL_PAGE, 4) => meta::add_overflow_page(cx, page),
        (op::SPLIT_ALLOCATE_PAGE, 0) => allocate_old(cx, page),
        (op::SPLIT_ALLOCATE_PAGE, 1) => allocate_new(cx, page),
        (op::SPLIT_ALLOCATE_PAGE, 2) => meta::split_allocate(cx, page),
        (op::SPLIT_PAGE, 0) => Err(Fault::Record("the full-page image is missing")),
        (op::SPLIT_COMPLETE, 0..=1) => split_complete(cx, page),
        // The primary bucket page is referenced for its lock only.
        (op::MOVE_PAGE_CONTENTS | op::SQUEEZE_PAGE | op::DELETE, 0) => Ok(Change::Nothing),
        (op::MOVE_PAGE_CONTENTS, 1) => {
            let count = main.u16()?;
            add_tuples(cx, page, count)
        }
        (op::MOVE_PAGE_CONTENTS, 2) => delete_items(cx, page),
        (op::SQUEEZE_PAGE, 1) => {
            let record = Squeeze::read(cx)?;
            let untouched = record.tuples == 0 && !record.previous_is_write_page;
            if untouched && crate::major::hash_squeeze_leaves_untouched_page(cx.major) {
                return Ok(Change::Nothing);
            }
            add_tuples(cx, page, record.tuples)?;
            if record.previous_is_write_page {
                set(page, NEXT, record.next)?;
            }
            Ok(Change::Stamp)
        }
        (op::SQUEEZE_PAGE, 2) => init(page, NO_BLOCK, NO_BUCKET, UNUSED),
        (op::SQUEEZE_PAGE, 3) => set(page, NEXT, Squeeze::read(cx)?.next),
        (op::SQUEEZE_PAGE, 4) => set(page, PREVIOUS, Squeeze::read(cx)?.previous),
        (op::SQUEEZE_PAGE, 5) => set_bit(cx, page, false),
        (op::SQUEEZE_PAGE, 6) => meta::set_first_free(page, Reader::new(cx.block.data).u32()?),
        (op::DELETE, 1) => {
            delete_items(cx, page)?;
            let clear = if main.u8()? != 0 { HAS_DEAD_TUPLES } else { 0 };
            clear_flags(page, clear)
        }
        (op::SPLIT_CLEANUP, 0) => clear_flags(page, NEEDS_SPLIT_CLEANUP),
        (op::UPDATE_META_PAGE, 0) => {
            let tuples = f64::from_bits(main.u64()?);
            meta::change_tuples(page, |_| tuples)
        }
        (op::VACUUM_ONE_PAGE, 0) => {
            let (_, offnums) = crate::major::hash_vacuum_offsets(cx.major, &mut main)?;
            if offnums.len() > 0 {
                page.index_multi_delete(offnums.iter())?;
            }
            clear_flags(page, HAS_DEAD_TUPLES)
        }
        (op::VACUUM_ONE_PAGE, 1) => {
            let (count, _) = crate::major::hash_vacuum_offsets(cx.major, &mut main)?;
            meta::change_tuples(page, |tuples| tuples - f64::from(count))
        }
        _ => Err(Fault::Unsupported),
    }
}

/// The primary pages of a bucket split have their flags set even after their images were restored: the images are from
/// before that.
pub(crate) fn redo_after_image(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    match (cx.view.rm_info(), cx.block.id) {
        (op::SPLIT_ALLOCATE_PAGE, 0) => allocate_old(cx, page),
        (op::SPLIT_COMPLETE, 0..=1) => split_complete(cx, page),
        _ => Ok(Change::Nothing),
    }
}

fn block_number(cx: &Context<'_, '_>, id: u8) -> Result<u32, Fault> {
    Ok(cx.view.block(id).ok_or(Fault::Record("a block reference is missing"))?.blkno)
}

fn init(page: &mut Page<'_>, previous: u32, bucket: u32, flags: u16) -> Result<Change, Fault> {
    page.init(OPAQUE_LEN);
    let opaque = page.special_offset(OPAQUE_LEN)?;
    page.put_u32(opaque + PREVIOUS, previous);
    page.put_u32(opaque + NEXT, NO_BLOCK);
    page.put_u32(opaque + BUCKET, bucket);
    page.put_u16(opaque + FLAGS, flags);
    page.put_u16(opaque + PAGE_ID, PAGE_ID_VALUE);
    Ok(Change::Stamp)
}

fn set(page: &mut Page<'_>, field: usize, value: u32) -> Result<Change, Fault> {
    let opaque = page.special_offset(OPAQUE_LEN)?;
    page.put_u32(opaque + field, value);
    Ok(Change::Stamp)
}

fn set_flags(page: &mut Page<'_>, flags: u16) -> Result<Change, Fault> {
    let opaque = page.special_offset(OPAQUE_LEN)?;
    page.put_u16(opaque + FLAGS, flags);
    Ok(Change::Stamp)
}

fn clear_flags(page: &mut Page<'_>, clear: u16) -> Result<Change, Fault> {
    let flags_at = page.special_offset(OPAQUE_LEN)? + FLAGS;
    set_flags(page, page.u16_at(flags_at) & !clear)
}

fn init_bitmap(page: &mut Page<'_>, len: u16) -> Result<Change, Fault> {
    init(page, NO_BLOCK, NO_BUCKET, BITMAP)?;
    let end = CONTENTS_AT + usize::from(len);
    if end > page.upper() {
        return Err(Fault::Record("a bitmap is longer than a page"));
    }
    page.bytes[CONTENTS_AT..end].fill(0xFF);
    page.set_lower(end);
    Ok(Change::Stamp)
}

/// Marks an overflow page as used or free. Bits are numbered within little-endian words, so also within bytes.
fn set_bit(cx: &Context<'_, '_>, page: &mut Page<'_>, used: bool) -> Result<Change, Fault> {
    let bit = Reader::new(cx.block.data).u32()?;
    let special = page.special_offset(OPAQUE_LEN)?;
    let at = CONTENTS_AT + (bit / 8) as usize;
    if at >= special {
        return Err(Fault::Record("a bit outside of the bitmap"));
    }
    let mask = 1 << (bit % 8);
    page.bytes[at] = if used { page.bytes[at] | mask } else { page.bytes[at] & !mask };
    Ok(Change::Stamp)
}

fn add_overflow_page(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let bucket = Reader::new(cx.block.data).u32()?;
    init(page, block_number(cx, 1)?, bucket, OVERFLOW)
}

/// `xl_hash_split_allocate_page`
struct SplitAllocate {
    new_bucket: u32,
    old_flags: u16,
    new_flags: u16,
    flags: u8,
}

impl SplitAllocate {
    fn read(cx: &Context<'_, '_>) -> Result<SplitAllocate, Fault> {
        let mut main = Reader::new(cx.view.main_data);
        Ok(SplitAllocate { new_bucket: main.u32()?, old_flags: main.u16()?, new_flags: main.u16()?, flags: main.u8()? })
    }
}

fn allocate_old(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let record = SplitAllocate::read(cx)?;
    set_flags(page, record.old_flags)?;
    // A primary bucket page keeps in this field the number of buckets as of its last split.
    set(page, PREVIOUS, record.new_bucket)
}

fn allocate_new(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let record = SplitAllocate::read(cx)?;
    init(page, record.new_bucket, record.new_bucket, record.new_flags)
}

/// `xl_hash_split_complete`: the old bucket's flags, the new one's, in the order of the blocks.
fn split_complete(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    main.skip(usize::from(cx.block.id) * 2)?;
    set_flags(page, main.u16()?)
}

/// `xl_hash_squeeze_page`
struct Squeeze {
    previous: u32,
    next: u32,
    tuples: u16,
    previous_is_write_page: bool,
}

impl Squeeze {
    fn read(cx: &Context<'_, '_>) -> Result<Squeeze, Fault> {
        let mut main = Reader::new(cx.view.main_data);
        let (previous, next, tuples) = (main.u32()?, main.u32()?, main.u16()?);
        main.skip(1)?;
        Ok(Squeeze { previous, next, tuples, previous_is_write_page: main.u8()? != 0 })
    }
}

/// Tuples with the offset numbers that they go to.
fn add_tuples(cx: &Context<'_, '_>, page: &mut Page<'_>, count: u16) -> Result<Change, Fault> {
    let mut data = Reader::new(cx.block.data);
    let offnums = data.u16s(usize::from(count))?;
    for offnum in offnums.iter() {
        let len = max_align(itup::len(data.clone().rest())?);
        page.add_item(offnum, data.take(len)?, Place::Shift)?;
    }
    Ok(Change::Stamp)
}

fn delete_items(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let offnums = Reader::new(cx.block.data).u16s(cx.block.data.len() / 2)?;
    if offnums.len() > 0 {
        page.index_multi_delete(offnums.iter())?;
    }
    Ok(Change::Stamp)
}
