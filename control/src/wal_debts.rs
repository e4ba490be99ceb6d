//! Timelines on safekeepers of which one may be away: a quorum is enough to make or delete one, and who was away is told later.
//!
//! What it has yet to be told is recorded in the transaction that makes the branch ready, or forgets it. It is told by the
//! housekeeper, and before a branch is woken, whose writer may need it for a quorum.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::{info, warn};

use ardent_types::TimelineId;

use crate::context::Context;
use crate::deps::StorageErrorKind;
use crate::store::{StoreError, WalDebt, WalDuty};

/// One at a time makes, deletes or settles what a timeline is on the safekeepers: a timeline that is made late must not come
/// after its deletion.
#[derive(Default)]
pub(crate) struct TimelineLocks(Mutex<HashMap<TimelineId, Arc<tokio::sync::Mutex<()>>>>);

impl TimelineLocks {
    pub fn of(&self, timeline: TimelineId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock();
        // Locks that nobody holds or waits for are only ever referred to from here.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(timeline).or_default().clone()
    }
}

impl Context {
    /// Tells safekeepers that were away what they missed of `timeline`, or of all. One that is away still is asked again next time.
    pub async fn settle_wal_debts(&self, timeline: Option<TimelineId>) -> Result<(), StoreError> {
        let mut away = HashSet::new();
        for debt in self.store.wal_debts(timeline)? {
            if away.contains(&debt.safekeeper) {
                continue;
            }
            let lock = self.timeline_locks.of(debt.timeline);
            let _guard = lock.lock().await;
            // Deleted meanwhile, or settled by somebody else.
            if !self.store.wal_debts(Some(debt.timeline))?.contains(&debt) {
                continue;
            }
            if !self.settle(&debt).await? {
                away.insert(debt.safekeeper);
            }
        }
        Ok(())
    }

    /// False if the safekeeper is away.
    async fn settle(&self, debt: &WalDebt) -> Result<bool, StoreError> {
        let WalDebt { tenant, timeline, safekeeper, duty } = debt;
        if !self.wal_service.addrs().contains(safekeeper) {
            warn!(%safekeeper, %timeline, "a safekeeper that missed something is not configured any more");
            return Ok(false);
        }
        let told = match duty {
            WalDuty::Create => self.wal_service.create_on(safekeeper, *tenant, *timeline).await,
            WalDuty::Delete => self.wal_service.delete_on(safekeeper, *tenant, *timeline).await,
        };
        match told {
            Ok(()) => {
                info!(%safekeeper, %timeline, ?duty, "a safekeeper that was away was told what it missed");
                self.store.remove_wal_debt(debt)?;
                Ok(true)
            }
            Err(error) if error.kind == StorageErrorKind::Unavailable => Ok(false),
            Err(error) => {
                warn!(%safekeeper, %timeline, ?duty, %error, "a safekeeper that was away cannot do what it missed");
                Ok(true)
            }
        }
    }
}
