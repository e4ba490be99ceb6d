//! Reads, writes and prefetches of blocks, in the storage manager's table.
//!
//! Up to 16 each call is about one block; from 17 on about several with a buffer each. From 18 on nearly all reads are only
//! started here and done by somebody else, who reads the file: what is absent is filled before the read is started.

use std::ffi::c_void;
use std::ops::Range;

use ardent_types::{BLCKSZ, RelTag};

#[cfg(pg_from = "17")]
use crate::chunk_locks::CHUNK_BLOCKS;
use crate::fetcher::Target;
use crate::filler;
use crate::huge_pages;
#[cfg(not(pg_from = "17"))]
use crate::page_run;
use crate::pg::{self, BlockNumber, SMgrRelation};
use crate::relation;
use crate::storage_hooks::{Storage, find, installed, write_absent};

/// Sees to it that none of the `blocks` is absent. True: the page of the first was copied to `out`, so it need not be read.
unsafe fn fill(
    storage: &'static Storage,
    handle: SMgrRelation,
    fork: pg::ForkNumber,
    blocks: Range<BlockNumber>,
    out: *mut c_void,
) -> bool {
    // SAFETY: Postgres passes a valid handle; `out` is null or has room for a page.
    unsafe {
        let Some((rel, entry)) = find(storage, &relation::of(handle), fork) else { return false };
        let (first, end) = (blocks.start, blocks.end);
        let mut copied = false;
        for block in blocks {
            if !entry.is_absent(block) {
                continue;
            }
            // Asked every time: filling waits. A block past the file's end is Postgres's error to report; filling it would
            // lengthen the file.
            let nblocks = (storage.original.nblocks)(handle, fork);
            if block >= nblocks {
                break;
            }
            let target = Target { handle, entry, rel, block, wanted: end - block };
            let out = if block == first { out } else { std::ptr::null_mut() };
            copied |= filler::obtain(storage, &target, nblocks, out.cast());
        }
        copied
    }
}

/// Asks for the absent ones among the `blocks`. None: there are none, or nothing of this relation is known.
unsafe fn ask(
    storage: &'static Storage,
    handle: SMgrRelation,
    fork: pg::ForkNumber,
    mut blocks: Range<BlockNumber>,
) -> Option<bool> {
    // SAFETY: as above.
    unsafe {
        let (rel, entry) = find(storage, &relation::of(handle), fork)?;
        let end = blocks.end;
        let block = blocks.find(|block| entry.is_absent(*block))?;
        if pg::in_critical_section() {
            return Some(false);
        }
        let nblocks = (storage.original.nblocks)(handle, fork);
        let target = Target { handle, entry, rel, block, wanted: end.min(nblocks).saturating_sub(block) };
        Some(target.wanted > 0 && filler::prefetch(storage, &target))
    }
}

/// Of one block each.
#[cfg(not(pg_from = "17"))]
mod hooks {
    use super::*;

    pub unsafe extern "C-unwind" fn read(
        handle: SMgrRelation,
        fork: pg::ForkNumber,
        block: BlockNumber,
        page: *mut c_void,
    ) {
        let storage = installed();
        huge_pages::touched(page);
        // SAFETY: Postgres passes a valid handle and room for a page.
        unsafe {
            if !fill(storage, handle, fork, block..block.saturating_add(1), page) {
                (storage.original.read)(handle, fork, block, page);
            }
        }
    }

    pub unsafe extern "C-unwind" fn prefetch(handle: SMgrRelation, fork: pg::ForkNumber, block: BlockNumber) -> bool {
        let storage = installed();
        // SAFETY: Postgres passes a valid handle.
        unsafe {
            let asked = ask(storage, handle, fork, block..block.saturating_add(1));
            asked.unwrap_or_else(|| (storage.original.prefetch)(handle, fork, block))
        }
    }

    pub unsafe extern "C-unwind" fn write(
        handle: SMgrRelation,
        fork: pg::ForkNumber,
        block: BlockNumber,
        page: *const c_void,
        skip_fsync: bool,
    ) {
        let storage = installed();
        huge_pages::touched(page);
        // SAFETY: Postgres passes a valid handle and page.
        unsafe {
            let original = || (storage.original.write)(handle, fork, block, page, skip_fsync);
            match find(storage, &relation::of(handle), fork).filter(|(_, entry)| entry.is_absent(block)) {
                Some((_, entry)) => write_absent(storage, &entry, block..block.saturating_add(1), original),
                None => original(),
            }
        }
    }
}

/// Of several blocks.
#[cfg(pg_from = "17")]
mod hooks {
    use std::ffi::c_int;

    use super::*;

    unsafe fn touched(pages: *const *const c_void, count: BlockNumber) {
        for at in 0..count as usize {
            // SAFETY: so many there are.
            huge_pages::touched(unsafe { *pages.add(at) });
        }
    }

    pub unsafe extern "C-unwind" fn read(
        handle: SMgrRelation,
        fork: pg::ForkNumber,
        block: BlockNumber,
        pages: *mut *mut c_void,
        count: BlockNumber,
    ) {
        let storage = installed();
        // SAFETY: Postgres passes a valid handle and room for so many pages, at least one.
        unsafe {
            touched(pages.cast(), count);
            let out = if count == 1 { *pages } else { std::ptr::null_mut() };
            if !fill(storage, handle, fork, block..block.saturating_add(count), out) {
                (storage.original.read)(handle, fork, block, pages, count);
            }
        }
    }

    /// The read is carried out later, by another process or by the kernel: from the file.
    #[cfg(pg_from = "18")]
    pub unsafe extern "C-unwind" fn start_read(
        io: *mut pg::PgAioHandle,
        handle: SMgrRelation,
        fork: pg::ForkNumber,
        block: BlockNumber,
        pages: *mut *mut c_void,
        count: BlockNumber,
    ) {
        let storage = installed();
        // SAFETY: Postgres passes a valid handle and room for so many pages. An error raised while filling leaves the read
        // defined but not started, as an error of Postgres's own function does.
        unsafe {
            touched(pages.cast(), count);
            fill(storage, handle, fork, block..block.saturating_add(count), std::ptr::null_mut());
            (storage.original.start_read)(io, handle, fork, block, pages, count);
        }
    }

    pub unsafe extern "C-unwind" fn prefetch(
        handle: SMgrRelation,
        fork: pg::ForkNumber,
        block: BlockNumber,
        count: c_int,
    ) -> bool {
        let storage = installed();
        // SAFETY: Postgres passes a valid handle.
        unsafe {
            let asked = ask(storage, handle, fork, block..block.saturating_add(count.unsigned_abs()));
            asked.unwrap_or_else(|| (storage.original.prefetch)(handle, fork, block, count))
        }
    }

    pub unsafe extern "C-unwind" fn write(
        handle: SMgrRelation,
        fork: pg::ForkNumber,
        block: BlockNumber,
        pages: *mut *const c_void,
        count: BlockNumber,
        skip_fsync: bool,
    ) {
        let storage = installed();
        let blocks = block..block.saturating_add(count);
        // SAFETY: Postgres passes a valid handle and so many pages.
        unsafe {
            touched(pages, count);
            let original = || (storage.original.write)(handle, fork, block, pages, count, skip_fsync);
            match find(storage, &relation::of(handle), fork) {
                Some((_, entry)) if blocks.clone().any(|block| entry.is_absent(block)) => {
                    write_absent(storage, &entry, blocks, original);
                }
                _ => original(),
            }
        }
    }
}

pub use hooks::*;

/// Writes fetched pages of consecutive blocks, at most as many as share a lock; whoever calls holds it.
///
/// # Safety
/// With a valid handle of `rel` and so many pages, where an error may be raised.
#[cfg(not(pg_from = "17"))]
pub unsafe fn write_fetched(
    storage: &Storage,
    handle: SMgrRelation,
    rel: &RelTag,
    blocks: Range<BlockNumber>,
    pages: *const u8,
) {
    let start = blocks.start;
    // SAFETY: the caller's promise; the writes do not change the pages.
    unsafe {
        if blocks.len() < 2 || !page_run::write(rel, start, blocks.len() as u32, pages) {
            for block in blocks {
                let page = pages.add((block - start) as usize * BLCKSZ);
                (storage.original.write)(handle, rel.fork as pg::ForkNumber, block, page.cast(), true);
            }
        }
    }
}

/// Writes fetched pages of consecutive blocks, at most as many as share a lock; whoever calls holds it.
///
/// # Safety
/// With a valid handle of `rel` and so many pages, where an error may be raised.
#[cfg(pg_from = "17")]
pub unsafe fn write_fetched(
    storage: &Storage,
    handle: SMgrRelation,
    rel: &RelTag,
    blocks: Range<BlockNumber>,
    pages: *const u8,
) {
    let mut each = [std::ptr::null::<c_void>(); CHUNK_BLOCKS as usize];
    let count = blocks.len();
    if count > 0 {
        // SAFETY: the caller's promise; the write does not change the pages.
        unsafe {
            for (at, page) in each[..count].iter_mut().enumerate() {
                *page = pages.add(at * BLCKSZ).cast();
            }
            let (fork, first) = (rel.fork as pg::ForkNumber, each.as_mut_ptr());
            (storage.original.write)(handle, fork, blocks.start, first, count as BlockNumber, true);
        }
    }
}
