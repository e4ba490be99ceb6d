//! The map as all its users see it: shared memory, changed by atomic operations only.

use std::fs::OpenOptions;
use std::io;
use std::mem::size_of;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ardent_types::{BlockNumber, ForkNumber, Lsn, RelTag};
use memmap2::{MmapOptions, MmapRaw};

use crate::counters::Counters;
use crate::layout::{BITS_PER_WORD, COUNTERS_OFFSET, HEADER_LEN, Header, SLOT_LEN, home_slot};

/// Why a map could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be opened or mapped.
    #[error("cannot open the presence map {}", path.display())]
    Io {
        /// The map's file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file is not a presence map of this version, or is damaged. The data directory has to be made anew.
    #[error("{} is not a usable presence map: bad {field}", path.display())]
    Corrupt {
        /// The map's file.
        path: PathBuf,
        /// What is wrong with it.
        field: String,
    },
}

/// One slot of the hash table. All fields but `base_nblocks` are constant once the map is built.
#[repr(C)]
struct Slot {
    spcnode: u32,
    dbnode: u32,
    relnode: u32,
    fork: u32,
    /// 0 at build time means that the slot is empty; `built_nblocks` tells that for good.
    built_nblocks: u32,
    base_nblocks: AtomicU32,
    first_bit: u64,
}

const _: () = assert!(size_of::<Slot>() == SLOT_LEN);
const _: () = assert!(size_of::<Counters>() <= HEADER_LEN - COUNTERS_OFFSET);
// The format is little-endian and is read in place.
const _: () = assert!(cfg!(target_endian = "little"));

impl Slot {
    fn rel(&self) -> Option<RelTag> {
        let fork = ForkNumber::from_raw(u8::try_from(self.fork).ok()?)?;
        Some(RelTag { spcnode: self.spcnode, dbnode: self.dbnode, relnode: self.relnode, fork })
    }

    fn is_empty(&self) -> bool {
        self.built_nblocks == 0
    }

    fn holds(&self, rel: &RelTag) -> bool {
        self.relnode == rel.relnode
            && self.dbnode == rel.dbnode
            && self.spcnode == rel.spcnode
            && self.fork == rel.fork as u32
    }
}

/// A presence map, mapped shared: every process that has the file open sees every change at once.
#[derive(Debug)]
pub struct PresenceMap {
    header: Header,
    memory: MmapRaw,
}

impl PresenceMap {
    /// Opens and validates the map in `path`.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io_error = |source| OpenError::Io { path: path.to_owned(), source };
        let corrupt = |field: &str| OpenError::Corrupt { path: path.to_owned(), field: field.to_owned() };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(io_error)?;
        let file_len = file.metadata().map_err(io_error)?.len();
        if file_len < HEADER_LEN as u64 {
            return Err(corrupt("length"));
        }
        let memory = MmapOptions::new().map_raw(&file).map_err(io_error)?;
        // SAFETY: the mapping is at least HEADER_LEN long (checked above), page-aligned, and nobody writes the fixed
        // fields after the build.
        let fixed = unsafe { std::slice::from_raw_parts(memory.as_ptr(), HEADER_LEN) };
        let header = Header::decode(&fixed[..COUNTERS_OFFSET]).map_err(corrupt)?;
        if header.file_len() != file_len {
            return Err(corrupt("length"));
        }
        let map = PresenceMap { header, memory };
        map.validate_slots().map_err(|field| corrupt(&field))?;
        Ok(map)
    }

    /// The LSN at which absent blocks are to be read.
    pub fn base_lsn(&self) -> Lsn {
        self.header.base_lsn
    }

    /// The entry of a relation fork. None: nothing of it was ever absent.
    pub fn find(&self, rel: &RelTag) -> Option<Entry<'_>> {
        let slots = self.slots();
        let mask = slots.len() - 1;
        let mut at = home_slot(rel, self.header.slot_count) as usize;
        // Ends, because validation made sure that there is an empty slot.
        loop {
            let slot = &slots[at];
            if slot.is_empty() {
                return None;
            }
            if slot.holds(rel) {
                return Some(Entry { map: self, slot, index: at });
            }
            at = (at + 1) & mask;
        }
    }

    /// Length of the bitmap in bits; all of [`Entry::bit_number`]'s answers are below it.
    pub fn bit_count(&self) -> u64 {
        self.header.word_count * BITS_PER_WORD
    }

    /// All entries, in no useful order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let used = self.slots().iter().enumerate().filter(|(_, slot)| !slot.is_empty());
        used.map(|(index, slot)| Entry { map: self, slot, index })
    }

    /// Blocks that are absent now. Reads the whole bitmap.
    pub fn absent_count(&self) -> u64 {
        self.entries().map(|entry| entry.absent_count()).sum()
    }

    /// The shared counters.
    pub fn counters(&self) -> &Counters {
        // SAFETY: within the header page (asserted above), 8-byte aligned, and all fields are atomics.
        unsafe { &*self.memory.as_ptr().add(COUNTERS_OFFSET).cast::<Counters>() }
    }

    fn slots(&self) -> &[Slot] {
        // SAFETY: the table lies within the mapping (`file_len` was checked against the header), is aligned to 4096, any
        // bytes are a valid Slot, and only its atomic field is ever written.
        unsafe {
            let first = self.memory.as_ptr().add(HEADER_LEN).cast::<Slot>();
            std::slice::from_raw_parts(first, self.header.slot_count as usize)
        }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: as for the slots; the offset is a multiple of 32.
        unsafe {
            let first = self.memory.as_ptr().add(self.header.bits_offset() as usize).cast::<AtomicU64>();
            std::slice::from_raw_parts(first, self.header.word_count as usize)
        }
    }

    /// PM-3: afterwards no entry reaches outside the bitmap and every search ends.
    fn validate_slots(&self) -> Result<(), String> {
        let mut used = 0;
        for (at, slot) in self.slots().iter().enumerate().filter(|(_, slot)| !slot.is_empty()) {
            let words = u64::from(slot.built_nblocks).div_ceil(BITS_PER_WORD);
            let end = (slot.first_bit / BITS_PER_WORD).checked_add(words);
            let base = slot.base_nblocks.load(Ordering::Relaxed);
            let in_bitmap = end.is_some_and(|end| end <= self.header.word_count);
            let aligned = slot.first_bit.is_multiple_of(BITS_PER_WORD);
            if slot.rel().is_none() || !in_bitmap || !aligned || base > slot.built_nblocks {
                return Err(format!("slot {at}"));
            }
            used += 1;
        }
        if used != self.header.entry_count {
            return Err(format!("number of entries: {used} instead of {}", self.header.entry_count));
        }
        Ok(())
    }
}

/// A relation fork in the map.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    map: &'a PresenceMap,
    slot: &'a Slot,
    index: usize,
}

impl Entry<'_> {
    /// The relation fork.
    pub fn rel(&self) -> RelTag {
        self.slot.rel().expect("validated when the map was opened")
    }

    /// A number that is this entry's alone, to spread locks by.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The number of a block's bit, for users who keep bits of their own beside the map. None: never absent.
    pub fn bit_number(&self, block: BlockNumber) -> Option<u64> {
        (block < self.slot.built_nblocks).then(|| self.slot.first_bit + u64::from(block))
    }

    /// Blocks at or past this one are local.
    pub fn base_nblocks(&self) -> BlockNumber {
        self.slot.base_nblocks.load(Ordering::Acquire)
    }

    /// Whether the block has to be fetched before it can be read.
    pub fn is_absent(&self, block: BlockNumber) -> bool {
        block < self.base_nblocks() && {
            let (word, mask) = self.bit(block);
            word.load(Ordering::Acquire) & mask == 0
        }
    }

    /// The block's content is in its file from now on. Call it after the content was written, never before.
    pub fn set_present(&self, block: BlockNumber) {
        if block < self.slot.built_nblocks {
            let (word, mask) = self.bit(block);
            word.fetch_or(mask, Ordering::AcqRel);
        }
    }

    /// The fork was cut to `nblocks`: what lay past that never comes back from the page server.
    pub fn truncate(&self, nblocks: BlockNumber) {
        self.slot.base_nblocks.fetch_min(nblocks, Ordering::AcqRel);
    }

    /// Length of the run of absent blocks that starts at `block`, at most `max`. 0: the block is present.
    pub fn absent_run(&self, block: BlockNumber, max: u32) -> u32 {
        let end = self.base_nblocks().min(block.saturating_add(max));
        let mut at = block;
        while at < end && self.is_absent(at) {
            at += 1;
        }
        at.saturating_sub(block)
    }

    /// The first absent block at or past `block`.
    pub fn next_absent(&self, block: BlockNumber) -> Option<BlockNumber> {
        let end = self.base_nblocks();
        let mut at = block;
        while at < end {
            let (word, mask) = self.bit(at);
            // Bits below `at` count as set, so that the first 0 is at or past it.
            let filled = word.load(Ordering::Acquire) | (mask - 1);
            let word_start = at - at % BITS_PER_WORD as u32;
            match word_start.checked_add(filled.trailing_ones()) {
                Some(found) if filled != u64::MAX => return (found < end).then_some(found),
                Some(next_word) => at = next_word,
                None => return None,
            }
        }
        None
    }

    /// Absent blocks of this fork.
    pub fn absent_count(&self) -> u64 {
        let end = u64::from(self.base_nblocks());
        let first_word = (self.slot.first_bit / BITS_PER_WORD) as usize;
        let words = &self.map.words()[first_word..first_word + end.div_ceil(BITS_PER_WORD) as usize];
        let set: u64 = words.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum();
        // Bits past the end in the last word are set if the fork was cut after their blocks came.
        let past_end = match (words.last(), end % BITS_PER_WORD) {
            (Some(last), used @ 1..) => u64::from((last.load(Ordering::Acquire) >> used).count_ones()),
            _ => 0,
        };
        end.saturating_sub(set.saturating_sub(past_end))
    }

    fn bit(&self, block: BlockNumber) -> (&AtomicU64, u64) {
        let bit = self.slot.first_bit + u64::from(block);
        (&self.map.words()[(bit / BITS_PER_WORD) as usize], 1 << (bit % BITS_PER_WORD))
    }
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("rel", &self.rel()).field("base_nblocks", &self.base_nblocks()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::{BuildError, PresenceMapBuilder};

    fn rel(relnode: u32, fork: ForkNumber) -> RelTag {
        RelTag { spcnode: 1663, dbnode: 5, relnode, fork }
    }

    fn build(sizes: &[(RelTag, u32)]) -> (tempfile::TempDir, PathBuf, PresenceMap) {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("map");
        let mut builder = PresenceMapBuilder::new(Lsn::new(77));
        for (rel, nblocks) in sizes {
            builder.add(*rel, *nblocks);
        }
        let map = builder.build(&path).expect("builds");
        (dir, path, map)
    }

    #[test]
    fn blocks_become_present_and_stay_so_over_a_reopen() {
        let main = rel(7, ForkNumber::Main);
        let (_dir, path, map) = build(&[(main, 130), (rel(7, ForkNumber::Vm), 1), (rel(8, ForkNumber::Main), 0)]);
        let entry = map.find(&main).expect("has an entry");
        assert_eq!((map.absent_count(), entry.absent_run(0, 1000)), (131, 130));
        entry.set_present(64);
        entry.set_present(500);
        assert!(!entry.is_absent(64) && entry.is_absent(65) && !entry.is_absent(130));
        assert_eq!((entry.absent_run(60, 100), entry.next_absent(64)), (4, Some(65)));
        assert!(map.find(&rel(8, ForkNumber::Main)).is_none());

        let again = PresenceMap::open(&path).expect("opens");
        let entry_again = again.find(&main).expect("has an entry");
        assert!(!entry_again.is_absent(64));
        entry_again.truncate(100);
        entry_again.truncate(120);
        assert_eq!((entry.base_nblocks(), entry.next_absent(100), map.absent_count()), (100, None, 100));
        assert_eq!(again.base_lsn(), Lsn::new(77));
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let (_dir, path, _map) = build(&[]);
        assert!(matches!(PresenceMapBuilder::new(Lsn::new(1)).build(&path), Err(BuildError::Write { .. })));
    }

    #[test]
    fn damage_is_refused() {
        let (_dir, path, map) = build(&[(rel(7, ForkNumber::Main), 10)]);
        let slot = HEADER_LEN + map.find(&rel(7, ForkNumber::Main)).expect("entry").index() * SLOT_LEN;
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        for (offset, bad) in [(slot + 12, 9_u32), (slot + 16, 1 << 20), (slot + 20, 11), (slot + 24, 1), (slot + 16, 0)]
        {
            let mut good = [0; 4];
            OpenOptions::new()
                .read(true)
                .open(&path)
                .expect("opens")
                .read_exact_at(&mut good, offset as u64)
                .expect("reads");
            file.write_all_at(&bad.to_le_bytes(), offset as u64).expect("writes");
            assert!(matches!(PresenceMap::open(&path), Err(OpenError::Corrupt { .. })), "offset {offset}");
            file.write_all_at(&good, offset as u64).expect("writes");
        }
        PresenceMap::open(&path).expect("whole again");
        file.set_len(5000).expect("shortens");
        assert!(matches!(PresenceMap::open(&path), Err(OpenError::Corrupt { .. })));
    }

    #[test]
    fn counters_are_shared_by_all_mappings() {
        let (_dir, path, map) = build(&[]);
        Counters::add(&map.counters().pages_filled, 3);
        let values = PresenceMap::open(&path).expect("opens").counters().values();
        assert_eq!(values.named().find(|(name, _)| *name == "pages_filled"), Some(("pages_filled", 3)));
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_of_blocks(
            sizes in proptest::collection::btree_map((0_u32..40, 0_u8..4), 1_u32..300, 0..60),
            steps in proptest::collection::vec((0_u32..40, 0_u8..4, 0_u32..300, any::<bool>()), 0..200),
        ) {
            let tag = |relnode: u32, fork: u8| rel(relnode, ForkNumber::from_raw(fork).expect("a fork"));
            let sizes: Vec<_> = sizes.into_iter().map(|((relnode, fork), nblocks)| (tag(relnode, fork), nblocks)).collect();
            let (_dir, _path, map) = build(&sizes);
            let mut absent: BTreeSet<(RelTag, u32)> =
                sizes.iter().flat_map(|(rel, nblocks)| (0..*nblocks).map(|block| (*rel, block))).collect();
            for (relnode, fork, block, truncate) in steps {
                let rel = tag(relnode, fork);
                let Some(entry) = map.find(&rel) else { continue };
                prop_assert_eq!(entry.is_absent(block), absent.contains(&(rel, block)));
                if truncate {
                    entry.truncate(block);
                    absent.retain(|(other, at)| *other != rel || *at < block);
                } else {
                    entry.set_present(block);
                    absent.remove(&(rel, block));
                }
                let next = absent.range((rel, block)..=(rel, u32::MAX)).next().map(|(_, block)| *block);
                prop_assert_eq!(entry.next_absent(block), next);
            }
            prop_assert_eq!(map.absent_count(), absent.len() as u64);
        }
    }
}
