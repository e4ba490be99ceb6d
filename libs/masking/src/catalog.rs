//! What a database has, as far as rules concern it.

use tokio_postgres::Client;

/// One database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its tables, by name: ordinary ones, and partitioned ones in place of their partitions.
    pub tables: Vec<Table>,
    /// Foreign keys.
    pub foreign_keys: Vec<ForeignKey>,
    /// Sequences that fill columns.
    pub sequences: Vec<Sequence>,
    /// What would run while rows are changed, whatever is switched off.
    pub always_run: Vec<String>,
}

/// A table with rows of its own, or of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its number.
    pub oid: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Whether its rows are in partitions.
    pub is_partitioned: bool,
    /// Columns with values of their own, in order: generated ones follow others.
    pub columns: Vec<Column>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its number.
    pub number: i16,
    /// Name.
    pub name: String,
    /// Its type as SQL writes it, with its length.
    pub sql_type: String,
    /// Its type without a length, and of a domain the domain's name.
    pub declared_type: String,
    /// The type that values are stored as: what a domain is of.
    pub base_type: String,
    /// It may not be NULL.
    pub not_null: bool,
    /// It is in a unique index or exclusion constraint.
    pub unique: bool,
    /// Partitions list values of it, and there is none for others.
    pub partition_key: bool,
    /// It is an identity that is always generated: no statement may give it a value.
    pub always_generated: bool,
}

/// A column that refers to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    /// The constraint's name.
    pub name: String,
    /// Number of the table that refers, and of its column.
    pub from: (u32, i16),
    /// What it refers to.
    pub to: (u32, i16),
    /// Of the table that it refers to, it refers to one partition alone.
    pub to_partition: bool,
}

/// A sequence, with a column that it fills: because the column owns it, or because the column's default names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its name, with its schema, as SQL takes it.
    pub name: String,
    /// The column.
    pub fills: (u32, i16),
    /// It counts down.
    pub descends: bool,
}

/// Columns of all tables that users made: those of `initdb` have smaller numbers. Partitions are seen to by what they are parts of.
const COLUMNS: &str = "
    with recursive based(oid, at) as (
        select t.oid, t.oid from pg_type t
        union all select b.oid, t.typbasetype from based b join pg_type t on t.oid = b.at where t.typtype = 'd')
    select c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', a.attnum, a.attname::text,
        format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, null), format_type(b.at, null), a.attnotnull,
        exists (select from pg_index i where i.indrelid = c.oid and (i.indisunique or i.indisexclusion)
            and (a.attnum = any (i.indkey::int2[]) or 0 = any (i.indkey::int2[]))), a.attidentity = 'a',
        c.relkind = 'p' and exists (select from pg_partition_tree(c.oid) p join pg_partitioned_table k on k.partrelid = p.relid
            join pg_attribute part on part.attrelid = k.partrelid and part.attnum = any (k.partattrs::int2[])
            where part.attname = a.attname and k.partstrat = 'l' and k.partdefid = 0)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    left join (pg_attribute a join based b on b.oid = a.atttypid join pg_type t on t.oid = b.at and t.typtype <> 'd')
        on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    where c.oid >= 16384 and c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
    order by 2, 3, 5";

/// One row for each pair of columns, each the one of the table that a partition is a part of. Of constraints on partitions, those that
/// are part of another are left out.
const FOREIGN_KEYS: &str = "
    select k.conname::text, refers.attrelid, refers.attnum, referred.attrelid, referred.attnum, referred.attrelid <> k.confrelid
    from pg_constraint k, unnest(k.conkey, k.confkey) f(from_column, to_column),
        lateral (select r.attrelid, r.attnum from pg_attribute a join pg_attribute r on r.attname = a.attname and r.attrelid = coalesce(pg_partition_root(k.conrelid), k.conrelid)
            where a.attrelid = k.conrelid and a.attnum = f.from_column) refers,
        lateral (select r.attrelid, r.attnum from pg_attribute a join pg_attribute r on r.attname = a.attname and r.attrelid = coalesce(pg_partition_root(k.confrelid), k.confrelid)
            where a.attrelid = k.confrelid and a.attnum = f.to_column) referred
    where k.contype = 'f' and k.conparentid = 0
    order by 1, 2, 3";

/// The same of sequences, of identity columns, serial ones, and ones whose default names a sequence.
const SEQUENCES: &str = "
    select distinct s.seqrelid::regclass::text, r.attrelid, r.attnum, s.seqincrement < 0
    from (select d.objid as sequence, d.refobjid as relation, d.refobjsubid as number from pg_depend d
            where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0 and d.deptype in ('a', 'i')
        union select d.refobjid, k.adrelid, k.adnum from pg_attrdef k
            join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = k.oid and d.refclassid = 'pg_class'::regclass) f
    join pg_sequence s on s.seqrelid = f.sequence
    join pg_attribute a on a.attrelid = f.relation and a.attnum = f.number
    join pg_attribute r on r.attname = a.attname and r.attrelid = coalesce(pg_partition_root(f.relation), f.relation)
    order by 1, 2, 3";

/// Triggers and rules that session_replication_role leaves on.
const ALWAYS_RUN: &str = "
    select format('trigger %I on %s', t.tgname, t.tgrelid::regclass) from pg_trigger t
        where not t.tgisinternal and t.tgenabled in ('A', 'R')
    union all select format('rule %I on %s', r.rulename, r.ev_class::regclass) from pg_rewrite r
        where r.ev_enabled in ('A', 'R') and r.ev_type <> '1'
    union all select format('event trigger %I', e.evtname) from pg_event_trigger e where e.evtenabled in ('A', 'R')
    order by 1";

/// Reads one database. The session's search path must be empty, so that types are named with their schemas.
pub async fn read_database(client: &Client, name: &str) -> Result<Database, tokio_postgres::Error> {
    let mut database = Database { name: name.to_owned(), ..Database::default() };
    for row in client.query(COLUMNS, &[]).await? {
        let oid: u32 = row.try_get(0)?;
        if database.tables.last().is_none_or(|table| table.oid != oid) {
            let (schema, name, is_partitioned) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            database.tables.push(Table { oid, schema, name, is_partitioned, columns: Vec::new() });
        }
        // A table may have no columns.
        if let Some(number) = row.try_get::<_, Option<i16>>(4)? {
            let table = database.tables.last_mut().expect("one was just made");
            table.columns.push(Column {
                number,
                name: row.try_get(5)?,
                sql_type: row.try_get(6)?,
                declared_type: row.try_get(7)?,
                base_type: row.try_get(8)?,
                not_null: row.try_get(9)?,
                unique: row.try_get(10)?,
                always_generated: row.try_get(11)?,
                partition_key: row.try_get(12)?,
            });
        }
    }
    for row in client.query(FOREIGN_KEYS, &[]).await? {
        database.foreign_keys.push(ForeignKey {
            name: row.try_get(0)?,
            from: (row.try_get(1)?, row.try_get(2)?),
            to: (row.try_get(3)?, row.try_get(4)?),
            to_partition: row.try_get(5)?,
        });
    }
    for row in client.query(SEQUENCES, &[]).await? {
        database.sequences.push(Sequence {
            name: row.try_get(0)?,
            fills: (row.try_get(1)?, row.try_get(2)?),
            descends: row.try_get(3)?,
        });
    }
    for row in client.query(ALWAYS_RUN, &[]).await? {
        database.always_run.push(row.try_get(0)?);
    }
    Ok(database)
}
