//! The open layer: versions in memory, in the order of their LSNs, until it is frozen and written to a file.
//!
//! ```text
//!  blocks: 16 neighbours ─► newest of each ─┐     versions: [ lsn, key, kind, where, previous ]...     arena: chunks of bytes
//!  others: key ───────────► newest ─────────┴─► index into versions ──previous──► older ──► ...
//! ```
//!
//! A version costs 32 bytes and its value's bytes, and no allocation of its own. Readers take a shared lock and copy what
//! they need; the one writer lets those that wait in between after every few values. That shows them parts of a batch, which they
//! pass over: they ask for nothing that is so new.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ardent_types::Lsn;
use bytes::Bytes;
use parking_lot::{RwLock, RwLockWriteGuard};

use crate::position::RecordPosition;
use crate::stored_key::{KeyHashing, KeyRange, StoredKey};
use crate::version::{Gathered, Version, VersionKind};

/// Size of an arena chunk. Larger values get a chunk of their own.
const CHUNK_BYTES: usize = 1 << 20;
/// "No older version".
const NONE: u32 = u32::MAX;
/// What a map entry costs, roughly; counted so that the limit holds for many small values too.
const KEY_COST_BYTES: usize = 48;
/// What a group of neighbouring blocks costs.
const GROUP_COST_BYTES: usize = 120;
/// Blocks in a group. Its newest versions fill one line of the processor's cache.
const GROUP_BLOCKS: u32 = 16;
/// Added to the numbers of keys that are not blocks.
const OTHERS_FROM: KeyNumber = 1 << 31;

/// Values after which a batch's writer lets readers in: some 20 us apart.
const VALUES_BETWEEN_READERS: usize = 64;

/// Versions whose memory is looked at ahead of its use.
const AT_ONCE: usize = 32;

/// The number of a key in a layer: for a block its group's and its place there, else [`OTHERS_FROM`] and a running number.
type KeyNumber = u32;

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
    /// Whose version it is; [`NONE`] once another one took its place.
    key: KeyNumber,
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

/// The newest version of every key.
#[derive(Default)]
struct Heads {
    /// Numbers of groups of blocks by the key of the first.
    groups: HashMap<StoredKey, u32, KeyHashing>,
    /// By number: the key of the first, and the newest versions of the blocks, [`NONE`] where there is none.
    firsts: Vec<StoredKey>,
    blocks: Vec<[u32; GROUP_BLOCKS as usize]>,
    others: BTreeMap<StoredKey, (KeyNumber, u32)>,
}

impl Heads {
    /// The key's number, its newest version, and what the key costs if it is new here.
    #[inline]
    fn entry(&mut self, key: &StoredKey) -> (KeyNumber, &mut u32, usize) {
        let mut cost = 0;
        if !key.is_block() {
            let number = OTHERS_FROM + self.others.len() as u32;
            let (number, head) = self.others.entry(*key).or_insert_with(|| {
                cost = KEY_COST_BYTES;
                (number, NONE)
            });
            return (*number, head, cost);
        }
        let (first, place) = key.split_group();
        let (firsts, blocks) = (&mut self.firsts, &mut self.blocks);
        let group = *self.groups.entry(first).or_insert_with(|| {
            cost = GROUP_COST_BYTES;
            firsts.push(first);
            blocks.push([NONE; GROUP_BLOCKS as usize]);
            blocks.len() as u32 - 1
        });
        (group * GROUP_BLOCKS + u32::from(place), &mut blocks[group as usize][usize::from(place)], cost)
    }

    /// The newest version of `key`.
    fn newest(&self, key: &StoredKey) -> u32 {
        if key.is_block() {
            let (first, place) = key.split_group();
            self.groups.get(&first).map_or(NONE, |group| self.blocks[*group as usize][usize::from(place)])
        } else {
            self.others.get(key).map_or(NONE, |(_, head)| *head)
        }
    }

    /// All blocks and their newest versions, in no order.
    fn blocks(&self) -> impl Iterator<Item = (StoredKey, u32)> + '_ {
        self.firsts.iter().zip(&self.blocks).flat_map(|(first, heads)| {
            let heads = heads.iter().zip(0..).filter(|(head, _)| **head != NONE);
            heads.map(|(head, place)| (first.in_group(place), *head))
        })
    }

    /// The ranks of all keys: where a key number stands in key order.
    fn ranks(&self) -> Ranks {
        let mut order: Vec<u32> = (0..self.firsts.len() as u32).collect();
        order.sort_unstable_by_key(|group| self.firsts[*group as usize]);
        let mut ranks = Ranks { others: vec![0; self.others.len()], groups: vec![0; order.len()] };
        for ((number, _), rank) in self.others.values().zip(0..) {
            ranks.others[(number - OTHERS_FROM) as usize] = rank;
        }
        order.iter().zip(0..).for_each(|(group, rank)| ranks.groups[*group as usize] = rank);
        ranks
    }

    /// The keys that are not blocks, by number.
    fn other_keys(&self) -> Vec<StoredKey> {
        let mut keys = vec![StoredKey::MIN; self.others.len()];
        self.others.iter().for_each(|(key, (number, _))| keys[(number - OTHERS_FROM) as usize] = *key);
        keys
    }
}

/// See [`Heads::ranks`].
struct Ranks {
    others: Vec<u32>,
    groups: Vec<u32>,
}

impl Ranks {
    fn len(&self) -> usize {
        self.others.len() + self.groups.len() * GROUP_BLOCKS as usize
    }

    /// Blocks sort behind all other keys.
    #[inline]
    fn of(&self, key: KeyNumber) -> usize {
        if key >= OTHERS_FROM {
            return self.others[(key - OTHERS_FROM) as usize] as usize;
        }
        let group = self.groups[(key / GROUP_BLOCKS) as usize];
        self.others.len() + (group * GROUP_BLOCKS + key % GROUP_BLOCKS) as usize
    }
}

#[derive(Default)]
struct Inner {
    heads: Heads,
    slots: Vec<Slot>,
    /// The newest LSN, and the first version that has it: all before are older.
    newest: Lsn,
    newest_from: u32,
    arena: Arena,
    boundaries: Vec<RecordPosition>,
}

impl Inner {
    /// The versions by key, then LSN. They are in LSN order already, so they only have to be dealt out to their keys.
    fn sorted(&self) -> Vec<u32> {
        let ranks = self.heads.ranks();
        let live = || self.slots.iter().zip(0u32..).filter(|(slot, _)| slot.key != NONE);
        // How many versions each key has, then where the next one of it goes.
        let mut places = vec![0u32; ranks.len()];
        live().for_each(|(slot, _)| places[ranks.of(slot.key)] += 1);
        let mut total = 0;
        for place in &mut places {
            (*place, total) = (total, total + *place);
        }
        let mut sorted = vec![NONE; total as usize];
        for (slot, index) in live() {
            let place = &mut places[ranks.of(slot.key)];
            sorted[*place as usize] = index;
            *place += 1;
        }
        sorted
    }
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
        let mut guard = self.inner.write();
        let mut bytes = 0;
        for (count, (key, lsn, kind, value)) in batch.enumerate() {
            if count % VALUES_BETWEEN_READERS == VALUES_BETWEEN_READERS - 1 {
                RwLockWriteGuard::bump(&mut guard);
            }
            let inner = &mut *guard;
            let next = u32::try_from(inner.slots.len()).expect("the size limit keeps a layer below 2^32 versions");
            let (number, head, cost) = inner.heads.entry(&key);
            let mut previous = *head;
            if lsn > inner.newest {
                (inner.newest, inner.newest_from) = (lsn, next);
            }
            // Nearly always the key's newest version is of an earlier record, and need not be looked at, far away as it is in memory.
            let is_later = lsn == inner.newest && (previous == NONE || previous < inner.newest_from);
            if !is_later && let Some(newest) = inner.slots.get_mut(previous as usize) {
                if newest.lsn > lsn {
                    return Err(Disorder::Backwards { key, lsn, newest: newest.lsn });
                }
                if newest.lsn == lsn {
                    if !kind.ends_search() {
                        return Err(Disorder::Twice { key, lsn });
                    }
                    newest.key = NONE;
                    previous = newest.previous;
                }
            }
            let (chunk, offset) = inner.arena.add(value);
            inner.slots.push(Slot { lsn, key: number, previous, chunk, offset, length: value.len() as u32, kind });
            *head = next;
            bytes += cost + value.len() + size_of::<Slot>();
        }
        guard.boundaries.extend_from_slice(boundaries);
        drop(guard);
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
        let mut at = inner.heads.newest(key);
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
        let others = inner.heads.others.range(bounds);
        let mut keys: Vec<_> =
            others.filter(|(_, (_, head))| has_version(*head)).map(|(key, _)| *key).take(limit).collect();
        if keys.len() < limit && range.last.is_block() {
            let room = limit - keys.len();
            let blocks = inner.heads.blocks().filter(|(key, head)| range.contains(key) && has_version(*head));
            let mut blocks: Vec<_> = blocks.map(|(key, _)| key).collect();
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
        // Neighbours in key order lie far apart in memory. Their first bytes are looked at some at a time, as the processor can wait for
        // several at once, but not for one that it only learns of from another.
        let others = inner.heads.other_keys();
        let mut slots = Vec::with_capacity(AT_ONCE);
        for part in inner.sorted().chunks(AT_ONCE) {
            slots.clear();
            slots.extend(part.iter().map(|index| inner.slots[*index as usize]));
            let first_bytes = slots.iter().map(|slot| inner.arena.get(slot).first().copied().unwrap_or(0));
            std::hint::black_box(first_bytes.fold(0, u8::wrapping_add));
            for slot in &slots {
                let key = if slot.key >= OTHERS_FROM {
                    others[(slot.key - OTHERS_FROM) as usize]
                } else {
                    inner.heads.firsts[(slot.key / GROUP_BLOCKS) as usize].in_group((slot.key % GROUP_BLOCKS) as u8)
                };
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use ardent_types::{ForkNumber, Key, RelTag};

    use super::*;

    /// Before each time that readers are let in, the batch waits this long for the answer of the one that came.
    const PATIENCE: Duration = Duration::from_millis(10);
    const VALUES_MAX: usize = 1000 * VALUES_BETWEEN_READERS;

    /// A batch that goes on until a reader that came in the middle of it has its answer, which has nothing of the batch.
    #[test]
    fn who_reads_does_not_wait_for_the_end_of_a_batch() {
        let layer = MemLayer::new(Lsn::new(8), MemoryGauge::default());
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
        let key = StoredKey::from(&Key::RelBlock(rel, 7));
        layer.put([(key, Lsn::new(16), VersionKind::Image, &b"old"[..])].into_iter(), &[]).expect("in order");
        let ((begin, begun), (answer, answered)) = (channel(), channel());
        let mut put = 0;
        std::thread::scope(|scope| {
            let layer = &layer;
            scope.spawn(move || {
                begun.recv().expect("the batch has begun");
                let mut found = Gathered::default();
                layer.gather(&key, Lsn::INVALID, Lsn::new(16), &mut found);
                // The batch has ended where nobody was let in.
                let _ = answer.send((found.len(), found.newest()));
            });
            let batch = (0..VALUES_MAX).map_while(|count| {
                if count == 0 {
                    begin.send(()).expect("the reader waits for it");
                }
                if count % VALUES_BETWEEN_READERS == 0
                    && let Ok(found) = answered.recv_timeout(PATIENCE)
                {
                    assert_eq!(found, (1, Some(Lsn::new(16))));
                    return None;
                }
                put = count + 1;
                Some((key, Lsn::new(24 + 8 * count as u64), VersionKind::Delta, &b"new"[..]))
            });
            layer.put(batch, &[]).expect("in order");
        });
        assert!((1..VALUES_MAX).contains(&put), "the reader came in after {put} values");
        let mut found = Gathered::default();
        layer.gather(&key, Lsn::INVALID, Lsn::MAX, &mut found);
        assert_eq!(found.len(), put + 1);
    }
}
