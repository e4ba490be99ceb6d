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

/// A page of a listing, in byte order of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Objects.
    pub objects: Vec<ObjectMeta>,
    /// With [`ListRequest::folded`]: the distinct beginnings of names up to and with the first `/` after the prefix.
    pub folders: Vec<String>,
    /// Token of the next page; absent on the last.
    pub next: Option<String>,
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

    /// A part of an object. A range that is not wholly inside is an error of kind
    /// [`ErrorKind::OutOfRange`](crate::ErrorKind).
    fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// What is known of an object without reading it.
    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError>;

    /// A page of a listing.
    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError>;

    /// Removes an object. It need not be there.
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;
}

/// All pages of a listing in one.
pub fn list_all(store: &dyn ObjectStore, prefix: &str, folded: bool) -> Result<ListPage, StoreError> {
    let mut request = ListRequest { prefix: prefix.to_owned(), folded, ..ListRequest::default() };
    let mut all = ListPage::default();
    loop {
        let page = store.list(&request)?;
        all.objects.extend(page.objects);
        all.folders.extend(page.folders);
        match page.next {
            Some(token) => request.token = Some(token),
            None => return Ok(all),
        }
    }
}
