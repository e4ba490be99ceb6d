//! `ardent branch log`.

use std::io::{self, IsTerminal as _, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_change_set::RowChoice;
use ardent_statement_log::{BlameReply, BlameRequest, EntryKind, LogEnd, LogEntry, LogLine, LogRequest, Outcome};
use serde::Serialize;

use super::{pager, path_name};
use crate::api::Api;
use crate::args::{BranchBlameArgs, BranchLogArgs};
use crate::config::branch_or_default;
use crate::duration::parse_seconds;
use crate::failure::Failure;
use crate::output::Output;

/// Characters of a statement that are shown without `--full`.
const STATEMENT_LEN: usize = 120;
/// Entries whose columns are aligned together.
const TABLE_LEN: usize = 500;

/// Shows what a branch ran.
pub fn run(output: &Output, api: &Api, args: &BranchLogArgs) -> Result<(), Failure> {
    let name = path_name(&branch_or_default(args.name.as_deref())?)?;
    let request = LogRequest {
        since: args.since.as_deref().map(time).transpose()?,
        until: args.until.as_deref().map(time).transpose()?,
        role: args.role.clone(),
        application: args.application.clone(),
        client: args.client,
        database: args.database.clone(),
        failed: args.failed,
        writes: args.writes,
        grep: args.grep.clone(),
        limit: (!args.all).then_some(args.limit),
        follow: args.follow,
    };
    let path = format!("/v1/branches/{name}/log");
    if args.ndjson {
        return ndjson(output, api, &path, &request);
    }
    if output.json {
        return json(output, api, &path, &request);
    }
    if args.follow || args.all || !io::stdout().is_terminal() {
        return stream(output, api, &path, &request, args.full);
    }
    let mut entries = Vec::new();
    let end = read(api, &path, &request, |entry| {
        entries.push(entry);
        Ok(())
    })?;
    let shown = pager::show(output, |out| Table::new(args.full).write(out, &entries));
    notes(output, &end);
    shown
}

/// Shows which statement last changed a row.
pub fn blame(output: &Output, api: &Api, args: &BranchBlameArgs) -> Result<(), Failure> {
    let (name, table, key) = match &args.row[..] {
        [table, key] => (None, table, key),
        [name, table, key] => (Some(name.as_str()), table, key),
        _ => return Err(Failure::usage("a table and a key are needed").hint("ardent branch blame NAME TABLE KEY")),
    };
    let named = branch_or_default(name).map_err(|failure| {
        failure.hint(format!(
            "name it before the table, as in: ardent branch blame NAME {table} {key}; or set ARDENT_BRANCH, or make one this folder's default: ardent branch switch NAME"
        ))
    })?;
    let name = path_name(&named)?;
    // As ardent branch apply --row takes it; the table's name has no part in it.
    let row: RowChoice = format!("t:{key}").parse().map_err(|_| {
        Failure::usage(format!("{key:?} is no key: a quote is not closed"))
            .hint("write it as 42, or 7,b for two columns")
    })?;
    let request = BlameRequest { table: table.clone(), key: row.key, database: args.database.clone() };
    let reply: BlameReply = api.post(&format!("/v1/branches/{name}/blame"), &request)?;
    output.data(&reply, |reply| blame_text(reply, args.full))
}

fn blame_text(reply: &BlameReply, full: bool) -> String {
    let mut out = Vec::new();
    if !reply.message.is_empty() {
        out.extend_from_slice(format!("{} {}: {}\n", reply.table, reply.key.join(","), reply.message).as_bytes());
    }
    if let Some(branch) = reply.on_branch.as_deref().filter(|branch| *branch != reply.branch) {
        out.extend_from_slice(format!("on branch {branch}, which {} was made from:\n", reply.branch).as_bytes());
    }
    if !reply.statements.is_empty() {
        Table::new(full).write(&mut out, &reply.statements).expect("memory can be written to");
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A time as the server takes it; a duration means so long ago.
fn time(text: &str) -> Result<String, Failure> {
    let Some(seconds) = parse_seconds(text).ok().filter(|seconds| *seconds > 0) else { return Ok(text.to_owned()) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = now.checked_sub(seconds).and_then(|at| i64::try_from(at).ok());
    let at = at.ok_or_else(|| Failure::usage(format!("{text} ago is too long ago")))?;
    Ok(utc(at))
}

/// ISO 8601 of seconds since the Unix epoch.
fn utc(at_s: i64) -> String {
    // Days to a date as in Howard Hinnant's `civil_from_days`.
    let (days, second) = (at_s.div_euclid(86_400) + 719_468, at_s.rem_euclid(86_400));
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Reads entries as they come; gives what is said at the end. A log that is followed has none.
fn read(
    api: &Api,
    path: &str,
    request: &LogRequest,
    mut each: impl FnMut(LogEntry) -> Result<(), Failure>,
) -> Result<LogEnd, Failure> {
    let mut end = None;
    api.post_lines(path, request, |line| match line {
        LogLine::Entry(entry) => each(*entry),
        LogLine::Waiting => Ok(()),
        LogLine::End(said) => {
            end = Some(said);
            Ok(())
        }
        LogLine::Error { error } => Err(error.into()),
    })?;
    end.ok_or_else(|| {
        let message = "the server's answer ends in the middle";
        ErrorInfo::new(ApiErrorCode::Internal, message).with_hint("its log says why; give the command again").into()
    })
}

fn ndjson(output: &Output, api: &Api, path: &str, request: &LogRequest) -> Result<(), Failure> {
    let print = |line: &LogLine| {
        let line = serde_json::to_string(line).map_err(|error| Failure::of(&error))?;
        output.line(&line)
    };
    let ended = read(api, path, request, |entry| print(&LogLine::Entry(Box::new(entry))));
    match ended {
        Ok(end) => print(&LogLine::End(end)),
        Err(failure) => {
            print(&LogLine::Error { error: failure.info.clone() })?;
            Err(failure)
        }
    }
}

#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    end: LogEnd,
    entries: Vec<LogEntry>,
}

fn json(output: &Output, api: &Api, path: &str, request: &LogRequest) -> Result<(), Failure> {
    let mut entries = Vec::new();
    let end = read(api, path, request, |entry| {
        entries.push(entry);
        Ok(())
    })?;
    output.data(&Document { end, entries }, |_| String::new())
}

/// Prints a table for as many entries as come together.
fn stream(output: &Output, api: &Api, path: &str, request: &LogRequest, full: bool) -> Result<(), Failure> {
    let mut table = Table::new(full);
    let mut waiting: Vec<LogEntry> = Vec::new();
    let mut end = None;
    let mut print = |waiting: &mut Vec<LogEntry>| {
        let entries = std::mem::take(waiting);
        if entries.is_empty() { Ok(()) } else { output.stream(|out| table.write(out, &entries)) }
    };
    api.post_lines(path, request, |line| {
        match line {
            LogLine::Entry(entry) => waiting.push(*entry),
            LogLine::Waiting => return print(&mut waiting),
            LogLine::End(said) => end = Some(said),
            LogLine::Error { error } => return Err(error.into()),
        }
        if waiting.len() >= TABLE_LEN { print(&mut waiting) } else { Ok(()) }
    })?;
    print(&mut waiting)?;
    match end {
        Some(end) => {
            notes(output, &end);
            Ok(())
        }
        None => Err(ErrorInfo::new(ApiErrorCode::Internal, "the server's answer ends in the middle")
            .with_hint("its log says why; give the command again")
            .into()),
    }
}

fn notes(output: &Output, end: &LogEnd) {
    if end.shown == 0 {
        output.note("nothing of this kind is in the log");
    }
    if end.has_earlier {
        output.note("there is more before this: --limit N or --all shows it");
    }
    if end.is_cut && !end.has_earlier {
        let since = end.begins_at.as_deref().unwrap_or("the newest entry");
        output
            .note(&format!("the log begins at {since}: what was before is not kept (ardent up --statement-log SIZE)"));
    }
    for damage in &end.damaged {
        output.warning(&format!("a part of the log is missing: {damage}"));
    }
}

/// Prints entries in columns, and what there is to say of one below it.
struct Table {
    full: bool,
    is_begun: bool,
    widths: [usize; COLUMNS],
}

const COLUMNS: usize = 6;
const HEADING: [&str; COLUMNS] = ["TIME", "ROLE", "APPLICATION", "DURATION", "ROWS", "OUTCOME"];

impl Table {
    fn new(full: bool) -> Self {
        Table { full, is_begun: false, widths: HEADING.map(str::len) }
    }

    fn write(&mut self, out: &mut dyn Write, entries: &[LogEntry]) -> io::Result<()> {
        let rows: Vec<([String; COLUMNS], &LogEntry)> = entries.iter().map(|entry| (columns(entry), entry)).collect();
        for (row, _) in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        if !std::mem::replace(&mut self.is_begun, true) {
            self.line(out, &HEADING.map(str::to_owned), "STATEMENT")?;
        }
        let indent = self.widths.iter().sum::<usize>() + 2 * COLUMNS;
        for (row, entry) in &rows {
            // What has several lines stays in its column.
            let next_line = format!("\n{:indent$}", "");
            self.line(out, row, &statement(entry, self.full).replace('\n', &next_line))?;
            for more in below(entry, self.full) {
                writeln!(out, "{:indent$}{}", "", more.replace('\n', &next_line))?;
            }
        }
        Ok(())
    }

    fn line(&self, out: &mut dyn Write, row: &[String; COLUMNS], last: &str) -> io::Result<()> {
        for (cell, width) in row.iter().zip(self.widths) {
            write!(out, "{cell}{:1$}", "", width - cell.chars().count() + 2)?;
        }
        writeln!(out, "{last}")
    }
}

fn columns(entry: &LogEntry) -> [String; COLUMNS] {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { printable(text) };
    let role = match &entry.session_role {
        session if *session == entry.role => or_dash(&entry.role),
        session => format!("{} (as {})", or_dash(session), or_dash(&entry.role)),
    };
    let application = if entry.is_own { "(ardent)".to_owned() } else { or_dash(&entry.application_name) };
    // That a client is on the server's own host is what is expected.
    let application = match entry.client_ip().filter(|address| !address.is_loopback()) {
        Some(address) => format!("{application} at {address}"),
        None => application,
    };
    let duration = entry.duration_us.map_or("-".to_owned(), duration_text);
    let rows = match entry.kind {
        EntryKind::Lost => None,
        _ => entry.rows,
    };
    let outcome = match entry.kind {
        EntryKind::Lost => "lost".to_owned(),
        _ => entry.outcome.as_str().to_owned(),
    };
    let at = entry.at.get(..23).unwrap_or(&entry.at).replace('T', " ");
    [at, role, application, duration, rows.map_or("-".to_owned(), |rows| rows.to_string()), outcome]
}

fn duration_text(us: u64) -> String {
    match us {
        0..10_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn statement(entry: &LogEntry, full: bool) -> String {
    match entry.kind {
        EntryKind::Lost => format!("({} records are missing here)", entry.rows.unwrap_or(0)),
        EntryKind::NoStatement => "(a transaction without a statement: functions called by the protocol)".to_owned(),
        EntryKind::Statement => shown(&entry.statement, entry.statement_bytes, full),
    }
}

/// A text on one line, cut if it is long; whole as it is if `full`. `bytes`: how long it was before it was kept.
fn shown(text: &str, bytes: u64, full: bool) -> String {
    let len = text.len() as u64;
    if full && len >= bytes {
        return printable(text);
    }
    let line = if full { text.to_owned() } else { text.split_whitespace().collect::<Vec<_>>().join(" ") };
    let line = printable(&line);
    let most = if full { usize::MAX } else { STATEMENT_LEN };
    let kept: String = line.chars().take(most).collect();
    if kept.len() < line.len() || len < bytes { format!("{kept}... ({} bytes)", bytes.max(len)) } else { kept }
}

/// Without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{FFFD}' } else { c }).collect()
}

fn below(entry: &LogEntry, full: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(parameters) = entry.parameters.as_deref().filter(|parameters| !parameters.is_empty()) {
        lines.push(shown(parameters, 0, full));
    }
    if entry.outcome == Outcome::Failed {
        let state = entry.sqlstate.as_deref().unwrap_or("?");
        lines.push(format!("{state}: {}", shown(entry.error.as_deref().unwrap_or("(no message was logged)"), 0, full)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_types::TimelineId;

    fn entry() -> LogEntry {
        LogEntry {
            kind: EntryKind::Statement,
            at: "2026-01-31T12:00:00.123456Z".into(),
            duration_us: Some(1250),
            pid: 7,
            session_started_at: "2026-01-31T11:00:00.000000Z".into(),
            number: 1,
            database: "shop".into(),
            session_role: "app".into(),
            role: "app".into(),
            application_name: "psql".into(),
            client_address: None,
            is_own: false,
            statement: "select  1,\n\t2".into(),
            statement_bytes: 13,
            parameters: None,
            parameters_count: 0,
            rows: Some(1),
            outcome: Outcome::Done,
            sqlstate: None,
            error: None,
            xid: None,
            lsn_from: None,
            lsn_to: None,
            ended_at: None,
            end_lsn: None,
            timeline_id: TimelineId::NONE,
        }
    }

    #[test]
    fn entries_are_columns_and_what_failed_says_why_below() {
        let failed = LogEntry {
            outcome: Outcome::Failed,
            role: "boss".into(),
            rows: None,
            sqlstate: Some("42P01".into()),
            error: Some("relation \"x\" does not\u{1b}[2J exist".into()),
            parameters: Some("$1 = '4'".into()),
            statement: "x".repeat(200),
            statement_bytes: 200,
            duration_us: Some(61_000_000),
            ..entry()
        };
        let mut out = Vec::new();
        let mut table = Table::new(false);
        table.write(&mut out, &[entry(), failed]).expect("written");
        let cut = "x".repeat(120);
        let expect = format!(
            "TIME                     ROLE           APPLICATION  DURATION  ROWS  OUTCOME  STATEMENT
2026-01-31 12:00:00.123  app            psql         1.2 ms    1     done     select 1, 2
2026-01-31 12:00:00.123  app (as boss)  psql         61.0 s    -     failed   {cut}... (200 bytes)
                                                                              $1 = '4'
                                                                              42P01: relation \"x\" does not\u{FFFD}[2J exist
"
        );
        assert_eq!(String::from_utf8(out).expect("text"), expect);
    }

    #[test]
    fn durations_are_times_ago_and_times_are_passed_on() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_769_860_800), "2026-01-31T12:00:00Z");
        assert_eq!(time("2026-01-31T12:00:00Z").expect("a time"), "2026-01-31T12:00:00Z");
        assert!(time("10m").expect("a time").ends_with('Z'));
    }
}
