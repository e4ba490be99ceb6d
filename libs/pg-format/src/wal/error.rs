//! What can be wrong with a WAL stream.

use ardent_types::{Lsn, PgTli, SystemId};

use crate::record::RecordDecodeError;

/// A WAL stream can't be read further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("WAL can't be read at {lsn}: {problem}")]
pub struct WalError {
    /// Where: the start of the record or page concerned.
    pub lsn: Lsn,
    /// What is wrong.
    pub problem: WalProblem,
}

impl WalError {
    /// Whether a server that recovers from a crash would take this as the end of its WAL (checklist 10). In WAL that a quorum has
    /// committed there is no such end: there, every error is corruption.
    pub fn may_be_end_of_wal(&self) -> bool {
        !matches!(
            self.problem,
            WalProblem::Gap { .. } | WalProblem::Start | WalProblem::Record(_) | WalProblem::SystemId { .. }
        )
    }
}

/// What is wrong with WAL at one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalProblem {
    /// Bytes were fed that do not follow the ones before (checklist 7).
    #[error("the bytes fed start at {given}, {expected} was expected")]
    Gap {
        /// Where they should start.
        expected: Lsn,
        /// Where they start.
        given: Lsn,
    },
    /// Reading can't start here: inside a page header.
    #[error("it is inside a page header, so no record starts there")]
    Start,
    /// Another major's WAL, or no WAL.
    #[error("the page's magic number is {found:#06X}, {expected:#06X} was expected")]
    Magic {
        /// Of the major that is read.
        expected: u16,
        /// On the page.
        found: u16,
    },
    /// Unknown flags, or a long header in the wrong place or missing.
    #[error("the page has impossible flags {0:#06X}")]
    PageFlags(u16),
    /// The page belongs elsewhere: a recycled segment.
    #[error("the page says it is the one at {0}")]
    PageAddress(Lsn),
    /// The segment is of another size.
    #[error(
        "the segment's header says segments have {found} bytes and pages {page_len}; {expected} and 8192 were expected"
    )]
    SegmentSize {
        /// Expected bytes.
        expected: u32,
        /// Bytes found.
        found: u32,
        /// WAL page size found.
        page_len: u32,
    },
    /// The segment belongs to another cluster.
    #[error("the segment is of the cluster with system identifier {found}, {expected} was expected")]
    SystemId {
        /// Expected.
        expected: SystemId,
        /// Found.
        found: SystemId,
    },
    /// Postgres's timeline ids never fall along a stream.
    #[error("the page is on Postgres timeline {found}, after one on {before}")]
    TimelineBackwards {
        /// Of an earlier page.
        before: PgTli,
        /// Of this page.
        found: PgTli,
    },
    /// A record should start here, but the page begins with the rest of one.
    #[error("the page begins with the rest of a record, but none was being read")]
    UnexpectedContinuation,
    /// The rest of a record should be here.
    #[error("the page should begin with the rest of the record at {record}, and does not")]
    MissingContinuation {
        /// Where that record starts.
        record: Lsn,
    },
    /// The rest of a record has another length than the record said.
    #[error("the page continues the record at {record} with {found} bytes, {expected} are missing")]
    ContinuationLength {
        /// Where that record starts.
        record: Lsn,
        /// Bytes that are missing.
        expected: u32,
        /// What the page says.
        found: u32,
    },
    /// Nothing was written here.
    #[error("nothing was written there: the record length is zero")]
    ZeroLength,
    /// No record has this length.
    #[error("a record of {0} bytes is impossible")]
    RecordLength(u32),
    /// No such resource manager.
    #[error("resource manager {0} is impossible")]
    ResourceManager(u8),
    /// The record does not follow the one before it.
    #[error("the record before it should start at {}, but it says {found}", display_prev(*.expected))]
    PrevLink {
        /// Start of the record before; `None`: any earlier LSN would do.
        expected: Option<Lsn>,
        /// `xl_prev`
        found: Lsn,
    },
    /// Bytes were changed.
    #[error("the record's CRC is {found:#010X}, its bytes have {computed:#010X}")]
    Crc {
        /// In the header.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A page announced that the record at `aborted` was given up, and the record that says so is not there (checklist 6).
    #[error("the record should be the one that gives up the record at {aborted}")]
    OverwriteRecord {
        /// Start of the record given up.
        aborted: Lsn,
    },
    /// The record is whole, but its parts don't fit.
    #[error(transparent)]
    Record(RecordDecodeError),
}

fn display_prev(expected: Option<Lsn>) -> String {
    expected.map_or_else(|| "earlier".to_owned(), |lsn| lsn.to_string())
}
