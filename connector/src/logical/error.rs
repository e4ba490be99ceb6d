//! What can go wrong with a logical connector, and what to do then.

use std::path::PathBuf;

use tokio_postgres::error::SqlState;

use ardent_api::control::ErrorInfo;
use ardent_pg_wire::{ConfigError, WireError};
use ardent_pgoutput::DecodeError;
use ardent_types::Lsn;

use crate::error::{ConnectorError, IMPORT_AGAIN};

/// What can be done where applying has stopped.
const RESUME: &str = "Bring the root branch's table into that form with: ardent connector resume NAME --sql STATEMENTS; or connect \
                      production once more under another name";

/// What can be done where changes may have been missed.
const MAKE_UP: &str = "If it is known what was missed: put it back, make up for that with ardent connector resume NAME --sql STATEMENTS (select 1, \
                       if it is nothing), and let ardent connector verify NAME prove it; else connect production once more under \
                       another name";

/// A logical connector can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogicalError {
    /// Production can't be talked to, or says no.
    #[error("production, {action}")]
    Source {
        /// What was being done.
        action: &'static str,
        /// Cause.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A table of production's can't be read, or production says no.
    #[error("production, {action}")]
    Reading {
        /// What was being done.
        action: &'static str,
        /// Cause.
        #[source]
        source: WireError,
    },
    /// Its replication stream ended, or production says no.
    #[error("production's changes")]
    Replication(#[from] ConnectorError),
    /// The root branch's Postgres can't be talked to, or says no.
    #[error("the root branch's Postgres, {action}")]
    Root {
        /// What was being done.
        action: String,
        /// Cause.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The same, of a session that fills its tables.
    #[error("the root branch's Postgres, {action}")]
    Filling {
        /// What was being done.
        action: String,
        /// Cause.
        #[source]
        source: WireError,
    },
    /// The root branch can't be woken, or nothing can be remembered of it.
    #[error("the root branch: {0}")]
    Branch(ErrorInfo),
    /// Production sent what is no change.
    #[error("production's changes")]
    Decode(#[from] DecodeError),
    /// What `pg_dump` wrote of the schema is not what is expected of it.
    #[error("the schema that pg_dump wrote")]
    Script(#[from] ardent_sql_script::ScriptError),
    /// A program could not be run.
    #[error("{program} cannot be run")]
    Program {
        /// Its path.
        program: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {message}")]
    Failed {
        /// Its name.
        program: String,
        /// What it printed last.
        message: String,
    },
    /// No folder has this program.
    #[error(
        "the program {name} is not installed: install the client programs of Postgres {major} or later on this host. They are looked for \
         beside the server programs of these majors (--pg-bin), then in the PATH that the server was started with"
    )]
    Missing {
        /// Its name.
        name: &'static str,
        /// Wanted at least.
        major: u32,
    },
    /// The schema could not be made on the root.
    #[error("production's schema cannot be made here: {statement}")]
    Schema {
        /// The beginning of the statement.
        statement: String,
        /// Cause.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A table changed on production in a way that can't be followed.
    #[error("table {table} was changed on production: {change}. Nothing is applied from there on. {RESUME}")]
    TableChanged {
        /// Schema and name.
        table: String,
        /// What changed.
        change: String,
    },
    /// A row that production changed is not on the root, or several are that it may be.
    #[error("a row that production {action} in table {table} {found}. Nothing is applied from there on. {RESUME}")]
    Diverged {
        /// Schema and name.
        table: String,
        /// `updated` or `deleted`.
        action: &'static str,
        /// What is on the root.
        found: &'static str,
    },
    /// The root's table refuses a change.
    #[error(
        "a change of table {table} does not fit the root branch: {cause}. Nothing is applied from there on. {RESUME}"
    )]
    Unfit {
        /// Schema and name.
        table: String,
        /// What the root's Postgres said.
        cause: String,
        /// Its SQLSTATE.
        code: String,
    },
    /// The slot is gone.
    #[error(
        "the replication slot {slot} is not on production any more, and what changed there since it was dropped cannot be known: one that is \
         made by hand begins later; {IMPORT_AGAIN}"
    )]
    SlotDropped {
        /// Its name.
        slot: String,
    },
    /// Production keeps no WAL for the slot any more.
    #[error(
        "production has removed WAL that the root branch still needs (slot {slot}: {message}); {IMPORT_AGAIN}, with a larger \
         max_slot_wal_keep_size on production"
    )]
    SlotInvalidated {
        /// Its name.
        slot: String,
        /// What production said.
        message: String,
    },
    /// Production would send nothing of what the root lacks.
    #[error(
        "the replication slot {slot} on production is at {at}, and the root branch has changes up to {known} only: somebody has moved it or made \
         it anew, and what changed in between is not sent any more. Nothing is applied from there on. {MAKE_UP}"
    )]
    SlotMoved {
        /// Its name.
        slot: String,
        /// Its `confirmed_flush_lsn`.
        at: Lsn,
        /// All below is on the root.
        known: Lsn,
    },
    /// The publication is gone, or another one has its name.
    #[error(
        "the publication {publication} was dropped on production. One that is made by hand does not help: changes are decoded as of \
         when they were made, and some were made without it; {IMPORT_AGAIN}"
    )]
    PublicationDropped {
        /// Its name.
        publication: String,
    },
    /// The publication does not send all, or did not for a while.
    #[error(
        "the publication {publication} was changed on production: {change}. Changes may have been missed since, and nothing is applied from \
         here on. {MAKE_UP}"
    )]
    PublicationChanged {
        /// Its name.
        publication: String,
        /// What was changed.
        change: String,
    },
    /// What is kept of the import cannot be read.
    #[error("what was remembered of the import cannot be read: {0}")]
    State(String),
    /// Something has to be said no to.
    #[error("{0}")]
    Refused(String),
}

impl LogicalError {
    /// What a running stream through `slot` met. That is there as long as it runs: what is not is the publication, which has its name.
    pub(crate) fn of_stream(error: WireError, slot: &str) -> LogicalError {
        if error.code() == Some("42704") {
            return LogicalError::PublicationDropped { publication: slot.to_owned() };
        }
        LogicalError::of_start(error, slot)
    }

    /// What was said when a stream through `slot` was to be started.
    pub(crate) fn of_start(error: WireError, slot: &str) -> LogicalError {
        match ConnectorError::from_replication(error, slot) {
            ConnectorError::SlotMissing { slot } => LogicalError::SlotDropped { slot },
            ConnectorError::SlotInvalidated { slot, message } => LogicalError::SlotInvalidated { slot, message },
            other => LogicalError::Replication(other),
        }
    }

    /// Whether somebody has changed on production what is the connector's own.
    pub(crate) fn is_tampering(&self) -> bool {
        matches!(
            self,
            LogicalError::SlotMoved { .. }
                | LogicalError::PublicationDropped { .. }
                | LogicalError::PublicationChanged { .. }
        )
    }

    /// Whether a row has a value that the root cannot read, as a label is that its enum has not.
    pub(crate) fn is_unknown_label(&self) -> bool {
        matches!(self, LogicalError::Unfit { code, .. } if code == SqlState::INVALID_TEXT_REPRESENTATION.code())
    }

    /// Whether the same may succeed a little later, without anybody doing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            LogicalError::Source { source, .. }
            | LogicalError::Root { source, .. }
            | LogicalError::Schema { source, .. } => passes(source),
            LogicalError::Reading { source, .. } | LogicalError::Filling { source, .. } => wire_passes(source),
            LogicalError::Replication(error) => error.is_retryable() || is_busy(error),
            LogicalError::Branch(_) => true,
            _ => false,
        }
    }

    /// A change that came cannot be applied to the table as it is.
    pub(crate) fn is_of_a_change(&self) -> bool {
        matches!(
            self,
            LogicalError::TableChanged { .. }
                | LogicalError::Diverged { .. }
                | LogicalError::Unfit { .. }
                | LogicalError::Schema { .. }
        )
    }

    /// The error with all its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = match error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.as_db_error()) {
                Some(error) => match error.detail() {
                    Some(detail) => format!("{} ({detail})", error.message()),
                    None => error.message().to_owned(),
                },
                None => error.to_string(),
            };
            if !text.ends_with(&next) {
                text = format!("{text}: {next}");
            }
            cause =
                if error.is::<tokio_postgres::Error>() && next != error.to_string() { None } else { error.source() };
        }
        text
    }
}

/// A connection that broke, a server that starts or stops, somebody in the way.
pub(crate) fn passes(error: &tokio_postgres::Error) -> bool {
    match error.code().map(|code| code.code()) {
        // Connection exceptions, resources, operator intervention, serialization and deadlocks, objects in use.
        Some(code) => code_passes(code),
        None => true,
    }
}

fn wire_passes(error: &WireError) -> bool {
    error.is_retryable() || error.code().is_some_and(code_passes)
}

fn code_passes(code: &str) -> bool {
    ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)) || code == "55006"
}

/// The slot is still held by a connection of ours that production has not noticed the end of.
fn is_busy(error: &ConnectorError) -> bool {
    matches!(error, ConnectorError::Production(WireError::Server(server)) if server.code == "55006")
}

impl From<WireError> for LogicalError {
    fn from(error: WireError) -> LogicalError {
        LogicalError::Replication(error.into())
    }
}

impl From<ConfigError> for LogicalError {
    fn from(error: ConfigError) -> LogicalError {
        LogicalError::Replication(error.into())
    }
}

/// For `map_err`: an answer of production's.
pub(crate) fn source(action: &'static str) -> impl Fn(tokio_postgres::Error) -> LogicalError {
    move |source| LogicalError::Source { action, source }
}

/// For `map_err`: the same, of a session that reads tables.
pub(crate) fn reading(action: &'static str) -> impl Fn(WireError) -> LogicalError {
    move |source| LogicalError::Reading { action, source }
}

/// For `map_err`: an answer of the root's.
pub(crate) fn root(action: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> LogicalError {
    let action = action.into();
    move |source| LogicalError::Root { action, source }
}

/// For `map_err`: the same, of a session that fills tables.
pub(crate) fn filling(action: impl Into<String>) -> impl FnOnce(WireError) -> LogicalError {
    let action = action.into();
    move |source| LogicalError::Filling { action, source }
}
