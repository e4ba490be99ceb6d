//! A process's dealings with the page server: what to ask for, what has arrived. Never blocks and never raises.
//!
//! [`Fetcher::advance`] does whatever can be done at once towards having a block and says what has to happen next; `filler.rs`
//! makes it happen.

use ardent_api::page_service::ErrorCode;
use ardent_presence_map::{Counters, Entry};
use ardent_types::{BLCKSZ, BlockNumber, Lsn, RelTag};
use bytes::Bytes;

use crate::page_client::{Answer, Asked, LinkError, PageClient, Why};
use crate::pg;
use crate::read_ahead::{ReadAhead, Window};
use crate::report::{SqlState, Text};
use crate::settings;
use crate::storage_hooks::Storage;

/// Most requests in flight on one connection: their answers may lie in the socket and in the page server until they are
/// taken.
const IN_FLIGHT_MAX: usize = 32;
/// Blocks in one request. What is read ahead comes in several of them, so that the page server makes the next ones while the last ones are
/// put in their places, and an answer fits what lies between the two.
const REQUEST_BLOCKS_MAX: u32 = 32;

/// What a process knows about its dealings with the page server.
pub struct Fetcher {
    /// The process this state belongs to; a forked child must not use its parent's.
    process_id: i32,
    pub client: PageClient,
    ahead: ReadAhead,
    /// Pages that have arrived and are being put in their place.
    pub arrived: Option<Arrived>,
    /// What went wrong last.
    pub failure: Text,
}

/// An answer.
pub struct Arrived {
    /// What was asked for.
    pub asked: Asked,
    /// As many pages.
    pub pages: Bytes,
}

static mut FETCHER: Option<Fetcher> = None;

/// What has to happen before the block is there.
pub enum Step {
    /// Pages are in `Fetcher::arrived`.
    Arrived,
    /// Nothing yet.
    Wait,
    /// Another process has asked for it.
    WaitForOther,
    /// No connection, or the page server asks for patience; the reason is in `Fetcher::failure`.
    Later,
    /// A request for this block together with others was refused: ask for it alone.
    Alone,
    /// Hopeless; the reason is in `Fetcher::failure`.
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
    /// How many blocks from this one on are about to be read; at least 1.
    pub wanted: u32,
}

/// How a block is being obtained.
pub struct Attempt {
    /// Its neighbours are not to be asked for with it.
    pub alone: bool,
    /// Others who have asked for it are trusted to put it in place.
    pub trust_others: bool,
    /// Read-ahead has been told of the miss.
    pub planned: bool,
}

/// This process's state.
///
/// # Safety
/// The reference must not be held across anything that can raise or come back here.
pub unsafe fn fetcher() -> &'static mut Fetcher {
    // SAFETY: single-threaded process, and no caller holds two references at a time.
    unsafe {
        let place = &raw mut FETCHER;
        let slot = &mut *place;
        let process_id = pg::process_id();
        if slot.as_ref().is_some_and(|fetcher| fetcher.process_id != process_id) {
            *slot = None;
        }
        slot.get_or_insert_with(|| Fetcher {
            process_id,
            client: PageClient::new(settings::agent_socket()),
            ahead: ReadAhead::default(),
            arrived: None,
            failure: Text::new(),
        })
    }
}

impl Fetcher {
    /// Does whatever can be done now towards having `target`.
    pub fn advance(
        &mut self,
        storage: &Storage,
        target: &Target<'_>,
        nblocks: BlockNumber,
        attempt: &mut Attempt,
    ) -> Step {
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
                    if let Some(at) = first_bad_page(&pages, storage.read_lsn()) {
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
        let ahead_max = if attempt.alone { 1 } else { settings::read_ahead_blocks() };
        let max = ahead_max.min(REQUEST_BLOCKS_MAX);
        let in_flight = self.client.in_flight().find(|asked| asked.covers(&target.rel, target.block));
        match in_flight.map(|asked| (asked.why, asked.start)) {
            None if attempt.trust_others && storage.claims.holds(&target.entry, target.block) => {
                if !attempt.planned {
                    attempt.planned = true;
                    let window = self.ahead.on_miss(target.rel, target.block, target.wanted, max);
                    self.ask_window(storage, target, window, nblocks, Why::ReadAhead)?;
                }
                return Ok(());
            }
            None => {
                if storage.claims.holds(&target.entry, target.block) {
                    storage.claims.remove(&target.entry, target.block, 2 * settings::READ_AHEAD_BLOCKS_MAX);
                }
                attempt.planned = true;
                let window = self.ahead.on_miss(target.rel, target.block, target.wanted, max);
                self.ask_window(storage, target, window, nblocks, Why::Demand)?;
            }
            // The reader has reached what was read ahead for it.
            Some((Why::ReadAhead, start)) if start == target.block => {}
            Some(_) => return Ok(()),
        }
        if max == 1 {
            return Ok(());
        }
        // Windows that others have asked for already count as well: the relation is not searched to its end.
        for _ in 0..ahead_max.div_ceil(max) {
            if self.blocks_ahead(target) >= ahead_max || self.client.in_flight().count() >= IN_FLIGHT_MAX {
                break;
            }
            let Some(window) = self.ahead.next_window(target.rel, max).filter(|window| window.start < nblocks) else {
                break;
            };
            self.ask_window(storage, target, window, nblocks, Why::ReadAhead)?;
        }
        Ok(())
    }

    /// Blocks of the target's relation behind it that are on their way.
    fn blocks_ahead(&self, target: &Target<'_>) -> u32 {
        let behind = |asked: &&Asked| asked.rel == target.rel && asked.start > target.block;
        self.client.in_flight().filter(behind).map(|asked| asked.count).sum()
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
        self.client.ask(storage.read_lsn(), target.rel, start, count, why)?;
        storage.claims.add(&target.entry, start, count);
        Counters::add(&storage.map.counters().requests, 1);
        Ok(())
    }

    /// As [`Fetcher::advance`], for a prefetch. [`Step::Alone`]: the block is asked for.
    pub fn advance_prefetch(&mut self, storage: &Storage, target: &Target<'_>) -> Step {
        self.try_advance_prefetch(storage, target).unwrap_or(Step::Later)
    }

    fn try_advance_prefetch(&mut self, storage: &Storage, target: &Target<'_>) -> Result<Step, LinkError> {
        self.connect(storage)?;
        if self.is_asked(target) || storage.claims.holds(&target.entry, target.block) {
            return Ok(Step::Alone);
        }
        loop {
            if self.client.is_up() && self.client.in_flight().count() < IN_FLIGHT_MAX {
                let window = Window { start: target.block, count: target.wanted };
                self.ask_window(storage, target, window, BlockNumber::MAX, Why::Prefetch)?;
                return Ok(Step::Alone);
            }
            let was_up = self.client.is_up();
            match self.client.poll()? {
                Some(Answer::Pages(asked, pages)) if first_bad_page(&pages, storage.read_lsn()).is_none() => {
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
