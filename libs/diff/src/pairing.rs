//! Rows of two sides in, row changes out, in bounded memory.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::change_set::RowChange;
use crate::spool::{Spool, SpoolError};

/// A row's values in the order of the table's columns.
pub type RowValues = Vec<Option<String>>;

/// A row, and how many of it: positive at the branch point only, negative at the head only.
type Surplus = (RowValues, i64);

/// Sorted parts that are merged into one when there are so many of them: each takes a block of memory when it is read.
const RUNS_MAX: usize = 16;
/// What a row and a value take besides their text: pointers, lengths, the map's share.
const ROW_BYTES: usize = 96;
const VALUE_BYTES: usize = 40;

/// In which order changes come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Updates, then inserts, then deletes, each by key.
    Kind,
    /// By key.
    Key,
}

/// Collects both sides' rows; equal ones cancel out as they come, so that memory follows the change and not the blocks. What is
/// left over beyond `bytes_max` goes to sorted runs in a temporary file, which are merged at the end.
#[derive(Debug)]
pub struct Pairing {
    /// Places of the columns that rows are paired by; empty: nothing is paired.
    key: Vec<usize>,
    surplus: BTreeMap<RowValues, i64>,
    bytes: usize,
    bytes_max: usize,
    /// The most that `bytes` has been: what the bound is tested by.
    bytes_peak: usize,
    runs: Vec<Spool<Surplus>>,
}

impl Pairing {
    /// Pairs by the columns with these places.
    pub fn new(key: Vec<usize>, bytes_max: usize) -> Pairing {
        Pairing { key, surplus: BTreeMap::new(), bytes: 0, bytes_max, bytes_peak: 0, runs: Vec::new() }
    }

    /// A row of the branch point.
    pub fn add_base(&mut self, row: RowValues) -> Result<(), SpoolError> {
        self.add(row, 1)
    }

    /// A row of the head.
    pub fn add_head(&mut self, row: RowValues) -> Result<(), SpoolError> {
        self.add(row, -1)
    }

    fn add(&mut self, row: RowValues, count: i64) -> Result<(), SpoolError> {
        let bytes = bytes_of(&row);
        match self.surplus.entry(row) {
            Entry::Vacant(entry) => {
                entry.insert(count);
                self.bytes += bytes;
            }
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += count;
                if *entry.get() == 0 {
                    entry.remove();
                    self.bytes -= bytes;
                }
            }
        }
        self.bytes_peak = self.bytes_peak.max(self.bytes);
        if self.bytes > self.bytes_max { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), SpoolError> {
        let run = Spool::of(self.sorted())?;
        self.runs.push(run);
        if self.runs.len() >= RUNS_MAX {
            let runs = std::mem::take(&mut self.runs);
            let mut merged = Spool::default();
            for surplus in Merge::new(&self.key, runs.into_iter().map(run_items).collect()) {
                merged.push(&surplus?)?;
            }
            merged.seal()?;
            self.runs.push(merged);
        }
        Ok(())
    }

    /// What is in memory, by key and then by all values.
    fn sorted(&mut self) -> Vec<Surplus> {
        self.bytes = 0;
        let mut rows: Vec<Surplus> = std::mem::take(&mut self.surplus).into_iter().collect();
        if !self.key.is_empty() {
            rows.sort_by(|a, b| compare(&self.key, &a.0, &b.0));
        }
        rows
    }

    /// What is left, paired by key.
    pub fn finish(mut self, order: Order) -> Result<Spool<RowChange>, SpoolError> {
        let rest = self.sorted();
        let mut sources: Vec<Source> = std::mem::take(&mut self.runs).into_iter().map(run_items).collect();
        sources.push(Box::new(rest.into_iter().map(Ok)));
        let mut outcome = Outcome { order, ..Outcome::default() };
        let (mut olds, mut news): (Vec<RowValues>, Vec<RowValues>) = (Vec::new(), Vec::new());
        for surplus in Merge::new(&self.key, sources) {
            let (row, count) = surplus?;
            let current = olds.first().or(news.first());
            if current.is_some_and(|current| !self.same_key(current, &row)) {
                outcome.group(&mut olds, &mut news)?;
            }
            if self.key.is_empty() {
                // Nothing to pair with: copies, however many, are not held.
                outcome.copies(&row, count)?;
            } else {
                let side = if count > 0 { &mut olds } else { &mut news };
                side.extend(std::iter::repeat_n(row, usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX)));
            }
        }
        outcome.group(&mut olds, &mut news)?;
        outcome.finish()
    }

    fn same_key(&self, a: &RowValues, b: &RowValues) -> bool {
        self.key.iter().all(|place| a.get(*place) == b.get(*place))
    }
}

/// What a row takes in memory.
pub(crate) fn bytes_of(row: &RowValues) -> usize {
    ROW_BYTES + row.iter().map(|value| VALUE_BYTES + value.as_ref().map_or(0, String::len)).sum::<usize>()
}

fn compare(key: &[usize], a: &RowValues, b: &RowValues) -> Ordering {
    let by_key = key.iter().map(|place| a.get(*place).cmp(&b.get(*place))).find(|order| order.is_ne());
    by_key.unwrap_or(Ordering::Equal).then_with(|| a.cmp(b))
}

type Source = Box<dyn Iterator<Item = Result<Surplus, SpoolError>> + Send>;

fn run_items(run: Spool<Surplus>) -> Source {
    Box::new(run.into_items())
}

/// Merges sorted sources; what they have of one row is added up, and left out where it cancels.
struct Merge<'a> {
    key: &'a [usize],
    sources: Vec<(Surplus, Source)>,
    failed: Option<SpoolError>,
}

impl<'a> Merge<'a> {
    fn new(key: &'a [usize], sources: Vec<Source>) -> Merge<'a> {
        let mut merge = Merge { key, sources: Vec::new(), failed: None };
        for mut source in sources {
            match source.next() {
                Some(Ok(first)) => merge.sources.push((first, source)),
                Some(Err(error)) => merge.failed = Some(error),
                None => {}
            }
        }
        merge
    }

    fn pop(&mut self) -> Option<Surplus> {
        let least =
            (0..self.sources.len()).min_by(|a, b| compare(self.key, &self.sources[*a].0.0, &self.sources[*b].0.0))?;
        match self.sources[least].1.next() {
            Some(Ok(next)) => Some(std::mem::replace(&mut self.sources[least].0, next)),
            end => {
                if let Some(Err(error)) = end {
                    self.failed = Some(error);
                }
                Some(self.sources.swap_remove(least).0)
            }
        }
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<Surplus, SpoolError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(error) = self.failed.take() {
                self.sources.clear();
                return Some(Err(error));
            }
            let (row, mut count) = self.pop()?;
            while self.sources.iter().any(|(head, _)| head.0 == row) {
                count += self.pop()?.1;
            }
            if count != 0 && self.failed.is_none() {
                return Some(Ok((row, count)));
            }
        }
    }
}

/// Changes on their way out.
struct Outcome {
    order: Order,
    updates: Spool<RowChange>,
    inserts: Spool<RowChange>,
    deletes: Spool<RowChange>,
}

impl Default for Outcome {
    fn default() -> Self {
        let (updates, inserts, deletes) = Default::default();
        Outcome { order: Order::Kind, updates, inserts, deletes }
    }
}

impl Outcome {
    /// All rows of one key.
    fn group(&mut self, olds: &mut Vec<RowValues>, news: &mut Vec<RowValues>) -> Result<(), SpoolError> {
        let mut olds = olds.drain(..);
        for new in news.drain(..) {
            match olds.next() {
                Some(old) => self.put(RowChange::Update { old, new })?,
                None => self.put(RowChange::Insert { new })?,
            }
        }
        olds.try_for_each(|old| self.put(RowChange::Delete { old }))
    }

    fn copies(&mut self, row: &RowValues, count: i64) -> Result<(), SpoolError> {
        for _ in 0..count.unsigned_abs() {
            let row = row.clone();
            self.put(if count > 0 { RowChange::Delete { old: row } } else { RowChange::Insert { new: row } })?;
        }
        Ok(())
    }

    fn put(&mut self, change: RowChange) -> Result<(), SpoolError> {
        let list = match (self.order, &change) {
            (Order::Key, _) | (Order::Kind, RowChange::Update { .. }) => &mut self.updates,
            (Order::Kind, RowChange::Insert { .. }) => &mut self.inserts,
            (Order::Kind, RowChange::Delete { .. }) => &mut self.deletes,
        };
        list.push(&change)
    }

    fn finish(mut self) -> Result<Spool<RowChange>, SpoolError> {
        self.updates.append(self.inserts)?;
        self.updates.append(self.deletes)?;
        Ok(self.updates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLENTY: usize = 1 << 20;

    fn row(values: &[&str]) -> RowValues {
        values.iter().map(|value| Some((*value).to_owned())).collect()
    }

    fn paired(pairing: Pairing) -> Vec<RowChange> {
        pairing.finish(Order::Kind).and_then(|changes| changes.to_vec()).expect("a temp file")
    }

    fn check(base: &[&[&str]], head: &[&[&str]], key: &[usize], expect: Vec<RowChange>) {
        let mut pairing = Pairing::new(key.to_vec(), PLENTY);
        base.iter().for_each(|values| pairing.add_base(row(values)).expect("added"));
        head.iter().for_each(|values| pairing.add_head(row(values)).expect("added"));
        assert_eq!(paired(pairing), expect);
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

    /// A million changed rows would take 250 MB: what is held at once stays below the limit and one row.
    #[test]
    fn memory_is_bounded_whatever_changed() {
        const LIMIT: usize = 100_000;
        const ROWS: usize = 50_000;
        let row_of = |number: usize, word: &str| row(&[&number.to_string(), word]);
        let mut pairing = Pairing::new(vec![0], LIMIT);
        let longest = bytes_of(&row_of(ROWS, "before"));
        (0..ROWS).for_each(|number| pairing.add_base(row_of(number, "before")).expect("added"));
        (0..ROWS).rev().for_each(|number| pairing.add_head(row_of(number + 10, "after")).expect("added"));
        assert!(pairing.bytes_peak > LIMIT, "it had to spill");
        assert!(pairing.bytes_peak <= LIMIT + longest, "{} bytes were held", pairing.bytes_peak);
        assert!(pairing.runs.len() < RUNS_MAX, "{} runs are open", pairing.runs.len());
        let changes = pairing.finish(Order::Kind).expect("a temp file");
        let mut counts = [0, 0, 0];
        for change in changes.iter() {
            match change.expect("read") {
                RowChange::Update { old, new } => {
                    assert_eq!((old[1].as_deref(), new[1].as_deref()), (Some("before"), Some("after")));
                    assert_eq!(old[0], new[0]);
                    counts[0] += 1;
                }
                RowChange::Insert { .. } => counts[1] += 1,
                RowChange::Delete { .. } => counts[2] += 1,
            }
        }
        assert_eq!(counts, [ROWS - 10, 10, 10]);
    }

    proptest! {
        /// Applying the changes to the base's rows gives the head's rows; a limit that makes every few rows a run of their own
        /// changes nothing.
        #[test]
        fn changes_lead_from_base_to_head(
            base in proptest::collection::vec((0u8..8, 0u8..3), 0..40),
            head in proptest::collection::vec((0u8..8, 0u8..3), 0..40),
            with_key in any::<bool>(),
            limit in 0usize..2000,
        ) {
            let rows = |side: &[(u8, u8)]| -> Vec<RowValues> {
                side.iter().map(|(a, b)| row(&[&a.to_string(), &b.to_string()])).collect()
            };
            let (mut state, mut expect) = (rows(&base), rows(&head));
            let key = if with_key { vec![0] } else { vec![] };
            let fill = |limit: usize| {
                let mut pairing = Pairing::new(key.clone(), limit);
                state.iter().cloned().for_each(|row| pairing.add_base(row).expect("added"));
                expect.iter().cloned().for_each(|row| pairing.add_head(row).expect("added"));
                paired(pairing)
            };
            let changes = fill(PLENTY);
            prop_assert_eq!(&changes, &fill(limit));
            for change in changes {
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
