//! `rehearse`: what a migration would do, on a branch that is made for it and deleted again.

use ardent_rehearsal::StatementReport;
use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answer::{ANSWER_LEN_MAX, Trouble, VALUE_LEN_MAX, cut, fitting};
use super::call::Call;
use super::changes::{self, Changes};
use crate::commands::rehearse::{Place, Rehearsed, Told, on_new_branch, parse};

/// What to rehearse.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RehearseArgs {
    /// The migration: SQL statements as psql takes them, without psql's own commands
    pub sql: String,
    /// The branch or connector whose state it is run on; absent: production's newest state
    pub branch: Option<String>,
    /// "latest", an LSN, or a time in its history; absent: now
    pub at: Option<String>,
    /// The role that runs it; absent: the connector's
    pub role: Option<String>,
    /// The database; absent: the connector's
    pub database: Option<String>,
}

/// What it did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// Every statement was run, and no transaction was left open
    succeeded: bool,
    /// How long the statements took, in milliseconds
    duration_ms: u64,
    /// WAL that was written, in bytes
    wal_bytes: u64,
    /// Tables that others could not have read or written meanwhile, and for how long at most, in microseconds
    blocked: Vec<Value>,
    /// What each statement did: time, locks that block others, rewritten tables, rows, errors
    statements: Vec<Value>,
    /// What is different afterwards
    changes: Option<Changes>,
    /// Parts that there was no room for: use the command ardent branch rehearse
    left_out: usize,
    /// What there is to know besides
    warnings: Vec<String>,
}

/// The tool.
pub async fn rehearse(call: &Call, args: RehearseArgs) -> Result<Report, Trouble> {
    let (interrupt, runtime) = (call.cancelled.clone(), tokio::runtime::Handle::current());
    // It deletes its branch, also when it was taken back.
    let report = call
        .to_its_end("rehearsing", move |api, progress| {
            let script = parse("the migration", args.sql.as_bytes())?;
            let place = Place {
                from: args.branch.as_deref(),
                at: args.at.as_deref(),
                role: args.role.as_deref(),
                database: args.database.as_deref(),
                keep: false,
            };
            let warnings = parking_lot::Mutex::new(Vec::new());
            let warn = |text: &str| warnings.lock().push(text.to_owned());
            let starting = |number: usize| {
                let first = script.statement(number).lines().next().unwrap_or_default();
                progress.say(&format!("{}/{}: {}", number + 1, script.len(), cut(first, 60)));
            };
            let rehearsed =
                on_new_branch(api, &runtime, &place, &script, &interrupt, &Told { warn: &warn, starting: &starting })?;
            let mut warnings = warnings.into_inner();
            let failed = [&rehearsed.not_compared, &rehearsed.left];
            warnings.extend(failed.into_iter().flatten().map(|failure| failure.info.message.clone()));
            let changes = rehearsed.changes.as_ref().map(changes::summary).transpose()?;
            Ok((rehearsed.report.interrupted, told(&rehearsed, changes, warnings)))
        })
        .await?;
    match report {
        (true, _) => Err(Trouble::Cancelled),
        (false, report) => Ok(report),
    }
}

fn told(rehearsed: &Rehearsed, changes: Option<Changes>, warnings: Vec<String>) -> Report {
    let report = &rehearsed.report;
    let mut room = ANSWER_LEN_MAX;
    let (blocked, more_blocked) = fitting(&report.blocked, &mut room);
    let (statements, more_statements) = fitting(report.statements.iter().map(statement), &mut room);
    Report {
        succeeded: report.succeeded,
        duration_ms: report.duration_us / 1000,
        wal_bytes: report.wal_bytes,
        blocked,
        statements,
        changes,
        left_out: more_blocked + more_statements,
        warnings,
    }
}

/// A statement without the locks that nobody waits for.
fn statement(report: &StatementReport) -> Value {
    let locks: Vec<Value> =
        report.locks.iter().map(|lock| json!(lock)).filter(|lock| lock["blocks"] != "neither").collect();
    json!({
        "number": report.number,
        "line": report.line,
        "sql": cut(&report.sql, VALUE_LEN_MAX / 4),
        "state": report.state,
        "duration_us": report.duration_us,
        "wal_bytes": report.wal_bytes,
        "locks": locks,
        "rows": report.rows,
        "rewritten": report.rewritten,
        "notices": report.notices.iter().take(5).collect::<Vec<_>>(),
        "error": report.error,
    })
}
