//! Follows a production server by logical replication, where it gives no physical one.
//!
//! ```text
//!             ┌─ publication, slot ──► a moment ─┬─ pg_dump ──► schema ─┐
//!  production ┤                                  └─ COPY, 4 at once ────┼──► root branch's Postgres ──► its agent, the quorum
//!             └─ pgoutput stream ──► decoder ──► applier ───────────────┘
//! ```
//!
//! The root timeline begins as an empty cluster ([`bootstrap`]), imported as any production is. From then on the root branch has a
//! compute, which is woken when there is something to write and which nobody else reaches.
//!
//! Invariants:
//! - LG-1: a change is applied exactly once: its transaction's commit on the root carries production's LSN (a replication origin), and
//!   what lies below is skipped.
//! - LG-2: a table's changes are applied from the moment on that its copy shows, so tables that were copied at different moments agree
//!   once all of these are reached; only then is the root branch shown to anybody.
//!   Tables that are added later come whole, in one transaction of a root that is at exactly their moment.
//! - LG-3: what cannot be applied is never passed over: an error names the table, and nothing behind it is applied.
//! - LG-4: on production there are a slot and a publication of ours, and nothing else is changed.
//! - LG-5: production is told that a change is flushed only after a quorum has the root's commit of it.
//! - LG-6: production is told of no position that the root's origin does not show and that is not remembered: a slot that is further than
//!   both was moved by somebody else. A publication that is not as it is remembered was changed by somebody else. Either stops.
//!
//! Start reading with `run.rs`, then `stream.rs` and `apply.rs`.

mod altered;
mod apply;
mod bootstrap;
mod config;
mod copy;
mod ddl;
mod drift;
mod dump_statement;
mod enums;
mod error;
mod lookout;
mod new_tables;
mod outside;
mod partitions;
mod preflight;
pub(crate) mod program;
mod publication;
mod relation;
mod replaced;
mod rewrites;
mod root_sessions;
mod row_format;
mod run;
mod same_columns;
mod schema;
mod sequences;
mod session;
mod slot;
mod state;
mod statements;
mod status;
mod stream;
mod tables;
mod verify;
mod waits;

pub use bootstrap::bootstrap;
pub use config::{LogicalConfig, RootAt, RootBranch, RootFuture};
pub use error::LogicalError;
pub use new_tables::add_tables;
pub use preflight::preflight_logical;
pub use run::{LogicalHandle, LogicalRun, LogicalStatus, logical_connector};
pub use slot::{can_follow_logical, delete_logical};
pub use state::LogicalPhase;
pub use verify::{bring_current, production_lsn, run_on_root, verify};
