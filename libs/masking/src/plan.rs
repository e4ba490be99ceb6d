//! Rules and catalogs in, an action for every column out; or everything that keeps it from being so, at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Value, json};

use crate::action::Action;
use crate::catalog::{Column, Database, Table};
use crate::expression::new_value;
use crate::name::TableName;
use crate::report::ColumnReport;
use crate::rules::{REST, Rules};
use statements::{always_generated, range_checks, sequences, statement};

mod statements;

const INTEGERS: [&str; 3] = ["smallint", "integer", "bigint"];
/// Most lines of an error that are shown.
const SHOWN_MAX: usize = 50;

/// What is to be done in all of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every table.
    pub tables: Vec<PlannedTable>,
    /// Sequences that have to go behind what fills their columns.
    pub sequences: Vec<PlannedSequence>,
}

/// A sequence whose next number could be there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSequence {
    /// Its database.
    pub database: String,
    /// Its name as SQL takes it.
    pub name: String,
    /// The statement that moves it behind all values, if it is not there; to be run once rows are masked.
    pub statement: String,
}

/// Values that an action makes nothing of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeCheck {
    /// The column.
    pub column: String,
    /// What is to be done to it.
    pub action: Action,
    /// The statement that counts them.
    pub statement: String,
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
    /// What has to count nothing before.
    pub checks: Vec<RangeCheck>,
    /// Columns that are changed although none may say what they are, as SQL takes their names.
    pub always_generated: Vec<String>,
    /// Values are exchanged with each other: while that is done a unique index would see two that are the same.
    pub permutes: bool,
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
    /// That of the column that it refers to by a foreign key.
    Reference,
}

impl Source {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Column => "column",
            Source::Table => "table",
            Source::Type => "type",
            Source::Reference => "reference",
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

/// A column of a database: its table's number and its own.
type ColumnKey = (u32, i16);
type Chosen<'r> = BTreeMap<ColumnKey, (&'r Action, Source)>;

/// Makes the plan for all databases of a cluster.
pub fn plan(rules: &Rules, databases: &[Database]) -> Result<Plan, PlanError> {
    let (mut plan, mut error) = (Plan::default(), PlanError::default());
    let mut used: BTreeSet<&TableName> = BTreeSet::new();
    for database in databases {
        let mut chosen = Chosen::new();
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
            for column in &table.columns {
                chosen.extend(rule_for(rules, own, column).map(|found| ((table.oid, column.number), found)));
            }
        }
        follow_references(database, &mut chosen);
        plan_database(database, &chosen, &mut plan, &mut error);
    }
    for name in rules.columns.keys().filter(|name| !used.contains(name)) {
        let what = "there is no such table: a partition has the rules of the table that it is a part of".to_owned();
        error.problems.push(Problem { place: name.to_string(), what });
    }
    if error == PlanError::default() { Ok(plan) } else { Err(error) }
}

/// What refers to a column that has a rule of its own, and has none itself, is masked as that is: otherwise rows would refer to nothing.
fn follow_references(database: &Database, chosen: &mut Chosen<'_>) {
    let mut is_done = false;
    // Each goes from its type's rule, or none, to its reference's once.
    while !is_done {
        is_done = true;
        for key in &database.foreign_keys {
            let Some((action, Source::Column | Source::Reference)) = chosen.get(&key.to).copied() else { continue };
            let follows = match chosen.get(&key.from) {
                None => true,
                Some((own, Source::Type)) => **own != Action::Null && *own != action,
                Some(_) => false,
            };
            if follows && *action != Action::Keep {
                chosen.insert(key.from, (action, Source::Reference));
                is_done = false;
            }
        }
    }
}

fn plan_database(database: &Database, chosen: &Chosen<'_>, plan: &mut Plan, error: &mut PlanError) {
    let mut by_key: BTreeMap<ColumnKey, &Column> = BTreeMap::new();
    for table in &database.tables {
        by_key.extend(table.columns.iter().map(|column| ((table.oid, column.number), column)));
    }
    for table in &database.tables {
        let name = name_of(database, table);
        let mut columns = Vec::new();
        for column in &table.columns {
            let key = (table.oid, column.number);
            let Some((action, source)) = chosen.get(&key).copied() else {
                error.unnamed.push(Unnamed {
                    table: name.clone(),
                    column: column.name.clone(),
                    data_type: column.sql_type.clone(),
                    suggestion: suggestion(database, &by_key, chosen, key),
                });
                continue;
            };
            let place = || format!("{name}, column {}", column.name);
            error.problems.extend(misfit(action, column).map(|what| Problem { place: place(), what }));
            columns.push(PlannedColumn {
                name: column.name.clone(),
                data_type: column.sql_type.clone(),
                action: action.clone(),
                source,
            });
        }
        plan.tables.push(PlannedTable {
            statement: statement(table, &columns),
            checks: range_checks(table, &columns),
            always_generated: always_generated(table, &columns),
            permutes: columns.iter().any(|column| column.action.permutes()),
            name,
            columns,
        });
    }
    for key in &database.foreign_keys {
        let side = |key| Some((chosen.get(key)?.0, *by_key.get(key)?));
        let (Some((from, from_column)), Some((to, to_column))) = (side(&key.from), side(&key.to)) else { continue };
        if *from != Action::Null && (from != to || !become_the_same(from, from_column, to_column)) {
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
        } else if key.to_partition && *to != Action::Keep {
            let place = format!("foreign key {} of database {}", key.name, database.name);
            let what = format!(
                "it refers to {} in one partition alone, and rows that are masked by {} may go to another: keep that column",
                to_column.name,
                to.text()
            );
            error.problems.push(Problem { place, what });
        }
    }
    plan.sequences.extend(sequences(database, &by_key, chosen));
    error.problems.extend(database.always_run.iter().map(|what| Problem {
        place: format!("database {}", database.name),
        what: format!("{what} runs even where triggers are off, and could copy what is being masked: drop it on production's side, or ENABLE it without ALWAYS or REPLICA"),
    }));
}

/// Whether `action` makes the same of equal values of both columns.
fn become_the_same(action: &Action, one: &Column, other: &Column) -> bool {
    let is_integer = |column: &Column| INTEGERS.contains(&&column.base_type[..]);
    match action {
        Action::Keep | Action::PermuteIn(..) => true,
        Action::Permute => one.sql_type == other.sql_type || (is_integer(one) && is_integer(other)),
        _ => one.base_type == other.base_type,
    }
}

/// What could be done to a column that no rule names, and leaves nothing of its values: what could be to the one that it refers to, where
/// none names that either.
fn suggestion(
    database: &Database,
    by_key: &BTreeMap<ColumnKey, &Column>,
    chosen: &Chosen<'_>,
    key: ColumnKey,
) -> Option<Action> {
    let column = *by_key.get(&key)?;
    let (mut referred, mut seen) = (key, BTreeSet::from([key]));
    let next = |from| database.foreign_keys.iter().find(|found| found.from == from).map(|found| found.to);
    while let Some(to) = next(referred).filter(|to| by_key.contains_key(to) && !chosen.contains_key(to)) {
        if !seen.insert(to) {
            break;
        }
        referred = to;
    }
    [Action::Hash, Action::Null, Action::Permute]
        .into_iter()
        .find(|action| misfit(action, by_key[&referred]).is_none())
        .filter(|action| misfit(action, column).is_none())
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
    let is_small = INTEGERS.contains(&&column.base_type[..]) && *action == Action::Hash;
    if column.unique && (!action.keeps_distinct() || is_small) {
        let instead = if INTEGERS.contains(&&column.base_type[..]) { ": take permute" } else { "" };
        return Some(format!("{} would make values equal that have to be unique{instead}", action.text()));
    }
    // A value that another row had has a partition.
    if column.partition_key && *action != Action::Keep && !action.permutes() {
        return Some(
            "partitions list its values, and new ones have none: keep it, or give the table a default partition"
                .to_owned(),
        );
    }
    None
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
