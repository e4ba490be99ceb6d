//! The comparison of one database on two computes.

use std::collections::{BTreeMap, BTreeSet};

use ardent_api::page_service::{BlockRange, ChangedRelation};
use ardent_types::ForkNumber;

use crate::catalog::{self, Catalog, Sequence, Table, tables_of_prepared_transactions};
use ardent_schema_diff::{Identity, plan as plan_schema};

use crate::change_set::{ChangeSet, SchemaChange, SequenceChange, TableChange, TableState};
use crate::error::DiffError;
use crate::large_objects;
use crate::pairing::Pairing;
use crate::scan::{self, Extent};
use crate::session::{Session, quote_identifier, quote_literal};

/// What to compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompareOptions {
    /// Only these tables, as `name` or `schema.name`; empty: all.
    pub tables: Vec<String>,
    /// Schema, rows, or both.
    pub part: Part,
}

/// Which part of a database to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// Everything.
    #[default]
    Whole,
    /// The schema alone.
    Schema,
    /// Rows, sequences and large objects.
    Rows,
}

impl CompareOptions {
    fn wants(&self, schema: &str, name: &str) -> bool {
        let full = format!("{schema}.{name}");
        self.tables.is_empty() || self.tables.iter().any(|wanted| wanted == name || *wanted == full)
    }

    /// Leaves what is about the wanted tables.
    fn keep_wanted(&self, schema: &mut SchemaChange) {
        if self.tables.is_empty() {
            return;
        }
        // `public.users`, or `email of table public.users`.
        let about = |kind: &str, object: &str| {
            let table =
                if kind == "table" { Some(object) } else { object.split_once(" of table ").map(|(_, table)| table) };
            table.and_then(|table| table.split_once('.')).is_some_and(|(schema, name)| self.wants(schema, name))
        };
        schema.statements.retain(|statement| about(&statement.kind, &statement.object));
        schema.undo.retain(|statement| about(&statement.kind, &statement.object));
        schema.touched.retain(|touched| touched.path.split_once(' ').is_some_and(|(kind, object)| about(kind, object)));
        schema.not_covered.clear();
        schema.undo_not_covered.clear();
    }
}

/// Blocks that changed, by file: (tablespace, relfilenode) of this database's main forks.
pub(crate) type ChangedFiles<'a> = BTreeMap<(u32, u32), &'a ChangedRelation>;

/// Compares `base` (the branch point) with `head`. `database_oid` is the database's OID, `changed` what the page server says
/// changed between them (all databases).
pub async fn compare(
    base: &Session,
    head: &Session,
    database_oid: u32,
    changed: &[ChangedRelation],
    options: &CompareOptions,
) -> Result<ChangeSet, DiffError> {
    let files: ChangedFiles<'_> = changed
        .iter()
        .filter(|relation| relation.rel.dbnode == database_oid && relation.rel.fork == ForkNumber::Main)
        .map(|relation| ((relation.rel.spcnode, relation.rel.relnode), relation))
        .collect();
    let prepared: BTreeSet<u32> = tables_of_prepared_transactions(base).await?.into_iter().collect();
    let mut result = ChangeSet { database: head.database.clone(), ..ChangeSet::default() };
    if files.is_empty() && prepared.is_empty() {
        return Ok(result);
    }
    if options.part != Part::Rows && schema_may_differ(base, head, database_oid, changed).await? {
        let (old, new) = (catalog::schema(base).await?, catalog::schema(head).await?);
        let (there, back) = (plan_schema(&old, &new, Identity::Oid), plan_schema(&new, &old, Identity::Oid));
        result.schema = SchemaChange::new(there, back);
        options.keep_wanted(&mut result.schema);
    }
    if options.part == Part::Schema {
        return Ok(result);
    }
    let mut old = Catalog::load(base).await?;
    let mut new = Catalog::load(head).await?;
    let plans = plan(&old, &new, &files, &prepared, options);
    let oids: Vec<u32> = plans.iter().map(|plan| plan.oid).collect();
    old.load_details(base, &oids).await?;
    new.load_details(head, &oids).await?;
    for plan in &plans {
        let (before, after) = (old.tables.get(&plan.oid), new.tables.get(&plan.oid));
        result.tables.extend(compare_table(base, head, before, after, &plan.extent).await?);
    }
    result.tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    result.sequences = compare_sequences(base, head, &old, &new, &files, options).await?;
    if options.tables.is_empty() {
        result.large_objects = large_objects::compare(base, head, &files).await?;
    }
    Ok(result)
}

/// Whether a catalog that holds the schema has other blocks, or another file, than at the branch point.
async fn schema_may_differ(
    base: &Session,
    head: &Session,
    database: u32,
    changed: &[ChangedRelation],
) -> Result<bool, DiffError> {
    let (old, new) = (catalog::catalog_files(base).await?, catalog::catalog_files(head).await?);
    let here = |relation: &&ChangedRelation| relation.rel.dbnode == database || relation.rel.dbnode == 0;
    Ok(old != new || changed.iter().filter(here).any(|relation| new.contains(&relation.rel.relnode)))
}

/// A table to be compared, and how much of it.
#[derive(Debug)]
struct TablePlan {
    oid: u32,
    extent: Extent,
}

/// Which tables to compare: those whose blocks changed, that have another file than before, that are on one side only, or
/// that a prepared transaction wrote.
fn plan(
    old: &Catalog,
    new: &Catalog,
    files: &ChangedFiles<'_>,
    prepared: &BTreeSet<u32>,
    options: &CompareOptions,
) -> Vec<TablePlan> {
    let oids: BTreeSet<u32> = old.tables.keys().chain(new.tables.keys()).copied().collect();
    let mut plans = Vec::new();
    for oid in oids {
        let (before, after) = (old.tables.get(&oid), new.tables.get(&oid));
        let wanted = [before, after].into_iter().flatten().any(|table| options.wants(&table.schema, &table.name));
        let extent = match (before, after) {
            (Some(before), Some(after)) if before.file == after.file && !prepared.contains(&oid) => {
                let renamed = (&before.schema, &before.name) != (&after.schema, &after.name);
                match files.get(&after.file) {
                    Some(relation) => Extent::Blocks(blocks_to_read(relation)),
                    None if renamed => Extent::Blocks(Vec::new()),
                    None => continue,
                }
            }
            _ => Extent::Whole,
        };
        if wanted {
            plans.push(TablePlan { oid, extent });
        }
    }
    plans
}

/// The changed blocks, and those that were cut off since.
pub(crate) fn blocks_to_read(relation: &ChangedRelation) -> Vec<BlockRange> {
    let mut ranges = relation.ranges.clone();
    let (from, to) = (relation.nblocks_from.unwrap_or(0), relation.nblocks_to.unwrap_or(0));
    if from > to {
        ranges.retain_mut(|range| {
            range.count = range.count.min(to.saturating_sub(range.start));
            range.count > 0
        });
        ranges.push(BlockRange { start: to, count: from - to });
    }
    ranges
}

async fn compare_table(
    base: &Session,
    head: &Session,
    before: Option<&Table>,
    after: Option<&Table>,
    extent: &Extent,
) -> Result<Option<TableChange>, DiffError> {
    let Some(shown) = after.or(before) else { return Ok(None) };
    let state = match (before, after) {
        (None, _) => TableState::Created,
        (_, None) => TableState::Dropped,
        _ => TableState::Kept,
    };
    let mut pairing = Pairing::default();
    if let Some(table) = before {
        let expressions: Vec<_> = shown.columns.iter().map(|column| old_value(table, column)).collect();
        scan::rows(base, &qualified(table), &expressions, extent, |row| pairing.add_base(row)).await?;
    }
    if let Some(table) = after {
        let expressions: Vec<_> = table.columns.iter().map(|column| quote_identifier(&column.name)).collect();
        scan::rows(head, &qualified(table), &expressions, extent, |row| pairing.add_head(row)).await?;
    }
    let key_numbers = if before.is_none_or(|table| table.key == shown.key) { &shown.key[..] } else { &[] };
    let place = |attnum: &i16| shown.columns.iter().position(|column| column.attnum == *attnum);
    let key: Vec<usize> = key_numbers.iter().filter_map(place).collect();
    let only_in = |table: &Table, other: &Table| -> Vec<String> {
        let missing = table.columns.iter().filter(|column| !other.columns.iter().any(|c| c.attnum == column.attnum));
        missing.map(|column| column.name.clone()).collect()
    };
    let (columns_added, columns_dropped) = match (before, after) {
        (Some(before), Some(after)) => (only_in(after, before), only_in(before, after)),
        _ => (Vec::new(), Vec::new()),
    };
    let renamed_from = before
        .filter(|before| (&before.schema, &before.name) != (&shown.schema, &shown.name))
        .map(|before| (before.schema.clone(), before.name.clone()));
    let change = TableChange {
        schema: shown.schema.clone(),
        name: shown.name.clone(),
        renamed_from,
        state,
        columns: shown.columns.iter().map(|column| column.name.clone()).collect(),
        columns_added,
        columns_dropped,
        base_columns: shown
            .columns
            .iter()
            .map(|column| before?.columns.iter().find(|old| old.attnum == column.attnum).map(|old| old.name.clone()))
            .collect(),
        generated: shown.columns.iter().filter(|column| column.generated).map(|column| column.name.clone()).collect(),
        materialized_view: shown.materialized,
        key: key.iter().map(|index| shown.columns[*index].name.clone()).collect(),
        rows: pairing.finish(&key),
    };
    let is_change = !change.rows.is_empty()
        || change.state != TableState::Kept
        || change.renamed_from.is_some()
        || !change.columns_added.is_empty()
        || !change.columns_dropped.is_empty();
    Ok(is_change.then_some(change))
}

/// The expression for a shown column on the old side: the column, whatever its name was, or what a row would have there.
fn old_value(table: &Table, shown: &crate::catalog::Column) -> String {
    match table.columns.iter().find(|column| column.attnum == shown.attnum) {
        Some(column) => quote_identifier(&column.name),
        None => shown.missing.as_deref().map_or("null".to_owned(), quote_literal),
    }
}

fn qualified(table: &Table) -> String {
    format!("{}.{}", quote_identifier(&table.schema), quote_identifier(&table.name))
}

async fn compare_sequences(
    base: &Session,
    head: &Session,
    old: &Catalog,
    new: &Catalog,
    files: &ChangedFiles<'_>,
    options: &CompareOptions,
) -> Result<Vec<SequenceChange>, DiffError> {
    let oids: BTreeSet<u32> = old.sequences.keys().chain(new.sequences.keys()).copied().collect();
    let mut changes = Vec::new();
    for oid in oids {
        let (before, after) = (old.sequences.get(&oid), new.sequences.get(&oid));
        let Some(shown) = after.or(before) else { continue };
        let may_differ = before.map(|sequence| sequence.file) != after.map(|sequence| sequence.file)
            || files.contains_key(&shown.file);
        if !may_differ || !options.wants(&shown.schema, &shown.name) {
            continue;
        }
        let (old_value, new_value) = (last_value(base, before).await?, last_value(head, after).await?);
        if old_value != new_value {
            let (schema, name) = (shown.schema.clone(), shown.name.clone());
            changes.push(SequenceChange {
                schema,
                name,
                old: old_value.map(|value| value.0),
                old_called: old_value.map(|value| value.1),
                new: new_value.map(|value| value.0),
                new_called: new_value.map(|value| value.1),
            });
        }
    }
    changes.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    Ok(changes)
}

async fn last_value(session: &Session, sequence: Option<&Sequence>) -> Result<Option<(i64, bool)>, DiffError> {
    let Some(sequence) = sequence else { return Ok(None) };
    let (schema, name) = (quote_identifier(&sequence.schema), quote_identifier(&sequence.name));
    let rows = session.query(&format!("select last_value, is_called from {schema}.{name}"), &[]).await?;
    let row = rows.first().ok_or_else(|| session.unexpected("a sequence without a row"))?;
    let value = (row.try_get(0), row.try_get(1));
    match value {
        (Ok(value), Ok(called)) => Ok(Some((value, called))),
        (Err(source), _) | (_, Err(source)) => Err(session.failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_types::RelTag;

    #[test]
    fn blocks_that_were_cut_off_are_read_on_the_old_side() {
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
        let range = |start, count| BlockRange { start, count };
        let check = |from, to, ranges: Vec<BlockRange>, expect: Vec<BlockRange>| {
            let relation = ChangedRelation { rel, nblocks_from: Some(from), nblocks_to: Some(to), ranges };
            assert_eq!(blocks_to_read(&relation), expect);
        };
        check(10, 4, vec![range(2, 1), range(3, 5)], vec![range(2, 1), range(3, 1), range(4, 6)]);
        check(4, 10, vec![range(4, 6)], vec![range(4, 6)]);
        check(10, 0, vec![], vec![range(0, 10)]);
    }
}
