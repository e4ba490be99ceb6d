//! Drills: what was lost is made anew, by the commands of docs/operations.md, "When something is lost".

use std::fs;
use std::path::Path;

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options, sql, try_sql, wait_until};

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("a folder can be listed") {
        let entry = entry.expect("a folder can be listed");
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &to);
        } else {
            fs::copy(&path, &to).expect("a file can be copied");
        }
    }
}

/// Whether a file below a folder holds a text. Files come and go meanwhile.
fn is_stored(folder: &Path, text: &str) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.into_iter().any(|path| {
        let holds = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(text);
        if path.is_dir() { is_stored(&path, text) } else { fs::read(&path).is_ok_and(holds) }
    })
}

/// The host with everything on it but the store and two of three safekeepers' disks: control's database and keys, the page server's
/// disk, a safekeeper, and the computes with what they had in memory.
#[test]
fn a_host_that_is_lost_comes_back_from_the_store_and_two_safekeepers() {
    let production = TestPg::start(production_options());
    production.sql("create table shop (id int primary key, name text); insert into shop values (1, 'one')");
    let store = tempfile::tempdir().expect("a folder");
    let url = format!("file:{}", store.path().join("pages").display());
    let arguments = ["--store", &url, "--safekeepers", "3", "--keep-deleted", "1h", "--wal-archive", "on"];
    let mut house = House::prepare().with_arguments(&arguments);
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let one = house.branch("one", "main");
    let two = house.branch("two", "one");
    house.branch("gone", "main");
    house.ok(&["branch", "delete", "gone"]);
    house.ok(&["branch", "checkpoint", "create", "one", "--name", "empty-handed"]);
    sql(&one, "insert into shop values (2, 'two'); create table own as select generate_series(1, 5000) n");
    house.ok(&["branch", "policy", "two", "--read-only"]);
    sql(&two, "select 1");
    // What changes about a branch is in its manifest a moment later.
    wait_until("the limit is in the store", 20, || is_stored(store.path(), "\"read_only\":true").then_some(()));
    wait_until("the checkpoint is", 20, || is_stored(store.path(), "\"label\":\"empty-handed\"").then_some(()));
    // The last commits are nowhere but on the safekeepers.
    house.kill_server();

    let mut other = House::prepare().with_arguments(&arguments);
    let (data, from) = (other.data_dir(), house.data_dir());
    for safekeeper in ["safekeeper", "safekeeper-3"] {
        copy_folder(&from.join(safekeeper), &data.join(safekeeper));
    }
    let dir = data.to_string_lossy().into_owned();
    other.ardent(&["recover", "safekeeper", "2", "--data-dir", &dir]).refused(2, &["--members 3"]);
    let rebuilt = other.json(&["recover", "safekeeper", "2", "--members", "3", "--data-dir", &dir]);
    assert_eq!(rebuilt["timelines"].as_array().map(Vec::len), Some(4), "{rebuilt}");
    other.ardent(&["recover", "safekeeper", "2", "--data-dir", &dir]).refused(6, &["nothing is lost"]);
    // It is not begun anew beside what is left; and where that was done, what knows nothing is not in the way.
    let command = format!("ardent recover control --data-dir {dir} --store '{url}'");
    let refused = |house: &House, words: &[&str]| {
        let (listen, api) = house.ports();
        let arguments = house.up_arguments(listen, api);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        house.ardent(&arguments).refused(6, words);
    };
    refused(&other, &["control.db is gone", "has WAL of branches", &command]);
    let fresh = House::prepare().with_arguments(&arguments);
    refused(&fresh, &["the store has the pages of an installation", "ardent recover control", "another prefix"]);
    for name in ["safekeepers", "keys", "ardent.lock"] {
        assert!(!fresh.data_dir().join(name).exists(), "{name}: nothing was begun there");
    }
    let mut blank = House::start();
    blank.stop();
    fs::copy(blank.data_dir().join("control.db"), data.join("control.db")).expect("a file can be copied");
    let recovered = other.json(&["recover", "control", "--data-dir", &dir, "--store", &url]);
    assert_eq!(recovered["connectors"][0]["has_url"], false, "{recovered}");
    let names: Vec<_> =
        recovered["branches"].as_array().expect("a list").iter().map(|branch| &branch["name"]).collect();
    assert_eq!(names, ["gone", "one", "two"]);
    other.ardent(&["recover", "control", "--data-dir", &dir, "--store", &url]).refused(6, &["nothing is lost"]);
    other.up();

    // The passwords that people have are good, on other ports.
    let at = |url: &str| url.replace(&format!(":{}", house.ports().0), &format!(":{}", other.ports().0));
    let (one, two) = (at(&one), at(&two));
    assert_eq!(sql(&one, "select (select count(*) from shop), (select count(*) from own)"), "2|5000");
    assert_eq!(sql(&two, "select count(*) from shop"), "1");
    let refused = try_sql(&two, "create table x ()").expect_err("the limit is back too");
    assert!(refused.contains("read"), "{refused}");
    other.ok(&["branch", "undelete", "gone"]);
    let stat = other.ardent(&["branch", "diff", "one", "--stat"]);
    assert!(stat.stdout.contains("5001 inserted"), "{}", stat.stdout);

    // Production is followed again once its URL is known.
    production.sql("insert into shop values (3, 'three')");
    other.ok(&["connector", "move", "main", &production.tcp_url("postgres", "postgres")]);
    let new = other.branch("new", "main");
    assert_eq!(sql(&new, "select count(*) from shop"), "2");
    // Checkpoints are back.
    other.ok(&["branch", "rewind", "one", "empty-handed"]);
    assert_eq!(sql(&one, "select count(*), to_regclass('own') is null from shop"), "1|t");
    other.stop();
}

/// With two of three left the server goes on without the third, says so, and has it back.
#[test]
fn a_safekeepers_disk_that_is_lost_is_said_and_replaced() {
    let production = TestPg::start(production_options());
    let mut house = House::prepare().with_arguments(&["--safekeepers", "3"]);
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let one = house.branch("one", "main");
    sql(&one, "create table t as select 1 as n");
    house.kill_server();
    fs::remove_dir_all(house.data_dir().join("safekeeper")).expect("removed");
    house.up();
    let log = house.log();
    assert!(log.contains("ardent recover safekeeper 1"), "{log}");
    sql(&one, "insert into t values (2)");
    let dir = house.data_dir().to_string_lossy().into_owned();
    house.ardent(&["recover", "safekeeper", "1", "--data-dir", &dir]).refused(6, &["runs a server"]);
    let during = house.branch("during", "one");
    house.stop();
    house.ok(&["recover", "safekeeper", "1", "--data-dir", &dir]);
    // It counts: with another one gone the rest is a quorum that has everything.
    fs::remove_dir_all(house.data_dir().join("safekeeper-2")).expect("removed");
    house.up();
    assert_eq!(sql(&one, "insert into t values (3); select count(*) from t"), "3");
    assert_eq!(sql(&during, "select count(*) from t"), "2");
    house.stop();
    // One alone is none.
    fs::remove_dir_all(house.data_dir().join("safekeeper-3")).expect("removed");
    let (listen, api) = house.ports();
    let arguments = house.up_arguments(listen, api);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    house.ardent(&arguments).refused(1, &["2 of 3 safekeepers", "safekeeper-3"]);
    house.ardent(&["recover", "safekeeper", "2", "--data-dir", &dir]).refused(1, &["2 are needed"]);
}

/// From one safekeeper to three, one of which then may be lost, and back.
#[test]
fn safekeepers_become_more_and_fewer_between_two_starts() {
    let production = TestPg::start(production_options());
    let mut house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let one = house.branch("one", "main");
    sql(&one, "create table t as select 1 as n");
    let dir = house.data_dir().to_string_lossy().into_owned();
    let reconfigure = |count| ["reconfigure", "safekeepers", count, "--data-dir", &dir];
    let nowhere = house.data_dir().join("nowhere").to_string_lossy().into_owned();
    let refused = house.ardent(&["reconfigure", "safekeepers", "3", "--data-dir", &nowhere]);
    refused.refused(5, &["no safekeepers yet", "ardent up"]);
    house.kill_server();

    let third = house.data_dir().join("safekeeper-3");
    fs::create_dir(&third).and_then(|()| fs::write(third.join("mine"), "mine")).expect("written");
    house.ardent(&reconfigure("3")).refused(6, &["safekeeper-3", "move them away"]);
    house.ardent(&reconfigure("2")).refused(2, &["2 must be up for a commit", "safekeepers 1 (or 3)"]);
    fs::remove_file(third.join("mine")).expect("removed");
    // What an attempt left that was cut off is old by now.
    fs::create_dir(third.join("old")).and_then(|()| fs::write(third.join("joining"), "")).expect("written");
    let report = house.json(&reconfigure("3"));
    let folders = report["safekeepers"].as_array().expect("folders");
    assert_eq!((folders.len(), report["timelines"].as_array().map(Vec::len)), (3, Some(2)), "{report}");
    assert!(!third.join("old").exists() && !third.join("joining").exists());

    fs::remove_dir_all(house.data_dir().join("safekeeper")).expect("removed");
    house.up();
    assert_eq!(sql(&one, "insert into t values (2); select count(*) from t"), "2");
    house.stop();
    house.ardent(&reconfigure("1")).refused(1, &["ardent recover safekeeper 1"]);
    house.ok(&["recover", "safekeeper", "1", "--data-dir", &dir]);
    let report = house.json(&reconfigure("1"));
    let left = report["left"].as_array().expect("folders");
    assert_eq!(left.len(), 2, "{report}");
    for folder in left {
        fs::remove_dir_all(folder.as_str().expect("a path")).expect("removed");
    }
    house.up();
    assert_eq!(sql(&one, "insert into t values (3); select count(*) from t"), "3");
    house.stop();
}
