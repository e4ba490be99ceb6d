//! Management: timelines, imports, leases, status. These messages are JSON inside a frame.

use serde::{Deserialize, Serialize};

use ardent_types::{Lsn, PgTli, SystemId, Term, TimelineId, WalSegmentSize};

use crate::addr::ServiceAddr;

/// What an import needs to know before the first file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSpec {
    /// Major version of the source.
    pub pg_major: u32,
    /// System identifier of the source.
    pub system_id: SystemId,
    /// Postgres's timeline id of the source.
    pub pg_tli: PgTli,
    /// WAL segment size of the source in bytes.
    pub wal_segment_size: WalSegmentSize,
    /// Whether the source has data checksums (`show data_checksums`): then pages up to `start_lsn` are checked on import.
    pub data_checksums: bool,
    /// The redo LSN from `backup_label`: WAL from here on makes the pages consistent.
    pub start_lsn: Lsn,
}

/// A management request. On a connection bound to a timeline it concerns that timeline; otherwise `timeline` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ManageRequest {
    /// Starts an import into a new root timeline (the connection's).
    ImportBegin {
        /// Facts about the source.
        spec: ImportSpec,
    },
    /// All files have been sent. WAL from `start_lsn` on follows through the safekeepers; the timeline can be read and branched from
    /// once WAL has reached `end_lsn`.
    ImportFinish {
        /// The backup's end.
        end_lsn: Lsn,
    },
    /// Where a branch would begin that is made with the same `at`; nothing is written. Answered with [`ManageReply::Branch`].
    BranchPoint {
        /// The timeline to branch from.
        timeline: TimelineId,
        /// As in [`ManageRequest::CreateBranch`].
        at: Option<Lsn>,
    },
    /// Makes a branch. Idempotent: the same call again gives the same answer.
    CreateBranch {
        /// Id of the new timeline.
        timeline: TimelineId,
        /// Its ancestor.
        ancestor: TimelineId,
        /// Where: the last record end at or below this; absent: the last record ingested.
        at: Option<Lsn>,
        /// As in [`ManageRequest::Describe`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        description: Option<serde_json::Value>,
    },
    /// Makes a root timeline that holds what another holds at an LSN, and nothing else: no history, no ancestor, nothing that was
    /// dropped or overwritten. Takes as long as reading all of it does. Idempotent. Answered with [`ManageReply::Branch`].
    CutRoot {
        /// Id of the new timeline.
        timeline: TimelineId,
        /// What it is made of.
        source: TimelineId,
        /// Of what it holds where: the last record of the source itself that ends at or below this.
        at: Lsn,
        /// As in [`ManageRequest::Describe`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        description: Option<serde_json::Value>,
    },
    /// Keeps with the timeline what it is to whoever manages it, in place of what was kept before. It is never looked into.
    Describe {
        /// Which.
        timeline: TimelineId,
        /// At most [`DESCRIPTION_LEN_MAX`](super::DESCRIPTION_LEN_MAX) bytes of JSON.
        description: serde_json::Value,
    },
    /// Forgets a timeline and gives its space back. Refused while it has children.
    DeleteTimeline {
        /// Which.
        timeline: TimelineId,
    },
    /// Facts about one timeline.
    TimelineStatus {
        /// Which.
        timeline: TimelineId,
    },
    /// All timelines of the tenant.
    ListTimelines,
    /// Receive this timeline's WAL from these safekeepers from now on.
    FollowWal {
        /// Which.
        timeline: TimelineId,
        /// Where its WAL is.
        safekeepers: Vec<ServiceAddr>,
    },
    /// From now on the WAL of all timelines, of this tenant and of others, is at these safekeepers. Needs rights for every tenant.
    NameSafekeepers {
        /// Where it is.
        safekeepers: Vec<ServiceAddr>,
    },
    /// Stop receiving this timeline's WAL once everything committed is ingested.
    UnfollowWal {
        /// Which.
        timeline: TimelineId,
    },
    /// The last commit at or before a time. Seconds since the Unix epoch.
    LsnForTimestamp {
        /// Which.
        timeline: TimelineId,
        /// Microseconds since the Unix epoch.
        timestamp_us: i64,
    },
    /// Where what ran at an LSN began to write. A diff with that LSN must look at everything since: what such a transaction wrote
    /// before, and committed after, is in blocks that have not changed since.
    OldestRunning {
        /// Which.
        timeline: TimelineId,
        /// The LSN.
        lsn: Lsn,
    },
    /// Relations' files that no catalog names, at the last record ingested. Reads every database's pg_class.
    FindUnnamedFiles {
        /// Which.
        timeline: TimelineId,
    },
    /// Pins an LSN against garbage collection, durably, until released or expired. The same name again renews.
    Lease {
        /// Which timeline.
        timeline: TimelineId,
        /// Unique per holder.
        name: String,
        /// What to pin.
        lsn: Lsn,
        /// For how long from now; 0 releases.
        ttl_s: u64,
    },
    /// Nobody reads this timeline itself any more: of its history only what branches and leases hold is kept.
    RetireTimeline {
        /// Which.
        timeline: TimelineId,
    },
    /// How long this timeline's history is kept.
    SetRetention {
        /// Which.
        timeline: TimelineId,
        /// Seconds; absent: as the page server was told at its start.
        retention_s: Option<u64>,
    },
    /// All parts of what a compute leaves have been sent: from now on it is what was kept of the timeline, in place of what was
    /// kept before.
    KeepState {
        /// Which timeline.
        timeline: TimelineId,
        /// Whose.
        at: KeptAt,
        /// How many parts were sent.
        parts: u32,
    },
    /// What is kept of a timeline.
    KeptState {
        /// Which timeline.
        timeline: TimelineId,
    },
    /// The compute goes on from its own folder: what is kept is not its state any more. Fine if it is kept no longer.
    OutdateKeptState {
        /// Which timeline.
        timeline: TimelineId,
        /// What was kept.
        at: KeptAt,
    },
}

/// Whose state it is: that of the writer of `term`, which left the log ending at `lsn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAt {
    /// End of the log when the compute was stopped. What was kept is the state of a data directory for as long as it is.
    pub lsn: Lsn,
    /// The writer's term.
    pub term: Term,
}

/// What is kept of a timeline's last compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptState {
    /// Whose.
    pub at: KeptAt,
    /// In how many parts.
    pub parts: u32,
    /// A compute has gone on from there since.
    pub outdated: bool,
}

/// Answer to a [`ManageRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum ManageReply {
    /// Done, nothing to say.
    Done,
    /// The branch exists, or would begin here.
    Branch {
        /// Its branch point: a record end.
        lsn: Lsn,
        /// Start of the record that ends there.
        prev_lsn: Lsn,
    },
    /// One timeline.
    Timeline(TimelineStatus),
    /// All timelines.
    Timelines {
        /// In no order.
        timelines: Vec<TimelineStatus>,
    },
    /// Answer to [`ManageRequest::LsnForTimestamp`].
    LsnForTimestamp {
        /// End of the last record at or before the time.
        lsn: Lsn,
    },
    /// Answer to [`ManageRequest::KeptState`].
    KeptState {
        /// Absent: nothing is kept.
        state: Option<KeptState>,
    },
    /// Answer to [`ManageRequest::OldestRunning`].
    OldestRunning {
        /// No transaction that ran or was prepared at the LSN had written anything up to here. It may be further back than needed.
        lsn: Lsn,
        /// Whether any of them was prepared: those go on on branches, others are aborted there.
        prepared: bool,
        /// Whether that is far enough back. Otherwise one began before what is retained or was imported: which blocks it changed
        /// nobody knows.
        complete: bool,
    },
    /// Answer to [`ManageRequest::FindUnnamedFiles`].
    UnnamedFiles(UnnamedFiles),
}

/// What a comparison of a timeline's files with its catalogs found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnnamedFiles {
    /// As of here.
    pub lsn: Lsn,
    /// Relations that nothing names.
    pub found: u64,
    /// All of their forks together.
    pub bytes: u64,
    /// The first of them, in the order of their numbers.
    pub relations: Vec<UnnamedRelation>,
}

/// A relation whose files no catalog names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnnamedRelation {
    /// Its tablespace's OID.
    pub tablespace: u32,
    /// Its database's OID; 0: shared by all.
    pub database: u32,
    /// The number in its files' names.
    pub file: u32,
    /// All of its forks together.
    pub bytes: u64,
    /// Whether pg_database has its database; otherwise the whole database is left over.
    pub database_exists: bool,
}

/// Facts about a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStatus {
    /// Id.
    pub timeline: TimelineId,
    /// Ancestor; absent for a root.
    pub ancestor: Option<TimelineId>,
    /// Where it branches off.
    pub ancestor_lsn: Lsn,
    /// End of the last record ingested.
    pub last_record_lsn: Lsn,
    /// Start of that record.
    pub prev_record_lsn: Lsn,
    /// Up to where the timeline survives a crash of the page server without WAL from a safekeeper.
    pub disk_consistent_lsn: Lsn,
    /// The oldest LSN that can still be branched from and read.
    pub retained_from_lsn: Lsn,
    /// Major version.
    pub pg_major: u32,
    /// Relation blocks at the head, in bytes; absent in lists and while importing.
    pub logical_size_bytes: Option<u64>,
    /// Bytes of this timeline's own layers in the store.
    pub stored_bytes: u64,
    /// For a root: reads and branches are possible only once `last_record_lsn` has reached this.
    pub consistent_from_lsn: Lsn,
    /// Whether its WAL is being received.
    pub following: bool,
    /// Commit time of the last commit ingested, microseconds since the Unix epoch.
    pub last_commit_us: Option<i64>,
    /// What keeps it from receiving WAL, if anything does.
    #[serde(default)]
    pub problem: Option<String>,
    /// Pages sent to clients that are bound to it, those of base backups included, since the page server started.
    #[serde(default)]
    pub pages_sent: u64,
    /// The oldest LSN of its own that can be read and branched from; absent in lists and while importing.
    #[serde(default)]
    pub oldest_lsn: Option<Lsn>,
    /// Commit time of the last commit at or before that, microseconds since the Unix epoch.
    #[serde(default)]
    pub oldest_commit_us: Option<i64>,
    /// Whether its WAL is taken in slowly, or not at all, because compaction is behind.
    #[serde(default)]
    pub waits_for_compaction: bool,
}
