//! XLOG records that reference blocks: they consist of full-page images.

use crate::fault::Fault;
use crate::{Change, Context};

const FPI_FOR_HINT: u8 = 0xA0;

/// Reached only for references without an image to apply.
pub(crate) fn redo(cx: &Context<'_, '_>) -> Result<Change, Fault> {
    match cx.view.rm_info() {
        // With full_page_writes off, a hint-bit record comes without its image and means nothing.
        FPI_FOR_HINT => Ok(Change::Nothing),
        _ => Err(Fault::Unsupported),
    }
}
