//! Runs a script on two connections: one for its statements, one to watch the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use ardent_pg_wire::{ConnectConfig, ConnectMode, Connection, ServerError, StatementRun, TransactionStatus, WireError};
use ardent_sql_script::Script;
use ardent_types::Lsn;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::locks::{Blocks, Hold, Lock, LockWatch, longest};
use crate::look::{self, BETWEEN, Counts, LOOKS, Look, RELATIONS, Relation};
use crate::report::{
    Blocked, LockReport, Notice, RehearsalReport, Rewritten, RowsWritten, StatementError, StatementReport,
    StatementState,
};

/// The first pause between two looks at a statement's locks; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(2);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Longest text of a statement in a report, in characters.
const SQL_LEN_MAX: usize = 1000;

/// A rehearsal that could not be made. What the script's own statements do is no such error.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// No connection.
    #[error("the branch cannot be reached")]
    Connect(#[source] WireError),
    /// What was run could not be watched.
    #[error("what the migration does could not be watched")]
    Look(#[source] WireError),
    /// Postgres answered a look as none of the majors that are known does.
    #[error("a look at the migration's session was answered in an unknown form")]
    Answer,
}

/// Runs the script to its end, its first error, or an interruption. `starting` is told the number of each statement, from 0.
pub async fn rehearse(
    config: &ConnectConfig,
    script: &Script,
    interrupt: &CancellationToken,
    mut starting: impl FnMut(usize),
) -> Result<RehearsalReport, RehearsalError> {
    let mut stage = Stage::open(config, script).await?;
    for number in 0..script.len() {
        if interrupt.is_cancelled() {
            break;
        }
        starting(number);
        if !stage.statement(number, interrupt).await? {
            break;
        }
    }
    Ok(stage.report(interrupt.is_cancelled()))
}

/// The rows of a look.
async fn ask(connection: &mut Connection, sql: &str) -> Result<look::Rows, RehearsalError> {
    Ok(connection.query(sql).await.map_err(RehearsalError::Look)?.rows)
}

/// Locks that differ from those of the look before.
struct Change {
    after: Instant,
    by: Instant,
    held: BTreeSet<Lock>,
}

/// What the second connection saw of one statement.
#[derive(Default)]
struct Watched {
    changes: Vec<Change>,
    /// When each look was asked for, and when it was answered.
    looks: Vec<(Instant, Instant)>,
}

struct Stage<'a> {
    script: &'a Script,
    session: Connection,
    /// Of the session.
    pid: i32,
    monitor: Connection,
    /// What was there before.
    relations: HashMap<u32, Relation>,
    /// Files by relation, as of the last look.
    files: HashMap<u32, u32>,
    /// What the open transaction has written, as of the last look.
    rows: BTreeMap<u32, Counts>,
    wal: Lsn,
    /// The session's last transaction; unknown while nobody has looked.
    transaction: Option<u64>,
    status: TransactionStatus,
    clock: Clock,
    locks: LockWatch,
    reports: Vec<StatementReport>,
    wal_first: Lsn,
}

impl<'a> Stage<'a> {
    async fn open(config: &ConnectConfig, script: &'a Script) -> Result<Stage<'a>, RehearsalError> {
        let config = config.clone().with_application_name("ardent branch rehearse");
        let mut session = Connection::connect(&config, ConnectMode::Sql).await.map_err(RehearsalError::Connect)?;
        let mut monitor = Connection::connect(&config, ConnectMode::Sql).await.map_err(RehearsalError::Connect)?;
        let pid = ask(&mut session, "select pg_catalog.pg_backend_pid()").await?;
        let pid = look::value(pid.first().ok_or(RehearsalError::Answer)?, 0)?;
        let relations = look::parse_relations(&ask(&mut monitor, RELATIONS).await?)?;
        let (wal, transaction) = look::parse_between(&ask(&mut session, BETWEEN).await?)?;
        let unrun = |number: usize| StatementReport {
            number: number + 1,
            line: script.line(number),
            sql: on_one_line(script.statement(number)),
            ..StatementReport::default()
        };
        Ok(Stage {
            script,
            session,
            pid,
            monitor,
            files: relations.iter().map(|(oid, relation)| (*oid, relation.file)).collect(),
            relations,
            rows: BTreeMap::new(),
            wal,
            transaction: Some(transaction),
            status: TransactionStatus::Idle,
            clock: Clock::new(Instant::now()),
            locks: LockWatch::default(),
            reports: (0..script.len()).map(unrun).collect(),
            wal_first: wal,
        })
    }

    /// Runs a statement. Gives whether the next one may be run.
    async fn statement(&mut self, number: usize, interrupt: &CancellationToken) -> Result<bool, RehearsalError> {
        let script = self.script;
        let sql = script.statement(number);
        let looks: &[&str] = if is_setting(sql) { &[] } else { &LOOKS };
        self.clock.resume(Instant::now());
        self.locks.statement(number);
        let stop = CancellationToken::new();
        let running = async {
            let run = self.session.run_statement(sql, looks).await;
            stop.cancel();
            run
        };
        let watching = watch(&mut self.monitor, self.pid, &stop, interrupt);
        let (run, watched) = tokio::join!(running, watching);
        let run = match run {
            Ok(run) => run,
            Err(WireError::Server(error)) if error.severity != "FATAL" && !interrupt.is_cancelled() => {
                return Err(RehearsalError::Look(WireError::Server(error)));
            }
            // The session is over, or its last look was interrupted.
            Err(error) => {
                let now = Instant::now();
                // Why the session is over is what counts, not that the other connection may be over too.
                self.see(watched.unwrap_or_default(), now);
                self.locks.end(self.clock.at(now));
                self.status = TransactionStatus::Idle;
                self.fail(number, lost(error));
                return Ok(false);
            }
        };
        self.clock.pause(run.done_at, run.looked_at);
        let last = self.see(watched?, run.done_at).unwrap_or(run.sent_at);
        let report = &mut self.reports[number];
        let took = self.clock.at(run.ready_at).saturating_sub(self.clock.at(run.sent_at));
        report.duration_us = Some(micros(took));
        report.notices = run.notices.iter().map(notice).collect();
        report.notices_left_out = run.notices_left_out;
        self.status = run.status;
        let tag = match &run.outcome {
            Ok(tag) => tag.clone(),
            Err(error) => {
                self.locks.end(self.clock.at(run.ready_at));
                self.clock.pause_from(run.ready_at);
                // Elsewhere: a failed transaction answers nothing.
                let wal = ask(&mut self.monitor, BETWEEN).await?;
                self.wal_to(number, look::parse_between(&wal)?.0);
                self.fail(number, error.clone());
                return Ok(false);
            }
        };
        report.state = StatementState::Done;
        let rewritten = match looks.is_empty() {
            true => Vec::new(),
            false => self.looked(number, &run, last)?,
        };
        if run.status == TransactionStatus::Idle {
            self.locks.end(self.clock.at(run.ready_at));
        }
        self.clock.pause_from(run.ready_at);
        if !rewritten.is_empty() {
            let sizes = look::parse_sizes(&ask(&mut self.session, &look::sizes(&rewritten)).await?)?;
            let emptied = tag == "TRUNCATE TABLE";
            self.reports[number].rewritten = self.rewritten(&rewritten, &sizes, emptied);
        }
        if run.status == TransactionStatus::Idle {
            let (wal, transaction) = look::parse_between(&ask(&mut self.session, BETWEEN).await?)?;
            self.wal_to(number, wal);
            self.transaction = Some(transaction);
            self.rows.clear();
        }
        self.reports[number].command_tag = Some(tag);
        Ok(true)
    }

    /// Takes in what was seen of locks until a statement was done. Gives when the last such look was asked for.
    fn see(&mut self, watched: Watched, done_at: Instant) -> Option<Instant> {
        // What was answered later may have seen the transaction's end, which is known better.
        for change in watched.changes.into_iter().filter(|change| change.by <= done_at) {
            let held = self.of_others(change.held);
            self.locks.see(self.clock.at(change.after), self.clock.at(change.by), &held);
        }
        watched.looks.iter().rev().find(|(_, by)| *by <= done_at).map(|(asked, _)| *asked)
    }

    /// Nobody waits for what the migration made itself.
    fn of_others(&self, mut locks: BTreeSet<Lock>) -> BTreeSet<Lock> {
        locks.retain(|(oid, _)| self.relations.contains_key(oid));
        locks
    }

    /// Takes in what was seen behind a statement. Gives the relations that have another file.
    fn looked(&mut self, number: usize, run: &StatementRun, last: Instant) -> Result<Vec<u32>, RehearsalError> {
        let look = Look::parse(&run.looks)?;
        let several = self.transaction.is_some_and(|before| look.transaction > before + 1);
        let held = self.of_others(look.locks);
        self.locks.see(self.clock.at(last), self.clock.at(run.done_at), &held);
        self.transaction = Some(look.transaction);
        self.wal_to(number, look.wal);
        let report = &mut self.reports[number];
        report.locks_sampled = several;
        for (relation, now) in &look.rows {
            let was = self.rows.get(relation).cloned().unwrap_or_default();
            // TRUNCATE takes counts back.
            let written = RowsWritten {
                relation: now.name.clone(),
                inserted: now.inserted.saturating_sub(was.inserted),
                updated: now.updated.saturating_sub(was.updated),
                deleted: now.deleted.saturating_sub(was.deleted),
            };
            if written.inserted + written.updated + written.deleted > 0 {
                report.rows.push(written);
            }
        }
        report.rows.sort_by(|a, b| a.relation.cmp(&b.relation));
        self.rows = look.rows;
        let mut rewritten = Vec::new();
        for (oid, file) in look.files {
            if let Some(was) = self.files.get_mut(&oid).filter(|was| **was != file) {
                *was = file;
                rewritten.push(oid);
            }
        }
        Ok(rewritten)
    }

    fn rewritten(&self, relations: &[u32], sizes: &HashMap<u32, u64>, emptied: bool) -> Vec<Rewritten> {
        let one = |oid: &u32| {
            let relation = self.relations.get(oid)?;
            Some(Rewritten {
                relation: relation.name.clone(),
                kind: relation.kind,
                table: self.table_of(relation),
                bytes: *sizes.get(oid)?,
                emptied,
            })
        };
        let mut all: Vec<Rewritten> = relations.iter().filter_map(one).collect();
        // Tables before indexes.
        all.sort_by(|a, b| (a.table.is_some(), &a.relation).cmp(&(b.table.is_some(), &b.relation)));
        all
    }

    fn table_of(&self, relation: &Relation) -> Option<String> {
        relation.table.and_then(|table| self.relations.get(&table)).map(|table| table.name.clone())
    }

    /// Counts the WAL up to here to a statement.
    fn wal_to(&mut self, number: usize, wal: Lsn) {
        let bytes = wal.checked_sub(self.wal).unwrap_or(0);
        *self.reports[number].wal_bytes.get_or_insert(0) += bytes;
        self.wal = self.wal.max(wal);
    }

    fn fail(&mut self, number: usize, error: ServerError) {
        let (line, column) = self.script.place(number, error.position.unwrap_or(1));
        let report = &mut self.reports[number];
        report.state = StatementState::Failed;
        report.error = Some(StatementError {
            sqlstate: error.code,
            message: error.message,
            detail: error.detail,
            hint: error.hint,
            context: error.context,
            line,
            column,
        });
    }

    fn report(mut self, interrupted: bool) -> RehearsalReport {
        let ended = Instant::now();
        self.locks.end(self.clock.at(ended));
        let holds = std::mem::take(&mut self.locks).holds();
        let blocked = self.blocked(&holds);
        self.tell_locks(&holds);
        let is_open = self.status == TransactionStatus::Open;
        let all_done = self.reports.iter().all(|report| report.state == StatementState::Done);
        let ends_in_transaction = is_open && all_done;
        RehearsalReport {
            succeeded: all_done && !ends_in_transaction,
            interrupted: interrupted && !all_done,
            ends_in_transaction,
            duration_us: self.reports.iter().filter_map(|report| report.duration_us).sum(),
            wal_bytes: self.wal.checked_sub(self.wal_first).unwrap_or(0),
            blocked,
            statements: self.reports,
        }
    }

    /// Writes each lock down with the statement that took it: the strongest first, one that was taken more than once with its whole time.
    fn tell_locks(&mut self, holds: &[Hold]) {
        let mut sums: BTreeMap<(usize, Lock), (Duration, usize)> = BTreeMap::new();
        for hold in holds {
            let sum = sums.entry((hold.taken_by, hold.lock)).or_insert((Duration::ZERO, hold.until));
            sum.0 += hold.to.saturating_sub(hold.from);
            sum.1 = sum.1.max(hold.until);
        }
        for ((taken_by, (oid, mode)), (held, until)) in sums {
            let Some(relation) = self.relations.get(&oid) else { continue };
            let lock = LockReport {
                relation: relation.name.clone(),
                kind: relation.kind,
                table: self.table_of(relation),
                mode,
                blocks: mode.blocks(),
                held_us: micros(held),
                until_statement: until + 1,
            };
            self.reports[taken_by].locks.push(lock);
        }
        for report in &mut self.reports {
            report.locks.sort_by(|a, b| b.mode.cmp(&a.mode).then_with(|| a.relation.cmp(&b.relation)));
        }
    }

    /// What others could not have used. Every query of a table looks at all of its indexes: a lock on one counts as one on the table.
    fn blocked(&self, holds: &[Hold]) -> Vec<Blocked> {
        let mut tables: BTreeMap<u32, Vec<&Hold>> = BTreeMap::new();
        for hold in holds.iter().filter(|hold| hold.lock.1.blocks() >= Blocks::Writes) {
            let oid = hold.lock.0;
            let table = self.relations.get(&oid).and_then(|relation| relation.table).unwrap_or(oid);
            tables.entry(table).or_default().push(hold);
        }
        let one = |(oid, holds): (&u32, &Vec<&Hold>)| {
            let relation = self.relations.get(oid)?;
            let stretch = |least: Blocks| {
                let strong = holds.iter().filter(|hold| hold.lock.1.blocks() >= least);
                longest(strong.map(|hold| (hold.from, hold.to)).collect())
            };
            let time = |(from, to): (Duration, Duration)| micros(to.saturating_sub(from));
            // What blocks reads blocks writes: this is the longer one.
            let (from, to) = stretch(Blocks::Writes)?;
            let within: Vec<_> = holds.iter().filter(|hold| hold.from <= to && hold.to >= from).collect();
            Some(Blocked {
                relation: relation.name.clone(),
                kind: relation.kind,
                reads_us: stretch(Blocks::ReadsAndWrites).map_or(0, time),
                writes_us: time((from, to)),
                from_statement: within.iter().map(|hold| hold.taken_by).min()? + 1,
                until_statement: within.iter().map(|hold| hold.until).max()? + 1,
            })
        };
        let mut all: Vec<Blocked> = tables.iter().filter_map(one).collect();
        all.sort_by(|a, b| (b.reads_us, b.writes_us, &a.relation).cmp(&(a.reads_us, a.writes_us, &b.relation)));
        all
    }
}

/// Looks at a session's locks until it is told to stop.
async fn watch(
    monitor: &mut Connection,
    pid: i32,
    stop: &CancellationToken,
    interrupt: &CancellationToken,
) -> Result<Watched, RehearsalError> {
    let sql = look::locks_of(pid);
    let (mut watched, mut pause) = (Watched::default(), PAUSE_MIN);
    let began = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(watched),
            () = tokio::time::sleep(pause) => {}
        }
        if interrupt.is_cancelled() {
            // Again until it ends: one that comes between two statements is lost.
            ask(monitor, &format!("select pg_catalog.pg_cancel_backend({pid})")).await?;
        }
        let asked = Instant::now();
        let held = look::parse_locks(&ask(monitor, &sql).await?)?;
        let by = Instant::now();
        let is_new = watched.changes.last().map_or(!held.is_empty(), |change| change.held != held);
        if is_new {
            let after = watched.looks.last().map_or(began, |(asked, _)| *asked);
            watched.changes.push(Change { after, by, held });
        }
        watched.looks.push((asked, by));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// A statement that takes no locks, behind which a look would be the query that must not come before the next one
/// (`SET TRANSACTION`).
fn is_setting(sql: &str) -> bool {
    let word: String = sql.chars().take_while(char::is_ascii_alphabetic).collect();
    ["BEGIN", "START", "SET", "RESET", "SHOW"].iter().any(|other| word.eq_ignore_ascii_case(other))
}

fn on_one_line(sql: &str) -> String {
    let mut out = String::new();
    let mut length = 0;
    for word in sql.split_whitespace() {
        if length > 0 {
            out.push(' ');
            length += 1;
        }
        for letter in word.chars() {
            if length == SQL_LEN_MAX {
                out.push('…');
                return out;
            }
            out.push(letter);
            length += 1;
        }
    }
    out
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn notice(notice: &ServerError) -> Notice {
    Notice { severity: notice.severity.clone(), sqlstate: notice.code.clone(), message: notice.message.clone() }
}

/// Why a session is over.
fn lost(error: WireError) -> ServerError {
    match error {
        WireError::Server(error) => *error,
        error => ServerError {
            severity: "FATAL".to_owned(),
            // connection_failure
            code: "08006".to_owned(),
            message: format!("the connection to the branch was lost: {error}"),
            ..ServerError::default()
        },
    }
}
