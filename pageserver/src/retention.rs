//! How long history is kept, and which LSNs a moment was at.
//!
//! ```text
//!        latest end so far      an end that was overtaken      later end
//!  ──────┤                      ┤                              ├──────────► log
//!        └──────────────── the state of a moment ──────────────┘
//!        ▲ kept from here on    ▲ given out
//! ```
//!
//! Ends of transactions overtake each other on their way into WAL, and clocks step back: of what ended before a moment some may lie behind the
//! end with the latest time so far. A moment names the last of these, and nothing that the next transaction wrote before it ended: the files
//! of a database that is being dropped go before its commit. Kept is all from the oldest LSN of that state on, so that whatever is younger
//! than the retention can be had: no LSN is given up for being equal to another.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ardent_storage::{CommitError, Engine, ReadError, Timeline};
use ardent_trusted_clock::KeptClock;
use ardent_types::{Key, Lsn, SlruKind};

use crate::collector::Collector;
use crate::import::consistent_from;

/// The key under which ingest keeps the time of the last commit.
const LAST_COMMIT_TIME: Key = Key::AuxFile(1);
/// Metadata of a timeline: for how many seconds its history is kept, where it is not as the page server was told.
pub(crate) const RETENTION: &str = "retention_s";
/// Metadata of a timeline: where its log ended when nothing had been committed for as long as history is kept, and when that was seen.
const QUIET: &str = "quiet";
/// How often history is looked through, so that of a timeline in use no more than an eighth is kept too long.
const PERIOD: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3600));
/// How often the clock is looked at: a jump is told soon after it.
const LOOK_PERIOD: Duration = Duration::from_secs(60);

/// Sets how long a timeline's history is kept, durably.
pub(crate) fn set(timeline: &Timeline, retention: Option<Duration>) -> Result<(), CommitError> {
    let value = retention.map_or(serde_json::Value::Null, |retention| retention.as_secs().into());
    if timeline.get_metadata(RETENTION).unwrap_or_default() == value {
        return Ok(());
    }
    timeline.set_metadata(RETENTION, value)
}

/// What the value of [`RETENTION`] says.
pub(crate) fn retention_of(value: &serde_json::Value) -> Option<Duration> {
    value.as_u64().map(Duration::from_secs)
}

/// Microseconds since the Unix epoch of the last commit at or before `lsn`.
pub(crate) fn last_commit_us(timeline: &Timeline, lsn: Lsn) -> Result<Option<i64>, ReadError> {
    let value = timeline.get(&LAST_COMMIT_TIME, lsn)?;
    Ok(value.and_then(|bytes| bytes.first_chunk::<8>().map(|bytes| i64::from_le_bytes(*bytes))))
}

/// The oldest LSN that can be read, and branched from, on this timeline itself.
pub(crate) fn oldest_lsn(timeline: &Timeline) -> Result<Lsn, ReadError> {
    Ok(timeline.oldest_record()?.end.max(consistent_from(timeline)).max(timeline.facts().start_lsn))
}

/// Where the last transaction ended, or was prepared, before any that ended later than the time. `None`: as [`lsns_at_time`].
pub(crate) fn lsn_at_time(timeline: &Timeline, timestamp_us: i64) -> Result<Option<Lsn>, ReadError> {
    let Some(state) = lsns_at_time(timeline, timestamp_us)? else { return Ok(None) };
    let (since, newest) = state.into_inner();
    last_end(timeline, since, newest).map(Some)
}

/// The last LSN in `(since, newest]` at which a transaction ended or was prepared; `since` if there is none.
fn last_end(timeline: &Timeline, since: Lsn, newest: Lsn) -> Result<Lsn, ReadError> {
    let statuses = Key::SlruPage(SlruKind::Xact, 0)..=Key::SlruPage(SlruKind::Xact, u64::MAX);
    let prepared = Key::TwoPhase { xid: 0 }..=Key::TwoPhase { xid: u64::MAX };
    let is_before_one = |lsn: Lsn| -> Result<bool, ReadError> {
        for keys in [&statuses, &prepared] {
            if !timeline.changed_keys_part(keys.clone(), None, lsn, newest, 1)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if !is_before_one(since)? {
        return Ok(since);
    }
    let (mut low, mut high) = (since, newest);
    while high.saturating_sub(low) > 1 {
        let middle = low.advance(high.saturating_sub(low) / 2);
        if is_before_one(middle)? { low = middle } else { high = middle }
    }
    Ok(high)
}

/// The LSNs at which the last commit is not later than the time, while any later commit's is: from the end of its record on. `None`: the
/// time lies before the oldest LSN that can be read. Halves the range: ingest sees to it that the time never goes back. Where no commit is
/// known at the oldest LSN, no time lies before it: since when it is there, the page server does not know, and whoever asks does.
fn lsns_at_time(timeline: &Timeline, timestamp_us: i64) -> Result<Option<RangeInclusive<Lsn>>, ReadError> {
    let oldest = oldest_lsn(timeline)?;
    let Some(newest) = newest_at_time(timeline, oldest, timestamp_us)? else { return Ok(None) };
    let since = timeline.given_at(&LAST_COMMIT_TIME, newest)?;
    Ok(Some(since.map_or(oldest, |since| since.max(oldest))..=newest))
}

fn newest_at_time(timeline: &Timeline, oldest: Lsn, timestamp_us: i64) -> Result<Option<Lsn>, ReadError> {
    let (mut low, mut high) = (oldest, timeline.last_record().end);
    let is_past = |lsn: Lsn| -> Result<bool, ReadError> {
        Ok(last_commit_us(timeline, lsn)?.is_some_and(|commit_us| commit_us > timestamp_us))
    };
    if low > high || is_past(low)? {
        return Ok(None);
    }
    if !is_past(high)? {
        return Ok(Some(high));
    }
    while high.saturating_sub(low) > 1 {
        let middle = low.advance(high.saturating_sub(low) / 2);
        if is_past(middle)? { high = middle } else { low = middle }
    }
    Ok(Some(low))
}

/// Of a time at which a timeline was seen without a commit for as long as its history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quiet {
    /// Where its durable log ended.
    lsn: Lsn,
    at_us: i64,
}

impl Quiet {
    /// The last that was seen.
    fn of(timeline: &Timeline) -> Option<Quiet> {
        let value = timeline.get_metadata(QUIET)?;
        Some(Quiet { lsn: value.get("lsn")?.as_str()?.parse().ok()?, at_us: value.get("at_us")?.as_i64()? })
    }

    fn set(self, timeline: &Timeline) -> Result<(), CommitError> {
        timeline.set_metadata(QUIET, serde_json::json!({ "lsn": self.lsn.to_string(), "at_us": self.at_us }))
    }
}

/// The oldest LSN that is kept of what was there at `horizon_us`: the oldest one of the state that was current then. Without commits that would be
/// the same one for ever, however much is written: so where the log ended is noted, and that is kept from once the note is as old as the
/// horizon. `None`: the horizon lies before all that is there.
pub(crate) fn kept_from(timeline: &Timeline, now_us: i64, horizon_us: i64) -> Result<Option<Lsn>, KeptFromError> {
    let Some(state) = lsns_at_time(timeline, horizon_us)? else { return Ok(None) };
    let (since, newest) = state.into_inner();
    // A note that lies before the state is of another one, and one that lies ahead in time is a wrong clock's.
    let noted = Quiet::of(timeline).filter(|quiet| since < quiet.lsn && quiet.lsn <= newest && quiet.at_us <= now_us);
    let (kept_from, is_noted) = match noted {
        Some(quiet) if quiet.at_us <= horizon_us => (quiet.lsn, false),
        Some(_) => (since, true),
        None => (since, false),
    };
    let end = timeline.disk_consistent_lsn();
    if kept_from < end && end <= newest && !is_noted {
        Quiet { lsn: end, at_us: now_us }.set(timeline)?;
    }
    Ok(Some(kept_from))
}

/// From where on history is kept could not be found out, or noted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptFromError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Collects garbage of all timelines once in a while, until the other end of `stop` is dropped.
pub(crate) fn run(engine: &Arc<Engine>, retention: Duration, clock: &KeptClock, stop: &Receiver<()>) {
    let mut collector = Collector::new(Arc::clone(engine), retention);
    let period = (retention / 8).clamp(PERIOD.0, PERIOD.1);
    let mut collected = Instant::now();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(period.min(LOOK_PERIOD)) {
        let now = clock.look();
        if collected.elapsed() >= period {
            collector.collect_all(now);
            collected = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_object_store::MemoryStore;
    use ardent_pg_format::PgMajor;
    use ardent_pg_redo::Value;
    use ardent_storage::{EngineConfig, RecordPosition, TimelineFacts};
    use ardent_types::{PgTli, SystemId, TenantId, TimelineId, WalSegmentSize};
    use bytes::Bytes;

    /// What other records than ends of transactions change.
    const OTHER: Key = Key::AuxFile(2);
    /// What ends of transactions change, whatever their time.
    const STATUSES: Key = Key::SlruPage(SlruKind::Xact, 3);

    /// A root that begins at 0x1000, with nothing in it.
    fn empty_timeline() -> (tempfile::TempDir, Arc<Engine>, Arc<Timeline>) {
        let folder = tempfile::tempdir().expect("folder");
        let config = EngineConfig::new(folder.path().to_owned(), Arc::new(MemoryStore::new()));
        // Compacts whatever there is, when it is told to.
        let eager = EngineConfig { compact_at_l0_files: 1, images_at_delta_files: 1, layer_file_bytes: 1, ..config };
        let engine = Engine::open(EngineConfig { background: false, ..eager }).expect("opened");
        let facts = TimelineFacts {
            pg_major: PgMajor::V15,
            system_id: SystemId::new(1),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: Lsn::new(0x1000),
        };
        let timeline = engine.create_root(TenantId::generate(), TimelineId::generate(), facts).expect("made");
        timeline.finish_import().expect("imported");
        (folder, engine, timeline)
    }

    /// Commits at 10, 20, 30, 40 and 50 microseconds, 0x100 bytes of WAL apart, from 0x1000 on.
    fn timeline() -> (tempfile::TempDir, Arc<Engine>, Arc<Timeline>) {
        let (folder, engine, timeline) = empty_timeline();
        for commit in 1..=5i64 {
            put(&timeline, LAST_COMMIT_TIME, commit * 10);
        }
        timeline.flush().expect("durable");
        (folder, engine, timeline)
    }

    /// A record that gives `key` a number. Where it ends.
    fn put(timeline: &Timeline, key: Key, number: i64) -> Lsn {
        let start = timeline.last_record().end.advance(0xC0);
        let position = RecordPosition { end: start.advance(0x40), start };
        let value = Value::Image(Bytes::copy_from_slice(&number.to_le_bytes()));
        timeline.put(vec![(key, position.end, value)], position).expect("taken");
        position.end
    }

    /// The branch point that a moment names.
    fn point_at(timeline: &Timeline, time_us: i64) -> Option<Lsn> {
        let found = lsn_at_time(timeline, time_us).expect("read");
        let point = |lsn| timeline.branch_point(Some(lsn)).expect("a point").1.lsn;
        found.inspect(|lsn| assert_eq!(point(*lsn), *lsn, "a record ends there"))
    }

    fn collect(engine: &Arc<Engine>, now_us: u64, retention_us: u64) {
        let mut collector = Collector::new(Arc::clone(engine), Duration::from_micros(retention_us));
        collector.collect_all(Duration::from_micros(now_us));
    }

    #[test]
    fn a_time_finds_the_last_commit_that_is_not_later() {
        let (_folder, _engine, timeline) = timeline();
        let check = |time_us, expect: Option<u64>| {
            assert_eq!(point_at(&timeline, time_us), expect.map(Lsn::new), "at {time_us}");
        };
        check(9, Some(0x1000));
        check(10, Some(0x1100));
        check(29, Some(0x1200));
        check(30, Some(0x1300));
        check(1_000, Some(0x1500));
    }

    #[test]
    fn history_is_given_up_to_the_horizon_and_not_beyond() {
        let (_folder, engine, timeline) = timeline();
        collect(&engine, 130, 100);
        assert_eq!(timeline.retained_from(), Lsn::new(0x1300));
        assert_eq!(last_commit_us(&timeline, Lsn::new(0x1300)).expect("still there"), Some(30));
        assert_eq!(point_at(&timeline, 30), Some(Lsn::new(0x1300)));
        assert!(matches!(last_commit_us(&timeline, Lsn::new(0x1200)), Err(ReadError::Retired { .. })));
        assert_eq!(point_at(&timeline, 20), None);
        assert_eq!(last_commit_us(&timeline, Lsn::new(0x1500)).expect("read"), Some(50));
    }

    #[test]
    fn a_timeline_that_was_told_keeps_its_history_longer() {
        let (_folder, engine, timeline) = timeline();
        set(&timeline, Some(Duration::from_secs(1))).expect("durable");
        collect(&engine, 130, 100);
        // All of it: before the first commit nothing changed.
        assert_eq!(timeline.retained_from(), Lsn::new(0x1000));
        set(&timeline, None).expect("durable");
        collect(&engine, 130, 100);
        assert_eq!(timeline.retained_from(), Lsn::new(0x1300));
    }

    #[test]
    fn a_quiet_timeline_goes_back_to_before_an_accident() {
        let (_folder, engine, timeline) = timeline();
        // What it does before it commits is none of the state before it.
        put(&timeline, OTHER, 1);
        let accident = put(&timeline, LAST_COMMIT_TIME, 1000);
        timeline.flush().expect("durable");
        // The last commit before it was long ago, and the horizon lies between both.
        for now_us in [1010, 1050, 1099] {
            collect(&engine, now_us, 100);
            assert_eq!(oldest_lsn(&timeline).expect("read"), Lsn::new(0x1500), "at {now_us}");
            assert_eq!(timeline.branch_point(Some(Lsn::new(0x1500))).expect("a point").1.lsn, Lsn::new(0x1500));
            assert_eq!(point_at(&timeline, 999), Some(Lsn::new(0x1500)));
            assert_eq!(point_at(&timeline, 1000), Some(accident));
        }
        collect(&engine, 1100, 100);
        assert_eq!(oldest_lsn(&timeline).expect("read"), accident);
        assert_eq!(point_at(&timeline, 999), None);
    }

    #[test]
    fn ends_that_overtake_each_other_are_all_in_the_state_of_their_time() {
        let (_folder, engine, timeline) = timeline();
        // Its time was before that of the one at 50: ingest keeps the latest.
        let overtaken = put(&timeline, STATUSES, 49);
        put(&timeline, OTHER, 0);
        timeline.flush().expect("durable");
        collect(&engine, 155, 100);
        assert_eq!(point_at(&timeline, 55), Some(overtaken));
        let prepared = put(&timeline, Key::TwoPhase { xid: 700 }, 0);
        put(&timeline, OTHER, 0);
        assert_eq!(point_at(&timeline, 55), Some(prepared));
        put(&timeline, LAST_COMMIT_TIME, 56);
        assert_eq!(point_at(&timeline, 55), Some(prepared));
    }

    #[test]
    fn without_commits_history_is_given_up_once_it_is_as_old_as_what_is_kept() {
        let (_folder, engine, timeline) = timeline();
        let mut written = Vec::new();
        for now_us in (60..=2000).step_by(10) {
            written.push((now_us, put(&timeline, OTHER, 0)));
            timeline.flush().expect("durable");
            collect(&engine, now_us as u64, 100);
            let oldest = oldest_lsn(&timeline).expect("read");
            for (at_us, lsn) in &written {
                let age_us = now_us - at_us;
                assert!(age_us >= 100 || oldest <= *lsn, "{lsn} is {age_us} us old, and kept is from {oldest} on");
                assert!(age_us <= 210 || oldest > *lsn, "{lsn} is {age_us} us old, and kept is from {oldest} on");
            }
            assert_eq!(timeline.branch_point(Some(oldest)).expect("a point").1.lsn, oldest);
            if now_us >= 150 {
                assert_eq!(point_at(&timeline, now_us - 100), Some(oldest));
            }
        }
        // When nothing is written any more, all but the last state goes, and nothing is left to be looked after.
        for now_us in [2100, 2200, 2300] {
            collect(&engine, now_us, 100);
        }
        assert_eq!(timeline.retained_from(), timeline.last_record().end);
        let glance = timeline.glance().expect("readable");
        assert!(glance.is_settled);
        collect(&engine, 1_000_000, 100);
        assert_eq!(timeline.glance().expect("readable").generation, glance.generation);
    }

    /// Numbers that look random, and are the same for the same seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
    }

    #[test]
    fn whatever_is_younger_than_the_retention_can_be_branched_from() {
        const RETENTION_US: i64 = 100;
        for seed in 0..30 {
            let (_folder, engine, timeline) = empty_timeline();
            let mut dice = Dice(seed);
            // How often something happens: some timelines are quiet for longer than their history is kept.
            let pause_us = [5, 60, 400][seed as usize % 3];
            let (mut now_us, mut commits, mut overtaken, mut labels) = (1000, Vec::new(), Vec::new(), Vec::new());
            for _ in 0..50 {
                now_us += dice.below(pause_us) as i64 + 1;
                match dice.below(6) {
                    0 => commits.push((now_us, put(&timeline, LAST_COMMIT_TIME, now_us))),
                    1 | 2 => _ = put(&timeline, OTHER, now_us),
                    3 => overtaken.push((now_us, put(&timeline, STATUSES, now_us))),
                    4 => timeline.flush().expect("durable"),
                    _ => timeline.compact().expect("compacted"),
                }
                labels.push((now_us, timeline.last_record().end));
                collect(&engine, now_us as u64, RETENTION_US as u64);

                let horizon_us = now_us - RETENTION_US;
                let oldest = oldest_lsn(&timeline).expect("read");
                let labelled = labels.iter().filter(|(at_us, _)| *at_us >= horizon_us).map(|(_, lsn)| *lsn);
                for lsn in labelled.chain([oldest]) {
                    let (owner, point) = timeline.branch_point(Some(lsn)).expect("a point");
                    assert_eq!((owner, point.lsn), (timeline.id(), lsn), "seed {seed} at {now_us} us");
                }
                let within = commits.iter().map(|(at_us, _)| *at_us).filter(|at_us| *at_us >= horizon_us);
                for at_us in within.chain([horizon_us, now_us]) {
                    let expect = commits.iter().rev().find(|(commit_us, _)| *commit_us <= at_us);
                    let point = point_at(&timeline, at_us).expect("it is kept");
                    let found_us = last_commit_us(&timeline, point).expect("read");
                    assert_eq!(
                        found_us,
                        expect.map(|(commit_us, _)| *commit_us),
                        "seed {seed}: {at_us} at {now_us} us"
                    );
                    let ended = commits.iter().chain(&overtaken).filter(|(ended_us, _)| *ended_us <= at_us);
                    assert!(ended.map(|(_, lsn)| *lsn).all(|lsn| lsn <= point), "seed {seed}: {at_us} at {now_us} us");
                }
            }
        }
    }
}
