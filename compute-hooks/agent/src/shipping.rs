//! From Postgres's walsender to the quorum, and the quorum's position back: the agent as the synchronous standby.
//!
//! ```text
//!  Postgres ── WAL chunks ──► Shipper ── policy gate ── append ──► safekeepers
//!     ▲                          │
//!     └─ write = flush = apply ──┘◄── flushed on a quorum
//! ```
//!
//! Invariants: what is reported is on a quorum; what is appended continues exactly where the last chunk ended, over any
//! number of connections.

use std::path::PathBuf;
use std::time::Duration;

use ardent_api::compute::AGENT_ROLE;
use ardent_types::{Lsn, PgTli};
use ardent_wal_client::Proposer;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::ComputeError;
use crate::policy::PolicyGate;
use crate::precedence;
use crate::settings::STANDBY_NAME;
use crate::wal_sender::{Incoming, Reports, Sent, WalSender, WalSenderError};

/// A report is sent at least this often; Postgres gives a silent standby up after `wal_sender_timeout`.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How long the last words of a connection that takes no reports any more may take to arrive.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// SQLSTATE of "already exists": the slot of a warm data directory.
const DUPLICATE_OBJECT: &str = "42710";

/// Ships one compute's WAL.
#[derive(Debug)]
pub(crate) struct Shipper {
    pub(crate) proposer: Proposer,
    pub(crate) socket: PathBuf,
    /// The postmaster's process id outside of its sandbox.
    pub(crate) postmaster_pid: u32,
    /// What WAL has to pass before a quorum sees it.
    pub(crate) gate: PolicyGate,
    pub(crate) tli: PgTli,
    /// Cancelled when Postgres has been asked to stop: from then on a lost connection is not made again.
    pub(crate) stopping: CancellationToken,
}

impl Shipper {
    /// Connects, makes sure that the slot exists, and starts streaming.
    pub(crate) async fn connect(&self) -> Result<WalSender, WalSenderError> {
        let mut sender = WalSender::connect(&self.socket, AGENT_ROLE, STANDBY_NAME).await?;
        self.start(&mut sender).await?;
        if let Some(pid) = sender.pid {
            precedence::give(self.postmaster_pid, pid);
        }
        Ok(sender)
    }

    async fn start(&self, sender: &mut WalSender) -> Result<(), WalSenderError> {
        let create = format!("CREATE_REPLICATION_SLOT {STANDBY_NAME} PHYSICAL RESERVE_WAL");
        match sender.execute(&create).await {
            Err(WalSenderError::Refused { code, .. }) if code == DUPLICATE_OBJECT => {}
            outcome => outcome?,
        }
        sender.start(STANDBY_NAME, self.proposer.next_lsn(), self.tli).await
    }

    /// Ships until Postgres has stopped and everything it wrote is on a quorum; gives the end of the log.
    pub(crate) async fn run(mut self, mut sender: WalSender) -> Result<Lsn, ComputeError> {
        loop {
            match self.ship(&mut sender).await? {
                Ended::Complete => return self.complete().await,
                Ended::Lost(error) if self.stopping.is_cancelled() => {
                    return Err(ComputeError::PostgresRefused { reason: format!("it ended early: {error}") });
                }
                Ended::Lost(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the replication connection was lost");
                }
            }
            sender = self.reconnect().await?;
        }
    }

    /// Postgres says goodbye only after all was confirmed as flushed; readers are served up to what is committed.
    async fn complete(self) -> Result<Lsn, ComputeError> {
        let end = self.proposer.next_lsn();
        let mut committed = self.proposer.committed();
        tokio::select! {
            error = self.proposer.closed() => return Err(ComputeError::writing(error)),
            Ok(_) = committed.wait_for(|position| *position >= end) => {}
        }
        self.proposer.shutdown().await;
        Ok(end)
    }

    /// A session that ends our walsender, or a timeout, only makes commits wait until we are back.
    async fn reconnect(&self) -> Result<WalSender, ComputeError> {
        loop {
            match self.connect().await {
                Ok(sender) => return Ok(sender),
                Err(error) if self.stopping.is_cancelled() => {
                    return Err(ComputeError::PostgresRefused { reason: error.to_string() });
                }
                Err(error) => tracing::debug!(%error, "no replication connection yet"),
            }
            tokio::select! {
                error = self.proposer.closed() => return Err(ComputeError::writing(error)),
                () = tokio::time::sleep(RECONNECT_PAUSE) => {}
            }
        }
    }

    /// Ships over one connection. Taking WAL and reporting go on side by side: a stalled quorum stops the first (then
    /// Postgres keeps its WAL) and must not stop the second (or Postgres gives us up).
    async fn ship(&mut self, sender: &mut WalSender) -> Result<Ended, ComputeError> {
        let reply_wanted = Notify::new();
        let (proposer, gate) = (&self.proposer, &mut self.gate);
        let lost = tokio::select! {
            biased;
            error = proposer.closed() => return Err(ComputeError::writing(error)),
            ended = take_wal(proposer, gate, &mut sender.incoming, &reply_wanted) => return ended,
            error = report(proposer, &mut sender.reports, &reply_wanted) => error,
        };
        // A Postgres that has said goodbye takes no reports any more: what it said before is still to be read.
        let rest = take_wal(proposer, gate, &mut sender.incoming, &reply_wanted);
        tokio::time::timeout(GOODBYE_PATIENCE, rest).await.unwrap_or(Ok(Ended::Lost(lost)))
    }
}

async fn take_wal(
    proposer: &Proposer,
    gate: &mut PolicyGate,
    incoming: &mut Incoming,
    reply_wanted: &Notify,
) -> Result<Ended, ComputeError> {
    loop {
        match incoming.next().await {
            Ok(Sent::Wal { start, bytes }) => {
                gate.pass(start, &bytes)?;
                proposer.append(start, bytes).await.map_err(ComputeError::writing)?;
            }
            Ok(Sent::Keepalive { reply_wanted: true }) => reply_wanted.notify_one(),
            Ok(Sent::Keepalive { reply_wanted: false }) => {}
            Ok(Sent::End) => return Ok(Ended::Complete),
            Err(error) => return Ok(Ended::Lost(error)),
        }
    }
}

/// Reports every progress of the quorum at once, and the same again when asked or when nothing happens for a while.
async fn report(proposer: &Proposer, reports: &mut Reports, reply_wanted: &Notify) -> WalSenderError {
    let mut flushed = proposer.flushed();
    loop {
        let position = *flushed.borrow_and_update();
        if let Err(error) = reports.report(position).await {
            return error;
        }
        tokio::select! {
            Ok(()) = flushed.changed() => {}
            () = reply_wanted.notified() => {}
            () = tokio::time::sleep(REPORT_EVERY) => {}
        }
    }
}

enum Ended {
    /// Postgres has stopped and said goodbye, which it does only after everything was confirmed.
    Complete,
    Lost(WalSenderError),
}
