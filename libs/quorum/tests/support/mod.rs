//! What acceptors answer, in tests of a writer alone.

use ardent_api::wal_service::{RecordEnd, VoteReply};
use ardent_types::{Lsn, Term, WalSegmentSize};

/// Where the log of every acceptor begins and ends.
pub const START: Lsn = Lsn::new(1000);

/// An answer of one that has nothing yet.
pub fn vote_reply(attempt: u32, term: Term, granted: bool) -> VoteReply {
    let at = RecordEnd { end: START, start: Lsn::INVALID };
    VoteReply {
        attempt,
        term,
        granted,
        history: Vec::new(),
        flush_lsn: START,
        commit: at,
        start: at,
        oldest_lsn: START,
        pg_major: 15,
        wal_segment_size: WalSegmentSize::new(1 << 20).expect("1 MiB is allowed"),
    }
}
