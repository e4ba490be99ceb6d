//! Rules and catalogs in, an action for every column out; or everything that keeps it from being so, at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Value, json};

use crate::action::Action;
use crate::catalog::{Column, Database, Table};
use crate::expression::{NEW, OLD, new_value};
use crate::name::{TableName, quoted};
use crate::report::ColumnReport;
use crate::rules::{REST, Rules};

/// Most lines of an error that are shown.
const SHOWN_MAX: usize = 50;

/// What is to be done in all of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every table.
    pub tables: Vec<PlannedTable>,
}

/// What is to be done to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTable {
    /// Its name.
    pub name: TableName,
    /// Its columns, in order.
    pub columns: Vec<PlannedColumn>,
    /// The statement that does it, with the secret as its parameter if that is used; `None`: everything is kept. It gives one row: rows
    /// changed, then for each column that is changed how many values it had, and how many of these are the same still.
    pub statement: Option<String>,
}

/// What is to be done to a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: String,
    /// What.
    pub action: Action,
    /// Why.
    pub source: Source,
}

/// Which rule names a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Its own.
    Column,
    /// Its table's `*`.
    Table,
    /// Its type's.
    Type,
}

impl Source {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Column => "column",
            Source::Table => "table",
            Source::Type => "type",
        }
    }
}

/// Something that keeps a plan from being made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where: a column, a table, a constraint.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

/// A column that no rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unnamed {
    /// Its table.
    pub table: TableName,
    /// Its name.
    pub column: String,
    /// Its type.
    pub data_type: String,
    /// What could be done that leaves nothing of its values, if anything can.
    pub suggestion: Option<Action>,
}

/// There is no plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct PlanError {
    /// Columns that no rule names.
    pub unnamed: Vec<Unnamed>,
    /// What else is wrong.
    pub problems: Vec<Problem>,
}

impl PlanError {
    /// Rules for what none names, to be looked at and pasted: nothing is suggested that would keep a value.
    pub fn snippet(&self) -> Option<String> {
        let mut tables: BTreeMap<String, BTreeMap<&str, Value>> = BTreeMap::new();
        for unnamed in self.unnamed.iter().take(SHOWN_MAX) {
            let action = unnamed.suggestion.as_ref().map_or(json!("CHOOSE"), |action| json!(action));
            tables.entry(unnamed.table.to_string()).or_default().insert(&unnamed.column, action);
        }
        (!tables.is_empty()).then(|| format!("{:#}", json!({ "columns": tables })))
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.unnamed.is_empty() {
            let mut lines = vec![format!("no rule names {} column(s), nor their types:", self.unnamed.len())];
            let shown = self.unnamed.iter().take(SHOWN_MAX);
            lines.extend(
                shown.map(|Unnamed { table, column, data_type, .. }| {
                    format!("  {table}, column {column} ({data_type})")
                }),
            );
            lines.extend(left_out(self.unnamed.len()));
            parts.push(lines.join("\n"));
        }
        if !self.problems.is_empty() {
            let mut lines = vec!["the rules do not fit the database:".to_owned()];
            let shown = self.problems.iter().take(SHOWN_MAX);
            lines.extend(shown.map(|problem| format!("  {}: {}", problem.place, problem.what)));
            lines.extend(left_out(self.problems.len()));
            parts.push(lines.join("\n"));
        }
        f.write_str(&parts.join("\n"))
    }
}

fn left_out(count: usize) -> Option<String> {
    (count > SHOWN_MAX).then(|| format!("  and {} more", count - SHOWN_MAX))
}

/// Makes the plan for all databases of a cluster.
pub fn plan(rules: &Rules, databases: &[Database]) -> Result<Plan, PlanError> {
    let (mut plan, mut error) = (Plan::default(), PlanError::default());
    let mut used: BTreeSet<&TableName> = BTreeSet::new();
    for database in databases {
        let mut chosen: BTreeMap<(u32, i16), (&Action, &Column)> = BTreeMap::new();
        for table in &database.tables {
            let name = name_of(database, table);
            let own = rules.columns.get_key_value(&name);
            used.extend(own.map(|(name, _)| name));
            let own = own.map(|(_, actions)| actions);
            for column in own.into_iter().flatten().map(|(column, _)| column) {
                if column != REST && !table.columns.iter().any(|found| found.name == *column) {
                    let what = format!("the table has no column {column} with values of its own");
                    error.problems.push(Problem { place: name.to_string(), what });
                }
            }
            let mut columns = Vec::new();
            for column in &table.columns {
                let Some((action, source)) = rule_for(rules, own, column) else {
                    error.unnamed.push(Unnamed {
                        table: name.clone(),
                        column: column.name.clone(),
                        data_type: column.sql_type.clone(),
                        suggestion: [Action::Hash, Action::Null]
                            .into_iter()
                            .find(|action| misfit(action, column).is_none()),
                    });
                    continue;
                };
                chosen.insert((table.oid, column.number), (action, column));
                let place = || format!("{name}, column {}", column.name);
                error.problems.extend(misfit(action, column).map(|what| Problem { place: place(), what }));
                columns.push(PlannedColumn {
                    name: column.name.clone(),
                    data_type: column.sql_type.clone(),
                    action: action.clone(),
                    source,
                });
            }
            let statement = statement(table, &columns);
            plan.tables.push(PlannedTable { name, columns, statement });
        }
        for key in &database.foreign_keys {
            let (Some((from, from_column)), Some((to, to_column))) = (chosen.get(&key.from), chosen.get(&key.to))
            else {
                continue;
            };
            let same_type = from_column.base_type == to_column.base_type || **from == Action::Keep;
            if **from != Action::Null && (from != to || !same_type) {
                let place = format!("foreign key {} of database {}", key.name, database.name);
                let what = format!(
                    "{} would be {} ({}), and what it refers to, {}, {} ({}): rows would refer to nothing",
                    from_column.name,
                    from.text(),
                    from_column.base_type,
                    to_column.name,
                    to.text(),
                    to_column.base_type
                );
                error.problems.push(Problem { place, what });
            }
        }
        error.problems.extend(database.always_run.iter().map(|what| Problem {
            place: format!("database {}", database.name),
            what: format!("{what} runs even where triggers are off, and could copy what is being masked: drop it on production's side, or ENABLE it without ALWAYS or REPLICA"),
        }));
    }
    for name in rules.columns.keys().filter(|name| !used.contains(name)) {
        let what = "there is no such table: a partition has the rules of the table that it is a part of".to_owned();
        error.problems.push(Problem { place: name.to_string(), what });
    }
    if error == PlanError::default() { Ok(plan) } else { Err(error) }
}

fn name_of(database: &Database, table: &Table) -> TableName {
    TableName { database: database.name.clone(), schema: table.schema.clone(), table: table.name.clone() }
}

fn rule_for<'r>(
    rules: &'r Rules,
    own: Option<&'r BTreeMap<String, Action>>,
    column: &Column,
) -> Option<(&'r Action, Source)> {
    let of_table = |name: &str| own.and_then(|actions| actions.get(name));
    let of_type = |name: &str| rules.types.get(name);
    of_table(&column.name)
        .map(|action| (action, Source::Column))
        .or_else(|| of_table(REST).map(|action| (action, Source::Table)))
        .or_else(|| {
            of_type(&column.declared_type).or_else(|| of_type(&column.base_type)).map(|action| (action, Source::Type))
        })
}

/// Why a column cannot be treated so.
fn misfit(action: &Action, column: &Column) -> Option<String> {
    if let Err(why) = new_value(action, column) {
        return Some(why);
    }
    if *action == Action::Null && column.not_null {
        return Some("it may not be NULL".to_owned());
    }
    let is_small = ["smallint", "integer", "bigint"].contains(&&column.base_type[..]) && *action == Action::Hash;
    if column.unique && (!action.keeps_distinct() || is_small) {
        return Some(format!("{} would make values equal that have to be unique", action.text()));
    }
    None
}

fn statement(table: &Table, columns: &[PlannedColumn]) -> Option<String> {
    let changed = columns.iter().filter_map(|planned| {
        let column = table.columns.iter().find(|column| column.name == planned.name)?;
        // Where it is an error there is no plan.
        Some((quoted(&column.name), new_value(&planned.action, column).ok()??))
    });
    let changed: Vec<(String, String)> = changed.collect();
    if changed.is_empty() {
        return None;
    }
    let only = if table.is_partitioned { "" } else { "only " };
    let name = format!("{}.{}", quoted(&table.schema), quoted(&table.name));
    let set: Vec<String> = changed.iter().map(|(column, value)| format!("{column} = {value}")).collect();
    let mut returned = Vec::new();
    let mut counted = vec!["count(*)".to_owned()];
    for (index, (column, _)) in changed.iter().enumerate() {
        returned.push(format!("{OLD}.{column} is not null as had{index}"));
        returned.push(format!("{NEW}.{column}::text = {OLD}.{column}::text as same{index}"));
        counted.push(format!("count(*) filter (where had{index})"));
        counted.push(format!("count(*) filter (where same{index})"));
    }
    Some(format!(
        "with changed as (update {only}{name} as {NEW} set {} from {only}{name} as {OLD}
            where {NEW}.ctid = {OLD}.ctid and {NEW}.tableoid = {OLD}.tableoid returning {})
        select {} from changed",
        set.join(", "),
        returned.join(", "),
        counted.join(", ")
    ))
}

impl Plan {
    /// What is to become of each column.
    pub fn columns(&self) -> Vec<ColumnReport> {
        self.tables.iter().flat_map(PlannedTable::columns).collect()
    }
}

impl PlannedTable {
    /// What is to become of each of its columns.
    pub fn columns(&self) -> Vec<ColumnReport> {
        let report = |column: &PlannedColumn| ColumnReport {
            database: self.name.database.clone(),
            schema: self.name.schema.clone(),
            table: self.name.table.clone(),
            column: column.name.clone(),
            data_type: column.data_type.clone(),
            action: column.action.text(),
            rule: column.source.as_str().to_owned(),
            rows: None,
            values: None,
            unchanged: None,
        };
        self.columns.iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests;
