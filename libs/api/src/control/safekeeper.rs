//! Safekeepers, as control's users see them.

use ardent_types::{DiskId, Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use crate::addr::ServiceAddr;

/// `GET /v1/safekeepers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafekeepersReply {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION).
    pub schema_version: u32,
    /// In their order.
    pub safekeepers: Vec<SafekeeperInfo>,
    /// Of the list of them; 0: they never changed.
    #[serde(default)]
    pub generation: u64,
    /// A change of them that is on its way.
    #[serde(default)]
    pub change: Option<SafekeeperChange>,
}

/// A change of the safekeepers that is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafekeeperChange {
    /// Where it is.
    pub phase: ChangePhase,
    /// Those that join.
    pub adding: Vec<String>,
    /// Those that leave.
    pub removing: Vec<String>,
    /// Of how many timelines this phase is done.
    pub timelines_done: u64,
    /// Of how many there are.
    pub timelines: u64,
    /// What it waits for, if something is in its way.
    pub problem: Option<String>,
}

/// Where a change of the safekeepers is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangePhase {
    /// Those that join get what the others have. Nothing has changed yet.
    Copying,
    /// A majority of the old ones and one of the new ones decide together, until the new ones have all that was committed.
    Joint,
    /// The new ones alone decide; the others are told, and forget.
    Settled,
    /// It was given up: the old ones alone decide, as before; the others are told, and forget.
    Cancelled,
}

impl ChangePhase {
    /// The word that stands for it.
    pub fn as_str(self) -> &'static str {
        match self {
            ChangePhase::Copying => "copying",
            ChangePhase::Joint => "joint",
            ChangePhase::Settled => "settled",
            ChangePhase::Cancelled => "cancelled",
        }
    }

    /// The phase that this word stands for.
    pub fn parse(word: &str) -> Option<Self> {
        let all = [ChangePhase::Copying, ChangePhase::Joint, ChangePhase::Settled, ChangePhase::Cancelled];
        all.into_iter().find(|phase| phase.as_str() == word)
    }
}

/// Body of `POST /v1/safekeepers/change`: one of `count`, or `add` and `remove`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSafekeepersRequest {
    /// How many there are to be. New ones are started by the server, on folders of its own; those with the highest numbers go.
    #[serde(default)]
    pub count: Option<u8>,
    /// Addresses of safekeepers that run already, on empty folders.
    #[serde(default)]
    pub add: Vec<ServiceAddr>,
    /// How many more the server is to start on folders of its own.
    #[serde(default)]
    pub add_own: u8,
    /// Numbers or addresses of those that are to go.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A safekeeper. What it has not told is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafekeeperInfo {
    /// From 1.
    pub number: u32,
    /// Where it listens.
    pub address: String,
    /// Its disk; null as long as they never changed.
    #[serde(default)]
    pub disk: Option<DiskId>,
    /// Whether it answers.
    pub is_up: bool,
    /// Why it has not told the rest.
    pub error: Option<String>,
    /// Free on its disk, in bytes.
    pub disk_free_bytes: Option<u64>,
    /// Size of its disk, in bytes.
    pub disk_size_bytes: Option<u64>,
    /// WAL that it keeps only since another safekeeper lacks it, in bytes.
    pub kept_for_others_bytes: Option<u64>,
    /// Whether WAL goes to the object store.
    pub archives: Option<bool>,
    /// Branches whose WAL cannot be archived now; if there are many, some of them.
    pub archive_stalls: Vec<ArchiveStallInfo>,
    /// How many there are of these.
    pub archive_stalls_total: u64,
}

/// A branch whose WAL cannot be archived: from there on nothing of it leaves the safekeeper's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveStallInfo {
    /// The branch, if one that has a name is on the timeline.
    pub branch: Option<String>,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The start of the segment that was tried.
    pub lsn: Lsn,
    /// For how long it has been tried, in seconds.
    pub for_s: u64,
    /// Why it failed.
    pub error: String,
}
