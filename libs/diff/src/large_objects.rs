//! Large objects: pages of `pg_largeobject` in changed blocks.

use std::collections::BTreeMap;

use crate::catalog::field;
use crate::change_set::{LargeObjectChange, PageChange, RowChange, TableState};
use crate::compare::{ChangedFiles, CompareOptions, blocks_to_read};
use crate::error::DiffError;
use crate::pairing::{Order, Pairing, RowValues};
use crate::scan::{self, Extent, Side};
use crate::session::Session;
use crate::spool::Spool;

const FILES: &str = "
    select coalesce(nullif(c.reltablespace, 0), d.dattablespace)::oid, pg_relation_filenode(c.oid)::oid
      from pg_class c, pg_database d
     where d.datname = current_database() and c.oid in ('pg_largeobject'::regclass, 'pg_largeobject_metadata'::regclass)
     order by c.oid";

/// Numbers with leading zeros, whose texts sort as they do.
const OBJECT_COLUMNS: [&str; 1] = ["lpad(oid::text, 10, '0')"];
const PAGE_COLUMNS: [&str; 3] = ["lpad(loid::text, 10, '0')", "lpad(pageno::text, 10, '0')", "encode(data, 'hex')"];

pub(crate) async fn compare(
    base: &Session,
    head: &Session,
    files: &ChangedFiles<'_>,
    options: &CompareOptions,
) -> Result<Vec<LargeObjectChange>, DiffError> {
    let (before, after) = tokio::try_join!(file_names(base), file_names(head))?;
    let CompareOptions { whole, memory_bytes, .. } = *options;
    if before == after && !after.iter().any(|file| files.contains_key(file)) && !whole {
        return Ok(Vec::new());
    }
    let extent = |place: usize| match after.get(place).filter(|file| before.get(place) == Some(*file) && !whole) {
        Some(file) => Extent::Blocks(files.get(file).map(|relation| blocks_to_read(relation)).unwrap_or_default()),
        None => Extent::Whole,
    };
    let side = |session, table: &str, columns: &[&str]| Side {
        session,
        table: table.to_owned(),
        expressions: columns.iter().map(|&column| column.to_owned()).collect(),
    };
    let mut pages = Pairing::new(vec![0, 1], memory_bytes);
    let (table, columns) = ("pg_largeobject", &PAGE_COLUMNS);
    scan::pair(Some(&side(base, table, columns)), Some(&side(head, table, columns)), &extent(0), &mut pages).await?;
    let mut objects = Pairing::new(Vec::new(), memory_bytes);
    let (table, columns) = ("pg_largeobject_metadata", &OBJECT_COLUMNS);
    scan::pair(Some(&side(base, table, columns)), Some(&side(head, table, columns)), &extent(1), &mut objects).await?;

    let unreadable = || head.unexpected("a large object without a number");
    let mut changes: BTreeMap<u32, LargeObjectChange> = BTreeMap::new();
    for change in objects.finish(Order::Key)?.iter() {
        let (state, row) = match change? {
            RowChange::Insert { new } => (TableState::Created, new),
            RowChange::Delete { old } => (TableState::Dropped, old),
            RowChange::Update { .. } => continue,
        };
        let oid = number(&row, 0).ok_or_else(unreadable)?;
        changes.insert(oid, LargeObjectChange { oid, state, pages: Spool::default() });
    }
    // They come object by object: only one list of pages is open.
    let mut open = None;
    for change in pages.finish(Order::Key)?.iter() {
        let (old, new) = match change? {
            RowChange::Insert { new } => (None, Some(new)),
            RowChange::Delete { old } => (Some(old), None),
            RowChange::Update { old, new } => (Some(old), Some(new)),
        };
        let row = new.as_ref().or(old.as_ref()).ok_or_else(unreadable)?;
        let oid: u32 = number(row, 0).ok_or_else(unreadable)?;
        let number = number(row, 1).ok_or_else(unreadable)?;
        if let Some(finished) = open.replace(oid).filter(|before| *before != oid).and_then(|oid| changes.get_mut(&oid))
        {
            finished.pages.seal()?;
        }
        let content = |row: Option<RowValues>| row.and_then(|row| row.into_iter().nth(2).flatten());
        let object = changes.entry(oid);
        let object =
            object.or_insert_with(|| LargeObjectChange { oid, state: TableState::Kept, pages: Spool::default() });
        object.pages.push(&PageChange { number, old: content(old), new: content(new) })?;
    }
    for change in changes.values_mut() {
        change.pages.seal()?;
    }
    Ok(changes.into_values().collect())
}

fn number<T: std::str::FromStr>(row: &RowValues, place: usize) -> Option<T> {
    row.get(place)?.as_deref()?.parse().ok()
}

async fn file_names(session: &Session) -> Result<Vec<(u32, u32)>, DiffError> {
    let rows = session.query(FILES, &[]).await?;
    rows.iter().map(|row| Ok((field(session, row, 0)?, field(session, row, 1)?))).collect()
}
