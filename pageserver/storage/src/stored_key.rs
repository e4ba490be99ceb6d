//! Keys as layers hold them: encoded, comparable as bytes, cheap to hash.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use ardent_types::{KEY_LEN, Key};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An encoded [`Key`]. Sorts as keys do.
#[derive(Clone, Copy)]
pub(crate) struct StoredKey([u8; KEY_LEN]);

impl StoredKey {
    /// The bytes as numbers that compare as they do.
    #[inline]
    fn words(&self) -> (u128, u16) {
        let (first, last) = self.0.split_first_chunk().expect("a key is longer than 16 bytes");
        (u128::from_be_bytes(*first), u16::from_be_bytes([last[0], last[1]]))
    }
}

impl PartialEq for StoredKey {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.words() == other.words()
    }
}

impl Eq for StoredKey {}

impl PartialOrd for StoredKey {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for StoredKey {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.words().cmp(&other.words())
    }
}

/// First byte of every block key; see `docs/formats/keys.md`.
const BLOCK_TAG: u8 = 0x80;

impl StoredKey {
    /// At or below every key.
    pub(crate) const MIN: StoredKey = StoredKey([0; KEY_LEN]);
    /// At or above every key.
    pub(crate) const MAX: StoredKey = StoredKey([0xFF; KEY_LEN]);

    pub(crate) fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        StoredKey(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Whether this is a relation block, of which there are many, or one of the few other keys.
    pub(crate) fn is_block(&self) -> bool {
        self.0[0] == BLOCK_TAG
    }

    /// Whether both are blocks of one fork of one relation.
    pub(crate) fn is_beside(&self, other: &StoredKey) -> bool {
        const BLOCK_NUMBER_LEN: usize = 4;
        self.is_block() && self.0[..KEY_LEN - BLOCK_NUMBER_LEN] == other.0[..KEY_LEN - BLOCK_NUMBER_LEN]
    }

    /// A block's key as that of the first of 16 neighbours, and its place among them.
    #[inline]
    pub(crate) fn split_group(mut self) -> (StoredKey, u8) {
        let last = &mut self.0[KEY_LEN - 1];
        let place = *last & 0x0F;
        *last &= 0xF0;
        (self, place)
    }

    /// The opposite of [`StoredKey::split_group`].
    #[inline]
    pub(crate) fn in_group(mut self, place: u8) -> StoredKey {
        self.0[KEY_LEN - 1] |= place;
        self
    }

    /// The key; `None` for bytes that are only a bound, such as [`StoredKey::MAX`].
    pub(crate) fn decode(&self) -> Option<Key> {
        Key::decode(&self.0).ok()
    }

    /// The next possible key; `None` after the last.
    pub(crate) fn successor(&self) -> Option<StoredKey> {
        self.checked_add(1)
    }

    /// The possible key so many further on; `None` behind the last.
    pub(crate) fn checked_add(&self, distance: u32) -> Option<StoredKey> {
        let (tail, head) = (u64::from_be_bytes(*self.0.last_chunk().expect("8 of 18 bytes")), &self.0[..KEY_LEN - 8]);
        let (tail, wrapped) = tail.overflowing_add(u64::from(distance));
        let mut bytes = self.0;
        bytes[KEY_LEN - 8..].copy_from_slice(&tail.to_be_bytes());
        if !wrapped {
            return Some(StoredKey(bytes));
        }
        let last = head.iter().rposition(|byte| *byte < u8::MAX)?;
        bytes[last] += 1;
        bytes[last + 1..KEY_LEN - 8].fill(0);
        Some(StoredKey(bytes))
    }

    /// A hash that is part of the layer format (`docs/formats/layers.md`, "filter") and so must never change.
    pub(crate) fn stable_hash(&self) -> u64 {
        let word = |at: usize| u64::from_le_bytes(self.0[at..at + 8].try_into().expect("8 bytes"));
        let tail = u64::from(u16::from_le_bytes([self.0[16], self.0[17]]));
        let mut hash = 0x9E37_79B9_7F4A_7C15;
        for word in [word(0), word(8), tail] {
            hash = (hash ^ word).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
            hash ^= hash >> 32;
        }
        hash.wrapping_mul(0xC4CE_B9FE_1A85_EC53) ^ (hash >> 29)
    }

    /// The possible key before; `None` before the first.
    pub(crate) fn predecessor(&self) -> Option<StoredKey> {
        let mut bytes = self.0;
        for byte in bytes.iter_mut().rev() {
            let (before, wrapped) = byte.overflowing_sub(1);
            *byte = before;
            if !wrapped {
                return Some(StoredKey(bytes));
            }
        }
        None
    }
}

impl From<&Key> for StoredKey {
    fn from(key: &Key) -> Self {
        StoredKey(key.encode())
    }
}

impl Hash for StoredKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.stable_hash());
    }
}

impl fmt::Display for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decode() {
            Some(key) => fmt::Display::fmt(&key, f),
            None => f.write_str(&hex::encode(self.0)),
        }
    }
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for StoredKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for StoredKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; KEY_LEN];
        hex::decode_to_slice(&text, &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(StoredKey(bytes))
    }
}

/// Takes the one word that [`StoredKey`] gives as the hash, which is mixed well already.
#[derive(Default)]
pub(crate) struct PassThroughHasher(u64);

impl Hasher for PassThroughHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = self.0.rotate_left(29).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ word;
    }
}

/// Hashes maps keyed by [`StoredKey`] or small tuples with one.
pub(crate) type KeyHashing = BuildHasherDefault<PassThroughHasher>;

/// An inclusive range of keys.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRange {
    pub(crate) first: StoredKey,
    pub(crate) last: StoredKey,
}

impl KeyRange {
    pub(crate) const ALL: KeyRange = KeyRange { first: StoredKey::MIN, last: StoredKey::MAX };

    pub(crate) fn contains(&self, key: &StoredKey) -> bool {
        self.first <= *key && *key <= self.last
    }

    pub(crate) fn overlaps(&self, other: &KeyRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl From<&std::ops::RangeInclusive<Key>> for KeyRange {
    fn from(range: &std::ops::RangeInclusive<Key>) -> Self {
        KeyRange { first: range.start().into(), last: range.end().into() }
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first, self.last)
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successors_carry_and_end() {
        assert_eq!(StoredKey::MAX.successor(), None);
        let mut bytes = [0; KEY_LEN];
        bytes[17] = 0xFF;
        let next = StoredKey::from_bytes(bytes).successor().unwrap();
        assert_eq!(next.as_bytes()[16..], [1, 0]);
    }

    #[test]
    fn the_stable_hash_never_changes() {
        assert_eq!(StoredKey::from(&Key::Checkpoint).stable_hash(), 14_311_079_837_270_326_365);
    }
}
