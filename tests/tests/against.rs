//! A branch is compared with another branch, with production, and with itself at an earlier LSN.

use ardent_test_pg::TestPg;
use ardent_tests::{House, Session, production_options, sql, wait_until};
use serde_json::{Value, json};

/// A transaction that has written, and waits to commit until it is let.
struct Waiting {
    blocker: Session,
    late: Session,
    url: String,
}

impl Waiting {
    fn start(url: &str, write: &str) -> Waiting {
        let blocker = Session::start(url, "blocker", &["select pg_advisory_lock(7)", "select pg_sleep(3600)"]);
        let holds = "select count(*) from pg_locks where locktype = 'advisory' and granted";
        wait_until("the lock is held", 60, || (sql(url, holds) == "1").then_some(()));
        let late = Session::start(url, "late", &["begin", write, "select pg_advisory_xact_lock(7)", "commit"]);
        let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
        wait_until("the transaction has written", 60, || (sql(url, waits) == "1").then_some(()));
        Waiting { blocker, late, url: url.to_owned() }
    }

    fn commit(self) {
        sql(&self.url, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'blocker'");
        let said = self.late.finish();
        assert!(said.ok, "{said:?}");
        drop(self.blocker);
    }
}

fn rows(report: &Value, table: &str) -> Value {
    let databases = report["databases"].as_array().expect("a list");
    let tables = databases.iter().flat_map(|database| database["tables"].as_array().expect("a list"));
    let found = tables.into_iter().find(|candidate| candidate["name"] == table);
    found.map_or(Value::Null, |table| table["rows"].clone())
}

fn pages_read(report: &Value) -> u64 {
    let number = |name: &str| report[name].as_u64().expect("a number");
    number("pages_read_branch_point") + number("pages_read_head")
}

fn update(old: Value, new: Value) -> Value {
    json!({ "change": "update", "old": old, "new": new })
}

#[test]
fn histories_that_part_are_compared_from_where_they_did() {
    let production = TestPg::start(production_options());
    production.sql(
        "create table t (id int primary key, v text, filler text); insert into t select n, 'value ' || n, repeat('x', 700) from generate_series(1, 300) n;
         create table prepared (id int primary key, v text); insert into prepared values (1, 'one'), (2, 'two');
         create table untouched (id int primary key, v text); insert into untouched values (1, 'x');
         create table renamed (id int primary key, old_name text); insert into renamed values (1, 'one'), (2, null)",
    );
    // It is known where a transaction began, to within the thousand transactions that came before it.
    production.sql("create table big as select n, repeat('x', 900) as filler from generate_series(1, 24000) n");
    let url = production.tcp_url("postgres", "postgres");
    let house = House::start();
    house.connect("main", &url);
    production.sql("do $$ begin for n in 1..2200 loop update untouched set v = v; commit; end loop; end $$");
    production.sql("begin; update prepared set v = 'ONE' where id = 1; prepare transaction 'later'");

    let waiting = Waiting::start(&url, "update t set v = 'late' where id = 200");
    let a = house.branch("a", "main");
    waiting.commit();
    production.sql("commit prepared 'later'");
    production.sql("update t set v = 'production' where id = 1");
    let b = house.branch("b", "main");

    sql(
        &a,
        "update t set v = 'a' where id in (2, 4); alter table untouched add column of_a int default 1;
         alter table renamed rename old_name to new_name; create table made (id int primary key)",
    );
    sql(
        &b,
        "delete from t where id = 3; update t set v = 'a' where id = 4; alter table untouched add column of_b int default 2; create table also_made (x text)",
    );
    sql(&b, "insert into also_made values ('x')");

    let short = |report: &Value| -> Vec<(String, Value)> {
        let rows = rows(report, "t");
        let short = |row: &Value| json!([row[0], row[1]]);
        let rows = rows.as_array().cloned().unwrap_or_default();
        rows.iter()
            .map(|row| {
                (row["change"].as_str().unwrap_or_default().to_owned(), json!([short(&row["old"]), short(&row["new"])]))
            })
            .collect()
    };
    let report = house.json(&["branch", "diff", "a", "--against", "b"]);
    let none = json!([null, null]);
    let expect = vec![
        ("update".to_owned(), json!([["1", "production"], ["1", "value 1"]])),
        ("update".to_owned(), json!([["2", "value 2"], ["2", "a"]])),
        ("update".to_owned(), json!([["200", "late"], ["200", "value 200"]])),
        ("insert".to_owned(), json!([none, ["3", "value 3"]])),
    ];
    assert_eq!(short(&report), expect, "{report}");
    assert!(pages_read(&report) < 2_500, "the table of 3,000 pages, which nobody touched, is not read: {report}");
    assert_eq!(rows(&report, "prepared"), json!([update(json!(["1", "ONE"]), json!(["1", "one"]))]));
    // By name the column is a new one, with values that rows have had all along.
    assert_eq!(rows(&report, "renamed"), json!([update(json!(["1", null]), json!(["1", "one"]))]));
    let people = house.ok(&["branch", "diff", "a", "--against", "b", "--table", "untouched"]);
    assert!(people.contains("new column of_a") && people.contains("dropped column of_b"), "{people}");
    assert!(!people.contains("RENAME"), "{people}");
    // Two things that were made on the two sides, and may well have one number, are two things.
    let tables = report["databases"][0]["tables"].as_array().expect("a list");
    let states: Vec<_> = tables
        .iter()
        .map(|table| (table["name"].as_str().unwrap_or_default(), table["state"].as_str().unwrap_or_default()))
        .collect();
    assert!(states.contains(&("made", "created")) && states.contains(&("also_made", "dropped")), "{states:?}");

    let report = house.json(&["branch", "diff", "b", "--against", "main"]);
    assert_eq!(
        short(&report),
        [
            ("update".to_owned(), json!([["4", "value 4"], ["4", "a"]])),
            ("delete".to_owned(), json!([["3", "value 3"], none])),
        ],
        "{report}"
    );

    // An LSN of its own, with a transaction that runs there and is committed later.
    let waiting = Waiting::start(&a, "update t set v = 'later' where id = 250");
    let lsn = sql(&a, "select pg_current_wal_insert_lsn()");
    waiting.commit();
    sql(&a, "update t set v = 'last' where id = 2");
    let report = house.json(&["branch", "diff", "a", "--against", &lsn]);
    let expect = vec![
        ("update".to_owned(), json!([["2", "a"], ["2", "last"]])),
        ("update".to_owned(), json!([["250", "value 250"], ["250", "later"]])),
    ];
    assert_eq!(short(&report), expect, "{report}");

    house.ardent(&["branch", "diff", "a", "--against", "a"]).refused(2, &["cannot differ from itself"]);
    house.ardent(&["branch", "diff", "a", "--against", "nobody"]).refused(5, &["nobody"]);
    house.ardent(&["branch", "diff", "a", "--against", "FF/0"]).refused(2, &[]);
}
