//! What a diff says: plain data, the same for people and programs.

use serde::{Deserialize, Serialize};

/// All changes of one database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSet {
    /// Database.
    pub database: String,
    /// Tables with changes, by schema and name.
    pub tables: Vec<TableChange>,
    /// Sequences whose state changed, by schema and name.
    pub sequences: Vec<SequenceChange>,
}

/// What became of a table itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableState {
    /// There on both sides.
    Kept,
    /// Only at the head.
    Created,
    /// Only at the branch point.
    Dropped,
}

/// The changes of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    /// Schema, at the head (of a dropped table: at the branch point).
    pub schema: String,
    /// Name, likewise.
    pub name: String,
    /// Schema and name at the branch point, where they were others.
    pub renamed_from: Option<(String, String)>,
    /// What became of the table.
    pub state: TableState,
    /// Columns, in order: what the values of rows belong to.
    pub columns: Vec<String>,
    /// Columns that are only at the head.
    pub columns_added: Vec<String>,
    /// Columns that are only at the branch point.
    pub columns_dropped: Vec<String>,
    /// The columns that rows are paired by; empty: the table has no primary key, updates show as a delete and an insert.
    pub key: Vec<String>,
    /// Row changes: updates, then inserts, then deletes, each by key.
    pub rows: Vec<RowChange>,
}

/// One changed row. Values are text; absent ones are NULL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum RowChange {
    /// Only at the head.
    Insert {
        /// Its values.
        new: Vec<Option<String>>,
    },
    /// On both sides under one key, with other values.
    Update {
        /// Values at the branch point.
        old: Vec<Option<String>>,
        /// Values at the head.
        new: Vec<Option<String>>,
    },
    /// Only at the branch point.
    Delete {
        /// Its values.
        old: Vec<Option<String>>,
    },
}

/// A sequence's state before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceChange {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// `last_value` at the branch point; absent: it did not exist.
    pub old: Option<i64>,
    /// `last_value` at the head; absent: it does not exist any more.
    pub new: Option<i64>,
}

/// How many rows changed in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Inserted.
    pub inserted: u64,
    /// Updated.
    pub updated: u64,
    /// Deleted.
    pub deleted: u64,
}

impl TableChange {
    /// Counts its row changes.
    pub fn counts(&self) -> RowCounts {
        let mut counts = RowCounts::default();
        for row in &self.rows {
            match row {
                RowChange::Insert { .. } => counts.inserted += 1,
                RowChange::Update { .. } => counts.updated += 1,
                RowChange::Delete { .. } => counts.deleted += 1,
            }
        }
        counts
    }
}

impl ChangeSet {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.sequences.is_empty()
    }
}
