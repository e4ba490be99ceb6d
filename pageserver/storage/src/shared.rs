//! What all timelines of an engine share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use ardent_object_store::{LocalFolder, ObjectStore};
use ardent_types::{Lsn, TenantId, TimelineId};
use bytes::Bytes;
use crossbeam_channel::Sender;

use crate::clock_cache::ClockCache;
use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::layer::BlockCache;
use crate::mem_layer::MemoryGauge;
use crate::stats::Stats;
use crate::stored_key::StoredKey;
use crate::timeline::Timeline;

/// A store that has failed a flush is away for this long, unless it takes another before. Longer than a call of it is tried for.
const STORE_AWAY_FOR: Duration = Duration::from_secs(120);

/// Rebuilt content of a key: right for every LSN from `version` to `valid_to`, both included.
#[derive(Clone)]
pub(crate) struct CachedPage {
    pub(crate) version: Lsn,
    pub(crate) valid_to: Lsn,
    /// Empty: absent.
    pub(crate) content: Bytes,
}

/// Rebuilt content by loaded timeline (its number in this process) and key.
pub(crate) type PageCache = ClockCache<(u64, StoredKey), CachedPage>;

/// See the module's documentation.
pub(crate) struct Shared {
    pub(crate) config: EngineConfig,
    /// Random per process: in the names of layer files and in manifests.
    pub(crate) writer: String,
    pub(crate) pages: PageCache,
    pub(crate) blocks: Arc<BlockCache>,
    pub(crate) memory: MemoryGauge,
    pub(crate) stats: Stats,
    /// The folder of [`crate::spill`]'s files, to read them.
    pub(crate) spilled: Arc<dyn ObjectStore>,
    /// Set where frozen layers become local files first.
    pub(crate) spill_queue: OnceLock<Sender<Weak<Timeline>>>,
    pub(crate) flush_queue: OnceLock<Sender<Weak<Timeline>>>,
    pub(crate) engine: OnceLock<Weak<Engine>>,
    next_file: AtomicU64,
    next_instance: AtomicU64,
    opened: Instant,
    /// By which leases end, in seconds since the Unix epoch; 0 until it is told.
    told_s: AtomicU64,
    compacting: AtomicBool,
    /// When the store last failed a flush, in milliseconds after the engine was opened; 0: since then it has taken one.
    store_failed_ms: AtomicU64,
}

fn temp_folder(config: &EngineConfig) -> PathBuf {
    config.local_dir.join("writing")
}

impl Shared {
    pub(crate) fn new(config: EngineConfig) -> Self {
        Shared {
            pages: ClockCache::new(config.page_cache_bytes),
            blocks: Arc::new(ClockCache::new(config.block_cache_bytes)),
            writer: format!("{:016x}", rand::random::<u64>()),
            memory: MemoryGauge::default(),
            stats: Stats::default(),
            spilled: Arc::new(LocalFolder::look_at(&temp_folder(&config))),
            spill_queue: OnceLock::new(),
            flush_queue: OnceLock::new(),
            engine: OnceLock::new(),
            next_file: AtomicU64::new(0),
            next_instance: AtomicU64::new(0),
            opened: Instant::now(),
            told_s: AtomicU64::new(0),
            compacting: AtomicBool::new(false),
            store_failed_ms: AtomicU64::new(0),
            config,
        }
    }

    /// A name for a layer file that no other process and no other call gives.
    pub(crate) fn next_file_name(&self, kind: char, level: u8, upto: Lsn) -> String {
        let number = self.next_number();
        format!("{kind}{level}-{:016x}-{}-{number:x}", upto.get(), self.writer)
    }

    /// Where a file is written before it becomes an object.
    pub(crate) fn temp_path(&self) -> PathBuf {
        self.temp_folder().join(format!("{:x}", self.next_number()))
    }

    pub(crate) fn temp_folder(&self) -> PathBuf {
        temp_folder(&self.config)
    }

    /// A number for a file that no other call gives.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_file.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn next_instance(&self) -> u64 {
        self.next_instance.fetch_add(1, Ordering::Relaxed)
    }

    /// Milliseconds since the engine was opened.
    pub(crate) fn now_ms(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    /// Whether there is a thread that compacts.
    pub(crate) fn is_compacting(&self) -> bool {
        self.compacting.load(Ordering::Acquire)
    }

    pub(crate) fn set_compacting(&self, is_compacting: bool) {
        self.compacting.store(is_compacting, Ordering::Release);
    }

    /// Keeps whether the store took what was flushed.
    pub(crate) fn note_store(&self, is_away: bool) {
        self.store_failed_ms.store(if is_away { self.now_ms().max(1) } else { 0 }, Ordering::Relaxed);
    }

    /// Whether the store has failed a flush lately, and taken none since.
    pub(crate) fn is_store_away(&self) -> bool {
        let failed_ms = self.store_failed_ms.load(Ordering::Relaxed);
        failed_ms > 0 && self.now_ms().saturating_sub(failed_ms) < STORE_AWAY_FOR.as_millis() as u64
    }

    /// The time by which leases end, in seconds since the Unix epoch. What is not told does not pass.
    pub(crate) fn told_s(&self) -> u64 {
        self.told_s.load(Ordering::Acquire)
    }

    pub(crate) fn tell_time(&self, now_s: u64) {
        self.told_s.store(now_s, Ordering::Release);
    }

    pub(crate) fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.get().and_then(Weak::upgrade)
    }

    /// A timeline of this engine, loaded if need be; `None` if the engine is gone.
    pub(crate) fn load(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Option<Arc<Timeline>>, crate::TimelineError> {
        self.engine().map(|engine| engine.timeline(tenant, timeline)).transpose()
    }
}
