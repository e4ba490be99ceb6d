//! What can go wrong between a client and a page server.

use std::io;

use ardent_api::addr::ServiceAddr;
use ardent_api::frame::DecodeError;
use ardent_api::page_service::ErrorCode;

/// Why a request to a page server has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// Nobody listens there.
    #[error("the page server at {addr} does not answer")]
    Connect {
        /// Its address.
        addr: ServiceAddr,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The connection was lost in the middle of a request.
    #[error("the connection to the page server at {addr} was lost")]
    Lost {
        /// Its address.
        addr: ServiceAddr,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// What came back is not a message of the page service.
    #[error("the page server at {addr} sent something else than the page service's messages")]
    Malformed {
        /// Its address.
        addr: ServiceAddr,
        /// Cause.
        #[source]
        source: DecodeError,
    },
    /// A valid message that does not answer the request.
    #[error("the page server at {addr} answered {request} with {answer}")]
    Unexpected {
        /// Its address.
        addr: ServiceAddr,
        /// What was asked.
        request: &'static str,
        /// What came.
        answer: &'static str,
    },
    /// The page server refused or failed.
    #[error("page server: {message}")]
    Server {
        /// Kind of failure.
        code: ErrorCode,
        /// Its own words: what failed, why, what to do.
        message: String,
    },
    /// An earlier request on this connection was given up half-way or failed; open a new connection.
    #[error("this connection to the page server at {addr} is out of step after an abandoned request")]
    Broken {
        /// Its address.
        addr: ServiceAddr,
    },
    /// The address is on another host, which takes TLS.
    #[error(
        "{addr} is not on this host, and a token is not sent in the clear: use a Unix socket or a loopback address"
    )]
    OffHost {
        /// The address.
        addr: ServiceAddr,
    },
}

impl PageError {
    /// Whether the same request on a new connection may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            PageError::Connect { .. } | PageError::Lost { .. } | PageError::Broken { .. } => true,
            PageError::Server { code, .. } => code.is_retryable(),
            PageError::Malformed { .. } | PageError::Unexpected { .. } | PageError::OffHost { .. } => false,
        }
    }

    /// The page server's own error code, when it answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            PageError::Server { code, .. } => Some(*code),
            _ => None,
        }
    }
}
