//! Index tuples, as far as all access methods agree: a TID, then a word with the length.

use crate::fault::Fault;

pub(crate) const HEADER_LEN: usize = 8;
pub(crate) const SIZE_MASK: u16 = 0x1FFF;

/// The length that a tuple's header states.
#[inline]
pub(crate) fn len(tuple: &[u8]) -> Result<usize, Fault> {
    let header = tuple.get(..HEADER_LEN).ok_or(Fault::Record("an index tuple is cut short"))?;
    let len = usize::from(u16::from_le_bytes([header[6], header[7]]) & SIZE_MASK);
    if len < HEADER_LEN { Err(Fault::Record("an index tuple is shorter than its header")) } else { Ok(len) }
}

/// The first tuple of `data`, and the rest. Tuples follow each other without padding besides their own.
#[inline]
pub(crate) fn split_off(data: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    data.split_at_checked(len(data)?).ok_or(Fault::Record("an index tuple is cut short"))
}

/// A block number as TIDs have it: high half first.
#[inline]
pub(crate) fn block_id(block: u32) -> [u8; 4] {
    let (high, low) = (((block >> 16) as u16).to_le_bytes(), (block as u16).to_le_bytes());
    [high[0], high[1], low[0], low[1]]
}

/// A TID (`ItemPointerData`).
#[inline]
pub(crate) fn tid(block: u32, offnum: u16) -> [u8; 6] {
    let ([a, b, c, d], [e, f]) = (block_id(block), offnum.to_le_bytes());
    [a, b, c, d, e, f]
}

/// What `ItemPointerSetInvalid` makes.
pub(crate) const INVALID_TID: [u8; 6] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0];
