//! Sections 3 to 5 of the ingest checklist, with made-up records.

use ardent_api::page_service::{BackupItem, ImportSpec};
use ardent_pg_format::encode::{ImageParts, RecordBuilder};
use ardent_pg_format::{ControlFile, PgMajor, rmgr};
use ardent_pg_ingest::{BackupPoint, Batch, Import, ImportError, Progress, ReadState, base_backup};
use ardent_pg_redo::vm_bits;
use ardent_types::{BLCKSZ, ForkNumber, Key, Lsn, PgTli, RelTag, SystemId, WalSegmentSize};
use bytes::Bytes;

use crate::support::store::Store;
use crate::support::timeline::{START, Timeline, checkpoint, control_file, rel, words};

/// `BKPIMAGE_HAS_HOLE | BKPIMAGE_APPLY`
const IMAGE_INFO: u8 = 0x03;

/// An `XLOG_FPI` of a page whose first tuple byte is `mark`.
fn image(rel: RelTag, block: u32, mark: u8) -> RecordBuilder {
    let mut page = vec![0; BLCKSZ];
    page[12..18].copy_from_slice(&[24, 0, 0xE8, 0x1F, 0, 0x20]);
    page[8191] = mark;
    let stored: Vec<u8> = page[..24].iter().chain(&page[8168..]).copied().collect();
    let image = ImageParts { info: IMAGE_INFO, hole_offset: 24, compressed_hole_length: None, stored: &stored };
    RecordBuilder::new(rmgr::XLOG, rmgr::xlog::FPI).block(0, rel, block, false, Some(image), &[])
}

fn mark(timeline: &Timeline, rel: RelTag, block: u32) -> u8 {
    timeline.page(rel, block)[8191]
}

fn create(rel: RelTag) -> RecordBuilder {
    let fields = [rel.spcnode, rel.dbnode, rel.relnode, rel.fork as u32];
    RecordBuilder::new(rmgr::STORAGE, 0x10).main_data(words(&fields))
}

fn truncate(rel: RelTag, blocks: u32, flags: u32) -> RecordBuilder {
    let fields = [blocks, rel.spcnode, rel.dbnode, rel.relnode, flags];
    RecordBuilder::new(rmgr::STORAGE, 0x20).main_data(words(&fields))
}

/// `XLOG_XACT_COMMIT` or another end with relations to drop.
fn end(info: u8, dropped: &[RelTag], prepared: Option<u32>) -> RecordBuilder {
    let mut data = 5i64.to_le_bytes().to_vec();
    data.extend(words(&[1 << 2 | if prepared.is_some() { 1 << 4 } else { 0 }, dropped.len() as u32]));
    dropped.iter().for_each(|rel| data.extend(words(&[rel.spcnode, rel.dbnode, rel.relnode])));
    data.extend(words(&prepared.into_iter().collect::<Vec<_>>()));
    RecordBuilder::new(rmgr::TRANSACTION, info | 0x80).xid(if prepared.is_some() { 0 } else { 1000 }).main_data(data)
}

#[test]
fn checklist_20_21_extension_is_implicit_and_gaps_are_zeros() {
    let mut timeline = Timeline::new();
    timeline.add(&image(rel(1), 0, 1));
    assert_eq!(timeline.size(rel(1)), Some(1), "without SMGR_CREATE");
    timeline.add(&image(rel(1), 3, 2));
    assert_eq!(timeline.size(rel(1)), Some(4));
    assert!(timeline.page(rel(1), 1).iter().chain(&timeline.page(rel(1), 2)[..]).all(|&byte| byte == 0));
    assert_eq!((mark(&timeline, rel(1), 0), mark(&timeline, rel(1), 3)), (1, 2));
    timeline.add(&image(rel(1), 1, 9));
    assert_eq!(timeline.store.versions(Key::RelSize(rel(1))).len(), 2, "only growth writes the size");
}

#[test]
fn checklist_20_blocks_of_one_record_in_any_order_make_one_size_and_one_value_each() {
    let mut timeline = Timeline::new();
    let bytes = [24, 0, 0xE8, 0x1F, 0, 0x20];
    let mut stored = vec![0; 24];
    stored[12..18].copy_from_slice(&bytes);
    let parts = ImageParts { info: IMAGE_INFO, hole_offset: 24, compressed_hole_length: None, stored: &stored };
    let record = RecordBuilder::new(rmgr::XLOG, rmgr::xlog::FPI).block(0, rel(1), 4, false, Some(parts), &[]).block(
        1,
        rel(1),
        1,
        false,
        Some(parts),
        &[],
    );
    timeline.add(&record);
    assert_eq!(timeline.size(rel(1)), Some(5));
    for block in 0..5 {
        assert_eq!(timeline.store.versions(Key::RelBlock(rel(1), block)).len(), 1);
    }
}

#[test]
fn checklist_23_truncation_never_grows_and_maps_may_be_missing() {
    let mut timeline = Timeline::new();
    (0..4).for_each(|block| {
        timeline.add(&image(rel(1), block, 1));
    });
    timeline.add(&truncate(rel(1), 9, 7));
    assert_eq!(timeline.size(rel(1)), Some(4));
    timeline.add(&truncate(rel(1), 2, 6));
    assert_eq!(timeline.size(rel(1)), Some(4), "the heap flag is not set");
    timeline.add(&truncate(rel(1), 2, 7));
    assert_eq!(timeline.size(rel(1)), Some(2));
    assert_eq!(timeline.size(rel(1).with_fork(ForkNumber::Vm)), None);
    assert_eq!(timeline.size(rel(1).with_fork(ForkNumber::Fsm)), None);
    timeline.add(&truncate(rel(99), 0, 7));
    assert_eq!(timeline.size(rel(99)), None);
}

#[test]
fn checklist_24_25_truncation_clears_the_tails_of_the_maps() {
    let mut timeline = Timeline::new();
    let (vm, fsm) = (rel(1).with_fork(ForkNumber::Vm), rel(1).with_fork(ForkNumber::Fsm));
    timeline.add(&image(rel(1), 40_000, 1));
    timeline.add(&image(vm, 1, 0xFF));
    let full = |map: RelTag, block| {
        let page = vec![0xFF; BLCKSZ];
        let parts = ImageParts { info: 0x02, hole_offset: 0, compressed_hole_length: None, stored: &page };
        RecordBuilder::new(rmgr::XLOG, rmgr::xlog::FPI).block(0, map, block, false, Some(parts), &[])
    };
    timeline.add(&full(vm, 0));
    timeline.add(&full(fsm, 11));
    timeline.add(&full(fsm, 2));
    timeline.add(&truncate(rel(1), 6, 7));
    assert_eq!((timeline.size(rel(1)), timeline.size(vm), timeline.size(fsm)), (Some(6), Some(1), Some(3)));
    let page = timeline.page(vm, 0);
    let page: &[u8; BLCKSZ] = page[..].try_into().expect("a page");
    assert_eq!((vm_bits(page, 5), vm_bits(page, 6), vm_bits(page, 30_000)), (3, 0, 0));
    let leaves = timeline.page(fsm, 2)[28 + 4095..].to_vec();
    assert!(leaves[..6].iter().all(|&slot| slot == 0xFF) && leaves[6..].iter().all(|&slot| slot == 0));
    // At a page boundary whole pages go and nothing is cleared.
    timeline.add(&image(rel(1), 40_000, 1));
    timeline.add(&full(vm, 1));
    timeline.add(&truncate(rel(1), 32_672, 7));
    assert_eq!(timeline.size(vm), Some(1));
    timeline.add(&truncate(rel(1), 0, 7));
    assert_eq!((timeline.size(rel(1)), timeline.size(vm), timeline.size(fsm)), (Some(0), Some(0), Some(2)));
}

#[test]
fn checklist_26_old_blocks_do_not_come_back() {
    let mut timeline = Timeline::new();
    (0..6).for_each(|block| {
        timeline.add(&image(rel(1), block, 7));
    });
    timeline.add(&truncate(rel(1), 1, 7));
    timeline.add(&image(rel(1), 4, 8));
    assert_eq!(timeline.size(rel(1)), Some(5));
    let marks: Vec<u8> = (0..5).map(|block| mark(&timeline, rel(1), block)).collect();
    assert_eq!(marks, [7, 0, 0, 0, 8]);
    timeline.add(&end(0, &[rel(1)], None));
    assert_eq!(timeline.size(rel(1)), None);
    timeline.add(&create(rel(1)));
    assert_eq!(timeline.size(rel(1)), Some(0));
    timeline.add(&image(rel(1), 1, 9));
    assert_eq!((mark(&timeline, rel(1), 0), mark(&timeline, rel(1), 1)), (0, 9));
}

#[test]
fn checklist_27_drops_come_with_every_end_of_a_transaction() {
    for (info, prepared) in [(0x00, None), (0x20, None), (0x30, Some(900)), (0x40, Some(900))] {
        let mut timeline = Timeline::new();
        let forks = ForkNumber::ALL.map(|fork| rel(1).with_fork(fork));
        for fork in forks.into_iter().chain([rel(2), rel(3)]) {
            timeline.add(&create(fork));
        }
        timeline.add(&end(info, &[rel(1), rel(2), rel(77)], prepared));
        assert!(forks.iter().all(|fork| timeline.size(*fork).is_none()), "{info:#x}");
        assert_eq!((timeline.size(rel(2)), timeline.size(rel(3))), (None, Some(0)));
        assert_eq!(timeline.store.versions(Key::RelSize(rel(77))).len(), 0, "what never existed gets no version");
    }
}

#[test]
fn checklist_30_many_relations_cost_one_value_each() {
    let mut timeline = Timeline::new();
    let mut batch = Batch::default();
    let records: Vec<_> = (1..=20_000).map(|relnode| timeline.next_record(&create(rel(relnode)))).collect();
    for record in &records {
        let progress = timeline.ingest.ingest(&record.get(), &timeline.store.newest(), &mut batch).expect("ingested");
        assert_eq!(progress, Progress::Done);
    }
    assert_eq!(batch.values.len(), 20_000);
    assert!(batch.size_bytes() < 20_000 * 128);
}

/// A heap record whose main data is `data`, on blocks 0 and maybe 1 that exist.
fn heap(rmid: u8, info: u8, data: &[u8], blocks: &[u32]) -> RecordBuilder {
    let record = RecordBuilder::new(rmid, info).xid(900).main_data(data);
    blocks.iter().zip(0..).fold(record, |record, (block, id)| record.block(id, rel(1), *block, false, None, &[0; 8]))
}

/// A heap of 40,000 blocks with map pages in which every bit is set.
fn heap_with_map() -> Timeline {
    let mut timeline = Timeline::new();
    timeline.add(&image(rel(1), 39_999, 1));
    let page = vec![0xFF; BLCKSZ];
    let parts = ImageParts { info: 0x02, hole_offset: 0, compressed_hole_length: None, stored: &page };
    for block in 0..2 {
        let map = rel(1).with_fork(ForkNumber::Vm);
        let record = RecordBuilder::new(rmgr::XLOG, rmgr::xlog::FPI);
        timeline.add(&record.block(0, map, block, false, Some(parts), &[]));
    }
    timeline
}

fn bits(timeline: &Timeline, block: u32) -> u8 {
    let page = timeline.page(rel(1).with_fork(ForkNumber::Vm), block / 32_672);
    vm_bits(page[..].try_into().expect("a page"), block)
}

#[test]
fn checklist_31_33_heap_records_clear_map_bits_without_a_reference() {
    // xmax, offset, infobits, flags
    let delete = [0, 0, 0, 0, 1, 0, 0, 1];
    let check = |record: RecordBuilder, block: u32, expect: u8| {
        let mut timeline = heap_with_map();
        timeline.add(&record);
        assert_eq!(bits(&timeline, block), expect);
        assert_eq!(bits(&timeline, block + 1), 3, "its neighbour keeps its bits");
    };
    check(heap(rmgr::HEAP, 0x10, &delete, &[33_000]), 33_000, 0);
    check(heap(rmgr::HEAP, 0x10, &[0, 0, 0, 0, 1, 0, 0, 0], &[5]), 5, 3);
    check(heap(rmgr::HEAP, 0x00, &[1, 0, 1], &[5]), 5, 0);
    check(heap(rmgr::HEAP2, 0x50, &[1, 0, 0, 0, 0, 0], &[5]), 5, 0);
    // Tuples that are frozen as they are inserted leave the bits alone.
    check(heap(rmgr::HEAP2, 0x50, &[0x20, 0, 0, 0, 0, 0], &[5]), 5, 3);
    // HOT_UPDATE: both tuples are on block 0, so that only the old one's flag is ever set.
    let hot_update = |flags: u8| [0, 0, 0, 0, 1, 0, 0, flags, 0, 0, 0, 0, 2, 0];
    check(heap(rmgr::HEAP, 0x40, &hot_update(1), &[33_000]), 33_000, 0);
    check(heap(rmgr::HEAP, 0x40, &hot_update(0), &[5]), 5, 3);
    // LOCK and LOCK_UPDATED: xmax, offset, infobits, flags; only the frozen bit goes.
    check(heap(rmgr::HEAP, 0x60, &delete, &[5]), 5, 1);
    check(heap(rmgr::HEAP2, 0x60, &delete, &[5]), 5, 1);
}

#[test]
fn checklist_32_an_update_makes_one_change_per_map_page() {
    // old xmax, old offset, old infobits, flags (old and new cleared), new xmax, new offset
    let update = [0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 1, 0];
    let map = rel(1).with_fork(ForkNumber::Vm);
    let mut timeline = heap_with_map();
    let lsn = timeline.add(&heap(rmgr::HEAP, 0x20, &update, &[7, 9]));
    assert_eq!((bits(&timeline, 7), bits(&timeline, 8), bits(&timeline, 9)), (0, 3, 0));
    let at_record =
        |block| timeline.store.versions(Key::RelBlock(map, block)).iter().filter(|(at, _)| *at == lsn).count();
    assert_eq!((at_record(0), at_record(1)), (1, 0));
    timeline.add(&heap(rmgr::HEAP, 0x20, &update, &[17, 33_000]));
    assert_eq!((bits(&timeline, 17), bits(&timeline, 33_000)), (0, 0), "two map pages");
}

/// `XLOG_HEAP2_VISIBLE` that sets both bits of a heap block.
fn visible(block: u32) -> RecordBuilder {
    let map = rel(1).with_fork(ForkNumber::Vm);
    let record = RecordBuilder::new(rmgr::HEAP2, 0x40).main_data([0, 0, 0, 0, 3]);
    record.block(0, map, block / 32_672, false, None, &[]).block(1, rel(1), block, false, None, &[])
}

#[test]
fn checklist_26_bits_of_a_map_that_was_cut_off_do_not_come_back() {
    // Without full-page writes the first record of the new map page brings no image.
    let cut_off = [truncate(rel(1), 0, 7), end(0, &[rel(1)], None)];
    for record in cut_off {
        let mut timeline = heap_with_map();
        timeline.add(&record);
        timeline.add(&image(rel(1), 20, 1));
        timeline.add(&visible(20));
        assert_eq!((bits(&timeline, 19), bits(&timeline, 20), bits(&timeline, 21)), (0, 3, 0));
        timeline.add(&visible(7));
        assert_eq!((bits(&timeline, 7), bits(&timeline, 20)), (3, 3), "later records build on it");
    }
}

#[test]
fn checklist_35_36_a_visible_record_makes_the_map_page_and_leaves_the_heap_pages_lsn() {
    let lsn = |page: &[u8]| (u32::from_le_bytes(page[..4].try_into().unwrap()), page[4..8].to_vec());
    for logged in [false, true] {
        let control = ControlFile { wal_log_hints: logged, ..control_file() };
        let mut timeline = Timeline::with(checkpoint(), control, Lsn::INVALID);
        timeline.add(&image(rel(1), 20, 1));
        let before = lsn(&timeline.page(rel(1), 20));
        let end = timeline.add(&visible(20));
        let heap = timeline.page(rel(1), 20);
        assert_eq!(heap[10] & 0x04, 0x04, "PD_ALL_VISIBLE");
        assert_eq!(lsn(&heap) != before, logged, "the heap page is stamped only where hints are logged");
        let map = timeline.page(rel(1).with_fork(ForkNumber::Vm), 0);
        assert_eq!(map[4..8], (end.get() as u32).to_le_bytes(), "the map page always is");
        assert_eq!((bits(&timeline, 20), bits(&timeline, 21)), (3, 0));
    }
}

#[test]
fn checklist_34_a_clear_without_a_map_page_changes_nothing() {
    let mut timeline = Timeline::new();
    timeline.add(&image(rel(1), 0, 1));
    timeline.add(&heap(rmgr::HEAP, 0x10, &[0, 0, 0, 0, 1, 0, 0, 1], &[0]));
    let map = rel(1).with_fork(ForkNumber::Vm);
    assert_eq!(timeline.size(map), None);
    assert_eq!(timeline.store.versions(Key::RelBlock(map, 0)).len(), 0);
}

fn database(info: u8, fields: &[u32]) -> RecordBuilder {
    RecordBuilder::new(rmgr::DATABASE, info).main_data(words(fields))
}

fn relmap(dbnode: u32, spcnode: u32, map: &[u8]) -> RecordBuilder {
    let mut data = words(&[dbnode, spcnode, map.len() as u32]);
    data.extend(map);
    RecordBuilder::new(rmgr::RELMAP, 0).main_data(data)
}

#[test]
fn checklist_37_56_a_file_copy_takes_the_template_as_of_its_lsn() {
    let mut timeline = Timeline::new();
    timeline.add(&database(0x10, &[5, 1663]));
    timeline.add(&relmap(5, 1663, b"map"));
    timeline.add(&image(rel(1), 2, 7));
    timeline.add(&create(rel(2)));
    // A page without a base: its copy is as unreadable as it is itself.
    timeline.add(&RecordBuilder::new(200, 0).block(0, rel(1), 1, false, None, &[]));
    // Everything in one batch: the copy must ask for it to be stored first.
    let mut batch = Batch::default();
    let before = timeline.next_record(&image(rel(1), 0, 3));
    let copy = timeline.next_record(&database(0x00, &[6, 99, 5, 1663]));
    let after = timeline.next_record(&image(rel(1), 0, 4));
    let state = |timeline: &Timeline| timeline.store.at(Lsn::MAX).get(Key::Checkpoint).is_ok();
    assert!(state(&timeline));
    let progress = timeline.ingest.ingest(&before.get(), &timeline.store.newest(), &mut batch).expect("ingested");
    assert_eq!(progress, Progress::Done);
    let progress = timeline.ingest.ingest(&copy.get(), &timeline.store.newest(), &mut batch).expect("ingested");
    assert_eq!((progress, batch.values.len()), (Progress::FlushFirst, 1));
    assert_eq!(batch.last_record.map(|last| last.end), Some(before.get().end_lsn));
    timeline.store.apply(&mut batch);
    timeline.store.ingest(&mut timeline.ingest, &copy.get());
    timeline.store.ingest(&mut timeline.ingest, &after.get());
    let copied = |tag: RelTag| RelTag { spcnode: 99, dbnode: 6, ..tag };
    assert_eq!((timeline.size(copied(rel(1))), timeline.size(copied(rel(2)))), (Some(3), Some(0)));
    assert_eq!((mark(&timeline, copied(rel(1)), 0), mark(&timeline, copied(rel(1)), 2)), (3, 7));
    assert_eq!(mark(&timeline, rel(1), 0), 4);
    let damaged = timeline.store.newest().get(Key::RelBlock(copied(rel(1)), 1)).expect_err("unreadable").to_string();
    assert!(damaged.contains("copied from 1663/5/1 block 1"), "{damaged}");
    assert_eq!(timeline.get(Key::RelMap { spcnode: 99, dbnode: 6 }).as_deref(), Some(&b"map"[..]));
    assert!(timeline.get(Key::Database { spcnode: 99, dbnode: 6 }).is_some());
}

#[test]
fn checklist_37_a_large_copy_comes_in_batches() {
    let mut timeline = Timeline::new();
    for block in 0..5000 {
        timeline.add(&image(rel(1), block, block as u8));
    }
    let copy = timeline.next_record(&database(0x00, &[6, 1663, 5, 1663]));
    let (mut batch, mut batches) = (Batch::default(), 0);
    loop {
        let progress = timeline.ingest.ingest(&copy.get(), &timeline.store.newest(), &mut batch).expect("ingested");
        assert!(batch.size_bytes() < 40 << 20);
        assert_eq!(batch.last_record.is_some(), progress == Progress::Done, "not to be read before it is whole");
        timeline.store.apply(&mut batch);
        batches += 1;
        if progress == Progress::Done {
            break;
        }
    }
    assert_eq!(batches, 2);
    let copied = RelTag { dbnode: 6, ..rel(1) };
    assert!((0..5000).all(|block| mark(&timeline, copied, block) == block as u8));
}

#[test]
fn checklist_38_a_dropped_database_goes_in_all_its_tablespaces() {
    let mut timeline = Timeline::new();
    let elsewhere = RelTag { spcnode: 99, ..rel(1) };
    let other = RelTag { dbnode: 6, ..rel(1) };
    timeline.add(&database(0x10, &[5, 1663]));
    timeline.add(&relmap(5, 1663, b"map"));
    for tag in [rel(1), elsewhere, other] {
        timeline.add(&image(tag, 0, 1));
    }
    timeline.add(&database(0x20, &[5, 2, 1663, 99]));
    assert_eq!((timeline.size(rel(1)), timeline.size(elsewhere), timeline.size(other)), (None, None, Some(1)));
    assert_eq!(timeline.get(Key::Database { spcnode: 1663, dbnode: 5 }), None);
    assert_eq!(timeline.get(Key::RelMap { spcnode: 1663, dbnode: 5 }), None);
}

#[test]
fn checklist_39_relation_maps_are_shared_or_of_a_database() {
    let mut timeline = Timeline::new();
    timeline.add(&relmap(0, 1664, &[1; 512]));
    timeline.add(&relmap(5, 1663, &[2; 524]));
    assert_eq!(timeline.get(Key::RelMap { spcnode: 1664, dbnode: 0 }).map(|map| map.len()), Some(512));
    assert_eq!(timeline.get(Key::RelMap { spcnode: 1663, dbnode: 5 }).map(|map| map.len()), Some(524));
}

#[test]
fn checklist_40_41_empty_databases_and_tablespaces_have_folders() {
    let mut timeline = Timeline::new();
    timeline.add(&database(0x10, &[5, 1663]));
    let tablespace = |info| RecordBuilder::new(rmgr::TABLESPACE, info).main_data(words(&[99, 0]));
    timeline.add(&tablespace(0x00));
    let folders = |timeline: &Timeline| {
        let mut paths = Vec::new();
        let point = BackupPoint { lsn: Lsn::MAX, prev_lsn: Lsn::INVALID };
        base_backup(PgMajor::V15, point, &timeline.store.newest(), |item| {
            match item {
                BackupItem::Directory(path) | BackupItem::File { path, .. } => paths.push(path),
                _ => {}
            }
            Ok::<(), std::io::Error>(())
        })
        .expect("a base backup can be made");
        paths
    };
    let paths = folders(&timeline);
    for expect in ["base/5", "base/5/PG_VERSION", "pg_tblspc/99", "pg_tblspc/99/PG_15_202209061"] {
        assert!(paths.iter().any(|path| path == expect), "{expect}");
    }
    assert!(!paths.iter().any(|path| path.ends_with("PG_15_202209061/PG_VERSION")));
    timeline.add(&tablespace(0x10));
    assert!(!folders(&timeline).iter().any(|path| path.contains("99")));
}

#[test]
fn checklist_55_unknown_records_make_their_blocks_unreadable_and_nothing_else() {
    let mut timeline = Timeline::new();
    timeline.add(&image(rel(1), 0, 1));
    timeline.add(&image(rel(1), 1, 2));
    let lsn = timeline.add(&RecordBuilder::new(200, 0x30).block(0, rel(1), 0, false, None, &[1, 2]));
    let error = timeline.store.newest().get(Key::RelBlock(rel(1), 0)).expect_err("unreadable").to_string();
    assert!(error.contains("200") && error.contains(&lsn.to_string()), "{error}");
    assert_eq!(mark(&timeline, rel(1), 1), 2);
    timeline.add(&image(rel(1), 0, 5));
    assert_eq!(mark(&timeline, rel(1), 0), 5, "an image heals it");
    // Without blocks it is reported.
    let mut batch = Batch::default();
    for (rmid, info) in [(200, 0), (rmgr::STORAGE, 0x70), (rmgr::TRANSACTION, 0x70), (60, 0)] {
        let record = timeline.next_record(&RecordBuilder::new(rmid, info));
        let progress = timeline.ingest.ingest(&record.get(), &timeline.store.newest(), &mut batch).expect("ingested");
        assert_eq!((progress, batch.unknown.len()), (Progress::Done, 1), "{rmid}");
        assert_eq!((batch.unknown[0].rmid, batch.unknown[0].lsn), (rmid, record.get().end_lsn));
        timeline.store.apply(&mut batch);
    }
}

#[test]
fn checklist_62_pages_that_a_fuzzy_import_lacks_must_be_explained() {
    let window = START.advance(1 << 20);
    let mut timeline = Timeline::with(checkpoint(), control_file(), window);
    let delete = |tag: RelTag, block| {
        let record = RecordBuilder::new(rmgr::HEAP, 0x10).xid(900).main_data([0, 0, 0, 0, 1, 0, 0, 0]);
        record.block(0, tag, block, false, None, &[])
    };
    timeline.add(&image(rel(1), 0, 1));
    timeline.add(&delete(rel(1), 4));
    timeline.add(&delete(rel(2), 0));
    timeline.add(&delete(RelTag { dbnode: 6, ..rel(3) }, 0));
    assert_eq!((timeline.size(rel(1)), timeline.size(rel(2))), (Some(1), None), "nothing is made up");
    assert_eq!(timeline.ingest.unresolved().len(), 3);
    timeline.restart(window);
    assert_eq!(timeline.ingest.unresolved().len(), 3, "a restart forgets nothing");
    timeline.add(&truncate(rel(1), 2, 1));
    timeline.add(&end(0x20, &[rel(2)], None));
    assert_eq!(timeline.ingest.unresolved(), [(RelTag { dbnode: 6, ..rel(3) }, 0)]);
    timeline.add(&database(0x20, &[6, 1, 1663]));
    assert_eq!(timeline.ingest.unresolved(), []);
    // Outside of the window it is damage, and said so.
    timeline.restart(START);
    timeline.add(&delete(rel(1), 4));
    let error = timeline.store.newest().get(Key::RelBlock(rel(1), 4)).expect_err("unreadable").to_string();
    assert!(error.contains("no earlier record made") && timeline.ingest.unresolved().is_empty(), "{error}");
}

fn spec() -> ImportSpec {
    ImportSpec {
        pg_major: 15,
        system_id: SystemId::new(7),
        pg_tli: PgTli::new(1),
        wal_segment_size: WalSegmentSize::DEFAULT,
        data_checksums: false,
        start_lsn: START,
    }
}

/// Imports files, `pg_control` among them.
fn import(spec: ImportSpec, files: &[(&str, &[u8])]) -> Result<(Store, ardent_pg_ingest::Imported), ImportError> {
    let (mut store, mut batch) = (Store::default(), Batch::default());
    let mut import = Import::new(spec)?;
    for (path, content) in files {
        import.begin_file(path, content.len() as u64, &mut batch)?;
        for chunk in content.chunks(5000) {
            import.data(Bytes::copy_from_slice(chunk), &mut batch)?;
        }
    }
    let imported = import.finish(&mut batch)?;
    store.apply(&mut batch);
    Ok((store, imported))
}

fn page(mark: u8) -> Vec<u8> {
    let mut page = vec![0; BLCKSZ];
    page[12..20].copy_from_slice(&[24, 0, 0xE8, 0x1F, 0, 0x20, 4, 0x20]);
    page[8191] = mark;
    page
}

#[test]
fn checklist_28_29_an_import_takes_segments_in_any_order_and_no_unlogged_data() {
    let control = control_file().encode();
    let two = [page(1), page(2)].concat();
    let files: Vec<(&str, &[u8])> = vec![
        ("base/5/1.1", &two),
        ("base/5/2", &two),
        ("base/5/2_vm", &two),
        ("base/5/2_init", &two[..BLCKSZ]),
        ("global/pg_control", &control),
        ("base/5/1", &two[..BLCKSZ + 100]),
    ];
    let (store, imported) = import(spec(), &files).expect("imported");
    assert_eq!((imported.relations, imported.blocks), (2, 131_074 + 1));
    let at = store.newest();
    let size = |tag: RelTag| {
        at.get(Key::RelSize(tag)).expect("read").map(|size| u32::from_le_bytes(size[..].try_into().expect("4 bytes")))
    };
    assert_eq!(size(rel(1)), Some(131_074));
    assert_eq!((size(rel(2)), size(rel(2).with_fork(ForkNumber::Vm))), (None, None));
    assert_eq!(size(rel(2).with_fork(ForkNumber::Init)), Some(1));
    let mark = |block| at.get(Key::RelBlock(rel(1), block)).expect("read").expect("there")[8191];
    assert_eq!((mark(0), mark(1), mark(131_071), mark(131_072), mark(131_073)), (1, 0, 0, 1, 2));
}

#[test]
fn checklist_65_19_settled_pages_must_have_their_checksum() {
    let mut control = control_file();
    control.data_checksum_version = 1;
    let control = control.encode();
    let stamped = |lsn: Lsn, mark| {
        let mut page: [u8; BLCKSZ] = page(mark)[..].try_into().expect("a page");
        ardent_pg_format::page::set_lsn(&mut page, lsn);
        page
    };
    let mut good = stamped(Lsn::new(5), 1);
    let checksum = ardent_pg_format::page::checksum_page(&good, 0);
    ardent_pg_format::page::set_checksum(&mut good, checksum);
    let newer = stamped(START.advance(8), 3);
    let content = [good, stamped(Lsn::new(5), 2), newer, [0; BLCKSZ]].concat();
    let spec = ImportSpec { data_checksums: true, ..spec() };
    let (store, imported) =
        import(spec.clone(), &[("base/5/1", &content), ("global/pg_control", &control)]).expect("imported");
    assert_eq!(imported.damaged_pages, 1);
    let get = |block| store.newest().get(Key::RelBlock(rel(1), block));
    assert_eq!(get(0).expect("read").expect("there")[8191], 1);
    assert!(get(1).expect_err("damaged").to_string().contains("checksum"));
    assert_eq!(get(2).expect("read").expect("there")[8191], 3, "redo brings an image of it");
    assert!(matches!(
        import(ImportSpec { data_checksums: false, ..spec }, &[("global/pg_control", &control)]),
        Err(ImportError::Mismatch { .. })
    ));
}

#[test]
fn checklist_60_65_a_cut_off_or_foreign_backup_is_refused() {
    let control = control_file().encode();
    let files: [(&str, &[u8]); 1] = [("global/pg_control", &control)];
    assert!(import(spec(), &files).is_ok());
    assert!(matches!(import(spec(), &[]), Err(ImportError::NoControlFile)));
    assert!(matches!(import(spec(), &[("global/pg_control", &control[..100])]), Err(ImportError::File { .. })));
    for other in [
        ImportSpec { system_id: SystemId::new(8), ..spec() },
        ImportSpec { pg_tli: PgTli::new(2), ..spec() },
        ImportSpec { pg_major: 16, ..spec() },
        ImportSpec { start_lsn: START.advance(8), ..spec() },
        ImportSpec { wal_segment_size: WalSegmentSize::new(1 << 20).expect("a size"), ..spec() },
    ] {
        assert!(matches!(import(other, &files), Err(ImportError::Mismatch { .. })));
    }
    assert!(matches!(import(ImportSpec { pg_major: 9, ..spec() }, &files), Err(ImportError::Major(9))));
    assert!(matches!(import(spec(), &[("PG_VERSION", b"14\n"), files[0]]), Err(ImportError::File { .. })));
    assert!(matches!(import(spec(), &[("pg_twophase/000002DA", &[0; 90]), files[0]]), Err(ImportError::File { .. })));
    assert!(matches!(import(spec(), &[("base/5/1.40000", &page(1)), files[0]]), Err(ImportError::PageNumber { .. })));
    let mut batch = Batch::default();
    let mut cut = Import::new(spec()).expect("begins");
    cut.begin_file("base/5/1", 8192, &mut batch).expect("begins");
    cut.data(Bytes::from_static(&[0; 100]), &mut batch).expect("taken");
    assert!(matches!(cut.finish(&mut batch), Err(ImportError::CutOff { received: 100, length: 8192, .. })));
    let mut long = Import::new(spec()).expect("begins");
    long.begin_file("base/5/1", 10, &mut batch).expect("begins");
    assert!(matches!(long.data(Bytes::from_static(&[0; 11]), &mut batch), Err(ImportError::TooLong { .. })));
}
