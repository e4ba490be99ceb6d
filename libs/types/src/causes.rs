//! Errors in one line.

use std::error::Error;

/// What `error` says, and what each of its causes says, from the nearest to the last, with `: ` between them; what was said already is
/// not said again. For places where a chain ends: a message to another process, a field of the log, a command's output.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the disk is full")]
    struct DiskFull;

    #[derive(Debug, thiserror::Error)]
    #[error("layer 7 cannot be written")]
    struct LayerFailed(#[source] DiskFull);

    #[derive(Debug, thiserror::Error)]
    #[error("a flush failed")]
    struct FlushFailed(#[source] LayerFailed);

    #[derive(Debug, thiserror::Error)]
    #[error("put failed: the disk is full; free space")]
    struct StoreFailed(#[source] DiskFull);

    #[test]
    fn all_causes_are_said_in_order() {
        assert_eq!(with_causes(&DiskFull), "the disk is full");
        let error = FlushFailed(LayerFailed(DiskFull));
        assert_eq!(with_causes(&error), "a flush failed: layer 7 cannot be written: the disk is full");
        let error = StoreFailed(DiskFull);
        assert_eq!(with_causes(&error), "put failed: the disk is full; free space", "once");
    }
}
