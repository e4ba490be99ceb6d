//! A physical replication connection to the compute's own Postgres, over its Unix socket.
//!
//! No password is needed there: the socket's folder is private, and `pg_hba.conf` knows the agent.

use std::os::fd::OwnedFd;
use std::path::Path;

use ardent_types::{Lsn, PgTli};
use ardent_unix_stream::QuietStream;
use ardent_wal_client::walsender::{self, Message, WalSenderError};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{ReadHalf, WriteHalf};

/// Protocol 3.0.
const PROTOCOL_VERSION: i32 = 196_608;

pub(crate) type Incoming = walsender::Incoming<ReadHalf<QuietStream>>;
pub(crate) type Reports = walsender::Reports<WriteHalf<QuietStream>>;

/// A connection, after authentication.
#[derive(Debug)]
pub(crate) struct WalSender {
    pub(crate) incoming: Incoming,
    pub(crate) reports: Reports,
    /// The process at the other end, as it calls itself.
    pub(crate) pid: Option<u32>,
}

impl WalSender {
    pub(crate) async fn connect(socket: &Path, user: &str, application: &str) -> Result<Self, WalSenderError> {
        let stream = QuietStream::connect(socket).await.map_err(WalSenderError::Lost)?;
        let (read_half, write_half) = tokio::io::split(stream);
        let incoming = Incoming::new(read_half, BytesMut::new());
        let mut sender = WalSender { incoming, reports: Reports::new(write_half), pid: None };
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
                kind => return Err(WalSenderError::unexpected(kind)),
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
                kind => return Err(WalSenderError::unexpected(kind)),
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

    /// The socket, for somebody else to go on with, and what was read of it already.
    pub(crate) fn into_socket(self) -> (OwnedFd, Bytes) {
        let (stream, read) = self.incoming.into_parts();
        let stream = stream.unsplit(self.reports.into_inner());
        (stream.into_std().into(), read.freeze())
    }
}
