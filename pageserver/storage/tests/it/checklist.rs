//! Section 8 of the ingest checklist, as far as it is storage's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ardent_object_store::fault::FailPoints;
use ardent_storage::{Engine, EngineConfig};
use ardent_types::{ForkNumber, Key};
use bytes::Bytes;

use crate::support::*;

#[test]
fn checklist_58_a_branch_point_is_pinned_or_refused_while_garbage_is_collected() {
    const RECORDS: u64 = 400;
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::open(EngineConfig {
        open_layer_bytes_max: 400,
        layer_file_bytes: 400,
        ..config(folder.path(), &Arc::new(FailPoints::new()))
    })
    .unwrap();
    let root = empty_root(&engine, 1);
    let end = |n: u64| 0x100 + n * 8;
    for n in 1..=RECORDS {
        root.put(vec![(block(0), lsn(end(n)), image(format!("{n}")))], at(end(n))).unwrap();
        if n % 20 == 0 {
            root.flush().unwrap();
        }
    }
    let (done, made) = (AtomicBool::new(false), AtomicU64::new(0));
    let branches: Vec<(u8, u64)> = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            // Never past a branch point that was given out: that is what is to be seen.
            for n in 1..=RECORDS {
                root.collect_garbage(lsn(end(n))).unwrap();
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
                while made.load(Ordering::Relaxed) < n / 4 && !done.load(Ordering::Relaxed) {
                    assert!(std::time::Instant::now() < deadline, "no branch is made");
                    std::thread::yield_now();
                }
            }
        });
        let mut branches = Vec::new();
        for number in 2..=101u8 {
            // Just where the collector is.
            let n = u64::from(number - 1) * 4;
            let point = engine.create_branch(TENANT, timeline_id(number), timeline_id(1), Some(lsn(end(n))));
            made.fetch_add(1, Ordering::Relaxed);
            if point.is_ok() {
                branches.push((number, n));
            }
        }
        done.store(true, Ordering::Relaxed);
        collector.join().unwrap();
        branches
    });
    assert!(!branches.is_empty());
    for (number, n) in branches {
        let branch = engine.timeline(TENANT, timeline_id(number)).unwrap();
        assert_eq!(text(&branch, block(0), end(n)), Some(n.to_string()), "branch {number}");
    }
}

#[test]
fn checklist_59_image_layers_hold_the_map_forks_too() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::open(EngineConfig {
        compact_at_l0_files: 1,
        images_at_delta_files: 1,
        images_at_deltas_per_key: 1,
        ..config(folder.path(), &Arc::new(FailPoints::new()))
    })
    .unwrap();
    let root = empty_root(&engine, 1);
    let keys = ForkNumber::ALL.map(|fork| Key::RelBlock(REL.with_fork(fork), 0));
    root.put(keys.iter().map(|key| (*key, lsn(0x110), image("i"))).collect(), at(0x110)).unwrap();
    for n in 0..6u64 {
        let end = 0x118 + n * 8;
        root.put(keys.iter().map(|key| (*key, lsn(end), delta("d"))).collect(), at(end)).unwrap();
        root.flush().unwrap();
    }
    root.compact().unwrap();
    root.collect_garbage(lsn(0x140)).unwrap();
    root.compact().unwrap();
    for key in keys {
        assert_eq!(text(&root, key, 0x140).as_deref(), Some("idddddd"), "{key}");
    }
}

#[test]
fn checklist_61_a_relations_size_is_that_of_the_requests_lsn() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    let size = |blocks: u32| ardent_pg_redo::Value::Image(Bytes::copy_from_slice(&blocks.to_le_bytes()));
    let read = |at: u64| root.get(&Key::RelSize(REL), lsn(at)).unwrap().map(|bytes| bytes[0]);
    root.put(vec![(Key::RelSize(REL), lsn(0x110), size(10))], at(0x110)).unwrap();
    assert_eq!(read(0x110), Some(10));
    root.put(vec![(Key::RelSize(REL), lsn(0x118), size(20))], at(0x118)).unwrap();
    // The first read is remembered, and must not answer for a later LSN; nor the later one for an earlier.
    assert_eq!((read(0x110), read(0x118), read(0x110)), (Some(10), Some(20), Some(10)));
    root.flush().unwrap();
    root.put(vec![(Key::RelSize(REL), lsn(0x120), size(5))], at(0x120)).unwrap();
    assert_eq!((read(0x118), read(0x120), read(0x110), read(0x118)), (Some(20), Some(5), Some(10), Some(20)));
}
