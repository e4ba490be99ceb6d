//! The acceptor: one safekeeper's part in one timeline.

use bytes::Bytes;

use ardent_api::wal_service::{Append, AppendReply, Begin, BeginReply, ProposerId, RecordEnd, Vote};
use ardent_types::{Lsn, Term};

use crate::bug::{Bug, Bugs};
use crate::catch_up::{LogPosition, Promise, Standing};
use crate::configuration::{Configuration, MemberGeneration};
use crate::history::TermHistory;
use crate::invariant;

/// The commit position is written to disk each time it has moved this far: recovery scans WAL from the last one written.
pub const COMMIT_PERSIST_STEP_BYTES: u64 = 8 << 20;

/// What an acceptor keeps on disk beside the WAL itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptorState {
    /// The highest term promised.
    pub term: Term,
    /// To whom.
    pub voted_for: ProposerId,
    /// The terms of the log.
    pub history: TermHistory,
    /// A record end up to which the log is committed. May lag behind what was known.
    pub commit: RecordEnd,
    /// Where the timeline begins.
    pub start: RecordEnd,
    /// Who keeps the timeline's WAL. Writers that go by an older one are refused.
    pub configuration: Configuration,
}

impl AcceptorState {
    /// The state of a timeline that nobody has written to, and that was never told who its members are.
    pub fn new(start: RecordEnd) -> Self {
        AcceptorState {
            term: Term::new(0),
            voted_for: ProposerId::NONE,
            history: TermHistory::default(),
            commit: start,
            start,
            configuration: Configuration::default(),
        }
    }

    /// The state of one that joins, given the log of `self` up to its commit position: it knows what `self` knew.
    #[must_use]
    pub fn for_joining(&self) -> AcceptorState {
        AcceptorState { history: self.history.up_to(self.commit.end), ..self.clone() }
    }
}

/// What a writer is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To a vote; the shell adds what only it knows (oldest LSN, segment size).
    Vote(VoteAnswer),
    /// To a begin.
    Begin(BeginReply),
    /// To the last append, and with it to all before.
    Append(AppendReply),
}

/// The acceptor's part of a [`VoteReply`](ardent_api::wal_service::VoteReply).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteAnswer {
    /// The vote's.
    pub attempt: u32,
    /// The highest term promised.
    pub term: Term,
    /// Whether it is promised to the writer that asked.
    pub granted: bool,
    /// The terms of the durable log.
    pub history: TermHistory,
    /// End of the durable log.
    pub flush_lsn: Lsn,
    /// Up to where it is known to be committed.
    pub commit: RecordEnd,
    /// Where the timeline begins.
    pub start: RecordEnd,
    /// What the acceptor goes by.
    pub configuration: Configuration,
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptorEffect {
    /// Make this state durable.
    Persist(AcceptorState),
    /// Cut the WAL off at this position, durably: nothing of what lay behind may come back.
    Truncate(Lsn),
    /// Write WAL; it need not be durable yet.
    Write {
        /// Position of the first byte.
        start: Lsn,
        /// The bytes.
        data: Bytes,
    },
    /// Readers may have the log up to here.
    Committed(RecordEnd),
    /// Answer the writer. Append replies go to the connection of the last append.
    Reply(Reply),
}

/// A message that does not follow from those before it. The writer has to begin again with a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutOfOrder {
    /// An append in a term that has not begun here.
    #[error("WAL of term {term} came before that term had begun here (the log's last term is {last_term})")]
    NotBegun {
        /// The append's term.
        term: Term,
        /// The log's.
        last_term: Term,
    },
    /// An append that does not touch the end of the log.
    #[error("WAL from {start} on does not continue the log, which ends at {write_lsn}")]
    Gap {
        /// Position of the append.
        start: Lsn,
        /// End of the log.
        write_lsn: Lsn,
    },
    /// A writer that does not go by the configuration that is in force here.
    #[error("the members have changed: this writer goes by generation {given}, generation {in_force} is in force here")]
    OtherMembers {
        /// The writer's.
        given: MemberGeneration,
        /// The acceptor's.
        in_force: MemberGeneration,
    },
    /// Two configurations with one number.
    #[error("generation {generation} has other members here than for whom sent this")]
    ContradictingMembers {
        /// Their number.
        generation: MemberGeneration,
    },
    /// A begin whose history does not end with its term, or starts past the log.
    #[error("the history of term {term} is not valid here")]
    BadBegin {
        /// The begin's term.
        term: Term,
    },
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Acceptor {
    state: AcceptorState,
    persisted_commit: Lsn,
    /// First byte not written.
    write_lsn: Lsn,
    /// First byte not durable.
    flush_lsn: Lsn,
    /// A commit position beyond what is durable here; good until another term is promised.
    pending_commit: RecordEnd,
    /// A lower bound of what the other safekeepers have.
    peers_lsn: Lsn,
    owes_append_reply: bool,
    bugs: Bugs,
}

impl Acceptor {
    /// An acceptor with the state and the end of the log that were found on disk; both must be durable.
    pub fn recover(state: AcceptorState, flush_lsn: Lsn) -> Self {
        assert!(flush_lsn >= state.commit.end, "the log ends at {flush_lsn}, before its commit at {:?}", state.commit);
        Acceptor {
            persisted_commit: state.commit.end,
            write_lsn: flush_lsn,
            flush_lsn,
            pending_commit: state.commit,
            peers_lsn: Lsn::INVALID,
            owes_append_reply: false,
            bugs: Bugs::default(),
            state,
        }
    }

    #[cfg(test)]
    pub(crate) fn set_bugs(&mut self, bugs: Bugs) {
        self.bugs = bugs;
    }

    /// The state; its commit position may be ahead of the durable one.
    pub fn state(&self) -> &AcceptorState {
        &self.state
    }

    /// First byte that is not written.
    pub fn write_lsn(&self) -> Lsn {
        self.write_lsn
    }

    /// First byte that is not durable.
    pub fn flush_lsn(&self) -> Lsn {
        self.flush_lsn
    }

    /// The other safekeepers do not need WAL below this from here.
    pub fn peers_lsn(&self) -> Lsn {
        self.peers_lsn
    }

    /// Whether the durable commit position lags: worth a [`AcceptorEffect::Persist`] of [`Acceptor::state`] before the
    /// timeline is unloaded.
    pub fn commit_is_unsaved(&self) -> bool {
        self.persisted_commit < self.state.commit.end
    }

    /// The shell made [`Acceptor::state`] durable on its own.
    pub fn state_saved(&mut self) {
        self.persisted_commit = self.state.commit.end;
    }

    /// Whether a writer of `term` may read the log beyond the commit position: nobody else can be changing it.
    pub fn may_read(&self, term: Term) -> bool {
        self.state.term == term || self.bugs.has(Bug::FetchUnfenced)
    }

    fn persist(&mut self, out: &mut Vec<AcceptorEffect>) {
        self.persisted_commit = self.state.commit.end;
        out.push(AcceptorEffect::Persist(self.state.clone()));
    }

    /// Where it stands, for [`CatchUp`](crate::CatchUp); to be told once what [`Acceptor::configure`] asked for is durable.
    pub fn standing(&self) -> Standing {
        let term = self.state.history.up_to(self.flush_lsn).last_term();
        Standing {
            configuration: self.state.configuration.clone(),
            promise: Promise { term: self.state.term, proposer: self.state.voted_for },
            position: LogPosition { term, flush_lsn: self.flush_lsn },
            has_begun: self.state.history.last_term() == self.state.term,
        }
    }

    /// Takes a later configuration; true if it is one. What is on its way is neither acknowledged nor committed: its writer did not count
    /// the next members.
    fn take_configuration(&mut self, configuration: &Configuration) -> Result<bool, OutOfOrder> {
        let ours = &self.state.configuration;
        if invariant::one_configuration_per_generation(ours, configuration).is_err() {
            return Err(OutOfOrder::ContradictingMembers { generation: ours.generation() });
        }
        if configuration.generation() <= ours.generation() {
            return Ok(false);
        }
        self.state.configuration = configuration.clone();
        if !self.bugs.has(Bug::CommitAfterChange) {
            self.pending_commit = self.state.commit;
        }
        if !self.bugs.has(Bug::AckAfterChange) {
            self.owes_append_reply = false;
        }
        // One that joins may need what the others have had for long.
        self.peers_lsn = Lsn::INVALID;
        Ok(!self.bugs.has(Bug::GenerationNotPersisted))
    }

    /// The members change: takes the configuration, and a promise that others have made, if they are newer than what is here. Nobody who
    /// counts on an older one is answered from here on.
    pub fn configure(
        &mut self,
        configuration: &Configuration,
        promise: Option<Promise>,
        out: &mut Vec<AcceptorEffect>,
    ) -> Result<(), OutOfOrder> {
        let taken = self.take_configuration(configuration)?;
        let promise = promise.filter(|promise| promise.term > self.state.term);
        if let Some(promise) = promise {
            (self.state.term, self.state.voted_for) = (promise.term, promise.proposer);
            self.pending_commit = self.state.commit;
        }
        if taken || promise.is_some() {
            self.persist(out);
        }
        Ok(())
    }

    /// A later one than ours came with the vote before.
    fn check_members(&self, given: MemberGeneration) -> Result<(), OutOfOrder> {
        let in_force = self.state.configuration.generation();
        let same = given == in_force || self.bugs.has(Bug::OldGenerationAccepted);
        if same { Ok(()) } else { Err(OutOfOrder::OtherMembers { given, in_force }) }
    }

    /// A writer that goes by `configuration` asks for a term. Given to the first that asks, and to the same one again.
    pub fn vote(
        &mut self,
        vote: &Vote,
        configuration: &Configuration,
        out: &mut Vec<AcceptorEffect>,
    ) -> Result<(), OutOfOrder> {
        let taken = self.take_configuration(configuration)?;
        let in_force = self.check_members(configuration.generation()).is_ok();
        let same_term = in_force && vote.term == self.state.term && vote.term.get() > 0;
        let again = same_term && vote.proposer == self.state.voted_for;
        let twice = same_term && self.bugs.has(Bug::VoteTwice);
        let newer = in_force && vote.term > self.state.term;
        if newer || twice {
            self.state.term = vote.term;
            self.state.voted_for = vote.proposer;
            // What becomes durable from here on is acknowledged to nobody who counts it, and the log that is chosen may lack it.
            if !self.bugs.has(Bug::CommitAfterPromise) {
                self.pending_commit = self.state.commit;
            }
        }
        if (newer || twice) && !self.bugs.has(Bug::VoteNotPersisted) || taken {
            self.persist(out);
        }
        out.push(AcceptorEffect::Reply(Reply::Vote(VoteAnswer {
            attempt: vote.attempt,
            term: self.state.term,
            granted: newer || again || twice,
            history: self.state.history.up_to(self.flush_lsn),
            flush_lsn: self.flush_lsn,
            commit: self.state.commit,
            start: self.state.start,
            configuration: self.state.configuration.clone(),
        })));
        Ok(())
    }

    /// An elected writer, which goes by the configuration of `generation`, says what the log is.
    pub fn begin(
        &mut self,
        begin: &Begin,
        generation: MemberGeneration,
        out: &mut Vec<AcceptorEffect>,
    ) -> Result<(), OutOfOrder> {
        if begin.term >= self.state.term {
            self.check_members(generation)?;
            let bad = OutOfOrder::BadBegin { term: begin.term };
            let history = TermHistory::from_entries(begin.history.clone()).ok_or(bad)?;
            if history.last_term() != begin.term || begin.common_lsn < self.state.start.end {
                return Err(bad);
            }
            // A second begin in the same term must not cut: what was appended since has been acknowledged.
            let begun = self.state.history.last_term() == begin.term && !self.bugs.has(Bug::BeginTwice);
            if !begun {
                if begin.common_lsn > self.write_lsn || begin.common_lsn < self.state.commit.end {
                    return Err(bad);
                }
                self.adopt(begin, history, out);
            }
        }
        out.push(AcceptorEffect::Reply(Reply::Begin(BeginReply {
            attempt: begin.attempt,
            term: self.state.term,
            flush_lsn: self.flush_lsn,
        })));
        Ok(())
    }

    fn adopt(&mut self, begin: &Begin, history: TermHistory, out: &mut Vec<AcceptorEffect>) {
        // The cut is durable before the history that makes it right: the other way round, a crash between the two would
        // leave bytes of an old writer under the new one's term.
        if begin.common_lsn < self.write_lsn && !self.bugs.has(Bug::NoTruncation) {
            out.push(AcceptorEffect::Truncate(begin.common_lsn));
            self.write_lsn = begin.common_lsn;
            self.flush_lsn = self.flush_lsn.min(begin.common_lsn);
        }
        if begin.term > self.state.term {
            self.state.term = begin.term;
            self.state.voted_for = ProposerId::NONE;
        }
        self.state.history = history;
        self.pending_commit = self.state.commit;
        self.owes_append_reply = false;
        if !self.bugs.has(Bug::HistoryNotPersisted) {
            self.persist(out);
        }
    }

    /// WAL arrives from a writer that goes by the configuration of `generation`.
    pub fn append(
        &mut self,
        append: Append,
        generation: MemberGeneration,
        out: &mut Vec<AcceptorEffect>,
    ) -> Result<(), OutOfOrder> {
        let stale = append.term < self.state.term && !self.bugs.has(Bug::StaleTermAccepted);
        if stale {
            out.push(AcceptorEffect::Reply(Reply::Append(AppendReply {
                term: self.state.term,
                flush_lsn: self.flush_lsn,
            })));
            return Ok(());
        }
        let last_term = self.state.history.last_term();
        if last_term != append.term && !self.bugs.has(Bug::StaleTermAccepted) {
            return Err(OutOfOrder::NotBegun { term: append.term, last_term });
        }
        self.check_members(generation)?;
        if append.start > self.write_lsn && !self.bugs.has(Bug::GapAccepted) {
            return Err(OutOfOrder::Gap { start: append.start, write_lsn: self.write_lsn });
        }
        self.peers_lsn = self.peers_lsn.max(append.peers_lsn);
        self.write_new_bytes(append.start, append.data, out);
        self.pending_commit = self.pending_commit.max(append.commit);
        self.apply_commit(out);
        Ok(())
    }

    /// Writes what of `data` lies past the end of the log: the rest came before, from the same writer.
    fn write_new_bytes(&mut self, start: Lsn, mut data: Bytes, out: &mut Vec<AcceptorEffect>) {
        if data.is_empty() {
            return;
        }
        self.owes_append_reply = true;
        let known = self.write_lsn.saturating_sub(start).min(data.len() as u64);
        let fresh = data.split_off(known as usize);
        if fresh.is_empty() {
            if self.flush_lsn == self.write_lsn {
                self.reply_append(out);
            }
            return;
        }
        let start = start.advance(known);
        self.write_lsn = start.advance(fresh.len() as u64);
        out.push(AcceptorEffect::Write { start, data: fresh });
        if self.bugs.has(Bug::AckBeforeFsync) {
            self.flush_lsn = self.write_lsn;
            self.reply_append(out);
        }
    }

    /// Everything written before `lsn` is durable.
    pub fn flushed(&mut self, lsn: Lsn, out: &mut Vec<AcceptorEffect>) {
        // A cut may have come between the write and its fsync.
        self.flush_lsn = self.flush_lsn.max(lsn.min(self.write_lsn));
        self.apply_commit(out);
        if self.owes_append_reply {
            self.reply_append(out);
        }
    }

    fn reply_append(&mut self, out: &mut Vec<AcceptorEffect>) {
        self.owes_append_reply = false;
        let reply = AppendReply { term: self.state.term, flush_lsn: self.flush_lsn };
        out.push(AcceptorEffect::Reply(Reply::Append(reply)));
    }

    fn apply_commit(&mut self, out: &mut Vec<AcceptorEffect>) {
        if self.pending_commit.end <= self.state.commit.end || self.pending_commit.end > self.flush_lsn {
            return;
        }
        self.state.commit = self.pending_commit;
        invariant::commit_is_durable(self.state.commit.end, self.flush_lsn).expect("a commit waits for its fsync");
        out.push(AcceptorEffect::Committed(self.state.commit));
        if self.state.commit.end.saturating_sub(self.persisted_commit) >= COMMIT_PERSIST_STEP_BYTES {
            self.persist(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use ardent_api::wal_service::TermStart;

    use crate::configuration::DiskId;

    fn acceptor() -> Acceptor {
        let start = RecordEnd { end: Lsn::new(1000), start: Lsn::INVALID };
        Acceptor::recover(AcceptorState::new(start), start.end)
    }

    fn vote(term: u64, proposer: u128) -> Vote {
        Vote { attempt: 1, term: Term::new(term), proposer: ProposerId::new(proposer) }
    }

    fn granted(acceptor: &mut Acceptor, vote: &Vote) -> bool {
        let mut out = Vec::new();
        acceptor.vote(vote, &Configuration::default(), &mut out).expect("no members are known");
        match out.pop() {
            Some(AcceptorEffect::Reply(Reply::Vote(answer))) => answer.granted,
            other => panic!("a vote is answered last, not {other:?}"),
        }
    }

    #[test]
    fn a_term_is_promised_once_and_again_to_the_same() {
        let mut acceptor = acceptor();
        assert!(!granted(&mut acceptor, &vote(0, 1)), "term 0 only asks");
        assert!(granted(&mut acceptor, &vote(2, 1)));
        assert!(granted(&mut acceptor, &vote(2, 1)));
        assert!(!granted(&mut acceptor, &vote(2, 2)));
        assert!(!granted(&mut acceptor, &vote(1, 1)));
        assert!(granted(&mut acceptor, &vote(3, 2)));
    }

    fn begun(acceptor: &mut Acceptor, term: u64, configuration: &Configuration) {
        let mut out = Vec::new();
        acceptor.vote(&vote(term, 1), configuration, &mut out).expect("one configuration per generation");
        let history = vec![TermStart { term: Term::new(term), lsn: acceptor.flush_lsn() }];
        let begin = Begin { attempt: 1, term: Term::new(term), history, common_lsn: acceptor.flush_lsn() };
        acceptor.begin(&begin, configuration.generation(), &mut out).expect("in order");
    }

    fn append(
        acceptor: &mut Acceptor,
        term: u64,
        configuration: &Configuration,
        data: &'static [u8],
    ) -> Result<Vec<AcceptorEffect>, OutOfOrder> {
        let (start, mut out) = (acceptor.write_lsn(), Vec::new());
        let commit = RecordEnd { end: start.advance(data.len() as u64), start };
        let peers_lsn = Lsn::INVALID;
        let append = Append { term: Term::new(term), start, commit, peers_lsn, data: Bytes::from_static(data) };
        acceptor.append(append, configuration.generation(), &mut out).map(|()| out)
    }

    #[test]
    fn a_change_of_members_ends_what_was_on_its_way() {
        let one = Configuration::first([DiskId::new(1)]);
        let mut acceptor = acceptor();
        begun(&mut acceptor, 2, &one);
        append(&mut acceptor, 2, &one, b"before").expect("in order");
        let three = one.begin_change([1, 2, 3].map(DiskId::new)).expect("settled");
        let promise = Promise { term: Term::new(1), proposer: ProposerId::NONE };
        let mut out = Vec::new();
        acceptor.configure(&three, Some(promise), &mut out).expect("a later generation");
        assert!(matches!(&out[..], [AcceptorEffect::Persist(state)] if state.configuration == three), "{out:?}");
        assert_eq!(acceptor.standing().promise.term, Term::new(2), "a lower promise changes nothing");

        out.clear();
        acceptor.flushed(acceptor.write_lsn(), &mut out);
        assert_eq!(out, [], "neither acknowledged nor committed: the others may lack it");
        let refused = OutOfOrder::OtherMembers { given: one.generation(), in_force: three.generation() };
        assert_eq!(append(&mut acceptor, 2, &one, b"late"), Err(refused));

        append(&mut acceptor, 2, &three, b"after").expect("in order");
        acceptor.flushed(acceptor.write_lsn(), &mut out);
        assert!(matches!(&out[..], [AcceptorEffect::Committed(_), AcceptorEffect::Reply(_)]), "{out:?}");
    }

    #[test]
    fn a_writer_that_goes_by_older_members_is_told_of_the_newer_ones() {
        let one = Configuration::first([DiskId::new(1)]);
        let joint = one.begin_change([DiskId::new(2)]).expect("settled");
        let (mut acceptor, mut out) = (acceptor(), Vec::new());
        acceptor.configure(&joint, None, &mut out).expect("a later generation");
        out.clear();
        acceptor.vote(&vote(3, 1), &one, &mut out).expect("one configuration per generation");
        let Some(AcceptorEffect::Reply(Reply::Vote(answer))) = out.pop() else { panic!("a vote is answered") };
        assert_eq!((answer.granted, answer.term, answer.configuration), (false, Term::new(0), joint.clone()));
        let other = one.begin_change([DiskId::new(3)]).expect("settled");
        let contradiction = OutOfOrder::ContradictingMembers { generation: joint.generation() };
        assert_eq!(acceptor.configure(&other, None, &mut out), Err(contradiction));
    }

    #[test]
    fn reads_are_bound_to_the_term() {
        let mut acceptor = acceptor();
        assert!(granted(&mut acceptor, &vote(2, 1)));
        assert!(acceptor.may_read(Term::new(2)));
        assert!(granted(&mut acceptor, &vote(3, 2)));
        assert!(!acceptor.may_read(Term::new(2)));
    }
}
