//! What storage keeps for a key at an LSN. Byte table: `docs/formats/values.md`.

use bytes::{BufMut, Bytes, BytesMut};

use crate::delta::Delta;

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The whole content: for blocks and SLRU pages 8,192 bytes, for other keys whatever they hold. Empty: absent from here on.
    Image(Bytes),
    /// The part of a WAL record that rebuilds one block.
    Record {
        /// Earlier versions are not needed.
        will_init: bool,
        /// Encoded record part ([`crate::stored`]).
        record: Bytes,
    },
    /// One of our own small changes ([`Delta`], encoded), for SLRU pages, VM bits and the like.
    Delta(Bytes),
    /// The block can't be rebuilt from here on until an image or a `will_init` record follows; the text says why and names the resource
    /// manager and LSN.
    Unreadable(Bytes),
}

/// Bytes that are not an encoded value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a stored value: {0}")]
pub struct ValueDecodeError(pub &'static str);

const IMAGE: u8 = 1;
const RECORD: u8 = 2;
const RECORD_WILL_INIT: u8 = 3;
const DELTA: u8 = 4;
const UNREADABLE: u8 = 5;

impl Value {
    /// A delta, encoded at the end of `buffer` and taken off it.
    pub fn delta(delta: &Delta, buffer: &mut BytesMut) -> Value {
        delta.encode_into(buffer);
        Value::Delta(buffer.split().freeze())
    }

    /// Whether earlier versions of the key are unneeded once this one is found.
    pub fn is_base(&self) -> bool {
        match self {
            Value::Image(_) => true,
            Value::Record { will_init, .. } => *will_init,
            Value::Delta(bytes) => Delta::encoded_is_base(bytes),
            Value::Unreadable(_) => false,
        }
    }

    fn tag_and_body(&self) -> (u8, &Bytes) {
        match self {
            Value::Image(bytes) => (IMAGE, bytes),
            Value::Record { will_init: false, record } => (RECORD, record),
            Value::Record { will_init: true, record } => (RECORD_WILL_INIT, record),
            Value::Delta(bytes) => (DELTA, bytes),
            Value::Unreadable(text) => (UNREADABLE, text),
        }
    }

    /// Length of its encoding in bytes.
    pub fn encoded_len(&self) -> usize {
        1 + self.tag_and_body().1.len()
    }

    /// Appends its encoding: a tag byte and the body.
    pub fn encode_into(&self, out: &mut impl BufMut) {
        let (tag, body) = self.tag_and_body();
        out.put_u8(tag);
        out.put_slice(body);
    }

    /// Its encoding.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len());
        self.encode_into(&mut out);
        out.freeze()
    }

    /// The value with this encoding; shares the bytes.
    pub fn decode(mut bytes: Bytes) -> Result<Value, ValueDecodeError> {
        if bytes.is_empty() {
            return Err(ValueDecodeError("empty"));
        }
        let body = bytes.split_off(1);
        match bytes[0] {
            IMAGE => Ok(Value::Image(body)),
            RECORD => Ok(Value::Record { will_init: false, record: body }),
            RECORD_WILL_INIT => Ok(Value::Record { will_init: true, record: body }),
            DELTA => Ok(Value::Delta(body)),
            UNREADABLE => Ok(Value::Unreadable(body)),
            _ => Err(ValueDecodeError("unknown tag")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_these_bytes_and_reject_others() {
        let body = Bytes::from_static(b"body");
        let values: [(Value, &[u8]); 6] = [
            (Value::Image(Bytes::new()), b"\x01"),
            (Value::Image(body.clone()), b"\x01body"),
            (Value::Record { will_init: false, record: body.clone() }, b"\x02body"),
            (Value::Record { will_init: true, record: body.clone() }, b"\x03body"),
            (Value::Delta(Delta::ZeroPage.encode()), b"\x04\x00"),
            (Value::Unreadable(body), b"\x05body"),
        ];
        for (value, golden) in values {
            let encoded = value.encode();
            assert_eq!(encoded, golden);
            assert_eq!(encoded.len(), value.encoded_len());
            assert_eq!(Value::decode(encoded), Ok(value));
        }
        assert!(Value::decode(Bytes::new()).is_err());
        assert!(Value::decode(Bytes::from_static(&[9, 1])).is_err());
    }
}
