//! How many pages went to clients, per timeline: what a diff or a start cost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ardent_types::{TenantId, TimelineId};
use parking_lot::Mutex;

/// Counters of timelines that somebody was connected to since the page server started.
#[derive(Debug, Default)]
pub(crate) struct PagesSent {
    by_timeline: Mutex<HashMap<(TenantId, TimelineId), Arc<AtomicU64>>>,
}

impl PagesSent {
    /// A timeline's counter, which its connections add to.
    pub fn of(&self, tenant: TenantId, timeline: TimelineId) -> Arc<AtomicU64> {
        Arc::clone(self.by_timeline.lock().entry((tenant, timeline)).or_default())
    }

    /// The timeline is gone.
    pub fn forget(&self, tenant: TenantId, timeline: TimelineId) {
        self.by_timeline.lock().remove(&(tenant, timeline));
    }
}
