//! Decoded records from a WAL stream.

use bytes::Bytes;

use ardent_types::{Lsn, SystemId, WalSegmentSize};

use super::error::{WalError, WalProblem};
use super::framer::{Frame, Framer, Place, StreamStart};
use crate::major::PgMajor;
use crate::record::{DecodedRecord, RecordLayout};

/// Turns WAL bytes into decoded records. See the [module](super).
#[derive(Debug)]
pub struct WalDecoder {
    framer: Framer,
    major: PgMajor,
    layout: RecordLayout,
    /// Where the current record's bytes are.
    current: Option<Place>,
}

impl WalDecoder {
    /// A decoder of the stream that starts at `start`: any record's end or start, so also the middle of a segment or a page boundary
    /// (checklist 1, 5, 9).
    pub fn new(start: Lsn, major: PgMajor, segment_size: WalSegmentSize) -> WalDecoder {
        WalDecoder::of(Framer::new(start, StreamStart::RecordBoundary, major, segment_size), major)
    }

    /// A decoder of a stream that starts with a page, which may begin with the rest of an earlier record.
    pub fn at_page(page: Lsn, major: PgMajor, segment_size: WalSegmentSize) -> WalDecoder {
        WalDecoder::of(Framer::new(page, StreamStart::Page, major, segment_size), major)
    }

    fn of(framer: Framer, major: PgMajor) -> WalDecoder {
        WalDecoder { framer, major, layout: RecordLayout::default(), current: None }
    }

    /// Sets where the record before the stream starts; the first record's link is then checked exactly. Without, any earlier LSN does.
    #[must_use]
    pub fn with_previous_record(mut self, start: Lsn) -> WalDecoder {
        self.framer = self.framer.with_previous_record(start);
        self
    }

    /// Sets the cluster whose segments are to be read; others' are refused.
    #[must_use]
    pub fn with_system_id(mut self, system_id: SystemId) -> WalDecoder {
        self.framer = self.framer.with_system_id(system_id);
        self
    }

    /// Adds the bytes that follow those fed before.
    pub fn feed(&mut self, bytes: impl Into<Bytes>) {
        self.framer.feed(bytes.into());
    }

    /// Adds a copy of the bytes that follow those fed before.
    pub fn feed_slice(&mut self, bytes: &[u8]) {
        self.framer.feed(Bytes::copy_from_slice(bytes));
    }

    /// Adds bytes that start at `lsn`; an error if they don't follow those fed before (checklist 7).
    pub fn feed_at(&mut self, lsn: Lsn, bytes: impl Into<Bytes>) -> Result<(), WalError> {
        self.framer.feed_at(lsn, bytes.into())
    }

    /// The next record; `None` until more bytes are fed. After an error, always that error.
    #[allow(
        clippy::should_implement_trait,
        reason = "running out of bytes is not the end, as an iterator's None would be"
    )]
    #[inline]
    pub fn next(&mut self) -> Result<Option<DecodedRecord<'_>>, WalError> {
        Ok(if self.advance()? { self.record() } else { None })
    }

    /// Goes on to the next record; false until more bytes are fed. After an error, always that error.
    pub fn advance(&mut self) -> Result<bool, WalError> {
        self.current = None;
        let Some(Frame { start_lsn, end_lsn, place }) = self.framer.next_frame()? else { return Ok(false) };
        let raw = self.framer.bytes(&place);
        if let Err(error) = self.layout.parse(raw, start_lsn, end_lsn, self.major) {
            return Err(self.framer.fail(WalError { lsn: error.lsn, problem: WalProblem::Record(error) }));
        }
        self.current = Some(place);
        Ok(true)
    }

    /// The record that [`WalDecoder::advance`] went to, if it found one.
    #[inline]
    pub fn record(&self) -> Option<DecodedRecord<'_>> {
        self.current.as_ref().map(|place| self.layout.of(self.framer.bytes(place)))
    }

    /// Where the next byte to feed stands.
    pub fn fed_to(&self) -> Lsn {
        self.framer.fed_to()
    }

    /// End of the last record given, or where the stream started.
    pub fn end_of_last_record(&self) -> Lsn {
        self.framer.end_of_last_record()
    }

    /// Start of the last record given, or what [`WalDecoder::with_previous_record`] said.
    pub fn start_of_last_record(&self) -> Option<Lsn> {
        self.framer.start_of_last_record()
    }

    /// What it knows about the stream's pages.
    pub fn framer(&self) -> &Framer {
        &self.framer
    }
}
