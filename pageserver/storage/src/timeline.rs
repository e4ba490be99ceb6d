//! A loaded timeline.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use ardent_object_store::{ObjectStore, StoreError};
use ardent_types::{Lsn, TenantId, TimelineId};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::compact::FailedCompaction;
use crate::error::{CommitError, CorruptFile, TimelineError, WaitError};
use crate::import::Import;
use crate::kept_state::Incoming;
use crate::layer::{Layer, LayerError};
use crate::layer_map::{LayerMap, LayerSet};
use crate::manifest::{Ancestor, Lease, Manifest, TimelineFacts};
use crate::manifest_log::ManifestLog;
use crate::mem_layer::MemLayer;
use crate::object_names::TimelineNames;
use crate::position::RecordPosition;
use crate::progress::Progress;
use crate::shared::Shared;
use crate::spill::SPILLED;

/// A branch of a tenant's history: takes versions in, gives content at any retained LSN out.
///
/// All methods block and can be called from any thread. One writer at a time makes progress; readers never wait for it, nor
/// for flushes, compaction or garbage collection.
pub struct Timeline {
    pub(crate) this: Weak<Timeline>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) names: TimelineNames,
    /// Tells this loading of the timeline from others in the page cache.
    pub(crate) instance: u64,
    pub(crate) facts: TimelineFacts,
    pub(crate) ancestor: Option<Ancestor>,
    pub(crate) parent: OnceLock<Arc<Timeline>>,
    pub(crate) layers: RwLock<Arc<LayerSet>>,
    pub(crate) progress: Progress,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) manifest: Mutex<ManifestLog>,
    pub(crate) durable: AtomicU64,
    /// What of the manifest others than its writers look at: its lock is held while it is written.
    pub(crate) durable_record: RwLock<RecordPosition>,
    pub(crate) metadata: RwLock<Arc<BTreeMap<String, serde_json::Value>>>,
    /// The record at whose end it begins.
    pub(crate) begins: RecordPosition,
    pub(crate) retained_from: AtomicU64,
    /// The record that ends there. `None`: it is retired, or an older version of the program gave up history within a record.
    pub(crate) retained_record: RwLock<Option<RecordPosition>>,
    /// Archived WAL is gone before the segment with this number, as far as is known.
    pub(crate) wal_kept_from: AtomicU64,
    pub(crate) leases: RwLock<Arc<BTreeMap<String, Lease>>>,
    pub(crate) importing: AtomicBool,
    pub(crate) import: Mutex<Option<Import>>,
    /// What a compute that is being suspended has sent of its state so far.
    pub(crate) incoming_state: Mutex<Option<Incoming>>,
    /// Held while a frozen layer is written to a local file that stays one for a while.
    pub(crate) spilling: Mutex<()>,
    /// Held while a frozen layer is stored.
    pub(crate) flushing: Mutex<()>,
    pub(crate) flush_state: Mutex<FlushState>,
    pub(crate) flushed: Condvar,
    /// Held while compaction or garbage collection works on the files.
    pub(crate) compacting: Mutex<()>,
    /// Why the engine's own compaction could not go on, until it can.
    pub(crate) compaction_failed: Mutex<Option<FailedCompaction>>,
    /// Shared by whoever makes a branch, exclusive for garbage collection (checklist 58).
    pub(crate) pinning: RwLock<()>,
    /// Shared by whoever makes an object of the timeline, exclusive for its deletion.
    pub(crate) storing: RwLock<()>,
    /// Milliseconds after the engine was opened.
    pub(crate) last_used_ms: AtomicU64,
    /// False once a commit found that the timeline is another page server's, or deleted.
    pub(crate) owned: AtomicBool,
}

/// What only the writer of the open layer touches.
pub(crate) struct Writer {
    pub(crate) poisoned: bool,
    /// When the first version of the open layer came.
    pub(crate) open_since: Option<Instant>,
}

/// How flushing goes.
#[derive(Default)]
pub(crate) struct FlushState {
    pub(crate) last_error: Option<Arc<CommitError>>,
}

/// How much of what a timeline has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimelineSizes {
    /// Its own layer files, in bytes.
    pub stored_bytes: u64,
    /// How many.
    pub files: usize,
    /// Of these, straight from memory and not yet compacted.
    pub uncompacted_files: usize,
    /// Versions in memory, in bytes.
    pub memory_bytes: usize,
    /// Files that a read at the head visits at most: uncompacted ones, and where most of them lie above each other the compacted ones and
    /// an image.
    pub files_per_read_max: usize,
    /// Deltas that compacted files have of a key since its last image, as an average over a file's keys, where there are most.
    pub deltas_per_key_max: u64,
}

impl Timeline {
    /// The timeline that `manifest` describes.
    pub(crate) fn from_manifest(shared: &Arc<Shared>, log: ManifestLog) -> Result<Arc<Timeline>, CorruptFile> {
        let manifest = log.current().clone();
        let names = TimelineNames { tenant: manifest.tenant, timeline: manifest.timeline };
        let files = manifest.layers.iter().map(|desc| {
            let name = names.layer(&desc.file).ok_or_else(|| CorruptFile {
                file: names.manifest(manifest.generation).to_string(),
                offset: 0,
                expected: format!("good names of layer files, found {:?}", desc.file),
                keys: desc.keys.to_string(),
            })?;
            Ok(Layer::new(desc.clone(), name, shared.config.store.clone(), shared.blocks.clone()))
        });
        let files = Arc::new(LayerMap::new(files.collect::<Result<_, CorruptFile>>()?));
        let last = manifest.last_record;
        let open = Arc::new(MemLayer::new(last.end, shared.memory.clone()));
        let import = manifest.importing.then(|| Import::new(shared, names));
        let begins = manifest.beginning();
        let retained_record = manifest.retained_record.or((manifest.retained_from == begins.end).then_some(begins));
        Ok(Arc::new_cyclic(|this| Timeline {
            this: this.clone(),
            shared: shared.clone(),
            names,
            instance: shared.next_instance(),
            facts: manifest.facts,
            ancestor: manifest.ancestor,
            parent: OnceLock::new(),
            layers: RwLock::new(Arc::new(LayerSet { open, frozen: Vec::new(), files })),
            progress: Progress::new(last),
            writer: Mutex::new(Writer { poisoned: false, open_since: None }),
            manifest: Mutex::new(log),
            durable: AtomicU64::new(last.end.get()),
            durable_record: RwLock::new(last),
            metadata: RwLock::new(Arc::new(manifest.metadata.clone())),
            begins,
            retained_from: AtomicU64::new(manifest.retained_from.get()),
            retained_record: RwLock::new(retained_record),
            // Nothing of it is older than itself.
            wal_kept_from: AtomicU64::new(begins.end.segment_number(manifest.facts.wal_segment_size)),
            leases: RwLock::new(Arc::new(manifest.leases.clone())),
            importing: AtomicBool::new(manifest.importing),
            import: Mutex::new(import),
            incoming_state: Mutex::new(None),
            spilling: Mutex::new(()),
            flushing: Mutex::new(()),
            flush_state: Mutex::default(),
            flushed: Condvar::new(),
            compacting: Mutex::new(()),
            compaction_failed: Mutex::new(None),
            pinning: RwLock::new(()),
            storing: RwLock::new(()),
            last_used_ms: AtomicU64::new(shared.now_ms()),
            owned: AtomicBool::new(true),
        }))
    }

    /// Its tenant.
    pub fn tenant(&self) -> TenantId {
        self.names.tenant
    }

    /// Its id.
    pub fn id(&self) -> TimelineId {
        self.names.timeline
    }

    /// What never changes about it.
    pub fn facts(&self) -> &TimelineFacts {
        &self.facts
    }

    /// Where it hangs; `None` for a root.
    pub fn ancestor(&self) -> Option<Ancestor> {
        self.ancestor
    }

    /// The last record that readers may see.
    pub fn last_record(&self) -> RecordPosition {
        self.progress.last()
    }

    /// Up to here nothing is lost by a crash: WAL that ends at or below it need not be sent again.
    pub fn disk_consistent_lsn(&self) -> Lsn {
        Lsn::new(self.durable.load(Ordering::Acquire))
    }

    /// The last record that [`Timeline::disk_consistent_lsn`] covers: where receiving WAL goes on after a restart.
    pub fn durable_record(&self) -> RecordPosition {
        *self.durable_record.read()
    }

    /// Reads and branches below this need a pin. Where branches can be made from, [`Timeline::oldest_record`] says.
    pub fn retained_from(&self) -> Lsn {
        Lsn::new(self.retained_from.load(Ordering::Acquire))
    }

    /// Whether the import isn't finished: nothing can be read, and WAL isn't taken.
    pub fn is_importing(&self) -> bool {
        self.importing.load(Ordering::Acquire)
    }

    /// An error once another page server owns the timeline or it is deleted.
    pub fn check_owned(&self) -> Result<(), CommitError> {
        if self.owned.load(Ordering::Acquire) { Ok(()) } else { self.manifest.lock().check() }
    }

    /// The same, after a look into the store.
    pub(crate) fn look_for_owner(&self) -> Result<(), CommitError> {
        let found = self.manifest.lock().look();
        self.note_loss(&found);
        found
    }

    /// Makes an object of this timeline. One that is deleted gets none: nobody would remove it.
    pub(crate) fn store_object(
        &self,
        put: impl FnOnce(&dyn ObjectStore) -> Result<(), StoreError>,
    ) -> Result<(), CommitError> {
        let _storing = self.storing.read();
        self.check_owned()?;
        Ok(put(&*self.shared.config.store)?)
    }

    /// Marks the timeline as deleted and waits for objects that are being made: all that there are can be listed then.
    pub(crate) fn begin_deletion(&self) -> Result<(), CommitError> {
        self.commit(|manifest| manifest.deleted = true, |_| self.owned.store(false, Ordering::Release))?;
        self.progress.wake_all();
        drop(self.storing.write());
        Ok(())
    }

    /// Why a file could not be read: it may be gone because another page server took this timeline, or an ancestor, and removed it. Where the store
    /// does not say whose it is, that is the error: nobody is told of damage that may be none.
    pub(crate) fn why_corrupt(&self, file: CorruptFile) -> CommitError {
        // Nobody else removes what is not in the store.
        if file.file.starts_with(SPILLED) {
            return CommitError::Corrupt(file);
        }
        let mut timeline = self;
        loop {
            if let Err(error) = timeline.look_for_owner() {
                return error;
            }
            match timeline.parent() {
                Ok(Some(parent)) => timeline = parent,
                _ => return CommitError::Corrupt(file),
            }
        }
    }

    /// Stops everything that waits for a timeline that was lost.
    fn note_loss(&self, result: &Result<(), CommitError>) {
        if let Err(CommitError::Fenced { .. } | CommitError::Deleted { .. }) = result {
            self.owned.store(false, Ordering::Release);
            self.progress.wake_all();
        }
    }

    /// Waits until WAL up to `lsn` is ingested here, and on ancestors up to where this timeline hangs.
    pub fn wait_for(&self, lsn: Lsn, deadline: Instant) -> Result<(), WaitError> {
        let behind =
            |timeline: &Timeline, lsn| WaitError { timeline: timeline.id(), lsn, last: timeline.progress.end() };
        if !self.progress.wait_for(lsn, deadline) {
            return Err(behind(self, lsn));
        }
        // After a restart an ancestor's WAL may have to come in again; its branches are at home before that.
        if let (Some(ancestor), Ok(Some(parent))) = (self.ancestor, self.parent()) {
            let lsn = lsn.min(ancestor.point.lsn);
            if parent.progress.end() < lsn || parent.ancestor.is_some() {
                return parent.wait_for(lsn, deadline);
            }
        }
        Ok(())
    }

    /// For an async caller: true if WAL up to `lsn` is ingested, else `waker` is woken when it is. It may be woken early.
    pub fn poll_reached(&self, lsn: Lsn, waker: &Waker) -> bool {
        self.progress.poll(lsn, waker)
    }

    /// The parent, loaded; `None` for a root. Also `None` if the engine is gone, when nothing is asked any more.
    pub(crate) fn parent(&self) -> Result<Option<&Arc<Timeline>>, TimelineError> {
        let Some(ancestor) = self.ancestor else { return Ok(None) };
        if let Some(parent) = self.parent.get() {
            return Ok(Some(parent));
        }
        let Some(parent) = self.shared.load(self.names.tenant, ancestor.timeline)? else { return Ok(None) };
        Ok(Some(self.parent.get_or_init(|| parent)))
    }

    /// The timeline that this one hangs on, loaded; `None` for a root.
    pub fn ancestor_timeline(&self) -> Result<Option<Arc<Timeline>>, TimelineError> {
        Ok(self.parent()?.cloned())
    }

    /// Small facts of the caller's, durable when this returns.
    pub fn set_metadata(&self, name: &str, value: serde_json::Value) -> Result<(), CommitError> {
        let insert = |manifest: &mut Manifest| {
            manifest.metadata.insert(name.to_owned(), value);
        };
        self.commit(insert, |manifest| *self.metadata.write() = Arc::new(manifest.metadata.clone()))
    }

    /// What [`Timeline::set_metadata`] was given last. Waits for nobody.
    pub fn get_metadata(&self, name: &str) -> Option<serde_json::Value> {
        self.metadata.read().get(name).cloned()
    }

    /// Sizes of its own layers.
    pub fn sizes(&self) -> TimelineSizes {
        let set = self.layer_set();
        let layers = set.files.layers();
        TimelineSizes {
            stored_bytes: layers.iter().map(|layer| layer.desc.bytes).sum(),
            files: layers.len(),
            uncompacted_files: set.files.debt().level_0_files,
            memory_bytes: set.open.bytes() + set.frozen.iter().map(|frozen| frozen.memory_bytes()).sum::<usize>(),
            files_per_read_max: set.files.debt().files_per_read(),
            deltas_per_key_max: set.files.debt().deltas_per_key,
        }
    }

    /// Reads and checks everything in its own layer files. How many versions there are; the damaged files.
    pub fn verify(&self) -> Result<(u64, Vec<CorruptFile>), StoreError> {
        let (mut versions, mut damaged) = (0, Vec::new());
        for layer in self.layer_set().files.layers() {
            match layer.verify() {
                Ok(count) => versions += count,
                Err(LayerError::Corrupt(error)) => damaged.push(error.into()),
                Err(LayerError::Store(error)) => return Err(error),
            }
        }
        Ok((versions, damaged))
    }

    pub(crate) fn layer_set(&self) -> Arc<LayerSet> {
        self.layers.read().clone()
    }

    /// Replaces the set of layers by what `change` makes of it.
    pub(crate) fn change_layers(&self, change: impl FnOnce(&mut LayerSet)) {
        let mut slot = self.layers.write();
        let mut set = (**slot).clone();
        change(&mut set);
        *slot = Arc::new(set);
    }

    pub(crate) fn manifest_now(&self) -> Arc<Manifest> {
        self.manifest.lock().current().clone()
    }

    pub(crate) fn touch(&self) {
        self.last_used_ms.store(self.shared.now_ms(), Ordering::Relaxed);
    }

    /// Does `work`, which doesn't count as a use of the timeline that keeps it loaded.
    pub fn unused<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        let last_used_ms = self.last_used_ms.load(Ordering::Relaxed);
        let done = work(self);
        self.last_used_ms.store(last_used_ms, Ordering::Relaxed);
        done
    }

    pub(crate) fn idle_for(&self) -> Duration {
        Duration::from_millis(self.shared.now_ms().saturating_sub(self.last_used_ms.load(Ordering::Relaxed)))
    }

    /// Makes a changed manifest durable, then runs `then` before another commit can begin.
    pub(crate) fn commit(
        &self,
        change: impl FnOnce(&mut Manifest),
        then: impl FnOnce(&Manifest),
    ) -> Result<(), CommitError> {
        let mut log = self.manifest.lock();
        let result = log.commit(change);
        self.note_loss(&result);
        result?;
        then(log.current());
        Ok(())
    }
}

impl std::fmt::Debug for Timeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timeline")
            .field("tenant", &self.names.tenant)
            .field("timeline", &self.names.timeline)
            .field("last_record", &self.progress.last())
            .finish_non_exhaustive()
    }
}
