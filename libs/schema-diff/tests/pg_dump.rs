//! The plan between two databases, run on a copy of the first, makes `pg_dump --schema-only` of both equal: on a schema with
//! something of everything and on random changes, there and back.

mod random;

use ardent_schema_diff::{Catalog, CatalogQueries, Identity, Plan, Section, plan};
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
const CASES: [(&str, &str, &str); 21] = [
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
    // A foreign key holds on to partitions, of several levels.
    ("partition_that_is_referenced", REFERENCED, "create table p2 partition of p for values in (2)"),
    (
        "partitions_that_are_referenced",
        REFERENCED,
        "alter table p detach partition p0; drop table p0; alter table m detach partition m5",
    ),
    (
        "tree_that_is_referenced",
        REFERENCED,
        "alter table p detach partition m; drop table m; create table p2 partition of p for values in (2);
         create table n partition of p for values in (7, 8) partition by list (k); create table n7 partition of n for values in (7)",
    ),
    (
        "default_partition_that_is_referenced",
        REFERENCED,
        "create table rest partition of p default; alter table c drop constraint c_pid_k_fkey; alter table p detach partition p1;
         create table p3 partition of p for values in (1, 3); alter table p attach partition p1 for values in (4);
         alter table c add foreign key (pid, k) references p; create table d (id int, k int, foreign key (id, k) references m)",
    ),
    // One that references its own table comes and goes with the partitions.
    (
        "partitions_in_a_circle",
        "create table s (id int, k int, above int, primary key (id, k), foreign key (above, k) references s) partition by list (k);
         create table s0 partition of s for values in (0); create table s1 partition of s for values in (1);
         create table gone (id int primary key, above int references gone) partition by list (id); create table gone_1 partition of gone for values in (1)",
        "alter table s detach partition s1; drop table s1; create table s2 partition of s for values in (2, 3) partition by list (k);
         create table s3 partition of s2 for values in (3); drop table gone;
         create table fresh (id int primary key, above int references fresh) partition by list (id); create table fresh_1 partition of fresh for values in (1)",
    ),
    // A partition stays though its table goes, moves to another, or becomes one.
    (
        "partitions_that_move",
        "create table a (id int, k int, v int, primary key (id, k)) partition by list (k); create table a0 partition of a for values in (0);
         create table a1 partition of a for values in (1); create table b (id int, k int, v int, primary key (id, k)) partition by list (k);
         create table b5 partition of b for values in (5); create index b_v on b (v); create table c (id int, k int, foreign key (id, k) references b);
         create table q (id int) partition by list (id); create table q0 partition of q for values in (0); create table q1 partition of q for values in (1);
         create table alone (id int, k int, v int, primary key (id, k)); create function f() returns trigger language plpgsql as 'begin return new; end';
         create trigger each after insert on b for each row execute function f(); create index alone_v on alone (v)",
        "alter table a detach partition a1; create index a1_v on a1 (v); alter table b attach partition a1 for values in (1);
         alter table q detach partition q0; drop table q; alter table b attach partition alone for values in (9)",
    ),
    // What is inherited until then changes with it.
    (
        "detached_and_changed",
        "create table q (id int primary key, v text, w int, constraint positive check (id > 0)) partition by list (id); create index q_v on q (v);
         create table q1 partition of q for values in (1); create table q2 partition of q for values in (2)",
        "alter table q detach partition q1; alter table q1 drop column v, drop constraint positive; alter table q1 drop constraint q1_pkey;
         alter table q detach partition q2; alter table q add column x int; alter table q2 add column x int;
         alter table q attach partition q2 for values in (2, 3)",
    ),
    (
        "detached_and_renamed",
        "create table q (id int, k int, v text, primary key (id, k), constraint filled check (v <> '')) partition by list (k);
         create table q1 partition of q for values in (1); create table q2 partition of q for values in (2)",
        "alter table q detach partition q1; alter table q rename column v to w; alter table q1 rename column v to w",
    ),
    (
        "labels_of_an_enum_that_nobody_uses",
        "create type mood as enum ('bad', 'good')",
        "alter type mood rename value 'good' to 'fine'; alter type mood add value 'best'",
    ),
    (
        "keys_of_partitions",
        "create table x (id int primary key) partition by list (id); create table x1 partition of x for values in (1);
         create table y (id int, x int references x, constraint positive check (x > 0)) partition by list (id); create table y1 partition of y for values in (1);
         create table y2 partition of y for values in (2)",
        "create table x2 partition of x for values in (2); create table y3 partition of y for values in (3); alter table y detach partition y1;
         alter table y detach partition y2; drop table y2",
    ),
];

const REFERENCED: &str =
    "create table p (id int, k int, v text, primary key (id, k)) partition by list (k); create index p_v on p (v);
     create table p0 partition of p for values in (0); create table p1 partition of p for values in (1);
     create table m partition of p for values in (5, 6) partition by list (k);
     create table m5 partition of m for values in (5); create table m6 partition of m for values in (6);
     create table c (id int, pid int, k int, foreign key (pid, k) references p)";

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

/// Runs the plan from `old` to `new` on a copy of `old`, with the change of rows where an apply has it.
fn check_with_rows(pg: &TestPg, old: &str, new: &str, rows: &str) {
    let found = plan(&catalog(pg, old), &catalog(pg, new), Identity::Oid);
    assert_eq!(found.not_covered, Vec::<String>::new(), "{}", script(&found));
    let of = |section: Section| -> String {
        let statements = found.statements.iter().filter(|statement| statement.section == section);
        statements.map(|statement| format!("{};\n", statement.sql)).collect()
    };
    let (before, after) = (of(Section::BeforeRows), of(Section::AfterRows));
    pg.sql("drop database if exists copy");
    pg.sql(&format!("create database copy template {old}"));
    run(
        pg,
        "copy",
        &format!(
            "begin; set local search_path = pg_catalog;\n{before}set constraints all deferred;\n{rows};\nset constraints all immediate;\n{after}commit;"
        ),
    );
    let again = plan(&catalog(pg, "copy"), &catalog(pg, new), Identity::Name);
    assert!(again.is_empty(), "{}\n{:?}", script(&again), again.not_covered);
    let count = |database: &str| pg.sql_in(database, "select * from s.p order by id, k; select * from s.c order by id");
    assert_eq!(count("copy"), count(new));
}

/// What changes, with the rows; the change of rows alone, there and back.
const ROWS: [(&str, &str, &str); 4] = [
    (
        "delete from s.c where k = 0; alter table s.p detach partition s.p0; drop table s.p0",
        "delete from s.c where k = 0",
        "insert into s.p0 values (1, 0); insert into s.c values (10, 1, 0)",
    ),
    (
        "delete from s.c where k = 0; alter table s.p detach partition s.p0",
        "delete from s.c where k = 0",
        "insert into s.c values (10, 1, 0)",
    ),
    (
        "alter table s.c drop constraint refers; alter table s.p detach partition s.p1; alter table s.p attach partition s.p1 for values in (1, 3);
         insert into s.p values (5, 3); insert into s.c values (50, 5, 3);
         alter table s.c add constraint refers foreign key (pid, k) references s.p deferrable initially deferred",
        "insert into s.p1 values (5, 3); insert into s.c values (50, 5, 3)",
        "delete from s.c where k = 3; delete from s.p1 where k = 3",
    ),
    (
        "alter table s.c drop constraint refers; alter table s.p detach partition s.rest; create table s.p7 partition of s.p for values in (7);
         insert into s.p select * from s.rest where k = 7; delete from s.rest where k = 7; alter table s.p attach partition s.rest default;
         alter table s.c add constraint refers foreign key (pid, k) references s.p deferrable initially deferred",
        "delete from s.rest where k = 7; insert into s.p7 values (7, 7)",
        "insert into s.rest values (7, 7)",
    ),
];

/// A foreign key is checked against partitions that come and go, and against their rows.
#[test]
fn partitions_come_and_go_with_the_rows_that_refer_to_theirs() {
    let pg = server();
    pg.sql("create database base");
    run(
        &pg,
        "base",
        "create schema s; create table s.p (id int, k int, primary key (id, k)) partition by list (k); create table s.p0 partition of s.p for values in (0);
         create table s.p1 partition of s.p for values in (1); create table s.rest partition of s.p default;
         create table s.c (id int, pid int, k int, constraint refers foreign key (pid, k) references s.p deferrable initially deferred);
         insert into s.p values (1, 0), (1, 1), (7, 7); insert into s.c values (10, 1, 0), (11, 1, 1), (17, 7, 7)",
    );
    for (change, there, back) in ROWS {
        pg.sql("drop database if exists head");
        pg.sql("create database head template base");
        run(&pg, "head", change);
        check_with_rows(&pg, "base", "head", there);
        check_with_rows(&pg, "head", "base", back);
    }
    // Where nothing is in the way of a new one.
    run(
        &pg,
        "base",
        "delete from s.c where k = 7; delete from s.rest; set constraints all immediate; alter table s.p detach partition s.rest; drop table s.rest",
    );
    pg.sql("drop database head");
    pg.sql("create database head template base");
    let rows = "insert into s.p2 values (2, 2); insert into s.c values (20, 2, 2)";
    run(&pg, "head", &format!("create table s.p2 partition of s.p for values in (2); {rows}"));
    check_with_rows(&pg, "base", "head", rows);
    check_with_rows(&pg, "head", "base", "delete from s.c where k = 2");
}

/// Postgres has no statement that takes back what `NO INHERIT` makes of columns.
#[test]
fn columns_that_stay_a_table_s_own_are_named() {
    let pg = server();
    pg.sql("create database base");
    run(
        &pg,
        "base",
        "create schema app; create table app.animal (name text); create table app.dog (bark text) inherits (app.animal)",
    );
    pg.sql("create database head template base");
    run(&pg, "head", "alter table app.dog no inherit app.animal");
    let (base, head) = (catalog(&pg, "base"), catalog(&pg, "head"));
    assert_eq!(plan(&base, &head, Identity::Oid).not_covered, Vec::<String>::new());
    let back = plan(&head, &base, Identity::Oid);
    let sql: Vec<&str> = back.statements.iter().map(|statement| statement.sql.as_str()).collect();
    assert_eq!(sql, ["ALTER TABLE app.dog INHERIT app.animal"]);
    assert!(
        matches!(&back.not_covered[..], [told] if told.starts_with("table app.dog: ") && told.ends_with(": name")),
        "{back:?}"
    );
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
