//! A writer whose term another one was promised by an acceptor that its quorum does not need.

use ardent_api::wal_service::{BeginReply, ProposerId, Vote, VoteReply};
use ardent_quorum::{
    CloseReason, Configuration, DiskId, Proposer, ProposerEffect, ProposerInput, ProposerLimits, Voter,
};
use ardent_types::Term;

use support::{START, vote_reply};

mod support;

/// Acceptors 0 and 1 elect the writer; this one has promised the same term to a rival, which vanished.
const RIVALS: usize = 2;

struct Election {
    writer: Proposer,
    now_us: u64,
    closed: Option<CloseReason>,
}

impl Election {
    /// Answers all that is asked, until nothing is.
    fn step(&mut self, input: ProposerInput) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            self.writer.step(self.now_us, input, &mut effects);
            for effect in effects {
                match effect {
                    ProposerEffect::SendVote(peer, vote) => {
                        let voter = Voter { disk: DiskId::new(peer as u128), configuration: Configuration::default() };
                        inputs.push(ProposerInput::Vote(peer, answer(peer, &vote), voter));
                    }
                    ProposerEffect::SendBegin(peer, begin) => {
                        let (attempt, term) = (begin.attempt, begin.term);
                        inputs.push(ProposerInput::Begin(peer, BeginReply { attempt, term, flush_lsn: START }));
                    }
                    ProposerEffect::Closed(reason) => self.closed = Some(reason),
                    _ => {}
                }
            }
        }
    }

    fn pass_time(&mut self) {
        for _ in 0..3 {
            self.now_us += ProposerLimits::default().resend_after_us;
            self.step(ProposerInput::Tick);
        }
    }
}

/// None has promised more than term 16 when it is asked first; the rival comes right after that.
fn answer(peer: usize, vote: &Vote) -> VoteReply {
    let asked_only = vote.term == Term::new(0);
    let term = if asked_only { Term::new(16) } else { Term::new(17) };
    vote_reply(vote.attempt, term, !asked_only && peer != RIVALS)
}

fn elected() -> Election {
    let writer = Proposer::new(ProposerId::new(1), Configuration::unnumbered(3), ProposerLimits::default());
    let mut election = Election { writer, now_us: 0, closed: None };
    election.step(ProposerInput::Connected(0));
    election.step(ProposerInput::Connected(1));
    assert!(election.writer.is_announced() && election.writer.term() == Term::new(17));
    election
}

#[test]
fn who_is_elected_is_not_ended_by_one_who_cannot_be() {
    let mut election = elected();
    election.step(ProposerInput::Connected(RIVALS));
    election.pass_time();
    assert_eq!((election.closed, election.writer.streaming_peers()), (None, 2));
}

/// With that acceptor there would be a quorum, but in another term only.
#[test]
fn without_a_quorum_the_writer_makes_room_for_a_higher_term() {
    let mut election = elected();
    election.step(ProposerInput::Disconnected(1));
    election.step(ProposerInput::Connected(RIVALS));
    assert_eq!(election.closed, Some(CloseReason::Fenced(Term::new(17))));
}
