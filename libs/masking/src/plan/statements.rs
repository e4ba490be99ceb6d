//! The statements that a plan consists of.

use std::collections::BTreeMap;

use ardent_types::sql::{literal, qualified, quoted};

use super::{Chosen, ColumnKey, INTEGERS, PlannedColumn, PlannedSequence, RangeCheck};
use crate::action::Action;
use crate::catalog::{Column, Database, Sequence, Table};
use crate::expression::{NEW, OLD, new_value, out_of_range};

/// The table as statements name it: without what inherits from it, which is a table of its own, and with its partitions.
fn from_clause(table: &Table) -> String {
    let only = if table.is_partitioned { "" } else { "only " };
    format!("{only}{}", qualified(&table.schema, &table.name))
}

/// The columns that have to let themselves be changed for it.
pub(super) fn always_generated(table: &Table, columns: &[PlannedColumn]) -> Vec<String> {
    let changed = |column: &&Column| {
        column.always_generated
            && columns.iter().any(|planned| planned.name == column.name && planned.action != Action::Keep)
    };
    table.columns.iter().filter(changed).map(|column| quoted(&column.name)).collect()
}

/// What has to count nothing before it.
pub(super) fn range_checks(table: &Table, columns: &[PlannedColumn]) -> Vec<RangeCheck> {
    let check = |planned: &PlannedColumn| {
        let column = table.columns.iter().find(|column| column.name == planned.name)?;
        let outside = out_of_range(&planned.action, column)?;
        let statement = format!("select count(*) from {} as {OLD} where {outside}", from_clause(table));
        Some(RangeCheck { column: column.name.clone(), action: planned.action.clone(), statement })
    };
    columns.iter().filter_map(check).collect()
}

/// Those that fill a column whose values are exchanged.
pub(super) fn sequences(
    database: &Database,
    by_key: &BTreeMap<ColumnKey, &Column>,
    chosen: &Chosen<'_>,
) -> Vec<PlannedSequence> {
    let mut filled: BTreeMap<&str, Vec<&Sequence>> = BTreeMap::new();
    for sequence in &database.sequences {
        filled.entry(&sequence.name).or_default().push(sequence);
    }
    let permuted = |sequence: &&&Sequence| chosen.get(&sequence.fills).is_some_and(|(action, _)| action.permutes());
    let plan = |(name, fills): (&str, Vec<&Sequence>)| {
        let first = *fills.iter().find(permuted)?;
        let (furthest, limit, behind) =
            if first.descends { ("min", "greatest(m, s.seqmin)", "<=") } else { ("max", "least(m, s.seqmax)", ">=") };
        let columns = fills.iter().filter_map(|sequence| {
            let table = database.tables.iter().find(|table| table.oid == sequence.fills.0)?;
            let column = by_key.get(&sequence.fills)?;
            // A text that is made of a number is equal to none.
            let is_number = column.base_type == "numeric" || INTEGERS.contains(&&column.base_type[..]);
            let column = is_number.then(|| quoted(&column.name))?;
            Some(format!("select {furthest}({column})::bigint as m from {}", from_clause(table)))
        });
        let columns: Vec<String> = columns.collect();
        let statement = format!(
            "select setval(s.seqrelid, {limit}) from (select {furthest}(m) as m from ({}) each) f, pg_sequence s, {name} now
            where s.seqrelid = {}::regclass and m {behind} now.last_value",
            columns.join(" union all "),
            literal(name)
        );
        Some(PlannedSequence { database: database.name.clone(), name: name.to_owned(), statement })
    };
    filled.into_iter().filter_map(plan).collect()
}

/// The change of a table's rows.
pub(super) fn statement(table: &Table, columns: &[PlannedColumn]) -> Option<String> {
    let changed = columns.iter().filter_map(|planned| {
        let column = table.columns.iter().find(|column| column.name == planned.name)?;
        // Where it is an error there is no plan.
        Some((quoted(&column.name), new_value(&planned.action, column).ok()??))
    });
    let changed: Vec<(String, String)> = changed.collect();
    if changed.is_empty() {
        return None;
    }
    let name = from_clause(table);
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
        "with changed as (update {name} as {NEW} set {} from {name} as {OLD}
            where {NEW}.ctid = {OLD}.ctid and {NEW}.tableoid = {OLD}.tableoid returning {})
        select {} from changed",
        set.join(", "),
        returned.join(", "),
        counted.join(", ")
    ))
}
