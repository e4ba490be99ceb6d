//! Safekeepers, as control's users see them.

use ardent_types::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

/// `GET /v1/safekeepers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafekeepersReply {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION).
    pub schema_version: u32,
    /// In their order.
    pub safekeepers: Vec<SafekeeperInfo>,
}

/// A safekeeper. What it has not told is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafekeeperInfo {
    /// From 1.
    pub number: u32,
    /// Where it listens.
    pub address: String,
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
