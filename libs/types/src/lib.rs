//! Identifiers and coordinates that every part of Ardent shares.
//!
//! Nothing here does I/O or knows a service. The types are small, `Copy`, and ordered the way storage orders them:
//!
//! - [`Lsn`]: a position in WAL. Half-open everywhere: a range `[a, b)` holds the bytes from `a` up to, not
//!   including, `b`; a `flush_lsn` is the first byte that is *not* yet durable.
//! - [`TenantId`], [`TimelineId`]: a tenant is one Postgres cluster's history (one system identifier), a timeline a
//!   branch of it. "Timeline" is never Postgres's timeline id; that one is [`PgTli`].
//! - [`DiskId`], [`MemberGeneration`]: a safekeeper's disk, and the number of a list of them.
//! - [`RelTag`], [`BlockNumber`]: a relation fork and a block of it.
//! - [`Key`]: what the page server stores versions of; its 18-byte encoding sorts as the enum does.
//! - [`sql`]: names and texts as SQL takes them, whatever is in them.
//! - [`with_causes`]: what an error says, for whoever sees no chain of causes.
//!
//! Invariants: parsing never panics; `Display` and `FromStr` round-trip; arithmetic on LSNs is checked and named.

mod causes;
mod id;
mod key;
mod lsn;
mod member;
mod rel;
pub mod sql;

pub use causes::with_causes;
pub use id::{BranchId, ComputeId, Generation, ParseIdError, PgTli, SystemId, TenantId, Term, TimelineId};
pub use key::{KEY_LEN, Key, KeyDecodeError, SlruKind};
pub use lsn::{Lsn, ParseLsnError, WalSegmentSize, WalSegmentSizeError};
pub use member::{DiskId, MemberGeneration, ParseDiskIdError};
pub use rel::{BLCKSZ, BlockNumber, ForkNumber, RelTag, oid};
