//! Relations, forks, blocks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Page size in bytes (`BLCKSZ`). Clusters built with another size are refused at preflight.
pub const BLCKSZ: usize = 8192;

/// The number of a block within a relation fork.
pub type BlockNumber = u32;

/// A relation's fork (`ForkNumber`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum ForkNumber {
    /// The data itself.
    Main = 0,
    /// Free space map. Never WAL-logged page by page.
    Fsm = 1,
    /// Visibility map.
    Vm = 2,
    /// What an unlogged relation is reset to.
    Init = 3,
}

impl ForkNumber {
    /// All forks, in Postgres's order.
    pub const ALL: [ForkNumber; 4] = [ForkNumber::Main, ForkNumber::Fsm, ForkNumber::Vm, ForkNumber::Init];

    /// The fork with Postgres's number `raw`; `None` above 3.
    #[inline]
    pub fn from_raw(raw: u8) -> Option<Self> {
        Self::ALL.get(usize::from(raw)).copied()
    }

    /// Its suffix in file names: empty for the main fork, `_fsm`, `_vm`, `_init`.
    pub fn file_suffix(self) -> &'static str {
        match self {
            ForkNumber::Main => "",
            ForkNumber::Fsm => "_fsm",
            ForkNumber::Vm => "_vm",
            ForkNumber::Init => "_init",
        }
    }
}

/// A relation fork: tablespace, database, relfilenode, fork. Ordered in that order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelTag {
    /// Tablespace OID: 1663 `pg_default`, 1664 `pg_global`, others user's.
    pub spcnode: u32,
    /// Database OID, 0 for shared relations.
    pub dbnode: u32,
    /// Relfilenode (relfilenumber since 16).
    pub relnode: u32,
    /// Fork.
    pub fork: ForkNumber,
}

impl RelTag {
    /// The same relation's other fork.
    #[inline]
    #[must_use]
    pub fn with_fork(self, fork: ForkNumber) -> RelTag {
        RelTag { fork, ..self }
    }

    /// The path of its first segment file below the data directory. `version_directory` is the major's folder name inside
    /// a user tablespace, for example `PG_15_202209061`.
    pub fn path(&self, version_directory: &str) -> String {
        let (db, rel, suffix) = (self.dbnode, self.relnode, self.fork.file_suffix());
        match self.spcnode {
            oid::GLOBAL_TABLESPACE => format!("global/{rel}{suffix}"),
            oid::DEFAULT_TABLESPACE => format!("base/{db}/{rel}{suffix}"),
            spc => format!("pg_tblspc/{spc}/{version_directory}/{db}/{rel}{suffix}"),
        }
    }
}

impl fmt::Display for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}{}", self.spcnode, self.dbnode, self.relnode, self.fork.file_suffix())
    }
}

impl fmt::Debug for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// OIDs that Postgres fixes.
pub mod oid {
    /// `pg_default`.
    pub const DEFAULT_TABLESPACE: u32 = 1663;
    /// `pg_global`.
    pub const GLOBAL_TABLESPACE: u32 = 1664;
}
