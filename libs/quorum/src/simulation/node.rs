//! A simulated safekeeper: the acceptor, and a disk that forgets what was not fsynced.

use bytes::Bytes;

use ardent_api::wal_service::{RecordEnd, VoteReply};
use ardent_types::{Lsn, Term, WalSegmentSize};

use super::dice::Dice;
use super::record;
use crate::acceptor::VoteAnswer;
use crate::bug::Bugs;
use crate::invariant::{self, Violation};
use crate::{Acceptor, AcceptorEffect, AcceptorState, Configuration, DiskId, MemberGeneration, Reply};

/// What a disk holds.
#[derive(Debug)]
pub(crate) struct Disk {
    id: DiskId,
    /// Whether the timeline was made here.
    has_timeline: bool,
    state: AcceptorState,
    /// Surely there after a crash.
    synced: Vec<u8>,
    /// Written since: a crash may keep all, some or none of it.
    pending: Vec<(usize, Bytes)>,
}

fn put(log: &mut Vec<u8>, at: usize, data: &[u8]) {
    if log.len() < at + data.len() {
        log.resize(at + data.len(), 0);
    }
    log[at..at + data.len()].copy_from_slice(data);
}

impl Disk {
    fn empty(id: DiskId) -> Self {
        let state = AcceptorState::new(record::start());
        Disk { id, has_timeline: false, state, synced: Vec::new(), pending: Vec::new() }
    }

    fn write(&mut self, at: usize, data: Bytes) {
        self.pending.push((at, data));
    }

    fn sync(&mut self) {
        for (at, data) in self.pending.drain(..) {
            put(&mut self.synced, at, &data);
        }
    }

    /// Loses unsynced writes, whole, in part, and in any order.
    fn crash(&mut self, dice: &mut Dice) {
        const SECTOR: usize = 16;
        for (at, data) in std::mem::take(&mut self.pending) {
            let fate = dice.between(0, 2);
            for (number, sector) in data.chunks(SECTOR).enumerate() {
                if fate == 0 || (fate == 1 && dice.chance(500)) {
                    put(&mut self.synced, at + number * SECTOR, sector);
                }
            }
        }
    }
}

/// A safekeeper.
#[derive(Debug)]
pub(crate) struct Node {
    disk: Disk,
    /// Absent: it is down.
    acceptor: Option<Acceptor>,
    bugs: Bugs,
    /// The highest term that anybody was told of.
    told_term: Term,
    /// The highest generation that anybody was told of.
    told_generation: MemberGeneration,
    pub(crate) flush_is_due: bool,
    /// The proposer that appended last, and what this node is to it.
    pub(crate) writer: Option<(usize, usize)>,
}

/// What a node did with a message.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done,
    /// It crashed on the way.
    Crashed,
}

impl Node {
    pub(crate) fn new(id: DiskId, bugs: Bugs) -> Self {
        Node {
            disk: Disk::empty(id),
            acceptor: None,
            bugs,
            told_term: Term::new(0),
            told_generation: MemberGeneration::default(),
            flush_is_due: false,
            writer: None,
        }
    }

    pub(crate) fn disk_id(&self) -> DiskId {
        self.disk.id
    }

    pub(crate) fn has_timeline(&self) -> bool {
        self.disk.has_timeline
    }

    /// Whether the timeline is here and cannot be used now.
    pub(crate) fn is_down(&self) -> bool {
        self.disk.has_timeline && self.acceptor.is_none()
    }

    /// The timeline is made here, durably, with what is known of it.
    pub(crate) fn make_timeline(&mut self, state: AcceptorState, log: Vec<u8>) -> Result<(), Violation> {
        (self.told_term, self.told_generation) = (state.term, state.configuration.generation());
        self.disk = Disk { id: self.disk.id, has_timeline: true, state, synced: log, pending: Vec::new() };
        self.recover(None)
    }

    /// A timeline that nobody has written to.
    pub(crate) fn make_empty_timeline(&mut self, configuration: Configuration) -> Result<(), Violation> {
        self.make_timeline(AcceptorState { configuration, ..AcceptorState::new(record::start()) }, Vec::new())
    }

    /// What another needs to join: the log up to where it is committed.
    pub(crate) fn for_joining(&self) -> Option<(AcceptorState, Vec<u8>)> {
        let state = self.acceptor.as_ref()?.state().for_joining();
        let log = self.disk.synced.get(..record::offset(state.commit.end))?.to_vec();
        Some((state, log))
    }

    /// All that was here is gone; what comes back is `id`.
    pub(crate) fn lose_disk(&mut self, id: DiskId) -> Vec<u8> {
        let lost = std::mem::take(&mut self.disk.synced);
        *self = Node::new(id, self.bugs);
        lost
    }

    pub(crate) fn acceptor(&self) -> Option<&Acceptor> {
        self.acceptor.as_ref()
    }

    pub(crate) fn acceptor_mut(&mut self) -> Option<&mut Acceptor> {
        self.acceptor.as_mut()
    }

    /// What would be left of the log if the node crashed now.
    pub(crate) fn durable_log(&self) -> &[u8] {
        &self.disk.synced
    }

    /// The durable log as its acceptor sees it.
    pub(crate) fn flushed_log(&self) -> Option<&[u8]> {
        let flush = record::offset(self.acceptor.as_ref()?.flush_lsn());
        self.disk.synced.get(..flush)
    }

    pub(crate) fn crash(&mut self, dice: &mut Dice) {
        self.disk.crash(dice);
        self.acceptor = None;
        self.flush_is_due = false;
        self.writer = None;
    }

    /// Starts again from the disk. `limit`: after a failed write, what was durable.
    pub(crate) fn recover(&mut self, limit: Option<Lsn>) -> Result<(), Violation> {
        let disk = &mut self.disk;
        disk.sync();
        let length = limit.map_or(disk.synced.len(), |limit| record::offset(limit).min(disk.synced.len()));
        invariant::commit_is_durable(disk.state.commit.end, record::lsn_at(length))?;
        let end = record::last_in(&disk.synced[..length], disk.state.commit).end;
        disk.synced.truncate(record::offset(end));
        invariant::term_never_decreases(self.told_term, disk.state.term)?;
        invariant::generation_never_decreases(self.told_generation, disk.state.configuration.generation())?;
        let mut acceptor = Acceptor::recover(disk.state.clone(), end);
        acceptor.set_bugs(self.bugs);
        self.acceptor = Some(acceptor);
        self.flush_is_due = false;
        Ok(())
    }

    /// A write that the disk refused: start over from what was durable.
    fn fail(&mut self) -> Result<(), Violation> {
        let flush = self.acceptor.as_ref().map(Acceptor::flush_lsn);
        self.disk.pending.clear();
        self.recover(flush)
    }

    /// The fsync that was due is done.
    pub(crate) fn flush(&mut self) -> Vec<AcceptorEffect> {
        self.flush_is_due = false;
        let mut effects = Vec::new();
        if let Some(acceptor) = &mut self.acceptor {
            self.disk.sync();
            acceptor.flushed(acceptor.write_lsn(), &mut effects);
        }
        effects
    }

    /// Somebody hears that this generation is in force here.
    pub(crate) fn told(&mut self, generation: MemberGeneration) {
        self.told_generation = self.told_generation.max(generation);
    }

    /// Carries effects out; may crash or meet a full disk between any two.
    pub(crate) fn carry_out(
        &mut self,
        effects: Vec<AcceptorEffect>,
        dice: &mut Dice,
        faults: bool,
        replies: &mut Vec<Reply>,
        commits: &mut Vec<RecordEnd>,
    ) -> Result<Outcome, Violation> {
        for effect in effects {
            if faults && dice.chance(3) {
                self.crash(dice);
                return Ok(Outcome::Crashed);
            }
            match effect {
                AcceptorEffect::Persist(state) => {
                    invariant::term_never_decreases(self.disk.state.term, state.term)?;
                    invariant::generation_never_decreases(
                        self.disk.state.configuration.generation(),
                        state.configuration.generation(),
                    )?;
                    invariant::history_ascends(state.history.entries())?;
                    self.disk.state = state;
                }
                AcceptorEffect::Truncate(lsn) => {
                    self.disk.sync();
                    self.disk.synced.truncate(record::offset(lsn));
                }
                AcceptorEffect::Write { start, data } => {
                    if faults && dice.chance(3) {
                        self.fail()?;
                        return Ok(Outcome::Done);
                    }
                    self.disk.write(record::offset(start), data);
                    self.flush_is_due = true;
                }
                AcceptorEffect::Committed(commit) => commits.push(commit),
                AcceptorEffect::Reply(reply) => {
                    let term = match &reply {
                        Reply::Vote(answer) => {
                            self.told(answer.configuration.generation());
                            answer.term
                        }
                        Reply::Begin(reply) => reply.term,
                        Reply::Append(reply) => reply.term,
                    };
                    self.told_term = self.told_term.max(term);
                    replies.push(reply);
                }
            }
        }
        Ok(Outcome::Done)
    }
}

/// The message that the real shell makes of an answer.
pub(crate) fn vote_reply(answer: VoteAnswer) -> VoteReply {
    VoteReply {
        attempt: answer.attempt,
        term: answer.term,
        granted: answer.granted,
        history: answer.history.entries().to_vec(),
        flush_lsn: answer.flush_lsn,
        commit: answer.commit,
        start: answer.start,
        oldest_lsn: answer.start.end,
        pg_major: 15,
        wal_segment_size: WalSegmentSize::DEFAULT,
    }
}
