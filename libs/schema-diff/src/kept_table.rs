//! A table as one database has it at two times.

use crate::catalog::{Catalog, Kind, Object, ObjectId};

/// A table that is there at both times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptTable {
    /// Its OID.
    pub oid: u32,
    /// Schema and name before.
    pub before: (String, String),
    /// Schema and name after.
    pub after: (String, String),
    /// The columns that it has at both times, in order.
    pub columns: Vec<KeptColumn>,
}

/// A column of such a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptColumn {
    /// Its number (`attnum`).
    pub number: i32,
    /// Its name before.
    pub before: String,
    /// Its name after.
    pub after: String,
    /// Whether Postgres computed it before.
    pub was_computed: bool,
    /// Whether it does after.
    pub is_computed: bool,
}

impl KeptColumn {
    /// Whether it lost its expression.
    pub fn is_freed(&self) -> bool {
        self.was_computed && !self.is_computed
    }
}

impl Catalog {
    /// The tables with rows of their own that have columns without their expression in `after`, a later catalog of the same database.
    pub fn dropped_expressions(&self, after: &Catalog) -> Vec<KeptTable> {
        let tables = self.objects.values().filter(|object| object.kind == Kind::Table);
        let tables = tables.filter(|table| table.text("partition_key").is_none());
        let kept = tables.filter_map(|table| self.kept(after, table));
        kept.filter(|table| table.columns.iter().any(KeptColumn::is_freed)).collect()
    }

    /// The table with this OID, if `after`, a later catalog of the same database, has it too.
    pub fn kept_table(&self, after: &Catalog, oid: u32) -> Option<KeptTable> {
        let id = ObjectId { class: "pg_class".to_owned(), oid, sub: 0 };
        self.kept(after, self.objects.get(&id)?)
    }

    /// Names of the columns of a table that Postgres computes; schema and name are not quoted.
    pub fn computed_columns(&self, schema: &str, name: &str) -> Vec<String> {
        let is_it = |table: &&Object| {
            table.kind == Kind::Table && table.name == name && table.schema.as_deref() == Some(schema)
        };
        let table = self.objects.values().find(is_it);
        let columns = table.into_iter().flat_map(|table| self.columns(&table.id));
        columns.filter(|column| column.text("generated").is_some()).map(|column| column.name.clone()).collect()
    }

    fn kept(&self, after: &Catalog, table: &Object) -> Option<KeptTable> {
        let now = after.objects.get(&table.id)?;
        let is_computed = |column: &Object| column.text("generated").is_some();
        let columns = self.columns(&table.id).filter_map(|column| {
            let now = after.objects.get(&column.id)?;
            Some(KeptColumn {
                number: column.id.sub,
                before: column.name.clone(),
                after: now.name.clone(),
                was_computed: is_computed(column),
                is_computed: is_computed(now),
            })
        });
        let (before, name) = (full_name(table), full_name(now));
        Some(KeptTable { oid: table.id.oid, before, after: name, columns: columns.collect() })
    }
}

/// Schema and name, not quoted.
fn full_name(table: &Object) -> (String, String) {
    (table.schema.clone().unwrap_or_default(), table.name.clone())
}
