//! Branches go back in time, begin anew, are deleted and come back; and a server that is killed in the middle of it.

use std::time::{Duration, Instant};

use ardent_test_pg::TestPg;
use ardent_tests::{Background, House, Process, Session, production_options, sql, try_sql, wait_until};
use serde_json::Value;

const COUNT: &str = "select count(*) from t";
/// To the microsecond, in UTC.
const NOW: &str = r#"select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;

fn start(arguments: &[&str]) -> (TestPg, House) {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key); insert into t select generate_series(1, 1000)");
    let mut house = House::prepare().with_arguments(arguments);
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    (production, house)
}

fn word(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

#[test]
fn a_branch_goes_back_in_time_begins_anew_and_comes_back() {
    let (production, house) = start(&["--keep-deleted", "1h"]);
    let work = house.branch("work", "main");
    // Production has committed nothing since it was copied: no commit shows that a time is before all that is known.
    house.branch("young", "work");
    let is_outside = |arguments: &[&str]| {
        for at in ["2020-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z"] {
            let refused = house.ardent(&[arguments, &["--at", at]].concat());
            refused.refused(2, &["the history of branch work goes from 0/"]);
        }
    };
    is_outside(&["branch", "create", "x", "--from", "work"]);
    is_outside(&["branch", "reset", "young"]);
    sql(&work, "insert into t values (5001)");
    is_outside(&["branch", "create", "x", "--from", "work"]);
    house.ok(&["branch", "delete", "young", "--for-good"]);
    let (time, lsn) = (sql(&work, NOW), sql(&work, "select pg_current_wal_insert_lsn()"));
    sql(&work, "delete from t; create table later (n int)");
    assert_eq!(sql(&work, COUNT), "0");
    let emptied = sql(&work, NOW);
    let below = house.branch("below", "work");

    // The same URL, with what the branch held then; a session that was open is told.
    let session = Session::start(&work, "sleeper", &["select pg_sleep(600)"]);
    let sleeping = "select count(*) from pg_stat_activity where application_name = 'sleeper' and state = 'active'";
    wait_until("the session sleeps", 30, || (sql(&work, sleeping) == "1").then_some(()));
    let restored = house.json(&["branch", "restore", "work", "--at", &time]);
    let said = session.finish();
    assert!(!said.ok && said.errors.contains("terminating connection due to administrator command"), "{said:?}");
    assert_eq!(sql(&work, &format!("{COUNT}; select to_regclass('later') is null")), "1001\nt");
    let diff = house.json(&["branch", "diff", "work"]);
    assert!(diff.to_string().contains("5001"), "compared with where it left its parent: {diff}");
    sql(&work, "insert into t values (5002)");

    house.ok(&["branch", "restore", "work", "--at", &word(&restored, "undo_at")]);
    assert_eq!(sql(&work, COUNT), "0", "before the restore");
    house.ok(&["branch", "restore", "work", "--at", &lsn]);
    assert_eq!(sql(&work, &format!("{COUNT} where n <= 5001")), "1001");

    production.sql("insert into t values (6001)");
    let child = house.branch("child", "work");
    house.ok(&["branch", "reset", "work"]);
    assert_eq!(sql(&work, "select count(*), max(n) from t"), "1001|6001", "what the parent is now");
    assert_eq!(sql(&child, &format!("{COUNT} where n <= 5001")), "1001", "what was made from it keeps what it has");
    assert_eq!(house.ardent(&["branch", "diff", "work", "--stat", "--exit-code"]).code, 0);
    assert_eq!(house.ardent(&["branch", "diff", "child", "--stat", "--exit-code"]).code, 0);
    let history = house.json(&["branch", "history", "work"]);
    assert_eq!(history["stretches"].as_array().expect("stretches").len(), 5, "{history}");

    // Points of the parent, and points that nobody has.
    let past = house.ok(&["branch", "create", "past", "--from", "main", "--at", &time, "--print-url"]);
    assert_eq!(sql(&past, COUNT), "1000");
    // Before production was copied there is nothing, and its first commit since is no answer.
    let early = house.ardent(&["branch", "create", "x", "--from", "main", "--at", "2020-01-01T00:00:00Z"]);
    early.refused(2, &["2020-01-01", "is before that"]);
    let create = |at: &str| house.ardent(&["branch", "create", "x", "--from", "work", "--at", at]);
    // A time means what the branch was then, also where it was restored or reset since.
    for (name, at, count) in [("full", &time, "1001"), ("empty", &emptied, "0")] {
        let then = house.ok(&["branch", "create", name, "--from", "work", "--at", at, "--print-url"]);
        assert_eq!(sql(&then, COUNT), count, "{name}");
        assert_eq!(house.ardent(&["branch", "diff", name, "--stat", "--exit-code"]).code, 0, "{name}");
        house.ok(&["branch", "reset", "below", "--at", at]);
        assert_eq!(sql(&below, COUNT), count, "reset to that time");
    }
    create("2020-01-01T00:00:00Z").refused(2, &["not in the history of branch work", "branch history work"]);
    create("FF/0").refused(2, &["the history of branch work goes from 0/"]);
    // What was before the branch is its parent's, by an LSN as by a time.
    create("0/0").refused(2, &["is before branch work was made", "the history of branch work goes from 0/"]);
    let before_all = house.ardent(&["branch", "create", "x", "--from", "main", "--at", "0/0"]);
    before_all.refused(2, &["is before all that is kept of branch main", "goes from 0/"]);
    create("2999-01-01T00:00:00Z").refused(2, &["lies in the future"]);
    create("2026-01-01T00:00:00").refused(2, &["time zone"]);
    let restore = house.ardent(&["branch", "restore", "work", "--at", "2020-01-01T00:00:00Z"]);
    restore.refused(2, &["not in the history of branch work", "; and from 0/"]);

    house.ok(&["branch", "delete", "child"]);
    assert!(try_sql(&child, "select 1").is_err());
    assert_eq!(house.json(&["branch", "list", "--deleted"])["branches"][0]["name"], "child");
    house.ok(&["branch", "rename", "past", "child"]);
    house.ardent(&["branch", "undelete", "child"]).refused(6, &["taken", "--as"]);
    house.ok(&["branch", "rename", "child", "past"]);
    house.ok(&["branch", "undelete", "child"]);
    assert_eq!(sql(&child, &format!("{COUNT} where n <= 5001")), "1001", "the same URL again");

    // Deleting for good gives all of it back, what the branch was included.
    house.ok(&["branch", "delete", "child", "work", "past", "full", "empty", "below", "--for-good"]);
    let root = house.json(&["branch", "info", "main"]);
    let of_root = format!("{}/{}", word(&root, "tenant_id"), word(&root, "timeline_id"));
    assert_eq!(house.timelines(), [format!("pageserver/store/timelines/{of_root}"), format!("safekeeper/{of_root}")]);
    let store = house.json(&["inspect", "store", "--data-dir", &house.data_dir().to_string_lossy(), "--verify"]);
    assert_eq!(store["timelines"].as_array().expect("timelines").len(), 1, "{store}");
    assert_eq!((&store["problems"], &store["unowned"]), (&serde_json::json!([]), &serde_json::json!([])), "{store}");
}

#[test]
fn history_that_was_given_up_is_named() {
    let (_production, mut house) = start(&["--retention", "2s"]);
    let work = house.branch("work", "main");
    sql(&work, "insert into t values (5001)");
    let time = sql(&work, NOW);
    sql(&work, "insert into t values (5002)");
    // What is in memory becomes durable, and only what is durable is given up.
    house.stop();
    house.up();
    let oldest = |house: &House| {
        let history = house.json(&["branch", "history", "work"]);
        history["stretches"][0]["oldest_at"].as_str().map(str::to_owned)
    };
    wait_until("history is given up", 60, || oldest(&house).filter(|oldest| *oldest > time));
    let refused = house.ardent(&["branch", "restore", "work", "--at", &time]);
    refused.refused(2, &["not in the history of branch work, which goes from 0/", "last commit"]);
    assert_eq!(sql(&work, COUNT), "1002", "what it is now stays");

    house.ok(&["branch", "set", "work", "--retention", "1h"]);
    let time = sql(&work, NOW);
    sql(&work, "delete from t");
    house.ok(&["branch", "restore", "work", "--at", &time]);
    assert_eq!(sql(&work, COUNT), "1002");
}

#[test]
fn a_quiet_branch_goes_back_to_before_an_accident_after_history_was_given_up() {
    const KEPT: Duration = Duration::from_secs(40);
    let (_production, mut house) = start(&["--retention", "2s"]);
    let work = house.branch("work", "main");
    house.ok(&["branch", "set", "work", "--retention", &format!("{}s", KEPT.as_secs())]);
    sql(&work, "create database extra");
    sql(&work, "insert into t values (5001)");
    let committed = Instant::now();
    let oldest = |house: &House| word(&house.json(&["branch", "history", "work"])["stretches"][0], "oldest_lsn");
    let beginning = oldest(&house);
    wait_until("nothing is committed for longer than history is kept", 60, || {
        (committed.elapsed() > KEPT + Duration::from_secs(1)).then_some(())
    });

    let time = sql(&work, NOW);
    let noted = Instant::now();
    house.ok(&["branch", "checkpoint", "create", "work", "--name", "quiet"]);
    sql(&work, "begin; create table undone (n int); rollback");
    sql(&work, "drop database extra");
    sql(&work, "drop table t");
    // What is in memory becomes durable, and only what is durable is given up.
    house.stop();
    house.up();
    let oldest = wait_until("history is given up", 20, || Some(oldest(&house)).filter(|oldest| *oldest != beginning));
    for (name, at) in [("then", &time), ("first", &oldest)] {
        house.ok(&["branch", "create", name, "--from", "work", "--at", at]);
    }
    let list = house.json(&["branch", "checkpoint", "list", "work"]);
    assert_eq!(list["checkpoints"][0]["kept"], true, "{list}");
    house.ok(&["branch", "restore", "work", "--at", &time]);
    assert_eq!(sql(&work, COUNT), "1001");
    // A database is marked as invalid, and its files go, before its end is committed.
    assert_eq!(sql(&work, "select datconnlimit from pg_database where datname = 'extra'"), "-1");
    house.ok(&["branch", "rewind", "work", "quiet"]);
    assert_eq!(sql(&work, COUNT), "1001");
    assert!(noted.elapsed() < KEPT, "the machine was too slow for this to show anything");
    for name in ["then", "first"] {
        let url = house.ok(&["branch", "info", name, "--print-url"]);
        assert_eq!(sql(&url, COUNT), "1001", "{name}");
    }
}

/// How far a reset or restore has come when the server is killed.
type Reached = fn(&House, &Before) -> bool;

/// Timelines on the page server and on the safekeeper before it began.
struct Before {
    page_server: usize,
    safekeeper: usize,
}

fn counts(house: &House) -> Before {
    let timelines = house.timelines();
    let page_server = timelines.iter().filter(|name| name.starts_with("pageserver")).count();
    Before { page_server, safekeeper: timelines.len() - page_server }
}

const STEPS: [(&str, Reached); 4] = [
    ("on the page server", |house, before| counts(house).page_server > before.page_server),
    ("on the safekeeper", |house, before| counts(house).safekeeper > before.safekeeper),
    ("the old compute stopped", |house, _| !house.compute_processes().iter().any(Process::is_postmaster)),
    ("done", |_, _| false),
];

/// Waits without a pause: a step may be short. It is over when the command is.
fn wait_for_step(house: &House, reached: Reached, before: &Before, running: &mut Background) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while running.runs() && !reached(house, before) {
        assert!(Instant::now() < deadline, "not reached");
    }
}

/// Each branch's timeline, those that it was on, and no others.
fn check_timelines(house: &House) {
    wait_until("what was half done is finished or undone", 60, || {
        let listed = house.json(&["branch", "list"]);
        let mut expected = Vec::new();
        for branch in listed["branches"].as_array().expect("a list") {
            let tenant = word(branch, "tenant_id");
            let mut timelines = vec![word(branch, "timeline_id")];
            if branch["is_root"] == false {
                let history = house.json(&["branch", "history", &word(branch, "name")]);
                let stretches = history["stretches"].as_array().expect("stretches");
                timelines = stretches.iter().map(|stretch| word(stretch, "timeline_id")).collect();
            }
            for timeline in timelines {
                expected.push(format!("pageserver/store/timelines/{tenant}/{timeline}"));
                expected.push(format!("safekeeper/{tenant}/{timeline}"));
            }
        }
        expected.sort();
        (house.timelines() == expected).then_some(())
    });
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_a_reset_or_restore_finishes_or_undoes_it() {
    let (_production, mut house) = start(&[]);
    let work = house.branch("work", "main");
    assert_eq!(sql(&work, COUNT), "1000");
    let time = sql(&work, NOW);
    let mut rows = 1000;
    let rounds: usize = std::env::var("ARDENT_RESET_ROUNDS").map_or(1, |text| text.parse().expect("a number"));
    for _ in 0..rounds {
        for command in [&["branch", "reset", "work"][..], &["branch", "restore", "work", "--at", &time]] {
            // In the short form, each step of one of the two.
            for (what, reached) in STEPS.into_iter().skip(usize::from(rounds == 1 && command[1] == "restore") * 2) {
                rows += 1;
                sql(&work, &format!("insert into t values (5000 + {rows})"));
                let before = counts(&house);
                let mut running = house.background(command);
                wait_for_step(&house, reached, &before, &mut running);
                house.kill_server();
                let ended = running.finish();
                println!("{} {what}: exit code {}", command[1], ended.code);
                assert!(!ended.stderr.contains("panicked"), "{ended:?}");
                house.up();
                // It starts at once, with the same URL, and is what it was or what it was to be.
                let held: u64 = sql(&work, COUNT).parse().expect("a number");
                assert!([rows, 1000].contains(&held), "{} {what}: {held} rows of {rows}", command[1]);
                assert!(ended.code != 0 || held == 1000, "{} {what}: it was said to be done", command[1]);
                rows = held;
            }
        }
    }
    check_timelines(&house);
    assert!(!house.log().contains("panicked"), "{}", house.log());
}
