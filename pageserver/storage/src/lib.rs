//! The page server's storage engine: versions of keys in, content at any retained LSN out.

mod background;
mod branch;
mod clock_cache;
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
mod position;
mod progress;
mod put;
mod read;
mod shared;
mod stats;
mod stored_key;
mod timeline;
mod version;

pub use config::{EngineConfig, PostgresRedo, Redo};
pub use engine::Engine;
pub use error::{CommitError, CorruptFile, ErrorKind, OpenError, PutError, ReadError, TimelineError, WaitError};
pub use manifest::{Ancestor, Lease, TimelineFacts};
pub use position::{BranchPoint, RecordPosition};
pub use read::ScanPart;
pub use stats::EngineStats;
pub use timeline::{Timeline, TimelineSizes};
