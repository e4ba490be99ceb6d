//! An async client of the page service: one connection, one request at a time, answers as values.
//!
//! ```text
//!  agent, connector, control, diff
//!        │ wait_lsn, base_backup, get_pages, get_changed, manage, import_*
//!        ▼
//!   PageClient ── frames over a Unix socket or loopback TCP ──► page server
//! ```
//!
//! Invariants:
//! - An answer is handed out only if it carries the request's id; anything else ends the connection.
//! - A request whose future was dropped half-way leaves bytes on the wire that nobody can place, so the connection
//!   refuses to be used again ([`PageError::Broken`]): open a new one.
//! - A token is never sent off this host in the clear.
//!
//! It does not retry, cache or pool: callers know what a retry means for them ([`PageError::is_retryable`]). It knows
//! nothing of what is in a page or a base backup. Start reading at [`PageClient`].

mod client;
mod error;
mod import;
mod stream;

pub use client::{BackupStream, Binding, PageClient};
pub use error::PageError;
pub use import::Import;
pub use stream::PageStream;
