//! Rows without a key: they are told by all their values, and by how many there are of them.

use std::collections::BTreeMap;

use ardent_diff::{Order, PAIRING_BYTES_MAX, Pairing, RowChange, SpoolError, TableState};

use super::{Guarded, base_columns, base_table, is_known, pick, select_list};
use crate::outcome::{Applied, ApplyError, Conflict};
use crate::target::{Target, TextRow};

/// Bytes of rows that are looked for in one reading of their table.
const WANTED_BYTES_MAX: usize = 32 << 20;

/// Rows that are alike.
#[derive(Debug, Default)]
struct Alike {
    /// How many the branch point had.
    base: u64,
    inserted: u64,
    deleted: u64,
    /// How many the target has.
    there: u64,
    /// Those that may be deleted, with where they are.
    found: Vec<(Option<String>, TextRow)>,
}

impl Alike {
    /// How many are still to be inserted: as many as the branch has there are then.
    fn to_insert(&self) -> u64 {
        (self.base + self.inserted).saturating_sub(self.there).min(self.inserted)
    }

    /// Whether the target itself deleted rows like those that the branch inserted, or the other way round: then what is there does not tell
    /// whether the branch's were written already.
    fn is_unclear(&self) -> bool {
        (self.inserted > 0 && self.there < self.base) || (self.deleted > 0 && self.there > self.base)
    }

    /// How many are still to be deleted, likewise.
    fn to_delete(&self) -> u64 {
        self.there.saturating_sub(self.base.saturating_sub(self.deleted)).min(self.deleted)
    }
}

/// Rows are found by all their values: the table is read once for so many of them as memory has room for.
pub(super) async fn without_key(
    target: &Target<'_>,
    guarded: &mut Guarded<'_>,
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let change = guarded.change;
    let is_counted = !change.rows.is_empty() && change.copies.len() == change.rows.len();
    if change.state == TableState::Kept && is_counted {
        return counted(target, guarded, applied).await;
    }
    let columns = base_columns(change);
    // Sorted, so that copies of a row are looked for together.
    let mut sorted = Pairing::new(Vec::new(), PAIRING_BYTES_MAX);
    for row in change.rows.iter() {
        match row? {
            RowChange::Delete { old } => {
                let known = columns.iter().filter(|(place, _)| is_known(change, *place));
                sorted.add_base(known.map(|(place, _)| old[*place].clone()).collect())?;
            }
            RowChange::Insert { new } => {
                guarded.undo.push(&RowChange::Delete { old: pick(&new, &columns, change) })?;
                guarded.inserts.push(&new)?;
                guarded.uncounted = true;
            }
            // Nothing is paired without a key.
            RowChange::Update { .. } => {}
        }
    }
    let mut wanted: BTreeMap<TextRow, u64> = BTreeMap::new();
    let mut bytes = 0;
    for row in sorted.finish(Order::Kind)?.iter() {
        let RowChange::Delete { old } = row? else { continue };
        if let Some(count) = wanted.get_mut(&old) {
            *count += 1;
            continue;
        }
        bytes += old.iter().map(|value| value.as_ref().map_or(0, String::len)).sum::<usize>();
        if bytes > WANTED_BYTES_MAX {
            find_places(target, guarded, std::mem::take(&mut wanted), applied).await?;
            bytes = 0;
        }
        wanted.insert(old, 1);
    }
    if wanted.is_empty() { Ok(()) } else { find_places(target, guarded, wanted, applied).await }
}

/// Finds where rows without a key are.
async fn find_places(
    target: &Target<'_>,
    guarded: &mut Guarded<'_>,
    mut wanted: BTreeMap<TextRow, u64>,
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let change = guarded.change;
    let columns = base_columns(change);
    let known: Vec<usize> = (0..columns.len()).filter(|at| is_known(change, columns[*at].0)).collect();
    let sql = format!("select ctid, {} from only {}", select_list(change), base_table(change));
    let (places, undo) = (&mut guarded.places, &mut guarded.undo);
    target
        .each(&sql, |mut row| {
            let place = row.remove(0);
            let values: TextRow = known.iter().map(|at| row[*at].clone()).collect();
            let Some(left) = wanted.get_mut(&values).filter(|left| **left > 0) else { return Ok(()) };
            *left -= 1;
            places.push(&vec![place])?;
            undo.push(&RowChange::Insert { new: row })
        })
        .await?;
    for (row, left) in wanted {
        for _ in 0..left {
            let key = known.iter().map(|at| columns[*at].1.to_owned()).zip(row.iter().cloned()).collect();
            let why = "the branch deleted or updated it; the target has no row like it".to_owned();
            applied.conflict(Conflict::Row { table: base_table(change), key, why, columns: Vec::new() });
        }
    }
    Ok(())
}

/// The same where the change set says how many rows like each the branch point had, which it does for few of them: rows that the target got,
/// or lost, as the branch did are there already.
async fn counted(target: &Target<'_>, guarded: &mut Guarded<'_>, applied: &mut Applied) -> Result<(), ApplyError> {
    let change = guarded.change;
    let columns = base_columns(change);
    let values = |row: &TextRow| -> TextRow { columns.iter().map(|(place, _)| row[*place].clone()).collect() };
    let mut all: BTreeMap<TextRow, Alike> = BTreeMap::new();
    for (row, base) in change.rows.iter().zip(change.copies.iter()) {
        let base = u64::try_from(base?).unwrap_or_default();
        let (row, inserted, deleted) = match row? {
            RowChange::Insert { new } => (new, 1, 0),
            RowChange::Delete { old } => (old, 0, 1),
            // Nothing is paired without a key.
            RowChange::Update { .. } => continue,
        };
        let alike = all.entry(values(&row)).or_default();
        alike.base = base;
        alike.inserted += inserted;
        alike.deleted += deleted;
    }
    let find = |mut row: TextRow| -> Result<(), SpoolError> {
        let place = row.remove(0);
        let Some(alike) = all.get_mut(&row[..columns.len()]) else { return Ok(()) };
        alike.there += 1;
        if (alike.found.len() as u64) < alike.deleted {
            alike.found.push((place, row));
        }
        Ok(())
    };
    let sql = format!("select ctid, {} from only {}", select_list(change), base_table(change));
    target.each(&sql, find).await?;
    for (row, alike) in all.iter().filter(|(_, alike)| alike.is_unclear()) {
        let key = columns.iter().map(|(_, name)| (*name).to_owned()).zip(row.iter().cloned()).collect();
        let (base, there) = (alike.base, alike.there);
        let why = format!(
            "the branch changed how many rows are like it, and so did the target: there were {base} at the branch point, and are {there} now; without a key nobody can tell whether the branch's change is among them"
        );
        applied.conflict(Conflict::Row { table: base_table(change), key, why, columns: Vec::new() });
    }
    let mut left: BTreeMap<&TextRow, u64> = all.iter().map(|(row, alike)| (row, alike.to_insert())).collect();
    for row in change.rows.iter() {
        let RowChange::Insert { new } = row? else { continue };
        match left.get_mut(&values(&new)).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                guarded.undo.push(&RowChange::Delete { old: pick(&new, &columns, change) })?;
                guarded.inserts.push(&new)?;
            }
            None => applied.already_there += 1,
        }
    }
    for alike in all.values() {
        let to_delete = alike.to_delete();
        applied.already_there += alike.deleted - to_delete;
        for (_, (place, row)) in (0..to_delete).zip(&alike.found) {
            guarded.places.push(&vec![place.clone()])?;
            guarded.undo.push(&RowChange::Insert { new: row.clone() })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_until_there_are_as_many_as_on_the_branch() {
        let check = |base, inserted, deleted, there, expect: (u64, u64)| {
            let alike = Alike { base, inserted, deleted, there, found: Vec::new() };
            assert_eq!((alike.to_insert(), alike.to_delete()), expect, "{alike:?}");
        };
        check(0, 2, 0, 0, (2, 0));
        check(0, 2, 0, 2, (0, 0));
        check(0, 2, 0, 1, (1, 0));
        let unclear =
            |base, inserted, deleted, there| Alike { base, inserted, deleted, there, found: Vec::new() }.is_unclear();
        assert!(unclear(3, 1, 0, 2) && unclear(3, 0, 2, 4), "the target's own change is beside it");
        assert!(
            ![(3, 1, 0, 3), (3, 1, 0, 4), (3, 1, 0, 9), (3, 0, 2, 3), (3, 0, 2, 1), (3, 0, 2, 0)]
                .into_iter()
                .any(|(base, inserted, deleted, there)| unclear(base, inserted, deleted, there))
        );
        check(3, 1, 0, 3, (1, 0));
        check(3, 1, 0, 4, (0, 0));
        check(3, 1, 0, 9, (0, 0));
        // The target deleted them.
        check(3, 1, 0, 0, (1, 0));
        check(3, 0, 2, 3, (0, 2));
        check(3, 0, 2, 1, (0, 0));
        check(3, 0, 2, 2, (0, 1));
        check(3, 0, 3, 0, (0, 0));
        // The target got more.
        check(3, 0, 2, 5, (0, 2));
    }
}
