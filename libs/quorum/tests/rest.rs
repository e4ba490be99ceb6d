//! A writer at rest: what the acceptors keep for each other goes without new WAL.

use ardent_api::wal_service::{Append, AppendReply, BeginReply, ProposerId, RecordEnd};
use ardent_quorum::{Configuration, DiskId, Proposer, ProposerEffect, ProposerInput, ProposerLimits, Voter};
use ardent_types::{Lsn, Term};
use bytes::Bytes;

use support::{START, vote_reply};

mod support;

const END: Lsn = Lsn::new(1100);
const LATE: usize = 2;

struct Cluster {
    writer: Proposer,
    now_us: u64,
}

impl Cluster {
    /// Answers votes and begins; gives the appends.
    fn step(&mut self, input: ProposerInput) -> Vec<(usize, Append)> {
        let (mut inputs, mut appends) = (vec![input], Vec::new());
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            self.writer.step(self.now_us, input, &mut effects);
            for effect in effects {
                match effect {
                    ProposerEffect::SendVote(peer, vote) => {
                        let voter = Voter { disk: DiskId::new(peer as u128), configuration: Configuration::default() };
                        let granted = vote.term > Term::new(0);
                        inputs.push(ProposerInput::Vote(peer, vote_reply(vote.attempt, vote.term, granted), voter));
                    }
                    ProposerEffect::SendBegin(peer, begin) => {
                        let (attempt, term) = (begin.attempt, begin.term);
                        inputs.push(ProposerInput::Begin(peer, BeginReply { attempt, term, flush_lsn: START }));
                    }
                    ProposerEffect::SendAppend(peer, append) => appends.push((peer, append)),
                    _ => {}
                }
            }
        }
        appends
    }

    fn acknowledged(&mut self, peer: usize) -> Vec<(usize, Append)> {
        let term = self.writer.term();
        self.step(ProposerInput::Append(peer, AppendReply { term, flush_lsn: END }))
    }

    fn at_rest(&mut self) -> Vec<(usize, Append)> {
        self.now_us += ProposerLimits::default().resend_after_us;
        self.step(ProposerInput::Tick)
    }
}

#[test]
fn all_are_told_once_that_the_last_one_has_caught_up() {
    let writer = Proposer::new(ProposerId::new(1), Configuration::unnumbered(3), ProposerLimits::default());
    let mut cluster = Cluster { writer, now_us: 0 };
    for peer in 0..=LATE {
        cluster.step(ProposerInput::Connected(peer));
    }
    assert!(cluster.writer.is_announced());
    let record_end = Some(RecordEnd { end: END, start: START });
    let data = Bytes::from(vec![7; (END.get() - START.get()) as usize]);
    assert_eq!(cluster.step(ProposerInput::Write { data, record_end }).len(), 3);
    cluster.acknowledged(0);
    let told = cluster.acknowledged(1);
    assert!(!told.is_empty() && told.iter().all(|(_, append)| append.commit.end == END), "it is committed: {told:?}");
    assert!(told.iter().all(|(_, append)| append.peers_lsn == START), "one of them lacks it: {told:?}");
    assert_eq!(cluster.acknowledged(LATE), [], "who commits in a row is not told at each turn");

    let mut told = cluster.at_rest();
    told.sort_by_key(|(peer, _)| *peer);
    assert_eq!(told.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), [0, 1, 2]);
    for (_, append) in &told {
        assert_eq!((append.start, append.peers_lsn, append.commit.end), (END, END, END));
        assert!(append.data.is_empty());
    }
    assert_eq!(cluster.at_rest(), [], "once");
}
