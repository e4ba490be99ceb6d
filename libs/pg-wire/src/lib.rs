//! The Postgres wire protocol as a client: replication connections, base backups, SQL over the simple protocol.
//!
//! ```text
//!  ConnectConfig (URL) ──► Connection (TCP, TLS or Unix socket; trust, password, md5, SCRAM)
//!                             │ query ──────────► rows
//!                             │ copy_out ───────► CopyOut: a table's rows, out of their messages
//!                             │ copy_in ◄──────── CopyIn: the same the other way
//!                             │ run_statement ──► how one statement went, and what could be seen before its transaction ended
//!                             │ start_replication ► ReplicationStream: WAL in, standby status out
//!                             │ start_logical ────► the same, with what the plugin pgoutput makes of WAL
//!                             └ base_backup ─────► BaseBackup: tar archives as they come
//! ```
//!
//! Ordinary drivers (tokio-postgres among them) can't stream physical replication, end a transaction before anybody could look at its
//! locks, and hand out rows of a copy one at a time: that is what this crate adds to them.
//!
//! Invariants: nothing from the server panics; a message longer than [`MESSAGE_LEN_MAX`], or [`CHANGE_LEN_MAX`] in a logical stream, is
//! refused before it is read; passwords are never printed.
//!
//! Knows nothing of WAL's content, timelines of Ardent, or storage.

mod base_backup;
mod config;
mod connection;
mod copy;
mod driver;
mod error;
mod handshake;
mod message;
mod replication;
mod statement;
mod stream;
mod timeline_history;
mod tls;

pub use base_backup::{BackupEvent, BackupTablespace, BaseBackup, BaseBackupOptions, CheckpointMode};
pub use config::{ConnectConfig, ConnectMode, TlsMode};
pub use connection::{Connection, QueryResult};
pub use copy::{CopyIn, CopyOut};
pub use driver::driver;
pub use error::{ConfigError, ServerError, WireError};
pub use message::{CHANGE_LEN_MAX, MESSAGE_LEN_MAX};
pub use replication::{
    LogicalSlot, ReplicationMessage, ReplicationStream, SlotLifetime, SlotState, StandbyStatus, SystemIdentity,
};
pub use statement::{NOTICES_MAX, StatementRun, TransactionStatus};
pub use timeline_history::TimelineHistory;
