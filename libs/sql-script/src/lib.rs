//! A file of SQL, parted into its statements as psql parts one: a migration to be rehearsed, or what `pg_dump` wrote.
//!
//! ```text
//!  bytes ──► Script::parse ──► statements, each with its place in the file
//!                         └──► ScriptError: what cannot be sent as it is, with its line
//! ```
//!
//! Invariants:
//! - Statements are what psql would send: comments before and after them, and their semicolons, left out; nothing in them changed.
//! - What is wrong with a file is said before any statement of it is given out.
//! - Any bytes are parted or refused; none panic.
//!
//! It knows quotes, comments and what holds statements within a statement, and no other grammar. Start reading at [`Script`].

mod script;

pub use script::{PsqlCommands, Quote, Script, ScriptError};
