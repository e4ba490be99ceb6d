//! The engine through its public interface, one behaviour at a time.

use std::time::{Duration, Instant};

use ardent_storage::{ErrorKind, PutError, ReadError, TimelineError};
use ardent_types::{Key, Lsn};
use bytes::Bytes;

use crate::support::*;

#[test]
fn versions_are_read_as_of_any_lsn_from_memory_and_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    root.put(vec![(block(0), lsn(0x110), image("a")), (block(1), lsn(0x110), image("b"))], at(0x110)).unwrap();
    root.put(vec![(block(0), lsn(0x118), delta("1")), (block(0), lsn(0x120), delta("2"))], at(0x120)).unwrap();
    let check = |expect: &[(u64, Option<&str>)]| {
        for (at, content) in expect {
            assert_eq!(text(&root, block(0), *at).as_deref(), *content, "at {at:#x}");
        }
    };
    let expect = [(0x100, None), (0x110, Some("a")), (0x118, Some("a1")), (0x11F, Some("a1")), (0x120, Some("a12"))];
    check(&expect);
    root.flush().unwrap();
    assert_eq!(root.disk_consistent_lsn(), lsn(0x120));
    check(&expect);
    root.put(vec![(block(0), lsn(0x128), image("")), (block(0), lsn(0x130), delta("x"))], at(0x130)).unwrap();
    check(&expect);
    check(&[(0x128, None)]);
    assert_eq!(text(&root, block(1), 0x130).as_deref(), Some("b"));
}

#[test]
fn a_restart_has_what_was_flushed_and_takes_the_rest_again() {
    let folder = tempfile::tempdir().unwrap();
    let batches = |from: u64| {
        (from..0x40).map(|n| {
            let end = 0x110 + n * 8;
            (
                vec![(
                    block((n % 5) as u32),
                    lsn(end),
                    if n < 5 { image(format!("<{n}>")) } else { delta(format!("{n}.")) },
                )],
                at(end),
            )
        })
    };
    {
        let engine = open(folder.path());
        let root = empty_root(&engine, 1);
        for (n, (batch, position)) in batches(0).enumerate() {
            root.put(batch, position).unwrap();
            if n % 10 == 9 && n < 40 {
                root.flush().unwrap();
            }
        }
        // Dropped without a shutdown: what is in memory is lost, as in a crash.
    }
    let engine = open(folder.path());
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    assert_eq!(root.last_record(), at(0x110 + 39 * 8));
    assert_eq!(root.durable_record(), root.last_record());
    for (batch, position) in batches(0) {
        root.put(batch, position).unwrap();
    }
    let expect: String = (5..0x40).filter(|n| n % 5 == 3).map(|n| format!("{n}.")).collect();
    assert_eq!(text(&root, block(3), 0x110 + 0x3F * 8), Some(format!("<3>{expect}")));
}

#[test]
fn readers_wait_for_wal_and_are_told_when_they_are_too_early_or_too_late() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    assert!(matches!(root.get(&block(0), lsn(0x101)), Err(ReadError::NotYet { .. })));
    assert!(matches!(root.get(&block(0), lsn(0xFF)), Err(ReadError::Retired { .. })));
    let soon = Instant::now() + Duration::from_millis(5);
    assert_eq!(root.wait_for(lsn(0x110), soon).unwrap_err().last, lsn(0x100));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| root.wait_for(lsn(0x110), Instant::now() + Duration::from_secs(30)));
        root.put(Vec::new(), at(0x110)).unwrap();
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(root.last_record(), at(0x110));
}

#[test]
fn branches_share_the_past_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    root.put(vec![(block(0), lsn(0x110), image("r"))], at(0x110)).unwrap();
    let point = engine.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap();
    assert_eq!((point.lsn, point.prev_lsn), (lsn(0x110), lsn(0x108)));
    root.put(vec![(block(0), lsn(0x120), delta("+root"))], at(0x120)).unwrap();
    let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
    assert_eq!(branch.last_record(), at(0x110));
    branch.put(vec![(block(0), lsn(0x118), delta("+branch"))], at(0x118)).unwrap();
    assert_eq!(text(&branch, block(0), 0x118).as_deref(), Some("r+branch"));
    assert_eq!(text(&root, block(0), 0x120).as_deref(), Some("r+root"));
    // Again, and later: the same answer.
    assert_eq!(engine.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap(), point);
    // Between records, on the branch and on what it hangs on.
    let mid = engine.create_branch(TENANT, timeline_id(3), timeline_id(2), Some(lsn(0x117))).unwrap();
    assert_eq!(mid.lsn, lsn(0x110));
    let below = engine.create_branch(TENANT, timeline_id(4), timeline_id(2), Some(lsn(0x10F))).unwrap();
    assert_eq!(below.lsn, lsn(0x100));
    assert_eq!(engine.timeline(TENANT, timeline_id(4)).unwrap().ancestor().unwrap().timeline, timeline_id(1));
    let ahead = engine.create_branch(TENANT, timeline_id(5), timeline_id(1), Some(lsn(0x200)));
    assert!(matches!(ahead, Err(TimelineError::NotYet { .. })));
    let mut ids = engine.list(TENANT).unwrap();
    ids.sort();
    assert_eq!(ids, [1, 2, 3, 4].map(timeline_id));
}

#[test]
fn a_timeline_with_branches_is_not_deleted_and_one_without_gives_its_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    root.put(vec![(block(0), lsn(0x110), image("r"))], at(0x110)).unwrap();
    engine.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap();
    let refused = engine.delete_timeline(TENANT, timeline_id(1)).unwrap_err();
    assert!(matches!(refused, TimelineError::HasChildren { children: 1, .. }));
    let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
    branch.put(vec![(block(0), lsn(0x118), delta("b"))], at(0x118)).unwrap();
    branch.flush().unwrap();
    engine.delete_timeline(TENANT, timeline_id(2)).unwrap();
    assert_eq!(branch.put(Vec::new(), at(0x120)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(branch.get(&block(0), lsn(0x118)).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!folder.path().join("store/timelines").join(TENANT.to_string()).join(timeline_id(2).to_string()).exists());
    assert!(matches!(engine.timeline(TENANT, timeline_id(2)), Err(TimelineError::NotFound { .. })));
    engine.delete_timeline(TENANT, timeline_id(1)).unwrap();
    assert_eq!(engine.list(TENANT).unwrap(), []);
}

#[test]
fn many_branches_cost_little_and_none_is_loaded_before_it_is_used() {
    const BRANCHES: u64 = 300;
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    let id = |n: u64| ardent_types::TimelineId::from_bytes(u128::from(n + 1000).to_be_bytes());
    for n in 0..BRANCHES {
        root.put(vec![(block(0), lsn(0x108 + n * 8), image(format!("{n}")))], at(0x108 + n * 8)).unwrap();
        engine.create_branch(TENANT, id(n), timeline_id(1), None).unwrap();
    }
    root.flush().unwrap();
    assert_eq!(root.children().unwrap().len() as u64, BRANCHES);
    drop((root, engine));
    let engine = open(folder.path());
    assert_eq!(engine.loaded_timelines(), 0);
    assert_eq!(engine.list(TENANT).unwrap().len() as u64, BRANCHES + 1);
    for n in [0, 17, BRANCHES - 1] {
        let branch = engine.timeline(TENANT, id(n)).unwrap();
        assert_eq!(text(&branch, block(0), 0x108 + n * 8), Some(n.to_string()));
    }
    assert_eq!(engine.loaded_timelines(), 4, "three branches and their ancestor");
    let folder = folder.path().join("store/timelines").join(TENANT.to_string()).join(id(5).to_string());
    let sizes =
        std::fs::read_dir(folder.join("manifest")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert!(sizes.sum::<u64>() < 4096, "a branch with no writes is stored in less than 4 KiB");
}

#[test]
fn a_chain_of_64_branches_is_read_through() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    root.put(vec![(block(0), lsn(0x108), image("0")), (block(1), lsn(0x108), image("root"))], at(0x108)).unwrap();
    for n in 1..=64u8 {
        engine.create_branch(TENANT, timeline_id(n + 1), timeline_id(n), None).unwrap();
        let branch = engine.timeline(TENANT, timeline_id(n + 1)).unwrap();
        let end = 0x108 + u64::from(n) * 8;
        branch.put(vec![(block(0), lsn(end), delta(format!(" {n}")))], at(end)).unwrap();
    }
    let expect: Vec<String> = (0..=64).map(|n| n.to_string()).collect();
    let last = engine.timeline(TENANT, timeline_id(65)).unwrap();
    assert_eq!(text(&last, block(0), 0x108 + 64 * 8), Some(expect.join(" ")));
    assert_eq!(text(&last, block(1), 0x108 + 64 * 8).as_deref(), Some("root"));
    assert_eq!(last.scan(Key::rel_blocks(REL), lsn(0x108 + 64 * 8)).unwrap().len(), 2);
}

#[test]
fn an_import_takes_pages_in_any_order_and_is_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), &Default::default());
    config.open_layer_bytes_max = 200_000;
    config.layer_file_bytes = 40_000;
    let page = |n: u32| {
        let mut state = u64::from(n) + 1;
        let noise = (0..1000).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        });
        Bytes::from_iter(noise)
    };
    let engine = ardent_storage::Engine::open(config.clone()).unwrap();
    let root = engine.create_root(TENANT, timeline_id(1), facts(0x100)).unwrap();
    root.import_images(&[(Key::Checkpoint, Bytes::from_static(b"gone"))]).unwrap();
    assert!(matches!(root.get(&block(0), lsn(0x100)), Err(ReadError::Importing { .. })));
    assert!(matches!(root.put(Vec::new(), at(0x110)), Err(PutError::WrongState { .. })));
    drop((root, engine));
    let engine = ardent_storage::Engine::open(config.clone()).unwrap();
    let root = engine.create_root(TENANT, timeline_id(1), facts(0x100)).unwrap();
    for n in 0..1000u32 {
        let n = n * 617 % 1000;
        root.import_images(&[(block(n), page(n))]).unwrap();
    }
    root.import_images(&[(block(7), Bytes::from_static(b"again"))]).unwrap();
    root.finish_import().unwrap();
    let check = |root: &ardent_storage::Timeline| {
        assert_eq!(root.get(&Key::Checkpoint, lsn(0x100)).unwrap(), None);
        assert_eq!(root.get(&block(1000), lsn(0x100)).unwrap(), None);
        for n in 0..1000 {
            let expect = if n == 7 { Bytes::from_static(b"again") } else { page(n) };
            assert_eq!(root.get(&block(n), lsn(0x100)).unwrap(), Some(expect), "block {n}");
        }
        assert_eq!(root.scan(Key::rel_blocks(REL), lsn(0x100)).unwrap().len(), 1000);
        assert!(root.sizes().files > 3, "{:?}", root.sizes());
    };
    check(&root);
    drop((root, engine));
    let engine = ardent_storage::Engine::open(config).unwrap();
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    check(&root);
    root.put(vec![(block(7), lsn(0x108), delta("!"))], at(0x108)).unwrap();
    assert_eq!(text(&root, block(7), 0x108).as_deref(), Some("again!"));
}

#[test]
fn scans_and_changed_keys_see_all_layers_and_ancestors() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = engine.create_root(TENANT, timeline_id(1), facts(0x100)).unwrap();
    root.import_images(&[0, 1, 2, 3].map(|n| (block(n), Bytes::from(format!("i{n}"))))).unwrap();
    root.finish_import().unwrap();
    root.put(vec![(block(1), lsn(0x108), delta("x")), (block(9), lsn(0x110), image("n"))], at(0x110)).unwrap();
    root.flush().unwrap();
    root.put(vec![(block(2), lsn(0x118), image(""))], at(0x118)).unwrap();
    engine.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap();
    let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
    branch.put(vec![(block(0), lsn(0x120), delta("b")), (block(20), lsn(0x128), image("b20"))], at(0x128)).unwrap();
    let all: Vec<_> = branch.scan(Key::rel_blocks(REL), lsn(0x128)).unwrap();
    let expect = [(0, "i0b"), (1, "i1x"), (3, "i3"), (9, "n"), (20, "b20")];
    assert_eq!(all, expect.map(|(n, text)| (block(n), Bytes::from(text))));
    let mut parts = Vec::new();
    let mut after = None;
    loop {
        let part = branch.scan_part(Key::rel_blocks(REL), after, lsn(0x128), 2).unwrap();
        parts.extend(part.entries);
        after = part.resume;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(parts, all);
    let changed = |from, to| branch.changed_keys(Key::rel_blocks(REL), lsn(from), lsn(to)).unwrap();
    assert_eq!(changed(0x118, 0x128), [0, 20].map(block));
    assert_eq!(changed(0x108, 0x120), [0, 2, 9].map(block));
    assert_eq!(changed(0x100, 0x108), [1].map(block));
    assert_eq!(changed(0x100, 0x128).len(), 5);
}

#[test]
fn batches_that_break_the_rules_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    let refused = |batch| matches!(root.put(batch, at(0x120)), Err(PutError::Disorder { .. }));
    assert!(refused(vec![(block(0), lsn(0x118), image("")), (block(0), lsn(0x110), image(""))]));
    assert!(refused(vec![(block(0), lsn(0x121), image(""))]));
    assert_eq!(root.last_record().end, lsn(0x100));
    // The same key twice at one LSN: fine where the second needs nothing of the first, else a bug of ingest (checklist 32).
    root.put(vec![(block(0), lsn(0x110), delta("a")), (block(0), lsn(0x110), image("b"))], at(0x110)).unwrap();
    assert_eq!(text(&root, block(0), 0x110).as_deref(), Some("b"));
    assert!(refused(vec![(block(0), lsn(0x118), image("a")), (block(0), lsn(0x118), delta("b"))]));
    assert!(matches!(root.put(Vec::new(), at(0x120)), Err(PutError::Poisoned { .. })));
}

#[test]
fn metadata_and_leases_survive_and_engines_lock_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    root.set_metadata("import", serde_json::json!({"consistent_from": Lsn::new(0x180)})).unwrap();
    let second = ardent_storage::Engine::open(config(folder.path(), &Default::default()));
    assert!(second.is_err_and(|error| error.to_string().contains("locked")));
    drop((root, engine));
    let engine = open(folder.path());
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    assert_eq!(root.get_metadata("import").unwrap()["consistent_from"], "0/00000180");
}
