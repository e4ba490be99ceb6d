//! Branches: creation, state, URLs, diffs.

use crate::page_service::UnnamedFiles;
use crate::policy::BranchPolicy;
use serde::{Deserialize, Serialize};

use ardent_types::{BranchId, Lsn, TenantId, TimelineId};

/// Body of `POST /v1/branches/NAME/diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffRequest {
    /// Only these tables, as `name` or `schema.name`; empty: all.
    #[serde(default)]
    pub tables: Vec<String>,
    /// What to compare with: another branch, or an LSN of the branch's own history; absent: its branch point.
    #[serde(default)]
    pub against: Option<String>,
    /// A checkpoint that the branch has passed, to compare with in place of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only this part; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<DiffPart>,
}

/// A part of a diff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiffPart {
    /// The schema alone.
    Schema,
    /// Rows, sequences and large objects.
    Rows,
}

/// Body of `POST /v1/branches`. Idempotent by name: the same call again answers with the same branch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateBranchRequest {
    /// Its name.
    pub name: String,
    /// The branch to start from; absent: a connector's root.
    #[serde(default)]
    pub from: Option<String>,
    /// The connector whose root is meant where no branch and no template is named; absent: the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connector: Option<String>,
    /// The masked template to start from, in place of a branch; empty: the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked: Option<String>,
    /// `latest`, an LSN, or an ISO 8601 time; absent: now, including all that the parent had committed when the call came.
    #[serde(default)]
    pub at: Option<String>,
    /// Delete it after this many seconds; absent: never.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// Suspend it after this many seconds without activity; 0: never; absent: 300.
    #[serde(default)]
    pub idle_timeout_s: Option<u64>,
    /// The role that the printed URL is for; absent: the connector URL's.
    #[serde(default)]
    pub role: Option<String>,
    /// Answer at once, while the branch is still being made.
    #[serde(default)]
    pub no_wait: bool,
    /// Its limits; 0 is none.
    #[serde(flatten)]
    pub policy: BranchPolicy,
    /// The password of the URL is good for this many seconds; absent: for ever.
    #[serde(default)]
    pub password_expires_s: Option<u64>,
}

/// Body of `PATCH /v1/branches/NAME`. What is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateBranchRequest {
    /// Suspend it after this many seconds without activity; 0: never. A running compute takes it up at its next start.
    #[serde(default)]
    pub idle_timeout_s: Option<u64>,
    /// Delete it this many seconds from now; 0: never.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// Refuse every change, or no longer. Changing a limit ends the sessions of a running compute: it holds from the next
    /// connection on.
    #[serde(default)]
    pub read_only: Option<bool>,
    /// No statement runs longer than this; 0: no limit.
    #[serde(default)]
    pub statement_timeout_ms: Option<u64>,
    /// Most rows changed from when this was first set; 0: no limit.
    #[serde(default)]
    pub max_rows_changed: Option<u64>,
    /// Most bytes of WAL since the branch was made; 0: no limit.
    #[serde(default)]
    pub max_bytes_written: Option<u64>,
    /// Keep history for this many seconds; 0: as the server says. The only setting that a root branch has.
    #[serde(default)]
    pub retention_s: Option<u64>,
}

/// Body of `POST /v1/branches/NAME/reset`: the branch begins anew from its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    /// Where in the parent's history, as for creating; absent: now.
    #[serde(default)]
    pub at: Option<String>,
}

/// Body of `POST /v1/branches/NAME/restore`: the branch becomes what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// An ISO 8601 time, or an LSN of the branch's history.
    pub at: String,
}

/// Answer to [`ResetRequest`], [`RestoreRequest`] and [`RewindRequest`](super::RewindRequest).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchReply {
    /// The branch.
    #[serde(flatten)]
    pub branch: BranchInfo,
    /// The LSN that it begins at.
    pub at_lsn: Lsn,
    /// The checkpoint that it was rewound to; null: that was not asked for.
    #[serde(default)]
    pub checkpoint: Option<String>,
    /// Restoring it to this time undoes the reset, restore or rewind.
    pub undo_at: String,
    /// For as long as that is possible.
    pub undo_until: String,
    /// How long the server took, in microseconds.
    pub server_us: u64,
}

/// Body of `POST /v1/branches/NAME/undelete`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndeleteRequest {
    /// Under this name; absent: the one that it had.
    #[serde(default)]
    pub name: Option<String>,
}

/// Body of `POST /v1/branches/NAME/rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameRequest {
    /// The new name.
    pub name: String,
}

/// `GET /v1/branches/NAME/history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchHistory {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The branch's name.
    pub name: String,
    /// Oldest first; the last is what the branch is on now.
    pub stretches: Vec<HistoryStretch>,
}

/// A time during which nothing but its own writes changed a branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStretch {
    /// The timeline.
    pub timeline_id: TimelineId,
    /// From when the branch was on it.
    pub since: String,
    /// Until when; null: now.
    pub until: Option<String>,
    /// What ended it: `reset` or `restore`.
    pub ended_by: Option<String>,
    /// Until when it can be restored from; null: while the branch is on it.
    pub kept_until: Option<String>,
    /// The oldest LSN that can be restored.
    pub oldest_lsn: Lsn,
    /// Time of the last commit at or before it.
    pub oldest_at: Option<String>,
    /// The newest one.
    pub newest_lsn: Lsn,
    /// Time of the last commit.
    pub newest_at: Option<String>,
}

/// Where a branch is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchState {
    /// Being made.
    Creating,
    /// There.
    Ready,
    /// Being deleted for good.
    Deleting,
    /// Deleted, and can be had back.
    Deleted,
}

/// What a branch's compute does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeState {
    /// A root branch has none, nor has one that is being made or deleted.
    None,
    /// Not running; the next connection wakes it.
    Suspended,
    /// Starting.
    Starting,
    /// Accepting connections.
    Running,
    /// Stopping.
    Stopping,
}

impl ComputeState {
    /// The word, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            ComputeState::None => "none",
            ComputeState::Suspended => "suspended",
            ComputeState::Starting => "starting",
            ComputeState::Running => "running",
            ComputeState::Stopping => "stopping",
        }
    }
}

/// A branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchInfo {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Its id.
    pub id: BranchId,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: BranchState,
    /// The connector it descends from.
    pub connector: String,
    /// A connector's root: read-only, no compute.
    pub is_root: bool,
    /// The branch it was made from; null for a root.
    pub parent: Option<String>,
    /// The masked template that it comes from, itself or by the branches that it was made from.
    #[serde(default)]
    pub masked: Option<String>,
    /// Where it leaves its parent; null for a root.
    pub branch_lsn: Option<Lsn>,
    /// Tenant.
    pub tenant_id: TenantId,
    /// The timeline it stands for.
    pub timeline_id: TimelineId,
    /// When it was made.
    pub created_at: String,
    /// When it will be deleted; null: never.
    pub expires_at: Option<String>,
    /// When it was deleted; null: it is not.
    pub deleted_at: Option<String>,
    /// Until when it can be had back; null: it is not deleted.
    pub kept_until: Option<String>,
    /// History is kept for this many seconds; null: as the server says.
    pub retention_s: Option<u64>,
    /// What its compute does.
    pub compute: ComputeState,
    /// Why its last start failed, if it did.
    pub compute_problem: Option<String>,
    /// Libraries that production preloads (`shared_preload_libraries`) and the running compute lacks, as this host has them not.
    #[serde(default)]
    pub missing_libraries: Vec<String>,
    /// Suspended after this many seconds without activity; 0: never.
    pub idle_timeout_s: u64,
    /// Its limits.
    #[serde(flatten)]
    pub policy: BranchPolicy,
    /// Rows changed since their number was limited; null where it is not.
    pub rows_changed: Option<u64>,
    /// The role of `url`.
    pub role: String,
    /// The database of `url`.
    pub database: String,
    /// The connection string without its password; empty while the branch is being made or deleted.
    pub url: String,
    /// Names of the branches made from it.
    pub children: Vec<String>,
}

/// `GET /v1/branches`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchList {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// By name.
    pub branches: Vec<BranchInfo>,
}

/// Answer to [`CreateBranchRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateBranchReply {
    /// The branch. Its `url` holds the password.
    #[serde(flatten)]
    pub branch: BranchInfo,
    /// False: it was there already.
    pub created: bool,
    /// How long the server took, in microseconds.
    pub server_us: u64,
    /// Of these, how long it waited for production's WAL to be ingested.
    pub waited_us: u64,
    /// What there is to know about it.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Answer of `POST /v1/branches/NAME/reindex-collations`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReindexReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The branch's name.
    pub name: String,
    /// Those in which something sorted otherwise.
    pub databases: Vec<ReindexedDatabase>,
}

/// What was made anew in a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReindexedDatabase {
    /// Its name.
    pub database: String,
    /// The collations that sort otherwise, with their versions.
    pub collations: Vec<String>,
    /// The indexes that were made anew.
    pub indexes: Vec<String>,
}

/// `GET /v1/branches/NAME/url`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The branch's name.
    pub name: String,
    /// The role it is for.
    pub role: String,
    /// The connection string, with its password.
    pub url: String,
    /// The address behind the hostname, for clients that cannot resolve it.
    pub host_address: String,
    /// File with the CA certificate for `sslmode=verify-full`, on the server.
    pub ca_file: String,
}

/// Body of `POST /v1/branches/NAME/password`: a new password for a role; the old one is good no longer. Answered by
/// [`UrlReply`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordRequest {
    /// The role; absent: the branch's.
    #[serde(default)]
    pub role: Option<String>,
    /// Good for this many seconds; absent: for ever.
    #[serde(default)]
    pub expires_s: Option<u64>,
}

/// `GET /v1/branches/NAME/unnamed-files`: files that no catalog names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnnamedFilesReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The branch's name.
    pub name: String,
    /// What was found.
    #[serde(flatten)]
    pub files: UnnamedFiles,
}

/// Answer to deletes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What was deleted.
    pub name: String,
    /// What else there is to know: a slot that could not be dropped because production is away.
    pub warning: Option<String>,
    /// Until when it can be had back; null: it cannot.
    pub kept_until: Option<String>,
}
