//! Reads: pages, relation sizes, base backups.

use std::sync::Arc;
use std::time::Instant;

use ardent_api::page_service::{BlockRange, ErrorCode, Response};
use ardent_api::token::Rights;
use ardent_pg_ingest::{BackupError, BackupPoint, base_backup};
use ardent_storage::{CommitError, ErrorKind, ReadError, Timeline, TimelineError};
use ardent_types::{BLCKSZ, BlockNumber, Key, Lsn, RelTag, with_causes};
use bytes::{BufMut as _, Bytes, BytesMut};

use crate::connection::{Bound, Connection, Failure};
use crate::import::check_consistent;
use crate::limits;
use crate::state::TimelineAt;

impl Connection<'_> {
    pub(crate) fn get_pages(
        &mut self,
        bound: &Bound,
        id: u64,
        lsn: Lsn,
        rel: RelTag,
        ranges: &[BlockRange],
    ) -> Result<(), Failure> {
        let timeline = self.readable(bound, lsn)?;
        let size = self.known_size(&timeline, lsn, rel)?;
        // What a block held before a truncation or drop is still stored: the size alone says that it is gone (checklist 22).
        if let Some(block) = ranges.iter().find_map(|range| first_past_end(range, size)) {
            return Err(Failure::new(ErrorCode::NotFound, format!("{rel} has no block {block} at {lsn}")));
        }
        self.reply_pages(id, |connection, pages| {
            ranges.iter().try_for_each(|range| connection.append_pages(&timeline, lsn, rel, range, pages))
        })
    }

    /// All of `range` lies below the relation's end.
    fn append_pages(
        &self,
        timeline: &Arc<Timeline>,
        lsn: Lsn,
        rel: RelTag,
        range: &BlockRange,
        pages: &mut BytesMut,
    ) -> Result<(), Failure> {
        let append = |pages: &mut BytesMut, block: BlockNumber, page: Option<Bytes>| match page {
            Some(page) if page.len() == BLCKSZ => {
                pages.put_slice(&page);
                Ok(())
            }
            Some(page) => {
                let message = format!("{rel} block {block} has {} bytes at {lsn} instead of {BLCKSZ}", page.len());
                Err(Failure::new(ErrorCode::Unreadable, message))
            }
            // No version: zeros, below the relation's end (checklist 21).
            None => {
                pages.put_bytes(0, BLCKSZ);
                Ok(())
            }
        };
        let start = pages.len();
        self.read(timeline, |timeline| {
            pages.truncate(start);
            timeline.get_pages(rel, range.start..range.start + range.count, lsn, |block, page| {
                append(pages, block, page).map_err(ReadFailure::from)
            })
        })
    }

    /// The size of `rel`, from what this connection has asked before if it can be.
    fn known_size(&mut self, timeline: &Arc<Timeline>, lsn: Lsn, rel: RelTag) -> Result<Option<BlockNumber>, Failure> {
        if let Some(size) = self.sizes.get(lsn, rel) {
            return Ok(size);
        }
        let size = self.rel_size(timeline, lsn, rel)?;
        self.sizes.put(lsn, rel, size);
        Ok(size)
    }

    pub(crate) fn get_rel_size(&mut self, bound: &Bound, id: u64, lsn: Lsn, rel: RelTag) -> Result<(), Failure> {
        let timeline = self.readable(bound, lsn)?;
        let nblocks = self.rel_size(&timeline, lsn, rel)?;
        self.reply(&Response::RelSize { id, nblocks })
    }

    fn rel_size(&self, timeline: &Arc<Timeline>, lsn: Lsn, rel: RelTag) -> Result<Option<BlockNumber>, Failure> {
        let value = self.read(timeline, |timeline| timeline.get(&Key::RelSize(rel), lsn))?;
        decode_size(rel, value.as_deref())
    }

    pub(crate) fn get_base_backup(&mut self, bound: &Bound, id: u64, lsn: Lsn) -> Result<(), Failure> {
        let timeline = self.readable(bound, lsn)?;
        let (_, point) = timeline.branch_point(Some(lsn)).map_err(|error| timeline_failure(&error))?;
        if point.lsn != lsn {
            let message = format!("{lsn} is not the end of a WAL record of this timeline; {} is", point.lsn);
            return Err(Failure::new(ErrorCode::LsnOutOfRange, message));
        }
        // A backup is sent as it is read: what ancestors lack after a restart must be there before.
        self.shared.followers.wait_for(&timeline, lsn, Instant::now() + limits::READ_WAIT_MAX)?;
        let point = BackupPoint { lsn, prev_lsn: point.prev_lsn };
        let state = TimelineAt { timeline: &timeline, lsn };
        let made = base_backup(timeline.facts().pg_major, point, &state, |item| {
            self.reply(&Response::BackupItem { id, item })
        });
        made.map_err(|error| match error {
            BackupError::Receiver(failure) => failure,
            BackupError::State(error) => read_failure(&error),
            damaged => Failure::new(ErrorCode::Unreadable, with_causes(&damaged)),
        })
    }

    /// The bound timeline, once it has ingested WAL up to `lsn`.
    pub(crate) fn readable(&mut self, bound: &Bound, lsn: Lsn) -> Result<Arc<Timeline>, Failure> {
        let timeline = self.bound_timeline(bound)?;
        bound.allow(timeline.id(), Rights::Read)?;
        check_consistent(&timeline, lsn)?;
        if timeline.last_record().end < lsn {
            self.shared.followers.wait_for(&timeline, lsn, Instant::now() + limits::READ_WAIT_MAX)?;
        }
        Ok(timeline)
    }

    /// Reads; where an ancestor has yet to catch up after a restart, waits for it and reads again.
    pub(crate) fn read<T, E: Into<ReadFailure>>(
        &self,
        timeline: &Arc<Timeline>,
        mut read: impl FnMut(&Timeline) -> Result<T, E>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limits::READ_WAIT_MAX;
        loop {
            match read(timeline).map_err(Into::into) {
                Ok(value) => return Ok(value),
                Err(ReadFailure::Storage(ReadError::NotYet { timeline: behind, lsn, .. })) => {
                    let behind = self.shared.engine.timeline(timeline.tenant(), behind);
                    let behind = behind.map_err(|error| timeline_failure(&error))?;
                    self.shared.followers.wait_for(&behind, lsn, deadline)?;
                }
                Err(ReadFailure::Storage(error)) => return Err(read_failure(&error)),
                Err(ReadFailure::Answered(failure)) => return Err(failure),
            }
        }
    }
}

/// Why a read failed: in storage, or over what storage gave.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    Storage(ReadError),
    Answered(Failure),
}

impl From<ReadError> for ReadFailure {
    fn from(error: ReadError) -> Self {
        ReadFailure::Storage(error)
    }
}

impl From<Failure> for ReadFailure {
    fn from(failure: Failure) -> Self {
        ReadFailure::Answered(failure)
    }
}

/// The first block of `range` that a relation of `size` blocks does not have.
fn first_past_end(range: &BlockRange, size: Option<BlockNumber>) -> Option<BlockNumber> {
    let end = u64::from(range.start) + u64::from(range.count);
    let size = size.unwrap_or(0);
    (range.count > 0 && end > u64::from(size)).then(|| range.start.max(size))
}

/// The size in a value of [`Key::RelSize`].
pub(crate) fn decode_size(rel: RelTag, value: Option<&[u8]>) -> Result<Option<BlockNumber>, Failure> {
    match value {
        None | Some([]) => Ok(None),
        Some(bytes) => match bytes.first_chunk::<4>() {
            Some(size) if bytes.len() == 4 => Ok(Some(u32::from_le_bytes(*size))),
            _ => {
                let message = format!("the size of {rel} is stored in {} bytes instead of 4", bytes.len());
                Err(Failure::new(ErrorCode::Unreadable, message))
            }
        },
    }
}

pub(crate) fn read_failure(error: &ReadError) -> Failure {
    let code = match error {
        ReadError::NotYet { .. } | ReadError::Retired { .. } => ErrorCode::LsnOutOfRange,
        other => code_of(other.kind(), ErrorCode::Unreadable),
    };
    Failure::new(code, with_causes(error))
}

pub(crate) fn timeline_failure(error: &TimelineError) -> Failure {
    let code = match error {
        TimelineError::NotFound { .. } => ErrorCode::TimelineNotFound,
        TimelineError::Conflict { .. } | TimelineError::HasChildren { .. } => ErrorCode::Conflict,
        TimelineError::Retired { .. } | TimelineError::NotYet { .. } => ErrorCode::LsnOutOfRange,
        other => code_of(other.kind(), ErrorCode::Unreadable),
    };
    Failure::new(code, with_causes(error))
}

pub(crate) fn commit_failure(error: &CommitError) -> Failure {
    Failure::new(code_of(error.kind(), ErrorCode::Unreadable), with_causes(error))
}

pub(crate) fn code_of(kind: ErrorKind, corrupt: ErrorCode) -> ErrorCode {
    match kind {
        ErrorKind::Retry => ErrorCode::Unavailable,
        ErrorKind::NotFound => ErrorCode::TimelineNotFound,
        ErrorKind::Invalid => ErrorCode::Invalid,
        ErrorKind::Fenced => ErrorCode::Fenced,
        ErrorKind::Corrupt => corrupt,
        ErrorKind::Internal => ErrorCode::Internal,
    }
}
