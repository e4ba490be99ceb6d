//! A store that is away for long: WAL is taken until memory for it is used up, what was taken stays readable, and when the store is back
//! everything goes on by itself.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ardent_object_store::fault::FailPoints;
use ardent_object_store::{
    CacheOptions, CachedStore, ErrorKind as StoreErrorKind, ListPage, ListRequest, MemoryStore, ObjectMeta, ObjectName,
    ObjectPart, ObjectStore, StoreError, UnfinishedUpload,
};
use ardent_storage::{Engine, EngineConfig, ErrorKind, PutError, Timeline, survey};
use bytes::Bytes;

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

/// A store that refuses every call while it is away.
#[derive(Debug, Default)]
struct Far {
    store: MemoryStore,
    is_away: AtomicBool,
}

impl Far {
    fn there(&self, name: &str) -> Result<&MemoryStore, StoreError> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::Retry, "call", name, "the store is away"));
        }
        Ok(&self.store)
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
        self.there(name.as_str())?.put_file(name, path)
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
fn open_on(store: Arc<dyn ObjectStore>, folder: &Path) -> Arc<Engine> {
    let config = EngineConfig {
        store,
        background: true,
        open_layer_bytes_max: 4000,
        open_layer_age_max: Duration::from_secs(1),
        layer_file_bytes: 100_000,
        compact_at_l0_files: COMPACT_AT,
        images_at_delta_files: IMAGES_AT_FILES,
        page_cache_bytes: 0,
        block_cache_bytes: 0,
        ..config(folder, &Arc::new(FailPoints::new()))
    };
    Engine::open(config).unwrap()
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
    let folder = tempfile::tempdir().unwrap();
    let far = Arc::new(Far::default());
    let options = CacheOptions { folder: folder.path().join("cache"), bytes_max: 1 << 30 };
    let near: Arc<dyn ObjectStore> = Arc::new(CachedStore::open(far.clone(), options).unwrap());
    let engine = open_on(near, folder.path());
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
        assert!(in_memory < 10 * 4000, "{in_memory} bytes wait in memory");
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
    let engine = open_on(far.clone(), elsewhere.path());
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    assert_eq!(root.disk_consistent_lsn(), all);
    check_content(&root, ALL);
    check_content(&root, BEFORE);
    let found = survey(&*far).unwrap();
    assert_eq!((found.problems, found.unknown), Default::default());
    engine.shutdown().unwrap();
}
