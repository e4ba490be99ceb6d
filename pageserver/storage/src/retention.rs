//! What is kept, and what goes: leases, branch points, garbage collection.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ardent_types::Lsn;

use crate::error::{CommitError, TimelineError};
use crate::layer::LayerDesc;
use crate::manifest::{Lease, Manifest};
use crate::plan::unneeded;
use crate::timeline::Timeline;

/// What a garbage collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layer files that nothing needs any more.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
}

impl Timeline {
    /// Pins `lsn` for `ttl` from now, durably, for reads and branches. The same name again moves and renews. An LSN before this
    /// timeline's beginning is pinned on the ancestor that has it.
    pub fn lease(&self, name: &str, lsn: Lsn, ttl: Duration) -> Result<(), TimelineError> {
        if let Some(ancestor) = self.ancestor.filter(|ancestor| lsn < ancestor.point.lsn) {
            if let Some(parent) = self.parent()? {
                return parent.lease(&format!("{}/{name}", self.id()), lsn, ttl);
            }
            return Err(TimelineError::NotFound { tenant: self.tenant(), timeline: ancestor.timeline });
        }
        let _pinning = self.pinning.read();
        let last = self.progress.end();
        if lsn > last {
            return Err(TimelineError::NotYet { lsn, last });
        }
        let retained_from = self.retained_from();
        let is_pinned = self.leases.read().values().any(|lease| lease.lsn == lsn);
        if lsn < retained_from && !is_pinned {
            return Err(TimelineError::Retired { lsn, retained_from });
        }
        let lease = Lease { lsn, expires_at_s: now_s().saturating_add(ttl.as_secs()) };
        Ok(self.change_leases(|manifest| {
            manifest.leases.insert(name.to_owned(), lease);
        })?)
    }

    /// Ends a lease before its time. There need not be one.
    pub fn release(&self, name: &str) -> Result<(), TimelineError> {
        if self.leases.read().contains_key(name) {
            self.change_leases(|manifest| {
                manifest.leases.remove(name);
            })?;
        } else if let Some(parent) = self.parent()? {
            parent.release(&format!("{}/{name}", self.id()))?;
        }
        Ok(())
    }

    fn change_leases(&self, change: impl FnOnce(&mut Manifest)) -> Result<(), CommitError> {
        self.commit(change, |manifest| *self.leases.write() = Arc::new(manifest.leases.clone()))
    }

    /// Gives up history before `horizon` where no branch point and no lease needs it, and the files that only that needed. Branches can't
    /// be made meanwhile (checklist 58); reads and writes go on.
    pub fn collect_garbage(&self, horizon: Lsn) -> Result<Collected, TimelineError> {
        let _compacting = self.compacting.lock();
        if self.is_importing() {
            return Ok(Collected::default());
        }
        // Not past what is durable: after a restart the timeline begins there.
        let horizon = horizon.min(self.disk_consistent_lsn());
        let _pinning = self.pinning.write();
        let now = now_s();
        let has_expired = self.leases.read().values().any(|lease| lease.expires_at_s <= now);
        if horizon > self.retained_from() || has_expired {
            let set = |manifest: &mut Manifest| {
                manifest.retained_from = manifest.retained_from.max(horizon);
                manifest.leases.retain(|_, lease| lease.expires_at_s > now);
            };
            self.commit(set, |manifest| {
                self.retained_from.store(manifest.retained_from.get(), Ordering::Release);
                *self.leases.write() = Arc::new(manifest.leases.clone());
            })?;
        }
        // Listed after the limit is durable: whoever makes a branch writes its marker first and looks at the limit then.
        let mut pins: Vec<Lsn> = self.children()?.iter().map(|(_, point)| point.lsn).collect();
        pins.extend(self.leases.read().values().map(|lease| lease.lsn));
        let files = self.layer_set().files.clone();
        let descs: Vec<LayerDesc> = files.layers().iter().map(|layer| layer.desc.clone()).collect();
        let gone: Vec<_> =
            unneeded(&descs, self.retained_from(), &pins).into_iter().map(|at| files.layers()[at].clone()).collect();
        if gone.is_empty() {
            return Ok(Collected::default());
        }
        self.replace_layers(&gone, &[])?;
        Ok(Collected { files: gone.len(), bytes: gone.iter().map(|layer| layer.desc.bytes).sum() })
    }
}

fn now_s() -> u64 {
    // A clock before 1970 makes leases last, which is the safe side.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
