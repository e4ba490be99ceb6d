//! Where the last whole record of a stream starts and ends.

use bytes::Bytes;

use ardent_types::{Lsn, SystemId, WalSegmentSize};

use super::error::WalError;
use super::framer::{Framer, StreamStart};
use crate::major::PgMajor;

/// A record's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordSpan {
    /// Where it starts: what the next record's `xl_prev` is.
    pub start: Lsn,
    /// Where it ends: aligned, not past a page header. For a segment switch, the end of the segment.
    pub end: Lsn,
}

/// Follows a stream of WAL bytes, cut anywhere, and knows the last whole record in it: one whose padding has come, too. Checks pages, links
/// and CRCs as the decoder does, but doesn't look into records.
#[derive(Debug)]
pub struct RecordBoundaryTracker {
    framer: Framer,
    unpadded: Option<Unpadded>,
}

/// A record that is there but for its padding.
#[derive(Debug)]
struct Unpadded {
    record: RecordSpan,
    end_before: Lsn,
    start_before: Option<Lsn>,
}

impl RecordBoundaryTracker {
    /// A tracker of the stream that starts at `start`, a record's end or start.
    pub fn new(start: Lsn, major: PgMajor, segment_size: WalSegmentSize) -> RecordBoundaryTracker {
        let framer = Framer::new(start, StreamStart::RecordBoundary, major, segment_size);
        RecordBoundaryTracker { framer, unpadded: None }
    }

    /// A tracker of a stream that starts with a page, which may begin with the rest of an earlier record.
    pub fn at_page(page: Lsn, major: PgMajor, segment_size: WalSegmentSize) -> RecordBoundaryTracker {
        let framer = Framer::new(page, StreamStart::Page, major, segment_size);
        RecordBoundaryTracker { framer, unpadded: None }
    }

    /// Sets where the record before the stream starts; the first record's link is then checked exactly.
    #[must_use]
    pub fn with_previous_record(mut self, start: Lsn) -> RecordBoundaryTracker {
        self.framer = self.framer.with_previous_record(start);
        self
    }

    /// Sets the cluster whose segments are to be read; others' are refused.
    #[must_use]
    pub fn with_system_id(mut self, system_id: SystemId) -> RecordBoundaryTracker {
        self.framer = self.framer.with_system_id(system_id);
        self
    }

    /// Takes the bytes that follow those before. Gives the last record that they complete, if they complete one. On an error the records
    /// before it count: ask [`RecordBoundaryTracker::end_of_last_record`].
    pub fn feed(&mut self, bytes: impl Into<Bytes>) -> Result<Option<RecordSpan>, WalError> {
        self.framer.feed(bytes.into());
        let fed_to = self.framer.fed_to();
        let mut last = self.unpadded.take_if(|unpadded| unpadded.record.end <= fed_to).map(|unpadded| unpadded.record);
        loop {
            let (end_before, start_before) = (self.framer.end_of_last_record(), self.framer.start_of_last_record());
            let Some(record) = self.framer.next_record()? else { return Ok(last) };
            let record = RecordSpan { start: record.start_lsn, end: record.end_lsn };
            if record.end <= fed_to {
                last = Some(record);
            } else {
                self.unpadded = Some(Unpadded { record, end_before, start_before });
            }
        }
    }

    /// [`RecordBoundaryTracker::feed`], with a copy of the bytes.
    pub fn feed_slice(&mut self, bytes: &[u8]) -> Result<Option<RecordSpan>, WalError> {
        self.feed(Bytes::copy_from_slice(bytes))
    }

    /// [`RecordBoundaryTracker::feed`], with the LSN where the bytes start; a gap is an error (checklist 7).
    pub fn feed_at(&mut self, lsn: Lsn, bytes: impl Into<Bytes>) -> Result<Option<RecordSpan>, WalError> {
        self.framer.feed_at(lsn, Bytes::new())?;
        self.feed(bytes)
    }

    /// Where the next byte to feed stands.
    pub fn fed_to(&self) -> Lsn {
        self.framer.fed_to()
    }

    /// End of the last whole record, or where the stream started.
    pub fn end_of_last_record(&self) -> Lsn {
        self.unpadded.as_ref().map_or_else(|| self.framer.end_of_last_record(), |unpadded| unpadded.end_before)
    }

    /// Start of the last whole record, or what [`RecordBoundaryTracker::with_previous_record`] said.
    pub fn start_of_last_record(&self) -> Option<Lsn> {
        self.unpadded.as_ref().map_or_else(|| self.framer.start_of_last_record(), |unpadded| unpadded.start_before)
    }

    /// The highest Postgres timeline id of the pages read.
    pub fn tli(&self) -> ardent_types::PgTli {
        self.framer.tli()
    }
}
