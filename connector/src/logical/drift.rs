//! What changed in production's schema and is not followed: everything but the names and columns of tables.

use std::collections::BTreeMap;

use ardent_schema_diff::{Action, Catalog, CatalogQueries, Identity, Kind, Statement, plan};
use tokio_postgres::Client;

use ardent_api::control::LogicalOptions;
use ardent_types::sql::{qualified, quoted};

use crate::logical::error::{LogicalError, root, source};
use crate::logical::state::{LogicalState, TableState};
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
/// what follows, are told in words, and tables that are not followed are left out. `found`: production's tables.
pub(crate) async fn changes(
    production: &Client,
    client: &Client,
    options: &LogicalOptions,
    found: &[SourceTable],
    state: &LogicalState,
) -> Result<Vec<String>, LogicalError> {
    let partitions = Partitions::read(client, state).await?;
    Ok(tell(&differing(production, client, options).await?, found, state, &partitions))
}

/// Every table on the root that is a partition, with the partitioned tables that it is below.
const ANCESTORS: &str = "
    select n.nspname::text, c.relname::text, m.nspname::text, p.relname::text
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        cross join lateral pg_catalog.pg_partition_ancestors(c.oid) a
        join pg_catalog.pg_class p on p.oid = a.relid join pg_catalog.pg_namespace m on m.oid = p.relnamespace
    where c.relispartition and c.relkind in ('r', 'p', 'f') and p.oid <> c.oid";

/// Partitions on the root.
#[derive(Debug, Default)]
struct Partitions {
    /// By their full names: those of the partitioned tables that they are below.
    above: BTreeMap<String, Vec<String>>,
    /// Partitioned tables that followed ones are below, by their full names: as SQL names them.
    followed: BTreeMap<String, String>,
}

impl Partitions {
    async fn read(client: &Client, state: &LogicalState) -> Result<Partitions, LogicalError> {
        let rows = client.query(ANCESTORS, &[]).await.map_err(root("looking for partitions"))?;
        let pair = |row: &tokio_postgres::Row| -> [(String, String); 2] {
            [(row.get(0), row.get(1)), (row.get(2), row.get(3))]
        };
        Ok(Partitions::of(rows.iter().map(pair), state))
    }

    /// Of pairs of a partition and a table that it is below, each with schema and name.
    fn of(pairs: impl Iterator<Item = [(String, String); 2]>, state: &LogicalState) -> Partitions {
        let mut partitions = Partitions::default();
        for [(schema, name), (above_schema, above_name)] in pairs {
            let above = format!("{above_schema}.{above_name}");
            if state.follows(&schema, &name) {
                partitions.followed.insert(above.clone(), qualified(&above_schema, &above_name));
            }
            partitions.above.entry(format!("{schema}.{name}")).or_default().push(above);
        }
        partitions
    }

    fn is_below(&self, table: &str, above: &str) -> bool {
        self.above.get(table).is_some_and(|all| all.iter().any(|name| name == above))
    }
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

/// Columns of a table that are on one side only.
#[derive(Default)]
struct OtherColumns {
    new: Vec<String>,
    gone: Vec<String>,
}

fn tell(differing: &[Statement], found: &[SourceTable], state: &LogicalState, partitions: &Partitions) -> Vec<String> {
    let mut told = Vec::new();
    // What is said of these here, or elsewhere, is not said again.
    let mut spoken_for: Vec<&SourceTable> = Vec::new();
    let mut old_names: Vec<String> = Vec::new();
    for table in found {
        match state.tables.get(&table.oid) {
            Some(kept) if (&kept.schema, &kept.name) != (&table.schema, &table.name) => {
                let old = full_name(kept);
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
    let new_names = spoken_for.iter().map(|table| table.full_name());
    let names: Vec<String> = old_names.into_iter().chain(new_names).collect();
    // A sequence that is as new as its table comes with it.
    let mut sequences: Vec<&str> = Vec::new();
    for statement in differing.iter().filter(|statement| spoken_for.iter().any(|table| is_owner(statement, table))) {
        let sequence = statement.object.rsplit_once(" of sequence ").map(|(_, sequence)| sequence);
        let is_new = |name: &&str| differing.iter().any(|other| makes(other, Kind::Sequence, name));
        sequences.extend(sequence.filter(is_new));
    }
    let mut columns: BTreeMap<String, OtherColumns> = BTreeMap::new();
    for statement in differing.iter().filter(|statement| statement.kind == Kind::Column.word()) {
        let Some((column, table)) = statement.object.rsplit_once(" of table ") else { continue };
        // A partitioned table gets its columns with a change of one of its partitions.
        let is_followed =
            partitions.followed.contains_key(table) || state.tables.values().any(|kept| full_name(kept) == table);
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
            || spoken_for.iter().any(|table| is_owner(statement, table))
            || sequences.iter().any(|sequence| is_about(statement, &format!("sequence {sequence}")))
            || columns.iter().any(|(table, columns)| is_of_columns(statement, table, columns, partitions))
    };
    told.extend(differing.iter().filter(|statement| !is_said(statement)).map(|statement| statement.sql.clone()));
    told
}

/// As statements name it.
fn full_name(table: &TableState) -> String {
    format!("{}.{}", table.schema, table.name)
}

fn makes(statement: &Statement, kind: Kind, name: &str) -> bool {
    statement.action == Action::Create && statement.kind == kind.word() && statement.object == name
}

/// Whether a statement makes a column of the table the owner of a sequence.
fn is_owner(statement: &Statement, table: &SourceTable) -> bool {
    let Some((_, owner)) = statement.sql.rsplit_once(" OWNED BY ") else { return false };
    let rest = |text: &str, name: &str| {
        [quoted(name), name.to_owned()]
            .iter()
            .find_map(|name| Some(text.strip_prefix(name)?.strip_prefix('.')?.to_owned()))
    };
    statement.kind == Kind::OwnedBy.word()
        && rest(owner, &table.schema).is_some_and(|owner| rest(&owner, &table.name).is_some())
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
            let kept = state.tables.values().find(|kept| full_name(kept) == table);
            let name = kept.map(|kept| qualified(&kept.schema, &kept.name));
            let name = name.or_else(|| partitions.followed.get(table).cloned()).unwrap_or_else(|| table.to_owned());
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
        let told = tell(&differing, &found, &state, &partitions);
        let left = [11, 12, 13, 14, 15, 16].map(|index: usize| differing[index].sql.clone());
        assert_eq!(told.len(), 2 + left.len(), "{told:#?}");
        assert!(told[0].contains("table s.old is called s.new now"), "{told:?}");
        assert!(told[1].contains("column a no more, and column b now"), "{told:?}");
        assert!(told[1].contains(r#"alter table "s"."t" rename column "a" to "b""#), "{told:?}");
        assert_eq!(told[2..], left);
        let told = tell(&differing[8..10], &found, &state, &partitions);
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
        let pair = |name: &str, above: &str| [name, above].map(|name| ("s".to_owned(), name.to_owned()));
        let pairs = [pair("p_1", "p"), pair("p_2", "p"), pair("p_2a", "p_2"), pair("p_2a", "p"), pair("e_1", "e")];
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
        let told = tell(&differing, &[], &state, &partitions);
        assert_eq!(told.len(), 2, "{told:#?}");
        assert!(told[0].contains("table s.p has column r now"), "{told:?}");
        assert_eq!(told[1], differing[6].sql, "no change of its partitions will come");
        // One that only a partition has: it is one here still, and no more on production.
        let told = tell(&differing[2..4], &[], &state, &partitions);
        assert!(told.len() == 1 && told[0].contains("table s.p_1 has column r now"), "{told:?}");
        // What would lose rows in all of them.
        let gone = statement(Action::Drop, "column", "q of table s.p", "ALTER TABLE s.p DROP COLUMN q");
        let told = tell(&[gone, added("p", "ADD COLUMN r int")], &[], &state, &partitions);
        assert!(told.len() == 1 && told[0].contains(r#"alter table "s"."p" rename column "q" to "r""#), "{told:?}");
    }

    #[test]
    fn objects_are_known_by_their_schema() {
        assert!(is_of_schema("column note of table shop.users", "shop"));
        assert!(is_of_schema("schema shop", "shop") && is_of_schema("table \"Odd\".t", "Odd"));
        assert!(!is_of_schema("table workshop.users", "shop") && !is_of_schema("table public.shop", "shop"));
    }
}
