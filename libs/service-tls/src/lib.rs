//! TLS between services on different hosts: each service has a key of its own, and its address names it.
//!
//! ```text
//!  service: Identity (DATA/tls.key) ── server_config ──► TLS 1.3 ◄── connect ── client, who has tls:HOST:PORT/PIN
//!                └─ pin ──► printed as a part of the address ──► given to control and page server, and by these to agents
//! ```
//!
//! The key in the address is what a client trusts, and all that it trusts: no authority signs for services, so none can be lost or
//! fooled, and nothing expires. The service knows its clients by their tokens (`ardent_api::token`), which nobody sends before the other
//! side has proved that it holds the key.
//!
//! Postgres's own tools know no pins. For them a service also has a certificate authority of one, `tls-ca.pem`, of the same
//! key: with it, `sslmode=verify-full` works against the names that the service is given.
//!
//! Invariants: a handshake succeeds only with who holds the pinned key; TLS 1.3 alone is spoken; nothing is resumed; connecting ends
//! within [`CONNECT_TIMEOUT`], and a peer whose host is gone is noticed ([`prepare`]).
//!
//! Not known here: what is sent, tokens.
//!
//! Start reading with [`Identity`] for the service, [`connect`] for the client.

mod identity;
mod pinned;
mod tcp;

pub use identity::{Identity, IdentityError};
pub use pinned::{CONNECT_TIMEOUT, ConnectError, WrongKey, connect};
pub use tcp::prepare;

/// A service's end of a connection.
pub type ServerStream<S> = tokio_rustls::server::TlsStream<S>;
/// A client's end of a connection.
pub type ClientStream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;
pub use tokio_rustls::TlsAcceptor;
