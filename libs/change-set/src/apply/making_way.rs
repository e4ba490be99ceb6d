//! Values that a column's new type has no room for, of rows that get others or go.
//!
//! Columns get their types before rows are written. A branch may have done it the other way round: first mended the rows, then
//! narrowed the type. Then Postgres refuses the type, and what stands in its way is taken away first.

use std::collections::BTreeMap;

use ardent_diff::TableState;
use ardent_schema_diff::{Section, Statement, identifier, literal};

use super::{ROWS_PER_BATCH, Run};
use crate::dml;
use crate::guard::{Guarded, base_columns, base_table, key_places};
use crate::outcome::ApplyError;
use crate::target::TextRow;

/// Columns that nobody follows, and whether they must not be null.
const CLEARABLE: &str = "
    select a.attname, a.attnotnull from pg_attribute a
     where a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
       and not exists (select from pg_constraint f where f.contype = 'f' and f.confrelid = a.attrelid and a.attnum = any (f.confkey))
       and a.attrelid = ";

impl<'a> Run<'a> {
    /// The schema's first part.
    pub(super) async fn change_schema(
        &mut self,
        statements: &[Statement],
        tables: &mut [Guarded<'_>],
    ) -> Result<(), ApplyError> {
        let may_be_in_the_way = |guarded: &Guarded<'_>| {
            guarded.change.state == TableState::Kept && !(guarded.updates.is_empty() && guarded.deletes.is_empty())
        };
        if !tables.iter().any(may_be_in_the_way) || !retypes(statements) {
            return self.run_statements(statements, Section::BeforeRows).await;
        }
        self.target.run("savepoint schema").await?;
        let run_before = self.applied.statements;
        let refused = match self.run_statements(statements, Section::BeforeRows).await {
            Err(error) if error.is_about_values() => error,
            other => {
                other?;
                return self.target.run("release savepoint schema").await;
            }
        };
        self.target.run("rollback to savepoint schema").await?;
        self.applied.statements = run_before;
        let again = async {
            for guarded in tables.iter_mut().filter(|guarded| may_be_in_the_way(guarded)) {
                self.clear(guarded, statements).await?;
            }
            self.run_statements(statements, Section::BeforeRows).await
        };
        // What the first refusal says is what the change set does; a second one may be about the way that was taken here.
        again.await.map_err(|_: ApplyError| refused)
    }

    /// Takes away what rows have now and will not keep: whole rows, where nobody refers to any. A column that must not be null gets its new
    /// value now, if its old type has that.
    async fn clear(&mut self, guarded: &mut Guarded<'_>, statements: &[Statement]) -> Result<(), ApplyError> {
        let (change, table) = (guarded.change, base_table(guarded.change));
        let rows = self.target.rows(&format!("{CLEARABLE}{}::regclass", literal(&table))).await?;
        let column = |row: TextRow| {
            let mut fields = row.into_iter();
            Some((fields.next()??, fields.next()?? == "t"))
        };
        let clearable: BTreeMap<String, bool> = rows.into_iter().filter_map(column).collect();
        let columns = base_columns(change);
        let key: Vec<usize> = key_places(change);
        let name_of = |place: usize| columns.iter().find(|column| column.0 == place).map(|column| column.1);
        let names: Vec<&str> = key.iter().filter_map(|place| name_of(*place)).collect();
        let is_retyped = |place: usize| {
            let retype = change.columns.get(place).map(|name| format!(" ALTER COLUMN {} TYPE ", identifier(name)));
            retype.is_some_and(|retype| statements.iter().any(|statement| statement.sql.contains(&retype)))
        };
        let clear = |row: &TextRow, news: &[(usize, Option<&Option<String>>)]| {
            let at: Vec<_> = names.iter().copied().zip(row).collect();
            let mut set = Vec::new();
            for (place, new) in news.iter().filter(|(place, _)| !key.contains(place) && is_retyped(*place)) {
                let Some(name) = name_of(*place) else { continue };
                match (clearable.get(name), new) {
                    (Some(false), _) => set.push((name, &None)),
                    (Some(true), Some(new)) => set.push((name, *new)),
                    _ => {}
                }
            }
            (!set.is_empty()).then(|| dml::update(&table, &at, &set))
        };
        let triggers = self.still(&table, true).await?;
        for updates in guarded.updates.chunks(ROWS_PER_BATCH) {
            let updates = updates?;
            let cleared = updates.iter().filter_map(|update| {
                let news: Vec<_> = update.set.iter().map(|(place, _, new)| (*place, Some(new))).collect();
                clear(&update.key, &news)
            });
            self.one_each(&table, &cleared.collect::<Vec<_>>()).await?;
        }
        let is_referred_to = format!(
            "select exists (select from pg_constraint where contype = 'f' and confrelid = {}::regclass)",
            literal(&table)
        );
        if self.target.rows(&is_referred_to).await? == [[Some("f".to_owned())]] {
            for keys in std::mem::take(&mut guarded.deletes).chunks(ROWS_PER_BATCH) {
                let delete = |key: &TextRow| dml::delete(&table, &names.iter().copied().zip(key).collect::<Vec<_>>());
                let statements: Vec<String> = keys?.iter().map(delete).collect();
                self.applied.rows.deleted += self.one_each(&table, &statements).await?;
            }
            guarded.deletes.seal()?;
        }
        for keys in guarded.deletes.chunks(ROWS_PER_BATCH) {
            let keys = keys?;
            let all: Vec<_> = columns.iter().map(|column| (column.0, None)).collect();
            let cleared = keys.iter().filter_map(|row| clear(row, &all));
            self.one_each(&table, &cleared.collect::<Vec<_>>()).await?;
        }
        self.wake(triggers).await
    }
}

/// Whether some column may get another type.
pub(super) fn retypes(statements: &[Statement]) -> bool {
    statements.iter().any(|statement| statement.sql.contains(" TYPE "))
}
