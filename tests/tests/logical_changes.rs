//! What becomes of DDL on a production that is followed in logical mode, as `docs/logical.md` has it.

use std::time::{Duration, Instant};

use ardent_test_pg::TestPg;
use ardent_tests::{House, managed, managed_url, sql, try_sql, wait_until};
use serde_json::Value;

/// Runs statements on production as its application does.
fn as_app(production: &TestPg, statements: &str) {
    production.sql_in("shop", &format!("set role app; {statements}"));
}

fn logical(house: &House) -> Value {
    house.json(&["connector", "status", "shop"])["logical"].clone()
}

/// Waits until following has stopped; why.
fn problem(house: &House) -> String {
    wait_until("it stops", 60, || house.json(&["connector", "status", "shop"])["problem"].as_str().map(str::to_owned))
}

fn resume(house: &House, statements: &str) {
    house.ok(&["connector", "resume", "shop", "--sql", statements]);
}

const SHOP: &str = "
    create type mood as enum ('sad', 'happy');
    create table plain (id int primary key, n int default 1, m mood);
    create table dropped (id int primary key);
    create table renamed (id int primary key, note text);
    create table recolumned (id int primary key, kept int);
    create table retyped (id int primary key, n int);
    create table widened (id int primary key);
    create table parts (at int primary key) partition by range (at);
    create table parts_1 partition of parts for values from (0) to (10);
    create index old_index on plain (n);
    insert into plain select n, n, 'sad' from generate_series(1, 10) n;
    insert into dropped values (1); insert into renamed values (1, 'a'); insert into recolumned values (1, 10);
    insert into retyped values (1, 10); insert into widened values (1); insert into parts values (1);
";

#[test]
fn what_is_not_sent_is_named_within_a_minute_with_what_to_do() {
    let production = managed("shop");
    as_app(&production, SHOP);
    let house = House::start();
    house.connect_logical(&production, &[]);
    assert_eq!(house.ardent(&["connector", "status", "shop", "--exit-code"]).code, 0);
    as_app(
        &production,
        "create table fresh (id serial primary key, plain_id int references plain); create index on fresh (plain_id);
         create table keyless (a int); create table parts_2 partition of parts for values from (10) to (20);
         create index new_index on plain (m); drop index old_index; alter table plain add constraint positive check (id > 0);
         alter table plain alter column n set default 2; alter type mood add value 'angry' before 'happy';
         drop table dropped; alter table renamed rename to called; alter table recolumned rename column kept to other;
         alter table retyped alter column n type bigint; alter table widened add column more int",
    );
    let changed_at = Instant::now();
    let seen = wait_until("it is seen", 60, || {
        let seen = logical(&house);
        (seen["new_tables"].as_array().is_some_and(|tables| !tables.is_empty())).then_some(seen)
    });
    assert!(changed_at.elapsed() < Duration::from_secs(60));
    assert_eq!(seen["new_tables"], serde_json::json!(["public.fresh", "public.parts_2"]), "{seen}");
    assert_eq!(seen["not_followed"][0]["table"], "public.keyless", "{seen}");
    let changes: Vec<&str> =
        seen["schema_changes"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    for words in [
        "CREATE INDEX new_index",
        "DROP INDEX public.old_index",
        "ADD CONSTRAINT positive",
        "SET DEFAULT 2",
        "ADD VALUE 'angry'",
        "DROP TABLE public.dropped",
        "table public.renamed is called public.called now",
        r#"rename column "kept" to "other""#,
        "bigint",
        "table public.widened has column more now",
    ] {
        assert!(changes.iter().any(|change| change.contains(words)), "{words}: {changes:#?}");
    }
    assert_eq!(changes.len(), 10, "nothing of new tables, and nothing that would lose rows: {changes:#?}");
    // Both say what to type.
    for status in [&["connector", "status", "shop", "--exit-code"][..], &["status", "--exit-code"]] {
        let said = house.ardent(status);
        assert_eq!(said.code, 3, "{said:?}");
        for words in
            ["(public.fresh, public.parts_2): ardent connector add-tables shop", "resume shop --sql", "keyless"]
        {
            assert!(said.stderr.contains(words), "{words}: {said:?}");
        }
    }
    // Nothing stops for what concerns no row that is followed.
    as_app(&production, "insert into plain values (11, 11, 'happy')");
    house.ok(&["branch", "create", "meanwhile", "--from", "shop"]);

    // With the next change of its table, what is exact comes by itself.
    as_app(
        &production,
        "insert into plain values (12, 12, 'angry'); insert into called values (2, 'b'); insert into widened values (2, 2)",
    );
    let branch = house.branch("dev", "shop");
    assert_eq!(sql(&branch, "select id from plain where m = 'angry' and m > 'sad' and m < 'happy'"), "12");
    assert_eq!(sql(&branch, "select count(*) from called"), "2");
    assert_eq!(sql(&branch, "select more from widened order by id"), "\n2");
    // What is not, stops, and says what to do.
    as_app(&production, "insert into recolumned values (2, 20)");
    let why = problem(&house);
    assert!(why.contains("public.recolumned") && why.contains("connector resume"), "{why}");
    house.ardent(&["branch", "create", "late", "--from", "shop"]).refused(1, &["public.recolumned"]);
    resume(&house, "alter table recolumned rename column kept to other");
    as_app(&production, "insert into retyped values (2, 1000000000000)");
    let why = problem(&house);
    assert!(why.contains("public.retyped") && why.contains("another type"), "{why}");
    resume(&house, "alter table retyped alter column n type bigint");
    // The rest is brought over by hand.
    resume(
        &house,
        "create index new_index on plain (m); drop index old_index; alter table plain add constraint positive check (id > 0);
         alter table plain alter column n set default 2; drop table dropped",
    );
    house.ok(&["connector", "add-tables", "shop"]);
    as_app(&production, "insert into parts values (11); insert into fresh (plain_id) values (1); drop table keyless");
    let verified = house.assert_equal_to_production();
    assert_eq!(verified["schema_differences"], serde_json::json!([]), "{verified}");
    wait_until("nothing is left to say", 60, || {
        (house.ardent(&["connector", "status", "shop", "--exit-code"]).code == 0).then_some(())
    });
    assert_eq!(logical(&house)["tables"], 8, "the dropped one is followed no more");
}

#[test]
fn new_tables_come_by_themselves_where_that_is_wanted() {
    let production = managed("shop");
    as_app(&production, "create table first (id int primary key)");
    let house = House::start();
    house.connect_logical(&production, &["--new-tables", "add"]);
    as_app(
        &production,
        "create table second (id int primary key, first_id int references first); insert into second values (1);
         create table keyless (a int)",
    );
    let made_at = Instant::now();
    wait_until("it is taken over", 60, || (logical(&house)["tables"] == 2).then_some(()));
    assert!(made_at.elapsed() < Duration::from_secs(60));
    as_app(&production, "insert into second values (2); update second set first_id = null");
    let verified = house.assert_equal_to_production();
    assert_eq!(verified["not_followed"], serde_json::json!(["public.keyless"]), "{verified}");
    let branch = house.branch("dev", "shop");
    assert_eq!(sql(&branch, "select count(*) from second"), "2");
    assert!(try_sql(&branch, "insert into second values (3, 1)").unwrap_err().contains("foreign key"));
    // One that cannot come is said with why, and comes once it can.
    let warned = wait_until("it is said", 60, || {
        let said = house.ardent(&["connector", "status", "shop"]).stderr;
        said.contains("public.keyless").then_some(said)
    });
    assert!(warned.contains("replica identity"), "{warned}");
    as_app(&production, "alter table keyless replica identity full");
    wait_until("it is taken over", 60, || (logical(&house)["tables"] == 3).then_some(()));
    // What one needs that is not here stops nothing, and is said.
    as_app(
        &production,
        "create type kind as enum ('a'); create table third (id int primary key, k kind); insert into third values (1, 'a')",
    );
    let warned = wait_until("it is said", 60, || {
        let said = house.ardent(&["connector", "status", "shop"]).stderr;
        said.contains("could not be taken over").then_some(said)
    });
    assert!(warned.contains("public.third") && warned.contains("kind"), "{warned}");
    as_app(&production, "insert into first values (7)");
    assert_eq!(sql(&house.branch("later", "shop"), "select id from first"), "7");
    resume(&house, "create type kind as enum ('a')");
    wait_until("it is taken over", 120, || (logical(&house)["tables"] == 4).then_some(()));
    house.assert_equal_to_production();
}

#[test]
fn emptied_tables_and_those_that_are_made_anew_are_followed() {
    let production = managed("shop");
    as_app(
        &production,
        "create table a (id int primary key); create table b (id int primary key, a_id int references a);
         create table parts (id int, a_id int references a, primary key (id)) partition by range (id);
         create table parts_1 partition of parts for values from (0) to (10);
         create table keyless (a_id int references a); create table t1 (id int primary key); create table t2 (id int primary key);
         insert into a select generate_series(1, 5); insert into b select n, n from generate_series(1, 5) n;
         insert into parts values (1, 1); insert into t1 values (1); insert into t2 values (2)",
    );
    let house = House::start();
    house.connect_logical(&production, &["--keyless", "empty"]);
    // Emptied with all that hangs on it: followed, partitioned, and not followed at all.
    as_app(&production, "truncate a cascade; insert into a values (6); insert into b values (6, 6)");
    house.assert_equal_to_production();
    let branch = house.branch("dev", "shop");
    assert_eq!(
        sql(&branch, "select (select count(*) from a), (select count(*) from b), (select count(*) from parts)"),
        "1|1|0"
    );

    // Names that change hands.
    as_app(&production, "alter table t1 rename to t0; alter table t2 rename to t1; insert into t1 values (3)");
    let why = problem(&house);
    assert!(why.contains("public.t2") && why.contains("another table is called"), "{why}");
    resume(&house, "alter table t1 rename to t0; alter table t2 rename to t1");
    as_app(&production, "insert into t0 values (4)");
    house.assert_equal_to_production();
    assert_eq!(
        sql(&house.branch("swapped", "shop"), "select (select sum(id) from t0), (select sum(id) from t1)"),
        "5|5"
    );

    // A table in the place of another one.
    as_app(
        &production,
        "drop table t0; create table t0 (id int primary key, more text); insert into t0 values (9, 'x')",
    );
    let url = managed_url(&production, "shop");
    house.ardent(&["connector", "add-tables", "shop", "--table", "public.t0"]).refused(1, &["made anew", "resume"]);
    let said = wait_until("it is said", 60, || {
        let said = house.ardent(&["connector", "status", "shop"]).stderr;
        said.contains("public.t0").then_some(said)
    });
    assert!(said.contains("ardent connector resume shop --sql 'drop table \"public\".\"t0\"'"), "{said}");
    resume(&house, r#"drop table "public"."t0""#);
    house.ok(&["connector", "add-tables", "shop", "--table", "public.t0"]);
    house.assert_equal_to_production();
    let more = "select more from t0";
    assert_eq!(sql(&house.branch("anew", "shop"), more), sql(&url, more));

    // A value that the root refuses stops, and says what to do.
    as_app(
        &production,
        "alter table b drop constraint b_pkey; alter table b replica identity full; insert into b values (6, 6)",
    );
    let why = problem(&house);
    assert!(why.contains("public.b") && why.contains("b_pkey") && why.contains("connector resume"), "{why}");
    resume(&house, "alter table b drop constraint b_pkey");
    house.assert_equal_to_production();
}

#[test]
fn identity_columns_that_change_and_keys_with_generated_columns_are_no_surprise() {
    let production = managed("shop");
    as_app(
        &production,
        "create table keyed (id bigint generated always as identity primary key, a int, filler text,
             twice int generated always as (a * 2) stored);
         alter table keyed alter column filler set storage external;
         create table child (id int primary key, keyed_id bigint references keyed on update cascade);
         create table beside (a int generated always as identity, k text primary key, v int, filler text);
         alter table beside alter column filler set storage external;
         create table whole (a int generated always as identity, v int); alter table whole replica identity full;
         create table alone (id int generated always as identity primary key);
         create table gk (a int, b int, g int generated always as (a * 2) stored, primary key (b, g));
         insert into keyed (a, filler) select n, repeat(md5(n::text), 200) from generate_series(1, 20) n;
         insert into child values (1, 9);
         insert into beside (k, v, filler) select n::text, n, repeat(md5(n::text), 200) from generate_series(1, 20) n;
         insert into whole (v) select 1 from generate_series(1, 3); insert into alone default values;
         insert into alone default values; insert into alone default values;
         insert into gk values (1, 1), (2, 1)",
    );
    let house = House::start();
    let url = managed_url(&production, "shop");
    // Of its key only a part would be sent, which names two rows.
    house
        .ardent(&["connector", "create", "postgresql", &url, "--name", "shop", "--logical"])
        .refused(2, &["replica identity", "\"gk\""]);
    house.connect_logical(&production, &["--keyless", "empty"]);
    as_app(
        &production,
        "update keyed set id = default, a = 77 where id = 9; update keyed set id = default where id = 10;
         update keyed set a = 78 where id = 11; update beside set a = default where k = '2';
         update beside set a = default, v = 30, k = 'three' where k = '3'; update beside set v = 40 where k = '4';
         update whole set a = default where a = 2; update alone set id = default where id = 1;
         update gk set a = 5 where a = 1",
    );
    let verified = house.assert_equal_to_production();
    assert_eq!(verified["not_followed"], serde_json::json!(["public.gk"]), "{verified}");
    let branch = house.branch("dev", "shop");
    let seen = "select (select string_agg(k.id || ' ' || k.a || ' ' || k.twice || ' ' || length(k.filler), ',') from keyed k
            join child c on c.keyed_id = k.id),
        (select string_agg(a || ' ' || k || ' ' || v || ' ' || length(filler), ',' order by k) from beside where k in ('2', 'three', '4')),
        (select sum(a) from whole), (select sum(id) from alone)";
    assert_eq!(sql(&branch, seen), "21 77 154 6400|21 2 2 6400,4 4 40 6400,22 three 30 6400|8|9");
    assert_eq!(sql(&branch, seen), sql(&url, seen));
}

#[test]
fn columns_that_look_as_before_and_are_not_stop() {
    let production = managed("shop");
    as_app(
        &production,
        "create table noted (id int primary key); create table emptied (id int primary key);
         create table filled (id int primary key); create table frozen (id int primary key);
         create table anew (id int primary key, n int); create table twice (id int primary key);
         create table swapped (id int primary key, n int, m int);
         insert into noted select generate_series(1, 3); insert into emptied select generate_series(1, 3);
         insert into filled select generate_series(1, 3); insert into frozen select generate_series(1, 3);
         insert into anew select n, n from generate_series(1, 3) n; insert into twice values (1);
         insert into swapped select n, n, 10 * n from generate_series(1, 3) n",
    );
    let mut house = House::start();
    house.connect_logical(&production, &[]);
    let stopped = |house: &House, statements: &str, words: &[&str]| {
        as_app(&production, statements);
        let why = problem(house);
        for words in words {
            assert!(why.contains(words), "{words}: {why}");
        }
    };
    // What rows hold is known: they are where they were, or there are none.
    as_app(&production, "alter table noted add column note text; insert into noted values (4, 'x')");
    as_app(
        &production,
        "truncate emptied; alter table emptied add column note text; insert into emptied values (4, 'x')",
    );
    house.assert_equal_to_production();
    production.sql_in("shop", "vacuum full noted");
    as_app(&production, "insert into noted values (5, 'y')");
    house.assert_equal_to_production();
    as_app(&production, "alter table noted add column more int; insert into noted values (6, 'z', 6)");
    house.assert_equal_to_production();

    // It was given by a default that is gone: to each row another value, or one to all, written out since.
    stopped(
        &house,
        "alter table filled add column u uuid default gen_random_uuid(); alter table filled alter column u drop default;
         insert into filled values (4)",
        &["public.filled", "column u was added", "connector resume"],
    );
    let values = "select string_agg(format('update filled set u = %L where id = %s', u, id), '; ') from filled";
    let values = production.sql_in("shop", values);
    resume(&house, &format!("alter table filled add column u uuid; {values}"));
    house.assert_equal_to_production();
    as_app(
        &production,
        "alter table frozen add column x int default 5; alter table frozen alter column x drop default",
    );
    production.sql_in("shop", "vacuum full frozen");
    stopped(&house, "insert into frozen values (4)", &["public.frozen", "column x was added", "connector resume"]);
    resume(&house, "alter table frozen add column x int default 5; alter table frozen alter column x drop default");
    house.assert_equal_to_production();

    // The same name and type, and another column.
    stopped(
        &house,
        "alter table anew drop column n; alter table anew add column n int default 5; insert into anew values (4)",
        &["public.anew", "column n", "made anew", "connector resume"],
    );
    resume(&house, "alter table anew drop column n; alter table anew add column n int default 5");
    house.assert_equal_to_production();
    let swap =
        "alter table swapped rename n to x; alter table swapped rename m to n; alter table swapped rename x to m";
    stopped(
        &house,
        &format!("{swap}; insert into swapped values (4, 40, 4)"),
        &["public.swapped", "is by now what column", "connector resume"],
    );
    resume(&house, swap);
    as_app(&production, "insert into anew values (5); update swapped set m = m + 1");
    house.assert_equal_to_production();
    let branch = house.branch("dev", "shop");
    let seen = "select (select sum(n) from anew), (select string_agg(n || ' ' || m, ',' order by id) from swapped)";
    assert_eq!(sql(&branch, seen), sql(&managed_url(&production, "shop"), seen));

    // What came before such a change while nobody followed is of the table as it was, and is there when it stops.
    house.stop();
    for statement in
        ["update noted set more = 7", "alter table noted rename more to still", "update noted set still = 8"]
    {
        as_app(&production, statement);
    }
    house.up();
    let why = problem(&house);
    assert!(why.contains("public.noted") && why.contains("still"), "{why}");
    resume(&house, "alter table noted rename more to still");
    house.assert_equal_to_production();

    // One that came and went may have had the name of the one that came after it.
    stopped(
        &house,
        "alter table twice add column x int; insert into twice values (2, 1); alter table twice drop column x;
         alter table twice add column x int default 5; insert into twice values (3)",
        &["public.twice", "column x was added", "came and went", "connector resume"],
    );
}
