//! What the agent remembers in the compute's folder between runs. Tables: `docs/formats/compute-dir.md`.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ardent_api::compute::ComputeSpec;
use ardent_types::{Lsn, TenantId, Term, TimelineId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::ComputeError;

/// Version of both files.
const FORMAT_VERSION: u32 = 2;

/// `agent.json`: facts about this compute that outlive its data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    version: u32,
    timeline: TimelineId,
    /// Name of the lease on the base LSN: this compute's alone.
    pub(crate) lease: String,
}

impl Memory {
    /// Reads the memory of `timeline`'s compute, or begins one. A file that cannot be read is begun anew: nothing in it is
    /// irreplaceable.
    pub(crate) fn open(path: &Path, timeline: TimelineId) -> Self {
        let ours = |memory: &Memory| memory.version == FORMAT_VERSION && memory.timeline == timeline;
        read_json(path).filter(ours).unwrap_or_else(|| Memory {
            version: FORMAT_VERSION,
            timeline,
            lease: format!("compute-{}", TenantId::generate()),
        })
    }

    pub(crate) fn save(&self, path: &Path) -> Result<(), ComputeError> {
        write_json(path, self)
    }
}

/// `warm.json`: the data directory beside it was stopped cleanly, and under these conditions it can be started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WarmMarker {
    version: u32,
    tenant: TenantId,
    timeline: TimelineId,
    pg_major: u32,
    /// Unsynced files are only as good as the running kernel's cache.
    boot_id: String,
    /// The term that wrote it.
    pub(crate) term: Term,
    /// End of the shutdown checkpoint: where the quorum's log must end.
    pub(crate) end_lsn: Lsn,
    /// Start of the shutdown checkpoint.
    pub(crate) checkpoint_lsn: Lsn,
    /// What absent pages are read at.
    pub(crate) base_lsn: Lsn,
    /// What the presence map was made at.
    pub(crate) map_lsn: Lsn,
    /// When the lease on it runs out, in seconds since the Unix epoch.
    lease_until_s: u64,
}

/// What a warm marker is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WarmFacts {
    pub(crate) term: Term,
    pub(crate) end_lsn: Lsn,
    pub(crate) checkpoint_lsn: Lsn,
    pub(crate) base_lsn: Lsn,
    pub(crate) map_lsn: Lsn,
    pub(crate) lease_until_s: u64,
}

impl WarmMarker {
    pub(crate) fn write(path: &Path, spec: &ComputeSpec, facts: WarmFacts) -> Result<(), ComputeError> {
        let WarmFacts { term, end_lsn, checkpoint_lsn, base_lsn, map_lsn, lease_until_s } = facts;
        let marker = WarmMarker {
            version: FORMAT_VERSION,
            tenant: spec.tenant,
            timeline: spec.timeline,
            pg_major: spec.pg_major,
            boot_id: boot_id()?,
            term,
            end_lsn,
            checkpoint_lsn,
            base_lsn,
            map_lsn,
            lease_until_s,
        };
        write_json(path, &marker)
    }

    /// Takes the marker away and gives it, if the directory is `spec`'s and this host has not been restarted. From here on
    /// the directory counts as dirty: whoever starts it writes a new marker when it has stopped.
    pub(crate) fn take(path: &Path, spec: &ComputeSpec) -> Option<WarmMarker> {
        let marker: WarmMarker = read_json(path)?;
        std::fs::remove_file(path).ok()?;
        let ours = marker.version == FORMAT_VERSION
            && (marker.tenant, marker.timeline) == (spec.tenant, spec.timeline)
            && marker.pg_major == spec.pg_major
            && boot_id().is_ok_and(|boot_id| boot_id == marker.boot_id)
            && unix_now_s() < marker.lease_until_s;
        ours.then_some(marker)
    }
}

pub(crate) fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn boot_id() -> Result<String, ComputeError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    std::fs::read_to_string(path).map(|id| id.trim().to_owned()).map_err(ComputeError::io("cannot read", path))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = std::fs::read(path).ok()?;
    serde_json::from_slice(&bytes).map_err(|error| tracing::warn!(%error, path = %path.display(), "not readable")).ok()
}

/// Writes beside and renames, so that a reader finds the old file or the new one.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ComputeError> {
    let text = serde_json::to_vec_pretty(value).expect("plain data");
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).map_err(ComputeError::io("cannot write", &beside))?;
    std::fs::rename(&beside, path).map_err(ComputeError::io("cannot replace", path))
}
