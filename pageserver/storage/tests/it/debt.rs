//! Writers that are faster than compaction are slowed before reads get worse than promised, and none is held up for ever.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ardent_object_store::fault::FailPoints;
use ardent_object_store::{
    ListPage, ListRequest, MemoryStore, ObjectMeta, ObjectName, ObjectPart, ObjectStore, StoreError, UnfinishedUpload,
    list_all,
};
use ardent_storage::{Engine, EngineConfig, ErrorKind, Timeline};
use bytes::Bytes;

use crate::support::*;

/// What a busy machine may need.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCKS: u64 = 20;
const COMPACT_AT: usize = 2;
const IMAGES_AT_FILES: usize = 2;
const IMAGES_AT_DELTAS: u64 = 10;

/// A store to which what compaction writes goes slowly, or not at all. Flushes are as quick as ever.
#[derive(Debug, Default)]
struct Uphill {
    store: MemoryStore,
    compaction_fails: AtomicBool,
}

impl ObjectStore for Uphill {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.store.put(name, body)
    }
    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.store.put_if_absent(name, body)
    }
    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        if !name.file_name().starts_with("d0") {
            if self.compaction_fails.load(Ordering::Relaxed) {
                // An error like any other: the object is not there.
                self.store.get(&ObjectName::new("missing").unwrap())?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.store.put_file(name, path)
    }
    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.store.get(name)
    }
    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        self.store.get_part(name, range)
    }
    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        self.store.head(name)
    }
    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.store.list(request)
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.store.delete(name)
    }
    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.store.unfinished_uploads()
    }
    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.store.give_up_upload(upload)
    }
}

fn uphill_config(folder: &Path, store: &Arc<Uphill>) -> EngineConfig {
    EngineConfig {
        store: store.clone(),
        background: true,
        open_layer_bytes_max: 4000,
        layer_file_bytes: 100_000,
        compact_at_l0_files: COMPACT_AT,
        images_at_delta_files: IMAGES_AT_FILES,
        images_at_deltas_per_key: IMAGES_AT_DELTAS,
        page_cache_bytes: 0,
        ..config(folder, &Arc::new(FailPoints::new()))
    }
}

fn open_uphill(folder: &Path) -> (Arc<Uphill>, Arc<Engine>, Arc<Timeline>) {
    let store = Arc::new(Uphill::default());
    let engine = Engine::open(uphill_config(folder, &store)).unwrap();
    let root = empty_root(&engine, 1);
    (store, engine, root)
}

fn end_of(n: u64) -> u64 {
    0x108 + n * 8
}

fn write(root: &Timeline, numbers: Range<u64>) {
    for n in numbers {
        let value = if n < BLOCKS { image("i") } else { delta("+") };
        root.put(vec![(block((n % BLOCKS) as u32), lsn(end_of(n)), value)], at(end_of(n))).unwrap();
    }
}

fn check_content(root: &Timeline, upto: u64) {
    for number in 0..BLOCKS {
        let deltas = (BLOCKS..upto).filter(|n| n % BLOCKS == number).count();
        let expect = format!("i{}", "+".repeat(deltas));
        assert_eq!(text(root, block(number as u32), end_of(upto - 1)), Some(expect), "block {number}");
    }
}

#[test]
fn reads_keep_their_bound_under_a_writer_that_outruns_compaction() {
    const WRITES: u64 = 20_000;
    // Level 0 and what lies above images stop the writer at twice their soft limits; one file more may be on its way, and an image.
    const FILES_MAX: usize = 4 * COMPACT_AT + 4 * IMAGES_AT_FILES + 2;
    // A file has this many deltas of a key: about 40 bytes are held for each of a block.
    const DELTAS_OF_A_FILE: usize = 4000 / 33 / BLOCKS as usize + 1;
    const DELTAS_MAX: usize = 4 * IMAGES_AT_DELTAS as usize + (4 * COMPACT_AT + 2) * DELTAS_OF_A_FILE;
    let folder = tempfile::tempdir().unwrap();
    let (_store, engine, root) = open_uphill(folder.path());
    write(&root, 0..BLOCKS);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            write(&root, BLOCKS..WRITES);
            is_done.store(true, Ordering::Relaxed);
        });
        let mut number = 0;
        while !is_done.load(Ordering::Relaxed) {
            number += 1;
            let cost = root.read_cost(&block(number % BLOCKS as u32), root.last_record().end).unwrap();
            assert!(cost.files <= FILES_MAX, "{} files, {FILES_MAX} are promised", cost.files);
            assert!(cost.deltas <= DELTAS_MAX, "{} deltas, {DELTAS_MAX} are promised", cost.deltas);
        }
    });
    let stats = engine.stats();
    assert!(stats.puts_slowed > 0 && stats.puts_slowed_us > 0, "the writer did outrun compaction: {stats:?}");
    check_content(&root, WRITES);
    let deadline = Instant::now() + PATIENCE;
    // Left to itself, compaction gets to where it begins.
    while root.sizes().files_per_read_max > COMPACT_AT + IMAGES_AT_FILES
        || root.sizes().deltas_per_key_max > IMAGES_AT_DELTAS
    {
        assert!(Instant::now() < deadline, "{:?}", root.sizes());
        std::thread::yield_now();
    }
    engine.shutdown().unwrap();
}

#[test]
fn a_writer_is_not_held_up_when_nobody_compacts_any_more() {
    const WRITES: u64 = 40;
    let folder = tempfile::tempdir().unwrap();
    let (_store, engine, root) = open_uphill(folder.path());
    engine.shutdown().unwrap();
    let writing = root.clone();
    let (done, is_done) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        for n in 0..WRITES {
            write(&writing, n..n + 1);
            writing.flush().unwrap();
        }
        done.send(()).unwrap();
    });
    is_done.recv_timeout(PATIENCE).expect("the writer waits for nobody");
    writer.join().unwrap();
    assert_eq!(root.sizes().uncompacted_files as u64, WRITES, "past the limit: {:?}", root.sizes());
    check_content(&root, WRITES);
}

#[test]
fn a_writer_is_not_held_up_for_ever_when_compaction_fails_and_the_engine_tells() {
    const WRITES: u64 = 4000;
    let folder = tempfile::tempdir().unwrap();
    let (store, engine, root) = open_uphill(folder.path());
    store.compaction_fails.store(true, Ordering::Relaxed);
    write(&root, 0..WRITES);
    root.flush().unwrap();
    assert!(root.sizes().uncompacted_files > 4 * COMPACT_AT, "past the limit: {:?}", root.sizes());
    let problems = engine.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].0, root.id());
    assert!(problems[0].1.contains("compaction fails") && problems[0].1.contains("missing"), "{problems:?}");
    let stats = engine.stats();
    assert!(stats.puts_slowed > 0 && stats.background_failures > 0 && stats.compactions_failing == 1, "{stats:?}");
    check_content(&root, WRITES);

    store.compaction_fails.store(false, Ordering::Relaxed);
    let deadline = Instant::now() + PATIENCE;
    let mut next = WRITES;
    while !engine.problems().is_empty() || root.sizes().uncompacted_files >= COMPACT_AT {
        assert!(Instant::now() < deadline, "{:?} {:?}", engine.problems(), root.sizes());
        // It is looked at again when there are other files, or in a while.
        if !engine.problems().is_empty() {
            write(&root, next..next + 1);
            root.flush().unwrap();
            next += 1;
        }
        std::thread::yield_now();
    }
    check_content(&root, next);
    assert_eq!(engine.stats().compactions_failing, 0);
    engine.shutdown().unwrap();
}

/// Where the checksum of a layer file's first versions is: behind the header (`docs/formats/layers.md`).
const FIRST_CHECKSUM: usize = 8;

/// Damages the newest level-0 file of a timeline: its name, and the file as it was.
fn damage_newest(store: &MemoryStore, timeline: u8) -> (ObjectName, Bytes) {
    let folder = format!("timelines/{TENANT}/{}/layers/", timeline_id(timeline));
    let files = list_all(store, &folder, false).unwrap().objects;
    let name = files.into_iter().map(|file| file.name).filter(|name| name.file_name().starts_with("d0")).max().unwrap();
    let whole = store.get(&name).unwrap();
    let mut damaged = whole.to_vec();
    damaged[FIRST_CHECKSUM] ^= 4;
    store.put(&name, &damaged).unwrap();
    (name, whole)
}

#[test]
fn a_damaged_file_that_nobody_can_compact_is_told_and_holds_up_no_writer_and_no_other_timeline() {
    const WRITES: u64 = 4000;
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Uphill::default());
    let engine = Engine::open(EngineConfig { background: false, ..uphill_config(folder.path(), &store) }).unwrap();
    // Files that are to be compacted, and nobody is there who does it yet.
    for number in [1, 2] {
        let root = empty_root(&engine, number);
        for part in 0..COMPACT_AT as u64 {
            write(&root, part * BLOCKS..(part + 1) * BLOCKS);
            root.flush().unwrap();
        }
    }
    drop(engine);
    let (damaged, whole) = damage_newest(&store.store, 1);

    let engine = Engine::open(uphill_config(folder.path(), &store)).unwrap();
    let timelines = [1, 2].map(|number| engine.timeline(TENANT, timeline_id(number)).unwrap());
    let (done, is_done) = std::sync::mpsc::channel();
    let writers = timelines.clone().map(|timeline| {
        let done = done.clone();
        std::thread::spawn(move || {
            write(&timeline, COMPACT_AT as u64 * BLOCKS..WRITES);
            timeline.flush().unwrap();
            done.send(()).unwrap();
        })
    });
    for _ in &writers {
        is_done.recv_timeout(PATIENCE).expect("no writer waits for what does not come");
    }
    for writer in writers {
        writer.join().unwrap();
    }
    let [victim, other] = timelines;
    assert!(victim.sizes().uncompacted_files > 4 * COMPACT_AT, "past the limit: {:?}", victim.sizes());
    let problems = engine.problems();
    assert_eq!(problems.iter().map(|(timeline, _)| *timeline).collect::<Vec<_>>(), [victim.id()]);
    for word in ["compaction fails", damaged.file_name(), "is corrupt", "restore the file"] {
        assert!(problems[0].1.contains(word), "no {word:?} in {problems:?}");
    }
    let error = victim.get(&block(0), victim.last_record().end).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // The other one is as if nothing had happened.
    check_content(&other, WRITES);
    let deadline = Instant::now() + PATIENCE;
    while other.sizes().files_per_read_max > COMPACT_AT + IMAGES_AT_FILES {
        assert!(Instant::now() < deadline, "{:?}", other.sizes());
        std::thread::yield_now();
    }

    // The file comes back from a copy, and compaction goes on by itself.
    store.store.put(&damaged, &whole).unwrap();
    let mut next = WRITES;
    while !engine.problems().is_empty() || victim.sizes().uncompacted_files >= COMPACT_AT {
        assert!(Instant::now() < deadline + PATIENCE, "{:?} {:?}", engine.problems(), victim.sizes());
        // It is looked at again when there are other files, or in a while.
        if !engine.problems().is_empty() {
            write(&victim, next..next + 1);
            victim.flush().unwrap();
            next += 1;
        }
        std::thread::yield_now();
    }
    check_content(&victim, next);
    engine.shutdown().unwrap();
}
