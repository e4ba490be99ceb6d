//! Code and shared memory come to lie in huge pages while the server is used, and hold what they held.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use ardent_extension_tests::HollowPg;
use ardent_test_pg::TestPg;

const TABLE: &str = "create table t (id int primary key, n int not null default 0, v text) with (fillfactor = 50);
    insert into t (id, v) select g, repeat(md5(g::text), 4) from generate_series(1, 40000) g";
const SUM: &str = "select count(*), sum(id), sum(n), md5(string_agg(v, ',' order by id)) from t";
/// A whole scan of the table is less than a quarter of it, so it goes through all buffers and not through a few again and again.
const BUFFERS: (&str, &str) = ("shared_buffers", "96MB");
/// Longer than a server leaves its memory as it is after its start.
const LEFT_ALONE_FOR: Duration = Duration::from_millis(1200);

/// A `psql` that does one statement after the other.
struct Session {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    fn open(hollow: &HollowPg) -> Session {
        let mut command = hollow.psql("postgres");
        command.arg("-q").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("psql runs");
        let (input, output) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        Session { process, input, output: BufReader::new(output) }
    }

    /// The one row that it gives.
    fn row(&mut self, sql: &str) -> String {
        writeln!(self.input, "{sql};").expect("psql reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("psql answers");
        line.trim_end().to_owned()
    }

    fn close(mut self) {
        drop(self.input);
        assert!(self.process.wait().expect("it ends").success());
    }
}

/// What of a process's memory is in huge pages, in kB.
#[derive(Debug, PartialEq, Eq)]
struct Huge {
    code: u64,
    shared: u64,
}

fn huge_of(pid: &str) -> Huge {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("root or the server's own user may read it");
    let mut huge = Huge { code: 0, shared: 0 };
    let mut is_code = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next().unwrap_or_default(), words.next().unwrap_or_default()) {
            (range, protection) if range.contains('-') => is_code = protection == "r-xp",
            ("ShmemPmdMapped:", kilobytes) if is_code => huge.code += kilobytes.parse::<u64>().expect("a number"),
            ("ShmemPmdMapped:", kilobytes) => huge.shared += kilobytes.parse::<u64>().expect("a number"),
            _ => {}
        }
    }
    huge
}

/// Whether this kernel makes huge pages of memory that is there: Linux 6.1 and later, unless it was built or told not to.
fn kernel_makes_them() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let denied = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    version >= (6, 1) && denied.is_ok_and(|denied| !denied.contains("[deny]"))
}

#[test]
fn code_and_buffers_that_are_used_lie_in_huge_pages() {
    let mut expected = String::new();
    let prepare = |server: &TestPg| {
        server.sql(TABLE);
        expected = server.sql(SUM);
    };
    let hollow = HollowPg::start(prepare, &[BUFFERS]);
    let mut session = Session::open(&hollow);
    let pid = session.row("select pg_backend_pid()");
    assert_eq!(huge_of(&pid).shared, 0, "a start makes none of shared memory");
    std::thread::sleep(LEFT_ALONE_FOR);
    assert_eq!(session.row(SUM), expected);
    assert_eq!(session.row(SUM), expected);
    let huge = huge_of(&pid);
    let shown = session.row("show ardent.huge_pages");
    let table_kilobytes: u64 = session.row("select pg_relation_size('t') / 1024").parse().expect("a number");
    if kernel_makes_them() {
        assert!(!shown.contains("refused"), "{shown}");
        assert!(huge.shared >= table_kilobytes, "{huge:?} of {table_kilobytes} kB that were read ({shown})");
        assert!(huge.code >= 2048, "{huge:?} ({shown})");
        assert!(shown.starts_with(&format!("code={}kB ", huge.code)), "{huge:?} ({shown})");
    } else {
        assert_eq!(huge, Huge { code: 0, shared: 0 }, "{shown}");
    }
    session.close();
}

#[test]
fn with_huge_pages_off_there_are_none() {
    let mut expected = String::new();
    let prepare = |server: &TestPg| {
        server.sql(TABLE);
        expected = server.sql(SUM);
    };
    let hollow = HollowPg::start(prepare, &[BUFFERS, ("huge_pages", "off")]);
    std::thread::sleep(LEFT_ALONE_FOR);
    let mut session = Session::open(&hollow);
    let pid = session.row("select pg_backend_pid()");
    assert_eq!(session.row(SUM), expected);
    assert_eq!(huge_of(&pid), Huge { code: 0, shared: 0 });
    assert_eq!(session.row("show ardent.huge_pages"), "code=0kB");
    session.close();
}

/// From before the first is made until all are, sessions write what becomes one.
#[test]
fn what_is_written_meanwhile_stays() {
    const SESSIONS: u32 = 4;
    const ROUNDS: u32 = 30;
    let prepare = |server: &TestPg| drop(server.sql(TABLE));
    let hollow = HollowPg::start(prepare, &[BUFFERS, ("autovacuum", "off"), ("max_wal_size", "256MB")]);
    std::thread::scope(|scope| {
        for number in 0..SESSIONS {
            let hollow = &hollow;
            scope.spawn(move || {
                let mut session = Session::open(hollow);
                for round in 0..ROUNDS {
                    let mine = format!("id % {SESSIONS} = {number} and id % {ROUNDS} = {round}");
                    let update =
                        format!("with u as (update t set n = n + 1 where {mine} returning 1) select count(*) from u");
                    let count: u32 = session.row(&update).parse().expect("a number");
                    // Both are even numbers.
                    assert_eq!(count > 0, number % 2 == round % 2, "{number} {round}");
                    if round % 10 == 9 {
                        session.row("select count(*) from t, pg_sleep(0.6)");
                    }
                }
                session.close();
            });
        }
    });
    // Each row once: its remainders choose one session and one of its rounds.
    assert_eq!(hollow.server.sql("select count(*), sum(n), min(n), max(n) from t"), "40000|40000|1|1");
    let shown = hollow.server.sql("show ardent.huge_pages");
    assert_eq!(shown.contains("refused"), !kernel_makes_them(), "{shown}");
    assert!(!shown.contains("shared=0/"), "{shown}");
}
