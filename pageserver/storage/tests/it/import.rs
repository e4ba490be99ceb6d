//! What was imported is read as it was, whatever compaction makes beside it: at the import's LSN, and at every later one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_pg_redo::Value;
use ardent_storage::{Engine, EngineConfig, ErrorKind, Timeline, inspect_manifest};
use ardent_types::{BLCKSZ, Key, Lsn, RelTag};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use crate::support::*;

const START: u64 = 0x100;
const RECORDS: u64 = 80;
const BLOCKS_MAX: u32 = 12;

type Batch = Vec<(Key, Lsn, Value)>;

fn size_of(blocks: u32) -> Value {
    Value::Image(Bytes::copy_from_slice(&blocks.to_le_bytes()))
}

/// A relation as WAL goes on: blocks are changed, it grows, is cut off and grows again.
struct History {
    rng: StdRng,
    blocks: u32,
}

impl History {
    /// The files of a backup: some pages arrive damaged.
    fn imported(&mut self) -> Vec<(Key, Value)> {
        let mut values = vec![(Key::RelSize(REL), size_of(self.blocks))];
        for number in 0..self.blocks {
            let value = match self.rng.random_range(0..6) {
                0 => Value::Unreadable(Bytes::from_static(b"damaged")),
                _ => image(format!("i{number}")),
            };
            values.push((block(number), value));
        }
        values
    }

    fn record(&mut self, n: u64) -> Batch {
        let end = lsn(START + 8 * n);
        let any = self.rng.random_range(0..self.blocks);
        match self.rng.random_range(0..10) {
            0 if self.blocks > 1 => {
                self.blocks = self.rng.random_range(1..self.blocks);
                vec![(Key::RelSize(REL), end, size_of(self.blocks))]
            }
            1 | 2 if self.blocks < BLOCKS_MAX => {
                self.blocks += 1;
                let fresh = block(self.blocks - 1);
                vec![(Key::RelSize(REL), end, size_of(self.blocks)), (fresh, end, image(format!("e{n}")))]
            }
            3 => vec![(block(any), end, image(format!("w{n}")))],
            _ => vec![(block(any), end, delta(format!("+{n}")))],
        }
    }
}

fn open_with(folder: &Path, config_of: impl FnOnce(EngineConfig) -> EngineConfig) -> (Arc<Engine>, Arc<Timeline>) {
    let engine = Engine::open(config_of(config(folder, &Arc::new(FailPoints::new())))).unwrap();
    let root = engine.create_root(TENANT, timeline_id(1), facts(START)).unwrap();
    (engine, root)
}

fn read(root: &Timeline, number: u32, upto: u64) -> Result<Option<Bytes>, ErrorKind> {
    root.get(&block(number), lsn(upto)).map_err(|error| error.kind())
}

/// How many image layers there are above the import's. None lies below it, or past what is durable.
fn images_made(engine: &Engine, root: &Timeline) -> usize {
    let info = inspect_manifest(&*engine.config().store, TENANT, timeline_id(1)).unwrap();
    let layers = info.manifest["layers"].as_array().unwrap();
    let images = layers.iter().filter(|layer| layer["kind"] == "image");
    let made: Vec<Lsn> = images.map(|layer| layer["upto"].as_str().unwrap().parse().unwrap()).collect();
    let (from, to) = (lsn(START), root.disk_consistent_lsn());
    assert!(made.contains(&from), "the import's own stay as long as its LSN can be read: {made:?}");
    assert!(made.iter().all(|image| (from..=to).contains(image)), "{made:?} are not all within {from} and {to}");
    made.into_iter().filter(|image| *image > from).count()
}

/// One history in two timelines: in one everything stays as it came, in the other all is compacted that can be.
fn check(seed: u64) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let (files_max, deltas_max) = (rng.random_range(1..3), rng.random_range(1..4));
    let (file_bytes, blocks) = (rng.random_range(60..1000), rng.random_range(2..BLOCKS_MAX));
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (_plain_engine, plain) = open_with(folders[0].path(), |config| config);
    let (engine, compacted) = open_with(folders[1].path(), |config| EngineConfig {
        compact_at_l0_files: 1,
        images_at_delta_files: files_max,
        images_at_deltas_per_key: deltas_max,
        layer_file_bytes: file_bytes,
        page_cache_bytes: 0,
        ..config
    });
    let mut history = History { rng, blocks };
    let imported = history.imported();
    for root in [&plain, &compacted] {
        root.import_values(&imported).unwrap();
        root.finish_import().unwrap();
    }
    compacted.compact().unwrap();
    let mut sizes = BTreeMap::from([(START, blocks)]);
    for n in 1..=RECORDS {
        let (batch, end) = (history.record(n), START + 8 * n);
        for root in [&plain, &compacted] {
            root.put(batch.clone(), at(end)).unwrap();
        }
        sizes.insert(end, history.blocks);
        if n == RECORDS || history.rng.random_range(0..3) == 0 {
            plain.flush().unwrap();
            compacted.flush().unwrap();
            compacted.compact().unwrap();
        }
    }
    for (upto, blocks) in sizes {
        for number in 0..blocks {
            let (found, expect) = (read(&compacted, number, upto), read(&plain, number, upto));
            assert_eq!(found, expect, "seed {seed}: block {number} at {upto:#x}");
        }
    }
    for (key, value) in imported {
        let found = compacted.get(&key, lsn(START));
        match value {
            Value::Image(bytes) => assert_eq!(found.unwrap(), Some(bytes), "seed {seed}: {key}"),
            _ => assert!(found.is_err(), "seed {seed}: {key} arrived damaged"),
        }
    }
    images_made(&engine, &compacted)
}

#[test]
fn an_import_is_read_as_it_was_whatever_images_are_made_after_it() {
    let made: usize = (0..40).map(check).sum();
    assert!(made > 40, "{made} images were made");
}

/// A page that is packed to little, or, as one of eight, hardly at all.
fn page(rng: &mut StdRng) -> Value {
    let (value, is_noise): (u64, bool) = (rng.random(), rng.random_ratio(1, 8));
    let mut bytes = vec![value as u8; BLCKSZ];
    if is_noise {
        rng.fill(&mut bytes[..BLCKSZ / 2]);
    }
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    Value::Image(bytes.into())
}

/// The files of a backup in any order, most of them whole: of some relations' pages others come later, one by one or a stretch of them,
/// and there are values that are no pages.
fn backup(rng: &mut StdRng) -> Vec<Vec<(Key, Value)>> {
    let mut files = Vec::new();
    for number in 0..rng.random_range(1..30) {
        let rel = RelTag { relnode: REL.relnode + number, ..REL };
        let most = *[3, 20, 100].choose(rng).unwrap();
        let blocks = rng.random_range(0..most);
        files.push((0..blocks).map(|number| (Key::RelBlock(rel, number), page(rng))).collect::<Vec<_>>());
        files.push(vec![(Key::RelSize(rel), size_of(blocks))]);
        if blocks > 0 && rng.random_ratio(1, 3) {
            let first = rng.random_range(0..blocks);
            let end = rng.random_range(first..blocks) + 1;
            let again = |number| match rng.random_ratio(1, 5) {
                true => (Key::RelBlock(rel, number), Value::Unreadable(Bytes::from_static(b"damaged"))),
                false => (Key::RelBlock(rel, number), page(rng)),
            };
            files.push((first..end).map(again).collect());
        }
    }
    files.shuffle(rng);
    files
}

fn take(root: &Timeline, rng: &mut StdRng, files: &[Vec<(Key, Value)>]) -> BTreeMap<[u8; 18], (Key, Value)> {
    let mut model = BTreeMap::new();
    let values: Vec<_> = files.concat();
    let mut rest = &values[..];
    while !rest.is_empty() {
        let (part, more) = rest.split_at(rng.random_range(1..=rest.len().min(200)));
        root.import_values(part).unwrap();
        model.extend(part.iter().map(|(key, value)| (key.encode(), (*key, value.clone()))));
        rest = more;
    }
    model
}

fn check_backup(seed: u64) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let (run_bytes, file_bytes) = (rng.random_range(2_000..400_000), rng.random_range(1000..100_000));
    let small = |config| EngineConfig { open_layer_bytes_max: run_bytes, layer_file_bytes: file_bytes, ..config };
    let (engine, root) = open_with(folder.path(), small);
    let files = backup(&mut rng);
    let model = take(&root, &mut rng, &files);
    let importing = folder.path().join("local/importing").join(timeline_id(1).to_string());
    let runs = std::fs::read_dir(&importing).map_or(0, |files| files.count());
    root.finish_import().unwrap();
    assert!(!importing.exists(), "runs stay");
    assert_eq!(engine.stats().memory_layer_bytes, 0, "seed {seed}: memory that is not there counts");
    let check = |root: &Timeline| {
        for (key, value) in model.values() {
            let found = root.get(key, lsn(START));
            match value {
                Value::Image(bytes) => assert_eq!(found.unwrap().as_ref(), Some(bytes), "seed {seed}: {key}"),
                _ => assert_eq!(found.unwrap_err().kind(), ErrorKind::Corrupt, "seed {seed}: {key}"),
            }
        }
        let readable = model.values().filter(|(_, value)| matches!(value, Value::Image(_))).map(|(key, _)| *key);
        let keys = Key::Checkpoint..=model.values().map(|(key, _)| *key).max_by_key(Key::encode).unwrap();
        assert_eq!(root.changed_keys(keys, lsn(START - 1), lsn(START)).unwrap().len(), model.len(), "seed {seed}");
        let none = RelTag { relnode: 1, ..REL };
        assert_eq!(root.get(&Key::RelBlock(none, 0), lsn(START)).unwrap(), None);
        readable.count()
    };
    check(&root);
    root.put(vec![(block(0), lsn(START + 8), image("later"))], at(START + 8)).unwrap();
    root.flush().unwrap();
    engine.shutdown().unwrap();
    drop((root, engine));
    let engine = open(folder.path());
    check(&engine.timeline(TENANT, timeline_id(1)).unwrap());
    let found = ardent_storage::survey(&*engine.config().store).unwrap();
    assert_eq!((found.problems, found.unknown), Default::default(), "seed {seed}");
    runs
}

#[test]
fn a_backup_s_pages_are_read_as_they_came_last_in_whatever_order() {
    let seeds = std::env::var("ARDENT_SEEDS").map_or(60, |seeds| seeds.parse().unwrap());
    let runs: Vec<usize> = (0..seeds).map(check_backup).collect();
    assert!(runs.iter().any(|runs| *runs == 0) && runs.iter().any(|runs| *runs > 3), "runs: {runs:?}");
}

#[test]
fn a_run_that_is_damaged_fails_the_import_which_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, root) = open_with(folder.path(), |config| EngineConfig { open_layer_bytes_max: 1, ..config });
    let mut rng = StdRng::seed_from_u64(1);
    // A value that is no page is in memory at once, so that the first values of each import become a run.
    let pages = (0..100).map(|number| (block(number), page(&mut rng)));
    let files = vec![std::iter::once((Key::RelSize(REL), size_of(100))).chain(pages).collect::<Vec<_>>()];
    let path = folder.path().join("local/importing").join(timeline_id(1).to_string()).join("run-0");
    let mut tried = 0;
    loop {
        let model = take(&root, &mut rng, &files);
        let mut bytes = std::fs::read(&path).unwrap();
        // The frame's fields and the block's, then some of what is packed, then the end of the file.
        let at = if tried < 45 { tried } else { tried * 499 };
        if at >= bytes.len() {
            bytes.pop();
            std::fs::write(&path, &bytes).unwrap();
        } else {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
        }
        let error = root.finish_import().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error}");
        let text = ardent_types::with_causes(&error);
        assert!(text.contains("run-0") && text.contains("import again"), "{text}");
        let again = engine.create_root(TENANT, timeline_id(1), facts(START)).unwrap();
        assert!(Arc::ptr_eq(&again, &root) && root.is_importing());
        tried += 1;
        if at >= bytes.len() {
            take(&root, &mut rng, &files);
            root.finish_import().unwrap();
            for (key, value) in model.values() {
                assert_eq!(root.get(key, lsn(START)).unwrap().map(Value::Image).as_ref(), Some(value), "{key}");
            }
            return;
        }
    }
}

#[test]
fn an_import_that_lost_something_ends_only_after_a_new_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Arc::new(FailPoints::new());
    let small = EngineConfig { open_layer_bytes_max: 1, ..config(folder.path(), &faults) };
    let engine = Engine::open(small).unwrap();
    let root = engine.create_root(TENANT, timeline_id(1), facts(START)).unwrap();
    faults.arm("import.write", 1, FaultAction::Fail);
    let values = [(Key::RelSize(REL), size_of(1)), (block(0), image("i"))];
    assert_eq!(root.import_values(&values).unwrap_err().kind(), ErrorKind::Retry);
    faults.reset();
    assert_eq!(root.import_values(&values).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(root.finish_import().unwrap_err().kind(), ErrorKind::Invalid);
    let root = engine.create_root(TENANT, timeline_id(1), facts(START)).unwrap();
    root.import_values(&values).unwrap();
    root.finish_import().unwrap();
    assert_eq!(text(&root, block(0), START).as_deref(), Some("i"));
}
