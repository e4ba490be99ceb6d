//! Checkpoints of a branch: marks in its history, to go back to.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use ardent_types::{Lsn, TimelineId};

use super::{ApiErrorCode, ErrorInfo};

/// A checkpoint's label, unique on its branch: 1 to 63 of letters, digits, `.`, `_` and `-`, the first one a letter or a digit. So it is
/// a part of a path, and never an LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointLabel(String);

/// The text is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a checkpoint's label: 1 to 63 of letters, digits, ., _ and -, and the first one a letter or a digit"
)]
pub struct CheckpointLabelError {
    /// What was given.
    pub text: String,
}

impl CheckpointLabel {
    /// Longest label.
    pub const LEN_MAX: usize = 63;

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CheckpointLabel {
    type Err = CheckpointLabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        let is_label = (1..=Self::LEN_MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && text.starts_with(|c: char| c.is_ascii_alphanumeric());
        match is_label {
            true => Ok(CheckpointLabel(text.to_owned())),
            false => Err(CheckpointLabelError { text: text.to_owned() }),
        }
    }
}

impl From<CheckpointLabelError> for ErrorInfo {
    fn from(error: CheckpointLabelError) -> ErrorInfo {
        ErrorInfo::new(ApiErrorCode::InvalidArguments, error.to_string())
            .with_hint("take a label such as before-the-import")
    }
}

/// Body of `POST /v1/branches/NAME/checkpoints`: marks what the branch has committed now. Answered by [`CheckpointInfo`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateCheckpointRequest {
    /// Its label; absent: `step-N`, with the next number.
    #[serde(default)]
    pub label: Option<String>,
}

/// Body of `POST /v1/branches/NAME/rewind`: the branch becomes what it was at a checkpoint. Answered by
/// [`SwitchReply`](super::SwitchReply).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewindRequest {
    /// Its label; absent: the current one.
    #[serde(default)]
    pub checkpoint: Option<String>,
}

/// How a checkpoint lies to what its branch is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointPlace {
    /// The last one that the branch's present state has behind it: a rewind without a label goes there.
    Current,
    /// An earlier one that it has behind it.
    Passed,
    /// On what a rewind, a reset or a restore left. It can be gone to all the same.
    Left,
}

impl CheckpointPlace {
    /// The word, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckpointPlace::Current => "current",
            CheckpointPlace::Passed => "passed",
            CheckpointPlace::Left => "left",
        }
    }
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION).
    pub schema_version: u32,
    /// The branch's name.
    pub branch: String,
    /// Its label.
    pub label: String,
    /// The timeline that it is on.
    pub timeline_id: TimelineId,
    /// Where: the end of a record.
    pub lsn: Lsn,
    /// When it was made.
    pub created_at: String,
    /// How it lies to what the branch is now.
    pub place: CheckpointPlace,
    /// Whether it can be gone to: history is kept that far back.
    pub kept: bool,
    /// Until when it is kept at least; null: it is not, or only for as long as nothing that is written pushes it out.
    pub kept_until: Option<String>,
}

/// `GET /v1/branches/NAME/checkpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointList {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION).
    pub schema_version: u32,
    /// The branch's name.
    pub name: String,
    /// In the order in which they were made.
    pub checkpoints: Vec<CheckpointInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_parts_of_paths_and_no_lsns() {
        for good in ["a", "step-1", "0", "Before.the_import-2", &"x".repeat(63)] {
            assert_eq!(good.parse::<CheckpointLabel>().map(|label| label.as_str().to_owned()).as_deref(), Ok(good));
        }
        for bad in ["", "0/16B3748", "..", ".a", "-a", "_a", "a b", "a%2F", "ä", &"x".repeat(64)] {
            let error = bad.parse::<CheckpointLabel>().expect_err(bad);
            assert_eq!(ErrorInfo::from(error).code, ApiErrorCode::InvalidArguments, "{bad}");
        }
    }

    #[test]
    fn places_are_written_as_json_writes_them() {
        for place in [CheckpointPlace::Current, CheckpointPlace::Passed, CheckpointPlace::Left] {
            assert_eq!(serde_json::to_value(place).expect("plain"), serde_json::json!(place.as_str()));
        }
    }
}
