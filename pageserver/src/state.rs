//! A timeline's content at one LSN, as ingest and base backups read it.

use std::ops::RangeInclusive;

use ardent_pg_ingest::ReadState;
use ardent_storage::{ReadError, Timeline};
use ardent_types::{Key, Lsn, with_causes};
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
        match error {
            ReadError::Corrupt(_) | ReadError::Rebuild { .. } => Some(with_causes(error)),
            _ => None,
        }
    }
}
