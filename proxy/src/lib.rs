//! The Postgres front door: TLS, SNI, SCRAM, wake, relay, cancel.
//!
//! ```text
//! client ──TCP──► server ──► session ── startup ─► TLS ─► route (SNI, options, role suffix)
//!                                │                              │
//!                                │            control: auth ◄───┤  verifier, or a mock one
//!                                │                              ▼
//!                                │                            scram (client proves the password)
//!                                │            control: wake ◄───┤  only now
//!                                ▼                              ▼
//!                              relay ◄──────────────► compute's Unix socket
//! ```
//!
//! Invariants:
//! - PX-1: control is asked to wake a branch only after the client has proved a password of it.
//! - PX-2: to a client that has not, an unknown branch, an unknown role and a wrong password look the same.
//! - PX-3: no password and no query passes in clear text over TCP: without TLS nothing but a cancel request is taken.
//! - PX-4: a cancel key that a client holds reaches only the session it was made for.
//! - PX-5: bytes from a client that is not authenticated are parsed within fixed limits of size and time.
//!
//! The proxy knows nothing of timelines, pages or WAL; of a compute it knows the folder of its Unix socket.
//! Start reading in [`session`].

pub mod cancel;
pub mod certificate;
pub mod control_plane;
pub mod limits;
pub mod message;
mod metrics;
pub mod route;
pub mod scram;
pub mod server;
pub mod session;
mod session_threads;
pub mod startup;

pub use certificate::{CertificateError, Certificates};
pub use control_plane::{ControlPlane, ControlSocket};
pub use route::HostNames;
pub use server::{Proxy, ProxyConfig, ProxyError};
