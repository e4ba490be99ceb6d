//! Relation fork sizes, cached so that a record of a known relation costs one hash lookup and no read.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use ardent_types::{BlockNumber, Key, RelTag};
use bytes::Bytes;

use crate::state::ReadState;

/// Most entries kept from one batch to the next, about 30 bytes each.
const ENTRIES_MAX: usize = 1 << 20;

/// Sizes as of the last record, including those of the current batch. `None`: the fork does not exist.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    known: HashMap<RelTag, Option<BlockNumber>, BuildHasherDefault<TagHasher>>,
}

impl Sizes {
    /// The size of `rel`. Reads storage only the first time.
    #[inline]
    pub fn get<S: ReadState>(&mut self, rel: RelTag, state: &S) -> Result<Option<BlockNumber>, S::Error> {
        match self.known.get(&rel) {
            Some(size) => Ok(*size),
            None => {
                let size = decode_size(state.get(Key::RelSize(rel))?);
                self.known.insert(rel, size);
                Ok(size)
            }
        }
    }

    /// Notes a new size; the caller gives the same to storage.
    pub fn set(&mut self, rel: RelTag, size: Option<BlockNumber>) {
        self.known.insert(rel, size);
    }

    /// Forgets everything if that is a lot. Only between batches: what a batch changed is nowhere else yet.
    pub fn trim(&mut self) {
        if self.known.len() > ENTRIES_MAX {
            self.known.clear();
        }
    }
}

/// The size that a [`Key::RelSize`] value says.
pub(crate) fn decode_size(value: Option<Bytes>) -> Option<BlockNumber> {
    Some(u32::from_le_bytes(value?[..].try_into().ok()?))
}

/// The value of a [`Key::RelSize`].
pub(crate) fn encode_size(size: Option<BlockNumber>) -> Bytes {
    size.map_or_else(Bytes::new, |blocks| Bytes::copy_from_slice(&blocks.to_le_bytes()))
}

/// Multiply and rotate: relation ids are small numbers that nobody chooses to collide on purpose across a whole cache.
#[derive(Default)]
pub(crate) struct TagHasher(u64);

impl TagHasher {
    #[inline]
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for TagHasher {
    fn finish(&self) -> u64 {
        // The upper bits are the mixed ones; hash tables look at both ends.
        self.0 ^ self.0 >> 32
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    #[inline]
    fn write_u8(&mut self, number: u8) {
        self.mix(u64::from(number));
    }

    #[inline]
    fn write_isize(&mut self, number: isize) {
        self.mix(number as u64);
    }
}
