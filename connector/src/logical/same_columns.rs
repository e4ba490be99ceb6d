//! Which columns of a table are the same on production and on the root, whatever they are called.
//!
//! A change of a table is told by names and types alone. A column that was dropped and made anew, and one that has got another's name,
//! look in it as they did before. Their numbers (`attnum`) tell: no table gives one twice. Those of production are read from its catalog,
//! which is ahead of the changes that are being applied; so what they cannot say for sure stops, and nothing is done because of them.

use std::collections::BTreeMap;

use ardent_pg_wire::Connection;
use ardent_pgoutput::Relation;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::logical::error::{LogicalError, reading, source};
use crate::logical::relation::RootColumn;

/// Followed by the table's OID.
const COLUMNS: &str = "
    select c.relfilenode::text, a.attnum::text, case when not a.attisdropped then a.attname::text end
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
}

impl SourceNumbers {
    /// As they are at this moment.
    pub async fn read(production: &Client, oid: u32) -> Result<SourceNumbers, LogicalError> {
        let rows = production.query(&format!("{COLUMNS} {oid}"), &[]).await.map_err(source(READING))?;
        let texts: Vec<[Option<String>; 3]> = rows.iter().map(|row| [row.get(0), row.get(1), row.get(2)]).collect();
        SourceNumbers::of(texts.iter().map(|texts| texts.as_slice()))
    }

    /// As the transaction of a session that reads tables sees them.
    pub async fn read_as_of(production: &mut Connection, oid: u32) -> Result<SourceNumbers, LogicalError> {
        let found = production.query(&format!("{COLUMNS} {oid}")).await.map_err(reading(READING))?;
        SourceNumbers::of(found.rows.iter().map(Vec::as_slice))
    }

    fn of<'a>(rows: impl Iterator<Item = &'a [Option<String>]>) -> Result<SourceNumbers, LogicalError> {
        let unusable = || LogicalError::State("production's list of a table's columns is not one".into());
        let mut numbers = SourceNumbers::default();
        for row in rows {
            let [Some(filenode), attnum, name] = row else { return Err(unusable()) };
            numbers.filenode = filenode.parse().map_err(|_| unusable())?;
            let Some(attnum) = attnum else { continue };
            let attnum: i16 = attnum.parse().map_err(|_| unusable())?;
            match name {
                Some(name) => {
                    numbers.by_name.insert(name.clone(), attnum);
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

    fn highest(&self) -> i16 {
        self.by_name.values().chain(&self.dropped).copied().max().unwrap_or(0)
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

/// A file of production's, and the highest number that a column had when it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenFile {
    pub filenode: u32,
    pub highest: i16,
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
        // A file that is still the same says more the earlier it was seen.
        if self.file.is_none_or(|file| file.filenode != source.filenode) {
            self.file = Some(SeenFile { filenode: source.filenode, highest: source.highest() });
        }
    }

    /// Which of the relation's columns is another one than the root's of that name, and why; `None`: none that is known.
    pub fn other(&self, relation: &Relation, source: &SourceNumbers, root: &[RootColumn]) -> Option<String> {
        if root.first().is_none_or(|column| column.table_oid != self.root_oid) {
            return None;
        }
        relation.columns.iter().find_map(|column| {
            let name = &column.name;
            let theirs = source.of_name(name)?;
            let known = self.pairs.get(&number_on_root(root, name)?)?;
            if *known == theirs {
                return None;
            }
            let own = root.iter().find(|here| self.pairs.get(&here.attnum) == Some(&theirs));
            Some(match own {
                Some(here) => {
                    format!("column {name} is by now what column {} is on the root branch: it was renamed", here.name)
                }
                None => format!(
                    "column {name} is another one by now: it was dropped and made anew, so what rows held in it before is gone"
                ),
            })
        })
    }

    /// Whether a column that the root lacks is the first of its name: it was not there under another one, and none came and went before
    /// it without having been seen.
    pub fn is_new(&self, attnum: i16, source: &SourceNumbers) -> bool {
        let is_after =
            |known: i16| known < attnum && !source.dropped.iter().any(|gone| (known + 1..attnum).contains(gone));
        self.root_oid == 0 || is_after(self.highest)
    }

    /// Whether the table's rows are in the file that they were in before the column came: then they were written by changes alone, and
    /// those from before it hold in it what its `attmissingval` says.
    pub fn is_in_its_file(&self, attnum: i16, filenode: u32) -> bool {
        self.file.is_some_and(|file| file.filenode == filenode && file.highest < attnum)
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
            [Some(filenode.to_string()), Some(attnum.to_string()), name.map(str::to_owned)]
        };
        let rows: Vec<[Option<String>; 3]> = columns.iter().map(text).collect();
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
}
