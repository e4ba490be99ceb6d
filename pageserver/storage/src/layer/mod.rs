//! Layer files: immutable, compressed, checked. Byte table: `docs/formats/layers.md`.
//!
//! ```text
//!  versions, sorted ──LayerWriter──► file: header | group | group | ... | index | filter | boundaries | trailer
//!                                                    64 KiB of values each (16 KiB of deltas), zstd, CRC
//!  Layer::gather(key) ──filter says maybe──► index: which group ──► BlockCache or ranged get ──► versions
//! ```

mod block;
mod file;
mod filter;
mod reader;
mod writer;

pub(crate) use block::{BlockCache, BlockPacker, Effort, Group, GroupBuilder, check_block, unpack};
pub(crate) use file::{LayerCorrupt, LayerError};
pub(crate) use reader::{CursorUse, Layer, LayerCursor, describe};
pub(crate) use writer::{FinishedLayer, LayerWriter};

use ardent_types::Lsn;
use serde::{Deserialize, Serialize};

use crate::stored_key::KeyRange;

/// What a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LayerKind {
    /// Versions in `(after, upto]`.
    Delta,
    /// For each key of its range that the timeline had given a version by `upto`: the content then, with the LSN of that
    /// version.
    Image,
}

/// What the manifest says of a layer, so that most of them need not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerDesc {
    /// The object's name below the timeline's `layers/`.
    pub(crate) file: String,
    pub(crate) kind: LayerKind,
    /// 0: the whole key space, straight from memory; 1: compacted.
    pub(crate) level: u8,
    /// Keys that it speaks for.
    pub(crate) keys: KeyRange,
    /// Open end of its versions. For an image layer: at or above no version's LSN but the oldest's minus one.
    pub(crate) after: Lsn,
    /// Closed end; for an image layer the LSN of the image.
    pub(crate) upto: Lsn,
    /// File size.
    pub(crate) bytes: u64,
    /// Versions.
    pub(crate) entries: u64,
    /// Distinct keys; 0 where an older version of the program didn't count.
    #[serde(default)]
    pub(crate) key_count: u64,
    /// Whether it has record boundaries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) boundaries: bool,
    /// Keys in an image layer whose content could not be made: what lies below it must stay.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) holes: u64,
}

impl LayerDesc {
    /// How many versions each of its keys has, on average.
    pub(crate) fn versions_per_key(&self) -> u64 {
        self.entries / self.key_count.max(1)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
