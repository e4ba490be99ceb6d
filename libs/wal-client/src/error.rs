//! What can go wrong with a safekeeper, or with a quorum of them.

use std::sync::Arc;

use ardent_api::addr::{KeyPin, ServiceAddr};
use ardent_api::frame::DecodeError;
use ardent_api::wal_service::ErrorCode;
use ardent_types::{DiskId, Lsn, Term, TimelineId};

/// A safekeeper cannot be talked to, or says no.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// Not reached.
    #[error("cannot reach the safekeeper at {address}")]
    Connect {
        /// Which.
        address: ServiceAddr,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// The connection broke.
    #[error("lost the connection to the safekeeper at {address}")]
    Lost {
        /// Which.
        address: ServiceAddr,
        /// Why; absent: it closed the connection.
        source: Option<Arc<std::io::Error>>,
    },
    /// It sends what is not a message, or not an answer to the question.
    #[error("the safekeeper at {address} does not speak the protocol: {what}")]
    Protocol {
        /// Which.
        address: ServiceAddr,
        /// What is wrong.
        what: String,
    },
    /// It answered with an error.
    #[error("the safekeeper at {address} says: {message}")]
    Answer {
        /// Which.
        address: ServiceAddr,
        /// Kind.
        code: ErrorCode,
        /// Its message.
        message: String,
    },
    /// It is on another host, and tokens and WAL are not sent off this host in the clear.
    #[error(
        "the safekeeper at {address} is on another host, and tcp: is not encrypted: start it with --listen tls:HOST:PORT, \
         and give its address as it then prints it"
    )]
    OffHost {
        /// Which.
        address: ServiceAddr,
    },
    /// Somebody answers there who does not hold the key that the address names. Nothing was sent to him.
    #[error(
        "whoever answers at {address} holds another key, {shown}: if the safekeeper there is a new one, give its address as it \
         prints it when it starts; if not, it is somebody else"
    )]
    WrongKey {
        /// Which.
        address: ServiceAddr,
        /// The key that was shown.
        shown: KeyPin,
    },
    /// Somebody answers there who is not on the disk that is a member.
    #[error(
        "the safekeeper at {address} is on another disk ({found}) than the one that was there ({expected}), and does not count for it: bring \
         back its disk, or replace it: ardent reconfigure safekeepers --replace"
    )]
    OtherDisk {
        /// Which.
        address: ServiceAddr,
        /// The member's.
        expected: DiskId,
        /// Whose answered.
        found: DiskId,
    },
    /// Somebody answers there, without encryption.
    #[error(
        "nobody speaks TLS at {address}: start the safekeeper there with --listen tls:HOST:PORT; one on this host is also \
         reached without TLS, as tcp:HOST:PORT or unix:PATH"
    )]
    NotTls {
        /// Which.
        address: ServiceAddr,
    },
}

impl ClientError {
    /// For a safekeeper that has not answered in time.
    pub fn silent(address: &ServiceAddr) -> ClientError {
        let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer");
        ClientError::Connect { address: address.clone(), source: Arc::new(source) }
    }

    /// Whether the same may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Connect { .. } | ClientError::Lost { .. } | ClientError::OtherDisk { .. } => true,
            ClientError::Protocol { .. }
            | ClientError::OffHost { .. }
            | ClientError::WrongKey { .. }
            | ClientError::NotTls { .. } => false,
            ClientError::Answer { code, .. } => code.is_retryable(),
        }
    }

    /// Whether it is there, and does not have the timeline.
    pub fn is_without_timeline(&self) -> bool {
        self.code() == Some(ErrorCode::TimelineNotFound)
    }

    /// The safekeeper's error code, where it gave one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Answer { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(crate) fn decode(address: &ServiceAddr, error: &DecodeError) -> Self {
        ClientError::Protocol { address: address.clone(), what: error.to_string() }
    }

    pub(crate) fn unexpected(address: &ServiceAddr) -> Self {
        ClientError::Protocol { address: address.clone(), what: "an answer to another question".to_owned() }
    }
}

/// A writer could not be elected, or cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposerError {
    /// Another writer holds a higher term: whatever this one has not seen flushed must be taken for lost.
    #[error("another writer took timeline {timeline} over in term {term}")]
    Fenced {
        /// Which.
        timeline: TimelineId,
        /// The other's term, or one after it.
        term: Term,
    },
    /// Too few safekeepers answer.
    #[error(
        "timeline {timeline}: fewer than {needed} of {safekeepers} safekeepers can be used{}",
        if *is_changing { ", or too few of those that are to take their place" } else { "" }
    )]
    NoQuorum {
        /// Which.
        timeline: TimelineId,
        /// How many are needed.
        needed: usize,
        /// How many there are.
        safekeepers: usize,
        /// Whether they are being changed: a majority of the next ones is needed as well.
        is_changing: bool,
        /// What the last of those that cannot be used said.
        #[source]
        source: Option<ClientError>,
    },
    /// The safekeepers' logs cannot come from one history.
    #[error("timeline {timeline}: {what}")]
    Contradiction {
        /// Which.
        timeline: TimelineId,
        /// What was seen.
        what: String,
    },
    /// WAL that was to be appended is not WAL, or the log's tail on the safekeepers is not.
    #[error("timeline {timeline}: bad WAL: {what}")]
    BadWal {
        /// Which.
        timeline: TimelineId,
        /// What was seen.
        what: String,
    },
    /// WAL that was to be appended does not start where the log ends.
    #[error("timeline {timeline}: the log ends at {expected}, WAL from {given} cannot be appended")]
    Gap {
        /// Which.
        timeline: TimelineId,
        /// End of the log.
        expected: Lsn,
        /// Where the WAL starts.
        given: Lsn,
    },
    /// The caller ended it.
    #[error("the writer was stopped")]
    Stopped,
}

impl ProposerError {
    /// Whether a new election may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        let ProposerError::NoQuorum { source, is_changing, .. } = self else { return false };
        let may_pass = |error: &ClientError| error.is_retryable() || (*is_changing && error.is_without_timeline());
        source.as_ref().is_none_or(may_pass)
    }
}
