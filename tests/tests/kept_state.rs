//! What stock Postgres keeps over a clean restart and WAL does not carry: free space maps, statistics, exact sequence values, unlogged
//! tables, and what `ALTER SYSTEM` wrote.

use std::fs;
use std::path::{Path, PathBuf};

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options, sql, wait_until};

/// What of it can be seen: what `ALTER SYSTEM` set, rows of the unlogged table, free space of an own table and one of production's, rows that
/// statistics know of.
const SEEN: &str = "select current_setting('work_mem'), (select count(*) from u), (select max(n) from u where n > 0),
    (select sum(avail) > 0 from pg_freespace('own')), (select sum(avail) > 0 from pg_freespace('t')),
    (select n_tup_ins from pg_stat_user_tables where relname = 'own')";

fn start() -> (TestPg, House, String) {
    let production = TestPg::start(production_options());
    production.sql("create extension pg_freespacemap; create sequence s; create table t (n int, filler text)");
    production.sql("insert into t select n, repeat('x', 300) from generate_series(1, 2000) n");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("one", "main");
    (production, house, branch)
}

/// Leaves something of everything.
fn leave(url: &str) {
    sql(url, "create table own (n int, filler text)");
    sql(url, "insert into own select n, repeat('y', 300) from generate_series(1, 2000) n");
    sql(url, "delete from own where n % 2 = 0; delete from t where n % 2 = 0");
    sql(url, "vacuum own, t");
    sql(url, "create unlogged table u (n int primary key, filler text)");
    sql(url, "insert into u select n, repeat('z', 300) from generate_series(1, 1000) n; delete from u where n > 900");
    sql(url, "vacuum u");
    sql(url, "alter system set work_mem = '7MB'");
    assert_eq!(sql(url, "select nextval('s'), nextval('s'), nextval('s')"), "1|2|3");
}

fn suspend(house: &House) {
    house.ok(&["branch", "suspend", "one"]);
}

/// Wakes the branch cold, on a host that has seen nothing of it.
fn lose_folders(house: &House) {
    suspend(house);
    house.throw_computes_away();
}

fn kill_postgres(house: &House) {
    let postmaster = house.compute_processes().into_iter().find(|process| process.is_postmaster()).expect("it runs");
    postmaster.kill();
    wait_until("Postgres is gone", 30, || (!postmaster.runs()).then_some(()));
}

/// The objects of kept states, of all branches.
fn kept(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the store can be listed") {
        let path = entry.expect("the store can be listed").path();
        if path.is_dir() {
            kept(&path, found);
        } else if path.components().any(|part| part.as_os_str() == "kept") {
            found.push(path);
        }
    }
}

fn kept_objects(house: &House) -> Vec<PathBuf> {
    let mut found = Vec::new();
    kept(&house.data_dir().join("pageserver/store"), &mut found);
    found
}

#[test]
fn a_clean_suspend_is_as_a_clean_restart_and_a_crash_as_a_crash() {
    let (_production, house, one) = start();
    leave(&one);
    lose_folders(&house);
    let seen = sql(&one, SEEN);
    assert_eq!(seen, "7MB|900|900|t|t|2000");
    // The index on the unlogged table is one with it, and the sequence goes on where it was.
    assert_eq!(sql(&one, "set enable_seqscan = off; select n from u where n = 77"), "77");
    assert_eq!(sql(&one, "select nextval('s')"), "4");
    assert_eq!(sql(&one, "insert into u values (5000, ''); select max(n) from u"), "5000");

    // A crash: what was kept before is older than the log.
    kill_postgres(&house);
    assert_eq!(sql(&one, SEEN), "7MB|0||f|f|0", "as after a crash of stock, but for what ALTER SYSTEM wrote");
    assert!(sql(&one, "select nextval('s')").parse::<i64>().expect("a number") > 4, "never the same value twice");
    sql(&one, "insert into u values (1, ''), (2, '')");

    // A branch made where a compute was stopped is not that compute's.
    suspend(&house);
    let two = house.branch("two", "one");
    assert_eq!(sql(&two, "select count(*) from u"), "0");
    assert_eq!(sql(&two, "insert into u values (7, ''); select n from u"), "7");
    house.ok(&["branch", "suspend", "two"]);
    house.throw_computes_away();
    assert_eq!(sql(&one, "select count(*) from u"), "2");
    assert_eq!(sql(&two, "select n from u"), "7");
    house.ok(&["branch", "delete", "two"]);

    // From a warm folder it goes on, and what was kept is not its state any more, though the log may be where it was.
    suspend(&house);
    assert_eq!(sql(&one, "select count(*) from u"), "2");
    kill_postgres(&house);
    assert_eq!(sql(&one, "select count(*) from u"), "0");
    assert_eq!(sql(&one, "show work_mem"), "7MB");

    suspend(&house);
    house.ok(&["branch", "delete", "one"]);
    assert_eq!(kept_objects(&house), Vec::<PathBuf>::new(), "it goes with the branch");
}

#[test]
fn what_was_kept_and_is_damaged_is_as_a_crash() {
    let (_production, house, one) = start();
    leave(&one);
    lose_folders(&house);
    let part = kept_objects(&house).into_iter().find(|path| !path.ends_with("head")).expect("there is a part");
    let mut bytes = fs::read(&part).expect("it can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&part, bytes).expect("it can be written");
    assert_eq!(sql(&one, "select count(*) from u"), "0");
    assert_eq!(sql(&one, "select count(*) from own"), "1000");
    assert!(sql(&one, "select nextval('s')").parse::<i64>().expect("a number") > 3);
    // The next one is good again.
    sql(&one, "insert into u values (1, '')");
    lose_folders(&house);
    assert_eq!(sql(&one, "select n from u"), "1");
}
