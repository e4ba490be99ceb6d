//! A change set as text for people.

use std::fmt::Write as _;

use crate::change_set::{ChangeSet, RowChange, TableChange, TableState};

/// Longest value shown, in characters; `--json` shows values whole.
const VALUE_LEN_MAX: usize = 60;

/// The counts per table, one line each, and a sum.
pub fn render_stat(sets: &[ChangeSet]) -> String {
    let mut lines = Vec::new();
    let (mut inserted, mut updated, mut deleted) = (0, 0, 0);
    for set in sets {
        for table in &set.tables {
            let counts = table.counts();
            inserted += counts.inserted;
            updated += counts.updated;
            deleted += counts.deleted;
            let numbers = format!("+{} ~{} -{}", counts.inserted, counts.updated, counts.deleted);
            lines.push((table_name(sets, set, table), format!("{numbers}{}", remarks(table))));
        }
        for sequence in &set.sequences {
            let name = qualify(sets, set, &sequence.schema, &sequence.name);
            lines.push((name, format!("sequence {}", arrow(sequence.old, sequence.new))));
        }
    }
    if lines.is_empty() {
        return "no changes\n".to_owned();
    }
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, rest) in &lines {
        let _ = writeln!(out, " {name:<width$}  {rest}");
    }
    let _ = writeln!(out, "{inserted} inserted, {updated} updated, {deleted} deleted");
    out
}

/// Every changed row, grouped by table.
pub fn render_people(sets: &[ChangeSet]) -> String {
    let mut out = String::new();
    for set in sets {
        for table in &set.tables {
            let counts = table.counts();
            let name = table_name(sets, set, table);
            let remarks = remarks(table);
            let _ = writeln!(out, "{name}: +{} ~{} -{}{remarks}", counts.inserted, counts.updated, counts.deleted);
            for row in &table.rows {
                render_row(&mut out, table, row);
            }
            out.push('\n');
        }
        for sequence in &set.sequences {
            let name = qualify(sets, set, &sequence.schema, &sequence.name);
            let _ = writeln!(out, "sequence {name}: {}", arrow(sequence.old, sequence.new));
        }
    }
    if out.is_empty() { "no changes\n".to_owned() } else { out }
}

fn render_row(out: &mut String, table: &TableChange, row: &RowChange) {
    let all = |values: &[Option<String>]| -> String {
        let pairs = table.columns.iter().zip(values).map(|(column, value)| format!("{column}={}", show(value)));
        pairs.collect::<Vec<_>>().join(" ")
    };
    let _ = match row {
        RowChange::Insert { new } => writeln!(out, "  + {}", all(new)),
        RowChange::Delete { old } => writeln!(out, "  - {}", all(old)),
        RowChange::Update { old, new } => {
            let columns = table.columns.iter().zip(old.iter().zip(new));
            let parts = columns.filter_map(|(column, (old, new))| {
                if old != new {
                    Some(format!("{column}: {} -> {}", show(old), show(new)))
                } else {
                    table.key.contains(column).then(|| format!("{column}={}", show(new)))
                }
            });
            writeln!(out, "  ~ {}", parts.collect::<Vec<_>>().join(" "))
        }
    };
}

fn show(value: &Option<String>) -> String {
    let Some(text) = value else { return "NULL".to_owned() };
    let mut shown: String = text.chars().take(VALUE_LEN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(VALUE_LEN_MAX).is_some() {
        let _ = write!(shown, "… ({} characters)", text.chars().count());
    }
    if text.is_empty() || text.contains(char::is_whitespace) || text == "NULL" { format!("'{shown}'") } else { shown }
}

fn remarks(table: &TableChange) -> String {
    let mut remarks = Vec::new();
    match table.state {
        TableState::Created => remarks.push("new table".to_owned()),
        TableState::Dropped => remarks.push("dropped table".to_owned()),
        TableState::Kept => {}
    }
    if let Some((schema, name)) = &table.renamed_from {
        remarks.push(format!("was {schema}.{name}"));
    }
    remarks.extend(table.columns_added.iter().map(|column| format!("new column {column}")));
    remarks.extend(table.columns_dropped.iter().map(|column| format!("dropped column {column}")));
    if remarks.is_empty() { String::new() } else { format!("  ({})", remarks.join(", ")) }
}

fn table_name(sets: &[ChangeSet], set: &ChangeSet, table: &TableChange) -> String {
    qualify(sets, set, &table.schema, &table.name)
}

/// The database is named only where there are several with changes.
fn qualify(sets: &[ChangeSet], set: &ChangeSet, schema: &str, name: &str) -> String {
    let several = sets.iter().filter(|set| !set.is_empty()).count() > 1;
    if several { format!("{}.{schema}.{name}", set.database) } else { format!("{schema}.{name}") }
}

fn arrow(old: Option<i64>, new: Option<i64>) -> String {
    let show = |value: Option<i64>| value.map_or("none".to_owned(), |value| value.to_string());
    format!("{} -> {}", show(old), show(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<ChangeSet> {
        let text = |text: &str| Some(text.to_owned());
        let table = TableChange {
            schema: "public".into(),
            name: "users".into(),
            renamed_from: None,
            state: TableState::Kept,
            columns: vec!["id".into(), "name".into()],
            columns_added: vec![],
            columns_dropped: vec!["age".into()],
            key: vec!["id".into()],
            rows: vec![
                RowChange::Update { old: vec![text("1"), text("a b")], new: vec![text("1"), None] },
                RowChange::Insert { new: vec![text("2"), text("x")] },
                RowChange::Delete { old: vec![text("3"), text("")] },
            ],
        };
        vec![ChangeSet { database: "shop".into(), tables: vec![table], sequences: vec![] }]
    }

    #[test]
    fn people_see_rows_and_stat_sees_counts() {
        let people = "public.users: +1 ~1 -1  (dropped column age)\n  ~ id=1 name: 'a b' -> NULL\n  + id=2 name=x\n  - id=3 name=''\n\n";
        assert_eq!(render_people(&sample()), people);
        let stat = " public.users  +1 ~1 -1  (dropped column age)\n1 inserted, 1 updated, 1 deleted\n";
        assert_eq!(render_stat(&sample()), stat);
        assert_eq!(render_stat(&[]), "no changes\n");
    }
}
