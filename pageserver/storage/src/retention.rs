//! Garbage collection: history before a horizon goes, but for what branch points and leases hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ardent_types::Lsn;

use crate::error::TimelineError;
use crate::layer::LayerDesc;
use crate::manifest::Manifest;
use crate::plan::unneeded;
use crate::position::RecordPosition;
use crate::timeline::Timeline;

/// What a timeline retains that nobody reads itself any more: nothing is at or past it.
pub(crate) const RETIRED: Lsn = Lsn::MAX;

/// What a garbage collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layer files that nothing needs any more.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
}

impl Timeline {
    /// Gives up history before `horizon`, or rather before the end of the last record that ends there or below, where no branch point and no
    /// lease needs it, and the files that only that needed. Branches can't be made meanwhile (checklist 58); reads and writes go on.
    pub fn collect_garbage(&self, horizon: Lsn) -> Result<Collected, TimelineError> {
        let _compacting = self.compacting.lock();
        if self.is_importing() {
            return Ok(Collected::default());
        }
        if self.is_retired() {
            return self.collect(RETIRED, None);
        }
        let oldest = self.oldest_boundary().map_err(|error| self.why(error.into()))?;
        // Not past what is durable: after a restart the timeline begins there.
        let horizon = horizon.min(self.disk_consistent_lsn());
        // Only where a record ends can a branch be made (PS-11).
        let found = if horizon > oldest.end { self.last_boundary(horizon)? } else { oldest };
        let record = if found.end > oldest.end { found } else { oldest };
        if record.end < self.retained_from() {
            // An older version gave up history within a record that is not here whole yet.
            let as_it_is = *self.retained_record.read();
            return self.collect(self.retained_from(), as_it_is);
        }
        self.collect(record.end, Some(record))
    }

    /// Gives up all of this timeline's own history but what branch points and leases hold, now and whenever garbage is collected
    /// again. It is never read from its head again, and takes no new branches but at points where others hang.
    pub fn retire(&self) -> Result<Collected, TimelineError> {
        let _compacting = self.compacting.lock();
        if self.is_importing() {
            return Err(TimelineError::Importing { timeline: self.id() });
        }
        self.collect(RETIRED, None)
    }

    /// Whether [`Timeline::retire`] was called.
    pub fn is_retired(&self) -> bool {
        self.retained_from() == RETIRED
    }

    /// With compaction held back. `retained_from` is not below what it was, and `record` is the one that ends there.
    fn collect(&self, retained_from: Lsn, record: Option<RecordPosition>) -> Result<Collected, TimelineError> {
        let _pinning = self.pinning.write();
        let now = self.shared.told_s();
        let has_expired = self.leases.read().values().any(|lease| lease.expires_at_s <= now);
        let has_moved = retained_from > self.retained_from() || *self.retained_record.read() != record;
        if has_moved || has_expired {
            let set = |manifest: &mut Manifest| {
                assert!(retained_from >= manifest.retained_from, "what was given up does not come back");
                (manifest.retained_from, manifest.retained_record) = (retained_from, record);
                manifest.leases.retain(|_, lease| lease.expires_at_s > now);
            };
            self.commit(set, |manifest| {
                *self.retained_record.write() = manifest.retained_record;
                self.retained_from.store(manifest.retained_from.get(), Ordering::Release);
                *self.leases.write() = Arc::new(manifest.leases.clone());
            })?;
        }
        self.give_up_archived_wal()?;
        // Listed after the limit is durable: whoever makes a branch writes its marker first and looks at the limit then.
        let mut pins: Vec<Lsn> = self.children()?.iter().map(|(_, point)| point.lsn).collect();
        pins.extend(self.leases.read().values().map(|lease| lease.lsn));
        let files = self.layer_set().files.clone();
        let descs: Vec<LayerDesc> = files.layers().iter().map(|layer| layer.desc.clone()).collect();
        let gone: Vec<_> =
            unneeded(&descs, self.retained_from(), &pins).into_iter().map(|at| files.layers()[at].clone()).collect();
        if gone.is_empty() {
            return Ok(Collected::default());
        }
        self.replace_layers(&gone, &[])?;
        Ok(Collected { files: gone.len(), bytes: gone.iter().map(|layer| layer.desc.bytes).sum() })
    }
}

#[cfg(test)]
mod tests {
    use ardent_object_store::MemoryStore;
    use ardent_pg_format::PgMajor;
    use ardent_pg_redo::Value;
    use ardent_types::{Key, PgTli, SystemId, TenantId, TimelineId, WalSegmentSize};
    use bytes::Bytes;

    use super::*;
    use crate::config::EngineConfig;
    use crate::engine::Engine;
    use crate::manifest::TimelineFacts;
    use crate::stored_key::KeyRange;

    const TENANT: TenantId = TenantId::from_bytes([7; 16]);
    const ROOT: TimelineId = TimelineId::from_bytes([1; 16]);
    const KEY: Key = Key::AuxFile(1);
    const START: u64 = 0x1000;

    struct House {
        folder: tempfile::TempDir,
        store: Arc<MemoryStore>,
    }

    impl House {
        fn new() -> House {
            House { folder: tempfile::tempdir().unwrap(), store: Arc::new(MemoryStore::new()) }
        }

        fn engine(&self) -> Arc<Engine> {
            let config = EngineConfig::new(self.folder.path().to_owned(), self.store.clone());
            Engine::open(EngineConfig { background: false, ..config }).unwrap()
        }
    }

    fn end(record: u64) -> Lsn {
        Lsn::new(START + record * 0x100)
    }

    /// A root with the records `1..=records`, each of which gives the key its number, in a file of its own.
    fn root(engine: &Engine, records: u64) -> Arc<Timeline> {
        let facts = TimelineFacts {
            pg_major: PgMajor::V15,
            system_id: SystemId::new(1),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: Lsn::new(START),
        };
        let root = engine.create_root(TENANT, ROOT, facts).unwrap();
        root.finish_import().unwrap();
        for record in 1..=records {
            let position = RecordPosition { end: end(record), start: Lsn::new(end(record).get() - 0x80) };
            let value = Value::Image(Bytes::from(record.to_string()));
            root.put(vec![(KEY, position.end, value)], position).unwrap();
            root.flush().unwrap();
        }
        root
    }

    /// That history begins at the end of `record`, where a branch can be made.
    fn check(timeline: &Timeline, record: u64) {
        assert_eq!(timeline.oldest_record().unwrap().end, end(record));
        let (owner, point) = timeline.branch_point(Some(end(record))).unwrap();
        assert_eq!((owner, point.lsn, point.prev_lsn.get()), (ROOT, end(record), end(record).get() - 0x80));
        assert_eq!(timeline.get(&KEY, end(record)).unwrap(), Some(Bytes::from(record.to_string())));
        assert_eq!(timeline.given_at(&KEY, end(record)).unwrap(), Some(end(record)));
        let below = timeline.branch_point(Some(Lsn::new(end(record).get() - 1)));
        assert!(matches!(below, Err(TimelineError::Retired { .. })), "{below:?}");
    }

    #[test]
    fn history_is_kept_from_the_end_of_a_record_on() {
        let house = House::new();
        let engine = house.engine();
        let root = root(&engine, 5);
        for (horizon, expect) in [(0x1210, 2), (0x12FF, 2), (0x1300, 3), (0x1210, 3), (0xFFFF, 5)] {
            root.collect_garbage(Lsn::new(horizon)).unwrap();
            assert_eq!(root.retained_from(), end(expect), "{horizon:#x}");
            check(&root, expect);
        }
    }

    #[test]
    fn the_oldest_record_is_known_when_its_file_is_gone() {
        let house = House::new();
        let engine = house.engine();
        let timeline = root(&engine, 4);
        timeline.collect_garbage(end(3)).unwrap();
        timeline.make_images(KeyRange::ALL, end(3)).unwrap();
        assert!(timeline.collect_garbage(end(3)).unwrap().files >= 3);
        check(&timeline, 3);
        drop((timeline, engine));
        let engine = house.engine();
        let timeline = engine.timeline(TENANT, ROOT).unwrap();
        check(&timeline, 3);
        let branch = TimelineId::from_bytes([2; 16]);
        assert_eq!(engine.create_branch(TENANT, branch, ROOT, Some(end(3))).unwrap().lsn, end(3));
    }

    #[test]
    fn history_that_was_given_up_within_a_record_to_come_stays_given_up() {
        let house = House::new();
        let engine = house.engine();
        let timeline = root(&engine, 4);
        let within = Lsn::new(end(4).get() + 1);
        timeline.commit(|manifest| manifest.retained_from = within, |_| ()).expect("committed");
        drop((timeline, engine));
        let engine = house.engine();
        let timeline = engine.timeline(TENANT, ROOT).expect("loaded");
        timeline.collect_garbage(end(9)).expect("collected");
        assert_eq!(timeline.retained_from(), within);
    }

    #[test]
    fn history_that_was_given_up_within_a_record_begins_with_the_next_one() {
        let house = House::new();
        let engine = house.engine();
        let timeline = root(&engine, 4);
        let within = Lsn::new(end(3).get() - 1);
        timeline.commit(|manifest| manifest.retained_from = within, |_| ()).unwrap();
        drop((timeline, engine));
        let engine = house.engine();
        let timeline = engine.timeline(TENANT, ROOT).unwrap();
        assert_eq!(timeline.retained_from(), within);
        check(&timeline, 3);
        // From then on it is known.
        timeline.collect_garbage(end(1)).expect("collected");
        assert_eq!(timeline.retained_from(), end(3));
        drop((timeline, engine));
        let engine = house.engine();
        assert_eq!(engine.glance(TENANT, ROOT).unwrap().unwrap().retained_from, end(3));
    }
}
