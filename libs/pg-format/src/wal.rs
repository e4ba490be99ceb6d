//! Reading a WAL stream: bytes in, checked records out.
//!
//! ```text
//!  feed(bytes) ──► chunks ──► pages ──────────► records ────────────► DecodedRecord
//!                  (any cut)  magic, address,   length, xl_prev,       block references
//!                             contrecord flags  CRC-32C
//!                  └────────────────── Framer ─────────────────┘└──── RecordLayout ──────┘
//! ```
//!
//! [`WalDecoder`] gives decoded records; [`RecordBoundaryTracker`] stops at the frames and only says where the last whole record starts
//! and ends. Both take bytes cut anywhere. A record within one page is a slice of the bytes fed, not a copy; a record is there until the
//! next one is asked for.
//!
//! Invariants: a record is given only after its CRC and its link to the record before are right; nothing is ever skipped to find the
//! next good record; after an error every further call gives the same error.

mod boundary;
mod chunks;
mod decoder;
mod error;
mod framer;
mod header;

pub use boundary::{RecordBoundaryTracker, RecordSpan};
pub use decoder::WalDecoder;
pub use error::{WalError, WalProblem};
pub use framer::{FramedRecord, Framer, StreamStart};
pub use header::{
    LONG_HEADER_LEN, PageFlags, SHORT_HEADER_LEN, WAL_PAGE_LEN, WalPageHeader, WalPageLongFields, page_header_len,
};
