//! What storage keeps for a key at an LSN. See `docs/formats/values.md`.

use bytes::Bytes;

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The whole content: for blocks and SLRU pages 8,192 bytes, for other keys whatever they hold. Empty: absent from here on.
    Image(Bytes),
    /// The part of a WAL record that rebuilds one block.
    Record {
        /// Earlier versions are not needed.
        will_init: bool,
        /// Encoded record part.
        record: Bytes,
    },
    /// One of our own small changes, for SLRU pages, VM bits and the like.
    Delta(Bytes),
    /// The block can't be rebuilt from here on until an image or a `will_init` record follows; the text says why and names the resource
    /// manager and LSN.
    Unreadable(Bytes),
}

/// Bytes that are not an encoded value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a stored value: {0}")]
pub struct ValueDecodeError(pub &'static str);

impl Value {
    /// Whether earlier versions of the key are unneeded once this one is found.
    pub fn is_base(&self) -> bool {
        matches!(self, Value::Image(_) | Value::Record { will_init: true, .. })
    }
}
