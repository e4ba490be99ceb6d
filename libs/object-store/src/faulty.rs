//! A store with fail points: each write and each deletion can fail, or be the last thing that its process does, before it reaches the
//! store and after it, when only the answer is lost. Stands for any store, and for what a network does to its calls.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{ErrorKind, StoreError};
use crate::fault::FailPoints;
use crate::name::ObjectName;
use crate::store::{ListPage, ListRequest, ObjectMeta, ObjectPart, ObjectStore, UnfinishedUpload};

/// A store whose points are named `upload.KIND`, `upload.KIND.answer`, `remove.KIND` and `remove.KIND.answer`.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<FailPoints>,
    kind_of: fn(&ObjectName) -> &'static str,
}

impl FaultyStore {
    /// A store before `inner`. `kind_of` gives the kind of an object by its name.
    pub fn new(
        inner: Arc<dyn ObjectStore>,
        faults: Arc<FailPoints>,
        kind_of: fn(&ObjectName) -> &'static str,
    ) -> FaultyStore {
        FaultyStore { inner, faults, kind_of }
    }

    fn call(
        &self,
        verb: &'static str,
        name: &ObjectName,
        call: impl FnOnce(&dyn ObjectStore) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let point = format!("{verb}.{}", (self.kind_of)(name));
        let failed = |error: io::Error| {
            StoreError::new(ErrorKind::Retry, verb, name.as_str(), error.to_string()).with_source(error)
        };
        self.faults.pass(&point).map_err(failed)?;
        call(&*self.inner)?;
        self.faults.pass(&format!("{point}.answer")).map_err(failed)
    }
}

impl ObjectStore for FaultyStore {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.call("upload", name, |inner| inner.put(name, body))
    }

    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.call("upload", name, |inner| inner.put_if_absent(name, body))
    }

    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        self.call("upload", name, |inner| inner.put_file(name, path))
    }

    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.inner.get(name)
    }

    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        self.inner.get_part(name, range)
    }

    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        self.inner.head(name)
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.inner.list(request)
    }

    // The trait's own `delete_many` comes here for each object: a request for many may be carried out in part.
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.call("remove", name, |inner| inner.delete(name))
    }

    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.inner.unfinished_uploads()
    }

    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.call("remove", &upload.name, |inner| inner.give_up_upload(upload))
    }

    fn distrust(&self, name: &ObjectName) -> bool {
        self.inner.distrust(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultAction;
    use crate::{MemoryStore, conformance};

    fn faulty(faults: &Arc<FailPoints>) -> FaultyStore {
        FaultyStore::new(Arc::new(MemoryStore::new()), faults.clone(), |_| "thing")
    }

    #[test]
    fn it_is_a_store() {
        let scratch = tempfile::tempdir().unwrap();
        conformance::check(&faulty(&Arc::default()), scratch.path());
    }

    #[test]
    fn a_call_fails_before_the_store_or_after_it() {
        let faults = Arc::new(FailPoints::new());
        let (store, name) = (faulty(&faults), ObjectName::new("a").unwrap());
        faults.arm("upload.thing", 1, FaultAction::Fail);
        assert_eq!(store.put(&name, b"1").unwrap_err().kind(), ErrorKind::Retry);
        assert_eq!(store.get(&name).unwrap_err().kind(), ErrorKind::NotFound);
        faults.arm("upload.thing.answer", 1, FaultAction::Fail);
        store.put_if_absent(&name, b"1").unwrap_err();
        assert_eq!(store.get(&name).unwrap(), "1");
        faults.arm("remove.thing", 1, FaultAction::Fail);
        store.delete(&name).unwrap_err();
        assert_eq!(store.get(&name).unwrap(), "1");
        faults.arm("remove.thing.answer", 1, FaultAction::Fail);
        store.delete_many(std::slice::from_ref(&name)).unwrap_err();
        assert_eq!(store.get(&name).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
