//! What Postgres's built-in logical decoding plugin (`pgoutput`, protocol version 1) sends, decoded.
//!
//! ```text
//!  payload of one replication message ──► Message::decode ──► Begin, Relation, Insert, ... Commit
//! ```
//!
//! Invariants: no input panics; a message is taken whole, with nothing left over, or refused with the offset at which it stopped
//! making sense; values are views of the bytes that came in, never copies.
//!
//! Sans-IO: it knows nothing of connections, of catalogs, or of what a value's text means. The layout is the one that Postgres's
//! manual gives under "Logical Replication Message Formats". Start reading at [`Message`].

mod error;
mod fields;
mod message;
mod tuple;

pub use error::DecodeError;
pub use message::{Begin, Change, Column, Commit, Message, Relation, ReplicaIdentity, Truncate, TypeName, Update};
pub use tuple::{Tuple, Value};
