//! A real S3 server for tests, SeaweedFS, and a proxy in front of it that injects faults.
//!
//! ```text
//!  test ──S3──► FaultProxy ──S3──► Seaweed (weed server -s3, own folder, free ports)
//!                   ▲ asks for each request what shall go wrong
//!                   └── Fault
//! ```
//!
//! The server's program is installed by `scripts/setup-s3.sh`, which `make test` runs; `ARDENT_WEED` names another.
//!
//! Invariants: a server that can't be started is a panic with its log, never a skipped test; dropping a [`Seaweed`] ends its own
//! process, by the child's id, and removes its folder and its sockets; the shared one is dropped at the process's end.
//!
//! Knows nothing of Ardent.

mod fault_proxy;
mod seaweed;

pub use fault_proxy::{Fault, FaultProxy, Request};
pub use seaweed::Seaweed;
