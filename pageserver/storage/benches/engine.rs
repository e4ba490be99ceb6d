//! How fast the engine takes values and gives pages: `cargo bench -p ardent-storage`.
//!
//! Prints one line per measurement. Values look like pgbench's without full-page images: 100 bytes, random blocks of one relation.

use std::sync::Arc;
use std::time::Instant;

use ardent_object_store::LocalFolder;
use ardent_pg_format::PgMajor;
use ardent_pg_redo::{ReconstructError, Value};
use ardent_storage::{Engine, EngineConfig, RecordPosition, Redo, TimelineFacts};
use ardent_types::{ForkNumber, Key, Lsn, PgTli, RelTag, SystemId, TenantId, TimelineId, WalSegmentSize};
use bytes::Bytes;

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
const BLOCKS: u32 = 20_000;
const VALUES: u64 = 6_000_000;
const BATCH: u64 = 1000;

/// Gives the last image, whatever came after it: what is measured is the engine, not redo.
#[derive(Debug)]
struct NoRedo;

impl Redo for NoRedo {
    fn rebuild(
        &self,
        _pg_major: PgMajor,
        _key: &Key,
        base: Option<Bytes>,
        values: &mut dyn Iterator<Item = (Lsn, Value)>,
    ) -> Result<Bytes, ReconstructError> {
        let mut content = base;
        for (_, value) in values {
            if let Value::Image(image) = value {
                content = Some(image);
            }
        }
        Ok(content.unwrap_or_default())
    }
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn report(what: &str, count: u64, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{what}: {:.0}/s, {:.2} us each", count as f64 / seconds, seconds * 1e6 / count as f64);
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = LocalFolder::open(&folder.path().join("store")).expect("the store opens");
    let config = EngineConfig {
        redo: Arc::new(NoRedo),
        page_cache_bytes: 256 << 20,
        ..EngineConfig::new(folder.path().join("local"), Arc::new(store))
    };
    let engine = Engine::open(config).expect("the engine opens");
    let facts = TimelineFacts {
        pg_major: PgMajor::V15,
        system_id: SystemId::new(1),
        pg_tli: PgTli::new(1),
        wal_segment_size: WalSegmentSize::DEFAULT,
        start_lsn: Lsn::new(0x100),
    };
    let root = engine.create_root(TenantId::generate(), TimelineId::generate(), facts).expect("a root is made");
    let mut state = 1;
    let started = Instant::now();
    for block in 0..BLOCKS {
        let page = Bytes::from_iter((0..8192).map(|at| if at % 4 == 0 { next(&mut state) as u8 } else { b'a' }));
        root.import_images(&[(Key::RelBlock(REL, block), page)]).expect("images are taken");
    }
    root.finish_import().expect("the import is finished");
    report("import of pages to durable", u64::from(BLOCKS), started);

    let payload = Bytes::from(vec![7; 100]);
    let mut end = 0x100;
    let started = Instant::now();
    for _ in 0..VALUES / BATCH {
        let mut batch = Vec::with_capacity(BATCH as usize);
        let mut positions = Vec::with_capacity(BATCH as usize);
        for _ in 0..BATCH {
            let start = Lsn::new(end);
            end += 136;
            let record = payload.clone();
            let key = Key::RelBlock(REL, next(&mut state) as u32 % BLOCKS);
            batch.push((key, Lsn::new(end), Value::Record { will_init: false, record }));
            positions.push(RecordPosition { end: Lsn::new(end), start });
        }
        root.put_records(&batch, &positions).expect("the batch is taken");
    }
    report("values put, flushing beside", VALUES, started);
    let tail = Instant::now();
    root.flush().expect("the flush succeeds");
    report("values put to durable", VALUES, started);
    println!("last flush: {:.2} s; {:?}", tail.elapsed().as_secs_f64(), root.sizes());

    let mut read = |what: &str, blocks: u32, count: u64| {
        let started = Instant::now();
        for _ in 0..count {
            let key = Key::RelBlock(REL, next(&mut state) as u32 % blocks);
            root.get(&key, Lsn::new(end)).expect("reads succeed").expect("the block is there");
        }
        report(what, count, started);
    };
    read("pages read, cold, uncompacted", BLOCKS, 5000);
    read("pages read, 100 pages, cached", 100, 500_000);
    let started = Instant::now();
    root.compact().expect("compaction succeeds");
    report("values compacted", VALUES, started);
    println!("{:?}", root.sizes());
    read("pages read, mixed, compacted", BLOCKS, 20_000);
    println!("{:?}", engine.stats());
}
