//! The crate's limits, in one place.

/// Values in a group of a layer file, before compression. A larger value has a group of its own.
pub(crate) const GROUP_BYTES_MAX: usize = 64 << 10;
/// The same for a delta layer: a read wants the records of one page, which are few, and unpacks the whole group for them.
pub(crate) const DELTA_GROUP_BYTES_MAX: usize = 16 << 10;
/// Largest value that is accepted.
pub(crate) const VALUE_BYTES_MAX: usize = 1 << 30;
/// Frozen layers that may wait to be written before writers wait too.
pub(crate) const FROZEN_LAYERS_MAX: usize = 3;
/// Manifests kept beside the newest one.
pub(crate) const OLD_MANIFESTS_KEPT: u64 = 2;
