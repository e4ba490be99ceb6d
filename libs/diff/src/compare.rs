//! The comparison of one database on two computes.

use std::collections::{BTreeMap, BTreeSet};

use ardent_api::page_service::{BlockRange, ChangedRelation};
use ardent_types::ForkNumber;
use ardent_types::sql::{self, literal, quoted};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::catalog::{self, Catalog, Column, Table, tables_of_prepared_transactions};
use crate::labels::{EnumLabel, labels};
use ardent_schema_diff::{Identity, Touched, plan as plan_schema, reused_labels};

use crate::change_set::{ChangeSet, LargeObjectChange, SchemaChange, SequenceChange, TableChange, TableState};
use crate::error::DiffError;
use crate::large_objects;
use crate::pairing::{Order, Pairing};
use crate::scan::{self, Extent, Side};
use crate::sequences::{self, SequenceFooting};
use crate::session::Session;
use crate::spool::Spool;
use crate::wanted::is_named;

/// Bytes of rows that the comparison of one table holds in memory before they go to a temporary file.
pub const PAIRING_BYTES_MAX: usize = 32 << 20;

/// What to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareOptions {
    /// Only these tables, as `name` or `schema.name`; empty: all.
    pub tables: Vec<String>,
    /// Schema, rows, or both.
    pub part: Part,
    /// How a table or column is recognised on the other side: by its OID and number where the head went on from the base, by its
    /// name where both went on from a third state, and may have given one number to different things.
    pub identity: Identity,
    /// Which values of sequences count as one.
    pub footing: SequenceFooting,
    /// Read everything: which blocks changed is not known.
    pub whole: bool,
    /// Bytes of rows that are held in memory; what is more goes to a temporary file.
    pub memory_bytes: usize,
}

impl Default for CompareOptions {
    fn default() -> Self {
        CompareOptions {
            tables: Vec::new(),
            part: Part::Whole,
            identity: Identity::Oid,
            footing: SequenceFooting::Shown,
            whole: false,
            memory_bytes: PAIRING_BYTES_MAX,
        }
    }
}

/// Which part of a database to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    pub(crate) fn wants(&self, schema: &str, name: &str) -> bool {
        self.tables.is_empty() || self.tables.iter().any(|wanted| is_named(wanted, schema, name))
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
        // Rows of wanted tables may have labels that are not told by their names: whoever applies them must know.
        let reused = reused_labels(&schema.statements, &schema.touched);
        let reused: BTreeSet<String> = reused.into_iter().map(|(touched, _)| touched.path.clone()).collect();
        schema
            .statements
            .retain(|statement| about(&statement.kind, &statement.object) || reused.contains(&statement.part));
        schema.undo.retain(|statement| about(&statement.kind, &statement.object));
        let wanted = |touched: &Touched| touched.path.split_once(' ').is_some_and(|(kind, object)| about(kind, object));
        schema.touched.retain(|touched| wanted(touched) || reused.contains(&touched.path));
        schema.undo_touched.retain(wanted);
        schema.not_covered.clear();
        schema.undo_not_covered.clear();
    }
}

/// Blocks that changed, by file: (tablespace, relfilenode) of this database's main forks.
pub(crate) type ChangedFiles<'a> = BTreeMap<(u32, u32), &'a ChangedRelation>;

/// A part of what a comparison finds, and in which database.
#[derive(Debug)]
pub struct Found {
    /// The database.
    pub database: String,
    /// What.
    pub piece: Piece,
}

/// A part of what a comparison finds, as soon as it is known.
#[derive(Debug)]
pub enum Piece {
    /// The schema, if it changed.
    Schema(SchemaChange),
    /// Labels of enums, before the first table.
    Labels(Vec<EnumLabel>),
    /// A table with all its rows.
    Table(TableChange),
    /// A sequence.
    Sequence(SequenceChange),
    /// A large object with all its pages.
    LargeObject(LargeObjectChange),
}

/// Pieces that wait for whoever takes them: a piece may have a file behind it.
pub const PIECES_WAITING_MAX: usize = 4;

/// Compares `base` (the branch point) with `head`. `database_oid` is the database's OID, `changed` what the page server says
/// changed between them (all databases).
pub async fn compare(
    base: &Session,
    head: &Session,
    database_oid: u32,
    changed: &[ChangedRelation],
    options: &CompareOptions,
) -> Result<ChangeSet, DiffError> {
    let mut result = ChangeSet { database: head.database.clone(), ..ChangeSet::default() };
    let (found, mut pieces) = mpsc::channel(PIECES_WAITING_MAX);
    let comparing = async {
        let done = compare_in_pieces(base, head, database_oid, changed, options, &found).await;
        drop(found);
        done
    };
    let collecting = async {
        while let Some(Found { piece, .. }) = pieces.recv().await {
            result.add(piece);
        }
    };
    let (done, ()) = tokio::join!(comparing, collecting);
    done.map(|()| result)
}

/// The same; each part of the result is sent when it is known: the schema, tables by schema and name, sequences, large objects.
/// Ends with [`DiffError::Unwanted`] when nobody takes them any more.
pub async fn compare_in_pieces(
    base: &Session,
    head: &Session,
    database_oid: u32,
    changed: &[ChangedRelation],
    options: &CompareOptions,
    found: &mpsc::Sender<Found>,
) -> Result<(), DiffError> {
    let send = async |piece| {
        found.send(Found { database: head.database.clone(), piece }).await.map_err(|_| DiffError::Unwanted)
    };
    let files: ChangedFiles<'_> = changed
        .iter()
        .filter(|relation| relation.rel.dbnode == database_oid && relation.rel.fork == ForkNumber::Main)
        .map(|relation| ((relation.rel.spcnode, relation.rel.relnode), relation))
        .collect();
    let prepared: BTreeSet<u32> = match options.identity {
        Identity::Oid => tables_of_prepared_transactions(base).await?.into_iter().collect(),
        // The changed blocks are asked for from before the first record of any.
        Identity::Name => BTreeSet::new(),
    };
    if files.is_empty() && prepared.is_empty() && !options.whole {
        return Ok(());
    }
    let schema_may_differ = options.whole || schema_may_differ(base, head, database_oid, changed).await?;
    if options.part != Part::Rows && schema_may_differ {
        let (old, new) = tokio::try_join!(catalog::schema(base), catalog::schema(head))?;
        let (there, back) = (plan_schema(&old, &new, options.identity), plan_schema(&new, &old, options.identity));
        let mut schema = SchemaChange::new(there, back);
        options.keep_wanted(&mut schema);
        if !schema.is_empty() {
            send(Piece::Schema(schema)).await?;
        }
    }
    if options.part == Part::Schema {
        return Ok(());
    }
    let (mut old, mut new) = tokio::try_join!(Catalog::load(base), Catalog::load(head))?;
    let by_name = options.identity == Identity::Name && schema_may_differ;
    let mut plans = plan(&old, &new, &files, &prepared, options, by_name);
    let oids = |of: fn(&TablePlan) -> Option<u32>| plans.iter().filter_map(of).collect::<Vec<u32>>();
    let (old_oids, new_oids) = (oids(|plan| plan.before), oids(|plan| plan.after));
    tokio::try_join!(old.load_details(base, &old_oids), new.load_details(head, &new_oids))?;
    if by_name {
        plans.retain_mut(|plan| plan.settle(&old, &new));
    }
    plans.sort_by_key(|plan| {
        let (before, after) = plan.tables(&old, &new);
        after.or(before).map(|table| (table.schema.clone(), table.name.clone()))
    });
    let mut has_labels = false;
    for plan in &plans {
        if let Some(table) = compare_table(base, head, plan.tables(&old, &new), &plan.extent, options).await? {
            if !std::mem::replace(&mut has_labels, true) {
                send(Piece::Labels(labels(base).await?)).await?;
            }
            send(Piece::Table(table)).await?;
        }
    }
    for sequence in sequences::compare(base, head, (&old, &new), &files, options).await? {
        send(Piece::Sequence(sequence)).await?;
    }
    if options.tables.is_empty() {
        for object in large_objects::compare(base, head, &files, options).await? {
            send(Piece::LargeObject(object)).await?;
        }
    }
    Ok(())
}

/// Whether a catalog that holds the schema has other blocks, or another file, than at the branch point.
async fn schema_may_differ(
    base: &Session,
    head: &Session,
    database: u32,
    changed: &[ChangedRelation],
) -> Result<bool, DiffError> {
    let (old, new) = tokio::try_join!(catalog::catalog_files(base), catalog::catalog_files(head))?;
    let here = |relation: &&ChangedRelation| relation.rel.dbnode == database || relation.rel.dbnode == 0;
    Ok(old != new || changed.iter().filter(here).any(|relation| new.contains(&relation.rel.relnode)))
}

/// A table to be compared, by its OID on each side, and how much of it.
#[derive(Debug)]
struct TablePlan {
    before: Option<u32>,
    after: Option<u32>,
    extent: Extent,
}

/// A table as both sides have it.
type Pair<'a> = (Option<&'a Table>, Option<&'a Table>);

impl TablePlan {
    fn tables<'a>(&self, old: &'a Catalog, new: &'a Catalog) -> Pair<'a> {
        (self.before.and_then(|oid| old.tables.get(&oid)), self.after.and_then(|oid| new.tables.get(&oid)))
    }

    /// With the columns known: a column of the same name may be another one, and then rows differ in blocks that nobody changed.
    /// Whether there is anything to compare.
    fn settle(&mut self, old: &Catalog, new: &Catalog) -> bool {
        if let (Some(before), Some(after)) = self.tables(old, new) {
            // A column that got another name on one side is a new one by name, with values in rows that nobody changed. With another
            // type the table would have another file, or the number is that of two columns which were added on both sides.
            let may_be_renamed = |old: &Column, new: &Column| old.attnum == new.attnum && old.type_of == new.type_of;
            let is_new = |column: &Column| !before.columns.iter().any(|old| may_be_renamed(old, column));
            let same = |column: &Column| match before.columns.iter().find(|old| old.name == column.name) {
                Some(old) => old == column,
                None => is_new(column),
            };
            if !after.columns.iter().all(same) {
                self.extent = Extent::Whole;
            }
            let names = |table: &Table| -> BTreeSet<String> {
                table.columns.iter().map(|column| column.name.clone()).collect()
            };
            return self.extent != Extent::Blocks(Vec::new()) || names(before) != names(after);
        }
        true
    }
}

/// Tables of both sides that are one.
fn pairs(old: &Catalog, new: &Catalog, identity: Identity) -> Vec<(Option<u32>, Option<u32>)> {
    match identity {
        Identity::Oid => {
            let oids: BTreeSet<u32> = old.tables.keys().chain(new.tables.keys()).copied().collect();
            let on = |catalog: &Catalog, oid: u32| catalog.tables.contains_key(&oid).then_some(oid);
            oids.into_iter().map(|oid| (on(old, oid), on(new, oid))).collect()
        }
        Identity::Name => {
            let mut by_name: BTreeMap<(&str, &str), (Option<u32>, Option<u32>)> = BTreeMap::new();
            for table in old.tables.values() {
                by_name.entry((&table.schema, &table.name)).or_default().0 = Some(table.oid);
            }
            for table in new.tables.values() {
                by_name.entry((&table.schema, &table.name)).or_default().1 = Some(table.oid);
            }
            by_name.into_values().collect()
        }
    }
}

/// Which tables to compare: those whose blocks changed, that have another file than before, that are on one side only, or
/// that a prepared transaction wrote; and all that are wanted if it takes their columns to tell.
fn plan(
    old: &Catalog,
    new: &Catalog,
    files: &ChangedFiles<'_>,
    prepared: &BTreeSet<u32>,
    options: &CompareOptions,
    all: bool,
) -> Vec<TablePlan> {
    let mut plans = Vec::new();
    for (before_oid, after_oid) in pairs(old, new, options.identity) {
        let mut plan = TablePlan { before: before_oid, after: after_oid, extent: Extent::Whole };
        let (before, after) = plan.tables(old, new);
        let tables = || [before, after].into_iter().flatten();
        if !tables().any(|table| table.logged) {
            continue;
        }
        let wanted = tables().any(|table| options.wants(&table.schema, &table.name));
        plan.extent = match (before, after) {
            (Some(before), Some(after))
                if before.file == after.file && !prepared.contains(&before.oid) && !options.whole =>
            {
                let renamed = (&before.schema, &before.name) != (&after.schema, &after.name);
                match files.get(&after.file) {
                    Some(relation) => Extent::Blocks(blocks_to_read(relation)),
                    None if renamed || all => Extent::Blocks(Vec::new()),
                    None => continue,
                }
            }
            _ => Extent::Whole,
        };
        if wanted {
            plans.push(plan);
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
    (before, after): Pair<'_>,
    extent: &Extent,
    options: &CompareOptions,
) -> Result<Option<TableChange>, DiffError> {
    let Some(shown) = after.or(before) else { return Ok(None) };
    let state = match (before, after) {
        (None, _) => TableState::Created,
        (_, None) => TableState::Dropped,
        _ => TableState::Kept,
    };
    let columns = Columns { shown, before, identity: options.identity };
    let key = columns.key();
    let side = |session, table: &Table, expressions| {
        let table = qualified(table);
        Side { session, table, expressions, condition: None }
    };
    let old = before.filter(|table| table.populated).map(|table| side(base, table, columns.old_values(table)));
    let new = after.filter(|table| table.populated).map(|table| side(head, table, columns.new_values()));
    let mut pairing = Pairing::new(key.clone(), options.memory_bytes);
    scan::pair(old.as_ref(), new.as_ref(), extent, &mut pairing).await?;
    let names = |columns: Vec<&Column>| columns.into_iter().map(|column| column.name.clone()).collect();
    let (columns_added, columns_dropped): (Vec<String>, Vec<String>) = match (before, after) {
        (Some(before), Some(_)) => (names(columns.added()), names(columns.dropped(before))),
        _ => (Vec::new(), Vec::new()),
    };
    let rows = pairing.finish(Order::Kind)?;
    let has_same_columns = columns_added.is_empty() && columns_dropped.is_empty();
    let copies = match (&old, &new) {
        (Some(old), Some(_)) if key.is_empty() && has_same_columns && !shown.materialized && !rows.is_empty() => {
            scan::copies(old, &rows).await?
        }
        _ => Spool::default(),
    };
    let renamed_from = before
        .filter(|before| (&before.schema, &before.name) != (&shown.schema, &shown.name))
        .map(|before| (before.schema.clone(), before.name.clone()));
    let change = TableChange {
        schema: shown.schema.clone(),
        name: shown.name.clone(),
        renamed_from,
        state,
        columns: names(shown.columns.iter().collect()),
        columns_added,
        columns_dropped,
        base_columns: shown.columns.iter().map(|column| columns.old(column).map(|old| old.name.clone())).collect(),
        generated: names(shown.columns.iter().filter(|column| column.generated).collect()),
        columns_left: Vec::new(),
        unguarded: Vec::new(),
        materialized_view: shown.materialized,
        key: key.iter().map(|index| shown.columns[*index].name.clone()).collect(),
        rows,
        copies,
    };
    let is_change = !change.rows.is_empty()
        || change.state != TableState::Kept
        || change.renamed_from.is_some()
        || !change.columns_added.is_empty()
        || !change.columns_dropped.is_empty();
    Ok(is_change.then_some(change))
}

/// The columns of the table that is shown, and what each is on the old side.
struct Columns<'a> {
    shown: &'a Table,
    before: Option<&'a Table>,
    identity: Identity,
}

impl<'a> Columns<'a> {
    fn same(&self, a: &Column, b: &Column) -> bool {
        match self.identity {
            Identity::Oid => a.attnum == b.attnum,
            Identity::Name => a.name == b.name,
        }
    }

    fn find(&self, table: &'a Table, column: &Column) -> Option<&'a Column> {
        table.columns.iter().find(|other| self.same(other, column))
    }

    /// What a shown column is on the old side.
    fn old(&self, column: &Column) -> Option<&'a Column> {
        self.find(self.before?, column)
    }

    fn added(&self) -> Vec<&'a Column> {
        self.shown.columns.iter().filter(|column| self.old(column).is_none()).collect()
    }

    fn dropped(&self, before: &'a Table) -> Vec<&'a Column> {
        before.columns.iter().filter(|column| self.find(self.shown, column).is_none()).collect()
    }

    fn new_values(&self) -> Vec<String> {
        self.shown.columns.iter().map(|column| quoted(&column.name)).collect()
    }

    /// Expressions for shown columns on the old side: the column, whatever its name was, or what a row would have there.
    fn old_values(&self, table: &'a Table) -> Vec<String> {
        let value = |shown: &Column| match self.find(table, shown) {
            Some(column) => quoted(&column.name),
            None => shown.missing.as_deref().map_or("null".to_owned(), literal),
        };
        self.shown.columns.iter().map(value).collect()
    }

    /// Places of the key's columns, if both sides have the same key.
    fn key(&self) -> Vec<usize> {
        let columns = |table: &'a Table| -> Vec<&'a Column> {
            let column = |attnum: &i16| table.columns.iter().find(|column| column.attnum == *attnum);
            table.key.iter().filter_map(column).collect()
        };
        let key = columns(self.shown);
        let is_same = self.before.is_none_or(|before| {
            let old = columns(before);
            old.len() == key.len() && old.iter().zip(&key).all(|(old, new)| self.same(old, new))
        });
        let place = |column: &&Column| self.shown.columns.iter().position(|other| other.attnum == column.attnum);
        if is_same { key.iter().filter_map(place).collect() } else { Vec::new() }
    }
}

fn qualified(table: &Table) -> String {
    sql::qualified(&table.schema, &table.name)
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
