//! From WAL records and base-backup files to storage keys, and from storage keys to a base backup. Without I/O.
//!
//! ```text
//!  files of a base backup ──► Import ─────┐
//!                                         ├──► Batch: (Key, Lsn, Value) ──► storage
//!  DecodedRecord ───────────► Ingest ─────┘                                    │
//!                               ▲                                              │
//!                               └───────────────── ReadState ◄─────────────────┤
//!  BackupItem ◄──────────────── base_backup ◄───── ReadState at an LSN ◄───────┤
//!  UnnamedFile ◄────────────── unnamed_files ◄──── ReadState at an LSN ◄───────┘
//! ```
//!
//! Invariants:
//! - One value per key and LSN, in LSN order; the LSN is the end of the record, for an import the backup's start.
//! - Whatever a record changes is in the batch when it is done: the timeline can be read and branched from at each record's end.
//! - A record that can't be understood makes the blocks that it touches unreadable, with its name; nothing is skipped in silence.
//! - Reading is rare: relation sizes, counters, origins and prepared transactions are kept here. A record of a relation that was
//!   seen before reads nothing.
//!
//! It knows neither how storage keeps values nor where WAL comes from. Start with [`Ingest`], then `ingest/blocks.rs`.

mod base_backup;
mod import;
mod ingest;
mod slru;
mod state;
mod unnamed;

pub use base_backup::{BackupError, BackupPoint, base_backup};
pub use import::{Import, ImportError, Imported};
pub use ingest::{Ingest, IngestError, Progress};
pub use state::{Batch, LastRecord, ReadState, UnknownRecord};
pub use unnamed::{Unnamed, UnnamedError, UnnamedFile, unnamed_files};
