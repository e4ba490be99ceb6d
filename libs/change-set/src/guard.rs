//! Compares what a change set changes with what the target has, before anything is changed.

mod dropped_columns;
mod without_key;

use std::collections::{BTreeMap, BTreeSet};

use ardent_diff::{Item, RowChange, Spool, SpoolError, TableChange, TableState};
use ardent_schema_diff::{identifier, literal, qualified};
use serde::{Deserialize, Serialize};

pub(crate) use self::dropped_columns::is_referred_to;
use self::dropped_columns::{keep_dropped_columns, readded};
use self::without_key::without_key;
use crate::dml::{any_of, any_of_texts};
use crate::outcome::{Applied, ApplyError, ColumnConflict, Conflict};
use crate::target::{Target, TextRow};

/// Most keys that are looked up at once.
const KEYS_PER_STATEMENT: usize = 500;
/// After so many rows it is said how far the comparison is.
const ROWS_PER_REPORT: u64 = 50_000;

/// Whose value counts where branch and target changed a row in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefer {
    /// The branch's.
    Branch,
    /// The target's.
    Target,
}

/// Whether keys are values of the types that the target's columns have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyTypes {
    Same,
    /// The change set gives some column another type, which may be one of a key's.
    MayDiffer,
}

/// A column that is set in a row: its place in [`TableChange::columns`], what the target has there and what it gets. What the target
/// has is absent for a column that only the branch has.
pub(crate) type Assignment = (usize, Option<String>, Option<String>);

/// A row that is updated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowUpdate {
    pub key: TextRow,
    pub set: Vec<Assignment>,
}

impl Item for RowUpdate {
    fn put(&self, out: &mut Vec<u8>) {
        self.key.put(out);
        (self.set.len() as i64).put(out);
        for (place, old, new) in &self.set {
            (*place as i64).put(out);
            old.put(out);
            new.put(out);
        }
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let key = Item::take(bytes)?;
        let count = i64::take(bytes)?;
        let assignment = |bytes: &mut &[u8]| -> Option<Assignment> {
            Some((usize::try_from(i64::take(bytes)?).ok()?, Item::take(bytes)?, Item::take(bytes)?))
        };
        let set = (0..count).map(|_| assignment(bytes)).collect::<Option<_>>()?;
        Some(RowUpdate { key, set })
    }
}

/// A table whose rows were compared: what is to be done, and what undoes it.
#[derive(Debug)]
pub(crate) struct Guarded<'a> {
    pub change: &'a TableChange,
    prefer: Option<Prefer>,
    /// What rows get in each of [`TableChange::columns_dropped`] when it is added again.
    pub readded: TextRow,
    pub inserts: Spool<TextRow>,
    pub updates: Spool<RowUpdate>,
    /// Keys.
    pub deletes: Spool<TextRow>,
    /// Rows without a key that are to be deleted, by where they are now: rows of one value.
    pub places: Spool<TextRow>,
    /// Rows without a key are to be inserted, and it is not known how many like them the branch point had: whether they are there already
    /// cannot be told.
    pub uncounted: bool,
    /// Rows of the inverse, in [`base_columns`] and then the dropped ones.
    pub undo: Spool<RowChange>,
}

impl<'a> Guarded<'a> {
    fn new(change: &'a TableChange) -> Guarded<'a> {
        let (inserts, updates, deletes, places, undo) = Default::default();
        let (prefer, readded, uncounted) = (None, Vec::new(), false);
        Guarded { change, prefer, readded, inserts, updates, deletes, places, uncounted, undo }
    }

    /// Whether rows are to be written once the schema's first part has been run.
    pub fn writes(&self) -> bool {
        !(self.inserts.is_empty() && self.updates.is_empty() && self.deletes.is_empty())
    }

    fn seal(&mut self) -> Result<(), SpoolError> {
        self.inserts.seal()?;
        self.updates.seal()?;
        self.deletes.seal()?;
        self.places.seal()?;
        self.undo.seal()
    }
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
    prefer: Option<Prefer>,
    key_types: KeyTypes,
    applied: &mut Applied,
    progress: &mut impl FnMut(&str),
) -> Result<Guarded<'a>, ApplyError> {
    let mut guarded = Guarded { prefer, ..Guarded::new(change) };
    if change.state == TableState::Created {
        for row in change.rows.iter() {
            if let RowChange::Insert { new } = row? {
                guarded.inserts.push(&new)?;
            }
        }
        guarded.seal()?;
        return Ok(guarded);
    }
    let name = base_table(change);
    let exists = target.rows(&format!("select to_regclass({}) is not null", literal(&name))).await?;
    if exists.first().and_then(|row| row.first().cloned().flatten()).as_deref() != Some("t") {
        let why = "the target has no such table".to_owned();
        applied.conflict(Conflict::Schema {
            object: format!("table {name}"),
            why,
            base: None,
            branch: None,
            target: None,
        });
        return Ok(guarded);
    }
    let columns = format!(
        "select attname::text from pg_attribute where attrelid = to_regclass({}) and attnum > 0 and not attisdropped",
        literal(&name)
    );
    let there: BTreeSet<String> = target.rows(&columns).await?.into_iter().flatten().flatten().collect();
    let missing: Vec<&str> = columns_read(change).into_iter().filter(|column| !there.contains(*column)).collect();
    for column in &missing {
        applied.conflict(Conflict::Schema {
            object: format!("column {} of table {name}", identifier(column)),
            why: "the branch changed rows of its table; the target has no such column".to_owned(),
            base: None,
            branch: None,
            target: None,
        });
    }
    if !missing.is_empty() {
        return Ok(guarded);
    }
    let key = key_places(change);
    if change.state == TableState::Dropped {
        target.run(&format!("lock table only {name} in access exclusive mode")).await?;
    } else if (key.is_empty() && !change.rows.is_empty()) || !change.columns_dropped.is_empty() {
        target.run(&format!("lock table only {name} in share row exclusive mode")).await?;
    }
    if !change.columns_dropped.is_empty() {
        guarded.readded = readded(target, change).await?;
    }
    if key.is_empty() {
        without_key(target, &mut guarded, applied).await?;
    } else {
        with_key(target, &mut guarded, &key, key_types, applied, progress).await?;
    }
    if change.state == TableState::Dropped {
        let counted = target.rows(&format!("select count(*) from only {name}")).await?;
        let count: u64 = counted.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).unwrap_or(0);
        let known = change.rows.len();
        if count > known {
            let why = format!("the branch dropped the table with {known} rows; the target's has {count}");
            applied.conflict(Conflict::Row { table: name, key: Vec::new(), why, columns: Vec::new() });
        }
        guarded = Guarded { undo: guarded.undo, ..Guarded::new(change) };
    } else if !change.columns_dropped.is_empty() {
        keep_dropped_columns(target, &mut guarded, &key, applied).await?;
    }
    guarded.seal()?;
    Ok(guarded)
}

/// A table that goes and of whose rows the change set says nothing: all of them are kept for the way back.
pub(crate) async fn whole<'a>(target: &Target<'_>, change: &'a TableChange) -> Result<Guarded<'a>, ApplyError> {
    let mut guarded = Guarded::new(change);
    let name = base_table(change);
    target.run(&format!("lock table only {name} in access exclusive mode")).await?;
    let undo = &mut guarded.undo;
    let sql = format!("select {} from only {name}", select_list(change));
    target.each(&sql, |row| undo.push(&RowChange::Insert { new: row })).await?;
    guarded.seal()?;
    Ok(guarded)
}

/// The columns that are read: those of the branch point, those that the branch dropped, and those that the change set does not know.
fn columns_read(change: &TableChange) -> Vec<&str> {
    let kept = base_columns(change).into_iter().map(|(_, name)| name);
    kept.chain(change.columns_dropped.iter().chain(&change.columns_left).map(String::as_str)).collect()
}

pub(crate) fn select_list(change: &TableChange) -> String {
    let all: Vec<String> = columns_read(change).into_iter().map(identifier).collect();
    if all.is_empty() { "null".to_owned() } else { all.join(", ") }
}

async fn with_key(
    target: &Target<'_>,
    guarded: &mut Guarded<'_>,
    key: &[usize],
    key_types: KeyTypes,
    applied: &mut Applied,
    progress: &mut impl FnMut(&str),
) -> Result<(), ApplyError> {
    let change = guarded.change;
    let columns = base_columns(change);
    // Where a column of the table is in a row that was read.
    let read_at: BTreeMap<usize, usize> = columns.iter().enumerate().map(|(at, (place, _))| (*place, at)).collect();
    let key_names: Vec<&str> = key.iter().filter_map(|place| change.base_columns.get(*place)?.as_deref()).collect();
    let (table, list) = (base_table(change), select_list(change));
    let (mut compared, mut reported) = (0, 0);
    for rows in change.rows.chunks(KEYS_PER_STATEMENT) {
        let rows = rows?;
        let keys: Vec<TextRow> = rows.iter().map(|row| key_of(values_of(row), key)).collect();
        let mut found: BTreeMap<TextRow, TextRow> = BTreeMap::new();
        let mut find = |row: TextRow| {
            let key =
                key.iter().map(|place| read_at.get(place).and_then(|at| row.get(*at).cloned()).flatten()).collect();
            found.insert(key, row);
            Ok(())
        };
        let select = format!("select {list} from only {table} where");
        let by_value = format!("{select} {} for update", any_of(&key_names, &keys));
        match key_types {
            KeyTypes::Same => target.each(&by_value, find).await?,
            KeyTypes::MayDiffer => {
                target.run("savepoint keys").await?;
                match target.each(&by_value, &mut find).await {
                    // A key that is no value of the old type is no row's, but the others must be looked for.
                    Err(error) if error.is_about_values() => {
                        target.run("rollback to savepoint keys").await?;
                        let by_text = format!("{select} {} for update", any_of_texts(&key_names, &keys));
                        target.each(&by_text, find).await?;
                    }
                    other => other?,
                }
                target.run("release savepoint keys").await?;
            }
        }
        for (row, key_values) in rows.iter().zip(keys) {
            let there = found.get(&key_values);
            Comparison { guarded: &mut *guarded, columns: &columns, applied: &mut *applied }
                .row(row, key_values, there)?;
        }
        compared += rows.len() as u64;
        if compared >= reported + ROWS_PER_REPORT {
            reported = compared;
            progress(&format!("compared {compared} of {} rows of {table}", change.rows.len()));
        }
    }
    Ok(())
}

/// Decides about rows: to do, done already, or at odds.
struct Comparison<'c, 'a> {
    guarded: &'c mut Guarded<'a>,
    /// See [`base_columns`].
    columns: &'c [(usize, &'a str)],
    applied: &'c mut Applied,
}

impl Comparison<'_, '_> {
    fn row(&mut self, row: &RowChange, key: TextRow, there: Option<&TextRow>) -> Result<(), SpoolError> {
        match (row, there) {
            (RowChange::Insert { new }, None) => self.insert(new),
            (RowChange::Insert { new }, Some(there)) => self.both_inserted(new, key, there),
            (RowChange::Delete { .. }, None) => {
                self.applied.already_there += 1;
                Ok(())
            }
            (RowChange::Delete { old }, Some(there)) => self.delete(old, key, there),
            (RowChange::Update { old, new }, None) => self.updated_and_gone(old, new, &key),
            (RowChange::Update { old, new }, Some(there)) => self.update(old, new, key, there),
        }
    }

    /// Whether the branch's value is to be taken where both changed something; a conflict is noted unless it is settled.
    fn branch_wins(&mut self, why: &str, key: &TextRow, columns: Vec<ColumnConflict>) -> bool {
        let change = self.guarded.change;
        match self.guarded.prefer {
            None => {
                let key = change.key.iter().cloned().zip(key.iter().cloned()).collect();
                self.applied.conflict(Conflict::Row { table: base_table(change), key, why: why.to_owned(), columns });
                false
            }
            Some(side) => {
                self.applied.settled += 1;
                side == Prefer::Branch
            }
        }
    }

    fn computed(&self, place: usize) -> bool {
        let change = self.guarded.change;
        change.columns.get(place).is_some_and(|name| change.generated.contains(name))
    }

    /// Whether the change set says what was there.
    fn compared(&self, place: usize) -> bool {
        !self.computed(place) && is_known(self.guarded.change, place)
    }

    /// Columns whose value in the target is another than `wanted`: where in a row that was read, place, and name.
    fn at_odds(&self, there: &TextRow, wanted: &TextRow) -> Vec<(usize, usize, String)> {
        let columns = self.columns.iter().enumerate();
        columns
            .filter(|(at, (place, _))| self.compared(*place) && there[*at] != wanted[*place])
            .map(|(at, (place, name))| (at, *place, (*name).to_owned()))
            .collect()
    }

    fn insert(&mut self, new: &TextRow) -> Result<(), SpoolError> {
        self.guarded.inserts.push(new)?;
        let old = pick(new, self.columns, self.guarded.change);
        self.guarded.undo.push(&RowChange::Delete { old })
    }

    fn both_inserted(&mut self, new: &TextRow, key: TextRow, there: &TextRow) -> Result<(), SpoolError> {
        let differing = self.at_odds(there, new);
        let conflicts = differing.iter().map(|(at, place, name)| ColumnConflict {
            column: name.clone(),
            base: None,
            branch: new[*place].clone(),
            target: there[*at].clone(),
        });
        let conflicts: Vec<_> = conflicts.collect();
        let mut set: Vec<Assignment> = Vec::new();
        if !conflicts.is_empty() {
            if !self.branch_wins("both inserted a row with this key", &key, conflicts) {
                return Ok(());
            }
            set = differing.iter().map(|(at, place, _)| (*place, there[*at].clone(), new[*place].clone())).collect();
        }
        let mut after = there.clone();
        for (at, place, _) in &differing {
            after[*at].clone_from(&new[*place]);
        }
        // Columns that only the branch has.
        let known = |place: &usize| self.columns.iter().any(|column| column.0 == *place);
        let added = (0..new.len()).filter(|place| !known(place) && !self.computed(*place) && new[*place].is_some());
        set.extend(added.map(|place| (place, None, new[place].clone())).collect::<Vec<_>>());
        if set.is_empty() {
            self.applied.already_there += 1;
            return Ok(());
        }
        self.set(key, set, after, there)
    }

    fn delete(&mut self, old: &TextRow, key: TextRow, there: &TextRow) -> Result<(), SpoolError> {
        let differing = self.at_odds(there, old);
        let conflicts = differing.into_iter().map(|(at, place, column)| ColumnConflict {
            column,
            base: old[place].clone(),
            branch: None,
            target: there[at].clone(),
        });
        let conflicts: Vec<_> = conflicts.collect();
        if !conflicts.is_empty() && !self.branch_wins("the branch deleted it; the target changed it", &key, conflicts) {
            return Ok(());
        }
        self.guarded.deletes.push(&key)?;
        self.guarded.undo.push(&RowChange::Insert { new: there.clone() })
    }

    fn updated_and_gone(&mut self, old: &TextRow, new: &TextRow, key: &TextRow) -> Result<(), SpoolError> {
        let columns = self.columns.iter().filter(|(place, _)| old[*place] != new[*place]);
        let conflicts = columns.map(|(place, name)| ColumnConflict {
            column: (*name).to_owned(),
            base: old[*place].clone(),
            branch: new[*place].clone(),
            target: None,
        });
        let conflicts = conflicts.collect();
        if self.branch_wins("the branch updated it; the target deleted it", key, conflicts) {
            self.insert(new)
        } else {
            Ok(())
        }
    }

    fn update(&mut self, old: &TextRow, new: &TextRow, key: TextRow, there: &TextRow) -> Result<(), SpoolError> {
        let (mut set, mut differing, mut conflicts) = (Vec::new(), Vec::new(), Vec::new());
        let mut after = there.clone();
        let differing_places: Vec<usize> =
            (0..new.len()).filter(|place| old[*place] != new[*place] && !self.computed(*place)).collect();
        // What Postgres computes is not there before it computes it, and nothing that anybody does to the row.
        if differing_places.is_empty() {
            return Ok(());
        }
        for place in differing_places {
            let Some((at, (_, name))) = self.columns.iter().enumerate().find(|(_, column)| column.0 == place) else {
                // A column that the branch added.
                set.push((place, None, new[place].clone()));
                continue;
            };
            let target = &there[at];
            if *target == old[place] {
                set.push((place, target.clone(), new[place].clone()));
                after[at].clone_from(&new[place]);
            } else if *target != new[place] {
                let (base, branch) = (old[place].clone(), new[place].clone());
                conflicts.push(ColumnConflict { column: (*name).to_owned(), base, branch, target: target.clone() });
                differing.push((at, place));
            }
        }
        if !conflicts.is_empty() {
            if self.branch_wins("both updated it", &key, conflicts) {
                for (at, place) in differing {
                    set.push((place, there[at].clone(), new[place].clone()));
                    after[at].clone_from(&new[place]);
                }
            } else if self.guarded.prefer.is_none() {
                return Ok(());
            }
            if set.is_empty() {
                return Ok(());
            }
        }
        if set.is_empty() {
            self.applied.already_there += 1;
            return Ok(());
        }
        self.set(key, set, after, there)
    }

    /// `after` is what the row will be, `there` what it is.
    fn set(
        &mut self,
        key: TextRow,
        set: Vec<Assignment>,
        mut after: TextRow,
        there: &TextRow,
    ) -> Result<(), SpoolError> {
        self.guarded.updates.push(&RowUpdate { key, set })?;
        for (lost, readded) in after.iter_mut().skip(self.columns.len()).zip(&self.guarded.readded) {
            lost.clone_from(readded);
        }
        self.guarded.undo.push(&RowChange::Update { old: after, new: there.clone() })
    }
}

/// A row of the branch in the columns of the inverse.
fn pick(row: &[Option<String>], columns: &[(usize, &str)], change: &TableChange) -> TextRow {
    let kept = columns.iter().map(|(place, _)| row[*place].clone());
    kept.chain(change.columns_dropped.iter().chain(&change.columns_left).map(|_| None)).collect()
}

/// Whether the change set says what was in the column at this place.
fn is_known(change: &TableChange, place: usize) -> bool {
    change.columns.get(place).is_some_and(|name| !change.unguarded.contains(name))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_go_through_a_file_and_come_back() {
        let text = |text: &str| Some(text.to_owned());
        let update = RowUpdate { key: vec![text("1")], set: vec![(3, None, text("x")), (4, text("a"), None)] };
        let mut bytes = Vec::new();
        update.put(&mut bytes);
        assert_eq!(RowUpdate::take(&mut &bytes[..]), Some(update));
        for end in 0..bytes.len() {
            assert_eq!(RowUpdate::take(&mut &bytes[..end]), None, "cut at {end}");
        }
    }
}
