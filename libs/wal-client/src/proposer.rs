//! The shell of a proposer: an owner task around the state machine, and the handle to it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{ProposerId, RecordEnd, Request, Response, VoteReply, WAL_LEN_MAX};
use ardent_pg_format::PgMajor;
use ardent_pg_format::wal::RecordBoundaryTracker;
use ardent_quorum::{CloseReason, Configuration, ProposerEffect, ProposerInput, ProposerLimits, Voter};
use ardent_types::{Lsn, TenantId, Term, TimelineId, WalSegmentSize};

use crate::connection::Binding;
use crate::error::{ClientError, ProposerError};
use crate::peer::{self, PeerEvent};
use crate::tail::{TailReader, WalShape};

/// How often the state machine is told the time, before and after the election.
const TICK_WHILE_ELECTING: Duration = Duration::from_millis(20);
const TICK_WHILE_LEADING: Duration = Duration::from_millis(500);
/// How long what is queued for safekeepers may take to go out at the end.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(500);

/// What a proposer writes and where.
#[derive(Clone)]
pub struct ProposerConfig {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// All safekeepers of the timeline.
    pub safekeepers: Vec<ServiceAddr>,
    /// Service token with write rights on the timeline.
    pub token: String,
    /// How long an election may take.
    pub election_timeout: Duration,
    /// Appended bytes that no quorum has yet: an append waits beyond this.
    pub unflushed_bytes_max: usize,
    /// Bounds of the state machine.
    pub limits: ProposerLimits,
}

impl ProposerConfig {
    /// A configuration with the usual bounds.
    pub fn new(tenant: TenantId, timeline: TimelineId, safekeepers: Vec<ServiceAddr>, token: String) -> Self {
        ProposerConfig {
            tenant,
            timeline,
            safekeepers,
            token,
            election_timeout: Duration::from_secs(10),
            unflushed_bytes_max: 16 << 20,
            limits: ProposerLimits::default(),
        }
    }
}

impl std::fmt::Debug for ProposerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProposerConfig")
            .field("tenant", &self.tenant)
            .field("timeline", &self.timeline)
            .field("safekeepers", &self.safekeepers)
            .finish_non_exhaustive()
    }
}

/// What a won election found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elected {
    /// The term.
    pub term: Term,
    /// End of the log, a record end: the first byte appended goes here.
    pub end_lsn: Lsn,
    /// Start of the last record: the `xl_prev` of the next. [`Lsn::INVALID`] if nothing was written on the timeline yet and it
    /// was created without telling it.
    pub prev_lsn: Lsn,
    /// Where the timeline begins.
    pub start_lsn: Lsn,
    /// Major version of the timeline's Postgres.
    pub pg_major: u32,
    /// WAL segment size in bytes.
    pub wal_segment_size: WalSegmentSize,
}

/// An elected writer of a timeline. Dropping it ends it.
#[derive(Debug)]
pub struct Proposer {
    timeline: TimelineId,
    next_lsn: Mutex<Lsn>,
    appends: mpsc::UnboundedSender<Piece>,
    unflushed: Arc<Semaphore>,
    unflushed_max: usize,
    flushed: watch::Receiver<Lsn>,
    committed: watch::Receiver<Lsn>,
    closed: watch::Receiver<Option<ProposerError>>,
    owner: JoinHandle<()>,
    stop: DropGuard,
}

/// WAL on its way to the owner; the permit is given back when a quorum has it.
#[derive(Debug)]
struct Piece {
    data: Bytes,
    permit: OwnedSemaphorePermit,
}

impl Proposer {
    /// Is elected at a term above all others and completes the log on a quorum. From then on older writers are refused.
    ///
    /// Dropping the future, or `cancel`, ends the attempt.
    pub async fn elect(
        config: ProposerConfig,
        cancel: CancellationToken,
    ) -> Result<(Proposer, Elected), ProposerError> {
        let timeline = config.timeline;
        let election_timeout = config.election_timeout;
        let (elected_sender, elected) = oneshot::channel();
        let (flushed_sender, flushed) = watch::channel(Lsn::INVALID);
        let (committed_sender, committed) = watch::channel(Lsn::INVALID);
        let (closed_sender, mut closed) = watch::channel(None);
        let (appends, pieces) = mpsc::unbounded_channel();
        let unflushed_max = config.unflushed_bytes_max.max(WAL_LEN_MAX);
        let unflushed = Arc::new(Semaphore::new(unflushed_max));
        let stop = cancel.child_token();
        let outputs = Outputs {
            elected: Some(elected_sender),
            flushed: flushed_sender,
            committed: committed_sender,
            closed: closed_sender,
        };
        let owner = Owner::new(config, outputs);
        let peers = owner.summary();
        let owner = tokio::spawn(owner.run(pieces, stop.clone()));
        let stop = stop.drop_guard();
        let elected = tokio::select! {
            elected = elected => elected.ok(),
            () = tokio::time::sleep(election_timeout) => None,
        };
        let Some(elected) = elected else {
            // Either the owner has ended with a reason, or time is up.
            let reason = closed.borrow_and_update().clone();
            return Err(reason.unwrap_or_else(|| peers.no_quorum()));
        };
        let proposer = Proposer {
            timeline,
            next_lsn: Mutex::new(elected.end_lsn),
            appends,
            unflushed,
            unflushed_max,
            flushed,
            committed,
            closed,
            owner,
            stop,
        };
        Ok((proposer, elected))
    }

    /// Appends WAL at `start`, which must be the end of the log. The bytes may be cut anywhere. Returns when they are queued; waits
    /// while too many are not on a quorum yet. If the future is dropped, either all or a leading part of the bytes is appended:
    /// [`Proposer::next_lsn`] tells.
    pub async fn append(&self, start: Lsn, data: Bytes) -> Result<(), ProposerError> {
        let (mut start, mut data) = (start, data);
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(WAL_LEN_MAX).min(self.unflushed_max));
            let length = piece.len();
            let permits = u32::try_from(length).expect("a piece is at most 1 MiB");
            let permit = tokio::select! {
                permit = Arc::clone(&self.unflushed).acquire_many_owned(permits) => {
                    permit.expect("the semaphore is never closed")
                }
                error = self.closed() => return Err(error),
            };
            self.queue(start, piece, permit)?;
            start = start.advance(length as u64);
        }
        Ok(())
    }

    fn queue(&self, start: Lsn, data: Bytes, permit: OwnedSemaphorePermit) -> Result<(), ProposerError> {
        let mut next = self.next_lsn.lock().unwrap_or_else(PoisonError::into_inner);
        if *next != start {
            return Err(ProposerError::Gap { timeline: self.timeline, expected: *next, given: start });
        }
        let end = start.advance(data.len() as u64);
        if self.appends.send(Piece { data, permit }).is_err() {
            return Err(self.closed_now());
        }
        *next = end;
        Ok(())
    }

    /// Where the next byte goes.
    pub fn next_lsn(&self) -> Lsn {
        *self.next_lsn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// First byte that is not durable on a quorum. Never goes back.
    pub fn flushed(&self) -> watch::Receiver<Lsn> {
        self.flushed.clone()
    }

    /// The last record end that is durable on a quorum: what readers are served up to. Never goes back. Set right after
    /// [`Proposer::flushed`], so it is never ahead of it.
    pub fn committed(&self) -> watch::Receiver<Lsn> {
        self.committed.clone()
    }

    /// Waits until the proposer can do no more, and says why. Cancel-safe.
    pub async fn closed(&self) -> ProposerError {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().expect("just checked"),
            Err(_) => ProposerError::Stopped,
        }
    }

    fn closed_now(&self) -> ProposerError {
        self.closed.borrow().clone().unwrap_or(ProposerError::Stopped)
    }

    /// Ends it and waits for its tasks.
    pub async fn shutdown(self) {
        drop(self.stop);
        if self.owner.await.is_err() {
            tracing::error!("a proposer's task panicked");
        }
    }
}

struct Outputs {
    elected: Option<oneshot::Sender<Elected>>,
    flushed: watch::Sender<Lsn>,
    committed: watch::Sender<Lsn>,
    closed: watch::Sender<Option<ProposerError>>,
}

/// What is known of each safekeeper, for messages to people.
#[derive(Clone)]
struct Summary {
    timeline: TimelineId,
    quorum: usize,
    failures: Arc<Mutex<Vec<Option<ClientError>>>>,
}

impl Summary {
    fn set(&self, index: usize, failure: Option<ClientError>) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)[index] = failure;
    }

    /// Whether so many say no, in a way that waiting does not change, that the rest is no quorum.
    fn is_hopeless(&self) -> bool {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = failures.iter().flatten().filter(|failure| !failure.is_retryable()).count();
        failures.len() - lost < self.quorum
    }

    fn no_quorum(&self) -> ProposerError {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let worst = failures.iter().flatten().min_by_key(|failure| failure.is_retryable());
        ProposerError::NoQuorum {
            timeline: self.timeline,
            needed: self.quorum,
            safekeepers: failures.len(),
            source: worst.cloned(),
        }
    }
}

/// What a task that reads from a safekeeper found.
enum TailEvent {
    Scanned { term: Term, cut: Option<RecordEnd> },
    Fetched { peer: usize, term: Term, start: Lsn, bytes: Bytes },
}

/// The task that owns the state machine.
struct Owner {
    config: ProposerConfig,
    binding: Binding,
    core: ardent_quorum::Proposer,
    outputs: Outputs,
    summary: Summary,
    requests: Vec<Option<mpsc::UnboundedSender<Request>>>,
    readers: JoinSet<TailEvent>,
    shape: Option<WalShape>,
    tracker: Option<RecordBoundaryTracker>,
    /// Pieces that no quorum has yet, with their ends.
    unflushed: VecDeque<(Lsn, OwnedSemaphorePermit)>,
    effects: Vec<ProposerEffect>,
    started: Instant,
    closed: bool,
}

impl Owner {
    fn new(config: ProposerConfig, outputs: Outputs) -> Self {
        let count = config.safekeepers.len();
        let members = Configuration::unnumbered(count);
        let core = ardent_quorum::Proposer::new(ProposerId::new(rand::random()), members, config.limits);
        let summary = Summary {
            timeline: config.timeline,
            quorum: core.quorum(),
            failures: Arc::new(Mutex::new(vec![None; count])),
        };
        Owner {
            binding: Binding { tenant: config.tenant, timeline: config.timeline, token: config.token.clone() },
            core,
            outputs,
            summary,
            requests: vec![None; count],
            readers: JoinSet::new(),
            shape: None,
            tracker: None,
            unflushed: VecDeque::new(),
            effects: Vec::new(),
            started: Instant::now(),
            closed: false,
            config,
        }
    }

    fn summary(&self) -> Summary {
        self.summary.clone()
    }

    async fn run(mut self, mut pieces: mpsc::UnboundedReceiver<Piece>, stop: CancellationToken) {
        let (events, mut incoming) = mpsc::unbounded_channel();
        let mut peers = JoinSet::new();
        for (index, address) in self.config.safekeepers.iter().enumerate() {
            let peer = peer::run(index, address.clone(), self.binding.clone(), events.clone());
            peers.spawn(async move {
                peer.await;
                index
            });
        }
        let mut last_tick = tokio::time::Instant::now();
        while !self.closed {
            let tick = if self.core.is_announced() { TICK_WHILE_LEADING } else { TICK_WHILE_ELECTING };
            tokio::select! {
                () = stop.cancelled() => self.close(ProposerError::Stopped),
                Some((index, event)) = incoming.recv() => self.peer_event(index, event),
                Some(piece) = pieces.recv(), if self.core.is_announced() => self.write(piece),
                Some(read) = self.readers.join_next() => self.read_finished(read),
                () = tokio::time::sleep_until(last_tick + tick) => {
                    last_tick = tokio::time::Instant::now();
                    self.step(ProposerInput::Tick);
                }
            }
        }
        self.say_goodbye(&mut peers, &mut incoming).await;
        peers.shutdown().await;
        self.readers.shutdown().await;
    }

    /// Lets what is queued go out, above all the last commit position: up to there the log is read until somebody writes again. A
    /// safekeeper that does not take it hears of it from the next writer.
    async fn say_goodbye(
        &mut self,
        peers: &mut JoinSet<usize>,
        incoming: &mut mpsc::UnboundedReceiver<(usize, PeerEvent)>,
    ) {
        let mut up: HashSet<usize> = HashSet::new();
        for (index, requests) in self.requests.iter_mut().enumerate() {
            // Without a sender its task ends once it has sent everything.
            if requests.take().is_some() {
                up.insert(index);
            }
        }
        let gone = async {
            while !up.is_empty() {
                tokio::select! {
                    ended = peers.join_next() => match ended {
                        Some(Ok(index)) => _ = up.remove(&index),
                        Some(Err(error)) => tracing::error!(%error, "the task of a safekeeper's connection failed"),
                        None => return,
                    },
                    event = incoming.recv() => if let Some((index, PeerEvent::Down(_))) = event {
                        up.remove(&index);
                    },
                }
            }
        };
        if tokio::time::timeout(GOODBYE_PATIENCE, gone).await.is_err() {
            tracing::debug!(timeline = %self.config.timeline, "not all safekeepers took what was queued for them");
        }
    }

    fn close(&mut self, reason: ProposerError) {
        self.closed = true;
        self.outputs.closed.send_replace(Some(reason));
        // Whoever waits for the election looks at the reason.
        self.outputs.elected = None;
    }

    fn peer_event(&mut self, index: usize, event: PeerEvent) {
        match event {
            PeerEvent::Up(requests) => {
                self.requests[index] = Some(requests);
                self.step(ProposerInput::Connected(index));
            }
            PeerEvent::Down(error) => {
                self.requests[index] = None;
                self.summary.set(index, Some(error));
                if self.summary.is_hopeless() {
                    return self.close(self.summary.no_quorum());
                }
                self.step(ProposerInput::Disconnected(index));
            }
            PeerEvent::Message(message) => {
                self.summary.set(index, None);
                match message {
                    Response::Vote(reply) => {
                        if self.learn_shape(&reply) {
                            // The wire knows neither disks nor members: whoever is at the address is the one.
                            let disk = self.core.configuration().members()[index];
                            let voter = Voter { disk, configuration: Configuration::default() };
                            self.step(ProposerInput::Vote(index, reply, voter));
                        }
                    }
                    Response::Begin(reply) => self.step(ProposerInput::Begin(index, reply)),
                    Response::Append(reply) => self.step(ProposerInput::Append(index, reply)),
                    _ => {
                        let address = &self.config.safekeepers[index];
                        tracing::warn!(%address, "a safekeeper sent an answer to no question");
                        self.requests[index] = None;
                    }
                }
            }
        }
    }

    /// All safekeepers must mean the same Postgres.
    fn learn_shape(&mut self, reply: &VoteReply) -> bool {
        let timeline = self.config.timeline;
        let Some(major) = PgMajor::from_number(reply.pg_major) else {
            let what = format!("it is of Postgres {}, which this build does not know", reply.pg_major);
            self.close(ProposerError::Contradiction { timeline, what });
            return false;
        };
        let shape = WalShape { major, segment_size: reply.wal_segment_size };
        if *self.shape.get_or_insert(shape) != shape {
            let what = "the safekeepers have it with different versions or segment sizes".to_owned();
            self.close(ProposerError::Contradiction { timeline, what });
            return false;
        }
        true
    }

    fn write(&mut self, piece: Piece) {
        let tracker = self.tracker.as_mut().expect("set when elected");
        let record_end = match tracker.feed(piece.data.clone()) {
            Ok(span) => span.map(|span| RecordEnd { end: span.end, start: span.start }),
            Err(error) => {
                let (timeline, what) = (self.config.timeline, error.to_string());
                return self.close(ProposerError::BadWal { timeline, what });
            }
        };
        let end = self.core.end_lsn().advance(piece.data.len() as u64);
        self.unflushed.push_back((end, piece.permit));
        self.step(ProposerInput::Write { data: piece.data, record_end });
    }

    fn read_finished(&mut self, read: Result<TailEvent, tokio::task::JoinError>) {
        match read {
            Ok(TailEvent::Scanned { term, cut }) => self.step(ProposerInput::Scanned { term, cut }),
            Ok(TailEvent::Fetched { peer, term, start, bytes }) => {
                self.step(ProposerInput::Fetched { peer, term, start, bytes });
            }
            Err(error) => {
                let (timeline, what) = (self.config.timeline, format!("reading a log failed: {error}"));
                self.close(ProposerError::Contradiction { timeline, what });
            }
        }
    }

    fn step(&mut self, input: ProposerInput) {
        let now_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut effects = std::mem::take(&mut self.effects);
        self.core.step(now_us, input, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
    }

    fn send(&self, index: usize, request: Request) {
        if let Some(requests) = &self.requests[index] {
            // A connection that just ended reports it.
            let _ = requests.send(request);
        }
    }

    fn carry_out(&mut self, effect: ProposerEffect) {
        match effect {
            ProposerEffect::SendVote(index, vote) => self.send(index, Request::Vote(vote)),
            ProposerEffect::SendBegin(index, begin) => self.send(index, Request::Begin(begin)),
            ProposerEffect::SendAppend(index, append) => self.send(index, Request::Append(append)),
            ProposerEffect::Scan { donor, term, from, to } => self.scan(donor, term, from, to),
            ProposerEffect::Fetch { peer, donor, term, from, to } => self.fetch(peer, donor, term, from, to),
            ProposerEffect::Elected(elected) => self.elected(elected),
            ProposerEffect::Progress { flushed, commit } => {
                self.outputs.flushed.send_replace(flushed);
                self.outputs.committed.send_replace(commit.end);
                while self.unflushed.front().is_some_and(|(end, _)| *end <= flushed) {
                    self.unflushed.pop_front();
                }
            }
            ProposerEffect::Join(..) | ProposerEffect::Leave(_) => {
                unreachable!("no safekeeper tells of other members")
            }
            ProposerEffect::Closed(reason) => {
                let timeline = self.config.timeline;
                self.close(match reason {
                    CloseReason::Fenced(term) => ProposerError::Fenced { timeline, term },
                    CloseReason::Contradiction(what) => ProposerError::Contradiction { timeline, what },
                });
            }
        }
    }

    fn elected(&mut self, elected: ardent_quorum::Elected) {
        let shape = self.shape.expect("a quorum has voted");
        let at = RecordEnd { end: elected.end_lsn, start: elected.prev_lsn };
        self.tracker = Some(shape.tracker(at));
        tracing::info!(timeline = %self.config.timeline, term = %elected.term, end = %elected.end_lsn, "elected");
        self.outputs.flushed.send_replace(elected.end_lsn);
        self.outputs.committed.send_replace(elected.end_lsn);
        let told = self.outputs.elected.take().map(|sender| {
            sender.send(Elected {
                term: elected.term,
                end_lsn: elected.end_lsn,
                prev_lsn: elected.prev_lsn,
                start_lsn: elected.start_lsn,
                pg_major: shape.major.number(),
                wal_segment_size: shape.segment_size,
            })
        });
        if !matches!(told, Some(Ok(()))) {
            self.close(ProposerError::Stopped);
        }
    }

    fn scan(&mut self, donor: usize, term: Term, from: RecordEnd, to: Lsn) {
        let (address, binding) = (self.config.safekeepers[donor].clone(), self.binding.clone());
        let shape = self.shape.expect("the donor has voted");
        self.readers.spawn(async move {
            let scanned = async {
                let mut reader = TailReader::connect(&address, &binding, term).await?;
                reader.last_record(shape, from, to).await
            };
            let cut = scanned.await.map_err(|error| tracing::info!(error = ?error, "the log cannot be scanned"));
            TailEvent::Scanned { term, cut: cut.ok() }
        });
    }

    fn fetch(&mut self, peer: usize, donor: usize, term: Term, from: Lsn, to: Lsn) {
        let (address, binding) = (self.config.safekeepers[donor].clone(), self.binding.clone());
        self.readers.spawn(async move {
            let fetched = async {
                let mut reader = TailReader::connect(&address, &binding, term).await?;
                reader.read(from, to).await
            };
            let bytes = fetched.await.map_err(|error: ClientError| tracing::info!(error = ?error, "fetch failed"));
            TailEvent::Fetched { peer, term, start: from, bytes: bytes.unwrap_or_default() }
        });
    }
}
