//! What the tests of the library inside Postgres share.
//!
//! ```text
//!  stopped server's files ──copy──► pages ──► FilePageServer ◄──agent socket── backends
//!          │ hollow out                                                           │
//!          └──► sparse files + presence map ──► stock Postgres with the library ◄─┘
//! ```
//!
//! [`HollowPg`] turns a stopped [`TestPg`](ardent_test_pg::TestPg) into a compute in which every block is absent;
//! [`FilePageServer`] plays both the agent's socket and the page server behind it, and has faults to switch on.
//!
//! Knows nothing of the real page server and agent: those meet the library in the end-to-end tests.

mod hollow;
mod library;
mod page_server;

#[cfg(test)]
#[path = "../../extension/src/read_ahead.rs"]
#[allow(
    dead_code,
    missing_docs,
    reason = "compiled here for its unit tests: the library itself links only inside Postgres"
)]
mod read_ahead;

pub use hollow::HollowPg;
pub use library::compute_library;
pub use page_server::{Faults, FilePageServer};
