//! Two page servers that believe they own a timeline: one of them goes on, the other stops and says why.

use ardent_test_pg::TestPg;
use ardent_tests::{Apart, production_options, sql, try_sql};

#[test]
fn of_two_page_servers_on_one_store_one_stops_and_serves_nothing_newer() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key); insert into t select generate_series(1, 1000)");
    let mut apart = Apart::start();
    let url = production.tcp_url("postgres", "postgres");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "main", "--fast"]);
    let branch = apart.ok(&["branch", "create", "one", "--from", "main", "--print-url"]);
    sql(&branch, "insert into t values (5001)");

    // Somebody starts a second one on the same store, and control goes over to it. The first one knows nothing of that.
    apart.up("pageserver-2");
    apart.use_page_server("pageserver-2");
    let held = "select count(*), max(n) from t";
    assert_eq!(sql(&branch, held), "1001|5001");
    sql(&branch, "insert into t values (5002)");
    let child = apart.ok(&["branch", "create", "two", "--from", "one", "--print-url"]);
    assert_eq!(sql(&child, held), "1002|5002");

    // Whoever still asks the first one is told, and gets nothing that it does not own.
    apart.use_page_server("pageserver");
    let words = ["was taken over by another page server", "this one stops serving it"];
    apart.ardent(&["branch", "create", "three", "--from", "one"]).refused(1, &words);
    let refused = apart.ardent(&["branch", "wake", "one"]);
    refused.refused(1, &words);
    assert!(try_sql(&branch, "select 1").is_err(), "no session on what it serves");
    let log = apart.log("pageserver");
    assert!(words.iter().all(|word| log.contains(word)), "{log}");

    // The second one has lost nothing by it.
    apart.use_page_server("pageserver-2");
    assert_eq!(sql(&branch, held), "1002|5002");

    // Alone and started again, it has everything: also what the first one took when it was asked for it for the first time.
    apart.kill("pageserver");
    apart.kill("pageserver-2");
    apart.up("pageserver-2");
    assert_eq!((sql(&branch, held), sql(&child, held)), ("1002|5002".to_owned(), "1002|5002".to_owned()));
    let more = apart.ok(&["branch", "create", "four", "--from", "one", "--print-url"]);
    assert_eq!(sql(&more, held), "1002|5002");
}
