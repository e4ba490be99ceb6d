//! The page server hangs, goes away, comes back, refuses or sends nonsense: a clear error or a wait, never a wrong page.

use std::process::Stdio;
use std::time::{Duration, Instant};

use ardent_extension_tests::HollowPg;
use ardent_test_pg::TestPg;
use ardent_types::ForkNumber;

const SUM: &str = "select count(*), sum(id) from t";
const SUM_RESULT: &str = "20000|200010000";
const DEADLINE: Duration = Duration::from_secs(30);

fn prepare(server: &TestPg) {
    server.sql("create table t (id int, v text)");
    server.sql("insert into t select g, repeat(md5(g::text), 3) from generate_series(1, 20000) g");
    server.sql("create table other (id int); insert into other values (1)");
    server.sql("create extension pg_prewarm");
}

/// A compute whose catalog is there, so that only the table's pages are missing.
fn start(settings: &[(&str, &str)]) -> HollowPg {
    let hollow = HollowPg::start(prepare, settings);
    hollow.server.sql(
        "select count(pg_prewarm(c.oid, 'read', fork)) from pg_class c, unnest(array['main', 'fsm', 'vm']) fork
         where relkind in ('r', 'i', 't') and relname <> 't' and pg_relation_size(c.oid, fork) > 0",
    );
    hollow
}

/// What psql prints about the failure of [`SUM`], SQLSTATE included.
fn sum_failure(hollow: &HollowPg) -> String {
    let output = hollow.psql("postgres").args(["-v", "VERBOSITY=verbose", "-c", SUM]).output().expect("psql runs");
    assert!(!output.status.success(), "it succeeded: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_hanging_page_server_is_an_error_after_the_timeout_and_a_cancel_works_before() {
    let hollow = start(&[]);
    hollow.page_server.set_faults(|faults| faults.hang = true);
    let failed = hollow.server.try_sql_in("postgres", &format!("set ardent.fetch_timeout = '400ms'; {SUM}"));
    let error = failed.expect_err("no page can come");
    assert!(error.contains("could not read block 0 of relation"), "{error}");
    assert!(error.contains("No answer within"), "{error}");

    let started = Instant::now();
    let failed = hollow.server.try_sql_in("postgres", &format!("set statement_timeout = '200ms'; {SUM}"));
    assert!(failed.expect_err("times out").contains("statement timeout"));
    assert!(started.elapsed() < Duration::from_secs(10), "the timeout was noticed late");

    let running = hollow.psql("postgres").args(["-c", SUM]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let running = running.expect("psql runs");
    let find = "select pid from pg_stat_activity where query like 'select count(*), sum(id)%' and state = 'active'";
    until("the query runs", || !hollow.server.sql(find).is_empty());
    hollow.server.sql(&format!("select pg_terminate_backend({})", hollow.server.sql(find)));
    let output = running.wait_with_output().expect("psql ends");
    assert!(String::from_utf8_lossy(&output.stderr).contains("terminating connection"));

    hollow.page_server.set_faults(|faults| faults.hang = false);
    assert_eq!(hollow.server.sql(SUM), SUM_RESULT);
}

#[test]
fn a_page_server_that_restarts_in_the_middle_of_a_query_is_waited_for() {
    let hollow = start(&[]);
    hollow.page_server.set_faults(|faults| faults.down = Some("the page server restarts".into()));
    let running = hollow.psql("postgres").args(["-c", SUM]).stdout(Stdio::piped()).spawn().expect("psql runs");
    let before = hollow.counter("connections");
    until("it tries again", || hollow.counter("connections") > before + 2);
    hollow.page_server.set_faults(|faults| {
        faults.down = None;
        faults.cut_after = Some(2);
    });
    let output = running.wait_with_output().expect("psql ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), SUM_RESULT);
}

#[test]
fn a_page_server_that_stays_away_is_named() {
    let hollow = start(&[("ardent.fetch_timeout", "300ms")]);
    hollow.page_server.set_faults(|faults| faults.down = Some("the page server at unix:/x is not there".into()));
    let error = sum_failure(&hollow);
    for part in ["58030", "could not read block 0 of relation 1663/", "at LSN ", "agent.sock", "unix:/x is not there"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    assert_eq!(hollow.server.sql("select id from other"), "1", "what is local goes on");
    hollow.page_server.set_faults(|faults| faults.down = None);
    assert_eq!(hollow.server.sql(SUM), SUM_RESULT);
}

#[test]
fn an_unreadable_block_harms_only_its_readers() {
    let hollow = start(&[]);
    let table = hollow.rel("t", ForkNumber::Main);
    hollow.page_server.set_faults(|faults| faults.unreadable = Some((table, 100)));
    let error = sum_failure(&hollow);
    assert!(error.contains("XX001") && error.contains("could not read block 100 of"), "{error}");
    assert!(error.contains("cannot be applied"), "{error}");
    let around = "select count(*) > 0 from t where ctid = any(array['(99,1)', '(101,1)']::tid[])";
    assert_eq!(hollow.server.sql(around), "t");
    hollow.page_server.set_faults(|faults| faults.unreadable = None);
    assert_eq!(hollow.server.sql(SUM), SUM_RESULT);
}

#[test]
fn a_page_from_the_future_is_refused() {
    let hollow = start(&[]);
    let table = hollow.rel("t", ForkNumber::Main);
    hollow.page_server.set_faults(|faults| faults.future_lsn = Some(table));
    let error = hollow.server.try_sql_in("postgres", SUM).expect_err("the page cannot be used");
    assert!(error.contains("came with an LSN past"), "{error}");
    let entry = hollow.map.find(&table).expect("has an entry");
    assert_eq!(entry.absent_count(), u64::from(entry.base_nblocks()), "nothing of it was kept");
}

#[test]
fn a_start_without_the_right_map_is_refused() {
    for (name, value, message) in [
        ("ardent.base_lsn", "0/1", "but the presence map"),
        ("ardent.presence_map", "/nowhere/presence.map", "cannot open the presence map"),
    ] {
        let mut hollow = HollowPg::prepare(prepare, &[(name, value)]);
        let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hollow.server.start_server()));
        assert!(started.is_err(), "{name}: it started");
        assert!(hollow.server.log().contains(message), "{name}: {}", hollow.server.log());
    }
}
