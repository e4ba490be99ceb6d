//! What VACUUM does to SP-GiST pages.

use crate::fault::Fault;
use crate::page::Page;
use crate::read::Reader;
use crate::spgist::tuple::{DEAD, PLACEHOLDER, State, multi_delete, redirect_to_placeholder, set_next_offset};
use crate::spgist::{OPAQUE_LEN, PLACEHOLDERS, REDIRECTIONS};
use crate::{Change, Context, major};

pub(super) fn leaf(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let mut count = || main.u16().map(usize::from);
    let (dead, placeholders, moves, chains) = (count()?, count()?, count()?, count()?);
    let state = State::read(&mut main)?;
    let (dead, placeholders) = (main.u16s(dead)?, main.u16s(placeholders)?);
    let (move_from, move_to) = (main.u16s(moves)?, main.u16s(moves)?);
    let (chain_from, chain_to) = (main.u16s(chains)?, main.u16s(chains)?);
    multi_delete(page, state, dead, DEAD, DEAD, (0, 0))?;
    multi_delete(page, state, placeholders, PLACEHOLDER, PLACEHOLDER, (0, 0))?;
    // A chain's head must keep its offset number, so a live tuple swaps line pointers with a dead head.
    for (from, to) in move_from.iter().zip(move_to.iter()) {
        let (from_id, to_id) = (page.item_id(from)?, page.item_id(to)?);
        page.set_item_id(from, to_id)?;
        page.set_item_id(to, from_id)?;
    }
    multi_delete(page, state, move_from, PLACEHOLDER, PLACEHOLDER, (0, 0))?;
    for (from, to) in chain_from.iter().zip(chain_to.iter()) {
        set_next_offset(page, from, to)?;
    }
    Ok(Change::Stamp)
}

/// A root that is also a leaf keeps no places.
pub(super) fn root(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let count = usize::from(main.u16()?);
    main.align(4)?;
    State::read(&mut main)?;
    page.index_multi_delete(main.u16s(count)?.iter())?;
    Ok(Change::Stamp)
}

pub(super) fn redirect(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (count, first_placeholder) = (main.u16()?, main.u16()?);
    main.skip(major::spgist_redirect_skip(cx.major))?;
    for offnum in main.u16s(usize::from(count))?.iter() {
        redirect_to_placeholder(page, offnum)?;
    }
    let opaque = page.special_offset(OPAQUE_LEN)?;
    page.put_u16(opaque + REDIRECTIONS, page.u16_at(opaque + REDIRECTIONS).wrapping_sub(count));
    let mut placeholders = page.u16_at(opaque + PLACEHOLDERS).wrapping_add(count);
    if first_placeholder != 0 {
        let end = page.max_offset().saturating_add(1);
        let cut = first_placeholder..end.max(first_placeholder);
        placeholders = placeholders.wrapping_sub(cut.len() as u16);
        if !cut.is_empty() {
            page.index_multi_delete(cut)?;
        }
    }
    page.put_u16(opaque + PLACEHOLDERS, placeholders);
    Ok(Change::Stamp)
}
