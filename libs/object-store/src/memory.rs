//! A store in memory, for tests that are about what is above the store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::error::{ErrorKind, StoreError};
use crate::name::ObjectName;
use crate::store::{ListPage, ListRequest, ObjectMeta, ObjectPart, ObjectStore, UnfinishedUpload, part_inside};

/// Entries in a page of a listing unless the request says otherwise.
const PAGE_SIZE: usize = 1000;

/// Objects in memory. They last as long as the value.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: RwLock<BTreeMap<ObjectName, Object>>,
}

#[derive(Clone, Debug)]
struct Object {
    body: Bytes,
    modified_s: u64,
}

impl Object {
    fn new(body: &[u8]) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Object { body: Bytes::copy_from_slice(body), modified_s: now.as_secs() }
    }

    fn meta(&self, name: &ObjectName) -> ObjectMeta {
        ObjectMeta { name: name.clone(), size_bytes: self.body.len() as u64, modified_s: self.modified_s }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl ObjectStore for MemoryStore {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.objects.write().insert(name.clone(), Object::new(body));
        Ok(())
    }

    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        let mut objects = self.objects.write();
        if objects.contains_key(name) {
            return Err(StoreError::exists("conditional put", name));
        }
        objects.insert(name.clone(), Object::new(body));
        Ok(())
    }

    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        let failed = |error: std::io::Error| {
            StoreError::new(ErrorKind::Internal, "put of a file", name.as_str(), error.to_string()).with_source(error)
        };
        let body = std::fs::read(path).map_err(failed)?;
        self.put(name, &body)?;
        std::fs::remove_file(path).map_err(failed)
    }

    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let object = self.objects.read().get(name).cloned();
        object.map(|object| object.body).ok_or_else(|| StoreError::not_found("get", name))
    }

    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        let body = self.objects.read().get(name).map(|object| object.body.clone());
        let body = body.ok_or_else(|| StoreError::not_found("ranged get", name))?;
        let object_size_bytes = body.len() as u64;
        let inside = part_inside(name, &range, object_size_bytes)?;
        Ok(ObjectPart { body: body.slice(inside.start as usize..inside.end as usize), object_size_bytes })
    }

    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        let objects = self.objects.read();
        objects.get(name).map(|object| object.meta(name)).ok_or_else(|| StoreError::not_found("head", name))
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let page_size = request.page_size.unwrap_or(PAGE_SIZE).max(1);
        let mut page = ListPage::default();
        let mut last: Option<String> = None;
        for (name, object) in self.objects.read().iter() {
            let Some(rest) = name.as_str().strip_prefix(&request.prefix) else { continue };
            let folder = rest.find('/').filter(|_| request.folded);
            let entry = folder.map_or(name.as_str(), |at| &name.as_str()[..=request.prefix.len() + at]);
            let is_seen =
                request.token.as_deref().is_some_and(|token| entry <= token) || last.as_deref() == Some(entry);
            if is_seen {
                continue;
            }
            if page.objects.len() + page.folders.len() == page_size {
                page.next = last;
                return Ok(page);
            }
            last = Some(entry.to_owned());
            if folder.is_some() {
                page.folders.push(entry.to_owned());
            } else {
                page.objects.push(object.meta(name));
            }
        }
        Ok(page)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.objects.write().remove(name);
        Ok(())
    }

    // Every write is whole: there are no uploads in parts.
    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        Ok(Vec::new())
    }

    fn give_up_upload(&self, _upload: &UnfinishedUpload) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        let scratch = tempfile::tempdir().unwrap();
        crate::conformance::check(&MemoryStore::new(), scratch.path());
    }
}
