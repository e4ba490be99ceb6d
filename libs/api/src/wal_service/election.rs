//! How a writer is elected and where it may append: votes, terms and their history.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use ardent_types::{Lsn, Term, WalSegmentSize};

/// One run of a writer: two writers that ask for the same term are told apart by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposerId(u128);

impl ProposerId {
    /// Nobody: the vote has not been given.
    pub const NONE: ProposerId = ProposerId(0);

    /// The id with this number.
    pub const fn new(raw: u128) -> Self {
        ProposerId(raw)
    }

    /// Its number.
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl std::fmt::Display for ProposerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for ProposerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ProposerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // A sign would be taken for a part of the number.
        let digits = Some(text.as_str()).filter(|text| text.len() == 32 && !text.starts_with('+'));
        let raw = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        raw.map(ProposerId).ok_or_else(|| serde::de::Error::custom(format!("not a proposer's id: {text:?}")))
    }
}

/// The end of a whole record, and where that record starts (the `xl_prev` of the record that follows).
///
/// `end` is aligned to 8 and never moved past a page header; after a segment switch it is the end of the segment.
/// `start` is [`Lsn::INVALID`] where the record is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct RecordEnd {
    /// First byte after the record.
    pub end: Lsn,
    /// First byte of the record.
    pub start: Lsn,
}

/// A term and the position from which on its writer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TermStart {
    /// Term.
    pub term: Term,
    /// Its writer's first byte.
    pub lsn: Lsn,
}

/// A writer asks to be the only one from `term` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Repeated by the reply, so that a late reply to an earlier question is known for one.
    pub attempt: u32,
    /// Term asked for.
    pub term: Term,
    /// Who asks.
    pub proposer: ProposerId,
}

/// Answer to a [`Vote`], sent after the vote is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteReply {
    /// The vote's.
    pub attempt: u32,
    /// The highest term promised.
    pub term: Term,
    /// Whether the writer that asked holds that term here.
    pub granted: bool,
    /// The terms in this safekeeper's log, ascending, up to `flush_lsn`.
    pub history: Vec<TermStart>,
    /// End of the durable log (first byte not durable). May lie in the middle of a record.
    pub flush_lsn: Lsn,
    /// Up to where this safekeeper knows the log to be committed.
    pub commit: RecordEnd,
    /// Where the timeline begins.
    pub start: RecordEnd,
    /// The oldest byte that is still kept here.
    pub oldest_lsn: Lsn,
    /// Major version.
    pub pg_major: u32,
    /// WAL segment size in bytes.
    pub wal_segment_size: WalSegmentSize,
}

/// An elected writer tells what the log is; the safekeeper cuts off what diverges from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Repeated by the reply.
    pub attempt: u32,
    /// The writer's term, the last one in `history`.
    pub term: Term,
    /// The terms of the writer's log.
    pub history: Vec<TermStart>,
    /// Up to here the safekeeper's log and the writer's are the same; what lies beyond is cut off.
    pub common_lsn: Lsn,
}

/// Answer to a [`Begin`], sent after the history is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginReply {
    /// The begin's.
    pub attempt: u32,
    /// The highest term promised. Above the writer's: it is fenced.
    pub term: Term,
    /// End of the durable log.
    pub flush_lsn: Lsn,
}
