//! Names of resource managers and record types, as `pg_waldump` prints them.

/// Resource manager ids (`rmgrlist.h`), the same in 15 to 18.
pub mod rm {
    #![allow(missing_docs, reason = "the names are Postgres's")]
    pub const XLOG: u8 = 0;
    pub const XACT: u8 = 1;
    pub const SMGR: u8 = 2;
    pub const CLOG: u8 = 3;
    pub const DBASE: u8 = 4;
    pub const TBLSPC: u8 = 5;
    pub const MULTIXACT: u8 = 6;
    pub const RELMAP: u8 = 7;
    pub const STANDBY: u8 = 8;
    pub const HEAP2: u8 = 9;
    pub const HEAP: u8 = 10;
    pub const BTREE: u8 = 11;
    pub const HASH: u8 = 12;
    pub const GIN: u8 = 13;
    pub const GIST: u8 = 14;
    pub const SEQ: u8 = 15;
    pub const SPGIST: u8 = 16;
    pub const BRIN: u8 = 17;
    pub const COMMIT_TS: u8 = 18;
    pub const REPLORIGIN: u8 = 19;
    pub const GENERIC: u8 = 20;
    pub const LOGICALMSG: u8 = 21;
}

const RMGRS: [&str; 22] = [
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

/// A resource manager's name; "custom" from 128 on, "unknown" for ids that no major uses.
pub fn rmgr(rmid: u8) -> &'static str {
    match RMGRS.get(usize::from(rmid)) {
        Some(name) => name,
        None if rmid >= 128 => "custom",
        None => "unknown",
    }
}

/// A record type's name for the resource managers that touch relation blocks, "other" for what has none.
pub fn record(rmid: u8, info: u8) -> &'static str {
    let op = info >> 4;
    let pick = |names: &[&'static str]| names.get(usize::from(op)).copied().unwrap_or("other");
    match rmid {
        rm::XLOG => pick(&[
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
            "other",
            "OVERWRITE_CONTRECORD",
            "CHECKPOINT_REDO",
        ]),
        rm::HEAP => pick(&[
            "INSERT",
            "DELETE",
            "UPDATE",
            "TRUNCATE",
            "HOT_UPDATE",
            "HEAP_CONFIRM",
            "LOCK",
            "INPLACE",
            "INSERT+INIT",
            "other",
            "UPDATE+INIT",
            "other",
            "HOT_UPDATE+INIT",
        ]),
        rm::HEAP2 => pick(&[
            "REWRITE",
            "PRUNE",
            "VACUUM",
            "FREEZE_PAGE",
            "VISIBLE",
            "MULTI_INSERT",
            "LOCK_UPDATED",
            "NEW_CID",
            "other",
            "other",
            "other",
            "other",
            "other",
            "MULTI_INSERT+INIT",
        ]),
        rm::BTREE => pick(&[
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
        ]),
        rm::HASH => pick(&[
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
        ]),
        rm::GIN => pick(&[
            "other",
            "CREATE_PTREE",
            "INSERT",
            "SPLIT",
            "VACUUM_PAGE",
            "DELETE_PAGE",
            "UPDATE_META_PAGE",
            "INSERT_LISTPAGE",
            "DELETE_LISTPAGE",
            "VACUUM_DATA_LEAF_PAGE",
        ]),
        rm::GIST => {
            pick(&["PAGE_UPDATE", "DELETE", "PAGE_REUSE", "PAGE_SPLIT", "other", "other", "PAGE_DELETE", "ASSIGN_LSN"])
        }
        rm::SEQ => pick(&["LOG"]),
        rm::SPGIST => pick(&[
            "other",
            "ADD_LEAF",
            "MOVE_LEAFS",
            "ADD_NODE",
            "SPLIT_TUPLE",
            "PICKSPLIT",
            "VACUUM_LEAF",
            "VACUUM_ROOT",
            "VACUUM_REDIRECT",
        ]),
        rm::BRIN => match info & 0xF0 {
            0x00 => "CREATE_INDEX",
            0x10 => "INSERT",
            0x90 => "INSERT+INIT",
            0x20 => "UPDATE",
            0xA0 => "UPDATE+INIT",
            0x30 => "SAMEPAGE_UPDATE",
            0x40 => "REVMAP_EXTEND",
            0x50 => "DESUMMARIZE",
            _ => "other",
        },
        rm::GENERIC => "Generic",
        _ => "other",
    }
}
