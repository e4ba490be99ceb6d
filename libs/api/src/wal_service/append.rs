//! WAL on its way: appended by the writer, read by followers.

use bytes::{BufMut, Bytes, BytesMut};

use ardent_types::{Lsn, Term};

use super::codec::*;
use super::{RecordEnd, WAL_LEN_MAX};

/// WAL of a writer's term. Without data it only carries the commit position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The writer's term.
    pub term: Term,
    /// Position of the first byte of `data`.
    pub start: Lsn,
    /// Up to where a quorum has the log, once this safekeeper has it durably: where it is the only one, that may lie in `data`.
    pub commit: RecordEnd,
    /// No safekeeper of this timeline needs WAL below this from another one.
    pub peers_lsn: Lsn,
    /// At most [`WAL_LEN_MAX`] bytes, cut anywhere.
    pub data: Bytes,
}

/// Answer to [`Append`]s, sent after the WAL is durable. Cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendReply {
    /// The highest term promised. Above the writer's: it is fenced.
    pub term: Term,
    /// End of the durable log.
    pub flush_lsn: Lsn,
}

/// WAL that is committed, for readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalChunk {
    /// Position of the first byte.
    pub start: Lsn,
    /// The commit position when the chunk was sent; a record end.
    pub commit_lsn: Lsn,
    /// At most [`WAL_LEN_MAX`] bytes, cut anywhere. Empty: only the commit position is told.
    pub bytes: Bytes,
}

/// Bytes of an [`Append`]'s payload before its data.
const APPEND_FIELDS_LEN: usize = 40;

impl Append {
    /// Appends everything of the frame but the data itself, which the caller sends right after: the hot path's way to
    /// avoid a copy.
    pub fn encode_head(&self, out: &mut BytesMut) {
        let length = 1 + APPEND_FIELDS_LEN + self.data.len();
        assert!(self.data.len() <= WAL_LEN_MAX, "append of {} bytes", self.data.len());
        out.put_u32_le(length as u32);
        out.put_u8(APPEND);
        self.put_fields(out);
    }

    fn put_fields(&self, out: &mut BytesMut) {
        out.put_u64_le(self.term.get());
        out.put_u64_le(self.start.get());
        put_record_end(out, &self.commit);
        out.put_u64_le(self.peers_lsn.get());
    }
}
