//! Rows without a key: how many are alike says which of them are there already.

use ardent_change_set::{ApplyOptions, Conflict};
use ardent_diff::{ChangeSet, Spool};

use crate::pair::{Pair, script};

const BEFORE: &str = "create table app.plain (a int, b text); insert into app.plain values (1, 'x'), (1, 'x'), (1, 'x'), (2, 'y'), (3, null), (3, null);
     create table app.others (id int primary key, v int); insert into app.others values (1, 1)";
const CHANGE: &str = "insert into app.plain values (1, 'x'), (9, 'new'), (9, 'new'), (9, null);
     delete from app.plain where a = 2; delete from app.plain where ctid = (select min(ctid) from app.plain where a = 3);
     update app.others set v = 2; create table app.made (a int); insert into app.made values (1), (1)";

fn prepare(pair: &Pair, change: &str) -> ChangeSet {
    pair.new_base(&[BEFORE.to_owned()]);
    pair.copy("base", "head");
    pair.sql_in("head", change);
    pair.diff()
}

#[test]
fn applied_twice_they_are_there_once() {
    let pair = Pair::new();
    let set = prepare(&pair, CHANGE);
    pair.there_and_back(&set, "once");
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!((applied.rows.inserted, applied.rows.deleted, applied.already_there), (6, 2, 0));
    assert_eq!(applied.notes, Vec::<String>::new());
    for dry_run in [true, false] {
        let again = pair.apply("target", &set, &ApplyOptions { dry_run, ..ApplyOptions::default() });
        assert_eq!((&again.conflicts[..], again.is_unchanged()), (&[][..], true), "{}", script(&set));
        assert!(again.already_there >= 9, "{} were there", again.already_there);
        pair.assert_equal("target", "head", "applied twice", &set);
    }
    let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
    assert_eq!(undone.conflicts, []);
    pair.assert_equal("target", "base", "undone", &applied.inverse);
}

#[test]
fn what_the_target_did_with_rows_that_are_alike_counts() {
    let pair = Pair::new();
    let set = prepare(&pair, CHANGE);
    let count = |a: u32| pair.sql_in("target", &format!("select count(*) from app.plain where a = {a}"));
    let check = |target: &str, expect: [&str; 4]| {
        pair.copy("base", "target");
        pair.sql_in("target", target);
        let there = pair.rows("target");
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        assert_eq!(applied.conflicts, [], "{target}");
        assert_eq!([1, 2, 3, 9].map(count), expect, "{target}");
        let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
        assert_eq!((&undone.conflicts[..], pair.rows("target")), (&[][..], there), "{target}");
    };
    check("select 1", ["4", "0", "1", "3"]);
    check("insert into app.plain values (1, 'other')", ["5", "0", "1", "3"]);
    // The same on both sides, or a part of it.
    check("insert into app.plain values (9, 'new')", ["4", "0", "1", "3"]);
    check("insert into app.plain values (1, 'x'), (1, 'x')", ["5", "0", "1", "3"]);
    check("delete from app.plain where a = 2", ["4", "0", "1", "3"]);
    check("delete from app.plain where a = 3", ["4", "0", "0", "3"]);

    // More of them here and less there: afterwards nobody could tell whether the branch's change is among them.
    for target in ["delete from app.plain where a = 1", "insert into app.plain values (3, null)"] {
        pair.copy("base", "target");
        pair.sql_in("target", target);
        let there = pair.rows("target");
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        assert!(
            matches!(&applied.conflicts[..], [Conflict::Row { table, .. }] if table == "app.plain"),
            "{target}: {:?}",
            applied.conflicts
        );
        assert_eq!(pair.rows("target"), there, "{target}");
    }
}

/// A change set of an older program, or of a long table.
#[test]
fn what_is_not_counted_is_said() {
    let pair = Pair::new();
    let mut set = prepare(&pair, "insert into app.plain values (9, 'new'); update app.others set v = 2");
    let counted: Vec<u64> = set.tables.iter().map(|table| table.copies.len()).collect();
    assert_eq!(counted, [0, 1], "of app.others and app.plain");
    set.tables.iter_mut().for_each(|table| table.copies = Spool::default());
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!(applied.conflicts, []);
    assert!(applied.notes.iter().any(|note| note.contains("app.plain has no key")), "{:?}", applied.notes);
    let again = pair.apply("target", &set, &ApplyOptions::default());
    assert!(
        matches!(&again.conflicts[..], [Conflict::Row { table, .. }] if table == "app.plain"),
        "{:?}",
        again.conflicts
    );
    pair.assert_equal("target", "head", "nothing was done", &set);
}

/// Another table is changed beside it, and is neither read nor locked.
#[test]
fn a_table_that_was_not_chosen_is_left_alone() {
    let pair = Pair::new();
    let set = prepare(&pair, "insert into app.plain values (9, 'new'); update app.others set v = 2");
    pair.copy("base", "target");
    let options = ApplyOptions { tables: vec!["app.others".to_owned()], ..ApplyOptions::default() };
    let applied = pair.while_locked("target", "app.plain", || pair.apply("target", &set, &options));
    assert_eq!((&applied.conflicts[..], applied.rows.updated, applied.rows.inserted), (&[][..], 1, 0));
    let tables: Vec<&str> = applied.inverse.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(tables, ["others"]);
}
