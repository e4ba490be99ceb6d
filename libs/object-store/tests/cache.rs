//! The cache: what it keeps, what it gives up, what it does when its disk fails.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_object_store::{
    CacheOptions, CachedStore, ErrorKind, ListPage, ListRequest, MemoryStore, ObjectMeta, ObjectName, ObjectPart,
    ObjectStore, StoreError, UnfinishedUpload, conformance,
};
use bytes::Bytes;

const CHUNK: u64 = 128 << 10;

/// A store that counts what is read from it, and can be away.
#[derive(Debug, Default)]
struct Far {
    inner: MemoryStore,
    parts: AtomicU64,
    bytes: AtomicU64,
    is_away: AtomicBool,
}

impl Far {
    fn there(&self, name: &str) -> Result<(), StoreError> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(StoreError::new(ErrorKind::Retry, "call", name, "away"));
        }
        Ok(())
    }

    fn counts(&self) -> (u64, u64) {
        (self.parts.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst))
    }
}

impl ObjectStore for Far {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.there(name.as_str())?;
        self.inner.put(name, body)
    }
    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.there(name.as_str())?;
        self.inner.put_if_absent(name, body)
    }
    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        self.there(name.as_str())?;
        self.inner.put_file(name, path)
    }
    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.there(name.as_str())?;
        self.inner.get(name)
    }
    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        self.parts.fetch_add(1, Ordering::SeqCst);
        self.there(name.as_str())?;
        let part = self.inner.get_part(name, range)?;
        self.bytes.fetch_add(part.body.len() as u64, Ordering::SeqCst);
        Ok(part)
    }
    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        self.inner.head(name)
    }
    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.inner.list(request)
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.delete(name)
    }
    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.inner.unfinished_uploads()
    }
    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.inner.give_up_upload(upload)
    }
}

fn open(far: &Arc<Far>, folder: &Path, bytes_max: u64) -> CachedStore {
    CachedStore::open(far.clone(), CacheOptions { folder: folder.to_owned(), bytes_max }).unwrap()
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn body(length: u64) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn disk_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn conforms() {
    let (far, folder, scratch) = (Arc::new(Far::default()), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for bytes_max in [0, 300 << 10, 1 << 30] {
        conformance::check(&open(&far, folder.path(), bytes_max), scratch.path());
    }
}

#[test]
fn a_part_that_was_read_is_read_again_without_the_store() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    let all = body(10 * CHUNK + 777);
    far.put(&name("a"), &all).unwrap();
    let store = open(&far, folder.path(), 1 << 30);
    let range = 3 * CHUNK + 5..3 * CHUNK + 9000;
    let expect = &all[range.start as usize..range.end as usize];
    assert_eq!(&store.get_range(&name("a"), range.clone()).unwrap()[..], expect);
    assert_eq!(far.counts(), (1, CHUNK), "one chunk, not the object");
    far.is_away.store(true, Ordering::SeqCst);
    assert_eq!(&store.get_range(&name("a"), range.clone()).unwrap()[..], expect);
    let error = store.get_range(&name("a"), 0..1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retry, "what is not here needs the store");
    assert_eq!((store.stats().hits, store.stats().misses), (1, 1));

    drop(store);
    let store = open(&far, folder.path(), 1 << 30);
    assert_eq!(&store.get_range(&name("a"), range).unwrap()[..], expect, "after a restart as well");
}

#[test]
fn a_damaged_chunk_is_read_from_the_store_again() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    let all = body(2 * CHUNK);
    far.put(&name("a"), &all).unwrap();
    open(&far, folder.path(), 1 << 30).get_range(&name("a"), 0..2 * CHUNK).unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() / 3;
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let store = open(&far, folder.path(), 1 << 30);
    assert!(store.get_range(&name("a"), 0..2 * CHUNK).unwrap() == all);
    // What goes bad while it is in use is noticed by whoever reads it, and given up.
    assert!(store.distrust(&name("a")));
    let before = far.counts().0;
    assert!(store.get_range(&name("a"), 0..10).unwrap()[..] == all[..10]);
    assert_eq!(far.counts().0, before + 1);
    assert!(!store.distrust(&name("b")));
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    far.put(&name("a"), &body(CHUNK)).unwrap();
    for (file, content) in [("0000000000000001.data", &b"x"[..]), ("0000000000000002.sums", b"torn"), ("other", b"y")] {
        std::fs::write(folder.path().join(file), content).unwrap();
    }
    let store = open(&far, folder.path(), 1 << 30);
    assert_eq!(store.stats().bytes, 0);
    store.get_range(&name("a"), 0..CHUNK).unwrap();
    assert!(folder.path().join("other").exists(), "not ours");
    let data = std::fs::metadata(folder.path().join("0000000000000001.data")).unwrap();
    assert_eq!(data.len(), CHUNK, "the number was free again");
}

#[test]
fn it_stays_within_its_size_and_gives_space_back() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    let all = body(20 * CHUNK);
    for object in 0..10 {
        far.put(&name(&format!("o/{object}")), &all).unwrap();
    }
    let bytes_max = 25 * CHUNK;
    let store = open(&far, folder.path(), bytes_max);
    for round in 0..400u64 {
        let object = name(&format!("o/{}", round % 10));
        let at = round / 10 * 13 % 20 * CHUNK + 100;
        let range = at..at + 5000;
        let expect = &all[range.start as usize..range.end as usize];
        assert_eq!(&store.get_range(&object, range).unwrap()[..], expect);
    }
    let stats = store.stats();
    assert!(stats.bytes <= bytes_max && stats.evicted_bytes > 0, "{stats:?}");
    drop(store);
    let on_disk = disk_bytes(folder.path());
    assert!(on_disk <= bytes_max + (1 << 20), "{on_disk}");
    // A smaller cache at the next start makes itself smaller.
    assert!(open(&far, folder.path(), 3 * CHUNK).stats().bytes <= 3 * CHUNK);
}

#[test]
fn readers_of_one_chunk_make_one_request() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    let all = body(CHUNK);
    far.put(&name("a"), &all).unwrap();
    let store = open(&far, folder.path(), 1 << 30);
    let together = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                together.wait();
                assert!(store.get_range(&name("a"), 0..CHUNK).unwrap() == all);
            });
        }
    });
    assert_eq!(far.counts().0, 1);
}

#[test]
fn reading_in_order_fetches_each_byte_once_in_few_requests() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    let all = body(200 * CHUNK + 17);
    far.put(&name("a"), &all).unwrap();
    let store = open(&far, folder.path(), 1 << 30);
    let (mut at, end) = (0, all.len() as u64);
    while at < end {
        let next = (at + 20_000).min(end);
        assert!(store.get_range(&name("a"), at..next).unwrap() == all[at as usize..next as usize]);
        at = next;
    }
    let (requests, bytes) = far.counts();
    assert_eq!(bytes, end);
    assert!(requests < 40, "{requests} requests for 201 chunks");
}

#[test]
fn reads_here_and_there_fetch_the_chunks_that_they_need_in_one_request_each() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    let all = body(400 * CHUNK);
    far.put(&name("a"), &all).unwrap();
    let store = open(&far, folder.path(), 1 << 30);
    let (mut requests, mut bytes) = (0, 0);
    for number in 0..30 {
        // Every other one has its end in the next chunk; as long as a group of a layer.
        let (offset, chunks) = if number % 2 == 0 { (50_000, 1) } else { (120_000, 2) };
        let at = (number * 37 + 5) % 399 * CHUNK + offset;
        assert!(store.get_range(&name("a"), at..at + 26_000).unwrap() == all[at as usize..at as usize + 26_000]);
        // What it takes again is here.
        assert!(store.get_range(&name("a"), at..at + 10).unwrap() == all[at as usize..at as usize + 10]);
        (requests, bytes) = (requests + 1, bytes + chunks * CHUNK);
        assert_eq!(far.counts(), (requests, bytes), "read {number}");
    }
}

#[test]
fn a_file_that_was_stored_is_here_without_reading_it_back() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    let all = body(5 * CHUNK + 1);
    let path = folder.path().join("new-layer");
    std::fs::write(&path, &all).unwrap();
    let cache = folder.path().join("cache");
    let store = open(&far, &cache, 1 << 30);
    far.is_away.store(true, Ordering::SeqCst);
    assert_eq!(store.put_file(&name("l"), &path).unwrap_err().kind(), ErrorKind::Retry);
    assert!(path.exists(), "it is kept for the next attempt");
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);
    far.is_away.store(false, Ordering::SeqCst);
    store.put_file(&name("l"), &path).unwrap();
    assert!(!path.exists());
    far.is_away.store(true, Ordering::SeqCst);
    assert!(store.get_range(&name("l"), 0..all.len() as u64).unwrap() == all);
    drop(store);
    assert!(open(&far, &cache, 1 << 30).get_range(&name("l"), 7..all.len() as u64).unwrap() == all[7..]);
}

#[test]
fn a_cache_that_cannot_be_written_is_slow_and_right() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    let all = body(3 * CHUNK);
    far.put(&name("a"), &all).unwrap();
    let cache = folder.path().join("cache");
    let store = open(&far, &cache, 1 << 30);
    std::fs::remove_dir(&cache).unwrap();
    for _ in 0..2 {
        assert!(store.get_range(&name("a"), 0..3 * CHUNK).unwrap() == all);
    }
    assert_eq!(store.stats().bytes, 0);
}

#[test]
fn readers_evictions_and_deletes_at_once_never_give_wrong_bytes() {
    let (far, folder) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
    let all = body(12 * CHUNK);
    for object in 0..4 {
        far.put(&name(&format!("o/{object}")), &all).unwrap();
    }
    let store = open(&far, folder.path(), 10 * CHUNK);
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (store, all) = (&store, &all);
            scope.spawn(move || {
                let mut random = thread * 7919 + 1;
                for _ in 0..600 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let object = name(&format!("o/{}", (random >> 33) % 4));
                    let at = (random >> 40) % (12 * CHUNK - 30_000);
                    let range = at..at + 30_000;
                    if thread == 0 && (random >> 50).is_multiple_of(8) {
                        store.distrust(&object);
                    }
                    let part = store.get_range(&object, range.clone()).unwrap();
                    assert!(part == all[range.start as usize..range.end as usize], "{object} {range:?}");
                }
            });
        }
    });
    assert!(store.stats().bytes <= 10 * CHUNK);
}

/// Stores a file, reads more than there is room for, and deletes: whatever becomes of the cache's own files, what is read is right.
fn use_it(store: &CachedStore, scratch: &Path) {
    let objects = [(name("file"), body(2 * CHUNK + 777)), (name("a"), body(5 * CHUNK)), (name("b"), body(CHUNK / 2))];
    let path = scratch.join("file");
    std::fs::write(&path, &objects[0].1).unwrap();
    store.put_file(&objects[0].0, &path).unwrap();
    for (name, body) in &objects[1..] {
        store.put(name, body).unwrap();
    }
    for _ in 0..2 {
        for (name, body) in &objects {
            for at in (0..body.len() as u64).step_by(CHUNK as usize / 2) {
                let range = at..(at + 1000).min(body.len() as u64);
                let expect = &body[range.start as usize..range.end as usize];
                assert!(store.get_range(name, range.clone()).unwrap()[..] == *expect, "{name} {range:?}");
            }
        }
    }
    store.delete(&objects[2].0).unwrap();
    assert_eq!(store.get_range(&objects[2].0, 0..10).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn death_and_errors_at_every_point_of_its_files_change_nothing_that_is_read() {
    let scratch = tempfile::tempdir().unwrap();
    let options = |folder: &Path| CacheOptions { folder: folder.to_owned(), bytes_max: 3 * CHUNK };
    let run = |folder: &Path, faults: &Arc<FailPoints>| {
        let far = Arc::new(Far::default());
        let store = CachedStore::open_with_faults(far.clone(), options(folder), faults.clone()).unwrap();
        use_it(&store, scratch.path());
        drop(store);
        far
    };
    let counting = Arc::new(FailPoints::new());
    counting.record();
    run(tempfile::tempdir().unwrap().path(), &counting);
    let points = counting.passed();
    let expected = ["create", "extend", "header", "hole", "link", "remove", "slot", "sums", "write"];
    let expected = expected.map(|point| format!("cache.{point}"));
    assert_eq!(points.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>(), "every point is visited");
    for (point, times) in points {
        for strike in [1, 2, 3, times / 2] {
            for action in [FaultAction::Die, FaultAction::Fail, FaultAction::DiskFull] {
                let folder = tempfile::tempdir().unwrap();
                let faults = Arc::new(FailPoints::new());
                faults.arm(&point, strike, action);
                let far = run(folder.path(), &faults);
                let store = open(&far, folder.path(), 3 * CHUNK);
                use_it(&store, scratch.path());
                drop(store);
                assert!(disk_bytes(folder.path()) <= 5 * CHUNK, "{point} {strike} {action:?}: nothing is left over");
            }
        }
    }
}
