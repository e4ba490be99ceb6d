//! The open layer: versions in memory, in the order of their LSNs, until it is frozen and written to a file.
//!
//! ```text
//!  blocks: key ─► newest ─┐        versions: [ lsn, kind, where, previous ]...     arena: chunks of bytes
//!  others: key ─► newest ─┴─► index into versions ──previous──► older ──► ...
//! ```
//!
//! A version costs 32 bytes and its value's bytes, and no allocation of its own. Readers take a shared lock and copy what
//! they need; the one writer takes the lock once per batch.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ardent_types::Lsn;
use bytes::Bytes;
use parking_lot::RwLock;

use crate::position::RecordPosition;
use crate::stored_key::{KeyHashing, KeyRange, StoredKey};
use crate::version::{Gathered, Version, VersionKind};

/// Size of an arena chunk. Larger values get a chunk of their own.
const CHUNK_BYTES: usize = 1 << 20;
/// "No older version".
const NONE: u32 = u32::MAX;
/// What a map entry costs, roughly; counted so that the limit holds for many small values too.
const KEY_COST_BYTES: usize = 48;

/// A batch that breaks the rules of [`MemLayer::put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disorder {
    /// A key's version is older than the one it has.
    Backwards { key: StoredKey, lsn: Lsn, newest: Lsn },
    /// A key has a version with this LSN, and the new one would need both.
    Twice { key: StoredKey, lsn: Lsn },
}

#[derive(Clone, Copy)]
struct Slot {
    lsn: Lsn,
    previous: u32,
    chunk: u32,
    offset: u32,
    length: u32,
    kind: VersionKind,
}

#[derive(Default)]
struct Arena {
    chunks: Vec<Vec<u8>>,
}

impl Arena {
    fn add(&mut self, bytes: &[u8]) -> (u32, u32) {
        let fits = |chunk: &Vec<u8>| chunk.capacity() - chunk.len() >= bytes.len();
        if !self.chunks.last().is_some_and(fits) {
            self.chunks.push(Vec::with_capacity(bytes.len().max(CHUNK_BYTES)));
        }
        let index = self.chunks.len() - 1;
        let chunk = &mut self.chunks[index];
        let offset = chunk.len();
        chunk.extend_from_slice(bytes);
        (index as u32, offset as u32)
    }

    fn get(&self, slot: &Slot) -> &[u8] {
        let at = slot.offset as usize;
        &self.chunks[slot.chunk as usize][at..at + slot.length as usize]
    }
}

#[derive(Default)]
struct Inner {
    blocks: HashMap<StoredKey, u32, KeyHashing>,
    others: BTreeMap<StoredKey, u32>,
    slots: Vec<Slot>,
    arena: Arena,
    boundaries: Vec<RecordPosition>,
}

/// Memory held by all layers of an engine in bytes.
pub(crate) type MemoryGauge = Arc<AtomicUsize>;

/// Versions in memory. See the module's documentation.
pub(crate) struct MemLayer {
    /// All versions are newer than this.
    pub(crate) after: Lsn,
    inner: RwLock<Inner>,
    bytes: AtomicUsize,
    gauge: MemoryGauge,
}

impl MemLayer {
    pub(crate) fn new(after: Lsn, gauge: MemoryGauge) -> Self {
        MemLayer { after, inner: RwLock::default(), bytes: AtomicUsize::new(0), gauge }
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inner.read().slots.is_empty()
    }

    /// Adds a batch. The versions of each key come in LSN order (checklist 56); a second one with the same LSN replaces the first if
    /// it needs nothing before it. The caller has seen to it that no reader asks for an LSN past the batch before. After an error the
    /// batch may be there in part, and the layer is unfit for more.
    pub(crate) fn put<'a>(
        &self,
        batch: impl Iterator<Item = (StoredKey, Lsn, VersionKind, &'a [u8])>,
        boundaries: &[RecordPosition],
    ) -> Result<(), Disorder> {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        let mut bytes = 0;
        for (key, lsn, kind, value) in batch {
            let next = u32::try_from(inner.slots.len()).expect("the size limit keeps a layer below 2^32 versions");
            let head = if key.is_block() {
                inner.blocks.entry(key).or_insert(NONE)
            } else {
                inner.others.entry(key).or_insert(NONE)
            };
            let mut previous = *head;
            if let Some(newest) = inner.slots.get(previous as usize).filter(|_| previous != NONE) {
                if newest.lsn > lsn {
                    return Err(Disorder::Backwards { key, lsn, newest: newest.lsn });
                }
                if newest.lsn == lsn {
                    if !kind.ends_search() {
                        return Err(Disorder::Twice { key, lsn });
                    }
                    previous = newest.previous;
                }
            } else {
                bytes += KEY_COST_BYTES;
            }
            let (chunk, offset) = inner.arena.add(value);
            inner.slots.push(Slot { lsn, previous, chunk, offset, length: value.len() as u32, kind });
            *head = next;
            bytes += value.len() + size_of::<Slot>();
        }
        inner.boundaries.extend_from_slice(boundaries);
        bytes += size_of_val(boundaries);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.gauge.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Adds the versions of `key` in `(after, upto]` that a read needs.
    pub(crate) fn gather(&self, key: &StoredKey, after: Lsn, upto: Lsn, out: &mut Gathered) {
        if upto <= self.after {
            return;
        }
        let inner = self.inner.read();
        let head = if key.is_block() { inner.blocks.get(key) } else { inner.others.get(key) };
        let mut at = head.copied().unwrap_or(NONE);
        while let Some(slot) = inner.slots.get(at as usize).filter(|slot| at != NONE && slot.lsn > after) {
            if slot.lsn <= upto {
                let bytes = Bytes::copy_from_slice(inner.arena.get(slot));
                out.push(Version { lsn: slot.lsn, kind: slot.kind, bytes });
                if slot.kind.ends_search() {
                    return;
                }
            }
            at = slot.previous;
        }
    }

    /// The keys in `range` with a version in `(after, upto]`, ascending, at most `limit`.
    pub(crate) fn keys(&self, range: &KeyRange, after: Lsn, upto: Lsn, limit: usize) -> Vec<StoredKey> {
        let inner = self.inner.read();
        let has_version = |mut at: u32| {
            while let Some(slot) = inner.slots.get(at as usize).filter(|slot| at != NONE && slot.lsn > after) {
                if slot.lsn <= upto {
                    return true;
                }
                at = slot.previous;
            }
            false
        };
        let bounds = (Bound::Included(range.first), Bound::Included(range.last));
        let others = inner.others.range(bounds);
        let mut keys: Vec<_> =
            others.filter(|(_, head)| has_version(**head)).map(|(key, _)| *key).take(limit).collect();
        if keys.len() < limit && range.last.is_block() {
            let room = limit - keys.len();
            let blocks = inner.blocks.iter();
            let mut blocks: Vec<_> =
                blocks.filter(|(key, head)| range.contains(key) && has_version(**head)).map(|(key, _)| *key).collect();
            blocks.sort_unstable();
            blocks.truncate(room);
            keys.append(&mut blocks);
        }
        keys
    }

    /// Record positions, ascending.
    pub(crate) fn boundaries(&self) -> Vec<RecordPosition> {
        self.inner.read().boundaries.clone()
    }

    /// The last record that ends at or below `lsn`.
    pub(crate) fn boundary_at(&self, lsn: Lsn) -> Option<RecordPosition> {
        let inner = self.inner.read();
        let after = inner.boundaries.partition_point(|position| position.end <= lsn);
        after.checked_sub(1).map(|at| inner.boundaries[at])
    }

    /// Gives every version to `each`, by key, then LSN. Readers go on meanwhile; writers don't.
    pub(crate) fn for_each_sorted<E>(
        &self,
        mut each: impl FnMut(&StoredKey, Lsn, VersionKind, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let inner = self.inner.read();
        let mut heads: Vec<(StoredKey, u32)> = inner.others.iter().map(|(key, head)| (*key, *head)).collect();
        let others = heads.len();
        heads.extend(inner.blocks.iter().map(|(key, head)| (*key, *head)));
        heads[others..].sort_unstable_by_key(|(key, _)| *key);
        let mut chain = Vec::new();
        for (key, head) in heads {
            chain.clear();
            let mut at = head;
            while at != NONE {
                chain.push(at);
                at = inner.slots[at as usize].previous;
            }
            for at in chain.iter().rev() {
                let slot = &inner.slots[*at as usize];
                each(&key, slot.lsn, slot.kind, inner.arena.get(slot))?;
            }
        }
        Ok(())
    }
}

impl Drop for MemLayer {
    fn drop(&mut self) {
        self.gauge.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}
