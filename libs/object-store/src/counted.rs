//! A store that counts what is asked of it: calls, failures, bytes and time, by operation.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{ErrorKind, StoreError};
use crate::name::ObjectName;
use crate::store::{ListPage, ListRequest, ObjectMeta, ObjectPart, ObjectStore, UnfinishedUpload};

/// What can be asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`ObjectStore::put`] and [`ObjectStore::put_file`].
    Put,
    /// [`ObjectStore::put_if_absent`].
    PutIfAbsent,
    /// [`ObjectStore::get`].
    Get,
    /// [`ObjectStore::get_part`] and [`ObjectStore::get_range`].
    GetPart,
    /// [`ObjectStore::head`].
    Head,
    /// A page of [`ObjectStore::list`].
    List,
    /// [`ObjectStore::delete`], or a whole [`ObjectStore::delete_many`].
    Delete,
}

impl Operation {
    /// All there are.
    pub const ALL: [Operation; 7] = [
        Operation::Put,
        Operation::PutIfAbsent,
        Operation::Get,
        Operation::GetPart,
        Operation::Head,
        Operation::List,
        Operation::Delete,
    ];

    /// A word for it: `put_if_absent`.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::PutIfAbsent => "put_if_absent",
            Operation::Get => "get",
            Operation::GetPart => "get_part",
            Operation::Head => "head",
            Operation::List => "list",
            Operation::Delete => "delete",
        }
    }
}

/// What was asked of a store by one operation since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationStats {
    /// Calls that have returned.
    pub calls: u64,
    /// Of these, failed ones. "There is no such object" and "its name is taken" are answers, not failures.
    pub failures: u64,
    /// Bytes of bodies that went either way.
    pub bytes: u64,
    /// Time spent waiting, summed over calls that may have run side by side.
    pub waited: Duration,
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    failures: AtomicU64,
    bytes: AtomicU64,
    waited_ns: AtomicU64,
}

/// A store in front of another that it counts the calls of.
#[derive(Debug)]
pub struct CountedStore {
    inner: Arc<dyn ObjectStore>,
    counters: [Counters; Operation::ALL.len()],
}

impl CountedStore {
    /// Counts what `inner` is asked through it.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        CountedStore { inner, counters: Default::default() }
    }

    /// What was counted of an operation.
    pub fn stats(&self, operation: Operation) -> OperationStats {
        let counters = &self.counters[operation as usize];
        OperationStats {
            calls: counters.calls.load(Ordering::Relaxed),
            failures: counters.failures.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            waited: Duration::from_nanos(counters.waited_ns.load(Ordering::Relaxed)),
        }
    }

    fn count<T>(
        &self,
        operation: Operation,
        bytes: impl FnOnce(&T) -> u64,
        call: impl FnOnce(&dyn ObjectStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let counters = &self.counters[operation as usize];
        let began = Instant::now();
        let result = call(&*self.inner);
        counters.waited_ns.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        match &result {
            Ok(value) => {
                counters.bytes.fetch_add(bytes(value), Ordering::Relaxed);
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Precondition) => {}
            Err(_) => {
                counters.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        counters.calls.fetch_add(1, Ordering::Relaxed);
        result
    }
}

impl ObjectStore for CountedStore {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.count(Operation::Put, |()| body.len() as u64, |inner| inner.put(name, body))
    }

    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.count(Operation::PutIfAbsent, |()| body.len() as u64, |inner| inner.put_if_absent(name, body))
    }

    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        // Asked for before, because the file is gone afterwards. Where it can't be told, the call itself says what is wrong.
        let bytes = path.metadata().map_or(0, |metadata| metadata.len());
        self.count(Operation::Put, |()| bytes, |inner| inner.put_file(name, path))
    }

    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.count(Operation::Get, |body: &Bytes| body.len() as u64, |inner| inner.get(name))
    }

    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        self.count(Operation::GetPart, |part: &ObjectPart| part.body.len() as u64, |inner| inner.get_part(name, range))
    }

    fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.count(Operation::GetPart, |body: &Bytes| body.len() as u64, |inner| inner.get_range(name, range))
    }

    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        self.count(Operation::Head, |_| 0, |inner| inner.head(name))
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.count(Operation::List, |_| 0, |inner| inner.list(request))
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.count(Operation::Delete, |()| 0, |inner| inner.delete(name))
    }

    fn delete_many(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        self.count(Operation::Delete, |()| 0, |inner| inner.delete_many(names))
    }

    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.count(Operation::List, |_| 0, |inner| inner.unfinished_uploads())
    }

    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.count(Operation::Delete, |()| 0, |inner| inner.give_up_upload(upload))
    }

    fn distrust(&self, name: &ObjectName) -> bool {
        self.inner.distrust(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryStore, conformance};

    #[test]
    fn calls_failures_and_bytes_are_counted() {
        let store = CountedStore::new(Arc::new(MemoryStore::new()));
        let name = ObjectName::new("a/b").expect("a name");
        store.put(&name, b"12345").expect("put");
        store.put_if_absent(&name, b"1").expect_err("taken");
        assert_eq!(&store.get_range(&name, 1..3).expect("there")[..], b"23");
        store.get_range(&name, 9..10).expect_err("past the end");
        let counted = |operation| {
            let stats = store.stats(operation);
            (stats.calls, stats.failures, stats.bytes)
        };
        assert_eq!(counted(Operation::Put), (1, 0, 5));
        assert_eq!(counted(Operation::PutIfAbsent), (1, 0, 0));
        assert_eq!(counted(Operation::GetPart), (2, 1, 2));
        assert_eq!(counted(Operation::List), (0, 0, 0));
    }

    #[test]
    fn it_is_a_store_like_the_one_behind_it() {
        let scratch = tempfile::tempdir().expect("a folder");
        conformance::check(&CountedStore::new(Arc::new(MemoryStore::new())), scratch.path());
    }
}
