//! The newest part of a writer's log, kept until the safekeepers have it.

use std::collections::VecDeque;

use bytes::Bytes;

use ardent_api::wal_service::{RecordEnd, WAL_LEN_MAX};
use ardent_types::Lsn;

/// WAL from `start` to `end`, in the pieces that it came in, and the record ends in it.
#[derive(Debug)]
pub(crate) struct LogBuffer {
    start: Lsn,
    end: Lsn,
    chunks: VecDeque<(Lsn, Bytes)>,
    /// The last record end of each piece that has one.
    record_ends: VecDeque<RecordEnd>,
}

impl LogBuffer {
    /// An empty buffer at `at`.
    pub(crate) fn new(at: Lsn) -> Self {
        LogBuffer { start: at, end: at, chunks: VecDeque::new(), record_ends: VecDeque::new() }
    }

    pub(crate) fn start(&self) -> Lsn {
        self.start
    }

    pub(crate) fn end(&self) -> Lsn {
        self.end
    }

    /// Adds WAL at the end. The record's end may lie a few bytes further, where its padding has not come yet.
    pub(crate) fn push(&mut self, data: Bytes, record_end: Option<RecordEnd>) {
        let at = self.end;
        self.end = at.advance(data.len() as u64);
        self.chunks.push_back((at, data));
        if let Some(record_end) = record_end {
            self.record_ends.push_back(record_end);
        }
    }

    /// Bytes from `at` on, as many as lie in one piece; `None` at the end. `at` must not be before the start.
    pub(crate) fn read(&self, at: Lsn) -> Option<Bytes> {
        assert!(at >= self.start, "reading at {at} in a buffer that starts at {}", self.start);
        let index = self.chunks.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
        let (start, data) = &self.chunks[index];
        let skip = at.saturating_sub(*start) as usize;
        let rest = data.len().checked_sub(skip).filter(|rest| *rest > 0)?;
        Some(data.slice(skip..skip + rest.min(WAL_LEN_MAX)))
    }

    /// Takes the last record end at or below `at` off the list, with all before it.
    pub(crate) fn take_record_end(&mut self, at: Lsn) -> Option<RecordEnd> {
        let count = self.record_ends.partition_point(|record_end| record_end.end <= at);
        self.record_ends.drain(..count).next_back()
    }

    /// The last record end at or below `at`, if it has not been taken.
    pub(crate) fn last_record_end(&self, at: Lsn) -> Option<RecordEnd> {
        let count = self.record_ends.partition_point(|record_end| record_end.end <= at);
        count.checked_sub(1).map(|last| self.record_ends[last])
    }

    /// Forgets pieces that end at or below `at`.
    pub(crate) fn trim(&mut self, at: Lsn) {
        while let Some((start, data)) = self.chunks.front() {
            let end = start.advance(data.len() as u64);
            if end > at {
                break;
            }
            self.start = end;
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pieces_from_anywhere_and_trims_whole_ones() {
        let mut buffer = LogBuffer::new(Lsn::new(100));
        assert_eq!(buffer.read(Lsn::new(100)), None);
        buffer.push(Bytes::from_static(b"abcd"), Some(RecordEnd { end: Lsn::new(102), start: Lsn::new(100) }));
        buffer.push(Bytes::from_static(b"efgh"), None);
        assert_eq!(buffer.read(Lsn::new(100)).as_deref(), Some(&b"abcd"[..]));
        assert_eq!(buffer.read(Lsn::new(103)).as_deref(), Some(&b"d"[..]));
        assert_eq!(buffer.read(Lsn::new(104)).as_deref(), Some(&b"efgh"[..]));
        assert_eq!(buffer.read(Lsn::new(108)), None);
        assert_eq!((buffer.last_record_end(Lsn::new(101)), buffer.take_record_end(Lsn::new(101))), (None, None));
        assert_eq!(buffer.last_record_end(Lsn::new(104)).map(|at| at.end), Some(Lsn::new(102)));
        assert_eq!(buffer.take_record_end(Lsn::new(108)).map(|at| at.end), Some(Lsn::new(102)));
        assert_eq!(buffer.last_record_end(Lsn::new(108)), None);
        buffer.trim(Lsn::new(103));
        assert_eq!(buffer.start(), Lsn::new(100));
        buffer.trim(Lsn::new(104));
        assert_eq!(buffer.start(), Lsn::new(104));
    }
}
