//! What a diff comes to: counts, and names of what changed.

use std::collections::BTreeSet;

use ardent_schema_diff::{Action, Statement};
use ardent_types::Lsn;
use serde::Serialize;

use crate::change_set::{ChangeSet, RowCounts, SequenceChange, TableChange, TableState};
use crate::report::DiffReport;
use crate::spool::SpoolError;

/// A [`DiffReport`] without its rows and statements: as long as what changed has names, however many rows those have.
#[derive(Clone, Debug, Serialize)]
pub struct DiffStat<'a> {
    /// Version of this object.
    pub schema_version: u32,
    /// The branch.
    pub branch: &'a str,
    /// What it was compared with, if not with its branch point.
    pub against: Option<&'a str>,
    /// As in [`DiffReport::from_lsn`].
    pub from_lsn: Lsn,
    /// The branch as of here.
    pub to_lsn: Lsn,
    /// Rows of all databases' tables.
    #[serde(flatten)]
    pub rows: RowCounts,
    /// Databases with changes.
    pub databases: Vec<ChangeSetStat<'a>>,
    /// As in [`DiffReport::databases_not_compared`].
    pub databases_not_compared: &'a [String],
}

/// The same of one database.
#[derive(Clone, Debug, Serialize)]
pub struct ChangeSetStat<'a> {
    /// Database.
    pub database: &'a str,
    /// The schema.
    pub schema: SchemaStat<'a>,
    /// Tables with changes, by schema and name.
    pub tables: Vec<TableStat<'a>>,
    /// Sequences whose state changed.
    pub sequences: &'a [SequenceChange],
    /// Large objects that changed.
    pub large_objects: Vec<LargeObjectStat>,
}

/// How much of the schema changed.
#[derive(Clone, Debug, Serialize)]
pub struct SchemaStat<'a> {
    /// Statements that lead from the branch point to the head.
    pub statements: u64,
    /// What they are about, in the order in which they come first.
    pub objects: Vec<ObjectStat<'a>>,
    /// Differences that no statement removes.
    pub not_covered: &'a [String],
}

/// What becomes of an object of the schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectStat<'a> {
    /// By the name that parts are chosen by.
    pub object: &'a str,
    /// `changed`, `created`, `dropped`, `renamed`: each that is true of it.
    pub changes: BTreeSet<&'static str>,
}

/// How many rows of a table changed.
#[derive(Clone, Debug, Serialize)]
pub struct TableStat<'a> {
    /// Schema, at the head (of a dropped table: at the branch point).
    pub schema: &'a str,
    /// Name, likewise.
    pub name: &'a str,
    /// Schema and name at the branch point, where they were others.
    pub renamed_from: Option<&'a (String, String)>,
    /// What became of the table.
    pub state: TableState,
    /// Columns that are only at the head.
    pub columns_added: &'a [String],
    /// Columns that are only at the branch point.
    pub columns_dropped: &'a [String],
    /// Its rows.
    #[serde(flatten)]
    pub rows: RowCounts,
}

/// How much of a large object changed.
#[derive(Clone, Debug, Serialize)]
pub struct LargeObjectStat {
    /// Its OID.
    pub oid: u32,
    /// Whether it is new, gone, or there on both sides.
    pub state: TableState,
    /// Its pages of 2048 bytes that differ.
    pub pages: u64,
    /// What else does: `owner`, `privileges`, `comment`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub properties: Vec<&'static str>,
}

impl<'a> DiffStat<'a> {
    /// Counts. Rows are read one by one, not held; an error means that the file which holds them cannot be read.
    pub fn of(report: &'a DiffReport) -> Result<DiffStat<'a>, SpoolError> {
        let databases = report.databases.iter().map(ChangeSetStat::of).collect::<Result<Vec<_>, _>>()?;
        let mut rows = RowCounts::default();
        databases.iter().for_each(|database| rows.add(database.rows()));
        Ok(DiffStat {
            schema_version: report.schema_version,
            branch: &report.branch,
            against: report.against.as_deref(),
            from_lsn: report.from_lsn,
            to_lsn: report.to_lsn,
            rows,
            databases,
            databases_not_compared: &report.databases_not_compared,
        })
    }
}

impl<'a> ChangeSetStat<'a> {
    /// The same of one database.
    pub fn of(set: &'a ChangeSet) -> Result<ChangeSetStat<'a>, SpoolError> {
        let large_objects = set.large_objects.iter().map(|object| LargeObjectStat {
            oid: object.oid,
            state: object.state,
            pages: object.pages.len(),
            properties: object.properties(),
        });
        Ok(ChangeSetStat {
            database: &set.database,
            schema: SchemaStat {
                statements: set.schema.statements.len() as u64,
                objects: objects(&set.schema.statements),
                not_covered: &set.schema.not_covered,
            },
            tables: set.tables.iter().map(TableStat::of).collect::<Result<_, _>>()?,
            sequences: &set.sequences,
            large_objects: large_objects.collect(),
        })
    }

    /// Rows of all its tables.
    pub fn rows(&self) -> RowCounts {
        let mut rows = RowCounts::default();
        self.tables.iter().for_each(|table| rows.add(table.rows));
        rows
    }
}

impl<'a> TableStat<'a> {
    fn of(table: &'a TableChange) -> Result<TableStat<'a>, SpoolError> {
        Ok(TableStat {
            schema: &table.schema,
            name: &table.name,
            renamed_from: table.renamed_from.as_ref(),
            state: table.state,
            columns_added: &table.columns_added,
            columns_dropped: &table.columns_dropped,
            rows: table.counts()?,
        })
    }
}

/// What becomes of each object of the schema.
fn objects(statements: &[Statement]) -> Vec<ObjectStat<'_>> {
    let mut objects: Vec<ObjectStat<'_>> = Vec::new();
    for statement in statements {
        let word = match statement.action {
            Action::Create => "created",
            Action::Drop => "dropped",
            Action::Alter => "changed",
            Action::Rename => "renamed",
        };
        match objects.iter_mut().find(|one| one.object == statement.part) {
            Some(one) => drop(one.changes.insert(word)),
            None => objects.push(ObjectStat { object: &statement.part, changes: BTreeSet::from([word]) }),
        }
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change_set::{LargeObjectChange, PageChange, RowChange, SchemaChange, Sides};
    use crate::spool::Spool;
    use ardent_schema_diff::Section;
    use serde_json::json;

    fn table(name: &str, rows: Vec<RowChange>) -> TableChange {
        TableChange {
            schema: "public".into(),
            name: name.into(),
            renamed_from: Some(("public".into(), "old".into())),
            state: TableState::Kept,
            columns: vec!["id".into()],
            columns_added: vec!["age".into()],
            columns_dropped: vec![],
            base_columns: vec![Some("id".into())],
            generated: vec![],
            columns_left: vec![],
            unguarded: vec![],
            materialized_view: false,
            key: vec!["id".into()],
            rows: Spool::of(rows).expect("short"),
            copies: Spool::default(),
        }
    }

    fn statement(action: Action, part: &str) -> Statement {
        Statement {
            section: Section::BeforeRows,
            action,
            kind: "view".into(),
            object: part.into(),
            part: part.into(),
            sql: "SELECT 1".into(),
        }
    }

    #[test]
    fn counts_come_without_rows_and_statements() {
        let value = || vec![Some("1".to_owned())];
        let rows = vec![RowChange::Insert { new: value() }, RowChange::Update { old: value(), new: value() }];
        let schema = SchemaChange {
            statements: vec![
                statement(Action::Drop, "view v"),
                statement(Action::Alter, "column a of table t"),
                statement(Action::Create, "view v"),
            ],
            not_covered: vec!["role x".into()],
            ..SchemaChange::default()
        };
        let page = PageChange { number: 0, old: None, new: Some("ff".into()) };
        let pages = Spool::of([page]).expect("short");
        let object = LargeObjectChange { state: TableState::Created, pages, ..LargeObjectChange::kept(7) };
        let comment = Some(Sides { old: None, new: Some("a comment".into()) });
        let commented = LargeObjectChange { comment, ..LargeObjectChange::kept(8) };
        let set = ChangeSet {
            database: "shop".into(),
            schema,
            tables: vec![table("a", rows), table("b", vec![RowChange::Delete { old: value() }])],
            large_objects: vec![object, commented],
            ..ChangeSet::default()
        };
        let report = DiffReport {
            schema_version: 1,
            branch: "work".into(),
            against: None,
            from_lsn: Lsn::new(16),
            to_lsn: Lsn::new(32),
            changed_blocks: 5,
            pages_read_branch_point: 6,
            pages_read_head: 7,
            databases: vec![set],
            databases_not_compared: vec!["new".into()],
        };
        let stat = DiffStat::of(&report).expect("in memory");
        let table = |name: &str, inserted: u64, updated: u64, deleted: u64| {
            json!({
                "schema": "public", "name": name, "renamed_from": ["public", "old"], "state": "kept", "columns_added": ["age"],
                "columns_dropped": [], "inserted": inserted, "updated": updated, "deleted": deleted,
            })
        };
        assert_eq!(
            serde_json::to_value(&stat).expect("plain data"),
            json!({
                "schema_version": 1, "branch": "work", "against": null, "from_lsn": "0/00000010", "to_lsn": "0/00000020",
                "inserted": 1, "updated": 1, "deleted": 1, "databases_not_compared": ["new"],
                "databases": [{
                    "database": "shop",
                    "schema": {
                        "statements": 3, "not_covered": ["role x"],
                        "objects": [
                            { "object": "view v", "changes": ["created", "dropped"] },
                            { "object": "column a of table t", "changes": ["changed"] },
                        ],
                    },
                    "tables": [table("a", 1, 1, 0), table("b", 0, 0, 1)],
                    "sequences": [],
                    "large_objects": [
                        { "oid": 7, "state": "created", "pages": 1 },
                        { "oid": 8, "state": "kept", "pages": 0, "properties": ["comment"] },
                    ],
                }],
            })
        );
    }
}
