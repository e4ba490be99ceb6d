//! Fifty branches at once, branches of branches, and the space that comes back when they are deleted.

use std::thread;
use std::time::Instant;

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options, sql, wait_until};

const BRANCHES: usize = 50;
/// Clients that make and delete at the same time.
const CLIENTS: usize = 8;
/// What a branch writes; far more than what deleting may leave.
const WRITTEN_BYTES: u64 = 6 << 20;
/// What the store may keep for a branch that nobody wrote to, and for one with one changed row.
const UNCHANGED_BYTES_MAX: u64 = 4 << 10;
const ONE_ROW_BYTES_MAX: u64 = 64 << 10;
/// What may stay: the root's WAL goes on, in a file that is filled a step ahead.
const LEFT_BYTES_MAX: u64 = 4 << 20;

/// How many of them are awake at one time.
fn awake() -> usize {
    let text = std::env::var("ARDENT_AWAKE").unwrap_or_else(|_| "4".to_owned());
    text.parse().expect("ARDENT_AWAKE is a number")
}

/// How many branches hang on each other.
fn chain_depth() -> u32 {
    let text = std::env::var("ARDENT_CHAIN_DEPTH").unwrap_or_else(|_| "8".to_owned());
    text.parse().expect("ARDENT_CHAIN_DEPTH is a number")
}

/// Runs `work` for every item, a few at a time.
fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let work = &work;
            scope.spawn(move || items.iter().skip(client).step_by(CLIENTS).for_each(work));
        }
    });
}

#[test]
fn fifty_branches_at_once_are_apart_and_give_their_space_back() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key, filler text)");
    production.sql("insert into t select n, repeat(md5(n::text), 20) from generate_series(1, 5000) n");
    let mut house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let timelines = house.timelines();
    assert_eq!(timelines.len(), 2, "the root, on page server and safekeeper: {timelines:?}");
    let before = house.disk_bytes();

    let names: Vec<String> = (0..BRANCHES).map(|number| format!("b-{number}")).collect();
    in_parallel(&names, |name| drop(house.branch(name, "main")));
    let listed = house.json(&["branch", "list"]);
    let ready = listed["branches"].as_array().expect("a list").iter().filter(|branch| branch["state"] == "ready");
    assert_eq!(ready.count(), BRANCHES + 1);
    assert_eq!(house.timelines().len(), 2 * (BRANCHES + 1));
    assert_eq!(house.compute_processes(), [], "a branch that nobody uses costs no process");
    let cost = house.disk_bytes().saturating_sub(before) / BRANCHES as u64;
    println!("{cost} bytes a branch");
    assert!(cost < 256 << 10, "a branch that nobody writes to takes {cost} bytes");

    // Some are used, a few at a time, each in its own way.
    let used: Vec<(usize, String)> = (0..awake()).map(|number| (number, names[number].clone())).collect();
    let url = |house: &House, name: &str| house.ok(&["branch", "info", name, "--print-url"]);
    in_parallel(&used, |(number, name)| {
        let url = url(&house, name);
        sql(&url, &format!("delete from t where n <= {number}"));
        sql(&url, &format!("update t set filler = 'written by {number}' where n = 2500"));
        sql(&url, "create table more (n int, filler text)");
        let rows = WRITTEN_BYTES / 1000;
        sql(&url, &format!("insert into more select n, repeat(md5(n::text), 29) from generate_series(1, {rows}) n"));
    });
    in_parallel(&used, |(number, name)| {
        let found = sql(&url(&house, name), "select count(*), max(filler) filter (where n = 2500) from t");
        assert_eq!(found, format!("{}|written by {number}", 5000 - number), "{name}");
    });
    let running: u64 = house.json(&["status"])["computes_running"].as_u64().expect("a number");
    assert_eq!(running, used.len() as u64);
    let untouched =
        "select count(*), count(*) filter (where filler like 'written%'), to_regclass('more') is null from t";
    assert_eq!(sql(&house.branch("untouched", "main"), untouched), "5000|0|t");
    house.ok(&["branch", "delete", "untouched"]);
    assert_eq!(production.sql(untouched), "5000|0|t");

    let (barely_used, unused) = (&names[BRANCHES - 2], &names[BRANCHES - 1]);
    sql(&url(&house, barely_used), "update t set filler = 'another' where n = 77");

    // What is idle is put to rest; a cold branch has what was written.
    in_parallel(&names, |name| drop(house.ok(&["branch", "suspend", name])));
    assert_eq!(house.compute_processes(), []);
    let written = house.disk_bytes().saturating_sub(before);
    assert!(written > WRITTEN_BYTES, "{written} bytes");

    // A server that stops has everything in its store.
    house.stop();
    house.up();
    for (name, most) in [(unused, UNCHANGED_BYTES_MAX), (barely_used, ONE_ROW_BYTES_MAX)] {
        let stored = house.stored_bytes(name);
        println!("{name}: {stored} bytes in the store");
        assert!((1..most).contains(&stored), "{name} takes {stored} bytes in the store");
    }
    let found = sql(&url(&house, &used[1].1), "select count(*) from more");
    assert_eq!(found, (WRITTEN_BYTES / 1000).to_string());

    in_parallel(&names, |name| drop(house.ok(&["branch", "delete", name])));
    assert_eq!(house.json(&["status"])["branches"], 0);
    let left = house.disk_bytes().saturating_sub(before);
    println!("{left} bytes left");
    wait_until("the space of deleted branches comes back", 60, || {
        (house.disk_bytes() < before + LEFT_BYTES_MAX).then_some(())
    });
    assert_eq!(house.timelines(), timelines);
    assert_eq!(house.compute_processes(), []);
    let computes = std::fs::read_dir(house.data_dir().join("computes")).expect("the folder can be listed");
    assert_eq!(computes.count(), 0, "nothing of a compute is left");
    assert_eq!(production.sql("select count(*) from pg_replication_slots"), "1");
}

#[test]
fn branches_of_branches_have_what_their_parents_had() {
    const DEPTH: i64 = 6;
    let production = TestPg::start(production_options());
    production.sql("create table t (level int primary key, at int); insert into t values (0, 0)");
    let house = House::start();
    house.connect("level-0", &production.tcp_url("postgres", "postgres"));
    let name = |level: i64| format!("level-{level}");
    let mut urls = Vec::new();
    for level in 1..=DEPTH {
        let url = house.branch(&name(level), &name(level - 1));
        sql(&url, &format!("insert into t values ({level}, {level}); update t set at = {level} where level = 0"));
        urls.push(url);
        if level % 2 == 0 {
            house.ok(&["branch", "suspend", &name(level)]);
        }
    }
    // What a parent writes after its child was made stays with it.
    for (level, url) in (1..).zip(&urls) {
        sql(url, &format!("insert into t values ({}, 0)", 100 + level));
    }
    for (level, url) in (1..).zip(&urls) {
        let levels: Vec<String> = (0..=level).chain([100 + level]).map(|level: i64| level.to_string()).collect();
        let found =
            sql(url, "select string_agg(level::text, ',' order by level), min(at) filter (where level = 0) from t");
        assert_eq!(found, format!("{}|{level}", levels.join(",")));
    }
    // A point between: the history of the parent, though the parent has gone on.
    let middle = house.json(&["branch", "info", &name(4)]);
    let at = middle["branch_lsn"].as_str().expect("a branch has one").to_owned();
    house.ok(&["branch", "create", "again", "--from", &name(3), "--at", &at]);
    let again = house.ok(&["branch", "info", "again", "--print-url"]);
    assert_eq!(sql(&again, "select string_agg(level::text, ',' order by level) from t"), "0,1,2,3");

    let refused = house.ardent(&["branch", "delete", &name(2)]);
    refused.refused(6, &[&name(3)]);
    house.ok(&["branch", "delete", "again"]);
    for level in (1..=DEPTH).rev() {
        house.ok(&["branch", "delete", &name(level)]);
        if level > 1 {
            assert_eq!(sql(&urls[level as usize - 2], "select max(level) < 100 + 100 from t"), "t");
        }
    }
    assert_eq!(production.sql("select count(*), max(at) from t"), "1|0");
}

#[test]
fn a_chain_of_branches_is_read_compared_and_held_after_a_crash() {
    /// Computes that are left running.
    const AWAKE: u32 = 8;
    let depth = chain_depth();
    let production = TestPg::start(production_options());
    production.sql("create table t (level int primary key); insert into t values (0)");
    let mut house = House::start();
    house.connect("level-0", &production.tcp_url("postgres", "postgres"));
    let name = |level: u32| format!("level-{level}");
    let mut last = String::new();
    for level in 1..=depth {
        let began = Instant::now();
        last = house.branch(&name(level), &name(level - 1));
        sql(&last, &format!("insert into t values ({level})"));
        println!("level {level}, made and written to: {:.2} s", began.elapsed().as_secs_f64());
        if level > AWAKE {
            house.ok(&["branch", "suspend", &name(level - AWAKE)]);
        }
    }

    house.kill_server();
    house.up();
    let levels = "select count(*), sum(level) from t";
    let expect = |level: u32| format!("{}|{}", level + 1, level * (level + 1) / 2);
    let began = Instant::now();
    assert_eq!(sql(&last, levels), expect(depth));
    println!("all levels read by the last, after the crash: {:.2} s", began.elapsed().as_secs_f64());
    let middle = depth / 2;
    let url = house.ok(&["branch", "info", &name(middle), "--print-url"]);
    assert_eq!(sql(&url, levels), expect(middle));

    for (against, rows) in [(name(0), depth), (name(depth - 1), 1)] {
        let began = Instant::now();
        let stat = house.json(&["branch", "diff", &name(depth), "--against", &against, "--stat"]);
        println!("diff against {against}: {:.2} s", began.elapsed().as_secs_f64());
        let tables = &stat["databases"][0]["tables"];
        assert_eq!(tables.as_array().map(Vec::len), Some(1), "{stat}");
        assert_eq!((&tables[0]["name"], &tables[0]["inserted"]), (&"t".into(), &rows.into()), "{stat}");
    }
    house.ardent(&["branch", "delete", &name(middle)]).refused(6, &[&name(middle + 1)]);
    assert_eq!(sql(&last, levels), expect(depth));
    assert_eq!(production.sql(levels), expect(0));
}
