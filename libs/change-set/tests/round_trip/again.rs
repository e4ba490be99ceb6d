//! What a branch drops and makes again under its name: migrations do that with whatever cannot be altered.

use ardent_change_set::{ApplyOptions, Conflict};

use crate::pair::Pair;

/// What the branch point has, and what the branch does.
const CASES: &[(&str, &str)] = &[
    ("create view app.v as select 1 as a", "drop view app.v; create view app.v as select 2 as a"),
    ("create view app.v as select 1 as a", "drop view app.v; create view app.v as select 1 as a"),
    (
        "create view app.v as select id from app.users; create view app.w as select * from app.v",
        "drop view app.v cascade; create view app.v as select name from app.users; create view app.w as select * from app.v",
    ),
    (
        "create materialized view app.m as select 1 as a",
        "drop materialized view app.m; create materialized view app.m as select 2 as a, 3 as b",
    ),
    (
        "create function app.f(int) returns int language sql as 'select 1'",
        "drop function app.f(int); create function app.f(int) returns text language sql as $$select 'x'$$",
    ),
    (
        "create procedure app.p() language sql as 'select 1'",
        "drop procedure app.p(); create procedure app.p() language sql as 'select 2'",
    ),
    (
        "create table app.t (id int primary key, v text); insert into app.t values (1, 'a'), (2, 'b')",
        "drop table app.t; create table app.t (id bigint primary key, w text); insert into app.t values (2, 'c'), (3, 'd')",
    ),
    (
        "create table app.t (id int primary key, v text); insert into app.t values (1, 'a'), (2, 'b')",
        "drop table app.t; create table app.t (id int primary key, v text); insert into app.t values (2, 'b'), (3, 'd')",
    ),
    (
        "create table app.t (id int primary key); insert into app.t values (1)",
        "alter table app.t rename to t_old; create table app.t (id int primary key, v text); insert into app.t select id, 'v' from app.t_old",
    ),
    (
        "create table app.t (id int primary key); create table app.u (id int primary key, v text); insert into app.u values (1, 'v')",
        "drop table app.t; alter table app.u rename to t",
    ),
    (
        "",
        "drop trigger log on app.orders; create trigger log after insert on app.orders for each row execute function app.log()",
    ),
    (
        "",
        "drop trigger log on app.orders; create trigger log after insert or update or delete on app.orders for each row execute function app.log()",
    ),
    (
        "create policy p on app.users using (true)",
        "drop policy p on app.users; create policy p on app.users for select using (flag)",
    ),
    ("create index i on app.users (name)", "drop index app.i; create index i on app.users (at)"),
    (
        "alter table app.users add constraint c check (price > -1)",
        "alter table app.users drop constraint c, add constraint c check (price > -2)",
    ),
    (
        "",
        "alter table app.orders drop constraint orders_user_id_fkey, add constraint orders_user_id_fkey foreign key (user_id) references app.users on delete set null",
    ),
    (
        "create table app.t (id int constraint k primary key, v int not null)",
        "alter table app.t drop constraint k, add constraint k primary key (v)",
    ),
    ("", "drop sequence app.numbers; create sequence app.numbers increment 7 start 14; select nextval('app.numbers')"),
    (
        "create rule r as on insert to app.fat do also select 1",
        "drop rule r on app.fat; create rule r as on insert to app.fat do also select 2",
    ),
    (
        "create statistics app.s (ndistinct) on name, mail from app.users",
        "drop statistics app.s; create statistics app.s (dependencies) on name, at from app.users",
    ),
    (
        "create function app.e() returns event_trigger language plpgsql as 'begin end'; create event trigger e on ddl_command_end execute function app.e()",
        "drop event trigger e; create event trigger e on sql_drop execute function app.e()",
    ),
    ("create publication p for table app.users", "drop publication p; create publication p for table app.fat"),
    (
        "create aggregate app.g(int) (sfunc = int4pl, stype = int, initcond = '0')",
        "drop aggregate app.g(int); create aggregate app.g(int) (sfunc = int4pl, stype = int, initcond = '5')",
    ),
    (
        "create schema extra; create table extra.t (id int primary key); insert into extra.t values (1)",
        "drop schema extra cascade; create schema extra; create table extra.t (id int primary key, v int); insert into extra.t values (2, 3)",
    ),
    ("create domain app.d as int check (value > 0)", "drop domain app.d; create domain app.d as text default 'x'"),
    ("create type app.c as (a int)", "drop type app.c; create type app.c as (b text, c text)"),
    ("create type app.e as enum ('a', 'b')", "drop type app.e; create type app.e as enum ('c')"),
    ("create type app.n as (a int)", "drop type app.n; create domain app.n as text"),
    (
        "create collation app.c from \"C\"",
        "drop collation app.c; create collation app.c (provider = icu, locale = 'de')",
    ),
    ("", "alter table app.fat drop column body; alter table app.fat add column body int default 3"),
    ("", "alter table app.fat drop column body; alter table app.fat add column body text default 'x'"),
    ("", "alter table app.users alter mood set default 'bad'"),
    ("", "alter table app.users alter mood drop default; alter table app.users alter mood set default 'good'"),
    ("create extension citext schema app", "drop extension citext; create extension citext schema public"),
    (
        "create table app.q (id int primary key, at int) ; create table app.r (id int references app.q)",
        "drop table app.q cascade; create table app.q (id int primary key, at text); alter table app.r add foreign key (id) references app.q",
    ),
    (
        "",
        "drop table app.events_b; create table app.events_b partition of app.events for values from ('2026-07-01') to ('2028-01-01')",
    ),
    (
        "create view app.v as select id, name from app.users",
        "comment on column app.v.id is 'vc'; grant select (id) on app.v to public; update app.users set name = 'x' where id = 1",
    ),
    // Names that go round.
    (
        "create table app.t (id int primary key, u int, u2 int); insert into app.t values (1, 2, 3)",
        "alter table app.t rename u to x; alter table app.t rename u2 to u; alter table app.t rename x to u2",
    ),
    (
        "create table app.live (id int primary key, v text); insert into app.live values (1, 'live'); create table app.staging (id int primary key, v text); insert into app.staging values (1, 'staging')",
        "alter table app.live rename to old; alter table app.staging rename to live; alter table app.old rename to staging",
    ),
    (
        "create table app.live (id int primary key, v text); insert into app.live values (1, 'live'); create table app.staging (id int primary key, v text, w int); insert into app.staging values (1, 'staging', 2)",
        "alter table app.live rename to old; alter table app.staging rename to live; alter table app.old rename to staging; insert into app.live values (2, 'new', 3)",
    ),
    (
        "create extension postgres_fdw; create server s version '1' foreign data wrapper postgres_fdw options (host 'a', port '1'); create user mapping for current_user server s options (user 'u'); create foreign table app.ft (a int options (column_name 'x'), b int) server s options (table_name 't')",
        "alter server s version '2' options (set host 'b=c', drop port, add dbname 'd'); alter foreign table app.ft options (set table_name 'q', add schema_name 'w'); alter foreign table app.ft alter a options (set column_name 'y'); alter foreign table app.ft alter b options (add column_name 'z')",
    ),
    (
        "create table app.g (id int primary key, a int, b int generated always as (a * 2) stored); insert into app.g (id, a) values (1, 1), (2, 2); create index on app.g (b); create view app.gv as select b from app.g",
        "alter table app.g alter b drop expression; update app.users set name = 'x' where id = 1",
    ),
    (
        "create table app.g (id int primary key, a int, b int generated always as (a * 2) stored); insert into app.g (id, a) values (1, 1), (2, 2); create view app.gv as select b from app.g",
        "alter table app.g alter b drop expression; update app.g set b = 99 where id = 1; insert into app.g values (3, 3, 3)",
    ),
    (
        "",
        "comment on large object 7001 is 'x'; select lo_unlink(7003); select lo_from_bytea(7011, 'new'); select lo_put(7002, 4990, 'longer than it was'); select lo_truncate(lo_open(7001, 131072), 1)",
    ),
    ("create materialized view app.mm as select 1 as a", "refresh materialized view app.mm with no data"),
    ("create materialized view app.mm as select 1 as a with no data", "refresh materialized view app.mm"),
    (
        "",
        "create materialized view app.mm as select id from app.users with no data; update app.users set name = 'x' where id = 1",
    ),
    ("create type app.mm as enum ('a')", "set search_path = app;create domain app.nd as mm[] default '{}'"),
    ("create policy p on app.users using (true)", "alter policy p on app.users using (flag) with check (true)"),
    ("create publication p for table app.users, app.fat", "alter publication p drop table app.fat"),
];

/// A base that `before` was run in, and a head of it that the change was made in.
fn prepare(pair: &Pair, before: &str, change: &str) {
    pair.new_base(&[before.to_owned()]);
    pair.copy("base", "head");
    for statement in change.split("; ") {
        pair.sql_in("head", statement);
    }
}

/// By applying, and by the script.
#[test]
fn what_is_dropped_and_made_again_is_no_conflict() {
    let pair = Pair::new();
    for (before, change) in CASES.iter().chain(ROWS) {
        prepare(&pair, before, change);
        let set = pair.round_trip(change);
        pair.assert_scripted(&set, change);
    }
}

/// Rows that others follow, by keys and triggers.
const ROWS: &[(&str, &str)] = &[
    (
        "create table app.z (id int primary key); create table app.a (id int primary key, z int references app.z on update cascade on delete cascade); insert into app.z values (1), (2), (3); insert into app.a values (1, 1), (2, 2), (3, 3)",
        "update app.z set id = 20 where id = 2; delete from app.z where id = 3; insert into app.z values (4); insert into app.a values (4, 4)",
    ),
    ("", "update app.orders set note = 'x' where id in (1, 2); delete from app.orders where id = 3"),
    (
        "create type app.p as (a int, b text); create table app.k (p app.p, j json, x point, c char(5), m money, f float8); insert into app.k values ((1, 'a'), '{\"a\": 1}', '(1,2)', 'ab', 12.5, 0.1), ((1, null), null, '(3,4)', 'ab ', null, 'NaN'), ((null, null), '[1]', null, null, -3, '-0'), (null, 'null', '(0,0)', '', 0, 1e300)",
        "delete from app.k where f = 'NaN'; delete from app.k where m < 0::money; update app.k set m = 7 where f = 1e300; delete from app.k where f = 0.1",
    ),
];

#[test]
fn what_the_target_did_to_what_is_made_again_is_a_conflict() {
    let pair = Pair::new();
    let check = |branch: &str, target: &str, expect: &[&str]| {
        pair.new_base(&[
            "create view app.v as select 1 as a".to_owned(),
            "create table app.t (id int primary key)".to_owned(),
        ]);
        pair.copy("base", "head");
        pair.sql_in("head", branch);
        let set = pair.diff();
        pair.copy("base", "target");
        pair.sql_in("target", target);
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        let text = |conflict: &Conflict| match conflict {
            Conflict::Schema { object, why, .. } => format!("{object}: {why}"),
            other => format!("{other:?}"),
        };
        let conflicts: Vec<String> = applied.conflicts.iter().map(text).collect();
        assert_eq!(conflicts, expect, "{branch} / {target}");
    };
    let again = "drop view app.v; create view app.v as select 2 as a";
    check(again, "create or replace view app.v as select 3 as a", &["view app.v: both changed it"]);
    let gone = ["column a of view app.v", "view app.v"];
    let gone = gone.map(|what| format!("{what}: the branch changed or dropped it; the target has none"));
    check(again, "drop view app.v", &gone.each_ref().map(String::as_str));
    // The same on both sides needs nothing.
    check(again, again, &[]);
    let again = "drop table app.t; create table app.t (id int primary key, v int)";
    check(
        again,
        "alter table app.t add column w int",
        &["column w of table app.t: the branch dropped table app.t; the target gave it this"],
    );
    let both = ["column a of view app.x: both made it", "view app.x: both made it"];
    check("create view app.x as select 1 as a", "create view app.x as select 2 as a", &both);
}
