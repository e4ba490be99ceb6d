//! The page server's storage engine: versions of keys in, content at any retained LSN out.

mod background;
mod branch;
mod clock_cache;
mod compact;
mod config;
mod engine;
mod error;
mod flush;
mod image_writer;
mod import;
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
mod stats;
mod stored_key;
mod timeline;
mod version;

#[cfg(test)]
extern crate self as ardent_storage;
#[cfg(test)]
mod model_test;

pub use config::{EngineConfig, PostgresRedo, Redo};
pub use engine::Engine;
pub use error::{CommitError, CorruptFile, ErrorKind, OpenError, PutError, ReadError, TimelineError, WaitError};
pub use manifest::{Ancestor, Lease, TimelineFacts};
pub use position::{BranchPoint, RecordPosition};
pub use read::ScanPart;
pub use retention::Collected;
pub use stats::EngineStats;
pub use timeline::{Timeline, TimelineSizes};
