//! A decoded WAL record: header, block references, main data. A [`DecodedRecord`] is a view of bytes that the decoder has, and of the
//! decoder's list of where the parts lie in them ([`RecordLayout`]), so decoding copies and allocates nothing. An [`OwnedRecord`] is
//! for the few who keep one.

use bytes::Bytes;

use ardent_types::{BlockNumber, Lsn, RelTag};

use crate::major::PgMajor;

mod layout;

pub(crate) use layout::RecordLayout;
pub use layout::{RecordDecodeError, RecordProblem};

/// `SizeOfXLogRecord`: length of the fixed header.
pub const RECORD_HEADER_LEN: usize = 24;
/// Most bytes that a record can have. Postgres 16 caps records a little below (`XLogRecordMaxSize`); before, nothing larger could be
/// allocated.
pub const RECORD_LEN_MAX: u32 = 1 << 30;
/// Highest block id (`XLR_MAX_BLOCK_ID`).
pub const BLOCK_ID_MAX: u8 = 32;

/// `XLogRecord`, the fixed header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// A whole record, checked against its CRC, as the decoder or an [`OwnedRecord`] has it.
#[derive(Clone, Copy, Debug)]
pub struct DecodedRecord<'a> {
    /// Where it starts.
    pub start_lsn: Lsn,
    /// Where it ends: aligned to 8, never moved past a page header (checklist 1). Pages are stamped with this.
    pub end_lsn: Lsn,
    /// Header.
    pub header: RecordHeader,
    /// The record's bytes, contiguous (page headers taken out), `header.tot_len` of them.
    pub raw: &'a [u8],
    /// Block references in the order of the record; ids ascend but may have gaps.
    pub blocks: &'a [DecodedBlock],
    /// Replication origin, if there is one.
    pub origin: Option<u16>,
    /// Top-level transaction id, if the record carries it.
    pub toplevel_xid: Option<u32>,
    main_data: &'a [u8],
}

/// A block reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedBlock {
    /// Relation fork.
    pub rel: RelTag,
    /// Block.
    pub blkno: BlockNumber,
    /// 0 to 32.
    pub id: u8,
    /// Redo rebuilds the page from nothing (`BKPBLOCK_WILL_INIT`).
    pub will_init: bool,
    /// Full-page image, if there is one.
    pub image: Option<BkpImage>,
    data: Part,
}

/// A full-page image inside a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BkpImage {
    /// To be restored at redo; otherwise it is there for consistency checking only (checklist 13).
    pub apply: bool,
    /// How it is compressed.
    pub compression: ImageCompression,
    /// Start of the hole in bytes from the page's start.
    pub hole_offset: u16,
    /// Length of the hole in bytes, 0 if none.
    pub hole_length: u16,
    stored: Part,
}

/// Where a block's image or data lies in its record's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    at: u32,
    length: u16,
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

impl Part {
    /// The part of `raw`, the bytes that it was found in.
    #[inline]
    fn of(self, raw: &[u8]) -> &[u8] {
        &raw[self.at as usize..self.at as usize + usize::from(self.length)]
    }
}

impl DecodedBlock {
    /// Whether the block has an image that redo restores.
    #[inline]
    pub fn has_applied_image(&self) -> bool {
        self.image.as_ref().is_some_and(|image| image.apply)
    }
}

impl BkpImage {
    /// Length of the image as stored, in bytes.
    pub fn stored_len(&self) -> usize {
        usize::from(self.stored.length)
    }
}

impl<'a> DecodedRecord<'a> {
    /// The record type without the `XLR_*` flags: what resource managers switch on.
    #[inline]
    pub fn info(&self) -> u8 {
        self.header.info & 0xF0
    }

    /// Main data.
    #[inline]
    pub fn main_data(&self) -> &'a [u8] {
        self.main_data
    }

    /// The data of `block`, one of this record's; empty if it has none.
    #[inline]
    pub fn block_data(&self, block: &DecodedBlock) -> &'a [u8] {
        block.data.of(self.raw)
    }

    /// The bytes of an image of this record, as stored.
    pub fn image_data(&self, image: &BkpImage) -> &'a [u8] {
        image.stored.of(self.raw)
    }

    /// The block reference with this id.
    #[inline]
    pub fn block(&self, id: u8) -> Option<&'a DecodedBlock> {
        self.blocks.iter().find(|block| block.id == id)
    }
}

/// A decoded record with its own bytes.
#[derive(Clone, Debug)]
pub struct OwnedRecord {
    raw: Bytes,
    layout: RecordLayout,
}

impl OwnedRecord {
    /// Decodes a whole record's bytes. They must be contiguous (page headers taken out). The CRC is not looked at.
    ///
    /// Errors if lengths, ids or flags contradict each other; never panics.
    pub fn parse(raw: Bytes, start_lsn: Lsn, end_lsn: Lsn, major: PgMajor) -> Result<OwnedRecord, RecordDecodeError> {
        let mut layout = RecordLayout::default();
        layout.parse(&raw, start_lsn, end_lsn, major)?;
        Ok(OwnedRecord { raw, layout })
    }

    /// The record.
    pub fn get(&self) -> DecodedRecord<'_> {
        self.layout.of(&self.raw)
    }
}
