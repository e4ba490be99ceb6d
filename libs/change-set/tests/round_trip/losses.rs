//! What goes, or becomes another value, without one block of its table changing on the branch: only the target has it.

use ardent_change_set::{ApplyOptions, Conflict};
use ardent_diff::ChangeSet;

use crate::pair::{Pair, script};

/// What the branch point has besides, and what the branch does.
const CASES: &[(&str, &[&str])] = &[
    ("", &["alter table app.users drop column raw"]),
    ("", &["alter table app.keyless drop column c"]),
    ("", &["alter table app.events drop column note"]),
    // The key goes with its column, or with its constraint.
    ("", &["alter table app.seats drop column id"]),
    (
        "",
        &[
            "alter table app.unique_only drop constraint unique_only_code_key",
            "alter table app.unique_only drop column v",
        ],
    ),
    (
        "",
        &[
            "alter table app.fat rename to thick",
            "alter table app.thick drop column body",
            "alter table app.seats rename seat to place_no",
            "alter table app.seats drop column floor",
        ],
    ),
    ("", &["alter table app.fat drop column body", "alter table app.fat add column body int default 3"]),
    (
        "create table app.above (id int primary key, v text); create table app.below (w int) inherits (app.above);
         insert into app.above values (1, 'above'); insert into app.below values (2, 'below', 2)",
        &["alter table app.above drop column v"],
    ),
    // A branch has no rows of unlogged tables.
    (
        "create unlogged table app.scratch (id int primary key, v text); insert into app.scratch values (1, 'a'), (2, null);
         create unlogged table app.notes (v text, w text); insert into app.notes values ('a', 'b'), ('a', 'b'), ('c', null)",
        &["drop table app.scratch", "alter table app.notes drop column w"],
    ),
    // Values lose a part: of a type's own, in arrays of it, and of the type of a table's rows.
    ("", &["alter type app.place drop attribute number"]),
    (
        "create table app.part (a int, b text); create table app.whole (id int primary key, part app.part);
         insert into app.part values (1, 'x'); insert into app.whole values (1, row(1, 'one')), (2, null)",
        &["alter table app.part drop column b"],
    ),
];

fn table<'a>(set: &'a ChangeSet, name: &str) -> Option<&'a str> {
    set.tables.iter().find(|table| table.name == name).map(|table| table.name.as_str())
}

#[test]
fn what_goes_without_a_changed_block_comes_back() {
    let pair = Pair::new();
    for (before, changes) in CASES {
        pair.new_base(&[(*before).to_owned()]);
        pair.copy("base", "head");
        for change in *changes {
            pair.sql_in("head", change);
        }
        let set = pair.diff_of_catalogs();
        let renamed = changes.iter().any(|change| change.contains("rename to"));
        assert!(renamed || set.tables.is_empty(), "{changes:?}: rows were looked at: {set:?}");
        pair.there_and_back(&set, &changes.join("; "));
    }
}

/// A change set that knows of no rows at all.
#[test]
fn a_schema_alone_is_undone_with_rows_and_sequences() {
    let pair = Pair::new();
    pair.new_base(&[
        "insert into app.log (what) values ('a'), ('b'), ('b')".to_owned(),
        "select setval('app.numbers', 41)".to_owned(),
    ]);
    pair.copy("base", "head");
    for change in [
        "drop table app.unique_only",
        "drop sequence app.numbers",
        "alter table app.log drop column id",
        "alter table app.users drop column tags",
    ] {
        pair.sql_in("head", change);
    }
    let mut set = pair.diff();
    set.tables.clear();
    set.sequences.clear();
    pair.there_and_back(&set, "the schema alone");
}

/// What the target has in a column that it got from a branch is the target's.
#[test]
fn an_added_column_that_is_taken_back_comes_again_with_its_values() {
    let pair = Pair::new();
    pair.copy("base", "head");
    pair.sql_in("head", "alter table app.users add column score int default 3");
    let set = pair.diff_of_catalogs();
    assert_eq!(table(&set, "users"), None);
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    pair.sql_in(
        "target",
        "update app.users set score = 9 where id < 4; update app.users set score = null where id = 5",
    );
    pair.copy("target", "before");
    let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
    assert_eq!(undone.conflicts, [], "{}", script(&applied.inverse));
    pair.assert_equal("target", "base", "taken back", &applied.inverse);
    let redone = pair.apply("target", &undone.inverse, &ApplyOptions::default());
    assert_eq!(redone.conflicts, [], "{}", script(&undone.inverse));
    pair.assert_equal("target", "before", "done again", &undone.inverse);
}

/// Makes `change` on the branch and `own` in the target, applies the one to the other and takes it back.
fn beside_the_targets_own(pair: &Pair, change: &str, own: &str) {
    pair.copy("base", "head");
    pair.sql_in("head", change);
    let set = pair.diff_of_catalogs();
    pair.copy("base", "target");
    pair.sql_in("target", own);
    pair.copy("target", "before");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!(applied.conflicts, [], "{change}\n{}", script(&set));
    assert_ne!(pair.rows("target"), pair.rows("before"), "{change}");
    let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
    assert_eq!(undone.conflicts, [], "{change}: undone\n{}", script(&applied.inverse));
    pair.assert_equal("target", "before", change, &applied.inverse);
}

#[test]
fn rows_that_the_branch_does_not_know_come_back_as_they_were() {
    let pair = Pair::new();
    pair.sql_in(
        "base",
        "create table app.prices (id int primary key, at timestamp, price numeric, code varchar(10));
         insert into app.prices select n, '2026-01-01 12:00', n, 'c' || n from generate_series(1, 20) n;
         create table app.loose (v numeric); insert into app.loose values (1.25), (1.25), (2)",
    );
    beside_the_targets_own(
        &pair,
        "alter table app.prices alter at type date, alter price type int, alter code type varchar(4) using code::varchar(4);
         alter table app.loose alter v type int",
        "insert into app.prices values (100, '2026-05-05 05:05:05', 1.25, 'longer'); insert into app.loose values (7.75)",
    );
    // A partition that is newer than the branch.
    beside_the_targets_own(
        &pair,
        "alter table app.events drop column note",
        "create table app.events_c partition of app.events for values from ('2027-01-01') to ('2028-01-01');
         insert into app.events values (500, '2027-03-03', 'newer')",
    );
}

#[test]
fn a_partition_that_is_newer_than_the_branch_does_not_go_with_its_table() {
    let pair = Pair::new();
    pair.copy("base", "head");
    pair.sql_in("head", "drop table app.events");
    let set = pair.diff();
    pair.copy("base", "target");
    pair.sql_in(
        "target",
        "create table app.events_c partition of app.events for values from ('2027-01-01') to ('2028-01-01');
         insert into app.events values (500, '2027-03-03', 'newer')",
    );
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert!(
        matches!(&applied.conflicts[..], [Conflict::Schema { object, .. }] if object == "table app.events_c"),
        "{:?}",
        applied.conflicts
    );
    assert_eq!(pair.sql_in("target", "select count(*) from app.events_c"), "1");
}
