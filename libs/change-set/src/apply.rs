//! Applies a change set, in one transaction.

mod actions;
mod computed;
mod labels;
mod large_objects;
mod losses;
mod making_way;
mod places;
mod report;
mod sequences;
mod views;

use std::collections::{BTreeMap, BTreeSet};

use ardent_diff::{ChangeSet, Part, SchemaChange, TableChange};
use ardent_schema_diff::{Catalog, Identity, Section, Statement, Touched, identifier, literal, plan, qualified};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use self::actions::{Names, Tables, may_be_gone};
use self::losses::Losses;
use self::report::Report;
use crate::choice::RowChoice;
use crate::dml;
use crate::exchange::{self, Moving};
use crate::foreign_keys::{self, ForeignKey};
use crate::guard::{self, Guarded, KeyTypes, Prefer, RowUpdate, base_table, key_places};
use crate::inverse;
use crate::outcome::{Applied, ApplyError, Conflict};
use crate::schema_choice::undoing;
use crate::selection::{Selection, select};
use crate::target::{Target, TextRow};

/// Most rows that one insert brings.
const ROWS_PER_INSERT: usize = 500;
/// Most updates or deletes that are sent at once.
const ROWS_PER_BATCH: usize = 200;

/// What to apply, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyOptions {
    /// These tables' rows, as `name` or `schema.name`. With no tables, rows and objects, everything is meant; with any, only that.
    pub tables: Vec<String>,
    /// These rows.
    pub rows: Vec<RowChoice>,
    /// These objects of the schema by their paths ([`Touched::path`](ardent_schema_diff::Touched)), with all that is a part of them.
    pub objects: Vec<String>,
    /// What chosen objects need is taken along; else it is an error that they need it.
    pub with_needed: bool,
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
            rows: Vec::new(),
            objects: Vec::new(),
            with_needed: false,
            part: Part::Whole,
            dry_run: false,
            prefer: None,
            lock_timeout_ms: 5_000,
            statement_timeout_ms: 300_000,
        }
    }
}

/// A change set that was applied, with nothing committed yet. Dropped, the transaction ends with the connection, and with it everything
/// that was done.
pub struct Prepared<'a> {
    target: Target<'a>,
    applied: Applied,
    /// The transaction is open, and is to be committed; else all was taken back.
    commits: bool,
}

impl Prepared<'_> {
    /// What was done, or what stands in the way of it.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Whether [`Prepared::end`] changes the target: what undoes it is to be durable before.
    pub fn changes_target(&self) -> bool {
        self.commits && !self.applied.is_unchanged()
    }

    /// Commits what is to be committed. With [`ApplyError::Unknown`] it is not known whether the target was changed.
    pub async fn end(self) -> Result<Applied, ApplyError> {
        if self.commits {
            let changes_nothing = self.target.is_closed() || self.applied.is_unchanged();
            self.target.run("COMMIT").await.map_err(|error| error.of_commit(changes_nothing))?;
        }
        Ok(self.applied)
    }
}

/// Applies `set` to the database of `client`, and does not commit it. With conflicts, or `dry_run`, the target is as it was. `progress`
/// gets a line now and then. Cancelled midway, the transaction ends with the connection, and with it everything that was done.
pub async fn prepare<'a>(
    client: &'a Client,
    set: &ChangeSet,
    options: &ApplyOptions,
    mut progress: impl FnMut(&str),
) -> Result<Prepared<'a>, ApplyError> {
    let target = Target::begin(client, options.lock_timeout_ms, options.statement_timeout_ms).await?;
    let result = select_and_run(&target, set, options, &mut progress).await;
    let is_free = matches!(&result, Ok(applied) if applied.conflicts.is_empty());
    if is_free && !options.dry_run {
        return Ok(Prepared { target, applied: result?, commits: true });
    }
    let ended = target.run("ROLLBACK").await;
    let applied = match result {
        Ok(applied) => ended.map(|()| applied)?,
        // Rows that fit one by one and not together: somebody else's rows are in the way.
        Err(ApplyError::Statement { source, .. }) if is_constraint(&source) => {
            let said = source.as_db_error();
            let message = said.map_or_else(|| source.to_string(), |error| error.message().to_owned());
            let detail = said.and_then(|error| error.detail().map(str::to_owned));
            Applied {
                conflicts: vec![Conflict::Constraint { message, detail }],
                inverse: inverse::of(set),
                ..Applied::default()
            }
        }
        Err(error) => return Err(error),
    };
    Ok(Prepared { target, applied, commits: false })
}

/// [`prepare`], and commits: for targets that are thrown away if this does not come to its end.
pub async fn apply(
    client: &Client,
    set: &ChangeSet,
    options: &ApplyOptions,
    progress: impl FnMut(&str),
) -> Result<Applied, ApplyError> {
    prepare(client, set, options, progress).await?.end().await
}

async fn select_and_run(
    target: &Target<'_>,
    set: &ChangeSet,
    options: &ApplyOptions,
    progress: &mut impl FnMut(&str),
) -> Result<Applied, ApplyError> {
    // What tables and columns are called depends on it even where only rows are wanted.
    let before = if set.schema.touched.is_empty() { Catalog::default() } else { target.catalog().await? };
    let there = before.definitions();
    let touched = &set.schema.touched;
    let Selection { mut set, rows_chosen, taken_along, already_there, notes, conflicts } =
        select(set, options, &there)?;
    labels::leave_out(&mut set.labels, touched);
    let losses = Losses::find(target, &before, &mut set).await?;
    let inverse = inverse::of(&set);
    let applied = Applied { inverse, taken_along, already_there, notes, conflicts, ..Applied::default() };
    let mut run = Run { target, set: &set, losses: &losses, options, rows_chosen, applied };
    run.check_schema(&there);
    if !run.are_labels_known().await? {
        return Ok(run.applied);
    }
    losses.check(&mut run.applied);
    run.all(&before, progress).await?;
    Ok(run.applied)
}

/// Class 23: integrity constraint violation.
fn is_constraint(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code: &SqlState| code.code().starts_with("23"))
}

struct Run<'a> {
    target: &'a Target<'a>,
    /// All of it is meant.
    set: &'a ChangeSet,
    losses: &'a Losses,
    options: &'a ApplyOptions,
    /// Sequences follow the tables whose rows were chosen.
    rows_chosen: bool,
    applied: Applied,
}

impl<'a> Run<'a> {
    async fn all(&mut self, before: &Catalog, progress: &mut impl FnMut(&str)) -> Result<(), ApplyError> {
        let set = self.set;
        let statements = &set.schema.statements;
        self.applied.notes.extend(set.schema.not_covered.iter().map(|what| format!("not brought over: {what}")));
        let mut tables = Vec::new();
        let key_types = if making_way::retypes(statements) { KeyTypes::MayDiffer } else { KeyTypes::Same };
        for change in set.tables.iter().filter(|change| !change.materialized_view) {
            progress(&format!("comparing {} rows of {}", change.rows.len(), base_table(change)));
            let applied = &mut self.applied;
            tables.push(guard::table(self.target, change, self.options.prefer, key_types, applied, progress).await?);
        }
        let objects = self.check_large_objects().await?;
        self.check_uncounted(&tables, objects.is_empty());
        if !self.applied.conflicts.is_empty() {
            return Ok(());
        }
        self.read_losses(&mut tables, key_types, progress).await?;
        let snapshots = self.snapshots(&tables).await?;
        let may_go = self.sequences_that_may_go().await?;
        let sequences = self.sequences_before().await?;
        // Before columns go and tables are rewritten, which moves rows to other places.
        self.places(&tables).await?;
        if !self.applied.conflicts.is_empty() {
            return Ok(());
        }
        self.change_schema(statements, &mut tables).await?;
        progress("writing rows");
        self.rows(&tables, progress).await?;
        if !self.applied.conflicts.is_empty() {
            return Ok(());
        }
        self.target.run("set constraints all immediate").await?;
        progress("finishing the schema");
        self.run_statements(statements, Section::AfterRows).await?;
        self.refresh_views(&tables).await?;
        for change in objects {
            self.large_object(change).await?;
        }
        self.keep_gone_sequences(may_go).await?;
        let after = if statements.is_empty() { None } else { Some(self.target.catalog().await?) };
        let catalogs = after.as_ref().map(|after| (before, after));
        if let Some((before, after)) = catalogs {
            let back = SchemaChange::new(plan(after, before, Identity::Oid), plan(before, after, Identity::Oid));
            self.applied.inverse.schema = undoing(&back, &set.schema)?;
        }
        self.applied.inverse.tables = self.tables_back(&tables, snapshots, catalogs).await?;
        // Last: a sequence does not go back with a transaction.
        for setting in self.check_sequences(&sequences).await? {
            self.sequence(setting).await?;
        }
        Ok(())
    }

    /// What the target has of all that is to be changed must be what the branch point had.
    fn check_schema(&mut self, there: &BTreeMap<String, String>) {
        let touched = &self.set.schema.touched;
        let known: BTreeSet<&String> = touched.iter().map(|touched| &touched.path).collect();
        // Names that the branch takes from what had them, which is looked at for itself; its parts' names with it.
        let goes =
            |touched: &&Touched| touched.old.is_some() && (touched.new.is_none() || touched.new_path != touched.path);
        let freed: BTreeSet<&str> = touched.iter().filter(goes).map(|touched| touched.path.as_str()).collect();
        let is_freed = |path: &str| {
            let wholes = path.match_indices(" of ").map(|(at, of)| &path[at + of.len()..]);
            freed.contains(path) || wholes.into_iter().any(|whole| freed.contains(whole))
        };
        for one in touched {
            let now = there.get(&one.path);
            let why = match (&one.old, now) {
                (None, Some(_)) if is_freed(&one.path) => "",
                (None, Some(_)) => "both made it",
                (Some(_), None) => "the branch changed or dropped it; the target has none",
                (Some(old), Some(now)) if old != now && one.old == one.new => {
                    "the branch's other changes make it again as it was; the target changed it"
                }
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
    }

    async fn run_statements(&mut self, statements: &[Statement], section: Section) -> Result<(), ApplyError> {
        for statement in statements.iter().filter(|statement| statement.section == section) {
            self.target.run(&statement.sql).await?;
            self.applied.statements += 1;
        }
        Ok(())
    }

    /// Rows with the names of after the schema's first part.
    async fn rows(&mut self, tables: &[Guarded<'_>], progress: &mut impl FnMut(&str)) -> Result<(), ApplyError> {
        let name = |change: &TableChange| qualified(&change.schema, &change.name);
        let written: Tables<'_, '_> =
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
            let names = column_names(guarded.change);
            let columns = exchange::moving(self.target, table, guarded, &names).await?;
            for name in self.updated_identities(table, guarded).await? {
                let name = identifier(&name);
                let alter = format!("ALTER TABLE {table} ALTER COLUMN {name} SET GENERATED");
                self.target.run(&format!("{alter} BY DEFAULT")).await?;
                asleep.push(format!("{alter} ALWAYS"));
            }
            // Now: later there are checks that wait, and then no table can be altered.
            for column in columns.values().filter(|column| column.not_null) {
                let name = identifier(&column.name);
                self.target.run(&format!("ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL")).await?;
                asleep.push(format!("ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL"));
            }
            moving.insert(table.clone(), columns);
        }
        self.check_updates(&keys, &written).await?;
        let cascading = self.check_deletes(Names::After, &keys, &written).await?;
        if !self.applied.conflicts.is_empty() {
            return Ok(());
        }
        // Else a row is updated before what it referred to goes.
        if !foreign_keys::is_in_order(&order, &keys) {
            for key in cascading {
                self.refer_elsewhere(key, &written, &moving).await?;
            }
        }
        for table in &order {
            let Some(guarded) = written.get(table) else { continue };
            self.delete_rows(table, guarded, &keys, &written).await?;
            if let Some(columns) = moving.get(table) {
                self.clear_moving(table, guarded, columns).await?;
            }
            self.update_rows(table, guarded, progress).await?;
        }
        for table in order.iter().rev() {
            let Some(guarded) = written.get(table) else { continue };
            self.insert_rows(table, guarded, progress).await?;
        }
        self.target.run("set constraints all immediate").await?;
        self.wake(asleep).await?;
        for sql in foreign_keys::restore(&waiting) {
            self.target.run(&sql).await?;
        }
        Ok(())
    }

    /// Columns that Postgres numbers itself, always, and that rows get other numbers in: a column that is new on the branch has numbered
    /// the rows that were there.
    async fn updated_identities(&self, table: &str, guarded: &Guarded<'_>) -> Result<Vec<String>, ApplyError> {
        let name = literal(table);
        let sql = format!("select attname from pg_attribute where attrelid = {name}::regclass and attidentity = 'a'");
        let always: Vec<String> =
            self.target.rows(&sql).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
        let mut found = BTreeSet::new();
        if always.is_empty() {
            return Ok(Vec::new());
        }
        for update in guarded.updates.iter() {
            let places = update?.set.into_iter().map(|(place, ..)| place);
            found.extend(places.map(|place| &guarded.change.columns[place]).filter(|column| always.contains(column)));
        }
        Ok(found.into_iter().cloned().collect())
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

    /// Deletes come before updates: a unique value may go from one row to another.
    async fn delete_rows(
        &mut self,
        table: &str,
        guarded: &Guarded<'_>,
        foreign_keys: &[ForeignKey],
        tables: &Tables<'_, '_>,
    ) -> Result<(), ApplyError> {
        let names = key_names(guarded.change);
        let may_be_gone = may_be_gone(table, &names, foreign_keys, tables)?;
        for keys in guarded.deletes.chunks(ROWS_PER_BATCH) {
            let delete = |key: &TextRow| dml::delete(table, &names.iter().copied().zip(key).collect::<Vec<_>>());
            let statements: Vec<String> = keys?.iter().map(delete).collect();
            if may_be_gone {
                self.target.run(&statements.join("; ")).await?;
                self.applied.rows.deleted += statements.len() as u64;
            } else {
                self.applied.rows.deleted += self.one_each(table, &statements).await?;
            }
        }
        Ok(())
    }

    /// Takes unique values that go from row to row away from all of them first.
    async fn clear_moving(
        &self,
        table: &str,
        guarded: &Guarded<'_>,
        moving: &BTreeMap<usize, Moving>,
    ) -> Result<(), ApplyError> {
        if moving.is_empty() {
            return Ok(());
        }
        let names = key_names(guarded.change);
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
        progress: &mut impl FnMut(&str),
    ) -> Result<(), ApplyError> {
        let names = key_names(guarded.change);
        let columns = column_names(guarded.change);
        let mut report = Report::new("updated", table, guarded.updates.len());
        for updates in guarded.updates.chunks(ROWS_PER_BATCH) {
            let update = |update: &RowUpdate| {
                let key: Vec<_> = names.iter().copied().zip(&update.key).collect();
                let set = update.set.iter().filter_map(|(place, _, value)| Some((*columns.get(*place)?, value)));
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
        progress: &mut impl FnMut(&str),
    ) -> Result<(), ApplyError> {
        let names = column_names(guarded.change);
        let change = guarded.change;
        let places: Vec<usize> =
            (0..names.len()).filter(|place| !change.generated.contains(&change.columns[*place])).collect();
        let columns: Vec<&str> = places.iter().map(|place| names[*place]).collect();
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
}

/// Whether a foreign key can only be checked when all rows are there.
fn must_wait(key: &ForeignKey, order: &[String], written: &Tables<'_, '_>) -> bool {
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

fn column_names(change: &TableChange) -> Vec<&str> {
    change.columns.iter().map(String::as_str).collect()
}

fn key_names(change: &TableChange) -> Vec<&str> {
    key_places(change).into_iter().map(|place| change.columns[place].as_str()).collect()
}
