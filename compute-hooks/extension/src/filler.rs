//! Brings absent blocks from the page server into their files.
//!
//! ```text
//!  read of an absent block ──► Fetcher::advance ──(no lock)──► pages arrive
//!                                   ▲    │                          │
//!                    poll, interrupts,   └─ Step ──► wait           ▼
//!                    deadline                       per page: lock, still absent? mdwrite, set bit, unlock
//! ```
//!
//! Two halves: `fetcher.rs` talks to the page server and never raises; the functions here wait, write and raise, and keep
//! nothing with a destructor on their stack (see `pg.rs`).

use std::ffi::c_char;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ardent_presence_map::{Counters, Entry, PresenceMap};
use ardent_types::{BLCKSZ, BlockNumber, RelTag};

use crate::chunk_locks;
use crate::commit_guard;
use crate::fetcher::{Arrived, Attempt, Step, Target, fetcher};
use crate::page_client::{Asked, Why};
use crate::pg;
use crate::relation;
use crate::report::{Level, Report, SqlState, Text};
use crate::settings;
use crate::storage_hooks::Storage;
use crate::transfers;

/// Longest sleep before interrupts and deadlines are looked at again. A signal ends it at once, except one that arrives
/// just before it begins.
const POLL_MAX: Duration = Duration::from_millis(50);
/// First and longest pause before the next attempt after a failure that may pass.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// How long a block that another process has asked for is waited for before it is asked for again, and how often it is
/// looked for.
const OTHERS_PATIENCE: Duration = Duration::from_millis(20);
const OTHERS_POLL: Duration = Duration::from_micros(200);

/// Makes sure that the block is there, and copies it to `out` if that saves a read. False: the block is in its file, read it
/// there.
///
/// # Safety
/// Where an error may be raised; `out` is null or has room for a page.
pub unsafe fn obtain(storage: &Storage, target: &Target<'_>, nblocks: BlockNumber, out: *mut c_char) -> bool {
    let started = Instant::now();
    let mut backoff = BACKOFF_MIN;
    let mut attempt = Attempt { alone: false, trust_others: true, planned: false };
    let mut copied = false;
    // SAFETY: the fetcher is borrowed for one non-raising call at a time; around the calls that may raise, this frame holds
    // plain data only.
    unsafe {
        fetcher().arrived = None;
        while target.entry.is_absent(target.block) {
            let pause = match fetcher().advance(storage, target, nblocks, &mut attempt) {
                Step::Arrived => {
                    copied |= place_arrived(storage, target, out);
                    continue;
                }
                Step::Alone => {
                    attempt.alone = true;
                    continue;
                }
                Step::Refused(state) => raise_unobtainable(storage, target, state, None),
                Step::Wait => POLL_MAX,
                Step::WaitForOther => OTHERS_POLL,
                Step::Later => {
                    let now = backoff;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    now
                }
            };
            wait(pause, Place::StorageManager);
            let waited = started.elapsed();
            attempt.trust_others = waited < OTHERS_PATIENCE;
            if waited >= settings::fetch_timeout() {
                raise_unobtainable(storage, target, SqlState::IO_ERROR, Some(waited));
            }
        }
    }
    Counters::add(&storage.map.counters().wait_us, started.elapsed().as_micros().try_into().unwrap_or(u64::MAX));
    copied
}

/// Asks for a block without waiting for it. False: that was not possible.
///
/// # Safety
/// Where an error may be raised.
pub unsafe fn prefetch(storage: &Storage, target: &Target<'_>) -> bool {
    let started = Instant::now();
    // SAFETY: as in `obtain`.
    unsafe {
        fetcher().arrived = None;
        loop {
            match fetcher().advance_prefetch(storage, target) {
                Step::Arrived => {
                    place_arrived(storage, target, std::ptr::null_mut());
                    if !target.entry.is_absent(target.block) {
                        return true;
                    }
                }
                Step::Alone => return true,
                // Prefetching is a service, never a failure: the read will say what is wrong.
                Step::Refused(_) | Step::Later => return false,
                Step::Wait | Step::WaitForOther => {
                    wait(POLL_MAX, Place::StorageManager);
                    if started.elapsed() >= settings::fetch_timeout() {
                        return false;
                    }
                }
            }
        }
    }
}

/// Where somebody waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a hook of the executor or of a transaction's end.
    Statement,
    /// In a function of the storage manager's table. From 18 on those that call it hold interrupts off, lest the relation's files are
    /// closed in between; here none is in use yet, so that a wait can be interrupted as before.
    StorageManager,
}

impl Place {
    /// Of the holds on interrupts, how many are the caller's and mean nothing here.
    fn holds(self) -> u32 {
        u32::from(cfg!(pg_from = "18") && self == Place::StorageManager)
    }
}

/// Sleeps until something may have happened, then serves interrupts.
///
/// # Safety
/// Where an error may be raised.
pub unsafe fn wait(max: Duration, place: Place) {
    // SAFETY: the fetcher is borrowed for the non-raising wait alone.
    unsafe {
        pg::before_sleep();
        pg::show_waiting(true);
        let postmaster_lives = fetcher().client.wait(max, pg::postmaster_watch_fd());
        pg::show_waiting(false);
        if !postmaster_lives {
            Report::plain(SqlState::IO_ERROR, format_args!("terminating because the postmaster is gone"))
                .raise(Level::Fatal);
        }
        // An error leaves no hold behind, as everywhere.
        let lifted = pg::lift_holds(place.holds());
        commit_guard::serve_cancellation_while_waiting();
        pg::check_for_interrupts();
        pg::restore_holds(lifted);
    }
}

/// Puts arrived pages that are still absent in their places. True: `target` was among them and was copied to `out`.
unsafe fn place_arrived(storage: &Storage, target: &Target<'_>, out: *mut c_char) -> bool {
    // SAFETY: the pages stay in the fetcher's `arrived` until the end, so that an error raised by a write leaks nothing;
    // nothing below comes back to the fetcher.
    unsafe {
        let Some(Arrived { asked, pages }) = &fetcher().arrived else { return false };
        let (asked, first_page) = (*asked, pages.as_ptr());
        let Some(entry) = storage.map.find(&asked.rel) else { return false };
        let mut copied = false;
        let (mut filled, mut at) = (0, 0);
        while at < asked.count {
            let start = asked.start + at;
            let length = chunk_locks::blocks_to_chunk_end(start).min(asked.count - at);
            let pages = first_page.add(at as usize * BLCKSZ);
            let placed = place(storage, target, &entry, &Run { rel: asked.rel, start, length, pages });
            filled += u64::from(placed.count_ones());
            let wanted = target.block.wrapping_sub(start);
            if wanted < length && asked.rel == target.rel && placed >> wanted & 1 == 1 && !out.is_null() {
                let page = pages.add(wanted as usize * BLCKSZ);
                std::ptr::copy_nonoverlapping(page.cast::<c_char>(), out, BLCKSZ);
                copied = true;
            }
            at += length;
        }
        let raced = u64::from(asked.count) - filled;
        storage.claims.remove(&entry, asked.start, asked.count);
        count(storage.map, &asked, filled, raced);
        fetcher().arrived = None;
        copied
    }
}

fn count(map: &PresenceMap, asked: &Asked, filled: u64, raced: u64) {
    let counters = map.counters();
    Counters::add(&counters.pages_filled, filled);
    Counters::add(&counters.pages_raced, raced);
    match asked.why {
        Why::Demand => Counters::add(&counters.pages_read_ahead, filled.saturating_sub(1)),
        Why::ReadAhead => Counters::add(&counters.pages_read_ahead, filled),
        Why::Prefetch => Counters::add(&counters.pages_prefetched, filled),
    }
}

/// Fetched pages of consecutive blocks that share a lock.
struct Run {
    rel: RelTag,
    start: BlockNumber,
    length: u32,
    pages: *const u8,
}

/// Writes pages to their file, but for blocks that somebody has made present meanwhile. A bit for each block, from the first: written.
unsafe fn place(storage: &Storage, target: &Target<'_>, entry: &Entry<'_>, run: &Run) -> u64 {
    // A relation that was dropped or cut meanwhile must not even be opened.
    if (0..run.length).all(|at| !entry.is_absent(run.start + at)) {
        return 0;
    }
    let mut placed = 0;
    // SAFETY: the handle is Postgres's own; an error raised by a write releases the lock.
    unsafe {
        let handle = if run.rel == target.rel { target.handle } else { relation::open(&run.rel) };
        let lock = chunk_locks::acquire(entry, run.start);
        let mut at = 0;
        while at < run.length {
            let start = run.start + at;
            let length = entry.absent_run(start, run.length - at);
            transfers::write_fetched(
                storage,
                handle,
                &run.rel,
                start..start + length,
                run.pages.add(at as usize * BLCKSZ),
            );
            for next in 0..length {
                entry.set_present(start + next);
                placed |= 1 << (at + next);
            }
            at += length.max(1);
        }
        chunk_locks::release(lock);
    }
    placed
}

unsafe fn raise_unobtainable(storage: &Storage, target: &Target<'_>, state: SqlState, waited: Option<Duration>) -> ! {
    let mut detail = Text::new();
    // SAFETY: borrowed for the copy of the text alone; nothing below has a destructor.
    unsafe {
        let reason = fetcher().failure.as_c_str();
        let _cut = match waited {
            None => write!(detail, "The page server refuses: {}.", reason.to_string_lossy()),
            Some(waited) if reason.is_empty() => {
                write!(detail, "No answer within {} s.", waited.as_secs_f32())
            }
            Some(waited) => {
                write!(detail, "Tried for {} s. Last failure: {}.", waited.as_secs_f32(), reason.to_string_lossy())
            }
        };
        let message = Text::format(format_args!(
            "could not read block {} of relation {} at LSN {} from the page server behind \"{}\"",
            target.block,
            target.rel,
            storage.read_lsn(),
            settings::agent_socket().to_str().unwrap_or("?")
        ));
        let hint = if waited.is_some() {
            "Nothing was changed. Run the statement again when \"ardent status\" shows the page server as ready."
        } else {
            "Nothing was changed. Other blocks are not affected; the page server's log has the details."
        };
        let hint = Text::format(format_args!("{hint}"));
        Report { state, message, detail, hint }.raise(Level::Error)
    }
}

/// Fetches everything that a database still lacks.
///
/// # Safety
/// Where an error may be raised.
pub unsafe fn fill_database(storage: &Storage, database: pg::Oid) {
    for entry in storage.map.entries() {
        let rel = entry.rel();
        if rel.dbnode != database {
            continue;
        }
        // SAFETY: the iterators and entries are plain references; see `obtain`.
        unsafe {
            let mut from = 0;
            while let Some(block) = entry.next_absent(from) {
                from = block;
                let target = Target { handle: relation::open(&rel), entry, rel, block, wanted: 1 };
                let nblocks = (storage.original.nblocks)(target.handle, rel.fork as pg::ForkNumber);
                if block >= nblocks {
                    break;
                }
                obtain(storage, &target, nblocks, std::ptr::null_mut());
                pg::check_for_interrupts();
            }
        }
    }
}
