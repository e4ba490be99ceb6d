//! BRIN records (`RM_BRIN_ID`).

use crate::fault::Fault;
use crate::itup;
use crate::page::{Page, Place};
use crate::read::Reader;
use crate::{Change, Context};

mod op {
    pub(super) const MASK: u8 = 0x70;
    pub(super) const INIT_PAGE: u8 = 0x80;
    pub(super) const CREATE_INDEX: u8 = 0x00;
    pub(super) const INSERT: u8 = 0x10;
    pub(super) const UPDATE: u8 = 0x20;
    pub(super) const SAMEPAGE_UPDATE: u8 = 0x30;
    pub(super) const REVMAP_EXTEND: u8 = 0x40;
    pub(super) const DESUMMARIZE: u8 = 0x50;
}

const META: u16 = 0xF091;
const REVMAP: u16 = 0xF092;
const REGULAR: u16 = 0xF093;
/// The special space is four words; the last is the page's type.
const SPECIAL_LEN: usize = 8;
const TYPE: usize = 6;

const CONTENTS_AT: usize = 24;
const META_MAGIC: u32 = 0xA810_9CFA;
/// `BrinMetaPageData`: magic, version, pages per range, last revmap page.
const META_LEN: usize = 16;
const TID_LEN: usize = 6;
/// `REVMAP_PAGE_MAXITEMS`
const REVMAP_ITEMS: u32 = ((8192 - CONTENTS_AT - SPECIAL_LEN) / TID_LEN) as u32;

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    match (cx.view.info & op::MASK, cx.block.id) {
        (op::CREATE_INDEX, 0) => create_index(&mut main, page),
        (op::INSERT, 0..=1) => insert(cx, Insert::read(&mut main)?, page),
        (op::UPDATE, 0..=1) => {
            main.skip(4)?;
            insert(cx, Insert::read(&mut main)?, page)
        }
        (op::UPDATE, 2) => {
            page.index_delete_no_compact(main.u16()?)?;
            Ok(Change::Stamp)
        }
        (op::SAMEPAGE_UPDATE, 0) => {
            page.index_overwrite(main.u16()?, cx.block.data)?;
            Ok(Change::Stamp)
        }
        (op::REVMAP_EXTEND, 0) => {
            page.put_u32(CONTENTS_AT + 12, main.u32()?);
            page.set_lower(CONTENTS_AT + META_LEN);
            Ok(Change::Stamp)
        }
        (op::REVMAP_EXTEND, 1) => init(page, REVMAP),
        (op::DESUMMARIZE, 0) => {
            let (per_range, heap_block) = (main.u32()?, main.u32()?);
            set_revmap(page, per_range, heap_block, itup::INVALID_TID)
        }
        (op::DESUMMARIZE, 1) => {
            main.skip(8)?;
            page.index_delete_no_compact(main.u16()?)?;
            Ok(Change::Stamp)
        }
        _ => Err(Fault::Unsupported),
    }
}

fn init(page: &mut Page<'_>, kind: u16) -> Result<Change, Fault> {
    page.init(SPECIAL_LEN);
    let special = page.special_offset(SPECIAL_LEN)?;
    page.put_u16(special + TYPE, kind);
    Ok(Change::Stamp)
}

fn create_index(main: &mut Reader<'_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let (per_range, version) = (main.u32()?, main.u16()?);
    init(page, META)?;
    page.put_u32(CONTENTS_AT, META_MAGIC);
    page.put_u32(CONTENTS_AT + 4, u32::from(version));
    page.put_u32(CONTENTS_AT + 8, per_range);
    page.set_lower(CONTENTS_AT + META_LEN);
    Ok(Change::Stamp)
}

/// `xl_brin_insert`
struct Insert {
    heap_block: u32,
    per_range: u32,
    offnum: u16,
}

impl Insert {
    fn read(main: &mut Reader<'_>) -> Result<Insert, Fault> {
        Ok(Insert { heap_block: main.u32()?, per_range: main.u32()?, offnum: main.u16()? })
    }
}

/// Block 0 gets the tuple, block 1 is the revmap page that points to it.
fn insert(cx: &Context<'_, '_>, record: Insert, page: &mut Page<'_>) -> Result<Change, Fault> {
    if cx.block.id == 1 {
        let regular = cx.view.block(0).ok_or(Fault::Record("block 0 is missing"))?.blkno;
        return set_revmap(page, record.per_range, record.heap_block, itup::tid(regular, record.offnum));
    }
    if cx.view.info & op::INIT_PAGE != 0 {
        init(page, REGULAR)?;
    }
    page.add_item(record.offnum, cx.block.data, Place::Overwrite)?;
    Ok(Change::Stamp)
}

fn set_revmap(page: &mut Page<'_>, per_range: u32, heap_block: u32, tid: [u8; TID_LEN]) -> Result<Change, Fault> {
    let range = heap_block.checked_div(per_range).ok_or(Fault::Record("a range of no pages"))?;
    page.put(CONTENTS_AT + (range % REVMAP_ITEMS) as usize * TID_LEN, &tid);
    Ok(Change::Stamp)
}
