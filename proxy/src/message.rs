//! The few protocol messages that the proxy reads or writes itself.
//!
//! Source: PostgreSQL documentation, "Message Formats".

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::startup::CancelKey;

/// `AuthenticationXXX`.
pub const AUTHENTICATION: u8 = b'R';
/// `BackendKeyData`.
pub const BACKEND_KEY_DATA: u8 = b'K';
/// `ErrorResponse`.
pub const ERROR_RESPONSE: u8 = b'E';
/// `ReadyForQuery`.
pub const READY_FOR_QUERY: u8 = b'Z';
/// `SASLInitialResponse`, `SASLResponse`.
pub const PASSWORD_MESSAGE: u8 = b'p';

const AUTH_SASL: u32 = 10;
const AUTH_SASL_CONTINUE: u32 = 11;
const AUTH_SASL_FINAL: u32 = 12;

/// An error as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    /// SQLSTATE.
    pub sqlstate: &'static str,
    /// What failed and why.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl ClientError {
    /// The `ErrorResponse`, with severity FATAL.
    pub fn encode(&self) -> Bytes {
        message(ERROR_RESPONSE, |out| {
            let mut field = |code: u8, text: &str| {
                out.put_u8(code);
                // A zero byte would end the field early and let the rest pass for fields of its own.
                out.extend(text.bytes().filter(|byte| *byte != 0));
                out.put_u8(0);
            };
            field(b'S', "FATAL");
            field(b'V', "FATAL");
            field(b'C', self.sqlstate);
            field(b'M', &self.message);
            if let Some(hint) = &self.hint {
                field(b'H', hint);
            }
            out.put_u8(0);
        })
    }
}

/// `AuthenticationSASL` with these mechanisms.
pub fn sasl(mechanisms: &[&str]) -> Bytes {
    message(AUTHENTICATION, |out| {
        out.put_u32(AUTH_SASL);
        for mechanism in mechanisms {
            out.put_slice(mechanism.as_bytes());
            out.put_u8(0);
        }
        out.put_u8(0);
    })
}

/// `AuthenticationSASLContinue`.
pub fn sasl_continue(data: &str) -> Bytes {
    message(AUTHENTICATION, |out| {
        out.put_u32(AUTH_SASL_CONTINUE);
        out.put_slice(data.as_bytes());
    })
}

/// `AuthenticationSASLFinal`.
pub fn sasl_final(data: &str) -> Bytes {
    message(AUTHENTICATION, |out| {
        out.put_u32(AUTH_SASL_FINAL);
        out.put_slice(data.as_bytes());
    })
}

/// `BackendKeyData`.
pub fn backend_key_data(key: CancelKey) -> Bytes {
    message(BACKEND_KEY_DATA, |out| {
        out.put_u32(key.process_id);
        out.put_u32(key.secret);
    })
}

/// `NegotiateProtocolVersion`: 3.0, and the extensions that are not known.
pub fn negotiate_protocol_version<'a>(extensions: impl Iterator<Item = &'a str>) -> Bytes {
    let extensions: Vec<_> = extensions.collect();
    message(b'v', |out| {
        out.put_u32(0);
        out.put_u32(u32::try_from(extensions.len()).expect("extensions fit a startup packet"));
        for name in extensions {
            out.put_slice(name.as_bytes());
            out.put_u8(0);
        }
    })
}

fn message(kind: u8, fill: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(kind);
    out.put_u32(0);
    fill(&mut out);
    let length = u32::try_from(out.len() - 1).expect("our messages are small");
    out[1..5].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

/// A message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection broke or ended.
    #[error("connection lost")]
    Io(#[from] std::io::Error),
    /// The length field is below 4 or above the limit.
    #[error("message type {kind:#04x} says it is {length} bytes long (4 to {limit} is allowed)")]
    Length {
        /// Message type.
        kind: u8,
        /// Length field.
        length: u32,
        /// Limit.
        limit: usize,
    },
}

/// Reads one message: its type and its bytes after the length.
pub async fn read(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> Result<(u8, Bytes), ReadError> {
    let kind = stream.read_u8().await?;
    let length = stream.read_u32().await?;
    let body = (length as usize).checked_sub(4).filter(|body| *body <= limit);
    let mut bytes = vec![0; body.ok_or(ReadError::Length { kind, length, limit })?];
    stream.read_exact(&mut bytes).await?;
    Ok((kind, bytes.into()))
}

/// A message as it came, header included.
pub fn raw(kind: u8, body: &[u8]) -> Bytes {
    message(kind, |out| out.put_slice(body))
}

/// The mechanism and the data of a `SASLInitialResponse`.
pub fn parse_sasl_initial(mut body: Bytes) -> Option<(String, Bytes)> {
    let end = body.iter().position(|byte| *byte == 0)?;
    let mechanism = String::from_utf8(body.split_to(end).to_vec()).ok()?;
    body.advance(1);
    let length = body.try_get_u32().ok()? as usize;
    (body.len() == length).then_some((mechanism, body))
}

/// The key in a `BackendKeyData` of protocol 3.0.
pub fn parse_backend_key_data(mut body: Bytes) -> Option<CancelKey> {
    (body.len() == 8).then(|| CancelKey { process_id: body.get_u32(), secret: body.get_u32() })
}

/// The SQLSTATE in an `ErrorResponse`.
pub fn parse_sqlstate(body: &[u8]) -> Option<&str> {
    let mut fields = body.split(|byte| *byte == 0);
    fields.find_map(|field| field.strip_prefix(b"C")).and_then(|code| std::str::from_utf8(code).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_carry_their_sqlstate_and_survive_zero_bytes() {
        let error = ClientError { sqlstate: "28P01", message: "no\0Cxxxxx".into(), hint: Some("do".into()) };
        let bytes = error.encode();
        assert_eq!(parse_sqlstate(&bytes[5..]), Some("28P01"));
        assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().expect("4")) as usize, bytes.len() - 1);
        assert!(bytes.windows(9).any(|window| window == b"MnoCxxxxx"));
    }

    #[test]
    fn initial_responses_are_checked() {
        let check = |body: &'static [u8]| parse_sasl_initial(Bytes::from_static(body));
        assert_eq!(check(b"M\0\0\0\0\x01x"), Some(("M".to_owned(), Bytes::from_static(b"x"))));
        assert_eq!(check(b"M\0\0\0\0\x02x"), None);
        assert_eq!(check(b"M\0\0\0"), None);
        assert_eq!(check(b"M"), None);
    }

    #[tokio::test]
    async fn absurd_lengths_are_refused_before_allocation() {
        let mut input: &[u8] = &[b'p', 0xFF, 0xFF, 0xFF, 0xFF];
        assert!(matches!(read(&mut input, 100).await, Err(ReadError::Length { length: u32::MAX, .. })));
    }
}
