//! Real WAL, spoilt: decoding and ingest give an error or values, never a panic, and never more than a bounded amount of them.
//!
//! `ARDENT_SEEDS` (default 2) says how often each record is spoilt, `ARDENT_SEED` where the dice begin.

mod support;

use std::time::{Duration, Instant};

use ardent_pg_format::{OwnedRecord, PgMajor, WalDecoder};
use ardent_pg_ingest::{Batch, Ingest, Progress};
use ardent_pg_redo::{HintBits, Value};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions};
use ardent_types::Lsn;
use bytes::{Bytes, BytesMut};
use support::directory::{control_file, import, import_spec, records};
use support::store::Store;

/// One record may make so many values: a gap of 32 GB of pages is the most.
const VALUES_MAX: usize = (1 << 22) + 100;
/// And take so long, on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(20);

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }

    /// Changes some bytes: bits, small numbers, the largest ones.
    fn spoil(&mut self, bytes: &mut [u8], from: usize) {
        for _ in 0..=self.below(3) {
            let at = from + self.below(bytes.len().saturating_sub(from));
            let new = match self.below(4) {
                0 => 0xFF,
                1 => self.below(8) as u8,
                2 => self.below(256) as u8,
                _ => bytes.get(at).copied().unwrap_or_default() ^ 1 << self.below(8),
            };
            if let Some(byte) = bytes.get_mut(at) {
                *byte = new;
            }
        }
    }
}

fn number_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Every kind of record that ingest looks into.
const WORK: [&str; 15] = [
    "create table t (id int primary key, v int); insert into t select g, g from generate_series(1, 300) g",
    "begin; update t set v = 1 where id < 50; savepoint a; delete from t where id > 250; rollback to a; commit",
    "vacuum (freeze) t",
    "delete from t where id > 20",
    "vacuum t",
    "begin; select count(*) from (select * from t where id < 9 for key share) x; savepoint a; update t set v = 2 where id < 9; commit",
    "begin; insert into t values (1000, 1); create table made (a int); prepare transaction 'p'",
    "commit prepared 'p'",
    "begin; drop table made; prepare transaction 'q'",
    "rollback prepared 'q'",
    "truncate t; create sequence s; select nextval('s')",
    "vacuum full pg_class",
    "create database copied strategy file_copy",
    "drop database copied",
    "select pg_replication_origin_create('o'); select pg_logical_emit_message(true, 'a', 'b'); select pg_create_restore_point('r')",
];

#[test]
fn spoilt_records_of_a_real_server_never_panic_and_stay_bounded() {
    let options = TestPgOptions::default()
        .set("max_prepared_transactions", "3")
        .set("autovacuum", "off")
        .set("track_commit_timestamp", "on")
        .set("wal_level", "logical");
    let mut server = TestPg::start(options);
    server.stop(StopMode::Fast);
    let mut store = Store::default();
    let spec = import_spec(server.data_dir());
    import(spec.clone(), server.data_dir(), &mut store);
    server.start_server();
    for sql in WORK {
        server.sql(sql);
    }
    server.stop(StopMode::Fast);

    let (rounds, seed) = (number_from("ARDENT_SEEDS", 2), number_from("ARDENT_SEED", 0x9E37_79B9_7F4A_7C15));
    let mut dice = Dice(seed.max(1));
    let load = |store: &Store| Ingest::load(PgMajor::V15, Lsn::INVALID, &store.newest()).expect("the store is whole");
    let mut real = load(&store);
    let (mut parsed, mut ingested) = (0, 0);
    records(server.data_dir(), spec.start_lsn, |record| {
        for _ in 0..rounds.clamp(1, 50) {
            let mut raw = record.raw.to_vec();
            // The header's length and checksum are seen to before.
            dice.spoil(&mut raw, 24);
            let Ok(spoilt) = OwnedRecord::parse(Bytes::from(raw), record.start_lsn, record.end_lsn, PgMajor::V15)
            else {
                continue;
            };
            let spoilt = spoilt.get();
            // Gaps of millions of zero pages are allowed and take a while: a few of them do.
            if spoilt.blocks.iter().any(|block| block.blkno > 50_000) && dice.below(40) > 0 {
                continue;
            }
            parsed += 1;
            for block in spoilt.blocks {
                let value = Value::for_block(PgMajor::V15, &spoilt, block, HintBits::Logged, &mut BytesMut::new());
                assert!(value.map_or(0, |value| value.encoded_len()) < 1 << 20);
            }
            let mut batch = Batch::default();
            let begun = Instant::now();
            let mut ingest = load(&store);
            for _ in 0..100 {
                match ingest.ingest(&spoilt, &store.newest(), &mut batch) {
                    Ok(Progress::FlushFirst) => batch.clear(),
                    Ok(Progress::Done) => {
                        ingested += 1;
                        break;
                    }
                    Err(_) => break,
                }
                assert!(batch.values.len() <= VALUES_MAX, "seed {seed}: {record:?}");
            }
            assert!(batch.values.len() <= VALUES_MAX, "seed {seed}: {} values of {record:?}", batch.values.len());
            assert!(begun.elapsed() < TIME_MAX, "seed {seed}: {:?} for {record:?}", begun.elapsed());
        }
        store.ingest(&mut real, record);
    });
    assert!(parsed > 500 && ingested > 200, "{parsed} parsed, {ingested} ingested");
}

#[test]
fn spoilt_wal_files_never_panic_and_never_invent_records() {
    let mut server = TestPg::start(TestPgOptions::default().initdb_arg("--wal-segsize=1").set("wal_keep_size", "1GB"));
    let start: Lsn = server.sql("select redo_lsn from pg_control_checkpoint()").parse().expect("an LSN");
    server.sql("create table t as select g from generate_series(1, 5000) g");
    server.stop(StopMode::Fast);
    let control = control_file(server.data_dir());
    let size = control.wal_segment_size;
    let number = start.segment_number(size);
    let name = format!("{:08X}{:08X}{:08X}", control.checkpoint.tli.get(), 0, number);
    let segment = std::fs::read(server.data_dir().join("pg_wal").join(name)).expect("the segment is there");
    let segment = &segment[start.segment_offset(size) as usize..];
    let read = |bytes: &[u8]| {
        let mut decoder = WalDecoder::new(start, PgMajor::V15, size);
        decoder.feed_slice(bytes);
        let mut found = Vec::new();
        while let Ok(Some(record)) = decoder.next() {
            found.push((record.start_lsn, record.end_lsn, record.header.rmid, record.header.info));
        }
        found
    };
    let whole = read(segment);
    assert!(whole.len() > 1000, "{}", whole.len());
    let mut dice = Dice(number_from("ARDENT_SEED", 77).max(1));
    for _ in 0..number_from("ARDENT_SEEDS", 2).clamp(1, 1000) * 50 {
        let mut bytes = segment.to_vec();
        dice.spoil(&mut bytes, 0);
        assert!(whole.starts_with(&read(&bytes)), "a spoilt file has records that the server did not write");
    }
}
