//! What a rehearsal found, as data.

use serde::Serialize;

use crate::locks::{Blocks, LockMode};

/// What a rehearsal found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RehearsalReport {
    /// Whether every statement was run without an error, and no transaction was left open.
    pub succeeded: bool,
    /// Whether somebody ended it before its end.
    pub interrupted: bool,
    /// Whether the file ends inside of a transaction, which is rolled back then.
    pub ends_in_transaction: bool,
    /// How long the statements took, commits included, in microseconds.
    pub duration_us: u64,
    /// WAL that was written meanwhile, in bytes.
    pub wal_bytes: u64,
    /// What others could not have read or written meanwhile; the longest first.
    pub blocked: Vec<Blocked>,
    /// All statements of the file, those that were not run included.
    pub statements: Vec<StatementReport>,
}

/// How long a table would have been blocked for others, at most, from when the locks on it were given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// Its name before the migration.
    pub relation: String,
    /// `table`, `materialized view` and so on.
    pub kind: &'static str,
    /// The longest time without reads, in microseconds.
    pub reads_us: u64,
    /// The longest time without writes, in microseconds.
    pub writes_us: u64,
    /// The statement with which that longest time without writes began.
    pub from_statement: usize,
    /// The one with which it ended.
    pub until_statement: usize,
}

/// How far a statement came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StatementState {
    /// Run.
    Done,
    /// Run, and refused.
    Failed,
    /// Not run, because of what was before it.
    #[default]
    NotRun,
}

/// What one statement did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatementReport {
    /// Its place in the file, from 1.
    pub number: usize,
    /// The line on which it begins, from 1.
    pub line: usize,
    /// Its text on one line, cut if it is long.
    pub sql: String,
    /// How far it came.
    pub state: StatementState,
    /// What the server called it when it was done.
    pub command_tag: Option<String>,
    /// How long it took, its commit included, in microseconds.
    pub duration_us: Option<u64>,
    /// WAL that was written meanwhile, in bytes.
    pub wal_bytes: Option<u64>,
    /// Locks on relations that were there before the migration.
    pub locks: Vec<LockReport>,
    /// Whether it ran several transactions, so that only looks every so often saw its locks.
    pub locks_sampled: bool,
    /// Rows that it wrote, triggers and cascades included.
    pub rows: Vec<RowsWritten>,
    /// Relations that were there before and whose files it wrote anew.
    pub rewritten: Vec<Rewritten>,
    /// What the server said besides.
    pub notices: Vec<Notice>,
    /// Notices that were left out.
    pub notices_left_out: u64,
    /// Why it failed.
    pub error: Option<StatementError>,
}

/// A lock that a statement took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LockReport {
    /// The relation's name before the migration.
    pub relation: String,
    /// What it is.
    pub kind: &'static str,
    /// The table that an index is of.
    pub table: Option<String>,
    /// The lock.
    pub mode: LockMode,
    /// What others cannot do meanwhile.
    pub blocks: Blocks,
    /// How long it was held, at most, in microseconds.
    pub held_us: u64,
    /// The statement with which it was let go of.
    pub until_statement: usize,
}

/// Rows of one table that a statement wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowsWritten {
    /// The table.
    pub relation: String,
    /// Inserted, also by `COPY` and `CREATE TABLE AS`.
    pub inserted: u64,
    /// Updated.
    pub updated: u64,
    /// Deleted, but not by `TRUNCATE`.
    pub deleted: u64,
}

/// A relation whose file was written anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rewritten {
    /// Its name before the migration.
    pub relation: String,
    /// What it is.
    pub kind: &'static str,
    /// The table that an index is of.
    pub table: Option<String>,
    /// Its size now.
    pub bytes: u64,
    /// Whether it is new because `TRUNCATE` emptied the old one.
    pub emptied: bool,
}

/// What the server said besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// `NOTICE`, `WARNING` and so on.
    pub severity: String,
    /// SQLSTATE.
    pub sqlstate: String,
    /// Message.
    pub message: String,
}

/// Why a statement failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatementError {
    /// SQLSTATE.
    pub sqlstate: String,
    /// Message.
    pub message: String,
    /// Detail, if given.
    pub detail: Option<String>,
    /// Hint, if given.
    pub hint: Option<String>,
    /// In which function, if given.
    pub context: Option<String>,
    /// Where in the file, from 1: where the statement begins, if the server did not say more.
    pub line: usize,
    /// The same, in characters.
    pub column: usize,
}
