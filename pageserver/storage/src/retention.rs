//! Garbage collection: history before a horizon goes, but for what branch points and leases hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ardent_types::Lsn;

use crate::error::TimelineError;
use crate::layer::LayerDesc;
use crate::manifest::Manifest;
use crate::plan::unneeded;
use crate::timeline::Timeline;

/// What a timeline retains that nobody reads itself any more: nothing is at or past it.
pub(crate) const RETIRED: Lsn = Lsn::MAX;

/// What a garbage collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layer files that nothing needs any more.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
}

impl Timeline {
    /// Gives up history before `horizon` where no branch point and no lease needs it, and the files that only that needed. Branches can't
    /// be made meanwhile (checklist 58); reads and writes go on.
    pub fn collect_garbage(&self, horizon: Lsn) -> Result<Collected, TimelineError> {
        let _compacting = self.compacting.lock();
        if self.is_importing() {
            return Ok(Collected::default());
        }
        // Not past what is durable: after a restart the timeline begins there.
        let horizon = horizon.min(self.disk_consistent_lsn());
        self.collect(horizon)
    }

    /// Gives up all of this timeline's own history but what branch points and leases hold, now and whenever garbage is collected
    /// again. It is never read from its head again, and takes no new branches but at points where others hang.
    pub fn retire(&self) -> Result<Collected, TimelineError> {
        let _compacting = self.compacting.lock();
        if self.is_importing() {
            return Err(TimelineError::Importing { timeline: self.id() });
        }
        self.collect(RETIRED)
    }

    /// Whether [`Timeline::retire`] was called.
    pub fn is_retired(&self) -> bool {
        self.retained_from() == RETIRED
    }

    /// With compaction held back.
    fn collect(&self, horizon: Lsn) -> Result<Collected, TimelineError> {
        let _pinning = self.pinning.write();
        let now = self.shared.told_s();
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
        self.give_up_archived_wal()?;
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
