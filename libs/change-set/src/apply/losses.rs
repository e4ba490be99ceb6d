//! What the schema's changes take from the target's rows that the change set says nothing of: a column is dropped without one block of
//! its table changing. It is read under the locks of whatever changes the table, before that is done, and goes into the inverse.

use std::collections::BTreeMap;

use ardent_diff::{
    ChangeSet, Order, PAIRING_BYTES_MAX, Pairing, RowChange, SequenceChange, Spool, TableChange, TableState, keys,
};
use ardent_schema_diff::{Catalog, Fate, KeptTable, LosingColumn, LosingTable, identifier, literal, qualified};

use super::Run;
use crate::guard::{self, Guarded, KeyTypes, base_columns, base_table, is_referred_to, key_places, select_list};
use crate::outcome::{Applied, ApplyError, Conflict};
use crate::target::Target;

/// Tables that lose something.
pub(super) struct Losses {
    tables: Vec<LosingTable>,
    /// Those of them that the change set has nothing of, as if it had.
    pub beside: Vec<TableChange>,
}

/// The rows of a table before the schema is changed, to be compared with those after it.
pub(super) type Snapshot = Pairing;

impl Losses {
    /// Finds them in `before`, the target's catalog, and puts what goes of them into `set`.
    pub async fn find(target: &Target<'_>, before: &Catalog, set: &mut ChangeSet) -> Result<Losses, ApplyError> {
        let ardent_schema_diff::Losses { tables, sequences } = before.losses(&set.schema.touched);
        for change in &mut set.tables {
            let Some(table) = tables.iter().find(|table| is_it(change, table)).filter(|table| !table.goes) else {
                continue;
            };
            for column in table.stored(Fate::Gone) {
                if !change.columns_dropped.contains(column) {
                    change.columns_dropped.push(column.clone());
                }
            }
        }
        let missing: Vec<&LosingTable> = tables
            .iter()
            .filter(|table| table.is_known && !set.tables.iter().any(|change| is_it(change, table)))
            .collect();
        let keys = keys_of(target, &missing).await?;
        let none = Vec::new();
        let beside = missing.iter().map(|table| change_of(table, keys.get(&table.oid).unwrap_or(&none))).collect();
        for name in named(target, sequences).await? {
            // One that is made under the name of one that goes says nothing of that.
            let is_made = |change: &SequenceChange| change.old.is_none() && change.new.is_some();
            let has_it =
                |change: &SequenceChange| (&change.schema, &change.name) == (&name.0, &name.1) && !is_made(change);
            if !set.sequences.iter().any(has_it) {
                let (schema, name) = name;
                let (old, old_called, new, new_called) = (None, None, None, None);
                set.sequences.push(SequenceChange { schema, name, old, old_called, new, new_called });
            }
        }
        Ok(Losses { tables, beside })
    }

    /// Partitions that the branch does not know would go with their table, and their rows with them.
    pub fn check(&self, applied: &mut Applied) {
        for table in self.tables.iter().filter(|table| !table.is_known) {
            let name = qualified(&table.schema, &table.name);
            let why = "the branch dropped the table that it is a partition of; the target made it meanwhile".to_owned();
            let (base, branch, target) = (None, None, None);
            applied.conflict(Conflict::Schema { object: format!("table {name}"), why, base, branch, target });
        }
    }

    fn of(&self, change: &TableChange) -> Option<&LosingTable> {
        self.tables.iter().find(|table| is_it(change, table))
    }
}

/// Whether a change is of this table, as the target has it.
fn is_it(change: &TableChange, table: &LosingTable) -> bool {
    let (schema, name) = match &change.renamed_from {
        Some((schema, name)) => (schema, name),
        None => (&change.schema, &change.name),
    };
    (schema, name) == (&table.schema, &table.name)
        && !change.materialized_view
        && match change.state {
            TableState::Created => false,
            TableState::Kept => !table.goes,
            TableState::Dropped => table.goes,
        }
}

/// A change in which no row is named. Its names are those before.
fn change_of(table: &LosingTable, key: &[i32]) -> TableChange {
    let stays = |column: &&LosingColumn| table.goes || column.fate != Fate::Gone;
    let kept: Vec<&LosingColumn> = table.columns.iter().filter(stays).collect();
    let columns: Vec<String> = kept.iter().map(|column| column.name.clone()).collect();
    let named = |number: &i32| kept.iter().find(|column| column.number == *number).map(|column| column.name.clone());
    let computed = kept.iter().filter(|column| column.is_computed);
    TableChange {
        schema: table.schema.clone(),
        name: table.name.clone(),
        renamed_from: None,
        state: if table.goes { TableState::Dropped } else { TableState::Kept },
        columns_added: Vec::new(),
        columns_dropped: if table.goes { Vec::new() } else { table.stored(Fate::Gone).cloned().collect() },
        base_columns: columns.iter().cloned().map(Some).collect(),
        generated: computed.map(|column| column.name.clone()).collect(),
        columns,
        columns_left: Vec::new(),
        unguarded: Vec::new(),
        materialized_view: false,
        // A key that loses a column is none any more.
        key: key.iter().map(named).collect::<Option<_>>().unwrap_or_default(),
        rows: Spool::default(),
        copies: Spool::default(),
    }
}

/// Numbers of the columns of each table's key, by the table's OID.
async fn keys_of(target: &Target<'_>, tables: &[&LosingTable]) -> Result<BTreeMap<u32, Vec<i32>>, ApplyError> {
    let mut found: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
    if tables.is_empty() {
        return Ok(found);
    }
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    for row in target.rows(&keys(&format!("array[{}]::oid[]", oids.join(", ")))).await? {
        let [Some(oid), Some(number)] = &row[..] else { continue };
        let (Ok(oid), Ok(number)) = (oid.parse(), number.parse()) else {
            return Err(ApplyError::Unexpected { what: format!("a key of table {oid} with column {number}") });
        };
        found.entry(oid).or_default().push(number);
    }
    Ok(found)
}

/// Schema and name of each of these sequences, which are quoted.
async fn named(
    target: &Target<'_>,
    sequences: impl IntoIterator<Item = String>,
) -> Result<Vec<(String, String)>, ApplyError> {
    let list: Vec<String> = sequences.into_iter().map(|name| format!("to_regclass({})", literal(&name))).collect();
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid in ({}) order by 1, 2",
        list.join(", ")
    );
    let rows = target.rows(&sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let mut fields = row.into_iter().flatten();
            Some((fields.next()?, fields.next()?))
        })
        .collect())
}

impl<'a> Run<'a> {
    /// Reads what goes of tables that the change set has nothing of.
    pub(super) async fn read_losses(
        &mut self,
        tables: &mut Vec<Guarded<'a>>,
        key_types: KeyTypes,
        progress: &mut impl FnMut(&str),
    ) -> Result<(), ApplyError> {
        let losses = self.losses;
        for change in &losses.beside {
            if !(change.columns_dropped.is_empty() && change.state == TableState::Kept) {
                progress(&format!("keeping what goes of {}", base_table(change)));
            }
            tables.push(match change.state {
                TableState::Dropped => guard::whole(self.target, change).await?,
                _ => guard::table(self.target, change, None, key_types, &mut self.applied, progress).await?,
            });
        }
        Ok(())
    }

    /// For each of `tables`, its rows, if they have values that are about to be converted and may not come back by themselves.
    pub(super) async fn snapshots(&mut self, tables: &[Guarded<'_>]) -> Result<Vec<Option<Snapshot>>, ApplyError> {
        let mut wanted = Vec::new();
        for guarded in tables {
            wanted.push(self.can_be_compared(guarded).await?);
        }
        let count = wanted.iter().filter(|wanted| **wanted).count().max(1);
        let mut snapshots = Vec::new();
        for (guarded, wanted) in tables.iter().zip(wanted) {
            if !wanted {
                snapshots.push(None);
                continue;
            }
            let (change, columns) = (guarded.change, base_columns(guarded.change));
            let place = |key: &usize| columns.iter().position(|column| column.0 == *key);
            let key = key_places(change).iter().filter_map(place).collect();
            let mut rows = Pairing::new(key, PAIRING_BYTES_MAX / count);
            let table = base_table(change);
            self.target.run(&format!("lock table only {table} in share row exclusive mode")).await?;
            let sql = format!("select {} from only {table}", select_list(change));
            self.target.each(&sql, |row| rows.add_base(row)).await?;
            snapshots.push(Some(rows));
        }
        Ok(snapshots)
    }

    /// Whether rows get values that may not come back by themselves, and can be told apart then. If they cannot, that is noted.
    async fn can_be_compared(&mut self, guarded: &Guarded<'_>) -> Result<bool, ApplyError> {
        let (change, losses) = (guarded.change, self.losses);
        let Some(losing) = losses.of(change).filter(|losing| !losing.goes) else { return Ok(false) };
        let converted: Vec<&String> = losing.stored(Fate::Converted).collect();
        if converted.is_empty() {
            return Ok(false);
        }
        let (table, key) = (base_table(change), key_places(change));
        let base = base_columns(change);
        let key_name = |place: &usize| base.iter().find(|column| column.0 == *place).map(|column| column.1.to_owned());
        let key_is_converted = key.iter().filter_map(key_name).any(|name| converted.contains(&&name));
        let why = if key_is_converted {
            "its key gets another type"
        } else if key.is_empty() && is_referred_to(self.target, &table).await? {
            "it has no key that both sides have, and others refer to its rows"
        } else {
            return Ok(true);
        };
        let columns = converted.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        self.applied.notes.push(format!(
            "{table}: {why}: the inverse brings back what {columns} had before only in rows that the branch changed"
        ));
        Ok(false)
    }

    /// The table's way back, under the names that it has by now, if the change set had nothing of it.
    pub(super) async fn named_as_now(
        &self,
        mut back: TableChange,
        guarded: &Guarded<'_>,
        catalogs: Option<(&Catalog, &Catalog)>,
    ) -> Result<TableChange, ApplyError> {
        let is_beside = self.losses.beside.iter().any(|change| std::ptr::eq(change, guarded.change));
        let oid = self.losses.of(guarded.change).filter(|losing| is_beside && !losing.goes).map(|losing| losing.oid);
        let kept = oid.zip(catalogs).and_then(|(oid, (before, after))| before.kept_table(after, oid));
        let Some(kept) = kept else { return Ok(back) };
        let KeptTable { before, after, columns, .. } = &kept;
        back.renamed_from = (before != after).then(|| after.clone());
        for name in back.base_columns.iter_mut().flatten() {
            if let Some(column) = columns.iter().find(|column| column.before == *name) {
                name.clone_from(&column.after);
            }
        }
        if !back.key.is_empty() && self.key_of(&kept).await? != back.key {
            // Its key went with the rest: rows are taken away and brought again, whole.
            back.key.clear();
            back.rows = apart(&back.rows)?;
        }
        Ok(back)
    }

    /// What leads from the rows that there are by now to those of before.
    pub(super) async fn differences(
        &self,
        back: &TableChange,
        guarded: &Guarded<'_>,
        mut rows: Snapshot,
    ) -> Result<Spool<RowChange>, ApplyError> {
        let table = match &back.renamed_from {
            Some((schema, name)) => qualified(schema, name),
            None => qualified(&back.schema, &back.name),
        };
        let value = |name: &Option<String>| name.as_deref().map_or("null".to_owned(), identifier);
        let list: Vec<String> = back.base_columns.iter().map(value).collect();
        let list = if list.is_empty() { "null".to_owned() } else { list.join(", ") };
        let gone: Vec<usize> =
            (0..back.base_columns.len()).filter(|place| back.base_columns[*place].is_none()).collect();
        self.target
            .each(&format!("select {list} from only {table}"), |mut row| {
                for (place, readded) in gone.iter().zip(&guarded.readded) {
                    row[*place].clone_from(readded);
                }
                rows.add_head(row)
            })
            .await?;
        let mut found = Spool::default();
        for row in rows.finish(Order::Kind)?.iter() {
            found.push(&match row? {
                RowChange::Insert { new } => RowChange::Delete { old: new },
                RowChange::Delete { old } => RowChange::Insert { new: old },
                RowChange::Update { old, new } => RowChange::Update { old: new, new: old },
            })?;
        }
        found.seal()?;
        Ok(if back.key.is_empty() { apart(&found)? } else { found })
    }
}

/// Updates as deletes and inserts.
fn apart(rows: &Spool<RowChange>) -> Result<Spool<RowChange>, ApplyError> {
    let mut found = Spool::default();
    for row in rows.iter() {
        match row? {
            RowChange::Update { old, new } => {
                found.push(&RowChange::Delete { old })?;
                found.push(&RowChange::Insert { new })?;
            }
            other => found.push(&other)?,
        }
    }
    found.seal()?;
    Ok(found)
}
