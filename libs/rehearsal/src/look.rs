//! The queries that look at a session and its database, and what they answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ardent_types::Lsn;

use crate::locks::{Lock, LockMode};
use crate::run::RehearsalError;

/// All relations that somebody else could use: name, kind, file, and the table of an index. Temporary ones and the tables of large values
/// are nobody else's.
pub(crate) const RELATIONS: &str = "select c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind, c.relfilenode, i.indrelid
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace left join pg_catalog.pg_index i on i.indexrelid = c.oid
  where c.oid >= 16384 and c.relpersistence <> 't' and c.relkind <> 'c' and n.nspname !~ '^pg_'";

/// What a statement's transaction holds and has done, seen from within it.
pub(crate) const LOOKS: [&str; 3] = [
    "select 'lock', l.relation::text, l.mode from pg_catalog.pg_locks l
       where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'relation' and l.granted and l.relation >= 16384
     union all select 'transaction', l.virtualtransaction, null from pg_catalog.pg_locks l
       where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'virtualxid'
     union all select 'wal', pg_catalog.pg_current_wal_insert_lsn()::text, null",
    "select c.oid, c.relfilenode from pg_catalog.pg_class c
       where c.oid >= 16384 and c.relfilenode <> 0 and c.relpersistence <> 't' and c.relkind in ('r', 'm', 'i')",
    "select s.relid, pg_catalog.format('%I.%I', s.schemaname, s.relname), s.n_tup_ins, s.n_tup_upd, s.n_tup_del
       from pg_catalog.pg_stat_xact_user_tables s where s.n_tup_ins + s.n_tup_upd + s.n_tup_del > 0",
];

/// Between transactions: where the WAL is, and that counts of rows begin at zero with the next statement.
pub(crate) const BETWEEN: &str =
    "select pg_catalog.pg_current_wal_insert_lsn(), l.virtualtransaction, pg_catalog.pg_stat_force_next_flush()
  from pg_catalog.pg_locks l where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'virtualxid'";

/// What another session holds.
pub(crate) fn locks_of(pid: i32) -> String {
    format!(
        "select 'lock', l.relation, l.mode from pg_catalog.pg_locks l
           where l.pid = {pid} and l.locktype = 'relation' and l.granted and l.relation >= 16384"
    )
}

/// How large relations are.
pub(crate) fn sizes(relations: &[u32]) -> String {
    let list: Vec<String> = relations.iter().map(u32::to_string).collect();
    format!("select o, pg_catalog.pg_relation_size(o) from pg_catalog.unnest('{{{}}}'::oid[]) o", list.join(","))
}

pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// A relation as it was before the migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relation {
    pub name: String,
    pub kind: &'static str,
    /// The number of its file; 0 if it has none.
    pub file: u32,
    /// The table that an index is of.
    pub table: Option<u32>,
}

/// Rows written by table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub name: String,
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

/// What [`LOOKS`] saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    pub locks: BTreeSet<Lock>,
    /// The number of the session's transaction.
    pub transaction: u64,
    pub wal: Lsn,
    pub files: Vec<(u32, u32)>,
    pub rows: BTreeMap<u32, Counts>,
}

impl Look {
    pub fn parse(answers: &[Rows]) -> Result<Look, RehearsalError> {
        let [session, files, rows] = answers else { return Err(RehearsalError::Answer) };
        let mut look = Look::default();
        for row in session {
            match text(row, 0)? {
                "lock" => look.locks.extend(lock(row)?),
                "transaction" => look.transaction = transaction(text(row, 1)?)?,
                _ => look.wal = value(row, 1)?,
            }
        }
        for row in files {
            look.files.push((value(row, 0)?, value(row, 1)?));
        }
        for row in rows {
            let (name, inserted) = (text(row, 1)?.to_owned(), value(row, 2)?);
            look.rows
                .insert(value(row, 0)?, Counts { name, inserted, updated: value(row, 3)?, deleted: value(row, 4)? });
        }
        Ok(look)
    }
}

/// Locks that [`locks_of`] saw.
pub(crate) fn parse_locks(rows: &Rows) -> Result<BTreeSet<Lock>, RehearsalError> {
    rows.iter().filter_map(|row| lock(row).transpose()).collect()
}

/// Relations that [`RELATIONS`] saw.
pub(crate) fn parse_relations(rows: &Rows) -> Result<HashMap<u32, Relation>, RehearsalError> {
    let relation = |row: &Vec<Option<String>>| {
        let kind = match text(row, 2)? {
            "r" | "p" => "table",
            "i" | "I" => "index",
            "m" => "materialized view",
            "v" => "view",
            "S" => "sequence",
            "f" => "foreign table",
            _ => "relation",
        };
        let table = match row.get(4) {
            Some(Some(_)) => Some(value(row, 4)?),
            _ => None,
        };
        Ok((value(row, 0)?, Relation { name: text(row, 1)?.to_owned(), kind, file: value(row, 3)?, table }))
    };
    rows.iter().map(relation).collect()
}

/// Where the WAL is, and the session's transaction, as [`BETWEEN`] saw them.
pub(crate) fn parse_between(rows: &Rows) -> Result<(Lsn, u64), RehearsalError> {
    let row = rows.first().ok_or(RehearsalError::Answer)?;
    Ok((value(row, 0)?, transaction(text(row, 1)?)?))
}

pub(crate) fn parse_sizes(rows: &Rows) -> Result<HashMap<u32, u64>, RehearsalError> {
    // What was dropped meanwhile has none.
    rows.iter()
        .filter(|row| row.get(1).is_some_and(Option::is_some))
        .map(|row| Ok((value(row, 0)?, value(row, 1)?)))
        .collect()
}

/// A lock of a mode that we know.
fn lock(row: &[Option<String>]) -> Result<Option<Lock>, RehearsalError> {
    let mode = LockMode::of_pg_locks(text(row, 2)?);
    mode.map(|mode| Ok((value(row, 1)?, mode))).transpose()
}

/// The second number of a virtual transaction id: it counts a session's transactions.
fn transaction(id: &str) -> Result<u64, RehearsalError> {
    id.split_once('/').and_then(|(_, number)| number.parse().ok()).ok_or(RehearsalError::Answer)
}

fn text(row: &[Option<String>], column: usize) -> Result<&str, RehearsalError> {
    row.get(column).and_then(Option::as_deref).ok_or(RehearsalError::Answer)
}

pub(crate) fn value<T: std::str::FromStr>(row: &[Option<String>], column: usize) -> Result<T, RehearsalError> {
    text(row, column)?.parse().map_err(|_| RehearsalError::Answer)
}
