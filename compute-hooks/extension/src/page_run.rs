//! Writes a run of fetched pages into its relation's file with one system call.
//!
//! Postgres's own function writes one page at a time. For a run as long as read-ahead brings, the kernel needs less than half of the
//! time for each page when it gets all of them at once. From 17 on Postgres's own function takes several.

use std::ffi::CStr;

use ardent_types::{BLCKSZ, BlockNumber, RelTag};

use crate::pg;
use crate::relation;
use crate::report::Text;

/// Writes `count` pages from `start` on. False: not all of them; nothing is lost, write them one by one. The run lies within one
/// file, and the caller excludes everybody who cuts the relation or writes these blocks.
///
/// # Safety
/// Where an error may be raised; `pages` points to so many pages.
pub unsafe fn write(rel: &RelTag, start: BlockNumber, count: u32, pages: *const u8) -> bool {
    let file_blocks = pg::RELSEG_SIZE as BlockNumber;
    let (number, first) = (start / file_blocks, start % file_blocks);
    // SAFETY: may raise for want of memory; nothing here has a destructor. The path is Postgres's own.
    let path = unsafe {
        let text = pg::GetRelationPath(
            rel.dbnode,
            rel.spcnode,
            rel.relnode,
            relation::NOT_TEMPORARY,
            rel.fork as pg::ForkNumber,
        );
        let base = CStr::from_ptr(text).to_str().unwrap_or_default();
        let path = match number {
            0 => Text::format(format_args!("{base}")),
            number => Text::format(format_args!("{base}.{number}")),
        };
        pg::pfree(text.cast());
        path
    };
    // SAFETY: a C string; no file is made.
    let file = unsafe { libc::open(path.as_c_str().as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return false;
    }
    // SAFETY: the caller's promise of so many pages; nothing raises before the descriptor is closed.
    unsafe {
        let written = write_all(file, pages, count as usize * BLCKSZ, u64::from(first) * BLCKSZ as u64);
        libc::close(file);
        written
    }
}

/// # Safety
/// `bytes` points to `length` bytes.
unsafe fn write_all(file: i32, bytes: *const u8, length: usize, offset: u64) -> bool {
    let mut done = 0;
    while done < length {
        let Ok(at) = libc::off_t::try_from(offset + done as u64) else { return false };
        // SAFETY: within what the caller promised.
        let written = unsafe { libc::pwrite(file, bytes.add(done).cast(), length - done, at) };
        match usize::try_from(written) {
            Ok(0) => return false,
            Ok(written) => done += written,
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}
