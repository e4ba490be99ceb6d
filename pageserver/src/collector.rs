//! Gives up history that is older than the retention time, of all timelines, and loads as few of them as it can.
//!
//! ```text
//!  every round:  loaded  ──────────────────────────────────────────► collect
//!                not loaded, nothing happened since the last visit,
//!                and its time has not come ────────────────────────► leave alone
//!                not loaded otherwise ──► glance ──► has garbage, or
//!                                           │        its time has come ─► load, collect, unload
//!                                           └─ neither ─► note when its time comes
//! ```
//!
//! What is noted is forgotten when the process ends; then each timeline is glanced at once more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ardent_storage::{Change, Engine, Glance, Timeline};
use ardent_types::{Generation, TenantId, TimelineId, with_causes};

use crate::import::consistent_from;
use crate::retention::{RETENTION, kept_from, retention_of};

/// History of a timeline that is not loaded is looked through this many times in its retention time: no more than an eighth of it is kept
/// too long.
const VISITS: u32 = 8;

type TimelineKey = (TenantId, TimelineId);

/// What the last visit found.
#[derive(Clone, Copy, Debug)]
struct Note {
    /// Of the manifest.
    generation: Generation,
    /// When there may be something to give up though nothing happens, since the Unix epoch; `None`: never.
    due: Option<Duration>,
    /// The round in which the timeline was last there.
    round: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Collector {
    engine: Arc<Engine>,
    retention: Duration,
    notes: HashMap<TimelineKey, Note>,
    round: u64,
    /// The time of the last round.
    last: Duration,
}

impl Collector {
    /// For timelines whose history is kept for `retention` unless they say otherwise.
    pub fn new(engine: Arc<Engine>, retention: Duration) -> Collector {
        Collector { engine, retention, notes: HashMap::new(), round: 0, last: Duration::ZERO }
    }

    /// Goes over all timelines once. `now` is since the Unix epoch, and nothing may be given up by a clock that went wrong: see
    /// [`ardent_trusted_clock`]. What fails is tried again in the next round.
    pub fn collect_all(&mut self, now: Duration) {
        self.round += 1;
        self.engine.tell_time(now);
        if now < self.last {
            // The clock was ahead: what is noted as due by it would be left alone for long.
            self.notes.clear();
        }
        self.last = now;
        for (tenant, timeline, change) in self.engine.take_changes() {
            let is_news = |note: &Note| match change {
                Change::Unloaded(generation) => note.generation != generation,
                Change::LostBranch => true,
            };
            if self.notes.get(&(tenant, timeline)).is_some_and(is_news) {
                self.notes.remove(&(tenant, timeline));
            }
        }
        let tenants = match self.engine.tenants() {
            Ok(tenants) => tenants,
            Err(error) => return tracing::warn!(error = with_causes(&error), "no history is given up now"),
        };
        for tenant in tenants {
            let timelines = match self.engine.list(tenant) {
                Ok(timelines) => timelines,
                Err(error) => {
                    tracing::warn!(%tenant, error = with_causes(&error), "no history of this tenant is given up now");
                    continue;
                }
            };
            for timeline in timelines {
                if let Err(error) = self.visit((tenant, timeline), now) {
                    self.notes.remove(&(tenant, timeline));
                    tracing::warn!(%timeline, error, "no history of this timeline is given up now");
                }
            }
        }
        let round = self.round;
        self.notes.retain(|_, note| note.round == round);
    }

    fn visit(&mut self, key: TimelineKey, now: Duration) -> Result<(), String> {
        if let Some(timeline) = self.engine.if_loaded(key.0, key.1) {
            // Being looked after is no use that keeps it loaded.
            let glance = timeline.unused(|timeline| collect(timeline, now, self.retention))?;
            self.note(key, glance.as_ref(), now);
            return Ok(());
        }
        if let Some(note) = self.notes.get_mut(&key).filter(|note| note.due.is_none_or(|due| now < due)) {
            note.round = self.round;
            return Ok(());
        }
        let is_due = self.notes.contains_key(&key);
        let Some(glance) = self.engine.glance(key.0, key.1).map_err(|error| with_causes(&error))? else {
            return Ok(());
        };
        let has_expired = glance.lease_expires_at_s.is_some_and(|at_s| Duration::from_secs(at_s) <= now);
        if glance.is_importing || !(is_due || has_expired || glance.has_garbage || glance.is_deleted) {
            self.note(key, Some(&glance), now);
            return Ok(());
        }
        let timeline = match self.engine.timeline(key.0, key.1) {
            Ok(timeline) => timeline,
            // That was the end of its deletion.
            Err(_) if glance.is_deleted => return Ok(()),
            Err(error) => return Err(with_causes(&error)),
        };
        let glance = timeline.unused(|timeline| collect(timeline, now, self.retention))?;
        self.note(key, glance.as_ref(), now);
        // What has to be compacted now gets the time for it that any idle timeline has.
        if !timeline.has_compaction_to_do() {
            self.engine.unload(timeline).map_err(|error| with_causes(&*error))?;
        }
        Ok(())
    }

    fn note(&mut self, key: TimelineKey, glance: Option<&Glance>, now: Duration) {
        let Some(glance) = glance else { return };
        let retention = glance.get_metadata(RETENTION).and_then(retention_of).unwrap_or(self.retention);
        let horizon = (!glance.is_settled).then(|| next_visit(key.1, now, retention));
        let expires = glance.lease_expires_at_s.map(Duration::from_secs);
        let due = horizon.into_iter().chain(expires).min();
        self.notes.insert(key, Note { generation: glance.generation, due, round: self.round });
    }
}

/// The next of the times at which a timeline's history is looked through: each has its own, so that not all are loaded at once, and
/// the same after a restart.
fn next_visit(timeline: TimelineId, now: Duration, retention: Duration) -> Duration {
    let apart = (retention / VISITS).as_micros().max(1);
    let phase = u128::from_be_bytes(*timeline.as_bytes()) % apart;
    let since = (now.as_micros() + apart - phase) % apart;
    let next = now.as_micros() - since.min(now.as_micros()) + apart;
    Duration::from_micros(u64::try_from(next).unwrap_or(u64::MAX))
}

/// Gives up history that is older than `retention`, or than the timeline's own, where nothing pins it. What is left; `None` if the
/// timeline is not complete yet.
fn collect(timeline: &Timeline, now: Duration, retention: Duration) -> Result<Option<Glance>, String> {
    if timeline.is_importing() || timeline.last_record().end < consistent_from(timeline) {
        return Ok(None);
    }
    let own = timeline.get_metadata(RETENTION).as_ref().and_then(retention_of);
    let horizon = now.saturating_sub(own.unwrap_or(retention));
    let lsn = if timeline.is_retired() {
        // Nothing of it but what is pinned; pins go.
        timeline.retained_from()
    } else {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let found = kept_from(timeline, micros(now), micros(horizon)).map_err(|error| with_causes(&error))?;
        // What leases held may be free now, also where the horizon has not moved.
        found.unwrap_or_else(|| timeline.retained_from())
    };
    let collected = timeline.collect_garbage(lsn).map_err(|error| with_causes(&error))?;
    if collected.files > 0 {
        let (files, bytes) = (collected.files, collected.bytes);
        tracing::info!(timeline = %timeline.id(), %lsn, files, bytes, "history before this LSN was given up");
    }
    timeline.glance().map(Some).map_err(|error| with_causes(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_object_store::{CountedStore, MemoryStore, Operation};
    use ardent_pg_format::PgMajor;
    use ardent_pg_redo::Value;
    use ardent_storage::{EngineConfig, RecordPosition, TimelineFacts};
    use ardent_trusted_clock::{Reading, TrustedClock};
    use ardent_types::{Key, Lsn, PgTli, SystemId, WalSegmentSize};
    use bytes::Bytes;

    const TENANT: TenantId = TenantId::from_bytes([7; 16]);
    const ROOT: TimelineId = TimelineId::from_bytes([1; 16]);
    const BRANCH: TimelineId = TimelineId::from_bytes([2; 16]);
    /// The key under which ingest keeps the time of the last commit.
    const LAST_COMMIT_TIME: Key = Key::AuxFile(1);
    const RETENTION: Duration = Duration::from_micros(1000);
    const START: u64 = 0x1000;

    struct House {
        folder: tempfile::TempDir,
        store: Arc<CountedStore>,
    }

    impl House {
        fn new() -> House {
            let store = Arc::new(CountedStore::new(Arc::new(MemoryStore::new())));
            House { folder: tempfile::tempdir().expect("folder"), store }
        }

        fn config(&self) -> EngineConfig {
            let config = EngineConfig::new(self.folder.path().to_owned(), self.store.clone());
            EngineConfig { background: false, compact_at_l0_files: 100, ..config }
        }

        fn engine(&self) -> Arc<Engine> {
            Engine::open(self.config()).expect("opened")
        }

        /// One that compacts whatever there is, when it is told to.
        fn eager_engine(&self) -> Arc<Engine> {
            let eager =
                EngineConfig { compact_at_l0_files: 1, images_at_delta_files: 1, layer_file_bytes: 1, ..self.config() };
            Engine::open(eager).expect("opened")
        }

        fn calls(&self, operation: Operation) -> u64 {
            self.store.stats(operation).calls
        }
    }

    /// Commits `numbers`, each at ten times so many microseconds, 0x100 bytes of WAL apart, and flushes each.
    fn commit(timeline: &Timeline, numbers: std::ops::RangeInclusive<u64>) {
        for commit in numbers {
            commit_at(timeline, commit, Duration::from_micros(commit * 10));
        }
    }

    fn commit_at(timeline: &Timeline, commit: u64, at: Duration) {
        let lsn = Lsn::new(START + commit * 0x100);
        let at_us = i64::try_from(at.as_micros()).expect("in our time");
        let time = Bytes::copy_from_slice(&at_us.to_le_bytes());
        let position = RecordPosition { end: lsn, start: Lsn::new(lsn.get() - 0x40) };
        timeline.put(vec![(LAST_COMMIT_TIME, lsn, Value::Image(time))], position).expect("taken");
        timeline.flush().expect("durable");
    }

    fn root(engine: &Engine) -> Arc<Timeline> {
        let facts = TimelineFacts {
            pg_major: PgMajor::V15,
            system_id: SystemId::new(1),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: Lsn::new(START),
        };
        let root = engine.create_root(TENANT, ROOT, facts).expect("made");
        root.finish_import().expect("imported");
        root
    }

    fn unload(engine: &Engine, timeline: Arc<Timeline>) {
        assert!(engine.unload(timeline).expect("durable"), "nobody else holds it");
    }

    fn retained_from(engine: &Engine) -> Lsn {
        engine.glance(TENANT, ROOT).expect("readable").expect("there").retained_from
    }

    fn layer_files(engine: &Engine) -> usize {
        let timeline = engine.timeline(TENANT, ROOT).expect("there");
        let files = timeline.sizes().files;
        unload(engine, timeline);
        files
    }

    #[test]
    fn idle_timelines_are_neither_loaded_nor_read_again() {
        const BRANCHES: u128 = 50;
        let house = House::new();
        let engine = house.engine();
        let root = root(&engine);
        commit(&root, 1..=2);
        // All of it is beyond retention from 1020 us on.
        Collector::new(engine.clone(), RETENTION).collect_all(Duration::from_micros(5000));
        for number in 0..BRANCHES {
            let id = TimelineId::from_bytes((number + 1000).to_be_bytes());
            engine.create_branch(TENANT, id, ROOT, None).expect("made");
        }
        drop(root);
        drop(engine);

        let engine = house.engine();
        let mut collector = Collector::new(engine.clone(), RETENTION);
        let manifests = house.calls(Operation::PutIfAbsent);
        collector.collect_all(Duration::from_micros(6000));
        assert_eq!(engine.loaded_timelines(), 0, "glanced at, not loaded");
        assert_eq!(house.calls(Operation::PutIfAbsent), manifests, "nobody took them from anybody");
        let (gets, lists) = (house.calls(Operation::Get), house.calls(Operation::List));
        for now_us in [7000, 1_000_000, 1_000_000_000] {
            collector.collect_all(Duration::from_micros(now_us));
        }
        assert_eq!(house.calls(Operation::Get), gets, "nothing has happened to them");
        assert_eq!(house.calls(Operation::List), lists + 3 * 2, "which there are is asked, and no more");
        assert_eq!(engine.loaded_timelines(), 0);
    }

    #[test]
    fn history_of_an_idle_timeline_is_given_up_when_its_time_comes() {
        let house = House::new();
        let engine = house.engine();
        let timeline = root(&engine);
        commit(&timeline, 1..=5);
        let mut collector = Collector::new(engine.clone(), RETENTION);
        collector.collect_all(Duration::from_micros(60));
        unload(&engine, timeline);
        assert!(retained_from(&engine) < Lsn::new(START + 0x100));
        let mut moved = Vec::new();
        for now_us in (70..=2000).step_by(10) {
            let before = retained_from(&engine);
            collector.collect_all(Duration::from_micros(now_us));
            assert_eq!(engine.loaded_timelines(), 0, "it is loaded for as long as it takes");
            let retained = retained_from(&engine);
            // An eighth of the time is the most that history is kept too long.
            let must = (1..=5).rev().find(|commit| commit * 10 + 1000 + 125 <= now_us).unwrap_or(0);
            let may = (1..=5).rev().find(|commit| commit * 10 + 1000 <= now_us).unwrap_or(0);
            assert!(retained >= Lsn::new(START + must * 0x100), "{retained} at {now_us} us");
            assert!(retained < Lsn::new(START + may * 0x100 + 0x100), "{retained} at {now_us} us");
            moved.extend((retained != before).then_some(now_us));
        }
        assert_eq!(retained_from(&engine), Lsn::new(START + 0x500));
        assert!(moved.len() <= 2, "an eighth of the time lies between two visits: {moved:?}");
        // Nothing is left to be given up.
        let gets = house.calls(Operation::Get);
        collector.collect_all(Duration::from_secs(1000));
        assert_eq!(house.calls(Operation::Get), gets);
    }

    #[test]
    fn what_an_idle_timeline_wrote_after_its_last_commit_is_given_up_too() {
        let house = House::new();
        let engine = house.engine();
        let timeline = root(&engine);
        commit(&timeline, 1..=2);
        // As of a compute's shutdown checkpoint.
        let last = RecordPosition { end: Lsn::new(START + 0x300), start: Lsn::new(START + 0x280) };
        timeline.put(Vec::new(), last).expect("taken");
        timeline.flush().expect("durable");
        unload(&engine, timeline);
        let mut collector = Collector::new(engine.clone(), RETENTION);
        let mut moved = Vec::new();
        for now_us in (60..=4000).step_by(10) {
            let before = retained_from(&engine);
            collector.collect_all(Duration::from_micros(now_us));
            assert_eq!(engine.loaded_timelines(), 0, "it is loaded for as long as it takes");
            let retained = retained_from(&engine);
            moved.extend((retained != before).then_some((now_us, retained)));
        }
        let [.., (at_commit_us, at_commit), (at_end_us, at_end)] = moved[..] else { panic!("{moved:x?}") };
        assert_eq!((at_commit, at_end), (Lsn::new(START + 0x200), last.end));
        // Each visit may be an eighth of the time late.
        assert!((1020..=1160).contains(&at_commit_us) && (2020..=2400).contains(&at_end_us), "{moved:?}");
        assert!(engine.glance(TENANT, ROOT).expect("readable").expect("there").is_settled);
        let gets = house.calls(Operation::Get);
        collector.collect_all(Duration::from_secs(1000));
        assert_eq!(house.calls(Operation::Get), gets, "there is no more to be given up");
        assert_eq!(engine.create_branch(TENANT, BRANCH, ROOT, Some(last.end)).expect("made").lsn, last.end);
    }

    #[test]
    fn what_a_deleted_branch_held_is_freed_though_its_parent_is_not_loaded() {
        let house = House::new();
        let engine = house.eager_engine();
        let root = root(&engine);
        commit(&root, 1..=3);
        engine.create_branch(TENANT, BRANCH, ROOT, Some(Lsn::new(START + 0x200))).expect("made");
        commit(&root, 4..=6);
        let mut collector = Collector::new(engine.clone(), RETENTION);
        for now_us in [5000, 6000] {
            collector.collect_all(Duration::from_micros(now_us));
            root.compact().expect("compacted");
        }
        collector.collect_all(Duration::from_micros(7000));
        unload(&engine, engine.timeline(TENANT, BRANCH).expect("there"));
        unload(&engine, root);
        let held = layer_files(&engine);
        collector.collect_all(Duration::from_micros(8000));
        assert_eq!(layer_files(&engine), held);
        engine.delete_timeline(TENANT, BRANCH).expect("deleted");
        assert_eq!(engine.loaded_timelines(), 0);
        collector.collect_all(Duration::from_micros(9000));
        assert_eq!(engine.loaded_timelines(), 0, "it is loaded for as long as it takes");
        assert!(layer_files(&engine) < held, "{} files are left of {held}", layer_files(&engine));
    }

    #[test]
    fn what_happens_between_two_rounds_is_seen_and_leases_end() {
        let house = House::new();
        let engine = house.engine();
        let timeline = root(&engine);
        commit(&timeline, 1..=2);
        let mut collector = Collector::new(engine.clone(), RETENTION);
        collector.collect_all(Duration::from_micros(5000));
        unload(&engine, timeline);
        collector.collect_all(Duration::from_micros(5001));

        let timeline = engine.timeline(TENANT, ROOT).expect("there");
        commit(&timeline, 3..=4);
        timeline.lease("reader", Lsn::new(START + 0x300), Duration::from_millis(1)).expect("held");
        unload(&engine, timeline);
        assert_eq!(retained_from(&engine), Lsn::new(START + 0x200));
        // Its lease is over by the clock, so it is looked at whatever its turn is, and all of it is given up.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        collector.collect_all(now + Duration::from_secs(2));
        let glance = engine.glance(TENANT, ROOT).expect("readable").expect("there");
        assert_eq!((glance.retained_from, glance.lease_expires_at_s), (Lsn::new(START + 0x400), None));
        assert!(glance.is_settled);
        assert_eq!(engine.loaded_timelines(), 0);
    }

    #[test]
    fn a_timeline_in_use_is_collected_every_round_and_not_kept_loaded_by_it() {
        let house = House::new();
        let engine = house.engine();
        let timeline = root(&engine);
        let mut collector = Collector::new(engine.clone(), RETENTION);
        for number in 1..=5 {
            commit(&timeline, number..=number);
            collector.collect_all(Duration::from_micros(number * 10) + RETENTION);
            assert_eq!(timeline.retained_from(), Lsn::new(START + number * 0x100));
        }
        assert_eq!(engine.loaded_timelines(), 1);
        unload(&engine, timeline);
    }

    #[test]
    fn a_clock_that_jumps_takes_neither_history_nor_leases_before_it_has_stayed_there() {
        const HOUR: Duration = Duration::from_secs(3600);
        let house = House::new();
        let engine = house.engine();
        let timeline = root(&engine);
        let mut now = Reading::of_host();
        for (number, hours) in [(1, 3), (2, 2), (3, 1)] {
            commit_at(&timeline, number, now.wall - HOUR * hours);
        }
        let mut clock = TrustedClock::first("a start", now);
        let mut collector = Collector::new(engine.clone(), HOUR * 24 * 7);
        collector.collect_all(clock.look(now));
        timeline.lease("reader", Lsn::new(START + 0x100), HOUR * 2).expect("held");
        let is_leased = || timeline.glance().expect("readable").lease_expires_at_s.is_some();

        now.wall += HOUR * 24 * 30;
        for _ in 0..20 {
            collector.collect_all(clock.look(now));
            assert!(timeline.retained_from() < Lsn::new(START + 0x100), "{}", timeline.retained_from());
            // By the time that has passed it is over after two hours, and not by the clock.
            now.wall += Duration::from_secs(300);
            now.since_boot += Duration::from_secs(300);
            assert!(is_leased());
        }
        now.wall += HOUR * 24;
        now.since_boot += HOUR * 24;
        collector.collect_all(clock.look(now));
        assert_eq!(timeline.retained_from(), Lsn::new(START + 0x300));
        assert!(!is_leased());
    }

    #[test]
    fn a_clock_that_was_ahead_holds_nothing_up_once_it_is_set_right() {
        let house = House::new();
        let engine = house.engine();
        let timeline = root(&engine);
        commit(&timeline, 1..=5);
        let mut collector = Collector::new(engine.clone(), RETENTION);
        unload(&engine, timeline);
        let ahead = Duration::from_micros(45) + RETENTION;
        // When its turn is, is noted by the clock that is ahead.
        collector.collect_all(ahead);
        let noted = collector.notes.get(&(TENANT, ROOT)).and_then(|note| note.due);
        assert!(noted.is_some_and(|due| due > ahead), "{noted:?}");
        collector.collect_all(Duration::from_micros(1));
        let note = collector.notes.get(&(TENANT, ROOT)).expect("it was looked at again");
        assert!(note.due.is_some_and(|due| due <= RETENTION), "{note:?}");
    }

    #[test]
    fn each_timeline_has_its_own_times() {
        let (now, retention) = (Duration::from_secs(1_000_000), Duration::from_secs(8 * 100));
        let mut by_tenth = [0; 10];
        for number in 0..1000u128 {
            let id =
                TimelineId::from_bytes((number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)).to_be_bytes());
            let next = next_visit(id, now, retention);
            assert!(next > now && next <= now + Duration::from_secs(100), "{next:?}");
            assert_eq!(next_visit(id, next - Duration::from_micros(1), retention), next);
            assert_eq!(next_visit(id, next, retention), next + Duration::from_secs(100));
            by_tenth[((next - now).as_secs() / 10).min(9) as usize] += 1;
        }
        assert!(by_tenth.iter().all(|count| *count > 50), "{by_tenth:?}");
        assert!(next_visit(ROOT, Duration::ZERO, Duration::ZERO) > Duration::ZERO);
    }
}
