//! Records that change more than fits in memory (PS-2, PS-8).

use std::path::Path;
use std::sync::Arc;

use ardent_object_store::fault::FailPoints;
use ardent_pg_redo::Value;
use ardent_storage::{Engine, EngineConfig, PutError, Timeline};
use ardent_types::{Key, Lsn};
use bytes::Bytes;

use crate::support::*;

/// Blocks of the copy; each has this many bytes that nothing compresses.
const BLOCKS: u32 = 600;
const BLOCK_BYTES: usize = 8192;
/// Blocks that are given at a time.
const AT_ONCE: u32 = 50;
/// What the timeline may hold in memory meanwhile.
const HELD_BYTES_MAX: u64 = 64 << 10;
const BEFORE: u64 = 0x110;
const RECORD: u64 = 0x200;

fn content(block: u32) -> Bytes {
    let mut state = u64::from(block).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..BLOCK_BYTES).map(|_| next()).collect::<Vec<_>>().into()
}

fn part(from: u32) -> Vec<(Key, Lsn, Value)> {
    let blocks = from..(from + AT_ONCE).min(BLOCKS);
    let mut values: Vec<_> = blocks.map(|number| (block(number), lsn(RECORD), Value::Image(content(number)))).collect();
    // As ingest gives them: the size when the relation begins, between the blocks of others.
    values.insert(0, (Key::RelSize(REL), lsn(RECORD), Value::Image(Bytes::copy_from_slice(&BLOCKS.to_le_bytes()))));
    values
}

fn small_files(folder: &Path, faults: &Arc<FailPoints>) -> Arc<Engine> {
    Engine::open(EngineConfig { layer_file_bytes: 256 << 10, ..config(folder, faults) }).unwrap()
}

fn check_unseen(timeline: &Timeline) {
    assert_eq!(timeline.last_record(), at(BEFORE));
    assert_eq!(timeline.get(&block(7), lsn(BEFORE)).unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(timeline.get(&block(8), lsn(BEFORE)).unwrap(), None);
    assert!(timeline.get(&block(7), lsn(RECORD)).is_err());
}

fn check_whole(timeline: &Timeline) {
    for number in 0..BLOCKS {
        let found = timeline.get(&block(number), lsn(RECORD)).unwrap();
        assert!(found == Some(content(number)), "block {number}");
    }
    assert_eq!(timeline.get(&Key::RelSize(REL), lsn(RECORD)).unwrap().as_deref(), Some(&BLOCKS.to_le_bytes()[..]));
    assert_eq!(timeline.get(&block(7), lsn(BEFORE)).unwrap().as_deref(), Some(&b"old"[..]));
}

fn files(folder: &Path) -> usize {
    let mut found = 0;
    let mut folders = vec![folder.join("store")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_layer = path.parent().is_some_and(|parent| parent.ends_with("layers"));
            if path.is_dir() { folders.push(path) } else { found += usize::from(is_layer) }
        }
    }
    found
}

#[test]
fn a_large_record_is_seen_whole_or_not_at_all_and_is_not_held_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let engine = small_files(folder.path(), &Arc::new(FailPoints::new()));
    let root = empty_root(&engine, 1);
    root.put(vec![(block(7), lsn(BEFORE), image("old"))], at(BEFORE)).unwrap();
    let mut record = root.begin_large_record(at(RECORD)).unwrap();
    for from in (0..BLOCKS).step_by(AT_ONCE as usize) {
        record.add(&part(from)).unwrap();
        let held = engine.stats().memory_layer_bytes;
        assert!(held < HELD_BYTES_MAX, "{held} bytes are held");
        check_unseen(&root);
        // What is compacted meanwhile is what was there before.
        root.compact().unwrap();
    }
    record.finish().unwrap();
    check_whole(&root);
    assert_eq!((root.last_record(), root.disk_consistent_lsn()), (at(RECORD), lsn(RECORD)));
    assert_eq!(
        engine.create_branch(TENANT, timeline_id(2), timeline_id(1), Some(lsn(RECORD))).unwrap().lsn,
        lsn(RECORD)
    );

    // WAL goes on, and compaction takes both.
    for round in 0..8u64 {
        let end = RECORD + 8 + round * 8;
        root.put(vec![(block(9), lsn(end), delta("+"))], at(end)).unwrap();
        root.flush().unwrap();
        root.compact().unwrap();
        check_whole(&root);
    }
    drop((root, engine));
    let engine = small_files(folder.path(), &Arc::new(FailPoints::new()));
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    check_whole(&root);
    assert!(root.get(&block(9), lsn(RECORD + 64)).unwrap().unwrap().ends_with(b"++++++++"));
    let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
    check_whole(&branch);
}

#[test]
fn a_large_record_that_is_cut_off_leaves_nothing_and_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Arc::new(FailPoints::new());
    let engine = small_files(folder.path(), &faults);
    let root = empty_root(&engine, 1);
    root.put(vec![(block(7), lsn(BEFORE), image("old"))], at(BEFORE)).unwrap();
    root.flush().unwrap();
    let kept = files(folder.path());
    let begin = |root: &Arc<Timeline>| {
        let mut record = root.begin_large_record(at(RECORD)).unwrap();
        for from in (0..BLOCKS).step_by(AT_ONCE as usize) {
            record.add(&part(from)).unwrap();
        }
        std::mem::forget(record);
    };
    // Given up.
    let mut record = root.begin_large_record(at(RECORD)).unwrap();
    for from in (0..BLOCKS).step_by(AT_ONCE as usize) {
        record.add(&part(from)).unwrap();
    }
    assert!(files(folder.path()) > kept + 5, "it is on disk, and not in memory");
    drop(record);
    check_unseen(&root);
    assert_eq!(files(folder.path()), kept);
    // Killed in the middle: the files stay until the next start.
    begin(&root);
    assert!(files(folder.path()) > kept + 5);
    drop((root, engine));
    let engine = small_files(folder.path(), &faults);
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    check_unseen(&root);
    assert_eq!(files(folder.path()), kept, "the next owner removes them");
    let mut record = root.begin_large_record(at(RECORD)).unwrap();
    for from in (0..BLOCKS).step_by(AT_ONCE as usize) {
        record.add(&part(from)).unwrap();
    }
    record.finish().unwrap();
    check_whole(&root);
}

#[test]
fn a_large_record_keeps_to_its_rules() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    root.put(vec![(block(7), lsn(BEFORE), image("old"))], at(BEFORE)).unwrap();
    let broken = |result: Result<(), PutError>| assert!(matches!(result, Err(PutError::Disorder { .. })), "{result:?}");
    broken(root.begin_large_record(at(BEFORE)).map(|_| ()));
    let mut record = root.begin_large_record(at(RECORD)).unwrap();
    broken(record.add(&[(block(1), lsn(RECORD - 8), image("x"))]));
    broken(record.add(&[(block(1), lsn(RECORD), delta("x"))]));
    broken(record.add(&[(block(1), lsn(RECORD), image("x")), (block(1), lsn(RECORD), image("y"))]));
    root.put(vec![(block(8), lsn(BEFORE + 8), image("z"))], at(BEFORE + 8)).unwrap();
    broken(record.finish());
    assert_eq!(root.last_record(), at(BEFORE + 8));
}
