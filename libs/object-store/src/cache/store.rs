//! The store with its cache.

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::CHUNK_BYTES;
use super::chunk_file::{ChunkFile, chunk_count, chunk_len, find_all};
use super::fetch::Fetch;
use super::index::{Ahead, Claim, Evicted, Index};
use crate::error::{ErrorKind, StoreError};
use crate::fault::FailPoints;
use crate::name::ObjectName;
use crate::store::{ListPage, ListRequest, ObjectMeta, ObjectPart, ObjectStore, UnfinishedUpload, part_inside};

/// Requests of read-ahead under way at once.
const READ_AHEAD_THREADS: usize = 4;
/// Requests of read-ahead that wait; more are left out.
const READ_AHEAD_QUEUE: usize = 64;

/// Where the cache is and how large it gets.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Folder of its own, made if it isn't there. The caller holds a lock that keeps other processes from it.
    pub folder: PathBuf,
    /// Most bytes of objects in it.
    pub bytes_max: u64,
}

/// What a cache did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Reads, or parts of them, that found what they wanted here.
    pub hits: u64,
    /// Reads, or parts of them, that had to wait for a request.
    pub misses: u64,
    /// Bytes fetched from the store.
    pub fetched_bytes: u64,
    /// Bytes given up to make room.
    pub evicted_bytes: u64,
    /// Bytes here now.
    pub bytes: u64,
}

/// A store with a cache in front of it.
#[derive(Debug)]
pub struct CachedStore {
    shared: Arc<Shared>,
    /// Closed to end the threads.
    ahead: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn ObjectStore>,
    options: CacheOptions,
    faults: Arc<FailPoints>,
    index: Mutex<Index>,
    hits: AtomicU64,
    misses: AtomicU64,
    fetched_bytes: AtomicU64,
    evicted_bytes: AtomicU64,
}

#[derive(Debug)]
struct Job {
    name: ObjectName,
    ahead: Ahead,
}

impl CachedStore {
    /// Opens the cache, with what an earlier process left in it.
    pub fn open(inner: Arc<dyn ObjectStore>, options: CacheOptions) -> std::io::Result<CachedStore> {
        Self::open_with_faults(inner, options, Arc::default())
    }

    /// The same with fail points in what it does to its own files.
    pub fn open_with_faults(
        inner: Arc<dyn ObjectStore>,
        options: CacheOptions,
        faults: Arc<FailPoints>,
    ) -> std::io::Result<CachedStore> {
        std::fs::create_dir_all(&options.folder)?;
        let mut index = Index::default();
        for found in find_all(&options.folder)? {
            index.add(found.number, &found.name, found.size_bytes, &found.chunks, false);
        }
        let shared = Arc::new(Shared {
            inner,
            options,
            faults,
            index: Mutex::new(index),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
            evicted_bytes: AtomicU64::new(0),
        });
        shared.make_room();
        let (ahead, jobs) = bounded(READ_AHEAD_QUEUE);
        let threads = (0..READ_AHEAD_THREADS).map(|_| {
            let (shared, jobs): (Arc<Shared>, Receiver<Job>) = (shared.clone(), jobs.clone());
            let reading = move || {
                for job in jobs {
                    // Whoever waits for it is told of an error.
                    let _ = shared.fetch(&job.name, job.ahead.number, &job.ahead.fetch);
                }
            };
            std::thread::Builder::new().name("ardent-ahead".to_owned()).spawn(reading)
        });
        let threads = threads.collect::<Result<_, _>>()?;
        Ok(CachedStore { shared, ahead: Some(ahead), threads })
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        let shared = &self.shared;
        CacheStats {
            hits: shared.hits.load(Ordering::Relaxed),
            misses: shared.misses.load(Ordering::Relaxed),
            fetched_bytes: shared.fetched_bytes.load(Ordering::Relaxed),
            evicted_bytes: shared.evicted_bytes.load(Ordering::Relaxed),
            bytes: shared.index.lock().bytes,
        }
    }

    /// Bytes of the object from `at` on: all up to `end` that one request has fetched, or what a chunk has of them; none if the object
    /// ends there. And how large it is. `ahead_of`: the chunks of the whole read, for its first part.
    fn read_from(
        &self,
        name: &ObjectName,
        at: u64,
        end: u64,
        mut ahead_of: Option<RangeInclusive<u32>>,
    ) -> Result<ObjectPart, StoreError> {
        let wanted = chunks_of(name, &(at..end))?;
        let chunk = *wanted.start();
        let offset = at - u64::from(chunk) * CHUNK_BYTES;
        loop {
            let mut index = self.shared.index.lock();
            let claim = index.claim(name, wanted.clone());
            let ahead = ahead_of.take().and_then(|read| index.read_ahead(name, read));
            drop(index);
            if let Some(ahead) = ahead {
                self.read_ahead(name, ahead);
            }
            let is_recent = matches!(claim, Claim::Recent(_));
            let fetched = match claim {
                Claim::PastEnd { size_bytes } => {
                    return Ok(ObjectPart { body: Bytes::new(), object_size_bytes: size_bytes });
                }
                Claim::Here { number, size_bytes, is_checked } => {
                    self.shared.hits.fetch_add(1, Ordering::Relaxed);
                    let part = offset..offset + (end - at).min(CHUNK_BYTES - offset);
                    match self.shared.read_here(number, size_bytes, chunk, is_checked, part) {
                        Some(body) => return Ok(ObjectPart { body, object_size_bytes: size_bytes }),
                        None => continue,
                    }
                }
                Claim::Recent(fetch) => fetch.done().map(|part| (fetch, part)),
                Claim::Wait(fetch) => fetch.wait(chunk)?.map(|part| (fetch, part)),
                Claim::Fetch { number, fetch } => {
                    let part = self.shared.fetch(name, number, &fetch)?;
                    Some((fetch, part))
                }
            };
            let counter = if is_recent { &self.shared.hits } else { &self.shared.misses };
            counter.fetch_add(1, Ordering::Relaxed);
            if let Some((fetch, part)) = fetched {
                let body = fetch.bytes_of(&part, at..end);
                return Ok(ObjectPart { body, object_size_bytes: part.object_size_bytes });
            }
        }
    }

    fn read_ahead(&self, name: &ObjectName, ahead: Ahead) {
        let job = Job { name: name.clone(), ahead };
        let refused = match &self.ahead {
            Some(queue) => queue.try_send(job).err().map(|refused| refused.into_inner()),
            None => Some(job),
        };
        if let Some(Job { ahead, .. }) = refused {
            self.shared.index.lock().fetched(ahead.number, &ahead.fetch, None, false);
            ahead.fetch.abandon();
        }
    }
}

impl Drop for CachedStore {
    fn drop(&mut self) {
        drop(self.ahead.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reads ahead panicked");
            }
        }
    }
}

/// The chunks that a range, which is not empty, has bytes of.
fn chunks_of(name: &ObjectName, range: &Range<u64>) -> Result<RangeInclusive<u32>, StoreError> {
    let past_all = |_| StoreError::out_of_range(name, range, u64::MAX);
    let first = u32::try_from(range.start / CHUNK_BYTES).map_err(past_all)?;
    // Beyond the last chunk that an object can have there is nothing to read.
    let last = u32::try_from((range.end - 1) / CHUNK_BYTES).unwrap_or(u32::MAX - 1);
    Ok(first..=last.max(first))
}

/// Ends a request even if making it panics: those who wait must not wait for ever.
struct Ending<'a> {
    shared: &'a Shared,
    number: u64,
    fetch: &'a Fetch,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        // Both do nothing after an orderly end.
        self.shared.index.lock().fetched(self.number, self.fetch, None, false);
        self.fetch.abandon();
    }
}

impl Shared {
    fn file(&self, number: u64) -> ChunkFile {
        ChunkFile::new(&self.options.folder, number, &self.faults)
    }

    /// Makes a request that was claimed.
    fn fetch(&self, name: &ObjectName, number: u64, fetch: &Arc<Fetch>) -> Result<ObjectPart, StoreError> {
        let ending = Ending { shared: self, number, fetch };
        let result = self.inner.get_part(name, fetch.range());
        if let Ok(part) = &result {
            self.index.lock().answered(number, fetch, part);
        }
        // Whoever waits goes on while this thread writes.
        fetch.finish(result.clone());
        if let Ok(part) = &result {
            self.fetched_bytes.fetch_add(part.body.len() as u64, Ordering::Relaxed);
            let is_kept = self.keep(name, number, fetch, part);
            let mut index = self.index.lock();
            index.fetched(number, fetch, Some(part.object_size_bytes), is_kept);
            if !index.is_known(number) {
                // Forgotten meanwhile.
                self.remove_files(number);
            }
            drop(index);
            self.make_room();
        }
        drop(ending);
        result
    }

    fn keep(&self, name: &ObjectName, number: u64, fetch: &Fetch, part: &ObjectPart) -> bool {
        let file = self.file(number);
        let write = || {
            if !file.exists() {
                file.create(name, part.object_size_bytes)?;
            }
            let range = fetch.range();
            let inside = range.end.min(part.object_size_bytes).saturating_sub(range.start);
            if part.body.len() as u64 != inside {
                return Err(std::io::Error::other("a part is shorter than the object"));
            }
            if part.body.is_empty() { Ok(()) } else { file.write(fetch.chunks.start, &part.body) }
        };
        let written: std::io::Result<()> = write();
        if let Err(error) = &written {
            tracing::warn!(%name, %error, "the cache can't keep what was read; it is read from the store again");
        }
        written.is_ok()
    }

    /// Bytes of a chunk that was claimed as here; `None` if it turns out not to be.
    fn read_here(&self, number: u64, size: u64, chunk: u32, is_checked: bool, part: Range<u64>) -> Option<Bytes> {
        let length = chunk_len(size, chunk);
        let (start, end) = (part.start.min(length), part.end.min(length));
        let file = self.file(number);
        let read = if is_checked {
            let mut body = vec![0; (end - start) as usize];
            file.read(u64::from(chunk) * CHUNK_BYTES + start, &mut body).map(|()| Bytes::from(body))
        } else {
            file.read_checked(chunk, length).map(|body| Bytes::from(body).slice(start as usize..end as usize))
        };
        let mut index = self.index.lock();
        // Of one that was forgotten meanwhile the files may have been removed, and made anew, empty, by a request that was under way.
        if !index.is_known(number) {
            return None;
        }
        if let Some(evicted) = index.unpin(number, chunk, read.is_ok()) {
            self.drop_on_disk(&mut index, evicted);
        }
        drop(index);
        if let Err(error) = &read {
            tracing::warn!(number, chunk, %error, "a chunk in the cache can't be used; it is read from the store again");
        }
        read.ok()
    }

    fn make_room(&self) {
        loop {
            // Held while the disk works: a chunk that goes must not come back in between.
            let mut index = self.index.lock();
            if index.bytes <= self.options.bytes_max {
                return;
            }
            let Some(evicted) = index.evict() else { return };
            self.evicted_bytes.fetch_add(evicted.length, Ordering::Relaxed);
            self.drop_on_disk(&mut index, evicted);
        }
    }

    fn drop_on_disk(&self, index: &mut Index, evicted: Evicted) {
        if evicted.was_last {
            self.remove_files(evicted.number);
        } else if self.file(evicted.number).drop_chunk(evicted.chunk, evicted.length).is_err() {
            // A file system that can't make holes: all of the object goes.
            index.forget_number(evicted.number);
            self.remove_files(evicted.number);
        }
    }

    fn remove_files(&self, number: u64) {
        if let Err(error) = self.file(number).remove() {
            tracing::warn!(number, %error, "files of the cache stay until the next start");
        }
    }

    /// What is here of an object is not to be used any more. True if anything was.
    fn forget(&self, name: &ObjectName) -> bool {
        let forgotten = self.index.lock().forget(name);
        if let Some(number) = forgotten {
            self.remove_files(number);
        }
        forgotten.is_some()
    }

    /// Keeps a file that has become an object; its bytes are at `kept` already.
    fn adopt(&self, name: &ObjectName, number: u64, kept: &ChunkFile) -> std::io::Result<()> {
        let size_bytes = std::fs::metadata(kept.data())?.len();
        kept.create(name, size_bytes)?;
        kept.sum_all(size_bytes)?;
        let all: Vec<u32> = (0..chunk_count(size_bytes)).collect();
        self.forget(name);
        self.index.lock().add(number, name, size_bytes, &all, true);
        self.make_room();
        Ok(())
    }
}

impl ObjectStore for CachedStore {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        // Before as well: a process that dies in between leaves nothing of what is replaced.
        self.shared.forget(name);
        let result = self.shared.inner.put(name, body);
        self.shared.forget(name);
        result
    }

    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.shared.inner.put_if_absent(name, body)
    }

    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        let number = self.shared.index.lock().next_number();
        let kept = self.shared.file(number);
        // A second name for the file, which storing it takes the first one from. Across file systems there is none, and nothing is kept.
        let link = || self.shared.faults.pass("cache.link").and_then(|()| std::fs::hard_link(path, kept.data()));
        let is_linked = link().is_ok();
        self.shared.forget(name);
        let result = self.shared.inner.put_file(name, path);
        if result.is_err() {
            self.shared.forget(name);
        }
        if is_linked && (result.is_err() || self.shared.adopt(name, number, &kept).is_err()) {
            self.shared.remove_files(number);
        } else if !is_linked {
            self.shared.forget(name);
        }
        result
    }

    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.shared.inner.get(name)
    }

    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        if range.is_empty() {
            return self.shared.inner.get_part(name, range);
        }
        let first = self.read_from(name, range.start, range.end, Some(chunks_of(name, &range)?))?;
        let inside = part_inside(name, &range, first.object_size_bytes)?;
        let object_size_bytes = first.object_size_bytes;
        if first.body.len() as u64 == inside.end - inside.start {
            return Ok(first);
        }
        let mut body = Vec::with_capacity(usize::try_from(inside.end - inside.start).unwrap_or_default());
        body.extend_from_slice(&first.body);
        while (body.len() as u64) < inside.end - inside.start {
            let more = self.read_from(name, inside.start + body.len() as u64, inside.end, None)?.body;
            if more.is_empty() {
                let detail = "the object became shorter while it was read";
                return Err(StoreError::new(ErrorKind::Corrupt, "ranged get", name.as_str(), detail));
            }
            body.extend_from_slice(&more);
        }
        Ok(ObjectPart { body: Bytes::from(body), object_size_bytes })
    }

    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        self.shared.inner.head(name)
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.shared.inner.list(request)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let result = self.shared.inner.delete(name);
        self.shared.forget(name);
        result
    }

    fn delete_many(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        let result = self.shared.inner.delete_many(names);
        for name in names {
            self.shared.forget(name);
        }
        result
    }

    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.shared.inner.unfinished_uploads()
    }

    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.shared.inner.give_up_upload(upload)
    }

    fn distrust(&self, name: &ObjectName) -> bool {
        self.shared.forget(name) | self.shared.inner.distrust(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;

    /// A reader that has found a chunk, an object that is forgotten, and a request for another chunk that ends then.
    #[test]
    fn what_was_forgotten_while_it_was_read_is_not_used() {
        let (far, folder) = (MemoryStore::new(), tempfile::tempdir().expect("folder"));
        let (name, body) = (ObjectName::new("o").expect("a name"), vec![7; 2 * CHUNK_BYTES as usize]);
        far.put(&name, &body).expect("put");
        let others = ObjectName::new("others").expect("a name");
        far.put(&others, &vec![1; 10 * CHUNK_BYTES as usize]).expect("put");
        let options = CacheOptions { folder: folder.path().to_owned(), bytes_max: 10 * CHUNK_BYTES };
        let store = CachedStore::open(Arc::new(far), options).expect("opened");
        assert!(store.get_range(&name, 0..100).expect("read") == body[..100]);
        // Not in memory any more after these.
        for chunk in [8, 6, 4, 2, 0] {
            assert_eq!(store.get_range(&others, chunk * CHUNK_BYTES..chunk * CHUNK_BYTES + 1).expect("read")[..], [1]);
        }
        let shared = &store.shared;
        let claims = {
            let mut index = shared.index.lock();
            (index.claim(&name, 0..=0), index.claim(&name, 1..=1))
        };
        let (Claim::Here { number, size_bytes, is_checked: true }, Claim::Fetch { fetch, .. }) = claims else {
            panic!("{claims:?}");
        };
        assert!(store.distrust(&name));
        let part = shared.inner.get_part(&name, fetch.range()).expect("read");
        assert!(shared.keep(&name, number, &fetch, &part), "its files are there again");
        assert_eq!(shared.read_here(number, size_bytes, 0, true, 0..100), None);
        assert!(store.get_range(&name, 0..100).expect("read") == body[..100]);
        fetch.abandon();
    }
}
