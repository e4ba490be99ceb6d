//! Why a compute could not start or go on.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ardent_api::compute::ComputeEvent;
use ardent_api::page_service::ErrorCode;
use ardent_page_client::PageError;
use ardent_types::{Lsn, with_causes};
use ardent_wal_client::ProposerError;

use crate::kept_state::KeptStateError;

/// The end of a compute that did not stop when it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// A newer compute writes this timeline.
    #[error("this compute was replaced: {reason}")]
    Fenced {
        /// What the safekeepers said.
        reason: String,
    },
    /// The page server does not answer or refuses.
    #[error("{doing} failed")]
    Pageserver {
        /// What was being done.
        doing: &'static str,
        /// Cause.
        #[source]
        source: PageError,
    },
    /// No quorum of safekeepers.
    #[error("the log cannot be written: {reason}")]
    Safekeeper {
        /// What is known.
        reason: String,
    },
    /// Postgres did not start.
    #[error("Postgres did not start ({status}); its log says:\n{log}")]
    PostgresFailed {
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// Postgres started and does not answer the agent.
    #[error("Postgres does not serve the agent: {reason}")]
    PostgresRefused {
        /// What it said.
        reason: String,
    },
    /// Postgres ended by itself after it was ready.
    #[error("Postgres ended unexpectedly ({status}); its log says:\n{log}")]
    Crashed {
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// WAL that the branch's policy forbids; it did not become part of the branch.
    #[error(
        "the policy of branch {branch} is {policy}, and a session got around it inside Postgres: its changes were not kept, and the sessions were ended (ardent branch policy {branch} shows and changes the policy)"
    )]
    Policy {
        /// The policy and its limit.
        policy: String,
        /// The branch.
        branch: String,
    },
    /// More of the host was used than allowed.
    #[error("{what}: the sessions were ended, and what was committed is kept ({hint})")]
    Limit {
        /// What was used up.
        what: String,
        /// What to do.
        hint: String,
    },
    /// This host does not let us make a sandbox.
    #[error(
        "the sandbox cannot be made: {reason} (install bubblewrap, allow user namespaces, or start with --no-sandbox)"
    )]
    NoSandbox {
        /// What was said.
        reason: String,
    },
    /// There are no server programs of this major.
    #[error(
        "no Postgres {major} server programs found; looked in {looked_in} (install postgresql-{major}, or name the folder with --pg-bin {major}=DIR)"
    )]
    NoPostgres {
        /// Major version.
        major: u32,
        /// Where we looked.
        looked_in: String,
    },
    /// The version that this compute's pages are read at is not retained any more.
    #[error("the page server no longer keeps the version {lsn} that this compute reads")]
    BaseLsnExpired {
        /// The compute's base LSN.
        lsn: Lsn,
    },
    /// The page server was not met for as long as a lease holds.
    #[error(
        "the page server does not answer this compute for {} s, so that what it reads may be out of date: the sessions were ended, and what was committed is kept (see what is away with ardent status; once storage answers, a connection starts the branch again)",
        silent.as_secs()
    )]
    LeaseRanOut {
        /// Since it was last met.
        silent: Duration,
        /// What the last try met, if it was answered at all.
        #[source]
        source: Option<PageError>,
    },
    /// What the next cold start would have been given is not kept.
    #[error("the state of the data directory is not kept")]
    NotKept {
        /// Cause.
        #[source]
        source: KeptStateError,
    },
    /// The specification, or what the page server sent, makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A local file operation failed.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl ComputeError {
    /// A shorthand for closures that add the file to an I/O error.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ComputeError {
        move |source| ComputeError::Io { doing, path: path.to_owned(), source }
    }

    /// A page server's failure; an expired base LSN is told apart, since starting again cures it.
    pub(crate) fn pageserver(doing: &'static str, lsn: Lsn) -> impl FnOnce(PageError) -> ComputeError {
        move |source| match source.code() {
            Some(ErrorCode::BaseLsnExpired) => ComputeError::BaseLsnExpired { lsn },
            _ => ComputeError::Pageserver { doing, source },
        }
    }

    /// A state that is not kept.
    pub(crate) fn keeping(source: KeptStateError) -> ComputeError {
        ComputeError::NotKept { source }
    }

    /// A writer's failure.
    pub(crate) fn writing(error: ProposerError) -> ComputeError {
        let reason = with_causes(&error);
        match error {
            ProposerError::Fenced { .. } => ComputeError::Fenced { reason },
            _ => ComputeError::Safekeeper { reason },
        }
    }

    /// The word for scripts in [`ComputeEvent::Failed`].
    pub fn code(&self) -> &'static str {
        match self {
            ComputeError::Fenced { .. } => "fenced",
            ComputeError::Pageserver { .. } => "pageserver_unavailable",
            ComputeError::Safekeeper { .. } => "safekeeper_unavailable",
            ComputeError::PostgresFailed { .. } | ComputeError::PostgresRefused { .. } => "postgres_failed",
            ComputeError::Crashed { .. } => "crashed",
            ComputeError::Policy { .. } => "policy",
            ComputeError::Limit { .. } => "limit",
            ComputeError::NoSandbox { .. } => "no_sandbox",
            ComputeError::NoPostgres { .. } => "no_postgres",
            ComputeError::BaseLsnExpired { .. } => "base_lsn_expired",
            ComputeError::LeaseRanOut { .. } => "lease_ran_out",
            ComputeError::Invalid(_) | ComputeError::Io { .. } | ComputeError::NotKept { .. } => "invalid",
        }
    }

    /// The event that tells control, with the whole chain of causes in its message.
    pub(crate) fn event(&self) -> ComputeEvent {
        ComputeEvent::Failed { code: self.code().to_owned(), message: with_causes(self) }
    }
}
