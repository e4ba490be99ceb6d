//! Counters of an engine, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Default)]
        pub(crate) struct Stats {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// Counters since the engine was opened. All only grow, unless they say otherwise.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct EngineStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Memory in open and frozen layers now, in bytes.
            pub memory_layer_bytes: u64,
            /// Local files that hold frozen layers until these are in the store, in bytes now.
            pub spilled_bytes: u64,
            /// Memory in the page cache now, in bytes.
            pub page_cache_bytes: u64,
            /// Most that there may be in it.
            pub page_cache_bytes_max: u64,
            /// Memory in the block cache now, in bytes.
            pub block_cache_bytes: u64,
            /// Most that there may be in it.
            pub block_cache_bytes_max: u64,
            /// Timelines that are loaded now.
            pub timelines_loaded: u64,
            /// Files that compaction has yet to merge, of the loaded timeline that has most of them now.
            pub uncompacted_files_max: u64,
            /// Their size, of all loaded timelines together now.
            pub uncompacted_bytes: u64,
            /// Files that a read visits at most now, of the loaded timeline where they are most.
            pub files_per_read_max: u64,
            /// Deltas that compacted files have of a key now ([`crate::TimelineSizes::deltas_per_key_max`]), of the loaded timeline
            /// where they are most.
            pub deltas_per_key_max: u64,
            /// Loaded timelines whose compaction fails now.
            pub compactions_failing: u64,
        }

        impl Stats {
            pub(crate) fn read(&self) -> EngineStats {
                EngineStats { $($name: self.$name.load(Ordering::Relaxed),)* ..EngineStats::default() }
            }
        }
    };
}

stats! {
    /// Keys read.
    reads,
    /// Of these, answered by the page cache alone.
    reads_cached,
    /// Layer files that reads visited.
    files_visited,
    /// Values that redo was given.
    values_replayed,
    /// Values put.
    values_put,
    /// Layers written from memory.
    layers_flushed,
    /// Bytes of layer files written: flushes, imports, compactions.
    layer_bytes_written,
    /// Manifests written.
    manifests_written,
    /// Compactions finished.
    compactions,
    /// Layer files that garbage collection and compaction removed.
    layers_removed,
    /// Failed flushes, compactions and collections.
    background_failures,
    /// Batches that were held up because compaction was behind.
    puts_slowed,
    /// For how long, in microseconds.
    puts_slowed_us,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
