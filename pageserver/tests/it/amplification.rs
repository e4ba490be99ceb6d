//! What reads visit and apply, and what is written to the store, while a table's rows are updated at random without full-page images.
//!
//! `ARDENT_UPDATES_WAL_MB` (default 24) and `ARDENT_UPDATES_TABLE_MB` (default 3) set the size; layers are so much smaller than usual as the WAL
//! is smaller than 10 GB. `make test-full AREA=storage` runs it with 10 GB of WAL on 1 GB.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ardent_api::wal_service::WalChunk;
use ardent_object_store::{CountedStore, LocalFolder, Operation};
use ardent_pageserver::Intake;
use ardent_storage::{Engine, EngineConfig, ReadCost, ReadError, Timeline};
use ardent_types::{TenantId, TimelineId};

use crate::workload::{START, Workload, import_into};

/// How much WAL comes at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// The size that the defaults of the engine are for.
const FULL_WAL_BYTES: u64 = 10 << 30;
/// Of a run of any size, history of so much of its WAL is kept.
const RETAINED_PARTS: u64 = 8;
/// Pages that are looked at, of all.
const SAMPLE: usize = 20_000;
/// Promised of 99 pages in 100 once compaction has caught up.
const FILES_P99: usize = 5;
const DELTAS_P99: usize = 64;
const WRITE_AMPLIFICATION: f64 = 4.0;

fn bytes_from(variable: &str, default_mb: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default_mb) << 20
}

/// A page server's storage with the table on it.
struct Rig {
    store: Arc<CountedStore>,
    engine: Arc<Engine>,
    root: Arc<Timeline>,
}

impl Rig {
    fn new(folder: &Path, wal_bytes: u64, workload: &mut Workload) -> Rig {
        let store = LocalFolder::open(&folder.join("store")).expect("the store opens");
        let store = Arc::new(CountedStore::new(Arc::new(store)));
        let defaults = EngineConfig::new(folder.join("local"), store.clone());
        let part = |bytes: u64| (bytes / (FULL_WAL_BYTES / wal_bytes).max(1)).max(64 << 10);
        let engine = Engine::open(EngineConfig {
            open_layer_bytes_max: part(defaults.open_layer_bytes_max as u64) as usize,
            layer_file_bytes: part(defaults.layer_file_bytes),
            ..defaults
        })
        .expect("the engine opens");
        let root = import_into(&engine, TenantId::generate(), TimelineId::generate(), workload);
        Rig { store, engine, root }
    }

    /// Bytes that were written to the store so far.
    fn written(&self) -> u64 {
        [Operation::Put, Operation::PutIfAbsent].iter().map(|operation| self.store.stats(*operation).bytes).sum()
    }

    fn costs(&self, keys: &[ardent_types::Key]) -> Costs {
        Costs::of(keys.iter().map(|key| self.cost(key)))
    }

    fn cost(&self, key: &ardent_types::Key) -> ReadCost {
        loop {
            let lsn = self.root.last_record().end;
            match self.root.read_cost(key, lsn) {
                // This thread stood still for so long that garbage was collected up to there.
                Err(ReadError::Retired { .. }) => {}
                cost => return cost.expect("its cost is known"),
            }
        }
    }
}

/// What reads of some pages cost, each sorted.
struct Costs {
    files: Vec<usize>,
    deltas: Vec<usize>,
}

impl Costs {
    fn of(costs: impl Iterator<Item = ReadCost>) -> Costs {
        let (mut files, mut deltas): (Vec<_>, Vec<_>) = costs.map(|cost| (cost.files, cost.deltas)).unzip();
        files.sort_unstable();
        deltas.sort_unstable();
        Costs { files, deltas }
    }

    fn at(&self, percent: usize) -> (usize, usize) {
        let at = (self.files.len() - 1) * percent / 100;
        (self.files[at], self.deltas[at])
    }

    fn print(&self, when: &str) {
        let shown = [50, 90, 99, 100].map(|percent| {
            let (files, deltas) = self.at(percent);
            format!("p{percent} {files} files {deltas} deltas")
        });
        println!("{when}: {}", shown.join(", "));
    }
}

fn cpu_of_this_thread() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel keeps this");
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number of ns"))
}

#[test]
fn random_updates_keep_reads_shallow_and_are_written_few_times() {
    let (wal_bytes, table_bytes) = (bytes_from("ARDENT_UPDATES_WAL_MB", 24), bytes_from("ARDENT_UPDATES_TABLE_MB", 3));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut workload = Workload::new(table_bytes);
    let rig = Rig::new(folder.path(), wal_bytes, &mut workload);
    let (imported, began) = (rig.written(), Instant::now());
    println!(
        "{} MB of WAL on a table of {} MB, imported as {} MB; layers of {} KB",
        wal_bytes >> 20,
        table_bytes >> 20,
        imported >> 20,
        rig.engine.config().open_layer_bytes_max >> 10
    );

    let sample: Vec<_> = (0..SAMPLE).map(|_| workload.any_key()).collect();
    let is_done = AtomicBool::new(false);
    let mut worst = (0, 0);
    let mut taken = Duration::ZERO;
    std::thread::scope(|scope| {
        // Reads meanwhile: what they cost at worst is bounded, too.
        let reader = scope.spawn(|| {
            let mut worst = (0, 0);
            while !is_done.load(Ordering::Relaxed) {
                let (files, deltas) = rig.costs(&sample[..sample.len() / 100]).at(99);
                worst = (files.max(worst.0), deltas.max(worst.1));
                std::thread::park_timeout(Duration::from_millis(500));
            }
            worst
        });
        let mut intake = Intake::open(&rig.root).expect("the timeline takes WAL");
        let (mut given, mut collected) = (0, 0);
        while given < wal_bytes {
            let (start, bytes) = workload.wal(CHUNK_BYTES);
            given += bytes.len() as u64;
            let cpu = cpu_of_this_thread();
            let commit_lsn = start.advance(bytes.len() as u64);
            intake.take(WalChunk { start, bytes: bytes.into(), commit_lsn }).expect("the WAL is taken");
            taken += cpu_of_this_thread().saturating_sub(cpu);
            if given - collected > wal_bytes / (4 * RETAINED_PARTS) {
                let horizon = START.advance(given.saturating_sub(wal_bytes / RETAINED_PARTS));
                rig.root.collect_garbage(horizon).expect("garbage can be collected");
                collected = given;
                eprintln!("{} MB after {:.0} s: {:?}", given >> 20, began.elapsed().as_secs_f64(), rig.root.sizes());
            }
        }
        is_done.store(true, Ordering::Relaxed);
        reader.thread().unpark();
        worst = reader.join().expect("the reader was fine");
    });
    let ingested = began.elapsed();
    rig.root.flush().expect("the last layer is written");
    let during = rig.engine.stats();
    println!(
        "{} updates in {:.1} s, {:.1} s of the processor in ingest; {:.1} s waited for compaction",
        workload.updates(),
        ingested.as_secs_f64(),
        taken.as_secs_f64(),
        during.puts_slowed_us as f64 / 1e6
    );
    println!("while they came, worst of all moments: p99 {} files {} deltas", worst.0, worst.1);
    let patience = Duration::from_secs(60) + 2 * ingested;
    while rig.root.has_compaction_to_do() {
        assert!(began.elapsed() < ingested + patience, "compaction comes to an end: {:?}", rig.root.sizes());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    println!("compaction was done {:.1} s later; {:?}", (began.elapsed() - ingested).as_secs_f64(), rig.root.sizes());

    let costs = rig.costs(&sample);
    costs.print("then");
    let written = rig.written() - imported;
    let amplification = written as f64 / wal_bytes as f64;
    println!("{} MB written to the store, {amplification:.2} for each byte of WAL", written >> 20);
    let stats = rig.engine.stats();
    println!(
        "{} flushes, {} compactions, {} files removed, {} manifests",
        stats.layers_flushed, stats.compactions, stats.layers_removed, stats.manifests_written
    );
    let (files, deltas) = costs.at(99);
    assert!(files <= FILES_P99, "{files} files a page, {FILES_P99} are promised");
    assert!(deltas <= DELTAS_P99, "{deltas} deltas a page, {DELTAS_P99} are promised");
    assert!(amplification <= WRITE_AMPLIFICATION, "{amplification} bytes written for each of WAL");

    let lsn = rig.root.last_record().end;
    for _ in 0..SAMPLE / 10 {
        let block = workload.below(workload.blocks() as usize) as u32;
        let page = rig.root.get(&workload.key(block), lsn).expect("readable").expect("the page is there");
        workload.check(block, &page);
    }
    rig.engine.shutdown().expect("stops");
}
