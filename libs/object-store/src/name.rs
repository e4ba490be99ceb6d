//! Names of objects.

use std::fmt;

/// Longest name in bytes. S3 allows 1,024; a bucket prefix must fit as well.
pub const NAME_LEN_MAX: usize = 512;

/// An object's name: parts of `A-Z a-z 0-9 _ . -` joined by `/`; no part is empty or begins with a dot, so that a name is
/// also a path that stays below its folder and never meets the backend's own files.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Box<str>);

/// The text is not an object's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an object name: {0:?} (parts of letters, digits, '_', '-' and '.', not beginning with '.', joined by '/')"
)]
pub struct NameError(String);

impl ObjectName {
    /// Checks `text`.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let part_is_good = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        if text.len() <= NAME_LEN_MAX && text.split('/').all(part_is_good) {
            Ok(ObjectName(text.into_boxed_str()))
        } else {
            Err(NameError(text))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the last `/`.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().expect("split yields at least one part")
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_their_folder() {
        for good in ["a", "a/b.c", "A-1/_x/0", "a..b"] {
            assert!(ObjectName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", ".tmp/x", "a b", "a\\b", "ä", &"x".repeat(NAME_LEN_MAX + 1)]
        {
            assert!(ObjectName::new(bad).is_err(), "{bad}");
        }
    }
}
