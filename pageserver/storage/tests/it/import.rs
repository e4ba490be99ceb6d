//! What was imported is read as it was, whatever compaction makes beside it: at the import's LSN, and at every later one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ardent_object_store::fault::FailPoints;
use ardent_pg_redo::Value;
use ardent_storage::{Engine, EngineConfig, ErrorKind, Timeline, inspect_manifest};
use ardent_types::{Key, Lsn};
use bytes::Bytes;
use rand::rngs::StdRng;
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
