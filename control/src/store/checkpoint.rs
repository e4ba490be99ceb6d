//! Checkpoints: marks in branches' histories.
//!
//! A checkpoint is a label for a position: a timeline, and the end of a record on it. The timeline may be one that the branch has left, and its
//! row may be gone by now; a checkpoint holds nothing.

use std::collections::BTreeSet;

use rusqlite::{Connection, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use ardent_types::{BranchId, Lsn, TimelineId};

use super::{Store, StoreError, parsed};

/// Most checkpoints of a branch.
pub const CHECKPOINTS_MAX: u64 = 1000;
/// So many of them, the newest, are in the manifest of the timeline that the branch is on: a few kB.
const DESCRIBED_MAX: u32 = 50;
/// What stands before the number in a label that nobody chose.
const STEP: &str = "step-";

/// A checkpoint; also as the timeline's manifest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRow {
    /// Unique on its branch.
    pub label: String,
    /// The timeline that it is on.
    pub timeline: TimelineId,
    /// Where.
    pub lsn: Lsn,
    /// When it was made, microseconds since the Unix epoch.
    pub created_us: i64,
}

/// What came of [`Store::insert_checkpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InsertCheckpoint {
    /// It is there.
    Inserted(CheckpointRow),
    /// The branch has one of this label.
    LabelTaken(String),
    /// The branch has [`CHECKPOINTS_MAX`].
    Full {
        /// The label of the one that was made first.
        oldest: String,
    },
}

impl CheckpointRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(CheckpointRow {
            label: row.get("label")?,
            timeline: parsed(row, "timeline_id")?,
            lsn: parsed(row, "lsn")?,
            created_us: row.get("created_us")?,
        })
    }
}

/// Adds a checkpoint, unless the branch has one of this label.
pub(super) fn insert(transaction: &Transaction<'_>, branch: &str, row: &CheckpointRow) -> rusqlite::Result<()> {
    transaction
        .execute(
            "INSERT INTO checkpoints (branch_id, label, timeline_id, lsn, created_us) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (branch_id, label) DO NOTHING",
            params![branch, row.label, row.timeline.to_string(), row.lsn.to_string(), row.created_us],
        )
        .map(|_| ())
}

/// The newest ones of a branch, for its timeline's manifest, in the order in which they were made.
pub(super) fn newest(connection: &Connection, branch: BranchId) -> rusqlite::Result<Vec<CheckpointRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT label, timeline_id, lsn, created_us FROM
            (SELECT * FROM checkpoints WHERE branch_id = ?1 ORDER BY id DESC LIMIT ?2) ORDER BY id",
    )?;
    statement.query_map(params![branch.to_string(), DESCRIBED_MAX], CheckpointRow::read)?.collect()
}

/// Gives each of two branches the other's. Foreign keys are looked at when the transaction ends.
pub(super) fn exchange(transaction: &Transaction<'_>, one: &str, other: &str) -> rusqlite::Result<()> {
    // Both may have one of a label: not in one statement.
    for (from, to) in [(one, "exchanged"), (other, one), ("exchanged", other)] {
        transaction.execute("UPDATE checkpoints SET branch_id = ?2 WHERE branch_id = ?1", params![from, to])?;
    }
    Ok(())
}

/// `step-N`, with the number after the highest that there is, and that has one after it.
fn next_label(transaction: &Transaction<'_>, branch: &str) -> rusqlite::Result<String> {
    let mut statement = transaction.prepare_cached("SELECT label FROM checkpoints WHERE branch_id = ?1")?;
    let labels = statement.query_map(params![branch], |row| row.get::<_, String>(0))?;
    let mut numbers: BTreeSet<u64> = BTreeSet::new();
    for label in labels {
        numbers.extend(label?.strip_prefix(STEP).and_then(|number| number.parse::<u64>().ok()));
    }
    // A number after another is free, unless it is the last one that there can be.
    let after = numbers.iter().rev().filter_map(|number| number.checked_add(1)).find(|next| !numbers.contains(next));
    Ok(format!("{STEP}{}", after.unwrap_or(1)))
}

impl Store {
    /// Marks a position in a branch's history. `label` absent: `step-N`, with the next number.
    pub fn insert_checkpoint(
        &self,
        branch: BranchId,
        label: Option<&str>,
        (timeline, lsn): (TimelineId, Lsn),
        created_us: i64,
    ) -> Result<InsertCheckpoint, StoreError> {
        self.write(|transaction| {
            let id = branch.to_string();
            let label = match label {
                Some(label) => label.to_owned(),
                None => next_label(transaction, &id)?,
            };
            let is_taken: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM checkpoints WHERE branch_id = ?1 AND label = ?2)",
                params![id, label],
                |row| row.get(0),
            )?;
            if is_taken {
                return Ok(InsertCheckpoint::LabelTaken(label));
            }
            let count: u64 =
                transaction.query_row("SELECT count(*) FROM checkpoints WHERE branch_id = ?1", params![id], |row| {
                    row.get(0)
                })?;
            if count >= CHECKPOINTS_MAX {
                let oldest = transaction.query_row(
                    "SELECT label FROM checkpoints WHERE branch_id = ?1 ORDER BY id LIMIT 1",
                    params![id],
                    |row| row.get(0),
                )?;
                return Ok(InsertCheckpoint::Full { oldest });
            }
            let row = CheckpointRow { label, timeline, lsn, created_us };
            insert(transaction, &id, &row)?;
            Ok(InsertCheckpoint::Inserted(row))
        })
    }

    /// A branch's checkpoints, in the order in which they were made.
    pub fn checkpoints(&self, branch: BranchId) -> Result<Vec<CheckpointRow>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT label, timeline_id, lsn, created_us FROM checkpoints WHERE branch_id = ?1 ORDER BY id",
            )?;
            statement.query_map(params![branch.to_string()], CheckpointRow::read)?.collect()
        })
    }

    /// Forgets a checkpoint; whether there was one of this label.
    pub fn delete_checkpoint(&self, branch: BranchId, label: &str) -> Result<bool, StoreError> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "DELETE FROM checkpoints WHERE branch_id = ?1 AND label = ?2",
                params![branch.to_string(), label],
            )?;
            Ok(changed == 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::BranchRow;
    use super::super::two_branches::two_branches;
    use super::*;

    fn mark(store: &Store, branch: &BranchRow, label: Option<&str>, lsn: u64) -> InsertCheckpoint {
        store.insert_checkpoint(branch.id, label, (branch.timeline, Lsn::new(lsn)), 7).expect("written")
    }

    fn labels(store: &Store, branch: &BranchRow) -> Vec<String> {
        store.checkpoints(branch.id).expect("read").into_iter().map(|row| row.label).collect()
    }

    #[test]
    fn steps_are_numbered_and_labels_are_a_branchs_own() {
        let (_folder, store, _root, [a, b]) = two_branches();
        let row = |label: &str, lsn| CheckpointRow {
            label: label.to_owned(),
            timeline: a.timeline,
            lsn: Lsn::new(lsn),
            created_us: 7,
        };
        assert_eq!(mark(&store, &a, None, 1), InsertCheckpoint::Inserted(row("step-1", 1)));
        for label in ["step-9", "step-x", "step-", "other-12", "step-99999999999999999999"] {
            assert_eq!(mark(&store, &a, Some(label), 2), InsertCheckpoint::Inserted(row(label, 2)));
        }
        assert_eq!(mark(&store, &a, None, 3), InsertCheckpoint::Inserted(row("step-10", 3)));
        assert_eq!(mark(&store, &a, Some("step-10"), 4), InsertCheckpoint::LabelTaken("step-10".to_owned()));
        assert!(matches!(mark(&store, &b, Some("step-10"), 4), InsertCheckpoint::Inserted(_)));
        assert!(store.delete_checkpoint(a.id, "step-9").expect("written"));
        assert!(!store.delete_checkpoint(a.id, "step-9").expect("written"));
        let rest = ["step-1", "step-x", "step-", "other-12", "step-99999999999999999999", "step-10"];
        assert_eq!(
            (labels(&store, &a), labels(&store, &b)),
            (rest.map(str::to_owned).to_vec(), vec!["step-10".to_owned()])
        );
    }

    #[test]
    fn a_number_without_a_next_one_stops_no_step() {
        let (_folder, store, _root, [a, _b]) = two_branches();
        let last = format!("step-{}", u64::MAX);
        let given = [Some(last.clone()), None, None, Some(format!("step-{}", u64::MAX - 1)), None];
        for label in &given {
            assert!(matches!(mark(&store, &a, label.as_deref(), 1), InsertCheckpoint::Inserted(_)), "{label:?}");
        }
        let before = format!("step-{}", u64::MAX - 1);
        assert_eq!(labels(&store, &a), [last.as_str(), "step-1", "step-2", before.as_str(), "step-3"]);
    }

    #[test]
    fn a_branch_has_so_many_and_its_manifest_the_newest() {
        let (_folder, store, _root, [a, b]) = two_branches();
        let filled = store.write(|transaction| {
            transaction.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?3)
                 INSERT INTO checkpoints (branch_id, label, timeline_id, lsn, created_us) SELECT ?1, 'step-' || i, ?2, '0/10', i FROM n",
                params![a.id.to_string(), a.timeline.to_string(), CHECKPOINTS_MAX],
            )
        });
        assert_eq!(filled.expect("written") as u64, CHECKPOINTS_MAX);
        assert_eq!(mark(&store, &a, None, 1), InsertCheckpoint::Full { oldest: "step-1".to_owned() });
        assert!(matches!(mark(&store, &b, None, 1), InsertCheckpoint::Inserted(_)));
        let described = store.description(a.timeline).expect("read").and_then(|all| all.branch).expect("described");
        let described: Vec<i64> = described.checkpoints.iter().map(|row| row.created_us).collect();
        assert_eq!(described, (951..=1000).collect::<Vec<i64>>());
        assert!(store.delete_checkpoint(a.id, "step-1").expect("written"));
        assert!(matches!(mark(&store, &a, None, 1), InsertCheckpoint::Inserted(row) if row.label == "step-1001"));
    }

    #[test]
    fn what_changes_is_told_and_goes_with_its_branch() {
        let (_folder, store, _root, [a, b]) = two_branches();
        let told = || {
            let untold = store.untold(9).expect("read");
            untold.iter().for_each(|one| store.told(one).expect("written"));
            untold.into_iter().map(|one| one.timeline).collect::<Vec<_>>()
        };
        told();
        assert_eq!(told(), []);
        mark(&store, &a, None, 1);
        assert_eq!(told(), [a.timeline]);
        assert!(store.delete_checkpoint(a.id, "step-1").expect("written"));
        assert_eq!(told(), [a.timeline]);
        mark(&store, &a, Some("mine"), 1);
        mark(&store, &b, Some("mine"), 2);
        mark(&store, &b, Some("yours"), 3);
        // A rebase: what was marked on a timeline stays with it.
        store.exchange_timelines(&a, &b, "b", 9).expect("written");
        assert_eq!(labels(&store, &a), ["mine", "yours"]);
        assert_eq!(store.checkpoints(b.id).expect("read")[0].lsn, Lsn::new(1));
        told();
        let b = store.branch_by_id(b.id).expect("read").expect("there");
        store.remove_branch(&b, &[]).expect("written");
        assert_eq!((labels(&store, &b).len(), labels(&store, &a).len()), (0, 2));
    }
}
