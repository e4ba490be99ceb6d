//! Columns that come and go, with what rows have in them.

use ardent_change_set::{ApplyError, ApplyOptions, Conflict};

use crate::pair::{Pair, script};

#[test]
fn rows_that_only_postgres_computes_anew_are_not_there_already() {
    let pair = Pair::new();
    pair.copy("base", "head");
    // 40 rows of `tree` differ in the new column alone, which nobody writes; one of them in another column too.
    pair.sql_in(
        "head",
        "alter table app.tree add column made text generated always as ('x' || id) stored; update app.tree set label = 'new' where id = 7",
    );
    let set = pair.round_trip("a computed column");
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!((applied.rows.updated, applied.already_there), (1, 0));
    assert_eq!(pair.sql_in("target", "select count(made) from app.tree"), "40");
}

/// Postgres keeps the value that old rows have in a new column with the partitions, and with none that was rewritten since.
#[test]
fn a_column_that_partitions_were_given_has_its_value_in_all_rows() {
    let pair = Pair::new();
    pair.sql_in("base", "alter table app.events add column before text default 'was'");
    pair.sql_in("base", "update app.events set before = null where id = 2");
    pair.copy("base", "head");
    for change in [
        "alter table app.events add column level int default 7",
        "update app.events set level = null where id in (1, 99)",
        "update app.events set level = 8 where id in (3, 98)",
        "vacuum full app.events_b",
        "create table app.events_c partition of app.events for values from ('2027-01-01') to ('2028-01-01')",
        "insert into app.events values (200, '2027-02-01', 'later', 'is', null)",
        "alter table app.events drop column before",
    ] {
        pair.sql_in("head", change);
    }
    pair.round_trip("a column of partitions");
}

/// Nothing is null in them, once all rows are there.
#[test]
fn columns_that_must_not_be_null_come_and_go() {
    let pair = Pair::new();
    pair.copy("base", "head");
    for change in [
        "alter table app.tree add column must int",
        "update app.tree set must = -id",
        "alter table app.tree alter must set not null",
        "alter table app.users add column empty text not null default 'x'",
        "alter table app.users alter empty drop default",
        "alter table app.unique_only drop column code",
        "alter table app.seats drop column seat",
    ] {
        pair.sql_in("head", change);
    }
    pair.round_trip("columns that must not be null");
    let flags = "select string_agg(attnotnull::text, ' ' order by attname) from pg_attribute
        where (attrelid, attname) in (('app.tree'::regclass, 'must'), ('app.users'::regclass, 'empty'))";
    let set = pair.diff();
    pair.copy("base", "target");
    pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!(pair.sql_in("target", flags), "true true");
}

#[test]
fn what_a_dropped_column_held_comes_back_where_it_was_null_and_others_were_not() {
    let pair = Pair::new();
    pair.sql_in("base", "alter table app.tree add column kept text default 'was'");
    pair.sql_in("base", "update app.tree set kept = null where id = 4; update app.tree set kept = 'own' where id = 5");
    pair.sql_in("base", "alter table app.keyless add column kept text default 'was'");
    pair.sql_in("base", "update app.keyless set kept = null where a = 4");
    pair.copy("base", "head");
    pair.sql_in("head", "alter table app.tree drop column kept; alter table app.keyless drop column kept");
    pair.round_trip("a column with a value of its own");
}

#[test]
fn what_a_dropped_column_held_comes_back_to_rows_without_a_key() {
    let pair = Pair::new();
    // Alike in all but the columns that go, and in some of those.
    pair.sql_in(
        "base",
        "insert into app.keyless values (50, 'same', null), (50, 'same', '{}'), (50, 'same', '{}'), (50, 'other', null), (50, null, '{}')",
    );
    pair.copy("base", "head");
    for change in [
        "update app.keyless set a = 51 where ctid = (select max(ctid) from app.keyless where b = 'same')",
        "delete from app.keyless where a = 3",
        "insert into app.keyless values (50, 'same', '{}'), (52, 'new', '{}')",
        "alter table app.keyless drop column c",
        // The key goes with its column.
        "alter table app.seats drop column id",
        "update app.seats set seat = 'new' where seat = 's3'",
    ] {
        pair.sql_in("head", change);
    }
    pair.round_trip("columns without a key");

    // One of two columns is chosen; what rows have in the other one stays theirs.
    pair.sql_in("head", "alter table app.keyless drop column b");
    let set = pair.diff();
    for column in ["b", "c"] {
        pair.copy("base", "target");
        let objects = vec![format!("column {column} of table app.keyless")];
        let applied = pair.apply("target", &set, &ApplyOptions { objects, ..ApplyOptions::default() });
        assert_eq!((applied.conflicts, applied.statements), (vec![], 1));
        let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
        assert_eq!(undone.conflicts, [], "{}", script(&applied.inverse));
        pair.assert_equal("target", "base", column, &applied.inverse);
    }
}

#[test]
fn rows_without_a_key_that_others_refer_to_are_not_taken_away_for_what_a_column_held() {
    let pair = Pair::new();
    pair.sql_in(
        "base",
        "create table app.above (code text unique, v int); insert into app.above values ('a', 1);
         create table app.below (id int primary key, code text references app.above (code) on delete cascade); insert into app.below values (1, 'a')",
    );
    pair.copy("base", "head");
    pair.sql_in("head", "alter table app.above drop column v");
    let set = pair.diff();
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert!(
        applied.notes.iter().any(|note| note.contains("app.above") && note.contains("of v")),
        "{:?}",
        applied.notes
    );
    assert_eq!(pair.apply("target", &applied.inverse, &ApplyOptions::default()).conflicts, []);
    assert_eq!(
        pair.sql_in(
            "target",
            "select (select count(*) from app.below) || ' ' || (select count(*) from app.above where v is null)"
        ),
        "1 1"
    );
}

/// On the branch the rows were mended first, and the type changed then.
#[test]
fn values_that_a_new_type_has_no_room_for_make_way() {
    let pair = Pair::new();
    pair.sql_in(
        "base",
        "create table app.codes (id int primary key, code text unique, n smallint not null default 1, size int);
         insert into app.codes values (1, 'one'), (2, '2'), (3, '3'), (4, 'four'), (5, '5');
         create table app.parted (id int, size int, primary key (id)) partition by range (id);
         create table app.parted_a partition of app.parted for values from (0) to (10);
         insert into app.parted select n, n from generate_series(1, 9) n;
         create function app.no() returns trigger language plpgsql as $$ begin raise 'not now'; end $$;
         create trigger no before update or delete on app.codes for each row execute function app.no()",
    );
    pair.copy("base", "head");
    for change in [
        "update app.codes set code = '1' where id = 1",
        "delete from app.codes where id = 4",
        "alter table app.codes alter code type bigint using code::bigint",
        "update app.codes set code = 3000000000 where id = 5",
        // Back again, these are in the way.
        "alter table app.codes alter size type bigint",
        "update app.codes set size = 4000000000 where id in (2, 3)",
        "insert into app.codes values (6, 6, 1, 4000000000)",
        "alter table app.parted alter size type bigint",
        "update app.parted set size = 4000000000 where id < 5",
    ] {
        pair.sql_in("head", &format!("set session_replication_role = replica; {change}"));
    }
    let set = pair.round_trip("a narrower type");

    // A row of the target's own that does not fit is in nobody's way but its own.
    pair.copy("base", "target");
    pair.sql_in("target", "insert into app.codes values (9, 'nine')");
    let refused = pair.try_apply("target", &set, &ApplyOptions::default());
    assert!(
        matches!(&refused, Err(ApplyError::Statement { statement, .. }) if statement.contains("TYPE bigint")),
        "{refused:?}"
    );
    assert_eq!(pair.sql_in("target", "select string_agg(code, ' ' order by id) from app.codes"), "one 2 3 four 5 nine");
}

/// A row that is deleted and written anew would take with it what refers to it.
#[test]
fn rows_without_a_key_that_others_would_go_with_are_a_conflict() {
    let pair = Pair::new();
    pair.sql_in("base", "create table app.tags (tag text unique, note text)");
    pair.sql_in(
        "base",
        "create table app.tagged (id int primary key, tag text references app.tags (tag) on delete cascade)",
    );
    pair.sql_in(
        "base",
        "insert into app.tags values ('a', 'one'), ('b', 'two'); insert into app.tagged values (1, 'a')",
    );
    pair.copy("base", "head");
    pair.sql_in("head", "update app.tags set note = 'changed' where tag = 'a'");
    let set = pair.diff();
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert!(
        matches!(&applied.conflicts[..], [Conflict::Row { table, why, .. }]
            if table == "app.tags" && why.contains("a row of the target's app.tagged refers to")),
        "{:?}",
        applied.conflicts
    );
    assert_eq!(pair.sql_in("target", "select note, id from app.tags join app.tagged using (tag)"), "one|1");
    // One that nobody refers to is no matter.
    pair.copy("base", "head");
    pair.sql_in("head", "update app.tags set note = 'changed' where tag = 'b'");
    pair.round_trip("a row that nobody refers to");
}

/// Postgres cannot give a column its expression back: it goes, and comes anew.
#[test]
fn a_column_that_lost_its_expression_is_computed_again() {
    let pair = Pair::new();
    pair.sql_in(
        "base",
        "create table app.boxes (id int primary key, w int, area int generated always as (w * w) stored not null, note text);
         insert into app.boxes (id, w, note) select n, n, 'box ' || n from generate_series(1, 20) n;
         create index boxes_area on app.boxes (area); alter table app.boxes add constraint large check (area >= 0);
         create view app.areas as select id, area from app.boxes; comment on column app.boxes.area is 'in square metres';
         grant select (area) on app.boxes to public; alter table app.boxes alter area set statistics 70;
         create trigger log_area after update of area on app.boxes for each row execute function app.log();
         create table app.loose (a int, b int generated always as (a + 1) stored);
         insert into app.loose (a) select n % 4 from generate_series(1, 9) n;
         create table app.parts (id int primary key, v int, twice int generated always as (v * 2) stored) partition by range (id);
         create table app.parts_a partition of app.parts for values from (0) to (100);
         insert into app.parts (id, v) select n, n from generate_series(1, 5) n;
         create table app.same (id int primary key, v int, twice int generated always as (v * 2) stored);
         insert into app.same (id, v) values (1, 1), (2, null);
         create table app.by_key (v int, twice int generated always as (v * 2) stored primary key, note text);
         insert into app.by_key (v, note) values (1, 'a'), (2, 'b')",
    );
    pair.copy("base", "head");
    for change in [
        "alter table app.boxes alter area drop expression",
        "update app.boxes set area = 1000 + id where id in (2, 3)",
        "update app.boxes set area = 7, w = 100, note = 'changed' where id = 4",
        "insert into app.boxes values (30, 2, 99, 'new')",
        "delete from app.boxes where id = 5",
        "alter table app.boxes rename area to size",
        "alter table app.loose alter b drop expression",
        "update app.loose set b = 50 where ctid = (select max(ctid) from app.loose where a = 2)",
        "insert into app.loose values (7, 7), (2, 3)",
        "alter table app.parts alter twice drop expression",
        "update app.parts set twice = 1 where id = 3",
        "alter table app.same alter twice drop expression",
        "alter table app.by_key alter twice drop expression",
        "update app.by_key set note = 'c' where v = 2",
        "insert into app.by_key values (5, 5, 'd')",
    ] {
        pair.sql_in("head", change);
    }
    let set = pair.round_trip("dropped expressions");

    // What rows have in such columns is lost when they are computed again, and comes back with the inverse of that.
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    pair.sql_in(
        "target",
        "set session_replication_role = replica; update app.same set twice = 77 where id = 2; update app.boxes set size = 3 where id = 9",
    );
    pair.copy("target", "before");
    let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
    assert_eq!(undone.conflicts, [], "{}", script(&applied.inverse));
    pair.assert_equal("target", "base", "computed again", &applied.inverse);
    let redone = pair.apply("target", &undone.inverse, &ApplyOptions::default());
    assert_eq!(redone.conflicts, [], "{}", script(&undone.inverse));
    pair.assert_equal("target", "before", "and back", &undone.inverse);
    let undone = pair.apply("target", &redone.inverse, &ApplyOptions::default());
    assert_eq!(undone.conflicts, [], "{}", script(&redone.inverse));
    pair.assert_equal("target", "base", "computed once more", &redone.inverse);
}

/// What is made again under its name is another thing: what stood on the old one goes with it, however equal it looks.
#[test]
fn what_stands_on_something_made_again_is_made_again() {
    let pair = Pair::new();
    pair.sql_in(
        "base",
        "create type app.temper as enum ('low', 'high'); create sequence app.counted;
         create function app.above_zero(int) returns boolean language sql immutable as 'select $1 > 0';
         create table app.c (id int primary key, x int unique check (x > 0), y int, z int);
         create index c_y on app.c (y); create index c_z on app.c (z) where app.above_zero(z);
         create statistics app.c_both on x, y from app.c;
         alter table app.c add constraint z_positive check (app.above_zero(z));
         insert into app.c select n, n, n, n from generate_series(1, 20) n;
         create table app.k (k int constraint k_key primary key, note text); insert into app.k values (1, 'a'), (2, 'b');
         create table app.s (id int primary key, n int default nextval('app.counted')); insert into app.s values (1), (2);
         create table app.m (id int primary key, m app.temper default 'low', constraint m_low check (m >= 'low'));
         insert into app.m values (1, 'low'), (2, 'high')",
    );
    pair.copy("base", "head");
    for change in [
        "alter table app.c drop column x cascade, drop column y cascade",
        "alter table app.c add x int, add y int",
        "update app.c set x = id, y = id + 1",
        "alter table app.c add constraint c_x_check check (x > 0), add constraint c_x_key unique (x)",
        "create index c_y on app.c (y); create statistics app.c_both on x, y from app.c",
        "drop function app.above_zero cascade",
        "create function app.above_zero(int) returns boolean language sql immutable as 'select $1 > 0'",
        "alter table app.c add constraint z_positive check (app.above_zero(z))",
        "create index c_z on app.c (z) where app.above_zero(z)",
        "alter table app.k drop column k; alter table app.k add k bigint; update app.k set k = ascii(note)",
        "alter table app.k add constraint k_key primary key (k)",
        "drop sequence app.counted cascade; create sequence app.counted",
        "alter table app.s alter n set default nextval('app.counted')",
        "alter table app.m alter m drop default, drop constraint m_low",
        "alter table app.m alter m type text; drop type app.temper; create type app.temper as enum ('low', 'high')",
        "alter table app.m alter m type app.temper using m::app.temper, alter m set default 'low'",
        "alter table app.m add constraint m_low check (m >= 'low')",
    ] {
        pair.sql_in("head", change);
    }
    let set = pair.round_trip("made again");
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
    assert_eq!(undone.conflicts, [], "{}", script(&applied.inverse));
    pair.assert_equal("target", "base", "undone", &applied.inverse);
    let redone = pair.apply("target", &undone.inverse, &ApplyOptions::default());
    assert_eq!(redone.conflicts, [], "{}", script(&undone.inverse));
    pair.assert_equal("target", "head", "done again", &undone.inverse);
}
