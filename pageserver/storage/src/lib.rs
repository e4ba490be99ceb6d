//! The page server's storage engine: versions of keys in, content at any retained LSN out.
//!
//! ```text
//!  put(batch) ──► open layer ──freeze──► frozen layers ──flush──► level-0 delta files ──merge──► delta files by key range
//!                 (memory)               (memory)                      │                              │
//!                                                                      └────────── manifest ──────────┤ images
//!  import_images ──► packed groups, sorted runs ──merge──► image files ───────────────┘                ▼
//!                                                                                             image files
//!  get(key, lsn) ──► page cache ──► open, frozen ──► delta files above the newest image ──► that image ──► redo
//!                                                                        └─ none: the same on the ancestor
//! ```
//!
//! An [`Engine`] has the timelines of one store, each loaded when it is first used and unloaded when it is idle; what becomes of them is
//! told ([`Engine::take_changes`]), and what garbage collection would find in one can be seen without loading it ([`Glance`]). A [`Timeline`] is a thread-safe handle;
//! everything blocks, and nothing here is async. What is durable is what the newest manifest of a timeline names; what a crash
//! takes away is WAL that the caller sends again, from [`Timeline::disk_consistent_lsn`] on.
//!
//! Invariants:
//!
//! - PS-1: the durable position moves only after the layers up to it and the manifest that names them are durable (`flush.rs`).
//! - PS-2: readers see a batch whole or not at all, and nothing past the last record (`put.rs`, `progress.rs`); also a record that
//!   changes more than fits in memory (`large_record.rs`).
//! - PS-3: content at (key, LSN) is the same before and after flush, merge, image making, garbage collection and restart, for every
//!   LSN that is retained or pinned (`model_test.rs` checks it on random histories).
//! - PS-4: a manifest generation is written once; whoever finds it taken stops. Loading a timeline takes it from the process that
//!   had it (`manifest_log.rs`; `tests/it/fencing.rs` tries interleavings of several engines on one store).
//! - PS-5: a branch point is pinned before garbage collection can pass it (`engine.rs`, `retention.rs`; checklist 58).
//! - PS-6: a layer file goes only when no retained or pinned LSN needs it, and then when its last reader is done (`plan.rs`,
//!   `layer/reader.rs`).
//! - PS-7: damaged bytes are an error that names file, offset and keys for the reads that need them, never content
//!   (`layer/block.rs`).
//! - PS-8: memory is bounded: writers wait for flushes, or, before a store that is slower than the disk, for local files (`spill.rs`);
//!   caches have sizes, merges hold one group per input (`put.rs`, `clock_cache.rs`, `merge.rs`).
//! - PS-9: what a read visits and applies is bounded: writers are slowed in proportion to what compaction has yet to do, and wait for it
//!   at a limit for as long as it takes (`debt.rs`, `put.rs`); unless compaction fails, which is told.
//! - PS-10: a root that was cut from a timeline has what that held at one LSN, and no version, ancestor or relation besides, so that
//!   no read of it or of its branches finds any (`cut.rs`, `tests/it/cut.rs`).
//! - PS-11: what is retained begins at the end of a record that is known as long, so that a branch can be made exactly there
//!   (`retention.rs`, `branch.rs`; `model_test.rs`).
//!
//! The engine knows keys, LSNs and values; it does not know WAL, relations (but for leaving blocks past a relation's end out of
//! images), time (the caller turns a retention time into an LSN, and tells by what time leases end), or the network. Formats:
//! `docs/formats/layers.md`, `docs/formats/manifest.md`.
//!
//! Start reading at [`Timeline`] in `timeline.rs`, then `put.rs`, `read.rs`, `flush.rs`, `layer_map.rs`.

mod archived_wal;
mod background;
mod branch;
mod clock_cache;
mod compact;
mod config;
mod cut;
mod debt;
mod delta_writer;
mod engine;
mod error;
mod flush;
mod glance;
mod image_writer;
mod import;
mod inspect;
mod json_file;
mod kept_state;
mod large_record;
mod layer;
mod layer_map;
mod lease;
mod limits;
mod manifest;
mod manifest_log;
mod mem_layer;
mod merge;
mod object_names;
mod plan;
mod position;
mod progress;
mod put;
mod read;
mod retention;
mod shared;
mod spill;
mod stats;
mod stored_key;
mod survey;
mod timeline;
mod version;

#[cfg(test)]
extern crate self as ardent_storage;
#[cfg(test)]
mod model_test;

pub use config::{EngineConfig, PostgresRedo, Redo};
pub use cut::CutRoot;
pub use engine::{Change, Engine};
pub use error::{
    CommitError, CorruptFile, CutError, ErrorKind, KeptStateError, OpenError, PutError, ReadError, TimelineError,
    WaitError,
};
pub use glance::Glance;
pub use inspect::{
    InspectError, LayerInfo, ManifestInfo, NamedLayer, PageInfo, VersionInfo, find_timeline, inspect_layer,
    inspect_manifest, inspect_manifest_object, inspect_page, layers_of, verify_layer,
};
pub use kept_state::{KeptStateHead, KeptStateId};
pub use large_record::LargeRecord;
pub use layer_map::ReadCost;
pub use manifest::{Ancestor, Lease, TimelineFacts};
pub use object_names::WAL_ARCHIVE_MARK;
pub use position::{BranchPoint, RecordPosition};
pub use read::ScanPart;
pub use retention::Collected;
pub use stats::EngineStats;
pub use survey::{Orphan, OrphanKind, RemovedOrphans, Survey, TimelineSurvey, remove_orphans, survey};
pub use timeline::{Timeline, TimelineSizes};
