//! Files that no catalog names (checklist 68): a CREATE or a rewrite that was in flight at a branch point or when its server was
//! killed leaves relation files that no row of pg_class and no relation map leads to. Nothing reads them; they cost space.
//!
//! ```text
//!  databases ─► rows of pg_database ──┐
//!  relation maps ─────────────────────┼─► named relations ──┐
//!  pages of each pg_class ─► rows ────┘                     ├─► UnnamedFile
//!  relation sizes ──────────────────────────────────────────┘
//! ```
//!
//! A row counts if its transaction had committed, or is prepared and still may; what was merely running at that LSN has not happened
//! on a branch that begins there. On a timeline that production is writing, files of its running transactions are therefore among
//! those found. Where it can't be known whether a row is gone (it was replaced under a multixact), it still counts: a file that is
//! in use is never reported.

mod catalog;
mod relation_map;
mod transactions;

use std::collections::BTreeSet;

use ardent_types::{BlockNumber, ForkNumber, Key, RelTag, oid};

use crate::ingest::decode_size;
use crate::state::ReadState;
use catalog::{Catalogs, MainFork};
use transactions::Transactions;

/// `RelationRelationId`
const PG_CLASS: u32 = 1259;
/// `DatabaseRelationId`
const PG_DATABASE: u32 = 1262;

/// The catalogs can't be read. `R` is storage's error.
#[derive(Debug, thiserror::Error)]
pub enum UnnamedError<R: std::error::Error + 'static> {
    /// Storage could not be read.
    #[error("the catalogs can't be read")]
    State(#[source] R),
    /// A page or a map of a catalog is not what it should be.
    #[error("{place} is damaged: {what}")]
    Damaged {
        /// Which key.
        place: Key,
        /// What is wrong.
        what: &'static str,
    },
}

/// Why nothing names a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unnamed {
    /// No row of its database's pg_class, nor its relation map.
    NoRelation,
    /// No row of pg_database has its database.
    NoDatabase,
}

/// A relation's files that nothing names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnnamedFile {
    /// Its main fork.
    pub rel: RelTag,
    /// Forks that exist, with their sizes.
    pub forks: Vec<(ForkNumber, BlockNumber)>,
    /// Why.
    pub reason: Unnamed,
}

/// All relations of the state's LSN that no catalog names, in key order. Memory: the list of relation sizes, and a number for each
/// relation that is named.
pub fn unnamed_files<S: ReadState>(state: &S) -> Result<Vec<UnnamedFile>, UnnamedError<S::Error>> {
    let mut catalogs = Catalogs { state, transactions: Transactions::load(state)? };
    let shared = catalogs.map(oid::GLOBAL_TABLESPACE, 0)?;
    let mut named: BTreeSet<MainFork> = shared.files().map(|file| (oid::GLOBAL_TABLESPACE, 0, file)).collect();
    let pg_database = catalogs.mapped(oid::GLOBAL_TABLESPACE, 0, &shared, PG_DATABASE)?;
    let databases = catalogs.databases(pg_database)?;
    for (spcnode, dbnode) in catalogs.default_folders()? {
        if !databases.contains(&dbnode) {
            continue;
        }
        let map = catalogs.map(spcnode, dbnode)?;
        named.extend(map.files().map(|file| (spcnode, dbnode, file)));
        let pg_class = catalogs.mapped(spcnode, dbnode, &map, PG_CLASS)?;
        catalogs.relations(pg_class, &mut named)?;
    }
    let first = *Key::rel_sizes(0, 0).start();
    let last = *Key::rel_sizes(u32::MAX, u32::MAX).end();
    let sizes = state.scan(first..=last).map_err(UnnamedError::State)?;
    let mut found: Vec<UnnamedFile> = Vec::new();
    for (key, size) in sizes {
        let (Key::RelSize(fork), Some(blocks)) = (key, decode_size(Some(size))) else {
            return Err(UnnamedError::Damaged { place: key, what: "it is not a size" });
        };
        let rel = fork.with_fork(ForkNumber::Main);
        if named.contains(&(rel.spcnode, rel.dbnode, rel.relnode)) {
            continue;
        }
        let is_shared = rel.spcnode == oid::GLOBAL_TABLESPACE;
        let reason =
            if is_shared || databases.contains(&rel.dbnode) { Unnamed::NoRelation } else { Unnamed::NoDatabase };
        match found.last_mut() {
            Some(file) if file.rel == rel => file.forks.push((fork.fork, blocks)),
            _ => found.push(UnnamedFile { rel, forks: vec![(fork.fork, blocks)], reason }),
        }
    }
    Ok(found)
}
