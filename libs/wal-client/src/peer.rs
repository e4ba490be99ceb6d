//! The task that keeps a connection to one safekeeper for a proposer.

use std::time::Duration;

use tokio::sync::mpsc;

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{CAN_CHANGE_MEMBERS, CAN_RECEIVE, Request, Response};
use ardent_types::with_causes;

use crate::connection::{Binding, connect};
use crate::error::ClientError;

/// First pause between two attempts to connect; doubled each time.
const RECONNECT_AFTER_MIN: Duration = Duration::from_millis(10);
const RECONNECT_AFTER_MAX: Duration = Duration::from_secs(1);
/// Bytes that are gathered before they are sent.
const SEND_BATCH_BYTES: usize = 256 << 10;

/// What a peer task tells its proposer.
pub(crate) enum PeerEvent {
    /// Connected; requests go here until [`PeerEvent::Down`].
    Up {
        requests: mpsc::UnboundedSender<ToPeer>,
        /// It can be told who the members are.
        knows_members: bool,
        /// A walsender's connection can be handed over to it.
        can_receive: bool,
    },
    /// A message came.
    Message(Response),
    /// The connection is gone, or could not be made.
    Down(ClientError),
}

/// What a proposer tells a peer task. Without its sender the task ends once all is sent.
#[derive(Debug)]
pub(crate) enum ToPeer {
    Request(Request),
    /// This connection is of no use, for this reason: another one may be, as when another version answers there.
    HangUp(ClientError),
}

/// Connects, passes messages both ways, connects again. Ends when the proposer is gone.
pub(crate) async fn run(
    index: usize,
    address: ServiceAddr,
    binding: Binding,
    events: mpsc::UnboundedSender<(usize, PeerEvent)>,
) {
    let mut pause = RECONNECT_AFTER_MIN;
    loop {
        let mut was_up = false;
        let Err(error) = serve(index, &address, &binding, &events, &mut was_up).await else { return };
        tracing::debug!(%address, error = with_causes(&error), "safekeeper connection ended");
        if events.send((index, PeerEvent::Down(error))).is_err() {
            return;
        }
        pause = if was_up { RECONNECT_AFTER_MIN } else { (pause * 2).min(RECONNECT_AFTER_MAX) };
        tokio::time::sleep(pause).await;
    }
}

/// One connection. `Ok`: the proposer is gone.
async fn serve(
    index: usize,
    address: &ServiceAddr,
    binding: &Binding,
    events: &mpsc::UnboundedSender<(usize, PeerEvent)>,
    was_up: &mut bool,
) -> Result<(), ClientError> {
    let (mut sender, mut receiver) = connect(address, binding).await?;
    let (requests, mut outgoing) = mpsc::unbounded_channel();
    let knows_members = receiver.peer_can(CAN_CHANGE_MEMBERS);
    let can_receive = matches!(address, ServiceAddr::Unix(_)) && receiver.peer_can(CAN_RECEIVE);
    if events.send((index, PeerEvent::Up { requests, knows_members, can_receive })).is_err() {
        return Ok(());
    }
    loop {
        tokio::select! {
            biased;
            message = receiver.next() => {
                let message = message?;
                // An answer, not only a connection: one that refuses every request is not up.
                *was_up = true;
                if events.send((index, PeerEvent::Message(message))).is_err() {
                    return Ok(());
                }
            }
            to_peer = outgoing.recv() => {
                let Some(to_peer) = to_peer else {
                    // Until the safekeeper has read it all and closes: where an answer of its own finds nobody, it reads no further.
                    sender.finish().await?;
                    while receiver.next().await.is_ok() {}
                    return Ok(());
                };
                let mut next = Some(to_peer);
                while let Some(to_peer) = next {
                    match to_peer {
                        ToPeer::Request(request) => sender.queue(&request),
                        ToPeer::HangUp(error) => return Err(error),
                    }
                    next = if sender.queued_bytes() < SEND_BATCH_BYTES { outgoing.try_recv().ok() } else { None };
                }
                sender.flush().await?;
            }
        }
    }
}
