//! A bounded cache on local disk, in front of a store that is far away.
//!
//! ```text
//!  get_range ──► index: is the chunk here? ──yes──► file, or the answer that brought it, if that is new ──► bytes
//!                  │ no: one reader fetches it,        ▲
//!                  ▼ the others wait for that          │ chunks, each with its sum
//!               inner.get_part ──► readers ────────────┤
//!  read-ahead ──► threads ──► inner.get_part ──────────┘
//!  put_file ──► inner.put_file, the file itself stays here as cached
//! ```
//!
//! Objects that are read in parts are cached in chunks of 128 KiB; what is read whole (manifests) is not. A reader that goes through
//! an object chunk by chunk is read ahead for, in growing steps. Whoever waits for a request gets its bytes before they are written, and the
//! newest answers stay in memory, so that who reads in order does not read them back. Chunks that were used least recently make room for
//! others.
//!
//! Memory: a request takes at most 2 MiB; 4 of read-ahead are under way at once, one for each reader that waits beside them, and the newest
//! 5 are kept.
//!
//! Invariants:
//!
//! - OC-1: after a restart a chunk counts only if its sum is right; a crash at any moment leaves nothing wrong behind, and the cache
//!   needs no fsync (`chunk_file.rs`).
//! - OC-2: readers of a chunk that is not here make one request between them (`index.rs`).
//! - OC-3: a chunk that is being read is not evicted (`index.rs`).
//! - OC-4: a cache that can't be written is a slow cache: reads go on.
//! - OC-5: what was read of an object that was forgotten meanwhile is not used: its files may be others by then (`store.rs`).
//!
//! One process at a time uses a folder; whoever opens the cache holds a lock that sees to it. Names of objects that others replace must
//! not be read in parts through a cache: what is replaced through the cache itself is noticed. Format of the files:
//! `docs/formats/cache.md`.

mod chunk_file;
mod fetch;
mod index;
mod store;

pub use store::{CacheOptions, CacheStats, CachedStore};

/// Bytes in a chunk; the last of an object is shorter.
pub(crate) const CHUNK_BYTES: u64 = 128 << 10;
