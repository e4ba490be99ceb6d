//! The hash index's meta page.

use crate::fault::Fault;
use crate::hash::{CONTENTS_AT, META, NO_BLOCK, NO_BUCKET, OPAQUE_LEN, SplitAllocate};
use crate::page::Page;
use crate::read::Reader;
use crate::{Change, Context};

// Offsets in HashMetaPageData, from the page's start.
const MAGIC: usize = CONTENTS_AT;
const VERSION: usize = CONTENTS_AT + 4;
const TUPLES: usize = CONTENTS_AT + 8;
const FILL_FACTOR: usize = CONTENTS_AT + 16;
const BITMAP_SIZE_MAX: usize = CONTENTS_AT + 18;
const BITMAP_SIZE: usize = CONTENTS_AT + 20;
const BITMAP_SHIFT: usize = CONTENTS_AT + 22;
const MAX_BUCKET: usize = CONTENTS_AT + 24;
const HIGH_MASK: usize = CONTENTS_AT + 28;
const LOW_MASK: usize = CONTENTS_AT + 32;
const OVERFLOW_POINT: usize = CONTENTS_AT + 36;
const FIRST_FREE: usize = CONTENTS_AT + 40;
const MAPS: usize = CONTENTS_AT + 44;
const PROC_ID: usize = CONTENTS_AT + 48;
const SPARES: usize = CONTENTS_AT + 52;
const MAP_BLOCKS: usize = SPARES + SPLIT_POINTS as usize * 4;
const META_LEN: usize = 4544;

/// `HASH_MAX_SPLITPOINTS`
const SPLIT_POINTS: u32 = 98;
/// `HASH_MAX_BITMAPS`
const MAPS_MAX: u32 = 1024;
const SINGLE_PHASE_GROUPS: u32 = 10;
const PHASE_BITS: u32 = 2;
const PHASE_MASK: u32 = 3;

const UPDATE_MASKS: u8 = 0x01;
const UPDATE_SPLIT_POINT: u8 = 0x02;

/// Where `hashm_spares` has the entry of a split point.
fn spare(split_point: u32) -> Result<usize, Fault> {
    if split_point < SPLIT_POINTS {
        Ok(SPARES + split_point as usize * 4)
    } else {
        Err(Fault::Page("there is no such split point"))
    }
}

fn increment(page: &mut Page<'_>, at: usize) {
    page.put_u32(at, page.u32_at(at).wrapping_add(1));
}

fn add_map(page: &mut Page<'_>, block: u32) -> Result<(), Fault> {
    let maps = page.u32_at(MAPS);
    if maps >= MAPS_MAX {
        return Err(Fault::Page("more bitmaps than there can be"));
    }
    page.put_u32(MAP_BLOCKS + maps as usize * 4, block);
    page.put_u32(MAPS, maps + 1);
    Ok(())
}

/// `_hash_spareindex`
fn spare_index(buckets: u32) -> u32 {
    let group = if buckets < 2 { 0 } else { 32 - (buckets - 1).leading_zeros() };
    if group < SINGLE_PHASE_GROUPS {
        return group;
    }
    let within = (buckets - 1) >> (group - (PHASE_BITS + 1)) & PHASE_MASK;
    SINGLE_PHASE_GROUPS + ((group - SINGLE_PHASE_GROUPS) << PHASE_BITS) + within
}

/// `_hash_get_totalbuckets`
fn total_buckets(phase: u32) -> u32 {
    if phase < SINGLE_PHASE_GROUPS {
        return 1 << phase;
    }
    let group = SINGLE_PHASE_GROUPS + ((phase - SINGLE_PHASE_GROUPS) >> PHASE_BITS);
    let before = 1 << (group - 1);
    before + (before >> PHASE_BITS) * (((phase - SINGLE_PHASE_GROUPS) & PHASE_MASK) + 1)
}

/// `_hash_init_metabuffer`
pub(super) fn init(main: &mut Reader<'_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    const MAGIC_VALUE: u32 = 0x0644_0640;
    const VERSION_VALUE: u32 = 4;
    const LARGEST: u32 = 0x4000_0000;
    /// `HashGetMaxBitmapSize`, and the largest power of two in it.
    const BITMAP_LEN_MAX: u16 = (8192 - CONTENTS_AT - OPAQUE_LEN) as u16;
    const BITMAP_LEN: u16 = 4096;
    let (tuples, proc_id, fill_factor) = (f64::from_bits(main.u64()?), main.u32()?, main.u16()?);
    let wanted = tuples / f64::from(fill_factor);
    let buckets = if wanted <= 2.0 {
        2
    } else if wanted >= f64::from(LARGEST) {
        LARGEST
    } else {
        total_buckets(spare_index(wanted as u32))
    };
    let split_point = spare_index(buckets);
    let spare_at = spare(split_point)?;
    super::init(page, NO_BLOCK, NO_BUCKET, META)?;
    page.put_u32(MAGIC, MAGIC_VALUE);
    page.put_u32(VERSION, VERSION_VALUE);
    page.put_u16(FILL_FACTOR, fill_factor);
    page.put_u16(BITMAP_SIZE_MAX, BITMAP_LEN_MAX);
    page.put_u16(BITMAP_SIZE, BITMAP_LEN);
    page.put_u16(BITMAP_SHIFT, BITMAP_LEN.trailing_zeros() as u16 + 3);
    page.put_u32(PROC_ID, proc_id);
    page.put_u32(MAX_BUCKET, buckets - 1);
    let high_mask = (buckets + 1).next_power_of_two() - 1;
    page.put_u32(HIGH_MASK, high_mask);
    page.put_u32(LOW_MASK, high_mask >> 1);
    page.put_u32(spare_at, 1);
    page.put_u32(OVERFLOW_POINT, split_point);
    page.set_lower(CONTENTS_AT + META_LEN);
    Ok(Change::Stamp)
}

/// The first bitmap page comes after the buckets that an index starts with.
pub(super) fn add_first_bitmap(page: &mut Page<'_>) -> Result<Change, Fault> {
    let buckets = page.u32_at(MAX_BUCKET).wrapping_add(1);
    add_map(page, buckets.wrapping_add(1))?;
    Ok(Change::Stamp)
}

pub(super) fn change_tuples(page: &mut Page<'_>, change: impl FnOnce(f64) -> f64) -> Result<Change, Fault> {
    let tuples = f64::from_bits(u64::from(page.u32_at(TUPLES)) | u64::from(page.u32_at(TUPLES + 4)) << 32);
    page.put(TUPLES, &change(tuples).to_le_bytes());
    Ok(Change::Stamp)
}

pub(super) fn set_first_free(page: &mut Page<'_>, bit: u32) -> Result<Change, Fault> {
    page.put_u32(FIRST_FREE, bit);
    Ok(Change::Stamp)
}

pub(super) fn add_overflow_page(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    main.skip(2)?;
    let reused = main.u8()? != 0;
    set_first_free(page, Reader::new(cx.block.data).u32()?)?;
    if !reused {
        let spare_at = spare(page.u32_at(OVERFLOW_POINT))?;
        increment(page, spare_at);
        if let Some(map) = cx.view.block(3) {
            add_map(page, map.blkno)?;
            increment(page, spare_at);
        }
    }
    Ok(Change::Stamp)
}

pub(super) fn split_allocate(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let record = SplitAllocate::read(cx)?;
    let mut data = Reader::new(cx.block.data);
    page.put_u32(MAX_BUCKET, record.new_bucket);
    if record.flags & UPDATE_MASKS != 0 {
        page.put_u32(LOW_MASK, data.u32()?);
        page.put_u32(HIGH_MASK, data.u32()?);
    }
    if record.flags & UPDATE_SPLIT_POINT != 0 {
        let (split_point, pages) = (data.u32()?, data.u32()?);
        page.put_u32(spare(split_point)?, pages);
        page.put_u32(OVERFLOW_POINT, split_point);
    }
    Ok(Change::Stamp)
}
