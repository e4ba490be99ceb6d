//! Hints about blocks that some process has asked for and not put in place yet.
//!
//! The workers of a parallel scan run side by side through one relation, and without knowing of each other each of them
//! would read ahead over the others' blocks. One bit per block, in memory that all processes share: set when a request is
//! sent, cleared when its pages are in place. It is only a hint. A process that ends with requests in flight leaves its bits
//! behind, so nobody trusts them for long.

use std::sync::atomic::{AtomicU64, Ordering};

use ardent_presence_map::{Entry, PresenceMap};
use ardent_types::BlockNumber;

const BITS_PER_WORD: u64 = 64;

/// The bits of all blocks that could ever be absent.
pub struct Claims {
    words: &'static [AtomicU64],
}

impl Claims {
    /// Makes the shared memory; in the postmaster, before there are children. None: there is not enough.
    pub fn make(map: &PresenceMap) -> Option<Claims> {
        let count = usize::try_from(map.bit_count().div_ceil(BITS_PER_WORD)).ok()?.max(1);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping; it is never unmapped, is zero, and holds atomics only.
        unsafe {
            let memory = libc::mmap(std::ptr::null_mut(), count.checked_mul(8)?, protection, flags, -1, 0);
            if memory == libc::MAP_FAILED {
                return None;
            }
            Some(Claims { words: std::slice::from_raw_parts(memory.cast::<AtomicU64>(), count) })
        }
    }

    /// Whether somebody has asked for the block.
    pub fn holds(&self, entry: &Entry<'_>, block: BlockNumber) -> bool {
        self.bit(entry, block).is_some_and(|(word, mask)| word.load(Ordering::Relaxed) & mask != 0)
    }

    /// Says that these blocks are asked for.
    pub fn add(&self, entry: &Entry<'_>, start: BlockNumber, count: u32) {
        for (word, mask) in (start..start.saturating_add(count)).filter_map(|block| self.bit(entry, block)) {
            word.fetch_or(mask, Ordering::Relaxed);
        }
    }

    /// Says that they are not, or not any more.
    pub fn remove(&self, entry: &Entry<'_>, start: BlockNumber, count: u32) {
        for (word, mask) in (start..start.saturating_add(count)).filter_map(|block| self.bit(entry, block)) {
            word.fetch_and(!mask, Ordering::Relaxed);
        }
    }

    /// None: past what can be absent.
    fn bit(&self, entry: &Entry<'_>, block: BlockNumber) -> Option<(&AtomicU64, u64)> {
        let bit = entry.bit_number(block)?;
        let word = self.words.get(usize::try_from(bit / BITS_PER_WORD).ok()?)?;
        Some((word, 1 << (bit % BITS_PER_WORD)))
    }
}
