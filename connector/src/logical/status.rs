//! How a logical connector is, as it is told while it runs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ardent_api::control::SkippedTable;
use ardent_types::Lsn;

use crate::logical::state::LogicalPhase;

/// How a logical connector is.
#[derive(Clone, Debug, Default)]
pub struct LogicalStatus {
    /// What it does.
    pub phase: LogicalPhase,
    /// Changes are coming.
    pub is_streaming: bool,
    /// Bytes that the phase has done, and all of them; 0: not known.
    pub progress: (u64, u64),
    /// Tables that are followed.
    pub tables: usize,
    /// All that production had committed up to there is on the root.
    pub applied_lsn: Lsn,
    /// How far production is, as last heard.
    pub production_lsn: Lsn,
    /// When nothing was missing last.
    pub caught_up_at: Option<Instant>,
    /// What production has and the root has not.
    pub left_out: Vec<String>,
    /// Tables that are new on production, and can be taken over.
    pub new_tables: Vec<String>,
    /// Why they could not be, where that was tried.
    pub adding_error: Option<String>,
    /// Tables that are new on production, and cannot be taken over as they are.
    pub not_followed: Vec<SkippedTable>,
    /// What else changed in production's schema, each with what to do.
    pub schema_changes: Vec<String>,
    /// Why production's schema cannot be looked at, where that has failed for a while.
    pub look_error: Option<String>,
    /// When the last look at production's schema that succeeded began: what is said of it is of then.
    pub looked_at: Option<Instant>,
    /// Transactions of production's that have to end before it goes on.
    pub waits_for: Vec<String>,
    /// Tables whose `TRUNCATE` has come since the lookout took these.
    pub(crate) emptied: BTreeSet<u32>,
    /// How often the root's tables have been made to follow production's.
    pub(crate) alterations: u64,
    /// Why the last attempt ended.
    pub last_error: Option<String>,
}

/// What was seen of production's schema so long ago is of this moment to whoever asks.
const LOOK_AGE_MAX: Duration = Duration::from_secs(5);

impl LogicalStatus {
    /// How old what is said of production's schema is, if that is more than a few seconds.
    pub fn look_age(&self) -> Option<Duration> {
        self.looked_at.map(|at| at.elapsed()).filter(|age| *age > LOOK_AGE_MAX)
    }

    /// Bytes of production's log that are not applied.
    pub fn lag_bytes(&self) -> u64 {
        self.production_lsn.saturating_sub(self.applied_lsn)
    }

    /// For how long something has been missing; `None`: something always was.
    pub fn lag(&self) -> Option<Duration> {
        if self.is_streaming && self.lag_bytes() == 0 {
            return Some(Duration::ZERO);
        }
        self.caught_up_at.map(|at| at.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_look_is_said_to_be_one() {
        let looked = |ago: Duration| LogicalStatus { looked_at: Instant::now().checked_sub(ago), ..Default::default() };
        assert_eq!(looked(Duration::ZERO).look_age(), None);
        let age = looked(2 * LOOK_AGE_MAX).look_age().expect("the host has been up for so long");
        assert!(age >= 2 * LOOK_AGE_MAX, "{age:?}");
        assert_eq!(LogicalStatus::default().look_age(), None, "nothing was looked at yet");
    }
}
