//! Branches are apart from each other, and rest and wake without loss.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ardent_test_pg::{TestPg, program};
use ardent_tests::{House, production_options, sql, try_sql};
use serde_json::Value;

#[test]
fn branches_are_apart_and_give_their_names_back() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key); insert into t select generate_series(1, 1000)");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));

    let one = house.branch("one", "main");
    let two = house.branch("two", "main");
    sql(&one, "delete from t where n <= 10; create table only_one (n int)");
    sql(&two, "insert into t values (2001)");
    let child = house.branch("child", "one");
    sql(&one, "delete from t where n <= 20");
    production.sql("insert into t values (3001)");

    let held = "select count(*), min(n), max(n) from t";
    assert_eq!(sql(&one, held), "980|21|1000");
    assert_eq!(sql(&two, held), "1001|1|2001");
    assert_eq!(sql(&child, held), "990|11|1000", "a branch of a branch has what its parent had then");
    assert_eq!(production.sql(held), "1001|1|3001");
    assert_eq!(sql(&child, "select count(*) from only_one"), "0");
    assert!(try_sql(&two, "select count(*) from only_one").is_err());
    assert_eq!(production.sql("select to_regclass('only_one') is null"), "t");
    sql(&child, "insert into t values (4001)");
    assert_eq!(sql(&one, held), "980|21|1000");

    // What a shell offers: names, flags, and nothing at all, not even a complaint, where no server is.
    let names = |words: &[&str]| -> Vec<String> {
        house.completed(words).into_iter().filter(|word| !word.starts_with('-')).collect()
    };
    assert_eq!(names(&["ardent", "branch", "info", "t"]), ["two"]);
    assert_eq!(names(&["ardent", "psql", ""]), ["child", "main", "one", "two"]);
    assert_eq!(names(&["ardent", "branch", "rename", "o"]), ["one"]);
    assert_eq!(names(&["ardent", "branch", "create", "x", "--from", "ma"]), ["main"]);
    assert_eq!(names(&["ardent", "connector", "status", ""]), ["main"]);
    // A root goes with its connector, and nobody deletes a branch twice.
    assert_eq!(names(&["ardent", "branch", "delete", ""]), ["child", "one", "two"]);
    assert_eq!(names(&["ardent", "branch", "delete", "two", "one", ""]), ["child"]);
    assert_eq!(names(&["ardent", "branch", "delete", "two", "o"]), ["one"]);
    assert_eq!(house.completed(&["ardent", "branch", "create", "--max-r"]), ["--max-rows-changed"]);
    assert_eq!(house.completed(&["ardent", "--url", "http://127.0.0.1:1", "branch", "info", "t"]), [""; 0]);

    let refused = house.ardent(&["branch", "delete", "one"]);
    assert_eq!(refused.code, 6, "a branch with children stays: {}", refused.stderr);
    // Of several all go, or none.
    house.ardent(&["branch", "delete", "two", "nope"]).refused(5, &["no branch nope", "nothing was deleted"]);
    house.ardent(&["branch", "delete", "two", "main"]).refused(6, &["main is a connector's root"]);
    house.ardent(&["branch", "delete", "two", "one"]).refused(6, &["one has branches made from it (child)"]);
    house.ardent(&["branch", "delete", "two", "No Name"]).refused(2, &["No Name"]);
    assert_eq!(sql(&two, held), "1001|1|2001");
    let gone = house.json(&["branch", "delete", "one", "child", "one"]);
    assert_eq!(gone["deleted"], serde_json::json!(["child", "one"]), "children before their parents: {gone}");
    assert!(try_sql(&one, "select 1").is_err());
    assert_eq!(house.ardent(&["branch", "info", "one"]).code, 5);
    let again = house.branch("one", "main");
    assert_eq!(sql(&again, held), "1001|1|3001");
    assert!(try_sql(&one, "select 1").is_err(), "the old password opens nothing");

    house.ok(&["branch", "delete", "one", "two"]);
    default_connectors_are_meant_where_none_is_named(&house, &production);
    house.ok(&["connector", "delete", "main", "--yes"]);
    assert_eq!(production.sql("select count(*) from pg_replication_slots"), "0");
    assert_eq!(house.compute_processes(), []);
}

/// Environment before project file, and both before a question.
fn default_connectors_are_meant_where_none_is_named(house: &House, production: &TestPg) {
    house.connect("other", &production.tcp_url("postgres", "postgres"));
    let words = ["more than one connector", "main, other", "ardent connector switch NAME"];
    house.ardent(&["branch", "create", "three"]).refused(2, &words);
    house.ardent(&["connector", "status"]).refused(2, &words);
    house.ardent(&["connector", "switch", "nobody"]).refused(5, &["nobody"]);
    assert_eq!(house.json(&["connector", "list"])["default_connector"], Value::Null);
    let said = house.ok(&["connector", "switch", "other"]);
    assert!(said.contains("other is the default connector now"), "{said}");
    house.ok(&["branch", "switch", "other"]);
    assert_eq!(house.json(&["connector", "list"])["default_connector"], "other", "it stays beside the default branch");
    assert_eq!(house.json(&["connector", "status"])["name"], "other");
    assert_eq!(house.json(&["branch", "create", "three"])["connector"], "other");
    let program = house.program().to_str().expect("UTF-8");
    let made = house.other("env", &["ARDENT_CONNECTOR=main", program, "--json", "branch", "create", "four"]);
    let made: Value = serde_json::from_str(&made.stdout).unwrap_or_else(|error| panic!("{error}: {made:?}"));
    assert_eq!(made["connector"], "main");
    assert_eq!(house.completed(&["ardent", "connector", "switch", "o"]), ["other"]);
    house.ok(&["branch", "delete", "three", "four"]);
    house.ok(&["connector", "delete", "other", "--yes"]);
}

/// How often the branch is put to sleep.
fn sleeps() -> u32 {
    std::env::var("ARDENT_SLEEPS").map_or(10, |text| text.parse().expect("ARDENT_SLEEPS is a number"))
}

/// Gives the segments that have come since a second name.
fn keep_segments(wal: &Path, kept: &Path) {
    for entry in fs::read_dir(wal).expect("the safekeeper has the branch's WAL").filter_map(Result::ok) {
        let second = kept.join(entry.file_name());
        if !second.exists() {
            fs::hard_link(entry.path(), second).expect("a file can have two names");
        }
    }
}

#[test]
fn asleep_and_awake_again_and_again_loses_nothing() {
    let production = TestPg::start(production_options());
    production.sql("create table t (round int primary key, filler text)");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("sleeper", "main");
    let info = house.json(&["branch", "info", "sleeper"]);
    let word = |name: &str| info[name].as_str().unwrap_or_else(|| panic!("no {name} in {info}")).to_owned();
    let started_at = word("branch_lsn");

    let wal: PathBuf = ["safekeeper", &word("tenant_id"), &word("timeline_id"), "wal"]
        .iter()
        .fold(house.data_dir(), |at, name| at.join(name));
    // The safekeeper removes what the page server has stored: the names here keep it.
    let kept = house.data_dir().with_file_name("kept");
    fs::create_dir(&kept).expect("a folder can be made");

    let mut end = String::new();
    for round in 1..=sleeps() {
        // Where its folder was kept it is woken by the command, which says how it started; else by a connection.
        if round % 2 == 0 {
            let woken = house.json(&["branch", "wake", "sleeper"]);
            let how = (woken["was_running"].as_bool(), woken["warm"].as_bool());
            assert_eq!(how, (Some(false), Some(true)), "not started from its folder in round {round}: {woken}");
        }
        sql(
            &branch,
            &format!("insert into t select {round}, string_agg(md5(n::text), '') from generate_series(1, 2000) n"),
        );
        if round % 5 == 0 {
            sql(&branch, "select pg_switch_wal()");
        }
        assert_eq!(sql(&branch, "select count(*), max(round) from t"), format!("{round}|{round}"));
        end = sql(&branch, "select pg_current_wal_flush_lsn()");
        house.ok(&["branch", "suspend", "sleeper"]);
        assert_eq!(house.compute_processes(), [], "a branch at rest has no process");
        keep_segments(&wal, &kept);
        // Every other time cold.
        if round % 2 == 0 {
            house.throw_computes_away();
        }
    }
    let n = sleeps();
    let expected = format!("{n}|{}|{}", n * (n + 1) / 2, n * 64_000);
    assert_eq!(sql(&branch, "select count(*), sum(round), sum(length(filler)) from t"), expected);
    house.ok(&["branch", "suspend", "sleeper"]);

    let dump = Command::new(program("pg_waldump"))
        .args(["--start", &started_at, "--end", &end, "--path"])
        .arg(&kept)
        .output()
        .expect("pg_waldump can be run");
    let said = String::from_utf8_lossy(&dump.stderr);
    assert!(dump.status.success(), "pg_waldump from {started_at} to {end}: {said}");
    let records = String::from_utf8_lossy(&dump.stdout);
    let last = records.lines().last().unwrap_or_default();
    assert!(records.matches("CHECKPOINT_SHUTDOWN").count() >= n as usize, "{said}\n{last}");
}
