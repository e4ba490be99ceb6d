//! The local-folder backend: an object is a file below one folder.
//!
//! ```text
//!  put:           folders, .tmp/N  write, fsync ──rename──► NAME, fsync of the folders that changed
//!  put_if_absent: folders, .tmp/N  write, fsync ──link────► NAME (fails if taken), fsync of these, unlink .tmp/N
//!  put_file:      folders, PATH    fsync ──rename (copy across file systems)──► NAME, fsync of these
//! ```
//!
//! New folders are made before the object's file is fsynced and fsynced after it: where the file system has a journal, the first
//! fsync takes all of them along, and what follows finds little to do.
//!
//! Folders come into being with their first object and go with their last. Files in `.tmp` are leftovers of a crash when the
//! store is opened, and are removed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::error::{ErrorKind, StoreError};
use crate::fault::FailPoints;
use crate::name::ObjectName;
use crate::store::{ListPage, ListRequest, ObjectMeta, ObjectPart, ObjectStore, UnfinishedUpload, part_inside};

/// Entries in a page of a listing unless the request says otherwise.
const PAGE_SIZE: usize = 1000;
/// How often a write tries again after the folder it was about to enter was removed as empty.
const FOLDER_RACES_MAX: u32 = 16;

/// Objects as files below one folder.
#[derive(Debug)]
pub struct LocalFolder {
    root: PathBuf,
    temp: PathBuf,
    next_number: AtomicU64,
    /// Folders that were made and may not be durable in their parents yet, with a number for each making: whoever puts something into one
    /// sees to that too.
    unsynced: Mutex<HashMap<PathBuf, u64>>,
    faults: Arc<FailPoints>,
}

impl LocalFolder {
    /// The store in folder `root`, which is made if it isn't there. Two processes must not share it: what holds the folder's
    /// lock opens it.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with_faults(root, Arc::new(FailPoints::new()))
    }

    /// The store in a folder that another process may have open: for looking into it, and for removing what nobody needs. Leaves
    /// what that process is writing alone.
    pub fn attach(root: &Path) -> Result<Self, StoreError> {
        let temp = root.join(".tmp");
        fs::metadata(&temp).map_err(|error| io_error("open", &root.display().to_string(), error))?;
        Ok(LocalFolder {
            root: root.to_owned(),
            temp,
            next_number: AtomicU64::new(0),
            unsynced: Mutex::default(),
            faults: Arc::default(),
        })
    }

    /// A folder whose files are to be looked at, whether it is a store or only holds copies of a store's objects.
    pub fn look_at(root: &Path) -> Self {
        LocalFolder {
            root: root.to_owned(),
            temp: root.join(".tmp"),
            next_number: AtomicU64::new(0),
            unsynced: Mutex::default(),
            faults: Arc::default(),
        }
    }

    /// The same as [`LocalFolder::open`], with fail points.
    pub fn open_with_faults(root: &Path, faults: Arc<FailPoints>) -> Result<Self, StoreError> {
        let temp = root.join(".tmp");
        let failed = |error| io_error("open", &root.display().to_string(), error);
        fs::create_dir_all(&temp).map_err(failed)?;
        for entry in fs::read_dir(&temp).map_err(failed)? {
            match fs::remove_file(entry.map_err(failed)?.path()) {
                // Where nothing can be written, as in a moment of an operator's, it stays: reading goes on, and writes say why they don't.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {}
                removed => removed.map_err(failed)?,
            }
        }
        faults.pass("local.folder_fsync").and_then(|()| sync_folder(root)).map_err(failed)?;
        Ok(LocalFolder {
            root: root.to_owned(),
            temp,
            next_number: AtomicU64::new(0),
            unsynced: Mutex::default(),
            faults,
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Writes `body` to a new file in `.tmp` and makes it durable.
    fn write_temp(&self, body: &[u8]) -> io::Result<TempFile> {
        self.faults.pass("local.create")?;
        let (mut file, temp) = loop {
            let number = self.next_number.fetch_add(1, Ordering::Relaxed);
            let path = self.temp.join(format!("{}-{number}", std::process::id()));
            match File::create_new(&path) {
                Ok(file) => break (file, TempFile { path }),
                // A leftover of a process with the same id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        if let Err(error) = self.faults.pass("local.write") {
            // What a crash in the middle of a write leaves behind.
            file.write_all(&body[..body.len() / 2])?;
            return Err(error);
        }
        file.write_all(body)?;
        self.faults.pass("local.fsync")?;
        file.sync_all()?;
        Ok(temp)
    }

    /// Makes the file at `temp()`, durable, the object `name`.
    fn enter<T: AsRef<Path>>(
        &self,
        name: &ObjectName,
        how: Entering,
        temp: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<()> {
        let target = self.path(name);
        let entered = self.enter_at(&target, how, temp);
        if entered.is_err() {
            // Folders that were made for it are not left behind empty.
            self.remove_empty_folders(&target);
        }
        entered
    }

    fn enter_at<T: AsRef<Path>>(
        &self,
        target: &Path,
        how: Entering,
        temp: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<()> {
        let folder = target.parent().expect("an object's path has a parent");
        let mut new = HashMap::new();
        // What fails here is tried again below.
        let made = self.make_folders(folder, &mut new);
        if !matches!(&made, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            made?;
        }
        let temp = temp()?;
        let mut races = 0;
        loop {
            match self.make_folders(folder, &mut new).and_then(|()| self.give_name(temp.as_ref(), target, how)) {
                // Somebody removed a folder as empty in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound && races < FOLDER_RACES_MAX => races += 1,
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        self.faults.pass("local.folder_fsync")?;
        sync_folder(folder)?;
        for (made, making) in new {
            self.faults.pass("local.folder_fsync")?;
            match made.parent().map_or(Ok(()), sync_folder) {
                // Gone since, with what was made in it for an earlier try.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                synced => synced?,
            }
            // One that was removed as empty and made again meanwhile is others' to see to.
            let mut unsynced = self.unsynced();
            if unsynced.get(&made) == Some(&making) {
                unsynced.remove(&made);
            }
        }
        Ok(())
    }

    fn give_name(&self, temp: &Path, target: &Path, how: Entering) -> io::Result<()> {
        match how {
            Entering::Rename => {
                self.faults.pass("local.rename")?;
                fs::rename(temp, target)
            }
            Entering::Link => {
                self.faults.pass("local.link")?;
                fs::hard_link(temp, target)
            }
        }
    }

    /// Makes `folder` and what is missing above it. Those that are not surely durable in their parents are added to `new`.
    fn make_folders(&self, folder: &Path, new: &mut HashMap<PathBuf, u64>) -> io::Result<()> {
        if folder == self.root || (folder.is_dir() && !self.unsynced().contains_key(folder)) {
            return Ok(());
        }
        let parent = folder.parent().expect("folders of objects lie below the root");
        self.make_folders(parent, new)?;
        // Before it can be seen: whoever sees it knows what it still needs.
        let making = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.unsynced().insert(folder.to_owned(), making);
        match self.faults.pass("local.mkdir").and_then(|()| fs::create_dir(folder)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Somebody removed the parent as empty in between: the caller's loop makes it again.
            Err(error) => return Err(error),
        }
        new.insert(folder.to_owned(), making);
        Ok(())
    }

    fn unsynced(&self) -> MutexGuard<'_, HashMap<PathBuf, u64>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes folders that became empty, from the one of `path` upwards.
    fn remove_empty_folders(&self, path: &Path) {
        let mut folder = path.parent();
        while let Some(at) = folder.filter(|at| *at != self.root) {
            // Fails when it is not empty, which is the common case, and when another thread was faster. One that stays is not listed.
            if self.faults.pass("local.rmdir").and_then(|()| fs::remove_dir(at)).is_err() {
                return;
            }
            folder = at.parent();
        }
    }

    /// Adds what lies in `folder` and matches to `out`, unsorted. `folder_name` is empty or ends in `/`.
    fn walk(&self, folder: &Path, folder_name: &str, request: &ListRequest, out: &mut Vec<Found>) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(part) = entry.file_name().into_string() else { continue };
            if part.starts_with('.') {
                continue;
            }
            let name = format!("{folder_name}{part}");
            let is_folder = entry.file_type()?.is_dir();
            let below = if is_folder { format!("{name}/") } else { String::new() };
            if is_folder && request.prefix.starts_with(&below) {
                self.walk(&entry.path(), &below, request, out)?;
            } else if !name.starts_with(&request.prefix) {
                continue;
            } else if is_folder && request.folded {
                // One without objects is what a crash in the middle of a write or of a deletion leaves.
                if holds_objects(&entry.path())? {
                    out.push(Found { sort: below, file: None });
                }
            } else if is_folder {
                self.walk(&entry.path(), &below, request, out)?;
            } else {
                match entry.metadata() {
                    Ok(meta) => out.push(Found { sort: name, file: Some((meta.len(), modified_s(&meta))) }),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Entering {
    Rename,
    Link,
}

/// An object (with its size and when it was written) or a folder, by the text that it sorts by.
struct Found {
    sort: String,
    file: Option<(u64, u64)>,
}

/// Whether there is any object in `folder` or below.
fn holds_objects(folder: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || holds_objects(&entry.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn modified_s(meta: &fs::Metadata) -> u64 {
    // A file system without times, or a time before 1970: as old as can be said.
    let since = meta.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_secs())
}

/// A file that goes away with this value.
struct TempFile {
    path: PathBuf,
}

impl AsRef<Path> for TempFile {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // Already renamed, or swept when the store is opened the next time.
        let _ = fs::remove_file(&self.path);
    }
}

impl ObjectStore for LocalFolder {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        let put = self.enter(name, Entering::Rename, || self.write_temp(body));
        put.map_err(|error| io_error("put", name.as_str(), error))
    }

    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        match self.enter(name, Entering::Link, || self.write_temp(body)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(StoreError::exists("conditional put", name).with_source(error))
            }
            done => done.map_err(|error| io_error("conditional put", name.as_str(), error)),
        }
    }

    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        let write = || {
            let synced = || {
                self.faults.pass("local.file_fsync")?;
                File::open(path)?.sync_all()?;
                Ok(path)
            };
            match self.enter(name, Entering::Rename, synced) {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    self.enter(name, Entering::Rename, || self.write_temp(&fs::read(path)?))?;
                    self.faults.pass("local.unlink_source")?;
                    fs::remove_file(path)
                }
                done => done,
            }
        };
        write().map_err(|error| io_error("put of a file", name.as_str(), error))
    }

    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let read = || {
            let mut body = Vec::new();
            File::open(self.path(name))?.read_to_end(&mut body)?;
            Ok(body)
        };
        read().map(Bytes::from).map_err(|error| io_error("get", name.as_str(), error))
    }

    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        let failed = |error| io_error("ranged get", name.as_str(), error);
        let file = File::open(self.path(name)).map_err(failed)?;
        let object_size_bytes = file.metadata().map_err(failed)?.len();
        let inside = part_inside(name, &range, object_size_bytes)?;
        let length = usize::try_from(inside.end - inside.start).map_err(|_| {
            StoreError::new(ErrorKind::Internal, "ranged get", name.as_str(), "more than memory can hold")
        })?;
        let mut body = vec![0; length];
        file.read_exact_at(&mut body, range.start).map_err(failed)?;
        Ok(ObjectPart { body: Bytes::from(body), object_size_bytes })
    }

    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        let meta = fs::metadata(self.path(name)).map_err(|error| io_error("head", name.as_str(), error))?;
        if !meta.is_file() {
            return Err(StoreError::not_found("head", name));
        }
        Ok(ObjectMeta { name: name.clone(), size_bytes: meta.len(), modified_s: modified_s(&meta) })
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let failed = |error| io_error("list", &request.prefix, error);
        let mut found = Vec::new();
        // Only the prefix's own folder can hold what begins with it.
        let folder_name = request.prefix.rfind('/').map_or("", |slash| &request.prefix[..=slash]);
        self.walk(&self.root.join(folder_name), folder_name, request, &mut found).map_err(failed)?;
        if let Some(token) = &request.token {
            found.retain(|found| found.sort > *token);
        }
        found.sort_unstable_by(|a, b| a.sort.cmp(&b.sort));
        let page_size = request.page_size.unwrap_or(PAGE_SIZE).max(1);
        let next = (found.len() > page_size).then(|| found[page_size - 1].sort.clone());
        found.truncate(page_size);
        let mut page = ListPage { next, ..ListPage::default() };
        for found in found {
            match found.file {
                None => page.folders.push(found.sort),
                // A file that somebody else put here under a name that we never give is not an object.
                Some((size_bytes, modified_s)) => {
                    if let Ok(name) = ObjectName::new(found.sort) {
                        page.objects.push(ObjectMeta { name, size_bytes, modified_s });
                    }
                }
            }
        }
        Ok(page)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let path = self.path(name);
        let remove = || {
            self.faults.pass("local.unlink")?;
            fs::remove_file(&path)
        };
        match remove() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("delete", name.as_str(), error)),
            Ok(()) => {
                self.remove_empty_folders(&path);
                Ok(())
            }
        }
    }

    // Every write is whole or leaves a file that opening the folder sweeps: there are no uploads in parts.
    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        Ok(Vec::new())
    }

    fn give_up_upload(&self, _upload: &UnfinishedUpload) -> Result<(), StoreError> {
        Ok(())
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn io_error(operation: &'static str, object: &str, error: io::Error) -> StoreError {
    let (kind, detail) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            (ErrorKind::NotFound, "there is no such object".to_owned())
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (ErrorKind::Denied, format!("{error}; give this user write access to the store's folder"))
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (ErrorKind::Retry, format!("{error}; free space on the store's file system"))
        }
        io::ErrorKind::Interrupted | io::ErrorKind::TimedOut => (ErrorKind::Retry, error.to_string()),
        _ if matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) => {
            let more = "raise this server's limit on open files (systemd: LimitNOFILE=, a shell: ulimit -Hn)";
            (ErrorKind::Retry, format!("{error}; {more}"))
        }
        _ => (ErrorKind::Internal, error.to_string()),
    };
    StoreError::new(kind, operation, object, detail).with_source(error)
}
