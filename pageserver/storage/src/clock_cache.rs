//! A cache with a size in bytes, in shards, that forgets what was not used for a while (second chance).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

use parking_lot::Mutex;

use crate::stored_key::KeyHashing;

/// Shards; more than cores that read.
const SHARDS: usize = 16;

struct Slot<K, V> {
    key: K,
    value: V,
    weight: usize,
    used: bool,
}

struct Shard<K, V> {
    map: HashMap<K, usize, KeyHashing>,
    slots: Vec<Slot<K, V>>,
    hand: usize,
    bytes: usize,
}

/// See the module's documentation.
pub(crate) struct ClockCache<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
    bytes_max_per_shard: usize,
    hashing: KeyHashing,
}

impl<K: Hash + Eq + Clone, V: Clone> ClockCache<K, V> {
    /// A cache of at most `bytes_max` bytes, as counted by the weights given.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let shard = || Shard { map: HashMap::default(), slots: Vec::new(), hand: 0, bytes: 0 };
        ClockCache {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            bytes_max_per_shard: bytes_max / SHARDS,
            hashing: KeyHashing::default(),
        }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K, V>> {
        let hash = self.hashing.hash_one(key);
        &self.shards[(hash >> 57) as usize % SHARDS]
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let mut shard = self.shard(key).lock();
        let at = *shard.map.get(key)?;
        let slot = &mut shard.slots[at];
        slot.used = true;
        Some(slot.value.clone())
    }

    /// Whether `key` is there; that does not count as a use.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.shard(key).lock().map.contains_key(key)
    }

    /// Changes the value of `key` where it is, if it is there.
    pub(crate) fn update(&self, key: &K, change: impl FnOnce(&mut V)) {
        let mut shard = self.shard(key).lock();
        if let Some(&at) = shard.map.get(key) {
            change(&mut shard.slots[at].value);
        }
    }

    /// Adds or replaces. A value larger than a shard is not kept.
    pub(crate) fn insert(&self, key: K, value: V, weight: usize) {
        if weight > self.bytes_max_per_shard {
            return;
        }
        let mut shard = self.shard(&key).lock();
        let shard = &mut *shard;
        if let Some(&at) = shard.map.get(&key) {
            let slot = &mut shard.slots[at];
            shard.bytes = shard.bytes - slot.weight + weight;
            (slot.value, slot.weight, slot.used) = (value, weight, true);
            while shard.bytes > self.bytes_max_per_shard {
                shard.evict_one();
            }
            return;
        }
        // Room is made first, or the newest entry could be the one that goes.
        while shard.bytes + weight > self.bytes_max_per_shard {
            shard.evict_one();
        }
        shard.map.insert(key.clone(), shard.slots.len());
        shard.slots.push(Slot { key, value, weight, used: false });
        shard.bytes += weight;
    }

    /// Bytes held, by the weights given.
    pub(crate) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().bytes).sum()
    }
}

impl<K: Hash + Eq + Clone, V> Shard<K, V> {
    fn evict_one(&mut self) {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let slot = &mut self.slots[self.hand];
            if slot.used {
                slot.used = false;
                self.hand += 1;
                continue;
            }
            let gone = self.slots.swap_remove(self.hand);
            self.map.remove(&gone.key);
            self.bytes -= gone.weight;
            if let Some(moved) = self.slots.get(self.hand) {
                self.map.insert(moved.key.clone(), self.hand);
            }
            // What was moved here is the newest: its turn comes after a whole round.
            self.hand += 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_size_and_keeps_what_is_used() {
        let cache = ClockCache::<(u64, u32), u32>::new(SHARDS * 1000);
        for number in 0..10_000u32 {
            cache.insert((u64::from(number), number), number, 100);
            cache.insert((1 << 40, 0), 7, 100);
            assert_eq!(cache.get(&(1 << 40, 0)), Some(7));
        }
        assert!(cache.bytes() <= SHARDS * 1000);
        let kept = (0..10_000u32).filter(|number| cache.get(&(u64::from(*number), *number)) == Some(*number)).count();
        assert!((100..=160).contains(&kept), "{kept}");
        // What came last is there: nobody has had time to use it.
        let last = (9_900..10_000u32).filter(|number| cache.get(&(u64::from(*number), *number)).is_some()).count();
        assert!(last >= 90, "{last}");
        cache.insert((0, 0), 1, 1001);
        cache.update(&(1 << 40, 0), |value| *value = 8);
        assert_eq!(cache.get(&(1 << 40, 0)), Some(8));
    }
}
