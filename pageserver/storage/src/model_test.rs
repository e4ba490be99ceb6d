//! Random histories against a model that keeps everything: never a different answer for any retained (key, LSN).
//!
//! A failure names its seed; `ARDENT_SEED=n cargo test -p ardent-storage model` runs that one alone.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ardent_object_store::fault::FailPoints;
use ardent_object_store::{MemoryStore, list_all};
use ardent_pg_redo::Value;
use ardent_types::{Key, Lsn};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::layer::LayerKind;
use crate::stored_key::{KeyRange, StoredKey};
use crate::{Engine, EngineConfig, ReadError, Timeline, TimelineError, survey};
use support::{TENANT, at, block, config, facts, lsn, timeline_id};

const BLOCKS: u32 = 12;
const START: u64 = 0x100;

type Batch = (Vec<(Key, Lsn, Value)>, u64);

/// A timeline as the model knows it.
struct Model {
    ancestor: Option<(u8, u64)>,
    start: u64,
    last: u64,
    versions: BTreeMap<u32, Vec<(u64, Value)>>,
    wal: Vec<Batch>,
    leases: BTreeMap<String, u64>,
    /// Its branch has left it: only what hangs on it reads it.
    retired: bool,
    /// Its branch is deleted, and may come back as it was.
    deleted: bool,
}

impl Model {
    fn new(ancestor: Option<(u8, u64)>, start: u64) -> Model {
        let (versions, wal, leases) = Default::default();
        Model { ancestor, start, last: start, versions, wal, leases, retired: false, deleted: false }
    }
}

struct World {
    rng: StdRng,
    config: EngineConfig,
    engine: Arc<Engine>,
    models: BTreeMap<u8, Model>,
    next_id: u8,
    next_value: u32,
}

impl World {
    fn new(seed: u64, folder: &std::path::Path) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut config = config(folder, &Arc::new(FailPoints::new()));
        config.store = Arc::new(MemoryStore::new());
        config.open_layer_bytes_max = rng.random_range(500..5000);
        config.layer_file_bytes = rng.random_range(100..2000);
        config.compact_at_l0_files = rng.random_range(2..5);
        config.images_at_delta_files = rng.random_range(1..4);
        config.images_at_deltas_per_key = rng.random_range(1..6);
        config.page_cache_bytes = *[0, 20_000, 1 << 20].choose(&mut rng).unwrap();
        config.spill = rng.random_bool(0.5);
        let engine = Engine::open(config.clone()).unwrap();
        let root = engine.create_root(TENANT, timeline_id(1), facts(START)).unwrap();
        let mut versions = BTreeMap::new();
        for number in 0..BLOCKS / 2 {
            let bytes = Bytes::from(format!("i{number}"));
            root.import_images(&[(block(number), bytes.clone())]).unwrap();
            versions.insert(number, vec![(START, Value::Image(bytes))]);
        }
        root.finish_import().unwrap();
        let model = Model { versions, ..Model::new(None, START) };
        World { rng, config, engine, models: BTreeMap::from([(1, model)]), next_id: 2, next_value: 0 }
    }

    fn timeline(&self, id: u8) -> Arc<Timeline> {
        self.engine.timeline(TENANT, timeline_id(id)).unwrap()
    }

    /// A branch that is there.
    fn any(&mut self) -> u8 {
        let there = self.models.iter().filter(|(_, model)| !model.retired && !model.deleted);
        let ids: Vec<u8> = there.map(|(id, _)| *id).collect();
        *ids.choose(&mut self.rng).unwrap()
    }

    /// A timeline, whatever has become of its branch.
    fn any_timeline(&mut self) -> u8 {
        let ids: Vec<u8> = self.models.keys().copied().collect();
        *ids.choose(&mut self.rng).unwrap()
    }

    /// The timeline that has `at` in the history of this one.
    fn owner(&self, mut id: u8, at: u64) -> u8 {
        while let Some((parent, _)) = self.models[&id].ancestor.filter(|(_, from)| at < *from) {
            id = parent;
        }
        id
    }

    /// Where timelines hang on this one.
    fn pins(&self, id: u8) -> Vec<u64> {
        let ancestors = self.models.values().filter_map(|model| model.ancestor);
        ancestors.filter(|(parent, _)| *parent == id).map(|(_, at)| at).collect()
    }

    /// Every version of a block that counts at `upto`, oldest first.
    fn history(&self, id: u8, number: u32, upto: u64) -> Vec<(u64, Value)> {
        let model = &self.models[&id];
        let mut all = match model.ancestor {
            Some((parent, at)) => self.history(parent, number, upto.min(at)),
            None => Vec::new(),
        };
        let own = model.versions.get(&number).into_iter().flatten();
        all.extend(own.filter(|(lsn, _)| *lsn <= upto).cloned());
        all
    }

    /// Content by the book; an error where the block is unreadable.
    fn expected(&self, id: u8, number: u32, upto: u64) -> Result<Option<Bytes>, ()> {
        let mut content: Result<Option<Vec<u8>>, ()> = Ok(None);
        for (_, value) in self.history(id, number, upto) {
            content = match value {
                Value::Image(bytes) | Value::Record { will_init: true, record: bytes } => Ok(Some(bytes.to_vec())),
                Value::Unreadable(_) => Err(()),
                Value::Delta(bytes) | Value::Record { record: bytes, .. } => {
                    content.map(|content| Some([content.unwrap_or_default(), bytes.to_vec()].concat()))
                }
            };
        }
        content.map(|content| content.filter(|bytes| !bytes.is_empty()).map(Bytes::from))
    }

    fn put(&mut self, id: u8) {
        let mut batch = Vec::new();
        let mut end = self.models[&id].last;
        for _ in 0..self.rng.random_range(0..5) {
            end += 8 * self.rng.random_range(1..4);
            let number = self.rng.random_range(0..BLOCKS);
            self.next_value += 1;
            let bytes = Bytes::from(format!(".{}", self.next_value));
            let has_base = matches!(self.expected(id, number, end), Ok(Some(_)) | Err(()));
            let value = match self.rng.random_range(0..100) {
                0..3 => Value::Image(Bytes::new()),
                3..5 => Value::Unreadable(bytes),
                5..15 => Value::Image(bytes),
                15..20 => Value::Record { will_init: true, record: bytes },
                _ if !has_base => Value::Image(bytes),
                20..60 => Value::Delta(bytes),
                _ => Value::Record { will_init: false, record: bytes },
            };
            let model = self.models.get_mut(&id).unwrap();
            model.versions.entry(number).or_default().push((end, value.clone()));
            batch.push((block(number), lsn(end), value));
        }
        end += 8;
        self.timeline(id).put(batch.clone(), at(end)).unwrap();
        let model = self.models.get_mut(&id).unwrap();
        model.last = end;
        model.wal.push((batch, end));
    }

    /// An LSN that the timeline promises to have.
    fn retained_lsn(&mut self, id: u8) -> u64 {
        let timeline = self.timeline(id);
        let leases: Vec<u64> = self.models[&id].leases.values().copied().collect();
        if !leases.is_empty() && self.rng.random_bool(0.3) {
            return *leases.choose(&mut self.rng).unwrap();
        }
        self.rng.random_range(timeline.retained_from().get()..=self.models[&id].last)
    }

    fn check_content(&self, id: u8, number: u32, upto: u64) {
        let found = self.timeline(id).get(&block(number), lsn(upto));
        let found = match found {
            Err(ReadError::Rebuild { .. }) => Err(()),
            other => Ok(other.unwrap_or_else(|error| panic!("timeline {id} block {number} at {upto:#x}: {error:?}"))),
        };
        assert_eq!(found, self.expected(id, number, upto), "timeline {id} block {number} at {upto:#x}");
    }

    fn check_changed(&self, id: u8, from: u64, to: u64) {
        let is_changed = |number: &u32| self.history(id, *number, to).iter().any(|(lsn, _)| *lsn > from);
        let expect: Vec<Key> = (0..BLOCKS).filter(is_changed).map(block).collect();
        let found = self.timeline(id).changed_keys(block(0)..=block(BLOCKS), lsn(from), lsn(to)).unwrap();
        assert_eq!(found, expect, "timeline {id} changed in ({from:#x}, {to:#x}]");
    }

    /// What is retained can be read and branched from exactly where it begins.
    fn check_oldest(&self, id: u8) {
        let timeline = self.timeline(id);
        let oldest = timeline.oldest_record().unwrap().end;
        assert_eq!(oldest, timeline.retained_from(), "timeline {id}");
        let (owner, point) = timeline.branch_point(Some(oldest)).unwrap();
        assert_eq!((owner, point.lsn), (timeline.id(), oldest));
        for number in 0..BLOCKS {
            self.check_content(id, number, oldest.get());
        }
    }

    fn check_some(&mut self) {
        for _ in 0..6 {
            let id = self.any();
            self.check_oldest(id);
            let upto = self.retained_lsn(id);
            let number = self.rng.random_range(0..BLOCKS);
            self.check_content(id, number, upto);
            let from = self.rng.random_range(START..=upto);
            self.check_changed(id, from, upto);
        }
    }

    fn check_all(&self) {
        for (id, model) in &self.models {
            let from = self.timeline(*id).retained_from().get().min(model.last + 8).next_multiple_of(8);
            for upto in (from..=model.last).step_by(8).chain(model.leases.values().copied()) {
                for number in 0..BLOCKS {
                    self.check_content(*id, number, upto);
                }
            }
            for layer in self.timeline(*id).layer_set().files.layers() {
                layer.verify().unwrap();
            }
        }
    }

    fn restart(&mut self) {
        self.engine = Engine::open(self.config.clone()).unwrap();
        for (id, model) in &self.models {
            let timeline = self.engine.timeline(TENANT, timeline_id(*id)).unwrap();
            assert_eq!(timeline.last_record().end, timeline.disk_consistent_lsn());
            for (batch, end) in &model.wal {
                timeline.put(batch.clone(), at(*end)).unwrap();
            }
            assert_eq!(timeline.last_record().end, lsn(model.last));
        }
    }

    fn branch(&mut self, of: u8) {
        let at = self.rng.random_bool(0.7).then(|| self.rng.random_range(START..=self.models[&of].last));
        self.branch_at(of, at, false);
    }

    /// Where another branch hangs, a branch can be made, however far retention has gone and whatever has become of the timeline.
    fn branch_at_pin(&mut self) {
        let of = self.any_timeline();
        if let Some(at) = self.pins(of).choose(&mut self.rng).copied() {
            self.branch_at(of, Some(at), true);
        }
    }

    fn branch_at(&mut self, of: u8, at: Option<u64>, is_held: bool) {
        let id = self.next_id;
        match self.engine.create_branch(TENANT, timeline_id(id), timeline_id(of), at.map(lsn)) {
            Ok(point) => {
                let branch = self.timeline(id);
                let owner = branch.ancestor().unwrap().timeline.as_bytes()[0];
                let start = point.lsn.get();
                assert!(at.is_none_or(|at| start <= at));
                // Records that changed nothing leave no file: where one ended is not known for ever, and the one before it gives the same.
                let changes = |at: u64| {
                    let mut all = self.models[&owner].versions.values().flatten();
                    all.any(|(version, _)| (start + 1..=at).contains(version))
                };
                assert!(
                    !is_held || at.is_some_and(|at| !changes(at)),
                    "{at:x?} of timeline {of}, {start:#x} was given"
                );
                self.models.insert(id, Model::new(Some((owner, start)), start));
                self.next_id += 1;
            }
            Err(TimelineError::Retired { .. }) => {
                let at = at.expect("the newest record is retained");
                let owner = self.timeline(self.owner(of, at));
                assert!(!is_held && lsn(at) < owner.retained_from(), "{at:#x} of timeline {of}");
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    fn force_merge(&mut self, id: u8) {
        let timeline = self.timeline(id);
        let mut deltas: Vec<_> = timeline.layer_set().files.layers().to_vec();
        deltas.retain(|layer| layer.desc.kind == LayerKind::Delta && self.rng.random_bool(0.6));
        deltas.reverse();
        if deltas.len() > 1 {
            timeline.merge_deltas(&deltas).unwrap();
        }
    }

    fn force_images(&mut self, id: u8) {
        let timeline = self.timeline(id);
        let (low, high) = (self.models[&id].start, timeline.disk_consistent_lsn().get());
        let first = self.rng.random_range(0..BLOCKS);
        let last = self.rng.random_range(first..BLOCKS);
        let keys = KeyRange { first: StoredKey::from(&block(first)), last: StoredKey::from(&block(last)) };
        // Below what is retained, layers may be gone that an image there would need.
        let low = low.max(timeline.retained_from().get());
        if low < high {
            let lsn = lsn(self.rng.random_range(low + 1..=high));
            timeline.make_images(keys, lsn).unwrap();
        }
    }

    fn lease(&mut self, id: u8) {
        let name = format!("l{}", self.rng.random_range(0..3));
        let (timeline, upto) = (self.timeline(id), self.retained_lsn(id));
        if self.rng.random_bool(0.5) {
            timeline.lease(&name, lsn(upto), Duration::ZERO).unwrap();
            self.models.get_mut(&id).unwrap().leases.remove(&name);
        } else {
            timeline.lease(&name, lsn(upto), Duration::from_secs(3600)).unwrap();
            self.models.get_mut(&id).unwrap().leases.insert(name, upto);
        }
    }

    fn delete(&mut self, id: u8) {
        let has_children = self.models.values().any(|model| model.ancestor.is_some_and(|(parent, _)| parent == id));
        match self.engine.delete_timeline(TENANT, timeline_id(id)) {
            Err(TimelineError::HasChildren { .. }) => assert!(has_children),
            Err(error) => panic!("{error:?}"),
            Ok(()) => {
                assert!(!has_children);
                self.models.remove(&id);
                let prefix = format!("timelines/{TENANT}/{}/", timeline_id(id));
                let left = list_all(&*self.config.store, &prefix, false).unwrap().objects;
                assert_eq!(left, [], "a deleted branch gives all of its space back");
            }
        }
    }

    /// A branch takes another's place: made from the same parent at some point, and the old one goes.
    fn reset(&mut self, id: u8) {
        let Some((parent, _)) = self.models[&id].ancestor else { return };
        // Then its branch is on another timeline now.
        if self.models[&parent].retired {
            return;
        }
        let before = self.next_id;
        self.branch(parent);
        if self.next_id > before {
            self.delete(id);
        }
    }

    /// A branch goes back to an earlier point of itself, and leaves the timeline that it was on.
    fn restore(&mut self, id: u8) {
        let (before, at) = (self.next_id, self.retained_lsn(id));
        self.branch_at(id, Some(at), self.pins(id).contains(&at));
        if self.next_id > before {
            self.retire(id);
        }
    }

    fn retire(&mut self, id: u8) {
        let timeline = self.timeline(id);
        timeline.retire().unwrap();
        self.models.get_mut(&id).unwrap().retired = true;
        let model = &self.models[&id];
        let is_held = model.last == model.start || model.leases.values().any(|lsn| *lsn == model.last);
        let read = timeline.get(&block(0), lsn(model.last));
        assert!(is_held || matches!(read, Err(ReadError::Retired { .. })), "{read:?}");
        if self.pins(id).is_empty() && self.models[&id].leases.is_empty() {
            assert_eq!(timeline.sizes().files, 0, "what nobody can read is given back");
        }
    }

    /// What hangs on a timeline that its branch has left goes, then it goes.
    fn delete_left(&mut self) {
        let left: Vec<u8> = self.models.iter().filter(|(_, model)| model.retired).map(|(id, _)| *id).collect();
        if let Some(id) = left.choose(&mut self.rng).copied() {
            self.delete(id);
        }
    }

    /// A deleted branch is as it was until it comes back, whatever happens to the others.
    fn delete_for_a_while(&mut self, id: u8) {
        if id != 1 && self.pins(id).is_empty() {
            self.models.get_mut(&id).unwrap().deleted = true;
        }
    }

    fn undelete(&mut self) {
        let deleted: Vec<u8> = self.models.iter().filter(|(_, model)| model.deleted).map(|(id, _)| *id).collect();
        if let Some(id) = deleted.choose(&mut self.rng).copied() {
            self.models.get_mut(&id).unwrap().deleted = false;
            let last = self.models[&id].last;
            (0..BLOCKS).for_each(|number| self.check_content(id, number, last));
        }
    }

    /// What lies in the store is what manifests name, and what the last crash left.
    fn check_store(&self) {
        let found = survey(&*self.config.store).unwrap();
        assert_eq!((found.problems, found.unknown), (Vec::<String>::new(), Vec::<String>::new()));
        let mut there: Vec<_> = found.timelines.iter().map(|timeline| timeline.timeline).collect();
        there.sort_unstable();
        assert_eq!(there, self.models.keys().map(|id| timeline_id(*id)).collect::<Vec<_>>());
    }

    /// Garbage collection and compaction with nothing to keep but the heads and the branch points leave no more than those need.
    fn check_space(&mut self) {
        for id in self.models.keys().copied().collect::<Vec<_>>() {
            for name in std::mem::take(&mut self.models.get_mut(&id).unwrap().leases).into_keys() {
                self.timeline(id).lease(&name, lsn(0), Duration::ZERO).unwrap();
            }
        }
        // Leaves first: what a branch's deletion frees on its parent is free then.
        for id in self.models.keys().copied().filter(|id| *id != 1).rev().collect::<Vec<_>>() {
            self.delete(id);
        }
        let root = self.timeline(1);
        root.flush().unwrap();
        let last = root.last_record().end;
        root.collect_garbage(last).unwrap();
        if root.disk_consistent_lsn() > lsn(START) {
            root.make_images(KeyRange::ALL, root.disk_consistent_lsn()).unwrap();
        }
        root.collect_garbage(last).unwrap();
        let holes = root.layer_set().files.layers().iter().any(|layer| layer.desc.holes > 0);
        let deltas = root.layer_set().files.layers().iter().filter(|layer| layer.desc.kind == LayerKind::Delta).count();
        assert!(holes || deltas == 0, "{deltas} delta files are kept for nobody");
    }

    fn step(&mut self) {
        let id = self.any();
        match self.rng.random_range(0..100) {
            0..50 => self.put(id),
            50..58 => self.timeline(id).flush().unwrap(),
            58..60 => self.timeline(id).freeze(),
            60..66 => self.force_merge(id),
            66..74 => self.force_images(id),
            74..78 => self.timeline(id).compact().unwrap(),
            78..82 => {
                // Also of those that nobody writes to or reads any more.
                let id = self.any_timeline();
                let last = self.models[&id].last;
                let horizon = self.rng.random_range(START..=last);
                self.timeline(id).collect_garbage(lsn(horizon)).unwrap();
            }
            82..84 => self.delete_for_a_while(id),
            84..86 => self.undelete(),
            86..88 if self.models.len() < 7 => self.branch(id),
            88..89 if self.models.len() < 7 => self.branch_at_pin(),
            89..90 if id != 1 => self.delete(id),
            90..91 if self.models.len() < 7 => match self.rng.random_bool(0.5) {
                true => self.reset(id),
                false if id != 1 => self.restore(id),
                false => {}
            },
            91..94 => self.lease(id),
            94..95 => self.delete_left(),
            95..98 => {
                // Without a flush: as after a kill.
                let placeholder = Engine::open(self.elsewhere()).unwrap();
                let gone = std::mem::replace(&mut self.engine, placeholder);
                drop(gone);
                self.restart();
            }
            _ => self.check_all(),
        }
    }

    /// A configuration whose engine does nothing, to hold the place of one that is gone.
    fn elsewhere(&self) -> EngineConfig {
        EngineConfig { local_dir: self.config.local_dir.with_extension("idle"), ..self.config.clone() }
    }
}

#[test]
fn random_histories_never_give_another_answer_than_the_model() {
    let seeds = match std::env::var("ARDENT_SEED") {
        Ok(seed) => seed.parse().unwrap()..=seed.parse::<u64>().unwrap(),
        Err(_) => 1..=std::env::var("ARDENT_SEEDS").map_or(200, |seeds| seeds.parse().unwrap()),
    };
    for seed in seeds {
        let folder = tempfile::tempdir().unwrap();
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed, folder.path());
            for _ in 0..200 {
                world.step();
                world.check_some();
            }
            world.check_all();
            world.check_store();
            world.check_space();
            world.check_store();
        });
        if let Err(panic) = run {
            eprintln!("replay with: ARDENT_SEED={seed} cargo test -p ardent-storage model");
            std::panic::resume_unwind(panic);
        }
    }
}
