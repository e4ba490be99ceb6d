//! An acceptor, as the proposer that writes to it knows it.

use ardent_api::wal_service::VoteReply;
use ardent_types::Lsn;

use crate::configuration::DiskId;

/// How far a writer is with an acceptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is no member any more.
    Gone,
    Offline,
    /// It is not the disk that is a member.
    Stranger,
    /// A vote is on its way (in stage `Asking` with term 0, which nobody grants: it only asks).
    Voting,
    /// It answered the question for its term.
    Answered,
    /// It granted our term; begin follows when the log is chosen.
    Granted,
    Beginning,
    Streaming,
}

/// An acceptor, as its writer knows it.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) disk: DiskId,
    pub(crate) phase: Phase,
    pub(crate) attempt: u32,
    pub(crate) heard_at_us: u64,
    pub(crate) vote: Option<VoteReply>,
    /// Next byte to send.
    pub(crate) next: Lsn,
    /// Durable there in our log; counts although the connection may be gone.
    pub(crate) acked: Lsn,
    pub(crate) fetching: bool,
    pub(crate) commit_sent: Lsn,
    /// Up to where it was told that all others have the log.
    pub(crate) peers_sent: Lsn,
}

impl Peer {
    pub(crate) fn new(disk: DiskId) -> Self {
        Peer {
            disk,
            phase: Phase::Offline,
            attempt: 0,
            heard_at_us: 0,
            vote: None,
            next: Lsn::INVALID,
            acked: Lsn::INVALID,
            fetching: false,
            commit_sent: Lsn::INVALID,
            peers_sent: Lsn::INVALID,
        }
    }
}
