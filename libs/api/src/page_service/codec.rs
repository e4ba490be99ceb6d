//! Message tags, and the fields that several messages share.

use bytes::{BufMut, BytesMut};

use ardent_types::{BlockNumber, ForkNumber, RelTag, Term};

use super::{BlockRange, KeptAt};
use crate::frame::{DecodeError, Fields, take_lsn};

pub(super) const HELLO: u8 = 0x01;
pub(super) const GET_PAGES: u8 = 0x02;
pub(super) const GET_REL_SIZE: u8 = 0x03;
pub(super) const GET_BASE_BACKUP: u8 = 0x04;
pub(super) const GET_CHANGED: u8 = 0x05;
pub(super) const WAIT_LSN: u8 = 0x06;
pub(super) const MANAGE: u8 = 0x07;
pub(super) const IMPORT_FILE: u8 = 0x08;
pub(super) const IMPORT_DATA: u8 = 0x09;
pub(super) const KEEP_PART: u8 = 0x0A;
pub(super) const GET_KEPT_PART: u8 = 0x0B;
pub(super) const REPLY: u8 = 0x80;
pub(super) const ERROR: u8 = 0xFF;
/// Stands for "does not exist" in size fields.
pub(super) const NO_BLOCKS: u32 = u32::MAX;

pub(super) fn put_kept_at(out: &mut BytesMut, at: KeptAt) {
    out.put_u64_le(at.lsn.get());
    out.put_u64_le(at.term.get());
}

pub(super) fn take_kept_at(fields: &mut Fields) -> Result<KeptAt, DecodeError> {
    Ok(KeptAt { lsn: take_lsn(fields)?, term: Term::new(fields.u64()?) })
}

pub(super) fn put_rel(out: &mut BytesMut, rel: &RelTag) {
    out.put_u32_le(rel.spcnode);
    out.put_u32_le(rel.dbnode);
    out.put_u32_le(rel.relnode);
    out.put_u8(rel.fork as u8);
}

pub(super) fn take_rel(fields: &mut Fields) -> Result<RelTag, DecodeError> {
    let (spcnode, dbnode, relnode) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let fork = ForkNumber::from_raw(fields.u8()?).ok_or_else(|| fields.bad("fork"))?;
    Ok(RelTag { spcnode, dbnode, relnode, fork })
}

pub(super) fn put_ranges(out: &mut BytesMut, ranges: &[BlockRange]) {
    out.put_u32_le(u32::try_from(ranges.len()).expect("ranges fit a frame"));
    for range in ranges {
        out.put_u32_le(range.start);
        out.put_u32_le(range.count);
    }
}

pub(super) fn take_ranges(fields: &mut Fields) -> Result<Vec<BlockRange>, DecodeError> {
    let count = fields.u32()? as usize;
    if count > fields.remaining() / 8 {
        return Err(fields.bad("number of ranges"));
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let range = BlockRange { start: fields.u32()?, count: fields.u32()? };
        if range.count == 0 || range.start.checked_add(range.count).is_none() {
            return Err(fields.bad("range"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

pub(super) fn size_or_none(raw: u32) -> Option<BlockNumber> {
    (raw != NO_BLOCKS).then_some(raw)
}
