//! A change set as text for people.

use std::cell::Cell;
use std::io::{self, Write};

use ardent_schema_diff::Action;

use crate::change_set::{ChangeSet, LargeObjectChange, RowChange, RowCounts, TableChange, TableState};
use crate::stat::{ChangeSetStat, ObjectStat, TableStat};

/// How to show changes to people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// With colours of a terminal.
    pub color: bool,
    /// Values whole, however long.
    pub full: bool,
}

impl Style {
    fn paint(self, color: &str, text: &str) -> String {
        if self.color { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const ADDED: &str = "32";
const REMOVED: &str = "31";
const CHANGED: &str = "33";
const HEADING: &str = "1";

/// Longest value shown, in characters, unless [`Style::full`].
const VALUE_LEN_MAX: usize = 60;

/// The counts per table, one line each, and a sum. Rows are counted one by one, not held.
pub fn render_stat(out: &mut dyn Write, sets: &[ChangeSet]) -> io::Result<()> {
    let mut lines = Vec::new();
    let mut sum = RowCounts::default();
    for set in sets {
        let stat = ChangeSetStat::of(set).map_err(io::Error::other)?;
        sum.add(stat.rows());
        let count = stat.schema.statements;
        if count > 0 {
            let name = if several(sets) { format!("schema of {}", set.database) } else { "schema".to_owned() };
            let plural = if count == 1 { "" } else { "s" };
            lines.push((name, format!("{count} statement{plural}")));
        }
        lines.extend(
            stat.schema.objects.iter().map(|object| (format!("  {}", visible(object.object)), changes(object))),
        );
        for what in stat.schema.not_covered {
            lines.push(("not covered".to_owned(), what.clone()));
        }
        for (table, TableStat { rows, .. }) in set.tables.iter().zip(&stat.tables) {
            let numbers = format!("+{} ~{} -{}", rows.inserted, rows.updated, rows.deleted);
            lines.push((table_name(sets, set, table), format!("{numbers}{}", remarks(table))));
        }
        for sequence in &set.sequences {
            let name = qualify(sets, set, &sequence.schema, &sequence.name);
            lines.push((name, format!("sequence {}", arrow(sequence.old, sequence.new))));
        }
        for object in &set.large_objects {
            lines.push((format!("large object {}", object.oid), large_object(object)));
        }
    }
    if lines.is_empty() {
        return writeln!(out, "no changes");
    }
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, rest) in &lines {
        writeln!(out, " {name:<width$}  {rest}")?;
    }
    writeln!(out, "{} inserted, {} updated, {} deleted", sum.inserted, sum.updated, sum.deleted)
}

/// What becomes of an object of the schema, in words.
fn changes(object: &ObjectStat<'_>) -> String {
    let made_again = object.changes.contains("created") && object.changes.contains("dropped");
    if made_again { "made again".to_owned() } else { object.changes.iter().copied().collect::<Vec<_>>().join(", ") }
}

/// Text of a name or a statement, in which nothing moves a terminal's cursor or colours.
fn visible(text: &str) -> String {
    let shown = |letter: char| {
        let harmless = !letter.is_control() || letter == '\t';
        if harmless { letter.to_string() } else { letter.escape_debug().to_string() }
    };
    text.chars().map(shown).collect()
}

/// The schema's changes as statements, then every changed row, grouped by table.
pub fn render_people(out: &mut dyn Write, sets: &[ChangeSet], style: Style) -> io::Result<()> {
    if sets.iter().all(ChangeSet::is_empty) {
        return writeln!(out, "no changes");
    }
    let cut = Cell::new(false);
    for set in sets {
        render_schema(out, sets, set, style)?;
        for table in &set.tables {
            let counts = table.counts().map_err(io::Error::other)?;
            let name = table_name(sets, set, table);
            let remarks = remarks(table);
            let heading = style.paint(HEADING, &name);
            writeln!(out, "{heading}: +{} ~{} -{}{remarks}", counts.inserted, counts.updated, counts.deleted)?;
            for row in table.rows.iter() {
                writeln!(out, "  {}", row_text(table, &row.map_err(io::Error::other)?, style, &cut))?;
            }
            writeln!(out)?;
        }
        for sequence in &set.sequences {
            let name = qualify(sets, set, &sequence.schema, &sequence.name);
            writeln!(out, "sequence {name}: {}", arrow(sequence.old, sequence.new))?;
        }
        for object in &set.large_objects {
            writeln!(out, "large object {}: {}", object.oid, large_object(object))?;
            for sql in object.statements() {
                writeln!(out, "  {}", style.paint(CHANGED, &format!("{};", visible(&sql))))?;
            }
        }
    }
    if cut.get() { writeln!(out, "values that end in … are cut: --full shows them whole") } else { Ok(()) }
}

fn render_schema(out: &mut dyn Write, sets: &[ChangeSet], set: &ChangeSet, style: Style) -> io::Result<()> {
    if set.schema.is_empty() {
        return Ok(());
    }
    let name = if several(sets) { format!("schema of {}", set.database) } else { "schema".to_owned() };
    writeln!(out, "{}:", style.paint(HEADING, &name))?;
    for statement in &set.schema.statements {
        let color = match statement.action {
            Action::Create => ADDED,
            Action::Drop => REMOVED,
            Action::Alter | Action::Rename => CHANGED,
        };
        for (number, line) in statement.sql.lines().enumerate() {
            let end = if number + 1 == statement.sql.lines().count() { ";" } else { "" };
            writeln!(out, "  {}", style.paint(color, &format!("{}{end}", visible(line))))?;
        }
    }
    for what in &set.schema.not_covered {
        writeln!(out, "  {}", style.paint(CHANGED, &format!("-- not covered: {what}")))?;
    }
    writeln!(out)
}

fn large_object(change: &LargeObjectChange) -> String {
    let word = match change.state {
        TableState::Created => "new",
        TableState::Dropped => "deleted",
        TableState::Kept => "changed",
    };
    let properties = change.properties();
    let mut parts = vec![word.to_owned()];
    if !change.pages.is_empty() || properties.is_empty() {
        parts.push(format!("{} pages of 2 kB", change.pages.len()));
    }
    parts.extend(properties.into_iter().map(str::to_owned));
    parts.join(", ")
}

fn several(sets: &[ChangeSet]) -> bool {
    sets.iter().filter(|set| !set.is_empty()).count() > 1
}

fn row_text(table: &TableChange, row: &RowChange, style: Style, cut: &Cell<bool>) -> String {
    let show = |value: &Option<String>| show(value, style, cut);
    let all = |values: &[Option<String>]| -> String {
        let pairs = table.columns.iter().zip(values).map(|(column, value)| format!("{column}={}", show(value)));
        pairs.collect::<Vec<_>>().join(" ")
    };
    match row {
        RowChange::Insert { new } => style.paint(ADDED, &format!("+ {}", all(new))),
        RowChange::Delete { old } => style.paint(REMOVED, &format!("- {}", all(old))),
        RowChange::Update { old, new } => {
            let columns = table.columns.iter().zip(old.iter().zip(new));
            let parts = columns.filter_map(|(column, (old, new))| {
                if old != new {
                    Some(format!("{column}: {} -> {}", show(old), show(new)))
                } else {
                    table.key.contains(column).then(|| format!("{column}={}", show(new)))
                }
            });
            style.paint(CHANGED, &format!("~ {}", parts.collect::<Vec<_>>().join(" ")))
        }
    }
}

fn show(value: &Option<String>, style: Style, cut: &Cell<bool>) -> String {
    let Some(text) = value else { return "NULL".to_owned() };
    let longest = if style.full { usize::MAX } else { VALUE_LEN_MAX };
    let mut shown: String = text.chars().take(longest).flat_map(char::escape_debug).collect();
    if !style.full && text.chars().nth(VALUE_LEN_MAX).is_some() {
        cut.set(true);
        shown.push_str(&format!("… ({} characters)", text.chars().count()));
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
    let name = if several(sets) { format!("{}.{schema}.{name}", set.database) } else { format!("{schema}.{name}") };
    visible(&name)
}

fn arrow(old: Option<i64>, new: Option<i64>) -> String {
    let show = |value: Option<i64>| value.map_or("none".to_owned(), |value| value.to_string());
    format!("{} -> {}", show(old), show(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change_set::Sides;
    use crate::spool::Spool;
    use ardent_schema_diff::{LargeObjectAccess, Statement};

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
            base_columns: vec![Some("id".into()), Some("name".into())],
            generated: vec![],
            columns_left: vec![],
            unguarded: vec![],
            materialized_view: false,
            key: vec!["id".into()],
            rows: Spool::of([
                RowChange::Update { old: vec![text("1"), text("a b")], new: vec![text("1"), None] },
                RowChange::Insert { new: vec![text("2"), text("x")] },
                RowChange::Delete { old: vec![text("3"), text("")] },
            ])
            .expect("short"),
            copies: Spool::default(),
        };
        vec![ChangeSet { database: "shop".into(), tables: vec![table], ..ChangeSet::default() }]
    }

    #[test]
    fn people_see_rows_and_stat_sees_counts() {
        let people = "public.users: +1 ~1 -1  (dropped column age)\n  ~ id=1 name: 'a b' -> NULL\n  + id=2 name=x\n  - id=3 name=''\n\n";
        let text = |sets: &[ChangeSet]| rendered(|out| render_people(out, sets, Style::default()));
        assert_eq!(text(&sample()), people);
        let stat = " public.users  +1 ~1 -1  (dropped column age)\n1 inserted, 1 updated, 1 deleted\n";
        assert_eq!(rendered(|out| render_stat(out, &sample())), stat);
        assert_eq!(rendered(|out| render_stat(out, &[])), "no changes\n");
    }

    #[test]
    fn what_a_large_object_gets_is_named_and_shown() {
        let access = |owner: &str| Some(LargeObjectAccess::default_of(owner));
        let object = LargeObjectChange {
            access: Some(Sides { old: access("ann"), new: access("bob") }),
            comment: Some(Sides { old: Some("was".into()), new: Some("is\u{1b}[2J".into()) }),
            ..LargeObjectChange::kept(7)
        };
        let sets = [ChangeSet { large_objects: vec![object], ..ChangeSet::default() }];
        let people = rendered(|out| render_people(out, &sets, Style::default()));
        let statements = "  ALTER LARGE OBJECT 7 OWNER TO bob;\n  COMMENT ON LARGE OBJECT 7 IS 'is\\u{1b}[2J';\n";
        assert_eq!(people, format!("large object 7: changed, owner, comment\n{statements}"));
        let stat = rendered(|out| render_stat(out, &sets));
        assert!(stat.starts_with(" large object 7  changed, owner, comment\n"), "{stat}");
    }

    #[test]
    fn long_values_are_cut_and_said_to_be_unless_they_are_wanted_whole() {
        let mut sets = sample();
        let long = Some("long ".repeat(100));
        let new = vec![Some("7".to_owned()), long];
        sets[0].tables[0].rows = Spool::of([RowChange::Insert { new }]).expect("short");
        let text = |full| rendered(|out| render_people(out, &sets, Style { full, ..Style::default() }));
        assert!(text(false).contains("… (500 characters)") && text(false).contains("--full"), "{}", text(false));
        assert!(text(true).contains(&"long ".repeat(100)) && !text(true).contains("--full"), "{}", text(true));
    }

    #[test]
    fn parts_of_the_schema_are_counted_and_nothing_moves_the_cursor() {
        let statement = |action, part: &str, sql: &str| Statement {
            section: ardent_schema_diff::Section::BeforeRows,
            action,
            kind: "column".into(),
            object: "x".into(),
            part: part.into(),
            sql: sql.into(),
        };
        let mut sets = sample();
        sets[0].schema.statements = vec![
            statement(Action::Drop, "view public.v", "DROP VIEW public.v"),
            statement(Action::Create, "view public.v", "CREATE VIEW public.v AS\n SELECT '\u{1b}[2J'"),
            statement(Action::Alter, "column a of table public.users", "ALTER TABLE x"),
        ];
        let stat = rendered(|out| render_stat(out, &sets));
        for line in [" schema", "   view public.v ", "made again\n", "   column a of table public.users  changed\n"] {
            assert!(stat.contains(line), "{line:?} is not in\n{stat}");
        }
        let people = rendered(|out| render_people(out, &sets, Style::default()));
        assert!(people.contains("\\u{1b}[2J") && !people.contains('\u{1b}'), "{people}");
    }

    fn rendered(render: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        render(&mut out).expect("memory can be written");
        String::from_utf8(out).expect("text")
    }
}
