//! What a path of a base backup is.

use ardent_pg_format::PgMajor;
use ardent_types::{ForkNumber, RelTag, SlruKind, oid};

/// A file of a data directory, by what an import does with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImportPath {
    /// A segment file of a relation fork, numbered from 0.
    Relation { rel: RelTag, segment: u32 },
    /// A segment of an SLRU.
    Slru { kind: SlruKind, segment: u32 },
    /// `pg_filenode.map` of a database, or of `global` with database 0.
    RelMap { spcnode: u32, dbnode: u32 },
    /// `PG_VERSION` of a database.
    DatabaseVersion { spcnode: u32, dbnode: u32 },
    /// `PG_VERSION` of the cluster.
    ClusterVersion,
    /// State of a prepared transaction.
    TwoPhase { xid: u64 },
    /// `global/pg_control`.
    ControlFile,
    /// Where the backup began.
    BackupLabel,
    /// The user's tablespaces.
    TablespaceMap,
    /// Progress of replication origins.
    Origins,
    /// Nothing that a branch needs (checklist 64): configuration, logs, caches, WAL, slots, temporary relations.
    Skipped,
}

impl ImportPath {
    /// Tells from a path below the data directory, with or without a leading `./`.
    pub fn parse(path: &str, major: PgMajor) -> ImportPath {
        let path = path.strip_prefix("./").unwrap_or(path);
        let parts: Vec<&str> = path.split('/').collect();
        let known = match parts[..] {
            ["PG_VERSION"] => Some(ImportPath::ClusterVersion),
            ["backup_label"] => Some(ImportPath::BackupLabel),
            ["tablespace_map"] => Some(ImportPath::TablespaceMap),
            ["global", "pg_control"] => Some(ImportPath::ControlFile),
            ["global", file] => in_database(oid::GLOBAL_TABLESPACE, 0, file),
            ["base", database, file] => {
                decimal(database).and_then(|dbnode| in_database(oid::DEFAULT_TABLESPACE, dbnode, file))
            }
            ["pg_tblspc", tablespace, version, database, file] if version == major.tablespace_directory() => {
                let folder = decimal(tablespace).zip(decimal(database));
                folder.and_then(|(spcnode, dbnode)| in_database(spcnode, dbnode, file))
            }
            ["pg_xact", file] => slru_segment(SlruKind::Xact, file),
            ["pg_commit_ts", file] => slru_segment(SlruKind::CommitTs, file),
            ["pg_multixact", "offsets", file] => slru_segment(SlruKind::MultiXactOffsets, file),
            ["pg_multixact", "members", file] => slru_segment(SlruKind::MultiXactMembers, file),
            ["pg_twophase", file] => hexadecimal(file).map(|xid| ImportPath::TwoPhase { xid }),
            ["pg_logical", "replorigin_checkpoint"] => Some(ImportPath::Origins),
            _ => None,
        };
        known.unwrap_or(ImportPath::Skipped)
    }
}

fn in_database(spcnode: u32, dbnode: u32, file: &str) -> Option<ImportPath> {
    match file {
        "pg_filenode.map" => Some(ImportPath::RelMap { spcnode, dbnode }),
        "PG_VERSION" => Some(ImportPath::DatabaseVersion { spcnode, dbnode }),
        _ => relation_segment(spcnode, dbnode, file),
    }
}

/// `NUMBER[_FORK][.SEGMENT]`; temporary relations begin with a `t`.
fn relation_segment(spcnode: u32, dbnode: u32, file: &str) -> Option<ImportPath> {
    let (name, segment) = match file.split_once('.') {
        Some((name, segment)) => (name, decimal(segment)?),
        None => (file, 0),
    };
    let (relnode, fork) = match name.split_once('_') {
        Some((relnode, suffix)) => {
            let fork = ForkNumber::ALL.into_iter().find(|fork| fork.file_suffix().strip_prefix('_') == Some(suffix));
            (relnode, fork?)
        }
        None => (name, ForkNumber::Main),
    };
    let rel = RelTag { spcnode, dbnode, relnode: decimal(relnode)?, fork };
    Some(ImportPath::Relation { rel, segment })
}

fn slru_segment(kind: SlruKind, file: &str) -> Option<ImportPath> {
    let segment = u32::try_from(hexadecimal(file)?).ok()?;
    Some(ImportPath::Slru { kind, segment })
}

fn decimal(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Names of SLRU segments and two-phase files: at least four upper-case digits.
fn hexadecimal(text: &str) -> Option<u64> {
    let plain = text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expect: ImportPath) {
        assert_eq!(ImportPath::parse(path, PgMajor::V15), expect, "{path}");
    }

    fn rel(spcnode: u32, dbnode: u32, relnode: u32, fork: ForkNumber) -> RelTag {
        RelTag { spcnode, dbnode, relnode, fork }
    }

    #[test]
    fn relations_databases_and_slrus_are_recognised() {
        let segment = |rel, segment| ImportPath::Relation { rel, segment };
        check("global/1262", segment(rel(1664, 0, 1262, ForkNumber::Main), 0));
        check("./base/5/16384_vm.3", segment(rel(1663, 5, 16384, ForkNumber::Vm), 3));
        check("base/5/16384_init", segment(rel(1663, 5, 16384, ForkNumber::Init), 0));
        check("pg_tblspc/99/PG_15_202209061/5/7_fsm", segment(rel(99, 5, 7, ForkNumber::Fsm), 0));
        check("base/5/pg_filenode.map", ImportPath::RelMap { spcnode: 1663, dbnode: 5 });
        check("global/pg_filenode.map", ImportPath::RelMap { spcnode: 1664, dbnode: 0 });
        check("base/5/PG_VERSION", ImportPath::DatabaseVersion { spcnode: 1663, dbnode: 5 });
        check("pg_xact/0FFF", ImportPath::Slru { kind: SlruKind::Xact, segment: 0xFFF });
        check("pg_multixact/members/14078", ImportPath::Slru { kind: SlruKind::MultiXactMembers, segment: 0x14078 });
        check("pg_twophase/000002DA", ImportPath::TwoPhase { xid: 0x2DA });
        check("global/pg_control", ImportPath::ControlFile);
    }

    #[test]
    fn checklist_64_what_a_branch_does_not_need_is_skipped() {
        for path in [
            "base/5/t3_16384",
            "base/5/pg_internal.init",
            "global/pg_internal.init.77",
            "base/pgsql_tmp/pgsql_tmp5.0",
            "base/5/16384_vm.x",
            "base/5/16384_zz",
            "base/5/99999999999",
            "base/5/+1",
            "pg_tblspc/99/PG_14_202107181/5/7",
            "postmaster.pid",
            "pg_replslot/slot/state",
            "pg_wal/000000010000000000000001",
            "pg_notify/0000",
            "pg_subtrans/0000",
            "postgresql.conf",
            "pg_stat/pgstat.stat",
            "",
            "/",
        ] {
            check(path, ImportPath::Skipped);
        }
    }
}
