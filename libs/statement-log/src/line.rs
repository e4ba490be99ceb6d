//! What control answers when it is asked for a log: JSON values, one a line.

use std::net::IpAddr;

use ardent_api::control::ErrorInfo;
use serde::{Deserialize, Serialize};

use crate::entry::LogEntry;

/// Body of `POST /v1/branches/NAME/log`. Everything that is given has to hold of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRequest {
    /// That began at this time or later, ISO 8601 with a zone.
    #[serde(default)]
    pub since: Option<String>,
    /// That began before, ISO 8601 with a zone.
    #[serde(default)]
    pub until: Option<String>,
    /// Of this role: that logged in, or that it ran as.
    #[serde(default)]
    pub role: Option<String>,
    /// With this in its `application_name`.
    #[serde(default)]
    pub application: Option<String>,
    /// From this address, whatever the port. Not sent where it is not wanted: older servers refuse what they do not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// In this database.
    #[serde(default)]
    pub database: Option<String>,
    /// Only what failed.
    #[serde(default)]
    pub failed: bool,
    /// Only what wrote.
    #[serde(default)]
    pub writes: bool,
    /// With this in text, parameters or error, whatever the case of ASCII letters.
    #[serde(default)]
    pub grep: Option<String>,
    /// Only the newest, so many of them; absent: all.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Go on with what comes, until the connection is closed.
    #[serde(default)]
    pub follow: bool,
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LogLine {
    /// An entry; the oldest comes first.
    Entry(Box<LogEntry>),
    /// Nothing new, and the server is still there: while it is followed.
    Waiting,
    /// The last line: that was all.
    End(LogEnd),
    /// The last line: the rest could not be had.
    Error {
        /// Why.
        error: ErrorInfo,
    },
}

/// What there is to say besides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// `schema_version` of the control API.
    pub schema_version: u32,
    /// The branch.
    pub branch: String,
    /// Entries above.
    pub shown: u64,
    /// Whether there are earlier ones that were asked for, beyond the limit.
    pub has_earlier: bool,
    /// When the oldest entry that is kept began, ISO 8601.
    pub begins_at: Option<String>,
    /// Whether older ones were dropped, because the log has its greatest length.
    pub is_cut: bool,
    /// Parts of the log that cannot be read, and why.
    pub damaged: Vec<String>,
}

/// Body of `POST /v1/branches/NAME/blame`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlameRequest {
    /// The table, as `name` or `schema.name`.
    pub table: String,
    /// Values of the key's columns, in their order.
    pub key: Vec<String>,
    /// The database; absent: the branch's.
    #[serde(default)]
    pub database: Option<String>,
}

/// What was found out about a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlameFound {
    /// The statement.
    Statement,
    /// The transaction: one of several statements.
    Transaction,
    /// It is as it was at the branch point.
    Unchanged,
    /// The log does not say.
    Unknown,
}

/// Which statement last changed a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlameReply {
    /// `schema_version` of the control API.
    pub schema_version: u32,
    /// The branch.
    pub branch: String,
    /// The database.
    pub database: String,
    /// The table, with its schema.
    pub table: String,
    /// Values of the key's columns.
    pub key: Vec<String>,
    /// The transaction, or subtransaction, that wrote the row's present version.
    pub xid: u32,
    /// What was found out.
    pub found: BlameFound,
    /// The branch that it ran on: this one, or one that this was made from; absent: it is not known.
    pub on_branch: Option<String>,
    /// What there is to say where it is not one statement; else empty.
    pub message: String,
    /// The statement; or all that wrote in the transaction.
    pub statements: Vec<LogEntry>,
}
