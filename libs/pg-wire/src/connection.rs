//! A connection that is ready for commands.

use bytes::BytesMut;
use postgres_protocol::message::frontend;

use crate::config::{ConnectConfig, ConnectMode};
use crate::error::WireError;
use crate::handshake::{connect, unexpected};
use crate::message::{Fields, Message, MessageStream};

/// A connection to a Postgres server. Dropping it closes it.
pub struct Connection {
    pub(crate) messages: MessageStream,
}

/// Rows of one statement, all values as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryResult {
    /// Column names.
    pub columns: Vec<String>,
    /// Rows; a value is `None` if it is null.
    pub rows: Vec<Vec<Option<String>>>,
}

impl QueryResult {
    /// The value of a column in the first row, if there is one and it isn't null.
    pub fn value(&self, column: &str) -> Option<&str> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.rows.first()?.get(index)?.as_deref()
    }
}

impl Connection {
    /// Connects and authenticates, within the connection string's `connect_timeout` (10 s by default) for each host.
    pub async fn connect(config: &ConnectConfig, mode: ConnectMode) -> Result<Connection, WireError> {
        let mut messages = connect(config, mode).await?;
        // Not before the server is who it should be.
        if mode == ConnectMode::Logical {
            messages.allow_long_changes();
        }
        Ok(Connection { messages })
    }

    /// Runs SQL, or a replication command; gives the rows of the last statement that has any.
    pub async fn query(&mut self, sql: &str) -> Result<QueryResult, WireError> {
        self.send_query(sql).await?;
        let mut last = QueryResult::default();
        let mut failed = None;
        loop {
            let message = match self.messages.expect().await {
                Ok(message) => message,
                // The server gets ready again after an error; only then can the connection be used further.
                Err(error @ WireError::Server(_)) if failed.is_none() => {
                    failed = Some(error);
                    continue;
                }
                Err(error) => return Err(failed.unwrap_or(error)),
            };
            match message.tag {
                b'T' => last = QueryResult { columns: columns(message)?, rows: Vec::new() },
                b'D' => last.rows.push(row(message)?),
                b'C' | b'I' => {}
                b'Z' => return failed.map_or(Ok(last), Err),
                tag => return Err(unexpected(tag, "a query")),
            }
        }
    }

    pub(crate) async fn send_query(&mut self, sql: &str) -> Result<(), WireError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.messages.write(&out).await
    }

    /// Reads the rows of one statement up to its end, which doesn't end the command.
    pub(crate) async fn read_result(&mut self) -> Result<QueryResult, WireError> {
        let mut result = QueryResult::default();
        loop {
            let message = self.messages.expect().await?;
            match message.tag {
                b'T' => result.columns = columns(message)?,
                b'D' => result.rows.push(row(message)?),
                b'C' => return Ok(result),
                tag => return Err(unexpected(tag, "a result")),
            }
        }
    }

    /// Reads up to the end of the command.
    pub(crate) async fn read_ready(&mut self) -> Result<(), WireError> {
        loop {
            match self.messages.expect().await?.tag {
                b'C' => {}
                b'Z' => return Ok(()),
                tag => return Err(unexpected(tag, "the end of a command")),
            }
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

fn columns(message: Message) -> Result<Vec<String>, WireError> {
    let mut fields = Fields::new(message.body);
    let count = fields.u16()?;
    let column = |_| {
        let name = fields.text()?;
        // Table, column, type, size, modifier, format: 18 bytes that text values don't need.
        fields.bytes(18).map(|_| name)
    };
    (0..count).map(column).collect()
}

pub(crate) fn row(message: Message) -> Result<Vec<Option<String>>, WireError> {
    let mut fields = Fields::new(message.body);
    let count = fields.u16()?;
    let value = |_| {
        let Ok(length) = usize::try_from(fields.i32()?) else { return Ok(None) };
        let text = String::from_utf8(fields.bytes(length)?.to_vec());
        text.map(Some).map_err(|_| WireError::protocol("a value that is not UTF-8"))
    };
    (0..count).map(value).collect()
}
