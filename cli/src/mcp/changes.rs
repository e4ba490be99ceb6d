//! `diff`: what changed on a branch. Counts first, then the rows of one table, page by page.

use ardent_api::control::{DiffPart, DiffRequest};
use ardent_diff::{DiffReport, RowChange, TableChange, TableState};
use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answer::{ANSWER_LEN_MAX, Trouble, VALUE_LEN_MAX, cut, fitting};
use super::call::Call;
use crate::commands::diff;
use crate::failure::Failure;

/// Rows of a page unless told otherwise.
const PAGE: usize = 50;
/// Most rows of a page.
const PAGE_MAX: usize = 500;

/// What to compare, and what to show.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiffArgs {
    /// The branch's name
    pub branch: String,
    /// Compare with another branch, or with the branch at an LSN; absent: with its branch point
    pub against: Option<String>,
    /// Compare with the branch as it was at a checkpoint of this label, in place of that
    pub since: Option<String>,
    /// Show the changed rows of this table, as NAME or SCHEMA.NAME; absent: the schema's changes, and counts by table
    pub table: Option<String>,
    /// Of the table's changes, skip so many
    #[serde(default)]
    pub skip: usize,
    /// Show at most so many changes, at most 500; absent: 50
    pub limit: Option<usize>,
}

/// What differs.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Changes {
    branch: String,
    /// Compared from here
    from_lsn: String,
    /// to here
    to_lsn: String,
    /// False: nothing differs
    changed: bool,
    /// By database: schema statements, tables with counts, sequences, large objects
    databases: Vec<Value>,
    /// Changes of the table that was asked for: insert with values, delete with values, update with key and from/to by column
    rows: Vec<Value>,
    /// Skip so many to see what follows; null: that was all
    next_skip: Option<usize>,
    /// Parts that there was no room for: ask for one table, or use the command ardent branch diff
    left_out: usize,
    /// Databases that only one side has
    databases_not_compared: Vec<String>,
}

/// The tool.
pub async fn diff(call: &Call, args: DiffArgs) -> Result<Changes, Trouble> {
    let request = DiffRequest {
        tables: args.table.clone().into_iter().collect(),
        against: args.against.clone(),
        since: args.since.clone(),
        part: args.table.is_some().then_some(DiffPart::Rows),
    };
    let shown = call
        .blocking("comparing", move |api, _| {
            let report = diff::ask(api, &args.branch, &request)?;
            // Rows may be in files: not to be read where others wait.
            match &args.table {
                None => summary(&report),
                Some(_) => page(&report, args.skip, args.limit.unwrap_or(PAGE).min(PAGE_MAX)),
            }
        })
        .await?;
    Ok(shown)
}

fn frame(report: &DiffReport) -> Changes {
    Changes {
        branch: report.branch.clone(),
        from_lsn: report.from_lsn.to_string(),
        to_lsn: report.to_lsn.to_string(),
        changed: !report.databases.is_empty() || !report.databases_not_compared.is_empty(),
        databases_not_compared: report.databases_not_compared.clone(),
        ..Changes::default()
    }
}

/// What changed where, with counts.
pub fn summary(report: &DiffReport) -> Result<Changes, Failure> {
    let mut changes = frame(report);
    let mut room = ANSWER_LEN_MAX;
    for set in &report.databases {
        let statements = set.schema.statements.iter().map(|statement| cut(&statement.sql, VALUE_LEN_MAX));
        let (schema, no_room) = fitting(statements, &mut room);
        changes.left_out += no_room;
        let counted: Result<Vec<Value>, Failure> = set.tables.iter().map(counts).collect();
        let (tables, no_room) = fitting(counted?, &mut room);
        changes.left_out += no_room;
        let sequences = set.sequences.iter().map(|sequence| {
            json!({ "sequence": format!("{}.{}", sequence.schema, sequence.name), "from": sequence.old, "to": sequence.new })
        });
        let (sequences, no_room) = fitting(sequences, &mut room);
        changes.left_out += no_room;
        let (not_covered, no_room) = fitting(&set.schema.not_covered, &mut room);
        changes.left_out += no_room;
        changes.databases.push(json!({
            "database": set.database,
            "schema": schema,
            "tables": tables,
            "sequences": sequences,
            "large_objects": set.large_objects.len(),
            "not_covered": not_covered,
        }));
    }
    Ok(changes)
}

fn counts(table: &TableChange) -> Result<Value, Failure> {
    let counts = table.counts().map_err(|error| Failure::of(&error))?;
    let state = match table.state {
        TableState::Kept => "kept",
        TableState::Created => "created",
        TableState::Dropped => "dropped",
    };
    Ok(json!({
        "table": format!("{}.{}", table.schema, table.name), "state": state,
        "inserted": counts.inserted, "updated": counts.updated, "deleted": counts.deleted,
    }))
}

/// A page of the changes of the tables that were asked for.
fn page(report: &DiffReport, skip: usize, limit: usize) -> Result<Changes, Failure> {
    let mut changes = frame(report);
    let (mut room, mut seen) = (ANSWER_LEN_MAX, 0);
    for set in &report.databases {
        for table in &set.tables {
            changes.databases.push(json!({ "database": set.database, "tables": [counts(table)?] }));
            for row in table.rows.iter() {
                seen += 1;
                if seen <= skip {
                    continue;
                }
                let row = row_value(table, &row.map_err(|error| Failure::of(&error))?);
                let len = row.to_string().len();
                // The first one is shown whatever its length, or there would be no way past it.
                if changes.rows.len() == limit || (len > room && !changes.rows.is_empty()) {
                    changes.next_skip = Some(seen - 1);
                    return Ok(changes);
                }
                room = room.saturating_sub(len);
                changes.rows.push(row);
            }
        }
    }
    Ok(changes)
}

fn row_value(table: &TableChange, row: &RowChange) -> Value {
    let shown = |value: &Option<String>| value.as_ref().map(|text| cut(text, VALUE_LEN_MAX));
    let all = |values: &[Option<String>]| -> Map<String, Value> {
        table.columns.iter().zip(values).map(|(column, value)| (column.clone(), json!(shown(value)))).collect()
    };
    match row {
        RowChange::Insert { new } => json!({ "change": "insert", "values": all(new) }),
        RowChange::Delete { old } => json!({ "change": "delete", "values": all(old) }),
        RowChange::Update { old, new } => {
            let (mut key, mut columns) = (Map::new(), Map::new());
            for (column, (old, new)) in table.columns.iter().zip(old.iter().zip(new)) {
                if table.key.contains(column) {
                    key.insert(column.clone(), json!(shown(new)));
                }
                if old != new {
                    columns.insert(column.clone(), json!({ "from": shown(old), "to": shown(new) }));
                }
            }
            json!({ "change": "update", "key": key, "columns": columns })
        }
    }
}

#[cfg(test)]
mod tests {
    use ardent_diff::{ChangeSet, Spool};
    use ardent_types::Lsn;

    use super::*;

    fn report(rows: Vec<RowChange>) -> DiffReport {
        let table = TableChange {
            schema: "public".into(),
            name: "t".into(),
            renamed_from: None,
            state: TableState::Kept,
            columns: vec!["id".into(), "v".into()],
            columns_added: vec![],
            columns_dropped: vec![],
            base_columns: vec![],
            generated: vec![],
            columns_left: vec![],
            unguarded: vec![],
            materialized_view: false,
            key: vec!["id".into()],
            rows: Spool::of(rows).expect("short"),
            copies: Spool::default(),
        };
        DiffReport {
            schema_version: 1,
            branch: "b".into(),
            against: None,
            from_lsn: Lsn::new(16),
            to_lsn: Lsn::new(32),
            changed_blocks: 1,
            pages_read_branch_point: 0,
            pages_read_head: 0,
            databases: vec![ChangeSet { database: "shop".into(), tables: vec![table], ..ChangeSet::default() }],
            databases_not_compared: vec![],
        }
    }

    fn insert(id: usize, len: usize) -> RowChange {
        RowChange::Insert { new: vec![Some(id.to_string()), Some("x".repeat(len))] }
    }

    #[test]
    fn pages_follow_one_another_without_a_hole() {
        let all = report((0..7).map(|id| insert(id, 1)).collect());
        let (mut skip, mut ids) = (0, Vec::new());
        loop {
            let page = page(&all, skip, 3).expect("in memory");
            ids.extend(page.rows.iter().map(|row| row["values"]["id"].as_str().expect("text").to_owned()));
            match page.next_skip {
                Some(next) => skip = next,
                None => break,
            }
        }
        assert_eq!(ids, ["0", "1", "2", "3", "4", "5", "6"]);
        let wide = report((0..200).map(|id| insert(id, VALUE_LEN_MAX * 2)).collect());
        let page = page(&wide, 0, PAGE_MAX).expect("in memory");
        assert!(
            json!(page).to_string().len() < ANSWER_LEN_MAX * 11 / 10 && page.next_skip.is_some_and(|next| next > 1)
        );
    }

    #[test]
    fn an_update_shows_its_key_and_what_is_different() {
        let update =
            RowChange::Update { old: vec![Some("1".into()), Some("a".into())], new: vec![Some("1".into()), None] };
        let shown = page(&report(vec![update]), 0, 1).expect("in memory");
        let expect =
            json!({ "change": "update", "key": { "id": "1" }, "columns": { "v": { "from": "a", "to": null } } });
        assert_eq!((shown.rows, shown.next_skip), (vec![expect], None));
        let stat = summary(&report(vec![insert(1, 1)])).expect("in memory");
        assert_eq!(stat.databases[0]["tables"][0]["inserted"], 1);
        assert!(stat.rows.is_empty() && stat.changed && stat.left_out == 0);
    }
}
