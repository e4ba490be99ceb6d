//! Values that a column's new type has no room for, of rows that get others or go.
//!
//! Columns get their types before rows are written. A branch may have done it the other way round: first mended the rows, then
//! narrowed the type. Then Postgres refuses the type, and what stands in its way is taken away first.

use std::collections::BTreeSet;

use ardent_diff::TableState;
use ardent_schema_diff::{Section, Statement, literal};

use super::{ROWS_PER_BATCH, Run};
use crate::dml;
use crate::guard::{Guarded, base_columns, base_table, key_places};
use crate::outcome::ApplyError;
use crate::target::TextRow;

/// Columns that can be null for the moment and nobody follows: not where the same transaction may not write null.
const CLEARABLE: &str = "
    select a.attname from pg_attribute a
     where a.attnum > 0 and not a.attisdropped and not a.attnotnull and a.attgenerated = ''
       and not exists (select from pg_constraint f where f.contype = 'f' and f.confrelid = a.attrelid and a.attnum = any (f.confkey))
       and a.attrelid = ";

impl<'a> Run<'a> {
    /// The schema's first part.
    pub(super) async fn change_schema(
        &mut self,
        statements: &[Statement],
        tables: &[Guarded<'_>],
    ) -> Result<(), ApplyError> {
        let may_be_in_the_way = |guarded: &Guarded<'_>| {
            guarded.change.state == TableState::Kept && !(guarded.updates.is_empty() && guarded.deletes.is_empty())
        };
        let tables: Vec<&Guarded<'_>> = tables.iter().filter(|guarded| may_be_in_the_way(guarded)).collect();
        let retypes = statements.iter().any(|statement| statement.sql.contains(" TYPE "));
        if tables.is_empty() || !retypes {
            return self.run_statements(statements, Section::BeforeRows).await;
        }
        self.target.run("savepoint schema").await?;
        let run_before = self.applied.statements;
        let refused = match self.run_statements(statements, Section::BeforeRows).await {
            Err(ApplyError::Statement { statement, source }) if is_about_values(&source) => {
                ApplyError::Statement { statement, source }
            }
            other => {
                other?;
                return self.target.run("release savepoint schema").await;
            }
        };
        self.target.run("rollback to savepoint schema").await?;
        self.applied.statements = run_before;
        let again = async {
            for guarded in tables {
                self.clear(guarded).await?;
            }
            self.run_statements(statements, Section::BeforeRows).await
        };
        // What the first refusal says is what the change set does; a second one may be about the way that was taken here.
        again.await.map_err(|_: ApplyError| refused)
    }

    /// Takes away what rows have now and will not keep.
    async fn clear(&self, guarded: &Guarded<'_>) -> Result<(), ApplyError> {
        let (change, table) = (guarded.change, base_table(guarded.change));
        let rows = self.target.rows(&format!("{CLEARABLE}{}::regclass", literal(&table))).await?;
        let clearable: BTreeSet<String> = rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
        let columns = base_columns(change);
        let key: Vec<usize> = key_places(change);
        let name_of = |place: usize| columns.iter().find(|column| column.0 == place).map(|column| column.1);
        let names: Vec<&str> = key.iter().filter_map(|place| name_of(*place)).collect();
        let clear = |row: &TextRow, places: &mut dyn Iterator<Item = usize>| {
            let at: Vec<_> = names.iter().copied().zip(row).collect();
            let set = places.filter(|place| !key.contains(place)).filter_map(name_of);
            let set: Vec<_> = set.filter(|name| clearable.contains(*name)).map(|name| (name, &None)).collect();
            (!set.is_empty()).then(|| dml::update(&table, &at, &set))
        };
        let triggers = self.still(&table, true).await?;
        for updates in guarded.updates.chunks(ROWS_PER_BATCH) {
            let updates = updates?;
            let statements = updates
                .iter()
                .filter_map(|update| clear(&update.key, &mut update.set.iter().map(|assignment| assignment.0)));
            self.one_each(&table, &statements.collect::<Vec<_>>()).await?;
        }
        for keys in guarded.deletes.chunks(ROWS_PER_BATCH) {
            let keys = keys?;
            let statements = keys.iter().filter_map(|row| clear(row, &mut columns.iter().map(|column| column.0)));
            self.one_each(&table, &statements.collect::<Vec<_>>()).await?;
        }
        self.wake(triggers).await
    }
}

/// Class 22: data exception, which is all that a value can be refused with by a type that it goes over to.
fn is_about_values(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("22"))
}
