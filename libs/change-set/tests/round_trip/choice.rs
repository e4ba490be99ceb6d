//! A part of a change set is applied alone, or says what it needs; what it was is brought back.

use std::collections::BTreeSet;

use ardent_change_set::{ApplyError, ApplyOptions, Conflict, RowChoice};
use ardent_diff::{ChangeSet, Part, RowChange, TableState};
use ardent_test_pg::RandomTables;
use rand::Rng as _;
use rand::seq::IndexedRandom as _;

use crate::pair::{Pair, script};
use crate::seeds;

fn chosen() -> ApplyOptions {
    ApplyOptions::default()
}

fn objects(names: &[&str]) -> ApplyOptions {
    ApplyOptions { objects: names.iter().map(|name| (*name).to_owned()).collect(), ..chosen() }
}

fn refusal(pair: &Pair, set: &ChangeSet, options: &ApplyOptions) -> (String, String) {
    match pair.try_apply("target", set, options) {
        Err(ApplyError::Choice { what, hint }) => (what, hint),
        other => panic!("{other:?}\n{}", script(set)),
    }
}

#[test]
fn chosen_rows_and_objects_are_applied_alone_and_undone() {
    let pair = Pair::new();
    pair.sql_in(
        "base",
        "create table app.people (id int primary key, name text, gone int default 5, old text);
         insert into app.people select n, 'p' || n, n, 'o' from generate_series(1, 9) n;
         create table app.pairs (a int, b text, v int, primary key (b, a)); insert into app.pairs select n, 'x,' || n, n from generate_series(1, 5) n;
         create table app.serials (id serial primary key, v int)",
    );
    pair.copy("base", "head");
    for change in [
        "alter table app.people rename column name to full_name",
        "alter table app.people add column age int default 7",
        "alter table app.people drop column gone",
        "create index people_age on app.people (age)",
        "create view app.grown as select id from app.people where age > 17",
        "update app.people set full_name = 'changed ' || id, age = 20 where id in (2, 3)",
        "insert into app.people (id, full_name) values (20, 'new'), (21, 'newer')",
        "delete from app.people where id in (5, 6)",
        "update app.pairs set v = -v",
        "create table app.fresh (id int primary key)",
        "insert into app.fresh values (1)",
        "drop table app.unique_only",
        "insert into app.serials (v) values (1), (2)",
        "update app.keyless set b = 'k' where a = 1",
    ] {
        pair.sql_in("head", change);
    }
    let set = pair.diff();
    let back = |options: &ApplyOptions, check: &dyn Fn()| {
        pair.copy("base", "target");
        let dry = pair.apply("target", &set, &ApplyOptions { dry_run: true, ..options.clone() });
        pair.assert_equal("target", "base", "a dry run", &set);
        let applied = pair.apply("target", &set, options);
        assert_eq!(applied.conflicts, []);
        assert_eq!(
            (dry.rows, dry.statements, dry.sequences, &dry.taken_along),
            (applied.rows, applied.statements, applied.sequences, &applied.taken_along)
        );
        check();
        let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
        assert_eq!(undone.conflicts, [], "{}", script(&applied.inverse));
        pair.assert_equal("target", "base", "undone", &applied.inverse);
        applied
    };
    let sql = |text: &str| pair.sql_in("target", text);
    let rows = |list: &[&str]| {
        list.iter().map(|row| row.parse::<RowChoice>().unwrap_or_else(|error| panic!("{error}"))).collect::<Vec<_>>()
    };

    // Rows alone, under the names that the target has; values of columns that it lacks are left out, and that is said.
    let options =
        ApplyOptions { rows: rows(&["app.people:2", "people:20", "app.people:5", "app.pairs:\"x,3\",3"]), ..chosen() };
    let applied = back(&options, &|| {
        assert_eq!(
            sql(
                "select string_agg(id || name || gone, ' ' order by id) from app.people where id in (2, 3, 5, 6, 20, 21)"
            ),
            "2changed 22 3p33 6p66 20new5"
        );
        assert_eq!(sql("select string_agg(v::text, ' ' order by a) from app.pairs"), "1 2 -3 4 5");
    });
    assert_eq!((applied.rows.inserted, applied.rows.updated, applied.rows.deleted, applied.statements), (1, 2, 1, 0));
    assert!(applied.notes.iter().any(|note| note.contains("age") && note.contains("left out")), "{:?}", applied.notes);

    // Rows with the columns that they need.
    let options = ApplyOptions { rows: rows(&["app.people:2"]), ..objects(&["column age of table app.people"]) };
    let applied = back(&options, &|| {
        assert_eq!(
            sql("select name || ' ' || age from app.people where id in (2, 3) order by id"),
            "changed 2 20\np3 7"
        );
    });
    assert_eq!(applied.notes, Vec::<String>::new());

    // An object that needs another one says so, or takes it along.
    let index = objects(&["index app.people_age of table app.people"]);
    pair.copy("base", "target");
    let (what, hint) = refusal(&pair, &set, &index);
    assert!(what.contains("index app.people_age of table app.people needs column age of table app.people"), "{what}");
    assert!(hint.contains("--object 'column age of table app.people'") && hint.contains("--with-needed"), "{hint}");
    let applied = back(&ApplyOptions { with_needed: true, ..index }, &|| {
        assert_eq!(sql("select count(*) from pg_indexes where indexname = 'people_age'"), "1");
        assert_eq!(
            sql(
                "select count(*) from information_schema.columns where column_name in ('age', 'full_name', 'gone') and table_name = 'people'"
            ),
            "2"
        );
    });
    assert_eq!(applied.taken_along, ["column age of table app.people"]);
    // What the target has by now needs not be chosen.
    pair.copy("base", "target");
    pair.apply("target", &set, &objects(&["column age of table app.people"]));
    let applied = pair.apply("target", &set, &objects(&["index app.people_age of table app.people", "view app.grown"]));
    assert_eq!((applied.statements, applied.conflicts), (3, vec![]), "the index, the view and its owner");

    // A table with all that is a part of it; a dropped one with what it held.
    back(&objects(&["table app.people"]), &|| {
        assert_eq!(sql("select count(full_name) || ' ' || count(age) from app.people where age = 7"), "9 9");
        assert_eq!(
            sql("select count(*) from pg_attribute where attrelid = 'app.people'::regclass and attname = 'gone'"),
            "0"
        );
    });
    back(&objects(&["table app.unique_only"]), &|| {
        assert_eq!(sql("select to_regclass('app.unique_only') is null"), "t")
    });
    back(&objects(&["table app.fresh"]), &|| assert_eq!(sql("select count(*) from app.fresh"), "0"));
    back(&ApplyOptions { tables: vec!["app.fresh".to_owned()], ..objects(&["table app.fresh"]) }, &|| {
        assert_eq!(sql("select count(*) from app.fresh"), "1");
    });

    // Rows of a column that counts by itself: the sequence goes on behind them, and that is said.
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions { rows: rows(&["app.serials:2"]), ..chosen() });
    assert!(applied.notes.iter().any(|note| note.contains("serials_id_seq")), "{:?}", applied.notes);
    assert_eq!((applied.sequences, applied.rows.inserted), (1, 1));
    assert_eq!(sql("insert into app.serials (v) values (9) returning id"), "3");

    // What is not there is named.
    pair.copy("base", "target");
    for (options, words) in [
        (ApplyOptions { rows: rows(&["app.people:4"]), ..chosen() }, "app.people:4"),
        (ApplyOptions { rows: rows(&["app.people:2,3"]), ..chosen() }, "the key of app.people is (id)"),
        (ApplyOptions { rows: rows(&["app.nobody:1"]), ..chosen() }, "app.nobody"),
        (ApplyOptions { rows: rows(&["app.keyless:1"]), ..chosen() }, "have no key"),
        (ApplyOptions { tables: vec!["nobody".to_owned()], ..chosen() }, "nobody"),
        (ApplyOptions { tables: vec!["app.unique_only".to_owned()], ..chosen() }, "was dropped on the branch"),
        (objects(&["view app.nothing"]), "view app.nothing"),
    ] {
        let (what, hint) = refusal(&pair, &set, &options);
        assert!(what.contains(words) && !hint.is_empty(), "{words}: {what} ({hint})");
    }
    let fresh = pair.apply("target", &set, &ApplyOptions { tables: vec!["app.fresh".to_owned()], ..chosen() });
    assert!(
        matches!(&fresh.conflicts[..], [Conflict::Schema { object, .. }] if object == "table app.fresh"),
        "{fresh:?}"
    );
    pair.assert_equal("target", "base", "nothing was done", &set);
}

#[test]
fn first_the_schema_and_then_the_rows_is_the_same_as_both_at_once() {
    let pair = Pair::new();
    pair.copy("base", "head");
    for change in [
        "alter table app.users rename column name to full_name",
        "alter table app.users add column score int not null default 3",
        "update app.users set score = 9, full_name = 'nine' where id = 5",
        "alter table app.orders rename to purchases",
        "update app.purchases set note = 'x' where id = 7",
        "create table app.fresh (id int primary key, v text)",
        "insert into app.fresh values (1, 'one')",
        "drop table app.unique_only",
        "alter type app.mood add value 'better'",
        "update app.users set mood = 'better' where id = 6",
    ] {
        pair.sql_in("head", change);
    }
    let set = pair.diff();
    pair.copy("base", "target");
    let first = pair.apply("target", &set, &ApplyOptions { part: Part::Schema, ..chosen() });
    assert_eq!((first.conflicts, first.rows), (vec![], Default::default()));
    assert!(pair.sql_in("target", "select count(*) from app.fresh") == "0");
    let second = pair.apply("target", &set, &ApplyOptions { part: Part::Rows, ..chosen() });
    assert_eq!((second.conflicts, second.statements), (vec![], 0));
    pair.assert_equal("target", "head", "both", &set);
    for applied in [second.inverse, first.inverse] {
        let undone = pair.apply("target", &applied, &ApplyOptions::default());
        assert_eq!(undone.conflicts, [], "{}", script(&applied));
    }
    pair.assert_equal("target", "base", "undone", &set);
}

#[test]
fn a_view_that_must_be_made_again_and_was_changed_by_the_target_is_a_conflict() {
    let pair = Pair::new();
    pair.sql_in("base", "create view app.sums as select user_id, note from app.orders");
    pair.copy("base", "head");
    pair.sql_in(
        "head",
        "drop view app.sums; alter table app.orders alter note type varchar(100); create view app.sums as select user_id, note from app.orders",
    );
    let set = pair.diff();
    pair.copy("base", "target");
    pair.sql_in("target", "create or replace view app.sums as select user_id, note, id from app.orders");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert!(
        matches!(&applied.conflicts[..], [Conflict::Schema { object, .. }, ..] if object.contains("view app.sums")),
        "{:?}\n{}",
        applied.conflicts,
        script(&set)
    );
}

/// The key of a row that stays the same whatever happens to the row.
fn keys(set: &ChangeSet) -> Vec<RowChoice> {
    let mut all = Vec::new();
    let kept = |change: &&ardent_diff::TableChange| change.state == TableState::Kept && !change.materialized_view;
    for change in set.tables.iter().filter(kept) {
        let places: Vec<usize> =
            change.key.iter().filter_map(|name| change.columns.iter().position(|column| column == name)).collect();
        if places.is_empty() {
            continue;
        }
        for row in change.rows.iter() {
            let (RowChange::Insert { new: values }
            | RowChange::Update { new: values, .. }
            | RowChange::Delete { old: values }) = row.expect("rows can be read");
            let key = places.iter().map(|place| values[*place].clone().expect("keys are not null")).collect();
            all.push(RowChoice { table: format!("{}.{}", change.schema, change.name), key });
        }
    }
    all
}

/// Any object with what it needs can be applied without the rest, any row too; both are undone.
#[test]
fn random_parts_there_and_back() {
    let pair = Pair::new();
    for seed in seeds() {
        println!("seed {seed}");
        let mut random = RandomTables::new(seed);
        pair.new_base(&random.schema());
        pair.copy("base", "head");
        for _ in 0..25 {
            let change = match random.rng.random_bool(0.5) {
                true => pair.random_schema(&mut random, "head"),
                false => pair.random_rows(&mut random, "head"),
            };
            pair.change("head", &change.into_iter().collect::<Vec<_>>());
        }
        let set = pair.diff();
        let parts: Vec<&str> = set
            .schema
            .touched
            .iter()
            .filter(|touched| touched.with.is_none())
            .map(|touched| touched.path.as_str())
            .collect();
        let rows = keys(&set);
        for _ in 0..3 {
            let mut options = ApplyOptions { with_needed: true, ..chosen() };
            let wanted: BTreeSet<&str> = (0..2).filter_map(|_| parts.choose(&mut random.rng).copied()).collect();
            options.objects = wanted.into_iter().map(str::to_owned).collect();
            options.rows = (0..3).filter_map(|_| rows.choose(&mut random.rng).cloned()).collect();
            if options.objects.is_empty() && options.rows.is_empty() {
                continue;
            }
            let what = format!("seed {seed}: {:?} {:?}", options.objects, options.rows);
            pair.copy("base", "target");
            let applied = match pair.try_apply("target", &set, &options) {
                Ok(applied) => applied,
                // A value of a type that the branch changed, which was not chosen.
                Err(ApplyError::Statement { source, .. })
                    if !options.rows.is_empty() && source.code().is_some_and(|code| code.code().starts_with("22")) =>
                {
                    pair.assert_equal("target", "base", &format!("{what}: refused"), &set);
                    continue;
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(|source| format!("{source:?}"));
                    panic!("{what}: {error}: {}\n{}", cause.unwrap_or_default(), script(&set))
                }
            };
            // Rows that were chosen may need rows that were not.
            let fits = |conflict: &Conflict| matches!(conflict, Conflict::Constraint { .. }) || is_cascade(conflict);
            assert!(applied.conflicts.iter().all(fits), "{what}: {:?}\n{}", applied.conflicts, script(&set));
            if !applied.conflicts.is_empty() {
                pair.assert_equal("target", "base", &format!("{what}: refused"), &set);
                continue;
            }
            let rows: BTreeSet<String> = options.rows.iter().map(ToString::to_string).collect();
            let changed = applied.rows.inserted + applied.rows.updated + applied.rows.deleted;
            assert!(changed <= rows.len() as u64, "{what}: {:?}", applied.rows);
            let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
            assert_eq!(undone.conflicts, [], "{what}: undone\n{}", script(&applied.inverse));
            pair.assert_equal("target", "base", &format!("{what}: undone"), &applied.inverse);
        }
    }
}

fn is_cascade(conflict: &Conflict) -> bool {
    matches!(conflict, Conflict::Row { why, .. } if why.contains("refer to"))
}
