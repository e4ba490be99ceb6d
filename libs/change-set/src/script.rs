//! A change set as an SQL script.

use std::io::{self, Write};

use ardent_diff::{ChangeSet, RowChange, TableChange, TableState};
use ardent_schema_diff::{Section, Statement, identifier, literal, qualified};

use crate::dml;
use crate::guard::{base_columns, base_table, key_places};
use crate::large_object;
use crate::target::SETTINGS;

const BEGIN_ROWS: &str =
    "-- What triggers, rules and foreign keys did on the branch is among the rows. This needs a superuser.
SET LOCAL session_replication_role = replica;";
const END_ROWS: &str = "SET LOCAL session_replication_role = origin;";

/// The script that turns the branch point's database into the branch's, in one transaction. It is not guarded: it expects a
/// database as it was at the branch point.
pub fn script(out: &mut dyn Write, set: &ChangeSet) -> io::Result<()> {
    writeln!(out, "\\connect {}", identifier(&set.database))?;
    writeln!(out, "BEGIN;")?;
    for setting in SETTINGS.split("; ") {
        writeln!(out, "{};", setting.trim())?;
    }
    for what in &set.schema.not_covered {
        writeln!(out, "-- not covered: {what}")?;
    }
    let tables: Vec<_> =
        set.tables.iter().filter(|table| !table.materialized_view && table.state != TableState::Dropped).collect();
    let is_without_key = |table: &&&TableChange| table.state == TableState::Kept && key_places(table).is_empty();
    let mut has_deletes = false;
    for table in tables.iter().filter(is_without_key) {
        deletes_without_key(out, table, &mut has_deletes)?;
    }
    if has_deletes {
        writeln!(out, "{END_ROWS}")?;
    }
    statements(out, &set.schema.statements, Section::BeforeRows)?;
    let has_rows = tables.iter().any(|table| !table.rows.is_empty());
    if has_rows {
        writeln!(out, "SET CONSTRAINTS ALL DEFERRED;")?;
        writeln!(out, "{BEGIN_ROWS}")?;
    }
    for table in &tables {
        let name = qualified(&table.schema, &table.name);
        let key = key_places(table);
        let wanted = |row: &[Option<String>]| -> Vec<(String, Option<String>)> {
            key.iter().map(|place| (table.columns[*place].clone(), row[*place].clone())).collect()
        };
        for row in table.rows.iter() {
            match row.map_err(io::Error::other)? {
                RowChange::Delete { .. } if key.is_empty() => {}
                RowChange::Delete { old } => {
                    let key = wanted(&old);
                    let key: Vec<_> = key.iter().map(|(name, value)| (name.as_str(), value)).collect();
                    writeln!(out, "{};", dml::delete(&name, &key))?;
                }
                _ => {}
            }
        }
        for row in table.rows.iter() {
            let RowChange::Update { old, new } = row.map_err(io::Error::other)? else { continue };
            let key = wanted(&new);
            let key: Vec<_> = key.iter().map(|(name, value)| (name.as_str(), value)).collect();
            let places = (0..new.len())
                .filter(|place| old[*place] != new[*place] && !table.generated.contains(&table.columns[*place]));
            let set: Vec<_> = places.map(|place| (table.columns[place].as_str(), &new[place])).collect();
            if !set.is_empty() {
                writeln!(out, "{};", dml::update(&name, &key, &set))?;
            }
        }
        let places: Vec<usize> =
            (0..table.columns.len()).filter(|place| !table.generated.contains(&table.columns[*place])).collect();
        let columns: Vec<&str> = places.iter().map(|place| table.columns[*place].as_str()).collect();
        for row in table.rows.iter() {
            let RowChange::Insert { new } = row.map_err(io::Error::other)? else { continue };
            let values = places.iter().map(|place| &new[*place]).collect();
            writeln!(out, "{};", dml::insert(&name, &columns, [values]))?;
        }
    }
    if has_rows {
        writeln!(out, "{END_ROWS}")?;
    }
    statements(out, &set.schema.statements, Section::AfterRows)?;
    for view in set.tables.iter().filter(|table| table.materialized_view && table.state == TableState::Kept) {
        let refresh = format!("REFRESH MATERIALIZED VIEW {}", qualified(&view.schema, &view.name));
        // One that the branch emptied stays empty.
        let empties = format!("{refresh} WITH NO DATA");
        if !set.schema.statements.iter().any(|statement| statement.sql == empties) {
            writeln!(out, "{refresh};")?;
        }
    }
    for object in &set.large_objects {
        large_object::script(out, object)?;
    }
    for sequence in &set.sequences {
        let (Some(value), called) = (sequence.new, sequence.new_called.unwrap_or(true)) else { continue };
        writeln!(out, "SELECT setval({}, {value}, {called});", literal(&qualified(&sequence.schema, &sequence.name)))?;
    }
    writeln!(out, "COMMIT;")
}

/// Rows without a key go before the schema is changed: they are told by their values, which have other texts when types, or labels of
/// enums, are others.
fn deletes_without_key(out: &mut dyn Write, table: &TableChange, has_deletes: &mut bool) -> io::Result<()> {
    let (name, columns) = (base_table(table), base_columns(table));
    for row in table.rows.iter() {
        let RowChange::Delete { old } = row.map_err(io::Error::other)? else { continue };
        if !std::mem::replace(has_deletes, true) {
            writeln!(out, "{BEGIN_ROWS}")?;
        }
        let looks_like = |(place, column): &(usize, &str)| dml::looks_like(column, old[*place].as_deref());
        let same: Vec<String> = columns.iter().map(looks_like).collect();
        let same = if same.is_empty() { "true".to_owned() } else { same.join(" AND ") };
        writeln!(out, "DELETE FROM ONLY {name} WHERE ctid = (SELECT ctid FROM ONLY {name} WHERE {same} LIMIT 1);")?;
    }
    Ok(())
}

fn statements(out: &mut dyn Write, statements: &[Statement], section: Section) -> io::Result<()> {
    for statement in statements.iter().filter(|statement| statement.section == section) {
        writeln!(out, "{};", statement.sql)?;
    }
    Ok(())
}
