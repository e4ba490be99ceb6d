//! Sequences: one record type, which rewrites the one page.

use crate::fault::Fault;
use crate::page::Page;
use crate::read::Reader;
use crate::{Change, Context};

const LOG: u8 = 0x00;
const MAGIC: u32 = 0x1717;
/// `RelFileNode`
const LOCATOR_LEN: usize = 12;

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    if cx.view.rm_info() != LOG {
        return Err(Fault::Unsupported);
    }
    let mut main = Reader::new(cx.view.main_data);
    main.skip(LOCATOR_LEN)?;
    page.init(4);
    let magic_at = page.special_at();
    page.put_u32(magic_at, MAGIC);
    page.append_item(main.rest())?;
    Ok(Change::Stamp)
}
