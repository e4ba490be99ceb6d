//! A cluster on a simulated network: one queue of events, one source of chance, one time, which each writer's clock shows in its own way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;

use ardent_api::wal_service::{Append, AppendReply, Begin, BeginReply, ProposerId, RecordEnd, Vote, VoteReply};
use ardent_types::{Lsn, Term};

use super::change::Changes;
use super::clock::{Clocks, Jumps};
use super::dice::Dice;
use super::node::{Node, Outcome, vote_reply};
use super::record;
use crate::bug::{Bug, Bugs};
use crate::invariant::{self, Violation};
use crate::{
    Configuration, DiskId, MemberGeneration, OutOfOrder, Proposer, ProposerEffect, ProposerInput, ProposerLimits,
    Reply, Voter,
};

pub(super) const FAULTS_END_US: u64 = 6_000_000;
const CALM_END_US: u64 = FAULTS_END_US + 20_000_000;
const TICK_US: u64 = 20_000;
const RESEND_US: u64 = 150_000;
const LOG_LEN_MAX: usize = 6_000;
const PROPOSERS_ALIVE_MAX: usize = 3;

/// What a run is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    /// Nodes more that are no members at first. With any, members change.
    pub(crate) spares: usize,
    pub(crate) clocks: Clocks,
    pub(crate) bug: Option<Bug>,
}

#[derive(Clone, Debug)]
pub(super) enum ToNode {
    Vote(Vote, Configuration),
    Begin(Begin, MemberGeneration),
    Append(Append, MemberGeneration),
}

#[derive(Clone, Debug)]
pub(super) enum ToProposer {
    Vote(VoteReply, Voter),
    Begin(BeginReply),
    Append(AppendReply),
}

/// `peer` is what the proposer calls the node.
#[derive(Clone, Debug)]
pub(super) enum Event {
    ToNode { from: usize, peer: usize, message: ToNode },
    ToProposer { to: usize, peer: usize, message: ToProposer },
    Scan { proposer: usize, donor: usize, term: Term, from: RecordEnd, to: Lsn },
    Scanned { proposer: usize, term: Term, cut: Option<RecordEnd> },
    Fetch { proposer: usize, peer: usize, donor: usize, term: Term, from: Lsn, to: Lsn },
    Fetched { proposer: usize, peer: usize, term: Term, start: Lsn, bytes: Bytes },
    Flush(usize),
    Tick(usize),
    Write(usize),
    Reconnect { proposer: usize, peer: usize },
    Restart(usize),
    Chaos,
    ClockJump,
    Change(super::change::ChangeEvent),
}

pub(super) struct Writer {
    core: Proposer,
    id: u128,
    pub(super) alive: bool,
    /// How much more than the time its clock shows.
    pub(super) clock_ahead_us: u64,
    /// Where its peers are.
    nodes: Vec<usize>,
    /// The log as this writer knows it, once elected.
    log: Option<Vec<u8>>,
    /// WAL made and not yet given to the core: chunks end in the middle of records.
    unsent: Vec<u8>,
    /// End of the last whole record given to the core.
    given: RecordEnd,
    flushed: Lsn,
}

/// The cluster, and what an all-knowing observer has seen.
pub(crate) struct World {
    pub(super) dice: Dice,
    pub(super) now_us: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<(u64, u64), Event>,
    pub(super) nodes: Vec<Node>,
    pub(super) writers: Vec<Writer>,
    pub(super) bugs: Bugs,
    /// Who the members are, and who changes them.
    pub(super) changes: Changes,
    pub(super) clocks: Clocks,
    pub(crate) jumps: Jumps,
    /// Pairs that cannot talk: a proposer or a changer, and a node.
    pub(super) cut: Vec<(usize, usize)>,
    /// The disk at the other end of each proposer's connection to a peer: the one that was there when it connected.
    connections: BTreeMap<(usize, usize), DiskId>,
    elected: BTreeMap<Term, u128>,
    /// Everything that was ever reported as committed.
    pub(super) committed: Vec<u8>,
    /// How much of it each term's writer reported.
    committed_by_term: BTreeMap<Term, usize>,
    committed_in_calm: bool,
    pub(crate) elections: usize,
    pub(crate) trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        let bugs = Bugs::with(setup.bug);
        // Clusters of steady clocks have the histories that they had before others were.
        let cluster =
            (setup.nodes + 7 * setup.spares) as u64 + if setup.clocks == Clocks::Jumping { 1 << 40 } else { 0 };
        let dice = Dice::new(setup.seed.wrapping_mul(31).wrapping_add(cluster));
        let disks: Vec<DiskId> = (0..(setup.nodes + setup.spares) as u128).map(DiskId::new).collect();
        // Where they never change, acceptors are told of no members.
        let (members, told) = if setup.spares > 0 {
            let first = Configuration::first(disks[..setup.nodes].iter().copied());
            (first.clone(), first)
        } else {
            (Configuration::unnumbered(setup.nodes), Configuration::default())
        };
        let mut nodes: Vec<Node> = disks.iter().map(|disk| Node::new(*disk, bugs)).collect();
        for node in &mut nodes[..setup.nodes] {
            node.make_empty_timeline(told.clone()).expect("an empty log is fine");
        }
        World {
            dice,
            now_us: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            changes: Changes::new(members, &disks, setup.spares > 0),
            clocks: setup.clocks,
            jumps: Jumps::default(),
            nodes,
            writers: Vec::new(),
            bugs,
            cut: Vec::new(),
            connections: BTreeMap::new(),
            elected: BTreeMap::new(),
            committed: Vec::new(),
            committed_by_term: BTreeMap::new(),
            committed_in_calm: false,
            elections: 0,
            trace: None,
        }
    }

    pub(crate) fn committed_bytes(&self) -> usize {
        self.committed.len()
    }

    pub(super) fn faults(&self) -> bool {
        self.now_us < FAULTS_END_US
    }

    pub(super) fn schedule(&mut self, after_us: u64, event: Event) {
        let key = (self.now_us + after_us, self.sequence);
        self.sequence += 1;
        self.queue.push(Reverse(key));
        self.events.insert(key, event);
    }

    /// Mostly quick, sometimes very late.
    fn delay(&mut self) -> u64 {
        if self.faults() && self.dice.chance(20) {
            self.dice.between(50_000, 800_000)
        } else {
            self.dice.between(200, 4_000)
        }
    }

    /// Puts a message on the network, which may lose it, delay it, or deliver it twice.
    pub(super) fn post(&mut self, proposer: usize, node: usize, event: Event) {
        if self.may_lose(&event) {
            if self.cut.contains(&(proposer, node)) || self.dice.chance(25) {
                return;
            }
            if self.dice.chance(20) {
                let after = self.delay();
                self.schedule(after, event.clone());
            }
        }
        let after = self.delay();
        self.schedule(after, event);
    }

    /// Runs a faulty and then a calm time. The calm time has one new proposer, which must get its WAL committed.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        self.schedule(0, Event::Chaos);
        self.spawn_writer();
        self.start_changes();
        self.start_clocks();
        self.run_until(FAULTS_END_US)?;
        self.calm_down()?;
        self.run_until(CALM_END_US)?;
        invariant::progress_is_made(self.committed_in_calm, CALM_END_US - FAULTS_END_US)?;
        invariant::change_ends(self.changes.store.next().is_none(), CALM_END_US - FAULTS_END_US)?;
        self.check_logs()
    }

    fn run_until(&mut self, end_us: u64) -> Result<(), Violation> {
        while let Some(Reverse(key)) = self.queue.peek().copied() {
            if key.0 > end_us || self.committed_in_calm && self.changes.store.next().is_none() {
                break;
            }
            self.queue.pop();
            let event = self.events.remove(&key).expect("queued");
            self.now_us = key.0;
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{key:?} {event:?}"));
            }
            self.handle(event)?;
        }
        self.now_us = end_us;
        Ok(())
    }

    fn calm_down(&mut self) -> Result<(), Violation> {
        self.cut.clear();
        for writer in &mut self.writers {
            writer.alive = false;
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_down() {
                self.nodes[node].recover(None)?;
            }
        }
        self.spawn_writer();
        self.calm_changes();
        Ok(())
    }

    fn spawn_writer(&mut self) {
        let index = self.writers.len();
        let id = (u128::from(self.dice.next()) << 64) | (index as u128 + 1);
        let limits = ProposerLimits {
            resend_after_us: RESEND_US,
            in_flight_bytes_max: 400,
            laggard_bytes_max: 200,
            elections_max: 30,
        };
        let configuration = self.configuration_for_a_writer();
        let nodes: Vec<usize> = configuration.everyone().iter().map(|disk| self.changes.addresses[disk]).collect();
        let mut core = Proposer::new(ProposerId::new(id), configuration, limits);
        core.set_bugs(self.bugs);
        let clock_ahead_us = self.clock_of_a_writer();
        let (log, unsent, given, flushed) = (None, Vec::new(), record::start(), Lsn::INVALID);
        for peer in 0..nodes.len() {
            self.schedule(1, Event::Reconnect { proposer: index, peer });
        }
        self.writers.push(Writer { core, id, alive: true, clock_ahead_us, nodes, log, unsent, given, flushed });
        self.schedule(TICK_US, Event::Tick(index));
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::ToNode { from, peer, message } => self.at_node(from, peer, message),
            Event::ToProposer { to, peer, message } => {
                let input = match message {
                    ToProposer::Vote(reply, voter) => ProposerInput::Vote(peer, reply, voter),
                    ToProposer::Begin(reply) => ProposerInput::Begin(peer, reply),
                    ToProposer::Append(reply) => ProposerInput::Append(peer, reply),
                };
                self.step(to, input)
            }
            Event::Scan { proposer, donor, term, from, to } => {
                let donor = self.node_of(proposer, donor);
                let cut = self.readable(donor, term).map(|log| {
                    let end = log.len().min(record::offset(to));
                    if end < record::offset(from.end) { from } else { record::last_in(&log[..end], from) }
                });
                self.post(proposer, donor, Event::Scanned { proposer, term, cut });
                Ok(())
            }
            Event::Scanned { proposer, term, cut } => self.step(proposer, ProposerInput::Scanned { term, cut }),
            Event::Fetch { proposer, peer, donor, term, from, to } => {
                let donor = self.node_of(proposer, donor);
                let bytes = self.readable(donor, term).and_then(|log| {
                    let end = record::offset(to).min(log.len());
                    log.get(record::offset(from)..end).map(Bytes::copy_from_slice)
                });
                let bytes = bytes.unwrap_or_default();
                self.post(proposer, donor, Event::Fetched { proposer, peer, term, start: from, bytes });
                Ok(())
            }
            Event::Fetched { proposer, peer, term, start, bytes } => {
                self.step(proposer, ProposerInput::Fetched { peer, term, start, bytes })
            }
            Event::Flush(node) => self.flush(node),
            Event::Tick(index) => {
                if self.writers[index].alive {
                    self.schedule(TICK_US, Event::Tick(index));
                }
                self.step(index, ProposerInput::Tick)
            }
            Event::Write(index) => self.write(index),
            Event::Reconnect { proposer, peer } => {
                self.connections.insert((proposer, peer), self.nodes[self.node_of(proposer, peer)].disk_id());
                self.step(proposer, ProposerInput::Connected(peer))
            }
            Event::Restart(node) => {
                if self.nodes[node].is_down() {
                    self.nodes[node].recover(None)?;
                }
                Ok(())
            }
            Event::Chaos => self.chaos(),
            Event::ClockJump => {
                self.clock_jump();
                Ok(())
            }
            Event::Change(event) => self.change(event),
        }
    }

    /// A donor's durable log, if a writer of `term` may read it.
    fn readable(&self, donor: usize, term: Term) -> Option<&[u8]> {
        let node = &self.nodes[donor];
        node.acceptor().filter(|acceptor| acceptor.may_read(term))?;
        node.flushed_log()
    }

    fn node_of(&self, writer: usize, peer: usize) -> usize {
        self.writers[writer].nodes[peer]
    }

    fn at_node(&mut self, from: usize, peer: usize, message: ToNode) -> Result<(), Violation> {
        let index = self.node_of(from, peer);
        let node = &mut self.nodes[index];
        let disk = node.disk_id();
        let Some(acceptor) = node.acceptor_mut() else { return Ok(()) };
        // A connection ends with the process that has the disk: nothing of it reaches another disk at that address.
        if self.connections.get(&(from, peer)) != Some(&disk) {
            self.post(from, index, Event::Reconnect { proposer: from, peer });
            return Ok(());
        }
        let mut effects = Vec::new();
        let is_append = matches!(&message, ToNode::Append(append, _) if !append.data.is_empty());
        // Out of order: the network of the simulation reorders; the real shell closes the connection.
        let taken = match message {
            ToNode::Vote(vote, configuration) => acceptor.vote(&vote, &configuration, &mut effects),
            ToNode::Begin(begin, generation) => acceptor.begin(&begin, generation, &mut effects),
            ToNode::Append(append, generation) => acceptor.append(append, generation, &mut effects),
        };
        let other_members = matches!(taken, Err(OutOfOrder::OtherMembers { .. }));
        if is_append && effects.iter().any(|effect| matches!(effect, crate::AcceptorEffect::Write { .. })) {
            node.writer = Some((from, peer));
        }
        if other_members {
            self.post(from, index, Event::Reconnect { proposer: from, peer });
        }
        self.carry_out(index, Some((from, peer)), effects).map(|_| ())
    }

    /// False: it crashed on the way.
    pub(super) fn carry_out(
        &mut self,
        index: usize,
        to: Option<(usize, usize)>,
        effects: Vec<crate::AcceptorEffect>,
    ) -> Result<bool, Violation> {
        let faults = self.faults();
        let (mut replies, mut commits) = (Vec::new(), Vec::new());
        let was_due = self.nodes[index].flush_is_due;
        // It may have crashed when its readers are looked at.
        let (term, is_single) = self.nodes[index].acceptor().map_or((Term::new(0), false), |acceptor| {
            let configuration = &acceptor.state().configuration;
            (acceptor.state().history.last_term(), configuration.is_single() || self.nodes.len() == 1)
        });
        let disk = self.nodes[index].disk_id();
        let outcome = self.nodes[index].carry_out(effects, &mut self.dice, faults, &mut replies, &mut commits)?;
        for commit in commits {
            self.check_served(index, (term, is_single), commit)?;
        }
        for reply in replies {
            let message = match reply {
                Reply::Vote(answer) => {
                    let voter = Voter { disk, configuration: answer.configuration.clone() };
                    ToProposer::Vote(vote_reply(answer), voter)
                }
                Reply::Begin(reply) => ToProposer::Begin(reply),
                Reply::Append(reply) => ToProposer::Append(reply),
            };
            if let Some((to, peer)) = to {
                self.post(to, index, Event::ToProposer { to, peer, message });
            }
        }
        if matches!(outcome, Outcome::Crashed) {
            self.after_crash(index);
            return Ok(false);
        }
        if self.nodes[index].flush_is_due && !was_due {
            let slow = faults && self.dice.chance(50);
            let after = if slow { self.dice.between(10_000, 300_000) } else { self.dice.between(100, 2_000) };
            self.schedule(after, Event::Flush(index));
        }
        Ok(true)
    }

    fn flush(&mut self, index: usize) -> Result<(), Violation> {
        if !self.nodes[index].flush_is_due {
            return Ok(());
        }
        let effects = self.nodes[index].flush();
        let writer = self.nodes[index].writer;
        self.carry_out(index, writer, effects)?;
        self.check_logs()
    }

    pub(super) fn after_crash(&mut self, node: usize) {
        let after = self.dice.between(1_000, 500_000);
        self.schedule(after, Event::Restart(node));
    }

    fn step(&mut self, index: usize, input: ProposerInput) -> Result<(), Violation> {
        if !self.writers[index].alive {
            return Ok(());
        }
        let mut effects = Vec::new();
        let writer = &mut self.writers[index];
        writer.core.step(self.now_us + writer.clock_ahead_us, input, &mut effects);
        for effect in effects {
            // Carrying out one may end the writer; then the rest never happens.
            if self.writers[index].alive {
                self.effect(index, effect)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, from: usize, peer: usize, message: ToNode) {
        let node = self.node_of(from, peer);
        self.post(from, node, Event::ToNode { from, peer, message });
    }

    fn effect(&mut self, index: usize, effect: ProposerEffect) -> Result<(), Violation> {
        match effect {
            ProposerEffect::SendVote(peer, vote) => {
                let configuration = self.writers[index].core.configuration().clone();
                self.send(index, peer, ToNode::Vote(vote, configuration));
            }
            ProposerEffect::SendBegin(peer, begin) => {
                let generation = self.writers[index].core.configuration().generation();
                self.send(index, peer, ToNode::Begin(begin, generation));
            }
            ProposerEffect::SendAppend(peer, append) => {
                let generation = self.writers[index].core.configuration().generation();
                self.send(index, peer, ToNode::Append(append, generation));
            }
            ProposerEffect::Join(peer, disk) => {
                assert_eq!(peer, self.writers[index].nodes.len(), "peers are numbered one after the other");
                self.writers[index].nodes.push(self.changes.addresses[&disk]);
                self.schedule(1_000, Event::Reconnect { proposer: index, peer });
            }
            ProposerEffect::Leave(_) => {}
            ProposerEffect::Scan { donor, term, from, to } => {
                let node = self.node_of(index, donor);
                self.post(index, node, Event::Scan { proposer: index, donor, term, from, to });
            }
            ProposerEffect::Fetch { peer, donor, term, from, to } => {
                // Reading takes a connection of its own and may come much later than other messages.
                let late = if self.faults() && self.dice.chance(400) { self.dice.between(0, 900_000) } else { 500 };
                self.schedule(late, Event::Fetch { proposer: index, peer, donor, term, from, to });
            }
            ProposerEffect::Elected(elected) => self.elected(index, elected)?,
            ProposerEffect::Progress { flushed, commit } => self.progress(index, flushed, commit)?,
            ProposerEffect::Closed(_) => self.writers[index].alive = false,
        }
        Ok(())
    }

    fn elected(&mut self, index: usize, elected: crate::Elected) -> Result<(), Violation> {
        self.elections += 1;
        let id = self.writers[index].id;
        let first = *self.elected.entry(elected.term).or_insert(id);
        invariant::one_writer_per_term(elected.term, first, id)?;
        // Whoever adopted the term and is that long has the elected log.
        let end = record::offset(elected.end_lsn);
        let log = self.nodes.iter().find_map(|node| {
            let adopted = node.acceptor()?.state().history.last_term() == elected.term;
            node.durable_log().get(..end).filter(|_| adopted)
        });
        // They may all be down or fenced already; then nothing can be said, and nothing be committed by this writer.
        let Some(log) = log.map(<[u8]>::to_vec) else {
            self.writers[index].alive = false;
            return Ok(());
        };
        // The news of an election may be late: later terms may have committed more.
        let earlier = self.committed_by_term.range(..elected.term).map(|(_, length)| *length).max().unwrap_or(0);
        invariant::elected_log_holds_committed(&self.committed[..earlier], &log)?;
        let both = self.committed.len().min(log.len());
        invariant::elected_log_holds_committed(&self.committed[..both], &log)?;
        // Its writer could go on with it.
        let maker = self.elected.get(&elected.previous_term);
        let maker = self.writers.iter().find(|writer| maker == Some(&writer.id));
        if let Some(made) = maker.and_then(|maker| maker.log.as_ref()) {
            invariant::found_log_is_its_makers(&log, made)?;
        }
        let writer = &mut self.writers[index];
        writer.given = RecordEnd { end: elected.end_lsn, start: elected.prev_lsn };
        writer.log = Some(log);
        self.schedule(100, Event::Write(index));
        Ok(())
    }

    fn progress(&mut self, index: usize, flushed: Lsn, commit: RecordEnd) -> Result<(), Violation> {
        let writer = &mut self.writers[index];
        assert!(flushed >= writer.flushed, "the flushed position went back");
        writer.flushed = flushed;
        let term = writer.core.term();
        let Some(log) = &writer.log else { return Ok(()) };
        invariant::commit_is_record_end(commit.end, record::is_end(log, commit.end))?;
        let now_committed = log[..record::offset(commit.end)].to_vec();
        let configuration = self.writers[index].core.configuration();
        for group in std::iter::once(configuration.members()).chain(configuration.next()) {
            let holders = group.iter().filter(|disk| self.has_held(**disk, &now_committed)).count();
            invariant::quorum_holds_committed(holders, group.len() / 2 + 1, commit.end)?;
        }
        self.note_committed(term, now_committed)
    }

    fn note_committed(&mut self, term: Term, now_committed: Vec<u8>) -> Result<(), Violation> {
        if self.committed.len() <= now_committed.len() {
            invariant::elected_log_holds_committed(&self.committed, &now_committed)?;
        } else {
            invariant::elected_log_holds_committed(&now_committed, &self.committed)?;
        }
        let of_term = self.committed_by_term.entry(term).or_default();
        *of_term = now_committed.len().max(*of_term);
        if now_committed.len() > self.committed.len() {
            self.committed = now_committed;
            self.committed_in_calm |= !self.faults() && self.now_us > FAULTS_END_US;
        }
        Ok(())
    }

    /// Readers at this node, whose log is of `term`, may now see it up to `commit`.
    fn check_served(
        &mut self,
        index: usize,
        (term, is_single): (Term, bool),
        commit: RecordEnd,
    ) -> Result<(), Violation> {
        let log = self.nodes[index].durable_log();
        invariant::commit_is_durable(commit.end, record::lsn_at(log.len()))?;
        let served = log[..record::offset(commit.end)].to_vec();
        if is_single && served.len() > self.committed.len() {
            // The only one commits what it has made durable; its writer hears of it later, or never.
            invariant::commit_is_record_end(commit.end, record::is_end(&served, commit.end))?;
            self.note_committed(term, served.clone())?;
        }
        invariant::served_is_committed(&served, &self.committed)
    }

    fn check_logs(&self) -> Result<(), Violation> {
        for (number, a) in self.nodes.iter().enumerate() {
            for b in &self.nodes[number + 1..] {
                let (Some(first), Some(second)) = (a.acceptor(), b.acceptor()) else { continue };
                let (Some(ours), Some(theirs)) = (a.flushed_log(), b.flushed_log()) else { continue };
                let our_history = first.state().history.up_to(first.flush_lsn());
                let their_history = second.state().history.up_to(second.flush_lsn());
                let common = our_history.common_lsn(first.flush_lsn(), &their_history, second.flush_lsn());
                let difference = ours.iter().zip(theirs).position(|(x, y)| x != y).map(record::lsn_at);
                invariant::logs_match(common, difference)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, index: usize) -> Result<(), Violation> {
        let writer = &mut self.writers[index];
        let Some(log) = writer.log.as_mut().filter(|_| writer.alive) else { return Ok(()) };
        if !writer.core.is_announced() || (log.len() > LOG_LEN_MAX && self.now_us < FAULTS_END_US) {
            return Ok(());
        }
        while writer.unsent.len() < 100 {
            let at = log.len() + writer.unsent.len();
            let record = record::make(at, &mut self.dice);
            writer.unsent.extend(record);
        }
        let length = self.dice.between(1, writer.unsent.len() as u64) as usize;
        let data: Vec<u8> = writer.unsent.drain(..length).collect();
        log.extend_from_slice(&data);
        let last = record::last_in(log, writer.given);
        let record_end = (last != writer.given).then_some(last);
        writer.given = last;
        let pause = self.dice.between(500, 15_000);
        self.schedule(pause, Event::Write(index));
        self.step(index, ProposerInput::Write { data: Bytes::from(data), record_end })
    }

    /// Something happens to somebody, again and again.
    fn chaos(&mut self) -> Result<(), Violation> {
        if !self.faults() {
            return Ok(());
        }
        let pause = self.dice.between(5_000, 120_000);
        self.schedule(pause, Event::Chaos);
        let node = self.dice.between(0, self.nodes.len() as u64 - 1) as usize;
        let writer = self.dice.between(0, self.writers.len() as u64 - 1) as usize;
        match self.dice.between(0, 9) {
            0 | 1 => {
                if self.nodes[node].acceptor().is_some() {
                    self.nodes[node].crash(&mut self.dice);
                    self.after_crash(node);
                }
            }
            2 => {
                // Power fails everywhere at once.
                if self.dice.chance(300) {
                    for node in 0..self.nodes.len() {
                        if self.nodes[node].acceptor().is_some() {
                            self.nodes[node].crash(&mut self.dice);
                            self.after_crash(node);
                        }
                    }
                }
            }
            3 | 4 => self.cut.push((writer, node)),
            5 | 6 => self.cut.clear(),
            7 => {
                if let Some(peer) = self.writers[writer].nodes.iter().rposition(|at| *at == node) {
                    self.step(writer, ProposerInput::Disconnected(peer))?;
                    let after = self.dice.between(1_000, 100_000);
                    self.schedule(after, Event::Reconnect { proposer: writer, peer });
                }
            }
            8 => {
                let alive = self.writers.iter().filter(|writer| writer.alive).count();
                if alive < PROPOSERS_ALIVE_MAX {
                    self.spawn_writer();
                }
            }
            _ => {
                let alive: Vec<usize> = (0..self.writers.len()).filter(|index| self.writers[*index].alive).collect();
                if alive.is_empty() {
                    self.spawn_writer();
                } else if self.dice.chance(300) {
                    self.writers[alive[0]].alive = false;
                }
            }
        }
        Ok(())
    }
}
