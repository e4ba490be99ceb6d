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
    /// Transactions of production's that have to end before it goes on.
    pub waits_for: Vec<String>,
    /// Tables whose `TRUNCATE` has come since the lookout took these.
    pub(crate) emptied: BTreeSet<u32>,
    /// How often the root's tables have been made to follow production's.
    pub(crate) alterations: u64,
    /// Why the last attempt ended.
    pub last_error: Option<String>,
}

impl LogicalStatus {
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
