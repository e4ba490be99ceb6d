//! SP-GiST tuples: leaf, inner, and the dead ones that hold a place.

use crate::Change;
use crate::fault::Fault;
use crate::itup;
use crate::page::{Page, Place};
use crate::read::{Reader, U16s};
use crate::spgist::{OPAQUE_LEN, PLACEHOLDERS, REDIRECTIONS};

pub(super) const REDIRECT: u32 = 1;
pub(super) const DEAD: u32 = 2;
pub(super) const PLACEHOLDER: u32 = 3;
const STATE_MASK: u32 = 3;

/// `SGDTSIZE`
const DEAD_LEN: usize = 16;
/// `SpGistLeafTupleData` without padding.
const LEAF_HEADER_LEN: usize = 12;
/// `SpGistInnerTupleData`, padded.
const INNER_HEADER_LEN: usize = 8;
const NEXT_OFFSET_MASK: u16 = 0x3FFF;

const BAD_TUPLE: Fault = Fault::Page("a tuple is cut short");
const BAD_DATA: Fault = Fault::Record("a tuple is cut short");

/// `spgxlogState`
#[derive(Clone, Copy)]
pub(super) struct State {
    xid: u32,
    pub(super) is_build: bool,
}

impl State {
    pub(super) fn read(main: &mut Reader<'_>) -> Result<State, Fault> {
        let state = State { xid: main.u32()?, is_build: main.u8()? != 0 };
        main.skip(3)?;
        Ok(state)
    }

    /// `spgFormDeadTuple`; `to` matters for redirections only.
    pub(super) fn dead_tuple(self, kind: u32, to: (u32, u16)) -> [u8; DEAD_LEN] {
        let mut tuple = [0; DEAD_LEN];
        tuple[0..4].copy_from_slice(&(kind | (DEAD_LEN as u32) << 2).to_le_bytes());
        if kind == REDIRECT {
            tuple[6..12].copy_from_slice(&itup::tid(to.0, to.1));
            tuple[12..16].copy_from_slice(&self.xid.to_le_bytes());
        } else {
            tuple[6..12].copy_from_slice(&itup::INVALID_TID);
        }
        tuple
    }
}

fn first_word(tuple: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*tuple.first_chunk()?))
}

/// The length that a leaf tuple states.
pub(super) fn leaf_len(data: &[u8]) -> Result<usize, Fault> {
    let len = first_word(data).ok_or(BAD_DATA)? as usize >> 2;
    if len < LEAF_HEADER_LEN { Err(BAD_DATA) } else { Ok(len) }
}

/// The inner tuple that `data` starts with, and the rest.
pub(super) fn split_off_inner(data: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let header = data.get(..INNER_HEADER_LEN).ok_or(BAD_DATA)?;
    let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
    data.split_at_checked(len).filter(|_| len >= INNER_HEADER_LEN).ok_or(BAD_DATA)
}

/// Adds a tuple; where one is, it must be a placeholder, and gives way.
pub(super) fn add_or_replace(page: &mut Page<'_>, offnum: u16, tuple: &[u8]) -> Result<(), Fault> {
    if offnum <= page.max_offset() {
        if first_word(page.item(offnum)?).ok_or(BAD_TUPLE)? & STATE_MASK != PLACEHOLDER {
            return Err(Fault::Page("the tuple to be replaced is not a placeholder"));
        }
        let at = page.special_offset(OPAQUE_LEN)? + PLACEHOLDERS;
        page.put_u16(at, page.u16_at(at).wrapping_sub(1));
        page.index_delete(offnum)?;
    }
    page.add_item(offnum, tuple, Place::Shift)
}

/// Links the leaf tuple at `offnum` to the one at `next`.
pub(super) fn set_next_offset(page: &mut Page<'_>, offnum: u16, next: u16) -> Result<(), Fault> {
    let info = page.item(offnum)?.get_mut(4..6).ok_or(BAD_TUPLE)?;
    let old = u16::from_le_bytes([info[0], info[1]]);
    info.copy_from_slice(&(old & !NEXT_OFFSET_MASK | next & NEXT_OFFSET_MASK).to_le_bytes());
    Ok(())
}

/// Points node `node` of the inner tuple at `offnum` to `block` and `to` (`spgUpdateNodeLink`).
pub(super) fn update_node_link(
    page: &mut Page<'_>,
    offnum: u16,
    node: u16,
    block: u32,
    to: u16,
) -> Result<Change, Fault> {
    let tuple = page.item(offnum)?;
    let word = first_word(tuple).ok_or(BAD_TUPLE)?;
    let (nodes, prefix_len) = (word >> 3 & 0x1FFF, (word >> 16) as usize);
    if u32::from(node) >= nodes {
        return Err(Fault::Page("the inner tuple has no such node"));
    }
    let mut rest = tuple.get_mut(INNER_HEADER_LEN + prefix_len..).ok_or(BAD_TUPLE)?;
    for _ in 0..node {
        let len = itup::len(rest).map_err(|_| BAD_TUPLE)?;
        rest = rest.get_mut(len..).ok_or(BAD_TUPLE)?;
    }
    rest.get_mut(..6).ok_or(BAD_TUPLE)?.copy_from_slice(&itup::tid(block, to));
    Ok(Change::Stamp)
}

/// Puts dead tuples in the place of tuples: `first_kind` for the first that is listed, `rest_kind` for the others
/// (`spgPageIndexMultiDelete`).
pub(super) fn multi_delete(
    page: &mut Page<'_>,
    state: State,
    offnums: U16s<'_>,
    first_kind: u32,
    rest_kind: u32,
    redirect_to: (u32, u16),
) -> Result<(), Fault> {
    let Some(first) = offnums.get(0) else { return Ok(()) };
    let mut sorted: smallvec::SmallVec<[u16; 256]> = offnums.iter().collect();
    sorted.sort_unstable();
    page.index_multi_delete(sorted.iter().copied())?;
    let opaque = page.special_offset(OPAQUE_LEN)?;
    for &offnum in &sorted {
        let kind = if offnum == first { first_kind } else { rest_kind };
        page.add_item(offnum, &state.dead_tuple(kind, redirect_to), Place::Shift)?;
        let counter = match kind {
            REDIRECT => opaque + REDIRECTIONS,
            PLACEHOLDER => opaque + PLACEHOLDERS,
            _ => continue,
        };
        page.put_u16(counter, page.u16_at(counter).wrapping_add(1));
    }
    Ok(())
}

/// Turns the redirection at `offnum` into a placeholder.
pub(super) fn redirect_to_placeholder(page: &mut Page<'_>, offnum: u16) -> Result<(), Fault> {
    let tuple = page.item(offnum)?;
    let word = first_word(tuple).filter(|_| tuple.len() >= LEAF_HEADER_LEN).ok_or(BAD_TUPLE)?;
    tuple[0..4].copy_from_slice(&(word & !STATE_MASK | PLACEHOLDER).to_le_bytes());
    tuple[6..12].copy_from_slice(&itup::INVALID_TID);
    Ok(())
}
