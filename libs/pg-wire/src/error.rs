//! What can go wrong between us and a Postgres server.

use std::fmt;
use std::io;

/// A connection string can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a connection string.
    #[error("not a connection string (postgresql://user@host/database)")]
    Parse(#[source] tokio_postgres::Error),
    /// No host.
    #[error("the connection string names no host")]
    NoHost,
    /// No user.
    #[error("the connection string names no user")]
    NoUser,
    /// Unknown `sslmode`.
    #[error("unknown sslmode {0:?}: use disable, prefer, require, verify-ca or verify-full")]
    SslMode(String),
    /// A setting that this client can't fulfil.
    #[error("the connection string asks for {0}, which this client doesn't do")]
    Unsupported(&'static str),
    /// Root certificates can't be used.
    #[error("no root certificates could be read from {path}: name a PEM file with sslrootcert, or use sslmode=require")]
    RootCertificates {
        /// The file.
        path: String,
        /// Why, if it could not be read.
        #[source]
        source: Option<io::Error>,
    },
}

/// An error that the server reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `FATAL`, `ERROR`, ...
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// Message.
    pub message: String,
    /// Detail, if given.
    pub detail: Option<String>,
    /// Hint, if given.
    pub hint: Option<String>,
    /// Where in the statement, in characters from 1, if given.
    pub position: Option<usize>,
    /// In which function, if given.
    pub context: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.code)?;
        for part in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, "; {part}")?;
        }
        Ok(())
    }
}

/// Talking to a server failed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection string can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody answers.
    #[error("can't connect to Postgres at {addr}")]
    Connect {
        /// Where.
        addr: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server has no TLS and the connection string asks for it.
    #[error("the server at {0} doesn't do TLS, and sslmode asks for it")]
    NoTls(String),
    /// The TLS handshake failed.
    #[error("the TLS handshake with {addr} failed")]
    Tls {
        /// Where.
        addr: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A password is asked for and none is given.
    #[error("the server asks for a password: put it into the connection string")]
    PasswordMissing,
    /// The server asks for a way of authentication that this client doesn't know.
    #[error("the server asks for {0} authentication, which this client doesn't do: allow scram-sha-256 in pg_hba.conf")]
    Authentication(&'static str),
    /// The SCRAM exchange failed.
    #[error("the SCRAM exchange failed")]
    Scram(#[source] io::Error),
    /// The server reported an error.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The server said something that doesn't fit.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error("the connection to the server broke")]
    Io(#[from] io::Error),
    /// The server ended the connection.
    #[error("the server closed the connection")]
    Closed,
}

impl WireError {
    /// Whether a new connection may fare better: nobody answered, the connection broke, or the server is starting, stopping or full.
    pub fn is_retryable(&self) -> bool {
        match self {
            WireError::Connect { .. } | WireError::Io(_) | WireError::Closed => true,
            // Connection exceptions, operator intervention (shutdown, starting up), out of resources; a slot still held by our own old
            // connection is "object in use".
            WireError::Server(error) => {
                ["08", "57", "53"].iter().any(|class| error.code.starts_with(class)) || error.code == "55006"
            }
            _ => false,
        }
    }

    /// The SQLSTATE, if the server reported one.
    pub fn code(&self) -> Option<&str> {
        match self {
            WireError::Server(error) => Some(&error.code),
            _ => None,
        }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> WireError {
        WireError::Protocol(what.into())
    }
}
