//! Rows without a key, which are found and deleted by where they are.

use std::collections::BTreeSet;

use ardent_diff::TableState;

use super::actions::{Names, Tables};
use super::{ROWS_PER_INSERT, Run};
use crate::dml;
use crate::foreign_keys;
use crate::guard::{Guarded, base_table};
use crate::outcome::{ApplyError, Conflict};

impl Run<'_> {
    /// Rows without a key that may be there already. With all else there, they are taken to be.
    pub(super) fn check_uncounted(&mut self, tables: &[Guarded<'_>], no_objects: bool) {
        let is_to_do = |guarded: &Guarded<'_>| (guarded.writes() && !guarded.uncounted) || !guarded.places.is_empty();
        let is_all_else_there = self.applied.already_there > 0
            && self.set.schema.statements.is_empty()
            && no_objects
            && !tables.iter().any(is_to_do);
        for guarded in tables.iter().filter(|guarded| guarded.uncounted) {
            let (table, count) = (base_table(guarded.change), guarded.inserts.len());
            if is_all_else_there {
                let why = format!(
                    "all else is there already, and these {count} rows may be: {table} has no key, and it is not known how many such rows the branch point had; leave the table out, or give it a primary key"
                );
                self.applied.conflict(Conflict::Row { table, key: Vec::new(), why, columns: Vec::new() });
            } else {
                self.applied.notes.push(format!(
                    "{table} has no key, and it is not known how many rows like the {count} that are inserted the branch point had: applied once more, they would be there twice"
                ));
            }
        }
    }

    /// Deletes rows without a key.
    pub(super) async fn places(&mut self, tables: &[Guarded<'_>]) -> Result<(), ApplyError> {
        // A new one may have the name that another has yet.
        let there = tables.iter().filter(|guarded| guarded.change.state != TableState::Created);
        let tables: Tables<'_, '_> = there.map(|guarded| (base_table(guarded.change), guarded)).collect();
        let with_places = tables.iter().filter(|(_, guarded)| !guarded.places.is_empty());
        let names: BTreeSet<String> = with_places.map(|(name, _)| name.clone()).collect();
        let keys = foreign_keys::of_tables(self.target, &names).await?;
        for table in foreign_keys::children_first(&names, &keys) {
            let Some(guarded) = tables.get(&table) else { continue };
            if self.check_places(&table, guarded, &keys, &tables).await? {
                // What goes with those takes others with it.
                let all = foreign_keys::of_tables(self.target, &tables.keys().cloned().collect()).await?;
                self.check_deletes(Names::Before, &all, &tables).await?;
            }
            if !self.applied.conflicts.is_empty() {
                return Ok(());
            }
            self.delete_places(guarded).await?;
        }
        Ok(())
    }

    async fn delete_places(&mut self, guarded: &Guarded<'_>) -> Result<(), ApplyError> {
        let table = base_table(guarded.change);
        let triggers = self.still(&table, !guarded.places.is_empty()).await?;
        for places in guarded.places.chunks(ROWS_PER_INSERT) {
            let places = places?;
            let list: Vec<String> = places.iter().flatten().map(dml::value).collect();
            let sql = format!("DELETE FROM ONLY {table} WHERE ctid = any (array[{}]::tid[])", list.join(", "));
            let count: u64 = self.target.counts(&sql).await?.iter().sum();
            if count != places.len() as u64 {
                return Err(ApplyError::Unexpected {
                    what: format!("{count} instead of {} rows deleted from {table}", places.len()),
                });
            }
            self.applied.rows.deleted += count;
        }
        self.wake(triggers).await
    }
}
