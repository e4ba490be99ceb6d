//! What changed in production's schema and is not followed: everything but the names and columns of tables.

use std::collections::BTreeMap;

use ardent_schema_diff::{Action, Catalog, CatalogQueries, Identity, Kind, Statement, plan};
use tokio_postgres::Client;

use ardent_api::control::LogicalOptions;
use ardent_types::sql::{qualified, quoted};

use crate::logical::altered::renaming;
use crate::logical::error::{LogicalError, root, source};
use crate::logical::partitions::{Fate, Partitions, TableName};
use crate::logical::replaced::ToldReplaced;
use crate::logical::state::LogicalState;
use crate::logical::tables::SourceTable;

/// What the root has otherwise on purpose: triggers and rules that would fire for the rows that are applied.
const ON_PURPOSE: [&str; 2] = [" ENABLE ALWAYS ", " ENABLE REPLICA "];

/// The statements that would make the root's schema production's. Both sessions are in transactions with a snapshot each.
pub(crate) async fn schema_differences(
    production: &Client,
    client: &Client,
    options: &LogicalOptions,
) -> Result<Vec<String>, LogicalError> {
    let differing = differing(production, client, options).await?;
    Ok(differing.into_iter().map(|statement| statement.sql).collect())
}

/// The same for somebody who is to act on it while changes are still to come: names and columns, which follow by themselves or stop
/// what follows, are told in words, and tables that are not followed are left out. `found`: production's tables. `replaced`: those with
/// columns that are other ones by now, of which nothing else is told: it would be of the wrong columns.
pub(crate) async fn changes(
    production: &Client,
    client: &Client,
    options: &LogicalOptions,
    found: &[SourceTable],
    state: &LogicalState,
    replaced: &ToldReplaced,
) -> Result<Vec<String>, LogicalError> {
    let partitions = Partitions::read(production, client, state).await?;
    Ok(tell(&differing(production, client, options).await?, found, state, &partitions, replaced))
}

async fn differing(
    production: &Client,
    client: &Client,
    options: &LogicalOptions,
) -> Result<Vec<Statement>, LogicalError> {
    let theirs = catalog(production).await.map_err(source("reading its catalogs"))?;
    let ours = catalog(client).await.map_err(root("reading its catalogs"))?;
    let read = |answers: Vec<Vec<String>>| {
        Catalog::from_answers(&answers).map_err(|error| LogicalError::State(error.to_string()))
    };
    let plan = plan(&read(ours)?, &read(theirs)?, Identity::Name);
    let is_of_schemas =
        |object: &str| options.schemas.is_empty() || options.schemas.iter().any(|schema| is_of_schema(object, schema));
    let differing = plan.statements.into_iter().filter(|statement| {
        // Publications are for those who read production, and ours is among them.
        statement.kind != Kind::Publication.word()
            && is_of_schemas(&statement.object)
            && !ON_PURPOSE.iter().any(|words| statement.sql.contains(words))
    });
    Ok(differing.collect())
}

/// Tables with rows that are followed, which production has no more under the names that they have here: statements would drop them.
#[derive(Default)]
struct Gone<'a> {
    /// What is said instead.
    told: Vec<String>,
    /// Their full names.
    names: Vec<&'a str>,
    /// What production calls those that it still has.
    renamed: Vec<TableName>,
}

impl<'a> Gone<'a> {
    /// `old_names`: those of tables that get others by themselves.
    fn find(
        differing: &'a [Statement],
        old_names: &[String],
        state: &LogicalState,
        partitions: &Partitions,
    ) -> Gone<'a> {
        let drops = differing.iter().filter(|statement| {
            let is_table = statement.action == Action::Drop && statement.kind == Kind::Table.word();
            is_table && !old_names.contains(&statement.object)
        });
        let fates: Vec<(&str, Option<Fate>)> =
            drops.map(|drop| (drop.object.as_str(), partitions.fate(&drop.object, state))).collect();
        let is_dropped = |(_, fate): &&(&str, Option<Fate>)| *fate == Some(Fate::Dropped);
        let dropped: Vec<&str> = fates.iter().filter(is_dropped).map(|(table, _)| *table).collect();
        let mut gone = Gone::default();
        for (table, fate) in fates {
            // What is said of the table above is not said again of each of its partitions.
            if !dropped.iter().any(|above| partitions.is_below(table, above)) {
                let told = match partitions.followed(table).zip(fate.as_ref()) {
                    Some((name, fate)) => tell_fate(name, fate),
                    None => match state.tables.iter().find(|(_, kept)| kept.full_name() == table) {
                        Some((oid, _)) if partitions.is_on_production(*oid) => {
                            format!(
                                "table {table} is not in the schemas that were chosen on production now: its rows stay here"
                            )
                        }
                        Some((_, kept)) => {
                            let name = ardent_schema_diff::qualified(&kept.schema, &kept.name);
                            format!(
                                "table {table} is on production no more: it stays here with its rows up to DROP TABLE {name}"
                            )
                        }
                        None => continue,
                    },
                };
                gone.told.push(told);
            }
            gone.names.push(table);
            if let Some(Fate::Renamed(now)) = fate {
                gone.renamed.push(now);
            }
        }
        gone
    }

    /// Whether a statement puts a table below one that has another name here.
    fn attaches(&self, statement: &Statement) -> bool {
        let is_below = |now: &TableName| {
            let name = ardent_schema_diff::qualified(&now.schema, &now.name);
            statement.sql.starts_with(&format!("ALTER TABLE ONLY {name} ATTACH PARTITION "))
        };
        statement.kind == Kind::Partition.word() && self.renamed.iter().any(is_below)
    }
}

/// What is said of a partitioned table that production has no more under its name.
fn tell_fate(table: &TableName, fate: &Fate) -> String {
    let full_name = table.full_name();
    match fate {
        Fate::Renamed(now) => format!(
            "partitioned table {full_name} is called {} now, which no change tells: its partitions hold rows here, so give it that name ({})",
            now.full_name(),
            renaming((&table.schema, &table.name), (&now.schema, &now.name))
        ),
        Fate::Dropped => format!(
            "partitioned table {full_name} is on production no more, nor are its partitions: it stays here with their rows up to DROP TABLE {}",
            ardent_schema_diff::qualified(&table.schema, &table.name)
        ),
        Fate::Dissolved(below) => {
            let detach =
                |part: &TableName| format!("alter table {} detach partition {}", table.quoted(), part.quoted());
            let detached: Vec<String> = below.iter().map(detach).collect();
            format!(
                "partitioned table {full_name} is on production no more, but tables that are its partitions here are, and dropping it would \
                 drop their rows: take them out of it first ({})",
                detached.join("; ")
            )
        }
    }
}

/// Columns of a table that are on one side only.
#[derive(Default)]
struct OtherColumns {
    new: Vec<String>,
    gone: Vec<String>,
}

fn tell(
    differing: &[Statement],
    found: &[SourceTable],
    state: &LogicalState,
    partitions: &Partitions,
    replaced: &ToldReplaced,
) -> Vec<String> {
    let mut told = replaced.told.clone();
    // What is said of these here, or elsewhere, is not said again.
    let mut spoken_for: Vec<&SourceTable> = Vec::new();
    let mut old_names: Vec<String> = Vec::new();
    for table in found {
        match state.tables.get(&table.oid) {
            Some(kept) if (&kept.schema, &kept.name) != (&table.schema, &table.name) => {
                let old = kept.full_name();
                told.push(format!(
                    "table {old} is called {} now: it gets that name here with its next change",
                    table.full_name()
                ));
                old_names.push(old);
                spoken_for.push(table);
            }
            Some(_) => {}
            None => {
                let name = table.full_name();
                spoken_for
                    .extend(differing.iter().any(|statement| makes(statement, Kind::Table, &name)).then_some(table));
            }
        }
    }
    let mut gone = Gone::find(differing, &old_names, state, partitions);
    told.append(&mut gone.told);
    let new_names = spoken_for.iter().map(|table| table.full_name());
    let other_names =
        gone.renamed.iter().map(TableName::full_name).chain(gone.names.iter().map(|name| (*name).to_owned()));
    let mut names: Vec<String> = old_names.into_iter().chain(new_names).chain(other_names).collect();
    for table in &replaced.tables {
        let full_name = table.full_name();
        names.extend(partitions.below(&full_name).map(str::to_owned));
        names.extend([full_name, ardent_schema_diff::qualified(&table.schema, &table.name)]);
    }
    let is_owner = |statement: &Statement| {
        spoken_for.iter().any(|table| is_owner(statement, &table.schema, &table.name))
            || gone.renamed.iter().any(|table| is_owner(statement, &table.schema, &table.name))
    };
    // A sequence that is as new as its table comes with it.
    let mut sequences: Vec<&str> = Vec::new();
    for statement in differing.iter().filter(|statement| is_owner(statement)) {
        let sequence = statement.object.rsplit_once(" of sequence ").map(|(_, sequence)| sequence);
        let is_new = |name: &&str| differing.iter().any(|other| makes(other, Kind::Sequence, name));
        sequences.extend(sequence.filter(is_new));
    }
    let mut columns: BTreeMap<String, OtherColumns> = BTreeMap::new();
    for statement in differing.iter().filter(|statement| statement.kind == Kind::Column.word()) {
        let Some((column, table)) = statement.object.rsplit_once(" of table ") else { continue };
        // A partitioned table gets its columns with a change of one of its partitions.
        let is_followed =
            partitions.followed(table).is_some() || state.tables.values().any(|kept| kept.full_name() == table);
        if names.iter().any(|name| name == table) || !is_followed {
            continue;
        }
        let entry = columns.entry(table.to_owned()).or_default();
        // Making one takes a statement more where it has a comment or privileges.
        match statement.action {
            Action::Create if !entry.new.iter().any(|new| new == column) => entry.new.push(column.to_owned()),
            Action::Drop => entry.gone.push(column.to_owned()),
            Action::Create | Action::Alter | Action::Rename => {}
        }
    }
    columns.retain(|_, columns| !columns.new.is_empty() || !columns.gone.is_empty());
    for (table, own) in &columns {
        // What is said of the table above is not said again of each of its partitions.
        let is_above = |(above, _): &(&String, &OtherColumns)| partitions.is_below(table, above);
        let above: Vec<&OtherColumns> = columns.iter().filter(is_above).map(|(_, other)| other).collect();
        let is_new = |name: &&String| !above.iter().any(|other| other.new.contains(name));
        let is_gone = |name: &&String| !above.iter().any(|other| other.gone.contains(name));
        let own = OtherColumns {
            new: own.new.iter().filter(is_new).cloned().collect(),
            gone: own.gone.iter().filter(is_gone).cloned().collect(),
        };
        if !own.new.is_empty() || !own.gone.is_empty() {
            told.push(tell_columns(table, &own, state, partitions));
        }
    }
    let is_said = |statement: &Statement| {
        names.iter().any(|table| is_about(statement, &format!("table {table}")))
            || is_owner(statement)
            || gone.attaches(statement)
            || sequences.iter().any(|sequence| is_about(statement, &format!("sequence {sequence}")))
            || columns.iter().any(|(table, columns)| is_of_columns(statement, table, columns, partitions))
    };
    told.extend(differing.iter().filter(|statement| !is_said(statement)).map(|statement| statement.sql.clone()));
    told
}

fn makes(statement: &Statement, kind: Kind, name: &str) -> bool {
    statement.action == Action::Create && statement.kind == kind.word() && statement.object == name
}

/// Whether a statement makes a column of the table the owner of a sequence.
fn is_owner(statement: &Statement, schema: &str, name: &str) -> bool {
    let Some((_, owner)) = statement.sql.rsplit_once(" OWNED BY ") else { return false };
    let rest = |text: &str, name: &str| {
        [quoted(name), name.to_owned()]
            .iter()
            .find_map(|name| Some(text.strip_prefix(name)?.strip_prefix('.')?.to_owned()))
    };
    statement.kind == Kind::OwnedBy.word() && rest(owner, schema).is_some_and(|owner| rest(&owner, name).is_some())
}

/// Whether a statement makes or drops one of these columns, or is for its default; in the table or in a partition of it.
fn is_of_columns(
    statement: &Statement,
    table: &str,
    OtherColumns { new, gone }: &OtherColumns,
    partitions: &Partitions,
) -> bool {
    let is_one = |name: &str| new.iter().chain(gone).any(|column| column == name);
    let is_its = |of: &str| of == table || partitions.is_below(of, table);
    match statement.object.rsplit_once(" of table ") {
        Some((column, of)) if statement.kind == Kind::Column.word() => is_its(of) && is_one(column),
        // A default is its column's.
        Some((default, of)) if statement.kind == Kind::Default.word() => {
            is_its(of) && default.rsplit_once(" of column ").is_some_and(|(_, column)| is_one(column))
        }
        _ => false,
    }
}

fn tell_columns(
    table: &str,
    OtherColumns { new, gone }: &OtherColumns,
    state: &LogicalState,
    partitions: &Partitions,
) -> String {
    let list = |names: &[String]| names.join(", ");
    let comes = "with its next change, if what rows hold is known; else that change stops";
    match (new.as_slice(), gone.as_slice()) {
        (new, []) => format!("table {table} has column {} now: it is added here {comes}", list(new)),
        ([], gone) => format!("table {table} has column {} no more: it is dropped here {comes}", list(gone)),
        (new, gone) => {
            let kept = state.tables.values().find(|kept| kept.full_name() == table);
            let name = kept.map(|kept| qualified(&kept.schema, &kept.name));
            let name =
                name.or_else(|| partitions.followed(table).map(TableName::quoted)).unwrap_or_else(|| table.to_owned());
            format!(
                "table {table} has column {} no more, and column {} now: with its next change it gets that form here if they are surely \
                 different ones, else nothing is applied from there on, unless it has that form by then: if it is one column under \
                 another name, run alter table {name} rename column {} to {}",
                list(gone),
                list(new),
                quoted(&gone[0]),
                quoted(&new[0])
            )
        }
    }
}

/// Whether a statement is for a whole (`table shop.users`), or something of it.
fn is_about(statement: &Statement, whole: &str) -> bool {
    let path = format!("{} {}", statement.kind, statement.object);
    let of_whole = format!(" of {whole}");
    [&path, &statement.part].iter().any(|path| **path == whole || path.ends_with(&of_whole))
}

/// `column note of table shop.users` is of `shop`.
fn is_of_schema(object: &str, schema: &str) -> bool {
    let quoted = quoted(schema);
    [schema, quoted.as_str()].iter().any(|name| {
        object
            .split_ascii_whitespace()
            .any(|word| word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    })
}

async fn catalog(client: &Client) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    client.batch_execute("set local search_path = pg_catalog").await?;
    let mut answers = Vec::new();
    for statement in CatalogQueries::new().statements {
        let rows = client.query(&format!("select q.v::text from ({statement}) q(v)"), &[]).await?;
        answers.push(rows.iter().map(|row| row.get(0)).collect());
    }
    client.batch_execute("set local search_path = ''").await?;
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logical::same_columns::SameColumns;
    use crate::logical::state::TableState;
    use ardent_types::Lsn;

    fn statement(action: Action, kind: &str, object: &str, sql: &str) -> Statement {
        let (kind, object, sql) = (kind.to_owned(), object.to_owned(), sql.to_owned());
        Statement { section: ardent_schema_diff::Section::BeforeRows, action, kind, object, part: String::new(), sql }
    }

    fn table_name(name: &str) -> TableName {
        TableName { schema: "s".into(), name: name.into() }
    }

    #[test]
    fn what_would_lose_rows_is_told_in_words() {
        let table = |oid: u32, name: &str| SourceTable {
            oid,
            schema: "s".into(),
            name: name.into(),
            bytes: 0,
            is_logged: true,
            has_identity: true,
            is_owned: true,
            owner: "o".into(),
            is_readable: true,
        };
        let kept = |name: &str| TableState {
            schema: "s".into(),
            name: name.into(),
            bytes: 0,
            copied_at: Some(Lsn::new(1)),
            columns: SameColumns::default(),
        };
        let state = LogicalState { tables: [(1, kept("t")), (2, kept("old"))].into(), ..LogicalState::default() };
        let found = [table(1, "t"), table(2, "new"), table(3, "fresh")];
        let owned = |action, of: &str| {
            let sql = format!("ALTER SEQUENCE s.{of}_seq OWNED BY s.{of}.id");
            statement(action, "owner of sequence", &format!("s.{of}_seq of sequence s.{of}_seq"), &sql)
        };
        let differing = [
            statement(Action::Drop, "table", "s.old", "DROP TABLE s.old"),
            statement(Action::Create, "table", "s.new", "CREATE TABLE s.new ()"),
            owned(Action::Alter, "new"),
            statement(Action::Create, "sequence", "s.fresh_seq", "CREATE SEQUENCE s.fresh_seq"),
            statement(Action::Create, "table", "s.fresh", "CREATE TABLE s.fresh ()"),
            owned(Action::Create, "fresh"),
            statement(Action::Create, "index", "i of table s.fresh", "CREATE INDEX i ON s.fresh (a)"),
            statement(Action::Drop, "column", "a of table s.t", "ALTER TABLE s.t DROP COLUMN a"),
            statement(Action::Create, "column", "b of table s.t", "ALTER TABLE s.t ADD COLUMN b int"),
            statement(Action::Create, "column", "b of table s.t", "COMMENT ON COLUMN s.t.b IS 'x'"),
            statement(Action::Create, "default", "b of column b of table s.t", "ALTER TABLE s.t ALTER b SET DEFAULT 1"),
            statement(Action::Create, "index", "j of table s.t", "CREATE INDEX j ON s.t (a)"),
            statement(Action::Alter, "column", "c of table s.t", "ALTER TABLE s.t ALTER c SET NOT NULL"),
            statement(Action::Alter, "default", "d of column d of table s.t", "ALTER TABLE s.t ALTER d SET DEFAULT 2"),
            statement(Action::Create, "sequence", "s.alone_seq", "CREATE SEQUENCE s.alone_seq"),
            owned(Action::Create, "t"),
            statement(Action::Drop, "table", "s.gone", "DROP TABLE s.gone"),
        ];
        let partitions = Partitions::default();
        let told = tell(&differing, &found, &state, &partitions, &ToldReplaced::default());
        let left = [11, 12, 13, 14, 15, 16].map(|index: usize| differing[index].sql.clone());
        assert_eq!(told.len(), 2 + left.len(), "{told:#?}");
        assert!(told[0].contains("table s.old is called s.new now"), "{told:?}");
        assert!(told[1].contains("column a no more, and column b now"), "{told:?}");
        assert!(told[1].contains(r#"alter table "s"."t" rename column "a" to "b""#), "{told:?}");
        assert_eq!(told[2..], left);
        let told = tell(&differing[8..10], &found, &state, &partitions, &ToldReplaced::default());
        assert!(told.iter().any(|text| text.contains("column b now: it is added here")), "{told:?}");
    }

    #[test]
    fn columns_of_a_partitioned_table_are_told_once_and_in_words() {
        let kept = |name: &str| TableState {
            schema: "s".into(),
            name: name.into(),
            bytes: 0,
            copied_at: Some(Lsn::new(1)),
            columns: SameColumns::default(),
        };
        let state = LogicalState { tables: [(1, kept("p_1")), (2, kept("p_2a"))].into(), ..LogicalState::default() };
        let pair = |name: &str, above: &str| [name, above].map(table_name);
        let pairs = [pair("p_1", "p"), pair("p_2", "p"), pair("p_2a", "p"), pair("p_2a", "p_2"), pair("e_1", "e")];
        let partitions = Partitions::of(pairs.into_iter(), &state);
        let added = |table: &str, sql: &str| {
            statement(
                Action::Create,
                "column",
                &format!("r of table s.{table}"),
                &format!("ALTER TABLE s.{table} {sql}"),
            )
        };
        let default = |table: &str| {
            let object = format!("r of column r of table s.{table}");
            statement(
                Action::Create,
                "default",
                &object,
                &format!("ALTER TABLE s.{table} ALTER r SET DEFAULT random()"),
            )
        };
        let differing = [
            added("p", "ADD COLUMN r double precision"),
            default("p"),
            added("p_1", "ALTER r SET NOT NULL"),
            default("p_1"),
            default("p_2"),
            default("p_2a"),
            added("e", "ADD COLUMN r int"),
        ];
        let told = tell(&differing, &[], &state, &partitions, &ToldReplaced::default());
        assert_eq!(told.len(), 2, "{told:#?}");
        assert!(told[0].contains("table s.p has column r now"), "{told:?}");
        assert_eq!(told[1], differing[6].sql, "no change of its partitions will come");
        // One that only a partition has: it is one here still, and no more on production.
        let told = tell(&differing[2..4], &[], &state, &partitions, &ToldReplaced::default());
        assert!(told.len() == 1 && told[0].contains("table s.p_1 has column r now"), "{told:?}");
        // What would lose rows in all of them.
        let gone = statement(Action::Drop, "column", "q of table s.p", "ALTER TABLE s.p DROP COLUMN q");
        let told = tell(&[gone, added("p", "ADD COLUMN r int")], &[], &state, &partitions, &ToldReplaced::default());
        assert!(told.len() == 1 && told[0].contains(r#"alter table "s"."p" rename column "q" to "r""#), "{told:?}");
    }

    #[test]
    fn no_statement_drops_a_table_with_rows_that_are_followed() {
        let kept = |name: &str| TableState {
            schema: "s".into(),
            name: name.into(),
            bytes: 0,
            copied_at: Some(Lsn::new(1)),
            columns: SameColumns::default(),
        };
        let tables = [(1, kept("p_1")), (2, kept("p_2")), (3, kept("alone"))].into();
        let state = LogicalState { tables, ..LogicalState::default() };
        let pairs = [("p_1", "p"), ("p_2", "p"), ("e_1", "e")].map(|(name, above)| [name, above].map(table_name));
        let dropped =
            |name: &str| statement(Action::Drop, "table", &format!("s.{name}"), &format!("DROP TABLE s.{name}"));
        let attached = |name: &str, above: &str| {
            let sql = format!("ALTER TABLE ONLY s.{above} ATTACH PARTITION s.{name} DEFAULT");
            statement(Action::Create, "partition", &format!("s.{name} of table s.{name}"), &sql)
        };
        let differing = [
            dropped("p"),
            statement(Action::Create, "table", "s.n", "CREATE TABLE s.n (id int) PARTITION BY RANGE (id)"),
            statement(
                Action::Create,
                "constraint",
                "k of table s.n",
                "ALTER TABLE s.n ADD CONSTRAINT k PRIMARY KEY (id)",
            ),
            statement(Action::Alter, "owner of sequence", "s.q of sequence s.q", "ALTER SEQUENCE s.q OWNED BY s.n.id"),
            attached("p_1", "n"),
            attached("p_2", "n"),
            dropped("e"),
            attached("p_2", "m"),
        ];
        let check = |differing: &[Statement], production: &[(u32, &[&str])], expect: &[&str]| {
            let above =
                |&(oid, above): &(u32, &[&str])| (oid, above.iter().map(|name| table_name(name)).collect::<Vec<_>>());
            let partitions = Partitions::of(pairs.clone().into_iter(), &state);
            let partitions =
                partitions.with_production(production.iter().map(above).collect(), ["s.m".to_owned()].into());
            let told = tell(differing, &[], &state, &partitions, &ToldReplaced::default());
            assert_eq!(told.len(), expect.len(), "{told:#?}");
            assert!(told.iter().zip(expect).all(|(told, expect)| told.contains(expect)), "{told:#?}");
            let mut statements = told.iter().filter(|told| told.starts_with("DROP TABLE"));
            assert!(statements.all(|told| told == "DROP TABLE s.e"), "{told:#?}");
        };
        let renamed = r#"is called s.n now, which no change tells: its partitions hold rows here, so give it that name (alter table "s"."p" rename to "n")"#;
        check(&differing, &[(1, &["n"]), (2, &["n"])], &[renamed, "DROP TABLE s.e", "ATTACH PARTITION s.p_2"]);
        let dissolved =
            r#"(alter table "s"."p" detach partition "s"."p_1"; alter table "s"."p" detach partition "s"."p_2")"#;
        check(&[dropped("p"), attached("p_2", "m")], &[(1, &[]), (2, &["m"])], &[dissolved, "ATTACH PARTITION s.p_2"]);
        let gone = [dropped("p_1"), dropped("p_2"), dropped("p"), dropped("alone")];
        let alone = "table s.alone is on production no more: it stays here with its rows up to DROP TABLE s.alone";
        check(&gone, &[], &["partitioned table s.p is on production no more, nor are its partitions", alone]);
        check(&gone[..1], &[(2, &["p"])], &["table s.p_1 is on production no more"]);
        check(&gone[3..], &[(3, &[])], &["table s.alone is not in the schemas that were chosen on production now"]);
    }

    #[test]
    fn nothing_hides_columns_that_are_other_ones() {
        let replaced = ToldReplaced { told: vec!["column b was made anew".into()], tables: [table_name("t")].into() };
        let differing = [
            statement(
                Action::Alter,
                "default",
                "b of column b of table s.t",
                "ALTER TABLE s.t ALTER b SET DEFAULT 'nb'",
            ),
            statement(Action::Drop, "column", "c of table s.t", "ALTER TABLE s.t DROP COLUMN c"),
            statement(Action::Create, "index", "j of table s.t", "CREATE INDEX j ON s.t (a)"),
            statement(Action::Create, "index", "j of table s.u", "CREATE INDEX j ON s.u (a)"),
        ];
        let tell_of = |replaced: &ToldReplaced| {
            let pairs = [[table_name("t"), table_name("p")]].into_iter();
            let state = LogicalState::default();
            tell(&differing, &[], &state, &Partitions::of(pairs, &state), replaced)
        };
        assert_eq!(tell_of(&replaced), ["column b was made anew", "CREATE INDEX j ON s.u (a)"]);
        let above = ToldReplaced { tables: [table_name("p")].into(), ..replaced };
        assert_eq!(tell_of(&above), ["column b was made anew", "CREATE INDEX j ON s.u (a)"]);
    }

    #[test]
    fn objects_are_known_by_their_schema() {
        assert!(is_of_schema("column note of table shop.users", "shop"));
        assert!(is_of_schema("schema shop", "shop") && is_of_schema("table \"Odd\".t", "Odd"));
        assert!(!is_of_schema("table workshop.users", "shop") && !is_of_schema("table public.shop", "shop"));
    }
}
