//! Whole WAL segments in the object store: put there once they are committed, read from there once they are trimmed here.
//!
//! ```text
//!  commit passes the end of a segment ──► Archiver: one thread ──put──► timelines/TENANT/TIMELINE/wal/SEGMENT
//!                                             │ archived up to                        │
//!                                             ▼                                       ▼
//!  what is archived, far enough back and with all peers is trimmed here     ArchivedWal: a reader's block
//! ```
//!
//! All safekeepers of a timeline put the same committed bytes under the same name. Who finds a segment there compares checksums and
//! trims nothing if they differ. The page server's garbage collection removes what no history needs any more.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use ardent_api::wal_service::{ARCHIVE_STALLS_MAX, ArchiveStall, TimelineSpec};
use ardent_object_store::{ErrorKind, ObjectName, ObjectStore, StoreError, list_all};
use ardent_pg_format::segment;
use ardent_types::{Lsn, TenantId, TimelineId};

use crate::archived_segment::{BlockEntry, HEADER_LEN_MAX, SegmentFormatError, SegmentHeader, pack};
use crate::failure::with_causes;
use crate::metrics::Metrics;
use crate::timeline::TimelineView;
use crate::wal_files::{SegmentNames, WalFileError};

/// The first and the longest pause after a failure.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(8)];
/// How long the end of a safekeeper waits for what is on its way to the store, which may be away.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Added to the archiver's nice value: writers come first.
const NICENESS: i32 = 5;

/// The archive refused, or does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object.
    #[error("archived WAL segment {object} cannot be used; if the page server has this WAL already, remove the object")]
    Damaged {
        /// Its name.
        object: ObjectName,
        /// Why.
        source: SegmentFormatError,
    },
    /// Two safekeepers disagree about committed WAL, or two installations share a store.
    #[error(
        "{object} holds other WAL than this safekeeper has committed: nothing is trimmed here. \
         See that no other installation uses this store's prefix"
    )]
    OtherContent {
        /// The object.
        object: ObjectName,
    },
    /// The segment here.
    #[error(transparent)]
    Local(#[from] WalFileError),
    /// Compression.
    #[error("{object} cannot be compressed")]
    Pack {
        /// The object.
        object: ObjectName,
        /// Why not.
        source: io::Error,
    },
}

impl ArchiveError {
    /// Whether what is stored is wrong, and not the way to it.
    pub(crate) fn is_corruption(&self) -> bool {
        match self {
            ArchiveError::Damaged { .. } | ArchiveError::OtherContent { .. } => true,
            ArchiveError::Store(error) => matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::OutOfRange),
            ArchiveError::Local(_) | ArchiveError::Pack { .. } => false,
        }
    }
}

/// Where a safekeeper's segments go. Methods block.
#[derive(Debug)]
pub(crate) struct WalArchive {
    store: Arc<dyn ObjectStore>,
}

impl WalArchive {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> WalArchive {
        WalArchive { store }
    }

    fn folder(spec: &TimelineSpec) -> String {
        format!("timelines/{}/{}/wal/", spec.tenant, spec.timeline)
    }

    fn name(spec: &TimelineSpec, number: u64) -> ObjectName {
        let file = segment::wal_file_name(spec.pg_tli, number, spec.wal_segment_size);
        ObjectName::new(format!("{}{file}", Self::folder(spec))).expect("ids and numbers make good names")
    }

    /// The header of a segment; `None` if it is not archived.
    fn header(&self, spec: &TimelineSpec, number: u64) -> Result<Option<SegmentHeader>, ArchiveError> {
        let object = Self::name(spec, number);
        let part = match self.store.get_part(&object, 0..HEADER_LEN_MAX as u64) {
            Ok(part) => part,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let header = SegmentHeader::decode(&part.body, spec, number).and_then(|header| {
            let (found, expected) = (part.object_size_bytes, header.object_len());
            if found == expected { Ok(header) } else { Err(SegmentFormatError::Length { found, expected }) }
        });
        header.map(Some).map_err(|source| ArchiveError::Damaged { object, source })
    }

    fn block(&self, spec: &TimelineSpec, header: &SegmentHeader, block: usize) -> Result<Bytes, ArchiveError> {
        let object = Self::name(spec, header.start.segment_number(spec.wal_segment_size));
        let place = header.place_of(block).unwrap_or_default();
        let stored = self.store.get_range(&object, place)?;
        let bytes = header.unpack(block, &stored);
        bytes.map(Bytes::from).map_err(|source| ArchiveError::Damaged { object, source })
    }

    /// The first of the archived segments that follow each other without a gap up to `until`, the start of a segment; `until` itself if the
    /// one before it is not archived.
    pub(crate) fn oldest_before(&self, spec: &TimelineSpec, until: Lsn) -> Result<Lsn, ArchiveError> {
        let size = spec.wal_segment_size;
        let mut oldest = until.segment_number(size);
        let objects = list_all(&*self.store, &Self::folder(spec), false)?.objects;
        // Names sort as their numbers do.
        for object in objects.iter().rev() {
            let parsed = segment::parse_wal_file_name(object.name.file_name(), size);
            let Some((_, number)) = parsed.filter(|(tli, number)| *tli == spec.pg_tli && *number < oldest) else {
                continue;
            };
            if number + 1 < oldest {
                break;
            }
            oldest = number;
        }
        Ok(Lsn::new(oldest * size.bytes()).max(spec.start_lsn.segment_start(size)))
    }

    /// Archives segment `number`, all of whose bytes are committed. False: it was there already, with the same content. The object is made in
    /// memory: a disk that is full gets room by this.
    fn put(&self, names: &SegmentNames, spec: &TimelineSpec, number: u64) -> Result<bool, ArchiveError> {
        let object = Self::name(spec, number);
        let there = self.header(spec, number)?;
        let mut header = SegmentHeader::new(spec, number);
        let mut body = vec![0; header.len()];
        for block in 0..header.block_count() {
            let bytes = names.read(header.block_start(block), header.block_len(block))?;
            let before = body.len();
            if there.is_none() {
                let packed = pack(&bytes);
                body.extend(packed.map_err(|source| ArchiveError::Pack { object: object.clone(), source })?);
            }
            let stored = (body.len() - before) as u32;
            header.blocks.push(BlockEntry { stored, crc: crc32c::crc32c(&bytes) });
        }
        if there.is_none() {
            body[..header.len()].copy_from_slice(&header.encode());
            match self.store.put_if_absent(&object, &body) {
                // Another safekeeper was first.
                Err(error) if error.kind() == ErrorKind::Precondition => {}
                put => return put.map(|()| true).map_err(ArchiveError::from),
            }
        }
        let there = match there {
            Some(there) => Some(there),
            None => self.header(spec, number)?,
        };
        match there {
            Some(there) if there.holds_the_same(&header) => Ok(false),
            _ => Err(ArchiveError::OtherContent { object }),
        }
    }
}

/// A reader's place in the archive: the block that it reads.
#[derive(Debug)]
pub(crate) struct ArchivedWal {
    archive: Arc<WalArchive>,
    spec: TimelineSpec,
    header: Option<SegmentHeader>,
    /// Its first byte's position, and the bytes.
    block: Option<(Lsn, Bytes)>,
}

impl ArchivedWal {
    pub(crate) fn new(archive: Arc<WalArchive>, spec: TimelineSpec) -> ArchivedWal {
        ArchivedWal { archive, spec, header: None, block: None }
    }

    /// Whether the WAL at `lsn` is archived. Blocks.
    pub(crate) fn has(&mut self, lsn: Lsn) -> Result<bool, ArchiveError> {
        let size = self.spec.wal_segment_size;
        if self.header.as_ref().is_none_or(|header| header.start != lsn.segment_start(size)) {
            self.header = self.archive.header(&self.spec, lsn.segment_number(size))?;
        }
        Ok(self.header.is_some())
    }

    /// Up to `length` bytes at `from`; fewer at the end of a block. `None`: they are not archived. Blocks.
    pub(crate) fn read(&mut self, from: Lsn, length: usize) -> Result<Option<Bytes>, ArchiveError> {
        let inside = |(start, bytes): &(Lsn, Bytes)| {
            let offset = from.checked_sub(*start).filter(|offset| *offset < bytes.len() as u64)? as usize;
            Some(bytes.slice(offset..bytes.len().min(offset.saturating_add(length))))
        };
        if let Some(bytes) = self.block.as_ref().and_then(inside) {
            return Ok(Some(bytes));
        }
        let Some(header) = self.has(from)?.then_some(self.header.as_ref()).flatten() else { return Ok(None) };
        let block = (from.segment_offset(self.spec.wal_segment_size) / header.block_bytes()) as usize;
        let bytes = self.archive.block(&self.spec, header, block)?;
        self.block = Some((header.block_start(block), bytes));
        Ok(self.block.as_ref().and_then(inside))
    }
}

/// The way to the thread that archives. It ends when all of these are gone.
#[derive(Clone, Debug)]
pub(crate) struct Archiver {
    archive: Arc<WalArchive>,
    offers: Sender<Arc<TimelineView>>,
    done: Done,
    stalls: Stalls,
}

/// How far timelines are archived, also those that are not loaded any more: what is known need not be asked of the store again.
type Done = Arc<Mutex<HashMap<TimelineId, Lsn>>>;

/// A timeline whose next segment could not be archived.
#[derive(Debug)]
struct Stall {
    tenant: TenantId,
    /// The segment's start.
    lsn: Lsn,
    since: Instant,
    message: String,
}

/// What cannot be archived at present. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stalls(Arc<Mutex<HashMap<TimelineId, Stall>>>);

impl Stalls {
    fn note(&self, view: &TimelineView, lsn: Lsn, error: &ArchiveError) {
        let mut stalls = self.0.lock();
        // As with what is done: of one that was deleted at this moment nothing is kept.
        if view.is_gone() {
            return;
        }
        let message = with_causes(error);
        let tenant = view.spec.tenant;
        let stall = Stall { tenant, lsn, since: Instant::now(), message: String::new() };
        let stall = stalls.entry(view.spec.timeline).or_insert(stall);
        (stall.lsn, stall.message) = (lsn, message);
    }

    fn clear(&self, timeline: TimelineId) {
        self.0.lock().remove(&timeline);
    }

    /// The oldest of them, and how many there are.
    pub(crate) fn told(&self) -> (Vec<ArchiveStall>, u64) {
        let stalls = self.0.lock();
        let told = |(timeline, stall): (&TimelineId, &Stall)| ArchiveStall {
            tenant: stall.tenant,
            timeline: *timeline,
            lsn: stall.lsn,
            for_s: stall.since.elapsed().as_secs(),
            message: stall.message.clone(),
        };
        let mut oldest: Vec<_> = stalls.iter().collect();
        oldest.sort_by_key(|(_, stall)| stall.since);
        (oldest.into_iter().take(ARCHIVE_STALLS_MAX).map(told).collect(), stalls.len() as u64)
    }

    /// The same for people.
    pub(crate) fn problems(&self) -> Vec<String> {
        let (oldest, count) = self.told();
        let more = count - oldest.len() as u64;
        let text = |stall: ArchiveStall| {
            format!("WAL of timeline {} at {} is not archived: {}", stall.timeline, stall.lsn, stall.message)
        };
        let mut problems: Vec<String> = oldest.into_iter().map(text).collect();
        if more > 0 {
            problems.push(format!("WAL of {more} more timelines is not archived"));
        }
        problems
    }
}

impl Archiver {
    /// Starts the thread.
    pub(crate) fn start(store: Arc<dyn ObjectStore>, metrics: Metrics) -> io::Result<(Archiver, ArchiverThread)> {
        let (offers, offered) = mpsc::channel();
        let (running, ended) = mpsc::channel();
        let archive = Arc::new(WalArchive::new(store));
        let (stopping, done, stalls) = (Arc::new(AtomicBool::new(false)), Done::default(), Stalls::default());
        let mut worker = Worker {
            done: Arc::clone(&done),
            stalls: stalls.clone(),
            archive: Arc::clone(&archive),
            metrics,
            stopping: Arc::clone(&stopping),
            pending: HashMap::new(),
        };
        let thread = std::thread::Builder::new().name("wal-archive".to_owned()).spawn(move || {
            worker.run(&offered);
            drop(running);
        })?;
        Ok((Archiver { archive, offers, done, stalls }, ArchiverThread { thread, stopping, ended }))
    }

    pub(crate) fn archive(&self) -> &Arc<WalArchive> {
        &self.archive
    }

    /// The start of the first segment of a timeline that is not known to be archived, if one before it is.
    pub(crate) fn archived(&self, timeline: TimelineId) -> Option<Lsn> {
        self.done.lock().get(&timeline).copied()
    }

    /// What cannot be archived at present.
    pub(crate) fn stalls(&self) -> &Stalls {
        &self.stalls
    }

    /// A timeline was deleted.
    pub(crate) fn forget(&self, timeline: TimelineId) {
        self.done.lock().remove(&timeline);
        self.stalls.clear(timeline);
    }

    /// A timeline has whole committed segments, maybe, that are not archived.
    pub(crate) fn offer(&self, timeline: Arc<TimelineView>) {
        // Only a thread that is stopping does not take it; the next start does.
        let _ = self.offers.send(timeline);
    }
}

/// The thread, to be waited for.
#[derive(Debug)]
pub(crate) struct ArchiverThread {
    thread: JoinHandle<()>,
    stopping: Arc<AtomicBool>,
    /// Closed when it has ended.
    ended: Receiver<()>,
}

impl ArchiverThread {
    /// Ends it after the segment that it is at, or leaves it to itself if that takes long: an object is there whole or not at all, and the
    /// next start puts it. Blocks.
    pub(crate) fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        if self.ended.recv_timeout(STOP_DEADLINE) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a segment was still on its way to the archive; the next start archives it");
            return;
        }
        if self.thread.join().is_err() {
            tracing::error!("the thread that archives WAL panicked");
        }
    }
}

struct Pending {
    timeline: Arc<TimelineView>,
    due: Instant,
    pause: Duration,
}

struct Worker {
    archive: Arc<WalArchive>,
    metrics: Metrics,
    stopping: Arc<AtomicBool>,
    done: Done,
    stalls: Stalls,
    pending: HashMap<TimelineId, Pending>,
}

impl Worker {
    fn run(&mut self, offered: &Receiver<Arc<TimelineView>>) {
        // Refused where limits forbid it, which then costs writers a little.
        if let Err(error) = lower_priority() {
            tracing::debug!(%error, "WAL is archived at the priority of writers");
        }
        while !self.stopping.load(Ordering::Acquire) {
            let now = Instant::now();
            let next = self.pending.values().map(|pending| pending.due).min();
            let wait = next.map_or(Duration::from_secs(3600), |due| due.saturating_duration_since(now));
            match offered.recv_timeout(wait) {
                Ok(timeline) => self.take(timeline),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while let Ok(timeline) = offered.try_recv() {
                self.take(timeline);
            }
            let now = Instant::now();
            let due: Vec<TimelineId> =
                self.pending.iter().filter(|(_, pending)| pending.due <= now).map(|(id, _)| *id).collect();
            // One segment of each, so that none waits for another's backlog.
            for id in due {
                if !self.stopping.load(Ordering::Acquire) {
                    self.advance(id);
                }
            }
        }
    }

    fn take(&mut self, timeline: Arc<TimelineView>) {
        let fresh = Pending { timeline: Arc::clone(&timeline), due: Instant::now(), pause: RETRY_PAUSES[0] };
        let pending = self.pending.entry(timeline.spec.timeline).or_insert(fresh);
        // It may have been loaded anew.
        pending.timeline = timeline;
    }

    fn advance(&mut self, id: TimelineId) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        let view = Arc::clone(&pending.timeline);
        let size = view.spec.wal_segment_size;
        let number = view.archived_lsn().segment_number(size);
        let end = Lsn::new(number.saturating_add(1).saturating_mul(size.bytes()));
        if view.is_gone() || end > *view.commit().borrow() {
            self.pending.remove(&id);
            self.stalls.clear(id);
            return;
        }
        match self.archive.put(&view.names, &view.spec, number) {
            Ok(is_new) => {
                pending.pause = RETRY_PAUSES[0];
                self.stalls.clear(id);
                view.set_archived(end);
                // Of one that was deleted at this moment nothing is kept: it is gone before it is forgotten.
                let mut done = self.done.lock();
                if !view.is_gone() {
                    done.insert(id, end);
                }
                drop(done);
                self.metrics.archived(is_new.then_some(size.bytes()));
            }
            // It was deleted meanwhile, or is being loaded again and offered then.
            Err(ArchiveError::Local(_)) if view.is_gone() => {
                self.pending.remove(&id);
                self.stalls.clear(id);
            }
            Err(error) => {
                self.metrics.archive_failed();
                let start = Lsn::new(number * size.bytes());
                self.stalls.note(&view, start, &error);
                tracing::warn!(timeline = %id, lsn = %start, error = with_causes(&error), pause = ?pending.pause, "WAL is not archived; trying again");
                pending.due = Instant::now() + pending.pause;
                pending.pause = (pending.pause * 2).min(RETRY_PAUSES[1]);
            }
        }
    }
}

/// Of this thread alone, as Linux has it.
fn lower_priority() -> io::Result<()> {
    // SAFETY: no memory is concerned; 0 is the calling thread.
    let result = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, NICENESS) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
