//! Rows of two sides in, row changes out. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::change_set::RowChange;

/// A row's values in the order of the table's columns.
pub(crate) type RowValues = Vec<Option<String>>;

/// Collects both sides' rows; equal ones cancel out as they come, so that memory follows the change and not the blocks.
#[derive(Debug, Default)]
pub(crate) struct Pairing {
    /// Copies of a row: positive at the branch point only, negative at the head only.
    surplus: BTreeMap<RowValues, i64>,
}

impl Pairing {
    /// A row of the branch point.
    pub fn add_base(&mut self, row: RowValues) {
        self.add(row, 1);
    }

    /// A row of the head.
    pub fn add_head(&mut self, row: RowValues) {
        self.add(row, -1);
    }

    fn add(&mut self, row: RowValues, count: i64) {
        match self.surplus.entry(row) {
            Entry::Vacant(entry) => {
                entry.insert(count);
            }
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += count;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// What is left, paired by the columns with these indexes: updates, then inserts, then deletes, each in key order.
    /// Without a key nothing is paired.
    pub fn finish(self, key: &[usize]) -> Vec<RowChange> {
        let mut old_by_key: BTreeMap<RowValues, Vec<RowValues>> = BTreeMap::new();
        let mut new_by_key: BTreeMap<RowValues, Vec<RowValues>> = BTreeMap::new();
        let key_of = |row: &RowValues| -> RowValues {
            if key.is_empty() { row.clone() } else { key.iter().map(|index| row[*index].clone()).collect() }
        };
        for (row, count) in self.surplus {
            let side = if count > 0 { &mut old_by_key } else { &mut new_by_key };
            let rows = side.entry(key_of(&row)).or_default();
            rows.extend(std::iter::repeat_n(row, count.unsigned_abs() as usize));
        }
        let (mut updates, mut inserts, mut deletes) = (Vec::new(), Vec::new(), Vec::new());
        for (key_values, news) in new_by_key {
            let mut olds = old_by_key.remove(&key_values).unwrap_or_default().into_iter();
            for new in news {
                match olds.next() {
                    Some(old) => updates.push(RowChange::Update { old, new }),
                    None => inserts.push(RowChange::Insert { new }),
                }
            }
            deletes.extend(olds.map(|old| RowChange::Delete { old }));
        }
        deletes.extend(old_by_key.into_values().flatten().map(|old| RowChange::Delete { old }));
        updates.append(&mut inserts);
        updates.append(&mut deletes);
        updates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(values: &[&str]) -> RowValues {
        values.iter().map(|value| Some((*value).to_owned())).collect()
    }

    fn check(base: &[&[&str]], head: &[&[&str]], key: &[usize], expect: Vec<RowChange>) {
        let mut pairing = Pairing::default();
        base.iter().for_each(|values| pairing.add_base(row(values)));
        head.iter().for_each(|values| pairing.add_head(row(values)));
        assert_eq!(pairing.finish(key), expect);
    }

    #[test]
    fn rows_in_both_cancel_and_the_rest_pairs_by_key() {
        let update = RowChange::Update { old: row(&["2", "b"]), new: row(&["2", "B"]) };
        let insert = RowChange::Insert { new: row(&["4", "d"]) };
        let delete = RowChange::Delete { old: row(&["3", "c"]) };
        let base: &[&[&str]] = &[&["1", "a"], &["2", "b"], &["3", "c"]];
        let head: &[&[&str]] = &[&["4", "d"], &["2", "B"], &["1", "a"]];
        check(base, head, &[0], vec![update, insert, delete]);
    }

    #[test]
    fn without_a_key_an_update_is_a_delete_and_an_insert_and_copies_count() {
        let insert = RowChange::Insert { new: row(&["B"]) };
        let delete = RowChange::Delete { old: row(&["a"]) };
        check(&[&["a"], &["a"], &["a"]], &[&["a"], &["a"], &["B"]], &[], vec![insert, delete]);
    }

    proptest! {
        /// Applying the changes to the base's rows gives the head's rows.
        #[test]
        fn changes_lead_from_base_to_head(
            base in proptest::collection::vec((0u8..8, 0u8..3), 0..12),
            head in proptest::collection::vec((0u8..8, 0u8..3), 0..12),
            with_key in any::<bool>(),
        ) {
            let rows = |side: &[(u8, u8)]| -> Vec<RowValues> {
                side.iter().map(|(a, b)| row(&[&a.to_string(), &b.to_string()])).collect()
            };
            let (mut state, mut expect) = (rows(&base), rows(&head));
            let mut pairing = Pairing::default();
            state.iter().cloned().for_each(|row| pairing.add_base(row));
            expect.iter().cloned().for_each(|row| pairing.add_head(row));
            let key: &[usize] = if with_key { &[0] } else { &[] };
            for change in pairing.finish(key) {
                let (old, new) = match change {
                    RowChange::Insert { new } => (None, Some(new)),
                    RowChange::Delete { old } => (Some(old), None),
                    RowChange::Update { old, new } => (Some(old), Some(new)),
                };
                if let Some(old) = old {
                    let place = state.iter().position(|row| *row == old);
                    prop_assert!(place.is_some(), "a change of a row that isn't there");
                    state.remove(place.expect("checked"));
                }
                state.extend(new);
            }
            state.sort();
            expect.sort();
            prop_assert_eq!(state, expect);
        }
    }
}
