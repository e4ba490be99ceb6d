//! Readers, a writer, flushes, compaction, garbage collection and branching at the same time, with the engine's own threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ardent_object_store::fault::FailPoints;
use ardent_storage::{Engine, EngineConfig, ReadError, Timeline};
use bytes::Bytes;

use crate::support::*;

const BLOCKS: u64 = 50;
const ROUNDS: u64 = 6000;

fn busy(folder: &std::path::Path) -> Arc<Engine> {
    Engine::open(EngineConfig {
        background: true,
        open_layer_bytes_max: 20_000,
        layer_file_bytes: 4000,
        compact_at_l0_files: 2,
        images_at_delta_files: 1,
        page_cache_bytes: 30_000,
        block_cache_bytes: 200_000,
        idle_unload_after: Duration::ZERO,
        open_layer_age_max: Duration::from_millis(1),
        ..config(folder, &Arc::new(FailPoints::new()))
    })
    .unwrap()
}

/// Record `n` (from 1) ends here and changes block `n % BLOCKS`: every tenth time to an image, else by a byte.
fn end_of(n: u64) -> u64 {
    0x100 + n * 8
}

fn expected(number: u64, upto: u64) -> Option<Bytes> {
    let records = (upto - 0x100) / 8;
    // The record before which the block did not exist is the one that brings its first image.
    let last = (1..=records).rev().find(|n| n % BLOCKS == number)?;
    let round = last / BLOCKS;
    let mut content = format!("{number} since {}", round / 10).into_bytes();
    content.resize(content.len() + (round % 10) as usize, b'x');
    Some(content.into())
}

fn write(timeline: &Timeline, from: u64, to: u64) {
    for n in from..=to {
        let (number, round) = (n % BLOCKS, n / BLOCKS);
        let is_first = round % 10 == 0;
        let value = if is_first { image(format!("{number} since {}", round / 10)) } else { delta("x") };
        // Block 0 is first written in round 1, so it gets its image there.
        let value = if number == 0 && round == 1 { image("0 since 0x") } else { value };
        timeline.put(vec![(block(number as u32), lsn(end_of(n)), value)], at(end_of(n))).unwrap();
    }
}

fn read_until(timeline: &Timeline, stop: &AtomicBool, seed: u64, reads: &AtomicU64) {
    let mut state = seed;
    while !stop.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (low, high) = (timeline.retained_from().get(), timeline.last_record().end.get());
        let upto = low + (state >> 33) % (high - low + 1);
        let number = (state >> 20) % BLOCKS;
        match timeline.get(&block(number as u32), lsn(upto)) {
            Ok(content) => assert_eq!(content, expected(number, upto), "block {number} at {upto:#x}"),
            // Collected between the look at the limit and the read.
            Err(ReadError::Retired { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        reads.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn readers_always_get_the_right_answer_while_everything_moves() {
    let folder = tempfile::tempdir().unwrap();
    let engine = busy(folder.path());
    let root = empty_root(&engine, 1);
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let (root, stop, reads) = (&root, &stop, &reads);
            scope.spawn(move || read_until(root, stop, seed, reads));
        }
        let collector = scope.spawn(|| {
            let mut branches = Vec::new();
            for id in 2..12 {
                let at = end_of(u64::from(id) * ROUNDS / 14);
                root.wait_for(lsn(at), Instant::now() + Duration::from_secs(60)).unwrap();
                engine.create_branch(TENANT, timeline_id(id), timeline_id(1), Some(lsn(at))).unwrap();
                branches.push((id, at));
                root.collect_garbage(lsn(at + 80)).unwrap();
            }
            branches
        });
        write(&root, 1, ROUNDS);
        let branches = collector.join().unwrap();
        for (id, at) in &branches {
            let branch = engine.timeline(TENANT, timeline_id(*id)).unwrap();
            for number in 0..BLOCKS {
                assert_eq!(branch.get(&block(number as u32), lsn(*at)).unwrap(), expected(number, *at), "branch {id}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(reads.load(Ordering::Relaxed) > 100);
    engine.shutdown().unwrap();
    assert_eq!(root.disk_consistent_lsn(), lsn(end_of(ROUNDS)));
    let stats = engine.stats();
    assert!(stats.layers_flushed > 3 && stats.compactions > 0, "{stats:?}");
    assert_eq!(root.verify().unwrap().1.len(), 0);
}

#[test]
fn idle_timelines_are_flushed_and_unloaded_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let engine = busy(folder.path());
    for id in 1..20 {
        let root = empty_root(&engine, id);
        write(&root, 1, 3);
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.loaded_timelines() > 0 {
        assert!(Instant::now() < deadline, "idle timelines are unloaded");
        std::thread::yield_now();
    }
    for id in 1..20 {
        let root = engine.timeline(TENANT, timeline_id(id)).unwrap();
        assert_eq!(root.last_record(), at(end_of(3)));
        assert_eq!(root.get(&block(2), lsn(end_of(3))).unwrap(), expected(2, end_of(3)));
    }
}
