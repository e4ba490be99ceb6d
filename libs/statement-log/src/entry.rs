//! What is told of a log: one entry for each statement, as JSON and for filters.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use ardent_types::{Lsn, TimelineId};

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A statement.
    Statement,
    /// A transaction with changes and no statement: a client called functions without SQL, or code that was loaded hid it.
    NoStatement,
    /// Records are missing here.
    Lost,
}

/// What became of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It changed nothing that a transaction would have to commit.
    Done,
    /// Its transaction is committed.
    Committed,
    /// It succeeded, and its transaction or savepoint was rolled back.
    RolledBack,
    /// It failed.
    Failed,
    /// Its transaction is prepared: `COMMIT PREPARED` or `ROLLBACK PREPARED` decided or will decide.
    Prepared,
    /// Its transaction has not ended, or nothing was heard of its end.
    Open,
}

impl Outcome {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Committed => "committed",
            Outcome::RolledBack => "rolled back",
            Outcome::Failed => "failed",
            Outcome::Prepared => "prepared",
            Outcome::Open => "open",
        }
    }
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// What it is about.
    pub kind: EntryKind,
    /// When it began, ISO 8601.
    pub at: String,
    /// Until the statement ended, in microseconds, without its transaction's end.
    pub duration_us: Option<u64>,
    /// Process id of the session.
    pub pid: u32,
    /// When the session began, ISO 8601: with `pid`, names the session.
    pub session_started_at: String,
    /// Counts the session's statements.
    pub number: u64,
    /// Database.
    pub database: String,
    /// The role that logged in.
    pub session_role: String,
    /// The role that the statement ran as.
    pub role: String,
    /// The session's `application_name`.
    pub application_name: String,
    /// Address and port of the client, as the proxy saw them (`192.0.2.1:50000`, `[2001:db8::1]:50000`); absent where the session
    /// did not come through it, and of what was recorded before this was.
    #[serde(default)]
    pub client_address: Option<String>,
    /// Of the server's own session.
    pub is_own: bool,
    /// The text, as far as it is kept.
    pub statement: String,
    /// Length of the whole text in bytes.
    pub statement_bytes: u64,
    /// The parameters as `$1 = 'value', ...`, as far as they are kept; absent if there are none.
    pub parameters: Option<String>,
    /// How many parameters there are.
    pub parameters_count: u32,
    /// Rows that it gave, changed or copied; of [`EntryKind::Lost`], records that are missing.
    pub rows: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
    /// SQLSTATE of a failure.
    pub sqlstate: Option<String>,
    /// Its message.
    pub error: Option<String>,
    /// The transaction's id, with its epoch.
    pub xid: Option<u64>,
    /// All WAL that the session wrote for it begins at or after this,
    pub lsn_from: Option<Lsn>,
    /// and ends at this.
    pub lsn_to: Option<Lsn>,
    /// When its transaction ended, ISO 8601.
    pub ended_at: Option<String>,
    /// Where the WAL tells of that end.
    pub end_lsn: Option<Lsn>,
    /// The timeline that positions in the WAL are on.
    pub timeline_id: TimelineId,
}

impl LogEntry {
    /// The client's address without its port.
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.client_address.as_deref()?.parse::<SocketAddr>().ok().map(|address| address.ip())
    }

    /// Whether the statement wrote anything that its transaction has to commit.
    pub fn is_write(&self) -> bool {
        self.xid.is_some() && self.lsn_to.is_some()
    }
}

/// Which entries are wanted. Everything that is given has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFilter {
    /// That began at this time or later, in microseconds since the Unix epoch.
    #[serde(default)]
    pub since_us: Option<i64>,
    /// That began before, in microseconds since the Unix epoch.
    #[serde(default)]
    pub until_us: Option<i64>,
    /// Of this role: that logged in, or that it ran as.
    #[serde(default)]
    pub role: Option<String>,
    /// With this in its `application_name`.
    #[serde(default)]
    pub application: Option<String>,
    /// From this address, whatever the port.
    #[serde(default)]
    pub client: Option<IpAddr>,
    /// In this database.
    #[serde(default)]
    pub database: Option<String>,
    /// That failed.
    #[serde(default)]
    pub failed: bool,
    /// That wrote.
    #[serde(default)]
    pub writes: bool,
    /// With this in text, parameters or error, whatever the case of ASCII letters.
    #[serde(default)]
    pub grep: Option<String>,
}

impl LogFilter {
    /// Whether a statement that began at `at_us` is wanted.
    pub(crate) fn wants(&self, at_us: i64, entry: &LogEntry) -> bool {
        let is_statement = entry.kind == EntryKind::Statement;
        let contains = |text: &str, part: &str| {
            let (text, part) = (text.as_bytes(), part.as_bytes());
            part.is_empty() || text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
        };
        let in_text = |part: &str| {
            contains(&entry.statement, part)
                || entry.parameters.as_deref().is_some_and(|text| contains(text, part))
                || entry.error.as_deref().is_some_and(|text| contains(text, part))
        };
        self.since_us.is_none_or(|since| at_us >= since)
            && self.until_us.is_none_or(|until| at_us < until)
            // What is missing may be what was asked for.
            && (entry.kind == EntryKind::Lost
                || (self.role.as_ref().is_none_or(|role| *role == entry.role || *role == entry.session_role)
                    && self.application.as_deref().is_none_or(|part| contains(&entry.application_name, part))
                    && self.client.is_none_or(|address| entry.client_ip() == Some(address))
                    && self.database.as_ref().is_none_or(|database| *database == entry.database)
                    && (!self.failed || entry.outcome == Outcome::Failed)
                    && (!self.writes || entry.is_write() || entry.kind == EntryKind::NoStatement)
                    && self.grep.as_deref().is_none_or(|part| is_statement && in_text(part))))
    }
}
