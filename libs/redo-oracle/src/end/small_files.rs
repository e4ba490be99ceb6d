//! SLRUs, relation maps, prepared transactions, replication origins, `pg_control`.

use std::collections::{BTreeMap, BTreeSet};

use ardent_pg_format::{CheckPoint, ControlFile};
use ardent_pg_ingest::ReadState;
use ardent_types::{BLCKSZ, Key, SlruKind, oid, with_causes};

use super::directory::DataDirectory;
use super::report::{EndDifference, EndReport};
use super::{EndError, EndState};

const PAGES_PER_SEGMENT: u64 = 32;

/// Every page of every segment that Postgres kept.
pub(super) fn slrus(state: &EndState, directory: &DataDirectory, report: &mut EndReport) -> Result<(), EndError> {
    let mut kept = BTreeSet::new();
    for path in directory.files()? {
        let kind = SlruKind::ALL.into_iter().find_map(|kind| {
            let name = path.strip_prefix(kind.directory())?.strip_prefix('/')?;
            Some((kind, u64::from_str_radix(name, 16).ok()?))
        });
        let Some((kind, segment)) = kind else { continue };
        for (index, server) in directory.read(&path)?.chunks(BLCKSZ).enumerate() {
            report.slru_pages += 1;
            let page = index as u64;
            let key = Key::SlruPage(kind, segment * PAGES_PER_SEGMENT + page);
            kept.insert(key);
            let what = match state.contents.get(key) {
                Err(error) => with_causes(&error),
                Ok(Some(ours)) if ours[..] == *server => continue,
                Ok(None) if server.iter().all(|byte| *byte == 0) => continue,
                Ok(None) => "we have no such page".to_owned(),
                Ok(Some(ours)) => {
                    let first = ours.iter().zip(server).position(|(ours, server)| ours != server);
                    format!("first at offset {first:?}")
                }
            };
            report.differs(EndDifference { block: Some(page as u32), ..EndDifference::of_file(&path, what) });
        }
    }
    // What Postgres has truncated away must be gone here as well. A page of zeros says nothing.
    for kind in SlruKind::ALL {
        for (key, page) in state.contents.scan(Key::SlruPage(kind, 0)..=Key::SlruPage(kind, u64::MAX))? {
            if !kept.contains(&key) && page.iter().any(|byte| *byte != 0) {
                report.differs(EndDifference::of_file(&key.to_string(), "Postgres has no such page".to_owned()));
            }
        }
    }
    Ok(())
}

/// Relation maps, two-phase files, origins' progress.
pub(super) fn maps_and_prepared(
    state: &EndState,
    directory: &DataDirectory,
    report: &mut EndReport,
) -> Result<(), EndError> {
    let mut seen = BTreeSet::new();
    for path in directory.files()? {
        let Some(key) = key_of(&path) else { continue };
        let server = directory.read(&path)?;
        let ours = state.contents.get(key)?.unwrap_or_default();
        report.files += 1;
        seen.insert(key);
        let equal = match key {
            Key::AuxFile(_) => origins(&ours) == origins(&server),
            _ => ours[..] == server[..],
        };
        if !equal {
            let what = format!("{} and {} bytes that are not the same", ours.len(), server.len());
            report.differs(EndDifference::of_file(&path, what));
        }
    }
    for range in [all_maps(), Key::TwoPhase { xid: 0 }..=Key::TwoPhase { xid: u64::MAX }] {
        for (key, _) in state.contents.scan(range)? {
            if !seen.contains(&key) {
                report.differs(EndDifference::of_file(&key.to_string(), "Postgres has no file for it".to_owned()));
            }
        }
    }
    Ok(())
}

fn all_maps() -> std::ops::RangeInclusive<Key> {
    Key::RelMap { spcnode: 0, dbnode: 0 }..=Key::RelMap { spcnode: u32::MAX, dbnode: u32::MAX }
}

/// Each origin's number and how far it is. Entries stand in the order of slots in memory, and their padding is what was on the
/// stack. Without an origin there is no file, or one with a magic number and a checksum only.
fn origins(file: &[u8]) -> BTreeMap<u16, u64> {
    const MAGIC_LEN: usize = 4;
    const ENTRY_LEN: usize = 16;
    let entries = file.get(MAGIC_LEN..).unwrap_or_default().chunks_exact(ENTRY_LEN);
    let entry = |entry: &[u8]| {
        let lsn = u64::from_le_bytes(entry[8..16].try_into().expect("8 bytes"));
        (u16::from_le_bytes([entry[0], entry[1]]), lsn)
    };
    entries.map(entry).collect()
}

fn key_of(path: &str) -> Option<Key> {
    let parts: Vec<&str> = path.split('/').collect();
    Some(match parts[..] {
        ["global", "pg_filenode.map"] => Key::RelMap { spcnode: oid::GLOBAL_TABLESPACE, dbnode: 0 },
        ["base", db, "pg_filenode.map"] => Key::RelMap { spcnode: oid::DEFAULT_TABLESPACE, dbnode: db.parse().ok()? },
        ["pg_tblspc", spc, _, db, "pg_filenode.map"] => {
            Key::RelMap { spcnode: spc.parse().ok()?, dbnode: db.parse().ok()? }
        }
        ["pg_twophase", xid] => Key::TwoPhase { xid: u64::from_str_radix(xid, 16).ok()? },
        ["pg_logical", "replorigin_checkpoint"] => Key::AuxFile(0),
        _ => return None,
    })
}

/// The checkpoint's fields, and the settings that WAL carries.
pub(super) fn control(state: &EndState, server: &ControlFile, report: &mut EndReport) -> Result<(), EndError> {
    let damaged = |key: Key, what: String| EndError::File { path: key.to_string().into(), what };
    let bytes = state.contents.get(Key::Checkpoint)?.unwrap_or_default();
    let ours = CheckPoint::decode(&bytes, state.major).map_err(|error| damaged(Key::Checkpoint, error.to_string()))?;
    // A shutdown checkpoint leaves it out; we keep the oldest prepared transaction (checklist 47).
    let ours = CheckPoint { oldest_active_xid: server.checkpoint.oldest_active_xid, ..ours };
    let bytes = state.contents.get(Key::ControlFile)?.unwrap_or_default();
    let file = ControlFile::decode(&bytes).map_err(|error| damaged(Key::ControlFile, error.to_string()))?;
    let pairs = fields(&ours, &file).into_iter().zip(fields(&server.checkpoint, server));
    for ((name, ours), (_, server)) in pairs {
        report.control_fields += 1;
        if ours != server {
            report.differs(EndDifference::of_file("global/pg_control", format!("{name} is {ours}, not {server}")));
        }
    }
    Ok(())
}

fn fields(checkpoint: &CheckPoint, file: &ControlFile) -> Vec<(&'static str, String)> {
    let CheckPoint {
        redo,
        tli,
        previous_tli,
        full_page_writes,
        next_xid,
        next_oid,
        next_multi,
        next_multi_offset,
        oldest_xid,
        oldest_xid_db,
        oldest_multi,
        oldest_multi_db,
        time,
        oldest_commit_ts_xid,
        newest_commit_ts_xid,
        oldest_active_xid: _,
        wal_level,
    } = checkpoint;
    vec![
        ("redo", redo.to_string()),
        ("ThisTimeLineID", tli.to_string()),
        ("PrevTimeLineID", previous_tli.to_string()),
        ("fullPageWrites", full_page_writes.to_string()),
        ("nextXid", next_xid.to_string()),
        ("nextOid", next_oid.to_string()),
        ("nextMulti", next_multi.to_string()),
        ("nextMultiOffset", next_multi_offset.to_string()),
        ("oldestXid", oldest_xid.to_string()),
        ("oldestXidDB", oldest_xid_db.to_string()),
        ("oldestMulti", oldest_multi.to_string()),
        ("oldestMultiDB", oldest_multi_db.to_string()),
        ("time", time.to_string()),
        ("oldestCommitTsXid", oldest_commit_ts_xid.to_string()),
        ("newestCommitTsXid", newest_commit_ts_xid.to_string()),
        ("system_identifier", format!("{:?}", file.system_id)),
        ("MaxConnections", file.max_connections.to_string()),
        ("max_worker_processes", file.max_worker_processes.to_string()),
        ("max_wal_senders", file.max_wal_senders.to_string()),
        ("max_prepared_xacts", file.max_prepared_xacts.to_string()),
        ("max_locks_per_xact", file.max_locks_per_xact.to_string()),
        ("checkpoint's wal_level", wal_level.to_string()),
        ("wal_level", file.wal_level.to_string()),
        ("wal_log_hints", file.wal_log_hints.to_string()),
        ("track_commit_timestamp", file.track_commit_timestamp.to_string()),
        ("xlog_seg_size", file.wal_segment_size.bytes().to_string()),
        ("data_checksum_version", file.data_checksum_version.to_string()),
    ]
}
