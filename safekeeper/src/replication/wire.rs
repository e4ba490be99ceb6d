//! The few messages of Postgres's frontend/backend protocol (version 3) that replication needs. Source: PostgreSQL's
//! documentation, "Message Formats" and "Streaming Replication Protocol".

use std::collections::HashMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// `SSLRequest` and `GSSENCRequest`: answered with one byte.
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const PROTOCOL_3: u32 = 3 << 16;
/// Longest startup packet or message of a client, in bytes. Longer ones have no meaning here.
const MESSAGE_LEN_MAX: usize = 16 << 10;

/// Bytes of such a request.
pub(crate) const REQUEST_LEN: usize = 8;

/// What a client asks for with its first packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Tls,
    /// Encryption by GSSAPI, which is not offered.
    Gss,
    /// No encryption: this is the beginning of something else.
    Nothing,
}

/// Reads the beginning of a client's first packet.
pub(crate) fn asked(packet: &[u8; REQUEST_LEN]) -> Asked {
    let mut fields = &packet[..];
    match (fields.get_u32() as usize, fields.get_u32()) {
        (REQUEST_LEN, SSL_REQUEST) => Asked::Tls,
        (REQUEST_LEN, GSSENC_REQUEST) => Asked::Gss,
        _ => Asked::Nothing,
    }
}

/// `int4`, `text` and `bytea` as type OIDs.
pub(crate) const INT4: u32 = 23;
pub(crate) const TEXT: u32 = 25;
pub(crate) const BYTEA: u32 = 17;

/// What a client opens with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It asks for encryption; the answer is `N`.
    Encryption,
    /// Its parameters.
    Startup(HashMap<String, String>),
}

/// A client that does not speak the protocol, or has gone away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("the client does not speak the protocol: {0}")]
    Protocol(&'static str),
    #[error("refused: {0}")]
    Refused(String),
    #[error("the client sent nothing in time")]
    TimedOut,
}

/// Reads messages.
pub(crate) struct Messages<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    pub(crate) fn new(stream: R) -> Self {
        Messages { stream, buffer: BytesMut::with_capacity(4096) }
    }

    /// Until `length` bytes are buffered; false at the end of the stream before the first.
    async fn fill(&mut self, length: usize) -> Result<bool, WireError> {
        while self.buffer.len() < length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(false)
                } else {
                    Err(WireError::Protocol("it closed the connection in the middle of a message"))
                };
            }
        }
        Ok(true)
    }

    fn checked_length(&self, at: usize) -> Result<usize, WireError> {
        let length = (&self.buffer[at..]).get_u32() as usize;
        if (4..=MESSAGE_LEN_MAX).contains(&length) {
            Ok(length)
        } else {
            Err(WireError::Protocol("a message has an impossible length"))
        }
    }

    /// The first packet; `None`: it went away.
    pub(crate) async fn opening(&mut self) -> Result<Option<Opening>, WireError> {
        if !self.fill(4).await? {
            return Ok(None);
        }
        let length = self.checked_length(0)?;
        self.fill(length).await?;
        let mut packet = self.buffer.split_to(length).freeze();
        packet.advance(4);
        if packet.len() < 4 {
            return Err(WireError::Protocol("the startup packet is too short"));
        }
        match packet.get_u32() {
            SSL_REQUEST | GSSENC_REQUEST => Ok(Some(Opening::Encryption)),
            version if version >> 16 == PROTOCOL_3 >> 16 => Ok(Some(Opening::Startup(parameters(packet)?))),
            _ => Err(WireError::Protocol("an unknown protocol version")),
        }
    }

    /// The next message's type and content; `None`: it went away. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<(u8, Bytes)>, WireError> {
        if !self.fill(5).await? {
            return Ok(None);
        }
        let length = self.checked_length(1)?;
        self.fill(1 + length).await?;
        let mut message = self.buffer.split_to(1 + length).freeze();
        let kind = message.get_u8();
        message.advance(4);
        Ok(Some((kind, message)))
    }
}

fn parameters(packet: Bytes) -> Result<HashMap<String, String>, WireError> {
    let mut parameters = HashMap::new();
    let mut texts = packet.split(|byte| *byte == 0).map(std::str::from_utf8);
    while let Some(name) = texts.next() {
        let not_text = WireError::Protocol("a startup parameter is not UTF-8");
        match (name, texts.next()) {
            (Ok(""), _) => break,
            (Ok(name), Some(Ok(value))) => parameters.insert(name.to_owned(), value.to_owned()),
            _ => return Err(not_text),
        };
    }
    Ok(parameters)
}

/// A text that ends with a zero byte.
pub(crate) fn text(message: &Bytes) -> Result<&str, WireError> {
    let text = message.strip_suffix(&[0]).unwrap_or(message);
    std::str::from_utf8(text).map_err(|_| WireError::Protocol("a text is not UTF-8"))
}

/// Appends a message: type, length, content.
pub(crate) fn put(out: &mut BytesMut, kind: u8, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    let at = out.len();
    out.put_u32(0);
    fill(out);
    let length = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

/// `ErrorResponse`.
pub(crate) fn put_error(out: &mut BytesMut, severity: &str, code: &str, message: &str) {
    put(out, b'E', |out| {
        for (field, value) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', message)] {
            out.put_u8(field);
            put_text(out, value);
        }
        out.put_u8(0);
    });
}

/// `AuthenticationCleartextPassword`.
pub(crate) fn put_password_request(out: &mut BytesMut) {
    put(out, b'R', |out| out.put_u32(3));
}

/// `AuthenticationOk`, and what follows it.
pub(crate) fn put_welcome(out: &mut BytesMut, server_version: &str) {
    put(out, b'R', |out| out.put_u32(0));
    let settings = [
        ("server_version", server_version),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("integer_datetimes", "on"),
    ];
    for (name, value) in settings {
        put(out, b'S', |out| {
            put_text(out, name);
            put_text(out, value);
        });
    }
    put_ready(out);
}

/// `ReadyForQuery`.
pub(crate) fn put_ready(out: &mut BytesMut) {
    put(out, b'Z', |out| out.put_u8(b'I'));
}

/// `CommandComplete`.
pub(crate) fn put_complete(out: &mut BytesMut, tag: &str) {
    put(out, b'C', |out| put_text(out, tag));
}

/// One row with its description.
pub(crate) fn put_row(out: &mut BytesMut, columns: &[(&str, u32, Option<String>)]) {
    put(out, b'T', |out| {
        out.put_u16(columns.len() as u16);
        for (name, type_oid, _) in columns {
            put_text(out, name);
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(*type_oid);
            out.put_i16(if *type_oid == INT4 { 4 } else { -1 });
            out.put_i32(-1);
            out.put_u16(0);
        }
    });
    put(out, b'D', |out| {
        out.put_u16(columns.len() as u16);
        for (_, _, value) in columns {
            match value {
                None => out.put_i32(-1),
                Some(value) => {
                    out.put_u32(value.len() as u32);
                    out.put_slice(value.as_bytes());
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn openings_and_messages_are_read_and_nonsense_is_refused() {
        let mut wire = BytesMut::new();
        wire.put_slice(&[0, 0, 0, 8]);
        wire.put_u32(SSL_REQUEST);
        wire.put_slice(&[0, 0, 0, 16]);
        wire.put_u32(PROTOCOL_3);
        wire.put_slice(b"user\0x\0\0");
        put(&mut wire, b'Q', |out| out.put_slice(b"SHOW a\0"));
        let mut messages = Messages::new(&wire[..]);
        assert_eq!(messages.opening().await.expect("read"), Some(Opening::Encryption));
        let expected = HashMap::from([("user".to_owned(), "x".to_owned())]);
        assert_eq!(messages.opening().await.expect("read"), Some(Opening::Startup(expected)));
        let (kind, content) = messages.next().await.expect("read").expect("a message");
        assert_eq!((kind, text(&content).expect("text")), (b'Q', "SHOW a"));
        assert!(messages.next().await.expect("read").is_none());

        for bad in [&[0, 0, 0, 3][..], &[0xFF; 8], &[0, 0, 0, 4], &[0, 0, 0, 8, 0, 2, 0, 0], &[0, 0]] {
            assert!(Messages::new(bad).opening().await.is_err(), "{bad:?}");
        }
    }
}
