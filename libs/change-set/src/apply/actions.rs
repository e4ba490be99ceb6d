//! What foreign keys do by themselves to rows that refer to written ones (`ON DELETE CASCADE`, `ON UPDATE SET NULL` and the like).
//! It is done to rows that the change set itself deletes or gives another reference, and to no others: rows that the target added
//! would go, or change, without a word.

use std::collections::BTreeMap;

use ardent_diff::{Order, PAIRING_BYTES_MAX, Pairing, RowChange, TableChange};
use ardent_schema_diff::identifier;

use super::{ROWS_PER_BATCH, ROWS_PER_INSERT, Run, key_names};
use crate::dml;
use crate::exchange::Moving;
use crate::foreign_keys::{Action, ForeignKey};
use crate::guard::{Guarded, RowUpdate, key_places};
use crate::outcome::{ApplyError, Conflict};
use crate::target::Target;

/// Tables of the change set by the names that they have in the target.
pub(super) type Tables<'t, 'a> = BTreeMap<String, &'t Guarded<'a>>;

/// Which names tables and columns have in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Those of before the schema's first part.
    Before,
    /// Those of after it.
    After,
}

impl Names {
    fn column(self, change: &TableChange, place: usize) -> Option<&str> {
        match self {
            Names::Before => change.base_columns.get(place)?.as_deref(),
            Names::After => change.columns.get(place).map(String::as_str),
        }
    }

    fn key(self, change: &TableChange) -> Vec<&str> {
        key_places(change).into_iter().filter_map(|place| self.column(change, place)).collect()
    }

    /// Whether an update sets one of these columns.
    fn sets(self, update: &RowUpdate, change: &TableChange, columns: &[String]) -> bool {
        let is_one = |name: &str| columns.iter().any(|column| column == name);
        update.set.iter().any(|(place, ..)| self.column(change, *place).is_some_and(is_one))
    }
}

/// Rows that refer to those of a table by a foreign key.
struct Referring<'k> {
    key: &'k ForeignKey,
    names: Names,
    /// How many.
    count: u64,
    /// Those of them that are in tables of the change set and have a key: how many, and their keys.
    keyed: BTreeMap<String, (u64, Pairing)>,
}

impl<'k> Referring<'k> {
    fn by(key: &'k ForeignKey, names: Names) -> Referring<'k> {
        Referring { key, names, count: 0, keyed: BTreeMap::new() }
    }

    /// Takes those in that refer to rows of `table` that are so.
    async fn add(
        &mut self,
        target: &Target<'_>,
        table: &str,
        rows: &str,
        tables: &Tables<'_, '_>,
    ) -> Result<(), ApplyError> {
        let condition = self.key.referring(table, rows);
        // Tables that inherit have no part in the foreign key; partitions have.
        let only = if self.key.tables.len() > 1 { "" } else { "only " };
        let sql = format!("select count(*) from {only}{} where {condition}", self.key.table);
        let counted = target.rows(&sql).await?;
        let count = counted.first().and_then(|row| row.first()?.as_deref()?.parse::<u64>().ok());
        let count = count.ok_or_else(|| ApplyError::Unexpected { what: format!("{counted:?} for a count of rows") })?;
        if count == 0 {
            return Ok(());
        }
        self.count += count;
        let mine: Vec<(&String, &&Guarded<'_>)> =
            tables.iter().filter(|(name, _)| self.key.is_of(name.as_str())).collect();
        let bytes_max = PAIRING_BYTES_MAX / mine.len().max(1);
        for (name, guarded) in mine {
            let columns: Vec<String> = self.names.key(guarded.change).into_iter().map(identifier).collect();
            if columns.is_empty() {
                continue;
            }
            let (count, keys) =
                self.keyed.entry(name.clone()).or_insert_with(|| (0, Pairing::new(Vec::new(), bytes_max)));
            let sql = format!("select {} from only {name} where {condition}", columns.join(", "));
            let take = |key| {
                *count += 1;
                keys.add_base(key)
            };
            target.each(&sql, take).await?;
        }
        Ok(())
    }

    /// How many the change set itself deletes or gives another reference, and how many it leaves. `action` is done to all.
    fn split(self, action: Action, tables: &Tables<'_, '_>) -> Result<(u64, u64), ApplyError> {
        // Before the schema is changed no row is updated: one that goes is not there any more when it is to be.
        let updates = self.names == Names::After || action == Action::Set;
        let mut own = 0;
        for (name, (count, mut keys)) in self.keyed {
            let Some(guarded) = tables.get(&name).filter(|_| count > 0) else { continue };
            for key in guarded.deletes.iter() {
                keys.add_head(key?)?;
            }
            for update in guarded.updates.iter() {
                let update = update?;
                if updates && self.names.sets(&update, guarded.change, &self.key.columns) {
                    keys.add_head(update.key)?;
                }
            }
            let mut others = 0;
            for row in keys.finish(Order::Kind)?.iter() {
                others += u64::from(matches!(row?, RowChange::Delete { .. }));
            }
            own += count.saturating_sub(others);
        }
        Ok((own, self.count.saturating_sub(own)))
    }
}

/// Whether rows of a table that the change set deletes may have gone with others that it deletes.
pub(super) fn may_be_gone(
    table: &str,
    key: &[&str],
    keys: &[ForeignKey],
    tables: &Tables<'_, '_>,
) -> Result<bool, ApplyError> {
    let of_table: Vec<&ForeignKey> = keys.iter().filter(|foreign| foreign.is_of(table)).collect();
    if !of_table.iter().any(|foreign| foreign.on_delete == Action::Cascade) {
        return Ok(false);
    }
    // A row whose key follows another's value that is changed is not found under its own, and is there all the same.
    let of_key = |foreign: &&&ForeignKey| {
        foreign.on_update != Action::None && foreign.columns.iter().any(|column| key.contains(&column.as_str()))
    };
    for foreign in of_table.iter().filter(of_key) {
        for (_, guarded) in tables.iter().filter(|(name, _)| foreign.refers_to(name)) {
            for update in guarded.updates.iter() {
                if Names::After.sets(&update?, guarded.change, &foreign.referenced_columns) {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

impl Run<'_> {
    /// Rows that refer to values which the change set changes.
    pub(super) async fn check_updates(
        &mut self,
        keys: &[ForeignKey],
        tables: &Tables<'_, '_>,
    ) -> Result<(), ApplyError> {
        for key in keys.iter().filter(|key| key.on_update != Action::None) {
            for (table, guarded) in tables {
                if !key.refers_to(table) {
                    continue;
                }
                let (change, names) = (guarded.change, key_names(guarded.change));
                let mut referring = Referring::by(key, Names::After);
                for updates in guarded.updates.chunks(ROWS_PER_INSERT) {
                    let mut updates = updates?;
                    updates.retain(|update| Names::After.sets(update, change, &key.referenced_columns));
                    let changed: Vec<_> = updates.into_iter().map(|update| update.key).collect();
                    if !changed.is_empty() {
                        referring.add(self.target, table, &dml::any_of(&names, &changed), tables).await?;
                    }
                }
                let (_, others) = referring.split(key.on_update, tables)?;
                if others > 0 {
                    let columns = key.referenced_columns.join(", ");
                    let (which, name) = (refer(others, key), identifier(&key.name));
                    self.in_the_way(
                        table,
                        format!("the branch changed {columns} of rows that {which} to, and {name} would change those"),
                    );
                }
            }
        }
        Ok(())
    }

    /// Rows that refer to rows which the change set deletes, in any of its tables: before the first goes, and others with it. Gives the foreign
    /// keys by which rows of its own go.
    pub(super) async fn check_deletes<'k>(
        &mut self,
        names: Names,
        keys: &'k [ForeignKey],
        tables: &Tables<'_, '_>,
    ) -> Result<Vec<&'k ForeignKey>, ApplyError> {
        let mut cascading = Vec::new();
        for key in keys.iter().filter(|key| key.on_delete != Action::None) {
            let mut goes = false;
            for (table, guarded) in tables {
                if !key.refers_to(table) {
                    continue;
                }
                let columns = names.key(guarded.change);
                let mut referring = Referring::by(key, names);
                for chunk in guarded.deletes.chunks(ROWS_PER_INSERT) {
                    referring.add(self.target, table, &dml::any_of(&columns, &chunk?), tables).await?;
                }
                let (own, others) = referring.split(key.on_delete, tables)?;
                if others > 0 {
                    self.in_the_way(table, format!("the branch deleted rows that {} to", refer(others, key)));
                }
                goes |= own > 0 && key.on_delete == Action::Cascade;
            }
            cascading.extend(goes.then_some(key));
        }
        Ok(cascading)
    }

    /// Rows without a key are deleted and written anew when they change: what refers to them by a unique value would go with them, or
    /// be changed, and not come back. Gives whether rows of the change set's own go.
    pub(super) async fn check_places(
        &mut self,
        table: &str,
        guarded: &Guarded<'_>,
        keys: &[ForeignKey],
        tables: &Tables<'_, '_>,
    ) -> Result<bool, ApplyError> {
        let mut goes = false;
        for key in keys.iter().filter(|key| key.on_delete != Action::None && key.refers_to(table)) {
            let mut referring = Referring::by(key, Names::Before);
            for places in guarded.places.chunks(ROWS_PER_INSERT) {
                let list: Vec<String> = places?.iter().flatten().map(dml::value).collect();
                let rows = format!("ctid = any (array[{}]::tid[])", list.join(", "));
                // From now on nobody begins to refer to them.
                self.target.run(&format!("select from only {table} where {rows} for update")).await?;
                referring.add(self.target, table, &rows, tables).await?;
            }
            let (own, others) = referring.split(key.on_delete, tables)?;
            goes |= own > 0 && key.on_delete == Action::Cascade;
            if others > 0 {
                let (which, name) = (refer(others, key), identifier(&key.name));
                self.in_the_way(
                    table,
                    format!(
                        "the branch changed or deleted rows without a key that {which} to, and {name} would delete or change those; give {table} a primary key first"
                    ),
                );
            }
        }
        Ok(goes)
    }

    /// Rows that the change set gives another reference must not go by the old one: they get the new one first.
    pub(super) async fn refer_elsewhere(
        &self,
        key: &ForeignKey,
        tables: &Tables<'_, '_>,
        moving: &BTreeMap<String, BTreeMap<usize, Moving>>,
    ) -> Result<(), ApplyError> {
        for (table, guarded) in tables {
            if !key.is_of(table) {
                continue;
            }
            let (change, names) = (guarded.change, key_names(guarded.change));
            let is_moving = |place: &usize| moving.get(table).is_some_and(|columns| columns.contains_key(place));
            for updates in guarded.updates.chunks(ROWS_PER_BATCH) {
                let again = |update: &RowUpdate| {
                    let at: Vec<_> = names.iter().copied().zip(&update.key).collect();
                    let mut set: Vec<(&str, &Option<String>)> = Vec::new();
                    for (place, _, new) in &update.set {
                        let name = change.columns.get(*place).filter(|name| key.columns.contains(*name));
                        let new = if is_moving(place) { &None } else { new };
                        set.extend(name.map(|name| (name.as_str(), new)));
                    }
                    (!set.is_empty()).then(|| dml::update(table, &at, &set))
                };
                let statements: Vec<String> = updates?.iter().filter_map(again).collect();
                self.one_each(table, &statements).await?;
            }
        }
        Ok(())
    }

    fn in_the_way(&mut self, table: &str, why: String) {
        let (table, key, columns) = (table.to_owned(), Vec::new(), Vec::new());
        self.applied.conflict(Conflict::Row { table, key, why, columns });
    }
}

/// `3 rows of the target's app.lines refer`.
fn refer(count: u64, key: &ForeignKey) -> String {
    match count {
        1 => format!("a row of the target's {} refers", key.table),
        count => format!("{count} rows of the target's {} refer", key.table),
    }
}
