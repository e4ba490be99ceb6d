//! A server that gives no physical replication, and a role that is no superuser, as managed services have them.

use std::io::{BufRead as _, Read as _};
use std::process::{Child, Stdio};

use ardent_test_pg::{TestPg, TestPgOptions};
use ardent_tests::{House, MANAGED_HBA, managed, managed_url, pg_program, sql, try_sql, wait_until};
use serde_json::Value;

const SHOP: &str = "
    create schema sales authorization app;
    set role app;
    create type sales.mood as enum ('sad', 'it''s ok', 'happy');
    create domain sales.amount as numeric(12, 3) check (value > -1000);
    create type sales.point3 as (x int, y float8, note text);
    create table sales.kinds (
        id bigint generated always as identity primary key, b bool, i2 int2, i4 int4, n numeric, f4 float4, f8 float8,
        money money, c char(6), v varchar(20), t text, bin bytea, d date, tm time, tz timetz, ts timestamp, tstz timestamptz,
        iv interval, u uuid, j json, jb jsonb, ip inet, net cidr, mac macaddr, bits bit(5), vb varbit, p point, box box,
        r int4range, mr nummultirange, tsv tsvector, m sales.mood, a sales.amount, arr int[], texts text[], moods sales.mood[],
        comp sales.point3, x xml, doubled int generated always as (i4 * 2) stored);
    create table sales.plain (
        id bigint primary key, b bool, bin bytea, ch \"char\", nm name, i2 int2, i4 int4, t text, o oid, j json, jb jsonb, p point,
        ls lseg, pa path, bx box, po polygon, li line, ci circle, f4 float4, f8 float8, mo money, n numeric, net cidr, ip inet,
        mac macaddr, mac8 macaddr8, c char(6), v varchar(20), d date, tm time(3), ts timestamp, tstz timestamptz, iv interval,
        tz timetz, u uuid, arr int[], texts text[][], spans timestamptz[]);
    create table sales.orders (id serial primary key, at date not null default current_date, note text, filler text);
    alter table sales.orders alter column filler set storage external;
    create table sales.lines (order_id int references sales.orders on delete cascade, no int, what text, primary key (order_id, no));
    create table sales.events (at date, id bigint, note text, primary key (at, id)) partition by range (at);
    create table sales.events_old partition of sales.events for values from (minvalue) to ('2026-01-01');
    create table sales.events_new partition of sales.events for values from ('2026-01-01') to (maxvalue);
    create table sales.log (what text, j json, at float8);
    alter table sales.log replica identity full;
    create table \"sales\".\"Odd \"\"Name\" (\"Key\" text primary key, \"a b\" int);
    create table sales.emptied (id int primary key);
    create view sales.recent as select * from sales.events where at >= '2026-01-01';
    create materialized view sales.totals as select count(*) as orders from sales.orders;
    create function sales.note() returns trigger language plpgsql as
        $$ begin insert into sales.log values ('order ' || new.id, null, 0); return new; end $$;
    create trigger note after insert on sales.orders for each row execute function sales.note();
    alter table sales.orders enable always trigger note;
    insert into sales.kinds (b, i2, i4, n, f4, f8, money, c, v, t, bin, d, tm, tz, ts, tstz, iv, u, j, jb, ip, net, mac, bits, vb,
            p, box, r, mr, tsv, m, a, arr, texts, moods, comp, x)
        select n % 2 = 0, n, n * 3, n / 7.0, n / 3.0, n / 9.0, n * 1.25, 'c' || n, 'v' || n, E'tab\\t back\\\\ nl\\n ' || n,
            decode(md5(n::text), 'hex'), date '2026-01-01' + n, '10:11:12.5', '10:11:12+02', '2026-01-01 10:00', '2026-01-01 10:00+05',
            '1 year -3 days 04:05', md5(n::text)::uuid, '{\"a\": 1}', '{\"b\": [1, null]}', '10.0.0.1/8', '10.0.0.0/8',
            '08:00:2b:01:02:03', B'10101', B'110', '(1,2)', '(1,1),(0,0)', '[1,5)', '{[1,2),[5,9)}', 'fat & cat', 'happy', n + 0.125,
            array[n, null, 3], array['a,b', null, '\"q\"'], array['sad', 'it''s ok']::sales.mood[], row(n, 0.1, 'x,y')::sales.point3, '<a>b</a>'
        from generate_series(1, 200) n;
    insert into sales.kinds default values;
    insert into sales.plain
        select n, n % 2 = 0, decode(md5(n::text), 'hex'), 'c', 'n' || n, n, -n, E'tab\\t ä\\n ' || n, 4294967295, '{\"a\":  1}',
            '{\"b\": [1, null, \"ä\"]}', '(1,-2.5)', '[(0,0),(1,1)]', '[(0,0),(1,1)]', '(1,1),(0,0)', '((0,0),(1,1),(1,0))', '{1,2,3}',
            '<(1,2),3>', n / 3.0, 'nan', n * -1.25, n / 7.0, '10.0.0.0/8', '::1/64', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
            'c' || n, 'v' || n, 'infinity', '10:11:12.345', '0044-03-15 10:00 BC', '2026-01-01 10:00+05', '1 year -3 days 04:05',
            '10:11:12+02:30', md5(n::text)::uuid, '[0:2]={1,null,3}', '{{a,\"b,c\"},{null,\"\"}}', array[timestamptz '-infinity', '2026-01-01 10:00+05']
        from generate_series(1, 200) n;
    insert into sales.plain (id, n, f4, f8) values (1000, 'nan', '-infinity', 1e-300), (1001, 1e200 + 0.000010, 0.1, 0.1), (1002, null, null, null);
    insert into sales.orders (note, filler) select 'o' || n, repeat(md5(n::text), 200) from generate_series(1, 300) n;
    insert into sales.lines select n, 1, 'first' from generate_series(1, 300) n;
    insert into sales.events select date '2025-12-01' + n % 60, n, 'e' || n from generate_series(1, 2000) n;
    insert into sales.log select 'same', '{\"k\": 1}', 0.1 from generate_series(1, 5);
    insert into \"sales\".\"Odd \"\"Name\" values ('k''1', 1), ('k2', null);
    insert into sales.emptied select generate_series(1, 50);
    refresh materialized view sales.totals;
";

/// Statements that are run over and over until it is dropped.
struct Writer {
    child: Child,
}

impl Writer {
    fn start(production: &TestPg, statements: &str) -> Writer {
        let script = format!("{statements}\n\\watch 0.02\n");
        let mut child = pg_program("psql")
            .args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", &managed_url(production, "shop")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql can be run");
        use std::io::Write as _;
        child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("psql reads");
        Writer { child }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn everything_that_can_be_followed_is_the_same_on_the_root_and_on_branches() {
    let production = managed("shop");
    production.sql_in("shop", SHOP);
    let house = House::start();
    let url = managed_url(&production, "shop");
    let writer = Writer::start(
        &production,
        "insert into sales.orders (note) values ('written'); update sales.orders set note = note || '.' where id % 50 = 0;",
    );
    house.connect_logical(&production, &[]);
    drop(writer);
    house.assert_equal_to_production();

    // Keys that change, values out of line that don't, partitions that rows move between, rows that are the same, quotes.
    production.sql_in(
        "shop",
        "update sales.orders set note = 'unchanged filler' where id = 7;
         update sales.lines set no = 2 where order_id = 5;
         update sales.events set at = '2026-01-15' where id = 1;
         delete from sales.log where ctid = (select ctid from sales.log where what = 'same' limit 1);
         update sales.log set at = 0.30000000000000004 where ctid = (select ctid from sales.log where what = 'same' limit 1);
         update sales.\"Odd \"\"Name\" set \"Key\" = 'k''9' where \"Key\" = 'k2';
         update sales.kinds set i4 = 5, texts = null where id <= 20;
         delete from sales.kinds where id = 30;
         truncate sales.emptied; insert into sales.emptied values (1);
         begin; insert into sales.orders (note) values ('never'); rollback;
         begin; savepoint a; insert into sales.orders (note) values ('not this'); rollback to a;
         insert into sales.orders (note) values ('this'); commit;",
    );
    let verified = house.assert_equal_to_production();
    let tables = verified["tables"].as_array().expect("a list");
    assert_eq!(tables.len(), 9, "{verified}");

    let branch = house.branch("dev", "shop");
    let ours = "select (select count(*) from sales.orders), (select orders from sales.totals), (select count(*) from sales.recent),
        (select string_agg(doubled::text, ',') from sales.kinds where id <= 3), (select t from sales.kinds where id = 1)";
    let (mut here, there) = (sql(&branch, ours), sql(&url, ours));
    // Filled when the copy was consistent, and by nobody since.
    let filled = sql(&branch, "select orders >= 300 from sales.totals");
    let without = |text: &str| {
        text.split('|').enumerate().filter(|(at, _)| *at != 1).map(|(_, part)| part.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((without(&here), filled.as_str()), (without(&there), "t"));
    // The sequence is ahead, the trigger fires once on a branch, foreign keys hold.
    sql(&branch, "insert into sales.orders (note) values ('on the branch')");
    here = sql(
        &branch,
        "select count(*) from sales.log l join sales.orders o on l.what = 'order ' || o.id where note = 'on the branch'",
    );
    assert_eq!(here, "1");
    assert!(try_sql(&branch, "insert into sales.lines values (1000000, 1, 'x')").unwrap_err().contains("foreign key"));
    let diff = house.ok(&["branch", "diff", "dev", "--stat"]);
    assert!(diff.contains("sales.orders"), "{diff}");
    // How a database has names written is no difference of what is named.
    sql(&branch, "alter database shop set quote_all_identifiers = on");
    let diff = house.ok(&["branch", "diff", "dev"]);
    assert!(diff.contains("sales.orders") && !diff.contains("recent"), "{diff}");
    // Nobody writes on the root.
    let root = house.ok(&["branch", "info", "shop", "--json"]);
    let root: Value = serde_json::from_str(&root).expect("JSON");
    assert!(try_sql(root["url"].as_str().expect("a URL"), "select 1").is_err());

    let status = house.json(&["connector", "status", "shop"]);
    assert_eq!((status["following"].as_bool(), status["lag_bytes"].as_u64()), (Some(true), Some(0)), "{status}");
    assert_eq!(status["logical"]["phase"], "follow");
    // The same server by another name; a server that lacks the slot is refused, and nothing is changed.
    let by_name = url.replace("127.0.0.1", "localhost");
    house.ok(&["connector", "move", "shop", &by_name]);
    production.sql("create database other");
    let to_other = ["connector", "move", "shop", &managed_url(&production, "other")];
    house.ardent(&to_other).refused(1, &["no slot and publication"]);
    production.sql_in("shop", "insert into sales.orders (note) values ('after the move')");
    house.assert_equal_to_production();
    assert!(house.json(&["connector", "status", "shop"])["source"].to_string().contains("localhost"));
    house.ok(&["branch", "delete", "dev"]);
    house.ok(&["connector", "delete", "shop", "--yes"]);
    assert_eq!(production.sql_in("shop", "select count(*) from pg_replication_slots"), "0");
    assert_eq!(production.sql_in("shop", "select count(*) from pg_publication"), "0");
    assert_eq!(house.compute_processes(), [], "its compute is gone");
}

/// Tables that are new on production come whole, while they are written, or not at all.
fn new_tables_are_taken_over(house: &House, production: &TestPg) {
    production.sql_in(
        "shop",
        "set role app;
         create table fresh (id serial primary key, t_id int references t, note text);
         create index fresh_note on fresh (note);
         insert into fresh (t_id, note) select n, 'n' from generate_series(1, 10) n;
         create table parts (id int, kind text, primary key (kind, id)) partition by list (kind);
         create table parts_a partition of parts for values in ('a');
         insert into parts values (1, 'a');
         create type mood as enum ('sad', 'happy');
         create table moody (id int primary key, m mood)",
    );
    let writer = Writer::start(
        production,
        "insert into fresh (t_id, note) values (1, 'w'); update fresh set note = note || '.' where id = 1;
         insert into parts select max(id) + 1, 'a' from parts; insert into moody select count(*), 'sad' from moody;",
    );
    // What one needs is not there: none is taken, and everything else goes on as before.
    house.ardent(&["connector", "add-tables", "shop"]).refused(1, &["moody", "mood"]);
    production.sql_in("shop", "update t set last = last");
    let finished = house.ardent(&["--json", "connector", "verify", "shop"]);
    let verified: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let not_followed = serde_json::json!(["public.keyless", "public.fresh", "public.parts_a", "public.moody"]);
    assert_eq!(verified["not_followed"], not_followed, "{verified}");
    assert_eq!(verified["tables"][0]["equal"], true, "{verified}");
    assert_eq!(verified["sequences_behind"], serde_json::json!(["public.fresh_id_seq"]), "{verified}");
    house.ok(&[
        "connector",
        "resume",
        "shop",
        "--sql",
        "create type mood as enum ('sad', 'happy'); alter type mood owner to app",
    ]);
    let reply = house.json(&["connector", "add-tables", "shop"]);
    assert_eq!(reply["added"], serde_json::json!(["public.fresh", "public.parts_a", "public.moody"]), "{reply}");
    assert_eq!(reply["skipped"][0]["table"], "public.keyless", "{reply}");
    assert_eq!(reply["left_out"], serde_json::json!([]), "{reply}");
    production.sql_in("shop", "set role app; create table parts_b partition of parts for values in ('b')");
    production.sql_in("shop", "insert into parts values (1, 'b')");
    house.ok(&["connector", "add-tables", "shop", "--table", "public.parts_b"]);
    drop(writer);
    let verified = house.assert_equal_to_production();
    assert_eq!(verified["not_followed"], serde_json::json!(["public.keyless"]), "{verified}");
    assert_eq!(verified["schema_differences"], serde_json::json!([]), "{verified}");
    house.ardent(&["connector", "add-tables", "shop", "--table", "public.keyless"]).refused(1, &["replica identity"]);
    house.ardent(&["connector", "add-tables", "shop", "--table", "public.t"]).refused(1, &["public.t", "SCHEMA.NAME"]);
    let branch = house.branch("with-new", "shop");
    assert_eq!(sql(&branch, "insert into fresh (t_id) values (2) returning id > 10"), "t");
    assert!(try_sql(&branch, "insert into fresh (t_id) values (1000)").unwrap_err().contains("foreign key"));
    assert_eq!(sql(&branch, "select count(*) > 1, count(*) filter (where kind = 'b') from parts"), "t|1");
    house.ok(&["branch", "delete", "with-new"]);
}

/// Rows enough that a copy of them at the rate that tests set takes some seconds.
const LARGE: &str = "
    set role app;
    create table a (id int primary key, filler text);
    create table b (id int primary key, filler text, a_id int references a);
    insert into a select n, repeat(md5(n::text), 30) from generate_series(1, 3000) n;
    insert into b select n, repeat(md5(n::text), 30), n from generate_series(1, 3000) n;
    create table small (id serial primary key, n int);
    insert into small (n) select generate_series(1, 100);
";

#[test]
fn a_copy_and_following_go_on_where_a_killed_server_left_them() {
    let production = managed("shop");
    production.sql_in("shop", LARGE);
    let mut house = House::start();
    let url = managed_url(&production, "shop");
    let create = ["connector", "create", "postgresql", url.as_str(), "--name", "shop", "--logical", "--max-rate", "2M"];
    let writer = Writer::start(
        &production,
        "insert into small (n) values (1); update a set filler = 'w' where id = (random() * 2999)::int + 1; \
         delete from b where id = (random() * 2999)::int + 1;",
    );
    let waiting = house.background(&create);
    let copied = |house: &House, name: &str| {
        let is_of = |line: &&str| line.contains("table is copied") && line.ends_with(&format!("name={name}"));
        house.log().lines().filter(is_of).count()
    };
    wait_until("a table is copied", 60, || (copied(&house, "small") == 1).then_some(()));
    house.kill_server();
    assert_eq!((copied(&house, "a"), copied(&house, "b")), (0, 0), "it is in the middle of their rows");
    drop(waiting);
    house.up();
    // The same command joins what goes on, from where it is.
    let joined = wait_until("the copy is done", 60, || Some(house.ardent(&create)).filter(|joined| joined.code == 0));
    for name in ["small", "a", "b"] {
        assert_eq!(copied(&house, name), 1, "what was copied stays, the others are copied anew: {}", house.log());
    }
    assert!(joined.stderr.contains("copy: ") && !joined.stderr.contains("copy: 0 "), "{joined:?}");
    house.assert_equal_to_production();
    for _ in 0..2 {
        house.kill_server();
        house.up();
        wait_until("it follows", 60, || {
            (house.json(&["connector", "status", "shop"])["following"] == true).then_some(())
        });
    }
    // A transaction that is larger than what is kept under way.
    production.sql_in("shop", "insert into a select n, repeat('x', 500) from generate_series(10001, 40000) n; update a set filler = filler || 'y' where id > 20000");
    drop(writer);
    let verified = house.assert_equal_to_production();
    assert!(verified["tables"][0]["root_rows"].as_u64().is_some_and(|rows| rows >= 30_000), "{verified}");
}

/// Rows enough that some are still to be read whatever fits into buffers on their way; one of the tables would have rows twice without
/// anybody saying no.
const NEW: &str = "
    set role app;
    create table big (id int primary key, filler text);
    create table twice (n int);
    alter table twice replica identity full;
    insert into big select n, repeat(md5(n::text), 30) from generate_series(1, 30000) n;
    insert into twice select generate_series(1, 100);
";

#[test]
fn taking_over_new_tables_goes_on_where_a_killed_server_left_it() {
    let production = managed("shop");
    production.sql_in("shop", "set role app; create table first (id serial primary key, n int)");
    let mut house = House::start();
    house.connect_logical(&production, &["--max-rate", "4M"]);
    production.sql_in("shop", NEW);
    let writer = Writer::start(
        &production,
        "insert into first (n) values (1); insert into twice values (1000); update big set filler = 'w' where id = (random() * 29999)::int + 1; \
         delete from big where id = (random() * 29999)::int + 1;",
    );
    let add = ["connector", "add-tables", "shop"];
    let is_true = |production: &TestPg, question: &str| {
        (production.sql_in("shop", &format!("select exists ({question})")).trim() == "t").then_some(())
    };
    let slot = "select from pg_replication_slots where slot_name ~ '_add$'";
    for moment in [
        slot,
        "select from pg_stat_progress_copy where relid = 'big'::regclass and bytes_processed between 1000000 and 20000000",
    ] {
        let adding = house.background(&add);
        wait_until(moment, 60, || is_true(&production, moment));
        house.kill_server();
        drop(adding);
        wait_until("the slot is gone", 60, || is_true(&production, &format!("select where not exists ({slot})")));
        house.up();
        // Everything else goes on; of these there is nothing.
        let branch = wait_until("it follows", 60, || {
            let made = house.ardent(&["branch", "create", "meanwhile", "--from", "shop", "--print-url"]);
            (made.code == 0).then(|| made.stdout.trim().to_owned())
        });
        assert_eq!(sql(&branch, "select count(*) > 0, to_regclass('big'), to_regclass('twice') from first"), "t||");
        house.ok(&["branch", "delete", "meanwhile"]);
    }
    // As if it had been killed when the rows were there, and that was not noted yet.
    house.ok(&["connector", "resume", "shop", "--sql", "create table twice (n int); insert into twice values (1)"]);
    let reply = house.json(&add);
    assert_eq!(reply["added"], serde_json::json!(["public.big", "public.twice"]), "{reply}");
    for _ in 0..2 {
        house.kill_server();
        house.up();
        wait_until("it follows", 60, || {
            (house.json(&["connector", "status", "shop"])["following"] == true).then_some(())
        });
    }
    drop(writer);
    let verified = house.assert_equal_to_production();
    assert_eq!(verified["tables"].as_array().map(Vec::len), Some(3), "{verified}");
    assert_eq!(verified["schema_differences"], serde_json::json!([]), "{verified}");
}

#[test]
fn preflight_names_what_is_missing_and_the_sql() {
    let options = TestPgOptions { hba: Some(MANAGED_HBA.to_owned()), ..TestPgOptions::default() };
    let production = TestPg::start(options.with_tcp().set("wal_level", "replica"));
    production.sql("create role app login; create role other");
    production.sql("create database shop");
    production.sql_in(
        "shop",
        "create table keyless (a int); create table theirs (id int primary key); alter table theirs owner to other;
         create table supers (id int primary key);
         create schema a2; create type a2.mood as enum ('sad'); create table moody (id int primary key, m a2.mood[]);
         create table parted (id int primary key) partition by range (id);
         create table a2.parted_1 partition of parted for values from (0) to (10);
         alter table keyless owner to app; create unlogged table scratch (id int primary key); alter table scratch owner to app;
         select lo_create(0);",
    );
    let house = House::start();
    let url = managed_url(&production, "shop");
    let finished = house.ardent(&[
        "--json",
        "connector",
        "preflight",
        "postgresql",
        &url,
        "--logical",
        "--schemas",
        "public,nope",
    ]);
    assert_eq!(finished.code, 2, "{finished:?}");
    let report: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("a list");
    let check =
        |name: &str| checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"));
    for (name, outcome, words) in [
        ("wal_level", "failed", "alter system set wal_level = logical"),
        ("replication_privilege", "failed", "alter role app replication"),
        ("create_privilege", "failed", "grant create on database shop to app"),
        ("ownership", "failed", "grant \"other\" to app"),
        ("ownership", "failed", "alter table \"public\".\"supers\" owner to app"),
        ("partitions", "warning", "rows of a2.parted_1, which table public.parted shows"),
        ("definitions", "failed", "type a2.mood (of table public.moody)"),
        ("readable", "failed", "grant select on \"public\".\"theirs\" to app"),
        ("replica_identity", "failed", "alter table \"public\".\"keyless\" replica identity full"),
        ("schemas", "failed", "nope"),
        ("large_objects", "warning", "1 large objects"),
        ("unlogged", "warning", "scratch"),
        ("pg_dump", "ok", ""),
    ] {
        let found = check(name);
        assert_eq!(found["outcome"], outcome, "{found}");
        assert!(found.to_string().replace("\\\"", "\"").contains(words), "{found}");
    }
    house.ardent(&["connector", "create", "postgresql", &url, "--logical"]).refused(2, &["wal_level"]);
}

#[test]
fn changes_of_tables_are_followed_or_said() {
    let production = managed("shop");
    production.sql_in("shop", "set role app; create table t (id int primary key, gone text, kept int); insert into t select n, 'g', n from generate_series(1, 10) n; create table keyless (a int)");
    // Names are written alike on both sides, whatever this role has set.
    production.sql("alter role app set quote_all_identifiers = on");
    let house = House::start();
    house.connect_logical(&production, &["--keyless", "empty"]);
    production.sql_in(
        "shop",
        "set role app; alter table t add column more text default 'it''s' not null; insert into t values (11, 'x', 1, 'y');
         alter table t drop column gone; insert into t values (12, 2, 'z');",
    );
    production.sql_in(
        "shop",
        "set role app; alter table t add column last int; insert into t values (14, 2, 'z', 3); update t set last = id",
    );
    let verified = house.assert_equal_to_production();
    assert_eq!(verified["not_followed"], serde_json::json!(["public.keyless"]), "{verified}");
    let branch = house.branch("dev", "shop");
    assert_eq!(sql(&branch, "select count(*), min(more), sum(last) from t where id <= 10"), "10|it's|55");
    new_tables_are_taken_over(&house, &production);
    // One column under another name, or two columns: nobody can say. Nothing is applied from there on.
    production.sql_in(
        "shop",
        "set role app; alter table t rename column kept to renamed; insert into t values (13, 1, 'a', 1)",
    );
    let problem = wait_until("it is said", 60, || {
        house.json(&["connector", "status", "shop"])["problem"].as_str().map(str::to_owned)
    });
    assert!(problem.contains("public.t") && problem.contains("renamed"), "{problem}");
    assert!(problem.contains("connector resume shop --sql"), "{problem}");
    // How it was when it stopped is said beside it.
    let stopped = house.json(&["connector", "status", "shop"]);
    assert_eq!(stopped["logical"]["phase"], "follow", "{stopped}");
    assert_eq!(stopped["logical"]["tables"], 5, "{stopped}");
    assert!(stopped["logical"]["applied_lsn"].is_string() && stopped["lag_bytes"].is_u64(), "{stopped}");
    house.ardent(&["branch", "create", "late", "--from", "shop"]).refused(1, &["renamed"]);
    house.ok(&["branch", "create", "old", "--from", "shop", "--at", "latest"]);

    // Somebody knows. What is not right is said again, and changes nothing; what is right lets it go on.
    let wrong =
        house.ardent(&["connector", "resume", "shop", "--sql", "alter table t rename column nothing to renamed"]);
    assert!(wrong.code == 1 && wrong.stderr.contains("nothing"), "{wrong:?}");
    house.ardent(&["connector", "resume", "shop"]).refused(1, &["does not go on", "renamed"]);
    house.ok(&["connector", "resume", "shop", "--sql", "alter table t rename column kept to renamed"]);
    // What else changed on production is named.
    production
        .sql_in("shop", "set role app; create index on t (more); alter table t add constraint positive check (id > 0)");
    let verified = house.assert_equal_to_production();
    let named = verified["schema_differences"].to_string();
    assert!(named.contains("CREATE INDEX") && named.contains("positive"), "{verified}");
    assert!(!named.contains("keyless"), "{verified}");
    let branch = house.branch("now", "shop");
    assert_eq!(sql(&branch, "select count(*), sum(renamed) from t where id >= 11"), "4|6");
}

#[test]
fn what_chosen_schemas_leave_out_and_wait_for_is_said() {
    let production = managed("shop");
    production.sql_in(
        "shop",
        "create schema a1 authorization app; create schema a2 authorization app;
         set role app; select lo_create(0);
         create table a1.t (id int primary key); create table a1.slow (id serial primary key);
         create table a1.p (id int primary key) partition by range (id);
         create table a1.p_1 partition of a1.p for values from (0) to (10);
         create table a2.p_2 partition of a1.p for values from (10) to (20);
         insert into a1.t values (1); insert into a1.p values (1), (11)",
    );
    let house = House::start();
    // For as long as it takes until somebody is told.
    let writer = Writer::start(
        &production,
        "with written as (insert into a1.slow default values returning id) select pg_sleep(120) from written",
    );
    wait_until("it writes", 60, || {
        let writes = production.sql("select exists (select from pg_stat_activity where backend_xid is not null)");
        (writes == "t").then_some(())
    });
    let url = managed_url(&production, "shop");
    let create = ["connector", "create", "postgresql", url.as_str(), "--name", "shop", "--logical", "--schemas", "a1"];
    let mut creating = house.background(&create);
    let (mut errors, mut said) = (creating.errors(), String::new());
    while !said.contains("when this has ended: transaction of role app in database shop (process ") {
        assert!(errors.read_line(&mut said).expect("it prints text") > 0, "it ended: {said}");
    }
    let status = house.ardent(&["connector", "status", "shop"]);
    assert!(format!("{status:?}").contains("transaction of role app"), "{status:?}");
    drop(writer);
    production.sql("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(120)%' and pid <> pg_backend_pid()");
    errors.read_to_string(&mut said).expect("it prints text");
    assert_eq!(creating.finish().code, 0, "{said}");
    for words in
        ["not on the root branch: rows of a2.p_2, which table a1.p shows", "not on the root branch: 1 large object:"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    let left_out = house.json(&["connector", "status", "shop"])["logical"]["left_out"].to_string();
    assert!(left_out.contains("rows of a2.p_2") && left_out.contains("1 large object:"), "{left_out}");

    // A column that the root branch has yet to get is named, and all other tables are judged.
    production.sql_in("shop", "set role app; alter table a1.t add column nn int");
    let finished = house.ardent(&["--json", "connector", "verify", "shop"]);
    assert_eq!(finished.code, 3, "{finished:?}");
    let verified: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(verified["not_followed"], serde_json::json!(["a2.p_2"]), "{verified}");
    let tables = verified["tables"].as_array().expect("a list");
    assert_eq!(tables.len(), 3, "{verified}");
    for table in tables {
        let differs = table["table"] == "a1.t";
        assert_eq!(table["equal"], !differs, "{verified}");
        assert_eq!(table["columns_differ"].as_str(), differs.then_some("only production has nn"), "{verified}");
        assert_eq!(table["production_rows"], table["root_rows"], "{verified}");
    }
    let said = house.ardent(&["connector", "verify", "shop"]);
    assert!(said.stdout.contains("columns of a1.t differ: only production has nn"), "{said:?}");
    production.sql_in("shop", "insert into a1.t values (2, 2)");
    house.assert_equal_to_production();
}
