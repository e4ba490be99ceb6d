//! Receives timelines' WAL from safekeepers and ingests it: one thread per timeline that is followed (PS-S2).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::ErrorCode;
use ardent_pg_format::{DecodedRecord, WalDecoder, WalError};
use ardent_pg_ingest::{Batch, Ingest, IngestError, Progress};
use ardent_storage::{CommitError, Engine, PutError, ReadError, RecordPosition, Timeline, TimelineError};
use ardent_types::{Lsn, TenantId, TimelineId};
use ardent_wal_client::{ClientError, WalChunk, WalReader};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::connection::Failure;
use crate::import::{IMPORT_ERROR, consistent_from};
use crate::limits;
use crate::pages::{chain, timeline_failure};
use crate::state::TimelineAt;

type TimelineKey = (TenantId, TimelineId);

/// All followed timelines. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Followers {
    runtime: Handle,
    engine: Arc<Engine>,
    safekeepers: Vec<ServiceAddr>,
    token: String,
    running: Arc<Mutex<HashMap<TimelineKey, Follower>>>,
}

/// One followed timeline.
#[derive(Debug)]
struct Follower {
    shared: Arc<FollowState>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct FollowState {
    cancel: CancellationToken,
    safekeepers: Mutex<Vec<ServiceAddr>>,
    /// Control said so; otherwise somebody waited for WAL, and following ends when nobody does any more.
    is_pinned: AtomicBool,
    wanted_at: Mutex<Instant>,
    /// What went wrong last, until it works again.
    problem: Mutex<Option<String>>,
}

/// Why following stopped for now.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("the timeline cannot be opened")]
    Timeline(#[from] TimelineError),
    #[error("its import is not finished")]
    Importing,
    #[error("the WAL of a timeline that it hangs on cannot be received: {0}")]
    Ancestor(Failure),
    #[error("no safekeeper is configured")]
    NoSafekeeper,
    #[error("its WAL cannot be received")]
    Receive(#[from] ClientError),
    #[error("its WAL cannot be decoded")]
    Decode(#[from] WalError),
    #[error("its WAL cannot be ingested")]
    Ingest(#[from] Box<IngestError<ReadError>>),
    #[error("its WAL cannot be stored")]
    Put(#[from] PutError),
    #[error("its state cannot be made durable")]
    Commit(#[from] CommitError),
    #[error("pages that WAL refers to were missing in the base backup: {0}")]
    Incomplete(String),
}

/// How following ended without an error.
enum Ended {
    Cancelled,
    Idle,
}

impl Followers {
    pub fn new(runtime: Handle, engine: Arc<Engine>, safekeepers: Vec<ServiceAddr>, token: String) -> Self {
        Followers { runtime, engine, safekeepers, token, running: Arc::default() }
    }

    /// Follows the timeline until [`Followers::unfollow`]. `safekeepers` empty: the configured ones.
    pub fn follow(&self, timeline: &Arc<Timeline>, safekeepers: Vec<ServiceAddr>) -> Result<(), Failure> {
        let state = self.ensure(timeline)?;
        if !safekeepers.is_empty() {
            *state.safekeepers.lock() = safekeepers;
        }
        state.is_pinned.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lets following end once all WAL that is there is ingested.
    pub fn unfollow(&self, timeline: &Timeline) {
        if let Some(follower) = self.running.lock().get(&key_of(timeline)) {
            follower.shared.is_pinned.store(false, Ordering::Relaxed);
            if let Some(long_ago) = Instant::now().checked_sub(limits::FOLLOW_IDLE) {
                *follower.shared.wanted_at.lock() = long_ago;
            }
        }
    }

    /// Waits until the timeline has ingested `lsn`, and its ancestors what a reader there sees of them: after a restart, theirs may
    /// have to come in again as well. Follows meanwhile whichever of them nobody does.
    pub fn wait_for(&self, timeline: &Arc<Timeline>, lsn: Lsn, deadline: Instant) -> Result<(), Failure> {
        let behind = behind(timeline, lsn).map_err(|error| timeline_failure(&error))?;
        if behind.is_empty() {
            return Ok(());
        }
        let states = behind.iter().map(|timeline| self.ensure(timeline)).collect::<Result<Vec<_>, _>>()?;
        timeline.wait_for(lsn, deadline).map_err(|error| {
            let problem = states.iter().find_map(|state| state.problem.lock().clone());
            let why = problem.unwrap_or_else(|| "no more WAL has come from the safekeepers".to_owned());
            let (lsn, last) = (error.lsn, error.last);
            Failure::new(ErrorCode::Timeout, format!("{lsn} is not ingested yet, {last} is: {why}"))
        })
    }

    /// Whether the timeline's WAL is being received.
    pub fn is_following(&self, timeline: &Timeline) -> bool {
        self.running.lock().get(&key_of(timeline)).is_some_and(|follower| !follower.thread.is_finished())
    }

    /// What keeps the timeline from following, if anything does.
    pub fn problem(&self, timeline: &Timeline) -> Option<String> {
        self.running.lock().get(&key_of(timeline)).and_then(|follower| follower.shared.problem.lock().clone())
    }

    /// Ends following a timeline at once and waits for it.
    pub fn end(&self, tenant: TenantId, timeline: TimelineId) {
        let follower = self.running.lock().remove(&(tenant, timeline));
        if let Some(follower) = follower {
            follower.end();
        }
    }

    /// Ends all, and waits for them.
    pub fn end_all(&self) {
        loop {
            let running = std::mem::take(&mut *self.running.lock());
            if running.is_empty() {
                return;
            }
            running.values().for_each(|follower| follower.shared.cancel.cancel());
            // One that was just starting another, for an ancestor, has done so when it has ended.
            running.into_values().for_each(Follower::end);
        }
    }

    fn ensure(&self, timeline: &Arc<Timeline>) -> Result<Arc<FollowState>, Failure> {
        let mut running = self.running.lock();
        if let Some(follower) = running.get(&key_of(timeline)).filter(|follower| !follower.thread.is_finished()) {
            *follower.shared.wanted_at.lock() = Instant::now();
            return Ok(Arc::clone(&follower.shared));
        }
        let shared = Arc::new(FollowState {
            cancel: CancellationToken::new(),
            safekeepers: Mutex::new(self.safekeepers.clone()),
            is_pinned: AtomicBool::new(false),
            wanted_at: Mutex::new(Instant::now()),
            problem: Mutex::new(None),
        });
        let worker = Worker { followers: self.clone(), key: key_of(timeline), state: Arc::clone(&shared) };
        let thread = std::thread::Builder::new().name(format!("follow-{}", timeline.id())).spawn(move || worker.run());
        let thread = thread.map_err(|error| {
            Failure::new(ErrorCode::Unavailable, format!("no thread to be had for following WAL: {error}"))
        })?;
        running.insert(key_of(timeline), Follower { shared: Arc::clone(&shared), thread });
        Ok(shared)
    }
}

/// The timeline and its ancestors, as far as they lack what a reader at `lsn` sees of them; the oldest first.
fn behind(timeline: &Arc<Timeline>, lsn: Lsn) -> Result<Vec<Arc<Timeline>>, TimelineError> {
    let (mut timeline, mut lsn) = (Arc::clone(timeline), lsn);
    let mut found = Vec::new();
    loop {
        if timeline.last_record().end < lsn {
            found.push(Arc::clone(&timeline));
        }
        let (Some(ancestor), Some(parent)) = (timeline.ancestor(), timeline.ancestor_timeline()?) else { break };
        lsn = lsn.min(ancestor.point.lsn);
        timeline = parent;
    }
    found.reverse();
    Ok(found)
}

fn key_of(timeline: &Timeline) -> TimelineKey {
    (timeline.tenant(), timeline.id())
}

impl Follower {
    fn end(self) {
        self.shared.cancel.cancel();
        if self.thread.join().is_err() {
            tracing::error!("a timeline's ingest thread panicked");
        }
    }
}

/// The thread of one followed timeline.
struct Worker {
    followers: Followers,
    key: TimelineKey,
    state: Arc<FollowState>,
}

impl Worker {
    fn run(self) {
        let (first_pause, longest_pause) = limits::RECONNECT_PAUSE;
        let mut pause = first_pause;
        let mut reached = Lsn::INVALID;
        while !self.state.cancel.is_cancelled() {
            match self.follow() {
                Ok(Ended::Cancelled | Ended::Idle) => return,
                Err(error) => {
                    let text = chain(&error);
                    if self.state.problem.lock().replace(text.clone()).as_ref() != Some(&text) {
                        tracing::warn!(timeline = %self.key.1, error = text, "following WAL failed; trying again");
                    }
                }
            }
            let now = self
                .followers
                .engine
                .timeline(self.key.0, self.key.1)
                .map_or(reached, |timeline| timeline.last_record().end);
            pause = if now > reached { first_pause } else { (pause * 2).min(longest_pause) };
            reached = now;
            self.pause(pause);
        }
    }

    fn pause(&self, pause: Duration) {
        self.followers.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.state.cancel.cancelled() => {}
            }
        });
    }

    /// Receives and ingests until there is an error or a reason to stop.
    fn follow(&self) -> Result<Ended, FollowError> {
        let Followers { runtime, engine, token, .. } = &self.followers;
        let timeline = engine.timeline(self.key.0, self.key.1)?;
        if timeline.is_importing() {
            return Err(FollowError::Importing);
        }
        let safekeepers = self.state.safekeepers.lock().clone();
        if safekeepers.is_empty() {
            return Err(FollowError::NoSafekeeper);
        }
        let start = timeline.last_record().end;
        if !self.catch_ancestors_up(&timeline, start)? {
            return Ok(Ended::Cancelled);
        }
        let connecting = WalReader::connect(&safekeepers, self.key.0, self.key.1, token, start);
        let Some(reader) = runtime.block_on(self.state.cancel.run_until_cancelled(connecting)) else {
            return Ok(Ended::Cancelled);
        };
        let mut reader = reader?;
        let mut intake = Intake::open(&timeline)?;
        self.state.problem.lock().take();
        loop {
            let next = runtime.block_on(async {
                tokio::select! {
                    chunk = reader.next() => Some(Some(chunk)),
                    () = tokio::time::sleep(limits::FOLLOW_TICK) => Some(None),
                    () = self.state.cancel.cancelled() => None,
                }
            });
            match next {
                None => return Ok(Ended::Cancelled),
                Some(Some(chunk)) => {
                    intake.take(chunk?)?;
                    *self.state.wanted_at.lock() = Instant::now();
                }
                Some(None) if self.is_unwanted() => return Ok(Ended::Idle),
                Some(None) => {}
            }
            // Only what needs no WAL again (PS-S4).
            runtime.block_on(reader.send_position(timeline.disk_consistent_lsn()))?;
        }
    }

    /// Ingest reads at `start`, and so of the ancestors: what they lack after a restart must be there first. Nobody else may be about
    /// to follow them. False if following was cancelled meanwhile.
    fn catch_ancestors_up(&self, timeline: &Arc<Timeline>, start: Lsn) -> Result<bool, FollowError> {
        loop {
            if self.state.cancel.is_cancelled() {
                return Ok(false);
            }
            let behind = behind(timeline, start)?;
            if behind.is_empty() {
                return Ok(true);
            }
            for ancestor in &behind {
                self.followers.ensure(ancestor).map_err(FollowError::Ancestor)?;
            }
            // If it is not there in time, whatever keeps it is looked for again.
            let _ = timeline.wait_for(start, Instant::now() + limits::FOLLOW_TICK);
        }
    }

    fn is_unwanted(&self) -> bool {
        !self.state.is_pinned.load(Ordering::Relaxed) && self.state.wanted_at.lock().elapsed() >= limits::FOLLOW_IDLE
    }
}

/// From WAL bytes to storage, for one timeline.
struct Intake {
    timeline: Arc<Timeline>,
    decoder: WalDecoder,
    ingest: Ingest,
    batch: Batch,
    positions: Vec<RecordPosition>,
    consistent_from: Lsn,
    /// The import's missing pages have been looked at.
    is_checked: bool,
}

impl Intake {
    fn open(timeline: &Arc<Timeline>) -> Result<Intake, FollowError> {
        let facts = timeline.facts();
        let last = timeline.last_record();
        let mut decoder =
            WalDecoder::new(last.end, facts.pg_major, facts.wal_segment_size).with_system_id(facts.system_id);
        if last.start.is_valid() {
            decoder = decoder.with_previous_record(last.start);
        }
        let consistent_from = consistent_from(timeline);
        let state = TimelineAt { timeline, lsn: last.end };
        let ingest = Ingest::load(facts.pg_major, consistent_from, &state).map_err(Box::new)?;
        let mut intake = Intake {
            timeline: Arc::clone(timeline),
            decoder,
            ingest,
            batch: Batch::default(),
            positions: Vec::new(),
            consistent_from,
            is_checked: !consistent_from.is_valid(),
        };
        intake.check_import()?;
        Ok(intake)
    }

    /// Everything in the chunk is visible when this returns.
    fn take(&mut self, chunk: WalChunk) -> Result<(), FollowError> {
        self.decoder.feed_at(chunk.start, chunk.bytes)?;
        while let Some(record) = self.decoder.next()? {
            self.ingest(&record)?;
            self.positions.push(RecordPosition { end: record.end_lsn, start: record.start_lsn });
            if self.batch.size_bytes() >= limits::BATCH_BYTES {
                self.store()?;
            }
        }
        self.store()
    }

    fn ingest(&mut self, record: &DecodedRecord) -> Result<(), FollowError> {
        // Parts of a record that copies a database. Nothing of it may be seen before all of it, and it reads only the source.
        let mut parts = Vec::new();
        loop {
            let state = TimelineAt { timeline: &self.timeline, lsn: self.timeline.last_record().end };
            match self.ingest.ingest(record, &state, &mut self.batch).map_err(Box::new)? {
                Progress::Done => break,
                Progress::FlushFirst if self.positions.is_empty() => {
                    parts.append(&mut self.batch.values);
                    self.batch.clear();
                }
                Progress::FlushFirst => self.store()?,
            }
        }
        if !parts.is_empty() {
            parts.append(&mut self.batch.values);
            self.batch.values = parts;
        }
        Ok(())
    }

    fn store(&mut self) -> Result<(), FollowError> {
        for unknown in &self.batch.unknown {
            tracing::warn!(
                timeline = %self.timeline.id(), lsn = %unknown.lsn, rmid = unknown.rmid, info = unknown.info,
                "a WAL record of an unknown kind touches no block; it was passed over"
            );
        }
        if !self.positions.is_empty() {
            self.timeline.put_records(&self.batch.values, &self.positions)?;
        }
        self.batch.clear();
        self.positions.clear();
        self.check_import()
    }

    /// Once, when WAL has reached the end of the base backup: pages that were missing must have been explained (checklist 62).
    fn check_import(&mut self) -> Result<(), FollowError> {
        if self.is_checked || self.timeline.last_record().end < self.consistent_from {
            return Ok(());
        }
        let missing = self.ingest.unresolved();
        if !missing.is_empty() {
            let shown: Vec<_> = missing.iter().take(5).map(|(rel, block)| format!("{rel} block {block}")).collect();
            let text = format!("{} (and {} more); import again", shown.join(", "), missing.len() - shown.len());
            self.timeline.set_metadata(IMPORT_ERROR, serde_json::Value::String(text.clone()))?;
            return Err(FollowError::Incomplete(text));
        }
        self.is_checked = true;
        Ok(())
    }
}
