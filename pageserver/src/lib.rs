//! The page server: WAL in, page versions at any LSN out.
//!
//! ```text
//!  safekeepers ──WAL──► follower (one thread per followed timeline)
//!                 intake: decoder ─► ingest ─► storage.put ──────────┐
//!  connector ──base backup──► import ─► storage.put                  ▼
//!                                                                 storage (layers, manifests, object store)
//!  computes, control ──page service──► connection (one thread each) ─┘ get pages, base backup, changed blocks, manage
//! ```
//!
//! Beside them `retention` finds the LSN of a moment, and `collector` gives up history that is too old, without loading what is idle, by a
//! clock that believes no jump of the host's (`libs/trusted-clock`). Connections' threads have short turns on a processor (`turns`).
//!
//! This crate is the shell: sockets, threads, tokens. What a record means is in `pg-ingest`, what is kept is in `storage`.
//!
//! Invariants:
//! - PS-S1: a connection reads and changes only the timeline that its hello named and its token allows.
//! - PS-S2: WAL of a timeline is ingested by one thread, from the end of the last record that storage holds, without gaps.
//! - PS-S3: an error of one request, one block or one timeline is answered or recorded there, and leaves the rest working.
//! - PS-S4: safekeepers are told of an LSN only once it is durable in the object store.
//!
//! It knows nothing of branches' names, computes' processes or users. Start reading in [`server`], then [`connection`].

mod changed;
mod collector;
mod connection;
mod description;
mod follower;
mod import;
mod intake;
mod kept_state;
mod limits;
mod manage;
mod metrics;
mod pages;
mod pages_sent;
mod rel_sizes;
mod retention;
mod running;
mod server;
mod socket;
mod state;
mod turns;
mod unnamed_files;

pub use description::DESCRIPTION;
pub use intake::{Intake, IntakeError};
pub use server::{Pageserver, PageserverConfig, StartError};
