//! A store that is away for long: WAL is taken until there is no more room for it, in memory or on the disk, what was taken stays readable,
//! and when the store is back everything goes on by itself. A store that is only slow holds nobody up.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ardent_object_store::fault::FailPoints;
use ardent_object_store::{
    CacheOptions, CachedStore, ErrorKind as StoreErrorKind, ListPage, ListRequest, MemoryStore, ObjectMeta, ObjectName,
    ObjectPart, ObjectStore, StoreError, UnfinishedUpload,
};
use ardent_storage::{Engine, EngineConfig, ErrorKind, PutError, Timeline, survey};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::support::*;

/// What a busy machine may need.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCKS: u64 = 20;
/// Written while the store is there; several layers.
const BEFORE: u64 = 500;
/// Many times what memory has room for.
const ALL: u64 = 5000;
const COMPACT_AT: usize = 2;
const IMAGES_AT_FILES: usize = 2;

/// A store that refuses every call while it is away, and whose uploads of files wait while they are held.
#[derive(Debug, Default)]
struct Far {
    store: MemoryStore,
    is_away: AtomicBool,
    /// How often it was asked for anything while it was away.
    in_vain: AtomicU64,
    /// Names of files that it was given, and whether it took them.
    files: Mutex<Vec<(String, bool)>>,
    was_given: Condvar,
    /// Objects of which it takes none: those whose names have this in them.
    never: Mutex<Option<String>>,
    are_held: Mutex<bool>,
    let_go: Condvar,
}

impl Far {
    fn hold_uploads(&self) -> HeldUploads<'_> {
        *self.are_held.lock() = true;
        HeldUploads(self)
    }

    fn there(&self, name: &str) -> Result<&MemoryStore, StoreError> {
        if self.is_away.load(Ordering::SeqCst) {
            self.in_vain.fetch_add(1, Ordering::SeqCst);
            return Err(StoreError::new(StoreErrorKind::Retry, "call", name, "the store is away"));
        }
        if self.never.lock().as_ref().is_some_and(|part| name.contains(part)) {
            return Err(StoreError::new(StoreErrorKind::Denied, "call", name, "not this one"));
        }
        Ok(&self.store)
    }

    /// Waits until it has taken, or refused, a file of this timeline.
    fn wait_for_file(&self, timeline: u8, is_taken: bool) {
        let of = format!("{}/", timeline_id(timeline));
        let mut files = self.files.lock();
        while !files.iter().any(|(name, taken)| name.contains(&of) && *taken == is_taken) {
            assert!(!self.was_given.wait_for(&mut files, PATIENCE).timed_out(), "it was given {files:?}");
        }
    }
}

/// While it is there, uploads of files wait.
struct HeldUploads<'a>(&'a Far);

impl Drop for HeldUploads<'_> {
    fn drop(&mut self) {
        *self.0.are_held.lock() = false;
        self.0.let_go.notify_all();
    }
}

impl ObjectStore for Far {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.there(name.as_str())?.put(name, body)
    }
    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.there(name.as_str())?.put_if_absent(name, body)
    }
    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        let mut are_held = self.are_held.lock();
        while *are_held {
            self.let_go.wait(&mut are_held);
        }
        drop(are_held);
        let result = self.there(name.as_str()).and_then(|store| store.put_file(name, path));
        self.files.lock().push((name.to_string(), result.is_ok()));
        self.was_given.notify_all();
        result
    }
    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.there(name.as_str())?.get(name)
    }
    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        self.there(name.as_str())?.get_part(name, range)
    }
    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        self.there(name.as_str())?.head(name)
    }
    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.there(&request.prefix)?.list(request)
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.there(name.as_str())?.delete(name)
    }
    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.there("")?.unfinished_uploads()
    }
    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.there(upload.name.as_str())?.give_up_upload(upload)
    }
}

/// An engine whose limits are small, on `store`; what reads need comes from files, not from memory.
fn open_on(store: Arc<dyn ObjectStore>, folder: &Path, spill: bool) -> Arc<Engine> {
    Engine::open(small_on(store, folder, spill)).unwrap()
}

fn small_on(store: Arc<dyn ObjectStore>, folder: &Path, spill: bool) -> EngineConfig {
    EngineConfig {
        store,
        spill,
        background: true,
        open_layer_bytes_max: 4000,
        open_layer_age_max: Duration::from_secs(1),
        layer_file_bytes: 100_000,
        compact_at_l0_files: COMPACT_AT,
        images_at_delta_files: IMAGES_AT_FILES,
        page_cache_bytes: 0,
        block_cache_bytes: 0,
        ..config(folder, &Arc::new(FailPoints::new()))
    }
}

fn end_of(n: u64) -> u64 {
    0x108 + n * 8
}

/// Writes what is not taken again, as a follower of WAL does; `refused` is told why it was not.
fn insist(root: &Timeline, numbers: Range<u64>, refused: &mpsc::Sender<PutError>) {
    let deadline = Instant::now() + 3 * PATIENCE;
    for n in numbers {
        let value = || if n < BLOCKS { image("i") } else { delta("+") };
        let put = || root.put(vec![(block((n % BLOCKS) as u32), lsn(end_of(n)), value())], at(end_of(n)));
        while let Err(error) = put() {
            assert!(error.kind() == ErrorKind::Retry && Instant::now() < deadline, "{error}");
            refused.send(error).unwrap();
        }
    }
}

/// Every block has what the first `upto` records made of it.
fn check_content(root: &Timeline, upto: u64) {
    for number in 0..BLOCKS {
        let deltas = (BLOCKS..upto).filter(|n| n % BLOCKS == number).count();
        let expect = format!("i{}", "+".repeat(deltas));
        assert_eq!(
            text(root, block(number as u32), end_of(upto - 1)),
            Some(expect),
            "block {number} of {upto} records"
        );
    }
}

#[test]
fn nothing_is_lost_and_all_goes_on_by_itself_when_a_store_comes_back() {
    go_through_an_outage(false);
}

#[test]
fn the_same_with_room_on_the_disk() {
    go_through_an_outage(true);
}

fn go_through_an_outage(spill: bool) {
    let folder = tempfile::tempdir().unwrap();
    let far = Arc::new(Far::default());
    let options = CacheOptions { folder: folder.path().join("cache"), bytes_max: 1 << 30 };
    let near: Arc<dyn ObjectStore> = Arc::new(CachedStore::open(far.clone(), options).unwrap());
    let engine = open_on(near, folder.path(), spill);
    let root = empty_root(&engine, 1);
    let (refused, why) = mpsc::channel();
    insist(&root, 0..BEFORE, &refused);
    root.flush().unwrap();
    let durable = root.disk_consistent_lsn();
    assert_eq!(durable, lsn(end_of(BEFORE - 1)));

    far.is_away.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| insist(&root, BEFORE..ALL, &refused));
        let stalled = why.recv_timeout(PATIENCE).expect("memory is used up in the end");
        let PutError::Stalled { source, .. } = &stalled else { panic!("{stalled:?}") };
        assert_eq!(source.kind(), ErrorKind::Retry);
        let last = root.last_record().end;
        let taken = (last.get() - 0x100) / 8;
        assert!(taken > BEFORE && taken < ALL, "{taken} records were taken");
        let in_memory = root.sizes().memory_bytes;
        let layers_in_memory = if spill { 2 } else { 10 };
        assert!(in_memory < layers_in_memory * 4000, "{in_memory} bytes wait in memory");
        assert_eq!(engine.stats().spilled_bytes > 0, spill, "what waits on the disk");
        // All of it, from memory and from files that are cached.
        check_content(&root, taken);
        check_content(&root, BEFORE);
        assert_eq!(
            (root.last_record().end, root.disk_consistent_lsn()),
            (last, durable),
            "it waits, and promises nothing"
        );

        let problems = engine.problems();
        let is_told = |text: &str| text.contains("cannot be written") && text.contains("the store is away");
        assert!(problems.iter().any(|(timeline, text)| *timeline == root.id() && is_told(text)), "{problems:?}");

        far.is_away.store(false, Ordering::SeqCst);
        writer.join().unwrap();
    });
    // Nobody asks for it: what is old is written, and what was written is compacted.
    let deadline = Instant::now() + PATIENCE;
    let all = lsn(end_of(ALL - 1));
    while root.disk_consistent_lsn() < all
        || root.sizes().files_per_read_max > COMPACT_AT + IMAGES_AT_FILES
        || !engine.problems().is_empty()
    {
        assert!(Instant::now() < deadline, "{:?} {:?}", root.sizes(), engine.problems());
        std::thread::sleep(Duration::from_millis(10));
    }
    check_content(&root, ALL);
    engine.shutdown().unwrap();
    drop((root, engine));

    // All of it is in the store: a page server that has nothing else finds it.
    let elsewhere = tempfile::tempdir().unwrap();
    let engine = open_on(far.clone(), elsewhere.path(), spill);
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    assert_eq!(root.disk_consistent_lsn(), all);
    check_content(&root, ALL);
    check_content(&root, BEFORE);
    let found = survey(&*far).unwrap();
    assert_eq!((found.problems, found.unknown), Default::default());
    engine.shutdown().unwrap();
}

/// Writes records until so many files wait for the store, and says how many records there are then.
fn write_until_files_wait(engine: &Engine, root: &Timeline, mut n: u64, bytes: u64) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    while engine.stats().spilled_bytes < bytes {
        assert!(Instant::now() < deadline, "{:?} after {n} records", root.sizes());
        let value = if n < BLOCKS { image("i") } else { delta("+") };
        root.put(vec![(block((n % BLOCKS) as u32), lsn(end_of(n)), value)], at(end_of(n))).unwrap();
        n += 1;
    }
    n
}

#[test]
fn a_store_that_takes_its_time_holds_up_no_writer_and_no_reader() {
    let folder = tempfile::tempdir().unwrap();
    let far = Arc::new(Far::default());
    let engine = open_on(far.clone(), folder.path(), true);
    let root = empty_root(&engine, 1);
    let files = root.sizes().files;
    let held = far.hold_uploads();
    // Of layers of 4,000 bytes in memory, which are a few hundred in files.
    let written = write_until_files_wait(&engine, &root, 0, 1500);
    let sizes = root.sizes();
    assert_eq!((sizes.files, root.disk_consistent_lsn()), (files, lsn(0x100)), "nothing is in the store");
    assert!(sizes.memory_bytes < 3 * 4000, "{} bytes in memory", sizes.memory_bytes);
    for upto in [written, written / 2, BLOCKS] {
        check_content(&root, upto);
    }
    // Records inside such a file are known, and which keys they changed.
    let (_, point) = root.branch_point(Some(lsn(end_of(written / 2) + 3))).unwrap();
    assert_eq!(point.lsn, lsn(end_of(written / 2)));
    let scanned = root.scan(block(0)..=block(BLOCKS as u32), lsn(end_of(written - 1))).unwrap();
    assert_eq!(scanned.len(), BLOCKS as usize);

    drop(held);
    root.flush().unwrap();
    assert_eq!(root.disk_consistent_lsn(), root.last_record().end);
    assert_eq!(engine.stats().spilled_bytes, 0);
    check_content(&root, written);
    let left = std::fs::read_dir(folder.path().join("local/writing")).unwrap().count();
    assert_eq!(left, 0, "files that nobody needs");
    engine.shutdown().unwrap();
}

#[test]
fn a_file_that_is_damaged_while_it_waits_is_not_stored_and_its_wal_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let far = Arc::new(Far::default());
    // Nothing is stored but when the test says so: an attempt under way may have read the file before it is damaged.
    let config = EngineConfig { background: false, ..small_on(far.clone(), folder.path(), true) };
    let engine = Engine::open(config).unwrap();
    let root = empty_root(&engine, 1);
    far.files.lock().clear();
    far.is_away.store(true, Ordering::SeqCst);
    let written = write_until_files_wait(&engine, &root, 0, 1);
    // A first attempt has failed before it is damaged.
    root.flush().unwrap_err();
    assert_eq!(far.files.lock().iter().map(|(_, is_taken)| *is_taken).collect::<Vec<_>>(), [false]);
    for entry in std::fs::read_dir(folder.path().join("local/writing")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        // In place: the engine may have given it a second name.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&bytes, 0).unwrap();
    }
    far.is_away.store(false, Ordering::SeqCst);
    let error = root.flush().unwrap_err();
    let text = ardent_types::with_causes(&error);
    assert!(text.contains("spilled-") && text.contains("restart the server"), "{text}");
    assert_eq!(root.disk_consistent_lsn(), lsn(0x100));
    drop((root, engine));

    let engine = open_on(far.clone(), folder.path(), true);
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    assert_eq!(root.last_record().end, lsn(0x100));
    let (refused, _why) = mpsc::channel();
    insist(&root, 0..written, &refused);
    root.flush().unwrap();
    check_content(&root, written);
    engine.shutdown().unwrap();
}

#[test]
fn an_engine_that_ends_while_the_store_is_away_does_not_wait_for_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let far = Arc::new(Far::default());
    let config = EngineConfig { background: false, ..small_on(far.clone(), folder.path(), true) };
    let engine = Engine::open(config.clone()).unwrap();
    let roots: Vec<_> = (1..=5).map(|number| empty_root(&engine, number)).collect();
    for root in &roots {
        root.put(vec![(block(0), lsn(0x110), image("i"))], at(0x110)).unwrap();
    }
    far.is_away.store(true, Ordering::SeqCst);
    roots[0].flush().unwrap_err();
    let before = far.in_vain.load(Ordering::SeqCst);
    engine.shutdown().unwrap();
    assert_eq!(far.in_vain.load(Ordering::SeqCst), before, "each call of a store that is away takes its time");
    drop((roots, engine));

    // What it does not have comes again as WAL.
    far.is_away.store(false, Ordering::SeqCst);
    let engine = Engine::open(config).unwrap();
    for number in 1..=5 {
        let root = engine.timeline(TENANT, timeline_id(number)).unwrap();
        assert_eq!(root.last_record().end, lsn(0x100));
    }
    engine.shutdown().unwrap();
}

#[test]
fn a_timeline_that_the_store_refuses_keeps_no_other_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let far = Arc::new(Far::default());
    let age = Duration::from_millis(200);
    let config = EngineConfig { open_layer_age_max: age, ..small_on(far.clone(), folder.path(), true) };
    let engine = Engine::open(config).unwrap();
    let (refused, other) = (empty_root(&engine, 1), empty_root(&engine, 2));
    *far.never.lock() = Some(format!("{}/", timeline_id(1)));
    let put = |root: &Timeline| root.put(vec![(block(0), lsn(0x110), image("i"))], at(0x110)).unwrap();
    put(&refused);
    far.wait_for_file(1, false);
    far.files.lock().clear();
    put(&other);
    far.wait_for_file(2, true);
    assert_eq!(refused.disk_consistent_lsn(), lsn(0x100));
}
