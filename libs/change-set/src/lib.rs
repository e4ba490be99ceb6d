//! Change sets: what a branch changed, as a file that is reviewed, applied to another database, and undone.
//!
//! ```text
//!  ChangeSet of ardent-diff ──► file (docs/formats/change-set.md) ──► ChangeSet
//!                                                                        │
//!                                            selection: what is wanted, as a change set of its own
//!                                                                        │
//!   target database ◄── one transaction ── apply: guard ─ DDL ─ rows ─ DDL ─ sequences ──► conflicts, or the inverse change set
//!                                                  dml: the statements' text  (also the script of `branch diff --sql`)
//! ```
//!
//! A change set knows three things about a row: what it was at the branch point, what the branch made of it, and (when it is
//! applied) what the target has. What only the branch changed is applied; what both changed alike is left; what both changed
//! in different ways is a conflict.
//!
//! Invariants:
//! - CS-1: a target is changed by one transaction or not at all; with any conflict, not at all.
//! - CS-2: every row that is updated or deleted was compared with what the branch point had, and locked, before.
//! - CS-3: the inverse holds what the target had, not what the branch point had.
//! - CS-4: a file that is truncated, or differs in one bit, is refused.
//! - CS-5: what is chosen is applied alone, or not at all: what it needs besides is named, or taken along if that is wanted.
//! - CS-6: what goes of rows with a change of the schema is in the inverse, whether or not the change set knows those rows; or a note says
//!   what is not.
//! - CS-7: the inverse is whole before a target's change is committed ([`Prepared`]), so that it can be durable by then.
//! - CS-8: what foreign keys do by themselves they do to rows that the change set deletes or gives another reference, and to no others.
//!
//! Start reading at [`prepare`].

mod apply;
mod choice;
mod dml;
mod exchange;
mod file;
mod foreign_keys;
mod guard;
mod inverse;
mod large_object;
mod outcome;
mod remote;
mod schema_choice;
mod script;
mod selection;
mod target;

pub use apply::{ApplyOptions, Prepared, apply, prepare};
pub use choice::{NotARow, RowChoice};
pub use file::{ChangeSetFile, FileError, read, read_file, write, write_file};
pub use guard::Prefer;
pub use outcome::{Applied, ApplyError, CONFLICTS_MAX, ColumnConflict, Conflict};
pub use remote::{ApplyEvent, ApplyRequest, CommitReply, RebaseReply, RebaseRequest, RemoteApplied, elsewhere};
pub use script::script;
