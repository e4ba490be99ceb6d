//! Which bits of a page Postgres's redo need not reproduce, per access method: the rules of the `rm_mask` functions, as a
//! mask of ignored bits. Two pages agree if their masks are equal and so is everything outside of them.

use ardent_pg_format::rmgr;
use ardent_types::{BLCKSZ, BlockNumber};

use crate::store::PageBytes;

const HEADER_LEN: usize = 24;
const LSN_AND_CHECKSUM: std::ops::Range<usize> = 0..10;
const FLAGS: usize = 10;
const POINTERS: std::ops::Range<usize> = 12..16;
const PRUNE_XID: std::ops::Range<usize> = 20..24;
/// `PD_HAS_FREE_LINES`, `PD_PAGE_FULL`, `PD_ALL_VISIBLE`
const HINT_FLAGS: u8 = 0x07;

/// Bits that are ignored in a comparison.
pub(crate) struct Mask {
    bits: Box<PageBytes>,
}

/// The page's pointers are no page's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotMaskable;

impl Mask {
    /// The mask of `page`, which a record of this resource manager left.
    pub(crate) fn of(rmid: u8, page: &PageBytes) -> Result<Mask, NotMaskable> {
        let mut masker = Masker { page, mask: Mask { bits: Box::new([0; BLCKSZ]) } };
        masker.all(LSN_AND_CHECKSUM);
        match rmid {
            rmgr::HEAP | rmgr::HEAP2 => masker.heap()?,
            rmgr::BTREE => masker.btree()?,
            rmgr::HASH => masker.hash()?,
            rmgr::GIN => masker.gin()?,
            rmgr::GIST => masker.gist()?,
            rmgr::SPGIST => masker.spgist()?,
            rmgr::BRIN => masker.brin()?,
            // Sequences, generic WAL.
            _ => masker.unused_space()?,
        }
        Ok(masker.mask)
    }

    /// Bytes of which any bit is ignored.
    pub(crate) fn masked_bytes(&self) -> u64 {
        self.bits.iter().filter(|bits| **bits != 0).count() as u64
    }

    /// The first offset at which the pages differ outside of their masks, or at which the masks do.
    pub(crate) fn first_difference(&self, other: &Mask, ours: &PageBytes, theirs: &PageBytes) -> Option<usize> {
        let differs = |at: usize| self.bits[at] != other.bits[at] || (ours[at] ^ theirs[at]) & !self.bits[at] != 0;
        // Whole words first: nearly always all is equal.
        let word = |bytes: &PageBytes, at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        (0..BLCKSZ).step_by(8).find_map(|at| {
            let (mask, other) = (word(&self.bits, at), word(&other.bits, at));
            let equal = mask == other && (word(ours, at) ^ word(theirs, at)) & !mask == 0;
            if equal { None } else { (at..at + 8).find(|at| differs(*at)) }
        })
    }
}

/// Gives speculative tuples the `t_ctid` that redo gives them, which is the tuple itself: the logged page has the
/// inserting backend's token there, which isn't logged. Returns the number of bytes concerned.
pub(crate) fn settle_speculative_tuples(page: &mut PageBytes, block: BlockNumber) -> u64 {
    const SPECULATIVE_OFFSET: u16 = 0xFFFE;
    let masker = Masker { page, mask: Mask { bits: Box::new([0; BLCKSZ]) } };
    let tuples: Vec<usize> = (masker.items().enumerate())
        .filter(|(_, (_, offset, state, len))| *state == 1 && *len >= 23 && offset + len <= BLCKSZ)
        .filter(|(_, (_, offset, ..))| masker.u16_at(offset + 16) == SPECULATIVE_OFFSET)
        .flat_map(|(index, (_, offset, ..))| [index + 1, offset])
        .collect();
    for pair in tuples.chunks_exact(2) {
        let (offnum, at) = (pair[0] as u16, pair[1] + 12);
        page[at..at + 2].copy_from_slice(&((block >> 16) as u16).to_le_bytes());
        page[at + 2..at + 4].copy_from_slice(&(block as u16).to_le_bytes());
        page[at + 4..at + 6].copy_from_slice(&offnum.to_le_bytes());
    }
    tuples.len() as u64 / 2 * 6
}

struct Masker<'p> {
    page: &'p PageBytes,
    mask: Mask,
}

impl Masker<'_> {
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.page[at], self.page[at + 1]])
    }

    fn all(&mut self, range: std::ops::Range<usize>) {
        self.mask.bits[range].fill(0xFF);
    }

    fn bits16(&mut self, at: usize, bits: u16) {
        let [low, high] = bits.to_le_bytes();
        self.mask.bits[at] |= low;
        self.mask.bits[at + 1] |= high;
    }

    fn lower(&self) -> usize {
        usize::from(self.u16_at(12))
    }

    fn special(&self, len: usize) -> Result<usize, NotMaskable> {
        let at = usize::from(self.u16_at(16));
        if at + len == BLCKSZ { Ok(at) } else { Err(NotMaskable) }
    }

    fn page_hint_bits(&mut self) {
        self.all(PRUNE_XID);
        self.mask.bits[FLAGS] |= HINT_FLAGS;
    }

    fn unused_space(&mut self) -> Result<(), NotMaskable> {
        let (lower, upper, special) = (self.lower(), usize::from(self.u16_at(14)), usize::from(self.u16_at(16)));
        if lower < HEADER_LEN || lower > upper || upper > special || special > BLCKSZ {
            return Err(NotMaskable);
        }
        self.all(lower..upper);
        Ok(())
    }

    fn page_content(&mut self) {
        self.all(HEADER_LEN..BLCKSZ);
        self.all(POINTERS);
    }

    /// Line pointers: where they stand, offset, state, length.
    fn items(&self) -> impl Iterator<Item = (usize, usize, u32, usize)> + use<> {
        let count = self.lower().clamp(HEADER_LEN, BLCKSZ) - HEADER_LEN;
        let words: Vec<_> = (0..count / 4)
            .map(|index| {
                let at = HEADER_LEN + index * 4;
                let word = u32::from_le_bytes(self.page[at..at + 4].try_into().expect("4 bytes"));
                (at, (word & 0x7FFF) as usize, word >> 15 & 3, (word >> 17) as usize)
            })
            .collect();
        words.into_iter()
    }

    fn line_pointer_states(&mut self) {
        for (at, ..) in self.items() {
            self.bits16(at, 0x8000);
            self.bits16(at + 2, 0x0001);
        }
    }

    fn heap(&mut self) -> Result<(), NotMaskable> {
        const NORMAL: u32 = 1;
        const XMIN_FROZEN: u16 = 0x0300;
        const XACT_MASK: u16 = 0xFFF0;
        const XMAX_HINTS: u16 = 0x0C00;
        self.page_hint_bits();
        self.unused_space()?;
        for (_, offset, state, len) in self.items() {
            if len == 0 {
                continue;
            }
            let padded = len.next_multiple_of(8);
            if offset + padded > BLCKSZ {
                return Err(NotMaskable);
            }
            if state == NORMAL && len >= 23 {
                let frozen = self.u16_at(offset + 20) & XMIN_FROZEN == XMIN_FROZEN;
                self.bits16(offset + 20, if frozen { XMAX_HINTS } else { XACT_MASK });
                // The command id.
                self.all(offset + 8..offset + 12);
            }
            self.all(offset + len..offset + padded);
        }
        Ok(())
    }

    fn btree(&mut self) -> Result<(), NotMaskable> {
        const LEAF: u16 = 0x01;
        /// `BTP_HAS_GARBAGE`, `BTP_SPLIT_END`
        const HINTS: u16 = 0x60;
        self.page_hint_bits();
        self.unused_space()?;
        let special = self.special(16)?;
        if self.u16_at(special + 12) & LEAF != 0 {
            self.line_pointer_states();
        }
        self.bits16(special + 12, HINTS);
        self.bits16(special + 14, 0xFFFF);
        Ok(())
    }

    fn hash(&mut self) -> Result<(), NotMaskable> {
        const PAGE_TYPE: u16 = 0x0F;
        const OVERFLOW: u16 = 0x01;
        const BUCKET: u16 = 0x02;
        const HAS_DEAD_TUPLES: u16 = 0x80;
        self.page_hint_bits();
        self.unused_space()?;
        let special = self.special(16)?;
        match self.u16_at(special + 12) & PAGE_TYPE {
            0 => self.page_content(),
            OVERFLOW | BUCKET => self.line_pointer_states(),
            _ => {}
        }
        self.bits16(special + 12, HAS_DEAD_TUPLES);
        Ok(())
    }

    fn gin(&mut self) -> Result<(), NotMaskable> {
        const DELETED: u16 = 0x04;
        self.page_hint_bits();
        let special = self.special(8)?;
        if self.u16_at(special + 6) & DELETED != 0 {
            self.page_content();
        } else if self.lower() > HEADER_LEN {
            self.unused_space()?;
        }
        Ok(())
    }

    fn gist(&mut self) -> Result<(), NotMaskable> {
        const LEAF: u16 = 0x01;
        /// `F_FOLLOW_RIGHT`, `F_HAS_GARBAGE`, and `F_TUPLES_DELETED`, which only older minors set and nothing reads.
        const HINTS: u16 = 0x1C;
        self.page_hint_bits();
        self.unused_space()?;
        let special = self.special(16)?;
        self.all(special..special + 8);
        let flags_at = special + 12;
        if self.u16_at(flags_at) & LEAF != 0 {
            self.line_pointer_states();
        }
        self.bits16(flags_at, HINTS);
        Ok(())
    }

    fn spgist(&mut self) -> Result<(), NotMaskable> {
        self.page_hint_bits();
        if self.lower() >= HEADER_LEN {
            self.unused_space()?;
        }
        Ok(())
    }

    fn brin(&mut self) -> Result<(), NotMaskable> {
        const META: u16 = 0xF091;
        const REGULAR: u16 = 0xF093;
        const EVACUATE: u16 = 0x0001;
        self.page_hint_bits();
        let special = self.special(8)?;
        let kind = self.u16_at(special + 6);
        if kind == REGULAR || kind == META && self.lower() > HEADER_LEN {
            self.unused_space()?;
        }
        self.bits16(special + 4, EVACUATE);
        Ok(())
    }
}
