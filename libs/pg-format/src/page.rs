//! The layout of a data page: header, line pointers, tuple headers, checksum.

use ardent_types::{BLCKSZ, BlockNumber, Lsn};

use crate::bytes_at::{put, u16_at, u32_at};

mod checksum;

pub use checksum::{checksum_page, page_checksum_matches};

/// A page's bytes.
pub type PageBytes = [u8; BLCKSZ];

/// `SizeOfPageHeaderData`: where line pointers begin.
pub const PAGE_HEADER_LEN: usize = 24;
/// Size of a line pointer (`ItemIdData`).
pub const ITEM_ID_LEN: usize = 4;
/// `PG_PAGE_LAYOUT_VERSION`.
pub const PAGE_LAYOUT_VERSION: u16 = 4;

/// `pd_flags`: there may be unused line pointers.
pub const PD_HAS_FREE_LINES: u16 = 0x0001;
/// `pd_flags`: no room for another tuple was found.
pub const PD_PAGE_FULL: u16 = 0x0002;
/// `pd_flags`: every tuple is visible to everybody.
pub const PD_ALL_VISIBLE: u16 = 0x0004;

const LSN: usize = 0;
const CHECKSUM: usize = 8;
const FLAGS: usize = 10;
const LOWER: usize = 12;
const UPPER: usize = 14;
const SPECIAL: usize = 16;
const PAGE_SIZE_VERSION: usize = 18;
const PRUNE_XID: usize = 20;

/// The fields of `PageHeaderData`, read from a page's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// `pd_lsn`: end of the last record that changed the page.
    pub lsn: Lsn,
    /// `pd_checksum`
    pub checksum: u16,
    /// `pd_flags`
    pub flags: u16,
    /// `pd_lower`: end of the line pointers.
    pub lower: u16,
    /// `pd_upper`: start of the tuples.
    pub upper: u16,
    /// `pd_special`: start of the access method's own space.
    pub special: u16,
    /// `pd_pagesize_version`
    pub pagesize_version: u16,
    /// `pd_prune_xid`
    pub prune_xid: u32,
}

impl PageHeader {
    /// Reads it.
    pub fn read(page: &PageBytes) -> PageHeader {
        PageHeader {
            lsn: lsn(page),
            checksum: u16_at(page, CHECKSUM),
            flags: u16_at(page, FLAGS),
            lower: u16_at(page, LOWER),
            upper: u16_at(page, UPPER),
            special: u16_at(page, SPECIAL),
            pagesize_version: u16_at(page, PAGE_SIZE_VERSION),
            prune_xid: u32_at(page, PRUNE_XID),
        }
    }

    /// Writes it.
    pub fn write(&self, page: &mut PageBytes) {
        set_lsn(page, self.lsn);
        put(page, CHECKSUM, &self.checksum.to_le_bytes());
        put(page, FLAGS, &self.flags.to_le_bytes());
        put(page, LOWER, &self.lower.to_le_bytes());
        put(page, UPPER, &self.upper.to_le_bytes());
        put(page, SPECIAL, &self.special.to_le_bytes());
        put(page, PAGE_SIZE_VERSION, &self.pagesize_version.to_le_bytes());
        put(page, PRUNE_XID, &self.prune_xid.to_le_bytes());
    }

    /// Whether the offsets are in order and in range, as `PageIsVerified` asks of a page that isn't new.
    pub fn is_sane(&self) -> bool {
        let size = BLCKSZ as u16;
        self.pagesize_version & 0xFF00 == size
            && self.lower <= self.upper
            && self.upper <= self.special
            && self.special <= size
            && self.special.is_multiple_of(8)
    }
}

/// `pd_lsn`, stored as two 32-bit halves, the high one first.
pub fn lsn(page: &PageBytes) -> Lsn {
    Lsn::new(u64::from(u32_at(page, LSN)) << 32 | u64::from(u32_at(page, LSN + 4)))
}

/// Sets `pd_lsn`.
pub fn set_lsn(page: &mut PageBytes, lsn: Lsn) {
    let (high, low) = lsn.halves();
    put(page, LSN, &high.to_le_bytes());
    put(page, LSN + 4, &low.to_le_bytes());
}

/// `pd_checksum`.
pub fn checksum(page: &PageBytes) -> u16 {
    u16_at(page, CHECKSUM)
}

/// Sets `pd_checksum`.
pub fn set_checksum(page: &mut PageBytes, checksum: u16) {
    put(page, CHECKSUM, &checksum.to_le_bytes());
}

/// `pd_flags`.
pub fn flags(page: &PageBytes) -> u16 {
    u16_at(page, FLAGS)
}

/// Sets `pd_flags`.
pub fn set_flags(page: &mut PageBytes, flags: u16) {
    put(page, FLAGS, &flags.to_le_bytes());
}

/// `pd_lower`.
pub fn lower(page: &PageBytes) -> u16 {
    u16_at(page, LOWER)
}

/// Sets `pd_lower`.
pub fn set_lower(page: &mut PageBytes, lower: u16) {
    put(page, LOWER, &lower.to_le_bytes());
}

/// `pd_upper`.
pub fn upper(page: &PageBytes) -> u16 {
    u16_at(page, UPPER)
}

/// Sets `pd_upper`.
pub fn set_upper(page: &mut PageBytes, upper: u16) {
    put(page, UPPER, &upper.to_le_bytes());
}

/// `pd_special`.
pub fn special(page: &PageBytes) -> u16 {
    u16_at(page, SPECIAL)
}

/// `pd_prune_xid`.
pub fn prune_xid(page: &PageBytes) -> u32 {
    u32_at(page, PRUNE_XID)
}

/// Sets `pd_prune_xid`.
pub fn set_prune_xid(page: &mut PageBytes, xid: u32) {
    put(page, PRUNE_XID, &xid.to_le_bytes());
}

/// `PageIsNew`: never initialised.
pub fn is_new(page: &PageBytes) -> bool {
    upper(page) == 0
}

/// What `PageInit` leaves: an empty page whose last `special_len` bytes (rounded up to 8) are the access method's.
pub fn init(page: &mut PageBytes, special_len: usize) {
    let special = BLCKSZ - special_len.next_multiple_of(8);
    page.fill(0);
    set_lower(page, PAGE_HEADER_LEN as u16);
    set_upper(page, special as u16);
    put(page, SPECIAL, &(special as u16).to_le_bytes());
    put(page, PAGE_SIZE_VERSION, &(BLCKSZ as u16 | PAGE_LAYOUT_VERSION).to_le_bytes());
}

/// State of a line pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemState {
    /// Free for reuse.
    Unused,
    /// Points at a tuple.
    Normal,
    /// Points at another line pointer, whose number stands in the offset.
    Redirect,
    /// Dead; may have storage or not.
    Dead,
}

/// A line pointer: 15 bits offset, 2 bits state, 15 bits length, from the lowest bit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemId {
    /// Offset of the tuple in the page.
    pub offset: u16,
    /// State.
    pub state: ItemState,
    /// Length of the tuple in bytes.
    pub length: u16,
}

impl ItemId {
    /// From its 32 bits.
    pub fn from_raw(raw: u32) -> ItemId {
        let state = match raw >> 15 & 3 {
            0 => ItemState::Unused,
            1 => ItemState::Normal,
            2 => ItemState::Redirect,
            _ => ItemState::Dead,
        };
        ItemId { offset: (raw & 0x7FFF) as u16, state, length: (raw >> 17) as u16 }
    }

    /// Its 32 bits.
    pub fn to_raw(self) -> u32 {
        let state = match self.state {
            ItemState::Unused => 0,
            ItemState::Normal => 1,
            ItemState::Redirect => 2,
            ItemState::Dead => 3,
        };
        u32::from(self.offset & 0x7FFF) | state << 15 | u32::from(self.length & 0x7FFF) << 17
    }
}

/// How many line pointers a page has (`PageGetMaxOffsetNumber`), 0 for one whose header is damaged.
pub fn item_count(page: &PageBytes) -> u16 {
    let lower = usize::from(lower(page)).min(BLCKSZ);
    (lower.saturating_sub(PAGE_HEADER_LEN) / ITEM_ID_LEN) as u16
}

/// The line pointer with this number, counted from 1; `None` past the end.
pub fn item(page: &PageBytes, number: u16) -> Option<ItemId> {
    let inside = number >= 1 && number <= item_count(page);
    inside.then(|| ItemId::from_raw(u32_at(page, PAGE_HEADER_LEN + (usize::from(number) - 1) * ITEM_ID_LEN)))
}

/// Whether a page read from disk can be what Postgres wrote there: new, or with a sane header and the right checksum.
/// `checksums` says whether the cluster has them.
pub fn is_verified(page: &PageBytes, block: BlockNumber, checksums: bool) -> bool {
    if is_new(page) {
        return page.iter().all(|&byte| byte == 0);
    }
    PageHeader::read(page).is_sane() && (!checksums || page_checksum_matches(page, block))
}

/// Heap tuple headers (`HeapTupleHeaderData`): offsets of the fields, and flag bits.
pub mod tuple {
    /// Length of the fixed part, without null bitmap and padding (`SizeofHeapTupleHeader`).
    pub const HEADER_LEN: usize = 23;
    /// Offset of `t_xmin`.
    pub const XMIN: usize = 0;
    /// Offset of `t_xmax`.
    pub const XMAX: usize = 4;
    /// Offset of `t_cid` or `t_xvac`.
    pub const FIELD3: usize = 8;
    /// Offset of `t_ctid`: block high half, block low half, line pointer; two bytes each.
    pub const CTID: usize = 12;
    /// Offset of `t_infomask2`.
    pub const INFOMASK2: usize = 18;
    /// Offset of `t_infomask`.
    pub const INFOMASK: usize = 20;
    /// Offset of `t_hoff`.
    pub const HOFF: usize = 22;

    /// `t_infomask`: has a null bitmap.
    pub const HEAP_HASNULL: u16 = 0x0001;
    /// Has variable-width attributes.
    pub const HEAP_HASVARWIDTH: u16 = 0x0002;
    /// Has attributes stored elsewhere.
    pub const HEAP_HASEXTERNAL: u16 = 0x0004;
    /// `xmax` is a key-share locker.
    pub const HEAP_XMAX_KEYSHR_LOCK: u16 = 0x0010;
    /// `t_cid` is a combo command id.
    pub const HEAP_COMBOCID: u16 = 0x0020;
    /// `xmax` is an exclusive locker.
    pub const HEAP_XMAX_EXCL_LOCK: u16 = 0x0040;
    /// `xmax` only locks.
    pub const HEAP_XMAX_LOCK_ONLY: u16 = 0x0080;
    /// `xmin` committed.
    pub const HEAP_XMIN_COMMITTED: u16 = 0x0100;
    /// `xmin` aborted; with [`HEAP_XMIN_COMMITTED`]: frozen.
    pub const HEAP_XMIN_INVALID: u16 = 0x0200;
    /// `xmax` committed.
    pub const HEAP_XMAX_COMMITTED: u16 = 0x0400;
    /// `xmax` aborted or none.
    pub const HEAP_XMAX_INVALID: u16 = 0x0800;
    /// `xmax` is a multixact.
    pub const HEAP_XMAX_IS_MULTI: u16 = 0x1000;
    /// An updated version of a row.
    pub const HEAP_UPDATED: u16 = 0x2000;
    /// Moved by a VACUUM FULL of before 9.0, away.
    pub const HEAP_MOVED_OFF: u16 = 0x4000;
    /// Moved by a VACUUM FULL of before 9.0, to here.
    pub const HEAP_MOVED_IN: u16 = 0x8000;
    /// All bits that say something about visibility.
    pub const HEAP_XACT_MASK: u16 = 0xFFF0;
    /// All bits that say something about `xmax`.
    pub const HEAP_XMAX_BITS: u16 = HEAP_XMAX_COMMITTED
        | HEAP_XMAX_INVALID
        | HEAP_XMAX_IS_MULTI
        | HEAP_XMAX_KEYSHR_LOCK
        | HEAP_XMAX_EXCL_LOCK
        | HEAP_XMAX_LOCK_ONLY;

    /// `t_infomask2`: number of attributes.
    pub const HEAP_NATTS_MASK: u16 = 0x07FF;
    /// Key columns were updated, or the tuple was deleted.
    pub const HEAP_KEYS_UPDATED: u16 = 0x2000;
    /// The tuple was HOT-updated.
    pub const HEAP_HOT_UPDATED: u16 = 0x4000;
    /// A heap-only tuple.
    pub const HEAP_ONLY_TUPLE: u16 = 0x8000;
    /// All bits of `t_infomask2` that say something about visibility.
    pub const HEAP2_XACT_MASK: u16 = 0xE000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trips() {
        let mut page = [0; BLCKSZ];
        assert!(is_new(&page) && is_verified(&page, 0, true));
        init(&mut page, 13);
        assert_eq!((lower(&page), upper(&page), special(&page)), (24, 8176, 8176));
        let header =
            PageHeader { lsn: Lsn::new(0x1_0000_0002), checksum: 3, flags: 4, prune_xid: 9, ..PageHeader::read(&page) };
        header.write(&mut page);
        assert_eq!(PageHeader::read(&page), header);
        assert!(header.is_sane());
        assert_eq!(page[..8], [1, 0, 0, 0, 2, 0, 0, 0], "the high half comes first");
    }

    #[test]
    fn line_pointers_round_trip() {
        for state in [ItemState::Unused, ItemState::Normal, ItemState::Redirect, ItemState::Dead] {
            let item = ItemId { offset: 8160, state, length: 28 };
            assert_eq!(ItemId::from_raw(item.to_raw()), item);
        }
        let mut page = [0; BLCKSZ];
        init(&mut page, 0);
        assert_eq!((item_count(&page), item(&page, 1)), (0, None));
        set_lower(&mut page, 28);
        assert_eq!(item(&page, 1).map(|item| item.state), Some(ItemState::Unused));
        set_lower(&mut page, u16::MAX);
        assert!(item(&page, item_count(&page)).is_some());
    }
}
