//! Storage misbehaves under a running server: who is concerned hears what it is and what to do, the others go on, nothing is lost.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ardent_test_pg::TestPg;
use ardent_tests::{House, Relay, Session, production_options, sql, try_sql, wait_until};

fn production() -> TestPg {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key, filler text)");
    production.sql("insert into t select n, repeat(md5(n::text), 30) from generate_series(1, 5000) n");
    production
}

const WHOLE: &str = "select count(*), sum(length(filler)) from t";
const WHOLE_IS: &str = "5000|4800000";

#[test]
fn a_page_server_that_stops_answering_in_the_middle_of_a_query() {
    let production = production();
    let mut house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let (first, cold) = (house.branch("first", "main"), house.branch("cold", "main"));
    let update = "update t set filler = filler where n = 7 returning n";
    assert_eq!((sql(&first, WHOLE), sql(&first, update)), (WHOLE_IS.to_owned(), "7".to_owned()));
    let relay = Relay::in_front_of(&house.data_dir().join("run/pageserver.sock"));
    assert_eq!(sql(&cold, "select n from t where n = 1"), "1");

    relay.hold_all();
    let error = try_sql(&cold, "set ardent.fetch_timeout = '1s'; select sum(length(filler)) from t")
        .expect_err("pages are missing");
    for word in ["page server", "block", "relation", "No answer", "HINT"] {
        assert!(error.contains(word), "no {word:?} in {error}");
    }
    // A branch that has the pages it needs notices nothing: it can be read and written.
    assert_eq!(sql(&first, WHOLE), WHOLE_IS);
    assert_eq!(sql(&first, update), "7");
    relay.release();
    assert_eq!(sql(&cold, WHOLE), WHOLE_IS, "the same compute goes on");

    // The whole server is killed while a query waits for a page.
    house.ok(&["branch", "create", "another", "--from", "main"]);
    let another = house.ok(&["branch", "info", "another", "--print-url"]);
    assert_eq!(sql(&another, "insert into t values (6000, '') returning n"), "6000");
    let active = "select count(*) from pg_stat_activity where application_name = 'scan' and state = 'active' \
         and query like 'select sum%'";
    assert_eq!(sql(&another, active), "0");
    relay.hold_all();
    let mut session = Session::start(&another, "scan", &["select sum(length(filler)) from t"]);
    wait_until("the scan waits for a page", 30, || {
        assert!(session.is_busy(), "it has been answered");
        (sql(&another, active) == "1").then_some(())
    });
    house.kill_server();
    relay.release();
    let said = session.finish();
    assert!(!said.ok && said.output.is_empty(), "{said:?}");
    assert!(said.errors.contains("closed") || said.errors.contains("EOF"), "{said:?}");
    house.up();
    assert_eq!(sql(&another, "select count(*), sum(length(filler)) from t"), "5001|4800000");
    assert_eq!(sql(&first, WHOLE), WHOLE_IS);
}

/// The largest layer file of a branch.
fn largest_layer(house: &House, branch: &str) -> PathBuf {
    let info = house.json(&["branch", "info", branch]);
    let word = |name: &str| info[name].as_str().unwrap_or_else(|| panic!("no {name} in {info}")).to_owned();
    let timelines = house.data_dir().join("pageserver/store/timelines");
    let layers = timelines.join(word("tenant_id")).join(word("timeline_id")).join("layers");
    let files = fs::read_dir(&layers).expect("the branch has layers").filter_map(Result::ok);
    let length = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    files.map(|entry| entry.path()).max_by_key(length).expect("the branch has a layer")
}

fn flip_a_bit(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).expect("the file can be opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("the file is that long");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("the file can be written");
}

#[test]
fn a_damaged_layer_file_concerns_only_who_reads_it() {
    let production = production();
    let mut house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let (victim, other) = (house.branch("victim", "main"), house.branch("other", "main"));
    sql(&victim, "create table own (n int primary key, filler text)");
    let words = "(select string_agg(md5((n * i)::text), '') from generate_series(1, 28) i)";
    sql(&victim, &format!("insert into own select n, {words} from generate_series(1, 8000) n"));
    sql(&other, "create table own as select generate_series(1, 100) n");
    let own = "select count(*), sum(length(filler)) from own";
    let own_is = sql(&victim, own);
    // In order: what is in memory becomes layers, and nothing is cached afterwards.
    house.stop();
    house.up();
    house.throw_computes_away();

    let layer = largest_layer(&house, "victim");
    let name = layer.file_name().expect("a file has a name").to_string_lossy().into_owned();
    let length = fs::metadata(&layer).expect("it is there").len();
    let saved = fs::read(&layer).expect("it can be read");
    assert!(length > 1 << 20, "{name} has {length} bytes");

    flip_a_bit(&layer, length / 2);
    let error = try_sql(&victim, own).expect_err("a page of it cannot be rebuilt");
    for word in [name.as_str(), "corrupt", "restore the file", "block"] {
        assert!(error.contains(word), "no {word:?} in {error}");
    }
    // The rest of that branch, the other one and new ones go on.
    assert_eq!(sql(&victim, WHOLE), WHOLE_IS);
    assert_eq!(sql(&victim, "insert into own values (0, '') returning n"), "0");
    assert_eq!(sql(&other, WHOLE), WHOLE_IS);
    assert_eq!(sql(&other, "select count(*) from own"), "100");
    let fresh = house.branch("fresh", "main");
    assert_eq!(sql(&fresh, WHOLE), WHOLE_IS);
    house.ok(&["status"]);

    // The file comes back from a copy: nothing was lost, and nobody has to restart anything.
    fs::write(&layer, &saved).expect("it can be written");
    assert_eq!(sql(&victim, "delete from own where n = 0 returning n"), "0");
    assert_eq!(sql(&victim, own), own_is);

    house.stop();
    house.up();
    house.throw_computes_away();
    let file = File::options().write(true).open(&layer).expect("it can be opened");
    file.set_len(length / 2).expect("it can be cut");
    let error = try_sql(&victim, own).expect_err("what the layer held is gone");
    for word in [name.as_str(), "corrupt", "restore the file"] {
        assert!(error.contains(word), "no {word:?} in {error}");
    }
    assert_eq!(sql(&other, "select count(*) from own"), "100");
    assert_eq!(sql(&fresh, WHOLE), WHOLE_IS);
    fs::write(&layer, &saved).expect("it can be written");
    assert_eq!(sql(&victim, own), own_is);
}

/// Takes away, or gives back, the right to write below `path`.
fn set_writable(path: &Path, writable: bool) {
    let mode = if writable { 0o700 } else { 0o500 };
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("own folders can be changed");
    for entry in fs::read_dir(path).expect("the folder can be listed").filter_map(Result::ok) {
        if entry.path().is_dir() {
            set_writable(&entry.path(), writable);
        }
    }
}

#[test]
fn an_object_store_that_cannot_be_written_loses_nothing() {
    let production = production();
    let mut house = House::prepare_unprivileged();
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("work", "main");
    sql(&branch, "create table own as select generate_series(1, 1000) n");
    let store = house.data_dir().join("pageserver/store");

    // As a crash leaves it: it cannot be removed at the next start.
    fs::write(store.join(".tmp/1-1"), "half of it").expect("a file can be written");
    set_writable(&store, false);
    let refused = house.ardent(&["branch", "create", "more", "--from", "main"]);
    refused.refused(1, &["object store", "write access"]);
    // What is there goes on: reads, and commits, which the safekeeper has.
    assert_eq!(sql(&branch, WHOLE), WHOLE_IS);
    sql(&branch, "insert into own select generate_series(1001, 2000)");
    production.sql("insert into t values (5001, '')");
    assert_eq!(house.ardent(&["branch", "info", "more"]).code, 5, "a branch that could not be made is not there");
    house.stop();
    // Started again like that, it says the same to everybody who needs something to be durable.
    house.up();
    let refused = try_sql(&branch, "select count(*) from own").expect_err("what it reads cannot be pinned");
    assert!(refused.contains("object store") && refused.contains("write access"), "{refused}");
    let refused = house.ardent(&["branch", "create", "more", "--from", "main"]);
    refused.refused(1, &["object store", "write access"]);
    house.stop();

    set_writable(&store, true);
    house.up();
    assert_eq!(sql(&branch, "select count(*) from own"), "2000");
    let more = house.branch("more", "main");
    assert_eq!(sql(&more, "select count(*) from t"), "5001");
}

#[test]
fn who_makes_a_branch_hears_what_it_waits_for() {
    let production = production();
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let relay = Relay::in_front_of(&house.data_dir().join("run/safekeeper.sock"));
    relay.hold_all();
    let refused = house.ardent(&["branch", "create", "late", "--from", "main"]);
    refused.refused(1, &["still waiting for branch late: the page server", "safekeeper", "ardent status"]);
    assert_eq!(refused.stdout, "");
    // One line of JSON, for who reads that.
    let refused = house.ardent(&["--json", "branch", "create", "later", "--from", "main"]);
    assert_eq!((refused.code, refused.stdout.as_str(), refused.stderr.lines().count()), (1, "", 1), "{refused:?}");
    relay.release();
    house.branch("at-once", "main");
}

#[test]
fn a_store_without_room_refuses_an_import_and_goes_on() {
    let (small, large) = (production(), production());
    let words = "(select string_agg(md5((n * i)::text), '') from generate_series(1, 28) i)";
    large.sql("create table more (n int, filler text)");
    large.sql(&format!("insert into more select n, {words} from generate_series(1, 50000) n"));
    let house = House::start_with_store_of(16 << 20);
    let url = large.tcp_url("postgres", "postgres");
    let refused = house.ardent(&["connector", "create", "postgresql", &url, "--name", "large", "--fast"]);
    refused.refused(1, &["object store", "free space", "connector create"]);
    // It took nothing that it did not give back, here and in production.
    assert_eq!(house.json(&["connector", "list"])["connectors"], serde_json::json!([]));
    assert_eq!(house.json(&["status"])["connectors"], 0);
    assert_eq!(large.sql("select count(*) from pg_replication_slots"), "0");
    house.connect("small", &small.tcp_url("postgres", "postgres"));
    let branch = house.branch("work", "small");
    assert_eq!(sql(&branch, WHOLE), WHOLE_IS);
}
