//! Talks to safekeepers: writes a timeline's WAL through a quorum, reads what is committed, manages timelines.
//!
//! ```text
//!  agent, connector ──append──► Proposer ──► owner task ──► one task per safekeeper ══ wal_service ══► safekeepers
//!        ◄── flushed, committed, closed ──      │ (ardent_quorum::Proposer decides)
//!                                               └─ finds record ends with ardent_pg_format
//!        ── walsender's connection ──► Handover ── descriptor ──► the one safekeeper, which writes what comes from there by itself
//!  page server ◄── WalChunk ── WalReader ◄══ wal_service ══ one safekeeper
//!  control ──── create, delete, status ──── SafekeeperClient ══ wal_service ══ one safekeeper
//! ```
//!
//! Invariants: what `flushed` says is durable on a quorum; `committed` is a record end at or below it; memory is bounded (an append
//! waits while too much is unacknowledged); a [`Proposer`] that says [`ProposerError::Fenced`] has stopped for good; off this host, no
//! token is sent before who gets it has proved to be the safekeeper (`ardent_service_tls`).
//!
//! Not known here: how Postgres is connected to ([`walsender`] has what a stream of its WAL consists of), what happens to a compute whose proposer has ended.
//!
//! Start reading with [`Proposer::elect`].

mod connection;
mod error;
mod handover;
mod management;
mod peer;
mod proposer;
mod reader;
mod tail;
pub mod walsender;

pub use ardent_api::wal_service::{Ancestor, Received, StreamEnd, TimelineSpec, TimelineStatus, WalChunk};
pub use error::{ClientError, ProposerError};
pub use handover::{Handover, HandoverError};
pub use management::SafekeeperClient;
pub use proposer::{Elected, Proposer, ProposerConfig};
pub use reader::WalReader;
