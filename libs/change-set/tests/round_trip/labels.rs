//! Labels of enums that get other names: rows hold their OIDs, and a change set has their names.

use ardent_change_set::{ApplyError, ApplyOptions};
use ardent_diff::{ChangeSet, Part};

use crate::pair::{Pair, script};

const BEFORE: &str = "create type app.state as enum ('sad', 'ok', 'happy');
     create table app.plain (a int, m app.state, ms app.state[]);
     insert into app.plain select n, (enum_range(null::app.state))[1 + n % 3], array['happy', 'ok']::app.state[] from generate_series(1, 9) n;
     create table app.keyed (id int primary key, m app.state default 'happy');
     insert into app.keyed select n, (enum_range(null::app.state))[1 + n % 3] from generate_series(1, 9) n;
     create table app.others (id int primary key, v int); insert into app.others values (1, 1)";
/// No label goes round.
const RENAMED: &[&str] = &[
    "alter type app.state rename value 'happy' to 'glad'",
    "update app.keyed set m = 'sad' where id = 2",
    "update app.keyed set m = 'glad' where id = 3",
    "insert into app.keyed values (20, 'glad')",
];
/// Names that go from one label to another.
const REUSED: &[&[&str]] = &[
    &[
        "alter type app.state rename value 'sad' to 'other'",
        "alter type app.state rename value 'ok' to 'sad'",
        "alter type app.state rename value 'other' to 'ok'",
        "update app.keyed set m = 'sad' where id = 3",
    ],
    &[
        "alter type app.state rename value 'happy' to 'glad'",
        "alter type app.state add value 'happy'",
        "update app.keyed set m = 'happy' where id = 2",
    ],
];

fn branch(pair: &Pair, name: &str, changes: &[&str]) {
    pair.copy("base", name);
    for change in changes {
        pair.sql_in(name, change);
    }
}

#[test]
fn a_renamed_label_is_renamed_in_every_row() {
    let pair = Pair::new();
    pair.new_base(&[BEFORE.to_owned()]);
    branch(&pair, "head", RENAMED);
    let set = pair.round_trip("a label has another name");
    pair.assert_scripted(&set, "a label has another name");
    // Rows that only the target has.
    pair.copy("base", "target");
    pair.sql_in("target", "insert into app.keyed values (30, 'happy'); insert into app.plain values (30, 'happy')");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!(applied.conflicts, [], "{}", script(&set));
    assert_eq!(
        pair.sql_in("target", "select m from app.keyed where id = 30 union all select m from app.plain where a = 30"),
        "glad\nglad"
    );
}

/// A table that neither branch wrote is in no change set.
#[test]
fn between_branches_a_renamed_label_is_renamed_in_tables_that_nobody_wrote() {
    let pair = Pair::new();
    pair.new_base(&[BEFORE.to_owned()]);
    // Beside nothing, and beside a label that goes, for which the type is made again.
    let others: [&[&str]; 2] = [&[], &["alter type app.state add value 'new' after 'sad'"]];
    for beside in others {
        branch(&pair, "one", RENAMED);
        branch(&pair, "two", beside);
        pair.sql_in("two", "update app.others set v = 2; delete from app.keyed where id = 5");
        let before = pair.rows("two");
        let set = pair.diff_by_name("two", "one", "relname not like 'plain%'");
        assert!(set.tables.iter().all(|table| table.name != "plain"), "{}", script(&set));
        let rename = "ALTER TYPE app.state RENAME VALUE 'happy' TO 'glad'";
        assert!(set.schema.statements.iter().any(|statement| statement.sql == rename), "{}", script(&set));
        let applied = pair.apply("two", &set, &ApplyOptions::default());
        assert_eq!(applied.conflicts, [], "{}", script(&set));
        assert_eq!(pair.rows("two"), pair.rows("one"), "{}", script(&set));
        if beside.is_empty() {
            let undone = pair.apply("two", &applied.inverse, &ApplyOptions::default());
            assert_eq!((&undone.conflicts[..], pair.rows("two")), (&[][..], before), "{}", script(&applied.inverse));
        }
    }
}

#[test]
fn a_name_that_was_another_labels_is_refused() {
    let pair = Pair::new();
    pair.new_base(&[BEFORE.to_owned()]);
    let check = |target: &str, set: &ChangeSet| {
        let before = pair.rows(target);
        let tables = |name: &str| ApplyOptions { tables: vec![name.to_owned()], ..ApplyOptions::default() };
        let part = |part| ApplyOptions { part, ..ApplyOptions::default() };
        for options in [part(Part::Whole), part(Part::Schema), part(Part::Rows), tables("app.keyed")] {
            match pair.try_apply(target, set, &options) {
                Err(ApplyError::Choice { what, hint }) => {
                    assert!(what.starts_with("label ") && what.contains("type app.state"), "{what}");
                    assert!(hint.contains("names that the type never had"), "{hint}");
                }
                other => panic!("{options:?}: {other:?}\n{}", script(set)),
            }
            assert_eq!(pair.rows(target), before);
        }
        let named = set.schema.not_covered.iter().any(|what| what.starts_with("type app.state: label "));
        assert!(named, "{:?}", set.schema.not_covered);
        // What has nothing to do with it.
        let index = vec!["index app.others_v of table app.others".to_owned()];
        let applied = pair.apply(target, set, &ApplyOptions { objects: index, ..ApplyOptions::default() });
        assert_eq!((&applied.conflicts[..], applied.statements), (&[][..], 1), "{}", script(set));
    };
    for changes in REUSED {
        branch(&pair, "head", changes);
        pair.sql_in("head", "create index others_v on app.others (v)");
        pair.copy("base", "target");
        check("target", &pair.diff());
        branch(&pair, "two", &["update app.others set v = 2"]);
        check("two", &pair.diff_by_name("two", "head", "relname not like 'plain%'"));
    }
}

/// The branch has rows alone, and nothing in them says that the target's label of that name is another one.
#[test]
fn labels_that_the_target_renamed_are_a_conflict_with_rows() {
    let pair = Pair::new();
    pair.new_base(&[BEFORE.to_owned()]);
    pair.copy("base", "head");
    pair.sql_in("head", "insert into app.keyed values (20, 'sad'); delete from app.plain where m = 'sad'");
    let set = pair.diff();
    assert!(!set.labels.is_empty());
    let renamed: [&[&str]; 3] = [
        // Exchanged, given to a new one, and plainly another one.
        &[
            "alter type app.state rename value 'sad' to 'other'",
            "alter type app.state rename value 'ok' to 'sad'",
            "alter type app.state rename value 'other' to 'ok'",
        ],
        &["alter type app.state rename value 'sad' to 'old'", "alter type app.state add value 'sad'"],
        &["alter type app.state rename value 'sad' to 'blue'"],
    ];
    for statements in renamed {
        pair.copy("base", "target");
        statements.iter().for_each(|statement| _ = pair.sql_in("target", statement));
        let before = pair.rows("target");
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        let text = format!("{:?}", applied.conflicts);
        assert!(applied.conflicts.len() == 1 && text.contains("type app.state"), "{statements:?}: {text}");
        assert_eq!(pair.rows("target"), before, "{statements:?}");
    }
    // One more is none, and neither is what was applied before.
    pair.copy("base", "target");
    pair.sql_in("target", "alter type app.state add value 'new' before 'sad'");
    for already_there in [0, 1] {
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        assert_eq!((&applied.conflicts[..], applied.rows.inserted), (&[][..], 1 - already_there), "{applied:?}");
    }
}
