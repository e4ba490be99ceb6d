//! What differs between majors in the records that have otherwise one form.

use ardent_pg_format::PgMajor;

use crate::fault::Fault;
use crate::read::{Reader, U16s};

/// Offset numbers of `gistxlogDelete`: behind a transaction id and their number, which 16 pads for a flag.
pub(crate) fn gist_delete_offsets<'a>(major: PgMajor, main: &mut Reader<'a>) -> Result<U16s<'a>, Fault> {
    main.skip(4)?;
    let count = main.u16()?;
    if major >= PgMajor::V16 {
        main.skip(2)?;
    }
    if main.is_empty() { main.u16s(0) } else { main.u16s(usize::from(count)) }
}

/// Number and offset numbers of `xl_hash_vacuum_one_page`.
pub(crate) fn hash_vacuum_offsets<'a>(major: PgMajor, main: &mut Reader<'a>) -> Result<(u32, U16s<'a>), Fault> {
    main.skip(4)?;
    let count = if major >= PgMajor::V16 {
        let count = u32::from(main.u16()?);
        // A flag and padding.
        main.skip(2)?;
        count
    } else {
        main.u32()?
    };
    let offnums = if main.is_empty() { main.u16s(0)? } else { main.u16s(count as usize)? };
    Ok((count, offnums))
}

/// What stands between the counts and the offset numbers of `spgxlogVacuumRedirect`: a transaction id, and since 16 a flag,
/// padded to a word.
pub(crate) fn spgist_redirect_skip(major: PgMajor) -> usize {
    if major >= PgMajor::V16 { 6 } else { 4 }
}

/// Whether a bucket page that a squeeze only references, without giving it tuples or a new link, keeps its LSN: since 17 it is not
/// registered for a change then.
pub(crate) fn hash_squeeze_leaves_untouched_page(major: PgMajor) -> bool {
    major >= PgMajor::V17
}

/// Whether a vacuum of a B-tree page ends the page's vacuum cycle.
pub(crate) fn btree_vacuum_clears_cycle_id(major: PgMajor) -> bool {
    major >= PgMajor::V18
}
