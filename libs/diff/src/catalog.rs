//! The tables and sequences of one side, as far as a diff needs them.

use std::collections::BTreeMap;

use ardent_schema_diff::{MISSING, MISSING_IN_PARTITIONS};
use tokio_postgres::Row;

use crate::error::DiffError;
use crate::session::Session;

/// A table (ordinary, a partition, or a materialised view) on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// Its main fork's file: (tablespace, relfilenode); the tablespace is resolved, never 0.
    pub file: (u32, u32),
    /// Whether it is a materialised view, whose rows follow from those of others.
    pub materialized: bool,
    /// Whether it can be read: a materialised view without data can't, and has no rows.
    pub populated: bool,
    /// Whether its rows are in the WAL.
    pub logged: bool,
    pub columns: Vec<Column>,
    /// Attribute numbers of the primary key, or of a unique key that cannot be null, in its order.
    pub key: Vec<i16>,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub attnum: i16,
    pub name: String,
    /// What rows have that were there before the column was added without a rewrite; text. Of a partition: what all of them got.
    pub missing: Option<String>,
    /// Whether Postgres computes it from others.
    pub generated: bool,
    /// Its type and what that is narrowed to.
    pub type_of: (u32, i32),
}

/// A sequence on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub file: (u32, u32),
}

/// One side's catalog.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// By OID, which a table keeps for life.
    pub tables: BTreeMap<u32, Table>,
    /// By OID.
    pub sequences: BTreeMap<u32, Sequence>,
}

/// User relations with storage, but temporary ones. What is unlogged on both sides differs between computes for no reason that a
/// user would call a change, and is not compared.
const RELATIONS: &str = "
    select c.oid, n.nspname::text, c.relname::text, c.relkind::text,
           coalesce(nullif(c.reltablespace, 0), d.dattablespace)::oid, c.relfilenode, c.relpersistence = 'p',
           c.relispopulated
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
      join pg_database d on d.datname = current_database()
     where c.relkind in ('r', 'm', 'S') and (c.relpersistence = 'p' or c.relpersistence = 'u' and c.relkind <> 'S')
       and n.nspname <> 'pg_catalog' and n.nspname <> 'information_schema' and n.nspname !~ '^pg_toast'";

fn columns() -> String {
    format!(
        "select a.attrelid, a.attnum, a.attname::text, {MISSING}, a.attgenerated <> '', a.atttypid, a.atttypmod
           from pg_attribute a join pg_class c on c.oid = a.attrelid {MISSING_IN_PARTITIONS}
          where a.attrelid = any($1) and a.attnum > 0 and not a.attisdropped
          order by a.attrelid, a.attnum"
    )
}

/// Columns of each table's best key, as SQL that gives OID and attribute number in the key's order: the primary key, else the oldest
/// unique key that no null can escape. `tables` is an array of OIDs, as SQL.
pub fn keys(tables: &str) -> String {
    format!(
        "
    select i.indrelid, k.attnum
      from (select distinct on (u.indrelid) u.*
              from pg_index u
             where u.indrelid = any({tables}) and u.indisunique and u.indisvalid and u.indimmediate and u.indpred is null and u.indexprs is null
               and not exists (select from unnest(u.indkey::int2[]) with ordinality as c(attnum, place)
                                 join pg_attribute a on a.attrelid = u.indrelid and a.attnum = c.attnum
                                where c.place <= u.indnkeyatts and not a.attnotnull)
             order by u.indrelid, u.indisprimary desc, u.indexrelid) i,
           unnest(i.indkey::int2[]) with ordinality as k(attnum, place)
     where k.place <= i.indnkeyatts
     order by i.indrelid, k.place"
    )
}

/// The files of catalogs whose changes are changes of the schema; statistics and large objects are not among them.
const CATALOG_FILES: &str = "
    select pg_relation_filenode(c.oid) from pg_class c
     where c.oid < 16384 and c.relkind = 'r' and c.relnamespace = 'pg_catalog'::regnamespace
       and c.relname not in ('pg_statistic', 'pg_statistic_ext_data', 'pg_largeobject', 'pg_largeobject_metadata', 'pg_database', 'pg_shdepend')";

/// The files of the catalogs that hold the schema, those that all databases share among them.
pub(crate) async fn catalog_files(session: &Session) -> Result<Vec<u32>, DiffError> {
    let rows = session.query(CATALOG_FILES, &[]).await?;
    rows.iter().map(|row| field(session, row, 0)).collect()
}

/// The whole schema, in one round trip.
pub(crate) async fn schema(session: &Session) -> Result<ardent_schema_diff::Catalog, DiffError> {
    let statements = ardent_schema_diff::CatalogQueries::new().statements;
    let statements: Vec<String> =
        statements.iter().map(|statement| format!("select q.v::text from ({statement}) q(v)")).collect();
    let answers = session.texts(&statements).await?;
    ardent_schema_diff::Catalog::from_answers(&answers).map_err(|source| DiffError::Catalog {
        side: session.side.clone(),
        database: session.database.clone(),
        source,
    })
}

impl Catalog {
    /// Reads the names and files of all relations; columns and keys come with [`Catalog::load_details`].
    pub async fn load(session: &Session) -> Result<Catalog, DiffError> {
        let mut catalog = Catalog::default();
        for row in session.query(RELATIONS, &[]).await? {
            let (oid, schema, name): (u32, String, String) =
                (field(session, &row, 0)?, field(session, &row, 1)?, field(session, &row, 2)?);
            let kind: String = field(session, &row, 3)?;
            let file = (field(session, &row, 4)?, field(session, &row, 5)?);
            if kind == "S" {
                catalog.sequences.insert(oid, Sequence { oid, schema, name, file });
            } else {
                catalog.tables.insert(
                    oid,
                    Table {
                        oid,
                        schema,
                        name,
                        file,
                        materialized: kind == "m",
                        logged: field(session, &row, 6)?,
                        populated: field(session, &row, 7)?,
                        columns: Vec::new(),
                        key: Vec::new(),
                    },
                );
            }
        }
        Ok(catalog)
    }

    /// Fills in columns and keys of these tables.
    pub async fn load_details(&mut self, session: &Session, tables: &[u32]) -> Result<(), DiffError> {
        for row in session.query(&columns(), &[&tables]).await? {
            let oid: u32 = field(session, &row, 0)?;
            let column = Column {
                attnum: field(session, &row, 1)?,
                name: field(session, &row, 2)?,
                missing: field(session, &row, 3)?,
                generated: field(session, &row, 4)?,
                type_of: (field(session, &row, 5)?, field(session, &row, 6)?),
            };
            if let Some(table) = self.tables.get_mut(&oid) {
                table.columns.push(column);
            }
        }
        for row in session.query(&keys("$1"), &[&tables]).await? {
            let oid: u32 = field(session, &row, 0)?;
            let attnum: i16 = field(session, &row, 1)?;
            if let Some(table) = self.tables.get_mut(&oid) {
                table.key.push(attnum);
            }
        }
        Ok(())
    }
}

/// Tables that transactions prepared on this side have locked for writing: what they wrote becomes visible later without
/// any of its blocks changing again.
pub(crate) async fn tables_of_prepared_transactions(session: &Session) -> Result<Vec<u32>, DiffError> {
    // A prepared transaction's locks belong to no process.
    let locked = "select distinct relation from pg_locks \
                   where locktype = 'relation' and pid is null and relation is not null \
                     and database = (select oid from pg_database where datname = current_database()) \
                     and mode not in ('AccessShareLock', 'RowShareLock')";
    let rows = session.query(locked, &[]).await?;
    rows.iter().map(|row| field(session, row, 0)).collect()
}

pub(crate) fn field<'a, T: tokio_postgres::types::FromSql<'a>>(
    session: &Session,
    row: &'a Row,
    index: usize,
) -> Result<T, DiffError> {
    row.try_get(index).map_err(|source| session.failed(source))
}
