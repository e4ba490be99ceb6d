//! How long history is kept, and which LSN a moment was at.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ardent_storage::{CommitError, Engine, ReadError, Timeline};
use ardent_trusted_clock::KeptClock;
use ardent_types::{Key, Lsn};

use crate::collector::Collector;
use crate::import::consistent_from;

/// The key under which ingest keeps the time of the last commit.
const LAST_COMMIT_TIME: Key = Key::AuxFile(1);
/// Metadata of a timeline: for how many seconds its history is kept, where it is not as the page server was told.
pub(crate) const RETENTION: &str = "retention_s";
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

/// The oldest LSN that can be read on this timeline itself.
pub(crate) fn oldest_lsn(timeline: &Timeline) -> Lsn {
    timeline.retained_from().max(consistent_from(timeline)).max(timeline.facts().start_lsn)
}

/// An LSN at which the last commit is not later than the time, while any later commit's is. `None`: the time lies before
/// the oldest LSN that can be read. Halves the range: ingest sees to it that the time never goes back. Where no commit is known at the
/// oldest LSN, no time lies before it: since when it is there, the page server does not know, and whoever asks does.
pub(crate) fn lsn_at_time(timeline: &Timeline, timestamp_us: i64) -> Result<Option<Lsn>, ReadError> {
    let (mut low, mut high) = (oldest_lsn(timeline), timeline.last_record().end);
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

    /// Commits at 10, 20, 30, 40 and 50 microseconds, 0x100 bytes of WAL apart, from 0x1000 on.
    fn timeline() -> (tempfile::TempDir, Arc<Engine>, Arc<Timeline>) {
        let folder = tempfile::tempdir().expect("folder");
        let config = EngineConfig::new(folder.path().to_owned(), Arc::new(MemoryStore::new()));
        let engine = Engine::open(EngineConfig { background: false, ..config }).expect("opened");
        let facts = TimelineFacts {
            pg_major: PgMajor::V15,
            system_id: SystemId::new(1),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: Lsn::new(0x1000),
        };
        let timeline = engine.create_root(TenantId::generate(), TimelineId::generate(), facts).expect("made");
        timeline.finish_import().expect("imported");
        for commit in 1..=5u64 {
            let lsn = Lsn::new(0x1000 + commit * 0x100);
            let time = Bytes::copy_from_slice(&(commit as i64 * 10).to_le_bytes());
            let position = RecordPosition { end: lsn, start: Lsn::new(lsn.get() - 0x40) };
            timeline.put(vec![(LAST_COMMIT_TIME, lsn, Value::Image(time))], position).expect("taken");
        }
        timeline.flush().expect("durable");
        (folder, engine, timeline)
    }

    fn collect(engine: &Arc<Engine>, now_us: u64, retention_us: u64) {
        let mut collector = Collector::new(Arc::clone(engine), Duration::from_micros(retention_us));
        collector.collect_all(Duration::from_micros(now_us));
    }

    #[test]
    fn a_time_finds_the_last_commit_that_is_not_later() {
        let (_folder, _engine, timeline) = timeline();
        let check = |time_us, expect: Option<u64>| {
            let found = lsn_at_time(&timeline, time_us).expect("read");
            let point = found.map(|lsn| timeline.branch_point(Some(lsn)).expect("a point").1.lsn.get());
            assert_eq!(point, expect, "at {time_us}");
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
        let retained = timeline.retained_from();
        assert!(retained >= Lsn::new(0x1300) && retained < Lsn::new(0x1400), "{retained}");
        assert_eq!(last_commit_us(&timeline, retained).expect("still there"), Some(30));
        assert!(matches!(last_commit_us(&timeline, Lsn::new(0x1200)), Err(ReadError::Retired { .. })));
        assert_eq!(lsn_at_time(&timeline, 20).expect("read"), None);
        assert_eq!(last_commit_us(&timeline, Lsn::new(0x1500)).expect("read"), Some(50));
    }

    #[test]
    fn a_timeline_that_was_told_keeps_its_history_longer() {
        let (_folder, engine, timeline) = timeline();
        set(&timeline, Some(Duration::from_secs(1))).expect("durable");
        collect(&engine, 130, 100);
        // All of it: before the first commit nothing changed.
        assert!(timeline.retained_from() < Lsn::new(0x1100), "{}", timeline.retained_from());
        set(&timeline, None).expect("durable");
        collect(&engine, 130, 100);
        assert!(timeline.retained_from() >= Lsn::new(0x1300));
    }
}
