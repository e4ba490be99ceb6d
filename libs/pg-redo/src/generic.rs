//! Generic WAL, which extensions such as `bloom` use: byte ranges to copy over the page.

use ardent_types::BLCKSZ;

use crate::fault::Fault;
use crate::page::Page;
use crate::read::Reader;
use crate::{Change, Context};

pub(crate) fn redo(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    let mut data = Reader::new(cx.block.data);
    while !data.is_empty() {
        let (at, len) = (usize::from(data.u16()?), usize::from(data.u16()?));
        let bytes = data.take(len)?;
        let end = at.checked_add(len).filter(|end| *end <= BLCKSZ);
        let target = &mut page.bytes[at..end.ok_or(Fault::Record("a range leaves the page"))?];
        target.copy_from_slice(bytes);
    }
    // The ranges leave out the hole, which is zero by definition.
    let (lower, upper) = (page.lower(), page.upper());
    page.bytes.get_mut(lower..upper).ok_or(Fault::Page("the page header's pointers are out of order"))?.fill(0);
    Ok(Change::Stamp)
}
