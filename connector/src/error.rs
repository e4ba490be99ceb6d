//! What can go wrong with a connector, and what to do then.

use ardent_page_client::PageError;
use ardent_pg_wire::WireError;
use ardent_types::{Lsn, SystemId};
use ardent_wal_client::{ClientError, ProposerError};

use crate::tar_stream::TarError;

/// What is left to do when the root timeline cannot go on.
pub(crate) const IMPORT_AGAIN: &str = "its branches stay as they are; connect production once more under another name (ardent connector create \
                            postgresql URL --name OTHER), and delete this connector when nobody needs its branches";

/// What else may have it.
const ARCHIVE: &str = "if production archives its WAL, start the server with --restore-command; else";

/// A connector can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// Production can't be talked to, or says no.
    #[error("production")]
    Production(#[from] WireError),
    /// The page server can't be talked to, or says no.
    #[error("the page server did not take the import")]
    PageServer(#[from] PageError),
    /// A safekeeper can't be talked to, or says no.
    #[error("the safekeepers can't be used")]
    Safekeeper(#[from] ClientError),
    /// WAL can't be written.
    #[error("the root timeline's WAL can't be written")]
    Proposer(#[from] ProposerError),
    /// The base backup is not what it should be.
    #[error("the base backup is damaged: import again")]
    Backup(#[from] TarError),
    /// A server that Ardent doesn't know.
    #[error("production runs Postgres {version}; Ardent knows 15 to 18")]
    Version {
        /// `server_version_num`
        version: String,
    },
    /// Production said something unexpected about itself.
    #[error("production's {name} is {value:?}, which can't be used")]
    Setting {
        /// Setting.
        name: String,
        /// Value.
        value: String,
    },
    /// Production is a standby.
    #[error("production is in recovery: connect to its primary instead")]
    Standby,
    /// Another cluster answers at that address.
    #[error(
        "the server at that address is another cluster (system identifier {found}, this connector follows {expected}), as one is that \
         pg_upgrade has made of a new major: {IMPORT_AGAIN}"
    )]
    OtherCluster {
        /// What the root timeline follows.
        expected: SystemId,
        /// What answers.
        found: SystemId,
    },
    /// Production has other WAL than the root timeline: it was promoted without the newest WAL, or restored.
    #[error(
        "production's WAL before {at} is not what the root branch holds: a standby was promoted that lacked some of it, or production \
         was restored to an earlier point: {IMPORT_AGAIN}"
    )]
    OtherHistory {
        /// End of the root timeline.
        at: Lsn,
    },
    /// Production is behind what it had said before.
    #[error(
        "production's WAL ends at {production}, but the root branch holds WAL up to {root}: a standby was promoted that lacked some of \
         it, or production was restored to an earlier point: {IMPORT_AGAIN}"
    )]
    ProductionBehind {
        /// Production's flush position.
        production: Lsn,
        /// End of the root timeline.
        root: Lsn,
    },
    /// The slot is gone, and WAL with it.
    #[error(
        "the replication slot {slot} is not on production any more, and production has removed WAL that the root branch still needs: \
         {ARCHIVE} {IMPORT_AGAIN}"
    )]
    SlotMissing {
        /// Its name.
        slot: String,
    },
    /// Production has removed WAL that was not fetched yet.
    #[error(
        "production has removed WAL that the root branch still needs (slot {slot}: {message}): {ARCHIVE} {IMPORT_AGAIN}, with a larger \
         max_slot_wal_keep_size on production"
    )]
    SlotInvalidated {
        /// Its name.
        slot: String,
        /// What production said.
        message: String,
    },
    /// Neither production nor its archive has WAL that was not fetched yet.
    #[error(
        "production has removed WAL that the root branch still needs, and the archive does not have {file} (--restore-command said: {message}): \
         put it there and run ardent connector resume; if it is lost, {IMPORT_AGAIN}"
    )]
    NotArchived {
        /// The first segment that is needed.
        file: String,
        /// What the command printed.
        message: String,
    },
    /// The archive cannot be asked, or gave something else.
    #[error(
        "production's archive gave no usable {file}: {message}; see to --restore-command, then run ardent connector resume"
    )]
    Archive {
        /// The segment.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// The archive has WAL that production never wrote, or has forgotten.
    #[error(
        "production's WAL ends at {production}, before the end of {file}, which its archive has: production was restored to an earlier \
         point: {IMPORT_AGAIN}"
    )]
    ArchiveAhead {
        /// The segment.
        file: String,
        /// Production's flush position.
        production: Lsn,
    },
    /// The stream has a gap.
    #[error("production sent WAL from {given} where {expected} was due")]
    Gap {
        /// Where the log ends.
        expected: Lsn,
        /// Where the WAL starts.
        given: Lsn,
    },
    /// Production ended the stream: it stops or restarts.
    #[error("production ended the stream of WAL; it may be restarting")]
    StreamEnded,
    /// The safekeepers take no WAL. Production's slot keeps it.
    #[error(
        "the safekeepers have made nothing durable for some seconds (at {flushed}): production was let go and keeps its WAL; \
         see whether most of the safekeepers run and have space on their disks"
    )]
    QuorumStalled {
        /// First byte that is not durable on a quorum.
        flushed: Lsn,
    },
    /// The caller asked to stop.
    #[error("the import was cancelled")]
    Cancelled,
}

impl ConnectorError {
    /// Whether WAL is gone from production that is needed.
    pub(crate) fn means_missing_wal(&self) -> bool {
        matches!(self, ConnectorError::SlotMissing { .. } | ConnectorError::SlotInvalidated { .. })
    }

    /// Whether the same may succeed a little later, without anybody doing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            ConnectorError::Production(error) => error.is_retryable(),
            ConnectorError::PageServer(error) => error.is_retryable(),
            ConnectorError::Safekeeper(error) => error.is_retryable(),
            ConnectorError::Proposer(error) => error.is_retryable(),
            ConnectorError::StreamEnded | ConnectorError::QuorumStalled { .. } => true,
            _ => false,
        }
    }

    /// The error with all its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            // Some errors of libraries repeat their cause.
            if !text.ends_with(&next) {
                text = format!("{text}: {next}");
            }
            cause = error.source();
        }
        text
    }

    /// What replication through `slot` met, at its start or later, named if it means that WAL is lost.
    pub(crate) fn from_replication(error: WireError, slot: &str) -> ConnectorError {
        let WireError::Server(server) = &error else { return error.into() };
        let slot = slot.to_owned();
        match server.code.as_str() {
            // Undefined object.
            "42704" => ConnectorError::SlotMissing { slot },
            // Undefined file: the segment is gone. Object not in prerequisite state: the slot was invalidated.
            "58P01" | "55000" => ConnectorError::SlotInvalidated { slot, message: server.message.clone() },
            _ => error.into(),
        }
    }
}
