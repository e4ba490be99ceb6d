//! The redo oracle: `ardent inspect verify-redo`.
//!
//! With `wal_consistency_checking = all`, Postgres logs beside every change the page as it left it. The oracle redoes each
//! record on pages of its own and compares:
//!
//! ```text
//!  WAL folder ──WalFolder──► records ──► Oracle ── our page (from our previous output) ──┐
//!                                          │                                            ├─ compare under the mask ─► Report
//!                                          └── the logged page ─────────────────────────┘
//! ```
//!
//! Invariants:
//! - A page starts from our own previous output. The logged page is taken over only where it is an image to apply, or where
//!   the block is seen for the first time and its history lies before the WAL at hand; both are counted.
//! - Redo goes through the values that storage keeps ([`ardent_pg_redo::Value`]), so their encoding is proven with it.
//! - What Postgres masks is masked in the same way, and counted. What it masks without need is compared all the same: each
//!   page's LSN and `PD_ALL_VISIBLE`, and the visibility map's bits, the ones that are derived included.
//!
//! With a base ([`EndStateArgs`]), a second oracle runs along: ingest from that base on, compared at the end with the files of the
//! server, page LSNs and map bits unmasked ([`EndState`]).
//!
//! It knows nothing of storage or services. Start with [`run`].

mod end;
mod files;
mod mask;
mod oracle;
mod report;
mod store;
mod vm_check;

use std::path::PathBuf;

use ardent_pg_redo::HintBits;
use ardent_types::Lsn;

pub use end::{EndDifference, EndError, EndReport, EndState, Leave, LeaveCount};
pub use files::{FilesError, WalFolder};
pub use oracle::{Oracle, OracleError, Tamper};
pub use report::{Expectations, ExpectationsError, ExpectedTypes, Mismatch, Report, TypeReport};

/// The record types of Postgres 15 that a thorough workload must reach, and the refusals that are allowed.
pub const EXPECTED_15: &str = include_str!("../expected-15.txt");
/// The same for Postgres 16.
pub const EXPECTED_16: &str = include_str!("../expected-16.txt");
/// The same for Postgres 17.
pub const EXPECTED_17: &str = include_str!("../expected-17.txt");
/// The same for Postgres 18.
pub const EXPECTED_18: &str = include_str!("../expected-18.txt");

/// What to verify.
#[derive(Clone, Debug, Default)]
pub struct VerifyRedoArgs {
    /// Folder of WAL segments (`pg_wal`).
    pub wal: PathBuf,
    /// Where to start: a record boundary. Default: the first whole record of the oldest segment.
    pub start: Option<Lsn>,
    /// Records that start at or past this are not read. Default: where the WAL ends.
    pub end: Option<Lsn>,
    /// The list of record types that must be checked, and of refusals that are allowed; [`EXPECTED_15`] shows the format. Without
    /// one, what the WAL has is verified, whatever it lacks.
    pub expect: Option<ExpectedTypes>,
    /// Whether the cluster logs hint bits (checksums or `wal_log_hints`); decides which pages `Heap2/VISIBLE` stamps.
    pub hint_bits: HintBits,
    /// Also compare the server's files at the end.
    pub end_state: Option<EndStateArgs>,
}

/// Two data directories of one server, stopped cleanly both times.
#[derive(Clone, Debug)]
pub struct EndStateArgs {
    /// As it was before the WAL was written.
    pub base: PathBuf,
    /// As it is at the end of the WAL.
    pub data: PathBuf,
}

/// Why no verdict could be reached.
#[derive(Debug, thiserror::Error)]
pub enum VerifyRedoError {
    /// The WAL can't be read.
    #[error("the WAL can't be read")]
    Files(#[from] FilesError),
    /// A record makes no sense.
    #[error("verification stopped")]
    Oracle(#[from] OracleError),
    /// The list of expected record types can't be read.
    #[error("the list of expected record types can't be used")]
    Expectations(#[from] ExpectationsError),
    /// The server's files can't be compared.
    #[error("the server's files can't be compared")]
    EndState(#[from] EndError),
}

/// Verifies redo over a folder of WAL. The report says whether it passed ([`Report::passed`]).
pub fn run(args: &VerifyRedoArgs) -> Result<Report, VerifyRedoError> {
    let mut folder = WalFolder::open(&args.wal, args.start, args.end)?;
    let expectations = args.expect.as_ref().map(|expect| expect.load(folder.major().number())).transpose()?;
    let mut oracle = Oracle::new(folder.major(), args.hint_bits);
    let mut end_state = args.end_state.as_ref().map(|args| EndState::begin(&args.base)).transpose()?;
    while let Some(record) = folder.next_record()? {
        oracle.check(&record)?;
        if let Some(end_state) = &mut end_state {
            end_state.follow(&record)?;
        }
    }
    let mut report = oracle.finish();
    report.range = folder.range();
    if let (Some(end_state), Some(args)) = (end_state, &args.end_state) {
        report.end_state = Some(end_state.compare(&args.data)?);
    }
    if let Some(expectations) = &expectations {
        report.expect(expectations);
    }
    Ok(report)
}
