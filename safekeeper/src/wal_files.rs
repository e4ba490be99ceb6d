//! A timeline's WAL as ordinary segment files, named and laid out as Postgres does: `pg_waldump` reads them.
//!
//! Every file has the full segment size; what is not written yet is zeros. Bytes past the end of the log are zeros too,
//! always: [`WalFiles::truncate`] and recovery see to it, so that no old tail can be taken for WAL later. Recovery alone may find a file
//! that ends with the log: a kill in the middle of truncating leaves it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use ardent_api::wal_service::{RecordEnd, TimelineSpec};
use ardent_object_store::fault::FailPoints;
use ardent_pg_format::PgMajor;
use ardent_pg_format::encode::WalStream;
use ardent_pg_format::segment;
use ardent_pg_format::wal::{RecordBoundaryTracker, page_header_len};
use ardent_types::{Lsn, PgTli, WalSegmentSize};

use crate::control_file::sync_dir;

/// Bytes read at a time by recovery.
const SCAN_STEP_BYTES: usize = 1 << 20;
/// The log's file is filled with zeros ahead of the log in steps of this many bytes.
const FILL_STEP_BYTES: u64 = 256 << 10;

/// WAL cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WalFileError {
    /// The operating system refused.
    #[error("cannot {action} WAL file {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// WAL that must be there is not.
    #[error("the WAL at {lsn} is missing: {path} does not exist or is too short")]
    Missing {
        /// Position.
        lsn: Lsn,
        /// The file that should hold it.
        path: PathBuf,
    },
}

/// Where a timeline's segment files are and how they are named.
#[derive(Clone, Debug)]
pub(crate) struct SegmentNames {
    dir: PathBuf,
    tli: PgTli,
    size: WalSegmentSize,
}

impl SegmentNames {
    pub(crate) fn new(dir: PathBuf, spec: &TimelineSpec) -> Self {
        SegmentNames { dir, tli: spec.pg_tli, size: spec.wal_segment_size }
    }

    pub(crate) fn size(&self) -> WalSegmentSize {
        self.size
    }

    pub(crate) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(segment::wal_file_name(self.tli, number, self.size))
    }

    fn parse(&self, name: &str) -> Option<u64> {
        let (tli, number) = segment::parse_wal_file_name(name, self.size)?;
        (tli == self.tli).then_some(number)
    }

    /// The segments that exist, ascending.
    pub(crate) fn list(&self) -> Result<Vec<u64>, WalFileError> {
        let io = |source| WalFileError::Io { action: "list", path: self.dir.clone(), source };
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            segments.extend(name.to_str().and_then(|name| self.parse(name)));
        }
        segments.sort_unstable();
        Ok(segments)
    }

    /// Reads up to `length` bytes at `from`, not past the end of the segment. A file that ends before is an error.
    pub(crate) fn read(&self, from: Lsn, length: usize) -> Result<Bytes, WalFileError> {
        let length = self.within_segment(from, length);
        let bytes = self.read_what_is_there(from, length)?;
        if bytes.len() < length {
            return Err(WalFileError::Missing { lsn: from, path: self.path(from.segment_number(self.size)) });
        }
        Ok(bytes)
    }

    fn within_segment(&self, from: Lsn, length: usize) -> usize {
        length.min((self.size.bytes() - from.segment_offset(self.size)) as usize)
    }

    /// The same, but fewer bytes where the file ends before: who was killed while the log was cut off has left a file that ends with it.
    fn read_what_is_there(&self, from: Lsn, length: usize) -> Result<Bytes, WalFileError> {
        let offset = from.segment_offset(self.size);
        let length = self.within_segment(from, length);
        let path = self.path(from.segment_number(self.size));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(WalFileError::Missing { lsn: from, path });
            }
            Err(source) => return Err(WalFileError::Io { action: "open", path, source }),
        };
        let mut bytes = Vec::with_capacity(length);
        let mut read = || {
            (&file).seek(SeekFrom::Start(offset))?;
            // Into memory that nobody fills with zeros first.
            (&file).take(length as u64).read_to_end(&mut bytes)
        };
        read().map_err(|source| WalFileError::Io { action: "read", path, source })?;
        Ok(bytes.into())
    }
}

/// The writing side of a timeline's WAL.
#[derive(Debug)]
pub(crate) struct WalFiles {
    names: SegmentNames,
    current: Option<OpenSegment>,
    /// Segments that were left behind since the last sync.
    unsynced: Vec<OpenSegment>,
    names_changed: bool,
    faults: Arc<FailPoints>,
}

#[derive(Debug)]
struct OpenSegment {
    number: u64,
    path: PathBuf,
    file: File,
    dirty: bool,
    /// Up to here the file holds bytes of ours, the log's or zeros, and not a hole.
    filled: u64,
}

impl OpenSegment {
    /// Fills what follows the log's end at `offset`, if the log has reached what was filled before.
    fn fill_ahead(&mut self, offset: u64, size: u64, faults: &FailPoints) -> io::Result<()> {
        if offset > self.filled {
            let until = (offset / FILL_STEP_BYTES + 1).saturating_mul(FILL_STEP_BYTES).min(size);
            let zeros = vec![0; until.saturating_sub(offset) as usize];
            faults.pass("wal.fill")?;
            self.file.write_all_at(&zeros, offset)?;
            self.filled = until;
        }
        Ok(())
    }

    fn sync(&mut self, faults: &FailPoints) -> Result<(), WalFileError> {
        if self.dirty {
            let io = |source| WalFileError::Io { action: "fsync", path: self.path.clone(), source };
            faults.pass("wal.fsync").and_then(|()| self.file.sync_data()).map_err(io)?;
            self.dirty = false;
        }
        Ok(())
    }
}

impl WalFiles {
    /// For a log that begins with a whole segment.
    pub(crate) fn new(names: SegmentNames, faults: &Arc<FailPoints>) -> WalFiles {
        WalFiles { names, current: None, unsynced: Vec::new(), names_changed: false, faults: Arc::clone(faults) }
    }

    /// Makes the first segment of a new timeline: up to `start_lsn` it holds `before`, the ancestor's bytes of that
    /// segment, or page headers that make the file readable from `start_lsn` on. Not durable before [`WalFiles::sync`].
    pub(crate) fn create(
        names: SegmentNames,
        spec: &TimelineSpec,
        major: PgMajor,
        before: Option<&[u8]>,
        faults: &Arc<FailPoints>,
    ) -> Result<WalFiles, WalFileError> {
        let mut files = WalFiles::new(names, faults);
        let size = spec.wal_segment_size;
        let segment_start = spec.start_lsn.segment_start(size);
        let synthetic;
        let before = match before {
            Some(bytes) => bytes,
            None => {
                synthetic = synthetic_start(spec, major);
                &synthetic
            }
        };
        // Even with nothing before the start the file must exist: that is what recovery looks for.
        files.segment(segment_start.segment_number(size))?;
        files.write(segment_start, before)?;
        Ok(files)
    }

    /// Opens a timeline's WAL and finds its end: the last whole record after `commit`, but not past `limit`. Everything behind
    /// is cut off. What is left is durable.
    pub(crate) fn recover(
        names: SegmentNames,
        spec: &TimelineSpec,
        major: PgMajor,
        commit: RecordEnd,
        limit: Option<Lsn>,
        faults: &Arc<FailPoints>,
    ) -> Result<(WalFiles, Lsn), WalFileError> {
        let mut files = WalFiles::new(names, faults);
        let end = files.scan(spec, major, commit, limit.unwrap_or(Lsn::MAX))?;
        files.sync_range(commit.end, end)?;
        files.truncate(end)?;
        Ok((files, end))
    }

    fn scan(&self, spec: &TimelineSpec, major: PgMajor, commit: RecordEnd, limit: Lsn) -> Result<Lsn, WalFileError> {
        let mut tracker = RecordBoundaryTracker::new(commit.end, major, spec.wal_segment_size);
        if commit.start.is_valid() {
            tracker = tracker.with_previous_record(commit.start);
        }
        let mut at = commit.end;
        while at < limit {
            let step = SCAN_STEP_BYTES.min(limit.saturating_sub(at).min(usize::MAX as u64) as usize);
            let bytes = match self.names.read_what_is_there(at, step) {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => bytes,
                Err(WalFileError::Missing { .. }) => break,
                Err(error) => return Err(error),
            };
            at = at.advance(bytes.len() as u64);
            // A record that does not check out is the torn end of the log: nothing past it was acknowledged.
            if let Err(error) = tracker.feed(bytes) {
                tracing::debug!(%error, timeline = %spec.timeline, "end of the log");
                break;
            }
        }
        let end = tracker.end_of_last_record().max(commit.end);
        self.check_exists(commit.end, spec)?;
        Ok(end)
    }

    /// The file that holds the last byte of the committed log must be there.
    fn check_exists(&self, commit: Lsn, spec: &TimelineSpec) -> Result<(), WalFileError> {
        let last = if commit > spec.start_lsn { Lsn::new(commit.get() - 1) } else { commit };
        let path = self.names.path(last.segment_number(self.names.size));
        if path.exists() { Ok(()) } else { Err(WalFileError::Missing { lsn: last, path }) }
    }

    fn sync_range(&mut self, from: Lsn, to: Lsn) -> Result<(), WalFileError> {
        for number in from.segment_number(self.names.size)..=to.segment_number(self.names.size) {
            let path = self.names.path(number);
            match self.faults.pass("wal.found_fsync").and_then(|()| File::open(&path)?.sync_data()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(WalFileError::Io { action: "fsync", path, source }),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// The segment with this number, opened, made if need be.
    fn segment(&mut self, number: u64) -> Result<&mut OpenSegment, WalFileError> {
        if self.current.as_ref().is_none_or(|open| open.number != number) {
            let fresh = self.open(number)?;
            let left = self.current.replace(fresh);
            self.unsynced.extend(left.filter(|open| open.dirty));
        }
        Ok(self.current.as_mut().expect("just opened"))
    }

    fn open(&mut self, number: u64) -> Result<OpenSegment, WalFileError> {
        let path = self.names.path(number);
        let io = |action| {
            let path = path.clone();
            move |source| WalFileError::Io { action, path, source }
        };
        let size = self.names.size.bytes();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = self.faults.pass("wal.open").and_then(|()| options.open(&path)).map_err(io("open"))?;
        let is_whole = file.metadata().map_err(io("look at"))?.len() == size;
        if !is_whole {
            self.faults.pass("wal.extend").and_then(|()| file.set_len(size)).map_err(io("extend"))?;
            self.names_changed = true;
        }
        // A new length is as little durable as new bytes are.
        Ok(OpenSegment { number, path, file, dirty: !is_whole, filled: 0 })
    }

    /// Writes `data` at `at`, the end of the log; not durable before [`WalFiles::sync`]. What follows is filled with zeros a step at a
    /// time: a file system must commit its journal, and wait for everybody else's changes in it, when bytes land in a hole; bytes
    /// that replace others it just writes. Where much comes at once there is a step for nearly every piece anyway, and everything would be
    /// written twice.
    pub(crate) fn append(&mut self, at: Lsn, data: &[u8]) -> Result<(), WalFileError> {
        self.write(at, data)?;
        if data.len() as u64 >= FILL_STEP_BYTES / 4 {
            return Ok(());
        }
        let (end, size) = (at.advance(data.len() as u64), self.names.size);
        // A log that ends with its segment has nothing behind it there.
        let Some(open) = self.current.as_mut().filter(|open| open.number == end.segment_number(size)) else {
            return Ok(());
        };
        let filled = open.fill_ahead(end.segment_offset(size), size.bytes(), &self.faults);
        filled.map_err(|source| WalFileError::Io { action: "fill", path: open.path.clone(), source })
    }

    /// Writes `data` at `at`; not durable before [`WalFiles::sync`].
    pub(crate) fn write(&mut self, at: Lsn, data: &[u8]) -> Result<(), WalFileError> {
        let (mut at, mut data) = (at, data);
        while !data.is_empty() {
            let size = self.names.size;
            let offset = at.segment_offset(size);
            let length = data.len().min((size.bytes() - offset) as usize);
            let faults = Arc::clone(&self.faults);
            let open = self.segment(at.segment_number(size))?;
            open.dirty = true;
            let write = || {
                if let Err(error) = faults.pass("wal.write") {
                    // What a write that was cut off leaves behind.
                    open.file.write_all_at(&data[..length / 2], offset)?;
                    return Err(error);
                }
                open.file.write_all_at(&data[..length], offset)
            };
            write().map_err(|source| WalFileError::Io { action: "write", path: open.path.clone(), source })?;
            at = at.advance(length as u64);
            data = &data[length..];
        }
        Ok(())
    }

    /// Makes everything written durable.
    pub(crate) fn sync(&mut self) -> Result<(), WalFileError> {
        for open in &mut self.unsynced {
            open.sync(&self.faults)?;
        }
        self.unsynced.clear();
        if let Some(open) = &mut self.current {
            open.sync(&self.faults)?;
        }
        if self.names_changed {
            let synced = self.faults.pass("wal.folder_fsync").and_then(|()| sync_dir(&self.names.dir));
            synced.map_err(|source| WalFileError::Io { action: "fsync", path: self.names.dir.clone(), source })?;
            self.names_changed = false;
        }
        Ok(())
    }

    /// Cuts the log off at `end`, durably: from there on there are zeros or no file.
    pub(crate) fn truncate(&mut self, end: Lsn) -> Result<(), WalFileError> {
        self.sync()?;
        self.current = None;
        let size = self.names.size;
        let (last, offset) = (end.segment_number(size), end.segment_offset(size));
        for number in self.names.list()?.into_iter().filter(|number| *number > last) {
            self.remove(number, "wal.remove")?;
            self.names_changed = true;
        }
        let path = self.names.path(last);
        if path.exists() {
            let cut = || {
                let file = OpenOptions::new().write(true).open(&path)?;
                self.faults.pass("wal.cut")?;
                file.set_len(offset)?;
                self.faults.pass("wal.uncut")?;
                file.set_len(size.bytes())?;
                self.faults.pass("wal.cut_fsync")?;
                file.sync_all()
            };
            cut().map_err(|source| WalFileError::Io { action: "cut", path: path.clone(), source })?;
        }
        self.sync()
    }

    /// Removes whole segments below `before`. Gives the oldest position that is left, if any were removed.
    pub(crate) fn trim(&mut self, before: Lsn) -> Result<Option<Lsn>, WalFileError> {
        let size = self.names.size;
        let keep_from = before.segment_number(size);
        let mut removed = false;
        for number in self.names.list()?.into_iter().filter(|number| *number < keep_from) {
            self.remove(number, "wal.trim")?;
            removed = true;
        }
        self.names_changed |= removed;
        Ok(removed.then(|| before.segment_start(size)))
    }

    fn remove(&self, number: u64, point: &str) -> Result<(), WalFileError> {
        let path = self.names.path(number);
        let removed = self.faults.pass(point).and_then(|()| fs::remove_file(&path));
        removed.map_err(|source| WalFileError::Io { action: "remove", path, source })
    }

    /// The oldest position that is kept.
    pub(crate) fn oldest(&self, start_lsn: Lsn) -> Result<Lsn, WalFileError> {
        let first = self.names.list()?.first().map(|number| Lsn::new(number * self.names.size.bytes()));
        Ok(first.map_or(start_lsn, |first| first.max(start_lsn)))
    }
}

/// The bytes of the first segment up to the timeline's start, where nobody has them: the header of the segment's first page,
/// and on the page where the timeline starts a header that says that everything up to the start belongs to a record from before,
/// so that readers begin exactly there.
fn synthetic_start(spec: &TimelineSpec, major: PgMajor) -> Vec<u8> {
    let (start, size) = (spec.start_lsn, spec.wal_segment_size);
    let stream = WalStream { major, segment_size: size, tli: spec.pg_tli, system_id: spec.system_id };
    let segment_start = start.segment_start(size);
    let start_page = Lsn::new(start.get() - start.page_offset());
    let mut bytes = vec![0; start.segment_offset(size) as usize];
    for page in [segment_start, start_page] {
        let at = page.saturating_sub(segment_start) as usize;
        // On a page before the one with the start nothing is readable.
        let readable_from = if page == start_page { start } else { page.advance(page_header_len(page, size) as u64) };
        let mut header = Vec::new();
        stream.synthetic_page_header(page, readable_from).write(&mut header);
        // A timeline that starts before or within a page's header gets that header from its writer.
        if let Some(place) = bytes.get_mut(at..at + header.len()) {
            place.copy_from_slice(&header);
        }
    }
    bytes
}

/// The ancestor's bytes of the segment in which a branch begins, up to the branch point; `None` where they are not all kept, as `oldest`
/// says, which is asked again where they are missing: they may be trimmed at this moment. What is kept and cannot be read is an error.
pub(crate) fn ancestor_bytes(
    names: &SegmentNames,
    start_lsn: Lsn,
    oldest: impl Fn() -> Lsn,
) -> Result<Option<Bytes>, WalFileError> {
    let from = start_lsn.segment_start(names.size());
    // The ancestor's own first segment is whole too: it begins with bytes of its ancestor or with synthetic headers.
    let is_trimmed = || from.segment_number(names.size()) < oldest().segment_number(names.size());
    let length = start_lsn.saturating_sub(from) as usize;
    // A branch that begins with a segment has nothing of its ancestor in it: that segment may not be begun there.
    if length == 0 || is_trimmed() {
        return Ok(None);
    }
    match names.read(from, length) {
        Err(WalFileError::Missing { .. }) if is_trimmed() => Ok(None),
        read => read.map(Some),
    }
}

/// Whether `dir` holds a timeline.
pub(crate) fn is_timeline_dir(dir: &Path) -> bool {
    dir.join(crate::control_file::FILE_NAME).exists()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn an_ancestors_bytes_that_cannot_be_read_are_not_taken_for_absent_ones() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let size = WalSegmentSize::DEFAULT;
        let names = SegmentNames { dir: dir.path().to_owned(), tli: PgTli::new(1), size };
        let segment = |number: u64| Lsn::new(number * size.bytes());
        let start = segment(3).advance(1000);
        let trimmed = ancestor_bytes(&names, start, || segment(4)).expect("nothing to read");
        assert_eq!(trimmed, None);
        assert_eq!(ancestor_bytes(&names, segment(3), || segment(3)).expect("nothing is needed"), None);
        // It is to be there, and is not.
        let missing = ancestor_bytes(&names, start, || segment(3));
        assert!(matches!(missing, Err(WalFileError::Missing { .. })), "{missing:?}");
        // It is trimmed while it is read.
        let asked = Cell::new(0);
        let at_this_moment = || segment(2 + 2 * asked.replace(asked.get() + 1));
        assert_eq!(ancestor_bytes(&names, start, at_this_moment).expect("it is not kept any more"), None);
        assert_eq!(asked.get(), 2);
        // A folder can be opened, and not read.
        fs::create_dir(names.path(3)).expect("made");
        let unreadable = ancestor_bytes(&names, start, || segment(3));
        assert!(matches!(unreadable, Err(WalFileError::Io { action: "read", .. })), "{unreadable:?}");
        fs::remove_dir(names.path(3)).expect("removed");
        let mut files = WalFiles::new(names.clone(), &Arc::default());
        files.write(segment(3), &[7; 1000]).expect("written");
        let bytes = ancestor_bytes(&names, start, || segment(3)).expect("readable");
        assert_eq!(bytes.as_deref(), Some(&[7; 1000][..]));
    }

    #[test]
    fn the_log_is_written_into_what_was_filled_before_and_zeros_follow_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let size = WalSegmentSize::DEFAULT;
        let names = SegmentNames { dir: dir.path().to_owned(), tli: PgTli::new(1), size };
        let mut files = WalFiles::new(names, &Arc::default());
        let start = Lsn::new(3 * size.bytes() + 1000);
        files.append(start, &[7; 100]).expect("appended");
        files.sync().expect("durable");
        let path = files.names.path(3);
        let allocated = || fs::metadata(&path).expect("the file is there").blocks();
        let before = allocated();
        let mut at = start.advance(100);
        while at.segment_offset(size) < FILL_STEP_BYTES {
            let length = 5000.min(FILL_STEP_BYTES - at.segment_offset(size));
            files.append(at, &vec![7; length as usize]).expect("appended");
            files.sync().expect("durable");
            assert_eq!(allocated(), before, "{at}");
            at = at.advance(length);
        }
        // The last bytes of a segment, and the first of the next.
        let end = Lsn::new(4 * size.bytes());
        files.append(Lsn::new(end.get() - 10), &[7; 20]).expect("appended");
        files.sync().expect("durable");
        let bytes = fs::read(&path).expect("readable");
        assert_eq!(bytes.len() as u64, size.bytes());
        assert!(bytes[1000..FILL_STEP_BYTES as usize].iter().all(|byte| *byte == 7));
        assert!(bytes[FILL_STEP_BYTES as usize..bytes.len() - 10].iter().all(|byte| *byte == 0));
        let next = fs::read(files.names.path(4)).expect("readable");
        assert!(next[..10].iter().all(|byte| *byte == 7) && next[10..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_comes_at_once_in_large_pieces_is_written_once() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let size = WalSegmentSize::DEFAULT;
        let names = SegmentNames { dir: dir.path().to_owned(), tli: PgTli::new(1), size };
        let mut files = WalFiles::new(names, &Arc::default());
        let (start, piece) = (Lsn::new(3 * size.bytes()), vec![7; FILL_STEP_BYTES as usize / 2]);
        let mut at = start;
        for _ in 0..5 {
            files.append(at, &piece).expect("appended");
            at = at.advance(piece.len() as u64);
        }
        files.sync().expect("durable");
        let path = files.names.path(3);
        let allocated = || fs::metadata(&path).expect("the file is there").blocks() * 512;
        assert_eq!(allocated(), 5 * piece.len() as u64);
        // From there on commits find their place filled again.
        files.append(at, &[7; 100]).expect("appended");
        files.sync().expect("durable");
        assert_eq!(allocated(), 6 * piece.len() as u64);
    }
}
