//! Where the transactions that ran at an LSN began to write.
//!
//! Ingest keeps the oldest transaction that was running at the last snapshot of running transactions or checkpoint, and the next
//! transaction id, rounded up. Both only err on the safe side: the answer may be further back than needed.

use std::sync::Arc;

use ardent_api::page_service::{ErrorCode, ManageReply};
use ardent_pg_format::CheckPoint;
use ardent_storage::{ReadError, Timeline};
use ardent_types::{Key, Lsn};

use crate::connection::{Connection, Failure};
use crate::pages::timeline_failure;
use crate::retention::oldest_lsn;

impl Connection<'_> {
    pub(crate) fn oldest_running(&self, timeline: &Arc<Timeline>, lsn: Lsn) -> Result<ManageReply, Failure> {
        let oldest = self.checkpoint(timeline, lsn)?.oldest_active_xid;
        let states = Key::TwoPhase { xid: 0 }..=Key::TwoPhase { xid: u64::MAX };
        let prepared = !self.read(timeline, |timeline| timeline.scan(states.clone(), lsn))?.is_empty();
        let mut history = timeline.clone();
        let mut high = lsn;
        loop {
            let low = self.read(&history, oldest_lsn)?.min(high);
            if !given_out(&self.checkpoint(&history, low)?, oldest) {
                let lsn = self.search(&history, oldest, low, high)?;
                return Ok(ManageReply::OldestRunning { lsn, prepared, complete: true });
            }
            let parent = history.ancestor_timeline().map_err(|error| timeline_failure(&error))?;
            match parent {
                // What merely ran where a branch begins is aborted on it.
                Some(_) if !prepared => {
                    return Ok(ManageReply::OldestRunning { lsn: low, prepared, complete: true });
                }
                Some(parent) => (history, high) = (parent, low),
                None => return Ok(ManageReply::OldestRunning { lsn: low, prepared, complete: false }),
            }
        }
    }

    /// The last LSN that is found at which `xid` had not been given out: it had not at `low`.
    fn search(&self, timeline: &Arc<Timeline>, xid: u32, mut low: Lsn, mut high: Lsn) -> Result<Lsn, Failure> {
        if !given_out(&self.checkpoint(timeline, high)?, xid) {
            return Ok(high);
        }
        // Wherever it ends, `xid` had not been given out at `low`.
        while high.saturating_sub(low) > 1 {
            let middle = low.advance(high.saturating_sub(low) / 2);
            if given_out(&self.checkpoint(timeline, middle)?, xid) { high = middle } else { low = middle }
        }
        Ok(low)
    }

    fn checkpoint(&self, timeline: &Arc<Timeline>, lsn: Lsn) -> Result<CheckPoint, Failure> {
        let value = self.read(timeline, |timeline| -> Result<_, ReadError> { timeline.get(&Key::Checkpoint, lsn) })?;
        let unreadable =
            || Failure::new(ErrorCode::Unreadable, format!("the checkpoint's fields at {lsn} cannot be read"));
        CheckPoint::decode(&value.ok_or_else(unreadable)?, timeline.facts().pg_major).map_err(|_| unreadable())
    }
}

/// Whether `xid`, or one that comes after it, may have been given out. Ids compare around a circle.
fn given_out(checkpoint: &CheckPoint, xid: u32) -> bool {
    (xid.wrapping_sub(checkpoint.next_xid as u32) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_compare_around_the_circle() {
        let checkpoint = |next_xid| CheckPoint {
            next_xid,
            ..CheckPoint::decode(&[0; 88], ardent_pg_format::PgMajor::V15).expect("zeros")
        };
        assert!(given_out(&checkpoint(1024), 1023));
        assert!(!given_out(&checkpoint(1024), 1024));
        assert!(given_out(&checkpoint(1 << 32 | 5), u32::MAX));
        assert!(!given_out(&checkpoint((1 << 32) - 5), 3));
    }
}
