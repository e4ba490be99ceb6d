//! `XLOG_SPGIST_PICKSPLIT`: leaf tuples are spread anew over one or two leaf pages below a new inner tuple.

use crate::fault::Fault;
use crate::page::Page;
use crate::read::Reader;
use crate::spgist::tuple::{
    PLACEHOLDER, REDIRECT, State, add_or_replace, leaf_len, multi_delete, split_off_inner, update_node_link,
};
use crate::spgist::{NULLS, block_number, init, leaf_flags};
use crate::{Change, Context};

const SOURCE: u8 = 0;
const DESTINATION: u8 = 1;
const INNER: u8 = 2;

pub(super) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut main = Reader::new(cx.view.main_data);
    main.skip(2)?;
    let (deletes, inserts) = (usize::from(main.u16()?), usize::from(main.u16()?));
    let (init_source, init_destination, inner_at) = (main.u8()? != 0, main.u8()? != 0, main.u16()?);
    let (init_inner, stores_nulls, inner_is_parent) = (main.u8()? != 0, main.u8()? != 0, main.u8()? != 0);
    main.align(2)?;
    let (parent, node) = (main.u16()?, main.u16()?);
    main.align(4)?;
    let state = State::read(&mut main)?;
    let (deleted, inserted, selected) = (main.u16s(deletes)?, main.u16s(inserts)?, main.take(inserts)?);
    let (inner_tuple, leaves) = split_off_inner(main.rest())?;
    let inner_block = block_number(cx, INNER)?;
    match cx.block.id {
        SOURCE | DESTINATION => {
            let is_source = cx.block.id == SOURCE;
            if if is_source { init_source } else { init_destination } {
                init(page, leaf_flags(stores_nulls))?;
            } else if is_source {
                let first = if state.is_build { PLACEHOLDER } else { REDIRECT };
                multi_delete(page, state, deleted, first, PLACEHOLDER, (inner_block, inner_at))?;
            }
            let mut leaves = Reader::new(leaves);
            for (offnum, select) in inserted.iter().zip(selected) {
                let len = leaf_len(leaves.clone().rest())?;
                let leaf = leaves.take(len)?;
                if (*select == 0) == is_source {
                    add_or_replace(page, offnum, leaf)?;
                }
            }
            Ok(Change::Stamp)
        }
        INNER => {
            if init_inner {
                init(page, if stores_nulls { NULLS } else { 0 })?;
            }
            add_or_replace(page, inner_at, inner_tuple)?;
            if inner_is_parent {
                update_node_link(page, parent, node, inner_block, inner_at)?;
            }
            Ok(Change::Stamp)
        }
        _ => update_node_link(page, parent, node, inner_block, inner_at),
    }
}
