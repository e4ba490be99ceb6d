//! Making a data directory from the parts of a base backup, quickly.
//!
//! ```text
//!  base backup's items ──► DataDirBuilder ──┬─► folders, in order
//!                                           ├─► writer threads: files, sparse relation files
//!                                           └─► presence map, then the pages sent ahead
//! ```
//!
//! Relation files are made before the start, all of them, with their final size and nothing in them. Nothing is fsynced: a
//! directory that a crash of the host has touched is thrown away. The threads that make files work with the file-system
//! identity of Postgres's user, so that no file has to change owners afterwards.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};

use ardent_api::compute::RunAs;
use ardent_api::page_service::BackupItem;
use ardent_pg_format::{PgMajor, data_directory};
use ardent_presence_map::{PresenceMap, PresenceMapBuilder};
use ardent_types::{BLCKSZ, BlockNumber, Lsn, RelTag, with_causes};
use bytes::Bytes;

use crate::error::ComputeError;
use crate::layout::PRESENCE_MAP;

/// Blocks in one file of a relation (`RELSEG_SIZE`): 1 GiB.
const BLOCKS_PER_FILE: u32 = 131_072;
/// Most threads that make files; more only wait for each other's directory locks.
const WRITERS_MAX: usize = 4;
/// Tasks that may wait for the threads.
const QUEUE_LEN: usize = 64;
/// Relations in one task.
const RELATIONS_PER_TASK: usize = 512;
/// Pages sent ahead that are kept in memory until the relation files are there: 32 MiB.
const PAGES_AHEAD_MAX: usize = 4096;
/// Largest file of a base backup: an SLRU segment is 256 KiB, a two-phase file at most 1 GiB.
const FILE_LEN_MAX: usize = 1 << 30;

/// A data directory in the making.
#[derive(Debug)]
pub(crate) struct DataDirBuilder {
    root: PathBuf,
    major: PgMajor,
    run_as: Option<RunAs>,
    folders: HashSet<PathBuf>,
    presence: PresenceMapBuilder,
    pages: Vec<(RelTag, BlockNumber, Bytes)>,
    tasks: Option<mpsc::SyncSender<Task>>,
    writers: Vec<std::thread::JoinHandle<Result<(), ComputeError>>>,
}

#[derive(Debug)]
enum Task {
    /// A compressed file.
    File { path: PathBuf, zstd: Bytes },
    /// Relation forks to make as sparse files.
    Relations(Vec<(RelTag, BlockNumber)>),
}

impl DataDirBuilder {
    /// Begins a data directory at `root`, which must not exist. All calls block: run them where that is allowed.
    pub(crate) fn begin(
        root: &Path,
        major: PgMajor,
        base_lsn: Lsn,
        run_as: Option<RunAs>,
    ) -> Result<Self, ComputeError> {
        make_folder(root, run_as)?;
        let handle = File::open(root).map_err(ComputeError::io("cannot open", root))?;
        let handle = Arc::new(OwnedFd::from(handle));
        let (sender, receiver) = mpsc::sync_channel(QUEUE_LEN);
        let receiver = Arc::new(Mutex::new(receiver));
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(WRITERS_MAX);
        let mut writers = Vec::with_capacity(count);
        for number in 0..count {
            let writer = Writer {
                root: root.to_owned(),
                handle: Arc::clone(&handle),
                tasks: Arc::clone(&receiver),
                major,
                run_as,
            };
            let thread = std::thread::Builder::new().name(format!("data-dir-{number}"));
            let started = thread.spawn(move || writer.work());
            writers.push(started.map_err(ComputeError::io("cannot start a thread for", root))?);
        }
        let mut builder = DataDirBuilder {
            root: root.to_owned(),
            major,
            run_as,
            folders: HashSet::new(),
            presence: PresenceMapBuilder::new(base_lsn),
            pages: Vec::new(),
            tasks: Some(sender),
            writers,
        };
        // Whatever the page server sends.
        for folder in data_directory::FOLDERS {
            builder.ensure_folder(Path::new(folder))?;
        }
        Ok(builder)
    }

    /// Takes the next part. Header and control file are the caller's business and ignored here.
    pub(crate) fn add(&mut self, item: BackupItem) -> Result<(), ComputeError> {
        match item {
            BackupItem::Header(_) | BackupItem::ControlFile(_) | BackupItem::End => Ok(()),
            BackupItem::Directory(path) => self.ensure_folder(&inside(&path)?),
            BackupItem::File { path, zstd } => {
                let path = inside(&path)?;
                self.ensure_parent(&path)?;
                self.give(Task::File { path, zstd })
            }
            BackupItem::Relations(relations) => self.add_relations(relations),
            BackupItem::Page { rel, block, page } => {
                if self.pages.len() >= PAGES_AHEAD_MAX {
                    // Not needed to be right: whatever is left out is fetched when it is read.
                    return Ok(());
                }
                self.pages.push((rel, block, page));
                Ok(())
            }
        }
    }

    fn add_relations(&mut self, relations: Vec<(RelTag, BlockNumber)>) -> Result<(), ComputeError> {
        for (rel, nblocks) in &relations {
            self.ensure_parent(Path::new(&rel.path(self.major.tablespace_directory())))?;
            self.presence.add(*rel, *nblocks);
        }
        for chunk in relations.chunks(RELATIONS_PER_TASK) {
            self.give(Task::Relations(chunk.to_vec()))?;
        }
        Ok(())
    }

    /// Waits for the threads, writes the presence map and the pages sent ahead. The directory then lacks only its control
    /// file, WAL and configuration.
    pub(crate) fn finish(mut self) -> Result<(), ComputeError> {
        self.join()?;
        let path = self.root.join(PRESENCE_MAP);
        let presence = std::mem::replace(&mut self.presence, PresenceMapBuilder::new(Lsn::INVALID));
        let map = presence.build(&path).map_err(|error| ComputeError::Invalid(with_causes(&error)))?;
        give_away(&path, self.run_as)?;
        let mut open: Option<(RelTag, u32, File, PathBuf)> = None;
        for (rel, block, page) in std::mem::take(&mut self.pages) {
            let number = block / BLOCKS_PER_FILE;
            if !matches!(&open, Some((last, last_number, ..)) if (*last, *last_number) == (rel, number)) {
                let path = self.root.join(segment_path(self.major, &rel, number));
                let file = OpenOptions::new().write(true).open(&path);
                open = Some((rel, number, file.map_err(ComputeError::io("cannot open", &path))?, path));
            }
            let Some((_, _, file, path)) = &open else { unreachable!("set above") };
            let offset = u64::from(block % BLOCKS_PER_FILE) * BLCKSZ as u64;
            file.write_all_at(&page, offset).map_err(ComputeError::io("cannot write", path))?;
            mark_present(&map, &rel, block)?;
        }
        Ok(())
    }

    fn give(&mut self, task: Task) -> Result<(), ComputeError> {
        let tasks = self.tasks.as_ref().expect("taken only by join, which ends the builder");
        // Nobody receives any more when every thread has failed: the first failure is the reason.
        if tasks.send(task).is_ok() { Ok(()) } else { self.join() }
    }

    fn join(&mut self) -> Result<(), ComputeError> {
        self.tasks = None;
        let mut outcome = Ok(());
        for writer in self.writers.drain(..) {
            let ended = writer.join().unwrap_or_else(|_| Err(ComputeError::Invalid("a writer thread panicked".into())));
            outcome = outcome.and(ended);
        }
        outcome
    }

    fn ensure_parent(&mut self, path: &Path) -> Result<(), ComputeError> {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.ensure_folder(parent),
            _ => Ok(()),
        }
    }

    fn ensure_folder(&mut self, path: &Path) -> Result<(), ComputeError> {
        if self.folders.contains(path) {
            return Ok(());
        }
        self.ensure_parent(path)?;
        make_folder(&self.root.join(path), self.run_as)?;
        self.folders.insert(path.to_owned());
        Ok(())
    }
}

/// A thread that makes files.
struct Writer {
    root: PathBuf,
    handle: Arc<OwnedFd>,
    tasks: Arc<Mutex<mpsc::Receiver<Task>>>,
    major: PgMajor,
    run_as: Option<RunAs>,
}

impl Writer {
    fn work(self) -> Result<(), ComputeError> {
        if let Some(RunAs { uid, gid }) = self.run_as {
            // SAFETY: plain numbers; both calls change this thread alone, and it ends when its work does.
            unsafe {
                libc::setfsgid(gid);
                libc::setfsuid(uid);
            }
        }
        let mut outcome = Ok(());
        loop {
            let task = self.tasks.lock().expect("no holder panics").recv();
            let Ok(task) = task else { return outcome };
            // After a failure tasks are still taken, so that nobody waits for ever to hand one over.
            if outcome.is_ok() {
                outcome = self.perform(task);
            }
        }
    }

    fn perform(&self, task: Task) -> Result<(), ComputeError> {
        match task {
            Task::File { path, zstd } => {
                let content = zstd::bulk::decompress(&zstd, decompressed_len(&zstd)?)
                    .map_err(ComputeError::io("cannot decompress", &path))?;
                let file = self.create(&path)?;
                file.write_all_at(&content, 0).map_err(ComputeError::io("cannot write", &path))
            }
            Task::Relations(relations) => {
                relations.iter().try_for_each(|(rel, nblocks)| self.make_relation(rel, *nblocks))
            }
        }
    }

    fn make_relation(&self, rel: &RelTag, nblocks: BlockNumber) -> Result<(), ComputeError> {
        for number in 0..=nblocks / BLOCKS_PER_FILE {
            let blocks = (nblocks - number * BLOCKS_PER_FILE).min(BLOCKS_PER_FILE);
            if blocks == 0 && number > 0 {
                break;
            }
            let path = segment_path(self.major, rel, number);
            let file = self.create(&path)?;
            if blocks > 0 {
                let length = u64::from(blocks) * BLCKSZ as u64;
                file.set_len(length).map_err(ComputeError::io("cannot set the size of", &path))?;
            }
        }
        Ok(())
    }

    /// Makes a new file below the data directory. It goes by the open directory, since Postgres's user may not be allowed
    /// through the folders above it.
    fn create(&self, path: &Path) -> Result<File, ComputeError> {
        use nix::fcntl::{OFlag, openat};
        use nix::sys::stat::Mode;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        match openat(&*self.handle, path, flags, Mode::from_bits_truncate(0o600)) {
            Ok(file) => Ok(File::from(file)),
            Err(errno) => Err(ComputeError::io("cannot create", &self.root.join(path))(errno.into())),
        }
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("handle", &self.handle.as_raw_fd()).finish_non_exhaustive()
    }
}

fn decompressed_len(zstd: &[u8]) -> Result<usize, ComputeError> {
    let length = zstd::zstd_safe::get_frame_content_size(zstd).ok().flatten();
    match length.and_then(|length| usize::try_from(length).ok()) {
        Some(length) if length <= FILE_LEN_MAX => Ok(length),
        Some(_) => Err(ComputeError::Invalid("the base backup has a file over 1 GiB".to_owned())),
        // Made by a streaming compressor: the length is not in the frame.
        None => Ok(FILE_LEN_MAX),
    }
}

fn segment_path(major: PgMajor, rel: &RelTag, number: u32) -> PathBuf {
    let first = rel.path(major.tablespace_directory());
    PathBuf::from(if number == 0 { first } else { format!("{first}.{number}") })
}

fn mark_present(map: &PresenceMap, rel: &RelTag, block: BlockNumber) -> Result<(), ComputeError> {
    match map.find(rel) {
        Some(entry) if entry.is_absent(block) => {
            entry.set_present(block);
            Ok(())
        }
        _ => Err(ComputeError::Invalid(format!(
            "the base backup has a page of {rel}, which is not in its list of absent blocks"
        ))),
    }
}

/// The path of an item, which must lead below the data directory.
fn inside(path: &str) -> Result<PathBuf, ComputeError> {
    let path = PathBuf::from(path);
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    if plain && path.file_name().is_some() {
        Ok(path)
    } else {
        Err(ComputeError::Invalid(format!("the base backup has a file {:?}, outside the data directory", path)))
    }
}

/// Makes a folder for Postgres's user alone.
pub(crate) fn make_folder(path: &Path, run_as: Option<RunAs>) -> Result<(), ComputeError> {
    use std::os::unix::fs::DirBuilderExt as _;
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => give_away(path, run_as),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => give_away(path, run_as),
        Err(error) => Err(ComputeError::io("cannot make the folder", path)(error)),
    }
}

/// Writes a file of ours into the data directory.
pub(crate) fn write_file(path: &Path, content: &[u8], run_as: Option<RunAs>) -> Result<(), ComputeError> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(ComputeError::io("cannot create", path))?;
    file.write_all_at(content, 0).map_err(ComputeError::io("cannot write", path))?;
    give_away(path, run_as)
}

pub(crate) fn give_away(path: &Path, run_as: Option<RunAs>) -> Result<(), ComputeError> {
    match run_as {
        Some(RunAs { uid, gid }) => {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(ComputeError::io("cannot give away", path))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use ardent_types::ForkNumber;

    use super::*;

    fn rel(relnode: u32, fork: ForkNumber) -> RelTag {
        RelTag { spcnode: 1663, dbnode: 5, relnode, fork }
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temp folder can be made")
    }

    fn page(fill: u8) -> Bytes {
        Bytes::from(vec![fill; BLCKSZ])
    }

    #[test]
    fn relations_are_sparse_and_cut_at_1_gib() {
        let folder = folder();
        let root = folder.path().join("data");
        let mut builder = DataDirBuilder::begin(&root, PgMajor::V15, Lsn::new(8), None).expect("begins");
        let big = rel(1, ForkNumber::Main);
        let user = RelTag { spcnode: 16400, dbnode: 5, relnode: 9, fork: ForkNumber::Vm };
        let exact = rel(3, ForkNumber::Main);
        let relations =
            vec![(big, 2 * BLOCKS_PER_FILE + 3), (rel(2, ForkNumber::Fsm), 0), (user, 1), (exact, BLOCKS_PER_FILE)];
        builder.add(BackupItem::Relations(relations)).expect("relations");
        let last = 2 * BLOCKS_PER_FILE + 2;
        builder.add(BackupItem::Page { rel: big, block: last, page: page(7) }).expect("page");
        builder.finish().expect("finishes");
        let size = |path: &str| std::fs::metadata(root.join(path)).map(|metadata| metadata.size()).ok();
        assert_eq!(size("base/5/1"), Some(1 << 30));
        assert_eq!(size("base/5/1.1"), Some(1 << 30));
        assert_eq!(size("base/5/1.2"), Some(3 * BLCKSZ as u64));
        assert_eq!(size("base/5/1.3"), None);
        assert_eq!((size("base/5/3"), size("base/5/3.1")), (Some(1 << 30), None));
        assert_eq!(size("base/5/2_fsm"), Some(0));
        assert_eq!(size("pg_tblspc/16400/PG_15_202209061/5/9_vm"), Some(BLCKSZ as u64));
        assert!(std::fs::metadata(root.join("base/5/1")).expect("there").blocks() == 0, "nothing is in it");
        let map = PresenceMap::open(&root.join(PRESENCE_MAP)).expect("opens");
        let entry = map.find(&big).expect("has an entry");
        assert!(entry.is_absent(0) && entry.is_absent(last - 1) && !entry.is_absent(last));
        let content = std::fs::read(root.join("base/5/1.2")).expect("there");
        assert_eq!((content[2 * BLCKSZ - 1], content[2 * BLCKSZ]), (0, 7));
    }

    #[test]
    fn files_are_unpacked_and_folders_made() {
        let folder = folder();
        let root = folder.path().join("data");
        let mut builder = DataDirBuilder::begin(&root, PgMajor::V15, Lsn::new(8), None).expect("begins");
        let zstd = Bytes::from(zstd::bulk::compress(b"15\n", 1).expect("compresses"));
        builder.add(BackupItem::Directory("base/7".into())).expect("folder");
        builder.add(BackupItem::File { path: "base/8/PG_VERSION".into(), zstd }).expect("file");
        builder.finish().expect("finishes");
        assert!(root.join("base/7").is_dir() && root.join("pg_logical/snapshots").is_dir());
        assert_eq!(std::fs::read(root.join("base/8/PG_VERSION")).expect("there"), b"15\n");
        assert_eq!(std::fs::metadata(&root).expect("there").mode() & 0o777, 0o700);
    }

    #[test]
    fn nothing_leads_out_of_the_data_directory() {
        let folder = folder();
        let root = folder.path().join("data");
        let mut builder = DataDirBuilder::begin(&root, PgMajor::V15, Lsn::new(8), None).expect("begins");
        for bad in ["/etc/x", "../x", "base/../../x", "", "."] {
            let file = BackupItem::File { path: bad.into(), zstd: Bytes::new() };
            assert!(builder.add(file).is_err(), "{bad:?} was taken");
            assert!(builder.add(BackupItem::Directory(bad.into())).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_writers_failure_is_reported_and_nobody_hangs() {
        let folder = folder();
        let root = folder.path().join("data");
        let mut builder = DataDirBuilder::begin(&root, PgMajor::V15, Lsn::new(8), None).expect("begins");
        let twice = vec![(rel(1, ForkNumber::Main), 1); 3 * RELATIONS_PER_TASK];
        let mut outcome = Ok(());
        for _ in 0..2 * QUEUE_LEN {
            outcome = outcome.and(builder.add(BackupItem::Relations(twice.clone())));
        }
        let error = outcome.and(builder.finish()).expect_err("the same file twice");
        assert!(error.to_string().contains("base/5/1"), "{error}");
    }

    #[test]
    fn many_relations_are_made_in_one_folder() {
        let folder = folder();
        let root = folder.path().join("data");
        let mut builder = DataDirBuilder::begin(&root, PgMajor::V15, Lsn::new(8), None).expect("begins");
        for start in (0..10_000).step_by(1000) {
            let relations = (start..start + 1000).map(|relnode| (rel(relnode + 1, ForkNumber::Main), relnode % 5));
            builder.add(BackupItem::Relations(relations.collect())).expect("relations");
        }
        builder.finish().expect("finishes");
        assert_eq!(std::fs::read_dir(root.join("base/5")).expect("there").count(), 10_000);
    }
}
