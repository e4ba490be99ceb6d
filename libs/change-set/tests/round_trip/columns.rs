//! Columns that come and go, with what rows have in them.

use ardent_change_set::{ApplyError, ApplyOptions, Conflict};

use crate::pair::{Pair, script};

#[test]
fn rows_that_only_postgres_computes_anew_are_not_there_already() {
    let pair = Pair::new();
    pair.copy("base", "head");
    // 40 rows of `tree` differ in the new column alone, which nobody writes; one of them in another column too.
    pair.pg.sql_in(
        "head",
        "alter table app.tree add column made text generated always as ('x' || id) stored; update app.tree set label = 'new' where id = 7",
    );
    let set = pair.round_trip("a computed column");
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!((applied.rows.updated, applied.already_there), (1, 0));
    assert_eq!(pair.pg.sql_in("target", "select count(made) from app.tree"), "40");
}

/// Postgres keeps the value that old rows have in a new column with the partitions, and with none that was rewritten since.
#[test]
fn a_column_that_partitions_were_given_has_its_value_in_all_rows() {
    let pair = Pair::new();
    pair.pg.sql_in("base", "alter table app.events add column before text default 'was'");
    pair.pg.sql_in("base", "update app.events set before = null where id = 2");
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
        pair.pg.sql_in("head", change);
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
        pair.pg.sql_in("head", change);
    }
    pair.round_trip("columns that must not be null");
    let flags = "select string_agg(attnotnull::text, ' ' order by attname) from pg_attribute
        where (attrelid, attname) in (('app.tree'::regclass, 'must'), ('app.users'::regclass, 'empty'))";
    let set = pair.diff();
    pair.copy("base", "target");
    pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!(pair.pg.sql_in("target", flags), "true true");
}

#[test]
fn what_a_dropped_column_held_comes_back_where_it_was_null_and_others_were_not() {
    let pair = Pair::new();
    pair.pg.sql_in("base", "alter table app.tree add column kept text default 'was'");
    pair.pg
        .sql_in("base", "update app.tree set kept = null where id = 4; update app.tree set kept = 'own' where id = 5");
    pair.pg.sql_in("base", "alter table app.keyless add column kept text default 'was'");
    pair.pg.sql_in("base", "update app.keyless set kept = null where a = 4");
    pair.copy("base", "head");
    pair.pg.sql_in("head", "alter table app.tree drop column kept; alter table app.keyless drop column kept");
    pair.round_trip("a column with a value of its own");
}

#[test]
fn what_a_dropped_column_held_comes_back_to_rows_without_a_key() {
    let pair = Pair::new();
    // Alike in all but the columns that go, and in some of those.
    pair.pg.sql_in(
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
        pair.pg.sql_in("head", change);
    }
    pair.round_trip("columns without a key");

    // One of two columns is chosen; what rows have in the other one stays theirs.
    pair.pg.sql_in("head", "alter table app.keyless drop column b");
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
    pair.pg.sql_in(
        "base",
        "create table app.above (code text unique, v int); insert into app.above values ('a', 1);
         create table app.below (id int primary key, code text references app.above (code) on delete cascade); insert into app.below values (1, 'a')",
    );
    pair.copy("base", "head");
    pair.pg.sql_in("head", "alter table app.above drop column v");
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
        pair.pg.sql_in(
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
    pair.pg.sql_in(
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
        pair.pg.sql_in("head", &format!("set session_replication_role = replica; {change}"));
    }
    let set = pair.round_trip("a narrower type");

    // A row of the target's own that does not fit is in nobody's way but its own.
    pair.copy("base", "target");
    pair.pg.sql_in("target", "insert into app.codes values (9, 'nine')");
    let refused = pair.try_apply("target", &set, &ApplyOptions::default());
    assert!(
        matches!(&refused, Err(ApplyError::Statement { statement, .. }) if statement.contains("TYPE bigint")),
        "{refused:?}"
    );
    assert_eq!(
        pair.pg.sql_in("target", "select string_agg(code, ' ' order by id) from app.codes"),
        "one 2 3 four 5 nine"
    );
}

/// A row that is deleted and written anew would take with it what refers to it.
#[test]
fn rows_without_a_key_that_others_would_go_with_are_a_conflict() {
    let pair = Pair::new();
    pair.pg.sql_in("base", "create table app.tags (tag text unique, note text)");
    pair.pg.sql_in(
        "base",
        "create table app.tagged (id int primary key, tag text references app.tags (tag) on delete cascade)",
    );
    pair.pg.sql_in(
        "base",
        "insert into app.tags values ('a', 'one'), ('b', 'two'); insert into app.tagged values (1, 'a')",
    );
    pair.copy("base", "head");
    pair.pg.sql_in("head", "update app.tags set note = 'changed' where tag = 'a'");
    let set = pair.diff();
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert!(
        matches!(&applied.conflicts[..], [Conflict::Row { table, why, .. }]
            if table == "app.tags" && why.contains("1 rows of the target's app.tagged refer to")),
        "{:?}",
        applied.conflicts
    );
    assert_eq!(pair.pg.sql_in("target", "select note, id from app.tags join app.tagged using (tag)"), "one|1");
    // One that nobody refers to is no matter.
    pair.copy("base", "head");
    pair.pg.sql_in("head", "update app.tags set note = 'changed' where tag = 'b'");
    pair.round_trip("a row that nobody refers to");
}
