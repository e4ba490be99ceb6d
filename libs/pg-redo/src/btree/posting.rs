//! Posting lists: index tuples that stand for several heap rows with one key.

use crate::btree::{HAS_GARBAGE, HIGH_KEY, OPAQUE_LEN, Opaque};
use crate::fault::Fault;
use crate::itup::{self, HEADER_LEN, SIZE_MASK};
use crate::page::{Page, max_align};
use crate::read::{Reader, U16s};
use crate::{Change, Context};

/// `ItemPointerData`
const TID_LEN: usize = 6;
/// `INDEX_ALT_TID_MASK`: the TID is something else, such as a posting list's count and offset.
const ALT_TID: u16 = 0x2000;
const IS_POSTING: u16 = 0x2000;
const COUNT_MASK: u16 = 0x0FFF;

const BAD_TUPLE: Fault = Fault::Page("an index tuple's length is wrong");
const BAD_LIST: Fault = Fault::Page("a posting list's length is wrong");

/// An index tuple in a buffer of its own.
pub(super) struct IndexTuple {
    buffer: [u8; MAX_TUPLE_LEN],
    len: usize,
}

/// `INDEX_SIZE_MASK`, rounded up.
const MAX_TUPLE_LEN: usize = 8192;

impl IndexTuple {
    pub(super) fn copy_of(bytes: &[u8]) -> Result<IndexTuple, Fault> {
        let mut buffer = [0; MAX_TUPLE_LEN];
        if bytes.len() < HEADER_LEN {
            return Err(Fault::Record("an index tuple is cut short"));
        }
        let target = buffer.get_mut(..bytes.len()).ok_or(Fault::Record("an index tuple is too long"))?;
        target.copy_from_slice(bytes);
        Ok(IndexTuple { buffer, len: bytes.len() })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// A tuple with the key of `base` and these TIDs (`_bt_form_posting`): one TID makes a plain tuple.
    fn with_tids(base: &[u8], key_len: usize, tids: &[u8]) -> Result<IndexTuple, Fault> {
        let mut buffer = [0; MAX_TUPLE_LEN];
        let count = tids.len() / TID_LEN;
        let len = if count > 1 { max_align(key_len + tids.len()) } else { key_len };
        if len > usize::from(SIZE_MASK) || key_len < HEADER_LEN || count == 0 || count > usize::from(COUNT_MASK) {
            return Err(BAD_LIST);
        }
        buffer[..key_len].copy_from_slice(base.get(..key_len).ok_or(BAD_TUPLE)?);
        let mut info = u16::from_le_bytes([buffer[6], buffer[7]]) & !(SIZE_MASK | ALT_TID) | len as u16;
        if count > 1 {
            info |= ALT_TID;
            // In place of the TID: where the list starts, and how long it is.
            buffer[..4].copy_from_slice(&itup::block_id(key_len as u32));
            buffer[4..6].copy_from_slice(&(count as u16 | IS_POSTING).to_le_bytes());
            buffer[key_len..key_len + tids.len()].copy_from_slice(tids);
        } else {
            buffer[..TID_LEN].copy_from_slice(tids);
        }
        buffer[6..8].copy_from_slice(&info.to_le_bytes());
        Ok(IndexTuple { buffer, len })
    }
}

/// A pivot tuple without key columns whose TID is `block` (`BTreeTupleSetTopParent`).
pub(super) fn pivot_without_keys(block: u32) -> [u8; HEADER_LEN] {
    let mut tuple = [0; HEADER_LEN];
    tuple[..4].copy_from_slice(&itup::block_id(block));
    tuple[6..8].copy_from_slice(&(ALT_TID | HEADER_LEN as u16).to_le_bytes());
    tuple
}

/// The key length and the TIDs of a leaf tuple, posting list or not.
fn parts(tuple: &[u8]) -> Result<(usize, std::ops::Range<usize>), Fault> {
    let len = itup::len(tuple).map_err(|_| BAD_TUPLE)?;
    if len > tuple.len() {
        return Err(BAD_TUPLE);
    }
    match posting_list(tuple) {
        Some(list) if list.end > len || list.start < HEADER_LEN => Err(BAD_LIST),
        Some(list) => Ok((list.start, list)),
        None => Ok((len, 0..TID_LEN)),
    }
}

/// Where the TIDs of a posting list tuple are; `None` for plain tuples. The caller has checked that there is a header.
fn posting_list(tuple: &[u8]) -> Option<std::ops::Range<usize>> {
    let word = |at: usize| u16::from_le_bytes([tuple[at], tuple[at + 1]]);
    let (info, count) = (word(6), word(4));
    (info & ALT_TID != 0 && count & IS_POSTING != 0).then(|| {
        let start = usize::from(word(0)) << 16 | usize::from(word(2));
        start..start + usize::from(count & COUNT_MASK) * TID_LEN
    })
}

/// `_bt_swap_posting`: the new tuple's TID goes into `list` at `split_at`, the list's last TID becomes the new tuple's.
pub(super) fn swap(new_item: &mut IndexTuple, list: &mut [u8], split_at: u16) -> Result<(), Fault> {
    let (_, range) = parts(list)?;
    if posting_list(list).is_none() {
        return Err(Fault::Page("not a posting list"));
    }
    let tids = &mut list[range];
    let at = usize::from(split_at) * TID_LEN;
    if at == 0 || at >= tids.len() {
        return Err(Fault::Record("a posting list can't be split there"));
    }
    let last_at = tids.len() - TID_LEN;
    let last: [u8; TID_LEN] = tids[last_at..].try_into().expect("one TID");
    tids.copy_within(at..last_at, at + TID_LEN);
    tids[at..at + TID_LEN].copy_from_slice(&new_item.buffer[..TID_LEN]);
    new_item.buffer[..TID_LEN].copy_from_slice(&last);
    Ok(())
}

/// Takes the TIDs at the indexes `gone`, which ascend, out of the posting list at `offnum` (`_bt_update_posting`).
pub(super) fn remove(page: &mut Page<'_>, offnum: u16, gone: U16s<'_>) -> Result<(), Fault> {
    let tuple = page.item(offnum)?;
    if tuple.len() < HEADER_LEN || posting_list(tuple).is_none() {
        return Err(Fault::Page("not a posting list"));
    }
    let (key_len, range) = parts(tuple)?;
    let mut left: TidList = TidList::new();
    let mut gone = gone.iter().peekable();
    for (index, tid) in tuple[range].chunks_exact(TID_LEN).enumerate() {
        if gone.next_if_eq(&(index as u16)).is_none() {
            left.extend_from_slice(tid);
        }
    }
    if gone.next().is_some() {
        return Err(Fault::Record("a TID to be deleted is not in the posting list"));
    }
    let updated = IndexTuple::with_tids(tuple, key_len, &left)?;
    page.index_overwrite(offnum, updated.bytes())
}

/// Lists longer than this, which only corrupt pages have, spill to the heap.
type TidList = smallvec::SmallVec<[u8; 4096]>;

/// Merges runs of tuples with equal keys into posting lists, as the record's intervals (first offset number, number of
/// tuples) say.
pub(super) fn dedup(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let count = Reader::new(cx.view.main_data).u16()?;
    let mut data = Reader::new(cx.block.data);
    let mut opaque = Opaque::read(page)?;
    let mut old = *page.bytes;
    let mut old = Page::new(&mut old);
    page.init(OPAQUE_LEN);
    let first = opaque.first_data_offset();
    if first > HIGH_KEY {
        page.append_item(old.item(HIGH_KEY)?)?;
    }
    let mut offnum = first;
    let max = old.max_offset();
    let mut tids = TidList::new();
    for _ in 0..count {
        let (base_offnum, items) = (data.u16()?, data.u16()?);
        let end = base_offnum.checked_add(items).filter(|end| *end <= max + 1);
        let end = end.ok_or(Fault::Record("an interval goes past the page's end"))?;
        if base_offnum < offnum || items < 2 {
            return Err(Fault::Record("an interval is empty or out of order"));
        }
        copy_items(&mut old, page, offnum..base_offnum)?;
        tids.clear();
        for merged in base_offnum..end {
            let tuple = old.item(merged)?;
            let (_, range) = parts(tuple)?;
            tids.extend_from_slice(&tuple[range]);
        }
        let base = old.item(base_offnum)?;
        let (key_len, _) = parts(base)?;
        let merged = IndexTuple::with_tids(base, key_len, &tids)?;
        page.append_item(merged.bytes())?;
        offnum = end;
    }
    copy_items(&mut old, page, offnum..max + 1)?;
    opaque.flags &= !HAS_GARBAGE;
    opaque.write(page)?;
    Ok(Change::Stamp)
}

/// Copies items with the length that their tuples state, as `_bt_dedup_finish_pending` does.
fn copy_items(old: &mut Page<'_>, page: &mut Page<'_>, offnums: std::ops::Range<u16>) -> Result<(), Fault> {
    for offnum in offnums {
        let item = old.item(offnum)?;
        let len = itup::len(item).map_err(|_| BAD_TUPLE)?;
        page.append_item(item.get(..len).ok_or(BAD_TUPLE)?)?;
    }
    Ok(())
}
