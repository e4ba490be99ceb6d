//! What an agent writes down while its Postgres serves, for the one that takes over if it is lost. Table: `docs/formats/compute-dir.md`.
//!
//! Invariant: whoever takes over finds the term that the log was written in last, or one that is not: then it does not take over. So what cannot be
//! written down, on a full disk, costs no more than that.

use std::path::{Path, PathBuf};

use ardent_api::compute::ComputeSpec;
use ardent_types::{Lsn, TenantId, Term, TimelineId, with_causes};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::memory::{read_json, write_json};

const FORMAT_VERSION: u32 = 1;

/// `serving.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    version: u32,
    tenant: TenantId,
    timeline: TimelineId,
    pg_major: u32,
    /// The last term that the log was written in.
    term: Term,
    #[serde(flatten)]
    held: HeldLease,
}

/// The lease that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldLease {
    /// What absent pages are read at.
    pub(crate) base_lsn: Lsn,
    /// What the presence map was made at.
    pub(crate) map_lsn: Lsn,
    /// It goes by the second of the two names.
    pub(crate) second: bool,
}

/// The file, kept true.
#[derive(Debug)]
pub(crate) struct Serving {
    path: PathBuf,
    facts: Mutex<Facts>,
}

impl Serving {
    /// Writes down how a Postgres of `spec` begins to serve.
    pub(crate) fn begin(path: &Path, spec: &ComputeSpec, term: Term, held: HeldLease) -> Self {
        let (tenant, timeline, pg_major) = (spec.tenant, spec.timeline, spec.pg_major);
        let facts = Facts { version: FORMAT_VERSION, tenant, timeline, pg_major, term, held };
        let serving = Serving { path: path.to_owned(), facts: Mutex::new(facts) };
        serving.change(|_| {});
        serving
    }

    /// What was written down of the Postgres that serves; `None`: nothing that can be read, or another's.
    pub(crate) fn of_left(path: &Path, spec: &ComputeSpec) -> Option<Self> {
        let facts: Facts = read_json(path)?;
        let is_ours = facts.version == FORMAT_VERSION
            && (facts.tenant, facts.timeline) == (spec.tenant, spec.timeline)
            && facts.pg_major == spec.pg_major;
        is_ours.then(|| Serving { path: path.to_owned(), facts: Mutex::new(facts) })
    }

    pub(crate) fn term(&self) -> Term {
        self.facts.lock().term
    }

    pub(crate) fn held(&self) -> HeldLease {
        self.facts.lock().held
    }

    /// From now on the log is written in this term.
    pub(crate) fn set_term(&self, term: Term) {
        self.change(|facts| facts.term = term);
    }

    /// From now on this lease is held.
    pub(crate) fn set_held(&self, held: HeldLease) {
        self.change(|facts| facts.held = held);
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.facts.lock();
        change(&mut facts);
        if let Err(error) = write_json(&self.path, &*facts) {
            let error = with_causes(&error);
            tracing::warn!(
                error,
                "Postgres will end with this agent: what another would need to take it over is not written down"
            );
        }
    }
}
