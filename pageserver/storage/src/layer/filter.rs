//! A layer's filter: says of most keys that a layer doesn't have that it doesn't, without reading a group.
//!
//! A Bloom filter with seven probes by double hashing over [`StoredKey::stable_hash`].

use bytes::Bytes;

use crate::stored_key::StoredKey;

/// Bits per key: about one wrong "maybe" in a hundred.
const BITS_PER_KEY: usize = 10;
const PROBES: u32 = 7;

/// The filter's bytes for keys with these hashes.
pub(crate) fn build(hashes: &[u64]) -> Vec<u8> {
    let bytes = (hashes.len() * BITS_PER_KEY).div_ceil(8).max(8);
    let mut filter = vec![0u8; bytes];
    let bits = bytes as u64 * 8;
    for &hash in hashes {
        for bit in probes(hash, bits) {
            filter[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }
    filter
}

fn probes(hash: u64, bits: u64) -> impl Iterator<Item = u64> {
    let step = hash.rotate_left(32) | 1;
    (0..PROBES).map(move |probe| {
        let mixed = hash.wrapping_add(step.wrapping_mul(u64::from(probe)));
        // Scales instead of dividing: a probe is two multiplications.
        ((u128::from(mixed) * u128::from(bits)) >> 64) as u64
    })
}

/// A filter as read from a file.
#[derive(Debug)]
pub(crate) struct Filter(Bytes);

impl Filter {
    /// Any bytes are a filter, but none at all aren't.
    pub(crate) fn from_bytes(bytes: Bytes) -> Option<Filter> {
        (!bytes.is_empty()).then_some(Filter(bytes))
    }

    /// False only if no such key was added.
    pub(crate) fn may_contain(&self, key: &StoredKey) -> bool {
        let bits = self.0.len() as u64 * 8;
        probes(key.stable_hash(), bits).all(|bit| self.0[(bit / 8) as usize] & (1 << (bit % 8)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_types::{ForkNumber, Key, RelTag};

    #[test]
    fn finds_all_its_keys_and_few_others() {
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
        let key = |block| StoredKey::from(&Key::RelBlock(rel, block));
        let hashes: Vec<u64> = (0..10_000).map(|block| key(block).stable_hash()).collect();
        let filter = Filter::from_bytes(build(&hashes).into()).unwrap();
        assert!((0..10_000).all(|block| filter.may_contain(&key(block))));
        let wrong = (10_000..20_000).filter(|block| filter.may_contain(&key(*block))).count();
        assert!(wrong < 250, "{wrong} of 10,000");
    }
}
