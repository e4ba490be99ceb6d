//! States and steps.

use ardent_api::wal_service::TermStart;
use ardent_quorum::invariant::{self, Violation};
use ardent_quorum::{Configuration, DiskId, TermHistory};
use ardent_types::{Lsn, Term};

use crate::explore::Specification;

/// Who the members are, and who they become.
#[derive(Clone, Copy)]
pub struct Change {
    pub name: &'static str,
    pub members: &'static [usize],
    pub next: &'static [usize],
    pub cancel: bool,
}

/// A way to break the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Acceptors answer writers of older generations.
    OldGenerationAccepted,
    /// During the change a majority of the next members decides.
    NextMajorityOnly,
    /// During the change a majority of the members decides.
    OldMajorityOnly,
    /// Next members count whatever they hold.
    CountedTooEarly,
    /// Next members count before the writer that they promised a term has begun.
    CountedBeforeBegin,
    /// What was written before an acceptor took a generation is acknowledged after.
    AckAfterChange,
    /// What a node acknowledged counts in later generations, without being asked again.
    AckKeptOverChange,
    /// What was to be committed when it is durable still is, after an acceptor took another generation.
    CommitAfterChange,
}

impl Bug {
    pub const ALL: [Bug; 8] = [
        Bug::OldGenerationAccepted,
        Bug::NextMajorityOnly,
        Bug::OldMajorityOnly,
        Bug::CountedTooEarly,
        Bug::CountedBeforeBegin,
        Bug::AckAfterChange,
        Bug::AckKeptOverChange,
        Bug::CommitAfterChange,
    ];
}

/// The bounds.
pub struct Spec {
    pub change: Change,
    pub terms: u8,
    pub writes: u8,
    pub bug: Option<Bug>,
}

const NODES: usize = 3;
const WRITERS: usize = 2;
/// The last generation: 1 is before the change, 2 during, 3 after.
const LAST: u8 = 3;

/// A log: one byte for each record, and which term began where.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
struct Log {
    bytes: Vec<u8>,
    terms: Vec<(u8, u8)>,
}

impl Log {
    fn len(&self) -> u8 {
        self.bytes.len() as u8
    }

    fn history(&self) -> TermHistory {
        let entry = |(term, at): &(u8, u8)| TermStart { term: Term::new((*term).into()), lsn: Lsn::new((*at).into()) };
        TermHistory::from_entries(self.terms.iter().map(entry).collect()).expect("terms ascend")
    }

    fn set_history(&mut self, history: &TermHistory) {
        self.terms = history.entries().iter().map(|at| (at.term.get() as u8, at.lsn.get() as u8)).collect();
    }

    fn begun(&self) -> u8 {
        self.terms.last().map_or(0, |(term, _)| *term)
    }

    /// The last term at or below the end, then the end.
    fn position(&self) -> (u8, u8) {
        let term = self.terms.iter().rev().find(|(_, at)| *at <= self.len()).map_or(0, |(term, _)| *term);
        (term, self.len())
    }
}

/// An acceptor. `voted`: 0 for none, else one more than the writer.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
struct Node {
    exists: bool,
    generation: u8,
    term: u8,
    voted: u8,
    /// What is written.
    log: Log,
    /// How much of it is durable.
    flushed: u8,
    /// Whether the writer of the log's last term is told when more is.
    owes: bool,
    /// What is committed as soon as it is durable.
    pending: u8,
}

impl Node {
    /// The log that would be left by a crash.
    fn durable(&self) -> Log {
        let mut log = self.log.clone();
        log.bytes.truncate(self.flushed as usize);
        log
    }

    fn promise(&mut self, term: u8, voted: u8) {
        (self.term, self.voted, self.pending) = (term, voted, 0);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
enum Phase {
    #[default]
    Idle,
    Electing,
    Leading,
    Announced,
}

#[derive(Clone, PartialEq, Eq, Hash, Default)]
struct Writer {
    phase: Phase,
    generation: u8,
    /// The generation in which it was elected.
    since: u8,
    term: u8,
    votes: [Option<Log>; NODES],
    log: Log,
    start: u8,
    /// How much of its log it had when it left a generation.
    left_at: [u8; LAST as usize + 1],
    acked: [u8; NODES],
    began: [bool; NODES],
}

/// What the changer was told: the members that have taken the joint configuration, the highest promise and position among them, and the
/// next members that have reached these.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct CatchUp {
    taken: [bool; NODES],
    promise: (u8, u8),
    position: (u8, u8),
    reached: [bool; NODES],
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct State {
    nodes: [Node; NODES],
    writers: [Writer; WRITERS],
    stored: u8,
    catch_up: CatchUp,
    committed: Vec<u8>,
    /// Who was announced in a term: one more than the writer.
    elected: [u8; 5],
    /// What an invariant was broken by, if a step saw it.
    seen: Option<Seen>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Seen {
    TwoWriters { term: u8, first: u8, second: u8 },
    Lost { log: Vec<u8> },
    NotHeld,
}

type Steps = Vec<(String, State)>;

impl Specification for Spec {
    type State = State;
    type Step = String;

    fn first(&self) -> State {
        let mut nodes: [Node; NODES] = Default::default();
        for node in self.change.members {
            nodes[*node] = Node { exists: true, generation: 1, ..Node::default() };
        }
        let mut writers: [Writer; WRITERS] = Default::default();
        for writer in &mut writers {
            writer.generation = 1;
        }
        State {
            nodes,
            writers,
            stored: 1,
            catch_up: CatchUp::default(),
            committed: Vec::new(),
            elected: [0; 5],
            seen: None,
        }
    }

    fn steps(&self, state: &State) -> Steps {
        let mut out = Steps::new();
        if state.seen.is_some() {
            return out;
        }
        for writer in 0..WRITERS {
            self.elect(state, writer, &mut out);
            self.choose(state, writer, &mut out);
            self.announce_or_commit(state, writer, &mut out);
            self.write(state, writer, &mut out);
            for node in 0..NODES {
                self.vote(state, writer, node, &mut out);
                self.begin(state, writer, node, &mut out);
                self.append(state, writer, node, &mut out);
            }
        }
        for node in 0..NODES {
            self.flush(state, node, &mut out);
        }
        self.change_members(state, &mut out);
        out
    }

    /// The core's invariants.
    fn check(&self, state: &State) -> Result<(), Violation> {
        match &state.seen {
            Some(Seen::TwoWriters { term, first, second }) => {
                invariant::one_writer_per_term(Term::new((*term).into()), (*first).into(), (*second).into())?;
            }
            Some(Seen::Lost { log }) => invariant::elected_log_holds_committed(&state.committed, log)?,
            Some(Seen::NotHeld) => {
                let settled = self.configuration(3);
                invariant::next_members_hold_committed(&settled, |disk| {
                    state.nodes[disk.get() as usize].durable().bytes.starts_with(&state.committed)
                })?;
            }
            None => {}
        }
        self.check_logs(state)
    }
}

impl Spec {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn configuration(&self, generation: u8) -> Configuration {
        let disks = |nodes: &[usize]| nodes.iter().map(|node| DiskId::new(*node as u128)).collect::<Vec<_>>();
        let first = Configuration::first(disks(self.change.members));
        let joint = first.begin_change(disks(self.change.next)).expect("the first is settled");
        let last =
            if self.change.cancel { joint.cancelled() } else { joint.settled() }.expect("a change is on its way");
        match generation {
            1 => first,
            2 if self.has(Bug::NextMajorityOnly) => joint.settled().expect("a change is on its way"),
            2 if self.has(Bug::OldMajorityOnly) => first,
            2 => joint,
            _ => last,
        }
    }

    fn is_quorum(&self, generation: u8, has: impl Fn(usize) -> bool) -> bool {
        self.configuration(generation).is_quorum(|disk| has(disk.get() as usize))
    }

    /// A writer sends to those only that take part in the generation that it goes by.
    fn takes_part(&self, generation: u8, node: usize) -> bool {
        let (is_member, is_next) = (self.change.members.contains(&node), self.change.next.contains(&node));
        match generation {
            1 => is_member,
            2 => is_member || is_next,
            _ => {
                if self.change.cancel {
                    is_member
                } else {
                    is_next
                }
            }
        }
    }

    fn take_generation(&self, node: &mut Node, generation: u8) {
        if generation > node.generation {
            node.generation = generation;
            node.owes &= self.has(Bug::AckAfterChange);
            node.pending *= u8::from(self.has(Bug::CommitAfterChange));
        }
    }

    fn takes(&self, node: &Node, generation: u8) -> bool {
        node.exists && (node.generation == generation || self.has(Bug::OldGenerationAccepted))
    }

    /// A writer comes, once, with any term and in any generation that was ever stored. One that starts over is another writer: what it sent
    /// before may still arrive.
    fn elect(&self, state: &State, writer: usize, out: &mut Steps) {
        if state.writers[writer].phase != Phase::Idle {
            return;
        }
        // They differ by nothing before they come: the first one left is as good as any.
        if writer > 0 && state.writers[writer - 1].phase == Phase::Idle {
            return;
        }
        for term in 1..=self.terms {
            for generation in 1..=state.stored {
                let mut next = state.clone();
                next.writers[writer] =
                    Writer { phase: Phase::Electing, generation, since: generation, term, ..Writer::default() };
                out.push((format!("writer {writer} asks for term {term} in generation {generation}"), next));
            }
        }
    }

    fn vote(&self, state: &State, writer: usize, node: usize, out: &mut Steps) {
        let (asking, voter) = (&state.writers[writer], &state.nodes[node]);
        if asking.phase == Phase::Idle || !voter.exists || !self.takes_part(asking.generation, node) {
            return;
        }
        let what = format!("writer {writer} asks node {node} for its vote");
        if voter.generation > asking.generation && !self.has(Bug::OldGenerationAccepted) {
            // One that is not announced starts over: that is another writer.
            if asking.phase == Phase::Announced {
                let mut next = state.clone();
                let asking = &mut next.writers[writer];
                asking.left_at[asking.generation as usize] = asking.log.len();
                asking.generation = voter.generation;
                if !self.has(Bug::AckKeptOverChange) {
                    (asking.acked, asking.began) = ([0; NODES], [false; NODES]);
                }
                out.push((format!("{what} and hears of generation {}", voter.generation), next));
            }
            return;
        }
        let mut unheard = state.clone();
        let voter = &mut unheard.nodes[node];
        self.take_generation(voter, asking.generation);
        let newer = asking.term > voter.term;
        if newer {
            voter.promise(asking.term, writer as u8 + 1);
        }
        let granted = newer || (asking.term == voter.term && voter.voted == writer as u8 + 1);
        let mut heard = unheard.clone();
        out.push((format!("{what}, unheard"), unheard));
        // A second begin changes nothing.
        if granted && !asking.began[node] {
            heard.writers[writer].votes[node] = Some(state.nodes[node].durable());
            out.push((what, heard));
        }
    }

    /// A writer of this leadership sends under every generation that it has gone by since its election.
    fn sends_under(writer: &Writer) -> std::ops::RangeInclusive<u8> {
        writer.since..=writer.generation
    }

    fn choose(&self, state: &State, index: usize, out: &mut Steps) {
        let writer = &state.writers[index];
        if writer.phase != Phase::Electing || !self.is_quorum(writer.generation, |node| writer.votes[node].is_some()) {
            return;
        }
        let best = writer.votes.iter().flatten().max_by_key(|log| log.position()).expect("a quorum has voted");
        if best.position().0 >= writer.term {
            return;
        }
        let mut next = state.clone();
        let writer = &mut next.writers[index];
        let mut history = best.history().up_to(Lsn::new(best.len().into()));
        history.push(Term::new(writer.term.into()), Lsn::new(best.len().into()));
        writer.log.bytes = best.bytes.clone();
        writer.log.set_history(&history);
        writer.start = best.len();
        writer.phase = Phase::Leading;
        out.push((format!("writer {index} chooses a log"), next));
    }

    fn begin(&self, state: &State, index: usize, node: usize, out: &mut Steps) {
        let (writer, old) = (&state.writers[index], &state.nodes[node]);
        let Some(vote) = writer.votes[node].as_ref().filter(|_| writer.phase >= Phase::Leading) else { return };
        let taken = Self::sends_under(writer)
            .any(|generation| self.takes_part(generation, node) && self.takes(old, generation));
        if !taken || writer.term < old.term {
            return;
        }
        if old.log.begun() == writer.term {
            // Nothing is cut a second time.
            let mut next = state.clone();
            self.hear_begin(&mut next, index, node);
            out.push((format!("writer {index} begins again at node {node}"), next));
            return;
        }
        let (end, flush) = (Lsn::new(writer.log.len().into()), Lsn::new(vote.len().into()));
        let theirs = vote.history().up_to(flush);
        let common = writer.log.history().common_lsn(end, &theirs, flush).get() as usize;
        if common > old.log.bytes.len() {
            return;
        }
        let mut next = state.clone();
        let at = &mut next.nodes[node];
        at.log.bytes.truncate(common);
        at.log.terms = writer.log.terms.clone();
        at.flushed = at.flushed.min(common as u8);
        (at.owes, at.pending) = (false, 0);
        if writer.term > at.term {
            at.promise(writer.term, 0);
        }
        self.hear_begin(&mut next, index, node);
        out.push((format!("writer {index} begins at node {node}"), next));
    }

    fn hear_begin(&self, state: &mut State, index: usize, node: usize) {
        let writer = &mut state.writers[index];
        writer.acked[node] = state.nodes[node].flushed;
        writer.began[node] = true;
        writer.votes[node] = None;
    }

    fn append(&self, state: &State, index: usize, node: usize, out: &mut Steps) {
        let (writer, old) = (&state.writers[index], &state.nodes[node]);
        if writer.phase < Phase::Leading || old.term != writer.term || old.log.begun() != writer.term {
            return;
        }
        let have = old.log.len();
        let sent = Self::sends_under(writer).filter(|generation| {
            let end =
                if *generation == writer.generation { writer.log.len() } else { writer.left_at[*generation as usize] };
            self.takes_part(*generation, node) && self.takes(old, *generation) && have < end
        });
        for generation in sent {
            let mut next = state.clone();
            let byte = writer.log.bytes[have as usize];
            let at = &mut next.nodes[node];
            at.log.bytes.push(byte);
            at.owes = true;
            // Alone, an acceptor takes for committed what it has durably.
            if writer.phase == Phase::Announced && self.configuration(generation).is_single() {
                at.pending = have + 1;
            }
            out.push((format!("node {node} takes record {have} of writer {index} in generation {generation}"), next));
        }
    }

    /// What is written becomes durable, and its writer hears of it; or the node crashes and loses it.
    fn flush(&self, state: &State, node: usize, out: &mut Steps) {
        let old = &state.nodes[node];
        if old.flushed == old.log.len() {
            return;
        }
        let mut next = state.clone();
        let at = &mut next.nodes[node];
        (at.owes, at.pending, at.flushed) = (false, 0, at.log.len());
        let mut crashed = next.clone();
        crashed.nodes[node].log = old.durable();
        crashed.nodes[node].flushed = old.flushed;
        out.push((format!("node {node} crashes and loses what was not durable"), crashed));
        if old.owes {
            let writer = next.writers.iter_mut().find(|writer| {
                writer.phase >= Phase::Leading && writer.term == old.term && writer.log.terms == old.log.terms
            });
            // Until it has begun again here, it takes no answer for one to what it sent.
            if let Some(writer) = writer.filter(|writer| writer.began[node]) {
                writer.acked[node] = writer.acked[node].max(old.log.len());
            }
        }
        if old.pending > 0 {
            let log = old.log.bytes[..old.pending as usize].to_vec();
            self.note_committed(&mut next, log);
        }
        out.push((format!("node {node} has all that it wrote durably"), next));
    }

    fn reached(&self, writer: &Writer) -> u8 {
        let acked = |disk: DiskId| Lsn::new(writer.acked[disk.get() as usize].into());
        self.configuration(writer.generation).quorum_lsn(acked).get() as u8
    }

    /// With an empty log every position is reached: who has begun is what counts.
    fn announce_or_commit(&self, state: &State, index: usize, out: &mut Steps) {
        let writer = &state.writers[index];
        let reached = self.reached(writer);
        let begun = || self.is_quorum(writer.generation, |node| writer.began[node]);
        if writer.phase == Phase::Leading && reached >= writer.start && begun() {
            let mut next = state.clone();
            next.writers[index].phase = Phase::Announced;
            let (first, second) = (next.elected[writer.term as usize], index as u8 + 1);
            if first != 0 && first != second {
                next.seen = Some(Seen::TwoWriters { term: writer.term, first, second });
            }
            next.elected[writer.term as usize] = second;
            let log = writer.log.bytes[..writer.start as usize].to_vec();
            if !log.starts_with(&state.committed) && self.is_newest(state, writer.term) {
                next.seen = Some(Seen::Lost { log: log.clone() });
            }
            self.note_committed(&mut next, log);
            out.push((format!("writer {index} is announced"), next));
        } else if writer.phase == Phase::Announced && reached as usize > state.committed.len() {
            let mut next = state.clone();
            self.note_committed(&mut next, writer.log.bytes[..reached as usize].to_vec());
            out.push((format!("writer {index} commits {reached} records"), next));
        }
    }

    /// Whether nobody was announced in a later term: such a one may have had more committed.
    fn is_newest(&self, state: &State, term: u8) -> bool {
        state.elected[term as usize + 1..].iter().all(|elected| *elected == 0)
    }

    fn note_committed(&self, state: &mut State, log: Vec<u8>) {
        let both = log.len().min(state.committed.len());
        if log[..both] != state.committed[..both] {
            state.seen = Some(Seen::Lost { log });
        } else if log.len() > state.committed.len() {
            state.committed = log;
        }
    }

    fn write(&self, state: &State, index: usize, out: &mut Steps) {
        let writer = &state.writers[index];
        if writer.phase == Phase::Announced && writer.log.len() < self.writes {
            let mut next = state.clone();
            next.writers[index].log.bytes.push(writer.term * 16 + index as u8);
            out.push((format!("writer {index} writes"), next));
        }
    }

    fn change_members(&self, state: &State, out: &mut Steps) {
        let joins = |node: &&usize| !self.change.members.contains(node);
        if state.stored == 1 {
            for to in self.change.next.iter().filter(joins).filter(|node| !state.nodes[**node].exists) {
                self.copy(state, *to, out);
            }
            if self.change.next.iter().all(|node| state.nodes[*node].exists) {
                let mut next = state.clone();
                next.stored = 2;
                out.push(("generation 2 is stored".to_owned(), next));
            }
        }
        if state.stored == 2 {
            self.catch_up(state, out);
        }
        if state.stored == 3 {
            for node in 0..NODES {
                if state.nodes[node].exists && state.nodes[node].generation < 3 {
                    let mut next = state.clone();
                    self.take_generation(&mut next.nodes[node], 3);
                    out.push((format!("node {node} takes generation 3"), next));
                }
            }
        }
    }

    /// What is committed, from any member.
    fn copy(&self, state: &State, to: usize, out: &mut Steps) {
        for from in self.change.members {
            let donor = &state.nodes[*from];
            let durable = donor.durable();
            let committed = durable.bytes.iter().zip(&state.committed).take_while(|(a, b)| a == b).count();
            let mut next = state.clone();
            let mut node = Node { owes: false, pending: 0, flushed: committed as u8, ..donor.clone() };
            node.log.bytes.truncate(committed);
            let history = donor.log.history().up_to(Lsn::new(committed as u64));
            node.log.set_history(&history);
            next.nodes[to] = node;
            out.push((format!("node {to} gets the log of node {from}"), next));
        }
    }

    fn catch_up(&self, state: &State, out: &mut Steps) {
        let members = self.change.members;
        let taken = members.iter().filter(|node| state.catch_up.taken[**node]).count();
        for node in (0..NODES).filter(|node| state.nodes[*node].exists && state.nodes[*node].generation <= 2) {
            let mut next = state.clone();
            let (at, catch_up) = (&mut next.nodes[node], &mut next.catch_up);
            self.take_generation(at, 2);
            if taken <= members.len() / 2 {
                if members.contains(&node) {
                    catch_up.taken[node] = true;
                    catch_up.promise = catch_up.promise.max((at.term, at.voted));
                    catch_up.position = catch_up.position.max(at.durable().position());
                }
            } else {
                if catch_up.promise.0 > at.term {
                    at.promise(catch_up.promise.0, catch_up.promise.1);
                }
                let holds = at.durable().position() >= catch_up.position || self.has(Bug::CountedTooEarly);
                let stays = at.log.begun() == at.term || self.has(Bug::CountedBeforeBegin);
                catch_up.reached[node] |= self.change.next.contains(&node) && holds && stays;
            }
            out.push((format!("node {node} is asked to take generation 2"), next));
        }
        if state.catch_up != CatchUp::default() {
            let mut next = state.clone();
            next.catch_up = CatchUp::default();
            out.push(("who changes the members dies and another goes on".to_owned(), next));
        }
        self.end(state, out);
    }

    fn end(&self, state: &State, out: &mut Steps) {
        let reached = |node: &&usize| state.catch_up.reached[**node];
        let next_reached = self.change.next.iter().filter(reached).count();
        let all_joined =
            self.change.next.iter().filter(|node| !self.change.members.contains(node)).all(|node| reached(&node));
        if self.change.cancel || next_reached > self.change.next.len() / 2 && all_joined {
            let mut next = state.clone();
            next.stored = LAST;
            next.catch_up = CatchUp::default();
            let holds = |node: usize| state.nodes[node].durable().bytes.starts_with(&state.committed);
            if !self.is_quorum(LAST, holds) {
                next.seen = Some(Seen::NotHeld);
            }
            out.push(("generation 3 is stored".to_owned(), next));
        }
    }

    fn check_logs(&self, state: &State) -> Result<(), Violation> {
        for (number, a) in state.nodes.iter().enumerate().filter(|(_, node)| node.exists) {
            for b in state.nodes[number + 1..].iter().filter(|node| node.exists) {
                let (a, b) = (a.durable(), b.durable());
                let (ours, theirs) = (Lsn::new(a.len().into()), Lsn::new(b.len().into()));
                let (our_terms, their_terms) = (a.history().up_to(ours), b.history().up_to(theirs));
                let common = our_terms.common_lsn(ours, &their_terms, theirs);
                let differ = a.bytes.iter().zip(&b.bytes).position(|(x, y)| x != y);
                invariant::logs_match(common, differ.map(|at| Lsn::new(at as u64)))?;
            }
        }
        Ok(())
    }
}
