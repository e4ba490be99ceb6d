//! What redo of one block sees of a record. Both a decoded record and a stored one can show themselves this way.

use ardent_types::{BlockNumber, Lsn, RelTag};
use smallvec::SmallVec;

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
