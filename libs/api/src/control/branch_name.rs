//! The name of a branch: a DNS label, since it is one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
