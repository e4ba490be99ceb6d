//! The proposer: one writer of a timeline.
//!
//! ```text
//!  Asking ──quorum answered──► Electing ──quorum granted──► Scanning ──last record found──► Leading ──fenced──► Closed
//!     ▲                            │                            │                              │
//!     └────────── a higher term seen, or the donor lost ────────┴──────── (until announced) ───┘
//! ```
//!
//! Leading first completes the log on a quorum (only then [`ProposerEffect::Elected`]), then takes appends.

use bytes::Bytes;

use ardent_api::wal_service::{
    Append, AppendReply, Begin, BeginReply, ProposerId, RecordEnd, Vote, VoteReply, WAL_LEN_MAX,
};
use ardent_types::{Lsn, Term};

use crate::bug::{Bug, Bugs};
use crate::configuration::{Configuration, MemberGeneration};
use crate::history::TermHistory;
use crate::log_buffer::LogBuffer;
use crate::peer::{Peer, Phase};
use crate::proposer_message::{CloseReason, Elected, ProposerEffect, ProposerInput, Voter};

/// Bounds of a proposer's memory and patience.
#[derive(Clone, Copy, Debug)]
pub struct ProposerLimits {
    /// An acceptor that has not answered for this long is asked again, in microseconds.
    pub resend_after_us: u64,
    /// Most bytes sent to one acceptor and not acknowledged.
    pub in_flight_bytes_max: u64,
    /// Committed WAL kept for acceptors that lag, in bytes; one that lags further catches up from its peers.
    pub laggard_bytes_max: u64,
    /// After how many elections that a higher term ended the proposer gives up.
    pub elections_max: u32,
}

impl Default for ProposerLimits {
    fn default() -> Self {
        ProposerLimits {
            resend_after_us: 5_000_000,
            in_flight_bytes_max: 16 << 20,
            laggard_bytes_max: 16 << 20,
            elections_max: 20,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asking,
    Electing,
    Scanning { donor: usize, from: RecordEnd, to: Lsn },
    Leading { announced: bool },
    Closed,
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Proposer {
    id: ProposerId,
    configuration: Configuration,
    limits: ProposerLimits,
    stage: Stage,
    term: Term,
    highest_term_seen: Term,
    elections: u32,
    /// When to start over after a lost election.
    retry_at_us: Option<u64>,
    peers: Vec<Peer>,
    history: TermHistory,
    /// The last term of the log that was chosen, which was not one of ours.
    previous_term: Term,
    /// The terms in which it has told acceptors what the log is.
    begun: Vec<Term>,
    start: RecordEnd,
    /// Where our term starts.
    log_start: RecordEnd,
    buffer: LogBuffer,
    flushed: Lsn,
    commit: RecordEnd,
    bugs: Bugs,
}

type Effects = Vec<ProposerEffect>;

/// A lost election is repeated after a quarter of `resend_after_us` at most, in one of so many steps.
const RETRY_SPREAD: u64 = 16;

impl Proposer {
    /// A proposer for the members of `configuration`, which it knows by their indexes in [`Configuration::everyone`]. `id` must be random
    /// and never used before.
    pub fn new(id: ProposerId, configuration: Configuration, limits: ProposerLimits) -> Self {
        assert!(!configuration.members().is_empty(), "a timeline has at least one safekeeper");
        Proposer {
            id,
            limits,
            stage: Stage::Asking,
            term: Term::new(0),
            highest_term_seen: Term::new(0),
            elections: 0,
            retry_at_us: None,
            peers: configuration.everyone().into_iter().map(Peer::new).collect(),
            configuration,
            history: TermHistory::default(),
            previous_term: Term::new(0),
            begun: Vec::new(),
            start: RecordEnd::default(),
            log_start: RecordEnd::default(),
            buffer: LogBuffer::new(Lsn::INVALID),
            flushed: Lsn::INVALID,
            commit: RecordEnd::default(),
            bugs: Bugs::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn set_bugs(&mut self, bugs: Bugs) {
        self.bugs = bugs;
    }

    /// How many of the members make a quorum, while they do not change.
    pub fn quorum(&self) -> usize {
        self.configuration.members().len() / 2 + 1
    }

    /// The members that it goes by.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Whether those that `has` is true for are a quorum.
    fn is_quorum(&self, has: impl Fn(&Peer) -> bool) -> bool {
        self.deciding().is_quorum(|disk| self.present().any(|peer| peer.disk == disk && has(peer)))
    }

    /// The configuration, as the deliberate bugs have it.
    fn deciding(&self) -> std::borrow::Cow<'_, Configuration> {
        use std::borrow::Cow;
        let one_sided = if self.bugs.has(Bug::NextMajorityOnly) {
            self.configuration.settled().ok()
        } else if self.bugs.has(Bug::OldMajorityOnly) {
            self.configuration.cancelled().ok()
        } else {
            None
        };
        one_sided.map_or(Cow::Borrowed(&self.configuration), Cow::Owned)
    }

    /// The term that it is or tries to be elected in.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Whether it is elected and its log complete.
    pub fn is_announced(&self) -> bool {
        self.stage == Stage::Leading { announced: true }
    }

    /// End of the log.
    pub fn end_lsn(&self) -> Lsn {
        self.buffer.end()
    }

    /// The end of the log, where all of it is committed on the one acceptor that there is: from here on that one can write in this term by
    /// itself what this proposer would have appended.
    pub fn rest_on_one(&self) -> Option<RecordEnd> {
        let rests = self.is_announced() && self.commit.end == self.buffer.end() && self.configuration.is_single();
        rests.then_some(self.commit)
    }

    /// Bytes that were given to it and that no quorum has yet.
    pub fn unflushed_bytes(&self) -> u64 {
        self.buffer.end().saturating_sub(self.flushed)
    }

    /// How many acceptors stream now.
    pub fn streaming_peers(&self) -> usize {
        self.present().filter(|peer| peer.phase == Phase::Streaming).count()
    }

    /// Takes one input at time `now_us` and says what to do. Any clock will do: one that jumps makes it ask too early or a little late.
    pub fn step(&mut self, now_us: u64, input: ProposerInput, out: &mut Effects) {
        if self.stage == Stage::Closed || self.is_gone(&input) {
            return;
        }
        match input {
            ProposerInput::Connected(peer) => self.ask(now_us, peer, out),
            ProposerInput::Disconnected(peer) => self.disconnected(now_us, peer),
            ProposerInput::Vote(peer, reply, voter) => self.vote_reply(now_us, peer, reply, voter, out),
            ProposerInput::Begin(peer, reply) => self.begin_reply(now_us, peer, reply, out),
            ProposerInput::Append(peer, reply) => self.append_reply(now_us, peer, reply, out),
            ProposerInput::Scanned { term, .. } if term != self.term => {}
            ProposerInput::Scanned { cut: Some(cut), .. } => self.scanned(now_us, cut, out),
            ProposerInput::Scanned { cut: None, .. } => self.election_failed(now_us),
            ProposerInput::Fetched { term, .. } if term != self.term && !self.bugs.has(Bug::StaleFetch) => {}
            ProposerInput::Fetched { peer, start, bytes, .. } => self.fetched(peer, start, bytes, out),
            ProposerInput::Write { data, record_end } => self.write(data, record_end, out),
            ProposerInput::Tick => self.tick(now_us, out),
        }
    }

    /// Whether it comes from one that is no member any more: nothing that it says matters, neither what it has nor whom it follows.
    fn is_gone(&self, input: &ProposerInput) -> bool {
        match input {
            ProposerInput::Connected(peer)
            | ProposerInput::Disconnected(peer)
            | ProposerInput::Vote(peer, ..)
            | ProposerInput::Begin(peer, _)
            | ProposerInput::Append(peer, _)
            | ProposerInput::Fetched { peer, .. } => self.peers[*peer].phase == Phase::Gone,
            ProposerInput::Scanned { .. } | ProposerInput::Write { .. } | ProposerInput::Tick => false,
        }
    }

    fn close(&mut self, reason: CloseReason, out: &mut Effects) {
        self.stage = Stage::Closed;
        out.push(ProposerEffect::Closed(reason));
    }

    /// Votes are asked for with our term; in stage `Asking` that is 0, which only asks what the others have.
    fn ask(&mut self, now_us: u64, index: usize, out: &mut Effects) {
        let peer = &mut self.peers[index];
        peer.phase = Phase::Voting;
        peer.attempt += 1;
        peer.heard_at_us = now_us;
        let vote = Vote { attempt: peer.attempt, term: self.term, proposer: self.id };
        out.push(ProposerEffect::SendVote(index, vote));
    }

    fn ask_all_online(&mut self, now_us: u64, out: &mut Effects) {
        for index in 0..self.peers.len() {
            if self.peers[index].phase != Phase::Offline && self.peers[index].phase != Phase::Gone {
                self.ask(now_us, index, out);
            }
        }
    }

    fn disconnected(&mut self, now_us: u64, index: usize) {
        self.peers[index].phase = Phase::Offline;
        self.peers[index].fetching = false;
        if matches!(self.stage, Stage::Scanning { donor, .. } if donor == index) {
            self.election_failed(now_us);
        }
    }

    /// Starts over after a pause that differs between proposers, so that two do not outbid each other for ever.
    fn election_failed(&mut self, now_us: u64) {
        if matches!(self.stage, Stage::Closed | Stage::Leading { announced: true }) || self.retry_at_us.is_some() {
            return;
        }
        let spread = (self.id.get() as u64 ^ self.term.get().wrapping_mul(0x9E37_79B9_7F4A_7C15)) % RETRY_SPREAD;
        self.retry_at_us = Some(now_us + (spread + 1) * self.limits.resend_after_us / (4 * RETRY_SPREAD));
    }

    /// A clock that was set back would otherwise have it wait until it shows again what it showed before.
    fn notice_clock_set_back(&mut self, now_us: u64) {
        let pause_us_max = self.limits.resend_after_us / 4;
        self.retry_at_us = self.retry_at_us.map(|at| at.min(now_us + pause_us_max));
        for peer in &mut self.peers {
            peer.heard_at_us = peer.heard_at_us.min(now_us);
        }
    }

    fn higher_term(&mut self, now_us: u64, seen: Term, out: &mut Effects) {
        self.highest_term_seen = self.highest_term_seen.max(seen);
        match self.stage {
            Stage::Asking | Stage::Closed => {}
            Stage::Leading { announced: true } => self.close(CloseReason::Fenced(seen), out),
            _ if self.elections >= self.limits.elections_max => self.close(CloseReason::Fenced(seen), out),
            _ => self.election_failed(now_us),
        }
    }

    /// The members have changed. Who is a member now is asked again, and until it has answered nothing that it acknowledged counts: it may
    /// have promised a higher term since, to a writer whom the members before elected without it.
    fn change_members(&mut self, now_us: u64, configuration: Configuration, out: &mut Effects) {
        self.configuration = configuration;
        let everyone = self.configuration.everyone();
        for (index, peer) in self.peers.iter_mut().enumerate() {
            if peer.phase != Phase::Gone && !everyone.contains(&peer.disk) {
                peer.phase = Phase::Gone;
                out.push(ProposerEffect::Leave(index));
            }
        }
        for disk in everyone {
            if !self.peers.iter().any(|peer| peer.phase != Phase::Gone && peer.disk == disk) {
                out.push(ProposerEffect::Join(self.peers.len(), disk));
                self.peers.push(Peer::new(disk));
            }
        }
        match self.stage {
            Stage::Asking => self.elect_when_a_quorum_answered(now_us, out),
            // Who voted or holds what is to be looked at anew.
            Stage::Electing | Stage::Scanning { .. } | Stage::Leading { announced: false } => {
                self.start_election(now_us, out);
            }
            Stage::Leading { announced: true } => {
                for peer in &mut self.peers {
                    peer.acked = Lsn::INVALID;
                }
                self.ask_all_online(now_us, out);
            }
            Stage::Closed => {}
        }
    }

    fn vote_reply(&mut self, now_us: u64, index: usize, reply: VoteReply, voter: Voter, out: &mut Effects) {
        let peer = &mut self.peers[index];
        if peer.phase != Phase::Voting || reply.attempt != peer.attempt {
            return;
        }
        peer.heard_at_us = now_us;
        if voter.disk != peer.disk && !self.bugs.has(Bug::DiskNotChecked) {
            // Its disk is lost, and with it what it had promised: it is as good as away.
            peer.phase = Phase::Stranger;
            return;
        }
        if voter.configuration.generation() > self.configuration.generation() {
            peer.phase = Phase::Answered;
            self.highest_term_seen = self.highest_term_seen.max(reply.term);
            return self.change_members(now_us, voter.configuration, out);
        }
        if self.stage == Stage::Asking {
            peer.phase = Phase::Answered;
            self.highest_term_seen = self.highest_term_seen.max(reply.term);
            self.elect_when_a_quorum_answered(now_us, out);
        } else if reply.term > self.term {
            peer.phase = Phase::Answered;
            self.higher_term(now_us, reply.term, out);
        } else if !reply.granted {
            // Another proposer holds this very term here: outbid it, or be fenced by it. Where we are elected in it the other cannot be: this
            // acceptor is as good as away, as long as a quorum is there without it.
            peer.phase = Phase::Answered;
            if !self.is_announced() || !self.is_quorum(|peer| peer.phase == Phase::Streaming) {
                self.higher_term(now_us, reply.term, out);
            }
        } else {
            peer.phase = Phase::Granted;
            peer.vote = Some(reply);
            match self.stage {
                Stage::Electing => self.choose_log(now_us, out),
                Stage::Leading { .. } => self.begin(now_us, index, out),
                _ => {}
            }
        }
    }

    fn elect_when_a_quorum_answered(&mut self, now_us: u64, out: &mut Effects) {
        if self.is_quorum(|peer| peer.phase == Phase::Answered) {
            self.start_election(now_us, out);
        }
    }

    fn start_election(&mut self, now_us: u64, out: &mut Effects) {
        self.retry_at_us = None;
        self.elections += 1;
        self.stage = Stage::Electing;
        self.term = self.highest_term_seen.max(self.term).next();
        for peer in &mut self.peers {
            peer.vote = None;
            peer.acked = Lsn::INVALID;
            peer.fetching = false;
        }
        self.ask_all_online(now_us, out);
    }

    /// With a quorum of votes: the most advanced log among them is the log.
    fn choose_log(&mut self, now_us: u64, out: &mut Effects) {
        let granted = || {
            let granted = self.peers.iter().enumerate().filter(|(_, peer)| peer.phase == Phase::Granted);
            granted.filter_map(|(index, peer)| peer.vote.as_ref().map(|vote| (index, vote)))
        };
        let enough = if self.bugs.has(Bug::MinorityElection) {
            granted().next().is_some()
        } else {
            self.is_quorum(|peer| peer.phase == Phase::Granted && peer.vote.is_some())
        };
        if !enough {
            return;
        }
        let by_length = self.bugs.has(Bug::DonorByLength);
        let rank = |vote: &VoteReply| {
            let last_term = vote.history.last().map_or(Term::new(0), |entry| entry.term);
            (if by_length { Term::new(0) } else { last_term }, vote.flush_lsn)
        };
        let (donor, best) = granted().max_by_key(|(_, vote)| rank(vote)).expect("a quorum is not empty");
        let from = granted().map(|(_, vote)| vote.commit).max().expect("a quorum is not empty");
        let (start, to) = (best.start, best.flush_lsn);
        let history = TermHistory::from_entries(best.history.clone());
        let same_start = granted().all(|(_, vote)| vote.start == start);
        let Some(history) = history.filter(|_| same_start && from.end <= to) else {
            let what = format!(
                "the most advanced log ends at {to}, {} is committed, {}",
                from.end,
                if same_start { "all begin at the same place" } else { "they begin at different places" }
            );
            return self.close(CloseReason::Contradiction(what), out);
        };
        // An election that was lost after it had begun somewhere wrote nothing.
        let is_kept = self.bugs.has(Bug::PreviousTermKept) && self.previous_term > Term::new(0);
        if !self.begun.contains(&history.last_term()) && !is_kept {
            self.previous_term = history.last_term();
        }
        (self.history, self.start) = (history, start);
        self.stage = Stage::Scanning { donor, from, to };
        if from.end == to {
            self.scanned(now_us, from, out);
        } else {
            out.push(ProposerEffect::Scan { donor, term: self.term, from, to });
        }
    }

    /// The log is chosen and cut at its last whole record: it is ours from here on.
    fn scanned(&mut self, now_us: u64, cut: RecordEnd, out: &mut Effects) {
        let Stage::Scanning { from, to, .. } = self.stage else { return };
        assert!((from.end..=to).contains(&cut.end), "a record end at {} in {}..{to}", cut.end, from.end);
        if self.retry_at_us.is_some() {
            return;
        }
        // The donor may hold less than it said when it crashed since; a term that starts past the cut wrote nothing.
        self.history = self.history.up_to(cut.end);
        self.history.push(self.term, cut.end);
        self.begun.push(self.term);
        self.log_start = cut;
        self.commit = from;
        self.flushed = from.end;
        self.buffer = LogBuffer::new(cut.end);
        self.stage = Stage::Leading { announced: false };
        for index in 0..self.peers.len() {
            if self.peers[index].phase == Phase::Granted {
                self.begin(now_us, index, out);
            }
        }
        if self.bugs.has(Bug::NoCompletion) {
            self.announce(out);
        }
    }

    fn begin(&mut self, now_us: u64, index: usize, out: &mut Effects) {
        let peer = &mut self.peers[index];
        let Some(vote) = peer.vote.take() else { return };
        if vote.start != self.start {
            let what = format!("a safekeeper's timeline begins at {:?}, another's at {:?}", vote.start, self.start);
            return self.close(CloseReason::Contradiction(what), out);
        }
        let theirs = TermHistory::from_entries(vote.history).expect("votes are checked when they are decoded");
        let common_lsn = self.history.common_lsn(self.buffer.end(), &theirs, vote.flush_lsn);
        peer.phase = Phase::Beginning;
        peer.heard_at_us = now_us;
        let history = self.history.entries().to_vec();
        let begin = Begin { attempt: peer.attempt, term: self.term, history, common_lsn };
        out.push(ProposerEffect::SendBegin(index, begin));
    }

    fn begin_reply(&mut self, now_us: u64, index: usize, reply: BeginReply, out: &mut Effects) {
        if reply.term > self.term {
            return self.higher_term(now_us, reply.term, out);
        }
        let end = self.buffer.end();
        let peer = &mut self.peers[index];
        if peer.phase != Phase::Beginning || reply.attempt != peer.attempt {
            return;
        }
        if reply.flush_lsn > end {
            let what = format!("a safekeeper has {} of a log that ends at {end}", reply.flush_lsn);
            return self.close(CloseReason::Contradiction(what), out);
        }
        peer.phase = Phase::Streaming;
        peer.heard_at_us = now_us;
        peer.next = reply.flush_lsn;
        peer.acked = reply.flush_lsn;
        peer.fetching = false;
        peer.commit_sent = Lsn::INVALID;
        peer.peers_sent = Lsn::INVALID;
        self.advance(out);
        self.pump_all(out);
    }

    fn append_reply(&mut self, now_us: u64, index: usize, reply: AppendReply, out: &mut Effects) {
        if reply.term > self.term {
            return self.higher_term(now_us, reply.term, out);
        }
        let peer = &mut self.peers[index];
        // A late reply from before a reconnection may tell of bytes that are being sent again.
        if reply.term < self.term || peer.phase != Phase::Streaming || reply.flush_lsn > peer.next {
            return;
        }
        if reply.flush_lsn > peer.acked {
            peer.acked = reply.flush_lsn;
            peer.heard_at_us = now_us;
            self.advance(out);
        }
        self.pump_all(out);
    }

    /// What a quorum has: the position that at least that many have reached.
    fn quorum_flush(&self) -> Lsn {
        if self.bugs.has(Bug::CommitAtOne) {
            return self.present().map(|peer| peer.acked).max().expect("there are peers");
        }
        let acked = |disk| self.present().find(|peer| peer.disk == disk).map_or(Lsn::INVALID, |peer| peer.acked);
        self.deciding().quorum_lsn(acked)
    }

    /// Those that are members now.
    fn present(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.phase != Phase::Gone)
    }

    fn advance(&mut self, out: &mut Effects) {
        let Stage::Leading { announced } = self.stage else { return };
        let reached = self.quorum_flush();
        if reached < self.log_start.end {
            return;
        }
        if !announced {
            self.announce(out);
        }
        let before = (self.flushed, self.commit);
        self.flushed = self.flushed.max(reached);
        if let Some(commit) = self.buffer.take_record_end(self.flushed) {
            self.commit = commit;
        }
        if self.bugs.has(Bug::CommitMidRecord) {
            self.commit.end = self.flushed;
        }
        if before != (self.flushed, self.commit) {
            out.push(ProposerEffect::Progress { flushed: self.flushed, commit: self.commit });
            self.trim_buffer();
        }
    }

    fn announce(&mut self, out: &mut Effects) {
        self.stage = Stage::Leading { announced: true };
        self.retry_at_us = None;
        self.commit = self.log_start;
        self.flushed = self.log_start.end;
        out.push(ProposerEffect::Elected(Elected {
            term: self.term,
            end_lsn: self.log_start.end,
            prev_lsn: self.log_start.start,
            start_lsn: self.start.end,
            previous_term: self.previous_term,
        }));
        out.push(ProposerEffect::Progress { flushed: self.flushed, commit: self.commit });
    }

    fn peers_lsn(&self) -> Lsn {
        self.present().map(|peer| peer.acked).min().expect("there are peers")
    }

    /// Uncommitted WAL is always kept, committed WAL for those that lag, within a bound.
    fn trim_buffer(&mut self) {
        let bound = Lsn::new(self.buffer.end().get().saturating_sub(self.limits.laggard_bytes_max));
        self.buffer.trim(self.peers_lsn().max(bound).min(self.commit.end));
    }

    fn write(&mut self, data: Bytes, record_end: Option<RecordEnd>, out: &mut Effects) {
        assert!(self.is_announced(), "WAL is written only after the election");
        if data.is_empty() {
            return;
        }
        self.buffer.push(data, record_end);
        self.pump_all(out);
    }

    fn pump_all(&mut self, out: &mut Effects) {
        for index in 0..self.peers.len() {
            self.pump(index, out);
        }
    }

    fn append_message(&self, start: Lsn, data: Bytes) -> Append {
        let end = start.advance(data.len() as u64);
        // Where there is no other, none needs anything.
        let peers_lsn = if self.configuration.is_single() { end } else { self.peers_lsn() };
        Append { term: self.term, start, commit: self.commit_with(end), peers_lsn, data }
    }

    /// What an acceptor that has our log up to `end` may take for committed as soon as it has it durably. If there is no other, that makes
    /// a quorum: it need not be told in a message of its own, after each of its answers.
    fn commit_with(&self, end: Lsn) -> RecordEnd {
        let alone = self.configuration.is_single() || self.bugs.has(Bug::CommitUnasked);
        let sent = if alone { self.buffer.last_record_end(end) } else { None };
        sent.map_or(self.commit, |sent| sent.max(self.commit))
    }

    /// Sends a peer what it lacks, within the bound of what may be unacknowledged.
    fn pump(&mut self, index: usize, out: &mut Effects) {
        if !matches!(self.stage, Stage::Leading { .. }) || self.peers[index].phase != Phase::Streaming {
            return;
        }
        if self.peers[index].next < self.buffer.start() {
            return self.fetch(index, out);
        }
        loop {
            let peer = &self.peers[index];
            let next = peer.next;
            if next.saturating_sub(peer.acked) >= self.limits.in_flight_bytes_max {
                break;
            }
            let Some(data) = self.buffer.read(next) else { break };
            let append = self.append_message(next, data);
            let peer = &mut self.peers[index];
            peer.next = next.advance(append.data.len() as u64);
            (peer.commit_sent, peer.peers_sent) = (append.commit.end, append.peers_lsn);
            out.push(ProposerEffect::SendAppend(index, append));
        }
        if self.peers[index].commit_sent < self.commit.end {
            self.tell_positions(index, out);
        }
    }

    /// Tells a peer what is committed and what the others have, without WAL.
    fn tell_positions(&mut self, index: usize, out: &mut Effects) {
        if self.stage != (Stage::Leading { announced: true }) {
            return;
        }
        let append = self.append_message(self.peers[index].next, Bytes::new());
        let peer = &mut self.peers[index];
        (peer.commit_sent, peer.peers_sent) = (append.commit.end, append.peers_lsn);
        out.push(ProposerEffect::SendAppend(index, append));
    }

    /// WAL that we no longer have, or that was written before our term, comes from a peer.
    fn fetch(&mut self, index: usize, out: &mut Effects) {
        let from = self.peers[index].next;
        if self.peers[index].fetching {
            return;
        }
        let streaming = self.peers.iter().enumerate().filter(|(_, peer)| peer.phase == Phase::Streaming);
        let Some((donor, best)) = streaming.max_by_key(|(_, peer)| peer.acked) else { return };
        let to = best.acked.min(self.buffer.start()).min(from.advance(WAL_LEN_MAX as u64));
        if to > from {
            self.peers[index].fetching = true;
            out.push(ProposerEffect::Fetch { peer: index, donor, term: self.term, from, to });
        }
    }

    fn fetched(&mut self, index: usize, start: Lsn, bytes: Bytes, out: &mut Effects) {
        let peer = &mut self.peers[index];
        if !peer.fetching {
            return;
        }
        peer.fetching = false;
        if peer.phase != Phase::Streaming || start != peer.next || bytes.is_empty() {
            return;
        }
        peer.next = start.advance(bytes.len() as u64);
        let append = self.append_message(start, bytes);
        out.push(ProposerEffect::SendAppend(index, append));
        self.pump(index, out);
    }

    /// Whether it waits for a quorum of members that may have been replaced meanwhile: those that do answer know.
    fn lacks_quorum(&self) -> bool {
        let waits = match self.stage {
            Stage::Asking | Stage::Leading { announced: false } => true,
            Stage::Leading { announced: true } => self.flushed < self.buffer.end(),
            Stage::Electing | Stage::Scanning { .. } | Stage::Closed => false,
        };
        waits && self.configuration.generation() > MemberGeneration::default()
    }

    fn tick(&mut self, now_us: u64, out: &mut Effects) {
        if !self.bugs.has(Bug::ClockNeverSetBack) {
            self.notice_clock_set_back(now_us);
        }
        if self.retry_at_us.is_some_and(|at| at <= now_us) {
            return self.start_election(now_us, out);
        }
        let lacks_quorum = self.lacks_quorum();
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            let silent = now_us.saturating_sub(peer.heard_at_us) >= self.limits.resend_after_us;
            match peer.phase {
                Phase::Voting | Phase::Beginning if silent => self.ask(now_us, index, out),
                Phase::Granted if silent && matches!(self.stage, Stage::Leading { .. }) => {
                    self.ask(now_us, index, out);
                }
                Phase::Streaming if silent && peer.acked < peer.next => self.ask(now_us, index, out),
                // It has all that we have, and others that we wait for may be members no more.
                Phase::Streaming if silent && lacks_quorum => self.ask(now_us, index, out),
                Phase::Streaming if silent => {
                    // Nothing is on its way: a fetch that got lost is asked for again.
                    peer.fetching = false;
                    peer.heard_at_us = now_us;
                    self.pump(index, out);
                    // The last of the others may have come later than the last WAL: what this one keeps for it can go.
                    if self.peers[index].peers_sent < self.peers_lsn() {
                        self.tell_positions(index, out);
                    }
                }
                Phase::Answered if silent && (self.stage != Stage::Asking || lacks_quorum) => {
                    self.ask(now_us, index, out);
                }
                _ => {}
            }
        }
    }
}
