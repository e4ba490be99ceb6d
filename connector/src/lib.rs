//! Follows a production server into a root timeline.
//!
//! ```text
//!              ┌─ preflight: what is missing, and the SQL that grants it
//!  production ─┼─ import: slot, BASE_BACKUP ──► tar ──► files ──► page server (and the root timeline on the safekeepers)
//!   Postgres   ├─ follow: WAL from the slot ──► Proposer ──► safekeepers; what their quorum has committed is confirmed to the slot
//!              ├─ archive: what production has removed ──► the same Proposer
//!              └─ PositionProbe, slot_status, can_follow (another server in its place), delete
//! ```
//!
//! Invariants: nothing is installed or changed on production but one replication slot; the slot is there before the backup begins, so
//! no WAL is missed; production is told that WAL is flushed only once a quorum of safekeepers has committed it; nothing is taken from a
//! server or an archive, whatever it says about itself, that does not have the end of the log byte for byte; an interrupted import is started over,
//! never continued.
//!
//! A production that gives no physical replication is followed by logical replication: [`logical`].
//!
//! Knows nothing of branches, storage, or who keeps connectors: control calls it with a [`ConnectorConfig`].
//!
//! Start reading with [`import`] and [`follow`].

mod archive;
mod collations;
mod config;
mod error;
mod follow;
mod import;
pub mod logical;
mod position;
mod preflight;
mod source_stream;
mod tar_stream;

pub use archive::{Archive, RestoreCommand, RestoreCommandError};
pub use config::ConnectorConfig;
pub use error::ConnectorError;
pub use follow::{FollowState, FollowStatus, follow};
pub use import::{ImportPhase, ImportProgress, Imported, import};
pub use position::{ClusterCheck, PositionProbe, SlotStatus, delete, slot_status};
pub use preflight::{HostFacts, MajorFacts, normalize_locale, preflight};
pub use source_stream::can_follow;
