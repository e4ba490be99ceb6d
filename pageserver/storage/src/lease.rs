//! Leases: named, durable holds on an LSN that garbage collection treats like a branch point.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ardent_types::Lsn;

use crate::error::TimelineError;
use crate::manifest::{Lease, Manifest};
use crate::timeline::Timeline;

impl Timeline {
    /// Holds `lsn` under `name` for `ttl` from now; the same name again renews or moves it. A `ttl` of zero gives it back. It ends by the time
    /// that the engine is told ([`crate::Engine::tell_time`]), and lasts longer where the host's clock is ahead of that.
    ///
    /// Errors if `lsn` is ahead of what was ingested, or is retained by nothing any more: a lease that was lost cannot be taken
    /// again.
    /// An LSN before this timeline's beginning is held on the ancestor that has it.
    pub fn lease(&self, name: &str, lsn: Lsn, ttl: Duration) -> Result<(), TimelineError> {
        if let Some(ancestor) = self.ancestor() {
            let is_before = lsn < ancestor.point.lsn;
            if is_before || ttl.is_zero() {
                let gone = TimelineError::NotFound { tenant: self.tenant(), timeline: ancestor.timeline };
                self.parent()?.ok_or(gone)?.lease(&format!("{}/{name}", self.id()), lsn, ttl)?;
            }
            if is_before && !ttl.is_zero() {
                return Ok(());
            }
        }
        if ttl.is_zero() && !self.leases.read().contains_key(name) {
            return Ok(());
        }
        let _pinning = self.pinning.read();
        let told_s = self.shared.told_s();
        // Where what is told is behind, the lease is not to be over by the time that is told next.
        let expires_at_s = now_s().max(told_s).saturating_add(ttl.as_secs());
        if !ttl.is_zero() {
            self.check_can_lease(lsn)?;
        }
        let change = |manifest: &mut Manifest| {
            manifest.leases.retain(|_, lease| lease.expires_at_s > told_s);
            if ttl.is_zero() {
                manifest.leases.remove(name);
            } else {
                manifest.leases.insert(name.to_owned(), Lease { lsn, expires_at_s });
            }
        };
        self.commit(change, |manifest| *self.leases.write() = Arc::new(manifest.leases.clone()))?;
        Ok(())
    }

    fn check_can_lease(&self, lsn: Lsn) -> Result<(), TimelineError> {
        let last = self.last_record().end;
        if lsn > last {
            return Err(TimelineError::NotYet { lsn, last });
        }
        // Where the timeline begins, its own branch point holds the ancestor's history.
        let is_origin = self.ancestor().is_some_and(|ancestor| ancestor.point.lsn == lsn);
        let is_held = is_origin || self.leases.read().values().any(|lease| lease.lsn == lsn);
        let retained_from = self.retained_from();
        if lsn < retained_from && !is_held { Err(TimelineError::Retired { lsn, retained_from }) } else { Ok(()) }
    }
}

/// Seconds since the Unix epoch, as the host's clock says.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
