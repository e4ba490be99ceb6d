//! Connectors: preflight, creation, state.

use serde::{Deserialize, Serialize};

use ardent_types::{Lsn, TenantId, TimelineId};

use super::ErrorInfo;

/// Body of `POST /v1/connectors/preflight`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightRequest {
    /// `postgresql://...` of the production server.
    pub url: String,
    /// What logical mode needs is looked at; absent: what physical replication needs.
    #[serde(default)]
    pub logical: Option<LogicalOptions>,
}

/// How a source is followed by logical replication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalOptions {
    /// The schemas that are copied; empty: all.
    #[serde(default)]
    pub schemas: Vec<String>,
    /// What becomes of tables whose updates and deletes cannot name their rows.
    #[serde(default)]
    pub keyless: KeylessTables,
    /// What becomes of tables that are new on production.
    #[serde(default)]
    pub new_tables: NewTables,
}

/// What becomes of tables without a replica identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeylessTables {
    /// Preflight fails and names them.
    #[default]
    Refuse,
    /// They are made, stay empty, and are not followed.
    Empty,
}

/// What becomes of tables that are made on production while it is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewTables {
    /// They are named, with the command that takes them over.
    #[default]
    Report,
    /// They are taken over as that command does it.
    Add,
}

/// A logical connector's state, besides what all connectors have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalInfo {
    /// What was asked for.
    pub options: LogicalOptions,
    /// `schema`, `copy`, `index`, `catch_up`, `constraints` or `follow`.
    pub phase: String,
    /// Tables whose rows are copied and followed.
    pub tables: u64,
    /// All that production had committed up to this of its LSNs is on the root branch.
    pub applied_lsn: Option<Lsn>,
    /// What production has and the root branch has not, each with why.
    pub left_out: Vec<String>,
    /// Tables that are new on production, and can be taken over.
    #[serde(default)]
    pub new_tables: Vec<String>,
    /// Tables that are new on production, and cannot be taken over as they are.
    #[serde(default)]
    pub not_followed: Vec<SkippedTable>,
    /// What else changed in production's schema and is otherwise on the root branch, each with what to do.
    #[serde(default)]
    pub schema_changes: Vec<String>,
    /// How old what is said of production's schema is, in seconds, where it could not be looked at just now.
    #[serde(default)]
    pub look_age_s: Option<u64>,
}

/// Answer of `POST /v1/connectors/{name}/verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReply {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION).
    pub schema_version: u32,
    /// The connector.
    pub name: String,
    /// The position of production's log at which both were read.
    pub at_lsn: Lsn,
    /// Nothing differs.
    pub equal: bool,
    /// Each table that is followed.
    pub tables: Vec<VerifiedTable>,
    /// Sequences of the root branch that are behind production's.
    pub sequences_behind: Vec<String>,
    /// Tables of production's that are not followed.
    pub not_followed: Vec<String>,
    /// Statements that would make the root branch's schema production's: what was changed there since and is not followed.
    #[serde(default)]
    pub schema_differences: Vec<String>,
}

/// Body of `POST /v1/connectors/{name}/resume`: try again at once what could not go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeConnectorRequest {
    /// Run on the root branch of a connector in logical mode before, in one transaction.
    #[serde(default)]
    pub sql: Option<String>,
}

/// Body of `POST /v1/connectors/{name}/tables`: take over tables that are new on production.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddTablesRequest {
    /// Which, as `schema.name`; none: all that are not followed and can be.
    #[serde(default)]
    pub tables: Vec<String>,
}

/// Answer to [`AddTablesRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddTablesReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The connector.
    pub name: String,
    /// The position of production's log that their rows were copied as of; absent: there was nothing to add.
    pub at_lsn: Option<Lsn>,
    /// Tables that are followed from there on.
    pub added: Vec<String>,
    /// Tables that cannot be followed.
    pub skipped: Vec<SkippedTable>,
    /// What of the added tables the root branch has not, each with why.
    pub left_out: Vec<String>,
}

/// A table that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedTable {
    /// Schema and name.
    pub table: String,
    /// Why.
    pub why: String,
}

/// What [`VerifyReply`] says of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedTable {
    /// Schema and name.
    pub table: String,
    /// Rows on production.
    pub production_rows: u64,
    /// Rows on the root branch.
    pub root_rows: u64,
    /// Its columns, and number and checksum of its rows are equal.
    pub equal: bool,
    /// How its columns differ, if they do: only what both have was compared then.
    #[serde(default)]
    pub columns_differ: Option<String>,
}

/// One thing that preflight looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightCheck {
    /// A word for scripts: `version`, `wal_level`, `replication_privilege`, ...
    pub name: String,
    /// How it went.
    pub outcome: CheckOutcome,
    /// What was found, and why it matters.
    pub message: String,
    /// SQL or a command that mends it.
    pub fix: Option<String>,
}

/// How one check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// Fine.
    Ok,
    /// Works, with a consequence that the message names.
    Warning,
    /// Must be mended first.
    Failed,
}

/// Answer to [`PreflightRequest`]. HTTP status 200 whether or not it passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// No check failed.
    pub passed: bool,
    /// The checks, in order.
    pub checks: Vec<PreflightCheck>,
}

/// Body of `POST /v1/connectors`. Answered by NDJSON, one [`ConnectorEvent`] a line. The import goes on when the caller goes
/// away; the same call again joins it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateConnectorRequest {
    /// Its name, and that of its root branch; absent: made from the database's name.
    pub name: Option<String>,
    /// `postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE` of the production server.
    pub url: String,
    /// Ask production for an immediate checkpoint: a faster start, at the price of a burst of writes there.
    #[serde(default)]
    pub fast: bool,
    /// Most bytes per second to take from production; absent: no limit.
    #[serde(default)]
    pub max_rate_bytes: Option<u64>,
    /// Follow it by logical replication; absent: by physical replication.
    #[serde(default)]
    pub logical: Option<LogicalOptions>,
}

/// A line of the answer to [`CreateConnectorRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ConnectorEvent {
    /// Preflight is done.
    Preflight {
        /// Its report.
        report: PreflightReply,
    },
    /// How far the import is.
    Progress {
        /// What is being done: `checkpoint`, `copy`, `catch_up`; in logical mode `schema`, `copy`, `index`, `catch_up`, `constraints`.
        phase: String,
        /// Bytes copied.
        bytes_done: u64,
        /// Bytes to copy, an estimate; 0: not known.
        bytes_total: u64,
        /// Since the import began, in milliseconds.
        elapsed_ms: u64,
        /// Transactions of the source's that have to end before it goes on.
        #[serde(default)]
        waits_for: Vec<String>,
    },
    /// Done; the last line.
    Done {
        /// The connector.
        connector: ConnectorInfo,
    },
    /// Failed; the last line.
    Error {
        /// Why.
        error: ErrorInfo,
    },
}

/// Where a connector is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectorState {
    /// Being imported.
    Creating,
    /// Branches can be made.
    Ready,
    /// Being deleted.
    Deleting,
}

/// A connector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorInfo {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Its name, and that of its root branch.
    pub name: String,
    /// Where it is in its life.
    pub state: ConnectorState,
    /// The source's URL without its password.
    pub source: String,
    /// Tenant.
    pub tenant_id: TenantId,
    /// The root branch's timeline.
    pub timeline_id: TimelineId,
    /// When it was made.
    pub created_at: String,
    /// Major version of the source; null until imported.
    pub pg_major: Option<u32>,
    /// Whether WAL is being received now.
    pub following: bool,
    /// Why not, if not.
    pub problem: Option<String>,
    /// End of what the page server has ingested.
    pub ingested_lsn: Option<Lsn>,
    /// Commit time of the last transaction ingested.
    pub last_commit_at: Option<String>,
    /// Where production was when it was last asked.
    pub production_lsn: Option<Lsn>,
    /// Bytes between the two; null when production cannot be asked.
    pub lag_bytes: Option<u64>,
    /// 0 when nothing is missing, otherwise the age of the newest commit ingested; null when production cannot be asked.
    pub lag_seconds: Option<u64>,
    /// Size of the source's relations in bytes.
    pub logical_size_bytes: Option<u64>,
    /// What production keeps for it, as it said last; null: it has no slot there, or could not be asked yet.
    #[serde(default)]
    pub slot: Option<SlotInfo>,
    /// What will hurt if nothing is done.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Branches made from it.
    pub branches: u64,
    /// Only masked branches can be made of it.
    #[serde(default)]
    pub masked_only: bool,
    /// How many of its branches are not masked, as they were made before; null unless `masked_only`.
    #[serde(default)]
    pub unmasked_branches: Option<u64>,
    /// The names of the first of these.
    #[serde(default)]
    pub unmasked_first: Vec<String>,
    /// Of a connector in logical mode; null: it follows by physical replication.
    #[serde(default)]
    pub logical: Option<LogicalInfo>,
}

/// A connector's replication slot on production.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotInfo {
    /// Its name.
    pub name: String,
    /// Whether WAL is being streamed through it.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`, as Postgres says.
    pub wal_status: Option<String>,
    /// Bytes of WAL that production keeps for it.
    pub kept_bytes: Option<u64>,
    /// Bytes that production may still write before it is given up; null: it is never given up.
    pub safe_bytes: Option<u64>,
    /// Whether production said so when it was asked last; false: it could not be asked since.
    #[serde(default = "said_just_now")]
    pub current: bool,
}

/// What servers of older versions tell.
fn said_just_now() -> bool {
    true
}

/// Body of `PATCH /v1/connectors/{name}`. What is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateConnectorRequest {
    /// Refuse branches that are not masked, or no longer. Those that are there stay, and their URLs.
    #[serde(default)]
    pub masked_only: Option<bool>,
}

/// Body of `POST /v1/connectors/{name}/move`: the same production at another address, or the server that has taken its place.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveConnectorRequest {
    /// `postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE` from now on.
    pub url: String,
}

/// `GET /v1/connectors`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorList {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// By name.
    pub connectors: Vec<ConnectorInfo>,
}
