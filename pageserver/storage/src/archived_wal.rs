//! WAL segments that safekeepers have put into the store: kept as long as the history that they belong to.
//!
//! Segments are the safekeepers' alone but for this: who knows what is retained removes what is not.

use std::sync::atomic::Ordering;

use ardent_object_store::{ObjectName, StoreError, list_all};
use ardent_pg_format::segment::{parse_wal_file_name, segment_start};
use ardent_types::{Lsn, WalSegmentSize};

use crate::retention::RETIRED;
use crate::timeline::Timeline;

impl Timeline {
    /// Removes the archived segments that end before what is retained. Asks the store only if there may be any.
    pub(crate) fn give_up_archived_wal(&self) -> Result<(), StoreError> {
        let (retained, size) = (self.retained_from(), self.facts.wal_segment_size);
        let keep_from = if retained == RETIRED { u64::MAX } else { retained.segment_number(size) };
        if keep_from <= self.wal_kept_from.load(Ordering::Acquire) {
            return Ok(());
        }
        let store = &*self.shared.config.store;
        let objects = list_all(store, &self.names.wal(), false)?.objects;
        let mut gone: Vec<ObjectName> = objects.into_iter().map(|object| object.name).collect();
        gone.retain(|name| is_given_up(name, size, retained));
        if !gone.is_empty() {
            store.delete_many(&gone)?;
            tracing::info!(timeline = %self.id(), segments = gone.len(), %retained, "archived WAL before this LSN was given up");
        }
        self.wal_kept_from.store(keep_from, Ordering::Release);
        Ok(())
    }
}

/// Whether a segment lies wholly before what is retained.
pub(crate) fn is_given_up(segment: &ObjectName, size: WalSegmentSize, retained: Lsn) -> bool {
    let end = parse_wal_file_name(segment.file_name(), size).and_then(|(_, number)| segment_start(number + 1, size));
    end.is_some_and(|end| end <= retained)
}

/// Whether a file is named as a WAL segment is, of whatever size.
pub(crate) fn is_segment_name(file: &str) -> bool {
    file.len() == ardent_pg_format::segment::WAL_FILE_NAME_LEN
        && file.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
}
