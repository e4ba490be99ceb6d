//! How an engine is set up.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ardent_object_store::ObjectStore;
use ardent_object_store::fault::FailPoints;
use ardent_pg_format::PgMajor;
use ardent_pg_redo::{ReconstructError, Value};
use ardent_types::{Key, Lsn};
use bytes::Bytes;

/// Rebuilds a key's content from what storage has of it.
pub trait Redo: Send + Sync + Debug {
    /// The content after `values`, oldest first, on top of `base`; empty: absent.
    fn rebuild(
        &self,
        pg_major: PgMajor,
        key: &Key,
        base: Option<Bytes>,
        values: &mut dyn Iterator<Item = (Lsn, Value)>,
    ) -> Result<Bytes, ReconstructError>;
}

/// Postgres's redo, in Rust.
#[derive(Clone, Copy, Debug, Default)]
pub struct PostgresRedo;

impl Redo for PostgresRedo {
    fn rebuild(
        &self,
        pg_major: PgMajor,
        key: &Key,
        base: Option<Bytes>,
        values: &mut dyn Iterator<Item = (Lsn, Value)>,
    ) -> Result<Bytes, ReconstructError> {
        ardent_pg_redo::reconstruct(pg_major, key, base, values)
    }
}

/// Settings of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// For the lock file and files that are being written. On the store's file system, finished files are moved and not copied.
    pub local_dir: PathBuf,
    /// Where layers and manifests live.
    pub store: Arc<dyn ObjectStore>,
    /// Rebuilds pages.
    pub redo: Arc<dyn Redo>,
    /// Size of the cache of rebuilt pages.
    pub page_cache_bytes: usize,
    /// Size of the cache of unpacked parts of layer files.
    pub block_cache_bytes: usize,
    /// An open layer is frozen when it takes this much memory.
    pub open_layer_bytes_max: usize,
    /// Open and frozen layers of all timelines together; beyond it, timelines that are written to freeze theirs.
    pub memory_layers_bytes_max: usize,
    /// An open layer with anything in it is frozen at this age, so that a restart needs no more WAL than that.
    pub open_layer_age_max: Duration,
    /// A timeline that nobody used for this long is unloaded.
    pub idle_unload_after: Duration,
    /// Compaction starts when a timeline has this many uncompacted files.
    pub compact_at_l0_files: usize,
    /// Images are made where a read would visit more delta files than this.
    pub images_at_delta_files: usize,
    /// Images are made where keys have more deltas than this on average, or one key has twice as many in a row.
    pub images_at_deltas_per_key: u64,
    /// Compacted files are cut at about this size.
    pub layer_file_bytes: u64,
    /// Frozen layers become local files at once, and memory is free before they are stored: for a store that is slower than the disk, or
    /// may be away.
    pub spill: bool,
    /// Whether threads flush, compact and unload by themselves. Without them the caller does it; for tests that must be repeatable.
    pub background: bool,
    /// Fail points, for tests.
    pub faults: Arc<FailPoints>,
}

impl EngineConfig {
    /// The defaults, for a folder and a store. Once compaction has caught up, a read visits at most two uncompacted files, two compacted ones and
    /// an image.
    pub fn new(local_dir: PathBuf, store: Arc<dyn ObjectStore>) -> Self {
        EngineConfig {
            local_dir,
            store,
            redo: Arc::new(PostgresRedo),
            page_cache_bytes: 128 << 20,
            block_cache_bytes: 64 << 20,
            open_layer_bytes_max: 64 << 20,
            memory_layers_bytes_max: 256 << 20,
            open_layer_age_max: Duration::from_secs(60),
            idle_unload_after: Duration::from_secs(300),
            compact_at_l0_files: 3,
            images_at_delta_files: 2,
            images_at_deltas_per_key: 24,
            layer_file_bytes: 64 << 20,
            spill: false,
            background: true,
            faults: Arc::new(FailPoints::new()),
        }
    }

    /// With caches of so many bytes together: two thirds for rebuilt pages, the rest for parts of layer files.
    pub fn with_caches_of(self, bytes: usize) -> Self {
        let block_cache_bytes = bytes / 3;
        EngineConfig { page_cache_bytes: bytes - block_cache_bytes, block_cache_bytes, ..self }
    }
}
