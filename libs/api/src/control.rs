//! The control API: what the CLI and other programs say to control over HTTP, and what the proxy asks on the Unix socket.
//!
//! Public routes are under `/v1` and ask for a bearer token; `/v1/openapi.json` describes them. Internal routes are under
//! `/internal/v1`, exist on the Unix socket `run/control.sock` only, and are for the proxy. Every answer is a flat JSON
//! object with `schema_version`; absent values are null; times are ISO 8601 in UTC; errors are [`ErrorReply`].

mod branch;
mod branch_name;
mod checkpoint;
mod connector;
mod error;
mod internal;
mod safekeeper;

use serde::{Deserialize, Serialize};

pub use branch::*;
pub use branch_name::{BranchName, BranchNameError};
pub use checkpoint::{
    CheckpointInfo, CheckpointLabel, CheckpointLabelError, CheckpointList, CheckpointPlace, CreateCheckpointRequest,
    RewindRequest,
};
pub use connector::*;
pub use error::{ApiErrorCode, ErrorInfo, ErrorReply};
pub use internal::{AuthInfo, AuthQuery, WakeReply, WakeRequest};
pub use safekeeper::*;

/// `schema_version` of every object here.
pub const SCHEMA_VERSION: u32 = 1;

/// Where the HTTP API listens unless told otherwise.
pub const DEFAULT_API_PORT: u16 = 7480;

/// Where the proxy listens unless told otherwise.
pub const DEFAULT_PROXY_PORT: u16 = 7432;

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
    /// Why nothing is deleted for its age now: the host's clock has jumped, or is not what it was when the server ran last.
    #[serde(default)]
    pub clock_problem: Option<String>,
    /// How many files the server's process may have open at most; absent: it could not find out.
    #[serde(default)]
    pub open_files_max: Option<u64>,
    /// Free on the disk of the data directory, in bytes; absent: it could not find out.
    #[serde(default)]
    pub disk_free_bytes: Option<u64>,
    /// Size of that disk, in bytes.
    #[serde(default)]
    pub disk_size_bytes: Option<u64>,
    /// What of the page server's own work fails now, each with the branch: layers that cannot be written, or compacted. None is known of one in
    /// another process.
    #[serde(default)]
    pub storage_problems: Vec<String>,
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
