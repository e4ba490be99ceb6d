//! Committed WAL from one safekeeper, as it comes.

use std::sync::Arc;
use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{CAN_HURRY, Request, Response, WalChunk};
use ardent_types::{Lsn, TenantId, TimelineId};

use crate::connection::{Binding, Receiver, Sender, connect};
use crate::error::ClientError;

/// How long a safekeeper may take to say what it has.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream of committed WAL. After an error connect again, to any safekeeper, at the position reached.
pub struct WalReader {
    receiver: Receiver,
    positions: PositionSender,
    next_lsn: Lsn,
}

/// The way back: what the follower has made durable.
struct PositionSender {
    sender: Sender,
    sent: Lsn,
}

impl WalReader {
    /// Reads from the first of these safekeepers that has the WAL from `start_lsn` on.
    pub async fn connect(
        addresses: &[ServiceAddr],
        tenant: TenantId,
        timeline: TimelineId,
        token: &str,
        start_lsn: Lsn,
    ) -> Result<WalReader, ClientError> {
        let binding = Binding { tenant, timeline, token: token.to_owned() };
        let mut last_error = None;
        for address in addresses {
            // One that hangs is one that is away.
            let connecting = tokio::time::timeout(CONNECT_TIMEOUT, Self::connect_one(address, &binding, start_lsn));
            match connecting.await {
                Ok(Ok(reader)) => return Ok(reader),
                Ok(Err(error)) => last_error = Some(error),
                Err(elapsed) => {
                    let source = Arc::new(std::io::Error::new(std::io::ErrorKind::TimedOut, elapsed));
                    last_error = Some(ClientError::Connect { address: address.clone(), source });
                }
            }
        }
        Err(last_error.expect("at least one safekeeper is given"))
    }

    async fn connect_one(address: &ServiceAddr, binding: &Binding, from: Lsn) -> Result<WalReader, ClientError> {
        let (mut sender, mut receiver) = connect(address, binding).await?;
        sender.send(&Request::Follow { from }).await?;
        // The first chunk is empty and only tells the commit position: the safekeeper has what we want.
        match receiver.next().await? {
            Response::Chunk(chunk) if chunk.bytes.is_empty() && chunk.start == from => {}
            _ => return Err(receiver.unexpected()),
        }
        let positions = PositionSender { sender, sent: Lsn::INVALID };
        Ok(WalReader { receiver, positions, next_lsn: from })
    }

    /// Where the next chunk starts.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// The next chunk; waits until there is one. Chunks follow each other without a gap. Cancel-safe.
    pub async fn next(&mut self) -> Result<WalChunk, ClientError> {
        match self.receiver.next().await? {
            Response::Chunk(chunk) if chunk.start == self.next_lsn => {
                self.next_lsn = chunk.start.advance(chunk.bytes.len() as u64);
                Ok(chunk)
            }
            _ => Err(self.receiver.unexpected()),
        }
    }

    /// Tells the safekeeper that somebody waits for WAL up to `lsn`: what comes in small pieces it gathers otherwise. Not cancel-safe.
    pub async fn send_await(&mut self, lsn: Lsn) -> Result<(), ClientError> {
        if lsn <= self.next_lsn || !self.receiver.peer_can(CAN_HURRY) {
            return Ok(());
        }
        self.positions.sender.send(&Request::Await { lsn }).await
    }

    /// Tells the safekeeper that everything below `durable_lsn` is durable here and in every copy that anybody may start
    /// from: it may forget that WAL. Needs a token with write rights. Not cancel-safe.
    pub async fn send_position(&mut self, durable_lsn: Lsn) -> Result<(), ClientError> {
        self.positions.send(durable_lsn).await
    }
}

impl PositionSender {
    async fn send(&mut self, durable_lsn: Lsn) -> Result<(), ClientError> {
        if durable_lsn <= self.sent {
            return Ok(());
        }
        self.sent = durable_lsn;
        self.sender.send(&Request::Position { durable_lsn }).await
    }
}
