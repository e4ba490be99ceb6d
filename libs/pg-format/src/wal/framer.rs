//! Cuts a WAL stream into records and checks each: page headers, lengths, links, CRCs.

use std::ops::Range;

use bytes::Bytes;

use ardent_types::{Lsn, PgTli, SystemId, WalSegmentSize};

use super::chunks::Chunks;
use super::error::{WalError, WalProblem};
use super::header::{LONG_HEADER_LEN, WAL_PAGE_LEN, WalPageHeader, page_header_len};
use crate::bytes_at::{u32_at, u64_at};
use crate::crc::record_crc;
use crate::major::PgMajor;
use crate::record::{RECORD_HEADER_LEN, RECORD_LEN_MAX};
use crate::rmgr;

/// What stands at the LSN where a stream starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStart {
    /// The end of a record, or a record's start.
    RecordBoundary,
    /// The start of a page that may begin with the rest of a record from before the stream; that rest is passed over.
    Page,
}

/// A checked record's bytes, until the next one is asked for.
#[derive(Clone, Copy, Debug)]
pub struct FramedRecord<'a> {
    /// Where it starts.
    pub start_lsn: Lsn,
    /// Where it ends: aligned, not past a page header. For a segment switch, the end of the segment.
    pub end_lsn: Lsn,
    /// Its bytes without page headers.
    pub raw: &'a [u8],
}

/// Where a checked record is.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) start_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    pub(super) place: Place,
}

/// Where a record's bytes are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In the chunk that is being read.
    Chunk(Range<usize>),
    /// Put together from several pages.
    Assembled,
}

/// Cuts a WAL stream into checked records. See the [module](super).
#[derive(Debug)]
pub struct Framer {
    major: PgMajor,
    segment_size: WalSegmentSize,
    system_id: Option<SystemId>,
    chunks: Chunks,
    /// Where the first byte that was not read stands.
    position: Lsn,
    /// Where the next byte fed stands.
    fed_to: Lsn,
    /// Highest Postgres timeline id of the pages so far.
    tli: PgTli,
    state: State,
    /// The bytes of a record that crosses a page boundary; kept for the next one.
    assembled: Vec<u8>,
    /// Start of the last record given; what the next one's `xl_prev` must be.
    last_start: Option<Lsn>,
    last_end: Lsn,
    failed: Option<WalError>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// A record starts at the position, or behind the page header or padding there.
    Boundary {
        /// The stream started at this page, which may begin with the rest of a record.
        joining: bool,
        /// The page before announced that this record was given up; the next one must say so too.
        aborted: Option<Lsn>,
    },
    /// In a record that crosses a page boundary, whose bytes so far are put together.
    Partial { start: Lsn, total_len: u32 },
    /// In the rest of a record that started before the stream.
    Foreign { remaining: u32 },
    /// Behind a segment switch, which is given once the whole segment has come; its bytes are kept with those put together.
    Switch { start: Lsn, segment_end: Lsn },
}

/// Room for a record that crosses pages that is kept for the next one.
const ASSEMBLED_KEPT_MAX: usize = 1 << 20;

const BOUNDARY: State = State::Boundary { joining: false, aborted: None };

impl Framer {
    /// A framer of the stream that starts at `start`.
    pub fn new(start: Lsn, at: StreamStart, major: PgMajor, segment_size: WalSegmentSize) -> Framer {
        let joining = at == StreamStart::Page;
        Framer {
            major,
            segment_size,
            system_id: None,
            chunks: Chunks::default(),
            position: start,
            fed_to: start,
            tli: PgTli::new(0),
            state: State::Boundary { joining, aborted: None },
            assembled: Vec::new(),
            last_start: None,
            last_end: start,
            failed: None,
        }
    }

    /// Sets where the record before the stream starts; the first record's link is then checked exactly.
    #[must_use]
    pub fn with_previous_record(mut self, start: Lsn) -> Framer {
        self.last_start = Some(start);
        self
    }

    /// Sets the cluster whose segments are to be read; others' are refused.
    #[must_use]
    pub fn with_system_id(mut self, system_id: SystemId) -> Framer {
        self.system_id = Some(system_id);
        self
    }

    /// Adds the bytes that follow those fed before.
    pub fn feed(&mut self, bytes: Bytes) {
        self.fed_to = self.fed_to.advance(bytes.len() as u64);
        self.chunks.push(bytes);
    }

    /// Adds bytes that start at `lsn`; an error if they don't follow those fed before (checklist 7).
    pub fn feed_at(&mut self, lsn: Lsn, bytes: Bytes) -> Result<(), WalError> {
        if lsn != self.fed_to {
            return Err(WalError { lsn: self.fed_to, problem: WalProblem::Gap { expected: self.fed_to, given: lsn } });
        }
        self.feed(bytes);
        Ok(())
    }

    /// Where the next byte to feed stands.
    pub fn fed_to(&self) -> Lsn {
        self.fed_to
    }

    /// End of the last record given, or where the stream started.
    pub fn end_of_last_record(&self) -> Lsn {
        self.last_end
    }

    /// Start of the last record given, or what [`Framer::with_previous_record`] said.
    pub fn start_of_last_record(&self) -> Option<Lsn> {
        self.last_start
    }

    /// The highest Postgres timeline id of the pages read; 0 before the first.
    pub fn tli(&self) -> PgTli {
        self.tli
    }

    /// The next record; `None` until more bytes are fed.
    pub fn next_record(&mut self) -> Result<Option<FramedRecord<'_>>, WalError> {
        let Some(Frame { start_lsn, end_lsn, place }) = self.next_frame()? else { return Ok(None) };
        Ok(Some(FramedRecord { start_lsn, end_lsn, raw: self.bytes(&place) }))
    }

    /// Where the next record is; `None` until more bytes are fed.
    #[inline(always)]
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, WalError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        match self.advance() {
            Ok(Some(frame)) => {
                self.last_start = Some(frame.start_lsn);
                self.last_end = frame.end_lsn;
                Ok(Some(frame))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// The bytes of the record that was given last.
    #[inline(always)]
    pub(super) fn bytes(&self, place: &Place) -> &[u8] {
        match place {
            Place::Chunk(range) => self.chunks.taken(range.clone()),
            Place::Assembled => &self.assembled,
        }
    }

    /// Makes `error` what every further call gives.
    #[cold]
    pub(super) fn fail(&mut self, error: WalError) -> WalError {
        self.failed = Some(error.clone());
        error
    }

    #[inline(always)]
    fn advance(&mut self) -> Result<Option<Frame>, WalError> {
        loop {
            if self.position.page_offset() == 0
                && !matches!(self.state, State::Switch { .. })
                && !self.read_page_header()?
            {
                return Ok(None);
            }
            let page_left = (WAL_PAGE_LEN - self.position.page_offset()) as usize;
            let frame = match self.state {
                State::Boundary { aborted, .. } => {
                    if !self.skip_to(self.position.align_up_8()) {
                        return Ok(None);
                    }
                    if self.position.page_offset() == 0 {
                        continue;
                    }
                    match self.start_record(page_left & !7, aborted)? {
                        Progress::Record(frame) => frame,
                        Progress::Moved => continue,
                        Progress::Starved => return Ok(None),
                    }
                }
                State::Partial { start, total_len } => match self.go_on(start, total_len, page_left)? {
                    Progress::Record(frame) => frame,
                    Progress::Moved => continue,
                    Progress::Starved => return Ok(None),
                },
                State::Foreign { remaining } => {
                    let taken = (remaining as usize).min(page_left).min(self.chunks.front().len());
                    if taken == 0 {
                        return Ok(None);
                    }
                    let remaining = remaining - taken as u32;
                    self.state = if remaining == 0 { BOUNDARY } else { State::Foreign { remaining } };
                    self.move_past(taken);
                    continue;
                }
                State::Switch { start, segment_end } => {
                    if !self.skip_to(segment_end) {
                        return Ok(None);
                    }
                    self.state = BOUNDARY;
                    return Ok(Some(Frame { start_lsn: start, end_lsn: segment_end, place: Place::Assembled }));
                }
            };
            if is_switch(self.bytes(&frame.place)) && frame.end_lsn.segment_offset(self.segment_size) != 0 {
                self.wait_for_segment_end(&frame);
                continue;
            }
            return Ok(Some(frame));
        }
    }

    /// A segment switch is given once the whole segment has come.
    #[cold]
    fn wait_for_segment_end(&mut self, frame: &Frame) {
        if let Place::Chunk(range) = &frame.place {
            self.assembled.clear();
            self.assembled.extend_from_slice(self.chunks.taken(range.clone()));
        }
        let segment_end = frame.end_lsn.segment_start(self.segment_size).advance(self.segment_size.bytes());
        self.state = State::Switch { start: frame.start_lsn, segment_end };
    }

    /// Moves past bytes of the front chunk.
    #[inline(always)]
    fn move_past(&mut self, length: usize) {
        self.chunks.take(length);
        self.position = self.position.advance(length as u64);
    }

    /// Reads a record from the position, which is in a page and aligned.
    #[inline(always)]
    fn start_record(&mut self, page_left: usize, aborted: Option<Lsn>) -> Result<Progress, WalError> {
        let start = self.position;
        let in_header = |start: Lsn| start.page_offset() < page_header_len(page_start(start), self.segment_size) as u64;
        if start.page_offset() < LONG_HEADER_LEN as u64 && in_header(start) {
            return Err(WalError { lsn: start, problem: WalProblem::Start });
        }
        let Some(head) = self.chunks.peek(4) else { return Ok(Progress::Starved) };
        let total_len = u32_at(head, 0);
        if (total_len as usize) < RECORD_HEADER_LEN || total_len > RECORD_LEN_MAX {
            let problem = if total_len == 0 { WalProblem::ZeroLength } else { WalProblem::RecordLength(total_len) };
            return Err(WalError { lsn: start, problem });
        }
        if page_left >= RECORD_HEADER_LEN {
            let last_start = self.last_start;
            let Some(header) = self.chunks.peek(RECORD_HEADER_LEN) else { return Ok(Progress::Starved) };
            check_header(header, start, last_start)?;
        }
        if total_len as usize > page_left {
            self.assembled.clear();
            self.assembled.shrink_to(ASSEMBLED_KEPT_MAX);
            self.state = State::Partial { start, total_len };
            if let Some(aborted) = aborted {
                // The record that gives another up always fits behind the page header where it stands.
                return Err(WalError { lsn: start, problem: WalProblem::OverwriteRecord { aborted } });
            }
            return Ok(Progress::Moved);
        }
        let Some(raw) = self.chunks.peek(total_len as usize) else { return Ok(Progress::Starved) };
        check_crc(raw, start)?;
        if let Some(aborted) = aborted {
            check_overwrite(raw, start, aborted)?;
        }
        let place = Place::Chunk(self.chunks.take(total_len as usize));
        self.position = start.advance(u64::from(total_len));
        self.state = BOUNDARY;
        Ok(Progress::Record(Frame { start_lsn: start, end_lsn: self.position.align_up_8(), place }))
    }

    /// Adds what the page and the chunk have of a record that crosses pages.
    fn go_on(&mut self, start: Lsn, total_len: u32, page_left: usize) -> Result<Progress, WalError> {
        let assembled = self.assembled.len();
        let missing = total_len as usize - assembled;
        let front = self.chunks.front();
        let taken = missing.min(page_left).min(front.len());
        if taken == 0 {
            return Ok(Progress::Starved);
        }
        if assembled == 0 {
            // Room for a few pages at once; what a damaged length claims is not believed.
            self.assembled.reserve((total_len as usize).min(32 * WAL_PAGE_LEN as usize));
        }
        self.assembled.extend_from_slice(&front[..taken]);
        self.move_past(taken);
        if assembled < RECORD_HEADER_LEN && self.assembled.len() >= RECORD_HEADER_LEN {
            check_header(&self.assembled[..RECORD_HEADER_LEN], start, self.last_start)?;
        }
        if taken < missing {
            return Ok(Progress::Moved);
        }
        self.state = BOUNDARY;
        check_crc(&self.assembled, start)?;
        Ok(Progress::Record(Frame { start_lsn: start, end_lsn: self.position.align_up_8(), place: Place::Assembled }))
    }

    /// Reads the header of the page at the position; false if it hasn't come.
    fn read_page_header(&mut self) -> Result<bool, WalError> {
        let page = self.position;
        let length = page_header_len(page, self.segment_size);
        let Some(bytes) = self.chunks.peek(length) else { return Ok(false) };
        let error = |problem| WalError { lsn: page, problem };
        let magic = u32_at(bytes, 0) as u16;
        if magic != self.major.wal_page_magic() {
            return Err(error(WalProblem::Magic { expected: self.major.wal_page_magic(), found: magic }));
        }
        let header = WalPageHeader::read(bytes).map_err(|flags| error(WalProblem::PageFlags(flags)))?;
        self.check_page(page, &header).map_err(error)?;
        self.tli = header.tli;
        self.state = self.state_after_header(&header).map_err(error)?;
        self.move_past(length);
        Ok(true)
    }

    fn check_page(&self, page: Lsn, header: &WalPageHeader) -> Result<(), WalProblem> {
        if let Some(long) = &header.long {
            let expected = u32::from(self.segment_size);
            if (long.segment_size, u64::from(long.wal_page_len)) != (expected, WAL_PAGE_LEN) {
                let (found, page_len) = (long.segment_size, long.wal_page_len);
                return Err(WalProblem::SegmentSize { expected, found, page_len });
            }
        }
        if header.address != page {
            return Err(WalProblem::PageAddress(header.address));
        }
        if let (Some(long), Some(expected)) = (&header.long, self.system_id)
            && long.system_id != expected
        {
            return Err(WalProblem::SystemId { expected, found: long.system_id });
        }
        if header.tli < self.tli {
            return Err(WalProblem::TimelineBackwards { before: self.tli, found: header.tli });
        }
        Ok(())
    }

    /// What follows the page header, given what was being read before it.
    fn state_after_header(&self, header: &WalPageHeader) -> Result<State, WalProblem> {
        let flags = header.flags;
        match self.state {
            State::Partial { start, .. } if flags.first_is_overwrite_contrecord => {
                Ok(State::Boundary { joining: false, aborted: Some(start) })
            }
            State::Partial { start, .. } if !flags.first_is_contrecord => {
                Err(WalProblem::MissingContinuation { record: start })
            }
            State::Partial { start, total_len } => {
                let expected = total_len - self.assembled.len() as u32;
                let found = header.remaining_len;
                if found != expected {
                    return Err(WalProblem::ContinuationLength { record: start, expected, found });
                }
                Ok(State::Partial { start, total_len })
            }
            State::Foreign { .. } if flags.first_is_overwrite_contrecord => Ok(BOUNDARY),
            State::Foreign { remaining } => {
                // Where the foreign record starts is not known; its rest is named by the page that continues it.
                let record = header.address;
                if !flags.first_is_contrecord {
                    return Err(WalProblem::MissingContinuation { record });
                }
                let found = header.remaining_len;
                if found != remaining {
                    return Err(WalProblem::ContinuationLength { record, expected: remaining, found });
                }
                Ok(State::Foreign { remaining })
            }
            State::Boundary { joining: true, .. } if flags.first_is_contrecord && header.remaining_len > 0 => {
                Ok(State::Foreign { remaining: header.remaining_len })
            }
            State::Boundary { .. } if flags.first_is_contrecord => Err(WalProblem::UnexpectedContinuation),
            State::Boundary { .. } | State::Switch { .. } => Ok(BOUNDARY),
        }
    }

    /// Passes over bytes up to `target`; false if they haven't all come.
    #[inline(always)]
    fn skip_to(&mut self, target: Lsn) -> bool {
        while self.position < target {
            let missing = target.get() - self.position.get();
            let step = missing.min(self.chunks.front().len() as u64);
            if step == 0 {
                return false;
            }
            self.move_past(step as usize);
        }
        true
    }
}

enum Progress {
    Record(Frame),
    Moved,
    Starved,
}

fn page_start(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.get() - lsn.page_offset())
}

#[inline(always)]
fn check_header(header: &[u8], start: Lsn, previous: Option<Lsn>) -> Result<(), WalError> {
    let rmid = header[17];
    if !rmgr::is_possible(rmid) {
        return Err(WalError { lsn: start, problem: WalProblem::ResourceManager(rmid) });
    }
    let found = Lsn::new(u64_at(header, 8));
    let fits = previous.map_or(found < start, |expected| found == expected);
    if fits {
        Ok(())
    } else {
        Err(WalError { lsn: start, problem: WalProblem::PrevLink { expected: previous, found } })
    }
}

#[inline(always)]
fn check_crc(raw: &[u8], start: Lsn) -> Result<(), WalError> {
    let (found, computed) = (u32_at(raw, 20), record_crc(raw));
    if found == computed { Ok(()) } else { Err(WalError { lsn: start, problem: WalProblem::Crc { found, computed } }) }
}

fn is_switch(raw: &[u8]) -> bool {
    raw[17] == rmgr::XLOG && raw[16] & 0xF0 == rmgr::xlog::SWITCH
}

/// `XLOG_OVERWRITE_CONTRECORD` names the record that it gives up first in its main data, behind a two-byte data header.
fn check_overwrite(raw: &[u8], start: Lsn, aborted: Lsn) -> Result<(), WalError> {
    let named = (raw.len() >= 34).then(|| Lsn::new(u64_at(raw, 26)));
    let is_overwrite = raw[17] == rmgr::XLOG && raw[16] & 0xF0 == rmgr::xlog::OVERWRITE_CONTRECORD;
    if is_overwrite && named == Some(aborted) {
        return Ok(());
    }
    Err(WalError { lsn: start, problem: WalProblem::OverwriteRecord { aborted } })
}
