//! Large objects: pages of `pg_largeobject`, owners and privileges of `pg_largeobject_metadata`, and comments of `pg_description`, all
//! of them in changed blocks: there can be millions.

use std::collections::BTreeMap;

use ardent_schema_diff::{LARGE_OBJECT_OWNER, LargeObjectAccess, large_object_privileges};

use crate::catalog::field;
use crate::change_set::{LargeObjectChange, PageChange, RowChange, Sides, TableState};
use crate::compare::{ChangedFiles, CompareOptions, blocks_to_read};
use crate::error::DiffError;
use crate::pairing::{Order, Pairing, RowValues};
use crate::scan::{self, Extent, Side};
use crate::session::Session;
use crate::spool::Spool;

/// The files of the three catalogs, in the order of [`Catalog`].
const FILES: &str = "
    select coalesce(nullif(c.reltablespace, 0), d.dattablespace)::oid, pg_relation_filenode(c.oid)::oid
      from unnest('{pg_largeobject,pg_largeobject_metadata,pg_description}'::regclass[]) with ordinality as n(oid, place)
      join pg_class c on c.oid = n.oid join pg_database d on d.datname = current_database()
     order by n.place";

/// A catalog that large objects are in.
#[derive(Clone, Copy)]
enum Catalog {
    Pages,
    Objects,
    Comments,
}

impl Catalog {
    fn table(self) -> &'static str {
        match self {
            Catalog::Pages => "pg_largeobject",
            Catalog::Objects => "pg_largeobject_metadata",
            Catalog::Comments => "pg_description",
        }
    }

    /// What is read. Numbers have leading zeros, so that their texts sort as they do.
    fn columns(self) -> Vec<String> {
        let texts = |columns: &[&str]| -> Vec<String> { columns.iter().map(|&column| column.to_owned()).collect() };
        match self {
            Catalog::Pages => {
                texts(&["lpad(loid::text, 10, '0')", "lpad(pageno::text, 10, '0')", "encode(data, 'hex')"])
            }
            Catalog::Objects => {
                texts(&["lpad(oid::text, 10, '0')", LARGE_OBJECT_OWNER, large_object_privileges().as_str()])
            }
            Catalog::Comments => texts(&["lpad(objoid::text, 10, '0')", "description"]),
        }
    }

    /// Places of the columns that tell rows apart.
    fn key(self) -> Vec<usize> {
        match self {
            Catalog::Pages => vec![0, 1],
            Catalog::Objects | Catalog::Comments => vec![0],
        }
    }

    fn condition(self) -> Option<&'static str> {
        match self {
            Catalog::Pages | Catalog::Objects => None,
            Catalog::Comments => Some("classoid = 'pg_largeobject'::regclass and objsubid = 0"),
        }
    }
}

/// Tablespace and relfilenode.
type File = (u32, u32);

/// Both sides, and which blocks of theirs changed.
struct Comparison<'a> {
    base: &'a Session,
    head: &'a Session,
    files: &'a ChangedFiles<'a>,
    /// The files of the catalogs, on either side.
    before: Vec<File>,
    after: Vec<File>,
    options: &'a CompareOptions,
}

pub(crate) async fn compare(
    base: &Session,
    head: &Session,
    files: &ChangedFiles<'_>,
    options: &CompareOptions,
) -> Result<Vec<LargeObjectChange>, DiffError> {
    let (before, after) = tokio::try_join!(file_names(base), file_names(head))?;
    if before == after && !after.iter().any(|file| files.contains_key(file)) && !options.whole {
        return Ok(Vec::new());
    }
    let comparison = Comparison { base, head, files, before, after, options };
    let mut changes: BTreeMap<u32, LargeObjectChange> = BTreeMap::new();
    comparison.objects(&mut changes).await?;
    comparison.comments(&mut changes).await?;
    comparison.pages(&mut changes).await?;
    Ok(changes.into_values().collect())
}

impl Comparison<'_> {
    /// The rows of a catalog that differ.
    async fn rows(&self, catalog: Catalog) -> Result<Spool<RowChange>, DiffError> {
        let side = |session| Side {
            session,
            table: catalog.table().to_owned(),
            expressions: catalog.columns(),
            condition: catalog.condition(),
        };
        let (base, head) = (side(self.base), side(self.head));
        let mut pairing = Pairing::new(catalog.key(), self.options.memory_bytes);
        scan::pair(Some(&base), Some(&head), &self.extent(catalog), &mut pairing).await?;
        Ok(pairing.finish(Order::Key)?)
    }

    fn extent(&self, catalog: Catalog) -> Extent {
        let place = catalog as usize;
        let same = |file: &&File| self.before.get(place) == Some(*file) && !self.options.whole;
        match self.after.get(place).filter(same) {
            Some(file) => {
                Extent::Blocks(self.files.get(file).map(|relation| blocks_to_read(relation)).unwrap_or_default())
            }
            None => Extent::Whole,
        }
    }

    /// Those that came and went, and those with other owners or privileges.
    async fn objects(&self, changes: &mut BTreeMap<u32, LargeObjectChange>) -> Result<(), DiffError> {
        for change in self.rows(Catalog::Objects).await?.iter() {
            let (old, new) = sides(change?);
            let oid = self.number(&old, &new, 0)?;
            let state = match (&old, &new) {
                (None, _) => TableState::Created,
                (_, None) => TableState::Dropped,
                _ => TableState::Kept,
            };
            let access = |row: Option<RowValues>| row.map(|row| self.access(row)).transpose();
            let access = Sides { old: access(old)?, new: access(new)? };
            let is_same = |old: &LargeObjectAccess| access.new.as_ref().is_some_and(|new| new.is_same(old));
            if !access.old.as_ref().is_some_and(is_same) {
                changes.insert(oid, LargeObjectChange { state, access: Some(access), ..LargeObjectChange::kept(oid) });
            }
        }
        Ok(())
    }

    fn access(&self, row: RowValues) -> Result<LargeObjectAccess, DiffError> {
        let mut values = row.into_iter().skip(1).map(Option::unwrap_or_default);
        let (owner, privileges) = (values.next().unwrap_or_default(), values.next().unwrap_or_default());
        LargeObjectAccess::from_texts(&owner, &privileges).map_err(|source| DiffError::Catalog {
            side: self.head.side.clone(),
            database: self.head.database.clone(),
            source,
        })
    }

    async fn comments(&self, changes: &mut BTreeMap<u32, LargeObjectChange>) -> Result<(), DiffError> {
        let text = |row: Option<RowValues>| row.and_then(|row| row.into_iter().nth(1).flatten());
        for change in self.rows(Catalog::Comments).await?.iter() {
            let (old, new) = sides(change?);
            let oid = self.number(&old, &new, 0)?;
            let object = changes.entry(oid).or_insert_with(|| LargeObjectChange::kept(oid));
            object.comment = Some(Sides { old: text(old), new: text(new) });
        }
        Ok(())
    }

    async fn pages(&self, changes: &mut BTreeMap<u32, LargeObjectChange>) -> Result<(), DiffError> {
        let content = |row: Option<RowValues>| row.and_then(|row| row.into_iter().nth(2).flatten());
        // They come object by object: only one list of pages is open.
        let mut open = None;
        for change in self.rows(Catalog::Pages).await?.iter() {
            let (old, new) = sides(change?);
            let oid: u32 = self.number(&old, &new, 0)?;
            let number = self.number(&old, &new, 1)?;
            let finished = open.replace(oid).filter(|before| *before != oid);
            if let Some(finished) = finished.and_then(|oid| changes.get_mut(&oid)) {
                finished.pages.seal()?;
            }
            let object = changes.entry(oid).or_insert_with(|| LargeObjectChange::kept(oid));
            object.pages.push(&PageChange { number, old: content(old), new: content(new) })?;
        }
        for change in changes.values_mut() {
            change.pages.seal()?;
        }
        Ok(())
    }

    /// The number at a place of a row's.
    fn number<T: std::str::FromStr>(
        &self,
        old: &Option<RowValues>,
        new: &Option<RowValues>,
        place: usize,
    ) -> Result<T, DiffError> {
        let text = new.as_ref().or(old.as_ref()).and_then(|row| row.get(place)?.as_deref());
        let number = text.and_then(|text| text.parse().ok());
        number.ok_or_else(|| self.head.unexpected("a large object without a number"))
    }
}

fn sides(change: RowChange) -> (Option<RowValues>, Option<RowValues>) {
    match change {
        RowChange::Insert { new } => (None, Some(new)),
        RowChange::Delete { old } => (Some(old), None),
        RowChange::Update { old, new } => (Some(old), Some(new)),
    }
}

async fn file_names(session: &Session) -> Result<Vec<File>, DiffError> {
    let rows = session.query(FILES, &[]).await?;
    rows.iter().map(|row| Ok((field(session, row, 0)?, field(session, row, 1)?))).collect()
}
