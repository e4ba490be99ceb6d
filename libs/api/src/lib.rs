//! The wire formats between Ardent's services, and nothing else: no sockets, no async, so that the extension inside
//! Postgres can link them.
//!
//! ```text
//!  compute, control ──page_service──► page server        (GetPages, base backup, changed blocks, management)
//!  agent, connector ──wal_service───► safekeeper ──wal_service──► page server
//!  control ──compute (JSON lines on stdin/stdout)──► agent
//! ```
//!
//! Both binary services speak length-prefixed [`frame`]s. A connection starts with a hello that carries the protocol
//! version, a [`token`] and the timeline that the connection is bound to. Every request has an id that its reply
//! repeats. Every error has a code and a class that says whether to retry. The byte tables are in
//! `docs/formats/page-service.md` and `docs/formats/wal-service.md`.
//!
//! Invariants: decoding never panics and never allocates more than the frame it was given; a frame is at most
//! [`frame::FRAME_LEN_MAX`] bytes.

pub mod addr;
pub mod collations;
pub mod compute;
pub mod control;
pub mod frame;
pub mod page_service;
pub mod policy;
#[cfg(feature = "token")]
pub mod token;
pub mod wal_service;
