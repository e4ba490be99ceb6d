//! How many records a second one core decodes and ingests. Nothing is stored.
//!
//! `cargo run --release -p ardent-pg-ingest --example ingest_rate -- BEFORE AFTER`: two data directories of one server, stopped, the first
//! a copy from before the work that is measured; the WAL between must still be in the second's `pg_wal`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Instant;
use std::{env, fs, io};

use ardent_api::page_service::ImportSpec;
use ardent_pg_format::{ControlFile, WalDecoder};
use ardent_pg_ingest::{Batch, Import, Ingest, Progress, ReadState};
use ardent_pg_redo::Value;
use ardent_types::{Key, Lsn};
use bytes::Bytes;

/// A batch is handed over, here forgotten, when it has so many bytes.
const BATCH_BYTES: usize = 4 << 20;

/// Everything but pages.
#[derive(Default)]
struct Small(BTreeMap<Key, Bytes>);

impl Small {
    fn take(&mut self, batch: &mut Batch) {
        for (key, _, value) in batch.values.drain(..) {
            if let (Key::RelSize(_) | Key::Checkpoint | Key::ControlFile, Value::Image(content)) = (key, value) {
                self.0.insert(key, content);
            }
        }
        batch.clear();
    }
}

impl ReadState for Small {
    type Error = Infallible;

    fn get(&self, key: Key) -> Result<Option<Bytes>, Infallible> {
        Ok(self.0.get(&key).cloned())
    }

    fn scan(&self, range: RangeInclusive<Key>) -> Result<Vec<(Key, Bytes)>, Infallible> {
        Ok(self.0.range(range).map(|(key, content)| (*key, content.clone())).collect())
    }
}

fn control_file(data_dir: &Path) -> ControlFile {
    let bytes = fs::read(data_dir.join("global/pg_control")).expect("BEFORE and AFTER are data directories");
    ControlFile::decode(&bytes).expect("pg_control is whole")
}

fn import(data_dir: &Path) -> (Small, Lsn, ControlFile) {
    let control = control_file(data_dir);
    let start_lsn = control.checkpoint.redo;
    let spec = ImportSpec {
        pg_major: control.major.number(),
        system_id: control.system_id,
        pg_tli: control.checkpoint.tli,
        wal_segment_size: control.wal_segment_size,
        data_checksums: control.data_checksum_version != 0,
        start_lsn,
    };
    let (mut state, mut batch) = (Small::default(), Batch::default());
    let mut import = Import::new(spec).expect("the major is known");
    for folder in ["base/1", "base/4", "base/5", "global"] {
        for entry in fs::read_dir(data_dir.join(folder)).expect("a folder can be read") {
            let path = entry.expect("an entry can be read").path();
            let content = fs::read(&path).expect("a file can be read");
            let name = path.strip_prefix(data_dir).expect("it is below").to_str().expect("names are plain");
            import.begin_file(name, content.len() as u64, &mut batch).expect("taken");
            import.data(content.into(), &mut batch).expect("taken");
            batch.clear();
        }
    }
    import.finish(&mut batch).expect("the directory is whole");
    state.take(&mut batch);
    (state, start_lsn, control)
}

fn main() -> io::Result<()> {
    let folders: Vec<_> = env::args_os().skip(1).collect();
    let [before, after] = &folders[..] else {
        eprintln!("usage: ingest_rate BEFORE AFTER");
        std::process::exit(2);
    };
    let (mut state, start, control) = import(Path::new(before));
    let (major, size) = (control.major, control.wal_segment_size);
    let mut segments: Vec<Bytes> = Vec::new();
    for number in start.segment_number(size).. {
        let per_id = (1 << 32) / size.bytes();
        let name = format!("{:08X}{:08X}{:08X}", control.checkpoint.tli.get(), number / per_id, number % per_id);
        match fs::read(Path::new(after).join("pg_wal").join(name)) {
            Ok(segment) => segments.push(segment.into()),
            Err(_) => break,
        }
    }
    segments[0] = segments[0].slice(start.segment_offset(size) as usize..);
    let decoder = |segments: &[Bytes]| {
        let mut decoder = WalDecoder::new(start, major, size);
        segments.iter().for_each(|segment| decoder.feed(segment.clone()));
        decoder
    };

    let begun = Instant::now();
    let mut decoding = decoder(&segments);
    let mut records = 0u64;
    while let Ok(Some(_)) = decoding.next() {
        records += 1;
    }
    report("decode", records, decoding.end_of_last_record().saturating_sub(start), begun);

    let mut ingest = Ingest::load(major, Lsn::INVALID, &state).expect("the state is whole");
    let mut batch = Batch::default();
    let (mut values, mut value_bytes) = (0, 0);
    let begun = Instant::now();
    let mut decoding = decoder(&segments);
    while let Ok(Some(record)) = decoding.next() {
        while ingest.ingest(&record, &state, &mut batch).expect("ingested") == Progress::FlushFirst {
            state.take(&mut batch);
        }
        if batch.size_bytes() >= BATCH_BYTES {
            values += batch.values.len();
            value_bytes += batch.size_bytes();
            batch.clear();
        }
    }
    values += batch.values.len();
    value_bytes += batch.size_bytes();
    report("decode and ingest", records, decoding.end_of_last_record().saturating_sub(start), begun);
    println!("{values} values, {} MiB", value_bytes >> 20);
    Ok(())
}

fn report(what: &str, records: u64, bytes: u64, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{what}: {records} records, {} MiB in {seconds:.2} s: {:.2} M records/s, {:.0} MiB/s",
        bytes >> 20,
        records as f64 / seconds / 1e6,
        bytes as f64 / seconds / f64::from(1 << 20)
    );
}
