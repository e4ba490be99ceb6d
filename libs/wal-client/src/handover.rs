//! A log that is handed over to the one safekeeper that keeps it, with the walsender that it comes from.
//!
//! ```text
//!  Postgres ══ walsender's connection ══► safekeeper      what it reports to Postgres as flushed, it has fsynced in the writer's term
//!     agent ── Receive, descriptor ──►       │
//!           ◄── Received, or why not ────────┘
//! ```
//!
//! Invariant: the safekeeper writes in the writer's term and generation, by the acceptor's rules; whoever has the log afterwards is elected anew.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{CAN_RECEIVE, Membership, Receive, Received, RecordEnd, Request, Response};
use ardent_types::{Term, TimelineId};
use bytes::Bytes;

use crate::connection::{Binding, connect_here};
use crate::error::{ClientError, ProposerError};

/// A log whose proposer has ended, and that its safekeeper can go on writing.
#[derive(Clone)]
pub struct Handover {
    pub(crate) address: ServiceAddr,
    pub(crate) binding: Binding,
    pub(crate) membership: Membership,
    pub(crate) term: Term,
    pub(crate) end: RecordEnd,
}

/// A safekeeper does not write the log that was handed over to it, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Another writer holds a higher term.
    #[error(transparent)]
    Fenced(ProposerError),
    /// It cannot, or it is away.
    #[error(transparent)]
    Safekeeper(ClientError),
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover")
            .field("address", &self.address)
            .field("timeline", &self.binding.timeline)
            .field("term", &self.term)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Handover {
    /// Whose log it is.
    pub fn timeline(&self) -> TimelineId {
        self.binding.timeline
    }

    /// The members that its proposer went by.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Gives the safekeeper the connection of a walsender that streams from the end of the log on, with what was `read` of it already, and
    /// waits until that has ended. Dropping the future ends it.
    pub async fn receive(&self, walsender: OwnedFd, read: Bytes) -> Result<Received, HandoverError> {
        let lost = HandoverError::Safekeeper;
        let ServiceAddr::Unix(path) = &self.address else {
            let what = "a descriptor passes Unix sockets only".to_owned();
            return Err(lost(ClientError::Protocol { address: self.address.clone(), what }));
        };
        let (mut sender, mut receiver, mut descriptors) =
            connect_here(&self.address, path, &self.binding).await.map_err(lost)?;
        if !receiver.peer_can(CAN_RECEIVE) {
            return Err(lost(receiver.unexpected()));
        }
        let receive = Receive { term: self.term, generation: self.membership.generation, end: self.end, read };
        sender.send(&Request::Receive(receive)).await.map_err(lost)?;
        match receiver.next().await.map_err(lost)? {
            Response::Receiving => {}
            _ => return Err(lost(receiver.unexpected())),
        }
        if let Err(error) = descriptors.send_descriptor(walsender.as_fd()).await {
            return Err(lost(ClientError::Lost { address: self.address.clone(), source: Some(Arc::new(error)) }));
        }
        // From here on it is the safekeeper's: when that closes it, Postgres is to see it closed.
        drop((walsender, descriptors));
        match receiver.next().await.map_err(lost)? {
            Response::Received(received) => Ok(received),
            Response::Append(reply) if reply.term > self.term => {
                let timeline = self.binding.timeline;
                Err(HandoverError::Fenced(ProposerError::Fenced { timeline, term: reply.term }))
            }
            _ => Err(lost(receiver.unexpected())),
        }
    }
}
