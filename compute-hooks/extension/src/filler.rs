//! Brings absent blocks from the page server into their files.
//!
//! ```text
//!  read of an absent block ──► Filler::advance ──(no lock)──► pages arrive
//!                                   ▲    │                          │
//!                    poll, interrupts,   └─ Step ──► wait           ▼
//!                    deadline                       per page: lock, still absent? mdwrite, set bit, unlock
//! ```
//!
//! Two halves: [`Filler`] talks to the page server and never raises; the functions around it wait, write and raise, and
//! keep nothing with a destructor on their stack (see `pg.rs`).

use std::ffi::c_char;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ardent_api::page_service::ErrorCode;
use ardent_presence_map::{Counters, Entry, PresenceMap};
use ardent_types::{BLCKSZ, BlockNumber, Lsn, RelTag};
use bytes::Bytes;

use crate::chunk_locks;
use crate::commit_guard;
use crate::page_client::{Answer, Asked, LinkError, PageClient, Why};
use crate::pg;
use crate::read_ahead::{ReadAhead, Window};
use crate::report::{Level, Report, SqlState, Text};
use crate::settings;
use crate::storage_hooks::{self, Storage};

/// Longest sleep before interrupts and deadlines are looked at again. A signal ends it at once, except one that arrives
/// just before it begins.
const POLL_MAX: Duration = Duration::from_millis(50);
/// First and longest pause before the next attempt after a failure that may pass.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Most requests in flight on one connection: their answers may lie in the socket and in the page server until they are
/// taken.
const IN_FLIGHT_MAX: usize = 32;

/// How long a block that another process has asked for is waited for before it is asked for again, and how often it is
/// looked for.
const OTHERS_PATIENCE: Duration = Duration::from_millis(20);
const OTHERS_POLL: Duration = Duration::from_micros(200);

/// What a process knows about its dealings with the page server.
struct Filler {
    /// The process this state belongs to; a forked child must not use its parent's.
    process_id: i32,
    client: PageClient,
    ahead: ReadAhead,
    /// Pages that have arrived and are being put in their place.
    arrived: Option<Arrived>,
    /// What went wrong last.
    failure: Text,
}

struct Arrived {
    asked: Asked,
    pages: Bytes,
}

static mut FILLER: Option<Filler> = None;

/// What has to happen before the block is there.
enum Step {
    /// Pages are in `Filler::arrived`.
    Arrived,
    /// Nothing yet.
    Wait,
    /// Another process has asked for it.
    WaitForOther,
    /// No connection, or the page server asks for patience; the reason is in `Filler::failure`.
    Later,
    /// A request for this block together with others was refused: ask for it alone.
    Alone,
    /// Hopeless; the reason is in `Filler::failure`.
    Refused(SqlState),
}

/// Which block is wanted.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Postgres's handle.
    pub handle: pg::SMgrRelation,
    /// The block's entry in the presence map.
    pub entry: Entry<'a>,
    /// The same relation fork.
    pub rel: RelTag,
    /// Block.
    pub block: BlockNumber,
}

/// How a block is being obtained.
struct Attempt {
    /// Its neighbours are not to be asked for with it.
    alone: bool,
    /// Others who have asked for it are trusted to put it in place.
    trust_others: bool,
    /// Read-ahead has been told of the miss.
    planned: bool,
}

/// This process's state.
///
/// The reference must not be held across anything that can raise or come back here.
unsafe fn filler() -> &'static mut Filler {
    // SAFETY: single-threaded process, and no caller holds two references at a time.
    unsafe {
        let place = &raw mut FILLER;
        let slot = &mut *place;
        let process_id = pg::process_id();
        if slot.as_ref().is_some_and(|filler| filler.process_id != process_id) {
            *slot = None;
        }
        slot.get_or_insert_with(|| Filler {
            process_id,
            client: PageClient::new(settings::agent_socket()),
            ahead: ReadAhead::default(),
            arrived: None,
            failure: Text::new(),
        })
    }
}

impl Filler {
    /// Does whatever can be done now towards having `target`. Never blocks.
    fn advance(&mut self, storage: &Storage, target: &Target<'_>, nblocks: BlockNumber, attempt: &mut Attempt) -> Step {
        match self.try_advance(storage, target, nblocks, attempt) {
            Ok(step) => step,
            Err(error) => {
                self.note(format_args!("{error}"));
                Step::Later
            }
        }
    }

    fn try_advance(
        &mut self,
        storage: &Storage,
        target: &Target<'_>,
        nblocks: BlockNumber,
        attempt: &mut Attempt,
    ) -> Result<Step, LinkError> {
        self.connect(storage)?;
        if self.client.is_up() {
            self.ask_for(storage, target, nblocks, attempt)?;
        }
        loop {
            match self.client.poll()? {
                Some(Answer::Pages(asked, pages)) => {
                    if let Some(at) = first_bad_page(&pages, storage.base_lsn) {
                        Counters::add(&storage.map.counters().errors, 1);
                        unclaim(storage, &asked);
                        if asked.covers(&target.rel, target.block) {
                            self.note(format_args!(
                                "block {} came with an LSN past the LSN that was asked for",
                                asked.start.saturating_add(at)
                            ));
                            return Ok(self.refused(&asked, SqlState::DATA_CORRUPTED));
                        }
                        continue;
                    }
                    self.arrived = Some(Arrived { asked, pages });
                    return Ok(Step::Arrived);
                }
                Some(Answer::Refused(asked, code, message)) => {
                    Counters::add(&storage.map.counters().errors, 1);
                    unclaim(storage, &asked);
                    if !asked.covers(&target.rel, target.block) {
                        continue;
                    }
                    self.note(format_args!("{message}"));
                    return Ok(if code.is_retryable() { Step::Later } else { self.refused(&asked, sql_state(code)) });
                }
                None if self.client.is_up() => {
                    // The connection may have just come up.
                    self.ask_for(storage, target, nblocks, attempt)?;
                    return Ok(if self.is_asked(target) { Step::Wait } else { Step::WaitForOther });
                }
                None => return Ok(Step::Wait),
            }
        }
    }

    fn connect(&mut self, storage: &Storage) -> Result<(), LinkError> {
        if self.client.connect()? {
            Counters::add(&storage.map.counters().connections, 1);
        }
        Ok(())
    }

    fn is_asked(&self, target: &Target<'_>) -> bool {
        self.client.in_flight().any(|asked| asked.covers(&target.rel, target.block))
    }

    /// Asks for the target unless that has been done, and for what is likely to be next.
    fn ask_for(
        &mut self,
        storage: &Storage,
        target: &Target<'_>,
        nblocks: BlockNumber,
        attempt: &mut Attempt,
    ) -> Result<(), LinkError> {
        let max = if attempt.alone { 1 } else { settings::read_ahead_blocks() };
        let in_flight = self.client.in_flight().find(|asked| asked.covers(&target.rel, target.block));
        match in_flight.map(|asked| (asked.why, asked.start)) {
            None if attempt.trust_others && storage.claims.holds(&target.entry, target.block) => {
                if !attempt.planned {
                    attempt.planned = true;
                    let window = self.ahead.on_miss(target.rel, target.block, max);
                    self.ask_window(storage, target, window, nblocks, Why::ReadAhead)?;
                }
                return Ok(());
            }
            None => {
                if storage.claims.holds(&target.entry, target.block) {
                    storage.claims.remove(&target.entry, target.block, 2 * settings::READ_AHEAD_BLOCKS_MAX);
                }
                attempt.planned = true;
                let window = self.ahead.on_miss(target.rel, target.block, max);
                self.ask_window(storage, target, window, nblocks, Why::Demand)?;
            }
            // The reader has reached what was read ahead for it.
            Some((Why::ReadAhead, start)) if start == target.block => {}
            Some(_) => return Ok(()),
        }
        let newest = self.client.in_flight().filter(|asked| asked.rel == target.rel).last();
        let reached_newest = newest.is_some_and(|asked| asked.covers(&target.rel, target.block));
        if max > 1 && reached_newest && self.client.in_flight().count() < IN_FLIGHT_MAX {
            if let Some(window) = self.ahead.next_window(target.rel, max) {
                self.ask_window(storage, target, window, nblocks, Why::ReadAhead)?;
            }
        }
        Ok(())
    }

    /// Asks for the first run of blocks in the window that are absent and that nobody has asked for.
    fn ask_window(
        &mut self,
        storage: &Storage,
        target: &Target<'_>,
        window: Window,
        nblocks: BlockNumber,
        why: Why,
    ) -> Result<(), LinkError> {
        let end = window.start.saturating_add(window.count).min(nblocks);
        let wanted =
            |block: &BlockNumber| target.entry.is_absent(*block) && !storage.claims.holds(&target.entry, *block);
        let Some(start) = (window.start..end).find(wanted) else { return Ok(()) };
        let count = (start..end).take_while(wanted).count() as u32;
        self.client.ask(storage.base_lsn, target.rel, start, count, why)?;
        storage.claims.add(&target.entry, start, count);
        Counters::add(&storage.map.counters().requests, 1);
        Ok(())
    }

    fn refused(&mut self, asked: &Asked, state: SqlState) -> Step {
        if asked.count > 1 {
            self.ahead.reset(asked.rel);
            return Step::Alone;
        }
        Step::Refused(state)
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.failure = Text::format(what);
    }
}

/// The blocks asked for will not come from this request.
fn unclaim(storage: &Storage, asked: &Asked) {
    if let Some(entry) = storage.map.find(&asked.rel) {
        storage.claims.remove(&entry, asked.start, asked.count);
    }
}

fn sql_state(code: ErrorCode) -> SqlState {
    match code {
        ErrorCode::Unreadable | ErrorCode::NotFound => SqlState::DATA_CORRUPTED,
        _ => SqlState::IO_ERROR,
    }
}

/// The first page whose LSN is past `base_lsn`. Local crash recovery would end the server over such a page.
fn first_bad_page(pages: &[u8], base_lsn: Lsn) -> Option<u32> {
    let is_bad = |page: &[u8]| {
        let half = |at: usize| page[at..at + 4].try_into().map_or(u32::MAX, u32::from_le_bytes);
        (u64::from(half(0)) << 32 | u64::from(half(4))) > base_lsn.get()
    };
    pages.chunks_exact(BLCKSZ).position(is_bad).and_then(|at| u32::try_from(at).ok())
}

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
    // SAFETY: the filler is borrowed for one non-raising call at a time; around the calls that may raise, this frame holds
    // plain data only.
    unsafe {
        filler().arrived = None;
        while target.entry.is_absent(target.block) {
            let pause = match filler().advance(storage, target, nblocks, &mut attempt) {
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
            wait(pause);
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
        filler().arrived = None;
        loop {
            match filler().advance_prefetch(storage, target) {
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
                    wait(POLL_MAX);
                    if started.elapsed() >= settings::fetch_timeout() {
                        return false;
                    }
                }
            }
        }
    }
}

impl Filler {
    /// As [`Filler::advance`], for a prefetch. [`Step::Alone`]: the block is asked for.
    fn advance_prefetch(&mut self, storage: &Storage, target: &Target<'_>) -> Step {
        self.try_advance_prefetch(storage, target).unwrap_or(Step::Later)
    }

    fn try_advance_prefetch(&mut self, storage: &Storage, target: &Target<'_>) -> Result<Step, LinkError> {
        self.connect(storage)?;
        if self.is_asked(target) || storage.claims.holds(&target.entry, target.block) {
            return Ok(Step::Alone);
        }
        loop {
            if self.client.is_up() && self.client.in_flight().count() < IN_FLIGHT_MAX {
                let window = Window { start: target.block, count: 1 };
                self.ask_window(storage, target, window, BlockNumber::MAX, Why::Prefetch)?;
                return Ok(Step::Alone);
            }
            let was_up = self.client.is_up();
            match self.client.poll()? {
                Some(Answer::Pages(asked, pages)) if first_bad_page(&pages, storage.base_lsn).is_none() => {
                    self.arrived = Some(Arrived { asked, pages });
                    return Ok(Step::Arrived);
                }
                Some(Answer::Pages(asked, _) | Answer::Refused(asked, ..)) => {
                    Counters::add(&storage.map.counters().errors, 1);
                    unclaim(storage, &asked);
                }
                None if self.client.is_up() != was_up => {}
                None => return Ok(Step::Wait),
            }
        }
    }
}

/// Sleeps until something may have happened, then serves interrupts.
///
/// # Safety
/// Where an error may be raised.
pub unsafe fn wait(max: Duration) {
    // SAFETY: the filler is borrowed for the non-raising wait alone.
    unsafe {
        pg::show_waiting(true);
        let postmaster_lives = filler().client.wait(max, pg::postmaster_watch_fd());
        pg::show_waiting(false);
        if !postmaster_lives {
            Report::plain(SqlState::IO_ERROR, format_args!("terminating because the postmaster is gone"))
                .raise(Level::Fatal);
        }
        commit_guard::serve_cancellation_while_waiting();
        pg::check_for_interrupts();
    }
}

/// Puts arrived pages that are still absent in their places. True: `target` was among them and was copied to `out`.
unsafe fn place_arrived(storage: &Storage, target: &Target<'_>, out: *mut c_char) -> bool {
    // SAFETY: the pages stay in the filler's `arrived` until the end, so that an error raised by a write leaks nothing;
    // nothing below comes back to the filler.
    unsafe {
        let Some(Arrived { asked, pages }) = &filler().arrived else { return false };
        let (asked, first_page) = (*asked, pages.as_ptr());
        let Some(entry) = storage.map.find(&asked.rel) else { return false };
        let mut copied = false;
        let (mut filled, mut raced) = (0, 0);
        for at in 0..asked.count {
            let block = asked.start + at;
            let page = first_page.add(at as usize * BLCKSZ);
            if !place(storage, target, &entry, &asked.rel, block, page) {
                raced += 1;
                continue;
            }
            filled += 1;
            if block == target.block && asked.rel == target.rel && !out.is_null() {
                std::ptr::copy_nonoverlapping(page.cast::<c_char>(), out, BLCKSZ);
                copied = true;
            }
        }
        storage.claims.remove(&entry, asked.start, asked.count);
        count(storage.map, &asked, filled, raced);
        filler().arrived = None;
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

/// Writes a page to its file unless somebody has made the block present meanwhile. True: written.
unsafe fn place(
    storage: &Storage,
    target: &Target<'_>,
    entry: &Entry<'_>,
    rel: &RelTag,
    block: BlockNumber,
    page: *const u8,
) -> bool {
    // A relation that was dropped or cut meanwhile must not even be opened.
    if !entry.is_absent(block) {
        return false;
    }
    // SAFETY: the handle is Postgres's own; an error raised by the write releases the lock.
    unsafe {
        let handle = if *rel == target.rel { target.handle } else { storage_hooks::open(rel) };
        let lock = chunk_locks::acquire(entry, block);
        let absent = entry.is_absent(block);
        if absent {
            // The write does not change the page; its type says otherwise for historical reasons.
            (storage.original.write)(handle, rel.fork as pg::ForkNumber, block, page.cast_mut().cast(), true);
            entry.set_present(block);
        }
        chunk_locks::release(lock);
        absent
    }
}

unsafe fn raise_unobtainable(storage: &Storage, target: &Target<'_>, state: SqlState, waited: Option<Duration>) -> ! {
    let mut detail = Text::new();
    // SAFETY: borrowed for the copy of the text alone; nothing below has a destructor.
    unsafe {
        let reason = filler().failure.as_c_str();
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
            storage.base_lsn,
            settings::agent_socket().to_str().unwrap_or("?")
        ));
        let hint = if waited.is_some() {
            c"Nothing was changed. Run the statement again when \"ardent status\" shows the page server as ready."
        } else {
            c"Nothing was changed. Other blocks are not affected; the page server's log has the details."
        };
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
                let target = Target { handle: storage_hooks::open(&rel), entry, rel, block };
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
