//! A pgbench run's WAL on its way to durable level-0 layers, on one thread, beside Postgres's own recovery of the same WAL:
//! `cargo test -p ardent-pageserver --bench ingest`. Compaction is not in it. Prints a table.
//!
//! `BENCH_TRANSACTIONS` (default 100000) and `BENCH_ROUNDS` (default 5; the best of each side counts) set its size. `BENCH_RUNS` names a
//! folder where runs are kept and taken from again; `BENCH_ONLY=ours` leaves the peer out: for a profiler.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ardent_api::page_service::ImportSpec;
use ardent_api::wal_service::WalChunk;
use ardent_object_store::LocalFolder;
use ardent_pageserver::Intake;
use ardent_pg_format::segment::wal_file_name;
use ardent_pg_format::{ControlFile, WalDecoder};
use ardent_pg_ingest::{Batch, Import};
use ardent_storage::{Engine, EngineConfig, Timeline, TimelineFacts};
use ardent_test_pg::side_by_side::{Amount, Took, number_from, print_header, print_row, side_by_side};
use ardent_test_pg::{PgbenchRun, PgbenchRunOptions};
use ardent_types::{Lsn, PgTli, TenantId, TimelineId, WalSegmentSize};

/// How much WAL comes at a time.
const CHUNK_BYTES: u64 = 128 << 10;

/// A root timeline that holds what the run began with.
struct Root {
    folder: tempfile::TempDir,
    tenant: TenantId,
    timeline: TimelineId,
}

/// The run's WAL.
struct Wal<'a> {
    folder: &'a Path,
    start: Lsn,
    end: Lsn,
    tli: PgTli,
    segment_size: WalSegmentSize,
}

impl Wal<'_> {
    /// Gives the WAL in chunks, which do not cross segments.
    fn read(&self, mut each: impl FnMut(WalChunk)) {
        let mut at = self.start;
        while at < self.end {
            let name = wal_file_name(self.tli, at.segment_number(self.segment_size), self.segment_size);
            let mut file = File::open(self.folder.join(name)).expect("the segment is there");
            file.seek(SeekFrom::Start(at.segment_offset(self.segment_size))).expect("a file can be read from anywhere");
            let segment_end = at.segment_start(self.segment_size).advance(self.segment_size.bytes());
            while at < segment_end.min(self.end) {
                let length = CHUNK_BYTES - at.get() % CHUNK_BYTES;
                let length = length.min(self.end.saturating_sub(at));
                let mut bytes = Vec::with_capacity(length as usize);
                let read = file.by_ref().take(length).read_to_end(&mut bytes).expect("the segment can be read");
                assert_eq!(read as u64, length, "segments are whole");
                each(WalChunk { start: at, bytes: bytes.into(), commit_lsn: self.end });
                at = at.advance(length);
            }
        }
    }
}

/// All files below `folder`, relative to it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(below) = left.pop() {
        for entry in fs::read_dir(folder.join(&below)).expect("the base can be read") {
            let path = below.join(entry.expect("an entry can be read").file_name());
            if folder.join(&path).is_dir() { left.push(path) } else { found.push(path) }
        }
    }
    found
}

fn open_engine(folder: &Path) -> Arc<Engine> {
    let store = LocalFolder::open(&folder.join("store")).expect("the store opens");
    let config = EngineConfig { background: false, ..EngineConfig::new(folder.join("local"), Arc::new(store)) };
    Engine::open(config).expect("the engine opens")
}

fn import(base: &Path, control: &ControlFile) -> Root {
    let spec = ImportSpec {
        pg_major: control.major.number(),
        system_id: control.system_id,
        pg_tli: control.checkpoint.tli,
        wal_segment_size: control.wal_segment_size,
        data_checksums: control.data_checksum_version != 0,
        start_lsn: control.checkpoint.redo,
    };
    let facts = TimelineFacts {
        pg_major: control.major,
        system_id: control.system_id,
        pg_tli: control.checkpoint.tli,
        wal_segment_size: control.wal_segment_size,
        start_lsn: control.checkpoint.redo,
    };
    let root = Root {
        folder: tempfile::tempdir().expect("a temporary folder"),
        tenant: TenantId::generate(),
        timeline: TimelineId::generate(),
    };
    let engine = open_engine(root.folder.path());
    let timeline = engine.create_root(root.tenant, root.timeline, facts).expect("a root is made");
    let mut import = Import::new(spec).expect("the major is known");
    let mut batch = Batch::default();
    let store = |batch: &mut Batch| {
        let values: Vec<_> = batch.values.drain(..).map(|(key, _, value)| (key, value)).collect();
        batch.clear();
        timeline.import_values(&values).expect("the values are taken");
    };
    for path in files(base) {
        let content = fs::read(base.join(&path)).expect("a file can be read");
        let name = path.to_str().expect("names are plain");
        import.begin_file(name, content.len() as u64, &mut batch).expect("the file is taken");
        for part in content.chunks(4 << 20) {
            import.data(bytes::Bytes::copy_from_slice(part), &mut batch).expect("the bytes are taken");
            store(&mut batch);
        }
    }
    import.finish(&mut batch).expect("the base is whole");
    store(&mut batch);
    timeline.finish_import().expect("the import is finished");
    root
}

/// Takes all WAL into `timeline` and makes it durable.
fn take_in(timeline: &Arc<Timeline>, wal: &Wal<'_>) {
    let mut intake = Intake::open(timeline).expect("the timeline takes WAL");
    wal.read(|chunk| intake.take(chunk).expect("the WAL is taken"));
    timeline.flush().expect("the layers can be written");
    assert_eq!(timeline.disk_consistent_lsn(), timeline.last_record().end, "all of it is durable");
}

fn main() {
    let only_ours = std::env::var("BENCH_ONLY").is_ok();
    print_header();
    for (kind, full_page_writes, target) in [("without images", false, ">= 2.5"), ("with images", true, ">= 1")] {
        let transactions = number_from("BENCH_TRANSACTIONS", 100_000);
        let run = PgbenchRun::make(PgbenchRunOptions { full_page_writes, transactions });
        let control = fs::read(run.base().join("global/pg_control")).expect("the base has a control file");
        let control = ControlFile::decode(&control).expect("the control file is whole");
        let lsn = |text: &str| text.parse::<Lsn>().expect("an LSN");
        let (start, end) = (lsn(run.start()), lsn(run.end()));
        assert_eq!(start, control.checkpoint.redo, "the run begins where its base ends");
        let (tli, segment_size) = (control.checkpoint.tli, control.wal_segment_size);
        let wal = Wal { folder: run.wal(), start, end, tli, segment_size };
        let mut records = 0;
        let mut decoder = WalDecoder::new(start, control.major, segment_size);
        wal.read(|chunk| {
            decoder.feed(chunk.bytes);
            while decoder.advance().expect("the WAL is whole") {
                records += 1;
            }
        });
        let root = import(run.base(), &control);
        let mut stored = 0;
        let ours = || {
            // Each round on a branch of its own; a new engine has nothing of the round before in memory.
            let engine = open_engine(root.folder.path());
            let branch = TimelineId::generate();
            engine.create_branch(root.tenant, branch, root.timeline, None).expect("a branch is made");
            let timeline = engine.timeline(root.tenant, branch).expect("the branch is there");
            let took = Took::by(|| take_in(&timeline, &wal));
            if only_ours {
                let ns = |time: Duration| time.as_nanos() as u64 / records;
                eprintln!("{} ns a record, {} ns of the processor", ns(took.elapsed), ns(took.cpu));
            }
            stored = timeline.sizes().stored_bytes;
            drop(timeline);
            engine.delete_timeline(root.tenant, branch).expect("the branch can be deleted");
            took
        };
        let case = format!("WAL to durable level-0 layers, one core, {kind}");
        let amount = Amount { records, bytes: end.saturating_sub(start) };
        let none = Took { elapsed: Duration::ZERO, cpu: Duration::ZERO };
        let both = side_by_side(ours, || if only_ours { none } else { run.recovery() });
        print_row(&case, amount, both, "recovery", target);
        let per_byte = stored as f64 / amount.bytes as f64;
        println!("| ... bytes in these layers for each byte of WAL | {per_byte:.2} | - | - | - | - |");
    }
}
