//! Streams production's WAL into the root timeline.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use ardent_pg_wire::{ReplicationMessage, ReplicationStream, StandbyStatus};
use ardent_types::{Lsn, PgTli};
use ardent_wal_client::{Proposer, ProposerConfig, TimelineSpec};

use crate::config::ConnectorConfig;
use crate::error::ConnectorError;
use crate::source_stream::{End, Opened, open, timeline_status};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Production gives a silent receiver up after `wal_sender_timeout`, 60 s unless set.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How long the quorum may take none of the WAL that it was given before production is let go.
const STALL: Duration = Duration::from_secs(5);
/// How often that is looked at.
pub(crate) const STALL_CHECK: Duration = Duration::from_secs(1);

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
    let mut follower = Follower { config, status, writer: None, tli: None };
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = Instant::now();
        let error = tokio::select! {
            () = cancel.cancelled() => {
                follower.let_writer_go().await;
                return Ok(());
            }
            Err(error) = follower.run() => error,
        };
        if !error.is_retryable() {
            return Err(error);
        }
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
    /// On which of its timelines production was when it was last met.
    tli: Option<PgTli>,
}

pub(crate) struct Writer {
    pub(crate) proposer: Proposer,
    pub(crate) spec: TimelineSpec,
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

/// What a message from production was.
enum Taken {
    /// WAL, or a sign of life.
    Wal,
    /// It wants to know how far we are.
    Question,
    /// All of one of its timelines has come.
    EndOfTimeline,
}

/// Since when the quorum has taken nothing.
pub(crate) struct Progress {
    flushed: Lsn,
    since: Instant,
}

impl Progress {
    pub(crate) fn new(writer: &Writer) -> Self {
        Progress { flushed: *writer.proposer.flushed().borrow(), since: Instant::now() }
    }

    /// An error if it was given WAL and has taken none for too long.
    pub(crate) fn check(&mut self, writer: &Writer) -> Result<(), ConnectorError> {
        let flushed = *writer.proposer.flushed().borrow();
        if flushed > self.flushed || flushed >= writer.proposer.next_lsn() {
            *self = Progress { flushed, since: Instant::now() };
        }
        if self.since.elapsed() < STALL { Ok(()) } else { Err(ConnectorError::QuorumStalled { flushed }) }
    }
}

impl Follower<'_> {
    /// One connection to production after another, for as long as each ends where another of its timelines goes on.
    async fn run(&mut self) -> Result<Infallible, ConnectorError> {
        loop {
            match self.follow_timeline().await {
                Ok(()) => {}
                Err(error) if error.means_missing_wal() => self.catch_up(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends what production's archive has, if there is one; the error otherwise.
    async fn catch_up(&self, error: ConnectorError) -> Result<(), ConnectorError> {
        let (Some(archive), Some(writer)) = (&self.config.archive, &self.writer) else { return Err(error) };
        tracing::warn!(error = %error.chain(), "production's archive is asked for what production has removed");
        let received = |lsn| {
            self.status.send_modify(|status| {
                status.state = FollowState::Streaming;
                status.received_lsn = lsn;
            });
        };
        archive.catch_up(self.config, writer, received).await
    }

    /// One connection to production, up to its end, or to the end of one of its timelines: then all of that timeline is appended.
    ///
    /// None is kept while the quorum takes nothing: a production that is told to stop waits for its receivers to confirm everything,
    /// without limit. Its slot keeps the WAL meanwhile.
    async fn follow_timeline(&mut self) -> Result<(), ConnectorError> {
        if let Some(writer) = &self.writer {
            writer.everything_taken().await?;
        }
        self.status.send_modify(|status| status.state = FollowState::Connecting);
        let mut connection = self.config.replication().await?;
        let system = connection.identify_system().await?;
        // A server that was promoted may lack the end of a record that was begun: a new writer begins where a record ends.
        if self.tli.replace(system.tli).is_some_and(|before| before != system.tli) {
            tracing::info!(tli = %system.tli, "production is on another of its timelines");
            self.let_writer_go().await;
        }
        if self.writer.is_none() {
            self.writer = Some(elect(self.config).await?);
        }
        let writer = self.writer.as_ref().expect("just elected");
        let next = writer.proposer.next_lsn();
        let end = End { committed: *writer.proposer.committed().borrow(), next };
        let Opened { mut stream, first } = open(self.config, connection, &system, &writer.spec, end).await?;
        self.status.send_modify(|status| {
            status.state = FollowState::Streaming;
            status.last_error = None;
            status.received_lsn = next;
            status.production_flush_lsn = system.flush_lsn;
        });
        self.stream(writer, &mut stream, first).await
    }

    async fn let_writer_go(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.proposer.shutdown().await;
        }
    }

    async fn stream(
        &self,
        writer: &Writer,
        stream: &mut ReplicationStream,
        first: Option<ReplicationMessage>,
    ) -> Result<(), ConnectorError> {
        let slot = self.config.slot_name();
        let mut committed = writer.proposer.committed();
        let mut ticks = tokio::time::interval(STATUS_INTERVAL);
        let mut checks = tokio::time::interval(STALL_CHECK);
        let mut progress = Progress::new(writer);
        let mut message = first.map(Ok);
        loop {
            if let Some(message) = message.take() {
                // A segment that is gone shows only when the server comes to read it.
                let message = message.map_err(|error| ConnectorError::from_replication(error, &slot))?;
                match self.take(message, writer, stream, &mut progress).await? {
                    Taken::Wal => {}
                    Taken::Question => self.confirm(writer, stream).await?,
                    Taken::EndOfTimeline => return Ok(()),
                }
            }
            tokio::select! {
                received = stream.recv() => message = Some(received),
                // A closed watch means that the proposer has ended; the other branch says why.
                Ok(()) = committed.changed() => self.confirm(writer, stream).await?,
                _ = ticks.tick() => self.confirm(writer, stream).await?,
                _ = checks.tick() => progress.check(writer)?,
                error = writer.proposer.closed() => return Err(error.into()),
            }
        }
    }

    /// Takes a message.
    async fn take(
        &self,
        message: ReplicationMessage,
        writer: &Writer,
        stream: &mut ReplicationStream,
        progress: &mut Progress,
    ) -> Result<Taken, ConnectorError> {
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
                Ok(Taken::Wal)
            }
            ReplicationMessage::Keepalive { server_sent_lsn, reply_requested } => {
                self.status.send_modify(|status| {
                    status.production_flush_lsn = status.production_flush_lsn.max(server_sent_lsn);
                });
                Ok(if reply_requested { Taken::Question } else { Taken::Wal })
            }
            ReplicationMessage::End { next_timeline: Some((tli, start)) } => {
                let next = writer.proposer.next_lsn();
                if start != next {
                    return Err(ConnectorError::Gap { expected: next, given: start });
                }
                tracing::info!(%tli, %start, "production's WAL goes on on another of its timelines");
                Ok(Taken::EndOfTimeline)
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
    let spec = timeline_status(config).await?.spec;
    let proposer_config = ProposerConfig {
        membership: config.members.clone(),
        ..ProposerConfig::new(config.tenant, config.timeline, config.safekeepers.clone(), config.token.clone())
    };
    let (proposer, elected) = Proposer::elect(proposer_config, CancellationToken::new()).await?;
    tracing::info!(term = %elected.term, end = %elected.end_lsn, "elected to write the root timeline");
    let mut committed = proposer.committed();
    tokio::select! {
        // A closed watch means that the proposer has ended; the other branch says why.
        Ok(_) = committed.wait_for(|committed| *committed >= elected.end_lsn) => {}
        error = proposer.closed() => return Err(error.into()),
    }
    Ok(Writer { proposer, spec })
}
