//! Streams production's WAL into the root timeline.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use ardent_pg_wire::{ReplicationMessage, ReplicationStream, StandbyStatus};
use ardent_types::{Lsn, PgTli, SystemId};
use ardent_wal_client::{Proposer, ProposerConfig, SafekeeperClient};

use crate::config::ConnectorConfig;
use crate::error::ConnectorError;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Production gives a silent receiver up after `wal_sender_timeout`, 60 s unless set.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How long the quorum may take none of the WAL that it was given before production is let go.
const STALL: Duration = Duration::from_secs(5);
/// How often that is looked at.
const STALL_CHECK: Duration = Duration::from_secs(1);

/// What following is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FollowState {
    /// Connecting to production or to the safekeepers.
    #[default]
    Connecting,
    /// WAL is coming.
    Streaming,
    /// Waiting before the next attempt; `last_error` says why.
    Waiting,
}

/// How far following is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FollowStatus {
    /// What it is doing.
    pub state: FollowState,
    /// How far production has flushed, as last heard.
    pub production_flush_lsn: Lsn,
    /// How far WAL has come.
    pub received_lsn: Lsn,
    /// What a quorum has committed, and production was told.
    pub committed_lsn: Lsn,
    /// When everything that production had was last committed here.
    pub caught_up_at: Option<Instant>,
    /// Why the last attempt ended.
    pub last_error: Option<String>,
}

impl FollowStatus {
    /// Bytes that production has and the quorum has not.
    pub fn lag_bytes(&self) -> u64 {
        self.production_flush_lsn.saturating_sub(self.committed_lsn)
    }

    /// For how long there has been a lag; zero if there is none, `None` if there always was one.
    pub fn lag(&self) -> Option<Duration> {
        if self.state == FollowState::Streaming && self.lag_bytes() == 0 {
            return Some(Duration::ZERO);
        }
        self.caught_up_at.map(|at| at.elapsed())
    }
}

/// Streams WAL from the connector's slot into the root timeline until cancelled. Reconnects by itself, with growing pauses; an error is
/// one that waiting doesn't mend.
pub async fn follow(
    config: &ConnectorConfig,
    cancel: CancellationToken,
    status: watch::Sender<FollowStatus>,
) -> Result<(), ConnectorError> {
    let mut follower = Follower { config, status, writer: None };
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            () = cancel.cancelled() => Ok(()),
            ended = follower.run() => ended,
        };
        let error = match ended {
            Ok(()) => {
                if let Some(writer) = follower.writer.take() {
                    writer.proposer.shutdown().await;
                }
                return Ok(());
            }
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) => error,
        };
        let text = error.chain();
        tracing::warn!(error = %text, "following production was interrupted");
        follower.status.send_modify(|status| {
            status.state = FollowState::Waiting;
            status.last_error = Some(text);
        });
        // A writer whose quorum is gone is elected anew.
        if matches!(error, ConnectorError::Proposer(_)) {
            follower.writer = None;
        }
        if started.elapsed() > BACKOFF_MAX {
            backoff = BACKOFF_MIN;
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
        }
    }
}

struct Follower<'a> {
    config: &'a ConnectorConfig,
    status: watch::Sender<FollowStatus>,
    /// Kept while only production is away.
    writer: Option<Writer>,
}

struct Writer {
    proposer: Proposer,
    system_id: SystemId,
    tli: PgTli,
}

impl Writer {
    /// Waits until a quorum has all that it was given.
    async fn everything_taken(&self) -> Result<(), ConnectorError> {
        let mut flushed = self.proposer.flushed();
        let next = self.proposer.next_lsn();
        tokio::select! {
            // A closed watch means that the proposer has ended; the other branch says why.
            Ok(_) = flushed.wait_for(|flushed| *flushed >= next) => Ok(()),
            error = self.proposer.closed() => Err(error.into()),
        }
    }
}

/// Since when the quorum has taken nothing.
struct Progress {
    flushed: Lsn,
    since: Instant,
}

impl Progress {
    fn new(writer: &Writer) -> Self {
        Progress { flushed: *writer.proposer.flushed().borrow(), since: Instant::now() }
    }

    /// An error if it was given WAL and has taken none for too long.
    fn check(&mut self, writer: &Writer) -> Result<(), ConnectorError> {
        let flushed = *writer.proposer.flushed().borrow();
        if flushed > self.flushed || flushed >= writer.proposer.next_lsn() {
            *self = Progress { flushed, since: Instant::now() };
        }
        if self.since.elapsed() < STALL { Ok(()) } else { Err(ConnectorError::QuorumStalled { flushed }) }
    }
}

impl Follower<'_> {
    /// One connection to production, up to its end.
    ///
    /// None is kept while the quorum takes nothing: a production that is told to stop waits for its receivers to confirm everything,
    /// without limit. Its slot keeps the WAL meanwhile.
    async fn run(&mut self) -> Result<(), ConnectorError> {
        if let Some(writer) = &self.writer {
            writer.everything_taken().await?;
        }
        self.status.send_modify(|status| status.state = FollowState::Connecting);
        let mut connection = self.config.replication().await?;
        let system = connection.identify_system().await?;
        if self.writer.is_none() {
            self.writer = Some(elect(self.config).await?);
        }
        let writer = self.writer.as_ref().expect("just elected");
        if system.system_id != writer.system_id {
            return Err(ConnectorError::OtherCluster { expected: writer.system_id, found: system.system_id });
        }
        if system.tli != writer.tli {
            return Err(ConnectorError::TimelineSwitched { from: writer.tli, to: system.tli });
        }
        let next = writer.proposer.next_lsn();
        if system.flush_lsn < next {
            return Err(ConnectorError::ProductionBehind { production: system.flush_lsn, root: next });
        }
        let slot = self.config.slot_name();
        let stream = connection.start_replication(Some(&slot), next, Some(writer.tli)).await;
        let mut stream = stream.map_err(|error| ConnectorError::from_replication(error, &slot))?;
        self.status.send_modify(|status| {
            status.state = FollowState::Streaming;
            status.last_error = None;
            status.received_lsn = next;
            status.production_flush_lsn = system.flush_lsn;
        });
        self.stream(writer, &mut stream, &slot).await
    }

    async fn stream(&self, writer: &Writer, stream: &mut ReplicationStream, slot: &str) -> Result<(), ConnectorError> {
        let mut committed = writer.proposer.committed();
        let mut ticks = tokio::time::interval(STATUS_INTERVAL);
        let mut checks = tokio::time::interval(STALL_CHECK);
        let mut progress = Progress::new(writer);
        loop {
            tokio::select! {
                message = stream.recv() => {
                    // A segment that is gone shows only when the server comes to read it.
                    let message = message.map_err(|error| ConnectorError::from_replication(error, slot))?;
                    if self.take(message, writer, stream, &mut progress).await? {
                        self.confirm(writer, stream).await?;
                    }
                }
                // A closed watch means that the proposer has ended; the other branch says why.
                Ok(()) = committed.changed() => self.confirm(writer, stream).await?,
                _ = ticks.tick() => self.confirm(writer, stream).await?,
                _ = checks.tick() => progress.check(writer)?,
                error = writer.proposer.closed() => return Err(error.into()),
            }
        }
    }

    /// Takes a message; true if production wants an answer.
    async fn take(
        &self,
        message: ReplicationMessage,
        writer: &Writer,
        stream: &mut ReplicationStream,
        progress: &mut Progress,
    ) -> Result<bool, ConnectorError> {
        match message {
            ReplicationMessage::Wal { start, server_flush_lsn, data } => {
                let expected = writer.proposer.next_lsn();
                if start != expected {
                    return Err(ConnectorError::Gap { expected, given: start });
                }
                let end = start.advance(data.len() as u64);
                self.append(start, data, writer, stream, progress).await?;
                self.status.send_modify(|status| {
                    status.received_lsn = end;
                    status.production_flush_lsn = status.production_flush_lsn.max(server_flush_lsn);
                });
                Ok(false)
            }
            ReplicationMessage::Keepalive { server_sent_lsn, reply_requested } => {
                self.status.send_modify(|status| {
                    status.production_flush_lsn = status.production_flush_lsn.max(server_sent_lsn);
                });
                Ok(reply_requested)
            }
            ReplicationMessage::End { next_timeline: Some((to, _)) } => {
                Err(ConnectorError::TimelineSwitched { from: writer.tli, to })
            }
            ReplicationMessage::End { next_timeline: None } => Err(ConnectorError::StreamEnded),
        }
    }

    /// Appends while telling production that we live: an append waits as long as the quorum is behind.
    async fn append(
        &self,
        start: Lsn,
        data: Bytes,
        writer: &Writer,
        stream: &mut ReplicationStream,
        progress: &mut Progress,
    ) -> Result<(), ConnectorError> {
        let append = writer.proposer.append(start, data);
        tokio::pin!(append);
        let mut checks = tokio::time::interval(STALL_CHECK);
        let mut confirmed_at = Instant::now();
        loop {
            tokio::select! {
                appended = &mut append => return Ok(appended?),
                _ = checks.tick() => {
                    progress.check(writer)?;
                    if confirmed_at.elapsed() >= STATUS_INTERVAL {
                        self.confirm(writer, stream).await?;
                        confirmed_at = Instant::now();
                    }
                }
            }
        }
    }

    /// Tells production what a quorum has committed. Only record ends are confirmed, since the next writer begins at one: what lies
    /// behind it would be asked for again.
    async fn confirm(&self, writer: &Writer, stream: &mut ReplicationStream) -> Result<(), ConnectorError> {
        let committed = *writer.proposer.committed().borrow();
        let write_lsn = writer.proposer.next_lsn();
        let status = StandbyStatus { write_lsn, flush_lsn: committed, apply_lsn: committed, reply_requested: false };
        stream.send_status(status).await?;
        self.status.send_modify(|status| {
            status.committed_lsn = committed;
            if status.committed_lsn >= status.production_flush_lsn {
                status.caught_up_at = Some(Instant::now());
            }
        });
        Ok(())
    }
}

/// Becomes the root timeline's writer.
async fn elect(config: &ConnectorConfig) -> Result<Writer, ConnectorError> {
    let spec = timeline_spec(config).await?;
    let proposer_config =
        ProposerConfig::new(config.tenant, config.timeline, config.safekeepers.clone(), config.token.clone());
    let (proposer, elected) = Proposer::elect(proposer_config, CancellationToken::new()).await?;
    tracing::info!(term = %elected.term, end = %elected.end_lsn, "elected to write the root timeline");
    Ok(Writer { proposer, system_id: spec.system_id, tli: spec.pg_tli })
}

/// The timeline's properties, from the first safekeeper that answers.
async fn timeline_spec(config: &ConnectorConfig) -> Result<ardent_wal_client::TimelineSpec, ConnectorError> {
    let mut last = None;
    for safekeeper in &config.safekeepers {
        let asked = async {
            let mut client =
                SafekeeperClient::connect_to_timeline(safekeeper, config.tenant, config.timeline, &config.token)
                    .await?;
            client.status(config.timeline).await
        };
        match asked.await {
            Ok(status) => return Ok(status.spec),
            Err(error) => last = Some(error),
        }
    }
    Err(last.expect("a timeline has at least one safekeeper").into())
}
