//! Columns that Postgres computed and no longer does. Postgres has no statement that gives a column its expression back: on the way
//! back it goes, with what rows have in it, and comes anew behind the others.

use ardent_diff::{RowChange, Spool, SpoolError, TableChange, TableState};
use ardent_schema_diff::{Catalog, KeptTable};

use super::Run;
use super::losses::Snapshot;
use crate::guard::Guarded;
use crate::inverse;
use crate::outcome::ApplyError;

impl Run<'_> {
    /// The inverse's tables; `catalogs` are from before and after the change. Those that lost expressions are among them even if no row of
    /// theirs was changed: what rows have in such a column is lost with it, unless the inverse's own inverse knows it.
    pub(super) async fn tables_back(
        &self,
        tables: &[Guarded<'_>],
        snapshots: Vec<Option<Snapshot>>,
        catalogs: Option<(&Catalog, &Catalog)>,
    ) -> Result<Vec<TableChange>, ApplyError> {
        let mut dropped = catalogs.map(|(before, after)| before.dropped_expressions(after)).unwrap_or_default();
        let mut back = Vec::new();
        for (guarded, snapshot) in tables.iter().zip(snapshots) {
            let mut table = self.named_as_now(inverse::table(guarded)?, guarded, catalogs).await?;
            if let Some(snapshot) = snapshot {
                table.rows = self.differences(&table, guarded, snapshot).await?;
            }
            if let Some((before, _)) = catalogs.filter(|_| table.state == TableState::Kept) {
                let computed = before.computed_columns(&table.schema, &table.name);
                table = unwritten(table, &computed)?;
            }
            let is_it = |one: &KeptTable| (&one.before.0, &one.before.1) == (&table.schema, &table.name);
            let place = dropped.iter().position(is_it).filter(|_| table.state == TableState::Kept);
            back.push(match place {
                Some(place) => computed_again(table, &dropped.swap_remove(place))?,
                None => table,
            });
        }
        for table in dropped {
            let key = self.key_of(&table).await?;
            back.push(computed_again(without_rows(&table, key), &table)?);
        }
        Ok(back)
    }

    /// Columns of the key that the target's table has by now, by the names that they had before; none if they had none.
    pub(super) async fn key_of(&self, table: &KeptTable) -> Result<Vec<String>, ApplyError> {
        let rows = self.target.rows(&ardent_diff::keys(&format!("array[{}]::oid[]", table.oid))).await?;
        let column = |row: &Vec<Option<String>>| {
            let number: i32 = row.get(1)?.as_deref()?.parse().ok()?;
            let column = table.columns.iter().find(|column| column.number == number)?;
            Some(column.before.clone())
        };
        Ok(rows.iter().map(column).collect::<Option<_>>().unwrap_or_default())
    }
}

/// The way back of a table of which no row was changed.
fn without_rows(table: &KeptTable, key: Vec<String>) -> TableChange {
    let KeptTable { before, after, columns, .. } = table;
    TableChange {
        schema: before.0.clone(),
        name: before.1.clone(),
        renamed_from: (before != after).then(|| after.clone()),
        state: TableState::Kept,
        columns: columns.iter().map(|column| column.before.clone()).collect(),
        columns_added: Vec::new(),
        columns_dropped: Vec::new(),
        base_columns: columns.iter().map(|column| Some(column.after.clone())).collect(),
        generated: columns.iter().filter(|column| column.is_computed).map(|column| column.before.clone()).collect(),
        columns_left: Vec::new(),
        unguarded: Vec::new(),
        materialized_view: false,
        key,
        rows: Spool::default(),
        copies: Spool::default(),
    }
}

/// The way back of a table, where columns that come back are computed: what rows had in them nobody writes.
fn unwritten(mut back: TableChange, computed: &[String]) -> Result<TableChange, SpoolError> {
    let comes_back = |name: &&String| computed.contains(name) && !back.generated.contains(name);
    let names: Vec<String> = back.columns_added.iter().filter(comes_back).cloned().collect();
    if names.is_empty() {
        return Ok(back);
    }
    let places: Vec<usize> = (0..back.columns.len()).filter(|place| names.contains(&back.columns[*place])).collect();
    back.generated.extend(names);
    let mut rows = Spool::default();
    for row in back.rows.iter() {
        match row? {
            RowChange::Update { old, new } if is_same_but(&places, &old, &new) => {}
            other => rows.push(&other)?,
        }
    }
    rows.seal()?;
    back.rows = rows;
    Ok(back)
}

/// The way back of a table, where columns that lost their expression are dropped and added.
fn computed_again(mut back: TableChange, table: &KeptTable) -> Result<TableChange, SpoolError> {
    let mut places = Vec::new();
    for column in table.columns.iter().filter(|column| column.is_freed()) {
        let Some(place) = back.columns.iter().position(|name| *name == column.before) else { continue };
        if let Some(base) = back.base_columns.get_mut(place) {
            *base = None;
        }
        back.columns_added.push(column.before.clone());
        back.columns_dropped.push(column.after.clone());
        back.generated.push(column.before.clone());
        places.push(place);
    }
    let loses_key = back.key.iter().any(|name| places.iter().any(|place| back.columns[*place] == *name));
    let mut rows = Spool::default();
    for row in back.rows.iter() {
        match row? {
            // What Postgres computes nobody writes.
            RowChange::Update { old, new } if is_same_but(&places, &old, &new) => {}
            RowChange::Update { old, new } if loses_key => {
                rows.push(&RowChange::Delete { old })?;
                rows.push(&RowChange::Insert { new })?;
            }
            other => rows.push(&other)?,
        }
    }
    rows.seal()?;
    back.rows = rows;
    if loses_key {
        back.key.clear();
    }
    Ok(back)
}

fn is_same_but(places: &[usize], old: &[Option<String>], new: &[Option<String>]) -> bool {
    let mut values = old.iter().zip(new).enumerate();
    values.all(|(place, (old, new))| old == new || places.contains(&place))
}

#[cfg(test)]
mod tests {
    use ardent_schema_diff::KeptColumn;

    use super::*;

    fn column(number: i32, name: &str, was_computed: bool) -> KeptColumn {
        KeptColumn { number, before: name.into(), after: format!("{name}_new"), was_computed, is_computed: false }
    }

    #[test]
    fn a_column_is_dropped_and_added_and_rows_that_differ_in_it_alone_stay() {
        let name = |name: &str| ("public".to_owned(), name.to_owned());
        let columns = vec![column(1, "id", false), column(2, "twice", true), column(3, "note", false)];
        let table = KeptTable { oid: 16_384, before: name("t"), after: name("u"), columns };
        let row = |id: &str, twice: &str, note: &str| [id, twice, note].map(|text| Some(text.to_owned())).to_vec();
        let update = |note: &str| RowChange::Update { old: row("1", "9", "a"), new: row("1", "2", note) };
        let back = |key: &[&str], rows: Vec<RowChange>| {
            let key = key.iter().map(|&name| name.to_owned()).collect();
            let back = TableChange { rows: Spool::of(rows).expect("short"), ..without_rows(&table, key) };
            computed_again(back, &table).expect("in memory")
        };
        let found = back(&["id"], vec![update("a"), update("b")]);
        assert_eq!(found.rows.to_vec().expect("in memory"), [update("b")]);
        assert_eq!(found.renamed_from, Some(name("u")));
        assert_eq!(found.base_columns, [Some("id_new".to_owned()), None, Some("note_new".to_owned())]);
        assert_eq!((found.columns_added, found.columns_dropped), (vec!["twice".into()], vec!["twice_new".into()]));
        assert_eq!((found.generated, found.key), (vec!["twice".into()], vec!["id".into()]));
        // A key that goes pairs no rows.
        let found = back(&["twice"], vec![update("b")]);
        let apart = [RowChange::Delete { old: row("1", "9", "a") }, RowChange::Insert { new: row("1", "2", "b") }];
        assert_eq!((found.key, found.rows.to_vec().expect("in memory")), (vec![], apart.to_vec()));
    }
}
