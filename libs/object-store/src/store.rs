//! The trait.

use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;

use crate::error::StoreError;
use crate::name::ObjectName;

/// What a store knows of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Name.
    pub name: ObjectName,
    /// Length in bytes.
    pub size_bytes: u64,
    /// When it was written, by the store's clock: seconds since the Unix epoch.
    pub modified_s: u64,
}

/// Which objects to list.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Only names that begin with this: empty, or ending in `/`, or any other beginning of a name.
    pub prefix: String,
    /// Fold names that have a `/` after the prefix into [`ListPage::folders`].
    pub folded: bool,
    /// Where to go on: [`ListPage::next`] of the page before.
    pub token: Option<String>,
    /// Most entries in a page; `None`: the backend's own limit.
    pub page_size: Option<usize>,
}

/// A page of a listing, in the store's own order: byte order of the names, or folder by folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Objects.
    pub objects: Vec<ObjectMeta>,
    /// With [`ListRequest::folded`]: the distinct beginnings of names up to and with the first `/` after the prefix. One
    /// whose objects are gone may still be named for a while.
    pub folders: Vec<String>,
    /// Token of the next page; absent on the last.
    pub next: Option<String>,
}

/// What came of asking for a part of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPart {
    /// The bytes of the range that lie inside the object; fewer than asked for only at its end.
    pub body: Bytes,
    /// Length of the whole object in bytes.
    pub object_size_bytes: u64,
}

/// An upload in parts that was begun, and neither completed nor given up: no object yet, but its parts take space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// The object that it would make.
    pub name: ObjectName,
    /// The store's own name of the upload.
    pub id: String,
    /// When it began, by the store's clock: seconds since the Unix epoch.
    pub begun_s: u64,
}

/// A place for objects. See the crate's documentation for what every backend promises.
pub trait ObjectStore: Send + Sync + Debug {
    /// Writes an object, replacing one that has its name.
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError>;

    /// Writes an object unless its name is taken, which is an error of kind [`ErrorKind::Precondition`](crate::ErrorKind).
    /// After any other error the object may or may not be there: read it to know.
    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError>;

    /// Makes the file at `path` an object, replacing one that has its name. On success the file at `path` is gone: a backend on
    /// the same file system moves it and stores nothing twice.
    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError>;

    /// A whole object.
    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError>;

    /// As much of a part of an object as there is, and how large the object is. A range that begins at the object's end or
    /// past it, unless it is empty, is an error of kind [`ErrorKind::OutOfRange`](crate::ErrorKind).
    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError>;

    /// A part of an object. A range that is not wholly inside is an error of kind
    /// [`ErrorKind::OutOfRange`](crate::ErrorKind).
    fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let part = self.get_part(name, range.clone())?;
        if range.end > part.object_size_bytes {
            return Err(StoreError::out_of_range(name, &range, part.object_size_bytes));
        }
        Ok(part.body)
    }

    /// What is known of an object without reading it.
    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError>;

    /// A page of a listing.
    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError>;

    /// Removes an object. It need not be there.
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;

    /// Removes objects, in any order; none need be there. After an error some may be left.
    fn delete_many(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        names.iter().try_for_each(|name| self.delete(name))
    }

    /// All uploads in parts that are under way, or that somebody left behind who died within one. A store without such uploads has
    /// none. Each store says so itself: one in front of another that forgot to ask would hide what is left there.
    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError>;

    /// Gives an upload up and its parts with it. It need not be there. Whoever is at it gets an error.
    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError>;

    /// What was read of an object was damaged: a nearer copy of it is given up. True if there was one, so that reading again is
    /// worth it.
    fn distrust(&self, _name: &ObjectName) -> bool {
        false
    }
}

/// The part of `range` that lies inside an object of `size_bytes`.
pub(crate) fn part_inside(name: &ObjectName, range: &Range<u64>, size_bytes: u64) -> Result<Range<u64>, StoreError> {
    let is_empty_inside = range.start == range.end && range.end <= size_bytes;
    if range.start > range.end || (range.start >= size_bytes && !is_empty_inside) {
        return Err(StoreError::out_of_range(name, range, size_bytes));
    }
    Ok(range.start..range.end.min(size_bytes))
}

/// All pages of a listing in one, in byte order.
pub fn list_all(store: &dyn ObjectStore, prefix: &str, folded: bool) -> Result<ListPage, StoreError> {
    let mut request = ListRequest { prefix: prefix.to_owned(), folded, ..ListRequest::default() };
    let mut all = ListPage::default();
    loop {
        let page = store.list(&request)?;
        all.objects.extend(page.objects);
        all.folders.extend(page.folders);
        match page.next {
            Some(token) => request.token = Some(token),
            None => break,
        }
    }
    all.objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    all.folders.sort_unstable();
    Ok(all)
}
