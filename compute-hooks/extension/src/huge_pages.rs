//! Huge pages for the server's code and its shared memory.
//!
//! A server goes through more code and buffers than a processor has places for translations of small pages, and under a
//! hypervisor each miss is a walk through two trees. Postgres asks for huge pages only from a pool that the administrator has
//! set aside (`huge_pages`). Linux makes them as well of memory that is there (`MADV_COLLAPSE`, from 6.1 on), whatever
//! the system's settings for transparent huge pages are, if the memory lies right:
//!
//! - code: the executable's pages are the file's, which few file systems keep in huge ones. What of them fills huge pages is
//!   copied to a file in memory, which takes the place of the executable's. The postmaster's children inherit it.
//! - shared memory: Postgres lets the kernel choose where. So `mmap` is called through a function here that has the kernel
//!   choose a multiple of a huge page. Buffers become huge pages when the first of the small ones in it is used, so
//!   that a compute that does little takes little. What was used before that, one by one with them. None of it happens
//!   while the server starts and answers for the first time, as each takes from a fraction of a millisecond to several.
//!
//! Where the kernel does not do it, is out of such pages, or `huge_pages` is `off`, everything stays as it would be without this.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::executable::{Executable, Segment};
use crate::pg;
use crate::report::Text;

/// A huge page of x86-64 and of arm64 with small pages of 4 KiB.
const HUGE_PAGE_LEN: usize = 2 << 20;
const SMALL_PAGE_LEN: usize = 4096;
/// Less shared memory than this is not the server's main one.
const SHARED_MEMORY_LEN_MIN: usize = 8 << 20;
/// `MADV_COLLAPSE`.
const COLLAPSE: c_int = 25;
/// `MFD_EXEC`.
const MAY_HOLD_CODE: c_uint = 0x10;
/// For so long after its start a server leaves its memory as it is.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(1);
/// How many of those that were used before are looked at with each that is used now.
const LOOKS_MAX: usize = 16;
/// How often one is tried that the kernel has in hand at that very moment.
const TRIES_MAX: u8 = 5;
/// The state of one that was made; below it, how often it was tried; [`TRIES_MAX`]: it stays small.
const MADE: u8 = u8::MAX;
/// Places in the executable that take the address of `mmap`: one as it is linked today.
const IMPORTS_MAX: usize = 4;

/// The server's main shared memory, where it begins with a huge page.
#[derive(Clone, Copy)]
struct SharedMemory {
    base: usize,
    made_at: Instant,
    /// What became of each whole huge page of it; shared by all processes, as what follows.
    states: &'static [AtomicU8],
    /// Whether the kernel has refused one: a number that is not 0.
    refused: &'static AtomicU8,
}

static mut SHARED_MEMORY: Option<SharedMemory> = None;
/// Bytes of code in huge pages.
static mut CODE_LEN: usize = 0;
/// Which one this process looked at last.
static mut LAST_LOOK: usize = 0;
static mut SHOWN: Text = Text::new();

/// Makes huge pages of the code, and has shared memory begin with one.
///
/// # Safety
/// Only from `_PG_init` in the postmaster.
pub unsafe fn install() {
    // SAFETY: a setting, which stays as it is while the server runs; no arguments that could be wrong.
    let wanted = unsafe {
        (&raw const pg::huge_pages).read() != pg::HUGE_PAGES_OFF as c_int
            && libc::sysconf(libc::_SC_PAGESIZE) as usize == SMALL_PAGE_LEN
    };
    if !wanted {
        return;
    }
    let executable = Executable::new();
    for segment in executable.segments().filter(Segment::is_code) {
        // SAFETY: one thread, and this function is not in there.
        unsafe { CODE_LEN += move_code(&segment) };
    }
    for place in executable.imports::<IMPORTS_MAX>(c"mmap").into_iter().flatten() {
        let replacement =
            map as unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, c_int, libc::off_t) -> *mut c_void;
        // SAFETY: a function of the same type that does the same. Where memory can't be made writable, it stays as it was.
        let _stays_small = unsafe { executable.replace(place, replacement as *mut c_void) };
    }
}

/// Puts a copy in huge pages in place of what of the code fills such pages. Gives how many bytes that is: 0, and it stays as it is,
/// where they cannot be had.
///
/// # Safety
/// With one thread; `segment` is code of the executable's.
unsafe fn move_code(segment: &Segment) -> usize {
    let code = segment.start.next_multiple_of(HUGE_PAGE_LEN)..segment.end / HUGE_PAGE_LEN * HUGE_PAGE_LEN;
    if code.is_empty() {
        return 0;
    }
    let (Ok(executable), Ok(copy)) = (File::open("/proc/self/exe"), file_in_memory(c"ardent-code")) else { return 0 };
    if copy.set_len(code.len() as u64).is_err() || !copy_code(&code, &copy) {
        return 0;
    }
    let offset = segment.file_offset + (code.start - segment.start) as u64;
    // Of the file's as it was: what a session might write there is its own.
    let put = |file: &File, offset: u64| {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_FIXED);
        // SAFETY: the same code as is there; this runs elsewhere, and signals are blocked while libraries are loaded.
        let put = unsafe {
            libc::mmap(
                code.start as *mut c_void,
                code.len(),
                protection,
                flags,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        put != libc::MAP_FAILED
    };
    if put(&copy, 0) {
        return code.len();
    }
    // The kernel may have taken away what was there before it found that it cannot.
    if !put(&executable, offset) {
        std::process::abort();
    }
    0
}

/// Copies code to a file whose memory becomes huge pages. Whether it did.
fn copy_code(code: &Range<usize>, copy: &File) -> bool {
    let len = code.len();
    let Some(room) = reserve(len) else { return false };
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
    // SAFETY: over address space that was reserved for it; it is given back, and the file keeps what was written.
    unsafe {
        let at = libc::mmap(room.aligned as *mut c_void, len, protection, flags, copy.as_raw_fd(), 0);
        let made = at != libc::MAP_FAILED && {
            // The kernel makes none of nothing: a byte of each, then the rest is copied to huge pages at once.
            for page in (0..len).step_by(HUGE_PAGE_LEN) {
                at.cast::<u8>().add(page).write_volatile(0);
            }
            let made = libc::madvise(at, len, COLLAPSE) == 0;
            if made {
                std::ptr::copy_nonoverlapping(code.start as *const u8, at.cast(), len);
            }
            made
        };
        room.give_back(room.aligned..room.aligned);
        made
    }
}

/// A new file in memory that may hold code.
fn file_in_memory(name: &CStr) -> io::Result<File> {
    // Older kernels than 6.3 do not know the second flag, and allow it anyway.
    for flags in [libc::MFD_CLOEXEC | MAY_HOLD_CODE, libc::MFD_CLOEXEC] {
        // SAFETY: a name that C can read; the descriptor is nobody else's.
        unsafe {
            let fd = libc::memfd_create(name.as_ptr(), flags);
            if fd >= 0 {
                return Ok(File::from_raw_fd(fd));
            }
        }
    }
    Err(io::Error::last_os_error())
}

/// Address space that nothing is in yet.
struct Room {
    start: usize,
    end: usize,
    /// Its first multiple of a huge page: what was asked for fits from there on.
    aligned: usize,
}

/// Takes address space for `len` bytes from a multiple of a huge page on. None: there is none.
fn reserve(len: usize) -> Option<Room> {
    let whole = len.checked_add(HUGE_PAGE_LEN)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping that nothing may touch.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start = start as usize;
    Some(Room { start, end: start + whole, aligned: start.next_multiple_of(HUGE_PAGE_LEN) })
}

impl Room {
    /// Gives back all but `kept`, which are whole small pages of it.
    fn give_back(&self, kept: Range<usize>) {
        for part in [self.start..kept.start, kept.end..self.end] {
            if part.start < part.end {
                // SAFETY: address space of `reserve`'s that nobody else knows of.
                unsafe { libc::munmap(part.start as *mut c_void, part.len()) };
            }
        }
    }
}

/// What the server calls instead of `mmap`.
unsafe extern "C" fn map(
    address: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a flag of this process.
    let is_postmaster = unsafe { !(&raw const pg::IsUnderPostmaster).read() };
    if is_postmaster
        && address.is_null()
        && flags & (shared | libc::MAP_HUGETLB) == shared
        && len >= SHARED_MEMORY_LEN_MIN
        && let Some(base) = map_shared(len, protection, flags)
    {
        return base;
    }
    // SAFETY: as the server asked.
    unsafe { libc::mmap(address, len, protection, flags, fd, offset) }
}

/// New shared memory that begins with a huge page. None: it can't be had so.
fn map_shared(len: usize, protection: c_int, flags: c_int) -> Option<*mut c_void> {
    let count = len / HUGE_PAGE_LEN;
    // One more for the refusal.
    let (refused, states) = shared_numbers(count + 1)?.split_first()?;
    let room = reserve(len)?;
    // SAFETY: over address space that was reserved for it.
    let base = unsafe { libc::mmap(room.aligned as *mut c_void, len, protection, flags | libc::MAP_FIXED, -1, 0) };
    if base == libc::MAP_FAILED {
        room.give_back(room.aligned..room.aligned);
        return None;
    }
    room.give_back(room.aligned..room.aligned + len.next_multiple_of(SMALL_PAGE_LEN));
    // SAFETY: the memory that was just made; one thread.
    unsafe {
        // Where the system leaves it to the program, they are huge from the first use on.
        libc::madvise(base, len, libc::MADV_HUGEPAGE);
        SHARED_MEMORY = Some(SharedMemory { base: base as usize, made_at: Instant::now(), states, refused });
    }
    Some(base)
}

/// Numbers that all processes share. They stay for the life of the server: a few bytes for each time that it starts over.
fn shared_numbers(count: usize) -> Option<&'static [AtomicU8]> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping; it is never unmapped and is zero.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), count, protection, flags, -1, 0);
        (memory != libc::MAP_FAILED).then(|| std::slice::from_raw_parts(memory.cast::<AtomicU8>(), count))
    }
}

fn shared_memory() -> Option<SharedMemory> {
    // SAFETY: written in the postmaster before there are children.
    unsafe { (&raw const SHARED_MEMORY).read() }
}

/// To be told of each page that is moved between a file and a buffer.
#[inline]
pub fn touched(page: *const c_void) {
    if let Some(memory) = shared_memory()
        && let Some(state) = memory.states.get((page as usize).wrapping_sub(memory.base) / HUGE_PAGE_LEN)
        && state.load(Ordering::Relaxed) < TRIES_MAX
    {
        memory.touched_first(page);
    }
}

impl SharedMemory {
    #[cold]
    fn touched_first(&self, page: *const c_void) {
        if self.made_at.elapsed() < LEFT_ALONE_FOR {
            return;
        }
        // The kernel makes none of nothing.
        // SAFETY: in shared memory, where others may write it.
        unsafe { &*page.cast::<AtomicU8>() }.load(Ordering::Relaxed);
        self.enlarge((page as usize - self.base) / HUGE_PAGE_LEN);
        let place = &raw mut LAST_LOOK;
        for _ in 0..LOOKS_MAX.min(self.states.len()) {
            // SAFETY: single-threaded process.
            let at = unsafe {
                place.write((place.read() + 1) % self.states.len());
                place.read()
            };
            if self.states[at].load(Ordering::Relaxed) < TRIES_MAX && self.is_used(at) {
                return self.enlarge(at);
            }
        }
    }

    /// Makes it one. Several processes that do it at once do it once.
    fn enlarge(&self, at: usize) {
        let state = &self.states[at];
        if self.refused.load(Ordering::Relaxed) != 0 {
            return state.store(TRIES_MAX, Ordering::Relaxed);
        }
        // SAFETY: within the shared memory; its content stays the same.
        let made = unsafe { libc::madvise(self.address(at), HUGE_PAGE_LEN, COLLAPSE) } == 0;
        match last_error() {
            _ if made => state.store(MADE, Ordering::Relaxed),
            // A small page of it is in use by the kernel, or locked.
            libc::EAGAIN | libc::EBUSY => {
                let tried = |tries: u8| (tries < TRIES_MAX).then_some(tries + 1);
                // One that another process has made meanwhile stays that.
                let _ = state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, tried);
            }
            _ => {
                self.refused.store(1, Ordering::Relaxed);
                state.store(TRIES_MAX, Ordering::Relaxed);
            }
        }
    }

    /// Whether at least half of it is there.
    fn is_used(&self, at: usize) -> bool {
        let mut there = [0_u8; HUGE_PAGE_LEN / SMALL_PAGE_LEN];
        // SAFETY: within the shared memory, and there is a byte for each small page.
        let known = unsafe { libc::mincore(self.address(at), HUGE_PAGE_LEN, there.as_mut_ptr()) } == 0;
        known && there.iter().filter(|there| **there & 1 != 0).count() >= there.len() / 2
    }

    fn address(&self, at: usize) -> *mut c_void {
        (self.base + at * HUGE_PAGE_LEN) as *mut c_void
    }
}

fn last_error() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// `SHOW ardent.huge_pages`: how much code, how many huge pages of shared memory, and whether the kernel has refused any.
pub unsafe extern "C-unwind" fn show() -> *const c_char {
    let place = &raw mut SHOWN;
    // SAFETY: single-threaded process; Postgres copies the text before anybody asks again.
    let (out, code) = unsafe { (&mut *place, (&raw const CODE_LEN).read()) };
    *out = Text::new();
    let _cut = write!(out, "code={}kB", code / 1024);
    if let Some(memory) = shared_memory() {
        let made = memory.states.iter().filter(|state| state.load(Ordering::Relaxed) == MADE).count();
        let refused = if memory.refused.load(Ordering::Relaxed) != 0 { " refused=1" } else { "" };
        let _cut = write!(out, " shared={made}/{}{refused}", memory.states.len());
    }
    out.as_c_str().as_ptr()
}

/// Its name.
pub const SETTING: &CStr = c"ardent.huge_pages";
