//! Which columns of a table are the same on production and on the root, whatever they are called.
//!
//! A change of a table is told by names and types alone. A column that was dropped and made anew, and one that has got another's name,
//! look in it as they did before. Their numbers (`attnum`) tell: no table gives one twice. Those of production are read from its catalog,
//! which is ahead of the changes that are being applied; so what they cannot say for sure stops, and nothing is done because of them.

use std::collections::{BTreeMap, HashMap};

use ardent_pg_wire::Connection;
use ardent_pgoutput::Relation;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::logical::error::{LogicalError, reading, source};
use crate::logical::relation::RootColumn;

/// Followed by which tables, by their OIDs.
const COLUMNS: &str = "
    select c.relfilenode::text, a.attnum::text, case when not a.attisdropped then a.attname::text end, a.atttypid::text,
        a.atttypmod::text, c.oid
    from pg_catalog.pg_class c left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0
    where c.oid =";
const READING: &str = "looking at a table's columns";

/// A table's columns on production, as its catalog has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceNumbers {
    /// The file of its rows. 0: the table is not there.
    filenode: u32,
    by_name: BTreeMap<String, i16>,
    dropped: Vec<i16>,
    /// Of those columns whose type can become a wider one.
    types: BTreeMap<i16, ColumnType>,
}

impl SourceNumbers {
    /// As they are at this moment.
    pub async fn read(production: &Client, oid: u32) -> Result<SourceNumbers, LogicalError> {
        let rows = production.query(&format!("{COLUMNS} {oid}"), &[]).await.map_err(source(READING))?;
        let texts: Vec<[Option<String>; 5]> = rows.iter().map(texts).collect();
        SourceNumbers::of(texts.iter().map(|texts| texts.as_slice()))
    }

    /// Those of all of these tables that are there, by their OIDs.
    pub async fn read_all(production: &Client, oids: &[u32]) -> Result<HashMap<u32, SourceNumbers>, LogicalError> {
        let rows = production.query(&format!("{COLUMNS} any ($1)"), &[&oids]).await.map_err(source(READING))?;
        let mut found: HashMap<u32, Vec<[Option<String>; 5]>> = HashMap::new();
        for row in &rows {
            found.entry(row.get(5)).or_default().push(texts(row));
        }
        let mut numbers = HashMap::new();
        for (oid, rows) in found {
            numbers.insert(oid, SourceNumbers::of(rows.iter().map(|texts| texts.as_slice()))?);
        }
        Ok(numbers)
    }

    /// As the transaction of a session that reads tables sees them.
    pub async fn read_as_of(production: &mut Connection, oid: u32) -> Result<SourceNumbers, LogicalError> {
        let found = production.query(&format!("{COLUMNS} {oid}")).await.map_err(reading(READING))?;
        SourceNumbers::of(found.rows.iter().map(Vec::as_slice))
    }

    /// Of the rows of such a list.
    pub fn of<'a>(rows: impl Iterator<Item = &'a [Option<String>]>) -> Result<SourceNumbers, LogicalError> {
        let unusable = || LogicalError::State("production's list of a table's columns is not one".into());
        let mut numbers = SourceNumbers::default();
        for row in rows {
            let [Some(filenode), attnum, name, oid, modifier, ..] = row else { return Err(unusable()) };
            numbers.filenode = filenode.parse().map_err(|_| unusable())?;
            let Some(attnum) = attnum else { continue };
            let attnum: i16 = attnum.parse().map_err(|_| unusable())?;
            match name {
                Some(name) => {
                    numbers.by_name.insert(name.clone(), attnum);
                    let (Some(oid), Some(modifier)) = (oid, modifier) else { return Err(unusable()) };
                    let (oid, modifier) = (oid.parse::<u32>(), modifier.parse::<i32>());
                    let kind = ColumnType(oid.map_err(|_| unusable())?, modifier.map_err(|_| unusable())?);
                    if kind.is_of_a_length() {
                        numbers.types.insert(attnum, kind);
                    }
                }
                None => numbers.dropped.push(attnum),
            }
        }
        Ok(numbers)
    }

    /// The number of the column of this name.
    pub fn of_name(&self, name: &str) -> Option<i16> {
        self.by_name.get(name).copied()
    }

    /// The name of the column of this number.
    pub fn name_of(&self, attnum: i16) -> Option<&str> {
        self.by_name.iter().find(|(_, number)| **number == attnum).map(|(name, _)| name.as_str())
    }

    /// Whether the column that had this number is gone.
    pub fn is_dropped(&self, attnum: i16) -> bool {
        self.dropped.contains(&attnum)
    }

    fn highest(&self) -> i16 {
        self.by_name.values().chain(&self.dropped).copied().max().unwrap_or(0)
    }
}

/// A column's row in such a list.
fn texts(row: &tokio_postgres::Row) -> [Option<String>; 5] {
    [row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)]
}

/// A column's type and its modifier, with which every server means the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ColumnType(pub u32, pub i32);

/// `text`, `varchar` and `numeric`.
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;
const NUMERIC: u32 = 1700;
/// A modifier is a length, or digits, and this.
const MODIFIER_BASE: i32 = 4;

impl ColumnType {
    fn is_of_a_length(self) -> bool {
        [TEXT, VARCHAR, NUMERIC].contains(&self.0)
    }

    /// Whether every value of this type is one of the other, and is stored alike: no row is written for that.
    pub fn widens_to(self, other: ColumnType) -> bool {
        let parts = |modifier: i32| ((modifier - MODIFIER_BASE) >> 16, (modifier - MODIFIER_BASE) & 0xffff);
        match (self, other) {
            (ColumnType(TEXT | VARCHAR, _), ColumnType(TEXT, _) | ColumnType(VARCHAR, -1)) => true,
            (ColumnType(VARCHAR, from), ColumnType(VARCHAR, to)) => from >= MODIFIER_BASE && to >= from,
            (ColumnType(NUMERIC, _), ColumnType(NUMERIC, -1)) => true,
            (ColumnType(NUMERIC, from), ColumnType(NUMERIC, to)) if from >= MODIFIER_BASE && to >= MODIFIER_BASE => {
                let ((digits, scale), (more, same)) = (parts(from), parts(to));
                more >= digits && scale == same
            }
            _ => false,
        }
    }
}

/// What is known of a table's columns, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SameColumns {
    /// The root's table: another one in its place has other columns. 0: nothing is known yet.
    pub root_oid: u32,
    /// Numbers of production's columns, by those that the root has given them. They stay when columns are dropped.
    pub pairs: BTreeMap<i16, i16>,
    /// The highest of production's numbers that is accounted for.
    pub highest: i16,
    /// The file that production's table was seen in.
    pub file: Option<SeenFile>,
}

/// A column of production's that has the name of another one on the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OtherColumn {
    pub name: String,
    /// What it is called on the root; none: it is not there.
    pub here: Option<String>,
    /// What production calls the one that has the name on the root; none: it was dropped.
    pub now: Option<String>,
}

impl OtherColumn {
    /// What happened.
    pub fn why(&self) -> String {
        let OtherColumn { name, here, now } = self;
        match (here, now) {
            (Some(here), _) => {
                format!("column {name} is by now what column {here} is on the root branch: it was renamed")
            }
            (None, None) => format!(
                "column {name} is another one by now: it was dropped and made anew, so what rows held in it before is gone"
            ),
            (None, Some(now)) => format!(
                "column {name} is another one by now: it was renamed to {now}, and one that is new has its name"
            ),
        }
    }
}

/// A file of production's, and the highest number that a column had when it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenFile {
    pub filenode: u32,
    pub highest: i16,
    /// A type that each column has had since the rows are in this file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<i16, ColumnType>,
}

impl SameColumns {
    /// Nothing is known.
    pub fn is_unknown(&self) -> bool {
        *self == SameColumns::default()
    }

    /// Of a table that was copied: columns of one name are the same.
    pub fn of_copy(source: &SourceNumbers, root: &[RootColumn]) -> SameColumns {
        // The catalog is as of the copy: all of its columns are accounted for, those that are gone too.
        let mut same = SameColumns { highest: source.highest(), ..SameColumns::default() };
        let names: Vec<&str> = root.iter().map(|column| column.name.as_str()).collect();
        same.learn(&names, source, root);
        same
    }

    /// Takes columns of these names for the same on both sides, as [`SameColumns::other`] found nothing against it.
    pub fn learn(&mut self, names: &[&str], source: &SourceNumbers, root: &[RootColumn]) {
        let Some(root_oid) = root.first().map(|column| column.table_oid).filter(|_| source.filenode != 0) else {
            return;
        };
        if self.root_oid != root_oid {
            self.root_oid = root_oid;
            self.pairs.clear();
        }
        for name in names {
            if let (Some(theirs), Some(ours)) = (source.of_name(name), number_on_root(root, name)) {
                self.pairs.insert(ours, theirs);
                self.highest = self.highest.max(theirs);
            }
        }
        self.see(source);
    }

    /// Takes note of the file that the table is in: that is so whichever of its changes have come.
    pub fn see(&mut self, source: &SourceNumbers) {
        if source.filenode == 0 {
            return;
        }
        match &mut self.file {
            // A file that is still the same says more the earlier it was seen.
            Some(file) if file.filenode == source.filenode => {
                for (attnum, kind) in &source.types {
                    file.types.entry(*attnum).or_insert(*kind);
                }
            }
            _ => {
                let SourceNumbers { filenode, types, .. } = source.clone();
                self.file = Some(SeenFile { filenode, highest: source.highest(), types });
            }
        }
    }

    /// Columns of these names have wider types here now, as they had on production while the table was in its file.
    pub fn widened(&mut self, names: &[String], source: &SourceNumbers, root: &[RootColumn]) {
        let Some(file) = self.file.as_mut().filter(|file| file.filenode == source.filenode) else { return };
        for name in names {
            let here = root.iter().find(|column| column.name == *name);
            if let (Some(theirs), Some(here)) = (source.of_name(name), here) {
                file.types.insert(theirs, here.kind());
            }
        }
    }

    /// Whether this column's values are as they were when production had it with the root's type: it is the same column, and no row was
    /// written anew since it had that.
    pub fn is_unwritten(&self, here: &RootColumn, source: &SourceNumbers) -> bool {
        let theirs = source.of_name(&here.name);
        let seen = |attnum: i16| self.file.as_ref().filter(|file| file.filenode == source.filenode)?.types.get(&attnum);
        self.root_oid == here.table_oid
            && theirs.is_some_and(|attnum| {
                self.pairs.get(&here.attnum) == Some(&attnum) && seen(attnum) == Some(&here.kind())
            })
    }

    /// Whether columns that the relation lacks were dropped, and none of them is one of those that it has `added` (places in it): changes
    /// tell columns in the order of their numbers, so what comes behind a later one is not an earlier one under another name.
    pub fn are_others(
        &self,
        relation: &Relation,
        source: &SourceNumbers,
        root: &[RootColumn],
        (gone, added): (&[String], &[usize]),
    ) -> bool {
        let number = |name: &str| self.pairs.get(&number_on_root(root, name)?).copied();
        let before = added.iter().min().copied().unwrap_or(relation.columns.len());
        let last = relation.columns.iter().take(before).filter_map(|column| {
            let known = number(&column.name)?;
            (source.of_name(&column.name) == Some(known)).then_some(known)
        });
        let last = last.max().unwrap_or(0);
        self.are_dropped(source, root, gone) && gone.iter().all(|name| number(name).is_some_and(|gone| gone < last))
    }

    /// Whether production has dropped these columns of the root's by now.
    pub fn are_dropped(&self, source: &SourceNumbers, root: &[RootColumn], gone: &[String]) -> bool {
        let number = |name: &str| self.pairs.get(&number_on_root(root, name)?).copied();
        root.first().is_some_and(|column| column.table_oid == self.root_oid)
            && gone.iter().all(|name| number(name).is_some_and(|attnum| source.is_dropped(attnum)))
    }

    /// Which of the relation's columns is another one than the root's of that name, and why; `None`: none that is known.
    pub fn other(&self, relation: &Relation, source: &SourceNumbers, root: &[RootColumn]) -> Option<String> {
        let names = relation.columns.iter().map(|column| column.name.as_str());
        self.others(names, source, root).first().map(OtherColumn::why)
    }

    /// Which columns of these names are other ones than the root's of the same name.
    pub fn others<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        source: &SourceNumbers,
        root: &[RootColumn],
    ) -> Vec<OtherColumn> {
        if root.first().is_none_or(|column| column.table_oid != self.root_oid) {
            return Vec::new();
        }
        let other = |name: &str| {
            let theirs = source.of_name(name)?;
            let known = *self.pairs.get(&number_on_root(root, name)?)?;
            if known == theirs {
                return None;
            }
            let here = root.iter().find(|here| self.pairs.get(&here.attnum) == Some(&theirs));
            let now = source.name_of(known).map(str::to_owned);
            Some(OtherColumn { name: name.to_owned(), here: here.map(|here| here.name.clone()), now })
        };
        names.filter_map(other).collect()
    }

    /// The root's columns that production calls otherwise: their names here, and there.
    pub fn renamed(&self, source: &SourceNumbers, root: &[RootColumn]) -> Vec<(String, String)> {
        let names = root.iter().filter_map(|here| {
            let now = source.name_of(*self.pairs.get(&here.attnum)?)?;
            (now != here.name).then(|| (here.name.clone(), now.to_owned()))
        });
        names.collect()
    }

    /// The root's columns that production has dropped.
    pub fn dropped(&self, source: &SourceNumbers, root: &[RootColumn]) -> Vec<String> {
        let is_dropped =
            |here: &&RootColumn| self.pairs.get(&here.attnum).is_some_and(|known| source.is_dropped(*known));
        root.iter().filter(is_dropped).map(|here| here.name.clone()).collect()
    }

    /// Whether a column that the root lacks is the first of its name: it was not there under another one, and none came and went before
    /// it without having been seen.
    pub fn is_new(&self, attnum: i16, source: &SourceNumbers) -> bool {
        let is_after =
            |known: i16| known < attnum && !source.dropped.iter().any(|gone| (known + 1..attnum).contains(gone));
        if self.root_oid != 0 {
            return is_after(self.highest);
        }
        // Of a table that was seen before its columns were known, what has come since is known.
        self.file.as_ref().is_none_or(|file| attnum <= file.highest || is_after(file.highest))
    }

    /// Whether the table's rows are in the file that they were in before the column came: then they were written by changes alone, and
    /// those from before it hold in it what its `attmissingval` says.
    pub fn is_in_its_file(&self, attnum: i16, filenode: u32) -> bool {
        self.file.as_ref().is_some_and(|file| file.filenode == filenode && file.highest < attnum)
    }
}

/// Generated columns are no part of changes.
fn number_on_root(root: &[RootColumn], name: &str) -> Option<i16> {
    root.iter().find(|column| column.name == name && !column.is_generated).map(|column| column.attnum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_pgoutput::{Column, ReplicaIdentity};

    fn source(filenode: u32, columns: &[(i16, Option<&str>)]) -> SourceNumbers {
        let text = |(attnum, name): &(i16, Option<&str>)| {
            let kind = if name.is_some_and(|name| name.starts_with('v')) {
                [VARCHAR.to_string(), "14".to_owned()]
            } else {
                ["23".to_owned(), "-1".to_owned()]
            };
            let [oid, modifier] = kind.map(Some);
            [Some(filenode.to_string()), Some(attnum.to_string()), name.map(str::to_owned), oid, modifier]
        };
        let rows: Vec<[Option<String>; 5]> = columns.iter().map(text).collect();
        SourceNumbers::of(rows.iter().map(|row| row.as_slice())).expect("columns")
    }

    fn root(table_oid: u32, columns: &[(i16, &str)]) -> Vec<RootColumn> {
        let column = |(attnum, name): &(i16, &str)| RootColumn {
            table_oid,
            attnum: *attnum,
            name: (*name).into(),
            type_oid: 23,
            type_modifier: -1,
            type_name: "integer".into(),
            is_fixed: false,
            is_generated: false,
            equals: None,
            is_primary: false,
        };
        columns.iter().map(column).collect()
    }

    fn relation(names: &[&str]) -> Relation {
        let column = |name: &&str| Column { is_key: false, name: (*name).into(), type_oid: 23, type_modifier: -1 };
        Relation {
            oid: 1,
            schema: "s".into(),
            name: "t".into(),
            identity: ReplicaIdentity::Default,
            columns: names.iter().map(column).collect(),
        }
    }

    /// Production's table had a column that was dropped before it was copied.
    fn copied() -> SameColumns {
        let theirs = source(7, &[(1, Some("id")), (2, None), (3, Some("n")), (4, Some("m"))]);
        SameColumns::of_copy(&theirs, &root(50, &[(1, "id"), (2, "n"), (3, "m")]))
    }

    #[track_caller]
    fn check(theirs: &[(i16, Option<&str>)], ours: &[RootColumn], words: Option<&str>) {
        let why = copied().other(&relation(&["id", "n", "m"]), &source(7, theirs), ours);
        match (&why, words) {
            (None, None) => {}
            (Some(why), Some(words)) => assert!(why.contains(words), "{why}"),
            _ => panic!("{why:?} in place of {words:?}"),
        }
    }

    #[test]
    fn columns_are_known_by_their_numbers() {
        let as_copied = root(50, &[(1, "id"), (2, "n"), (3, "m")]);
        check(&[(1, Some("id")), (3, Some("n")), (4, Some("m"))], &as_copied, None);
        let anew = [(1, Some("id")), (3, None), (4, Some("m")), (5, Some("n"))];
        check(&anew, &as_copied, Some("column n is another one by now"));
        let swapped = [(1, Some("id")), (3, Some("m")), (4, Some("n"))];
        check(&swapped, &as_copied, Some("column n is by now what column m is on the root branch"));
        // Somebody has done the same here, or made the table anew.
        check(&anew, &root(50, &[(1, "id"), (4, "n"), (3, "m")]), None);
        check(&swapped, &root(50, &[(1, "id"), (2, "m"), (3, "n")]), None);
        check(&anew, &root(51, &[(1, "id"), (2, "n"), (3, "m")]), None);
    }

    #[test]
    fn what_became_of_columns_is_told_by_their_numbers_alone() {
        let here = root(50, &[(1, "id"), (2, "n"), (3, "m")]);
        let check = |theirs: &[(i16, Option<&str>)], whys: &[&str], renamed: &[(&str, &str)], dropped: &[&str]| {
            let (same, theirs) = (copied(), source(7, theirs));
            let others = same.others(here.iter().map(|column| column.name.as_str()), &theirs, &here);
            assert_eq!(others.len(), whys.len(), "{others:?}");
            assert!(others.iter().zip(whys).all(|(other, why)| other.why().contains(why)), "{others:?}");
            let names: Vec<(String, String)> =
                renamed.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
            assert_eq!(same.renamed(&theirs, &here), names);
            assert_eq!(same.dropped(&theirs, &here), dropped);
        };
        check(&[(1, Some("id")), (3, Some("n")), (4, Some("m"))], &[], &[], &[]);
        let swapped = [(1, Some("id")), (3, Some("m")), (4, Some("n"))];
        check(&swapped, &["what column m is", "what column n is"], &[("n", "m"), ("m", "n")], &[]);
        let anew = [(1, Some("id")), (3, None), (4, Some("m")), (5, Some("n"))];
        check(&anew, &["dropped and made anew"], &[], &["n"]);
        let behind = [(1, Some("id")), (3, Some("x")), (4, Some("m")), (5, Some("n"))];
        check(&behind, &["it was renamed to x, and one that is new"], &[("n", "x")], &[]);
        // What comes with the next change is no other column.
        check(&[(1, Some("id")), (3, Some("x")), (4, None), (5, Some("y"))], &[], &[("n", "x")], &["m"]);
    }

    #[test]
    fn a_column_that_is_gone_may_have_had_the_name_of_a_later_one() {
        let came_and_went = source(7, &[(1, Some("id")), (2, None), (5, None), (6, Some("x"))]);
        assert!(!copied().is_new(6, &came_and_went));
        let first = source(7, &[(1, Some("id")), (2, None), (4, None), (5, Some("x"))]);
        assert!(copied().is_new(5, &first), "those that were there are known");
        assert!(!copied().is_new(4, &first), "it had another name");
        assert!(SameColumns::default().is_new(6, &came_and_went));
    }

    #[test]
    fn rows_are_as_they_were_in_the_file_that_they_were_in() {
        let mut same = copied();
        assert!(same.is_in_its_file(5, 7));
        assert!(!same.is_in_its_file(5, 8), "they were written anew");
        let here = root(50, &[(1, "id"), (2, "n"), (3, "m"), (4, "x")]);
        same.learn(&["x"], &source(7, &[(1, Some("id")), (5, Some("x"))]), &here);
        assert_eq!((same.pairs.get(&4), same.highest), (Some(&5), 5));
        assert!(same.is_in_its_file(5, 7), "the earlier the better");
        same.learn(&["x"], &source(8, &[(1, Some("id")), (5, Some("x"))]), &here);
        assert!(!same.is_in_its_file(5, 8) && same.is_in_its_file(6, 8));
        assert!(!SameColumns::default().is_in_its_file(5, 0));
    }

    #[test]
    fn the_file_is_known_without_a_change() {
        let mut same = copied();
        same.see(&source(8, &[(1, Some("id")), (5, Some("x"))]));
        assert!(!same.is_in_its_file(5, 8) && same.is_in_its_file(6, 8), "x may have had values in it");
        same.see(&source(0, &[]));
        assert!(same.is_in_its_file(6, 8), "a table that is gone is in no file");
        // One that was kept by an earlier version.
        let mut unknown = SameColumns::default();
        unknown.see(&source(7, &[(1, Some("id")), (2, None)]));
        assert!(!unknown.is_unknown() && unknown.is_in_its_file(3, 7));
        assert!(unknown.is_new(3, &source(7, &[(1, Some("id")), (2, None), (3, Some("x"))])));
        let came_and_went = source(7, &[(1, Some("id")), (2, None), (3, None), (4, Some("x"))]);
        assert!(!unknown.is_new(4, &came_and_went));
    }

    #[test]
    fn a_column_behind_a_later_one_is_not_one_that_is_gone() {
        let here = root(50, &[(1, "id"), (2, "n"), (3, "m")]);
        let check = |names: &[&str], theirs: &[(i16, Option<&str>)], gone: &str, added: &[usize]| {
            let gone = [gone.to_owned()];
            copied().are_others(&relation(names), &source(7, theirs), &here, (gone.as_slice(), added))
        };
        let n_gone = [(1, Some("id")), (2, None), (3, None), (4, Some("m")), (5, Some("x"))];
        assert!(check(&["id", "m", "x"], &n_gone, "n", &[2]), "m was behind n");
        assert!(
            !check(&["id", "x", "m"], &n_gone, "n", &[1]),
            "x is in the place of n, and was dropped and made anew since"
        );
        let m_gone = [(1, Some("id")), (2, None), (3, Some("n")), (4, None), (5, Some("x"))];
        assert!(!check(&["id", "n", "x"], &m_gone, "m", &[2]), "x is in the place of m");
        let renamed = [(1, Some("id")), (2, None), (3, Some("x")), (4, Some("m"))];
        assert!(!check(&["id", "x", "m"], &renamed, "n", &[1]));
        assert!(copied().are_dropped(&source(7, &m_gone), &here, &["m".to_owned()]));
        assert!(!copied().are_dropped(&source(7, &renamed), &here, &["n".to_owned()]));
    }

    #[test]
    fn types_widen_where_no_value_and_no_row_changes() {
        let varchar = |length: i32| ColumnType(VARCHAR, length + MODIFIER_BASE);
        let numeric = |digits: i32, scale: i32| ColumnType(NUMERIC, ((digits << 16) | scale) + MODIFIER_BASE);
        let (text, any_varchar, any_numeric) = (ColumnType(TEXT, -1), ColumnType(VARCHAR, -1), ColumnType(NUMERIC, -1));
        for (from, to) in [
            (varchar(10), varchar(20)),
            (varchar(10), any_varchar),
            (varchar(10), text),
            (any_varchar, text),
            (text, any_varchar),
            (numeric(5, 2), numeric(9, 2)),
            (numeric(5, 2), any_numeric),
        ] {
            assert!(from.widens_to(to), "{from:?} {to:?}");
        }
        for (from, to) in [
            (varchar(20), varchar(10)),
            (any_varchar, varchar(10)),
            (text, varchar(10)),
            (numeric(5, 2), numeric(9, 3)),
            (numeric(9, 2), numeric(5, 2)),
            (any_numeric, numeric(9, 2)),
            (ColumnType(23, -1), ColumnType(20, -1)),
            (ColumnType(23, -1), text),
        ] {
            assert!(!from.widens_to(to), "{from:?} {to:?}");
        }
    }

    #[test]
    fn a_column_is_unwritten_in_the_file_that_it_had_its_type_in() {
        let mut here = root(50, &[(1, "id"), (2, "v")]);
        (here[1].type_oid, here[1].type_modifier) = (VARCHAR, 14);
        let theirs = source(7, &[(1, Some("id")), (2, Some("v"))]);
        let mut same = SameColumns::of_copy(&theirs, &here);
        assert!(same.is_unwritten(&here[1], &theirs));
        assert!(
            !same.is_unwritten(&here[1], &source(8, &[(1, Some("id")), (2, Some("v"))])),
            "USING may have written it"
        );
        assert!(!same.is_unwritten(&here[1], &source(7, &[(1, Some("id")), (2, None), (3, Some("v"))])));
        let wider = RootColumn { type_modifier: 24, ..here[1].clone() };
        assert!(!same.is_unwritten(&wider, &theirs), "it may have had that type before it was written anew");
        same.widened(&["v".to_owned()], &theirs, &[here[0].clone(), wider.clone()]);
        assert!(same.is_unwritten(&wider, &theirs), "and widens once more");
    }
}
