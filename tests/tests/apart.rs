//! The roles as processes of their own, three safekeepers among them: one of these may die, and so may the page server.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use ardent_test_pg::{StopMode, TestPg};
use ardent_tests::{Apart, Session, production_options, side_by_side, sql, wait_until};

#[test]
fn a_safekeeper_and_the_page_server_die_and_no_commit_is_lost() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key); insert into t select generate_series(1, 1000)");
    let mut apart = Apart::start();
    let url = production.tcp_url("postgres", "postgres");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "main", "--fast"]);
    let branch = apart.ok(&["branch", "create", "one", "--from", "main", "--print-url"]);
    sql(&branch, "insert into t values (5001)");

    apart.kill("safekeeper-2");
    sql(&branch, "insert into t values (5002)");
    apart.ok(&["branch", "suspend", "one"]);
    assert_eq!(sql(&branch, "select count(*) from t"), "1002", "two of three elect a new writer");

    // What the page server has not stored comes again from the safekeepers. Meanwhile nothing but reading cold blocks needs it.
    apart.kill("pageserver");
    sql(&branch, "insert into t values (5003)");
    apart.up("pageserver");
    apart.up("safekeeper-2");
    apart.kill("safekeeper-3");
    sql(&branch, "insert into t values (5004)");
    apart.ok(&["branch", "suspend", "one"]);
    let held = "select count(*), max(n) from t";
    assert_eq!(sql(&branch, held), "1004|5004", "the second caught up, and makes a quorum with the first");

    apart.up("safekeeper-3");
    let child = apart.ok(&["branch", "create", "two", "--from", "one", "--print-url"]);
    assert_eq!(sql(&child, held), "1004|5004");
    apart.ok(&["branch", "delete", "two", "one"]);

    // What is between hosts is known by its key, and computes take pages from this host alone.
    let (key, token, folder) = ("--key=none", "--token-file=none", "--data-dir=none");
    let without_key = apart.ardent(&["pageserver", folder, key, token, "--listen=unix:none", "--safekeeper=tls:h:1"]);
    without_key.refused(2, &["tls:h:1", "64 digits"]);
    let elsewhere = apart.ardent(&["pageserver", folder, key, token, "--listen=tls:h:1", "--safekeeper=unix:none"]);
    elsewhere.refused(2, &["the host of its computes"]);
    apart.ardent(&["control", "--pageserver=tls:h:1"]).refused(2, &["the host of its computes"]);
}

#[test]
fn one_safekeeper_or_a_quorum_is_away_for_a_while() {
    // One waits until control tries again what could not be done, the other until a receiver lets go.
    side_by_side(&[
        ("one is away", with_one_safekeeper_away_branches_are_made_compared_and_deleted_and_it_is_told_later),
        ("a quorum is away", without_a_quorum_production_still_stops_and_nothing_of_it_is_lost),
    ]);
}

fn with_one_safekeeper_away_branches_are_made_compared_and_deleted_and_it_is_told_later() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key); insert into t select generate_series(1, 100)");
    let mut apart = Apart::start();
    let url = production.tcp_url("postgres", "postgres");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "main", "--fast"]);
    let old = apart.ok(&["branch", "create", "old", "--from", "main", "--print-url"]);
    sql(&old, "insert into t values (1001)");
    assert_eq!(apart.timelines("safekeeper-2").len(), 2);

    apart.kill("safekeeper-2");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "beside", "--fast"]);
    let beside = apart.ok(&["branch", "create", "of-beside", "--from", "beside", "--print-url"]);
    sql(&beside, "insert into t values (4001)");
    let one = apart.ok(&["branch", "create", "one", "--from", "main", "--print-url"]);
    sql(&one, "insert into t values (2001)");
    // Of a branch whose ancestor the one that is away does not have either.
    let two = apart.ok(&["branch", "create", "two", "--from", "one", "--print-url"]);
    sql(&two, "insert into t values (3001)");
    let diff: serde_json::Value =
        serde_json::from_str(&apart.ok(&["branch", "diff", "two", "--json"])).expect("it is JSON");
    let rows = diff["databases"][0]["tables"][0]["rows"].as_array().expect("rows");
    assert!(rows.len() == 1 && rows[0].to_string().contains("3001"), "{diff}");
    apart.ok(&["branch", "delete", "old", "--for-good"]);
    apart.ok(&["branch", "suspend", "two"]);
    assert_eq!(apart.timelines("safekeeper-2").len(), 2, "it has the deleted branch and lacks the new ones");

    // Control remembers what it has to tell, also over its own death.
    apart.kill("control");
    apart.up("control");
    apart.up("safekeeper-2");
    wait_until("the second safekeeper has what the others have", 60, || {
        (apart.timelines("safekeeper-2") == apart.timelines("safekeeper-1")).then_some(())
    });
    assert_eq!(apart.timelines("safekeeper-2").len(), 5, "both roots, and the branches of the first and the second");
    apart.kill("safekeeper-3");
    assert_eq!(sql(&two, "select count(*), max(n) from t"), "102|3001", "it makes a quorum with the first");
    // Of a production that was connected while it was away.
    production.sql("insert into t values (5001)");
    apart.ok(&["branch", "suspend", "of-beside"]);
    assert_eq!(sql(&beside, "select count(*), max(n) from t"), "101|4001");
    let now = apart.ok(&["branch", "create", "now", "--from", "beside", "--print-url"]);
    assert_eq!(sql(&now, "select count(*), max(n) from t"), "101|5001");
    sql(&two, "insert into t values (3002)");

    // What the first and the third wrote while it was away comes from the first, which the page server may not ask first.
    for name in ["one", "two"] {
        apart.ok(&["branch", "suspend", name]);
    }
    apart.up("safekeeper-3");
    apart.kill("pageserver");
    apart.kill("safekeeper-1");
    apart.up("pageserver");
    let three = apart.ok(&["branch", "create", "three", "--from", "two", "--print-url"]);
    assert_eq!(sql(&three, "select count(*), max(n) from t"), "103|3002");
    apart.up("safekeeper-1");

    // With two away no branch can be made, nor what was begun of one be undone. It is said, and the branch is not shown as one that is there.
    apart.kill("safekeeper-2");
    apart.kill("safekeeper-3");
    let refused = apart.ardent(&["branch", "create", "ghost", "--from", "one", "--at", "latest"]);
    refused.refused(1, &["what was begun of branch ghost is undone as soon as storage answers again"]);
    assert!(!refused.stderr.contains("nothing was changed"), "{}", refused.stderr);
    let listed = apart.ok(&["branch", "list"]);
    let line = listed.lines().find(|line| line.starts_with("ghost ")).expect("it is listed until it is undone");
    assert!(line.contains("undoing"), "{line}");
    let shown: serde_json::Value =
        serde_json::from_str(&apart.ok(&["branch", "info", "ghost", "--json"])).expect("it is JSON");
    assert_eq!((&shown["state"], &shown["url"]), (&"deleting".into(), &"".into()), "{shown}");
    assert_eq!(apart.ardent(&["branch", "info", "ghost", "--print-url"]).code, 5);
    apart.ardent(&["branch", "create", "ghost", "--from", "one"]).refused(6, &["could not be made", "not undone yet"]);
    apart.up("safekeeper-2");
    apart.up("safekeeper-3");
    wait_until("what was begun is undone", 60, || (apart.ardent(&["branch", "info", "ghost"]).code == 5).then_some(()));
    apart.ok(&["branch", "delete", "three", "two", "one"]);
}

/// Nobody makes pages of it for a while: the safekeepers' disks do not fill, and nothing of it is lost.
#[test]
fn wal_that_no_page_server_takes_goes_to_the_store_and_comes_back_from_there() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key, filler text); insert into t values (0, repeat(md5('0'), 30))");
    let mut apart = Apart::start_with_archive();
    let url = production.tcp_url("postgres", "postgres");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "main", "--fast"]);
    let root = apart.timelines("safekeeper-1");
    let branch = apart.ok(&["branch", "create", "one", "--from", "main", "--print-url"]);
    // All that the rest of it needs to be there.
    let write = |from: u32, to: u32| {
        sql(&branch, &format!("insert into t select n, repeat(md5(n::text), 30) from generate_series({from}, {to}) n"));
    };
    write(1, 1000);
    let held = "select count(*), sum(hashtext(filler)::bigint), sum(n::bigint) from t";
    sql(&branch, held);
    let timelines = apart.timelines("safekeeper-1");
    let timeline = timelines.difference(&root).next().expect("the branch's").clone();

    apart.kill("pageserver");
    for at in 1..=8 {
        write(at * 10_000, at * 10_000 + 9_999);
    }
    // Some 90 MB; two segments behind the one that is written to are kept, whoever has them.
    let archived = "pageserver/store/timelines";
    for safekeeper in ["safekeeper-1", "safekeeper-2", "safekeeper-3"] {
        wait_until("a safekeeper trims what is archived", 60, || {
            (apart.wal_files(safekeeper, &timeline) <= 4).then_some(())
        });
    }
    assert!(apart.wal_files(archived, &timeline) >= 4, "{} segments", apart.wal_files(archived, &timeline));
    apart.kill("safekeeper-1");
    apart.up("safekeeper-1");
    apart.up("pageserver");
    let expected = sql(&branch, held);
    let two = apart.ok(&["branch", "create", "two", "--from", "one", "--print-url"]);
    assert_eq!(sql(&two, held), expected);
    assert!(expected.starts_with("81001|"), "{expected}");
    apart.ok(&["branch", "delete", "two", "one", "--for-good"]);
    wait_until("its WAL goes with the branch", 60, || (apart.wal_files(archived, &timeline) == 0).then_some(()));
}

/// A server that is told to stop waits for its receivers to confirm what it has sent: ours must let go when it cannot.
fn without_a_quorum_production_still_stops_and_nothing_of_it_is_lost() {
    let mut production = TestPg::start(production_options());
    production.sql("create table t (n int primary key)");
    let mut apart = Apart::start();
    let url = production.tcp_url("postgres", "postgres");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "main", "--fast"]);

    apart.signal("safekeeper-1", Signal::SIGSTOP);
    apart.kill("safekeeper-2");
    production.sql("insert into t values (1)");
    production.stop(StopMode::Fast);
    apart.signal("safekeeper-1", Signal::SIGCONT);
    apart.up("safekeeper-2");
    production.start_server();

    let branch = apart.ok(&["branch", "create", "one", "--from", "main", "--print-url"]);
    assert_eq!(sql(&branch, "select n from t"), "1");
    let status: serde_json::Value =
        serde_json::from_str(&apart.ok(&["connector", "status", "main", "--json"])).expect("it is JSON");
    assert_eq!(status["following"], true, "{status}");
}

#[test]
fn halted_safekeepers_acknowledge_nothing_and_a_query_outlives_the_page_server() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key, filler text)");
    production.sql("insert into t select n, repeat(md5(n::text), 30) from generate_series(1, 5000) n");
    let mut apart = Apart::start();
    let url = production.tcp_url("postgres", "postgres");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "main", "--fast"]);
    let branch = apart.ok(&["branch", "create", "one", "--from", "main", "--print-url"]);
    let waiting = "select count(*) from pg_stat_activity where application_name = 'writer' and wait_event = 'SyncRep'";
    let scanning = "select count(*) from pg_stat_activity where application_name = 'reader' and state = 'active'";
    sql(&branch, "insert into t values (-1)");
    assert_eq!((sql(&branch, waiting), sql(&branch, scanning)), ("0".to_owned(), "0".to_owned()));

    // Two of three keep their sockets and answer nothing.
    apart.signal("safekeeper-1", Signal::SIGSTOP);
    apart.signal("safekeeper-3", Signal::SIGSTOP);
    let mut writer = Session::start(&branch, "writer", &["insert into t values (-2)"]);
    wait_until("the commit waits for the quorum", 30, || (sql(&branch, waiting) == "1").then_some(()));
    writer.cancel();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(writer.is_busy(), "one of three is no quorum");
        assert_eq!(sql(&branch, "select min(n) from t"), "-1");
    }
    apart.signal("safekeeper-1", Signal::SIGCONT);
    let said = writer.finish();
    // psql itself says that it was interrupted; the commit was not.
    assert_eq!(said.output, "INSERT 0 1", "{said:?}");
    assert_eq!(sql(&branch, "select min(n) from t"), "-2");
    apart.signal("safekeeper-3", Signal::SIGCONT);

    // A scan of blocks that are not there yet, in the middle of which the page server is killed.
    apart.signal("pageserver", Signal::SIGSTOP);
    let mut reader = Session::start(&branch, "reader", &["select count(*), sum(length(filler)) from t"]);
    wait_until("the scan waits for pages", 30, || {
        assert!(reader.is_busy(), "it has been answered");
        (sql(&branch, scanning) == "1").then_some(())
    });
    apart.kill("pageserver");
    assert!(reader.is_busy(), "it waits for the page server to come back");
    apart.up("pageserver");
    let said = reader.finish();
    assert_eq!((said.ok, said.output.as_str()), (true, "5002|4800000"), "{said:?}");
}
