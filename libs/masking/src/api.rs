//! What the server is asked and answers about masked templates.

use ardent_api::control::ErrorInfo;
use ardent_types::Lsn;
use serde::{Deserialize, Serialize};

use crate::report::{ColumnReport, MaskReport};

/// Body of `POST /v1/masked`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateMaskedRequest {
    /// Its name, of the same kind as a branch's.
    pub name: String,
    /// The branch to mask; absent: the only connector's root.
    #[serde(default)]
    pub from: Option<String>,
    /// The content of a rules file.
    pub rules: String,
}

/// Body of `POST /v1/masked/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckMaskingRequest {
    /// As in [`CreateMaskedRequest`].
    #[serde(default)]
    pub from: Option<String>,
    /// As in [`CreateMaskedRequest`].
    pub rules: String,
}

/// What rules would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskingCheck {
    /// Version of the API's objects.
    pub schema_version: u32,
    /// The branch that was looked at.
    pub from: String,
    /// Every column.
    pub columns: Vec<ColumnReport>,
}

/// A masked template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskedInfo {
    /// Version of the API's objects.
    pub schema_version: u32,
    /// Its name.
    pub name: String,
    /// The connector that its data comes from.
    pub connector: String,
    /// The branch that it was made from.
    pub from: String,
    /// Of which state of that.
    pub source_lsn: Option<Lsn>,
    /// Where its branches begin.
    pub lsn: Option<Lsn>,
    /// When it was begun.
    pub created_at: String,
    /// Whether it can be used.
    pub ready: bool,
    /// The branches that were made from it.
    pub branches: Vec<String>,
    /// What was done; null in lists, and if the server's database was lost and the template's manifest does not say: then no branch can
    /// be made of it.
    pub report: Option<MaskReport>,
}

/// Answer to `GET /v1/masked`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskedList {
    /// Version of the API's objects.
    pub schema_version: u32,
    /// By name.
    pub templates: Vec<MaskedInfo>,
}

/// A line of the answer to [`CreateMaskedRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskEvent {
    /// What is being done.
    Progress(String),
    /// The end: it is made, or was there already.
    Done(Box<MaskedInfo>),
    /// The end: it is not, and nothing of it is left.
    Error(ErrorInfo),
}
