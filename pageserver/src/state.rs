//! A timeline's content at one LSN, as ingest and base backups read it.

use std::ops::RangeInclusive;

use ardent_pg_ingest::ReadState;
use ardent_storage::{ReadError, Timeline};
use ardent_types::{Key, Lsn};
use bytes::Bytes;

/// Everything that readers see at `lsn`. That is all that ingest asks for as well: what the batch under way changed, it remembers
/// itself.
pub(crate) struct TimelineAt<'a> {
    pub timeline: &'a Timeline,
    pub lsn: Lsn,
}

impl ReadState for TimelineAt<'_> {
    type Error = ReadError;

    fn get(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
        self.timeline.get(&key, self.lsn)
    }

    fn scan(&self, range: RangeInclusive<Key>) -> Result<Vec<(Key, Bytes)>, ReadError> {
        self.timeline.scan(range, self.lsn)
    }

    fn unreadable(error: &ReadError) -> Option<String> {
        unreadable(error)
    }
}

fn unreadable(error: &ReadError) -> Option<String> {
        unreadable(error)
    }
}

/// Everything handed to storage so far, also of a record whose other values are still to come: what ingest reads.
pub(crate) struct TimelineNewest<'a> {
    pub timeline: &'a Timeline,
}

impl ReadState for TimelineNewest<'_> {
    type Error = ReadError;

    fn get(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
        self.timeline.get_newest(key)
    }

    fn scan(&self, range: RangeInclusive<Key>) -> Result<Vec<(Key, Bytes)>, ReadError> {
        self.timeline.scan_newest(range)
    }

    fn unreadable(error: &ReadError) -> Option<String> {
        unreadable(error)
    }
}

fn unreadable(error: &ReadError) -> Option<String> {
    match error {
        ReadError::Corrupt(_) | ReadError::Rebuild { .. } => Some(crate::pages::chain(error)),
        _ => None,
    }
}
