//! The roles as processes of their own, three safekeepers among them: one of these may die, and so may the page server.

use nix::sys::signal::Signal;

use ardent_test_pg::{StopMode, TestPg};
use ardent_tests::{Apart, production_options, sql};

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
}

/// A server that is told to stop waits for its receivers to confirm what it has sent: ours must let go when it cannot.
#[test]
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
