//! A database of 100,000 tables.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use ardent_api::page_service::{BackupItem, BlockRange, ChangedRelation, ManageReply, ManageRequest};
use ardent_page_client::PageClient;
use ardent_pg_redo::Value;
use ardent_storage::{RecordPosition, Timeline};
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Key, Lsn, RelTag, TimelineId, oid};
use bytes::Bytes;

use super::cluster::{DATABASE, cluster, size};
use super::house::{House, ROOT, TENANT, import, open};

const TABLES: u32 = 100_000;
/// Number of the first one's file; the others' follow.
const FIRST_FILE: u32 = 20_000;
/// So many are imported, the others come by WAL.
const IMPORTED: u32 = 50_000;
/// Tables that one record makes, and records between two flushes.
const TABLES_PER_RECORD: u32 = 1000;
const RECORDS_PER_FLUSH: u32 = 10;
/// One in so many has pages; one in so many has maps.
const PAGES_EVERY: u32 = 97;
const MAPS_EVERY: u32 = 10;
/// No row of `pg_class` names these.
const UNNAMED: [u32; 3] = [5, 50_001, 99_998];
const DROPPED: u32 = 77_777;
/// Bytes that a base backup has for a fork and its size.
const FORK_LEN: usize = 17;

/// Sizes of all relation forks.
pub type Sizes = BTreeMap<RelTag, BlockNumber>;

fn main_fork(table: u32) -> RelTag {
    RelTag { spcnode: oid::DEFAULT_TABLESPACE, dbnode: DATABASE, relnode: FIRST_FILE + table, fork: ForkNumber::Main }
}

/// A table's forks as it is made.
fn forks(table: u32) -> Vec<(RelTag, BlockNumber)> {
    let main = main_fork(table);
    let mut forks = vec![(main, 1 + table % 4)];
    if table.is_multiple_of(MAPS_EVERY) {
        forks.extend([(main.with_fork(ForkNumber::Fsm), 3), (main.with_fork(ForkNumber::Vm), 1)]);
    }
    forks
}

fn page(fill: u8) -> Bytes {
    vec![fill; BLCKSZ].into()
}

/// What a table's pages are filled with at first.
fn fill(table: u32) -> u8 {
    (table % 200 + 1) as u8
}

/// A table's values as it is made.
fn values(table: u32) -> Vec<(Key, Bytes)> {
    let forks = forks(table);
    let (main, blocks) = forks[0];
    let pages = if table.is_multiple_of(PAGES_EVERY) { 0..blocks } else { 0..0 };
    let sizes = forks.iter().map(|(rel, blocks)| (Key::RelSize(*rel), size(Some(*blocks))));
    sizes.chain(pages.map(|block| (Key::RelBlock(main, block), page(fill(table))))).collect()
}

/// What of `values` are sizes, taken over into `sizes`.
fn note(sizes: &mut Sizes, values: &[(Key, Bytes)]) {
    for (key, value) in values {
        let Key::RelSize(rel) = key else { continue };
        match value.first_chunk::<4>() {
            Some(blocks) => _ = sizes.insert(*rel, u32::from_le_bytes(*blocks)),
            None => _ = sizes.remove(rel),
        }
    }
}

/// Has a record make these values; where it ends.
fn put(root: &Timeline, sizes: &mut Sizes, values: Vec<(Key, Bytes)>) -> Lsn {
    note(sizes, &values);
    let start = root.last_record().end;
    let end = start.advance(8);
    let batch = values.into_iter().map(|(key, value)| (key, end, Value::Image(value))).collect();
    root.put(batch, RecordPosition { end, start }).expect("values are taken");
    end
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    told(what, began);
    done
}

fn told(what: &str, began: Instant) {
    println!("{what}: {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
}

/// The timeline with all tables, and what was then changed.
struct Made {
    made: Lsn,
    at_made: Sizes,
    changed: Lsn,
    at_changed: Sizes,
}

fn make(folder: &Path) -> Made {
    let engine = open(folder);
    let mut sizes = Sizes::new();
    let named = (0..TABLES).filter(|table| !UNNAMED.contains(table)).map(|table| FIRST_FILE + table);
    let mut imported = cluster(named);
    imported.extend((0..IMPORTED).flat_map(values));
    note(&mut sizes, &imported);
    let root = timed("import of the first half", || import(&engine, &imported));
    timed("the second half, by records, with flushes", || {
        for (record, first) in (1..).zip((IMPORTED..TABLES).step_by(TABLES_PER_RECORD as usize)) {
            put(&root, &mut sizes, (first..first + TABLES_PER_RECORD).flat_map(values).collect());
            if record % RECORDS_PER_FLUSH == 0 {
                root.flush().expect("it is written");
            }
        }
    });
    let gone = forks(DROPPED).into_iter().map(|(rel, _)| (Key::RelSize(rel), size(None)));
    let made = put(&root, &mut sizes, gone.collect());
    let at_made = sizes.clone();
    root.flush().expect("it is written");
    timed("compaction", || root.compact().expect("it is compacted"));
    assert!(engine.stats().compactions > 0 && !root.has_compaction_to_do(), "{:?}", root.sizes());
    println!("stored: {:?}", root.sizes());

    let block = |table, block| Key::RelBlock(main_fork(table), block);
    let changed = put(
        &root,
        &mut sizes,
        vec![
            (block(0, 0), page(201)),
            (block(12_345, 1), page(202)),
            (block(50_000, 0), page(203)),
            (Key::RelSize(main_fork(60_001)), size(Some(0))),
            (block(99_999, 4), page(204)),
            (Key::RelSize(main_fork(99_999)), size(Some(5))),
            // A map follows from its table, and is not told.
            (Key::RelBlock(main_fork(70_000).with_fork(ForkNumber::Fsm), 0), page(205)),
        ],
    );

    assert!(timed("unloading", || engine.unload(root).expect("it is written")), "nobody else has it");
    assert_eq!(engine.loaded_timelines(), 0);
    let root = timed("loading", || engine.timeline(TENANT, ROOT).expect("it is loaded"));
    for (at, expect) in [(made, &at_made), (changed, &sizes)] {
        let stored = timed("listing all sizes", || stored_sizes(&root, at));
        assert!(stored == *expect, "{} forks instead of {} at {at}", stored.len(), expect.len());
    }
    engine.shutdown().expect("all is durable");
    Made { made, at_made, changed, at_changed: sizes }
}

fn stored_sizes(root: &Timeline, lsn: Lsn) -> Sizes {
    let (first, last) = (Key::rel_sizes(0, 0), Key::rel_sizes(u32::MAX, u32::MAX));
    let found = root.scan(*first.start()..=*last.end(), lsn).expect("sizes can be listed");
    let mut sizes = Sizes::new();
    note(&mut sizes, &found);
    sizes
}

/// The forks that a base backup tells of, each once; prints what it took.
pub async fn backed_up_forks(client: &mut PageClient, lsn: Lsn) -> Sizes {
    let began = Instant::now();
    let mut forks = Sizes::new();
    let (mut items, mut bytes) = (0, 0);
    let mut stream = client.base_backup(lsn).await.expect("a base backup is made");
    while let Some(item) = stream.next().await.expect("it goes on") {
        items += 1;
        match item {
            BackupItem::Relations(some) => {
                bytes += some.len() * FORK_LEN;
                for (rel, blocks) in some {
                    assert_eq!(forks.insert(rel, blocks), None, "{rel} is told twice");
                }
            }
            BackupItem::File { path, zstd } => bytes += path.len() + zstd.len(),
            BackupItem::Page { page, .. } => bytes += page.len(),
            _ => {}
        }
    }
    let (count, ms) = (forks.len(), began.elapsed().as_secs_f64() * 1e3);
    println!("base backup at {lsn}: {count} relation forks in {items} items, {bytes} bytes, {ms:.0} ms");
    forks
}

/// How a relation is told as changed: its sizes before and after, and which blocks.
pub fn changed_relation(rel: RelTag, sizes: (u32, u32), ranges: &[(u32, u32)]) -> ChangedRelation {
    let ranges = ranges.iter().map(|&(start, count)| BlockRange { start, count }).collect();
    ChangedRelation { rel, nblocks_from: Some(sizes.0), nblocks_to: Some(sizes.1), ranges }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_100_000_tables_is_backed_up_listed_and_compared() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Made { made, at_made, changed, at_changed } = make(folder.path());
    let house = House::start(folder.path()).await;
    let mut client = house.client(ROOT).await;
    for (at, expect) in [(changed, &at_changed), (made, &at_made)] {
        let forks = backed_up_forks(&mut client, at).await;
        assert!(forks == *expect, "{} forks are told at {at}, there are {}", forks.len(), expect.len());
    }
    assert!(!at_changed.contains_key(&main_fork(DROPPED)), "what was dropped is not among them");

    let began = Instant::now();
    let told_changed = client.get_changed(made, changed).await.expect("changed blocks are told");
    told("changed blocks of 5 tables", began);
    let expect = [
        changed_relation(main_fork(0), (1, 1), &[(0, 1)]),
        changed_relation(main_fork(12_345), (2, 2), &[(1, 1)]),
        changed_relation(main_fork(50_000), (1, 1), &[(0, 1)]),
        changed_relation(main_fork(60_001), (2, 0), &[]),
        changed_relation(main_fork(99_999), (4, 5), &[(4, 1)]),
    ];
    assert_eq!(told_changed, expect);

    let began = Instant::now();
    let reply = client.manage(ManageRequest::FindUnnamedFiles { timeline: ROOT }).await.expect("files are compared");
    told("comparing files with catalogs", began);
    let ManageReply::UnnamedFiles(found) = reply else { panic!("another answer: {reply:?}") };
    let files: Vec<u32> = found.relations.iter().map(|relation| relation.file).collect();
    assert_eq!(files, UNNAMED.map(|table| FIRST_FILE + table));
    let blocks: u32 = UNNAMED.iter().flat_map(|table| forks(*table)).map(|(_, blocks)| blocks).sum();
    assert_eq!((found.lsn, found.found, found.bytes), (changed, 3, u64::from(blocks) * BLCKSZ as u64));

    let began = Instant::now();
    let reply = client.manage(ManageRequest::TimelineStatus { timeline: ROOT }).await.expect("a status");
    told("the timeline's status, with its size", began);
    let ManageReply::Timeline(status) = reply else { panic!("another answer: {reply:?}") };
    let blocks: u64 = at_changed.values().map(|blocks| u64::from(*blocks)).sum();
    assert_eq!(status.logical_size_bytes, Some(blocks * BLCKSZ as u64));
    let began = Instant::now();
    let reply = house.client(TimelineId::NONE).await.manage(ManageRequest::ListTimelines).await.expect("a list");
    told("the list of timelines", began);
    assert!(matches!(&reply, ManageReply::Timelines { timelines } if timelines.len() == 1), "{reply:?}");

    for (at, table, block, expect) in [
        (made, 0, 0, fill(0)),
        (changed, 0, 0, 201),
        (changed, 97, 0, fill(97)),
        (changed, 97, 1, fill(97)),
        // Without a version of its own.
        (made, 12_345, 1, 0),
        (changed, 12_345, 1, 202),
        (changed, 99_999, 4, 204),
        (changed, 99_910, 2, fill(99_910)),
    ] {
        let range = [BlockRange { start: block, count: 1 }];
        let got = client.get_pages(at, main_fork(table), &range).await.expect("the page is there");
        assert!(got.iter().all(|byte| *byte == expect), "table {table}, block {block} at {at} begins with {}", got[0]);
    }
    house.stop().await;
}
