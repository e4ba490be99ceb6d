//! The safekeeper: makes WAL durable for writers, and streams what is committed to readers.
//!
//! ```text
//!  agent, connector ──Vote, Begin, Append──► connection ──commands──► disk worker: one thread for both
//!                   ◄──── durable up to ────     ▲                     │ Acceptor (ardent-quorum) says what to do
//!                                                └────── replies ──────┤ write, write, write, one fsync
//!                                                                      ▼
//!  walsender ──WAL──────────────────► receive ──Append──► (the same worker), where an agent has handed its connection over
//!            ◄── flushed up to ──────────
//!  page server ◄──────── committed WAL ──────── follow ◄── DATA/TENANT/TIMELINE/{state, wal/0000...}
//!  pg_receivewal ◄── streaming replication ── replication ◄──┤
//!                                                            └── whole committed segments ──► archive: the object store
//! ```
//!
//! Who the members are is told by writers and by control, counts with control's signature only, and is kept with each timeline; this one is known
//! by the disk of its folder.
//!
//! Invariants (SK-1 to SK-9 are functions in `ardent_quorum::invariant`):
//! - Nothing is acknowledged before it is durable; one fsync serves all appends that queued up during the one before.
//! - A timeline is owned by one thread; nobody else writes its files. Its writer's connection lives on the same thread, so that an
//!   append wakes one thread once. Readers read committed bytes, which never change, on threads that no fsync holds up.
//! - Past the end of the log its files hold zeros only.
//! - After a failed write or fsync the timeline starts over from what was durable before; others go on.
//! - With an archive nothing is trimmed that is not in it; readers, and writers for a safekeeper that lags, go on there where this safekeeper's own
//!   files end.
//! - What other hosts reach is encrypted, and proves who it is before a client sends its token (`ardent_service_tls`).
//! - Memory is bounded: what a stranger sends before its token, handshakes under way, what a connection has queued, what a batch
//!   writes, one segment while it is archived, a block of one for each reader of the archive, and only timelines in use are loaded.
//!
//! Not known here: what is in a WAL record, who may write which branch (tokens say it), other safekeepers, but for the one that a timeline is
//! copied from when this one joins.
//!
//! Start reading with [`Safekeeper::start`], then `disk_worker`, `timeline`, `wal_files`. Formats:
//! `docs/formats/safekeeper-state.md`, `docs/formats/wal-service.md`, `docs/formats/wal-archive.md`. Protocol: `docs/quorum.md`.

mod archive;
mod archived_segment;
mod connection;
mod control_file;
mod copy;
mod disk;
mod disk_worker;
mod failure;
mod follow;
mod handshake;
mod holders;
mod listener;
mod metrics;
mod rebuild;
mod receive;
mod reconfigure;
mod registry;
mod replication;
mod service;
mod socket;
mod status;
mod timeline;
mod wal_files;

pub use archive::ArchiveError;
pub use archived_segment::SegmentFormatError;
pub use control_file::ControlFileError;
pub use copy::CopyError;
pub use failure::TimelineError;
pub use holders::{CopiedTimeline, OfflineError};
pub use rebuild::{rebuild, rebuild_with_faults};
pub use reconfigure::{reconfigure, reconfigure_with_faults};
pub use service::{Safekeeper, SafekeeperConfig, StartError};
pub use wal_files::WalFileError;
