//! What a diff says: plain data, the same for people and programs.

use ardent_schema_diff::{LargeObjectAccess, Plan, Statement, Touched, comment_on_large_object};
use serde::{Deserialize, Serialize};

use crate::compare::Piece;
use crate::labels::EnumLabel;
use crate::spool::{Spool, SpoolError};

/// All changes of one database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSet {
    /// Database.
    pub database: String,
    /// The schema.
    #[serde(default, skip_serializing_if = "SchemaChange::is_empty")]
    pub schema: SchemaChange,
    /// Labels of enums at the branch point, by which rows name theirs. Empty where there are no rows, and in what older programs wrote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<EnumLabel>,
    /// Tables with changes, by schema and name.
    pub tables: Vec<TableChange>,
    /// Sequences whose state changed, by schema and name.
    pub sequences: Vec<SequenceChange>,
    /// Large objects that changed, by OID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub large_objects: Vec<LargeObjectChange>,
}

/// How the schema changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaChange {
    /// What leads from the branch point to the head, in order.
    pub statements: Vec<Statement>,
    /// Differences that no statement removes, each named.
    pub not_covered: Vec<String>,
    /// What leads back, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<Statement>,
    /// Differences that none of [`SchemaChange::undo`] removes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo_not_covered: Vec<String>,
    /// What is changed, as both sides have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub touched: Vec<Touched>,
    /// The same for [`SchemaChange::undo`]; empty in what older programs wrote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo_touched: Vec<Touched>,
}

impl SchemaChange {
    /// From the plans there and back.
    pub fn new(there: Plan, back: Plan) -> SchemaChange {
        SchemaChange {
            statements: there.statements,
            not_covered: there.not_covered,
            undo: back.statements,
            undo_not_covered: back.not_covered,
            touched: there.touched,
            undo_touched: back.touched,
        }
    }

    /// The way back.
    pub fn reversed(&self) -> SchemaChange {
        SchemaChange {
            statements: self.undo.clone(),
            not_covered: self.undo_not_covered.clone(),
            undo: self.statements.clone(),
            undo_not_covered: self.not_covered.clone(),
            touched: self.undo_touched.clone(),
            undo_touched: self.touched.clone(),
        }
    }

    /// Whether the schema is the same.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty() && self.not_covered.is_empty()
    }
}

/// What became of a large object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjectChange {
    /// Its OID.
    pub oid: u32,
    /// Whether it is new, gone, or there on both sides.
    pub state: TableState,
    /// Its pages (2048 bytes, from a number that counts from 0) that differ, with hexadecimal content; absent: no such page.
    pub pages: Spool<PageChange>,
    /// Its owner and privileges, where they differ, or it is new or gone; absent too in what older programs wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Sides<LargeObjectAccess>>,
    /// Its comment, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Sides<String>>,
}

/// Something before and after; absent: there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides<T> {
    /// Before.
    pub old: Option<T>,
    /// After.
    pub new: Option<T>,
}

impl<T> Sides<T> {
    /// The other way round.
    pub fn reversed(self) -> Sides<T> {
        Sides { old: self.new, new: self.old }
    }
}

impl LargeObjectChange {
    /// One that is on both sides and of which nothing is known to differ yet.
    pub fn kept(oid: u32) -> LargeObjectChange {
        LargeObjectChange { oid, state: TableState::Kept, pages: Spool::default(), access: None, comment: None }
    }

    /// What differs besides pages, where it is on both sides: `owner`, `privileges`, `comment`.
    pub fn properties(&self) -> Vec<&'static str> {
        let mut words = Vec::new();
        if self.state != TableState::Kept {
            return words;
        }
        if let Some(Sides { old: Some(old), new: Some(new) }) = &self.access {
            words.extend((old.owner != new.owner).then_some("owner"));
            words.extend(old.grants_differ(new).then_some("privileges"));
        }
        words.extend(self.comment.is_some().then_some("comment"));
        words
    }

    /// Statements that give it its owner, privileges and comment, as it is at the branch point or was just made.
    pub fn statements(&self) -> Vec<String> {
        let mut statements = match &self.access {
            _ if self.state == TableState::Dropped => return Vec::new(),
            Some(Sides { old: Some(old), new: Some(new) }) => old.change_to(new, self.oid),
            Some(Sides { old: None, new: Some(new) }) => new.of_new(self.oid),
            _ => Vec::new(),
        };
        statements.extend(self.comment.iter().map(|text| comment_on_large_object(self.oid, text.new.as_deref())));
        statements
    }
}

/// A page of a large object before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageChange {
    /// Its number.
    pub number: i32,
    /// Before.
    pub old: Option<String>,
    /// After.
    pub new: Option<String>,
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
    /// What each of [`TableChange::columns`] is called at the branch point; absent: it is not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base_columns: Vec<Option<String>>,
    /// Columns that Postgres computes from others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generated: Vec<String>,
    /// Columns, not among [`TableChange::columns`], that whoever this is applied to has and keeps: read for the way back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns_left: Vec<String>,
    /// Those of [`TableChange::columns`] whose old values are not known: not compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unguarded: Vec<String>,
    /// Whether it is a materialised view.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub materialized_view: bool,
    /// The columns that rows are paired by; empty: the table has no primary key, updates show as a delete and an insert.
    pub key: Vec<String>,
    /// Row changes: updates, then inserts, then deletes, each by key.
    pub rows: Spool<RowChange>,
    /// Where rows have no key: how many rows like each of [`TableChange::rows`] the branch point has. Empty: that is not known, as the
    /// table is long, or has other columns on the branch, or an older program wrote this.
    #[serde(default, skip_serializing_if = "Spool::is_empty")]
    pub copies: Spool<i64>,
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
    /// Whether that value had been given out.
    #[serde(default)]
    pub old_called: Option<bool>,
    /// `last_value` at the head; absent: it does not exist any more.
    pub new: Option<i64>,
    /// Whether that value has been given out.
    #[serde(default)]
    pub new_called: Option<bool>,
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

impl RowCounts {
    /// Takes another table's in.
    pub fn add(&mut self, others: RowCounts) {
        self.inserted += others.inserted;
        self.updated += others.updated;
        self.deleted += others.deleted;
    }
}

impl TableChange {
    /// Counts its row changes.
    pub fn counts(&self) -> Result<RowCounts, SpoolError> {
        let mut counts = RowCounts::default();
        for row in self.rows.iter() {
            match row? {
                RowChange::Insert { .. } => counts.inserted += 1,
                RowChange::Update { .. } => counts.updated += 1,
                RowChange::Delete { .. } => counts.deleted += 1,
            }
        }
        Ok(counts)
    }
}

impl ChangeSet {
    /// Takes a part of a comparison in.
    pub fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Schema(schema) => self.schema = schema,
            Piece::Labels(labels) => self.labels = labels,
            Piece::Table(table) => self.tables.push(table),
            Piece::Sequence(sequence) => self.sequences.push(sequence),
            Piece::LargeObject(object) => self.large_objects.push(object),
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.sequences.is_empty() && self.large_objects.is_empty() && self.schema.is_empty()
    }
}
