//! What Postgres changes on pages without logging it, so that no redo can know: each is a [`Leave`] to differ, as narrow as it can be
//! said. Mostly hints: they are written back with the page, lost in a crash, and set again by whoever looks next.
//!
//! Most leaves go one way only: the server may have set a bit that we have not, never the other way round.

use std::fmt;

use ardent_types::{BLCKSZ, Lsn};
use serde::Serialize;

use crate::store::{PageBytes, page_lsn};

const PAGE_HEADER_LEN: usize = 24;
const HEAP_HEADER_LEN: usize = 23;
const LP_NORMAL: u32 = 1;

/// Why a byte may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Leave {
    /// `pd_checksum`: computed when a page is written out, not by redo.
    Checksum,
    /// Between `pd_lower` and `pd_upper`: what was there before. Images leave it out.
    UnusedSpace,
    /// Between the end of a heap tuple and the next multiple of 8.
    TuplePadding,
    /// Commit status hints of heap tuples (`HEAP_XMIN_COMMITTED` and so on). One way; a frozen tuple must be frozen on both sides.
    TupleHints,
    /// Command ids of heap tuples, and the flag that says combined: they matter only within the transaction that wrote them.
    CommandId,
    /// `t_ctid` of a speculative insertion that an error ended: holds the backend's token.
    SpeculativeToken,
    /// `PD_HAS_FREE_LINES`, `PD_PAGE_FULL`, `pd_prune_xid` of heap pages: whether looking for space is worth it.
    HeapPageHints,
    /// Index items found dead by a scan (`LP_DEAD`), and the page's flag that there are some. One way.
    DeadIndexItems,
    /// `F_TUPLES_DELETED` of GiST pages, which minors before those of 15.20 set and nothing reads. One way.
    GistTuplesDeleted,
    /// `btpo_cycleid` and `BTP_SPLIT_END` of B-tree pages: which vacuum was running when the page was split.
    VacuumCycle,
    /// What a GIN page held before it was deleted from the pending list: redo empties it, the server does not.
    GinDeleted,
    /// The pages that an SP-GiST index would insert into next, on its meta page.
    SpgistCache,
    /// `BRIN_EVACUATE_PAGE`: an update of the range map is moving the page's tuples away. One way.
    BrinEvacuation,
    /// `last_value`, `log_cnt` and `is_called` of a sequence that has logged values which it did not give out yet.
    SequenceAhead,
    /// Bits of a map page that `CREATE DATABASE ... STRATEGY wal_log` logged without its content. One way: we may lack bits. And its LSN,
    /// as redo does not stamp the page for a record that clears bits which it lacks: the server's must be that of the last record that
    /// references the page.
    MapLoggedEmpty,
    /// The LSN of a page that was written to its file before it was logged, and not again: a sorted GiST build stamps 1, the init fork
    /// of an index has 0. Only these are allowed.
    WrittenBeforeLogged,
    /// The LSN of a page that got a hint's record without an image: checksums with `full_page_writes = off`. Only that LSN is allowed.
    HintWithoutImage,
    /// A page that was initialised and then not used, so that nothing was logged: empty, with LSN 0. Equal to a zero page, and to an
    /// emptied page of an SP-GiST index, which takes such pages again.
    NeverLogged,
}

impl Leave {
    /// All of them.
    pub const ALL: [Leave; 18] = [
        Leave::Checksum,
        Leave::UnusedSpace,
        Leave::TuplePadding,
        Leave::TupleHints,
        Leave::CommandId,
        Leave::SpeculativeToken,
        Leave::HeapPageHints,
        Leave::DeadIndexItems,
        Leave::GistTuplesDeleted,
        Leave::VacuumCycle,
        Leave::GinDeleted,
        Leave::SpgistCache,
        Leave::BrinEvacuation,
        Leave::SequenceAhead,
        Leave::MapLoggedEmpty,
        Leave::WrittenBeforeLogged,
        Leave::HintWithoutImage,
        Leave::NeverLogged,
    ];
}

impl fmt::Display for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Leave::Checksum => "checksum",
            Leave::UnusedSpace => "unused space",
            Leave::TuplePadding => "tuple padding",
            Leave::TupleHints => "tuple hints",
            Leave::CommandId => "command ids",
            Leave::SpeculativeToken => "speculative tokens",
            Leave::HeapPageHints => "heap page hints",
            Leave::DeadIndexItems => "dead index items",
            Leave::GistTuplesDeleted => "GiST's unread flag",
            Leave::VacuumCycle => "vacuum cycles",
            Leave::GinDeleted => "deleted GIN pages",
            Leave::SpgistCache => "SP-GiST's cache",
            Leave::BrinEvacuation => "BRIN evacuation",
            Leave::SequenceAhead => "sequences ahead",
            Leave::MapLoggedEmpty => "maps logged empty",
            Leave::WrittenBeforeLogged => "written, then logged",
            Leave::HintWithoutImage => "hints without image",
            Leave::NeverLogged => "never logged",
        })
    }
}

/// Which access method wrote a page; it says so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Heap,
    Sequence,
    Btree,
    Hash,
    Gist,
    Gin,
    Spgist,
    Brin,
    /// An extension's.
    Other,
}

/// For every bit of a page: compared, one-way, or not compared.
pub(super) struct Leaves<'p> {
    ours: &'p PageBytes,
    server: &'p PageBytes,
    /// Bits that may differ either way, and those that only the server may have set.
    either: Box<PageBytes>,
    server_only: Box<PageBytes>,
    spans: Vec<(Leave, std::ops::Range<usize>)>,
}

impl<'p> Leaves<'p> {
    /// The leaves of a relation's page that both sides have. What decides them is compared itself.
    pub(super) fn of(ours: &'p PageBytes, server: &'p PageBytes) -> Leaves<'p> {
        let mut leaves = Leaves::of_map(ours, server);
        let (lower, upper) = (leaves.lower(), usize::from(word(ours, 14)));
        if (PAGE_HEADER_LEN..=upper).contains(&lower) && upper <= BLCKSZ {
            leaves.either(Leave::UnusedSpace, lower..upper);
        }
        match kind(ours) {
            Kind::Heap => leaves.heap(),
            Kind::Sequence => leaves.sequence(),
            Kind::Btree => leaves.btree(),
            Kind::Hash => leaves.dead_items(12, 0x80),
            Kind::Gist => leaves.gist(),
            Kind::Spgist => leaves.spgist(),
            Kind::Brin => leaves.server_bits(Leave::BrinEvacuation, BLCKSZ - 4, 0x01),
            Kind::Gin => leaves.gin(),
            Kind::Other => {}
        }
        leaves
    }

    /// Those of a visibility map's page: all of it is compared.
    pub(super) fn of_map(ours: &'p PageBytes, server: &'p PageBytes) -> Leaves<'p> {
        let zeros = || Box::new([0; BLCKSZ]);
        let mut leaves = Leaves { ours, server, either: zeros(), server_only: zeros(), spans: Vec::new() };
        leaves.either(Leave::Checksum, 8..10);
        leaves
    }

    /// Our map page may lack bits; the last record that references it ends at `last`.
    pub(super) fn map_logged_empty(&mut self, last: Lsn) {
        if page_lsn(self.server) == last {
            self.either(Leave::MapLoggedEmpty, 0..8);
        }
        self.server_only[PAGE_HEADER_LEN..].fill(0xFF);
        self.spans.push((Leave::MapLoggedEmpty, PAGE_HEADER_LEN..BLCKSZ));
    }

    /// The page's LSN may be another one, for this reason: the caller has looked at it.
    pub(super) fn other_lsn(&mut self, leave: Leave) {
        self.either(leave, 0..8);
    }

    /// Whether both are pages of an SP-GiST index without tuples.
    pub(super) fn are_empty_spgist(&self) -> bool {
        let empty = |page: &PageBytes| kind(page) == Kind::Spgist && usize::from(word(page, 12)) == PAGE_HEADER_LEN;
        empty(self.ours) && empty(self.server)
    }

    /// Whether the page is of a GiST index.
    pub(super) fn is_gist(&self) -> bool {
        kind(self.ours) == Kind::Gist
    }

    /// Where the pages differ without leave.
    pub(super) fn differences(&self) -> Vec<usize> {
        let differs = |at: &usize| {
            let (ours, server) = (self.ours[*at], self.server[*at]);
            (ours ^ server) & !self.either[*at] & !(self.server_only[*at] & server & !ours) != 0
        };
        (0..BLCKSZ).filter(differs).collect()
    }

    /// For each leave: bytes of which a bit may differ, and bytes that do.
    pub(super) fn used(&self) -> impl Iterator<Item = (Leave, u64, u64)> + '_ {
        self.spans.iter().map(|(leave, span)| {
            let differing = span.clone().filter(|at| self.ours[*at] != self.server[*at]).count();
            (*leave, span.len() as u64, differing as u64)
        })
    }

    fn lower(&self) -> usize {
        usize::from(word(self.ours, 12))
    }

    fn either(&mut self, leave: Leave, span: std::ops::Range<usize>) {
        self.either[span.clone()].fill(0xFF);
        self.spans.push((leave, span));
    }

    fn either_bits(&mut self, leave: Leave, at: usize, bits: u8) {
        self.either[at] |= bits;
        self.spans.push((leave, at..at + 1));
    }

    fn server_bits(&mut self, leave: Leave, at: usize, bits: u8) {
        self.server_only[at] |= bits;
        self.spans.push((leave, at..at + 1));
    }

    /// Line pointers: where they stand, offset, state, length.
    fn items(&self) -> Vec<(usize, usize, u32, usize)> {
        let end = self.lower().clamp(PAGE_HEADER_LEN, BLCKSZ);
        let items = (PAGE_HEADER_LEN..end).step_by(4).filter(|at| at + 4 <= end).map(|at| {
            let pointer = u32::from_le_bytes(self.ours[at..at + 4].try_into().expect("4 bytes"));
            (at, (pointer & 0x7FFF) as usize, pointer >> 15 & 3, (pointer >> 17) as usize)
        });
        items.collect()
    }

    fn heap(&mut self) {
        const HAS_FREE_LINES: u8 = 0x01;
        const PAGE_FULL: u8 = 0x02;
        self.either_bits(Leave::HeapPageHints, 10, HAS_FREE_LINES | PAGE_FULL);
        self.either(Leave::HeapPageHints, 20..24);
        for (index, (_, offset, state, len)) in self.items().into_iter().enumerate() {
            if state == LP_NORMAL && len >= HEAP_HEADER_LEN && offset + len <= BLCKSZ {
                self.tuple(offset, len, index + 1);
            }
        }
    }

    fn tuple(&mut self, offset: usize, len: usize, offnum: usize) {
        const XMIN_BITS: u8 = 0x03;
        const XMAX_BITS: u8 = 0x0C;
        const COMBO_CID: u8 = 0x20;
        const SPECULATIVE_OFFSET: u16 = 0xFFFE;
        self.either(Leave::CommandId, offset + 8..offset + 12);
        let mask_at = offset + 20;
        self.server_bits(Leave::CommandId, mask_at, COMBO_CID);
        let frozen = |page: &PageBytes| page[mask_at + 1] & XMIN_BITS == XMIN_BITS;
        // Both bits together are no hint: the tuple is frozen, and that is logged.
        let hints = if frozen(self.ours) != frozen(self.server) { XMAX_BITS } else { XMIN_BITS | XMAX_BITS };
        self.server_bits(Leave::TupleHints, mask_at + 1, hints);
        let end = (offset + len).next_multiple_of(8).min(BLCKSZ);
        if offset + len < end {
            self.either(Leave::TuplePadding, offset + len..end);
        }
        // Redo gives such a tuple its own place for the token that it can't know.
        if word(self.server, offset + 16) == SPECULATIVE_OFFSET && usize::from(word(self.ours, offset + 16)) == offnum {
            self.either(Leave::SpeculativeToken, offset + 12..offset + 18);
        }
    }

    fn sequence(&mut self) {
        let Some((_, offset, LP_NORMAL, len)) = self.items().first().copied() else { return };
        let data = offset + usize::from(self.ours[(offset + 22).min(BLCKSZ - 1)]);
        if len < HEAP_HEADER_LEN || data + 17 > BLCKSZ {
            return;
        }
        self.either(Leave::CommandId, offset + 8..offset + 12);
        let left = i64::from_le_bytes(self.server[data + 8..data + 16].try_into().expect("8 bytes"));
        if left > 0 {
            self.either(Leave::SequenceAhead, data..data + 17);
        }
    }

    fn btree(&mut self) {
        const HAS_GARBAGE: u8 = 0x40;
        const SPLIT_END: u8 = 0x20;
        let special = usize::from(word(self.ours, 16));
        self.dead_items(12, HAS_GARBAGE);
        self.either_bits(Leave::VacuumCycle, special + 12, SPLIT_END);
        self.either(Leave::VacuumCycle, special + 14..special + 16);
    }

    /// Items of an index page that scans may mark, and the page's flag (a bit of the byte at `flags_at` in the special space).
    fn dead_items(&mut self, flags_at: usize, flag: u8) {
        let special = usize::from(word(self.ours, 16));
        self.server_bits(Leave::DeadIndexItems, special + flags_at, flag);
        for (at, _, state, _) in self.items() {
            if state == LP_NORMAL {
                // From normal (1) to dead (3) is one bit.
                self.server_bits(Leave::DeadIndexItems, at + 2, 0x01);
            }
        }
    }

    fn gist(&mut self) {
        const HAS_GARBAGE: u8 = 0x10;
        const TUPLES_DELETED: u8 = 0x04;
        let special = usize::from(word(self.ours, 16));
        self.dead_items(12, HAS_GARBAGE);
        self.server_bits(Leave::GistTuplesDeleted, special + 12, TUPLES_DELETED);
    }

    fn gin(&mut self) {
        const DELETED: u8 = 0x04;
        let special = usize::from(word(self.ours, 16));
        let emptied = self.lower() == PAGE_HEADER_LEN && word(self.ours, special + 4) == 0;
        if emptied && self.ours[special + 6] & self.server[special + 6] & DELETED != 0 {
            self.either(Leave::GinDeleted, 12..16);
            self.either(Leave::GinDeleted, PAGE_HEADER_LEN..special + 6);
        }
    }

    fn spgist(&mut self) {
        const META: u8 = 0x01;
        /// `magicNumber`, then 8 pairs of block and free space.
        const CACHE: std::ops::Range<usize> = PAGE_HEADER_LEN + 4..PAGE_HEADER_LEN + 4 + 64;
        let special = usize::from(word(self.ours, 16));
        if self.ours[special] & META != 0 {
            self.either(Leave::SpgistCache, CACHE);
        }
    }
}

/// Whether a page of the server was initialised and never logged, so that it says nothing.
pub(super) fn never_logged(server: &PageBytes) -> bool {
    let upper = usize::from(word(server, 14)).min(BLCKSZ);
    server[..8] == [0; 8]
        && usize::from(word(server, 12)) == PAGE_HEADER_LEN
        && upper >= PAGE_HEADER_LEN
        && server[PAGE_HEADER_LEN..upper].iter().all(|byte| *byte == 0)
}

fn word(page: &PageBytes, at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

fn kind(page: &PageBytes) -> Kind {
    const SEQUENCE_MAGIC: u16 = 0x1717;
    let special = usize::from(word(page, 16));
    let last = word(page, BLCKSZ - 2);
    match BLCKSZ.checked_sub(special) {
        Some(0) => Kind::Heap,
        Some(16) => match last {
            0xFF80 => Kind::Hash,
            0xFF81 => Kind::Gist,
            _ => Kind::Btree,
        },
        Some(8) => match last {
            0xFF82 => Kind::Spgist,
            0xF091..=0xF093 => Kind::Brin,
            0 if word(page, special) == SEQUENCE_MAGIC && word(page, 12) == 28 => Kind::Sequence,
            0..=0x03FF => Kind::Gin,
            _ => Kind::Other,
        },
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_page_that_was_logged_empty_may_lack_bits_and_the_stamp_of_the_last_record_that_cleared_some() {
        let page = |lsn: u8, bits: u8| {
            let mut page = Box::new([0; BLCKSZ]);
            (page[4], page[PAGE_HEADER_LEN]) = (lsn, bits);
            page
        };
        let differences = |ours: &PageBytes, server: &PageBytes, last: u64| {
            let mut leaves = Leaves::of_map(ours, server);
            leaves.map_logged_empty(Lsn::new(last));
            leaves.differences()
        };
        assert!(differences(&page(0x10, 0), &page(0x20, 0x3F), 0x20).is_empty());
        // Neither another stamp, nor a bit that only we have.
        assert_eq!(differences(&page(0x10, 0), &page(0x20, 0x3F), 0x30), [4]);
        assert_eq!(differences(&page(0x20, 0x03), &page(0x20, 0x30), 0x20), [PAGE_HEADER_LEN]);
        // Without the leave all of it counts.
        let (ours, server) = (page(0x10, 0), page(0x20, 0x3F));
        assert_eq!(Leaves::of_map(&ours, &server).differences(), [4, PAGE_HEADER_LEN]);
    }
}
