//! What ingest and base backups read from storage, and what ingest gives it.

use std::ops::RangeInclusive;

use ardent_pg_redo::Value;
use ardent_types::{Key, Lsn};
use bytes::{Bytes, BytesMut};

/// The content of keys at one point of a timeline. For [`crate::Ingest`] that point is everything handed over in batches so
/// far, also of a record that is not complete yet; for a base backup it is the LSN asked for.
pub trait ReadState {
    /// Why a read failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The content of `key`; `None` or empty: absent.
    fn get(&self, key: Key) -> Result<Option<Bytes>, Self::Error>;

    /// All keys of the range that have a value, in key order. Callers keep the range small enough to hold in memory: the
    /// relation sizes of a cluster, or some hundred pages.
    fn scan(&self, range: RangeInclusive<Key>) -> Result<Vec<(Key, Bytes)>, Self::Error>;

    /// If `error` says that one key cannot be rebuilt while others can (an unknown record, a damaged layer): why. A copy of a
    /// database then carries the damage over to that one page's copy instead of failing as a whole.
    fn unreadable(_error: &Self::Error) -> Option<String> {
        None
    }
}

/// Changes for storage, in LSN order. At most one value per key and LSN, but that a database copy that was interrupted by an
/// error is made again with the same values.
#[derive(Debug)]
pub struct Batch {
    /// The values.
    pub values: Vec<(Key, Lsn, Value)>,
    /// The last record that is wholly in `values` or in earlier batches; it advances also where a record touches nothing
    /// (checklist 7). `None`: the batch ends inside the first record that it holds.
    pub last_record: Option<LastRecord>,
    /// Records that nothing is known about and that reference no block: shown to operators.
    pub unknown: Vec<UnknownRecord>,
    bytes: usize,
    /// Where the bytes of small values are put together: they share its memory, block by block.
    pub(crate) buffer: BytesMut,
}

/// How much memory small values share.
const BUFFER_BYTES: usize = 64 << 10;

impl Default for Batch {
    fn default() -> Batch {
        let buffer = BytesMut::with_capacity(BUFFER_BYTES);
        Batch { values: Vec::new(), last_record: None, unknown: Vec::new(), bytes: 0, buffer }
    }
}

/// A record's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRecord {
    /// Where it starts.
    pub start: Lsn,
    /// Where it ends; the timeline can be read at this LSN.
    pub end: Lsn,
}

/// A record of a resource manager or type that Ardent does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRecord {
    /// End of the record.
    pub lsn: Lsn,
    /// Resource manager id.
    pub rmid: u8,
    /// Type and flags.
    pub info: u8,
}

impl Batch {
    /// Adds a value.
    #[inline]
    pub fn push(&mut self, key: Key, lsn: Lsn, value: Value) {
        self.bytes += std::mem::size_of::<(Key, Lsn, Value)>() + value.encoded_len();
        self.values.push((key, lsn, value));
    }

    /// Memory that the values take, in bytes, roughly.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Empties it for reuse. The place of the last record stays.
    pub fn clear(&mut self) {
        self.values.clear();
        self.unknown.clear();
        self.bytes = 0;
    }
}
