//! Tools that run SQL on a branch: `query`, which changes nothing, and `execute`.
//!
//! A query is the cursor of a read-only transaction: Postgres itself takes one statement there, and of statements only those that
//! give rows and write none. What a function could still do besides, the library in the compute refuses to this session, superuser
//! or not.

use std::error::Error as _;
use std::time::Duration;

use ardent_api::control::{ApiErrorCode, ErrorInfo, WakeReply};
use ardent_pg_wire::driver;
use futures_util::TryStreamExt as _;
use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_postgres::error::ErrorPosition;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Config, SimpleQueryMessage, SimpleQueryRow};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::answer::{ANSWER_LEN_MAX, SqlTrouble, Trouble, VALUE_LEN_MAX, cut};
use super::call::Call;
use crate::commands::{branch, path_name};
use crate::failure::Failure;

/// Rows that are given unless told otherwise.
const ROWS: usize = 100;
/// Most rows that are given.
const ROWS_MAX: usize = 1000;
/// Seconds that a statement may run unless told otherwise.
const TIMEOUT_S: u64 = 30;
/// Most seconds that it may.
const TIMEOUT_MAX_S: u64 = 600;
/// How much longer than Postgres is waited for before the connection is given up.
const GRACE: Duration = Duration::from_secs(5);
/// Rows that are fetched at once.
const FETCHED: usize = 50;
/// Most statements of an `execute` that are told of one by one.
const STATEMENTS_MAX: usize = 50;
/// What makes a query a cursor.
const DECLARE: &str = "DECLARE ardent_query NO SCROLL CURSOR FOR ";
/// The setting that makes the library hold a session to reading.
const READ_ONLY: &str = "ardent.read_only_session";
/// SQLSTATE of what is refused to sessions that only read.
const READ_ONLY_STATE: &str = "25006";

/// SQL for a branch.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlArgs {
    /// The branch's name
    pub branch: String,
    /// The SQL
    pub sql: String,
    /// The database; absent: the branch's
    pub database: Option<String>,
    /// The role; absent: the branch's
    pub role: Option<String>,
    /// Most rows to give, at most 1000; absent: 100
    pub max_rows: Option<usize>,
    /// Seconds after which it is cancelled, at most 600; absent: 30
    pub timeout_s: Option<u64>,
}

/// Rows of a query. Values are Postgres's own text; null is NULL.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Rows {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
    /// There are more rows than are shown: ask for fewer with LIMIT and WHERE, or count them
    more_rows: bool,
    /// Values that were cut after 1000 characters: select a part of them with substr
    values_cut: usize,
}

/// What statements did.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Executed {
    /// One for each statement
    statements: Vec<Statement>,
    /// Statements that were run and are not told of one by one
    left_out: usize,
}

/// What one statement did.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Statement {
    /// Rows that it inserted, updated, deleted or gave
    row_count: u64,
    /// The rows that it gave, if it gives any
    result: Option<Rows>,
}

/// Rows as they come, as far as there is room.
struct Taking {
    rows_left: usize,
    bytes_left: usize,
}

impl Taking {
    /// Takes a row; false: there was no room for it.
    fn take<'a>(&mut self, into: &mut Rows, values: impl Iterator<Item = Option<&'a str>>) -> bool {
        let (mut row, mut len, mut values_cut) = (Vec::new(), 0, 0);
        for value in values {
            let shown = value.map(|value| cut(value, VALUE_LEN_MAX));
            values_cut += usize::from(shown.as_deref() != value);
            // Quotes and a comma.
            len += shown.as_ref().map_or(4, String::len) + 3;
            row.push(shown);
        }
        if self.rows_left == 0 || len > self.bytes_left {
            // What is behind the first row that is left out is left out too.
            self.rows_left = 0;
            into.more_rows = true;
            return false;
        }
        self.rows_left -= 1;
        self.bytes_left -= len;
        into.values_cut += values_cut;
        into.rows.push(row);
        true
    }
}

/// `query`.
pub async fn query(call: &Call, args: SqlArgs) -> Result<Rows, Trouble> {
    let form = Form::of(&args.sql)?;
    let session = Session::open(call, &args, Rights::Reading).await?;
    let (mut rows, mut taking) = (Rows::default(), args.taking());
    let reading = async {
        // The snapshot is taken here: from now on Postgres itself refuses to make the transaction a writing one.
        let begun = format!("BEGIN READ ONLY; SELECT pg_catalog.current_setting('{READ_ONLY}')");
        let answers = session.client.simple_query(&begun).await?;
        let held = answers.iter().any(
            |answer| matches!(answer, SimpleQueryMessage::Row(row) if row.try_get(0).ok().flatten() == Some("on")),
        );
        if !held {
            return Ok(false);
        }
        match form {
            Form::Cursor => session.read_cursor(&args.sql, &mut rows, &mut taking).await?,
            Form::Told => session.read_told(&args.sql, &mut rows, &mut taking).await?,
        }
        // Whatever the statement did besides giving rows is not to stay.
        session.client.simple_query("ROLLBACK").await?;
        Ok(true)
    };
    let held = session.in_time(call, &args, if form == Form::Cursor { DECLARE.len() } else { 0 }, reading).await?;
    if held { Ok(rows) } else { Err(not_held(&args.branch)) }
}

/// `execute`.
pub async fn execute(call: &Call, args: SqlArgs) -> Result<Executed, Trouble> {
    let session = Session::open(call, &args, Rights::All).await?;
    let (mut executed, mut taking) = (Executed::default(), args.taking());
    let mut statement = Statement::default();
    let running = async {
        let mut answers = std::pin::pin!(session.client.simple_query_raw(&args.sql).await?);
        while let Some(answer) = answers.try_next().await? {
            match answer {
                SimpleQueryMessage::RowDescription(columns) => {
                    let columns = columns.iter().map(|column| column.name().to_owned()).collect();
                    statement.result = Some(Rows { columns, ..Rows::default() });
                }
                SimpleQueryMessage::Row(row) => {
                    taking.take(statement.result.get_or_insert_default(), values(&row));
                }
                SimpleQueryMessage::CommandComplete(row_count) => {
                    let done = Statement { row_count, ..std::mem::take(&mut statement) };
                    if executed.statements.len() < STATEMENTS_MAX {
                        executed.statements.push(done);
                    } else {
                        executed.left_out += 1;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    };
    session.in_time(call, &args, 0, running).await?;
    Ok(executed)
}

fn values(row: &SimpleQueryRow) -> impl Iterator<Item = Option<&str>> {
    (0..row.len()).map(|column| row.try_get(column).ok().flatten())
}

fn not_held(branch: &str) -> Trouble {
    let message = "the branch's Postgres does not hold this session to reading";
    let hint = format!("it was started by an older server: ardent branch suspend {branch}, then try again");
    Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint(hint)).into()
}

impl SqlArgs {
    fn timeout_s(&self) -> u64 {
        self.timeout_s.unwrap_or(TIMEOUT_S).clamp(1, TIMEOUT_MAX_S)
    }

    fn taking(&self) -> Taking {
        Taking { rows_left: self.max_rows.unwrap_or(ROWS).min(ROWS_MAX), bytes_left: ANSWER_LEN_MAX }
    }
}

/// How a query is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As a cursor.
    Cursor,
    /// By itself, for its rows of text: `EXPLAIN`, `SHOW`.
    Told,
}

impl Form {
    /// By the first word; what is none of these does not only read.
    fn of(sql: &str) -> Result<Form, Failure> {
        let rest = skip_blank(sql);
        if rest.starts_with('(') {
            return Ok(Form::Cursor);
        }
        let end = rest.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(rest.len());
        match rest[..end].to_ascii_lowercase().as_str() {
            "select" | "with" | "values" | "table" => Ok(Form::Cursor),
            "explain" | "show" => Ok(Form::Told),
            _ => Err(Failure::usage("query takes one SELECT, WITH, VALUES, TABLE, EXPLAIN or SHOW")
                .hint("use the tool execute for what changes the branch")),
        }
    }
}

/// The text behind white space and comments, which may be nested.
fn skip_blank(sql: &str) -> &str {
    let mut rest = sql.trim_start();
    loop {
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
        } else if rest.starts_with("/*") {
            rest = behind_comment(rest).trim_start();
        } else {
            return rest;
        }
    }
}

fn behind_comment(sql: &str) -> &str {
    let (mut depth, mut at) = (0_usize, 0);
    let bytes = sql.as_bytes();
    while at < bytes.len() {
        match &bytes[at..bytes.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return &sql[at..];
        }
    }
    ""
}

/// What a session may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    Reading,
    All,
}

/// A connection to a branch for one call.
struct Session {
    client: Client,
    tls: MakeRustlsConnect,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Postgres ends the transaction with the connection.
        self.connection.abort();
    }
}

impl Session {
    async fn open(call: &Call, args: &SqlArgs, rights: Rights) -> Result<Session, Trouble> {
        let (name, role) = (path_name(&args.branch)?, args.role.clone());
        let url = call
            .blocking("starting the branch's Postgres", move |api, _| {
                // Its first start takes longer than a connection may.
                api.post::<WakeReply>(&format!("/v1/branches/{name}/wake"), &json!({}))?;
                Ok(branch::url(api, &name, role.as_deref())?.url)
            })
            .await?;
        let (mut config, tls) = driver(&url).map_err(|error| Failure::of(&error))?;
        config.application_name("ardent mcp").connect_timeout(GRACE);
        if let Some(database) = &args.database {
            config.dbname(database);
        }
        config.options(options(&config, args, rights));
        let connecting = async {
            config.connect(tls.clone()).await.map_err(|error| not_opened(told(&error, 0, &args.branch), rights))
        };
        let (client, connection) = tokio::select! {
            connected = connecting => connected?,
            () = call.cancelled.cancelled() => return Err(Trouble::Cancelled),
        };
        // Its errors reach the statements.
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Session { client, tls, connection })
    }

    async fn read_cursor(&self, sql: &str, rows: &mut Rows, taking: &mut Taking) -> Result<(), Stopped> {
        // Prepared, and so one statement or none.
        let declared = self.client.prepare(&format!("{DECLARE}{sql}")).await?;
        check_parameters(&declared)?;
        self.client.execute(&declared, &[]).await?;
        let fetch = format!("FETCH FORWARD {FETCHED} FROM ardent_query");
        loop {
            let mut answers = std::pin::pin!(self.client.simple_query_raw(&fetch).await?);
            let (mut count, mut has_room) = (0, true);
            while let Some(answer) = answers.try_next().await? {
                match answer {
                    SimpleQueryMessage::RowDescription(columns) if rows.columns.is_empty() => {
                        rows.columns = columns.iter().map(|column| column.name().to_owned()).collect();
                    }
                    SimpleQueryMessage::Row(row) => {
                        count += 1;
                        has_room = taking.take(rows, values(&row)) && has_room;
                    }
                    _ => {}
                }
            }
            if count < FETCHED || !has_room {
                return Ok(());
            }
        }
    }

    async fn read_told(&self, sql: &str, rows: &mut Rows, taking: &mut Taking) -> Result<(), Stopped> {
        let prepared = self.client.prepare(sql).await?;
        check_parameters(&prepared)?;
        rows.columns = prepared.columns().iter().map(|column| column.name().to_owned()).collect();
        let mut lines = std::pin::pin!(self.client.query_raw(&prepared, std::iter::empty::<&str>()).await?);
        while let Some(line) = lines.try_next().await? {
            let values: Vec<Option<Told>> = (0..line.len()).map(|column| line.try_get(column).ok().flatten()).collect();
            taking.take(rows, values.iter().map(|value| value.as_ref().map(|value| value.0.as_str())));
        }
        Ok(())
    }

    /// Waits for statements as long as they may take, and ends them then, or when the call is taken back.
    async fn in_time<T>(
        &self,
        call: &Call,
        args: &SqlArgs,
        shift: usize,
        work: impl Future<Output = Result<T, Stopped>>,
    ) -> Result<T, Trouble> {
        let timeout_s = args.timeout_s();
        let why = tokio::select! {
            done = work => return done.map_err(|stopped| stopped.trouble(shift, &args.branch)),
            () = tokio::time::sleep(Duration::from_secs(timeout_s) + GRACE) => {
                let error = ErrorInfo::new(ApiErrorCode::Timeout, format!("the statement ran longer than {timeout_s} s"));
                Trouble::Failure(error.with_hint("give timeout_s, or ask for less").into())
            }
            () = call.cancelled.cancelled() => Trouble::Cancelled,
        };
        // If it does not reach Postgres, the end of the connection does.
        let _unreachable = tokio::time::timeout(GRACE, self.client.cancel_token().cancel_query(self.tls.clone())).await;
        Err(why)
    }
}

/// The options of a connection: what the URL has, and what holds for this session.
fn options(config: &Config, args: &SqlArgs, rights: Rights) -> String {
    let given = config.get_options().unwrap_or_default();
    let mut options = format!("{given} -c statement_timeout={}s", args.timeout_s());
    if rights == Rights::Reading {
        // The library holds what the session does; what runs before its first statement, a login event trigger, is told by this.
        options.push_str(&format!(" -c {READ_ONLY}=on -c default_transaction_read_only=on"));
    }
    options.trim_start().to_owned()
}

/// A value that is text in either of the protocol's formats.
struct Told(String);

impl<'a> FromSql<'a> for Told {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Told(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Why a statement was not run to its end.
enum Stopped {
    Postgres(tokio_postgres::Error),
    /// It cannot be run without values that it lacks.
    LacksValues,
}

impl From<tokio_postgres::Error> for Stopped {
    fn from(error: tokio_postgres::Error) -> Self {
        Stopped::Postgres(error)
    }
}

impl Stopped {
    fn trouble(&self, shift: usize, branch: &str) -> Trouble {
        match self {
            Stopped::Postgres(error) if is_copy(error) => {
                let hint = format!(
                    "INSERT the rows, or SELECT them; for files there is psql: ardent psql {branch} -- -c '\\copy TABLE from FILE'. \
                     Statements beside a COPY to the client may have been run"
                );
                Failure::usage("COPY from or to the client is not possible with this tool").hint(hint).into()
            }
            Stopped::Postgres(error) => told(error, shift, branch),
            Stopped::LacksValues => {
                let what = "the statement has parameters such as $1, and there is nothing to put in their place";
                Failure::usage(what).hint("write the values into the statement").into()
            }
        }
    }
}

fn check_parameters(statement: &tokio_postgres::Statement) -> Result<(), Stopped> {
    if statement.params().is_empty() { Ok(()) } else { Err(Stopped::LacksValues) }
}

/// Whether Postgres wants or sends the rows of a `COPY`: of what answers a statement, that alone is not understood.
fn is_copy(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none() && error.source().is_none() && !error.is_closed()
}

/// What kept a session from being opened. Before its first statement only a login event trigger can have been refused to write.
fn not_opened(trouble: Trouble, rights: Rights) -> Trouble {
    match trouble {
        Trouble::Sql(mut said) if rights == Rights::Reading && said.sqlstate.as_deref() == Some(READ_ONLY_STATE) => {
            said.message = format!(
                "a login event trigger of the branch does what a session that only reads may not: {}",
                said.message
            );
            let hint = "let its function write only where current_setting('transaction_read_only') is off, or turn it off on the \
                branch with execute: ALTER EVENT TRIGGER name DISABLE; SELECT evtname FROM pg_event_trigger WHERE evtevent = 'login' \
                names it";
            said.hint = Some(hint.to_owned());
            Trouble::Sql(said)
        }
        other => other,
    }
}

/// What Postgres says of an error. `shift`: characters that stand before the statement that was given.
fn told(error: &tokio_postgres::Error, shift: usize, branch: &str) -> Trouble {
    let Some(said) = error.as_db_error() else {
        let failure = Failure::of(error).code(ApiErrorCode::ComputeFailed);
        return failure.hint(format!("see whether the branch works: ardent psql {branch}")).into();
    };
    let position = match said.position() {
        Some(ErrorPosition::Original(position)) => position.checked_sub(u32::try_from(shift).unwrap_or(0)),
        _ => None,
    };
    Trouble::Sql(Box::new(SqlTrouble {
        message: said.message().to_owned(),
        sqlstate: Some(said.code().code().to_owned()),
        detail: said.detail().map(str::to_owned),
        hint: said.hint().map(str::to_owned),
        position,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_decides_and_comments_are_none() {
        let check = |sql: &str, expect: Option<Form>| assert_eq!(Form::of(sql).ok(), expect, "{sql:?}");
        check("select 1", Some(Form::Cursor));
        check(" \n(select 1) union values (2)", Some(Form::Cursor));
        check("-- a\n/* b /* c */ d */ With x as (select 1) table x", Some(Form::Cursor));
        check("EXPLAIN (analyze) select 1", Some(Form::Told));
        check("show all", Some(Form::Told));
        for sql in ["", "-- select", "/* select", "/* x */", "selecting", "delete from t", "begin", "commit", "äselect"]
        {
            check(sql, None);
        }
    }

    #[test]
    fn who_keeps_a_session_from_being_opened_is_named() {
        let check = |sqlstate: &str, rights: Rights, is_trigger: bool| {
            let said = SqlTrouble {
                message: "cannot execute INSERT".to_owned(),
                sqlstate: Some(sqlstate.to_owned()),
                ..SqlTrouble::default()
            };
            let Trouble::Sql(said) = not_opened(Trouble::Sql(Box::new(said)), rights) else {
                panic!("another trouble")
            };
            assert!(said.message.ends_with("cannot execute INSERT"), "{said:?}");
            assert_eq!(said.message.contains("login event trigger"), is_trigger, "{said:?}");
            assert_eq!(said.hint.is_some_and(|hint| hint.contains("ALTER EVENT TRIGGER")), is_trigger);
        };
        check("25006", Rights::Reading, true);
        check("25006", Rights::All, false);
        check("28000", Rights::Reading, false);
    }

    #[test]
    fn a_reading_session_says_so_from_its_beginning() {
        let args = SqlArgs {
            branch: "work".to_owned(),
            sql: String::new(),
            database: None,
            role: None,
            max_rows: None,
            timeout_s: None,
        };
        let mut config = Config::new();
        config.options("branch=work");
        assert_eq!(
            options(&config, &args, Rights::Reading),
            "branch=work -c statement_timeout=30s -c ardent.read_only_session=on -c default_transaction_read_only=on"
        );
        assert_eq!(options(&config, &args, Rights::All), "branch=work -c statement_timeout=30s");
    }

    #[test]
    fn rows_are_taken_while_there_is_room() {
        let mut taking = Taking { rows_left: 3, bytes_left: 30 };
        let mut rows = Rows::default();
        assert!(taking.take(&mut rows, [Some("abc"), None].into_iter()));
        assert!(!taking.take(&mut rows, [Some("a value that is too long"), None].into_iter()));
        assert!(!taking.take(&mut rows, [Some("a")].into_iter()), "no hole");
        assert_eq!((rows.rows.len(), rows.more_rows), (1, true));
        let long = "x".repeat(VALUE_LEN_MAX + 1);
        let mut taking = Taking { rows_left: 1, bytes_left: ANSWER_LEN_MAX };
        let mut rows = Rows::default();
        assert!(taking.take(&mut rows, [Some(long.as_str())].into_iter()));
        assert_eq!(rows.values_cut, 1);
    }
}
