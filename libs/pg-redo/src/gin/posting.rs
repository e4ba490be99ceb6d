//! Posting-tree leaf pages: segments of compressed TIDs, and the actions that a record takes on them.

use ardent_types::BLCKSZ;
use smallvec::SmallVec;

use crate::fault::Fault;
use crate::gin::{COMPRESSED, DATA_AT, FLAGS, MAX_OFFSET, OPAQUE_LEN};
use crate::page::Page;
use crate::read::Reader;

mod action {
    pub(super) const DELETE: u8 = 1;
    pub(super) const INSERT: u8 = 2;
    pub(super) const REPLACE: u8 = 3;
    pub(super) const ADD_ITEMS: u8 = 4;
}

/// `GinPostingList`: first TID, length of what follows.
const SEGMENT_HEADER_LEN: usize = 8;
const TID_LEN: usize = 6;
/// Bits of the offset number in a TID packed into a u64 (`MaxHeapTuplesPerPageBits`).
const OFFSET_BITS: u32 = 11;

const BAD_SEGMENT: Fault = Fault::Page("a posting-list segment is cut short");
const FULL: Fault = Fault::Page("posting-list segments do not fit");

/// Applies a `ginxlogRecompressDataLeaf`: actions by ascending segment number; segments in between stay.
pub(super) fn recompress(page: &mut Page<'_>, data: &mut Reader<'_>) -> Result<(), Fault> {
    let opaque = page.special_offset(OPAQUE_LEN)?;
    let old = old_segments(page, opaque)?;
    let mut old: &[u8] = &old;
    let mut new = Segments { bytes: [0; BLCKSZ], len: 0, limit: opaque - DATA_AT };
    // Past the last number that an action can name, too.
    let mut at_segment = 0u16;
    for _ in 0..data.u16()? {
        let (segment, kind) = (u16::from(data.u8()?), data.u8()?);
        if segment < at_segment {
            return Err(Fault::Record("actions on segments are out of order"));
        }
        while at_segment < segment {
            let (kept, rest) = split_off_segment(old)?;
            new.push(kept)?;
            old = rest;
            at_segment += 1;
        }
        match kind {
            action::INSERT => new.push(take_segment(data)?)?,
            action::REPLACE => {
                new.push(take_segment(data)?)?;
                old = split_off_segment(old)?.1;
                at_segment += 1;
            }
            action::DELETE => {
                old = split_off_segment(old)?.1;
                at_segment += 1;
            }
            action::ADD_ITEMS => {
                let count = usize::from(data.u16()?);
                let added = data.take(count * TID_LEN)?;
                let (segment, rest) = split_off_segment(old)?;
                let items = merge(&decode(segment)?, added)?;
                new.push_items(&items)?;
                old = rest;
                at_segment += 1;
            }
            _ => return Err(Fault::Record("an unknown action on a segment")),
        }
    }
    new.push(old)?;
    page.put(DATA_AT, &new.bytes[..new.len]);
    page.set_lower(DATA_AT + new.len);
    Ok(())
}

/// The page's segments; a page from before 9.4 is converted first.
fn old_segments(page: &mut Page<'_>, opaque: usize) -> Result<SmallVec<[u8; 1024]>, Fault> {
    let flags = page.u16_at(opaque + FLAGS);
    if flags & COMPRESSED != 0 {
        let list = page.bytes.get(DATA_AT..page.lower()).filter(|list| list.len() <= opaque - DATA_AT);
        return Ok(SmallVec::from_slice(list.ok_or(Fault::Page("a posting list's length is wrong"))?));
    }
    let count = usize::from(page.u16_at(opaque + MAX_OFFSET));
    let tids = page.bytes.get(DATA_AT..DATA_AT + count * TID_LEN).ok_or(Fault::Page("more TIDs than fit"))?;
    let items: Items = tids.chunks_exact(TID_LEN).map(pack).collect();
    let mut segments = Segments { bytes: [0; BLCKSZ], len: 0, limit: opaque - DATA_AT };
    if !items.is_empty() {
        segments.push_items(&items)?;
    }
    page.put_u16(opaque + FLAGS, flags | COMPRESSED);
    page.put_u16(opaque + MAX_OFFSET, 0);
    Ok(SmallVec::from_slice(&segments.bytes[..segments.len]))
}

/// Bytes of a segment, header and padding to two bytes included.
fn segment_len(segment: &[u8]) -> Option<usize> {
    let header = segment.get(..SEGMENT_HEADER_LEN)?;
    Some(SEGMENT_HEADER_LEN + usize::from(u16::from_le_bytes([header[6], header[7]])).next_multiple_of(2))
}

fn split_off_segment(segments: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    segment_len(segments).and_then(|len| segments.split_at_checked(len)).ok_or(BAD_SEGMENT)
}

fn take_segment<'a>(data: &mut Reader<'a>) -> Result<&'a [u8], Fault> {
    let len = segment_len(data.clone().rest()).ok_or(Fault::Record("a segment is cut short"))?;
    data.take(len)
}

/// TIDs as ascending numbers.
type Items = SmallVec<[u64; 256]>;

fn pack(tid: &[u8]) -> u64 {
    let word = |at: usize| u64::from(u16::from_le_bytes([tid[at], tid[at + 1]]));
    (word(0) << 16 | word(2)) << OFFSET_BITS | word(4)
}

fn unpack(item: u64) -> [u8; TID_LEN] {
    let offnum = (item & ((1 << OFFSET_BITS) - 1)) as u16;
    crate::itup::tid((item >> OFFSET_BITS) as u32, offnum)
}

/// `ginPostingListDecode` of one segment.
fn decode(segment: &[u8]) -> Result<Items, Fault> {
    let stated = usize::from(u16::from_le_bytes([segment[6], segment[7]]));
    let mut bytes = segment[SEGMENT_HEADER_LEN..SEGMENT_HEADER_LEN + stated].iter();
    let mut item = pack(&segment[..TID_LEN]);
    let mut items = Items::new();
    items.push(item);
    while let Some(first) = bytes.next() {
        let (mut delta, mut byte, mut shift) = (u64::from(first & 0x7F), *first, 0);
        while byte & 0x80 != 0 {
            byte = *bytes.next().ok_or(BAD_SEGMENT)?;
            shift += 7;
            // Seven bytes hold the largest TID; the last one has no continuation bit.
            if shift > 42 {
                return Err(BAD_SEGMENT);
            }
            delta |= u64::from(byte & 0x7F) << shift;
        }
        item = item.wrapping_add(delta);
        items.push(item);
    }
    Ok(items)
}

/// `ginMergeItemPointers`: duplicates collapse.
fn merge(old: &[u64], added: &[u8]) -> Result<Items, Fault> {
    let mut merged = Items::with_capacity(old.len() + added.len() / TID_LEN);
    let mut added = added.chunks_exact(TID_LEN).map(pack).peekable();
    for &item in old {
        while let Some(new) = added.next_if(|new| *new < item) {
            merged.push(new);
        }
        added.next_if_eq(&item);
        merged.push(item);
    }
    merged.extend(added);
    if merged.is_sorted_by(|a, b| a < b) { Ok(merged) } else { Err(Fault::Record("TIDs are out of order")) }
}

/// Segments being put together.
struct Segments {
    bytes: [u8; BLCKSZ],
    len: usize,
    limit: usize,
}

impl Segments {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let end = self.len + bytes.len();
        if end > self.limit {
            return Err(FULL);
        }
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// `ginCompressPostingList`: one segment with these TIDs.
    fn push_items(&mut self, items: &[u64]) -> Result<(), Fault> {
        let (first, rest) = items.split_first().ok_or(FULL)?;
        let header_at = self.len;
        self.push(&unpack(*first))?;
        self.push(&[0, 0])?;
        let mut previous = *first;
        for &item in rest {
            let mut delta = item.checked_sub(previous).ok_or(Fault::Page("TIDs are out of order"))?;
            previous = item;
            while delta > 0x7F {
                self.push(&[0x80 | (delta & 0x7F) as u8])?;
                delta >>= 7;
            }
            self.push(&[delta as u8])?;
        }
        let stated = self.len - header_at - SEGMENT_HEADER_LEN;
        self.bytes[header_at + TID_LEN..header_at + SEGMENT_HEADER_LEN].copy_from_slice(&(stated as u16).to_le_bytes());
        if !stated.is_multiple_of(2) {
            self.push(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_round_trip() {
        let items: Vec<u64> = (0..500u64).map(|n| n * n * n * 37 + 5).collect();
        let mut segments = Segments { bytes: [0; BLCKSZ], len: 0, limit: BLCKSZ };
        segments.push_items(&items).unwrap();
        let bytes = &segments.bytes[..segments.len];
        assert_eq!(segment_len(bytes), Some(bytes.len()));
        assert_eq!(&decode(bytes).unwrap()[..], &items[..]);
    }

    #[test]
    fn the_last_segment_that_an_action_can_name_is_replaced_or_refused_like_the_others() {
        const SEGMENTS: usize = 256;
        let kept = [0u8, 0, 7, 0, 1, 0, 0, 0];
        let full = || {
            let mut bytes = [0; BLCKSZ];
            let mut page = Page::new(&mut bytes);
            crate::gin::init(&mut page, COMPRESSED).unwrap();
            page.put(DATA_AT, &kept.repeat(SEGMENTS));
            page.set_lower(DATA_AT + SEGMENTS * kept.len());
            bytes
        };
        let mut bytes = full();
        let mut page = Page::new(&mut bytes);
        recompress(&mut page, &mut Reader::new(&[1, 0, 255, action::DELETE])).unwrap();
        assert_eq!(page.lower(), DATA_AT + (SEGMENTS - 1) * kept.len());

        let mut bytes = full();
        let twice = [2, 0, 255, action::DELETE, 255, action::DELETE];
        let refused = recompress(&mut Page::new(&mut bytes), &mut Reader::new(&twice));
        assert_eq!(refused, Err(Fault::Record("actions on segments are out of order")));
    }
}
