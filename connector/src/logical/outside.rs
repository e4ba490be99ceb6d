//! What the schemas that were chosen have in others: rows that are missed on branches, and definitions that are needed there.

use ardent_api::control::LogicalOptions;
use tokio_postgres::Client;

use crate::logical::error::{LogicalError, source};

/// A partition or inheriting table of another schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutsidePart {
    /// Schema and name.
    pub name: String,
    pub schema: String,
    /// The table of a chosen schema that shows its rows; schema and name.
    pub of: String,
}

impl OutsidePart {
    /// How it is said that its rows are left out.
    pub fn left_out(&self) -> String {
        let OutsidePart { name, schema, of } = self;
        format!(
            "rows of {name}, which table {of} shows on production: schema {schema} is not among those that were chosen"
        )
    }
}

/// Those of tables of the schemas `$1`. What these have in turn is theirs.
const PARTS: &str = "
    select n.nspname || '.' || c.relname, n.nspname::text, pn.nspname || '.' || p.relname
    from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
        join pg_class p on p.oid = i.inhparent join pg_namespace pn on pn.oid = p.relnamespace
    where p.relkind in ('r', 'p') and pn.nspname = any ($1::text[]) and n.nspname <> all ($1::text[]) and n.nspname !~ '^pg_'
    order by 1, 3";

/// What definitions of the schemas `$1` name in others, but for extensions, which are made whatever was chosen. Only those of
/// definitions that rows need: what a view or a trigger lacks is left out, and said to be.
const NEEDED: &str = "
    with own as (
        select 'pg_class'::regclass::oid as class, c.oid, format('table %I.%I', n.nspname, c.relname) as what
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = any ($1::text[]) and c.relkind in ('r', 'p')
        union all
        select 'pg_class'::regclass, c.oid, format('type %I.%I', n.nspname, c.relname)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = any ($1::text[]) and c.relkind = 'c'
        union all
        select 'pg_class'::regclass, c.oid, format('index %I.%I', n.nspname, c.relname)
        from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = any ($1::text[]) and i.indisunique
        union all
        select 'pg_attrdef'::regclass, d.oid, format('table %I.%I', n.nspname, c.relname)
        from pg_attrdef d join pg_class c on c.oid = d.adrelid join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = any ($1::text[]) and c.relkind in ('r', 'p')
        union all
        select 'pg_constraint'::regclass, k.oid, format('constraint %I in schema %I', k.conname, n.nspname)
        from pg_constraint k join pg_namespace n on n.oid = k.connamespace
        where n.nspname = any ($1::text[]) and k.contype = 'c'
        union all
        select 'pg_type'::regclass, t.oid, format('type %I.%I', n.nspname, t.typname)
        from pg_type t join pg_namespace n on n.oid = t.typnamespace
        where n.nspname = any ($1::text[]) and t.typtype in ('d', 'r')),
    named as (
        select 'pg_type'::regclass::oid as class, t.oid, coalesce(e.typnamespace, t.typnamespace) as namespace,
            'type' as kind, coalesce(e.typname, t.typname) as name
        from pg_type t left join pg_type e on e.oid = t.typelem and t.typtype = 'b' and t.typcategory = 'A'
        union all
        select 'pg_proc'::regclass, oid, pronamespace, 'function', proname from pg_proc
        union all
        select 'pg_collation'::regclass, oid, collnamespace, 'collation', collname from pg_collation
        union all
        select 'pg_class'::regclass, oid, relnamespace, case relkind when 'S' then 'sequence' else 'table' end, relname
        from pg_class where relkind in ('r', 'p', 'f', 'v', 'm', 'S'))
    select distinct format('%s %I.%I (of %s)', named.kind, n.nspname, named.name, own.what), n.nspname::text
    from own join pg_depend d on d.classid = own.class and d.objid = own.oid
        join named on named.class = d.refclassid and named.oid = d.refobjid
        join pg_namespace n on n.oid = named.namespace
    where n.nspname <> all ($1::text[]) and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and not exists (select 1 from pg_depend e
            where e.classid = d.refclassid and e.objid = d.refobjid and e.deptype = 'e')
    order by 1";

/// Partitions and inheriting tables of tables that were chosen, in schemas that were not.
pub(crate) async fn outside_parts(client: &Client, options: &LogicalOptions) -> Result<Vec<OutsidePart>, LogicalError> {
    if options.schemas.is_empty() {
        return Ok(Vec::new());
    }
    let rows = client.query(PARTS, &[&options.schemas]).await.map_err(source("listing its partitions"))?;
    let part = |row: &tokio_postgres::Row| OutsidePart { name: row.get(0), schema: row.get(1), of: row.get(2) };
    Ok(rows.iter().map(part).collect())
}

/// What the schemas that were chosen cannot be made without, each with whose it is, and the schemas that have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NeededOutside {
    pub what: Vec<String>,
    pub schemas: Vec<String>,
}

pub(crate) async fn needed_outside(client: &Client, options: &LogicalOptions) -> Result<NeededOutside, LogicalError> {
    let mut needed = NeededOutside::default();
    if options.schemas.is_empty() {
        return Ok(needed);
    }
    let rows = client.query(NEEDED, &[&options.schemas]).await;
    for row in rows.map_err(source("looking for what its schemas need of others"))? {
        needed.what.push(row.get(0));
        let schema: String = row.get(1);
        if !needed.schemas.contains(&schema) {
            needed.schemas.push(schema);
        }
    }
    Ok(needed)
}

/// What of production the chosen schemas' rows are not complete without, and what logical replication does not carry, as it is said of
/// the root branch.
pub(crate) async fn left_out_everywhere(
    client: &Client,
    options: &LogicalOptions,
) -> Result<Vec<String>, LogicalError> {
    let mut left_out: Vec<String> = outside_parts(client, options).await?.iter().map(OutsidePart::left_out).collect();
    let count = client.query_one("select count(*) from pg_catalog.pg_largeobject_metadata", &[]).await;
    left_out.extend(large_objects_left_out(count.map_err(source("counting large objects"))?.get(0)));
    Ok(left_out)
}

fn large_objects_left_out(count: i64) -> Option<String> {
    let objects = if count == 1 { "large object" } else { "large objects" };
    (count > 0).then(|| format!("{count} {objects}: logical replication does not carry them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_named_with_why() {
        let part = OutsidePart { name: "a2.p_2".into(), schema: "a2".into(), of: "a1.p".into() };
        let said = part.left_out();
        assert!(said.contains("a2.p_2") && said.contains("table a1.p") && said.contains("schema a2 is not"), "{said}");
        assert_eq!(large_objects_left_out(0), None);
        assert!(large_objects_left_out(1).is_some_and(|said| said.starts_with("1 large object:")));
        assert!(large_objects_left_out(3).is_some_and(|said| said.starts_with("3 large objects:")));
    }
}
