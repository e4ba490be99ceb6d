//! The shell of a proposer: an owner task around the state machine, and the handle to it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{
    Membership, ProposerId, RecordEnd, Request, Response, Vote, VoteReply, VoteSource, WAL_LEN_MAX,
};
use ardent_pg_format::PgMajor;
use ardent_pg_format::wal::RecordBoundaryTracker;
use ardent_quorum::{CloseReason, Configuration, ProposerEffect, ProposerInput, ProposerLimits, Voter};
use ardent_types::{DiskId, Lsn, MemberGeneration, TenantId, Term, TimelineId, WalSegmentSize, with_causes};

use crate::connection::Binding;
use crate::error::{ClientError, ProposerError};
use crate::handover::Handover;
use crate::management::NO_MEMBERS;
use crate::peer::{self, PeerEvent, ToPeer};
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
    /// All safekeepers of the timeline: where they never changed. Later they are in `membership`, and this says nothing.
    pub safekeepers: Vec<ServiceAddr>,
    /// Who the members are, as far as is known. What the safekeepers know beyond that is learned from them.
    pub membership: Membership,
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
    /// Of members that never changed: set `membership` where they did.
    pub fn new(tenant: TenantId, timeline: TimelineId, safekeepers: Vec<ServiceAddr>, token: String) -> Self {
        ProposerConfig {
            tenant,
            timeline,
            safekeepers,
            membership: Membership::default(),
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
            .field("membership", &self.membership)
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
    /// The last term that began before this election, 0 if none: its writer made the end of the log that was found.
    pub previous_term: Term,
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
    handovers: mpsc::UnboundedSender<HandOver>,
    unflushed: Arc<Semaphore>,
    unflushed_max: usize,
    flushed: watch::Receiver<Lsn>,
    committed: watch::Receiver<Lsn>,
    closed: watch::Receiver<Option<ProposerError>>,
    owner: JoinHandle<()>,
    stop: DropGuard,
}

/// A wish to hand the log over.
#[derive(Debug)]
struct HandOver {
    /// Where the caller's next byte would go: the owner may not have seen all that came before.
    next_lsn: Lsn,
    answer: oneshot::Sender<Handover>,
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
        let (handovers, wishes) = mpsc::unbounded_channel();
        let unflushed_max = config.unflushed_bytes_max.max(WAL_LEN_MAX);
        let unflushed = Arc::new(Semaphore::new(unflushed_max));
        let stop = cancel.child_token();
        let outputs = Outputs {
            elected: Some(elected_sender),
            flushed: flushed_sender,
            committed: committed_sender,
            closed: closed_sender,
        };
        let (events, incoming) = mpsc::unbounded_channel();
        let owner = Owner::new(config, outputs, events)?;
        let peers = owner.summary();
        let owner = tokio::spawn(owner.run(pieces, wishes, incoming, stop.clone()));
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
            handovers,
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

    /// Gives the log to the one safekeeper that keeps it, where there is but one on this host that can write by itself what a walsender sends,
    /// and all that was appended is committed. This proposer has ended then.
    pub async fn hand_over(&self) -> Option<Handover> {
        let (answer, given) = oneshot::channel();
        self.handovers.send(HandOver { next_lsn: self.next_lsn(), answer }).ok()?;
        given.await.ok()
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
    known: Arc<Mutex<Known>>,
}

struct Known {
    configuration: Configuration,
    /// Of each member: its disk, and why it cannot be used.
    failures: Vec<(DiskId, Option<ClientError>)>,
}

impl Summary {
    fn new(timeline: TimelineId, configuration: &Configuration) -> Self {
        let failures = configuration.everyone().into_iter().map(|disk| (disk, None)).collect();
        let known = Known { configuration: configuration.clone(), failures };
        Summary { timeline, known: Arc::new(Mutex::new(known)) }
    }

    fn set(&self, disk: DiskId, failure: Option<ClientError>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, slot) in known.failures.iter_mut().filter(|(of, _)| *of == disk) {
            slot.clone_from(&failure);
        }
    }

    /// The members have changed; of those that stay is known what was.
    fn change(&self, configuration: &Configuration) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut known.failures);
        let failure_of = |disk| before.iter().find(|(of, _)| *of == disk).and_then(|(_, failure)| failure.clone());
        known.failures = configuration.everyone().into_iter().map(|disk| (disk, failure_of(disk))).collect();
        known.configuration = configuration.clone();
    }

    /// Whether so many say no, in a way that waiting does not change, that the rest is no quorum. Where members change, those that join may be yet
    /// to get the timeline.
    fn is_hopeless(&self) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_changing = known.configuration.next().is_some();
        let is_lost = |disk| {
            let failure = known.failures.iter().find(|(of, _)| *of == disk).and_then(|(_, failure)| failure.as_ref());
            failure.is_some_and(|failure| !(failure.is_retryable() || is_changing && failure.is_without_timeline()))
        };
        !known.configuration.is_quorum(|disk| !is_lost(disk))
    }

    fn no_quorum(&self) -> ProposerError {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = known.failures.iter().filter_map(|(_, failure)| failure.as_ref());
        let worst = failures.min_by_key(|failure| failure.is_retryable());
        ProposerError::NoQuorum {
            timeline: self.timeline,
            needed: known.configuration.members().len() / 2 + 1,
            safekeepers: known.configuration.members().len(),
            is_changing: known.configuration.next().is_some(),
            source: worst.cloned(),
        }
    }
}

/// What a task that reads from a safekeeper found.
enum TailEvent {
    Scanned { term: Term, cut: Option<RecordEnd> },
    Fetched { peer: usize, term: Term, start: Lsn, bytes: Bytes },
}

/// A safekeeper as the owner knows it.
struct PeerHandle {
    disk: DiskId,
    address: ServiceAddr,
    /// Present while it is connected.
    requests: Option<mpsc::UnboundedSender<ToPeer>>,
    knows_members: bool,
    can_receive: bool,
    /// The generation that the last vote on this connection named: what follows it counts in that one.
    voted_in: MemberGeneration,
    task: AbortHandle,
}

/// The task that owns the state machine.
struct Owner {
    config: ProposerConfig,
    binding: Binding,
    core: ardent_quorum::Proposer,
    outputs: Outputs,
    summary: Summary,
    /// What the core's configuration is, with addresses.
    membership: Membership,
    /// By the core's indexes, also those that are members no more.
    peers: Vec<PeerHandle>,
    tasks: JoinSet<usize>,
    events: mpsc::UnboundedSender<(usize, PeerEvent)>,
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
    fn new(
        config: ProposerConfig,
        outputs: Outputs,
        events: mpsc::UnboundedSender<(usize, PeerEvent)>,
    ) -> Result<Self, ProposerError> {
        let membership = config.membership.clone();
        let told = Configuration::of(&membership).ok_or_else(|| ProposerError::Contradiction {
            timeline: config.timeline,
            what: format!("the members of generation {} are out of order", membership.generation),
        })?;
        let is_unnumbered = membership.generation == MemberGeneration::default();
        let members = if is_unnumbered { Configuration::unnumbered(config.safekeepers.len()) } else { told };
        let disks = members.everyone();
        let addresses = if is_unnumbered { config.safekeepers.clone() } else { membership.addresses() };
        let summary = Summary::new(config.timeline, &members);
        let core = ardent_quorum::Proposer::new(ProposerId::new(rand::random()), members, config.limits);
        let mut owner = Owner {
            binding: Binding { tenant: config.tenant, timeline: config.timeline, token: config.token.clone() },
            core,
            outputs,
            summary,
            membership,
            peers: Vec::with_capacity(disks.len()),
            tasks: JoinSet::new(),
            events,
            readers: JoinSet::new(),
            shape: None,
            tracker: None,
            unflushed: VecDeque::new(),
            effects: Vec::new(),
            started: Instant::now(),
            closed: false,
            config,
        };
        for (disk, address) in disks.into_iter().zip(addresses) {
            owner.add_peer(disk, address);
        }
        Ok(owner)
    }

    /// Keeps a connection to one from now on.
    fn add_peer(&mut self, disk: DiskId, address: ServiceAddr) {
        let index = self.peers.len();
        let peer = peer::run(index, address.clone(), self.binding.clone(), self.events.clone());
        let task = self.tasks.spawn(async move {
            peer.await;
            index
        });
        let voted_in = MemberGeneration::default();
        self.peers.push(PeerHandle {
            disk,
            address,
            requests: None,
            knows_members: false,
            can_receive: false,
            voted_in,
            task,
        });
    }

    fn summary(&self) -> Summary {
        self.summary.clone()
    }

    async fn run(
        mut self,
        mut pieces: mpsc::UnboundedReceiver<Piece>,
        mut wishes: mpsc::UnboundedReceiver<HandOver>,
        mut incoming: mpsc::UnboundedReceiver<(usize, PeerEvent)>,
        stop: CancellationToken,
    ) {
        let mut last_tick = tokio::time::Instant::now();
        while !self.closed {
            let tick = if self.core.is_announced() { TICK_WHILE_LEADING } else { TICK_WHILE_ELECTING };
            tokio::select! {
                () = stop.cancelled() => self.close(ProposerError::Stopped),
                Some((index, event)) = incoming.recv() => self.peer_event(index, event),
                Some(piece) = pieces.recv(), if self.core.is_announced() => self.write(piece),
                Some(wish) = wishes.recv() => self.hand_over(wish),
                Some(read) = self.readers.join_next() => self.read_finished(read),
                // One that is a member no more.
                Some(_) = self.tasks.join_next() => {}
                () = tokio::time::sleep_until(last_tick + tick) => {
                    last_tick = tokio::time::Instant::now();
                    self.step(ProposerInput::Tick);
                }
            }
        }
        self.say_goodbye(&mut incoming).await;
        self.tasks.shutdown().await;
        self.readers.shutdown().await;
    }

    /// Lets what is queued go out, above all the last commit position: up to there the log is read until somebody writes again. A
    /// safekeeper that does not take it hears of it from the next writer.
    async fn say_goodbye(&mut self, incoming: &mut mpsc::UnboundedReceiver<(usize, PeerEvent)>) {
        let mut up: HashSet<usize> = HashSet::new();
        for (index, peer) in self.peers.iter_mut().enumerate() {
            // Without a sender its task ends once it has sent everything.
            if peer.requests.take().is_some() {
                up.insert(index);
            }
        }
        let peers = &mut self.tasks;
        let gone = async {
            while !up.is_empty() {
                tokio::select! {
                    ended = peers.join_next() => match ended {
                        Some(Ok(index)) => _ = up.remove(&index),
                        // Of one that was a member no more.
                        Some(Err(error)) if error.is_cancelled() => {}
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

    /// A wish that cannot be granted is dropped, which tells whoever has it.
    fn hand_over(&mut self, wish: HandOver) {
        let Some(end) = self.core.rest_on_one().filter(|rest| rest.end == wish.next_lsn) else { return };
        let members = self.core.configuration().members();
        let present = self.peers.iter().find(|peer| peer.can_receive && members.contains(&peer.disk));
        let Some(peer) = present.filter(|peer| peer.requests.is_some()) else { return };
        let handover = Handover {
            address: peer.address.clone(),
            binding: self.binding.clone(),
            membership: self.membership.clone(),
            term: self.core.term(),
            end,
        };
        if wish.answer.send(handover).is_ok() {
            self.close(ProposerError::Stopped);
        }
    }

    fn peer_event(&mut self, index: usize, event: PeerEvent) {
        let disk = self.peers[index].disk;
        match event {
            PeerEvent::Up { requests, knows_members, can_receive } => {
                let peer = &mut self.peers[index];
                (peer.requests, peer.knows_members) = (Some(requests), knows_members);
                peer.can_receive = can_receive;
                if !knows_members && self.core.configuration().generation() > MemberGeneration::default() {
                    let (address, what) = (peer.address.clone(), format!("its version is older, and {NO_MEMBERS}"));
                    return self.hang_up(index, ClientError::Protocol { address, what });
                }
                self.step(ProposerInput::Connected(index));
            }
            PeerEvent::Down(error) => self.peer_lost(index, error),
            PeerEvent::Message(message) => {
                self.summary.set(disk, None);
                match message {
                    Response::Vote(reply) => {
                        // It was asked as by one that knows of no members: whoever is at the address is the one.
                        let voter = Voter { disk, configuration: Configuration::default() };
                        self.vote_reply(index, reply, voter);
                    }
                    Response::VoteIn(reply, source) => self.vote_reply_in(index, reply, source),
                    Response::Begin(reply) => self.step(ProposerInput::Begin(index, reply)),
                    Response::Append(reply) => self.step(ProposerInput::Append(index, reply)),
                    _ => {
                        let error = ClientError::unexpected(&self.peers[index].address);
                        self.hang_up(index, error);
                    }
                }
            }
        }
    }

    /// Ends a connection that is of no use; what answers there is tried again, as it may be another one by then.
    fn hang_up(&mut self, index: usize, error: ClientError) {
        tracing::warn!(address = %self.peers[index].address, %error, "a safekeeper cannot be used");
        self.say(index, ToPeer::HangUp(error));
        // Down comes when it has.
        self.peers[index].requests = None;
    }

    fn peer_lost(&mut self, index: usize, error: ClientError) {
        let peer = &mut self.peers[index];
        peer.requests = None;
        self.summary.set(peer.disk, Some(error));
        if self.summary.is_hopeless() {
            return self.close(self.summary.no_quorum());
        }
        self.step(ProposerInput::Disconnected(index));
    }

    fn vote_reply(&mut self, index: usize, reply: VoteReply, voter: Voter) {
        if self.learn_shape(&reply) {
            self.step(ProposerInput::Vote(index, reply, voter));
        }
    }

    /// The answer of one that says who it is, and who the members are.
    fn vote_reply_in(&mut self, index: usize, reply: VoteReply, source: VoteSource) {
        let peer = &self.peers[index];
        let Some(configuration) = Configuration::of(&source.membership) else {
            let what = "the members that it names are out of order".to_owned();
            let error = ClientError::Protocol { address: peer.address.clone(), what };
            return self.hang_up(index, error);
        };
        let is_unnumbered = self.core.configuration().generation() == MemberGeneration::default();
        let disk = if is_unnumbered { peer.disk } else { source.disk };
        if disk != peer.disk {
            let (address, expected) = (peer.address.clone(), peer.disk);
            self.summary.set(expected, Some(ClientError::OtherDisk { address, expected, found: disk }));
        }
        let generation = configuration.generation();
        let is_news = disk == peer.disk && generation > self.core.configuration().generation();
        // The core may ask for connections to those that join while it takes the step.
        let before = is_news.then(|| std::mem::replace(&mut self.membership, source.membership));
        self.vote_reply(index, reply, Voter { disk, configuration });
        if self.core.configuration().generation() == generation {
            if is_news {
                tracing::info!(timeline = %self.config.timeline, %generation, "the members have changed");
                self.summary.change(self.core.configuration());
            }
        } else if let Some(before) = before {
            // It was the answer to a question that does not count any more.
            self.membership = before;
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
        self.say(index, ToPeer::Request(request));
    }

    fn say(&self, index: usize, to_peer: ToPeer) {
        if let Some(requests) = &self.peers[index].requests {
            // A connection that just ended reports it.
            let _ = requests.send(to_peer);
        }
    }

    fn send_vote(&mut self, index: usize, vote: Vote) {
        let peer = &mut self.peers[index];
        peer.voted_in = self.membership.generation;
        let request =
            if peer.knows_members { Request::VoteIn(vote, self.membership.clone()) } else { Request::Vote(vote) };
        self.send(index, request);
    }

    /// A begin or an append counts in the generation of the vote before it.
    fn send_in_generation(&self, index: usize, request: Request) {
        let (voted_in, generation) = (self.peers[index].voted_in, self.membership.generation);
        assert_eq!(voted_in, generation, "a member is asked for its vote after each change");
        self.send(index, request);
    }

    fn carry_out(&mut self, effect: ProposerEffect) {
        match effect {
            ProposerEffect::SendVote(index, vote) => self.send_vote(index, vote),
            ProposerEffect::SendBegin(index, begin) => self.send_in_generation(index, Request::Begin(begin)),
            ProposerEffect::SendAppend(index, append) => self.send_in_generation(index, Request::Append(append)),
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
            ProposerEffect::Join(index, disk) => {
                assert_eq!(index, self.peers.len(), "indexes are not used again");
                let address = self.membership.address_of(disk).expect("those that join are members").clone();
                self.add_peer(disk, address);
            }
            ProposerEffect::Leave(index) => {
                self.peers[index].requests = None;
                // What is queued for it matters to nobody.
                self.peers[index].task.abort();
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
                previous_term: elected.previous_term,
                pg_major: shape.major.number(),
                wal_segment_size: shape.segment_size,
            })
        });
        if !matches!(told, Some(Ok(()))) {
            self.close(ProposerError::Stopped);
        }
    }

    fn scan(&mut self, donor: usize, term: Term, from: RecordEnd, to: Lsn) {
        let (address, binding) = (self.peers[donor].address.clone(), self.binding.clone());
        let shape = self.shape.expect("the donor has voted");
        self.readers.spawn(async move {
            let scanned = async {
                let mut reader = TailReader::connect(&address, &binding, term).await?;
                reader.last_record(shape, from, to).await
            };
            let cut = scanned.await.map_err(|error: ClientError| {
                tracing::info!(error = with_causes(&error), "the log cannot be scanned");
            });
            TailEvent::Scanned { term, cut: cut.ok() }
        });
    }

    fn fetch(&mut self, peer: usize, donor: usize, term: Term, from: Lsn, to: Lsn) {
        let (address, binding) = (self.peers[donor].address.clone(), self.binding.clone());
        self.readers.spawn(async move {
            let fetched = async {
                let mut reader = TailReader::connect(&address, &binding, term).await?;
                reader.read(from, to).await
            };
            let bytes = fetched.await.map_err(|error: ClientError| {
                tracing::info!(error = with_causes(&error), "fetch failed");
            });
            TailEvent::Fetched { peer, term, start: from, bytes: bytes.unwrap_or_default() }
        });
    }
}
