//! What goes into a proposer, and what comes out.

use bytes::Bytes;

use ardent_api::wal_service::{Append, AppendReply, Begin, BeginReply, RecordEnd, Vote, VoteReply};
use ardent_types::{Lsn, Term};

use crate::configuration::{Configuration, DiskId};

/// Who answered a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its disk. It counts for this one only, whatever its address.
    pub disk: DiskId,
    /// What it goes by.
    pub configuration: Configuration,
}

/// What happened. `peer` is the acceptor's index.
#[derive(Debug)]
pub enum ProposerInput {
    /// A connection to an acceptor is up; nothing sent before on another one counts.
    Connected(usize),
    /// It is gone.
    Disconnected(usize),
    /// Answer to a vote.
    Vote(usize, VoteReply, Voter),
    /// Answer to a begin.
    Begin(usize, BeginReply),
    /// Answer to appends.
    Append(usize, AppendReply),
    /// Answer to [`ProposerEffect::Scan`].
    Scanned {
        /// The scan's.
        term: Term,
        /// The end of the last whole record; absent: the donor could not be read.
        cut: Option<RecordEnd>,
    },
    /// Answer to [`ProposerEffect::Fetch`] for this peer; empty when it failed.
    Fetched {
        /// For whom.
        peer: usize,
        /// The fetch's: bytes that were read for an earlier election are not this one's log.
        term: Term,
        /// Position of the first byte.
        start: Lsn,
        /// The bytes.
        bytes: Bytes,
    },
    /// New WAL at the end of the log, and the last record end in it. Only after [`ProposerEffect::Elected`].
    Write {
        /// The bytes, cut anywhere.
        data: Bytes,
        /// The last record that ends in or at the end of them.
        record_end: Option<RecordEnd>,
    },
    /// Time has passed. Wanted every `resend_after_us` or a few times as often.
    Tick,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProposerEffect {
    /// Send to an acceptor, with [`Proposer::configuration`](crate::Proposer::configuration).
    SendVote(usize, Vote),
    /// Send to an acceptor, as one that goes by the generation of [`Proposer::configuration`](crate::Proposer::configuration).
    SendBegin(usize, Begin),
    /// Send to an acceptor, as one that goes by the generation of [`Proposer::configuration`](crate::Proposer::configuration).
    SendAppend(usize, Append),
    /// Read `[from.end, to)` from this acceptor and find the last whole record; if there is none, it is `from` itself.
    Scan {
        /// The acceptor.
        donor: usize,
        /// A term that the read is bound to.
        term: Term,
        /// A record end.
        from: RecordEnd,
        /// End of its log.
        to: Lsn,
    },
    /// Read some of `[from, to)` from one acceptor for another.
    Fetch {
        /// For whom.
        peer: usize,
        /// From whom.
        donor: usize,
        /// A term that the read is bound to.
        term: Term,
        /// First byte.
        from: Lsn,
        /// First byte not wanted.
        to: Lsn,
    },
    /// The election is won and the log complete on a quorum.
    Elected(Elected),
    /// A quorum has more of the log.
    Progress {
        /// First byte that is not durable on a quorum.
        flushed: Lsn,
        /// The last record end below it.
        commit: RecordEnd,
    },
    /// The members have changed: this acceptor is one, at the next free index. Connect to it.
    Join(usize, DiskId),
    /// The members have changed: this acceptor is none any more. Its index is not used again.
    Leave(usize),
    /// The proposer will do nothing more.
    Closed(CloseReason),
}

/// What a won election found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elected {
    /// The term.
    pub term: Term,
    /// End of the log: a record end. The next byte goes here.
    pub end_lsn: Lsn,
    /// Start of the last record; [`Lsn::INVALID`] if the timeline was created without telling it and is empty.
    pub prev_lsn: Lsn,
    /// Where the timeline begins.
    pub start_lsn: Lsn,
    /// The last term that began before this election, 0 if none: its writer made the log that was found, from where its term began to the end.
    pub previous_term: Term,
}

/// Why a proposer ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// Another writer has been promised a higher term.
    #[error("another writer took this timeline over in term {0}")]
    Fenced(Term),
    /// Acceptors contradict each other in a way that no crash explains.
    #[error("the safekeepers' logs contradict each other: {0}")]
    Contradiction(String),
}
