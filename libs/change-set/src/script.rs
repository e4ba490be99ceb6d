//! A change set as an SQL script.

use std::io::{self, Write};

use ardent_diff::{ChangeSet, RowChange, TableState};
use ardent_schema_diff::{Section, Statement, identifier, literal, qualified};

use crate::dml;
use crate::guard::{base_columns, base_table, key_places};

/// The script that turns the branch point's database into the branch's, in one transaction. It is not guarded: it expects a
/// database as it was at the branch point.
pub fn script(out: &mut dyn Write, set: &ChangeSet) -> io::Result<()> {
    writeln!(out, "\\connect {}", identifier(&set.database))?;
    writeln!(out, "BEGIN;\nSET LOCAL search_path = pg_catalog;\nSET LOCAL check_function_bodies = off;")?;
    for what in &set.schema.not_covered {
        writeln!(out, "-- not covered: {what}")?;
    }
    statements(out, &set.schema.statements, Section::BeforeRows)?;
    let tables: Vec<_> =
        set.tables.iter().filter(|table| !table.materialized_view && table.state != TableState::Dropped).collect();
    if tables.iter().any(|table| !table.rows.is_empty()) {
        writeln!(out, "SET CONSTRAINTS ALL DEFERRED;")?;
    }
    for table in &tables {
        let name = qualified(&table.schema, &table.name);
        let key = key_places(table);
        let wanted = |row: &[Option<String>]| -> Vec<(String, Option<String>)> {
            key.iter().map(|place| (table.columns[*place].clone(), row[*place].clone())).collect()
        };
        for row in table.rows.iter() {
            match row.map_err(io::Error::other)? {
                RowChange::Delete { old } if key.is_empty() => {
                    let columns = base_columns(table);
                    let all: Vec<String> =
                        columns.iter().map(|(place, _)| identifier(&table.columns[*place])).collect();
                    let values: Vec<String> = columns.iter().map(|(place, _)| dml::value(&old[*place])).collect();
                    let same: Vec<String> =
                        all.iter().zip(&values).map(|(a, b)| format!("{a} IS NOT DISTINCT FROM {b}")).collect();
                    writeln!(
                        out,
                        "DELETE FROM ONLY {name} WHERE ctid = (SELECT ctid FROM ONLY {name} WHERE {} LIMIT 1);",
                        same.join(" AND ")
                    )?;
                }
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
    statements(out, &set.schema.statements, Section::AfterRows)?;
    for view in set.tables.iter().filter(|table| table.materialized_view && table.state == TableState::Kept) {
        writeln!(out, "REFRESH MATERIALIZED VIEW {};", base_table(view))?;
    }
    for object in &set.large_objects {
        writeln!(out, "-- not covered: large object {}: ardent branch apply brings it over", object.oid)?;
    }
    for sequence in &set.sequences {
        let (Some(value), called) = (sequence.new, sequence.new_called.unwrap_or(true)) else { continue };
        writeln!(out, "SELECT setval({}, {value}, {called});", literal(&qualified(&sequence.schema, &sequence.name)))?;
    }
    writeln!(out, "COMMIT;")
}

fn statements(out: &mut dyn Write, statements: &[Statement], section: Section) -> io::Result<()> {
    for statement in statements.iter().filter(|statement| statement.section == section) {
        writeln!(out, "{};", statement.sql)?;
    }
    Ok(())
}
