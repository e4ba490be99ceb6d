//! Every limit of the shell.

use std::time::Duration;

/// How long a read waits for WAL that is on its way.
pub const READ_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest wait that a client can ask for.
pub const WAIT_LSN_MAX: Duration = Duration::from_secs(600);
/// Answers are sent once they reach this many bytes, and at the latest when no request is left.
pub const OUTPUT_FLUSH_BYTES: usize = 256 << 10;
/// What a Unix socket to a client is asked to hold, in bytes: several answers to a sequential read, so that the next ones are made while the
/// client is busy with the last. The system may allow less (`net.core.wmem_max`).
pub const SOCKET_BUFFER_BYTES: usize = 1 << 20;
/// Connections at one time.
pub const CONNECTIONS_MAX: usize = 8192;
/// A turn of a connection's thread on a processor that others want, too: about what a page costs that has to be put together.
pub const CONNECTION_TURN: Duration = Duration::from_micros(100);
/// Relation sizes that a connection remembers, some 40 bytes each.
pub const SIZES_PER_CONNECTION_MAX: usize = 1024;
/// Bytes of WAL that are decoded before their values are handed to storage, unless a chunk ends earlier.
pub const BATCH_BYTES: usize = 4 << 20;
/// Bytes of imported pages that are handed to storage at a time.
pub const IMPORT_BATCH_BYTES: usize = 1 << 20;
/// First and longest pause before WAL is asked for again after a failure.
pub const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A timeline that was followed only because somebody waited is left alone after this long without WAL or readers.
pub const FOLLOW_IDLE: Duration = Duration::from_secs(600);
/// How often a follower that waits for an ancestor's WAL looks whether it should end.
pub const ANCESTOR_TICK: Duration = Duration::from_millis(100);
/// An ancestor that gets no WAL for this long, while another timeline's follower waits for it, is reported.
pub const ANCESTOR_STILL_MAX: Duration = Duration::from_secs(5);
/// How often a follower without WAL looks whether it should end, or report durability.
pub const FOLLOW_TICK: Duration = Duration::from_secs(1);
/// Relations that an answer about unnamed files lists; it counts all of them.
pub const UNNAMED_RELATIONS_MAX: usize = 1000;
/// Relations in one frame of an answer.
pub const RELATIONS_PER_FRAME: usize = 4096;
/// Block ranges in one frame of an answer.
pub const RANGES_PER_FRAME: usize = 1 << 20;
