//! A change set as if the branch had changed only what is wanted and the target has not: what is applied then is applied whole.

use std::collections::{BTreeMap, BTreeSet};

use ardent_diff::{ChangeSet, Part, RowChange, SequenceChange, Spool, TableChange, TableState};
use ardent_schema_diff::{literal, reused_labels};

use crate::apply::ApplyOptions;
use crate::choice::{RowChoice, names_table};
use crate::guard::key_places;
use crate::outcome::{ApplyError, Conflict};
use crate::schema_choice::{SchemaChoice, State, Wanted};

/// What is to be applied.
pub(crate) struct Selection {
    pub set: ChangeSet,
    /// Whether rows were chosen one by one or by table: sequences then follow their tables.
    pub rows_chosen: bool,
    pub taken_along: Vec<String>,
    pub already_there: u64,
    pub notes: Vec<String>,
    pub conflicts: Vec<Conflict>,
}

/// Selects. `there` are the target's definitions.
pub(crate) fn select(
    set: &ChangeSet,
    options: &ApplyOptions,
    there: &BTreeMap<String, String>,
) -> Result<Selection, ApplyError> {
    let is_chosen = !(options.tables.is_empty() && options.rows.is_empty() && options.objects.is_empty());
    let wanted = match (is_chosen, options.part) {
        (true, _) => Wanted::These { objects: &options.objects, with_needed: options.with_needed },
        (false, Part::Rows) => Wanted::None,
        (false, _) => Wanted::All,
    };
    let schema = SchemaChoice::new(&set.schema, &wanted, Some(there))?;
    let rows = if is_chosen { Rows::These } else { Rows::of(options.part) };
    let wants_rows =
        if is_chosen { !(options.tables.is_empty() && options.rows.is_empty()) } else { rows == Rows::All };
    check_labels(set, &schema, wants_rows)?;
    let mut selection = Selection {
        set: ChangeSet {
            database: set.database.clone(),
            schema: schema.change(!is_chosen && options.part != Part::Rows),
            labels: set.labels.clone(),
            ..ChangeSet::default()
        },
        rows_chosen: is_chosen,
        taken_along: schema.taken_along.clone(),
        already_there: schema.already_there,
        notes: Vec::new(),
        conflicts: Vec::new(),
    };
    let mut picks = picks(set, &options.rows)?;
    for name in &options.tables {
        if !set.tables.iter().any(|change| is_table(change, name)) {
            let what = format!("the branch changed no rows of {name}");
            return Err(ApplyError::Choice { what, hint: tables_hint(set) });
        }
    }
    for (index, change) in set.tables.iter().enumerate() {
        let rows = match rows {
            Rows::These if options.tables.iter().any(|name| is_table(change, name)) => Chosen::All,
            Rows::These => picks.remove(&index).map_or(Chosen::None, Chosen::Keys),
            Rows::All => Chosen::All,
            Rows::None => Chosen::None,
        };
        let table = Table { change, schema: &schema, rows, is_named: is_chosen };
        selection.set.tables.extend(table.select(&mut selection.notes, &mut selection.conflicts)?);
    }
    // Of what goes the value is kept, for the way back. A column's own sequence is no object that is named.
    let goes = |change: &&SequenceChange| {
        let path = format!("sequence {}.{}", change.schema, change.name);
        change.new.is_none() && schema.of_old(&path).is_none_or(|(_, state)| state == State::Run)
    };
    selection.set.sequences = set.sequences.iter().filter(goes).cloned().collect();
    if rows != Rows::None {
        let stay = set.sequences.iter().filter(|change| change.new.is_some());
        selection.set.sequences.extend(stay.filter_map(|change| sequence(change, &schema)));
    }
    if rows == Rows::All {
        selection.set.large_objects.clone_from(&set.large_objects);
    }
    Ok(selection)
}

/// A change set has rows as text. Where a label's name was another label's at the branch point, a row that went from one to the other is not
/// in it, and one that nobody touched is.
fn check_labels(set: &ChangeSet, schema: &SchemaChoice<'_>, wants_rows: bool) -> Result<(), ApplyError> {
    for (touched, label) in reused_labels(&set.schema.statements, &set.schema.touched) {
        let is_left = schema.of_old(&touched.path).is_some_and(|(_, state)| state == State::Left);
        if wants_rows || !is_left {
            let what = format!(
                "label {} of {} has a name that another one of its labels had at the branch point: rows could get the wrong one",
                literal(&label),
                touched.path
            );
            let hint = "on a new branch, give labels only names that the type never had".to_owned();
            return Err(ApplyError::Choice { what, hint });
        }
    }
    Ok(())
}

/// Which rows are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    All,
    None,
    These,
}

impl Rows {
    fn of(part: Part) -> Rows {
        if part == Part::Schema { Rows::None } else { Rows::All }
    }
}

/// Which rows of one table are wanted.
enum Chosen {
    All,
    None,
    Keys(BTreeSet<Vec<Option<String>>>),
}

fn base_name(change: &TableChange) -> (&str, &str) {
    match &change.renamed_from {
        Some((schema, name)) => (schema, name),
        None => (&change.schema, &change.name),
    }
}

fn is_table(change: &TableChange, wanted: &str) -> bool {
    let (schema, name) = base_name(change);
    names_table(wanted, &change.schema, &change.name) || names_table(wanted, schema, name)
}

fn tables_hint(set: &ChangeSet) -> String {
    const SHOWN_MAX: usize = 12;
    let all = set.tables.iter().filter(|change| !change.materialized_view);
    let names: Vec<String> = all.map(|change| format!("{}.{}", change.schema, change.name)).collect();
    let more = if names.len() > SHOWN_MAX { ", ..." } else { "" };
    match names.is_empty() {
        true => "the branch changed no rows".to_owned(),
        false => format!("it changed {}{more}", names[..names.len().min(SHOWN_MAX)].join(", ")),
    }
}

/// Keys of wanted rows, by the place of their table.
fn picks(set: &ChangeSet, rows: &[RowChoice]) -> Result<BTreeMap<usize, BTreeSet<Vec<Option<String>>>>, ApplyError> {
    let mut picks: BTreeMap<usize, BTreeSet<Vec<Option<String>>>> = BTreeMap::new();
    for row in rows {
        // Partitions have tables of their own, and a name without a schema may be several tables'.
        let named: Vec<usize> =
            (0..set.tables.len()).filter(|index| is_table(&set.tables[*index], &row.table)).collect();
        let Some(first) = named.first().map(|index| &set.tables[*index]) else {
            let what = format!("the branch changed no rows of {}", row.table);
            return Err(ApplyError::Choice { what, hint: tables_hint(set) });
        };
        if key_places(first).is_empty() {
            let what = format!("rows of {} have no key to choose them by", row.table);
            return Err(ApplyError::Choice { what, hint: format!("choose all of them: --table {}", row.table) });
        }
        let fitting = named.into_iter().filter(|index| set.tables[*index].key.len() == row.key.len());
        let fitting: Vec<usize> = fitting.collect();
        if fitting.is_empty() {
            let key = first.key.join(", ");
            let what = format!("{row} gives {} values, and the key of {} is ({key})", row.key.len(), row.table);
            return Err(ApplyError::Choice {
                what,
                hint: "give a value for each column of the key, in its order".to_owned(),
            });
        }
        let key: Vec<Option<String>> = row.key.iter().cloned().map(Some).collect();
        let mut is_there = false;
        for index in fitting {
            let change = &set.tables[index];
            let places = key_places(change);
            for one in change.rows.iter() {
                if key_of(&one?, &places) == key {
                    picks.entry(index).or_default().insert(key.clone());
                    is_there = true;
                }
            }
        }
        if !is_there {
            let what = format!("the branch did not change row {row}");
            let hint = format!("ardent branch diff NAME --table {} shows which it changed", row.table);
            return Err(ApplyError::Choice { what, hint });
        }
    }
    Ok(picks)
}

fn key_of(row: &RowChange, places: &[usize]) -> Vec<Option<String>> {
    let (RowChange::Insert { new: values } | RowChange::Update { new: values, .. } | RowChange::Delete { old: values }) =
        row;
    places.iter().map(|place| values[*place].clone()).collect()
}

/// A column, as the target has it now and then.
struct ColumnName {
    /// Where it is in the change set.
    place: usize,
    now: Option<String>,
    then: String,
}

struct Table<'a> {
    change: &'a TableChange,
    schema: &'a SchemaChoice<'a>,
    rows: Chosen,
    /// Rows are wanted because somebody named them.
    is_named: bool,
}

impl Table<'_> {
    fn select(self, notes: &mut Vec<String>, conflicts: &mut Vec<Conflict>) -> Result<Option<TableChange>, ApplyError> {
        let change = self.change;
        let wants_rows = !matches!(self.rows, Chosen::None);
        if change.materialized_view {
            let (_, (schema, name)) = self.names();
            return Ok(wants_rows.then(|| TableChange { schema, name, renamed_from: None, ..change.clone() }));
        }
        let (schema, name) = base_name(change);
        let path = format!("table {schema}.{name}");
        match change.state {
            TableState::Created => match self.schema.of_new(&format!("table {}.{}", change.schema, change.name)) {
                Some((_, State::Run)) => Ok(Some(TableChange { rows: self.rows()?, ..change.clone() })),
                Some((_, State::Present)) => {
                    let base_columns = change.columns.iter().cloned().map(Some).collect();
                    let state = TableState::Kept;
                    Ok(wants_rows
                        .then(|| {
                            let rows = self.rows()?;
                            // The branch point had none at all.
                            let copies = Spool::of((0..rows.len()).map(|_| 0))?;
                            Ok::<_, ApplyError>(TableChange { state, base_columns, rows, copies, ..change.clone() })
                        })
                        .transpose()?)
                }
                _ => {
                    if wants_rows {
                        let why = format!(
                            "it is new on the branch: bring it over too (--object '{path}', or its schema before), or leave its rows out"
                        );
                        conflicts.push(Conflict::Schema { object: path, why, base: None, branch: None, target: None });
                    }
                    Ok(None)
                }
            },
            TableState::Dropped => match self.schema.of_old(&path) {
                Some((_, State::Run)) => Ok(Some(change.clone())),
                Some((_, State::Present)) => Ok(None),
                _ if wants_rows && self.is_named => {
                    let what = format!("{path} was dropped on the branch: its rows go with it");
                    Err(ApplyError::Choice { what, hint: format!("choose it: --object '{path}'") })
                }
                _ => {
                    if wants_rows {
                        notes.push(format!("{path} was dropped on the branch: it stays, with its rows"));
                    }
                    Ok(None)
                }
            },
            TableState::Kept => {
                let kept = self.kept(notes)?;
                // One of which nothing is wanted is neither read nor locked.
                Ok((wants_rows || !kept.columns_dropped.is_empty()).then_some(kept))
            }
        }
    }

    fn kept(&self, notes: &mut Vec<String>) -> Result<TableChange, ApplyError> {
        let change = self.change;
        let (now, then) = self.names();
        let columns = self.columns();
        let is_new = |column: &&ColumnName| column.now.is_none();
        let (mut columns_dropped, mut columns_left) = (Vec::new(), Vec::new());
        for name in &change.columns_dropped {
            let (schema, table) = base_name(change);
            match self.schema.of_old(&format!("column {name} of table {schema}.{table}")) {
                Some((_, State::Present)) => {}
                // What Postgres computes it computes again.
                Some((touched, _)) if is_computed(touched.old.as_deref()) => {}
                Some((_, State::Run)) => columns_dropped.push(name.clone()),
                _ => columns_left.push(name.clone()),
            }
        }
        let rows = self.rows()?;
        let is_whole = matches!(self.rows, Chosen::All) && columns.len() == change.columns.len();
        let rows = if columns.len() == change.columns.len() {
            rows
        } else {
            let places: Vec<usize> = columns.iter().map(|column| column.place).collect();
            let out: Vec<&String> = (0..change.columns.len())
                .filter(|place| !places.contains(place))
                .map(|place| &change.columns[place])
                .collect();
            let (rows, lost) = without(&rows, &places)?;
            if lost > 0 {
                let columns = out.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                notes.push(format!(
                    "{lost} rows of {}.{} have values of columns that the target does not have, which are left out: {columns}",
                    now.0, now.1
                ));
            }
            rows
        };
        let renamed = |names: &[String]| -> Vec<String> {
            let then = |name: &String| columns.iter().find(|column| change.columns[column.place] == *name);
            names.iter().filter_map(then).map(|column| column.then.clone()).collect()
        };
        Ok(TableChange {
            schema: then.0.clone(),
            name: then.1.clone(),
            renamed_from: (now != then).then_some(now),
            state: TableState::Kept,
            columns: columns.iter().map(|column| column.then.clone()).collect(),
            columns_added: columns.iter().filter(is_new).map(|column| column.then.clone()).collect(),
            columns_dropped,
            base_columns: columns.iter().map(|column| column.now.clone()).collect(),
            generated: renamed(&change.generated),
            columns_left: [columns_left, change.columns_left.clone()].concat(),
            unguarded: renamed(&change.unguarded),
            materialized_view: false,
            key: renamed(&change.key),
            rows,
            copies: if is_whole { change.copies.clone() } else { Spool::default() },
        })
    }

    /// Schema and name that the target's table has now, and then.
    fn names(&self) -> ((String, String), (String, String)) {
        let new = (self.change.schema.as_str(), self.change.name.as_str());
        let old = base_name(self.change);
        let renamed = |kind: &str, new: &str, old: &str| {
            let found = self.schema.of_old(&format!("{kind} {old}"));
            found.filter(|(touched, _)| touched.new_path == format!("{kind} {new}")).map(|(_, state)| state)
        };
        let of_schema = renamed("schema", new.0, old.0);
        let kind = if self.change.materialized_view { "materialized view" } else { "table" };
        let of_table = renamed(kind, &format!("{}.{}", new.0, new.1), &format!("{}.{}", old.0, old.1));
        let schema = if new.0 == old.0 { Some(State::Present) } else { of_schema.or(of_table) };
        let name = if new.1 == old.1 { Some(State::Present) } else { of_table };
        let is_new = |state: Option<State>, then: bool| match state {
            Some(State::Present) => true,
            Some(State::Run) => then,
            _ => false,
        };
        let pick = |then: bool| {
            let schema = if is_new(schema, then) { new.0 } else { old.0 };
            let name = if is_new(name, then) { new.1 } else { old.1 };
            (schema.to_owned(), name.to_owned())
        };
        (pick(false), pick(true))
    }

    /// The columns that the target has then.
    fn columns(&self) -> Vec<ColumnName> {
        let change = self.change;
        let mut columns = Vec::new();
        for (place, new) in change.columns.iter().enumerate() {
            let path = format!("column {new} of table {}.{}", change.schema, change.name);
            let state = self.schema.of_new(&path).map_or(State::Left, |(_, state)| state);
            let old = change.base_columns.get(place).and_then(Option::as_ref);
            let (now, then) = match (old, state) {
                (Some(old), _) if old == new => (Some(new), new),
                (_, State::Present) => (Some(new), new),
                (old, State::Run) => (old, new),
                (Some(old), State::Left) => (Some(old), old),
                (None, State::Left) => continue,
            };
            columns.push(ColumnName { place, now: now.cloned(), then: then.clone() });
        }
        columns
    }

    /// The wanted rows.
    fn rows(&self) -> Result<Spool<RowChange>, ApplyError> {
        match &self.rows {
            Chosen::All => Ok(self.change.rows.clone()),
            Chosen::None => Ok(Spool::default()),
            Chosen::Keys(keys) => {
                let places = key_places(self.change);
                let mut rows = Spool::default();
                for row in self.change.rows.iter() {
                    let row = row?;
                    if keys.contains(&key_of(&row, &places)) {
                        rows.push(&row)?;
                    }
                }
                rows.seal()?;
                Ok(rows)
            }
        }
    }
}

/// Whether a column's definition says that Postgres computes it.
fn is_computed(definition: Option<&str>) -> bool {
    let definition = definition.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    definition.is_some_and(|definition| !definition["definition"]["generated"].is_null())
}

/// Rows with these columns alone, and how many had something else to say.
fn without(rows: &Spool<RowChange>, places: &[usize]) -> Result<(Spool<RowChange>, u64), ApplyError> {
    let pick =
        |row: &[Option<String>]| -> Vec<Option<String>> { places.iter().map(|place| row[*place].clone()).collect() };
    let (mut kept, mut lost) = (Spool::default(), 0);
    for row in rows.iter() {
        let row = row?;
        let others = |values: &[Option<String>]| -> Vec<Option<String>> {
            let all = values.iter().enumerate().filter(|(place, _)| !places.contains(place));
            all.map(|(_, value)| value.clone()).collect()
        };
        let row = match row {
            RowChange::Insert { new } => {
                lost += u64::from(others(&new).iter().any(Option::is_some));
                RowChange::Insert { new: pick(&new) }
            }
            RowChange::Delete { old } => RowChange::Delete { old: pick(&old) },
            RowChange::Update { old, new } => {
                lost += u64::from(others(&old) != others(&new));
                let (old, new) = (pick(&old), pick(&new));
                if old == new {
                    continue;
                }
                RowChange::Update { old, new }
            }
        };
        kept.push(&row)?;
    }
    kept.seal()?;
    Ok((kept, lost))
}

/// A sequence under the name that the target has then; none if it has none.
fn sequence(change: &SequenceChange, schema: &SchemaChoice<'_>) -> Option<SequenceChange> {
    match schema.of_new(&format!("sequence {}.{}", change.schema, change.name)) {
        Some((touched, State::Left)) => {
            let definition: serde_json::Value = serde_json::from_str(touched.old.as_deref()?).ok()?;
            let field = |name: &str| definition[name].as_str().map(str::to_owned);
            Some(SequenceChange { schema: field("schema")?, name: field("name")?, ..change.clone() })
        }
        _ => Some(change.clone()),
    }
}
