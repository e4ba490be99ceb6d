//! The task that keeps a connection to one safekeeper for a proposer.

use std::time::Duration;

use tokio::sync::mpsc;

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{CAN_CHANGE_MEMBERS, Request, Response};

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
        requests: mpsc::UnboundedSender<Request>,
        /// It can be told who the members are.
        knows_members: bool,
    },
    /// A message came.
    Message(Response),
    /// The connection is gone, or could not be made.
    Down(ClientError),
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
        tracing::debug!(%address, error = ?error, "safekeeper connection ended");
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
    if events.send((index, PeerEvent::Up { requests, knows_members })).is_err() {
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
            request = outgoing.recv() => {
                let Some(request) = request else {
                    // Until the safekeeper has read it all and closes: where an answer of its own finds nobody, it reads no further.
                    sender.finish().await?;
                    while receiver.next().await.is_ok() {}
                    return Ok(());
                };
                sender.queue(&request);
                while sender.queued_bytes() < SEND_BATCH_BYTES {
                    let Ok(request) = outgoing.try_recv() else { break };
                    sender.queue(&request);
                }
                sender.flush().await?;
            }
        }
    }
}
