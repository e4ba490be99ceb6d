//! Applies a change set, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use ardent_diff::{ChangeSet, LargeObjectChange, Part, SequenceChange, TableChange, TableState};
use ardent_schema_diff::{Section, Statement, Touched, identifier, literal, qualified};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::dml;
use crate::exchange::{self, Moving};
use crate::foreign_keys::{self, ForeignKey};
use crate::guard::{self, Guarded, Prefer, RowUpdate, base_table, key_places};
use crate::inverse;
use crate::outcome::{Applied, ApplyError, Conflict};
use crate::target::{Target, TextRow};

/// Most rows that one insert brings.
const ROWS_PER_INSERT: usize = 500;
/// Most updates or deletes that are sent at once.
const ROWS_PER_BATCH: usize = 200;
/// After so many rows it is said how far the writing is.
const ROWS_PER_REPORT: u64 = 50_000;
/// Bytes of a page of a large object (`LOBLKSIZE`).
const LARGE_OBJECT_PAGE: i64 = 2048;

/// What to apply, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyOptions {
    /// Only these tables' rows, as `name` or `schema.name`; empty: all.
    pub tables: Vec<String>,
    /// Schema, rows, or both.
    pub part: Part,
    /// Do everything, and take it back.
    pub dry_run: bool,
    /// Whose value counts where branch and target changed a row in different ways; absent: that is a conflict.
    pub prefer: Option<Prefer>,
    /// Longest wait for a lock.
    pub lock_timeout_ms: u64,
    /// Longest run of one statement; 0: no limit.
    pub statement_timeout_ms: u64,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        ApplyOptions {
            tables: Vec::new(),
            part: Part::Whole,
            dry_run: false,
            prefer: None,
            lock_timeout_ms: 5_000,
            statement_timeout_ms: 300_000,
        }
    }
}

/// Applies `set` to the database of `client`. With conflicts, or `dry_run`, the target is as it was. `progress` gets a line now
/// and then. Cancelled midway, the transaction ends with the connection, and with it everything that was done.
pub async fn apply(
    client: &Client,
    set: &ChangeSet,
    options: &ApplyOptions,
    mut progress: impl FnMut(&str),
) -> Result<Applied, ApplyError> {
    let target = Target::begin(client, options.lock_timeout_ms, options.statement_timeout_ms).await?;
    let run = Run {
        target: &target,
        set,
        options,
        applied: Applied { inverse: inverse::of(set), ..Applied::default() },
        branch_names: false,
    };
    let result = run.all(&mut progress).await;
    let keep = matches!(&result, Ok(applied) if applied.conflicts.is_empty()) && !options.dry_run;
    let ended = target.run(if keep { "COMMIT" } else { "ROLLBACK" }).await;
    match result {
        Ok(applied) => ended.map(|()| applied),
        // Rows that fit one by one and not together: somebody else's rows are in the way.
        Err(ApplyError::Statement { source, .. }) if is_constraint(&source) => {
            let said = source.as_db_error();
            let message = said.map_or_else(|| source.to_string(), |error| error.message().to_owned());
            let detail = said.and_then(|error| error.detail().map(str::to_owned));
            Ok(Applied {
                conflicts: vec![Conflict::Constraint { message, detail }],
                inverse: inverse::of(set),
                ..Applied::default()
            })
        }
        Err(error) => Err(error),
    }
}

/// Class 23: integrity constraint violation.
fn is_constraint(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code: &SqlState| code.code().starts_with("23"))
}

struct Run<'a> {
    target: &'a Target<'a>,
    set: &'a ChangeSet,
    options: &'a ApplyOptions,
    applied: Applied,
    /// Whether rows are written under the names that the branch gave: its schema is brought over first.
    branch_names: bool,
}

impl<'a> Run<'a> {
    async fn all(mut self, progress: &mut impl FnMut(&str)) -> Result<Applied, ApplyError> {
        let set = self.set;
        let with_schema = self.options.part != Part::Rows && !set.schema.is_empty() && self.options.tables.is_empty();
        let mut statements: &[Statement] = &[];
        if with_schema && self.check_schema().await? {
            statements = &set.schema.statements;
            self.branch_names = true;
            self.applied.inverse.schema = inverse::schema(&set.schema);
            self.applied.notes.extend(set.schema.not_covered.iter().map(|what| format!("not brought over: {what}")));
        }
        let mut tables = Vec::new();
        if self.options.part != Part::Schema {
            let wanted: Vec<&TableChange> =
                set.tables.iter().filter(|change| self.wants(change) && !change.materialized_view).collect();
            for change in wanted {
                if change.state == TableState::Created && !self.branch_names {
                    let object = format!("table {}", base_table(change));
                    let why =
                        "it is new on the branch: bring the schema over too, or leave it out with --table".to_owned();
                    self.applied.conflict(Conflict::Schema { object, why, base: None, branch: None, target: None });
                    continue;
                }
                progress(&format!("comparing {} rows of {}", change.rows.len(), base_table(change)));
                tables.push(guard::table(self.target, change, self.options.prefer, &mut self.applied, progress).await?);
            }
        }
        let sequences = self.check_sequences().await?;
        let objects = self.check_large_objects().await?;
        if !self.applied.conflicts.is_empty() {
            return Ok(self.applied);
        }
        // Before columns go and tables are rewritten, which moves rows to other places.
        for guarded in &tables {
            self.delete_places(guarded).await?;
        }
        self.run_statements(statements, Section::BeforeRows).await?;
        progress("writing rows");
        self.rows(&tables, progress).await?;
        if !self.applied.conflicts.is_empty() {
            return Ok(self.applied);
        }
        self.target.run("set constraints all immediate").await?;
        progress("finishing the schema");
        self.run_statements(statements, Section::AfterRows).await?;
        self.refresh_views().await?;
        for change in objects {
            self.large_object(change).await?;
        }
        // Last: a sequence does not go back with a transaction.
        for change in sequences.into_iter().filter(|_| !self.options.dry_run) {
            self.sequence(change).await?;
        }
        self.applied.inverse.tables = tables.iter().map(inverse::table).collect::<Result<_, _>>()?;
        Ok(self.applied)
    }

    fn wants(&self, change: &TableChange) -> bool {
        let full = format!("{}.{}", change.schema, change.name);
        self.options.tables.is_empty()
            || self.options.tables.iter().any(|wanted| *wanted == change.name || *wanted == full)
    }

    /// Whether the schema's statements are to be run: not if the target has all of it already.
    async fn check_schema(&mut self) -> Result<bool, ApplyError> {
        let there = self.target.catalog().await?.definitions();
        let touched = &self.set.schema.touched;
        let made_already = |touched: &Touched| {
            there.get(&touched.new_path) == touched.new.as_ref()
                && (touched.new.is_some() || !there.contains_key(&touched.path))
        };
        if !touched.is_empty() && touched.iter().all(made_already) {
            self.applied.already_there += touched.len() as u64;
            return Ok(false);
        }
        let known: BTreeSet<&String> = touched.iter().map(|touched| &touched.path).collect();
        for one in touched {
            let now = there.get(&one.path);
            let why = match (&one.old, now) {
                (None, Some(_)) => "both made it",
                (Some(_), None) => "the branch changed or dropped it; the target has none",
                (Some(old), Some(now)) if old != now => "both changed it",
                _ => "",
            };
            if !why.is_empty() {
                self.applied.conflict(Conflict::Schema {
                    object: one.path.clone(),
                    why: why.to_owned(),
                    base: one.old.clone(),
                    branch: one.new.clone(),
                    target: now.cloned(),
                });
            }
            if one.new.is_none() {
                let ending = format!(" of {}", one.path);
                for (path, definition) in
                    there.iter().filter(|(path, _)| path.ends_with(&ending) && !known.contains(path))
                {
                    let why = format!("the branch dropped {}; the target gave it this", one.path);
                    let target = Some(definition.clone());
                    self.applied.conflict(Conflict::Schema {
                        object: path.clone(),
                        why,
                        base: None,
                        branch: None,
                        target,
                    });
                }
            }
        }
        Ok(true)
    }

    async fn run_statements(&mut self, statements: &[Statement], section: Section) -> Result<(), ApplyError> {
        for statement in statements.iter().filter(|statement| statement.section == section) {
            self.target.run(&statement.sql).await?;
            self.applied.statements += 1;
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

    /// Rows with the names of after the schema's first part.
    async fn rows(&mut self, tables: &[Guarded<'_>], progress: &mut impl FnMut(&str)) -> Result<(), ApplyError> {
        let data_only = !self.branch_names;
        let name =
            |change: &TableChange| if data_only { base_table(change) } else { qualified(&change.schema, &change.name) };
        let written: BTreeMap<String, &Guarded<'_>> =
            tables.iter().filter(|guarded| guarded.writes()).map(|guarded| (name(guarded.change), guarded)).collect();
        let names: BTreeSet<String> = written.keys().cloned().collect();
        let keys = foreign_keys::of_tables(self.target, &names).await?;
        let order = foreign_keys::children_first(&names, &keys);
        let waiting: Vec<ForeignKey> = keys.iter().filter(|key| must_wait(key, &order, &written)).cloned().collect();
        for sql in foreign_keys::defer(&waiting) {
            self.target.run(&sql).await?;
        }
        self.target.run("set constraints all deferred").await?;
        let (mut asleep, mut moving) = (Vec::new(), BTreeMap::new());
        for table in &order {
            asleep.extend(self.still(table, true).await?);
            let Some(guarded) = written.get(table) else { continue };
            let names = column_names(guarded.change, data_only);
            let columns = exchange::moving(self.target, table, guarded, &names).await?;
            // Now: later there are checks that wait, and then no table can be altered.
            for column in columns.values().filter(|column| column.not_null) {
                let name = identifier(&column.name);
                self.target.run(&format!("ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL")).await?;
                asleep.push(format!("ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL"));
            }
            moving.insert(table.clone(), columns);
        }
        for table in &order {
            let Some(guarded) = written.get(table) else { continue };
            self.check_cascades(table, guarded, &keys).await?;
            if !self.applied.conflicts.is_empty() {
                return Ok(());
            }
            self.delete_rows(table, guarded, data_only).await?;
            if let Some(columns) = moving.get(table) {
                self.clear_moving(table, guarded, data_only, columns).await?;
            }
            self.update_rows(table, guarded, data_only, progress).await?;
        }
        for table in order.iter().rev() {
            let Some(guarded) = written.get(table) else { continue };
            self.insert_rows(table, guarded, data_only, progress).await?;
        }
        self.target.run("set constraints all immediate").await?;
        self.wake(asleep).await?;
        for sql in foreign_keys::restore(&waiting) {
            self.target.run(&sql).await?;
        }
        Ok(())
    }

    /// Puts a table's own triggers and rules to sleep: what they did on the branch is in the change set already. Gives what wakes
    /// them. Foreign keys are checked as ever.
    async fn still(&self, table: &str, needed: bool) -> Result<Vec<String>, ApplyError> {
        if !needed {
            return Ok(Vec::new());
        }
        let name = literal(table);
        let sql = format!(
            "select 'TRIGGER', tgname, tgenabled from pg_trigger where tgrelid = {name}::regclass and not tgisinternal and tgenabled in ('O', 'A') \
             union all select 'RULE', rulename, ev_enabled from pg_rewrite where ev_class = {name}::regclass and rulename <> '_RETURN' and ev_enabled in ('O', 'A')"
        );
        let mut waking = Vec::new();
        for row in self.target.rows(&sql).await? {
            let [Some(word), Some(trigger), Some(state)] = &row[..] else { continue };
            let trigger = identifier(trigger);
            self.target.run(&format!("ALTER TABLE {table} DISABLE {word} {trigger}")).await?;
            let enable = if state == "A" { "ENABLE ALWAYS" } else { "ENABLE" };
            waking.push(format!("ALTER TABLE {table} {enable} {word} {trigger}"));
        }
        Ok(waking)
    }

    async fn wake(&self, statements: Vec<String>) -> Result<(), ApplyError> {
        for sql in statements {
            self.target.run(&sql).await?;
        }
        Ok(())
    }

    /// Rows that the target added below a row that is deleted would go, or change, without a word.
    async fn check_cascades(
        &mut self,
        table: &str,
        guarded: &Guarded<'_>,
        keys: &[ForeignKey],
    ) -> Result<(), ApplyError> {
        let names = key_names(guarded.change, !self.branch_names);
        for key in keys.iter().filter(|key| key.acts_on_delete && key.references == table && key.table != table) {
            for chunk in guarded.deletes.chunks(ROWS_PER_INSERT) {
                let chunk = chunk?;
                let sql = format!(
                    "select count(*) from {} where ({}) in (select {} from only {table} where {})",
                    key.table,
                    key.columns.join(", "),
                    key.referenced_columns.join(", "),
                    dml::any_of(&names, &chunk)
                );
                let rows = self.target.rows(&sql).await?;
                let count: u64 = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).unwrap_or(0);
                if count > 0 {
                    let why =
                        format!("the branch deleted rows that {count} rows of the target's {} refer to", key.table);
                    self.applied.conflict(Conflict::Row {
                        table: table.to_owned(),
                        key: Vec::new(),
                        why,
                        columns: Vec::new(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Deletes come before updates: a unique value may go from one row to another.
    async fn delete_rows(&mut self, table: &str, guarded: &Guarded<'_>, data_only: bool) -> Result<(), ApplyError> {
        let names = key_names(guarded.change, data_only);
        for keys in guarded.deletes.chunks(ROWS_PER_BATCH) {
            let delete = |key: &TextRow| dml::delete(table, &names.iter().copied().zip(key).collect::<Vec<_>>());
            let statements: Vec<String> = keys?.iter().map(delete).collect();
            self.applied.rows.deleted += self.one_each(table, &statements).await?;
        }
        Ok(())
    }

    /// Takes unique values that go from row to row away from all of them first.
    async fn clear_moving(
        &self,
        table: &str,
        guarded: &Guarded<'_>,
        data_only: bool,
        moving: &BTreeMap<usize, Moving>,
    ) -> Result<(), ApplyError> {
        if moving.is_empty() {
            return Ok(());
        }
        let names = key_names(guarded.change, data_only);
        for updates in guarded.updates.chunks(ROWS_PER_BATCH) {
            let clear = |update: &RowUpdate| {
                let key: Vec<_> = names.iter().copied().zip(&update.key).collect();
                let columns = update.set.iter().filter_map(|(place, ..)| moving.get(place));
                let set: Vec<_> = columns.map(|column| (column.name.as_str(), &None)).collect();
                (!set.is_empty()).then(|| dml::update(table, &key, &set))
            };
            let statements: Vec<String> = updates?.iter().filter_map(clear).collect();
            self.one_each(table, &statements).await?;
        }
        Ok(())
    }

    async fn update_rows(
        &mut self,
        table: &str,
        guarded: &Guarded<'_>,
        data_only: bool,
        progress: &mut impl FnMut(&str),
    ) -> Result<(), ApplyError> {
        let names = key_names(guarded.change, data_only);
        let columns = column_names(guarded.change, data_only);
        let mut report = Report::new("updated", table, guarded.updates.len());
        for updates in guarded.updates.chunks(ROWS_PER_BATCH) {
            let update = |update: &RowUpdate| {
                let key: Vec<_> = names.iter().copied().zip(&update.key).collect();
                let set = update.set.iter().filter_map(|(place, _, value)| Some(((*columns.get(*place)?)?, value)));
                let set: Vec<_> = set.collect();
                (!set.is_empty()).then(|| dml::update(table, &key, &set))
            };
            let statements: Vec<String> = updates?.iter().filter_map(update).collect();
            let count = self.one_each(table, &statements).await?;
            self.applied.rows.updated += count;
            report.add(count, progress);
        }
        Ok(())
    }

    /// Runs statements that each change one row.
    async fn one_each(&self, table: &str, statements: &[String]) -> Result<u64, ApplyError> {
        if statements.is_empty() {
            return Ok(0);
        }
        let counts = self.target.counts(&statements.join("; ")).await?;
        if counts.len() != statements.len() || counts.iter().any(|count| *count != 1) {
            return Err(ApplyError::Unexpected {
                what: format!("a row of {table} that was locked is not there any more"),
            });
        }
        Ok(statements.len() as u64)
    }

    async fn insert_rows(
        &mut self,
        table: &str,
        guarded: &Guarded<'_>,
        data_only: bool,
        progress: &mut impl FnMut(&str),
    ) -> Result<(), ApplyError> {
        let names = column_names(guarded.change, data_only);
        let change = guarded.change;
        let places: Vec<usize> = (0..names.len())
            .filter(|place| names[*place].is_some() && !change.generated.contains(&change.columns[*place]))
            .collect();
        let columns: Vec<&str> = places.iter().filter_map(|place| names[*place]).collect();
        let mut report = Report::new("inserted", table, guarded.inserts.len());
        for chunk in guarded.inserts.chunks(ROWS_PER_INSERT) {
            let chunk = chunk?;
            let values = chunk.iter().map(|row| places.iter().map(|place| &row[*place]).collect());
            let count: u64 = self.target.counts(&dml::insert(table, &columns, values)).await?.iter().sum();
            if count != chunk.len() as u64 {
                return Err(ApplyError::Unexpected {
                    what: format!("{count} instead of {} rows inserted into {table}", chunk.len()),
                });
            }
            self.applied.rows.inserted += count;
            report.add(count, progress);
        }
        Ok(())
    }

    async fn refresh_views(&mut self) -> Result<(), ApplyError> {
        for change in self
            .set
            .tables
            .iter()
            .filter(|change| change.materialized_view && change.state == TableState::Kept && self.wants(change))
        {
            if self.options.part != Part::Schema {
                self.target
                    .run(&format!("REFRESH MATERIALIZED VIEW {}", qualified(&change.schema, &change.name)))
                    .await?;
            }
        }
        Ok(())
    }

    /// The sequences that are to be set.
    async fn check_sequences(&mut self) -> Result<Vec<&'a SequenceChange>, ApplyError> {
        let mut wanted = Vec::new();
        if self.options.part == Part::Schema || !self.options.tables.is_empty() {
            return Ok(wanted);
        }
        let new_ones = self.branch_names;
        for change in
            self.set.sequences.iter().filter(|change| change.new.is_some() && (change.old.is_some() || new_ones))
        {
            if change.old.is_none() || change.old == change.new && change.old_called == change.new_called {
                wanted.push(change);
                continue;
            }
            let name = qualified(&change.schema, &change.name);
            let there = self.target.rows(&format!("select to_regclass({}) is not null", literal(&name))).await?;
            if there.first().and_then(|row| row.first()?.as_deref()) != Some("t") {
                // Renamed by the schema's statements, or gone: its value is set by its new name.
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

    async fn sequence(&mut self, change: &SequenceChange) -> Result<(), ApplyError> {
        let (Some(value), called) = (change.new, change.new_called.unwrap_or(true)) else { return Ok(()) };
        let name = literal(&qualified(&change.schema, &change.name));
        self.target.rows(&format!("select setval({name}::regclass, {value}, {called})")).await?;
        if change.old.is_some() {
            self.applied.inverse.sequences.push(inverse::sequence(change));
        }
        Ok(())
    }

    async fn check_large_objects(&mut self) -> Result<Vec<&'a LargeObjectChange>, ApplyError> {
        let mut wanted = Vec::new();
        if self.options.part == Part::Schema || !self.options.tables.is_empty() {
            return Ok(wanted);
        }
        for change in &self.set.large_objects {
            let oid = change.oid;
            let rows =
                self.target.rows(&format!("select count(*) from pg_largeobject_metadata where oid = {oid}")).await?;
            let exists = rows.first().and_then(|row| row.first()?.as_deref()) != Some("0");
            let mut conflict = |why: &str| self.applied.conflict(Conflict::LargeObject { oid, why: why.to_owned() });
            match (change.state, exists) {
                (TableState::Created, true) => conflict("both made one with this number"),
                (TableState::Kept, false) => conflict("the branch changed it; the target deleted it"),
                (TableState::Dropped, false) => self.applied.already_there += 1,
                (TableState::Created, false) => wanted.push(change),
                (TableState::Kept | TableState::Dropped, true) => {
                    let mut same = true;
                    for page in change.pages.iter() {
                        let page = page?;
                        let sql = format!(
                            "select encode(lo_get({oid}, {}, {LARGE_OBJECT_PAGE}), 'hex')",
                            i64::from(page.number) * LARGE_OBJECT_PAGE
                        );
                        let rows = self.target.rows(&sql).await?;
                        let there = rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default();
                        same &= trimmed(&there) == trimmed(page.old.as_deref().unwrap_or_default());
                    }
                    if same {
                        wanted.push(change)
                    } else {
                        conflict("both changed it, or the target changed what the branch deleted")
                    }
                }
            }
        }
        Ok(wanted)
    }

    async fn large_object(&mut self, change: &LargeObjectChange) -> Result<(), ApplyError> {
        let oid = change.oid;
        match change.state {
            TableState::Dropped => self.target.rows(&format!("select lo_unlink({oid})")).await?,
            TableState::Created => self.target.rows(&format!("select lo_create({oid})")).await?,
            TableState::Kept => Vec::new(),
        };
        if change.state != TableState::Dropped {
            let mut end = None;
            for page in change.pages.iter() {
                let page = page?;
                let at = i64::from(page.number) * LARGE_OBJECT_PAGE;
                match &page.new {
                    Some(content) => {
                        self.target.rows(&format!("select lo_put({oid}, {at}, decode('{content}', 'hex'))")).await?;
                        let (length, before) =
                            (content.len() as i64 / 2, page.old.as_ref().map_or(0, |old| old.len() as i64 / 2));
                        if length < before {
                            end = Some(at + length);
                        }
                    }
                    None => end = end.or(Some(at)),
                }
            }
            if let Some(end) = end {
                // 131072 | 262144: open for writing and reading.
                self.target.rows(&format!("select lo_truncate64(lo_open({oid}, 393216), {end})")).await?;
            }
        }
        self.applied.inverse.large_objects.push(inverse::large_object(change)?);
        Ok(())
    }
}

/// Says how far long work is.
struct Report<'a> {
    verb: &'a str,
    table: &'a str,
    all: u64,
    done: u64,
    said: u64,
}

impl<'a> Report<'a> {
    fn new(verb: &'a str, table: &'a str, all: u64) -> Report<'a> {
        Report { verb, table, all, done: 0, said: 0 }
    }

    fn add(&mut self, count: u64, progress: &mut impl FnMut(&str)) {
        self.done += count;
        if self.done >= self.said + ROWS_PER_REPORT {
            self.said = self.done;
            progress(&format!("{} {} of {} rows of {}", self.verb, self.done, self.all, self.table));
        }
    }
}

/// A page's end that is all zero is the same as one that is not there.
fn trimmed(hex: &str) -> &str {
    hex.trim_end_matches('0')
}

/// Whether a foreign key can only be checked when all rows are there.
fn must_wait(key: &ForeignKey, order: &[String], written: &BTreeMap<String, &Guarded<'_>>) -> bool {
    let place = |table: &String| order.iter().position(|other| other == table);
    let updates = |table: &String| written.get(table).is_some_and(|guarded| !guarded.updates.is_empty());
    match (place(&key.table), place(&key.references)) {
        _ if key.partitioned => true,
        (Some(child), Some(parent)) => child >= parent || updates(&key.table) || updates(&key.references),
        // Deleted and inserted again under the same key.
        (None, Some(_)) => true,
        _ => false,
    }
}

/// What each column is called in the target when rows are written; absent: the target does not have it.
fn column_names(change: &TableChange, data_only: bool) -> Vec<Option<&str>> {
    if data_only {
        change.base_columns.iter().map(Option::as_deref).collect()
    } else {
        change.columns.iter().map(|name| Some(name.as_str())).collect()
    }
}

fn key_names(change: &TableChange, data_only: bool) -> Vec<&str> {
    let names = column_names(change, data_only);
    key_places(change).into_iter().filter_map(|place| *names.get(place)?).collect()
}
