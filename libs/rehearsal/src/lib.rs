//! Runs a migration on a branch and reports what each of its statements locks, writes and rewrites.
//!
//! ```text
//!  file ──► Script: statements, with their lines
//!              │ one after the other
//!              ▼
//!           session ──► statement, and in its transaction a look: locks held, WAL, files, rows written
//!              ▲
//!           monitor ──► looks at the session's locks every 2 to 50 ms while a statement runs; cancels it
//!              │
//!              ▼
//!           RehearsalReport ──► JSON, or text for whoever decides
//! ```
//!
//! Invariants:
//! - Statements are run as psql runs them: one by one, each in a transaction of its own unless the file opens one. Looks come behind a
//!   statement and change nothing of how the server treats it.
//! - A lock's time is its longest possible one: never less than what it was held. Time that looks take is left out.
//!
//! It knows nothing of branches: a connection string is all that it has. Start reading at [`rehearse`].

mod clock;
mod locks;
mod look;
mod render;
mod report;
mod run;

pub use locks::{Blocks, LockMode};
pub use render::{duration_text, render};
pub use report::{
    Blocked, LockReport, Notice, RehearsalReport, Rewritten, RowsWritten, StatementError, StatementReport,
    StatementState,
};
pub use run::{RehearsalError, rehearse};
