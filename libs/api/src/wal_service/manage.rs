//! Management: timelines and their status. These messages are JSON inside a frame.

use serde::{Deserialize, Serialize};

use ardent_types::{DiskId, Lsn, PgTli, SystemId, TenantId, Term, TimelineId, WalSegmentSize};

use super::members::{CopySource, MemberStanding, Membership, PromisedTerm, TimelineOutline};

/// What a safekeeper must know to keep a timeline's WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSpec {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// Major version.
    pub pg_major: u32,
    /// System identifier.
    pub system_id: SystemId,
    /// Postgres's timeline id, as in the names of segment files.
    pub pg_tli: PgTli,
    /// WAL segment size in bytes.
    pub wal_segment_size: WalSegmentSize,
    /// The first byte of WAL that the timeline's writers write: a record boundary.
    pub start_lsn: Lsn,
    /// Start of the record that ends at `start_lsn`; [`Lsn::INVALID`] if not known.
    pub prev_lsn: Lsn,
    /// The timeline that this one branches off and where. If this safekeeper has its WAL, the first segment begins with it.
    pub ancestor: Option<Ancestor>,
}

/// Where a timeline branches off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The branch point.
    pub lsn: Lsn,
}

/// A management request. Creating and deleting need management rights, the others read rights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ManageRequest {
    /// Makes a timeline. Idempotent: the same specification again is [`ManageReply::Done`].
    CreateTimeline {
        /// Its properties.
        spec: TimelineSpec,
    },
    /// Forgets a timeline and its WAL. Idempotent.
    DeleteTimeline {
        /// Which.
        timeline: TimelineId,
    },
    /// Facts about one timeline.
    TimelineStatus {
        /// Which.
        timeline: TimelineId,
    },
    /// The ids of all timelines of the connection's tenant.
    ListTimelines,
    /// Facts about the safekeeper as a whole. Needs read rights that are bound to no tenant.
    SafekeeperStatus,
    /// Which disk this is.
    Identify,
    /// Whether any tenant has a timeline here. Needs read rights that are bound to no tenant.
    IsEmpty,
    /// What one that joins has to begin with.
    TimelineOutline {
        /// Which.
        timeline: TimelineId,
    },
    /// Makes a timeline by copying what is committed of it from a safekeeper that has it. One that is here already is left as it is.
    /// Needs management rights. Answered when it is durable, which may take long.
    CopyTimeline {
        /// From where.
        source: CopySource,
    },
    /// Who the members are, and what they have promised: taken if newer than what is known. A writer that goes by an older generation is
    /// refused from then on. Needs management rights.
    Configure {
        /// Which.
        timeline: TimelineId,
        /// The members.
        membership: Membership,
        /// The promise.
        promise: Option<PromisedTerm>,
    },
}

/// Answer to a [`ManageRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum ManageReply {
    /// Done, nothing to say.
    Done,
    /// One timeline.
    Timeline(TimelineStatus),
    /// All timelines.
    Timelines {
        /// In no order.
        timelines: Vec<TimelineId>,
    },
    /// The safekeeper.
    Safekeeper(SafekeeperStatus),
    /// Its disk.
    Disk {
        /// The id.
        disk: DiskId,
    },
    /// Answer to [`ManageRequest::IsEmpty`].
    Empty {
        /// Whether it is.
        is_empty: bool,
    },
    /// Answer to [`ManageRequest::TimelineOutline`].
    Outline(Box<TimelineOutline>),
    /// Answer to [`ManageRequest::Configure`].
    Standing(Box<MemberStanding>),
}

/// Most timelines in [`SafekeeperStatus::archive_stalls`].
pub const ARCHIVE_STALLS_MAX: usize = 16;

/// Facts about a safekeeper as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafekeeperStatus {
    /// Free on the disk of its folder, in bytes.
    pub disk_free_bytes: u64,
    /// Size of that disk, in bytes.
    pub disk_size_bytes: u64,
    /// WAL of timelines in use that it keeps only since another safekeeper lacks it, in bytes.
    pub kept_for_others_bytes: u64,
    /// Whether WAL goes to an archive.
    pub archives: bool,
    /// Timelines whose WAL could not be archived when that was last tried; the oldest [`ARCHIVE_STALLS_MAX`].
    pub archive_stalls: Vec<ArchiveStall>,
    /// How many there are of these.
    pub archive_stalls_total: u64,
}

/// A timeline whose WAL cannot be archived. Nothing of it from there on is trimmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveStall {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// The start of the segment that was tried.
    pub lsn: Lsn,
    /// For how long it has been tried, in seconds.
    pub for_s: u64,
    /// Why it failed.
    pub message: String,
}

/// Facts about a timeline at one safekeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStatus {
    /// Its properties.
    pub spec: TimelineSpec,
    /// The highest term promised.
    pub term: Term,
    /// End of the durable log.
    pub flush_lsn: Lsn,
    /// Up to where the log is known to be committed; a record end.
    pub commit_lsn: Lsn,
    /// The oldest byte that is kept.
    pub oldest_lsn: Lsn,
    /// What followers have made durable.
    pub durable_lsn: Lsn,
}
