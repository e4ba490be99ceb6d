//! Large objects: pages of `pg_largeobject` in changed blocks.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::field;
use crate::change_set::{LargeObjectChange, PageChange, RowChange, TableState};
use crate::compare::{ChangedFiles, blocks_to_read};
use crate::error::DiffError;
use crate::pairing::Pairing;
use crate::scan::{self, Extent};
use crate::session::Session;

const FILES: &str = "
    select coalesce(nullif(c.reltablespace, 0), d.dattablespace)::oid, pg_relation_filenode(c.oid)::oid
      from pg_class c, pg_database d
     where d.datname = current_database() and c.oid in ('pg_largeobject'::regclass, 'pg_largeobject_metadata'::regclass)
     order by c.oid";

pub(crate) async fn compare(
    base: &Session,
    head: &Session,
    files: &ChangedFiles<'_>,
) -> Result<Vec<LargeObjectChange>, DiffError> {
    let (before, after) = (file_names(base).await?, file_names(head).await?);
    if before == after && !after.iter().any(|file| files.contains_key(file)) {
        return Ok(Vec::new());
    }
    let extent = match after.first().filter(|file| before.first() == Some(*file)) {
        Some(file) => Extent::Blocks(files.get(file).map(|relation| blocks_to_read(relation)).unwrap_or_default()),
        None => Extent::Whole,
    };
    let columns = ["loid", "pageno", "encode(data, 'hex')"].map(str::to_owned);
    let mut pairing = Pairing::default();
    scan::rows(base, "pg_largeobject", &columns, &extent, |row| pairing.add_base(row)).await?;
    scan::rows(head, "pg_largeobject", &columns, &extent, |row| pairing.add_head(row)).await?;
    let mut pages: BTreeMap<u32, Vec<PageChange>> = BTreeMap::new();
    for change in pairing.finish(&[0, 1]) {
        let (old, new) = match change {
            RowChange::Insert { new } => (None, Some(new)),
            RowChange::Delete { old } => (Some(old), None),
            RowChange::Update { old, new } => (Some(old), Some(new)),
        };
        let number = |place: usize| new.as_ref().or(old.as_ref())?.get(place)?.as_deref();
        let oid = number(0).and_then(|text| text.parse().ok());
        let page = number(1).and_then(|text| text.parse().ok());
        let (Some(oid), Some(number)) = (oid, page) else {
            return Err(head.unexpected("a page of a large object without a number"));
        };
        let content = |row: Option<Vec<Option<String>>>| row.and_then(|row| row.into_iter().nth(2).flatten());
        pages.entry(oid).or_default().push(PageChange { number, old: content(old), new: content(new) });
    }
    let (old, new) = (all(base).await?, all(head).await?);
    let mut oids: BTreeSet<u32> = old.symmetric_difference(&new).copied().collect();
    oids.extend(pages.keys());
    let changes = oids.into_iter().map(|oid| {
        let state = match (old.contains(&oid), new.contains(&oid)) {
            (false, _) => TableState::Created,
            (true, false) => TableState::Dropped,
            (true, true) => TableState::Kept,
        };
        let mut pages = pages.remove(&oid).unwrap_or_default();
        pages.sort_by_key(|page| page.number);
        LargeObjectChange { oid, state, pages }
    });
    Ok(changes.collect())
}

async fn file_names(session: &Session) -> Result<Vec<(u32, u32)>, DiffError> {
    let rows = session.query(FILES, &[]).await?;
    rows.iter().map(|row| Ok((field(session, row, 0)?, field(session, row, 1)?))).collect()
}

async fn all(session: &Session) -> Result<BTreeSet<u32>, DiffError> {
    let rows = session.query("select oid from pg_largeobject_metadata", &[]).await?;
    rows.iter().map(|row| field(session, row, 0)).collect()
}
