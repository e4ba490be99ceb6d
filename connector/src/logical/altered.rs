//! The table that is to be altered where a followed one has other columns than before: it itself, or the topmost partitioned table that
//! it belongs to, whose columns all partitions have. Tables that inherit otherwise are left to somebody: a column of one may be one of
//! others, or not, and changes do not tell.

use std::collections::HashMap;

use ardent_pgoutput::Relation;
use ardent_types::sql::{qualified, quoted};
use tokio_postgres::{Client, Row};

use crate::logical::error::{LogicalError, root, source};
use crate::logical::partitions::TableName;
use crate::logical::relation::{RootColumn, is_on_root, root_columns};
use crate::logical::same_columns::{SameColumns, SourceNumbers};
use crate::logical::state::TableState;

/// The topmost table that one is a partition of; none if it is none.
const TOPMOST: &str = "
    select n.nspname::text, c.relname::text from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = pg_catalog.pg_partition_root(pg_catalog.to_regclass($1))";
const LEAVES: &str = "
    select n.nspname::text, c.relname::text
    from pg_catalog.pg_partition_tree(pg_catalog.to_regclass($1)) t join pg_catalog.pg_class c on c.oid = t.relid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where t.isleaf order by c.oid";
/// The tables that one inherits from or that inherit from it, where it is no partition.
const INHERITING: &str = "
    select pg_catalog.concat_ws('.', n.nspname, c.relname)
    from (select inhparent as oid from pg_catalog.pg_inherits where inhrelid = pg_catalog.to_regclass($1)
            union select inhrelid from pg_catalog.pg_inherits where inhparent = pg_catalog.to_regclass($1)) i
        join pg_catalog.pg_class c on c.oid = i.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    order by c.oid";
/// Those of these tables that are there, each with the topmost table that it is a partition of.
const PARENTS: &str = "
    select c.oid, p.oid, n.nspname::text, p.relname::text
    from pg_catalog.pg_class c left join pg_catalog.pg_class p on p.oid = pg_catalog.pg_partition_root(c.oid)
        left join pg_catalog.pg_namespace n on n.oid = p.relnamespace
    where c.oid = any ($1)";
/// A partition, followed by the tables that it is below, the topmost last; nothing if it is none. `TABLE`: which.
const UP_FROM: &str = "
    select n.nspname::text, c.relname::text from pg_catalog.pg_partition_ancestors(TABLE) with ordinality a(relid, place)
        join pg_catalog.pg_class c on c.oid = a.relid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    order by a.place";
/// Whether there is a partitioned table of this schema and name.
const PARTITIONED: &str = "
    select exists (select 1 from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relname = $2 and c.relkind = 'p')";

/// A followed table whose columns are other ones than before, and what is known of them.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    /// On production.
    pub oid: u32,
    /// On the root.
    pub schema: String,
    pub name: String,
    pub same: SameColumns,
    pub source: SourceNumbers,
    /// The root's, as they were before.
    pub columns: Vec<RootColumn>,
}

impl Followed {
    pub fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// Schema and name, for messages.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// The root's column of this name.
    pub fn column(&self, name: &str) -> Option<&RootColumn> {
        self.columns.iter().find(|column| column.name == name && !column.is_generated)
    }
}

/// What is to be altered on the root.
#[derive(Clone, Debug)]
pub(crate) struct Altered {
    schema: String,
    name: String,
    /// On production.
    pub oid: u32,
    pub is_partitioned: bool,
    /// The followed tables that are altered with it; the first is the one that a change has come of. What production has dropped by now is
    /// not among them.
    pub followed: Vec<Followed>,
}

impl Altered {
    /// As SQL names it.
    pub fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// Schema and name, for messages; with the partition that a change has come of.
    pub fn full_name(&self) -> String {
        match self.followed.first().filter(|_| self.is_partitioned) {
            Some(first) => format!("{}.{} (seen in its partition {})", self.schema, self.name, first.full_name()),
            None => format!("{}.{}", self.schema, self.name),
        }
    }

    /// The table to alter for `first`, or why there is none. `tables`: all that are followed.
    pub async fn find(
        production: &Client,
        client: &Client,
        first: Followed,
        tables: &HashMap<u32, TableState>,
    ) -> Result<Result<Altered, String>, LogicalError> {
        let (first_oid, doing) = (first.oid, format!("looking for the partitions beside table {}", first.full_name()));
        let topmost = client.query_opt(TOPMOST, &[&first.quoted()]).await.map_err(root(doing.clone()))?;
        let Some(topmost) = topmost else {
            let inheriting = client.query(INHERITING, &[&first.quoted()]).await.map_err(root(doing))?;
            let inheriting: Vec<String> = inheriting.iter().map(|row| row.get(0)).collect();
            return Ok(if inheriting.is_empty() { Ok(Altered::alone(first)) } else { Err(inherits(&inheriting)) });
        };
        let (schema, name): (String, String) = (topmost.get(0), topmost.get(1));
        let leaves = client.query(LEAVES, &[&qualified(&schema, &name)]).await.map_err(root(doing))?;
        let leaves: Vec<(String, String)> = leaves.iter().map(|row| (row.get(0), row.get(1))).collect();
        let is_leaf =
            |table: &TableState| leaves.iter().any(|(schema, name)| (schema, name) == (&table.schema, &table.name));
        let is_below = |&(oid, table): &(&u32, &TableState)| *oid == first_oid || is_leaf(table);
        let oids: Vec<u32> = tables.iter().filter(is_below).map(|(oid, _)| *oid).collect();
        let found = production.query(PARENTS, &[&oids]).await.map_err(source("looking for a table's partitions"))?;
        let mut parents: HashMap<u32, Parent> = HashMap::new();
        for row in &found {
            let parent: Parent = row.get::<_, Option<u32>>(1).map(|oid| (oid, row.get(2), row.get(3)));
            parents.insert(row.get(0), parent);
        }
        if let Some((_, of, called)) = only_parent(&parents)
            && (of, called) != (&schema, &name)
            && !is_on_root(client, of, called).await?
        {
            let there = production.query_one(PARTITIONED, &[&schema, &name]).await;
            if !there.map_err(source("looking for a partitioned table"))?.get::<_, bool>(0) {
                return Ok(Err(renamed((&schema, &name), (of, called))));
            }
        }
        let oid = match same_parent((&schema, &name), first_oid, &parents, tables) {
            Ok(oid) => oid,
            Err(Unlike::Dropped) => {
                return Ok(Err(format!(
                    "it is a partition of table {schema}.{name} here, and was dropped on production since"
                )));
            }
            Err(Unlike::Elsewhere(oid)) => {
                let table = &tables[&oid];
                let here = up_from_here(client, table).await?;
                let there = up_from_there(production, oid).await?;
                return Ok(Err(detached((&schema, &name), &table.full_name(), &here, &there)));
            }
        };
        let mut followed = vec![first];
        let is_other = |&(oid, _): &(&u32, &TableState)| *oid != first_oid && parents.contains_key(oid);
        for (oid, table) in tables.iter().filter(is_other) {
            followed.push(Followed {
                oid: *oid,
                schema: table.schema.clone(),
                name: table.name.clone(),
                same: table.columns.clone(),
                source: SourceNumbers::read(production, *oid).await?,
                columns: root_columns(client, &table.schema, &table.name).await?,
            });
        }
        Ok(Ok(Altered { schema, name, oid, is_partitioned: true, followed }))
    }

    /// Its name on the root.
    pub fn table(&self) -> TableName {
        TableName { schema: self.schema.clone(), name: self.name.clone() }
    }

    /// A table that is no partition.
    pub fn alone(table: Followed) -> Altered {
        let (schema, name) = (table.schema.clone(), table.name.clone());
        Altered { schema, name, oid: table.oid, is_partitioned: false, followed: vec![table] }
    }

    /// What is known of the tables beside the first one, once that has the relation's columns; by their OIDs on production.
    pub async fn learned(
        &self,
        client: &Client,
        relation: &Relation,
        added: &[usize],
        retyped: &[String],
    ) -> Result<Vec<(u32, SameColumns)>, LogicalError> {
        let names: Vec<&str> = added.iter().map(|&index| relation.columns[index].name.as_str()).collect();
        let mut learned = Vec::new();
        for table in self.followed.iter().skip(1) {
            let columns = root_columns(client, &table.schema, &table.name).await?;
            let mut same = table.same.clone();
            same.learn(&names, &table.source, &columns);
            same.widened(retyped, &table.source, &columns);
            learned.push((table.oid, same));
        }
        Ok(learned)
    }
}

/// On production: a partitioned table's OID, schema and name. `None`: a table is no partition.
type Parent = Option<(u32, String, String)>;

/// What all of these that are partitions on production are partitions of, if that is one table.
fn only_parent(parents: &HashMap<u32, Parent>) -> Option<&(u32, String, String)> {
    let mut all = parents.values().flatten();
    let first = all.next()?;
    all.all(|(oid, ..)| *oid == first.0).then_some(first)
}

/// The statements that give a table another schema and name.
pub(crate) fn renaming((schema, name): (&str, &str), (of, called): (&str, &str)) -> String {
    let moved = format!("alter table {} set schema {}", qualified(schema, name), quoted(of));
    let named = format!("alter table {} rename to {}", qualified(of, name), quoted(called));
    let statements: Vec<String> =
        [(of != schema).then_some(moved), (called != name).then_some(named)].into_iter().flatten().collect();
    statements.join("; ")
}

/// What is said of a partitioned table that production has renamed: no change tells that, and its partitions cannot be told from others.
fn renamed((schema, name): (&str, &str), (of, called): (&str, &str)) -> String {
    format!(
        "columns of the partitioned table {schema}.{name} are not what they were, and it is called {of}.{called} on production by now: give \
         it that name here first ({})",
        renaming((schema, name), (of, called))
    )
}

/// What is said of a table that inherits from others, or that others inherit from, without being partitions.
fn inherits(others: &[String]) -> String {
    format!(
        "its columns are not what they were, and it inherits from other tables or they inherit from it ({}), whose rows may hold anything \
         in columns that come from above: give all of them the columns and values that production's have, with alter table only where \
         production's others kept theirs",
        others.join(", ")
    )
}

/// Why tables that are below one partitioned table here are not on production.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unlike {
    /// This one is below another one there, or below none.
    Elsewhere(u32),
    /// The one that a change has come of is not there.
    Dropped,
}

/// The OID of production's partitioned table of this name, if all of these tables are its partitions there as they are here; else why not.
/// A column of the one here would be one of all of them.
fn same_parent(
    (schema, name): (&str, &str),
    first: u32,
    parents: &HashMap<u32, Parent>,
    tables: &HashMap<u32, TableState>,
) -> Result<u32, Unlike> {
    let is_same = |parent: &Parent| {
        parent.as_ref().is_some_and(|(_, of, called)| (of.as_str(), called.as_str()) == (schema, name))
    };
    let others = parents.iter().filter(|&(oid, parent)| !is_same(parent) && tables.contains_key(oid));
    if let Some(oid) = others.map(|(oid, _)| *oid).min() {
        return Err(Unlike::Elsewhere(oid));
    }
    match parents.get(&first) {
        Some(Some((oid, ..))) => Ok(*oid),
        _ => Err(Unlike::Dropped),
    }
}

async fn up_from_here(client: &Client, table: &TableState) -> Result<Vec<TableName>, LogicalError> {
    let sql = UP_FROM.replace("TABLE", "pg_catalog.to_regclass($1)");
    let rows = client.query(&sql, &[&qualified(&table.schema, &table.name)]).await;
    let rows = rows.map_err(root(format!("looking for what table {} is below", table.full_name())))?;
    Ok(rows.iter().map(table_name).collect())
}

async fn up_from_there(production: &Client, oid: u32) -> Result<Vec<TableName>, LogicalError> {
    let sql = UP_FROM.replace("TABLE", "$1::oid::pg_catalog.regclass");
    let rows = production.query(&sql, &[&oid]).await.map_err(source("looking for what a table is below"))?;
    Ok(rows.iter().map(table_name).collect())
}

fn table_name(row: &Row) -> TableName {
    TableName { schema: row.get(0), name: row.get(1) }
}

/// What is said of a followed table that is below the partitioned one here, and not on production. `here`, `there`: it, and the tables that
/// it is below, the topmost last. What was taken out on production may be a table above it.
fn detached((schema, name): (&str, &str), part: &str, here: &[TableName], there: &[TableName]) -> String {
    let taken_out = here.windows(2).enumerate().find_map(|(at, step)| match step {
        [below, above] if there.get(at + 1) != Some(above) => Some((below, above)),
        _ => None,
    });
    let statement = taken_out
        .map(|(below, above)| format!(" (alter table {} detach partition {})", above.quoted(), below.quoted()));
    format!(
        "columns of the partitioned table {schema}.{name} are not what they were, and table {part} is below it here, but not on production: \
         take out here first what was taken out there{}",
        statement.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_of_all_partitions_needs_all_to_be_partitions_of_the_same_table() {
        let table = |name: &str| TableState {
            schema: "s".into(),
            name: name.into(),
            bytes: 0,
            copied_at: None,
            columns: SameColumns::default(),
        };
        let tables: HashMap<u32, TableState> = [(1, table("p_1")), (2, table("p_2"))].into();
        let check = |parents: &[(u32, Option<&str>)]| {
            let parent = |name: &str| (9, "s".to_owned(), name.to_owned());
            let parents: HashMap<u32, Parent> = parents.iter().map(|&(oid, name)| (oid, name.map(parent))).collect();
            same_parent(("s", "p"), 1, &parents, &tables)
        };
        assert_eq!(check(&[(1, Some("p")), (2, Some("p"))]), Ok(9));
        assert_eq!(check(&[(1, Some("p"))]), Ok(9), "the other one is not there any more");
        for other in [None, Some("q")] {
            assert_eq!(check(&[(1, Some("p")), (2, other)]), Err(Unlike::Elsewhere(2)));
        }
        assert_eq!(check(&[(1, Some("renamed")), (2, Some("renamed"))]), Err(Unlike::Elsewhere(1)));
        assert_eq!(check(&[(2, Some("p"))]), Err(Unlike::Dropped));
    }

    #[test]
    fn what_was_taken_out_is_named_where_that_was() {
        let names = |names: &[&str]| {
            let name = |name: &&str| TableName { schema: "s".into(), name: (*name).into() };
            names.iter().map(name).collect::<Vec<TableName>>()
        };
        let here = names(&["p_2xa", "p_2x", "p_2", "p"]);
        let check = |there: &[&str], statement: &str| {
            let why = detached(("s", "p"), "s.p_2xa", &here, &names(there));
            assert!(why.contains("table s.p ") && why.contains("table s.p_2xa is below it"), "{why}");
            assert!(why.ends_with(statement), "{why}");
        };
        check(&[], r#"(alter table "s"."p_2x" detach partition "s"."p_2xa")"#);
        check(&["p_2xa", "p_2x"], r#"(alter table "s"."p_2" detach partition "s"."p_2x")"#);
        check(&["p_2xa", "p_2x", "p_2"], r#"(alter table "s"."p" detach partition "s"."p_2")"#);
        check(&["p_2xa", "p_2x", "p_2", "q"], r#"(alter table "s"."p" detach partition "s"."p_2")"#);
        assert!(detached(("s", "p"), "s.p_1", &[], &[]).ends_with("taken out there"));
    }

    #[test]
    fn tables_that_inherit_are_named() {
        let why = inherits(&["s.c1".into(), "s.c2".into()]);
        assert!(why.contains("(s.c1, s.c2)") && why.contains("alter table only"), "{why}");
    }

    #[test]
    fn a_partitioned_table_that_was_renamed_gets_its_name() {
        let parent = |oid: u32| Some((oid, "s".to_owned(), "q".to_owned()));
        let only = |parents: &[(u32, Parent)]| only_parent(&parents.iter().cloned().collect()).map(|(oid, ..)| *oid);
        assert_eq!(only(&[(1, parent(9)), (2, parent(9)), (3, None)]), Some(9), "one of them was detached");
        assert_eq!(only(&[(1, parent(9)), (2, parent(8))]), None, "nobody knows which");
        assert_eq!(only(&[(1, None)]), None);
        for (now, statements) in [
            (("s", "q"), r#"(alter table "s"."p" rename to "q")"#),
            (("x", "p"), r#"(alter table "s"."p" set schema "x")"#),
            (("x", "q"), r#"(alter table "s"."p" set schema "x"; alter table "x"."p" rename to "q")"#),
        ] {
            let why = renamed(("s", "p"), now);
            assert!(why.contains(statements) && !why.contains("detach"), "{why}");
        }
    }
}
