//! Why a message was refused.

/// Bytes that are no message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a change that production sent cannot be read at byte {offset}: expected {expected}")]
pub struct DecodeError {
    /// Bytes of the message that made sense.
    pub offset: usize,
    /// What should have been there.
    pub expected: &'static str,
}
