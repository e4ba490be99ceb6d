//! What becomes of DDL on a production that is followed in logical mode, as `docs/logical.md` has it.

use ardent_test_pg::TestPg;
use ardent_tests::{House, managed, managed_url, side_by_side, sql, try_sql, wait_until};
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

fn schema_changes(house: &House) -> Vec<String> {
    let changes = logical(house)["schema_changes"].clone();
    changes.as_array().expect("a list").iter().filter_map(|change| change.as_str().map(str::to_owned)).collect()
}

/// Waits until it is said that columns of so many tables are other ones by now; that, and the statements that mend it.
fn replaced(house: &House, tables: usize) -> (Vec<String>, String) {
    const BEFORE: &str = "do the same here (";
    let told = wait_until("it is said", 60, || {
        let told = schema_changes(house).into_iter().filter(|change| change.contains(BEFORE));
        Some(told.collect::<Vec<String>>()).filter(|told| told.len() == tables)
    });
    let statements = told.iter().filter_map(|change| change.split_once(BEFORE)?.1.strip_suffix(')'));
    let statements = statements.collect::<Vec<&str>>().join("; ");
    (told, statements)
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
    create view seen as select id from plain; create sequence few maxvalue 1000; select nextval('few');
    insert into plain select n, n, 'sad' from generate_series(1, 10) n;
    insert into dropped values (1); insert into renamed values (1, 'a'); insert into recolumned values (1, 10);
    insert into retyped values (1, 10); insert into widened values (1); insert into parts values (1);
";

#[test]
fn what_is_not_sent_is_named_when_asked_with_what_to_do() {
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
    // Less than the time after which it is looked at by itself.
    let seen = wait_until("it is seen", 10, || {
        let seen = logical(&house);
        let has_new_tables = seen["new_tables"].as_array().is_some_and(|tables| !tables.is_empty());
        (has_new_tables && seen["schema_changes"].to_string().contains("written anew")).then_some(seen)
    });
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
        "table public.retyped was written anew",
        "table public.widened has column more now",
    ] {
        assert!(changes.iter().any(|change| change.contains(words)), "{words}: {changes:#?}");
    }
    assert_eq!(changes.len(), 11, "nothing of new tables, and nothing that would lose rows: {changes:#?}");
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

    // What changes alone is seen, and a sequence that ends earlier here stops nothing.
    as_app(
        &production,
        "alter sequence few maxvalue 100000; select setval('few', 50000); insert into plain values (13, 13, 'happy')",
    );
    wait_until("the sequence is said", 60, || {
        schema_changes(&house).iter().any(|change| change.starts_with("ALTER SEQUENCE public.few ")).then_some(())
    });
    let finished = house.ardent(&["--json", "connector", "verify", "shop"]);
    assert_eq!(finished.code, 3, "{finished:?}");
    let verified: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(verified["sequences_behind"], serde_json::json!(["public.few"]), "{verified}");
    as_app(&production, "create or replace view seen as select id from plain where n > 0");
    let changes = wait_until("the view is said", 60, || {
        Some(schema_changes(&house)).filter(|changes| changes.iter().any(|change| change.contains("VIEW public.seen")))
    });
    assert_eq!(changes.len(), 2, "{changes:#?}");
    resume(&house, &changes.join(";\n"));
    house.assert_equal_to_production();
    assert_eq!(sql(&house.branch("widened", "shop"), "select nextval('few') > 50000"), "t");
}

/// A production with a table, and a house that follows it and is to take over new ones by itself.
fn taking_over() -> (TestPg, House) {
    let production = managed("shop");
    as_app(&production, "create table first (id int primary key)");
    let house = House::start();
    house.connect_logical(&production, &["--new-tables", "add"]);
    (production, house)
}

#[test]
fn new_tables_come_by_themselves_where_that_is_wanted() {
    // Each waits until a table has been there for long enough.
    side_by_side(&[
        ("one that can come", one_that_can_come_does_with_nobody_asking),
        ("one that cannot come yet", one_that_cannot_come_is_said_with_why_and_comes_once_it_can),
        ("one that needs what is not here", what_one_needs_that_is_not_here_stops_nothing_and_is_said),
    ]);
}

fn one_that_can_come_does_with_nobody_asking() {
    let (production, house) = taking_over();
    as_app(
        &production,
        "create table second (id int primary key, first_id int references first); insert into second values (1);
         create table keyless (a int)",
    );
    // The list has nothing looked at.
    wait_until("it is taken over", 60, || {
        (house.json(&["connector", "list"])["connectors"][0]["logical"]["tables"] == 2).then_some(())
    });
    as_app(&production, "insert into second values (2); update second set first_id = null");
    let verified = house.assert_equal_to_production();
    assert_eq!(verified["not_followed"], serde_json::json!(["public.keyless"]), "{verified}");
    let branch = house.branch("dev", "shop");
    assert_eq!(sql(&branch, "select count(*) from second"), "2");
    assert!(try_sql(&branch, "insert into second values (3, 1)").unwrap_err().contains("foreign key"));
}

fn one_that_cannot_come_is_said_with_why_and_comes_once_it_can() {
    let (production, house) = taking_over();
    as_app(&production, "create table keyless (a int); insert into keyless values (1)");
    let warned = wait_until("it is said", 60, || {
        let said = house.ardent(&["connector", "status", "shop"]).stderr;
        said.contains("public.keyless").then_some(said)
    });
    assert!(warned.contains("replica identity"), "{warned}");
    as_app(&production, "alter table keyless replica identity full");
    wait_until("it is taken over", 60, || (logical(&house)["tables"] == 2).then_some(()));
    let verified = house.assert_equal_to_production();
    assert_eq!(verified["not_followed"], serde_json::json!([]), "{verified}");
}

fn what_one_needs_that_is_not_here_stops_nothing_and_is_said() {
    let (production, house) = taking_over();
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
    wait_until("it is taken over", 120, || (logical(&house)["tables"] == 2).then_some(()));
    house.assert_equal_to_production();
}

#[test]
fn emptied_tables_and_those_that_are_made_anew_are_followed() {
    let production = managed("shop");
    as_app(
        &production,
        "create table a (id int primary key); create table b (id int primary key, a_id int references a, tags text[]);
         create table parts (id int, a_id int references a, primary key (id)) partition by range (id);
         create table parts_1 partition of parts for values from (0) to (10);
         create table keyless (a_id int references a); create table t1 (id int primary key); create table t2 (id int primary key);
         insert into a select generate_series(1, 5); insert into b select n, n, array['x', null] from generate_series(1, 5) n;
         insert into parts values (1, 1); insert into t1 values (1); insert into t2 values (2)",
    );
    // Its sessions read and write otherwise than ours, on both sides; those of its superuser may write here.
    production.sql("alter database shop set array_nulls = off");
    production.sql("alter database shop set default_transaction_read_only = on");
    production.sql(&format!("alter role {} set default_transaction_read_only = off", production.superuser()));
    let house = House::start();
    house.connect_logical(&production, &["--keyless", "empty"]);
    as_app(&production, "insert into b values (7, 5, array[null, 'null'])");
    house.assert_equal_to_production();
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

    // They are said before a change comes, and nothing that would only make both look alike.
    as_app(
        &production,
        &format!("alter table anew drop column n; alter table anew add column n int default 6; {swap}"),
    );
    let (told, statements) = replaced(&house, 2);
    assert!(told.iter().any(|told| told.contains("table public.anew: column n is another one by now")), "{told:#?}");
    assert!(told.iter().any(|told| told.contains("table public.swapped: column ")), "{told:#?}");
    assert!(!schema_changes(&house).iter().any(|change| change.starts_with("ALTER TABLE")), "{told:#?}");
    let verified = house.ardent(&["connector", "verify", "shop"]);
    assert_eq!(verified.code, 3, "{verified:?}");
    for words in ["columns of public.anew differ: column n is another one", "columns of public.swapped differ: column "]
    {
        assert!(verified.stdout.contains(words), "{words}: {verified:?}");
    }
    resume(&house, &statements);
    house.assert_equal_to_production();
    wait_until("it is said no more", 60, || {
        (!schema_changes(&house).iter().any(|change| change.contains("do the same here"))).then_some(())
    });

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

#[test]
fn columns_of_a_partitioned_table_change_in_all_partitions() {
    let production = managed("shop");
    as_app(
        &production,
        "create table parts (id int primary key, gone text, kept varchar(10)) partition by range (id);
         create table parts_1 partition of parts for values from (0) to (10);
         create table parts_2 partition of parts for values from (10) to (20) partition by range (id);
         create table parts_2a partition of parts_2 for values from (10) to (15);
         create table parts_2b partition of parts_2 for values from (15) to (20);
         create table away partition of parts for values from (20) to (30);
         insert into parts values (1, 'g', 'k'), (11, 'g', 'k'), (16, 'g', 'k'), (21, 'g', 'k')",
    );
    let house = House::start();
    house.connect_logical(&production, &[]);
    // A change of one partition brings what all have; statements that somebody runs before would not know what rows hold.
    as_app(
        &production,
        "alter table parts add column more int default 5 not null, drop column gone, alter column kept type varchar(20)",
    );
    let seen = wait_until("it is seen", 60, || {
        let changes = logical(&house)["schema_changes"].to_string();
        changes.contains("table public.parts has column gone no more, and column more now").then_some(changes)
    });
    assert!(!seen.contains("ADD COLUMN") && !seen.contains("DROP COLUMN") && !seen.contains("SET DEFAULT"), "{seen}");
    as_app(&production, "insert into parts values (12, 'longer than ten', 7)");
    house.assert_equal_to_production();
    let branch = house.branch("dev", "shop");
    assert_eq!(sql(&branch, "select count(*), sum(more), max(length(kept)) from parts"), "5|27|15");
    as_app(&production, "insert into parts values (2, 'longer than ten', 6); update parts set more = 8 where id = 16");
    as_app(&production, "alter table parts alter column kept type text; alter table parts drop column more");
    as_app(&production, "update parts set kept = 'much longer than twenty' where id in (1, 11)");
    house.assert_equal_to_production();

    // One that is a partition only here has other columns.
    as_app(
        &production,
        "alter table parts detach partition away; alter table parts add column last int; insert into parts values (3, 'k', 1)",
    );
    let why = problem(&house);
    for words in ["table public.parts ", "public.away", "detach partition", "connector resume"] {
        assert!(why.contains(words), "{words}: {why}");
    }
    resume(&house, "alter table parts detach partition away");
    as_app(&production, "insert into away values (22, 'k')");
    house.assert_equal_to_production();

    // What stops names the partitioned table.
    as_app(
        &production,
        "alter table parts rename column last to final; insert into parts values (4, 'k', 2), (13, 'k', 2)",
    );
    let why = problem(&house);
    assert!(why.contains("table public.parts (seen in its partition public.parts_1)"), "{why}");
    resume(&house, "alter table parts rename column last to final");
    house.assert_equal_to_production();

    // So does one that has another name.
    as_app(
        &production,
        "alter table parts rename to pieces; alter table pieces add column size int; insert into pieces values (5, 'k', 2, 1)",
    );
    let why = problem(&house);
    for words in ["it is called public.pieces on production", r#"alter table "public"."parts" rename to "pieces""#] {
        assert!(why.contains(words) && !why.contains("detach"), "{words}: {why}");
    }
    resume(&house, "alter table parts rename to pieces");
    house.assert_equal_to_production();
    assert_eq!(sql(&house.branch("renamed", "shop"), "select sum(size) from pieces"), "1");

    // Names that change hands are said once for all partitions, without a change.
    as_app(
        &production,
        "alter table pieces rename final to x; alter table pieces rename size to final; alter table pieces rename x to size",
    );
    let (told, statements) = replaced(&house, 1);
    assert!(told[0].contains("table public.pieces (seen in its partition"), "{told:?}");
    assert!(statements.contains(r#"alter table "public"."pieces" rename column "#), "{told:?}");
    resume(&house, &statements);
    as_app(&production, "update pieces set final = 3 where id = 5");
    house.assert_equal_to_production();

    // What was taken out is named where that was done.
    as_app(
        &production,
        "alter table pieces detach partition parts_2; alter table pieces add column late int; insert into pieces values (6, 'k', 2, 1, 1)",
    );
    let why = problem(&house);
    assert!(why.contains(r#"(alter table "public"."pieces" detach partition "public"."parts_2")"#), "{why}");
    resume(&house, r#"alter table "public"."pieces" detach partition "public"."parts_2""#);
    house.assert_equal_to_production();
}

#[test]
fn migrations_of_several_steps_are_followed_where_all_is_sure() {
    let production = managed("shop");
    as_app(
        &production,
        "create table later (id int primary key); create table other (id int primary key, old int, kept int);
         create table tail (id int primary key, old int); create table packed (id int primary key);
         create table scaled (id int primary key, n int, v text); create table base (id int primary key, a int);
         create table derived (primary key (id)) inherits (base); insert into derived values (1, 1);
         insert into scaled select n, n, 'a' from generate_series(1, 3) n;
         create table wide (id int primary key, v varchar(10), n numeric(5, 2)); create table shouted (id int primary key, v varchar(10));
         insert into later select generate_series(1, 3); insert into other values (1, 1, 1); insert into tail values (1, 1);
         insert into packed select generate_series(1, 3); insert into wide values (1, 'a', 1.5); insert into shouted values (1, 'a')",
    );
    let mut house = House::start();
    house.connect_logical(&production, &[]);
    // A default that came after the column, and values after both.
    as_app(
        &production,
        "alter table later add column n int; alter table later alter column n set default 7; update later set n = id;
         alter table later alter column n set not null; insert into later values (4)",
    );
    // Two columns, as one was behind the column that is gone.
    as_app(&production, "alter table other drop column old, add column new int default 3");
    as_app(&production, "insert into other values (2, 2)");
    // Types that all values are of.
    as_app(&production, "alter table wide alter column v type varchar(20), alter column n type numeric(9, 2)");
    as_app(&production, "insert into wide values (2, 'longer than ten', 12345.67)");
    as_app(
        &production,
        "alter table wide alter column v type text; insert into wide values (3, 'longer than twenty letters', 1)",
    );
    house.assert_equal_to_production();
    let branch = house.branch("dev", "shop");
    let seen = "select (select string_agg(n::text, ',' order by id) from later), (select sum(new) from other)";
    assert_eq!(sql(&branch, seen), "1,2,3,7|6");
    assert_eq!(sql(&branch, "insert into later values (9) returning n"), "7", "its default is here");

    // Values that were changed together with the type were not sent.
    as_app(
        &production,
        "alter table shouted alter column v type varchar(20) using upper(v); insert into shouted values (2, 'b')",
    );
    let why = problem(&house);
    assert!(why.contains("public.shouted") && why.contains("USING") && why.contains("connector resume"), "{why}");
    resume(&house, "alter table shouted alter column v type varchar(20) using upper(v)");
    house.assert_equal_to_production();
    // Nor those that were changed together with other columns, whatever else is followed.
    as_app(
        &production,
        "alter table scaled alter column n type int using n * 10, add column z int; update scaled set v = 'q' where id = 1",
    );
    wait_until("it is said", 60, || {
        logical(&house)["schema_changes"].to_string().contains("table public.scaled was written anew").then_some(())
    });
    resume(&house, "update scaled set n = n * 10 where id > 1");
    house.assert_equal_to_production();
    // The last column, and another one in its place: nobody can say, not even by a change of the same transaction.
    as_app(&production, "alter table tail drop column old, add column newer int; insert into tail values (2, 5)");
    let why = problem(&house);
    assert!(why.contains("public.tail") && why.contains("the same column under another name"), "{why}");
    resume(&house, "alter table tail drop column old, add column newer int");
    house.assert_equal_to_production();
    // Columns that come from above may hold anything further down.
    as_app(&production, "alter table base add column r int default 5; insert into derived values (2, 2, 7)");
    let why = problem(&house);
    for words in ["table public.derived ", "inherits from other tables", "(public.base)", "connector resume"] {
        assert!(why.contains(words), "{words}: {why}");
    }
    resume(&house, "alter table base add column r int default 5");
    house.assert_equal_to_production();

    // A table that was written anew, and had no change since: it is known once it was looked at.
    production.sql_in("shop", "vacuum full packed");
    for index in ["first_look", "second_look"] {
        as_app(&production, &format!("create index {index} on packed (id)"));
        wait_until(index, 60, || logical(&house)["schema_changes"].to_string().contains(index).then_some(()));
    }
    as_app(&production, "alter table packed add column x int; update packed set x = 10 * id where id > 1");
    house.assert_equal_to_production();

    // What came before a value that is refused is here when it stops.
    house.stop();
    as_app(&production, "insert into tail values (4, 6)");
    as_app(
        &production,
        "alter table wide drop constraint wide_pkey; alter table wide replica identity full; insert into wide values (1)",
    );
    house.up();
    let why = problem(&house);
    assert!(why.contains("public.wide") && why.contains("wide_pkey") && !why.contains("aborted"), "{why}");
    let url = house.ok(&["branch", "create", "before", "--from", "shop", "--at", "latest", "--print-url"]);
    assert_eq!(sql(&url, "select newer from tail where id = 4"), "6");
    resume(&house, "alter table wide drop constraint wide_pkey");
    house.assert_equal_to_production();
}
