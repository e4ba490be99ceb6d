//! The locks under which an absent block becomes present.
//!
//! A fixed set of Postgres's lightweight locks, spread over chunks of blocks. Whoever fills or first writes a block holds its
//! chunk's lock and no other of them; truncation and unlinking take the locks of all chunks they cut, in ascending order.
//! So there is no deadlock among them, and none with other locks, because nothing waits for a heavier lock while it
//! holds one of these. An error raised while one is held releases it: every process of Postgres drops its lightweight locks
//! when it recovers from an error.

use std::ffi::CStr;
use std::ops::Range;

use ardent_presence_map::Entry;
use ardent_types::BlockNumber;

use crate::pg;

const TRANCHE: &CStr = c"ardent_presence";
/// One bit each in a `u64`, and well below the number that a process may hold (200).
const LOCK_COUNT: u32 = 64;
/// Blocks that share a lock: one bit each in a `u64`. A relation's file ends with a chunk.
pub const CHUNK_BLOCKS: u32 = 64;

static mut LOCKS: *mut pg::LWLockPadded = std::ptr::null_mut();

/// A lock that is held.
#[must_use]
pub struct Held(*mut pg::LWLock);

/// Asks for the locks; from the hook that Postgres calls for it.
pub fn request() {
    // SAFETY: called at the moment when requests are allowed.
    unsafe { pg::RequestNamedLWLockTranche(TRANCHE.as_ptr(), LOCK_COUNT as i32) };
}

/// Finds the locks in shared memory; in the postmaster, from the startup hook.
pub fn attach() {
    // SAFETY: requested before; the postmaster's children inherit the address.
    unsafe { LOCKS = pg::GetNamedLWLockTranche(TRANCHE.as_ptr()) };
}

fn number(entry: &Entry<'_>, chunk: u32) -> u32 {
    // Consecutive chunks of one relation get different locks.
    (entry.index() as u32).wrapping_mul(7).wrapping_add(chunk) % LOCK_COUNT
}

unsafe fn lock(number: u32) -> *mut pg::LWLock {
    // SAFETY: below LOCK_COUNT, which is how many there are.
    unsafe { &raw mut (*(&raw const LOCKS).read().add(number as usize)).lock }
}

/// How many blocks from `block` on share its lock.
pub fn blocks_to_chunk_end(block: BlockNumber) -> u32 {
    CHUNK_BLOCKS - block % CHUNK_BLOCKS
}

/// Takes the lock of the block's chunk. Interrupts are held off until it is released.
///
/// # Safety
/// Only in a process that Postgres runs, with none of these locks held.
pub unsafe fn acquire(entry: &Entry<'_>, block: BlockNumber) -> Held {
    // SAFETY: a valid lock.
    unsafe {
        let lock = lock(number(entry, block / CHUNK_BLOCKS));
        pg::LWLockAcquire(lock, pg::LW_EXCLUSIVE);
        Held(lock)
    }
}

/// Releases it.
///
/// # Safety
/// `held` is still held.
pub unsafe fn release(held: Held) {
    // SAFETY: the caller's promise.
    unsafe { pg::LWLockRelease(held.0) };
}

/// The locks of a range of blocks.
#[derive(Clone, Copy)]
#[must_use]
pub struct HeldMany(u64);

/// Takes the locks of all chunks that `blocks` touches. Raises nothing.
///
/// # Safety
/// As for [`acquire`].
pub unsafe fn acquire_range(entry: &Entry<'_>, blocks: Range<BlockNumber>) -> HeldMany {
    let mut set = 0_u64;
    if let Some(last) = blocks.end.checked_sub(1).filter(|last| *last >= blocks.start) {
        let chunks = blocks.start / CHUNK_BLOCKS..=last / CHUNK_BLOCKS;
        for chunk in chunks.take(LOCK_COUNT as usize) {
            set |= 1 << number(entry, chunk);
        }
    }
    for number in numbers(set) {
        // SAFETY: a valid lock.
        unsafe { pg::LWLockAcquire(lock(number), pg::LW_EXCLUSIVE) };
    }
    HeldMany(set)
}

/// Releases them.
///
/// # Safety
/// They are still held.
pub unsafe fn release_range(held: HeldMany) {
    for number in numbers(held.0) {
        // SAFETY: the caller's promise.
        unsafe { pg::LWLockRelease(lock(number)) };
    }
}

fn numbers(set: u64) -> impl Iterator<Item = u32> {
    (0..LOCK_COUNT).filter(move |number| set >> number & 1 == 1)
}
