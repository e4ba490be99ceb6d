//! Tables whose rows production has written anew, each as an expression says: `ALTER TABLE ... TYPE ... USING` sends none of them.
//!
//! Such a table is in another file than before, and definitions of its columns are new versions. `TRUNCATE` changes the file alone and is
//! sent, `VACUUM FULL` and `CLUSTER` change the file alone and leave the rows. Which definitions are new does not matter: columns that come
//! and go, and types that change with values as well as without, all happen between two looks together with what is not sent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use ardent_api::control::VerifiedTable;

use crate::logical::config::RootBranch;
use crate::logical::copy::encode;
use crate::logical::error::{LogicalError, source};
use crate::logical::state::LogicalState;

const FILES: &str = "
    select c.oid, c.relfilenode,
        pg_catalog.hashtext(coalesce((select pg_catalog.string_agg(a.attnum::text || ':' || a.xmin::text, ',' order by a.attnum)
            from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0), ''))
    from pg_catalog.pg_class c where c.oid = any ($1)";

/// A table's `relfilenode`, and which versions the definitions of its columns are (a hash). [`EMPTIED`]: the file is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "KeptFile")]
pub(crate) struct TableFile(u32, i32);

/// In place of the file of a table whose `TRUNCATE` has come: it is in another one by now.
const EMPTIED: u32 = 0;

/// As it is kept; earlier versions kept a hash of the columns' types as well.
#[derive(Deserialize)]
#[serde(untagged)]
enum KeptFile {
    Now(u32, i32),
    Earlier(u32, i32, #[allow(dead_code, reason = "says nothing any more")] i32),
}

impl From<KeptFile> for TableFile {
    fn from(kept: KeptFile) -> Self {
        let (KeptFile::Now(filenode, columns) | KeptFile::Earlier(filenode, columns, _)) = kept;
        TableFile(filenode, columns)
    }
}

impl TableFile {
    /// Its `relfilenode`.
    pub fn filenode(&self) -> u32 {
        self.0
    }
}

/// Of tables, by OID.
pub(crate) type Files = BTreeMap<u32, TableFile>;

/// The files of those tables that production has.
pub(crate) async fn files(production: &Client, oids: &[u32]) -> Result<Files, LogicalError> {
    let rows = production.query(FILES, &[&oids]).await.map_err(source("looking at its tables' files"))?;
    Ok(rows.iter().map(|row| (row.get(0), TableFile(row.get(1), row.get(2)))).collect())
}

/// Takes note of what was found. All that production had committed by then has been applied. `before`: what was found the time before;
/// `emptied`: tables whose `TRUNCATE` has come since that.
pub(crate) fn compare(state: &mut LogicalState, before: &Files, now: &Files, emptied: &BTreeSet<u32>) {
    for (oid, file) in now {
        match state.files.get(oid) {
            Some(kept) if kept == file => {}
            // Rows that have come since may have been written anew.
            Some(TableFile(EMPTIED, columns)) => {
                let is_settled = before.get(oid) == Some(file) && !emptied.contains(oid);
                if file.1 != *columns {
                    state.rewritten.insert(*oid);
                }
                state.files.insert(*oid, TableFile(if is_settled { file.0 } else { EMPTIED }, file.1));
            }
            Some(TableFile(old, columns)) => {
                if file.0 != *old && file.1 != *columns {
                    state.rewritten.insert(*oid);
                }
                state.files.insert(*oid, *file);
            }
            // One whose TRUNCATE is still to come must not be taken for one that has come.
            None if before.get(oid) == Some(file) && !emptied.contains(oid) => {
                state.files.insert(*oid, *file);
            }
            None => {}
        }
    }
    let LogicalState { tables, files, rewritten, .. } = state;
    files.retain(|oid, _| tables.contains_key(oid));
    rewritten.retain(|oid| tables.contains_key(oid));
}

/// What is to be said of those that were written anew.
pub(crate) fn tell(state: &LogicalState) -> Vec<String> {
    let names = state.names();
    let names = state.rewritten.iter().filter_map(|oid| names.get(oid));
    names
        .map(|name| {
            format!(
                "table {name} was written anew (or emptied) on production while its columns changed (ALTER TABLE ... TYPE ... USING), and nobody was \
                 sent what its rows hold now: ardent connector verify NAME compares them, and takes this line away where they are equal"
            )
        })
        .collect()
}

/// These tables are being emptied: that they are in other files from here on is no wonder. That definitions of their columns change
/// before they are looked at again is one.
pub(crate) fn forget(branch: &dyn RootBranch, oids: &[u32]) -> Result<(), LogicalError> {
    let mut state = LogicalState::read(branch)?;
    let mut is_new = false;
    for (_, file) in state.files.iter_mut().filter(|(oid, file)| oids.contains(oid) && file.0 != EMPTIED) {
        file.0 = EMPTIED;
        is_new = true;
    }
    if !is_new {
        return Ok(());
    }
    branch.save(&encode(&state)).map_err(LogicalError::Branch)
}

/// Of tables that were found to be equal nothing is said any more, where that was said before the moment that they were compared as of
/// (`kept`: the state as it was then): what was written anew since was not compared.
pub(crate) fn found_equal(
    branch: &dyn RootBranch,
    kept: &LogicalState,
    verified: &[VerifiedTable],
) -> Result<(), LogicalError> {
    let mut state = LogicalState::read(branch)?;
    let before = state.rewritten.len();
    take_back(&mut state, kept, verified);
    if state.rewritten.len() == before {
        return Ok(());
    }
    branch.save(&encode(&state)).map_err(LogicalError::Branch)
}

fn take_back(state: &mut LogicalState, kept: &LogicalState, verified: &[VerifiedTable]) {
    let names = state.names();
    let LogicalState { files, rewritten, .. } = state;
    let is_equal = |oid: &u32| {
        let name = names.get(oid);
        let was_told = kept.rewritten.contains(oid) && kept.files.get(oid) == files.get(oid);
        was_told && verified.iter().any(|table| table.equal && Some(&table.table) == name)
    };
    rewritten.retain(|oid| !is_equal(oid));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_rows_that_may_have_changed_are_told() {
        let table = |name: &str| json!({"schema": "s", "name": name, "bytes": 0, "copied_at": null});
        let kept = json!({
            "phase": "follow", "tables": {"1": table("t"), "2": table("u")}, "script_done": 0, "left_out": [],
            "files": {"1": [100, 1, 1], "9": [900, 1, 1]},
        });
        let mut state: LogicalState = serde_json::from_value(kept).expect("it is a state");
        let mut look = |before: TableFile, now: TableFile, emptied: &[u32]| {
            let (before, now) = (Files::from([(1, before)]), Files::from([(1, now)]));
            compare(&mut state, &before, &now, &emptied.iter().copied().collect());
            (state.files.get(&1).copied(), tell(&state))
        };
        let old = TableFile(100, 1);
        for now in [TableFile(101, 1), TableFile(101, 2), TableFile(102, 2)] {
            assert_eq!(look(old, now, &[]), (Some(now), Vec::new()), "VACUUM FULL, another default or column");
        }
        let (_, told) = look(old, TableFile(103, 3), &[]);
        assert!(told.len() == 1 && told[0].contains("table s.t was written anew"), "{told:?}");
        assert!(!state.files.contains_key(&9), "it is not followed");

        // One that is not known is known once it is the same twice, and not emptied meanwhile.
        let (one, other) = (TableFile(7, 1), TableFile(8, 1));
        let mut learn = |before: TableFile, now: TableFile, emptied: &[u32]| {
            let (before, now) = (Files::from([(2, before)]), Files::from([(2, now)]));
            compare(&mut state, &before, &now, &emptied.iter().copied().collect());
            state.files.contains_key(&2)
        };
        assert!(!learn(one, other, &[]) && !learn(other, other, &[2]) && learn(other, other, &[]));
    }

    #[test]
    fn a_table_that_was_emptied_may_be_written_anew_before_it_is_seen_again() {
        let table = json!({"schema": "s", "name": "t", "bytes": 0, "copied_at": null});
        let kept = json!({
            "phase": "follow", "tables": {"1": table}, "script_done": 0, "left_out": [], "files": {"1": [EMPTIED, 1]},
        });
        let check = |looks: &[(TableFile, TableFile, &[u32])], expect: TableFile, is_told: bool| {
            let mut state: LogicalState = serde_json::from_value(kept.clone()).expect("it is a state");
            for (before, now, emptied) in looks {
                let (before, now) = (Files::from([(1, *before)]), Files::from([(1, *now)]));
                compare(&mut state, &before, &now, &emptied.iter().copied().collect());
            }
            assert_eq!((state.files.get(&1), !tell(&state).is_empty()), (Some(&expect), is_told));
        };
        let (old, new, anew) = (TableFile(100, 1), TableFile(101, 1), TableFile(102, 2));
        // The first look may be from before the TRUNCATE.
        check(&[(old, old, &[1])], TableFile(EMPTIED, 1), false);
        check(&[(old, new, &[1]), (new, new, &[])], new, false);
        check(&[(old, anew, &[1])], TableFile(EMPTIED, 2), true);
        check(&[(old, new, &[1]), (new, anew, &[]), (anew, anew, &[])], anew, true);
    }

    #[test]
    fn what_was_written_anew_since_a_comparison_is_still_told() {
        let table = |name: &str| json!({"schema": "s", "name": name, "bytes": 0, "copied_at": null});
        let kept = json!({
            "phase": "follow", "tables": {"1": table("t"), "2": table("u"), "3": table("v"), "4": table("w")}, "script_done": 0, "left_out": [],
            "files": {"1": [100, 1], "3": [300, 1], "4": [400, 1]}, "rewritten": [1, 3, 4],
        });
        let mut state: LogicalState = serde_json::from_value(kept).expect("it is a state");
        let verified = |name: &str, equal: bool| VerifiedTable {
            table: name.into(),
            production_rows: 1,
            root_rows: 1,
            equal,
            columns_differ: None,
        };
        let verified =
            [("s.t", true), ("s.u", true), ("s.v", false), ("s.w", true)].map(|(name, equal)| verified(name, equal));
        let before = state.clone();
        state.rewritten.insert(2);
        state.files.insert(4, TableFile(401, 2));
        take_back(&mut state, &before, &verified);
        assert_eq!(state.rewritten, BTreeSet::from([2, 3, 4]));
    }

    #[test]
    fn files_that_were_kept_are_read_again() {
        let file = TableFile(7, -1);
        let kept = serde_json::to_string(&file).expect("plain data");
        for text in [kept.as_str(), "[7,-1,5]"] {
            assert_eq!(serde_json::from_str::<TableFile>(text).expect("reads"), file);
        }
        assert!(serde_json::from_str::<TableFile>("[7]").is_err());
    }
}
