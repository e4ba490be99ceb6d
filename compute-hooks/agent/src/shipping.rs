//! From Postgres's walsender to the quorum, and the quorum's position back: the agent as the synchronous standby.
//!
//! ```text
//!  Postgres ── WAL chunks ──► Shipper ── policy gate ── append ──► safekeepers
//!     ▲                          │
//!     └─ write = flush = apply ──┘◄── flushed on a quorum
//!
//!  Postgres ◄══ one safekeeper on this host, and nothing to look at: it is handed the connection ══► safekeeper
//! ```
//!
//! A commit then wakes walsender, safekeeper and walsender, and not this process twice. When such a connection ends, the log is taken back by an
//! election, at which the log must still be this Postgres's own.
//!
//! Invariants: what is reported is on a quorum; what is appended continues exactly where the last chunk ended, over any
//! number of connections; after an election Postgres goes on only if the last who wrote before was this compute.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ardent_api::compute::AGENT_ROLE;
use ardent_types::{Lsn, PgTli, Term, with_causes};
use ardent_wal_client::walsender::{Sent, WalSenderError};
use ardent_wal_client::{
    ClientError, Elected, Handover, HandoverError, Proposer, ProposerConfig, ProposerError, Received, StreamEnd,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::ComputeError;
use crate::policy::PolicyGate;
use crate::precedence;
use crate::serving::Serving;
use crate::settings::STANDBY_NAME;
use crate::wal_sender::{Incoming, Reports, WalSender};

/// A report is sent at least this often; Postgres gives a silent standby up after `wal_sender_timeout`.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How long the last words of a connection that takes no reports any more may take to arrive.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// The longest after connections that were of no use.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// A connection that was of use for so long is not the one that was lost before.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// SQLSTATE of "already exists": the slot of a warm data directory.
const DUPLICATE_OBJECT: &str = "42710";
/// How long the election may take by which a log is taken back. Postgres waits for it as it waits for a quorum that is away.
const TAKE_BACK_PATIENCE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Ships one compute's WAL.
#[derive(Debug)]
pub(crate) struct Shipper {
    pub(crate) proposer: Proposer,
    /// How the proposer was elected, and would be again.
    pub(crate) config: ProposerConfig,
    /// The proposer's.
    pub(crate) term: Term,
    pub(crate) socket: PathBuf,
    /// The postmaster's process id outside of its sandbox.
    pub(crate) postmaster_pid: u32,
    /// What WAL has to pass before a quorum sees it.
    pub(crate) gate: PolicyGate,
    pub(crate) tli: PgTli,
    /// Where the term is written down.
    pub(crate) serving: Arc<Serving>,
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
        let mut may_hand_over = self.gate.lets_all_pass();
        let mut pause = RECONNECT_PAUSE;
        loop {
            let handover = if may_hand_over { self.proposer.hand_over().await } else { None };
            match handover {
                Some(handover) => {
                    let since = Instant::now();
                    let watched = watch(&handover, sender).await?;
                    let was_of_use = since.elapsed() >= SETTLED_AFTER;
                    match watched {
                        Watched::Complete(end_lsn) => return Ok(end_lsn),
                        Watched::Lost(why) => self.lost(&why)?,
                        Watched::Failed(error) => {
                            let why = with_causes(&error);
                            tracing::warn!(error = why, "the safekeeper does not write what Postgres sends any more");
                            // One that cannot, or not now, is written to as any quorum is.
                            may_hand_over = was_of_use && error.is_retryable();
                        }
                    }
                    // Each election is a write, and its term stays in the log's history: whoever ends walsenders in a loop gets fewer and fewer.
                    if was_of_use {
                        pause = RECONNECT_PAUSE;
                    } else {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
                    }
                    self.take_back(&handover).await?;
                }
                None => match self.ship(&mut sender).await? {
                    Ended::Complete => return self.complete().await,
                    Ended::Lost(error) if error.is_wal_gone() => {
                        return Err(ComputeError::PostgresRefused { reason: with_causes(&error) });
                    }
                    Ended::Lost(error) => self.lost(&with_causes(&error))?,
                },
            }
            sender = self.reconnect().await?;
        }
    }

    fn lost(&self, why: &str) -> Result<(), ComputeError> {
        if self.stopping.is_cancelled() {
            return Err(ComputeError::PostgresRefused { reason: format!("it ended early: {why}") });
        }
        tracing::warn!(error = why, "the replication connection was lost");
        Ok(())
    }

    /// Is elected again. The log that is found must be the one of this Postgres up to its end: then Postgres has all that is in it, and nobody was told
    /// of more.
    async fn take_back(&mut self, handover: &Handover) -> Result<(), ComputeError> {
        self.config.membership = handover.membership().clone();
        let config = ProposerConfig { election_timeout: TAKE_BACK_PATIENCE, ..self.config.clone() };
        let elected = Proposer::elect(config, CancellationToken::new()).await;
        let (proposer, elected) = elected.map_err(ComputeError::writing)?;
        still_its_own(&self.config, &elected, self.term)?;
        self.serving.set_term(elected.term);
        (self.proposer, self.term) = (proposer, elected.term);
        Ok(())
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
    pub(crate) async fn reconnect(&self) -> Result<WalSender, ComputeError> {
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
        let proposer = &self.proposer;
        let mut taking = pin!(take_wal(proposer, &mut self.gate, &mut sender.incoming, &reply_wanted));
        let lost = tokio::select! {
            biased;
            error = proposer.closed() => return Err(ComputeError::writing(error)),
            ended = &mut taking => return ended,
            error = report(proposer, &mut sender.reports, &reply_wanted) => error,
        };
        // A Postgres that has said goodbye takes no reports any more: what it said before is still to be read, and what was read to be appended.
        tokio::time::timeout(GOODBYE_PATIENCE, taking).await.unwrap_or(Ok(Ended::Lost(lost)))
    }
}

/// Whether the log that an election found is the one that was written in `term`, and nobody else's.
pub(crate) fn still_its_own(config: &ProposerConfig, elected: &Elected, term: Term) -> Result<(), ComputeError> {
    if elected.previous_term == term {
        return Ok(());
    }
    let (timeline, term) = (config.timeline, elected.previous_term);
    Err(ComputeError::writing(ProposerError::Fenced { timeline, term }))
}

/// Hands the connection over and waits for its end.
async fn watch(handover: &Handover, sender: WalSender) -> Result<Watched, ComputeError> {
    let (socket, read) = sender.into_socket();
    match handover.receive(socket, read).await {
        Ok(Received { end: StreamEnd::Complete, end_lsn, .. }) => Ok(Watched::Complete(end_lsn)),
        Ok(Received { end: StreamEnd::Lost, message, .. }) => Ok(Watched::Lost(message)),
        Ok(Received { end: StreamEnd::Malformed, message, .. }) => {
            Err(ComputeError::writing(ProposerError::BadWal { timeline: handover.timeline(), what: message }))
        }
        Err(HandoverError::Fenced(error)) => Err(ComputeError::writing(error)),
        Err(HandoverError::Safekeeper(error)) => Ok(Watched::Failed(error)),
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

/// How a connection ended that was handed over.
enum Watched {
    /// As [`Ended::Complete`], at this end of the log.
    Complete(Lsn),
    Lost(String),
    /// The safekeeper's doing.
    Failed(ClientError),
}

enum Ended {
    /// Postgres has stopped and said goodbye, which it does only after everything was confirmed.
    Complete,
    Lost(WalSenderError),
}
