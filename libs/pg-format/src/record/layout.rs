//! Decoding a record's bytes. The layout is described in `docs/formats/postgres-wal.md`.

use ardent_types::{BLCKSZ, ForkNumber, Lsn, RelTag};

use super::{
    BLOCK_ID_MAX, BkpImage, DecodedBlock, DecodedRecord, ImageCompression, Part, RECORD_HEADER_LEN, RecordHeader,
};
use crate::bytes_at::{u16_at, u32_at, u64_at};
use crate::major::PgMajor;

const ID_DATA_SHORT: u8 = 255;
const ID_DATA_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
const ID_TOPLEVEL_XID: u8 = 252;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_REL: u8 = 0x80;

/// A record whose CRC is right, or that comes from storage, does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the WAL record at {lsn} (resource manager {rmid}) can't be decoded: {problem}")]
pub struct RecordDecodeError {
    /// Where the record starts.
    pub lsn: Lsn,
    /// Its resource manager.
    pub rmid: u8,
    /// What is wrong.
    pub problem: RecordProblem,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordProblem {
    /// The bytes end inside a header, or lengths don't add up.
    #[error("its lengths don't add up to its {0} bytes")]
    Lengths(usize),
    /// Ids of block references must ascend.
    #[error("block id {0} is out of order")]
    BlockOrder(u8),
    /// Not a block id, nor one of the special ids.
    #[error("{0} is no block id")]
    BlockId(u8),
    /// Not a fork.
    #[error("block {id} names fork {fork}, which does not exist")]
    Fork {
        /// Block id.
        id: u8,
        /// Fork number.
        fork: u8,
    },
    /// `BKPBLOCK_HAS_DATA` and the data length contradict each other.
    #[error("block {0}'s data flag contradicts its data length")]
    DataFlag(u8),
    /// `BKPBLOCK_SAME_REL` on the first reference.
    #[error("block {0} refers to the relation before it, and there is none")]
    NoRelationBefore(u8),
    /// Hole, length and compression of an image contradict each other.
    #[error(
        "block {id}'s image is impossible: {length} bytes, flags {info:#04x}, hole of {hole_length} at {hole_offset}"
    )]
    Image {
        /// Block id.
        id: u8,
        /// `bimg_info`
        info: u8,
        /// Stored length.
        length: u16,
        /// Hole start.
        hole_offset: u16,
        /// Hole length.
        hole_length: u16,
    },
}

/// Reads header bytes from front to back.
struct Headers<'a> {
    raw: &'a [u8],
    at: usize,
}

impl Headers<'_> {
    /// Moves past `length` bytes and gives their offset.
    #[inline(always)]
    fn take(&mut self, length: usize) -> Result<usize, RecordProblem> {
        let at = self.at;
        if self.raw.len() - at < length {
            return Err(RecordProblem::Lengths(self.raw.len()));
        }
        self.at = at + length;
        Ok(at)
    }

    #[inline(always)]
    fn u8(&mut self) -> Result<u8, RecordProblem> {
        self.take(1).map(|at| self.raw[at])
    }

    #[inline(always)]
    fn u16(&mut self) -> Result<u16, RecordProblem> {
        self.take(2).map(|at| u16_at(self.raw, at))
    }

    #[inline(always)]
    fn u32(&mut self) -> Result<u32, RecordProblem> {
        self.take(4).map(|at| u32_at(self.raw, at))
    }
}

impl RecordHeader {
    /// Reads the fixed header; `None` if there are not 24 bytes.
    #[inline]
    pub fn read(raw: &[u8]) -> Option<RecordHeader> {
        (raw.len() >= RECORD_HEADER_LEN).then(|| RecordHeader {
            tot_len: u32_at(raw, 0),
            xid: u32_at(raw, 4),
            prev: Lsn::new(u64_at(raw, 8)),
            info: raw[16],
            rmid: raw[17],
            crc: u32_at(raw, 20),
        })
    }
}

/// Where the parts of a record lie in its bytes. A decoder has one and fills it anew for each record.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecordLayout {
    start_lsn: Lsn,
    end_lsn: Lsn,
    header: RecordHeader,
    blocks: Vec<DecodedBlock>,
    main_data_at: usize,
    origin: Option<u16>,
    toplevel_xid: Option<u32>,
}

impl RecordLayout {
    /// Takes the record in `raw` apart. The CRC is not looked at: the WAL decoder has checked it, and bytes from storage have a checksum
    /// of their own.
    ///
    /// Errors if lengths, ids or flags contradict each other; never panics.
    pub(crate) fn parse(
        &mut self,
        raw: &[u8],
        start_lsn: Lsn,
        end_lsn: Lsn,
        major: PgMajor,
    ) -> Result<(), RecordDecodeError> {
        let Some(header) = RecordHeader::read(raw) else {
            return Err(RecordDecodeError { lsn: start_lsn, rmid: 0, problem: RecordProblem::Lengths(raw.len()) });
        };
        let error = |problem| RecordDecodeError { lsn: start_lsn, rmid: header.rmid, problem };
        if header.tot_len as usize != raw.len() {
            return Err(error(RecordProblem::Lengths(raw.len())));
        }
        self.start_lsn = start_lsn;
        self.end_lsn = end_lsn;
        self.header = header;
        self.read_parts(raw, major).map_err(error)
    }

    /// The record that was taken apart last; `raw` are the same bytes.
    #[inline]
    pub(crate) fn of<'a>(&'a self, raw: &'a [u8]) -> DecodedRecord<'a> {
        DecodedRecord {
            start_lsn: self.start_lsn,
            end_lsn: self.end_lsn,
            header: self.header,
            raw,
            blocks: &self.blocks,
            origin: self.origin,
            toplevel_xid: self.toplevel_xid,
            main_data: &raw[self.main_data_at..],
        }
    }

    fn read_parts(&mut self, raw: &[u8], major: PgMajor) -> Result<(), RecordProblem> {
        self.blocks.clear();
        self.origin = None;
        self.toplevel_xid = None;
        let mut headers = Headers { raw, at: RECORD_HEADER_LEN };
        // Payload bytes that the headers read so far have announced.
        let mut payload = 0usize;
        let mut main_len = 0usize;
        while raw.len() - headers.at > payload {
            match headers.u8()? {
                ID_DATA_SHORT => {
                    main_len = usize::from(headers.u8()?);
                    break;
                }
                ID_DATA_LONG => {
                    main_len = headers.u32()? as usize;
                    break;
                }
                ID_ORIGIN => self.origin = Some(headers.u16()?),
                ID_TOPLEVEL_XID => self.toplevel_xid = Some(headers.u32()?),
                id if id <= BLOCK_ID_MAX => {
                    let block = read_block(id, &mut headers, self.blocks.last(), major)?;
                    let image_len = block.image.as_ref().map_or(0, |image| image.stored.length);
                    payload += usize::from(block.data.length) + usize::from(image_len);
                    self.blocks.push(block);
                }
                id => return Err(RecordProblem::BlockId(id)),
            }
        }
        if Some(raw.len() - headers.at) != payload.checked_add(main_len) {
            return Err(RecordProblem::Lengths(raw.len()));
        }
        // Payloads follow in the order of their headers, an image before its block's data, main data last.
        let mut at = headers.at as u32;
        let mut place = |part: &mut Part| {
            part.at = at;
            at += u32::from(part.length);
        };
        for block in &mut self.blocks {
            if let Some(image) = &mut block.image {
                place(&mut image.stored);
            }
            place(&mut block.data);
        }
        self.main_data_at = headers.at + payload;
        Ok(())
    }
}

/// Reads one block reference. Its parts have the right lengths and start at 0: where payloads lie is known at the end.
#[inline(always)]
fn read_block(
    id: u8,
    headers: &mut Headers<'_>,
    before: Option<&DecodedBlock>,
    major: PgMajor,
) -> Result<DecodedBlock, RecordProblem> {
    if before.is_some_and(|before| before.id >= id) {
        return Err(RecordProblem::BlockOrder(id));
    }
    let flags = headers.u8()?;
    let data_len = headers.u16()?;
    if (flags & HAS_DATA != 0) != (data_len != 0) {
        return Err(RecordProblem::DataFlag(id));
    }
    let image = if flags & HAS_IMAGE != 0 { Some(read_image(id, headers, major)?) } else { None };
    let raw_fork = flags & FORK_MASK;
    let fork = ForkNumber::from_raw(raw_fork).ok_or(RecordProblem::Fork { id, fork: raw_fork })?;
    let rel = if flags & SAME_REL == 0 {
        let at = headers.take(12)?;
        let raw = headers.raw;
        RelTag { spcnode: u32_at(raw, at), dbnode: u32_at(raw, at + 4), relnode: u32_at(raw, at + 8), fork }
    } else {
        before.ok_or(RecordProblem::NoRelationBefore(id))?.rel.with_fork(fork)
    };
    let blkno = headers.u32()?;
    Ok(DecodedBlock {
        rel,
        blkno,
        id,
        will_init: flags & WILL_INIT != 0,
        image,
        data: Part { at: 0, length: data_len },
    })
}

fn read_image(id: u8, headers: &mut Headers<'_>, major: PgMajor) -> Result<BkpImage, RecordProblem> {
    const PAGE: u16 = BLCKSZ as u16;
    let bits = major.image_bits();
    let length = headers.u16()?;
    let hole_offset = headers.u16()?;
    let info = headers.u8()?;
    let has_hole = info & bits.has_hole != 0;
    let compression = match info & (bits.pglz | bits.lz4 | bits.zstd) {
        0 => Some(ImageCompression::None),
        bit if bit == bits.pglz => Some(ImageCompression::Pglz),
        bit if bit == bits.lz4 => Some(ImageCompression::Lz4),
        bit if bit == bits.zstd => Some(ImageCompression::Zstd),
        _ => None,
    };
    let compressed = compression != Some(ImageCompression::None);
    // Only a compressed image has to say how long its hole is (checklist 14).
    let hole_length = match (compressed, has_hole) {
        (true, true) => headers.u16()?,
        (true, false) => 0,
        (false, _) => PAGE.saturating_sub(length),
    };
    let hole_fits = if has_hole {
        hole_offset > 0 && hole_length > 0 && hole_offset.checked_add(hole_length).is_some_and(|end| end <= PAGE)
    } else {
        hole_offset == 0 && hole_length == 0
    };
    let length_fits = length <= PAGE && !(compressed && length == PAGE);
    match compression {
        Some(compression) if hole_fits && length_fits => Ok(BkpImage {
            apply: info & bits.apply != 0,
            compression,
            hole_offset,
            hole_length,
            stored: Part { at: 0, length },
        }),
        _ => Err(RecordProblem::Image { id, info, length, hole_offset, hole_length }),
    }
}
