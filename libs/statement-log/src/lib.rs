//! The log of what a branch ran: every statement that a client sent, and how its transaction ended.
//!
//! ```text
//!  session in Postgres ── Record::encode ──► its ring in a shared file (Slot::push)
//!                                                │
//!                         agent ── RingReader ───┘
//!                           │ passwords taken out
//!                           ▼
//!                        LogWriter ──► segments in the branch's folder ──► read_log ──► control, CLI
//! ```
//!
//! Invariants:
//! - `SL-1`: what a client heard as done is in a ring before it heard of it, and in a segment before the ring's room is used again.
//! - `SL-2`: nothing in a ring or a segment makes a reader panic or use more memory than one of them is long.
//! - `SL-3`: a log has at most the length that was set, but for the newest segment; what was dropped is told.
//! - `SL-4`: after a crash a log ends with a block that is whole.
//!
//! What it does not know: Postgres, branches, sockets; who rings the bell and who answers it. The library inside Postgres takes
//! [`Record`] and [`Ring`] alone (no default features). Start reading in `record.rs`; the bytes are in
//! `docs/formats/statement-log.md`.

#[cfg(feature = "files")]
mod entry;
#[cfg(feature = "files")]
mod line;
#[cfg(feature = "files")]
mod reader;
mod record;
#[cfg(feature = "files")]
mod redact;
mod ring;
#[cfg(feature = "files")]
mod ring_reader;
#[cfg(feature = "files")]
mod segment;
#[cfg(feature = "files")]
mod writer;

#[cfg(feature = "files")]
pub use entry::{EntryKind, LogEntry, LogFilter, Outcome};
#[cfg(feature = "files")]
pub use line::{BlameFound, BlameReply, BlameRequest, LogEnd, LogLine, LogRequest};
#[cfg(feature = "files")]
pub use reader::{
    Amount, KnownTransaction, Position, ReadError, ReadSummary, find_transaction, read_log, statements_of,
};
pub use record::{
    CHILDREN_MAX, End, Failed, MESSAGE_MAX, PARAMETERS_MAX, RECORD_MAX, Record, RecordError, Session, Statement,
    TEXT_MAX, TransactionEnd, cut,
};
pub use ring::{Pushed, Ring, SLOT_LEN, SLOTS_MAX, Slot};
#[cfg(feature = "files")]
pub use ring_reader::{Batch, RingReader};
#[cfg(feature = "files")]
pub use segment::{Segment, SegmentError, SegmentFile, SegmentHeader, SessionKey, segments};
#[cfg(feature = "files")]
pub use writer::{LOG_LEN_MIN, LogWriter};

#[cfg(test)]
mod tests;
