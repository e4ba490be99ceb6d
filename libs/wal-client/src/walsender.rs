//! The two sides of a walsender's stream, once it streams: what it sends, and what it is told.
//!
//! Source: "Streaming Replication Protocol" in Postgres's manual. Bytes come from a compute, whose users can run what they like in it: whatever is no
//! message is an error.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ardent_types::Lsn;
use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Largest message taken: a chunk of WAL is at most 128 KiB, an error text less.
const MESSAGE_LEN_MAX: usize = 8 << 20;
const READ_CHUNK_LEN: usize = 256 << 10;
/// SQLSTATE of "undefined file": a WAL segment that has been removed.
const UNDEFINED_FILE: &str = "58P01";
/// 2000-01-01, where Postgres's clock starts.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// Why the connection is of no use (any more).
#[derive(Debug, thiserror::Error)]
pub enum WalSenderError {
    /// The socket failed or was closed.
    #[error("the replication connection to Postgres was lost")]
    Lost(#[source] io::Error),
    /// Postgres said no.
    #[error("Postgres refuses: {message} (SQLSTATE {code})")]
    Refused {
        /// SQLSTATE.
        code: String,
        /// Text.
        message: String,
    },
    /// Something that the protocol does not have here.
    #[error("Postgres sent an unexpected message {0:?} on the replication connection")]
    Unexpected(char),
}

/// What a walsender sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// WAL from `start` on.
    Wal {
        /// Position of the first byte.
        start: Lsn,
        /// Bytes, cut anywhere.
        bytes: Bytes,
    },
    /// Nothing new.
    Keepalive {
        /// An answer is wanted now.
        reply_wanted: bool,
    },
    /// Postgres is shutting down and has sent everything.
    End,
}

/// What comes from Postgres.
#[derive(Debug)]
pub struct Incoming<R> {
    stream: R,
    received: BytesMut,
}

/// The way back.
#[derive(Debug)]
pub struct Reports<W> {
    stream: W,
}

/// A message of Postgres's protocol.
#[derive(Debug)]
pub struct Message {
    /// Its type.
    pub kind: u8,
    /// What follows the length.
    pub body: Bytes,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// What comes from `stream`, after what was `received` from it before.
    pub fn new(stream: R, received: BytesMut) -> Self {
        Incoming { stream, received }
    }

    /// The stream, and what was received and not asked for.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.stream, self.received)
    }

    /// What comes next in the stream. Cancel-safe.
    pub async fn next(&mut self) -> Result<Sent, WalSenderError> {
        loop {
            let message = self.message().await?;
            match message.kind {
                b'd' => return parse_copy_data(message.body),
                b'c' | b'C' => return Ok(Sent::End),
                b'N' | b'S' => {}
                kind => return Err(unexpected(kind)),
            }
        }
    }

    /// The next message; an error message is an error. Cancel-safe.
    pub async fn message(&mut self) -> Result<Message, WalSenderError> {
        loop {
            if let Some(message) = take_message(&mut self.received)? {
                return if message.kind == b'E' { Err(refusal(&message.body)) } else { Ok(message) };
            }
            // A buffer is used up before there is another: pieces of WAL share it until the quorum has them.
            if self.received.capacity() - self.received.len() < READ_CHUNK_LEN / 4 {
                self.received.reserve(READ_CHUNK_LEN);
            }
            if self.stream.read_buf(&mut self.received).await.map_err(WalSenderError::Lost)? == 0 {
                return Err(WalSenderError::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl<W: AsyncWrite + Unpin> Reports<W> {
    /// The way back of a connection.
    pub fn new(stream: W) -> Self {
        Reports { stream }
    }

    /// The stream.
    pub fn into_inner(self) -> W {
        self.stream
    }

    /// Reports everything below `position` as written, flushed and applied.
    pub async fn report(&mut self, position: Lsn) -> Result<(), WalSenderError> {
        let mut out = BytesMut::with_capacity(39);
        out.put_u8(b'd');
        out.put_i32(4 + 34);
        out.put_u8(b'r');
        for _ in ["written", "flushed", "applied"] {
            out.put_u64(position.get());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH + POSTGRES_EPOCH).unwrap_or_default();
        out.put_i64(i64::try_from(now.as_micros()).unwrap_or(i64::MAX));
        out.put_u8(0);
        self.write(&out).await
    }

    /// Sends any message.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), WalSenderError> {
        self.stream.write_all(bytes).await.map_err(WalSenderError::Lost)
    }
}

fn take_message(received: &mut BytesMut) -> Result<Option<Message>, WalSenderError> {
    let Some(header) = received.first_chunk::<5>() else { return Ok(None) };
    let (kind, length) = (header[0], u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize);
    if !(4..=MESSAGE_LEN_MAX).contains(&length) {
        return Err(unexpected(kind));
    }
    if received.len() < 1 + length {
        return Ok(None);
    }
    let mut message = received.split_to(1 + length);
    message.advance(5);
    Ok(Some(Message { kind, body: message.freeze() }))
}

fn parse_copy_data(mut body: Bytes) -> Result<Sent, WalSenderError> {
    match body.first() {
        Some(b'w') if body.len() >= 25 => {
            body.advance(1);
            let start = Lsn::new(body.get_u64());
            body.advance(16);
            Ok(Sent::Wal { start, bytes: body })
        }
        Some(b'k') if body.len() >= 18 => Ok(Sent::Keepalive { reply_wanted: body[17] != 0 }),
        _ => Err(unexpected(b'd')),
    }
}

fn refusal(body: &[u8]) -> WalSenderError {
    let mut refused = (String::new(), String::new());
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        match kind {
            b'C' => refused.0 = String::from_utf8_lossy(text).into_owned(),
            b'M' => refused.1 = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    WalSenderError::Refused { code: refused.0, message: refused.1 }
}

fn unexpected(kind: u8) -> WalSenderError {
    WalSenderError::unexpected(kind)
}

impl WalSenderError {
    /// Whether Postgres no longer has the WAL that is to come next: another connection would not get it either.
    pub fn is_wal_gone(&self) -> bool {
        matches!(self, WalSenderError::Refused { code, .. } if code == UNDEFINED_FILE)
    }

    /// For a message that has no place where it came.
    pub fn unexpected(kind: u8) -> Self {
        WalSenderError::Unexpected(char::from(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_pieces_and_absurd_lengths_are_refused() {
        let wire = [b'Z', 0, 0, 0, 5, b'I'];
        let mut received = BytesMut::new();
        for byte in wire {
            assert!(take_message(&mut received).expect("valid so far").is_none());
            received.put_u8(byte);
        }
        let message = take_message(&mut received).expect("valid").expect("whole");
        assert_eq!((message.kind, &message.body[..]), (b'Z', &b"I"[..]));
        for length in [0_u32, 3, u32::MAX] {
            let mut received = BytesMut::from(&[b'd'][..]);
            received.put_u32(length);
            assert!(take_message(&mut received).is_err());
        }
    }

    #[test]
    fn copy_data_is_wal_or_a_keepalive() {
        let mut wal = BytesMut::from(&b"w"[..]);
        wal.put_u64(0x0100_0028);
        wal.put_slice(&[0; 16]);
        wal.put_slice(b"abc");
        let expect = Sent::Wal { start: Lsn::new(0x0100_0028), bytes: Bytes::from_static(b"abc") };
        assert_eq!(parse_copy_data(wal.freeze()).expect("wal"), expect);
        let mut keepalive = BytesMut::from(&b"k"[..]);
        keepalive.put_slice(&[0; 16]);
        keepalive.put_u8(1);
        assert_eq!(parse_copy_data(keepalive.freeze()).expect("keepalive"), Sent::Keepalive { reply_wanted: true });
        assert!(parse_copy_data(Bytes::from_static(b"k")).is_err());
        assert!(parse_copy_data(Bytes::new()).is_err());
    }

    #[test]
    fn a_refusal_has_code_and_text() {
        let refused = refusal(b"SFATAL\0C28000\0Mrole \"x\" does not exist\0\0");
        assert_eq!(refused.to_string(), "Postgres refuses: role \"x\" does not exist (SQLSTATE 28000)");
        assert!(!refused.is_wal_gone());
        assert!(refusal(b"SERROR\0C58P01\0Mrequested WAL segment has already been removed\0\0").is_wal_gone());
    }
}
