//! A physical replication connection to the compute's own Postgres, over its Unix socket.
//!
//! No password is needed there: the socket's folder is private, and `pg_hba.conf` knows the agent.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ardent_types::{Lsn, PgTli};
use ardent_unix_stream::QuietStream;
use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

/// Protocol 3.0.
const PROTOCOL_VERSION: i32 = 196_608;
/// Largest message taken: a chunk of WAL is at most 128 KiB, an error text less.
const MESSAGE_LEN_MAX: usize = 8 << 20;
const READ_CHUNK_LEN: usize = 256 << 10;
/// 2000-01-01, where Postgres's clock starts.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// Why the connection is of no use (any more).
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalSenderError {
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
pub(crate) enum Sent {
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

/// A connection, after authentication.
#[derive(Debug)]
pub(crate) struct WalSender {
    pub(crate) incoming: Incoming,
    pub(crate) reports: Reports,
    /// The process at the other end, as it calls itself.
    pub(crate) pid: Option<u32>,
}

/// What comes from Postgres.
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: ReadHalf<QuietStream>,
    received: BytesMut,
}

/// The way back.
#[derive(Debug)]
pub(crate) struct Reports {
    stream: WriteHalf<QuietStream>,
}

struct Message {
    kind: u8,
    body: Bytes,
}

impl WalSender {
    pub(crate) async fn connect(socket: &Path, user: &str, application: &str) -> Result<Self, WalSenderError> {
        let stream = QuietStream::connect(socket).await.map_err(WalSenderError::Lost)?;
        let (read_half, write_half) = tokio::io::split(stream);
        let incoming = Incoming { stream: read_half, received: BytesMut::new() };
        let mut sender = WalSender { incoming, reports: Reports { stream: write_half }, pid: None };
        let mut parameters = BytesMut::new();
        for text in ["user", user, "replication", "true", "application_name", application] {
            parameters.put_slice(text.as_bytes());
            parameters.put_u8(0);
        }
        parameters.put_u8(0);
        let mut out = BytesMut::new();
        out.put_i32(i32::try_from(parameters.len() + 8).expect("names are short"));
        out.put_i32(PROTOCOL_VERSION);
        out.put_slice(&parameters);
        sender.reports.write(&out).await?;
        loop {
            let mut message = sender.incoming.message().await?;
            match message.kind {
                b'R' if message.body.len() >= 4 && message.body.get_i32() == 0 => {}
                b'K' if message.body.len() >= 4 => sender.pid = Some(message.body.get_u32()),
                b'S' | b'N' => {}
                b'Z' => return Ok(sender),
                kind => return Err(unexpected(kind)),
            }
        }
    }

    /// Runs a replication command and ignores its rows.
    pub(crate) async fn execute(&mut self, command: &str) -> Result<(), WalSenderError> {
        self.query(command).await?;
        let mut refused = None;
        loop {
            match self.incoming.message().await {
                Ok(Message { kind: b'Z', .. }) => return refused.map_or(Ok(()), Err),
                Ok(_) => {}
                Err(error @ WalSenderError::Refused { .. }) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts streaming from `start` with `slot`.
    pub(crate) async fn start(&mut self, slot: &str, start: Lsn, tli: PgTli) -> Result<(), WalSenderError> {
        self.query(&format!("START_REPLICATION SLOT {slot} PHYSICAL {start} TIMELINE {tli}")).await?;
        loop {
            match self.incoming.message().await?.kind {
                b'W' => return Ok(()),
                b'N' | b'S' => {}
                kind => return Err(unexpected(kind)),
            }
        }
    }

    async fn query(&mut self, text: &str) -> Result<(), WalSenderError> {
        let mut out = BytesMut::new();
        out.put_u8(b'Q');
        out.put_i32(i32::try_from(text.len() + 5).expect("commands are short"));
        out.put_slice(text.as_bytes());
        out.put_u8(0);
        self.reports.write(&out).await
    }
}

impl Incoming {
    /// What comes next in the stream. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Sent, WalSenderError> {
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
    async fn message(&mut self) -> Result<Message, WalSenderError> {
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

impl Reports {
    /// Reports everything below `position` as written, flushed and applied.
    pub(crate) async fn report(&mut self, position: Lsn) -> Result<(), WalSenderError> {
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

    async fn write(&mut self, bytes: &[u8]) -> Result<(), WalSenderError> {
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
    WalSenderError::Unexpected(char::from(kind))
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
    }
}
