//! What production has: tables that can be followed, and what cannot.

use ardent_api::control::LogicalOptions;
use ardent_types::sql::qualified;
use tokio_postgres::Client;

use crate::logical::error::{LogicalError, source};

/// A table of production's, in the schemas that were chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceTable {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub bytes: u64,
    /// It is written to WAL.
    pub is_logged: bool,
    /// Updates and deletes name their row. A key with a generated column does not: what is not sent names nothing.
    pub has_identity: bool,
    /// The role of the connection may publish it.
    pub is_owned: bool,
    pub owner: String,
    /// The role may read all of its rows.
    pub is_readable: bool,
}

impl SourceTable {
    pub fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// Schema and name, for messages.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// Tables of chosen schemas that are no extension's. The parameter: the schemas; none: all.
const TABLES: &str = "
    select c.oid, n.nspname::text, c.relname::text, pg_table_size(c.oid), c.relpersistence = 'p',
        case c.relreplident when 'f' then true when 'n' then false
            else exists (select 1 from pg_index i where i.indrelid = c.oid
                and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end
                and not exists (select 1 from pg_attribute a where a.attrelid = c.oid and a.attgenerated <> ''
                    and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]))) end,
        pg_has_role(c.relowner, 'usage'), pg_get_userbyid(c.relowner)::text,
        has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
            and not (c.relrowsecurity and (c.relforcerowsecurity or not pg_has_role(c.relowner, 'usage'))
                and not (select rolsuper or rolbypassrls from pg_roles where rolname = current_user))
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and (cardinality($1::text[]) = 0 or n.nspname = any ($1))
        and not exists (select 1 from pg_depend d
            where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
    order by c.oid";

/// The tables of the schemas that were chosen.
pub(crate) async fn tables(client: &Client, options: &LogicalOptions) -> Result<Vec<SourceTable>, LogicalError> {
    let rows = client.query(TABLES, &[&options.schemas]).await.map_err(source("listing its tables"))?;
    let table = |row: &tokio_postgres::Row| SourceTable {
        oid: row.get(0),
        schema: row.get(1),
        name: row.get(2),
        bytes: u64::try_from(row.get::<_, i64>(3)).unwrap_or_default(),
        is_logged: row.get(4),
        has_identity: row.get(5),
        is_owned: row.get(6),
        owner: row.get(7),
        is_readable: row.get(8),
    };
    Ok(rows.iter().map(table).collect())
}

/// Whether a table's rows are copied and followed. The others are empty on branches, and said to be.
pub(crate) fn is_followed(table: &SourceTable) -> bool {
    table.is_logged && table.has_identity
}
