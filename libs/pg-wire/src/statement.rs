//! One statement by the extended protocol, and queries that look around behind it before its transaction ends.
//!
//! ```text
//!  statement, look, look, Sync ──►  outside of a block, all are one transaction, which ends with the Sync;
//!                                   a statement that runs its own transactions (VACUUM, CREATE INDEX CONCURRENTLY, a
//!                                   procedure that commits) has ended them by then
//! ```
//!
//! The statement comes first, so the server treats it as if it were alone.

use std::time::Instant;

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend::{self, BindError};

use crate::connection::{Connection, row};
use crate::error::{ServerError, WireError};
use crate::handshake::unexpected;
use crate::message::{Fields, parse_error};

/// What the server says of a session's transaction when it is ready again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// None is open.
    Idle,
    /// In a block.
    Open,
    /// In a block that has failed, and takes nothing but its end.
    Failed,
}

/// How a statement went.
#[derive(Clone, Debug)]
pub struct StatementRun {
    /// Its command tag, or why it failed: itself, or at its commit. Then no look was taken, or none counts.
    pub outcome: Result<String, ServerError>,
    /// Notices and warnings, from the first to the last; at most [`NOTICES_MAX`].
    pub notices: Vec<ServerError>,
    /// Notices that were left out.
    pub notices_left_out: u64,
    /// The rows of each look.
    pub looks: Vec<Vec<Vec<Option<String>>>>,
    /// Whether a transaction is open now.
    pub status: TransactionStatus,
    /// When the statement was sent.
    pub sent_at: Instant,
    /// When it was done: before the looks.
    pub done_at: Instant,
    /// When the looks were done.
    pub looked_at: Instant,
    /// When the server was ready again: what came after the looks is the commit.
    pub ready_at: Instant,
}

/// Most notices of one statement that are kept.
pub const NOTICES_MAX: usize = 100;

impl Connection {
    /// Runs one statement, then `looks` in the same transaction. An error of the statement is an outcome; of a look it is an error,
    /// and takes the statement back if its transaction was open.
    pub async fn run_statement(&mut self, sql: &str, looks: &[&str]) -> Result<StatementRun, WireError> {
        let mut out = BytesMut::new();
        for text in std::iter::once(&sql).chain(looks) {
            frontend::parse("", text, [], &mut out)?;
            let no_values = |(): (), _: &mut BytesMut| Ok(IsNull::Yes);
            frontend::bind("", "", [], [], no_values, [], &mut out).map_err(|error| match error {
                BindError::Conversion(error) => WireError::protocol(error.to_string()),
                BindError::Serialization(error) => WireError::Io(error),
            })?;
            frontend::execute("", 0, &mut out)?;
        }
        frontend::sync(&mut out);
        let sent_at = Instant::now();
        self.messages.write(&out).await?;
        let mut run = StatementRun {
            outcome: Ok(String::new()),
            notices: Vec::new(),
            notices_left_out: 0,
            looks: vec![Vec::new(); looks.len()],
            status: TransactionStatus::Idle,
            sent_at,
            done_at: sent_at,
            looked_at: sent_at,
            ready_at: sent_at,
        };
        // The statement and the looks that are done.
        let mut done = 0;
        let mut look_failed = None;
        loop {
            let message = match (self.messages.read().await, &run.outcome) {
                (Ok(message), _) => message,
                // The server said why it ended the session.
                (Err(_), Err(error)) => return Err(WireError::Server(Box::new(error.clone()))),
                (Err(error), Ok(_)) => return Err(error),
            };
            match message.tag {
                // Rows of the statement itself are of no interest.
                b'D' if done > 0 => {
                    let look = run.looks.get_mut(done - 1);
                    look.ok_or_else(|| unexpected(b'D', "a commit"))?.push(row(message)?);
                }
                b'C' | b'I' => {
                    run.looked_at = Instant::now();
                    if done == 0 {
                        run.done_at = run.looked_at;
                        // An empty statement has none.
                        let tag = if message.tag == b'C' { Fields::new(message.body).text()? } else { String::new() };
                        run.outcome = Ok(tag);
                    }
                    done += 1;
                }
                b'E' => {
                    let error = parse_error(&message.body);
                    let now = Instant::now();
                    if done == 0 {
                        (run.done_at, run.looked_at) = (now, now);
                    }
                    match (1..=looks.len()).contains(&done) {
                        true => look_failed = Some(error),
                        false => run.outcome = Err(error),
                    }
                }
                b'N' if run.notices.len() == NOTICES_MAX => run.notices_left_out += 1,
                b'N' => run.notices.push(parse_error(&message.body)),
                // COPY FROM STDIN: there is nothing to send.
                b'G' => {
                    let mut refusal = BytesMut::new();
                    frontend::copy_fail("no data comes with the statement", &mut refusal)?;
                    self.messages.write(&refusal).await?;
                }
                b'Z' => {
                    run.ready_at = Instant::now();
                    run.status = match Fields::new(message.body).u8()? {
                        b'I' => TransactionStatus::Idle,
                        b'T' => TransactionStatus::Open,
                        _ => TransactionStatus::Failed,
                    };
                    return match look_failed {
                        Some(error) => Err(WireError::Server(Box::new(error))),
                        None => Ok(run),
                    };
                }
                // Parsed, bound, parameters and notifications; rows, and COPY TO STDOUT.
                b'1' | b'2' | b'S' | b'A' | b'D' | b'H' | b'd' | b'c' => {}
                tag => return Err(unexpected(tag, "a statement")),
            }
        }
    }
}
