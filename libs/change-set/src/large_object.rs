//! Statements about large objects. Their pages are written through functions that anybody may call who may write the object.

use std::io::{self, Write};

use ardent_diff::{LargeObjectChange, TableState};

/// Bytes of a page of a large object (`LOBLKSIZE`).
pub(crate) const PAGE_LEN: i64 = 2048;

/// Opens for writing and reading (`INV_WRITE`, `INV_READ`).
const OPEN_MODE: i64 = 0x60000;

/// Makes one.
pub(crate) fn create(oid: u32) -> String {
    format!("SELECT lo_create({oid})")
}

/// Deletes one.
pub(crate) fn unlink(oid: u32) -> String {
    format!("SELECT lo_unlink({oid})")
}

/// Writes hexadecimal content from a byte on.
pub(crate) fn put(oid: u32, at: i64, content: &str) -> String {
    format!("SELECT lo_put({oid}, {at}, decode('{content}', 'hex'))")
}

/// Cuts one off at a byte, which is SQL.
pub(crate) fn truncate(oid: u32, end: &str) -> String {
    format!("SELECT lo_truncate64(lo_open({oid}, {OPEN_MODE}), {end})")
}

/// Where the content before a page ends, as SQL: there may be pages between that there are none of, and that read as zeros. Who runs
/// it must be allowed to see pages.
pub(crate) fn end_before(oid: u32, page: i32) -> String {
    format!(
        "(SELECT coalesce(max(pageno::bigint * {PAGE_LEN} + length(data)), 0) FROM pg_largeobject WHERE loid = {oid} AND pageno < {page})"
    )
}

/// The first byte behind a page that has become shorter.
pub(crate) fn shortened(number: i32, old: Option<&str>, new: &str) -> Option<i64> {
    let length = |content: &str| content.len() as i64 / 2;
    let is_shorter = length(new) < old.map_or(0, length);
    is_shorter.then(|| i64::from(number) * PAGE_LEN + length(new))
}

/// Writes the script of one.
pub(crate) fn script(out: &mut dyn Write, change: &LargeObjectChange) -> io::Result<()> {
    let oid = change.oid;
    match change.state {
        TableState::Dropped => return writeln!(out, "{};", unlink(oid)),
        TableState::Created => writeln!(out, "{};", create(oid))?,
        TableState::Kept => {}
    }
    let mut end = None;
    for page in change.pages.iter() {
        let page = page.map_err(io::Error::other)?;
        match &page.new {
            Some(content) => {
                writeln!(out, "{};", put(oid, i64::from(page.number) * PAGE_LEN, content))?;
                let shortened = shortened(page.number, page.old.as_deref(), content);
                end = shortened.map(|end| end.to_string()).or(end);
            }
            None => end = end.or_else(|| Some(end_before(oid, page.number))),
        }
    }
    if let Some(end) = end {
        writeln!(out, "{};", truncate(oid, &end))?;
    }
    for sql in change.statements() {
        writeln!(out, "{sql};")?;
    }
    Ok(())
}
