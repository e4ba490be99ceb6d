//! Partitioned tables that followed ones are below. No change tells what becomes of them on production, and with one that is dropped here go
//! the rows of its partitions.

use std::collections::{BTreeMap, BTreeSet};

use ardent_types::sql::qualified;
use tokio_postgres::{Client, Row};

use crate::logical::error::{LogicalError, root, source};
use crate::logical::state::{LogicalState, TableState};

/// Every table on the root that is a partition, with the partitioned tables that it is below, the topmost first.
const ON_ROOT: &str = "
    select n.nspname::text, c.relname::text, m.nspname::text, p.relname::text
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        cross join lateral pg_catalog.pg_partition_ancestors(c.oid) with ordinality a(relid, place)
        join pg_catalog.pg_class p on p.oid = a.relid join pg_catalog.pg_namespace m on m.oid = p.relnamespace
    where c.relispartition and c.relkind in ('r', 'p', 'f') and p.oid <> c.oid
    order by c.oid, a.place desc";
/// Those of these tables that are there, with the partitioned tables that they are below, the topmost first; none: a table is no partition.
const ON_PRODUCTION: &str = "
    select c.oid, m.nspname::text, p.relname::text
    from pg_catalog.pg_class c
        left join lateral pg_catalog.pg_partition_ancestors(c.oid) with ordinality a(relid, place) on a.relid::oid <> c.oid
        left join pg_catalog.pg_class p on p.oid = a.relid left join pg_catalog.pg_namespace m on m.oid = p.relnamespace
    where c.oid = any ($1)
    order by c.oid, a.place desc";
/// Those of these names that something has.
const TAKEN: &str = "
    select n.nspname::text, c.relname::text from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where (n.nspname::text, c.relname::text) in (select u.schema, u.name from unnest($1::text[], $2::text[]) u(schema, name))";

/// Schema and name of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    /// For messages, and as statements name it.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    pub fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }
}

/// What became on production of a partitioned table that it has no more under the name that it has here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The followed tables below it are below this one there, and no others are.
    Renamed(TableName),
    /// None of the followed tables below it is there any more.
    Dropped,
    /// Followed tables below it are there, elsewhere: those directly below it here that hold their rows.
    Dissolved(BTreeSet<TableName>),
}

/// Partitions on the root, and what production has for those that are followed.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    /// By their full names: those of the partitioned tables that they are below, the topmost first.
    above: BTreeMap<String, Vec<String>>,
    /// Partitioned tables that followed ones are below, by their full names.
    followed: BTreeMap<String, TableName>,
    /// Followed tables that production has, by their OIDs there: the partitioned tables that they are below there, the topmost first.
    production: BTreeMap<u32, Vec<TableName>>,
    /// Full names of these that something on the root has.
    taken: BTreeSet<String>,
}

impl Partitions {
    pub async fn read(production: &Client, client: &Client, state: &LogicalState) -> Result<Partitions, LogicalError> {
        let rows = client.query(ON_ROOT, &[]).await.map_err(root("looking for partitions"))?;
        let name = |row: &Row, at: usize| TableName { schema: row.get(at), name: row.get(at + 1) };
        let partitions = Partitions::of(rows.iter().map(|row| [name(row, 0), name(row, 2)]), state);
        let oids: Vec<u32> = state.tables.keys().copied().collect();
        let rows = production.query(ON_PRODUCTION, &[&oids]).await.map_err(source("looking for partitions"))?;
        let mut found: BTreeMap<u32, Vec<TableName>> = BTreeMap::new();
        for row in &rows {
            let above: (Option<String>, Option<String>) = (row.get(1), row.get(2));
            let all = found.entry(row.get(0)).or_default();
            if let (Some(schema), Some(name)) = above {
                all.push(TableName { schema, name });
            }
        }
        let names: BTreeSet<&TableName> = found.values().flatten().collect();
        let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
        let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
        let rows =
            client.query(TAKEN, &[&schemas, &tables]).await.map_err(root("looking for tables by their names"))?;
        let taken = rows.iter().map(|row| name(row, 0).full_name()).collect();
        Ok(partitions.with_production(found, taken))
    }

    /// Of pairs of a partition and a table that it is below, the topmost first.
    pub fn of(pairs: impl Iterator<Item = [TableName; 2]>, state: &LogicalState) -> Partitions {
        let mut partitions = Partitions::default();
        for [table, above] in pairs {
            let above_name = above.full_name();
            partitions.above.entry(table.full_name()).or_default().push(above_name.clone());
            if state.follows(&table.schema, &table.name) {
                partitions.followed.insert(above_name, above);
            }
        }
        partitions
    }

    /// With the followed tables that production has, and those names of what they are below that are taken here.
    pub fn with_production(self, production: BTreeMap<u32, Vec<TableName>>, taken: BTreeSet<String>) -> Partitions {
        Partitions { production, taken, ..self }
    }

    pub fn is_below(&self, table: &str, above: &str) -> bool {
        self.above.get(table).is_some_and(|all| all.iter().any(|name| name == above))
    }

    /// Full names of the tables below one.
    pub fn below<'a>(&'a self, above: &'a str) -> impl Iterator<Item = &'a str> {
        self.above.keys().map(String::as_str).filter(move |table| self.is_below(table, above))
    }

    /// The partitioned table of this full name, if followed ones are below it.
    pub fn followed(&self, table: &str) -> Option<&TableName> {
        self.followed.get(table)
    }

    /// Whether production has a followed table, whatever it is called there.
    pub fn is_on_production(&self, oid: u32) -> bool {
        self.production.contains_key(&oid)
    }

    /// What became of a partitioned table that production has not under this full name; none if no followed table is below it.
    pub fn fate(&self, table: &str, state: &LogicalState) -> Option<Fate> {
        self.followed.get(table)?;
        // Tables that production still has, with the names of what they are below here and the place of this one among these.
        let mut kept: Vec<(u32, &TableState, &[String], usize)> = Vec::new();
        for (oid, followed) in state.tables.iter().filter(|(oid, _)| self.is_on_production(**oid)) {
            let Some(above) = self.above.get(&followed.full_name()) else { continue };
            let place = above.iter().position(|name| name == table);
            kept.extend(place.map(|place| (*oid, followed, above.as_slice(), place)));
        }
        if kept.is_empty() {
            return Some(Fate::Dropped);
        }
        let parent = |(oid, _, _, place): &(u32, &TableState, &[String], usize)| {
            let above = self.production.get(oid).filter(|above| !above.is_empty())?;
            Some(above.get(*place))
        };
        let parents: BTreeSet<Option<&TableName>> = kept.iter().filter_map(parent).collect();
        let mut parents = parents.into_iter();
        if let (Some(Some(now)), None) = (parents.next(), parents.next())
            && self.is_successor(now, table, state)
        {
            return Some(Fate::Renamed(now.clone()));
        }
        let directly_below = kept.iter().map(|(_, followed, above, place)| {
            let between = above.get(place + 1).and_then(|name| self.followed.get(name)).cloned();
            between.unwrap_or_else(|| TableName { schema: followed.schema.clone(), name: followed.name.clone() })
        });
        Some(Fate::Dissolved(directly_below.collect()))
    }

    /// Whether nothing here has that name, and nothing is below the table there that is below another one here.
    fn is_successor(&self, now: &TableName, table: &str, state: &LogicalState) -> bool {
        let is_anothers = |oid: &u32| {
            let above = state.tables.get(oid).and_then(|followed| self.above.get(&followed.full_name()));
            above.is_some_and(|above| !above.iter().any(|name| name == table))
        };
        let mut below = self.production.iter().filter(|(_, above)| above.contains(now)).map(|(oid, _)| oid);
        !self.taken.contains(&now.full_name()) && !below.any(is_anothers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logical::same_columns::SameColumns;

    fn table(name: &str) -> TableName {
        TableName { schema: "s".into(), name: name.into() }
    }

    /// `p` with `p_1`, and with `p_2a` in `p_2`; `q` with `q_1`.
    fn partitions(production: &[(u32, &[&str])], taken: &[&str]) -> (Partitions, LogicalState) {
        let kept = |name: &str| TableState {
            schema: "s".into(),
            name: name.into(),
            bytes: 0,
            copied_at: None,
            columns: SameColumns::default(),
        };
        let tables = [(1, kept("p_1")), (2, kept("p_2a")), (3, kept("q_1"))].into();
        let state = LogicalState { tables, ..LogicalState::default() };
        let pairs = [("p_1", "p"), ("p_2", "p"), ("p_2a", "p"), ("p_2a", "p_2"), ("q_1", "q")];
        let pairs = pairs.into_iter().map(|(name, above)| [table(name), table(above)]);
        let names = |names: &[&str]| names.iter().map(|name| table(name)).collect::<Vec<_>>();
        let production = production.iter().map(|&(oid, above)| (oid, names(above))).collect();
        let taken = taken.iter().map(|name| table(name).full_name()).collect();
        (Partitions::of(pairs, &state).with_production(production, taken), state)
    }

    #[test]
    fn what_became_of_a_partitioned_table_is_told_by_what_its_partitions_are_below() {
        let check = |production: &[(u32, &[&str])], name: &str, expect: Fate| {
            let (partitions, state) = partitions(production, &["q", "p_2"]);
            assert_eq!(partitions.fate(&format!("s.{name}"), &state), Some(expect), "{name}: {production:?}");
        };
        let dissolved = |names: &[&str]| Fate::Dissolved(names.iter().map(|name| table(name)).collect());
        let renamed: &[(u32, &[&str])] = &[(1, &["n"]), (2, &["n", "p_2"]), (3, &["q"])];
        check(renamed, "p", Fate::Renamed(table("n")));
        check(&[(1, &["n"]), (2, &["n", "n_2"]), (3, &["q"])], "p_2", Fate::Renamed(table("n_2")));
        check(&[(1, &["n"]), (2, &[])], "p", Fate::Renamed(table("n")));
        check(&[(2, &["n", "p_2"])], "p", Fate::Renamed(table("n")));
        check(&[(3, &["q"])], "p", Fate::Dropped);
        check(&[(1, &[]), (2, &["p_2"])], "p", dissolved(&["p_1", "p_2"]));
        check(&[(1, &[])], "p", dissolved(&["p_1"]));
        check(&[(1, &["n"]), (2, &["m", "p_2"])], "p", dissolved(&["p_1", "p_2"]));
        check(&[(1, &["q"]), (2, &["q", "p_2"])], "p", dissolved(&["p_1", "p_2"]));
        let merged: &[(u32, &[&str])] = &[(1, &["n"]), (2, &["n", "p_2"]), (3, &["n"])];
        check(merged, "p", dissolved(&["p_1", "p_2"]));
        check(merged, "q", dissolved(&["q_1"]));
        let (partitions, state) = partitions(renamed, &[]);
        assert_eq!(partitions.fate("s.e", &state), None, "nothing that is followed is below it");
    }
}
