//! Compares what a change set changes with what the target has, before anything is changed.

use std::collections::{BTreeMap, BTreeSet};

use ardent_diff::{RowChange, TableChange, TableState};
use ardent_schema_diff::{identifier, qualified};

use crate::dml::any_of;
use crate::outcome::{Applied, ApplyError, ColumnConflict, Conflict};
use crate::target::{Target, TextRow};

/// Most keys that are looked up at once.
const KEYS_PER_STATEMENT: usize = 500;

/// What is to be done with a row; columns by their place in [`TableChange::columns`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Insert(TextRow),
    Update { key: TextRow, set: Vec<(usize, Option<String>)> },
    Delete { key: TextRow },
}

/// A table whose rows were compared.
#[derive(Debug)]
pub(crate) struct Guarded<'a> {
    pub change: &'a TableChange,
    pub operations: Vec<Operation>,
    /// Rows without a key that are to be deleted, by where they are now.
    pub places: Vec<String>,
    /// Rows of the inverse, in [`Guarded::base_columns`] and then the dropped ones.
    pub undo: Vec<RowChange>,
}

/// The name of a table at the branch point.
pub(crate) fn base_table(change: &TableChange) -> String {
    match &change.renamed_from {
        Some((schema, name)) => qualified(schema, name),
        None => qualified(&change.schema, &change.name),
    }
}

/// Columns that the branch point has: place and name there.
pub(crate) fn base_columns(change: &TableChange) -> Vec<(usize, &str)> {
    change.base_columns.iter().enumerate().filter_map(|(place, name)| Some((place, name.as_deref()?))).collect()
}

/// Places of the key's columns; empty if there is no key that both sides have.
pub(crate) fn key_places(change: &TableChange) -> Vec<usize> {
    let places: Vec<usize> =
        change.key.iter().filter_map(|name| change.columns.iter().position(|column| column == name)).collect();
    let known = places.len() == change.key.len()
        && (change.state != TableState::Kept
            || places.iter().all(|place| change.base_columns.get(*place).is_some_and(Option::is_some)));
    if known { places } else { Vec::new() }
}

pub(crate) async fn table<'a>(
    target: &Target<'_>,
    change: &'a TableChange,
    applied: &mut Applied,
) -> Result<Guarded<'a>, ApplyError> {
    let mut guarded = Guarded { change, operations: Vec::new(), places: Vec::new(), undo: Vec::new() };
    if change.state == TableState::Created {
        for row in &change.rows {
            if let RowChange::Insert { new } = row {
                guarded.operations.push(Operation::Insert(new.clone()));
            }
        }
        return Ok(guarded);
    }
    let name = base_table(change);
    let exists =
        target.rows(&format!("select to_regclass({}) is not null", ardent_schema_diff::literal(&name))).await?;
    if exists.first().and_then(|row| row.first().cloned().flatten()).as_deref() != Some("t") {
        let why = "the target has no such table".to_owned();
        applied.conflicts.push(Conflict::Schema {
            object: format!("table {name}"),
            why,
            base: None,
            branch: None,
            target: None,
        });
        return Ok(guarded);
    }
    let key = key_places(change);
    if change.state == TableState::Dropped {
        target.run(&format!("lock table only {name} in access exclusive mode")).await?;
    } else if key.is_empty() || !change.columns_dropped.is_empty() {
        target.run(&format!("lock table only {name} in share row exclusive mode")).await?;
    }
    if key.is_empty() {
        without_key(target, &mut guarded, applied).await?;
    } else {
        with_key(target, &mut guarded, &key, applied).await?;
    }
    if change.state == TableState::Dropped {
        let counted = target.rows(&format!("select count(*) from only {name}")).await?;
        let count: usize = counted.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).unwrap_or(0);
        let known = change.rows.len();
        if count > known {
            let why = format!("the branch dropped the table with {known} rows; the target's has {count}");
            applied.conflicts.push(Conflict::Row { table: name, key: Vec::new(), why, columns: Vec::new() });
        }
        guarded.operations.clear();
        guarded.places.clear();
    } else if !change.columns_dropped.is_empty() {
        keep_dropped_columns(target, &mut guarded, &key, applied).await?;
    }
    Ok(guarded)
}

/// The columns that are read: those of the branch point, then those that the branch dropped.
fn select_list(change: &TableChange) -> String {
    let kept = base_columns(change).into_iter().map(|(_, name)| name);
    let all: Vec<String> = kept.chain(change.columns_dropped.iter().map(String::as_str)).map(identifier).collect();
    if all.is_empty() { "null".to_owned() } else { all.join(", ") }
}

async fn with_key(
    target: &Target<'_>,
    guarded: &mut Guarded<'_>,
    key: &[usize],
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let change = guarded.change;
    let columns = base_columns(change);
    // Where a column of the table is in a row that was read.
    let read_at: BTreeMap<usize, usize> = columns.iter().enumerate().map(|(at, (place, _))| (*place, at)).collect();
    let key_names: Vec<&str> = key.iter().filter_map(|place| change.base_columns.get(*place)?.as_deref()).collect();
    let (table, list) = (base_table(change), select_list(change));
    for rows in change.rows.chunks(KEYS_PER_STATEMENT) {
        let keys: Vec<TextRow> = rows.iter().map(|row| key_of(values_of(row), key)).collect();
        let mut found: BTreeMap<TextRow, TextRow> = BTreeMap::new();
        let sql = format!("select {list} from only {table} where {} for update", any_of(&key_names, &keys));
        target
            .each(&sql, |row| {
                let key =
                    key.iter().map(|place| read_at.get(place).and_then(|at| row.get(*at).cloned()).flatten()).collect();
                found.insert(key, row);
            })
            .await?;
        for (row, key_values) in rows.iter().zip(keys) {
            let there = found.get(&key_values);
            compare_row(guarded, row, key_values, there, &columns, applied);
        }
    }
    Ok(())
}

/// Decides about one row: to do, done already, or at odds.
fn compare_row(
    guarded: &mut Guarded<'_>,
    row: &RowChange,
    key: TextRow,
    there: Option<&TextRow>,
    columns: &[(usize, &str)],
    applied: &mut Applied,
) {
    let change = guarded.change;
    let computed = |place: usize| change.columns.get(place).is_some_and(|name| change.generated.contains(name));
    let mut conflict = |why: &str, columns: Vec<ColumnConflict>| {
        let key = change.key.iter().cloned().zip(key.iter().cloned()).collect();
        applied.conflicts.push(Conflict::Row { table: base_table(change), key, why: why.to_owned(), columns });
    };
    match (row, there) {
        (RowChange::Insert { new }, None) => {
            guarded.operations.push(Operation::Insert(new.clone()));
            let old = pick(new, columns, change);
            guarded.undo.push(RowChange::Delete { old });
        }
        (RowChange::Insert { new }, Some(there)) => {
            let differing: Vec<ColumnConflict> = at_odds(columns, there, |place| &new[place], &computed)
                .map(|(column, target)| ColumnConflict {
                    column: column.1.to_owned(),
                    base: None,
                    branch: new[column.0].clone(),
                    target,
                })
                .collect();
            if differing.is_empty() {
                applied.already_there += 1;
            } else {
                conflict("both inserted a row with this key", differing);
            }
        }
        (RowChange::Delete { .. }, None) => applied.already_there += 1,
        (RowChange::Delete { old }, Some(there)) => {
            let differing: Vec<ColumnConflict> = at_odds(columns, there, |place| &old[place], &computed)
                .map(|(column, target)| ColumnConflict {
                    column: column.1.to_owned(),
                    base: old[column.0].clone(),
                    branch: None,
                    target,
                })
                .collect();
            if differing.is_empty() {
                guarded.operations.push(Operation::Delete { key });
                guarded.undo.push(RowChange::Insert { new: there.clone() });
            } else {
                conflict("the branch deleted it; the target changed it", differing);
            }
        }
        (RowChange::Update { old, new }, None) => {
            let differing =
                columns.iter().filter(|(place, _)| old[*place] != new[*place]).map(|(place, name)| ColumnConflict {
                    column: (*name).to_owned(),
                    base: old[*place].clone(),
                    branch: new[*place].clone(),
                    target: None,
                });
            conflict("the branch updated it; the target deleted it", differing.collect());
        }
        (RowChange::Update { old, new }, Some(there)) => {
            let (mut set, mut differing) = (Vec::new(), Vec::new());
            let mut after = there.clone();
            for place in (0..new.len()).filter(|place| old[*place] != new[*place] && !computed(*place)) {
                let Some((at, (_, name))) = columns.iter().enumerate().find(|(_, column)| column.0 == place) else {
                    // A column that the branch added.
                    set.push((place, new[place].clone()));
                    continue;
                };
                let target = &there[at];
                if *target == old[place] {
                    set.push((place, new[place].clone()));
                    after[at].clone_from(&new[place]);
                } else if *target != new[place] {
                    let (base, branch) = (old[place].clone(), new[place].clone());
                    differing.push(ColumnConflict { column: (*name).to_owned(), base, branch, target: target.clone() });
                }
            }
            if !differing.is_empty() {
                conflict("both updated it", differing);
            } else if set.is_empty() {
                applied.already_there += 1;
            } else {
                guarded.operations.push(Operation::Update { key, set });
                for lost in after.iter_mut().skip(columns.len()) {
                    *lost = None;
                }
                guarded.undo.push(RowChange::Update { old: after, new: there.clone() });
            }
        }
    }
}

/// Columns whose value in the target is another than the one given, with it.
fn at_odds<'a>(
    columns: &'a [(usize, &'a str)],
    there: &'a TextRow,
    wanted: impl Fn(usize) -> &'a Option<String> + 'a,
    computed: &'a impl Fn(usize) -> bool,
) -> impl Iterator<Item = (&'a (usize, &'a str), Option<String>)> + 'a {
    columns
        .iter()
        .zip(there)
        .filter(move |(column, value)| !computed(column.0) && *value != wanted(column.0))
        .map(|(column, value)| (column, value.clone()))
}

/// A row of the branch in the columns of the inverse.
fn pick(row: &[Option<String>], columns: &[(usize, &str)], change: &TableChange) -> TextRow {
    let kept = columns.iter().map(|(place, _)| row[*place].clone());
    kept.chain(change.columns_dropped.iter().map(|_| None)).collect()
}

fn values_of(row: &RowChange) -> &[Option<String>] {
    match row {
        RowChange::Insert { new } | RowChange::Update { new, .. } => new,
        RowChange::Delete { old } => old,
    }
}

fn key_of(row: &[Option<String>], key: &[usize]) -> TextRow {
    key.iter().map(|place| row[*place].clone()).collect()
}

/// Rows are found by all their values: the table is read once.
async fn without_key(target: &Target<'_>, guarded: &mut Guarded<'_>, applied: &mut Applied) -> Result<(), ApplyError> {
    let change = guarded.change;
    let columns = base_columns(change);
    let mut wanted: BTreeMap<TextRow, u64> = BTreeMap::new();
    for row in &change.rows {
        match row {
            RowChange::Delete { old } => {
                *wanted.entry(columns.iter().map(|(place, _)| old[*place].clone()).collect()).or_default() += 1
            }
            RowChange::Insert { new } => {
                guarded.operations.push(Operation::Insert(new.clone()));
                guarded.undo.push(RowChange::Delete { old: pick(new, &columns, change) });
            }
            // Nothing is paired without a key.
            RowChange::Update { .. } => {}
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let sql = format!("select ctid, {} from only {}", select_list(change), base_table(change));
    let (places, undo) = (&mut guarded.places, &mut guarded.undo);
    target
        .each(&sql, |mut row| {
            let place = row.remove(0);
            let Some(left) = wanted.get_mut(&row[..columns.len()]).filter(|left| **left > 0) else { return };
            *left -= 1;
            places.extend(place);
            undo.push(RowChange::Insert { new: row });
        })
        .await?;
    for (row, left) in wanted {
        for _ in 0..left {
            let key = columns.iter().map(|(_, name)| (*name).to_owned()).zip(row.iter().cloned()).collect();
            let why = "the branch deleted or updated it; the target has no row like it".to_owned();
            applied.conflicts.push(Conflict::Row { table: base_table(change), key, why, columns: Vec::new() });
        }
    }
    Ok(())
}

/// What the target has in columns that are about to go, for the inverse.
async fn keep_dropped_columns(
    target: &Target<'_>,
    guarded: &mut Guarded<'_>,
    key: &[usize],
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let change = guarded.change;
    if key.is_empty() {
        let (table, columns) = (base_table(change), change.columns_dropped.join(", "));
        applied.notes.push(format!("{table} has no key: the inverse cannot bring back the values of {columns}"));
        return Ok(());
    }
    let columns = base_columns(change);
    let at: Vec<usize> = key.iter().filter_map(|place| columns.iter().position(|column| column.0 == *place)).collect();
    let own_key = |row: &TextRow| -> TextRow { at.iter().map(|at| row[*at].clone()).collect() };
    let known: BTreeSet<TextRow> = guarded.undo.iter().map(|row| own_key(&values_of(row).to_vec())).collect();
    let some: Vec<String> =
        change.columns_dropped.iter().map(|name| format!("{} is distinct from null", identifier(name))).collect();
    let sql = format!("select {} from only {} where {}", select_list(change), base_table(change), some.join(" or "));
    let undo = &mut guarded.undo;
    target
        .each(&sql, |row| {
            if !known.contains(&own_key(&row)) {
                let kept = row.iter().take(columns.len()).cloned();
                let old = kept.chain(change.columns_dropped.iter().map(|_| None)).collect();
                undo.push(RowChange::Update { old, new: row });
            }
        })
        .await
}
