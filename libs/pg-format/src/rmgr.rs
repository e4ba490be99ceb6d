//! Resource managers: their numbers, their names, the names of their record types.

use std::borrow::Cow;

use crate::major::PgMajor;

/// `RM_XLOG_ID`
pub const XLOG: u8 = 0;
/// `RM_XACT_ID`
pub const TRANSACTION: u8 = 1;
/// `RM_SMGR_ID`
pub const STORAGE: u8 = 2;
/// `RM_CLOG_ID`
pub const CLOG: u8 = 3;
/// `RM_DBASE_ID`
pub const DATABASE: u8 = 4;
/// `RM_TBLSPC_ID`
pub const TABLESPACE: u8 = 5;
/// `RM_MULTIXACT_ID`
pub const MULTIXACT: u8 = 6;
/// `RM_RELMAP_ID`
pub const RELMAP: u8 = 7;
/// `RM_STANDBY_ID`
pub const STANDBY: u8 = 8;
/// `RM_HEAP2_ID`
pub const HEAP2: u8 = 9;
/// `RM_HEAP_ID`
pub const HEAP: u8 = 10;
/// `RM_BTREE_ID`
pub const BTREE: u8 = 11;
/// `RM_HASH_ID`
pub const HASH: u8 = 12;
/// `RM_GIN_ID`
pub const GIN: u8 = 13;
/// `RM_GIST_ID`
pub const GIST: u8 = 14;
/// `RM_SEQ_ID`
pub const SEQUENCE: u8 = 15;
/// `RM_SPGIST_ID`
pub const SPGIST: u8 = 16;
/// `RM_BRIN_ID`
pub const BRIN: u8 = 17;
/// `RM_COMMIT_TS_ID`
pub const COMMIT_TS: u8 = 18;
/// `RM_REPLORIGIN_ID`
pub const REPLICATION_ORIGIN: u8 = 19;
/// `RM_GENERIC_ID`
pub const GENERIC: u8 = 20;
/// `RM_LOGICALMSG_ID`, the last built-in one of 15 to 18.
pub const LOGICAL_MESSAGE: u8 = 21;
/// `RM_MIN_CUSTOM_ID`: from here on, extensions' resource managers.
pub const CUSTOM_MIN: u8 = 128;

/// Record types of [`XLOG`].
pub mod xlog {
    /// `XLOG_CHECKPOINT_SHUTDOWN`
    pub const CHECKPOINT_SHUTDOWN: u8 = 0x00;
    /// `XLOG_CHECKPOINT_ONLINE`
    pub const CHECKPOINT_ONLINE: u8 = 0x10;
    /// `XLOG_NOOP`
    pub const NOOP: u8 = 0x20;
    /// `XLOG_NEXTOID`
    pub const NEXTOID: u8 = 0x30;
    /// `XLOG_SWITCH`
    pub const SWITCH: u8 = 0x40;
    /// `XLOG_BACKUP_END`
    pub const BACKUP_END: u8 = 0x50;
    /// `XLOG_PARAMETER_CHANGE`
    pub const PARAMETER_CHANGE: u8 = 0x60;
    /// `XLOG_RESTORE_POINT`
    pub const RESTORE_POINT: u8 = 0x70;
    /// `XLOG_FPW_CHANGE`
    pub const FPW_CHANGE: u8 = 0x80;
    /// `XLOG_END_OF_RECOVERY`
    pub const END_OF_RECOVERY: u8 = 0x90;
    /// `XLOG_FPI_FOR_HINT`
    pub const FPI_FOR_HINT: u8 = 0xA0;
    /// `XLOG_FPI`
    pub const FPI: u8 = 0xB0;
    /// `XLOG_OVERWRITE_CONTRECORD`
    pub const OVERWRITE_CONTRECORD: u8 = 0xD0;
    /// `XLOG_CHECKPOINT_REDO`, since 17.
    pub const CHECKPOINT_REDO: u8 = 0xE0;
}

/// Whether a record can have this resource manager: a built-in or an extension's.
#[inline(always)]
pub fn is_possible(rmid: u8) -> bool {
    rmid <= LOGICAL_MESSAGE || rmid >= CUSTOM_MIN
}

const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// The name that `pg_waldump` shows: `Heap2`; an extension's, of which only the number is known, is `custom129`; `unknown` if no record
/// can have it.
pub fn name(rmid: u8) -> Cow<'static, str> {
    match NAMES.get(usize::from(rmid)) {
        Some(name) => Cow::Borrowed(name),
        None if rmid >= CUSTOM_MIN => Cow::Owned(format!("custom{rmid:03}")),
        None => Cow::Borrowed("unknown"),
    }
}

/// The name of a record's type, as `pg_waldump` shows it: `INSERT+INIT`. `None` if this major has no such type, or for an extension's
/// resource manager. The `XLR_*` flags in `info` don't matter.
pub fn identify(rmid: u8, info: u8, major: PgMajor) -> Option<&'static str> {
    let info = info & 0xF0;
    // One bit of these says that more fields follow, or that the page is initialised.
    let (kind, init) = (info & 0x70, info & 0x80 != 0);
    match rmid {
        XLOG => xlog_type(info, major),
        TRANSACTION => pick(kind, &XACT_TYPES),
        HEAP => with_init(pick(kind, &HEAP_TYPES)?, init),
        HEAP2 => with_init(pick(kind, if major >= PgMajor::V17 { &HEAP2_TYPES_17 } else { &HEAP2_TYPES })?, init),
        BRIN => with_init(pick(kind, &BRIN_TYPES)?, init),
        GENERIC => Some("Generic"),
        _ => pick(info, types(rmid)?),
    }
}

/// The type numbered by the upper four bits.
fn pick(info: u8, types: &[&'static str]) -> Option<&'static str> {
    types.get(usize::from(info >> 4)).copied().filter(|name| !name.is_empty())
}

/// The type with `+INIT`, where it can initialise a page.
fn with_init(plain: &'static str, init: bool) -> Option<&'static str> {
    if !init {
        return Some(plain);
    }
    match plain {
        "INSERT" => Some("INSERT+INIT"),
        "UPDATE" => Some("UPDATE+INIT"),
        "HOT_UPDATE" => Some("HOT_UPDATE+INIT"),
        "MULTI_INSERT" => Some("MULTI_INSERT+INIT"),
        _ => None,
    }
}

fn xlog_type(info: u8, major: PgMajor) -> Option<&'static str> {
    match info {
        xlog::CHECKPOINT_REDO => (major >= PgMajor::V17).then_some("CHECKPOINT_REDO"),
        _ => pick(info, &XLOG_TYPES),
    }
}

const XLOG_TYPES: [&str; 14] = [
    "CHECKPOINT_SHUTDOWN",
    "CHECKPOINT_ONLINE",
    "NOOP",
    "NEXTOID",
    "SWITCH",
    "BACKUP_END",
    "PARAMETER_CHANGE",
    "RESTORE_POINT",
    "FPW_CHANGE",
    "END_OF_RECOVERY",
    "FPI_FOR_HINT",
    "FPI",
    "",
    "OVERWRITE_CONTRECORD",
];
const XACT_TYPES: [&str; 7] =
    ["COMMIT", "PREPARE", "ABORT", "COMMIT_PREPARED", "ABORT_PREPARED", "ASSIGNMENT", "INVALIDATION"];
const HEAP_TYPES: [&str; 8] =
    ["INSERT", "DELETE", "UPDATE", "TRUNCATE", "HOT_UPDATE", "HEAP_CONFIRM", "LOCK", "INPLACE"];
const HEAP2_TYPES: [&str; 8] =
    ["REWRITE", "PRUNE", "VACUUM", "FREEZE_PAGE", "VISIBLE", "MULTI_INSERT", "LOCK_UPDATED", "NEW_CID"];
const HEAP2_TYPES_17: [&str; 8] = [
    "REWRITE",
    "PRUNE_ON_ACCESS",
    "PRUNE_VACUUM_SCAN",
    "PRUNE_VACUUM_CLEANUP",
    "VISIBLE",
    "MULTI_INSERT",
    "LOCK_UPDATED",
    "NEW_CID",
];
const BRIN_TYPES: [&str; 6] = ["CREATE_INDEX", "INSERT", "UPDATE", "SAMEPAGE_UPDATE", "REVMAP_EXTEND", "DESUMMARIZE"];

fn types(rmid: u8) -> Option<&'static [&'static str]> {
    Some(match rmid {
        STORAGE => &["", "CREATE", "TRUNCATE"],
        CLOG | COMMIT_TS => &["ZEROPAGE", "TRUNCATE"],
        DATABASE => &["CREATE_FILE_COPY", "CREATE_WAL_LOG", "DROP"],
        TABLESPACE => &["CREATE", "DROP"],
        MULTIXACT => &["ZERO_OFF_PAGE", "ZERO_MEM_PAGE", "CREATE_ID", "TRUNCATE_ID"],
        RELMAP => &["UPDATE"],
        STANDBY => &["LOCK", "RUNNING_XACTS", "INVALIDATIONS"],
        BTREE => &[
            "INSERT_LEAF",
            "INSERT_UPPER",
            "INSERT_META",
            "SPLIT_L",
            "SPLIT_R",
            "INSERT_POST",
            "DEDUP",
            "DELETE",
            "UNLINK_PAGE",
            "UNLINK_PAGE_META",
            "NEWROOT",
            "MARK_PAGE_HALFDEAD",
            "VACUUM",
            "REUSE_PAGE",
            "META_CLEANUP",
        ],
        HASH => &[
            "INIT_META_PAGE",
            "INIT_BITMAP_PAGE",
            "INSERT",
            "ADD_OVFL_PAGE",
            "SPLIT_ALLOCATE_PAGE",
            "SPLIT_PAGE",
            "SPLIT_COMPLETE",
            "MOVE_PAGE_CONTENTS",
            "SQUEEZE_PAGE",
            "DELETE",
            "SPLIT_CLEANUP",
            "UPDATE_META_PAGE",
            "VACUUM_ONE_PAGE",
        ],
        GIN => &[
            "",
            "CREATE_PTREE",
            "INSERT",
            "SPLIT",
            "VACUUM_PAGE",
            "DELETE_PAGE",
            "UPDATE_META_PAGE",
            "INSERT_LISTPAGE",
            "DELETE_LISTPAGE",
            "VACUUM_DATA_LEAF_PAGE",
        ],
        GIST => &["PAGE_UPDATE", "DELETE", "PAGE_REUSE", "PAGE_SPLIT", "", "", "PAGE_DELETE", "ASSIGN_LSN"],
        SEQUENCE => &["LOG"],
        SPGIST => &[
            "",
            "ADD_LEAF",
            "MOVE_LEAFS",
            "ADD_NODE",
            "SPLIT_TUPLE",
            "PICKSPLIT",
            "VACUUM_LEAF",
            "VACUUM_ROOT",
            "VACUUM_REDIRECT",
        ],
        REPLICATION_ORIGIN => &["SET", "DROP"],
        LOGICAL_MESSAGE => &["MESSAGE"],
        _ => return None,
    })
}
