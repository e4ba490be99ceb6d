//! Receives timelines' WAL from safekeepers and ingests it: one thread per timeline that is followed (PS-S2).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::ErrorCode;
use ardent_storage::{Engine, Timeline, TimelineError, WaitError};
use ardent_types::{Lsn, TenantId, TimelineId, with_causes};
use ardent_wal_client::{ClientError, WalChunk, WalReader};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::connection::Failure;
use crate::intake::{Intake, IntakeError};
use crate::limits;
use crate::metrics::IngestState;
use crate::pages::timeline_failure;

type TimelineKey = (TenantId, TimelineId);

/// All followed timelines.
#[derive(Debug)]
pub(crate) struct Followers {
    runtime: Handle,
    engine: Arc<Engine>,
    /// Of timelines that nobody names others for.
    safekeepers: Mutex<Vec<ServiceAddr>>,
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
    /// How far the timeline was committed when WAL last came.
    committed: AtomicU64,
    /// The highest position that somebody waited for, and word of it for the thread.
    wanted: Mutex<Lsn>,
    wanted_more: Notify,
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
    #[error("a timeline that it hangs on is not where it leaves that yet")]
    Ancestor(#[from] WaitError),
    #[error("no safekeeper is configured")]
    NoSafekeeper,
    #[error("its WAL cannot be received")]
    Receive(#[from] ClientError),
    #[error(transparent)]
    Intake(#[from] IntakeError),
}

/// How following ended without an error.
enum Ended {
    Cancelled,
    Idle,
    /// The safekeeper lacks WAL that is waited for.
    Behind,
}

/// What happened to a follower.
enum Next {
    Chunk(Result<WalChunk, ClientError>),
    /// Somebody waits for more than before.
    Wanted,
    /// Nothing, for a while.
    Nothing,
    Cancelled,
}

impl Followers {
    pub fn new(runtime: Handle, engine: Arc<Engine>, safekeepers: Vec<ServiceAddr>, token: String) -> Self {
        Followers { runtime, engine, safekeepers: Mutex::new(safekeepers), token, running: Arc::default() }
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

    /// From now on all timelines' WAL is at these safekeepers. Who follows one that is not among them goes on until that one has no more.
    pub fn name_safekeepers(&self, safekeepers: Vec<ServiceAddr>) {
        // In this order: a timeline that is begun to be followed meanwhile is told by one or by the other.
        let running = self.running.lock();
        for follower in running.values() {
            *follower.shared.safekeepers.lock() = safekeepers.clone();
        }
        *self.safekeepers.lock() = safekeepers;
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
        if timeline.wait_for(lsn, Instant::now()).is_ok() {
            return Ok(());
        }
        let state = if timeline.last_record().end < lsn {
            let state = self.ensure(timeline)?;
            state.want(lsn);
            Some(state)
        } else {
            self.ensure_ancestors(timeline)?;
            None
        };
        timeline.wait_for(lsn, deadline).map_err(|error| {
            let problem = state.as_ref().and_then(|state| state.problem.lock().clone());
            let committed = state.as_ref().map_or(0, |state| state.committed.load(Ordering::Relaxed));
            let why = problem.unwrap_or_else(|| match committed.saturating_sub(error.last.get()) {
                0 => "no more WAL has come from the safekeepers".to_owned(),
                _ if timeline.is_held_by_compaction() => "its WAL waits for compaction, which is behind".to_owned(),
                bytes => format!("{bytes} bytes of WAL are on their way"),
            });
            Failure::new(ErrorCode::Timeout, format!("{} is not ingested yet, {} is: {why}", error.lsn, error.last))
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

    /// How ingest stands, over all of them.
    pub fn ingest(&self) -> IngestState {
        let mut running = self.running.lock();
        Self::join_ended(&mut running);
        let mut state = IngestState::default();
        for ((tenant, timeline), follower) in &*running {
            state.followed += 1;
            state.failing += u64::from(follower.shared.problem.lock().is_some());
            // A timeline that is not loaded has no WAL under way.
            let Some(timeline) = self.engine.if_loaded(*tenant, *timeline) else { continue };
            let committed = follower.shared.committed.load(Ordering::Relaxed);
            let lag_bytes = committed.saturating_sub(timeline.last_record().end.get());
            state.lag_bytes_max = state.lag_bytes_max.max(lag_bytes);
        }
        state
    }

    /// What keeps timelines from following, a line each.
    pub fn problems(&self) -> Vec<String> {
        let mut running = self.running.lock();
        Self::join_ended(&mut running);
        let problem = |(key, follower): (&TimelineKey, &Follower)| {
            let problem = follower.shared.problem.lock().clone()?;
            Some(format!("page server: timeline {}: {problem}", key.1))
        };
        running.iter().filter_map(problem).collect()
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
        let running = std::mem::take(&mut *self.running.lock());
        running.values().for_each(|follower| follower.shared.cancel.cancel());
        running.into_values().for_each(Follower::end);
    }

    /// A timeline cannot go on before its ancestors are where it leaves them: after a restart their WAL has to come in again, and nobody
    /// else may ask for it.
    fn ensure_ancestors(&self, timeline: &Timeline) -> Result<(), Failure> {
        let parent = timeline.ancestor_timeline().map_err(|error| timeline_failure(&error))?;
        let (Some(ancestor), Some(parent)) = (timeline.ancestor(), parent) else { return Ok(()) };
        if parent.last_record().end < ancestor.point.lsn {
            self.ensure(&parent)?.want(ancestor.point.lsn);
            return Ok(());
        }
        self.ensure_ancestors(&parent)
    }

    /// Joins the threads that have ended by themselves: each holds a stack until then.
    fn join_ended(running: &mut HashMap<TimelineKey, Follower>) {
        running.extract_if(|_, follower| follower.thread.is_finished()).for_each(|(_, follower)| follower.end());
    }

    fn ensure(&self, timeline: &Arc<Timeline>) -> Result<Arc<FollowState>, Failure> {
        self.ensure_ancestors(timeline)?;
        let mut running = self.running.lock();
        Self::join_ended(&mut running);
        if let Some(follower) = running.get(&key_of(timeline)) {
            *follower.shared.wanted_at.lock() = Instant::now();
            return Ok(Arc::clone(&follower.shared));
        }
        let shared = Arc::new(FollowState {
            cancel: CancellationToken::new(),
            safekeepers: Mutex::new(self.safekeepers.lock().clone()),
            is_pinned: AtomicBool::new(false),
            wanted_at: Mutex::new(Instant::now()),
            committed: AtomicU64::new(0),
            wanted: Mutex::new(Lsn::INVALID),
            wanted_more: Notify::new(),
            problem: Mutex::new(None),
        });
        let worker = Worker {
            runtime: self.runtime.clone(),
            engine: Arc::clone(&self.engine),
            token: self.token.clone(),
            key: key_of(timeline),
            state: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new().name(format!("follow-{}", timeline.id())).spawn(move || worker.run());
        let thread = thread.map_err(|error| {
            Failure::new(ErrorCode::Unavailable, format!("no thread to be had for following WAL: {error}"))
        })?;
        running.insert(key_of(timeline), Follower { shared: Arc::clone(&shared), thread });
        Ok(shared)
    }
}

fn key_of(timeline: &Timeline) -> TimelineKey {
    (timeline.tenant(), timeline.id())
}

impl FollowState {
    fn want(&self, lsn: Lsn) {
        let mut wanted = self.wanted.lock();
        if lsn > *wanted {
            *wanted = lsn;
            self.wanted_more.notify_one();
        }
    }

    /// Where WAL is asked for next: somewhere else than so far.
    fn turn(&self) {
        let mut safekeepers = self.safekeepers.lock();
        if !safekeepers.is_empty() {
            safekeepers.rotate_left(1);
        }
    }
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
    runtime: Handle,
    engine: Arc<Engine>,
    token: String,
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
                Ok(Ended::Behind) => self.state.turn(),
                Err(error) => {
                    let text = with_causes(&error);
                    if self.state.problem.lock().replace(text.clone()).as_ref() != Some(&text) {
                        tracing::warn!(timeline = %self.key.1, error = text, "following WAL failed; trying again");
                    }
                }
            }
            let now =
                self.engine.timeline(self.key.0, self.key.1).map_or(reached, |timeline| timeline.last_record().end);
            pause = if now > reached { first_pause } else { (pause * 2).min(longest_pause) };
            reached = now;
            self.pause(pause);
        }
    }

    fn pause(&self, pause: Duration) {
        self.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.state.cancel.cancelled() => {}
            }
        });
    }

    /// Receives and ingests until there is an error or a reason to stop.
    fn follow(&self) -> Result<Ended, FollowError> {
        let timeline = self.engine.timeline(self.key.0, self.key.1)?;
        if timeline.is_importing() {
            return Err(FollowError::Importing);
        }
        if !wait_for_ancestors(&timeline, &self.state.cancel, limits::ANCESTOR_STILL_MAX)? {
            return Ok(Ended::Cancelled);
        }
        let safekeepers = self.state.safekeepers.lock().clone();
        if safekeepers.is_empty() {
            return Err(FollowError::NoSafekeeper);
        }
        let start = timeline.last_record().end;
        let connecting = WalReader::connect(&safekeepers, self.key.0, self.key.1, &self.token, start);
        let Some(reader) = self.runtime.block_on(self.state.cancel.run_until_cancelled(connecting)) else {
            return Ok(Ended::Cancelled);
        };
        let mut reader = reader?;
        let mut intake = Intake::open(&timeline)?;
        self.state.problem.lock().take();
        // What was wanted before there was a connection.
        self.state.wanted_more.notify_one();
        loop {
            let next = self.runtime.block_on(async {
                tokio::select! {
                    chunk = reader.next() => Next::Chunk(chunk),
                    () = self.state.wanted_more.notified() => Next::Wanted,
                    () = tokio::time::sleep(limits::FOLLOW_TICK) => Next::Nothing,
                    () = self.state.cancel.cancelled() => Next::Cancelled,
                }
            });
            match next {
                Next::Cancelled => return Ok(Ended::Cancelled),
                Next::Wanted => {
                    let wanted = *self.state.wanted.lock();
                    self.runtime.block_on(reader.send_await(wanted))?;
                }
                Next::Chunk(chunk) => {
                    let chunk = chunk?;
                    self.state.committed.store(chunk.commit_lsn.get(), Ordering::Relaxed);
                    intake.take(chunk)?;
                    *self.state.wanted_at.lock() = Instant::now();
                }
                Next::Nothing if self.is_unwanted() => return Ok(Ended::Idle),
                // One that was away when the rest was written, and that no writer has brought up to date since.
                Next::Nothing => {
                    if reader.next_lsn() < *self.state.wanted.lock() && safekeepers.len() > 1 {
                        return Ok(Ended::Behind);
                    }
                }
            }
            // Only what needs no WAL again (PS-S4).
            self.runtime.block_on(reader.send_position(timeline.disk_consistent_lsn()))?;
        }
    }

    fn is_unwanted(&self) -> bool {
        !self.state.is_pinned.load(Ordering::Relaxed) && self.state.wanted_at.lock().elapsed() >= limits::FOLLOW_IDLE
    }
}

/// Waits until the timelines that this one hangs on are where it leaves them, as ingest reads what it has from them: after a crash their
/// WAL comes in again, by followers of their own. False: it was cancelled. An error names the one that has not moved for `patience`.
fn wait_for_ancestors(timeline: &Timeline, cancel: &CancellationToken, patience: Duration) -> Result<bool, WaitError> {
    let reached = timeline.last_record().end;
    let mut seen = None;
    let mut moved_at = Instant::now();
    while let Err(behind) = timeline.wait_for(reached, Instant::now() + limits::ANCESTOR_TICK) {
        if cancel.is_cancelled() {
            return Ok(false);
        }
        let place = Some((behind.timeline, behind.last));
        if seen != place {
            let (ancestor, lsn, last) = (behind.timeline, behind.lsn, behind.last);
            tracing::debug!(timeline = %timeline.id(), %ancestor, %lsn, %last, "waits for an ancestor's WAL");
            (seen, moved_at) = (place, Instant::now());
        } else if moved_at.elapsed() >= patience {
            return Err(behind);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ardent_object_store::LocalFolder;
    use ardent_pg_format::PgMajor;
    use ardent_storage::{EngineConfig, RecordPosition, TimelineFacts};
    use ardent_types::{Key, PgTli, SystemId, WalSegmentSize};
    use bytes::Bytes;

    use super::*;

    const START: Lsn = Lsn::new(0x100_0028);
    const BRANCH_POINT: Lsn = Lsn::new(0x100_0100);

    fn open(folder: &Path) -> Arc<Engine> {
        let store = LocalFolder::open(&folder.join("store")).expect("opens");
        let config = EngineConfig::new(folder.join("local"), Arc::new(store));
        Engine::open(EngineConfig { background: false, ..config }).expect("opens")
    }

    fn ingest_up_to(timeline: &Timeline, end: Lsn) {
        let position = RecordPosition { end, start: timeline.last_record().end };
        timeline.put_records(&[], &[position]).expect("stored");
    }

    #[test]
    fn a_branch_waits_for_its_parents_wal_after_a_crash_and_names_a_parent_that_stands_still() {
        let folder = tempfile::tempdir().expect("folder");
        let (tenant, root, branch) = (TenantId::generate(), TimelineId::generate(), TimelineId::generate());
        let patience = limits::ANCESTOR_TICK * 2;
        let cancel = CancellationToken::new();
        {
            let engine = open(folder.path());
            let facts = TimelineFacts {
                pg_major: PgMajor::V15,
                system_id: SystemId::new(7),
                pg_tli: PgTli::new(1),
                wal_segment_size: WalSegmentSize::DEFAULT,
                start_lsn: START,
            };
            let timeline = engine.create_root(tenant, root, facts).expect("made");
            timeline.import_images(&[(Key::Checkpoint, Bytes::from_static(b"x"))]).expect("imported");
            timeline.finish_import().expect("finished");
            ingest_up_to(&timeline, BRANCH_POINT);
            engine.create_branch(tenant, branch, root, None).expect("made");
            let timeline = engine.timeline(tenant, branch).expect("there");
            assert_eq!(wait_for_ancestors(&timeline, &cancel, patience), Ok(true));
            // It goes without a word: what it had in memory is lost.
        }
        let engine = open(folder.path());
        let timeline = engine.timeline(tenant, branch).expect("there");
        let parent = engine.timeline(tenant, root).expect("there");
        assert_eq!((timeline.last_record().end, parent.last_record().end), (BRANCH_POINT, START));

        let still = wait_for_ancestors(&timeline, &cancel, patience);
        assert_eq!(still, Err(WaitError { timeline: root, lsn: BRANCH_POINT, last: START }));
        let ended = CancellationToken::new();
        ended.cancel();
        assert_eq!(wait_for_ancestors(&timeline, &ended, Duration::MAX), Ok(false));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait_for_ancestors(&timeline, &cancel, Duration::MAX));
            ingest_up_to(&parent, BRANCH_POINT);
            assert_eq!(waiting.join().expect("it does not panic"), Ok(true));
        });
    }
}
