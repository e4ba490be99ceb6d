//! A decoded WAL record: header, block references, main data. All byte ranges point into the record's own bytes, so
//! decoding copies nothing.

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use ardent_types::{BlockNumber, Lsn, RelTag};

mod parse;

pub use parse::{RecordDecodeError, RecordProblem};

/// `SizeOfXLogRecord`: length of the fixed header.
pub const RECORD_HEADER_LEN: usize = 24;
/// Most bytes that a record can have. Postgres 16 caps records a little below (`XLogRecordMaxSize`); before, nothing larger could be
/// allocated.
pub const RECORD_LEN_MAX: u32 = 1 << 30;
/// Highest block id (`XLR_MAX_BLOCK_ID`).
pub const BLOCK_ID_MAX: u8 = 32;

/// `XLogRecord`, the fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Length of the whole record in bytes, header included, padding not.
    pub tot_len: u32,
    /// Transaction id, 0 if none.
    pub xid: u32,
    /// Start of the previous record.
    pub prev: Lsn,
    /// Record type and `XLR_*` flags; the resource manager owns the upper four bits.
    pub info: u8,
    /// Resource manager.
    pub rmid: u8,
    /// CRC-32C.
    pub crc: u32,
}

/// A whole record, checked against its CRC.
#[derive(Clone, Debug)]
pub struct DecodedRecord {
    /// Where it starts.
    pub start_lsn: Lsn,
    /// Where it ends: aligned to 8, never moved past a page header (checklist 1). Pages are stamped with this.
    pub end_lsn: Lsn,
    /// Header.
    pub header: RecordHeader,
    /// The record's bytes, contiguous (page headers taken out), `header.tot_len` of them.
    pub raw: Bytes,
    /// Block references in the order of the record; ids ascend but may have gaps.
    pub blocks: SmallVec<[DecodedBlock; 4]>,
    /// Main data, in `raw`.
    pub main_data: Range<usize>,
    /// Replication origin, if there is one.
    pub origin: Option<u16>,
    /// Top-level transaction id, if the record carries it.
    pub toplevel_xid: Option<u32>,
}

/// A block reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedBlock {
    /// 0 to 32.
    pub id: u8,
    /// Relation fork.
    pub rel: RelTag,
    /// Block.
    pub blkno: BlockNumber,
    /// Redo rebuilds the page from nothing (`BKPBLOCK_WILL_INIT`).
    pub will_init: bool,
    /// Full-page image, if there is one.
    pub image: Option<BkpImage>,
    /// Data of this block, in the record's `raw`; empty if none.
    pub data: Range<usize>,
}

/// A full-page image inside a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BkpImage {
    /// To be restored at redo; otherwise it is there for consistency checking only (checklist 13).
    pub apply: bool,
    /// Start of the hole in bytes from the page's start.
    pub hole_offset: u16,
    /// Length of the hole in bytes, 0 if none.
    pub hole_length: u16,
    /// How it is compressed.
    pub compression: ImageCompression,
    /// The image's bytes as stored, in the record's `raw`.
    pub stored: Range<usize>,
}

/// Compression of a full-page image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageCompression {
    /// None.
    None,
    /// Postgres's own.
    Pglz,
    /// LZ4 block.
    Lz4,
    /// Zstandard frame.
    Zstd,
}

impl DecodedRecord {
    /// The record type without the `XLR_*` flags: what resource managers switch on.
    pub fn info(&self) -> u8 {
        self.header.info & 0xF0
    }

    /// Main data.
    pub fn main_data(&self) -> &[u8] {
        &self.raw[self.main_data.clone()]
    }

    /// The data of `block`.
    pub fn block_data(&self, block: &DecodedBlock) -> &[u8] {
        &self.raw[block.data.clone()]
    }

    /// The block reference with this id.
    pub fn block(&self, id: u8) -> Option<&DecodedBlock> {
        self.blocks.iter().find(|block| block.id == id)
    }
}
