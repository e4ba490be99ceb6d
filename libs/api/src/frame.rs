//! Length-prefixed frames: `u32` little-endian length of what follows, one type byte, the payload.
//!
//! The same framing serves both binary services, over a Unix socket or TCP, blocking (inside Postgres) or async.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;

use ardent_types::Lsn;

/// Largest length field accepted, in bytes: 8,192 pages and their headers. Larger answers are split.
pub const FRAME_LEN_MAX: usize = 64 << 20;
/// Bytes before the payload: the length and the type.
pub const FRAME_HEADER_LEN: usize = 5;

/// A frame whose payload has not been looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Message type; the services' tables give the meaning.
    pub kind: u8,
    /// Everything after the type byte.
    pub payload: Bytes,
}

/// What is wrong with a frame or a message in it. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The length field is 0 or above [`FRAME_LEN_MAX`].
    #[error("a frame says it is {0} bytes long (1 to {FRAME_LEN_MAX} is allowed)")]
    BadLength(usize),
    /// The message ends before its fields do.
    #[error("message type {kind:#04x} is cut off: {needed} more bytes expected")]
    Truncated {
        /// Message type.
        kind: u8,
        /// How many bytes are missing.
        needed: usize,
    },
    /// Bytes are left after the last field.
    #[error("message type {kind:#04x} has {extra} bytes too many")]
    Trailing {
        /// Message type.
        kind: u8,
        /// How many bytes are left.
        extra: usize,
    },
    /// A type that this side does not know.
    #[error("unknown message type {0:#04x}")]
    UnknownKind(u8),
    /// A field has a value outside its range.
    #[error("message type {kind:#04x}: bad {field}")]
    BadField {
        /// Message type.
        kind: u8,
        /// The field's name.
        field: &'static str,
    },
}

impl Frame {
    /// Takes the first frame off `buffer`, or `None` when it has not fully arrived.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
        let Some(length) = buffer.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize) else {
            return Ok(None);
        };
        check_length(length)?;
        if buffer.len() < 4 + length {
            buffer.reserve(4 + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(4);
        let mut body = buffer.split_to(length).freeze();
        let kind = body.get_u8();
        Ok(Some(Frame { kind, payload: body }))
    }

    /// Checks a frame header read on its own (blocking readers); gives the type and the payload's length.
    pub fn parse_header(header: [u8; FRAME_HEADER_LEN]) -> Result<(u8, usize), DecodeError> {
        let length = u32::from_le_bytes(header[..4].try_into().expect("4 bytes")) as usize;
        check_length(length)?;
        Ok((header[4], length - 1))
    }
}

fn check_length(length: usize) -> Result<(), DecodeError> {
    if (1..=FRAME_LEN_MAX).contains(&length) { Ok(()) } else { Err(DecodeError::BadLength(length)) }
}

/// Appends one frame to `out`; `fill` writes the payload.
///
/// Panics when the payload is larger than a frame may be: splitting large answers is the sender's duty.
pub fn write_frame(out: &mut BytesMut, kind: u8, fill: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(kind);
    fill(out);
    let length = out.len() - start - 4;
    assert!(length <= FRAME_LEN_MAX, "frame of {length} bytes");
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
}

/// Reads little-endian fields off a payload, with errors instead of panics.
#[derive(Debug)]
pub struct Fields {
    kind: u8,
    rest: Bytes,
}

impl Fields {
    /// The fields of `frame`.
    pub fn of(frame: Frame) -> Self {
        Fields { kind: frame.kind, rest: frame.payload }
    }

    fn need(&self, bytes: usize) -> Result<(), DecodeError> {
        match bytes.checked_sub(self.rest.len()) {
            Some(needed) if needed > 0 => Err(DecodeError::Truncated { kind: self.kind, needed }),
            _ => Ok(()),
        }
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    /// A `u16`.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.need(2)?;
        Ok(self.rest.get_u16_le())
    }

    /// A `u32`.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.need(4)?;
        Ok(self.rest.get_u32_le())
    }

    /// A `u64`.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.need(8)?;
        Ok(self.rest.get_u64_le())
    }

    /// `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.need(N)?;
        let mut out = [0; N];
        self.rest.copy_to_slice(&mut out);
        Ok(out)
    }

    /// `length` bytes, without a copy.
    pub fn bytes(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        self.need(length)?;
        Ok(self.rest.split_to(length))
    }

    /// A `u32` length and that many bytes.
    pub fn blob(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.u32()? as usize;
        self.bytes(length)
    }

    /// A `u32` length and that much UTF-8.
    pub fn string(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let blob = self.blob()?;
        String::from_utf8(blob.to_vec()).map_err(|_| self.bad(field))
    }

    /// Everything that is left.
    pub fn remainder(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The error for a field outside its range.
    pub fn bad(&self, field: &'static str) -> DecodeError {
        DecodeError::BadField { kind: self.kind, field }
    }

    /// Checks that nothing is left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing { kind: self.kind, extra }),
        }
    }
}

/// Writes a `u32` length and the bytes; the counterpart of [`Fields::blob`].
pub fn put_blob(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("a blob fits a frame"));
    out.put_slice(bytes);
}

/// An LSN.
pub(crate) fn take_lsn(fields: &mut Fields) -> Result<Lsn, DecodeError> {
    Ok(Lsn::new(fields.u64()?))
}

/// A blob of JSON.
pub(crate) fn take_json<T: serde::de::DeserializeOwned>(
    fields: &mut Fields,
    field: &'static str,
) -> Result<T, DecodeError> {
    let text = fields.blob()?;
    serde_json::from_slice(&text).map_err(|_| fields.bad(field))
}

/// Appends `value` as a blob of JSON.
pub(crate) fn put_json(out: &mut BytesMut, value: &impl Serialize) {
    put_blob(out, &serde_json::to_vec(value).expect("messages are plain data"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_in_pieces() {
        let mut wire = BytesMut::new();
        write_frame(&mut wire, 7, |out| out.put_slice(b"abc"));
        let mut buffer = BytesMut::new();
        for (at, byte) in wire.iter().enumerate() {
            assert_eq!(Frame::take(&mut buffer), Ok(None), "after {at} bytes");
            buffer.put_u8(*byte);
        }
        assert_eq!(Frame::take(&mut buffer), Ok(Some(Frame { kind: 7, payload: Bytes::from_static(b"abc") })));
        assert_eq!(Frame::take(&mut buffer), Ok(None));
    }

    #[test]
    fn absurd_lengths_are_refused_before_allocation() {
        for length in [0_u32, FRAME_LEN_MAX as u32 + 1, u32::MAX] {
            let mut buffer = BytesMut::from(&length.to_le_bytes()[..]);
            assert_eq!(Frame::take(&mut buffer), Err(DecodeError::BadLength(length as usize)));
        }
    }

    #[test]
    fn fields_report_what_is_missing() {
        let mut fields = Fields::of(Frame { kind: 9, payload: Bytes::from_static(&[1, 0, 0, 0]) });
        assert_eq!(fields.u8(), Ok(1));
        assert_eq!(fields.u64(), Err(DecodeError::Truncated { kind: 9, needed: 5 }));
        assert_eq!(fields.finish(), Err(DecodeError::Trailing { kind: 9, extra: 3 }));
    }
}
