//! The control API: what the CLI and other programs say to control over HTTP, and what the proxy asks on the Unix socket.
//!
//! Public routes are under `/v1` and ask for a bearer token; `/v1/openapi.json` describes them. Internal routes are under
//! `/internal/v1`, exist on the Unix socket `run/control.sock` only, and are for the proxy. Every answer is a flat JSON
//! object with `schema_version`; absent values are null; times are ISO 8601 in UTC; errors are [`ErrorReply`].

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use ardent_types::{BranchId, ComputeId, Lsn, TenantId, TimelineId};

/// `schema_version` of every object here.
pub const SCHEMA_VERSION: u32 = 1;
/// Where the HTTP API listens unless told otherwise.
pub const DEFAULT_API_PORT: u16 = 7480;
/// Where the proxy listens unless told otherwise.
pub const DEFAULT_PROXY_PORT: u16 = 7432;

/// What went wrong, as a word for scripts. The CLI's exit codes follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiErrorCode {
    /// The request makes no sense; nothing was done.
    InvalidArguments,
    /// A branch name that is no DNS label; the hint holds one that is.
    InvalidName,
    /// No token, or one that is unknown or revoked.
    NotAuthenticated,
    /// There is no such thing.
    NotFound,
    /// The name is taken by something else.
    AlreadyExists,
    /// The state of things forbids it now: it has children, is being deleted, or is in use.
    Conflict,
    /// The source database does not meet what a connector needs.
    PreflightFailed,
    /// The production server cannot be reached.
    ConnectorUnavailable,
    /// The branch is a connector's root: read-only, without a compute.
    RootBranch,
    /// The deadline passed. What was begun goes on.
    Timeout,
    /// Page server or safekeeper does not answer.
    StorageUnavailable,
    /// Postgres could not be started for the branch.
    ComputeFailed,
    /// Our own bug, or a disk that fails.
    Internal,
}

impl ApiErrorCode {
    /// All codes, for documentation and tests.
    pub const ALL: [ApiErrorCode; 13] = [
        ApiErrorCode::InvalidArguments,
        ApiErrorCode::InvalidName,
        ApiErrorCode::NotAuthenticated,
        ApiErrorCode::NotFound,
        ApiErrorCode::AlreadyExists,
        ApiErrorCode::Conflict,
        ApiErrorCode::PreflightFailed,
        ApiErrorCode::ConnectorUnavailable,
        ApiErrorCode::RootBranch,
        ApiErrorCode::Timeout,
        ApiErrorCode::StorageUnavailable,
        ApiErrorCode::ComputeFailed,
        ApiErrorCode::Internal,
    ];

    /// The word itself.
    pub fn as_str(self) -> &'static str {
        match self {
            ApiErrorCode::InvalidArguments => "invalid_arguments",
            ApiErrorCode::InvalidName => "invalid_name",
            ApiErrorCode::NotAuthenticated => "not_authenticated",
            ApiErrorCode::NotFound => "not_found",
            ApiErrorCode::AlreadyExists => "already_exists",
            ApiErrorCode::Conflict => "conflict",
            ApiErrorCode::PreflightFailed => "preflight_failed",
            ApiErrorCode::ConnectorUnavailable => "connector_unavailable",
            ApiErrorCode::RootBranch => "root_branch",
            ApiErrorCode::Timeout => "timeout",
            ApiErrorCode::StorageUnavailable => "storage_unavailable",
            ApiErrorCode::ComputeFailed => "compute_failed",
            ApiErrorCode::Internal => "internal",
        }
    }

    /// The HTTP status that goes with it.
    pub fn http_status(self) -> u16 {
        match self {
            ApiErrorCode::InvalidArguments | ApiErrorCode::InvalidName => 400,
            ApiErrorCode::NotAuthenticated => 401,
            ApiErrorCode::NotFound => 404,
            ApiErrorCode::AlreadyExists | ApiErrorCode::Conflict | ApiErrorCode::RootBranch => 409,
            ApiErrorCode::PreflightFailed => 422,
            ApiErrorCode::ConnectorUnavailable | ApiErrorCode::StorageUnavailable => 503,
            ApiErrorCode::Timeout => 504,
            ApiErrorCode::ComputeFailed | ApiErrorCode::Internal => 500,
        }
    }

    /// The CLI's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            ApiErrorCode::InvalidArguments | ApiErrorCode::InvalidName | ApiErrorCode::PreflightFailed => 2,
            ApiErrorCode::NotAuthenticated => 4,
            ApiErrorCode::NotFound => 5,
            ApiErrorCode::AlreadyExists | ApiErrorCode::Conflict | ApiErrorCode::RootBranch => 6,
            ApiErrorCode::Timeout => 7,
            ApiErrorCode::ConnectorUnavailable
            | ApiErrorCode::StorageUnavailable
            | ApiErrorCode::ComputeFailed
            | ApiErrorCode::Internal => 1,
        }
    }
}

impl fmt::Display for ApiErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Every error's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The error.
    pub error: ErrorInfo,
}

/// What failed, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorInfo {
    /// The word for scripts.
    pub code: ApiErrorCode,
    /// One sentence: what failed and why.
    pub message: String,
    /// The next command to type, or what to change.
    pub hint: Option<String>,
}

impl ErrorInfo {
    /// An error without a hint.
    pub fn new(code: ApiErrorCode, message: impl Into<String>) -> Self {
        ErrorInfo { code, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The body that carries it.
    pub fn into_reply(self) -> ErrorReply {
        ErrorReply { schema_version: SCHEMA_VERSION, error: self }
    }
}

/// A branch's name: a DNS label of 1 to 63 characters from `a-z`, `0-9` and `-`, not at either end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BranchName(String);

/// The text is no branch name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a branch name: it becomes a hostname, so 1 to 63 of a-z, 0-9 and -, with no - at either end")]
pub struct BranchNameError {
    /// What was given.
    pub name: String,
    /// A name close to it that is valid, if there is one.
    pub suggestion: Option<String>,
}

impl BranchName {
    /// Longest name.
    pub const LEN_MAX: usize = 63;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A valid name close to `text`: lower case, runs of other characters as one `-`, cut to length.
    fn suggest(text: &str) -> Option<String> {
        let mut out = String::new();
        for c in text.chars().flat_map(char::to_lowercase) {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                out.push(c);
            } else if !out.is_empty() && !out.ends_with('-') {
                out.push('-');
            }
        }
        out.truncate(Self::LEN_MAX);
        let trimmed = out.trim_end_matches('-').to_owned();
        (!trimmed.is_empty()).then_some(trimmed)
    }
}

impl FromStr for BranchName {
    type Err = BranchNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let valid = (1..=Self::LEN_MAX).contains(&text.len())
            && text.bytes().all(label)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if valid {
            Ok(BranchName(text.to_owned()))
        } else {
            Err(BranchNameError { name: text.to_owned(), suggestion: Self::suggest(text) })
        }
    }
}

impl From<BranchNameError> for ErrorInfo {
    fn from(error: BranchNameError) -> ErrorInfo {
        let info = ErrorInfo::new(ApiErrorCode::InvalidName, error.to_string());
        match error.suggestion {
            Some(name) => info.with_hint(format!("try the name {name}")),
            None => info,
        }
    }
}

impl TryFrom<String> for BranchName {
    type Error = BranchNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BranchName> for String {
    fn from(name: BranchName) -> String {
        name.0
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Body of `POST /v1/branches/NAME/diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffRequest {
    /// Only these tables, as `name` or `schema.name`; empty: all.
    #[serde(default)]
    pub tables: Vec<String>,
}

// ---- internal routes, for the proxy ----

/// Query of `GET /internal/v1/auth`. Unknown branch or role: 404 with [`ErrorReply`], which the proxy must not let the
/// client tell from a wrong password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthQuery {
    /// The branch's name, as routed.
    pub branch: String,
    /// The role.
    pub role: String,
}

/// What the proxy checks a password with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthInfo {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The branch.
    pub branch_id: BranchId,
    /// `SCRAM-SHA-256$4096:salt$stored:server`, as Postgres writes it.
    pub verifier: String,
}

impl fmt::Debug for AuthInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthInfo").field("branch_id", &self.branch_id).finish_non_exhaustive()
    }
}

/// Body of `POST /internal/v1/wake`: answered when the branch's Postgres accepts connections. Any number of calls for one
/// branch share one start. To be called only for clients that have authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeRequest {
    /// The branch's name.
    pub branch: String,
}

/// Where a branch's Postgres is now. Answer to [`WakeRequest`] and to `POST /v1/branches/NAME/wake`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The branch.
    pub branch_id: BranchId,
    /// The compute.
    pub compute_id: ComputeId,
    /// Counts this compute's starts: changes when Postgres was started again, so that a kept connection's owner can tell.
    pub incarnation: u64,
    /// Folder with Postgres's Unix socket.
    pub socket_dir: PathBuf,
    /// Port number in the socket's name.
    pub port: u16,
    /// A kept data directory was started again, or Postgres was running already.
    pub warm: bool,
    /// Whether this call found Postgres running.
    pub was_running: bool,
    /// How long this call waited, in milliseconds.
    pub waited_ms: u64,
}

// ---- public routes ----

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Version of the server.
    pub version: String,
    /// When it started.
    pub started_at: String,
    /// Its data directory.
    pub data_dir: String,
    /// Host that branch hostnames are below, or the address to use with `options=branch%3DNAME`.
    pub proxy_host: String,
    /// Port of the proxy.
    pub proxy_port: u16,
    /// Whether branches are reached as `NAME.proxy_host`; otherwise by `options=branch%3DNAME`.
    pub proxy_wildcard: bool,
    /// File with the CA certificate for `sslmode=verify-full`, on the server.
    pub ca_file: String,
    /// Connectors.
    pub connectors: u64,
    /// Branches, roots not counted.
    pub branches: u64,
    /// Computes that run.
    pub computes_running: u64,
}

/// `GET /v1/whoami`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoamiReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The token's name.
    pub token_name: String,
    /// When it was made.
    pub created_at: String,
}

/// Body of `POST /v1/connectors/preflight`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightRequest {
    /// `postgresql://...` of the production server.
    pub url: String,
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
        /// What is being done: `checkpoint`, `copy`, `catch_up`.
        phase: String,
        /// Bytes copied.
        bytes_done: u64,
        /// Bytes to copy, an estimate; 0: not known.
        bytes_total: u64,
        /// Since the import began, in milliseconds.
        elapsed_ms: u64,
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
    /// Branches made from it.
    pub branches: u64,
}

/// `GET /v1/connectors`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorList {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// By name.
    pub connectors: Vec<ConnectorInfo>,
}

/// Body of `POST /v1/branches`. Idempotent by name: the same call again answers with the same branch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateBranchRequest {
    /// Its name.
    pub name: String,
    /// The branch to start from; absent: the only connector's root.
    #[serde(default)]
    pub from: Option<String>,
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
}

/// Where a branch is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchState {
    /// Being made.
    Creating,
    /// There.
    Ready,
    /// Being deleted.
    Deleting,
}

/// What a branch's compute does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeState {
    /// A root branch has none.
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
    /// What its compute does.
    pub compute: ComputeState,
    /// Why its last start failed, if it did.
    pub compute_problem: Option<String>,
    /// Suspended after this many seconds without activity; 0: never.
    pub idle_timeout_s: u64,
    /// The role of `url`.
    pub role: String,
    /// The database of `url`.
    pub database: String,
    /// The connection string without its password.
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

/// Answer to deletes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What was deleted.
    pub name: String,
    /// What else there is to know: a slot that could not be dropped because production is away.
    pub warning: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels_and_others_get_a_suggestion() {
        let check = |text: &str, suggestion: Option<&str>| {
            let error = text.parse::<BranchName>().expect_err(text);
            assert_eq!(error.suggestion.as_deref(), suggestion, "{text:?}");
        };
        check("feature/x", Some("feature-x"));
        check("Feature__X/", Some("feature-x"));
        check("-a-", Some("a"));
        check("", None);
        check("///", None);
        check(&"a".repeat(64), Some(&"a".repeat(63)));
        for good in ["a", "0", "a-b", &"x".repeat(63)] {
            assert_eq!(good.parse::<BranchName>().map(String::from).as_deref(), Ok(good));
        }
    }

    #[test]
    fn every_code_is_written_as_json_writes_it() {
        for code in ApiErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).expect("plain"), serde_json::json!(code.as_str()));
            assert!((400..600).contains(&code.http_status()));
            assert!((1..=7).contains(&code.exit_code()));
        }
    }
}
