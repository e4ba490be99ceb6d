//! Relations of production's, held against the root's catalog.

use std::collections::HashMap;

use ardent_pgoutput::{Relation, ReplicaIdentity};
use ardent_types::sql::qualified;
use tokio_postgres::Client;

use crate::logical::error::{LogicalError, root, source};
use crate::logical::same_columns::ColumnType;
use crate::logical::statements::{Key, Shape, ShapeColumn};

/// `FirstGenbkiObjectId`: OIDs below are the same on every server.
pub(crate) const FIRST_OWN_OID: u32 = 10_000;

/// A column on the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootColumn {
    pub table_oid: u32,
    /// Its number: that of no other column of this table, ever.
    pub attnum: i16,
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
    pub type_name: String,
    pub is_fixed: bool,
    pub is_generated: bool,
    /// The operator of the primary key's or the replica identity's index.
    pub equals: Option<String>,
    pub is_primary: bool,
}

impl RootColumn {
    /// Its type as production's columns have theirs, where that is a built-in one.
    pub fn kind(&self) -> ColumnType {
        ColumnType(self.type_oid, self.type_modifier)
    }
}

const COLUMNS: &str = "
    select a.attname::text, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod),
        a.attidentity = 'a', a.attgenerated <> '',
        (select format('operator(%I.%s)', n.nspname, o.oprname)
            from pg_index i, unnest(i.indkey::int2[], i.indclass::oid[]) with ordinality k (attnum, opclass, place)
                join pg_opclass c on c.oid = k.opclass
                join pg_amop m on m.amopfamily = c.opcfamily and m.amopstrategy = 3
                    and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
                join pg_operator o on o.oid = m.amopopr join pg_namespace n on n.oid = o.oprnamespace
            where i.indrelid = a.attrelid and (i.indisprimary or i.indisreplident) and k.attnum = a.attnum
                and k.place <= i.indnkeyatts limit 1),
        exists (select 1 from pg_index i where i.indrelid = a.attrelid and i.indisprimary
            and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])), a.attrelid, a.attnum
    from pg_attribute a
    where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
    order by a.attnum";
/// The same of many tables, without what indexes say of them.
const ALL_COLUMNS: &str = "
    select a.attname::text, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod), a.attidentity = 'a', a.attgenerated <> '',
        null::text, false, a.attrelid, a.attnum
    from pg_attribute a
    where a.attrelid = any ($1) and a.attnum > 0 and not a.attisdropped
    order by a.attrelid, a.attnum";

/// Whether the root has a relation of this name.
pub(crate) async fn is_on_root(client: &Client, schema: &str, name: &str) -> Result<bool, LogicalError> {
    let found = client.query_one("select pg_catalog.to_regclass($1) is not null", &[&qualified(schema, name)]).await;
    Ok(found.map_err(root(format!("looking for table {schema}.{name}")))?.get(0))
}

/// A table's columns on the root; none if it is not there.
pub(crate) async fn root_columns(client: &Client, schema: &str, name: &str) -> Result<Vec<RootColumn>, LogicalError> {
    let rows = client.query(COLUMNS, &[&qualified(schema, name)]).await;
    let rows = rows.map_err(root(format!("looking at table {schema}.{name}")))?;
    Ok(rows.iter().map(root_column).collect())
}

/// The columns of several tables of the root, by the tables' OIDs there, without what indexes say of them.
pub(crate) async fn all_root_columns(
    client: &Client,
    oids: &[u32],
) -> Result<HashMap<u32, Vec<RootColumn>>, LogicalError> {
    let rows = client.query(ALL_COLUMNS, &[&oids]).await;
    let mut columns: HashMap<u32, Vec<RootColumn>> = HashMap::new();
    for column in rows.map_err(root("looking at its tables' columns"))?.iter().map(root_column) {
        columns.entry(column.table_oid).or_default().push(column);
    }
    Ok(columns)
}

fn root_column(row: &tokio_postgres::Row) -> RootColumn {
    RootColumn {
        table_oid: row.get(8),
        attnum: row.get(9),
        name: row.get(0),
        type_oid: row.get(1),
        type_modifier: row.get(2),
        type_name: row.get(3),
        is_fixed: row.get(4),
        is_generated: row.get(5),
        equals: row.get(6),
        is_primary: row.get(7),
    }
}

/// The names of types whose OIDs are production's own.
pub(crate) async fn type_names(production: &Client, relation: &Relation) -> Result<HashMap<u32, String>, LogicalError> {
    let own: Vec<(u32, i32)> = relation
        .columns
        .iter()
        .filter(|column| column.type_oid >= FIRST_OWN_OID)
        .map(|column| (column.type_oid, column.type_modifier))
        .collect();
    if own.is_empty() {
        return Ok(HashMap::new());
    }
    let mut names = HashMap::new();
    for (oid, modifier) in own {
        let row = production
            .query_opt("select format_type(oid, $2) from pg_catalog.pg_type where oid = $1", &[&oid, &modifier])
            .await
            .map_err(source("asking for a type's name"))?;
        names.extend(row.map(|row| (oid, row.get(0))));
    }
    Ok(names)
}

/// How a relation differs from the root's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Columns that the root lacks, by their place in the relation.
    pub added: Vec<usize>,
    /// Columns that production has no more.
    pub dropped: Vec<String>,
    /// Columns whose type is another one.
    pub retyped: Vec<String>,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        *self == Difference::default()
    }
}

/// Compares a relation with the root's table. Types whose OIDs are each server's own are told apart by their names, which `type_name`
/// knows as production writes them.
pub(crate) fn compare(
    relation: &Relation,
    columns: &[RootColumn],
    type_name: impl Fn(u32) -> Option<String>,
) -> Difference {
    let mut difference = Difference::default();
    for (index, column) in relation.columns.iter().enumerate() {
        let Some(here) = columns.iter().find(|here| here.name == column.name && !here.is_generated) else {
            difference.added.push(index);
            continue;
        };
        let is_same = if column.type_oid < FIRST_OWN_OID {
            (here.type_oid, here.type_modifier) == (column.type_oid, column.type_modifier)
        } else {
            // Without a name nothing can be said; a value that does not fit is refused by its type.
            type_name(column.type_oid).is_none_or(|name| here.type_name == name)
        };
        if !is_same {
            difference.retyped.push(column.name.clone());
        }
    }
    let gone = columns
        .iter()
        .filter(|here| !here.is_generated && !relation.columns.iter().any(|column| column.name == here.name));
    difference.dropped = gone.map(|here| here.name.clone()).collect();
    difference
}

/// How changes of a relation are applied to a table that does not differ.
pub(crate) fn shape(relation: &Relation, columns: &[RootColumn]) -> Shape {
    let here = |name: &str| columns.iter().find(|here| here.name == name);
    let keyed: Vec<usize> = (0..relation.columns.len()).filter(|&index| relation.columns[index].is_key).collect();
    let key = match relation.identity {
        ReplicaIdentity::Full => {
            let is_primary = |&index: &usize| here(&relation.columns[index].name).is_some_and(|here| here.is_primary);
            Key::Whole { indexed: (0..relation.columns.len()).filter(is_primary).collect() }
        }
        _ if keyed.is_empty() => Key::None,
        _ => Key::Columns(keyed),
    };
    let column = |column: &ardent_pgoutput::Column| {
        let here = here(&column.name);
        ShapeColumn {
            name: column.name.clone(),
            equals: here.and_then(|here| here.equals.clone()).unwrap_or_else(|| "operator(pg_catalog.=)".to_owned()),
            is_fixed: here.is_some_and(|here| here.is_fixed),
        }
    };
    Shape {
        schema: relation.schema.clone(),
        name: relation.name.clone(),
        columns: relation.columns.iter().map(column).collect(),
        key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_pgoutput::Column;

    fn here(name: &str, type_oid: u32) -> RootColumn {
        RootColumn {
            table_oid: 1,
            attnum: 1,
            name: name.into(),
            type_oid,
            type_modifier: -1,
            type_name: format!("type {type_oid}"),
            is_fixed: false,
            is_generated: false,
            equals: None,
            is_primary: false,
        }
    }

    fn relation(columns: &[(&str, u32)]) -> Relation {
        let column = |(name, type_oid): &(&str, u32)| Column {
            is_key: *name == "id",
            name: (*name).into(),
            type_oid: *type_oid,
            type_modifier: -1,
        };
        let columns = columns.iter().map(column).collect();
        Relation { oid: 1, schema: "s".into(), name: "t".into(), identity: ReplicaIdentity::Default, columns }
    }

    #[test]
    fn added_dropped_and_retyped_columns_are_told_apart() {
        let columns =
            [here("id", 23), here("a", 25), here("m", 20000), RootColumn { is_generated: true, ..here("g", 23) }];
        let check =
            |relation: &Relation| compare(relation, &columns, |oid| (oid == 30000).then(|| "type 20000".into()));
        assert!(check(&relation(&[("m", 30000), ("id", 23), ("a", 25)])).is_empty(), "the order does not count");
        let changed = check(&relation(&[("id", 20), ("b", 25), ("m", 30000)]));
        assert_eq!(changed, Difference { added: vec![1], dropped: vec!["a".into()], retyped: vec!["id".into()] });
    }

    #[test]
    fn keys_are_what_production_says() {
        let columns = [RootColumn { is_primary: true, ..here("id", 23) }, here("a", 25)];
        let key = |identity| shape(&Relation { identity, ..relation(&[("id", 23), ("a", 25)]) }, &columns).key;
        assert_eq!(key(ReplicaIdentity::Default), Key::Columns(vec![0]));
        assert_eq!(key(ReplicaIdentity::Full), Key::Whole { indexed: vec![0] });
        assert_eq!(shape(&relation(&[("a", 25)]), &columns).key, Key::None);
    }
}
