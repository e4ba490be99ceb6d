//! Sequences: set behind everything else, because they do not go back with a transaction.

use std::collections::BTreeSet;

use ardent_diff::{RowChange, SequenceChange};
use ardent_schema_diff::{literal, qualified};

use super::Run;
use crate::inverse;
use crate::outcome::ApplyError;

/// A sequence that may be about to go.
pub(super) struct MayGo {
    /// Its OID, as text: another one may have its name afterwards.
    oid: Option<String>,
    /// What sets it to where it is.
    back: SequenceChange,
}

impl<'a> Run<'a> {
    /// Where sequences are that may be about to go.
    pub(super) async fn sequences_that_may_go(&self) -> Result<Vec<MayGo>, ApplyError> {
        let mut found = Vec::new();
        for change in self.set.sequences.iter().filter(|change| change.new.is_none()) {
            let name = qualified(&change.schema, &change.name);
            let oid = self.oid_of(&name).await?;
            if oid.is_none() {
                continue;
            }
            let rows = self.target.rows(&format!("select last_value, is_called from {name}")).await?;
            let value = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
            let called = rows.first().and_then(|row| row.get(1)?.as_deref()) == Some("t");
            let (schema, name) = (change.schema.clone(), change.name.clone());
            let (old, old_called) = (None, None);
            let back = SequenceChange { schema, name, old, old_called, new: value, new_called: Some(called) };
            found.push(MayGo { oid, back });
        }
        Ok(found)
    }

    /// The OID of the relation of that name, as text.
    async fn oid_of(&self, name: &str) -> Result<Option<String>, ApplyError> {
        let rows = self.target.rows(&format!("select to_regclass({})::oid", literal(name))).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// What is gone of them comes back where it was.
    pub(super) async fn keep_gone_sequences(&mut self, before: Vec<MayGo>) -> Result<(), ApplyError> {
        for MayGo { oid, back } in before {
            if self.oid_of(&qualified(&back.schema, &back.name)).await? != oid {
                self.applied.inverse.sequences.push(back);
            }
        }
        Ok(())
    }

    /// The sequences that are to be set, by the names that they have when everything else is done.
    pub(super) async fn check_sequences(&mut self) -> Result<Vec<&'a SequenceChange>, ApplyError> {
        let mut wanted = Vec::new();
        let belonging = if self.rows_chosen { Some(self.sequences_of_tables().await?) } else { None };
        for change in self.set.sequences.iter().filter(|change| change.new.is_some()) {
            let name = qualified(&change.schema, &change.name);
            if let Some(belonging) = &belonging {
                if !belonging.contains(&name) {
                    continue;
                }
                self.applied.notes.push(format!("sequence {name} belongs to a table that gets rows: it is set too"));
            }
            if change.old.is_none() || change.old == change.new && change.old_called == change.new_called {
                wanted.push(change);
                continue;
            }
            let there = self.target.rows(&format!("select to_regclass({}) is not null", literal(&name))).await?;
            if there.first().and_then(|row| row.first()?.as_deref()) != Some("t") {
                wanted.push(change);
                continue;
            }
            let rows = self.target.rows(&format!("select last_value, is_called from {name}")).await?;
            let value: Option<i64> = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
            let called = rows.first().and_then(|row| row.get(1)?.as_deref()) == Some("t");
            if value == change.old && Some(called) == change.old_called {
                wanted.push(change);
            } else if value >= change.new {
                self.applied.already_there += 1;
            } else {
                // Both gave out values; the one that is further serves both.
                self.applied.notes.push(format!(
                    "sequence {name} moved on both sides: it goes on from where the branch is, which is further"
                ));
                wanted.push(change);
            }
        }
        Ok(wanted)
    }

    /// Sequences that give values to columns of tables which get new rows.
    async fn sequences_of_tables(&self) -> Result<BTreeSet<String>, ApplyError> {
        let mut found = BTreeSet::new();
        for change in &self.set.tables {
            let mut rows = change.rows.iter();
            let inserts = rows.find_map(|row| match row {
                Ok(RowChange::Insert { .. }) => Some(Ok(())),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            });
            if inserts.transpose()?.is_none() {
                continue;
            }
            let table = literal(&qualified(&change.schema, &change.name));
            let sql = format!(
                "select s.oid::regclass from pg_class s join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = s.oid
                  where s.relkind = 'S' and d.refclassid = 'pg_class'::regclass and d.refobjid = to_regclass({table}) and d.deptype in ('a', 'i')
                 union select s.oid::regclass from pg_attrdef f join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid
                    join pg_class s on d.refclassid = 'pg_class'::regclass and s.oid = d.refobjid and s.relkind = 'S'
                  where f.adrelid = to_regclass({table})"
            );
            found.extend(self.target.rows(&sql).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()));
        }
        Ok(found)
    }

    /// Sets a sequence. A dry run, which could not take that back, looks whether it is there.
    pub(super) async fn sequence(&mut self, change: &SequenceChange) -> Result<(), ApplyError> {
        let (Some(value), called) = (change.new, change.new_called.unwrap_or(true)) else { return Ok(()) };
        let name = qualified(&change.schema, &change.name);
        let sequence = format!("to_regclass({})", literal(&name));
        let set = match self.options.dry_run {
            true => format!("select {sequence}"),
            false => format!("select setval({sequence}, {value}, {called})"),
        };
        if self.target.rows(&set).await?.first().is_none_or(|row| row.first().is_none_or(Option::is_none)) {
            self.applied.notes.push(format!("sequence {name} is not in the target: it is not set"));
            return Ok(());
        }
        self.applied.sequences += 1;
        if change.old.is_some() {
            self.applied.inverse.sequences.push(inverse::sequence(change));
        }
        Ok(())
    }
}
