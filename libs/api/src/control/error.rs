//! Errors, as words for scripts and sentences for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::BranchNameError;
use super::SCHEMA_VERSION;

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

impl From<BranchNameError> for ErrorInfo {
    fn from(error: BranchNameError) -> ErrorInfo {
        let info = ErrorInfo::new(ApiErrorCode::InvalidName, error.to_string());
        match error.suggestion {
            Some(name) => info.with_hint(format!("try the name {name}")),
            None => info,
        }
    }
}
