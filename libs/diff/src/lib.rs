//! What changed between two states of a database, read from changed blocks alone.
//!
//! ```text
//!  page server: blocks changed in (S, head] ──┐      schema: ardent-schema-diff, if a catalog's blocks changed
//!                                             ▼
//!  compute at the branch point ──► catalog ─► scan: rows of just those blocks, both sides ─► pairing ─► ChangeSet ─► render
//!  compute of the branch       ──►            (ctid ranges; whole tables where rewritten)      │       (or lines, part by part)
//!                                                                                              └── spool ───┘
//! ```
//!
//! Rows that are in both sides cancel out; the rest is paired by primary key into inserts, updates and deletes. Values
//! are compared and shown as text, in one fixed set of output settings. What memory has no room for is in temporary files: rows
//! that wait for their partner as sorted runs (`pairing`), changes as lists that are read from either end (`spool`).
//!
//! Invariants:
//! - DF-1: a row is read only if its block changed, or its table was rewritten, created or dropped, or a transaction that
//!   was prepared at the branch point held a lock on its table; or if the table has changed rows and no key, and is short.
//! - DF-2: both sides are read in one snapshot each; the changed blocks are asked for up to an LSN taken after the
//!   head's snapshot.
//! - DF-3: what goes into `pairing` on one side only comes out exactly once.
//! - DF-4: memory is bounded whatever changed: [`PAIRING_BYTES_MAX`] for the rows of the table at hand, [`MEMORY_BYTES_MAX`] for all
//!   lists, and a block, or the longest row, of each list at hand.
//!
//! Knows nothing of branches, timelines or how a compute is started. Start reading at [`compare`].

mod catalog;
mod change_set;
mod compare;
mod error;
mod labels;
mod large_objects;
mod lines;
mod pairing;
mod render;
mod report;
mod scan;
mod sequences;
mod session;
mod spool;
mod stat;
mod wanted;

pub use ardent_schema_diff::Identity;
pub use catalog::keys;
pub use change_set::{
    ChangeSet, LargeObjectChange, PageChange, RowChange, RowCounts, SchemaChange, SequenceChange, Sides, TableChange,
    TableState,
};
pub use compare::{
    CompareOptions, Found, PAIRING_BYTES_MAX, PIECES_WAITING_MAX, Part, Piece, compare, compare_in_pieces,
};
pub use error::DiffError;
pub use labels::{ENUM_LABELS, EnumLabel};
pub use lines::{DiffEnd, END_LINE, ERROR_LINE, write_end, write_error, write_lines};
pub use pairing::{Order, Pairing, RowValues};
pub use render::{Style, render_people, render_stat};
pub use report::DiffReport;
pub use sequences::{LOGGED_AHEAD, SequenceFooting};
pub use session::Session;
pub use spool::{Item, MEMORY_BYTES_MAX, Spool, SpoolError, memory_bytes, spill_into};
pub use stat::{ChangeSetStat, DiffStat, LargeObjectStat, ObjectStat, SchemaStat, TableStat};
pub use wanted::{names, unknown, unquoted};
