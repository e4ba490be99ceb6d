//! A scripted set of changes is shown exactly, and read at the cost of the change.

use std::io::BufRead as _;

use ardent_test_pg::TestPg;
use ardent_tests::{House, Session, in_database, production_options, sql, wait_until};
use serde_json::{Value, json};

/// What production holds. Statements are run one by one.
const PRODUCTION: &[&str] = &[
    "create table customers (id serial primary key, name text, note text default 'none')",
    "insert into customers (name) select 'customer ' || n from generate_series(1, 60) n",
    "create table lines (a int, b text, amount numeric, primary key (b, a))",
    "insert into lines select n, 'b' || n % 3, n * 1.5 from generate_series(1, 20) n",
    "create table documents (id int primary key, body text, tag text)",
    "alter table documents alter body set storage external",
    "insert into documents select n, repeat(md5(n::text), 200), 'kept' from generate_series(1, 10) n",
    "create table rewritten (id int primary key, v int)",
    "insert into rewritten select n, n from generate_series(1, 3000) n",
    "create table packed (id int primary key, v int)",
    "insert into packed select n, n from generate_series(1, 3000) n",
    "create table gone (id int primary key, v text)",
    "insert into gone values (1, 'one'), (2, null)",
    "create table emptied (id int primary key)",
    "insert into emptied values (1), (2)",
    "create table keyless (v text)",
    "insert into keyless values ('same'), ('same'), ('old')",
    "create table tail (id int primary key, filler text)",
    "insert into tail select n, repeat('x', 1000) from generate_series(1, 40) n",
    "create table parted (id int, at int, primary key (id, at)) partition by range (at)",
    "create table parted_low partition of parted for values from (0) to (10)",
    "create table parted_high partition of parted for values from (10) to (20)",
    "insert into parted values (1, 1), (2, 2)",
    "create table before_name (id int primary key)",
    "insert into before_name values (1)",
    "create table widened (id int primary key, dropped text)",
    "insert into widened values (1, 'x'), (2, 'y')",
    "create table untouched as select generate_series(1, 1000) n",
    "create table pending (id int primary key, v text)",
    "insert into pending values (1, 'one'), (2, 'two'), (3, 'three')",
    "create sequence counter",
    "select nextval('counter')",
    "vacuum analyze",
];

/// In flight at the branch point: ended on the branch in both ways, and one that is left alone.
const PREPARED: &[&str] = &[
    "begin; insert into pending values (10, 'in flight'); update pending set v = 'ONE' where id = 1; \
     savepoint s; delete from pending where id = 2; prepare transaction 'to be committed'",
    "begin; update customers set name = 'nobody' where id = 59; prepare transaction 'to be rolled back'",
    "begin; insert into lines values (100, 'left', 1); prepare transaction 'left alone'",
];

/// What happens on the branch.
const BRANCH: &[&str] = &[
    "insert into customers (name) values ('new'), (E'tab\\tand ''quotes''')",
    "update customers set name = 'renamed' where id in (2, 11)",
    "update customers set id = 1000 where id = 3",
    "delete from customers where id = 4",
    // Changes that leave nothing to show.
    "update customers set name = 'for a moment' where id = 5",
    "update customers set name = 'customer 5' where id = 5",
    "begin; delete from customers where id < 50; rollback",
    "update lines set amount = null where a = 7",
    "update documents set body = repeat('changed', 1000) where id = 3",
    "update documents set tag = 'touched' where id = 4",
    "insert into documents values (11, repeat('toasted', 900), null)",
    "delete from documents where id = 5",
    "update rewritten set v = -v where id = 1500",
    "alter table rewritten alter v type bigint",
    "vacuum full packed",
    "drop table gone",
    "create table fresh (id int primary key, v text)",
    "insert into fresh values (1, 'hello'), (2, null)",
    "truncate emptied",
    "insert into emptied values (2)",
    "delete from keyless where v = 'old'",
    "insert into keyless values ('same')",
    "delete from tail where id > 35",
    "vacuum tail",
    "update parted set at = 11 where id = 1",
    "alter table before_name rename to after_name",
    "alter table widened add added int default 7",
    "alter table widened drop dropped",
    "update widened set added = 8 where id = 2",
    "commit prepared 'to be committed'",
    "rollback prepared 'to be rolled back'",
    "select nextval('counter')",
];

fn kept(name: &str, columns: &[&str], key: &[&str], rows: Value) -> Value {
    json!({
        "schema": "public", "name": name, "renamed_from": null, "state": "kept", "columns": columns,
        "columns_added": [], "columns_dropped": [], "key": key, "rows": rows,
    })
}

fn with(mut table: Value, field: &str, value: Value) -> Value {
    table[field] = value;
    table
}

fn insert(new: Value) -> Value {
    json!({ "change": "insert", "new": new })
}

fn update(old: Value, new: Value) -> Value {
    json!({ "change": "update", "old": old, "new": new })
}

fn delete(old: Value) -> Value {
    json!({ "change": "delete", "old": old })
}

/// The tables of database `postgres` that the script changes, by name.
fn expected_tables() -> Value {
    let md5_of = |n: u32| match n {
        3 => "eccbc87e4b5ce2fe28308fd9f2a7baf3",
        4 => "a87ff679a2f3e71d9181a67b7542122c",
        _ => "e4da3b7fbbce2345d7772b0674a318d5",
    };
    let body = |n: u32| md5_of(n).repeat(200);
    let filler = "x".repeat(1000);
    json!([
        with(kept("after_name", &["id"], &["id"], json!([])), "renamed_from", json!(["public", "before_name"])),
        kept(
            "customers",
            &["id", "name", "note"],
            &["id"],
            json!([
                update(json!(["11", "customer 11", "none"]), json!(["11", "renamed", "none"])),
                update(json!(["2", "customer 2", "none"]), json!(["2", "renamed", "none"])),
                insert(json!(["1000", "customer 3", "none"])),
                insert(json!(["61", "new", "none"])),
                insert(json!(["62", "tab\tand 'quotes'", "none"])),
                delete(json!(["3", "customer 3", "none"])),
                delete(json!(["4", "customer 4", "none"])),
            ])
        ),
        kept(
            "documents",
            &["id", "body", "tag"],
            &["id"],
            json!([
                update(json!(["3", body(3), "kept"]), json!(["3", "changed".repeat(1000), "kept"])),
                update(json!(["4", body(4), "kept"]), json!(["4", body(4), "touched"])),
                insert(json!(["11", "toasted".repeat(900), null])),
                delete(json!(["5", body(5), "kept"])),
            ])
        ),
        kept("emptied", &["id"], &["id"], json!([delete(json!(["1"]))])),
        with(
            kept("fresh", &["id", "v"], &["id"], json!([insert(json!(["1", "hello"])), insert(json!(["2", null]))])),
            "state",
            json!("created")
        ),
        with(
            kept("gone", &["id", "v"], &["id"], json!([delete(json!(["1", "one"])), delete(json!(["2", null]))])),
            "state",
            json!("dropped")
        ),
        kept("keyless", &["v"], &[], json!([insert(json!(["same"])), delete(json!(["old"]))])),
        kept(
            "lines",
            &["a", "b", "amount"],
            &["b", "a"],
            json!([update(json!(["7", "b1", "10.5"]), json!(["7", "b1", null]))])
        ),
        kept("parted_high", &["id", "at"], &["id", "at"], json!([insert(json!(["1", "11"]))])),
        kept("parted_low", &["id", "at"], &["id", "at"], json!([delete(json!(["1", "1"]))])),
        kept(
            "pending",
            &["id", "v"],
            &["id"],
            json!([
                update(json!(["1", "one"]), json!(["1", "ONE"])),
                insert(json!(["10", "in flight"])),
                delete(json!(["2", "two"])),
            ])
        ),
        kept("rewritten", &["id", "v"], &["id"], json!([update(json!(["1500", "1500"]), json!(["1500", "-1500"]))])),
        kept(
            "tail",
            &["id", "filler"],
            &["id"],
            (36..=40).map(|id: u32| delete(json!([id.to_string(), filler]))).collect()
        ),
        with(
            with(
                kept("widened", &["id", "added"], &["id"], json!([update(json!(["2", "7"]), json!(["2", "8"]))])),
                "columns_added",
                json!(["added"])
            ),
            "columns_dropped",
            json!(["dropped"])
        ),
    ])
}

#[test]
fn every_change_is_shown_exactly_once() {
    let production = TestPg::start(production_options());
    for statement in PRODUCTION.iter().chain(PREPARED) {
        production.sql(statement);
    }
    production.sql("create database other");
    production.sql_in("other", "create table t as select n from generate_series(1, 10) n");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("work", "main");

    let nothing = house.json(&["branch", "diff", "work"]);
    assert_eq!(nothing["databases"], json!([]), "nothing has changed yet");
    assert_eq!(house.ok(&["branch", "diff", "work", "--stat"]), "no changes");

    // None of this is on the branch.
    production.sql("commit prepared 'left alone'");
    production.sql("insert into customers (name) values ('production')");
    for statement in BRANCH {
        sql(&branch, statement);
    }
    sql(&in_database(&branch, "other"), "delete from t where n = 10");

    let report = house.json(&["branch", "diff", "work"]);
    let databases = report["databases"].as_array().expect("a list");
    assert_eq!(databases.len(), 2, "{report}");
    let other = kept("t", &["n"], &[], json!([delete(json!(["10"]))]));
    assert_eq!(databases[0], json!({ "database": "other", "tables": [other], "sequences": [] }));
    let expected = expected_tables();
    let (found, wanted) = (databases[1]["tables"].as_array().expect("a list"), expected.as_array().expect("a list"));
    let names = |tables: &[Value]| tables.iter().map(|table| table["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(found), names(wanted));
    for (found, wanted) in found.iter().zip(wanted) {
        assert_eq!(found, wanted);
    }
    let sequences = databases[1]["sequences"].as_array().expect("a list");
    let names: Vec<_> = sequences.iter().map(|sequence| sequence["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["counter", "customers_id_seq"]);

    // The same changes, asleep or awake, and with a branch of the branch.
    house.ok(&["branch", "suspend", "work"]);
    let again = house.json(&["branch", "diff", "work"]);
    assert_eq!(again["databases"], report["databases"]);
    let child = house.branch("child", "work");
    sql(&child, "update fresh set v = 'child' where id = 2");
    let of_child = house.json(&["branch", "diff", "child"]);
    let change = json!([update(json!(["2", null]), json!(["2", "child"]))]);
    assert_eq!(of_child["databases"][0]["tables"], json!([kept("fresh", &["id", "v"], &["id"], change)]));
    let one = house.json(&["branch", "diff", "work", "--table", "public.gone"]);
    assert_eq!(one["databases"][0]["tables"].as_array().map(Vec::len), Some(1), "{one}");
    unknown_tables_are_mistakes(&house);
    assert_eq!(house.ardent(&["branch", "diff", "work", "--exit-code"]).code, 3);
}

#[test]
fn databases_that_were_renamed_or_closed_stop_no_diff() {
    let production = TestPg::start(production_options());
    production.sql("create database shop");
    production.sql_in("shop", "create table t (id int primary key)");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "shop"));
    let check = |name: &str, statements: &[&str], not_compared: Value| {
        let url = house.branch(name, "main");
        sql(&url, "insert into t values (1)");
        for statement in statements {
            sql(&url, statement);
        }
        let report = house.json(&["branch", "diff", name]);
        let table = kept("t", &["id"], &["id"], json!([insert(json!(["1"]))]));
        assert_eq!(report["databases"][0]["tables"], json!([table]), "{report}");
        assert_eq!(report["databases_not_compared"], not_compared);
        // It lists databases as well, and needs one to do so.
        house.ok(&["branch", "create", name, "--from", "main", "--reindex-collations"]);
    };
    check("renamed", &["alter database template1 rename to elsewhere"], json!(["elsewhere", "template1"]));
    let dropped = ["alter database template1 is_template false", "drop database template1"];
    check("dropped", &dropped, json!(["template1"]));
    let closed =
        ["alter database template1 allow_connections false", "alter database postgres allow_connections false"];
    check("closed", &closed, json!(["postgres", "template1"]));
}

/// A table that neither side has, whether anything changed or not.
fn unknown_tables_are_mistakes(house: &House) {
    let diff = |more: &[&str]| house.ardent(&[&["branch", "diff", "work", "--exit-code"], more].concat());
    let said = diff(&["--table", "public.gone", "--table", "fresch", "--table", "nowhere.nothing"]);
    assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{said:?}");
    assert!(said.stderr.contains("fresch, nowhere.nothing") && said.stderr.contains("public.fresh"), "{said:?}");
    assert!(!said.stderr.contains("public.gone"), "{said:?}");
    for json in [&["--json"][..], &["--ndjson"]] {
        let said = diff(&[json, &["--table", "fresch"]].concat());
        assert_eq!(said.code, 2, "{said:?}");
        let last = format!("{}{}", said.stdout, said.stderr);
        assert!(
            last.contains("invalid_arguments") && last.contains("fresch") && last.contains("public.fresh"),
            "{last}"
        );
    }
}

/// The type of a line.
fn type_of(line: &str) -> String {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    value["type"].as_str().expect("a word").to_owned()
}

/// Rows of each of the two tables of the streamed diff, a kilobyte each.
const STREAMED_ROWS: u64 = 60_000;
/// What a process may grow by while so many times that goes through it: buffers, and what lists may keep in memory.
const STREAM_GROWTH_MAX: u64 = 160 << 20;

#[test]
fn lines_come_while_the_diff_runs_and_the_last_one_says_how_it_ended() {
    let production = TestPg::start(production_options().set("max_wal_size", "4GB"));
    production
        .sql("create table a_first (id int primary key, v text); create table z_last (id int primary key, v text)");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let url = house.branch("work", "main");
    for table in ["a_first", "z_last"] {
        sql(
            &url,
            &format!(
                "insert into {table} select n, repeat(md5(n::text), 32) from generate_series(1, {STREAMED_ROWS}) n"
            ),
        );
    }
    let arguments = ["branch", "diff", "work", "--ndjson"];
    let held = |name: &str| {
        let blocker = Session::start(&url, name, &["begin", "lock table z_last", "select pg_sleep(3600)"]);
        let locks = "select count(*) from pg_locks where relation = 'z_last'::regclass and mode = 'AccessExclusiveLock' and granted";
        wait_until("the table is locked", 60, || (sql(&url, locks) == "1").then_some(()));
        blocker
    };
    let end = |name: &str| {
        sql(&url, &format!("select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{name}'"))
    };

    // The first table is here, whole, before the second can be read.
    let blocker = held("blocker");
    let before = house.memory_peak_bytes();
    let mut running = house.background(&arguments);
    let mut lines = running.output().lines().map(|line| line.expect("text"));
    let mut next = || lines.next().unwrap_or_else(|| panic!("it ended: {}", house.log()));
    assert_eq!(type_of(&next()), "table");
    for _ in 0..STREAMED_ROWS {
        assert_eq!(type_of(&next()), "row");
    }
    assert!(running.runs(), "the second table is locked");
    end("blocker");
    drop(blocker);
    assert_eq!(type_of(&next()), "table");
    for _ in 0..STREAMED_ROWS / 2 {
        next();
    }
    // Far from its end, which takes its numbers along: what is left does not fit into the pipe.
    let command = running.memory_peak_bytes();
    for _ in 0..STREAMED_ROWS / 2 - 1 {
        next();
    }
    assert!(command < STREAM_GROWTH_MAX / 4, "the command held {command} bytes");
    let grown = house.memory_peak_bytes() - before;
    assert!(grown < STREAM_GROWTH_MAX, "the server held {grown} bytes more");
    assert_eq!(type_of(&next()), "row");
    let last: Value = serde_json::from_str(&next()).expect("JSON");
    assert_eq!((last["type"].as_str(), last["branch"].as_str()), (Some("end"), Some("work")), "{last}");
    assert!(last["changed_blocks"].as_u64() > Some(10_000), "{last}");
    assert_eq!(lines.next(), None);
    let finished = running.finish();
    assert_eq!((finished.code, finished.stderr.as_str()), (0, ""));
    assert_eq!(house.ardent(&[&arguments[..], &["--exit-code", "--schema-only"]].concat()).code, 0);
    assert_eq!(house.ardent(&[&arguments[..], &["--exit-code", "--table", "a_first"]].concat()).code, 3);

    // What goes wrong in the middle is the last line, and the exit code.
    let blocker = held("blocker");
    let mut running = house.background(&arguments);
    let mut lines = running.output().lines().map(|line| line.expect("text"));
    for _ in 0..=STREAMED_ROWS {
        lines.next().expect("the first table");
    }
    end("ardent diff");
    let last: Value = serde_json::from_str(&lines.next().expect("a last line")).expect("JSON");
    assert_eq!((last["type"].as_str(), lines.next()), (Some("error"), None), "{last}");
    assert!(last["error"]["message"].as_str().is_some_and(|text| text.contains("terminating connection")), "{last}");
    let finished = running.finish();
    assert!(finished.code == 1 && finished.stderr.contains("terminating connection"), "{finished:?}");

    // Whoever has seen enough leaves nothing running.
    let mut running = house.background(&arguments);
    drop(running.output());
    assert_eq!(running.finish().code, 0);
    end("blocker");
    drop(blocker);
    wait_until("the compute at the branch point is gone", 60, || {
        let sessions = "select count(*) from pg_stat_activity where application_name = 'ardent diff'";
        (sql(&url, sessions) == "0").then_some(())
    });
}

/// Megabytes of the larger table.
fn large_table_mb() -> u32 {
    let text = std::env::var("ARDENT_DIFF_TABLE_MB").unwrap_or_else(|_| "100".to_owned());
    text.parse().expect("ARDENT_DIFF_TABLE_MB is a number")
}

#[test]
fn a_diff_reads_what_changed_and_not_the_table() {
    let production = TestPg::start(production_options().set("max_wal_size", "4GB"));
    let sizes = [("small", 10), ("large", large_table_mb())];
    for (name, megabytes) in sizes {
        production.sql(&format!("create table {name} (id int primary key, v int, filler text)"));
        let rows = megabytes * 1024;
        production.sql(&format!(
            "insert into {name} select n, n, repeat(md5(n::text), 29) from generate_series(1, {rows}) n"
        ));
        let pages = production.sql(&format!("select pg_relation_size('{name}') / 8192"));
        assert!(pages.parse::<u32>().expect("a number") >= megabytes * 128, "{name} has {pages} pages");
    }
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    for (name, megabytes) in sizes {
        for changed in [1, 100] {
            let branch = format!("{name}-{changed}");
            let url = house.branch(&branch, "main");
            let step = megabytes * 1024 / changed;
            sql(&url, &format!("update {name} set v = -v where id % {step} = 1 and id <= {changed} * {step}"));
            // As it is when somebody looks at a branch later: nothing is there yet that the diff will read.
            house.ok(&["branch", "suspend", &branch]);
            house.throw_computes_away();
            let report = house.json(&["branch", "diff", &branch]);
            let number = |field: &str| report[field].as_u64().unwrap_or_else(|| panic!("no {field} in {report}"));
            let rows = report["databases"][0]["tables"][0]["rows"].as_array().expect("a list");
            assert_eq!(rows.len(), changed as usize, "{branch}");
            let (base, head) = (number("pages_read_branch_point"), number("pages_read_head"));
            let blocks = number("changed_blocks");
            println!("{megabytes} MB, {changed} rows: {blocks} changed blocks, {base} + {head} pages read");
            assert!(base > 0 && head > 0, "pages are counted: {report}");
            assert!(base + head <= 4 * blocks + 2000, "{branch}: {base} + {head} pages for {blocks} changed blocks");
            house.ok(&["branch", "delete", &branch]);
        }
    }
}
