//! Control's memory: one SQLite file. Every change is one transaction that is durable when the call returns.
//!
//! Calls are short (one transaction on a local file) and made from async code as they are; none is held across an await.
//! The schema's version is SQLite's `user_version`; older files are migrated at opening, newer ones refused by name.

mod branch;
mod checkpoint;
mod compute;
mod connector;
mod deleted;
mod description;
mod masked;
mod membership;
mod restore;
mod role;
mod schema;
mod timeline;
mod token;
#[cfg(test)]
mod two_branches;
mod wal_debt;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Notify;

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_api::wal_service::Membership;
use ardent_types::TimelineId;

pub use branch::{BranchRow, CredentialRow, Deleted, InsertBranch};
pub use checkpoint::{CHECKPOINTS_MAX, CheckpointRow, InsertCheckpoint};
pub use compute::{ComputeRow, LeaseRow};
pub use connector::{ConnectorRow, NotInserted};
pub use deleted::{SoftDelete, Undelete};
pub use description::{
    BranchDescription, ConnectorDescription, CredentialDescription, DESCRIPTION_FORMAT, Description, PastDescription,
    Untold,
};
pub use masked::{MaskedDescription, MaskedRow, template_name_of};
pub use membership::{MemberChange, Outdated};
pub use restore::TimelineRow;
pub use role::RoleRow;
pub use schema::SCHEMA_VERSION;
pub use timeline::{BeginSwitch, PastTimeline, SwitchKind, SwitchRow};
pub use token::TokenRow;
pub use wal_debt::{WalDebt, WalDuty};

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Written by a newer program.
    #[error(
        "{path} has schema version {found}, and this program knows versions up to {known}: run a newer ardent on it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Some other program's database.
    #[error("{path} is a SQLite file, but not one of ardent's")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("the database {path} cannot be {action}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Cause.
        #[source]
        source: rusqlite::Error,
    },
    /// A row that the change needs is not there any more, or one that is to go is needed yet.
    #[error("what this is about has been deleted meanwhile, or something hangs on it")]
    Gone {
        /// The foreign key that it fails on.
        #[source]
        source: rusqlite::Error,
    },
    /// A row that this program did not write.
    #[error("the database {path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What stands there.
        what: String,
    },
}

impl From<StoreError> for ErrorInfo {
    fn from(error: StoreError) -> ErrorInfo {
        let message = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        match error {
            StoreError::Gone { .. } => ErrorInfo::new(ApiErrorCode::Conflict, message)
                .with_hint("ardent branch list shows which branches there are"),
            _ => ErrorInfo::new(ApiErrorCode::Internal, message).with_hint("see whether the disk is full or read-only"),
        }
    }
}

fn fails_on_foreign_key(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

/// The open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// Rung by every change.
    changes: Notify,
}

impl Store {
    /// Opens the file at `path`, making or migrating it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |action| move |source| StoreError::Sqlite { path: path.to_owned(), action, source };
        let mut connection = Connection::open(path).map_err(failed("opened"))?;
        schema::prepare(&mut connection, path)?;
        Ok(Store { path: path.to_owned(), connection: Mutex::new(connection), changes: Notify::new() })
    }

    /// Closes the file, and leaves nothing beside it.
    pub fn close(self) -> Result<(), StoreError> {
        let Store { path, connection, .. } = self;
        connection.into_inner().close().map_err(|(_, source)| StoreError::Sqlite { path, action: "closed", source })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock()
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        query(&self.lock()).map_err(|source| self.failed("read", source))
    }

    /// Runs `change` in one transaction, which is durable when this returns.
    fn write<T>(
        &self,
        change: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let run = || {
            let mut connection = self.lock();
            let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        let value = run().map_err(|source| self.failed("written", source))?;
        self.changes.notify_one();
        Ok(value)
    }

    /// Waits for a change: the next one, or one since the last call. For one caller at a time.
    pub async fn changed(&self) {
        self.changes.notified().await;
    }

    /// The same for what means nothing after a crash of the host: it survives this program's end, and nobody waits for the disk.
    fn note<T>(&self, change: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let run = || {
            let mut connection = self.lock();
            connection.pragma_update(None, "synchronous", "normal")?;
            let noted = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).and_then(
                |transaction| {
                    let value = change(&transaction)?;
                    transaction.commit()?;
                    Ok(value)
                },
            );
            // Whatever came of it: the next change may be one that has to be durable.
            connection.pragma_update(None, "synchronous", "full")?;
            noted
        };
        run().map_err(|source| self.failed("written", source))
    }

    fn failed(&self, action: &'static str, source: rusqlite::Error) -> StoreError {
        match source {
            rusqlite::Error::FromSqlConversionFailure(_, _, cause) => {
                StoreError::Damaged { path: self.path.clone(), what: cause.to_string() }
            }
            source if fails_on_foreign_key(&source) => StoreError::Gone { source },
            source => StoreError::Sqlite { path: self.path.clone(), action, source },
        }
    }
}

/// The timelines that the file at `path` knows. Changes nothing, and may be called beside the server that uses it.
pub fn timelines_in(path: &Path) -> Result<BTreeSet<TimelineId>, StoreError> {
    let failed = |action| move |source| StoreError::Sqlite { path: path.to_owned(), action, source };
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed("opened"))?;
    let read = || {
        let mut statement = connection.prepare("SELECT id FROM timelines")?;
        statement.query_map([], |row| parsed(row, "id"))?.collect::<rusqlite::Result<_>>()
    };
    read().map_err(failed("read"))
}

/// Who the safekeepers are, as a database says that may be in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownMembers {
    /// `None`: they never changed while a server ran.
    pub membership: Option<Membership>,
    /// Whether a change of them is on its way.
    pub is_changing: bool,
}

/// What the file at `path` says of the safekeepers. Changes nothing, and may be called beside the server that uses it.
pub fn members_in(path: &Path) -> Result<KnownMembers, StoreError> {
    let failed = |action| move |source| StoreError::Sqlite { path: path.to_owned(), action, source };
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed("opened"))?;
    let read = || {
        // A file of an older version has no such table.
        let query = "SELECT count(*) FROM sqlite_schema WHERE name = 'membership'";
        if connection.query_row(query, [], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(KnownMembers::default());
        }
        let is_changing = membership::change(&connection)?.is_some();
        Ok(KnownMembers { membership: membership::membership(&connection)?, is_changing })
    };
    read().map_err(failed("read"))
}

/// Whether the file at `path` knows no installation: a server has made it that was never connected to a production, or is not
/// any more. Changes nothing.
pub fn is_blank(path: &Path) -> Result<bool, StoreError> {
    // As a first start that was cut off leaves it, or a file that was made by hand.
    if path.metadata().is_ok_and(|file| file.len() == 0) {
        return Ok(true);
    }
    let failed = |action| move |source| StoreError::Sqlite { path: path.to_owned(), action, source };
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed("opened"))?;
    // All that has a timeline belongs to a tenant, but for WAL that a safekeeper could not delete yet.
    let query = "SELECT NOT EXISTS (SELECT 1 FROM tenants) AND NOT EXISTS (SELECT 1 FROM wal_debts)";
    let no_tenant = connection.query_row(query, [], |row| row.get::<_, bool>(0));
    Ok(no_tenant.map_err(failed("read"))? && members_in(path)?.membership.is_none())
}

/// Parses a text column; what does not parse makes the store damaged, never a panic.
fn parsed<T>(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// The same for a column that may be null.
fn parsed_option<T>(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<Option<T>>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match row.get::<_, Option<String>>(column)? {
        Some(_) => parsed(row, column).map(Some),
        None => Ok(None),
    }
}

/// Now, in microseconds since the Unix epoch.
pub fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// A stored time as ISO 8601, to the microsecond: what a time that a user gives is compared with.
pub fn iso8601_us(at_us: i64) -> String {
    match jiff::Timestamp::from_microsecond(at_us) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => format!("{at_us} us"),
    }
}

/// A stored time as ISO 8601.
pub fn iso8601(at_us: i64) -> String {
    match jiff::Timestamp::from_microsecond(at_us) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => format!("{at_us} us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_or_foreign_file_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("control.db");
        drop(Store::open(&path).expect("made"));
        let connection = Connection::open(&path).expect("opens");
        connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).expect("set");
        drop(connection);
        let error = Store::open(&path).expect_err("newer");
        assert!(error.to_string().contains("run a newer ardent"), "{error}");

        let other = folder.path().join("other.db");
        let connection = Connection::open(&other).expect("opens");
        connection.execute_batch("CREATE TABLE someone(elses)").expect("made");
        drop(connection);
        assert!(matches!(Store::open(&other), Err(StoreError::Foreign { .. })));
    }

    #[test]
    fn a_change_whose_row_is_gone_is_a_conflict_and_keeps_its_cause() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(&folder.path().join("control.db")).expect("made");
        let query = "INSERT INTO roles (branch_id, oid, name, can_login) VALUES ('gone', 10, 'r', 1)";
        let error = store.write(|transaction| transaction.execute(query, [])).expect_err("there is no such branch");
        assert!(matches!(error, StoreError::Gone { .. }), "{error:?}");
        let told = ErrorInfo::from(error);
        assert_eq!(told.code, ApiErrorCode::Conflict);
        assert!(told.message.contains("deleted meanwhile") && told.message.contains("FOREIGN KEY"), "{}", told.message);
    }

    #[test]
    fn times_are_iso_8601_in_utc() {
        assert_eq!(iso8601(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso8601(1_700_000_000_123_456), "2023-11-14T22:13:20.123Z");
    }
}
