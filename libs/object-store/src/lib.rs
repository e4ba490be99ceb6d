//! Where layers and manifests live: the object-store trait and its local-folder backend.
//!
//! ```text
//!  storage engine ──put, put_if_absent, put_file──► ┌─────────────┐ ──► LocalFolder: temp file, fsync, rename or link,
//!                 ◄──get, get_range, head, list──── │ ObjectStore │                  fsync of the folder
//!                 ──delete────────────────────────► └─────────────┘ ──► CachedStore ──► (another crate) S3 and what speaks it
//! ```
//!
//! Invariants, which [`conformance`] checks for every backend:
//!
//! - OS-1: an object is there whole or not at all; a reader never sees part of a write.
//! - OS-2: when a write returns, the object survives a crash.
//! - OS-3: of any number of concurrent [`ObjectStore::put_if_absent`] of one name exactly one succeeds.
//! - OS-4: a list taken after a write returned shows it, and over all its pages each object comes once.
//!
//! Methods block: callers run them on threads that may. The crate does not know what objects hold, and does not retry:
//! each error has a kind ([`ErrorKind`]) and the caller decides.
//!
//! Start reading at [`ObjectStore`], then [`LocalFolder`]; [`CachedStore`] keeps parts of a store that is far away on local disk,
//! [`PieceStore`] reads whole objects with few requests, [`CountedStore`] counts the calls, and [`FaultyStore`] fails them where a
//! test says so.

mod cache;
pub mod conformance;
mod counted;
mod error;
pub mod fault;
mod faulty;
mod local;
mod memory;
mod name;
mod pieces;
pub mod probe;
mod store;

pub use cache::{CacheOptions, CacheStats, CachedStore};
pub use counted::{CountedStore, Operation, OperationStats};
pub use error::{ErrorKind, StoreError};
pub use faulty::FaultyStore;
pub use local::LocalFolder;
pub use memory::MemoryStore;
pub use name::{NAME_LEN_MAX, NameError, ObjectName};
pub use pieces::PieceStore;
pub use store::{ListPage, ListRequest, ObjectMeta, ObjectPart, ObjectStore, UnfinishedUpload, list_all};
