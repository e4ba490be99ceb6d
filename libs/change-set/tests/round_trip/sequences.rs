//! Sequences that branch and target both use: none gives a number out twice.

use ardent_change_set::{Applied, ApplyOptions};

use crate::pair::{Pair, script};

fn last(pair: &Pair, sequence: &str) -> String {
    pair.sql_in("target", &format!("select last_value from {sequence}"))
}

/// Applied to a target that did this, and undone: where the sequence was, is then, and is in the end.
fn check(pair: &Pair, sequence: &str, target: &str, expect: [&str; 3]) -> Applied {
    let set = pair.diff();
    pair.copy("base", "target");
    pair.sql_in("target", target);
    let before = last(pair, sequence);
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!(applied.conflicts, [], "{target}\n{}", script(&set));
    let then = last(pair, sequence);
    let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
    assert_eq!(undone.conflicts, [], "{target}\n{}", script(&applied.inverse));
    assert_eq!([before, then, last(pair, sequence)], expect, "{target}");
    applied
}

fn moved(applied: &Applied) -> bool {
    applied.notes.iter().any(|note| note.contains("moved on both sides"))
}

#[test]
fn a_sequence_that_was_in_the_target_already_never_goes_back() {
    const MIGRATION: &str = "create table app.made (id serial primary key, v int)";
    let pair = Pair::new();
    pair.copy("base", "head");
    pair.sql_in("head", MIGRATION);
    pair.sql_in("head", "insert into app.made (v) values (1), (2), (3)");
    let both = |more: &str| format!("{MIGRATION}; {more}");
    // Both sides ran the migration.
    let applied = check(&pair, "app.made_id_seq", &both("select setval('app.made_id_seq', 50)"), ["50", "50", "50"]);
    assert_eq!((applied.sequences, applied.rows.inserted), (0, 3));
    let applied = check(&pair, "app.made_id_seq", &both("select setval('app.made_id_seq', 2)"), ["2", "3", "2"]);
    assert!(applied.notes.iter().any(|note| note.contains("was in the target already")), "{:?}", applied.notes);

    // Applied once more, when the target has gone on.
    let set = pair.diff();
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!((applied.sequences, last(&pair, "app.made_id_seq").as_str()), (1, "3"));
    for (target, expect) in [("select 1", "3"), ("select nextval('app.made_id_seq') from generate_series(1, 10)", "13")]
    {
        pair.sql_in("target", target);
        for dry_run in [true, false] {
            let again = pair.apply("target", &set, &ApplyOptions { dry_run, ..ApplyOptions::default() });
            assert_eq!((&again.conflicts[..], again.is_unchanged()), (&[][..], true), "{again:?}");
            assert!(again.inverse.sequences.is_empty(), "{:?}", again.inverse.sequences);
            assert_eq!(last(&pair, "app.made_id_seq"), expect);
        }
    }
}

#[test]
fn a_descending_sequence_goes_down() {
    let pair = Pair::new();
    pair.new_base(&["create sequence app.down increment -1; select setval('app.down', -10)".to_owned()]);
    pair.copy("base", "head");
    pair.sql_in("head", "select nextval('app.down') from generate_series(1, 10)");
    assert!(!moved(&check(&pair, "app.down", "select 1", ["-10", "-20", "-10"])));
    assert!(moved(&check(&pair, "app.down", "select setval('app.down', -15)", ["-15", "-20", "-15"])));
    assert!(!moved(&check(&pair, "app.down", "select setval('app.down', -30)", ["-30", "-30", "-30"])));
}

#[test]
fn one_that_the_branch_turned_round_goes_on_in_its_new_direction() {
    let pair = Pair::new();
    pair.new_base(&["create sequence app.turned maxvalue 1000; select setval('app.turned', 100)".to_owned()]);
    pair.copy("base", "head");
    pair.sql_in("head", "alter sequence app.turned increment -1");
    pair.sql_in("head", "select nextval('app.turned') from generate_series(1, 10)");
    check(&pair, "app.turned", "select 1", ["100", "90", "100"]);
    check(&pair, "app.turned", "select setval('app.turned', 120)", ["120", "90", "120"]);
}

/// A branch begins with what was logged, and production is up to 32 numbers behind that.
#[test]
fn a_target_that_did_not_go_on_is_not_said_to_have() {
    let pair = Pair::new();
    pair.new_base(&["select setval('app.numbers', 43)".to_owned()]);
    pair.copy("base", "head");
    pair.sql_in("head", "select setval('app.numbers', 60)");
    let applied = check(&pair, "app.numbers", "select setval('app.numbers', 11)", ["11", "60", "11"]);
    assert_eq!(applied.notes, Vec::<String>::new());
    assert!(moved(&check(&pair, "app.numbers", "select setval('app.numbers', 50)", ["50", "60", "50"])));
    assert!(!moved(&check(&pair, "app.numbers", "select setval('app.numbers', 70)", ["70", "70", "70"])));
}

#[test]
fn a_sequence_with_another_name_goes_back_under_the_one_that_it_had() {
    let pair = Pair::new();
    pair.copy("base", "head");
    pair.sql_in("head", "alter sequence app.numbers rename to counts");
    pair.sql_in("head", "select nextval('app.counts') from generate_series(1, 5)");
    pair.round_trip("a sequence has another name");
}

#[test]
fn a_serial_column_becomes_an_identity_column_and_comes_back() {
    let pair = Pair::new();
    pair.new_base(&[
        "create table app.made (id serial primary key, v text)".to_owned(),
        "insert into app.made (v) select 'base' from generate_series(1, 20)".to_owned(),
    ]);
    pair.copy("base", "head");
    pair.sql_in(
        "head",
        "alter table app.made alter id drop default; drop sequence app.made_id_seq;
         alter table app.made alter id add generated by default as identity; select setval('app.made_id_seq', 20)",
    );
    pair.sql_in("head", "insert into app.made (v) select 'head' from generate_series(1, 20)");
    pair.round_trip("serial to identity");
    // The other way round, of which the first is the inverse.
    pair.copy("head", "base");
    pair.sql_in(
        "head",
        "alter table app.made alter id drop identity; create sequence app.made_id_seq as int owned by app.made.id;
         alter table app.made alter id set default nextval('app.made_id_seq'); select setval('app.made_id_seq', 40)",
    );
    pair.round_trip("identity to serial");
}

#[test]
fn a_target_that_takes_numbers_meanwhile_gets_none_of_them_twice() {
    const SEQUENCES: usize = 60;
    let pair = Pair::new();
    let each = |what: &str| format!("do $$ begin for i in 1..{SEQUENCES} loop {what}; end loop; end $$");
    pair.new_base(&[each("execute format('create sequence app.s%s', i)")]);
    pair.copy("base", "head");
    // Some of them are passed by the target at any moment.
    pair.sql_in("head", &each("perform setval(format('app.s%s', i), i * 40)"));
    let set = pair.diff();
    pair.copy("base", "target");
    let numbers: Vec<String> = (1..=SEQUENCES).map(|i| format!("nextval('app.s{i}')")).collect();
    let (applied, taken) = pair.while_repeated("target", &format!("select {}", numbers.join(", ")), || {
        pair.apply("target", &set, &ApplyOptions::default())
    });
    assert_eq!(applied.conflicts, []);
    let rows: Vec<Vec<i64>> =
        taken.iter().map(|row| row.split('|').map(|number| number.parse().expect("a number")).collect()).collect();
    for (earlier, later) in rows.iter().zip(&rows[1..]) {
        for (i, (earlier, later)) in earlier.iter().zip(later).enumerate() {
            assert!(earlier < later, "sequence {}: {later} after {earlier}", i + 1);
        }
    }
    for i in 1..=SEQUENCES {
        let last: usize = last(&pair, &format!("app.s{i}")).parse().expect("a number");
        assert!(last >= i * 40, "sequence {i} is at {last}");
    }
}
