//! The presence map: which blocks of a compute's relations are not on its disk yet.
//!
//! A compute starts with sparse files of the right size and no pages in them. Every process of its Postgres must know,
//! at every read, whether a block is there or is still a hole. The map is one file, mapped shared by the postmaster and
//! inherited by its children.
//!
//! ```text
//!  base backup's table {relation fork -> blocks}
//!        │ agent: PresenceMapBuilder::add, build
//!        ▼
//!  presence map file ──mmap, shared──► postmaster ──fork──► backends: PresenceMap::find, Entry::is_absent, ...
//!        ▲                                                          │ counters
//!        └────────────────────── agent reads Counters ◄─────────────┘
//! ```
//!
//! A block is absent if `block < base_nblocks` of its entry and its bit is 0. A relation fork without an entry has no
//! absent blocks. The byte table is `docs/formats/presence-map.md`.
//!
//! Invariants:
//! - `PM-1`: absent turns into present, never back: bits are only set, `base_nblocks` only falls.
//! - `PM-2`: the set of entries never changes after the build, so look-ups need no lock.
//! - `PM-3`: a file that fails validation is refused as a whole; nothing in a validated map leads outside the mapping.
//!
//! What it does not know: Postgres, locks (whoever fills a block excludes other writers of it by his own means), and the
//! network. Start reading in `map.rs`.

mod builder;
mod counters;
mod layout;
mod map;

pub use builder::{BuildError, PresenceMapBuilder};
pub use counters::{CounterValues, Counters};
pub use layout::FORMAT_VERSION;
pub use map::{Entry, OpenError, PresenceMap};
