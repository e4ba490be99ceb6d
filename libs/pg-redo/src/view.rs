//! What redo of one block sees of a record. Both a decoded record and a stored one can show themselves this way.

use ardent_pg_format::DecodedRecord;
use ardent_types::{BlockNumber, Lsn, RelTag};
use smallvec::SmallVec;

/// Whether the cluster logs hint-bit changes (`data_checksums` or `wal_log_hints`): it decides which pages
/// `XLOG_HEAP2_VISIBLE` stamps (checklist 35). Comes from `pg_control`, kept current by `XLOG_PARAMETER_CHANGE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HintBits {
    /// Hint bits are not logged.
    #[default]
    NotLogged,
    /// Hint bits are logged.
    Logged,
}

/// A record as seen by redo.
#[derive(Clone, Debug)]
pub struct RecordView<'a> {
    /// End of the record: what redo stamps on pages.
    pub end_lsn: Lsn,
    /// Resource manager.
    pub rmid: u8,
    /// Type and flags (`xl_info`).
    pub info: u8,
    /// Transaction id.
    pub xid: u32,
    /// Whether the cluster that wrote it logs hint bits.
    pub hint_bits: HintBits,
    /// Main data.
    pub main_data: &'a [u8],
    /// All block references; only the one that is being redone is sure to have its data (redo of one block may look at
    /// the others' relation and number, never at their data).
    pub blocks: SmallVec<[BlockView<'a>; 4]>,
}

/// A block reference as seen by redo.
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'a> {
    /// 0 to 32.
    pub id: u8,
    /// Relation fork.
    pub rel: RelTag,
    /// Block.
    pub blkno: BlockNumber,
    /// Redo starts from nothing.
    pub will_init: bool,
    /// A full-page image of this block is (or was) in the record, to be applied.
    pub has_applied_image: bool,
    /// Data.
    pub data: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// A decoded record, as redo sees it.
    #[inline(always)]
    pub fn of_record(record: &DecodedRecord<'a>, hint_bits: HintBits) -> RecordView<'a> {
        let mut blocks = SmallVec::new();
        for block in record.blocks {
            blocks.push(BlockView {
                id: block.id,
                rel: block.rel,
                blkno: block.blkno,
                will_init: block.will_init,
                has_applied_image: block.has_applied_image(),
                data: record.block_data(block),
            });
        }
        RecordView {
            end_lsn: record.end_lsn,
            rmid: record.header.rmid,
            info: record.header.info,
            xid: record.header.xid,
            hint_bits,
            main_data: record.main_data(),
            blocks,
        }
    }

    /// The block reference with this id.
    #[inline]
    pub fn block(&self, id: u8) -> Option<&BlockView<'a>> {
        // Ids are nearly always 0, 1, 2, ... in order.
        match self.blocks.get(usize::from(id)) {
            Some(block) if block.id == id => Some(block),
            _ => self.blocks.iter().find(|block| block.id == id),
        }
    }

    /// The record type: `xl_info` without the bits that belong to the WAL machinery (`XLR_INFO_MASK`).
    #[inline]
    pub fn rm_info(&self) -> u8 {
        self.info & 0xF0
    }
}
