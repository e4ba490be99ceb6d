//! Branch and target both changed rows: every conflict is reported, none is invented, and without one the result is the sum of both.
//! What is a conflict is decided here a second time, from two change sets and from nothing that applying knows.

use std::collections::{BTreeMap, BTreeSet};

use ardent_change_set::{ApplyOptions, Conflict};
use ardent_diff::{ChangeSet, RowChange, RowValues};
use ardent_test_pg::RandomTables;

use crate::pair::{Pair, script};
use crate::seeds;

/// A row by its table and key.
type Row = (String, RowValues);

/// What became of rows that have a key, with the names of their columns.
fn rows_of(set: &ChangeSet) -> BTreeMap<Row, (Vec<String>, RowChange)> {
    let mut all = BTreeMap::new();
    for change in set.tables.iter().filter(|change| !change.key.is_empty()) {
        let places: Vec<usize> =
            change.key.iter().filter_map(|name| change.columns.iter().position(|column| column == name)).collect();
        for row in change.rows.iter() {
            let row = row.expect("rows can be read");
            let (RowChange::Insert { new: values }
            | RowChange::Update { new: values, .. }
            | RowChange::Delete { old: values }) = &row;
            let key = places.iter().map(|place| values[*place].clone()).collect();
            // What Postgres computes is at odds where what it is computed from is.
            let columns = change
                .columns
                .iter()
                .map(|name| if change.generated.contains(name) { String::new() } else { name.clone() });
            all.insert((format!("{}.{}", change.schema, change.name), key), (columns.collect(), row));
        }
    }
    all
}

/// The columns in which two changes of one row are at odds; none: they are not. Whole rows are at odds in no column by name.
fn at_odds(columns: &[String], branch: &RowChange, target: &RowChange) -> Option<BTreeSet<String>> {
    use RowChange::{Delete, Insert, Update};
    let known = || columns.iter().enumerate().filter(|(_, name)| !name.is_empty());
    let found: BTreeSet<String> = match (branch, target) {
        (Delete { .. }, Delete { .. }) => return None,
        (Delete { .. }, Update { old, new }) => {
            known().filter(|(place, _)| old[*place] != new[*place]).map(|(_, name)| name.clone()).collect()
        }
        (Update { old, new }, Delete { .. }) => {
            known().filter(|(place, _)| old[*place] != new[*place]).map(|(_, name)| name.clone()).collect()
        }
        (Insert { new: a }, Insert { new: b }) => {
            known().filter(|(place, _)| a[*place] != b[*place]).map(|(_, name)| name.clone()).collect()
        }
        (Update { old, new: a }, Update { new: b, .. }) => known()
            .filter(|(place, _)| old[*place] != a[*place] && old[*place] != b[*place] && a[*place] != b[*place])
            .map(|(_, name)| name.clone())
            .collect(),
        // One side inserted what the other side has changed: they do not go out from one state.
        _ => panic!("{branch:?} {target:?}"),
    };
    (!found.is_empty()).then_some(found)
}

fn quoted(table: &str) -> String {
    let (schema, name) = table.split_once('.').expect("a schema");
    format!("{schema}.{name}")
}

#[test]
fn conflicts_are_those_that_there_are() {
    let pair = Pair::new();
    let (mut with, mut without) = (0, 0);
    for seed in seeds() {
        println!("seed {seed}");
        let mut random = RandomTables::new(seed);
        // The fixed tables have foreign keys and unique columns: rows that fit one by one and not together are tested elsewhere.
        pair.new_base(&random.schema());
        pair.sql_in("base", "do $$ declare t regclass; begin for t in select oid from pg_class where relnamespace = 'app'::regnamespace and relkind in ('r', 'p') and relname !~ '^r[0-9]'
             and not relispartition loop execute format('drop table %s cascade', t); end loop; end $$; drop table if exists app.events cascade;");
        for side in ["head", "other"] {
            pair.copy("base", side);
            let count = if seed % 3 == 0 { 2 } else { 8 };
            for _ in 0..count {
                let change = pair.random_rows(&mut random, side);
                pair.change(side, &change.into_iter().collect::<Vec<_>>());
            }
        }
        let set = pair.diff();
        let (branch, target) = (rows_of(&set), rows_of(&pair.diff_of("other")));
        let wanted: BTreeMap<Row, BTreeSet<String>> = branch
            .iter()
            .filter_map(|(row, (columns, change))| Some((row.clone(), at_odds(columns, change, &target.get(row)?.1)?)))
            .collect();
        pair.copy("other", "target");
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        let mut found: BTreeMap<Row, BTreeSet<String>> = BTreeMap::new();
        for conflict in &applied.conflicts {
            let Conflict::Row { table, key, columns, .. } = conflict else { panic!("seed {seed}: {conflict:?}") };
            // Rows without a key are there already where there are as few, or as many, as the branch has; both ways is a conflict.
            let table = table.replace('"', "");
            let has_key = branch.keys().any(|row| quoted(&row.0) == table);
            if !has_key {
                assert_both_ways(&pair, &table, key, seed);
                continue;
            }
            let key = key.iter().map(|(_, value)| value.clone()).collect();
            let names = columns.iter().map(|column| column.column.clone()).collect();
            found.insert((table, key), names);
        }
        assert_eq!(found, wanted, "seed {seed}\n{}", script(&set));
        if applied.conflicts.is_empty() {
            without += 1;
            // The sum of both: the target's change set, applied to the branch's state, gives the same.
            let theirs = pair.diff_of("other");
            pair.copy("head", "sum");
            let other = pair.apply("sum", &theirs, &ApplyOptions::default());
            assert_eq!(other.conflicts, [], "seed {seed}: the other way round");
            assert_eq!(pair.rows("target"), pair.rows("sum"), "seed {seed}");
            let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
            assert_eq!(undone.conflicts, [], "seed {seed}: undone");
            assert_eq!(pair.rows("target"), pair.rows("other"), "seed {seed}: undone");
        } else {
            with += 1;
            pair.assert_equal("target", "other", &format!("seed {seed}: nothing was done"), &set);
        }
    }
    println!("{with} with conflicts, {without} without");
}

/// Of rows without a key that are alike one side must have more than before, and the other less.
fn assert_both_ways(pair: &Pair, table: &str, values: &[(String, Option<String>)], seed: u64) {
    let same: Vec<String> = values
        .iter()
        .map(|(name, value)| {
            // By the type's own output function, as change sets have values; a cast to text may be another.
            match value {
                None => format!("\"{name}\" is null"),
                Some(value) => format!("format('%s', \"{name}\") = '{}'", value.replace('\'', "''")),
            }
        })
        .collect();
    let (schema, name) = table.split_once('.').expect("a schema");
    // As change sets have them.
    let settings =
        "set datestyle = 'ISO, YMD'; set timezone = 'UTC'; set extra_float_digits = 1; set lc_monetary = 'C'";
    let count = |database: &str| -> u64 {
        let sql = format!("{settings}; select count(*) from only \"{schema}\".\"{name}\" where {}", same.join(" and "));
        pair.sql_in(database, &sql).lines().last().and_then(|line| line.parse().ok()).expect("a count")
    };
    let (base, head, other) = (count("base"), count("head"), count("other"));
    assert!(
        (head < base && base < other) || (other < base && base < head),
        "seed {seed}: {table} {values:?}: {base} {head} {other}"
    );
}
