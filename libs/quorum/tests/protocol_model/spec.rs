//! States and steps.

use std::fmt::{self, Display, Formatter};
use std::hash::{Hash, Hasher};

use ardent_api::wal_service::TermStart;
use ardent_quorum::TermHistory;
use ardent_quorum::invariant::{self, Violation};
use ardent_types::{Lsn, Term};

use crate::explore::Specification;

/// A way to break the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A vote is answered before it is durable.
    VoteNotPersisted,
    /// The longest log is chosen, whatever its term.
    LongestChosen,
    /// A term counts in a log's position only once there is a record of it: what is older is committed by counting who has it.
    CommitByCount,
    /// The log is not completed before the writer starts.
    NoCompletion,
    /// WAL of an older term is accepted.
    StaleTermAccepted,
    /// A diverged tail is kept.
    NoTruncation,
    /// WAL is acknowledged before its fsync.
    AckBeforeFsync,
    /// The history is durable before the cut.
    HistoryBeforeCut,
    /// A second begin cuts the log again.
    BeginTwice,
}

impl Bug {
    pub const ALL: [Bug; 9] = [
        Bug::VoteNotPersisted,
        Bug::LongestChosen,
        Bug::CommitByCount,
        Bug::NoCompletion,
        Bug::StaleTermAccepted,
        Bug::NoTruncation,
        Bug::AckBeforeFsync,
        Bug::HistoryBeforeCut,
        Bug::BeginTwice,
    ];
}

/// What earlier writers left behind on one acceptor: they vanished before anybody else had it.
#[derive(Clone, Copy)]
pub struct Tail {
    pub term: u8,
    pub records: u8,
}

/// The bounds.
#[derive(Clone, Copy)]
pub struct Spec {
    /// The term that each writer asks for. A writer that starts over is another one: what it sent before may still arrive.
    pub terms: &'static [u8],
    /// What acceptors have at first, one after the other.
    pub tails: &'static [Tail],
    /// Most records of a log.
    pub records: u8,
    pub bug: Option<Bug>,
}

impl Display for Spec {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, "writers of terms {:?}", self.terms)?;
        if !self.tails.is_empty() {
            let tails: Vec<_> = self.tails.iter().map(|tail| (tail.term, tail.records)).collect();
            write!(to, " after tails of (term, records) {tails:?}")?;
        }
        write!(to, ", logs of up to {} records", self.records)
    }
}

const NODES: usize = 3;
const QUORUM: usize = 2;
const WRITERS_MAX: usize = 3;
const TERMS_MAX: usize = 4;
const RECORDS_MAX: usize = 3;

/// A log, of which `length` records count. A record is known by the term of its writer and a number, so that two writers of one term would
/// write different ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Log {
    length: u8,
    records: [u8; RECORDS_MAX],
    /// Where each term starts, and one more; 0: it is not in the history.
    starts: [u8; TERMS_MAX],
}

impl Log {
    fn records(&self) -> &[u8] {
        &self.records[..self.length as usize]
    }

    fn push(&mut self, record: u8) {
        self.records[self.length as usize] = record;
        self.length += 1;
    }

    fn cut(&mut self, length: u8) {
        let kept = self.length.min(length);
        self.records[kept as usize..].fill(0);
        self.length = kept;
    }

    fn history(&self) -> TermHistory {
        let terms = (1..).zip(&self.starts).filter(|(_, start)| **start > 0);
        let entries = terms.map(|(term, start)| TermStart { term: Term::new(term), lsn: position(*start - 1) });
        TermHistory::from_entries(entries.collect()).expect("terms ascend")
    }

    fn set_history(&mut self, history: &TermHistory) {
        self.starts = [0; TERMS_MAX];
        for entry in history.entries() {
            self.starts[entry.term.get() as usize - 1] = entry.lsn.get() as u8 + 1;
        }
    }

    /// The last term in the history.
    fn begun(&self) -> u8 {
        self.starts.iter().rposition(|start| *start > 0).map_or(0, |at| at as u8 + 1)
    }

    /// The last term that starts at or below `end`.
    fn last_term(&self, end: u8) -> u8 {
        self.starts.iter().rposition(|start| *start > 0 && *start - 1 <= end).map_or(0, |at| at as u8 + 1)
    }
}

fn position(record: u8) -> Lsn {
    Lsn::new(record.into())
}

/// An acceptor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Node {
    /// The highest term promised, and one more than the writer that it is promised to.
    promise: (u8, u8),
    /// What of that is durable.
    durable_promise: (u8, u8),
    /// What is written. The history is durable.
    log: Log,
    /// How many of its records are durable.
    flushed: u8,
    commit: u8,
}

impl Node {
    fn durable(&self) -> Log {
        let mut log = self.log;
        log.cut(self.flushed);
        log
    }

    /// What may be left after a crash: any part of what was not durable, and an older commit position.
    fn crashes(&self, mut each: impl FnMut(Node)) {
        for length in self.flushed..=self.log.length {
            for commit in 0..=self.commit {
                let mut left = Node { promise: self.durable_promise, flushed: length, commit, ..*self };
                left.log.cut(length);
                each(left);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Vote {
    log: Log,
    commit: u8,
}

/// What is on its way between an acceptor and a writer. It stays there: it may arrive late, twice or never.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Link {
    /// The answer to the last question.
    vote: Option<Vote>,
    /// Begins, one bit for each position up to where the log is to be the same.
    begins: u8,
    /// One more than the most that was acknowledged; 0: no begin was answered.
    acknowledged: u8,
}

/// An acceptor and all that is on its way to and from it. Acceptors differ by nothing else, so that their order does not matter.
#[derive(Clone, Copy)]
struct Place {
    /// For whoever reads a trace: no part of the state.
    name: u8,
    node: Node,
    links: [Link; WRITERS_MAX],
}

impl Place {
    fn state(&self) -> (&Node, &[Link; WRITERS_MAX]) {
        (&self.node, &self.links)
    }
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.state().hash(hasher);
    }
}

/// A writer asks for its term from the first on: nobody sees that before the question arrives. `log` is absent until it is chosen; it ends
/// where the writer's own records start, which are always the same.
#[derive(Clone, Copy, Hash, Default)]
struct Writer {
    log: Option<Log>,
}

#[derive(Clone, Hash)]
pub struct State {
    places: [Place; NODES],
    writers: [Writer; WRITERS_MAX],
}

pub enum Step {
    Vote { writer: usize, node: u8 },
    Choose { writer: usize, length: u8 },
    Begin { writer: usize, node: u8, common: u8 },
    CrashInBegin { writer: usize, node: u8, common: u8 },
    Append { writer: usize, node: u8, record: u8 },
    Commit { writer: usize, node: u8, length: u8 },
    Flush { node: u8, length: u8 },
    Crash { node: u8, length: u8, commit: u8 },
}

impl Display for Step {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Step::Vote { writer, node } => write!(to, "node {node} votes for writer {writer}"),
            Step::Choose { writer, length } => write!(to, "writer {writer} chooses a log of {length} records"),
            Step::Begin { writer, node, common } => {
                write!(to, "writer {writer} begins at node {node} behind {common} records")
            }
            Step::CrashInBegin { writer, node, common } => {
                write!(to, "writer {writer} begins at node {node} behind {common} records, which crashes half-way")
            }
            Step::Append { writer, node, record } => {
                write!(to, "node {node} writes record {record} of writer {writer}")
            }
            Step::Commit { writer, node, length } => {
                write!(to, "node {node} hears from writer {writer} that {length} records are committed")
            }
            Step::Flush { node, length } => write!(to, "node {node} has {length} records durably"),
            Step::Crash { node, length, commit } => {
                write!(
                    to,
                    "node {node} crashes and comes back with {length} records, {commit} of them known to be committed"
                )
            }
        }
    }
}

type Steps = Vec<(Step, State)>;

impl Specification for Spec {
    type State = State;
    type Step = Step;

    fn first(&self) -> State {
        let mut state = State {
            places: [0, 1, 2].map(|name| Place { name, node: Node::default(), links: Default::default() }),
            writers: Default::default(),
        };
        for (place, tail) in state.places.iter_mut().zip(self.tails) {
            place.node.promise = (tail.term, 0);
            place.node.durable_promise = place.node.promise;
            place.node.log.starts[tail.term as usize - 1] = 1;
            for _ in 0..tail.records {
                place.node.log.push(tail.term << 4);
            }
            place.node.flushed = tail.records;
        }
        self.settle(state)
    }

    fn steps(&self, state: &State) -> Steps {
        let mut out = Steps::new();
        for writer in 0..self.terms.len() {
            self.choose(state, writer, &mut out);
            let committed = self.committed(state, writer);
            for at in 0..NODES {
                self.vote(state, writer, at, &mut out);
                self.begin(state, writer, at, &mut out);
                self.append(state, writer, at, committed, &mut out);
                self.commit(state, writer, at, committed, &mut out);
            }
        }
        for at in 0..NODES {
            self.flush_or_crash(state, at, &mut out);
        }
        out
    }

    /// The core's invariants.
    fn check(&self, state: &State) -> Result<(), Violation> {
        self.check_writers(state)?;
        self.check_commits(state)?;
        self.check_logs(state)
    }
}

impl Spec {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// What a writer writes.
    fn record_of(&self, writer: usize) -> u8 {
        (self.terms[writer] << 4) | (writer as u8 + 1)
    }

    /// Records that a writer has taken over or written, up to `length`.
    fn log_of(&self, writer: usize, chosen: &Log, length: u8) -> Log {
        let mut log = *chosen;
        log.cut(length);
        while log.length < length {
            log.push(self.record_of(writer));
        }
        log
    }

    /// Forgets begins that nobody takes any more, and brings acceptors into an order that does not depend on who is who.
    fn settle(&self, mut state: State) -> State {
        if !self.has(Bug::VoteNotPersisted) && !self.has(Bug::BeginTwice) {
            for Place { node, links, .. } in &mut state.places {
                for (link, term) in links.iter_mut().zip(self.terms) {
                    if node.promise.0 > *term || node.log.begun() == *term {
                        link.begins = 0;
                    }
                }
            }
        }
        state.places.sort_unstable_by(|a, b| a.state().cmp(&b.state()));
        state
    }

    /// A state in which one acceptor is another. It answers what it owes at once: the answer may still be late, or heard by nobody.
    fn with_node(&self, state: &State, at: usize, node: Node) -> State {
        let mut next = state.clone();
        next.places[at].node = node;
        for (writer, link) in next.places[at].links.iter_mut().enumerate().take(self.terms.len()) {
            if state.writers[writer].log.is_some() && self.follows(&node, writer) {
                let length = if self.has(Bug::AckBeforeFsync) { node.log.length } else { node.flushed };
                link.acknowledged = link.acknowledged.max(length + 1);
            }
        }
        self.settle(next)
    }

    /// Whether this writer has begun here and no higher term was promised since.
    fn follows(&self, node: &Node, writer: usize) -> bool {
        node.promise.0 == self.terms[writer] && node.log.begun() == self.terms[writer]
    }

    /// How many records are committed by what is acknowledged, whether the writer has heard it yet or not; absent: the log is not
    /// completed.
    fn committed(&self, state: &State, writer: usize) -> Option<u8> {
        let start = state.writers[writer].log.as_ref()?.length;
        let mut reached = state.places.each_ref().map(|place| place.links[writer].acknowledged);
        reached.sort_unstable();
        let by_quorum = reached[NODES - QUORUM].checked_sub(1).filter(|length| *length >= start);
        if self.has(Bug::NoCompletion) { Some(by_quorum.unwrap_or(start)) } else { by_quorum }
    }

    /// Ask and vote. The answer to a later question takes the place of an earlier one's, which is not listened to any more.
    fn vote(&self, state: &State, writer: usize, at: usize, out: &mut Steps) {
        let mut place = state.places[at];
        let node = &mut place.node;
        let term = self.terms[writer];
        let promise = (term, writer as u8 + 1);
        if term > node.promise.0 {
            node.promise = promise;
            if !self.has(Bug::VoteNotPersisted) {
                node.durable_promise = promise;
            }
        }
        if node.promise != promise || node.log.begun() == term {
            return;
        }
        let vote = Vote { log: node.durable(), commit: node.commit };
        let link = &mut place.links[writer];
        match &state.writers[writer].log {
            None => link.vote = Some(vote),
            Some(log) => link.begins |= self.begin_for(log, &vote),
        }
        if place.state() == state.places[at].state() {
            return;
        }
        let mut next = state.clone();
        next.places[at] = place;
        out.push((Step::Vote { writer, node: place.name }, self.settle(next)));
    }

    /// A log is compared with another by this.
    fn rank(&self, log: &Log) -> (u8, u8) {
        let term = match self.bug {
            Some(Bug::LongestChosen) => 0,
            Some(Bug::CommitByCount) => log.length.checked_sub(1).map_or(0, |last| log.last_term(last)),
            _ => log.last_term(log.length),
        };
        (term, log.length)
    }

    /// The first two votes decide.
    fn choose(&self, state: &State, writer: usize, out: &mut Steps) {
        if state.writers[writer].log.is_some() {
            return;
        }
        for left_out in 0..NODES {
            let voters = || (0..NODES).filter(|at| *at != left_out);
            let votes = || voters().filter_map(|at| state.places[at].links[writer].vote.map(|vote| (at, vote)));
            if votes().count() < QUORUM {
                continue;
            }
            let (donor, best) = votes().max_by_key(|(_, vote)| self.rank(&vote.log)).expect("a quorum has voted");
            let committed = votes().map(|(_, vote)| vote.commit).max().expect("a quorum has voted");
            let Some(log) = self.read(&state.places[donor].node, writer, &best.log, committed) else { continue };
            let mut next = state.clone();
            next.writers[writer].log = Some(log);
            for place in &mut next.places {
                let link = &mut place.links[writer];
                if let Some(vote) = link.vote.take() {
                    link.begins |= self.begin_for(&log, &vote);
                }
            }
            out.push((Step::Choose { writer, length: log.length }, self.settle(next)));
        }
    }

    /// Reads the chosen log from its acceptor, unless that has promised another term, and begins the writer's term behind it. What is
    /// committed need not be read.
    fn read(&self, donor: &Node, writer: usize, best: &Log, committed: u8) -> Option<Log> {
        let term = self.terms[writer];
        let mut log = *best;
        if log.length > committed {
            if donor.promise.0 != term {
                return None;
            }
            let found = donor.durable();
            log.cut(committed);
            for record in found.records().iter().take(best.length as usize).skip(committed as usize) {
                log.push(*record);
            }
        }
        let mut history = best.history().up_to(position(log.length));
        if history.last_term() >= Term::new(term.into()) {
            return None;
        }
        history.push(Term::new(term.into()), position(log.length));
        log.set_history(&history);
        Some(log)
    }

    /// A begin for whoever voted so.
    fn begin_for(&self, log: &Log, vote: &Vote) -> u8 {
        let flushed = position(vote.log.length);
        let theirs = vote.log.history().up_to(flushed);
        1 << log.history().common_lsn(position(log.length), &theirs, flushed).get()
    }

    fn begin(&self, state: &State, writer: usize, at: usize, out: &mut Steps) {
        let (place, Some(log)) = (&state.places[at], &state.writers[writer].log) else { return };
        let (old, term, name) = (&place.node, self.terms[writer], place.name);
        if term < old.promise.0 || (old.log.begun() == term && !self.has(Bug::BeginTwice)) {
            return;
        }
        for common in (0..=old.log.length).filter(|common| place.links[writer].begins & 1 << common != 0) {
            if common < old.commit {
                continue;
            }
            let mut cut = *old;
            cut.log.cut(common);
            cut.flushed = cut.flushed.min(common);
            let mut node = if self.has(Bug::NoTruncation) { *old } else { cut };
            node.log.starts = log.starts;
            // Its promise may be lost, where votes are not durable.
            node.promise = node.promise.max((term, 0));
            node.durable_promise = node.promise;
            out.push((Step::Begin { writer, node: name, common }, self.with_node(state, at, node)));
            let half = if self.has(Bug::HistoryBeforeCut) {
                Node { log: Log { starts: log.starts, ..old.log }, ..*old }
            } else {
                cut
            };
            half.crashes(|left| {
                out.push((Step::CrashInBegin { writer, node: name, common }, self.with_node(state, at, left)));
            });
        }
    }

    /// What a writer took over goes to those that lack it first; then what it writes.
    fn append(&self, state: &State, writer: usize, at: usize, committed: Option<u8>, out: &mut Steps) {
        let Some(chosen) = &state.writers[writer].log else { return };
        let Place { name, mut node, .. } = state.places[at];
        let record = node.log.length;
        let sent = if committed.is_some() { self.records } else { chosen.length };
        if record < sent && (self.follows(&node, writer) || self.has(Bug::StaleTermAccepted)) {
            node.log.push(self.log_of(writer, chosen, record + 1).records[record as usize]);
            out.push((Step::Append { writer, node: name, record }, self.with_node(state, at, node)));
        }
    }

    fn commit(&self, state: &State, writer: usize, at: usize, committed: Option<u8>, out: &mut Steps) {
        let Place { name, node, .. } = state.places[at];
        if !self.follows(&node, writer) {
            return;
        }
        for length in node.commit + 1..=committed.unwrap_or(0).min(node.flushed) {
            let heard = Node { commit: length, ..node };
            out.push((Step::Commit { writer, node: name, length }, self.with_node(state, at, heard)));
        }
    }

    fn flush_or_crash(&self, state: &State, at: usize, out: &mut Steps) {
        let Place { name, node, .. } = state.places[at];
        for length in node.flushed + 1..=node.log.length {
            out.push((Step::Flush { node: name, length }, self.with_node(state, at, Node { flushed: length, ..node })));
        }
        node.crashes(|left| {
            if left != node {
                let step = Step::Crash { node: name, length: left.log.length, commit: left.commit };
                out.push((step, self.with_node(state, at, left)));
            }
        });
    }

    /// Writers that have chosen a log, and the log.
    fn elected<'a>(&'a self, state: &'a State) -> impl Iterator<Item = (usize, &'a Log)> {
        let writers = state.writers.iter().enumerate();
        writers.filter_map(|(writer, elected)| elected.log.as_ref().map(|log| (writer, log)))
    }

    fn check_writers(&self, state: &State) -> Result<(), Violation> {
        for (first, first_log) in self.elected(state) {
            for (second, second_log) in self.elected(state).filter(|(second, _)| *second != first) {
                let (term, later) = (self.terms[first], self.terms[second]);
                if term == later {
                    invariant::one_writer_per_term(Term::new(term.into()), first as u128, second as u128)?;
                }
                if let Some(committed) = self.committed(state, first).filter(|_| term < later) {
                    let committed = self.log_of(first, first_log, committed);
                    invariant::elected_log_holds_committed(committed.records(), second_log.records())?;
                }
            }
        }
        Ok(())
    }

    /// What is committed is on the disks of a quorum; what is served is a part of it.
    fn check_commits(&self, state: &State) -> Result<(), Violation> {
        let mut longest = Log::default();
        for (writer, chosen) in self.elected(state) {
            let Some(length) = self.committed(state, writer) else { continue };
            let committed = self.log_of(writer, chosen, length);
            let holds = |place: &&Place| place.node.durable().records().starts_with(committed.records());
            let holders = state.places.iter().filter(holds).count();
            invariant::quorum_holds_committed(holders, QUORUM, position(length))?;
            if length >= longest.length {
                longest = committed;
            }
        }
        for Place { node, .. } in &state.places {
            invariant::commit_is_durable(position(node.commit), position(node.flushed))?;
            invariant::served_is_committed(&node.log.records()[..node.commit as usize], longest.records())?;
        }
        Ok(())
    }

    fn check_logs(&self, state: &State) -> Result<(), Violation> {
        for (number, a) in state.places.iter().enumerate() {
            for b in &state.places[number + 1..] {
                let (a, b) = (a.node.durable(), b.node.durable());
                let differ = a.records().iter().zip(b.records()).position(|(x, y)| x != y);
                if differ.is_none() {
                    continue;
                }
                let (ours, theirs) = (position(a.length), position(b.length));
                let (our_terms, their_terms) = (a.history().up_to(ours), b.history().up_to(theirs));
                let common = our_terms.common_lsn(ours, &their_terms, theirs);
                invariant::logs_match(common, differ.map(|at| position(at as u8)))?;
            }
        }
        Ok(())
    }
}
