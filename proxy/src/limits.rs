//! Every limit of the proxy.

use std::time::Duration;

/// Largest startup packet taken, in bytes (Postgres's `MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_PACKET_LEN_MAX: usize = 10_000;
/// Largest message taken from a client during authentication, in bytes.
pub const AUTH_MESSAGE_LEN_MAX: usize = 4096;
/// Largest message taken from a compute before its session is relayed, in bytes.
pub const BACKEND_STARTUP_MESSAGE_LEN_MAX: usize = 64 * 1024;
/// From the first byte to the proved password.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// From the proved password to a compute that takes the connection. A cold start with a long queue fits well.
pub const WAKE_TIMEOUT: Duration = Duration::from_secs(120);
/// Connections at one time, authenticated or not.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Each direction's buffer of a relayed session, in bytes.
pub const RELAY_BUFFER_LEN: usize = 32 * 1024;
/// Pause before a compute that was just going to sleep is asked for again.
pub const REWAKE_PAUSE: Duration = Duration::from_millis(20);
/// Pause after a connection could not be accepted, so that a lack of file descriptors is not a busy loop.
pub const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(50);
