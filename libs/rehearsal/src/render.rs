//! A report for whoever decides whether a migration is safe.

use std::fmt::Write as _;
use std::time::Duration;

use crate::locks::Blocks;
use crate::report::{
    Blocked, LockReport, RehearsalReport, Rewritten, RowsWritten, StatementError, StatementReport, StatementState,
};

/// Longest text of a statement, in characters.
const SQL_LEN_MAX: usize = 72;
/// Most locks, tables or files that are named for one statement; the report as data has all.
const LINES_MAX: usize = 12;
/// Most statements that are listed one by one among those that were not run.
const NOT_RUN_MAX: usize = 5;

/// The report as text: what would have been blocked last, as it is what most are after.
pub fn render(report: &RehearsalReport) -> String {
    let mut out = String::new();
    let width = report.statements.len().to_string().len();
    let run = report.statements.iter().filter(|one| one.state != StatementState::NotRun);
    for one in run {
        statement(&mut out, one, width);
    }
    not_run(&mut out, report);
    out.push('\n');
    if report.ends_in_transaction {
        out.push_str("The file ends inside of a transaction: what that one did was rolled back.\n\n");
    }
    blocked(&mut out, &report.blocked);
    let done = report.statements.iter().filter(|one| one.state == StatementState::Done).count();
    let how = match (report.succeeded, report.interrupted) {
        (true, _) => "succeeded",
        (false, true) => "interrupted",
        (false, false) => "failed",
    };
    line(
        &mut out,
        format_args!(
            "{how}: {done} of {} statements in {}, {} of WAL",
            report.statements.len(),
            duration(report.duration_us),
            bytes(report.wal_bytes)
        ),
    );
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Strings take everything.
    let _ = writeln!(out, "{text}");
}

fn statement(out: &mut String, one: &StatementReport, width: usize) {
    let took = one.duration_us.map(duration).unwrap_or_default();
    let failed = if one.state == StatementState::Failed { "FAILED after " } else { "" };
    let sql = cut(&one.sql);
    line(out, format_args!("{:>width$}  line {:<4} {sql:<SQL_LEN_MAX$}  {failed}{took}", one.number, one.line));
    let indent = " ".repeat(width + 2);
    let mut part = |heading: &str, text: &str| {
        for (number, text) in text.lines().enumerate() {
            let heading = if number == 0 { heading } else { "" };
            line(out, format_args!("{indent}  {heading:<8} {text}"));
        }
    };
    if let Some(error) = &one.error {
        part("error", &error_text(error));
    }
    part("locks", &locks(one));
    part("rewrites", &several(&one.rewritten, rewritten));
    part("rows", &several(&one.rows, rows));
    if let Some(written) = one.wal_bytes.filter(|written| *written > 0) {
        part("writes", &format!("{} of WAL", bytes(written)));
    }
    for notice in &one.notices {
        part(&notice.severity.to_lowercase(), &notice.message);
    }
    if one.notices_left_out > 0 {
        part("notice", &format!("and {} more", one.notices_left_out));
    }
}

/// Locks that block reads or writes, and how many others there are: each relation with its strongest.
fn locks(one: &StatementReport) -> String {
    let (strong, weak): (Vec<_>, Vec<_>) = one.locks.iter().partition(|lock| lock.blocks > Blocks::Neither);
    let mut shown: Vec<&LockReport> = Vec::new();
    for lock in strong {
        if !shown.iter().any(|other| other.relation == lock.relation) {
            shown.push(lock);
        }
    }
    let mut text = several(&shown, |lock| {
        let until = match lock.until_statement == one.number {
            true => String::new(),
            false => format!(" until statement {}", lock.until_statement),
        };
        let (name, held) = (named(lock.kind, &lock.relation, lock.table.as_deref()), duration(lock.held_us));
        format!("{} on {name}, held {held}{until}: blocks {}", lock.mode, lock.blocks)
    });
    if !weak.is_empty() {
        let names: Vec<&LockReport> =
            weak.into_iter().filter(|lock| !shown.iter().any(|other| other.relation == lock.relation)).collect();
        if let Some(first) = names.first() {
            let (mode, name) = (first.mode, named(first.kind, &first.relation, first.table.as_deref()));
            let more =
                if names.len() > 1 { format!(" and {} weaker or equal", names.len() - 1) } else { String::new() };
            text.push_str(&format!("{mode} on {name}{more}: blocks neither reads nor writes\n"));
        }
    }
    if one.locks_sampled {
        text.push_str("it ran several transactions: locks shorter than 50 ms may be missing\n");
    }
    text
}

/// A line for each, and how many more there are.
fn several<T>(all: &[T], text: impl Fn(&T) -> String) -> String {
    let mut out: String = all.iter().take(LINES_MAX).map(|one| format!("{}\n", text(one))).collect();
    if all.len() > LINES_MAX {
        out.push_str(&format!("and {} more (--json names them)\n", all.len() - LINES_MAX));
    }
    out
}

fn rewritten(one: &Rewritten) -> String {
    let name = named(one.kind, &one.relation, one.table.as_deref());
    if one.emptied { format!("{name}: emptied") } else { format!("{name}, {}", bytes(one.bytes)) }
}

fn rows(one: &RowsWritten) -> String {
    let counts = [(one.inserted, "inserted"), (one.updated, "updated"), (one.deleted, "deleted")];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    format!("{}: {}", visible(&one.relation), counts.join(", "))
}

/// A table by its name alone, other things by what they are.
fn named(kind: &str, name: &str, table: Option<&str>) -> String {
    let name = visible(name);
    match (kind, table) {
        ("table", _) => name,
        (kind, Some(table)) => format!("{kind} {name} of {}", visible(table)),
        (kind, None) => format!("{kind} {name}"),
    }
}

fn error_text(error: &StatementError) -> String {
    let mut text =
        format!("{} (SQLSTATE {}, line {}, column {})\n", error.message, error.sqlstate, error.line, error.column);
    for (word, more) in [("detail", &error.detail), ("hint", &error.hint), ("in", &error.context)] {
        if let Some(more) = more {
            text.push_str(&format!("{word}: {more}\n"));
        }
    }
    visible_lines(&text)
}

fn not_run(out: &mut String, report: &RehearsalReport) {
    let rest: Vec<&StatementReport> =
        report.statements.iter().filter(|one| one.state == StatementState::NotRun).collect();
    if rest.is_empty() {
        return;
    }
    line(out, format_args!("\nnot run:"));
    let width = report.statements.len().to_string().len();
    for one in rest.iter().take(NOT_RUN_MAX) {
        line(out, format_args!("{:>width$}  line {:<4} {}", one.number, one.line, cut(&one.sql)));
    }
    if rest.len() > NOT_RUN_MAX {
        line(out, format_args!("and {} more", rest.len() - NOT_RUN_MAX));
    }
}

fn blocked(out: &mut String, all: &[Blocked]) {
    if all.is_empty() {
        out.push_str("Nobody would have been kept from reading or writing a table.\n\n");
        return;
    }
    out.push_str("Others would have waited, from when the locks were given:\n");
    let names: Vec<String> = all.iter().map(|one| named(one.kind, &one.relation, None)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    for (one, name) in all.iter().zip(&names).take(LINES_MAX) {
        let mut waits = Vec::new();
        if one.reads_us > 0 {
            waits.push(format!("reads and writes {}", duration(one.reads_us)));
        }
        if one.writes_us > one.reads_us {
            waits.push(format!("writes {}", duration(one.writes_us)));
        }
        let by = match one.from_statement == one.until_statement {
            true => format!("statement {}", one.from_statement),
            false => format!("statements {} to {}", one.from_statement, one.until_statement),
        };
        line(out, format_args!("  {name:<width$}  {} ({by})", waits.join(", ")));
    }
    if all.len() > LINES_MAX {
        line(out, format_args!("  and {} more (--json names them)", all.len() - LINES_MAX));
    }
    out.push('\n');
}

fn cut(sql: &str) -> String {
    let sql = visible(sql);
    if sql.chars().count() <= SQL_LEN_MAX {
        return sql;
    }
    let beginning: String = sql.chars().take(SQL_LEN_MAX - 1).collect();
    format!("{beginning}…")
}

/// Text in which nothing moves a terminal's cursor or colours.
fn visible(text: &str) -> String {
    let shown = |letter: char| {
        if letter.is_control() { letter.escape_debug().to_string() } else { letter.to_string() }
    };
    text.chars().map(shown).collect()
}

fn visible_lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", visible(line))).collect()
}

fn duration(microseconds: u64) -> String {
    duration_text(Duration::from_micros(microseconds))
}

/// A time for people: three digits at most.
pub fn duration_text(time: Duration) -> String {
    let seconds = time.as_secs();
    let ms = time.as_secs_f64() * 1000.0;
    match seconds {
        0 if ms < 10.0 => format!("{ms:.1} ms"),
        0 => format!("{ms:.0} ms"),
        1..10 => format!("{:.2} s", time.as_secs_f64()),
        10..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::LockMode;

    fn lock(relation: &str, mode: LockMode, held_us: u64, until_statement: usize) -> LockReport {
        let (kind, table) = match relation.strip_suffix("_pkey") {
            Some(table) => ("index", Some(table.to_owned())),
            None => ("table", None),
        };
        LockReport { relation: relation.to_owned(), kind, table, mode, blocks: mode.blocks(), held_us, until_statement }
    }

    #[test]
    fn a_report_says_first_what_happened_and_last_who_would_have_waited() {
        let of = |number: usize, line, sql: &str, state| StatementReport {
            number,
            line,
            sql: sql.to_owned(),
            state,
            ..StatementReport::default()
        };
        let statements = vec![
            StatementReport { duration_us: Some(210), wal_bytes: Some(0), ..of(1, 2, "BEGIN", StatementState::Done) },
            StatementReport {
                duration_us: Some(12_300_000),
                wal_bytes: Some(1_400_000_000),
                locks: vec![
                    lock("public.users", LockMode::AccessExclusive, 14_100_000, 3),
                    lock("public.users_pkey", LockMode::AccessExclusive, 14_000_000, 2),
                    lock("public.users", LockMode::Share, 14_000_000, 3),
                    lock("public.orders", LockMode::RowShare, 14_000_000, 3),
                ],
                rewritten: vec![Rewritten {
                    relation: "public.users".to_owned(),
                    kind: "table",
                    table: None,
                    bytes: 1 << 30,
                    emptied: false,
                }],
                rows: vec![RowsWritten { relation: "public.users".to_owned(), inserted: 0, updated: 5000, deleted: 1 }],
                ..of(2, 3, "ALTER TABLE users ALTER COLUMN id TYPE bigint", StatementState::Done)
            },
            StatementReport {
                duration_us: Some(3_200),
                error: Some(StatementError {
                    sqlstate: "42703".to_owned(),
                    message: "column \"x\" does not exist".to_owned(),
                    detail: None,
                    hint: Some("try\x1b[31m y".to_owned()),
                    context: None,
                    line: 6,
                    column: 9,
                }),
                ..of(3, 5, "UPDATE users SET x = 1", StatementState::Failed)
            },
            of(4, 7, "COMMIT", StatementState::NotRun),
        ];
        let report = RehearsalReport {
            duration_us: 12_303_410,
            wal_bytes: 1_400_000_000,
            blocked: vec![
                Blocked {
                    relation: "public.users".to_owned(),
                    kind: "table",
                    reads_us: 14_100_000,
                    writes_us: 14_100_000,
                    from_statement: 2,
                    until_statement: 3,
                },
                Blocked {
                    relation: "public.totals".to_owned(),
                    kind: "materialized view",
                    reads_us: 0,
                    writes_us: 61_000_000,
                    from_statement: 2,
                    until_statement: 2,
                },
            ],
            statements,
            ..RehearsalReport::default()
        };
        let padded = |sql: &str| format!("{sql:<72}");
        let expect = format!(
            "1  line 2    {}  0.2 ms
2  line 3    {}  12.3 s
     locks    ACCESS EXCLUSIVE on public.users, held 14.1 s until statement 3: blocks reads and writes
              ACCESS EXCLUSIVE on index public.users_pkey of public.users, held 14.0 s: blocks reads and writes
              ROW SHARE on public.orders: blocks neither reads nor writes
     rewrites public.users, 1.0 GB
     rows     public.users: 5000 updated, 1 deleted
     writes   1.3 GB of WAL
3  line 5    {}  FAILED after 3.2 ms
     error    column \"x\" does not exist (SQLSTATE 42703, line 6, column 9)
              hint: try\\u{{1b}}[31m y

not run:
4  line 7    COMMIT

Others would have waited, from when the locks were given:
  public.users                     reads and writes 14.1 s (statements 2 to 3)
  materialized view public.totals  writes 1 min 1 s (statement 2)

failed: 2 of 4 statements in 12.3 s, 1.3 GB of WAL
",
            padded("BEGIN"),
            padded("ALTER TABLE users ALTER COLUMN id TYPE bigint"),
            padded("UPDATE users SET x = 1"),
        );
        assert_eq!(render(&report), expect);
    }

    #[test]
    fn long_lists_and_texts_are_cut() {
        let rewritten = |number: usize| Rewritten {
            relation: format!("public.t{number}"),
            kind: "table",
            table: None,
            bytes: 0,
            emptied: true,
        };
        let one = StatementReport {
            number: 1,
            line: 1,
            sql: "x".repeat(100),
            state: StatementState::Done,
            rewritten: (0..20).map(rewritten).collect(),
            ..StatementReport::default()
        };
        let report = RehearsalReport { succeeded: true, statements: vec![one], ..RehearsalReport::default() };
        let text = render(&report);
        assert!(
            text.contains("public.t0: emptied\n") && !text.contains("public.t12") && text.contains("and 8 more"),
            "{text}"
        );
        assert!(text.contains(&format!("{}…  ", "x".repeat(71))), "{text}");
        assert!(text.contains("Nobody would have been kept"), "{text}");
    }

    #[test]
    fn times_and_sizes_are_short() {
        let text = |ms| duration_text(Duration::from_millis(ms));
        let texts = [0, 9, 10, 999, 1234, 12_345, 61_000, 3_700_000].map(text);
        assert_eq!(texts, ["0.0 ms", "9.0 ms", "10 ms", "999 ms", "1.23 s", "12.3 s", "1 min 1 s", "1 h 1 min"]);
        assert_eq!([0, 1023, 1024, 1 << 20].map(bytes), ["0 B", "1023 B", "1.0 kB", "1.0 MB"]);
    }
}
