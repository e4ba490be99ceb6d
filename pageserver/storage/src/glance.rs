//! A look at a timeline that does not load it: what garbage collection would find there.

use std::collections::BTreeMap;

use ardent_types::{Generation, Lsn, TenantId, TimelineId};

use crate::engine::Engine;
use crate::error::TimelineError;
use crate::layer::LayerDesc;
use crate::manifest::{Ancestor, Manifest, TimelineFacts};
use crate::manifest_log::ManifestLog;
use crate::object_names::TimelineNames;
use crate::plan::unneeded;
use crate::position::RecordPosition;
use crate::retention::RETIRED;
use crate::timeline::Timeline;

/// A timeline as its newest manifest, and the pins of its branches, describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct Glance {
    /// The manifest's.
    pub generation: Generation,
    /// What never changes about it.
    pub facts: TimelineFacts,
    /// Where it hangs.
    pub ancestor: Option<Ancestor>,
    /// Its import is not finished.
    pub is_importing: bool,
    /// Its deletion has begun; whoever loads it finishes that.
    pub is_deleted: bool,
    /// The last record whose effects are durable.
    pub durable_record: RecordPosition,
    /// The oldest LSN that can be read without a pin.
    pub retained_from: Lsn,
    /// Its own layer files, in bytes.
    pub stored_bytes: u64,
    /// There are files that nothing needs any more.
    pub has_garbage: bool,
    /// However much time passes, there is no more to be given up: it has nothing of its own, or all but its last state is given up.
    pub is_settled: bool,
    /// When its first lease expires, in seconds since the Unix epoch.
    pub lease_expires_at_s: Option<u64>,
    metadata: BTreeMap<String, serde_json::Value>,
}

impl Glance {
    fn of(manifest: &Manifest, pins: &[Lsn]) -> Glance {
        let layers: &[LayerDesc] = &manifest.layers;
        let retained_from = manifest.retained_from;
        let leased = manifest.leases.values().map(|lease| lease.lsn);
        let pins: Vec<Lsn> = pins.iter().copied().chain(leased).collect();
        Glance {
            generation: manifest.generation,
            facts: manifest.facts,
            ancestor: manifest.ancestor,
            is_importing: manifest.importing,
            is_deleted: manifest.deleted,
            durable_record: manifest.last_record,
            retained_from,
            stored_bytes: layers.iter().map(|layer| layer.bytes).sum(),
            has_garbage: !unneeded(layers, retained_from, &pins).is_empty(),
            is_settled: layers.is_empty() || retained_from == RETIRED || retained_from >= manifest.last_record.end,
            lease_expires_at_s: manifest.leases.values().map(|lease| lease.expires_at_s).min(),
            metadata: manifest.metadata.clone(),
        }
    }

    /// As [`Timeline::get_metadata`].
    pub fn get_metadata(&self, name: &str) -> Option<&serde_json::Value> {
        self.metadata.get(name)
    }
}

impl Timeline {
    /// The same of a loaded timeline, as far as it is durable.
    pub fn glance(&self) -> Result<Glance, TimelineError> {
        let pins: Vec<Lsn> = self.children()?.iter().map(|(_, point)| point.lsn).collect();
        Ok(Glance::of(&self.manifest_now(), &pins))
    }
}

impl Engine {
    /// Looks at a timeline without loading it, and without taking it from whoever has it. `None` if there is none.
    pub fn glance(&self, tenant: TenantId, timeline: TimelineId) -> Result<Option<Glance>, TimelineError> {
        let names = TimelineNames { tenant, timeline };
        let Some(log) = ManifestLog::load(self.shared(), names)? else { return Ok(None) };
        let pins: Vec<Lsn> = names.branches(&*self.shared().config.store)?.iter().map(|(_, point)| point.lsn).collect();
        Ok(Some(Glance::of(log.current(), &pins)))
    }
}
