//! SP-GiST records (`RM_SPGIST_ID`). Nearly all of their content is in the main data, which all blocks of a record share.

mod pick_split;
mod tuple;
mod vacuum;

use self::tuple::{State, add_or_replace, leaf_len, multi_delete, split_off_inner, update_node_link};
use crate::fault::Fault;
use crate::page::{Page, Place};
use crate::read::{Reader, U16s};
use crate::{Change, Context};

mod op {
    pub(super) const ADD_LEAF: u8 = 0x10;
    pub(super) const MOVE_LEAFS: u8 = 0x20;
    pub(super) const ADD_NODE: u8 = 0x30;
    pub(super) const SPLIT_TUPLE: u8 = 0x40;
    pub(super) const PICKSPLIT: u8 = 0x50;
    pub(super) const VACUUM_LEAF: u8 = 0x60;
    pub(super) const VACUUM_ROOT: u8 = 0x70;
    pub(super) const VACUUM_REDIRECT: u8 = 0x80;
}

const LEAF: u16 = 0x04;
const NULLS: u16 = 0x08;

/// `SpGistPageOpaqueData`: flags, redirections, placeholders, page id.
const OPAQUE_LEN: usize = 8;
const REDIRECTIONS: usize = 2;
const PLACEHOLDERS: usize = 4;
const PAGE_ID: usize = 6;
const PAGE_ID_VALUE: u16 = 0xFF82;

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    match (cx.view.rm_info(), cx.block.id) {
        (op::ADD_LEAF, 0..=1) => add_leaf(cx, page),
        (op::MOVE_LEAFS, 0..=2) => move_leafs(cx, page),
        (op::ADD_NODE, 0..=2) => add_node(cx, page),
        (op::SPLIT_TUPLE, 0..=1) => split_tuple(cx, page),
        (op::PICKSPLIT, 0..=3) => pick_split::redo(cx, page),
        (op::VACUUM_LEAF, 0) => vacuum::leaf(cx, page),
        (op::VACUUM_ROOT, 0) => vacuum::root(cx, page),
        (op::VACUUM_REDIRECT, 0) => vacuum::redirect(cx, page),
        _ => Err(Fault::Unsupported),
    }
}

fn init(page: &mut Page<'_>, flags: u16) -> Result<(), Fault> {
    page.init(OPAQUE_LEN);
    let opaque = page.special_offset(OPAQUE_LEN)?;
    page.put_u16(opaque, flags);
    page.put_u16(opaque + PAGE_ID, PAGE_ID_VALUE);
    Ok(())
}

fn leaf_flags(stores_nulls: bool) -> u16 {
    LEAF | if stores_nulls { NULLS } else { 0 }
}

fn block_number(cx: &Context<'_, '_>, id: u8) -> Result<u32, Fault> {
    Ok(cx.view.block(id).ok_or(Fault::Record("a block reference is missing"))?.blkno)
}

/// Replaces the tuple at `offnum`.
fn replace(page: &mut Page<'_>, offnum: u16, tuple: &[u8]) -> Result<(), Fault> {
    page.index_delete(offnum)?;
    page.add_item(offnum, tuple, Place::Shift)
}

/// Block 0 gets the leaf tuple, block 1 has the parent.
fn add_leaf(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (new_page, stores_nulls) = (main.u8()? != 0, main.u8()? != 0);
    let (leaf, head, parent, node) = (main.u16()?, main.u16()?, main.u16()?, main.u16()?);
    if cx.block.id == 1 {
        return update_node_link(page, parent, node, block_number(cx, 0)?, leaf);
    }
    let len = leaf_len(main.clone().rest())?;
    let tuple = main.take(len)?;
    if new_page {
        init(page, leaf_flags(stores_nulls))?;
    }
    if leaf == head {
        // A dead tuple at the head of the chain is replaced.
        replace(page, leaf, tuple)?;
    } else {
        add_or_replace(page, leaf, tuple)?;
        if head != 0 {
            tuple::set_next_offset(page, head, leaf)?;
        }
    }
    Ok(Change::Stamp)
}

/// Block 0 is the source, block 1 the destination, block 2 has the parent.
fn move_leafs(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let moves = main.u16()?;
    let (new_page, replace_dead, stores_nulls) = (main.u8()? != 0, main.u8()? != 0, main.u8()? != 0);
    main.align(2)?;
    let (parent, node) = (main.u16()?, main.u16()?);
    main.align(4)?;
    let state = State::read(&mut main)?;
    let inserts = if replace_dead { 1 } else { usize::from(moves) + 1 };
    let (deleted, inserted): (U16s<'_>, U16s<'_>) = (main.u16s(usize::from(moves))?, main.u16s(inserts)?);
    // The last tuple inserted is the new head of the chain.
    let head = inserted.get(inserts - 1).expect("at least one was read");
    let destination = block_number(cx, 1)?;
    match cx.block.id {
        0 => {
            let first = if state.is_build { tuple::PLACEHOLDER } else { tuple::REDIRECT };
            multi_delete(page, state, deleted, first, tuple::PLACEHOLDER, (destination, head))?;
        }
        1 => {
            if new_page {
                init(page, leaf_flags(stores_nulls))?;
            }
            for offnum in inserted.iter() {
                let len = leaf_len(main.clone().rest())?;
                add_or_replace(page, offnum, main.take(len)?)?;
            }
        }
        _ => return update_node_link(page, parent, node, destination, head),
    }
    Ok(Change::Stamp)
}

/// An inner tuple with one more node. Alone, block 0 has it in place; else it moves from block 0 to block 1, and the parent is on
/// block 0, 1 or 2.
fn add_node(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (offnum, new_offnum, new_page, parent_on) = (main.u16()?, main.u16()?, main.u8()? != 0, main.u8()?);
    let (parent, node) = (main.u16()?, main.u16()?);
    main.align(4)?;
    let state = State::read(&mut main)?;
    let (tuple, _) = split_off_inner(main.rest())?;
    let Some(destination) = cx.view.block(1).map(|block| block.blkno) else {
        replace(page, offnum, tuple)?;
        return Ok(Change::Stamp);
    };
    match cx.block.id {
        0 => {
            let opaque = page.special_offset(OPAQUE_LEN)?;
            let (dead, counter) = if state.is_build {
                (state.dead_tuple(tuple::PLACEHOLDER, (0, 0)), PLACEHOLDERS)
            } else {
                (state.dead_tuple(tuple::REDIRECT, (destination, new_offnum)), REDIRECTIONS)
            };
            replace(page, offnum, &dead)?;
            page.put_u16(opaque + counter, page.u16_at(opaque + counter).wrapping_add(1));
        }
        1 => {
            if new_page {
                init(page, 0)?;
            }
            add_or_replace(page, new_offnum, tuple)?;
        }
        _ => {}
    }
    if parent_on == cx.block.id {
        update_node_link(page, parent, node, destination, new_offnum)?;
    }
    Ok(Change::Stamp)
}

/// An inner tuple becomes a prefix tuple, in place on block 0, and a postfix tuple, there or on block 1.
fn split_tuple(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    let (prefix_at, postfix_at) = (main.u16()?, main.u16()?);
    let (new_page, same_page) = (main.u8()? != 0, main.u8()? != 0);
    let (prefix, rest) = split_off_inner(main.rest())?;
    let (postfix, _) = split_off_inner(rest)?;
    if cx.block.id == 0 {
        replace(page, prefix_at, prefix)?;
        if same_page {
            add_or_replace(page, postfix_at, postfix)?;
        }
    } else {
        if new_page {
            init(page, 0)?;
        }
        add_or_replace(page, postfix_at, postfix)?;
    }
    Ok(Change::Stamp)
}
