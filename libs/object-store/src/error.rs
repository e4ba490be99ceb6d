//! What can go wrong with an object, and what a caller may do about it.

use std::ops::Range;
use std::sync::Arc;

use crate::name::ObjectName;

/// What a caller does about a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The same call may succeed later: timeouts, throttling, a full disk, a store that is away.
    Retry,
    /// There is no such object.
    NotFound,
    /// The object exists, and the call demanded that it doesn't.
    Precondition,
    /// The range asked for is not wholly inside the object.
    OutOfRange,
    /// The store refuses us: credentials, permissions, a read-only folder. A person has to change something.
    Denied,
    /// What came back is not what was stored.
    Corrupt,
    /// Anything else.
    Internal,
}

impl ErrorKind {
    /// What became of the call, for people.
    fn outcome(self) -> &'static str {
        match self {
            ErrorKind::Retry => "failed for now",
            ErrorKind::Denied => "was refused",
            ErrorKind::Corrupt => "gave damaged bytes",
            ErrorKind::NotFound | ErrorKind::Precondition | ErrorKind::OutOfRange | ErrorKind::Internal => "failed",
        }
    }
}

/// A call on an object failed. Cheap to clone: several may have waited for the same call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} of object {object:?} {}: {detail}", kind.outcome())]
pub struct StoreError {
    kind: ErrorKind,
    operation: &'static str,
    object: String,
    detail: String,
    #[source]
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// An error of `kind` met by `operation` on `object`; `detail` says what was expected or what to do.
    pub fn new(kind: ErrorKind, operation: &'static str, object: &str, detail: impl Into<String>) -> Self {
        StoreError { kind, operation, object: object.to_owned(), detail: detail.into(), source: None }
    }

    /// The same with the error that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// There is no object `name`.
    pub fn not_found(operation: &'static str, name: &ObjectName) -> Self {
        Self::new(ErrorKind::NotFound, operation, name.as_str(), "there is no such object")
    }

    /// `name` exists already.
    pub fn exists(operation: &'static str, name: &ObjectName) -> Self {
        Self::new(ErrorKind::Precondition, operation, name.as_str(), "the object exists already")
    }

    /// `range` does not lie inside the object, which has `size_bytes`.
    pub fn out_of_range(name: &ObjectName, range: &Range<u64>, size_bytes: u64) -> Self {
        let detail = format!("bytes {range:?} of an object of {size_bytes} bytes");
        Self::new(ErrorKind::OutOfRange, "ranged get", name.as_str(), detail)
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The object or prefix concerned.
    pub fn object(&self) -> &str {
        &self.object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_in_words_what_became_of_a_call() {
        let check = |kind, expect: &str| {
            assert_eq!(StoreError::new(kind, "put", "a/b", "why").to_string(), expect);
        };
        check(ErrorKind::Retry, "put of object \"a/b\" failed for now: why");
        check(ErrorKind::Denied, "put of object \"a/b\" was refused: why");
        check(ErrorKind::Corrupt, "put of object \"a/b\" gave damaged bytes: why");
        check(ErrorKind::NotFound, "put of object \"a/b\" failed: why");
    }
}
