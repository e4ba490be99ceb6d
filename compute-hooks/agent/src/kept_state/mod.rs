//! What stock Postgres keeps over a clean restart and WAL does not carry: saved when a compute is suspended, given back to the next one
//! that starts cold exactly there.
//!
//! ```text
//!  stopped data directory ── collect ──► format ──► zstd ──► parts ──► page server ──► parts ──► format ── restore ──► new directory
//! ```
//!
//! It is free space maps, exact sequence values, `pg_stat`, unlogged relations, and what `ALTER SYSTEM` wrote. It belongs to the end of
//! the log that its compute left: once anything is written behind that, it is the state of no data directory (but for what
//! `ALTER SYSTEM` wrote, of which no log knows). After a crash there is none, as after a crash of stock. A branch made there does not get
//! it either.

mod collect;
mod format;
mod relation_file;
mod restore;
#[cfg(test)]
mod tests;
mod transfer;

pub(crate) use collect::Limits;
pub(crate) use format::Header;
pub(crate) use restore::Restored;
pub use transfer::KeptStateError;
pub(crate) use transfer::{find, outdate, restore, save, settings};
