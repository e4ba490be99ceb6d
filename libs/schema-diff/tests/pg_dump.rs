//! The plan between two databases, run on a copy of the first, makes `pg_dump --schema-only` of both equal: on a schema with
//! something of everything and on random changes, there and back.

mod random;

use ardent_schema_diff::{Catalog, CatalogQueries, Identity, Plan, plan};
use ardent_test_pg::{TestPg, TestPgOptions, program, server_command, test_major};

const RICH: &str = include_str!("rich.sql");
const CHANGES: &str = include_str!("changes.sql");

/// What later majors have besides.
const RICH_FROM: [(u32, &str); 2] = [
    (
        17,
        "create collation sales.codepoints (provider = builtin, locale = 'C.UTF-8');
         create table sales.parted (id int generated always as identity, k int not null) partition by list (k);
         create table sales.parted_1 partition of sales.parted for values in (1);
         grant maintain on sales.customers to writer",
    ),
    (
        18,
        "create table sales.shapes (id int primary key, w int, h int, area int generated always as (w * h) virtual,
           bytes int generated always as (length('x')) stored, constraint not_null_width not null w,
           constraint wide check (w > 10) not enforced);
         create publication shapes_out for table sales.shapes with (publish_generated_columns = stored);
         alter default privileges grant select on large objects to reader",
    ),
];

fn run(pg: &TestPg, database: &str, script: &str) {
    pg.try_sql_in(database, script).unwrap_or_else(|error| panic!("in {database}: {error}\n{script}"));
}

/// Asked for in one session: what a connection costs, most of all, is its own first look at the catalogs.
fn catalog(pg: &TestPg, database: &str) -> Catalog {
    let queries = CatalogQueries::new().statements;
    // Each answer is one line, so that answers can be told apart.
    let asked: String =
        queries.iter().map(|query| format!("select coalesce(jsonb_agg(q.v), '[]') from ({query}) q(v);\n")).collect();
    let answer = pg.sql_in(database, &format!("set search_path = pg_catalog;\n{asked}"));
    let answers: Vec<Vec<String>> = answer
        .lines()
        .map(|line| {
            let rows: Vec<serde_json::Value> = serde_json::from_str(line).expect("JSON");
            rows.iter().map(serde_json::Value::to_string).collect()
        })
        .collect();
    assert_eq!(answers.len(), queries.len());
    Catalog::from_answers(&answers).expect("a catalog")
}

fn dump(pg: &TestPg, database: &str) -> String {
    let output = server_command(program("pg_dump"))
        .args(["--schema-only", "-d"])
        .arg(pg.socket_url(database))
        .output()
        .expect("pg_dump can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Newer minors begin and end with a word that is another one each time.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| !line.contains("restrict ")).map(|line| format!("{line}\n")).collect()
}

fn script(plan: &Plan) -> String {
    let statements: Vec<String> = plan.statements.iter().map(|statement| format!("{};\n", statement.sql)).collect();
    format!(
        "begin; set local search_path = pg_catalog; set local check_function_bodies = off;\n{}commit;",
        statements.concat()
    )
}

#[derive(Clone, Copy)]
enum Exact {
    Whole,
    ButForColumnOrder,
}

/// Runs the plan from `old` to `new` on a copy of `old`; panics if the copy's dump is not `new`'s then.
fn check(pg: &TestPg, old: &str, new: &str, identity: Identity, exact: Exact) {
    let found = plan(&catalog(pg, old), &catalog(pg, new), identity);
    assert_eq!(found.not_covered, Vec::<String>::new(), "{}", script(&found));
    let copy = "copy";
    pg.sql(&format!("drop database if exists {copy}"));
    pg.sql(&format!("create database {copy} template {old}"));
    let script = script(&found);
    if let Err(error) = pg.try_sql_in(copy, &script) {
        panic!("{old} to {new} {identity:?}: {error}\n{script}");
    }
    let (wanted, got) = (dump(pg, new), dump(pg, copy));
    let equal = match exact {
        Exact::Whole => wanted == got,
        // A column that comes back comes last: Postgres has no statement for its place.
        Exact::ButForColumnOrder => {
            let sorted = |text: &str| {
                let mut lines: Vec<&str> = text.lines().map(|line| line.trim_end_matches(',')).collect();
                lines.sort_unstable();
                lines.join("\n")
            };
            sorted(&wanted) == sorted(&got)
        }
    };
    if !equal {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        let (wanted_lines, got_lines) = (lines(&wanted), lines(&got));
        let missing: Vec<_> = wanted_lines.difference(&got_lines).collect();
        let surplus: Vec<_> = got_lines.difference(&wanted_lines).collect();
        let place = wanted.lines().zip(got.lines()).position(|(a, b)| a != b).unwrap_or(0);
        let around = |text: &str| text.lines().skip(place.saturating_sub(4)).take(12).collect::<Vec<_>>().join("\n");
        println!("wanted:\n{}\ngot:\n{}", around(&wanted), around(&got));
        panic!("{old} to {new} {identity:?}: missing {missing:#?}\nsurplus {surplus:#?}\n{script}");
    }
    let again = plan(&catalog(pg, copy), &catalog(pg, new), Identity::Name);
    assert!(again.is_empty(), "{}\n{:?}", self::script(&again), again.not_covered);
}

fn server() -> TestPg {
    let pg = TestPg::start(TestPgOptions::default().set("fsync", "off"));
    pg.sql("create role reader; create role writer; create role owner_a; create role owner_b");
    pg
}

#[test]
fn a_rich_schema_there_and_back() {
    let pg = server();
    pg.sql("create database base");
    run(&pg, "base", RICH);
    for (_, more) in RICH_FROM.iter().filter(|(from, _)| *from <= test_major()) {
        run(&pg, "base", more);
    }
    pg.sql("create database head template base");
    for (number, statement) in CHANGES.split(";;\n").enumerate() {
        pg.try_sql_in("head", statement).unwrap_or_else(|error| panic!("change {number}: {error}\n{statement}"));
    }
    let same = plan(&catalog(&pg, "base"), &catalog(&pg, "base"), Identity::Oid);
    assert!(same.is_empty());
    check(&pg, "base", "head", Identity::Oid, Exact::Whole);
    check(&pg, "head", "base", Identity::Oid, Exact::ButForColumnOrder);
    check(&pg, "base", "head", Identity::Name, Exact::ButForColumnOrder);
    check(&pg, "head", "base", Identity::Name, Exact::ButForColumnOrder);
    pg.sql("create database nothing");
    check(&pg, "nothing", "head", Identity::Name, Exact::Whole);
    check(&pg, "head", "nothing", Identity::Name, Exact::Whole);
}

/// From one schema to what changes make of it and back, by number and by name.
fn there_and_back(base: &str, changes: &str) {
    let pg = server();
    pg.sql("create database base");
    run(&pg, "base", base);
    pg.sql("create database head template base");
    run(&pg, "head", changes);
    for identity in [Identity::Oid, Identity::Name] {
        check(&pg, "base", "head", identity, Exact::ButForColumnOrder);
        check(&pg, "head", "base", identity, Exact::ButForColumnOrder);
    }
}

const INHERITED: &str =
    "create table parent (a int, b text, c int); create table child (d int, e int generated always as (c + 1) stored) inherits (parent);
     alter table child alter a set not null, alter b set statistics 50, alter b set storage external, alter a set default 7;
     comment on column child.a is 'the child''s'; grant select (a) on child to reader; create view seen as select a from child;
     create table parted (id int, k int, v text) partition by list (k); create table parted_1 partition of parted for values in (1);
     alter table parted_1 alter id set not null, alter v set statistics 60; comment on column parted_1.id is 'the partition''s'";

/// Each in a schema of its own: its name, what it begins with, and what changes it. What failed once.
const CASES: [(&str, &str, &str); 11] = [
    // Columns that come with those of another table have settings of their own.
    (
        "columns_of_a_parent",
        INHERITED,
        "drop view seen; alter table parent drop a, drop b; alter table parted drop id, drop v",
    ),
    // So has a table that comes with columns of the one that it inherits from.
    (
        "child_that_comes",
        INHERITED,
        "drop view seen; drop table child; alter table parent drop a",
    ),
    (
        "partition_that_comes",
        INHERITED,
        "drop view seen; drop table child, parted_1; alter table parted drop id",
    ),
    (
        "view_without_columns",
        "create table nothing ()",
        "create view none as select * from nothing",
    ),
    // Of a table whose columns come and go.
    (
        "privileges_of_columns",
        "create table t (a int, b int, d int); grant update on t to reader; grant select (a, b, d) on t to reader;
         create view v as select a from t; grant insert on v to writer; grant select (a) on v to writer",
        "alter table t drop d, drop b, add c int, add d text; revoke all on t from reader;
         grant delete on t to reader; grant insert (c), select (d) on t to reader, writer;
         create or replace view v as select a, c from t; revoke all on v from writer; grant update (c) on v to writer",
    ),
    // A sequence follows the owner of the table that it belongs to.
    (
        "owners_of_sequences",
        "create table kept (id serial); create table from_here (id serial); create table to_there (id int);
         create sequence alone; create table freed (id serial); create sequence taken; create table takes (id int);
         alter table from_here owner to owner_a; alter sequence alone owner to owner_a",
        "alter table kept owner to owner_b; alter table to_there owner to owner_b; alter sequence alone owner to owner_b;
         alter table from_here alter id drop default;
         alter sequence from_here_id_seq owned by none; alter sequence from_here_id_seq owner to owner_b;
         alter sequence from_here_id_seq owned by to_there.id;
         alter table freed alter id drop default; alter sequence freed_id_seq owned by none; alter sequence freed_id_seq owner to owner_a;
         alter table takes owner to owner_a; alter sequence taken owner to owner_a; alter sequence taken owned by takes.id",
    ),
    // Indexes and sequences get new names where their table takes them along.
    (
        "carried_to_a_schema",
        "create schema a; create schema b; create table a.t (id serial, n int); create index t_n on a.t (n);
         create table b.u (n int); create index u_n on b.u (n)",
        "alter table a.t set schema b; alter index b.u_n rename to u_other; alter index b.t_n rename to u_n;
         alter sequence b.t_id_seq rename to counted",
    ),
    // A column gets another type though a function takes rows of its table.
    (
        "function_of_rows",
        "create type mood as enum ('good', 'bad'); create table tree (id int, label text, c mood);
         create function label_of(tree) returns text language sql stable begin atomic select $1.label; end;
         create function plain(tree) returns text language sql stable as 'select $1.label'; create view seen as select label_of(t) from tree t",
        "drop view seen; drop function label_of(tree); alter table tree alter c type text, alter id type bigint;
         create function label_of(tree) returns text language sql stable begin atomic select $1.label; end;
         create view seen as select label_of(t) from tree t",
    ),
    // Of a partition's two equal indexes that which belongs to the whole does.
    (
        "equal_indexes",
        "create table parted (k int, v text) partition by list (k); create table parted_1 partition of parted for values in (1);
         create table parted_2 partition of parted for values in (2); create index parted_v on parted (v)",
        "create index again on parted_1 (v); drop index parted_v; create index belongs on parted_1 (v); create index parted_w on only parted (v);
         alter index parted_w attach partition belongs; create index other on parted_2 (v); alter index parted_w attach partition other",
    ),
    // Attributes have comments, which stay with them whatever they are called.
    (
        "comments_of_attributes",
        "create type place as (street text, \"Zip\" int, city text); comment on column place.street is 'was';
         comment on column place.\"Zip\" is 'goes'; create type plain as (a int); create type gone as (a int); comment on column gone.a is 'x'",
        "alter type place rename attribute street to road; comment on column place.road is 'is'; alter type place drop attribute \"Zip\";
         alter type place alter attribute city type varchar(10); comment on column place.city is 'it''s a city';
         alter type place add attribute \"No\" int; comment on column place.\"No\" is 'new'; comment on column plain.a is 'alone';
         drop type gone; create type fresh as (b text, c int); comment on column fresh.c is 'fresh'",
    ),
    // A column of partitions loses its expression, with what leans on it.
    (
        "expressions_of_partitions",
        "create table parted (id int, v int, twice int generated always as (v * 2) stored) partition by list (id);
         create table parted_1 partition of parted for values in (1); create index parted_twice on parted (twice);
         comment on column parted.twice is 'two times'; comment on column parted_1.twice is 'here too';
         alter table parted_1 alter twice set statistics 30; create view seen as select twice from parted",
        "alter table parted alter twice drop expression",
    ),
];

/// In one server, as what is compared costs more than what is in it.
#[test]
fn small_changes_there_and_back() {
    let (mut base, mut changes) = (String::new(), String::new());
    for (name, before, change) in CASES {
        base.push_str(&format!("create schema {name}; set search_path = {name};\n{before};\n"));
        changes.push_str(&format!("set search_path = {name};\n{change};\n"));
    }
    there_and_back(&base, &changes);
}

/// `ARDENT_SEEDS` says how many, `ARDENT_SEED` which one alone.
#[test]
fn random_changes_there_and_back() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds: Vec<u64> = match number("ARDENT_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("ARDENT_SEEDS").unwrap_or(4)).collect(),
    };
    let pg = server();
    for seed in seeds {
        println!("seed {seed}");
        let mut changes = random::Changes::new(seed);
        pg.sql("drop database if exists base");
        pg.sql("drop database if exists head");
        pg.sql("create database base");
        run(&pg, "base", RICH);
        changes.apply(&pg, "base", 15);
        pg.sql("create database head template base");
        changes.apply(&pg, "head", 25);
        check(&pg, "base", "head", Identity::Oid, Exact::Whole);
        check(&pg, "head", "base", Identity::Oid, Exact::ButForColumnOrder);
    }
}
