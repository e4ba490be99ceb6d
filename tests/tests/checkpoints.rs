//! Checkpoints at the steps of work on a branch, asleep and awake, and rewinds to them.

use ardent_test_pg::TestPg;
use ardent_tests::{House, Session, production_options, sql, wait_until};
use serde_json::{Value, json};

const ROWS: &str = "select coalesce(string_agg(n::text, ',' order by n), 'none') from t";

/// Each checkpoint's label and place.
fn listed(house: &House, branch: &str) -> Vec<String> {
    let list = house.json(&["branch", "checkpoint", "list", branch]);
    let text = |made: &Value| {
        assert!(made["kept"] == true && made["kept_until"].is_string(), "{made}");
        format!("{} {}", made["label"].as_str().expect("a label"), made["place"].as_str().expect("a word"))
    };
    list["checkpoints"].as_array().expect("a list").iter().map(text).collect()
}

#[test]
fn a_branch_goes_back_to_a_step_of_its_work_and_forward_again() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key); create sequence counter");
    let mut house = House::prepare().with_arguments(&["--keep-deleted", "1h"]);
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let work = house.branch("work", "main");
    let none = house.ardent(&["branch", "rewind", "work"]);
    none.refused(5, &["has no checkpoint", "ardent branch checkpoint create work"]);

    // Before it ever ran; while it runs, with a transaction that commits later; asleep again. None of it wakes anything.
    assert_eq!(house.ok(&["branch", "checkpoint", "create", "work"]), "step-1");
    assert_eq!(house.compute_processes(), [], "a checkpoint woke the branch");
    sql(&work, "insert into t values (1)");
    let open = Session::start(&work, "open", &["begin", "insert into t values (2)", "select pg_sleep(600)"]);
    let sleeping = "select count(*) from pg_stat_activity where application_name = 'open' and query like '%pg_sleep%' and state = 'active'";
    wait_until("the transaction has written", 30, || (sql(&work, sleeping) == "1").then_some(()));
    assert_eq!(house.ok(&["branch", "checkpoint", "create", "work", "--name", "open"]), "open");
    drop(open);
    sql(&work, "insert into t values (3); create table later (n int); select nextval('counter')");
    house.ok(&["branch", "suspend", "work"]);
    assert_eq!(house.ok(&["branch", "checkpoint", "create", "work"]), "step-2");
    assert_eq!(house.compute_processes(), [], "a checkpoint woke the branch");
    let taken = house.ardent(&["branch", "checkpoint", "create", "work", "--name", "open"]);
    taken.refused(6, &["already", "ardent branch checkpoint delete work open"]);
    house.ardent(&["branch", "checkpoint", "create", "work", "--name", "0/16B3748"]).refused(2, &["label"]);
    sql(&work, "delete from t where n = 1; insert into t values (4)");
    assert_eq!(listed(&house, "work"), ["step-1 passed", "open passed", "step-2 current"]);
    let stat = house.json(&["branch", "diff", "work", "--since", "step-2", "--stat"]);
    assert_eq!((&stat["inserted"], &stat["deleted"]), (&Value::from(1), &Value::from(1)), "{stat}");
    // At the checkpoint, the sequence is read as it was logged, ahead of what was given out.
    let sequences = |stat: &Value| stat["databases"][0]["sequences"].clone();
    assert_eq!(sequences(&stat), json!([]), "nobody touched it");
    assert_eq!(sql(&work, "select nextval('counter')"), "2");
    let stat = house.json(&["branch", "diff", "work", "--since", "step-2", "--stat"]);
    assert_eq!((&sequences(&stat)[0]["old"], &sequences(&stat)[0]["new"]), (&json!(33), &json!(34)), "{stat}");
    // ALTER SEQUENCE gives it another file, and keeps what was given out: that is not set back.
    assert_eq!(house.ok(&["branch", "checkpoint", "create", "work", "--name", "altered"]), "altered");
    sql(&work, "alter sequence counter cache 1 cycle");
    let stat = house.json(&["branch", "diff", "work", "--since", "altered"]);
    assert_eq!(stat["databases"][0]["sequences"], json!([]), "{stat}");
    sql(&work, "alter sequence counter no cycle restart with 20");
    let stat = house.json(&["branch", "diff", "work", "--since", "altered"]);
    assert_eq!(stat["databases"][0]["sequences"][0]["new"], json!(20), "{stat}");
    house.ok(&["branch", "checkpoint", "delete", "work", "altered"]);
    let list = house.json(&["branch", "checkpoint", "list", "work"]);
    let lsn = list["checkpoints"][2]["lsn"].as_str().expect("an LSN");
    let against = house.json(&["branch", "diff", "work", "--against", lsn, "--stat"]);
    assert_eq!((&against["inserted"], &against["deleted"]), (&Value::from(1), &Value::from(1)), "{against}");

    // To the first, with the page server as a crash leaves it; the same URL.
    house.kill_server();
    house.up();
    let rewound = house.json(&["branch", "rewind", "work", "step-1"]);
    assert_eq!((&rewound["checkpoint"], &rewound["name"]), (&Value::from("step-1"), &Value::from("work")), "{rewound}");
    assert_eq!(sql(&work, ROWS), "none");
    assert_eq!(listed(&house, "work"), ["step-1 current", "open left", "step-2 left"]);
    sql(&work, "insert into t values (9)");
    house.ardent(&["branch", "diff", "work", "--since", "step-2"]).refused(2, &["is not what came of"]);
    // Forward, to the third; to the second, where the open transaction is none; and there again by default.
    house.ok(&["branch", "rewind", "work", "step-2"]);
    assert_eq!(sql(&work, &format!("{ROWS}; select to_regclass('later') is not null")), "1,3\nt");
    house.ok(&["branch", "rewind", "work", "open"]);
    assert_eq!(sql(&work, &format!("{ROWS}; select to_regclass('later') is null")), "1\nt");
    sql(&work, "insert into t values (7)");
    let back = house.json(&["branch", "rewind", "work"]);
    assert_eq!((back["checkpoint"].as_str(), sql(&work, ROWS).as_str()), (Some("open"), "1"));
    // What a rewind left can be had back as after a restore.
    house.ok(&["branch", "restore", "work", "--at", back["undo_at"].as_str().expect("a time")]);
    assert_eq!(sql(&work, ROWS), "1,7");

    let of_which = house.ardent(&["branch", "checkpoint", "delete", "work", "step-1", "zzz"]);
    of_which.refused(5, &["\"zzz\": nothing was deleted", "ardent branch checkpoint list work"]);
    assert_eq!(listed(&house, "work").len(), 3, "step-1 stays");
    let labels = |words: &[&str]| -> Vec<String> {
        house.completed(words).into_iter().filter(|word| !word.starts_with('-')).collect()
    };
    assert_eq!(labels(&["ardent", "branch", "rewind", "work", ""]), ["step-1", "open", "step-2"]);
    assert_eq!(labels(&["ardent", "branch", "rewind", "work", "st"]), ["step-1", "step-2"]);
    assert_eq!(labels(&["ardent", "branch", "checkpoint", "delete", "work", "step-1", "o"]), ["open"]);
    assert_eq!(labels(&["ardent", "branch", "diff", "work", "--since", "st"]), ["step-1", "step-2"]);
    // Without a name it is the environment's branch.
    house = house.with_environment("ARDENT_BRANCH", "work");
    let stat = house.json(&["branch", "diff", "--since", "open", "--stat"]);
    assert_eq!(stat["inserted"], 1, "{stat}");
    let forgot = house.json(&["branch", "checkpoint", "delete", "work", "step-1"]);
    assert_eq!(forgot["deleted"][0], "step-1", "{forgot}");
    house.ardent(&["branch", "rewind", "work", "step-1"]).refused(5, &["no checkpoint", "step-2, open"]);
    house.ok(&["branch", "rename", "work", "done"]);
    assert_eq!(listed(&house, "done"), ["open current", "step-2 left"]);
    house.ok(&["branch", "delete", "done"]);
    house.ok(&["branch", "undelete", "done"]);
    house.ok(&["branch", "rewind", "done", "step-2"]);
    let done = house.ok(&["branch", "info", "done", "--print-url"]);
    assert_eq!(sql(&done, ROWS), "1,3");

    // A rebase gives the branch another history: the checkpoints stay with the one that they are of.
    production.sql("insert into t values (100)");
    let rebased = house.json(&["branch", "rebase", "done"]);
    let kept = rebased["kept_as"].as_str().expect("a name");
    assert_eq!(sql(&done, ROWS), "1,3,100");
    assert_eq!(
        (listed(&house, "done").len(), listed(&house, kept)),
        (0, vec!["open passed".to_owned(), "step-2 current".to_owned()])
    );
    house.ok(&["branch", "rewind", kept, "open"]);
    house.ok(&["branch", "rebase", "done", "--undo"]);
    assert_eq!(sql(&done, ROWS), "1");
    assert_eq!(listed(&house, "done"), ["open current", "step-2 left"]);
    // A branch that comes back before its parent's WAL does waits for that.
    for words in ["panicked", "the state needed to ingest"] {
        assert!(!house.log().contains(words), "{words}: {}", house.log());
    }
}
