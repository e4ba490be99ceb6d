//! Postgres is the oracle: what we decode of a real server's WAL is what its own `pg_waldump` shows, line by line.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use ardent_pg_format::segment::wal_file_name;
use ardent_pg_format::{DecodedRecord, OwnedRecord, PgMajor, WalDecoder, restore_image, rmgr};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, program, server_command};
use ardent_types::{ForkNumber, Lsn, PgTli, WalSegmentSize};

/// Statements that make WAL of most resource managers.
const WORKLOAD: &str = "
create extension if not exists btree_gin;
create table t (id serial primary key, a int, b text, c int[], p point);
create index t_hash on t using hash (a);
create index t_gin on t using gin (c);
create index t_gist on t using gist (p);
create index t_spgist on t using spgist (p);
create index t_brin on t using brin (a);
insert into t (a, b, c, p) select i, repeat(i::text, i % 300), array[i, i % 7], point(i, -i) from generate_series(1, 3000) i;
update t set a = a + 1 where id % 3 = 0;
delete from t where id % 5 = 0;
select count(*) from t where id = 17;
checkpoint;
update t set b = b || 'x' where id % 11 = 0;
vacuum t;
begin; savepoint a; insert into t (a) values (1); savepoint b; insert into t (a) values (2); rollback to a; commit;
select 1 from t where id = 1 for update;
create table u as select i, md5(i::text) from generate_series(1, 2000) i;
truncate u;
create database d2;
select pg_logical_emit_message(false, 'prefix', repeat('m', 20000));
select pg_logical_emit_message(true, 'prefix', repeat('n', 100));
select pg_switch_wal();
insert into t (a) select generate_series(1, 10);
select pg_create_restore_point('here');
begin; insert into t (a) values (3); prepare transaction 'p1';
commit prepared 'p1';
vacuum full t;
drop table u;
checkpoint;
";

fn run_workload(server: &TestPg) {
    for line in WORKLOAD.lines().filter(|line| !line.is_empty()) {
        server.sql(line);
    }
}

/// The segment files of a server, oldest first.
fn segments(server: &TestPg) -> Vec<PathBuf> {
    let entries = fs::read_dir(server.data_dir().join("pg_wal")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn waldump(server: &TestPg, size: WalSegmentSize, start: Lsn, end: Lsn) -> Vec<String> {
    // Told which files: by itself it takes the segments' size from the first one that the folder lists, which may not be written yet.
    let [first, last] =
        [start, Lsn::new(end.get() - 1)].map(|at| wal_file_name(PgTli::new(1), at.segment_number(size), size));
    let output = server_command(program("pg_waldump"))
        .arg("-p")
        .arg(server.data_dir().join("pg_wal"))
        .args(["-s", &start.to_string(), "-e", &end.to_string(), &first, &last])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(normalize).collect()
}

/// What we compare of a line: up to the previous LSN, the type's name, the block references, and a commit's replication origin.
fn normalize(line: &str) -> String {
    let (head, rest) = line.split_once(", desc: ").unwrap();
    let blocks = rest.find("blkref #").map_or("", |at| &rest[at..]);
    let name = rest.split_whitespace().next().unwrap().trim_end_matches(',');
    let origin = rest.split_once("; origin: node ").map_or_else(String::new, |(_, origin)| {
        let (node, _) = origin.split_once(',').unwrap();
        format!("origin {node}")
    });
    format!("{head}, desc: {name} {blocks}{origin}").trim_end().to_owned()
}

fn show(record: &DecodedRecord<'_>) -> String {
    let header = &record.header;
    let images: usize = record.blocks.iter().flat_map(|block| &block.image).map(|image| image.stored_len()).sum();
    let mut line = format!(
        "rmgr: {:<11} len (rec/tot): {:6}/{:6}, tx: {:10}, lsn: {}, prev {}, desc: {} ",
        rmgr::name(header.rmid),
        header.tot_len as usize - images,
        header.tot_len,
        header.xid,
        record.start_lsn,
        header.prev,
        rmgr::identify(header.rmid, header.info, PgMajor::V15).unwrap_or("UNKNOWN"),
    );
    for (number, block) in record.blocks.iter().enumerate() {
        let fork = match block.rel.fork {
            ForkNumber::Main => "",
            ForkNumber::Fsm => " fork fsm",
            ForkNumber::Vm => " fork vm",
            ForkNumber::Init => " fork init",
        };
        let rel = &block.rel;
        let comma = if number == 0 { "" } else { ", " };
        write!(
            line,
            "{comma}blkref #{}: rel {}/{}/{}{fork} blk {}",
            block.id, rel.spcnode, rel.dbnode, rel.relnode, block.blkno
        )
        .unwrap();
        if let Some(image) = &block.image {
            line.push_str(if image.apply { " FPW" } else { " FPW for WAL verification" });
        }
    }
    // Rows have their origin too, but pg_waldump shows it of ends of transactions only.
    if let Some(origin) = record.origin.filter(|_| header.rmid == rmgr::TRANSACTION) {
        write!(line, "origin {origin}").unwrap();
    }
    line.trim_end().to_owned()
}

/// The server's WAL from the start of its oldest segment, and where that is.
fn read_wal(files: &[PathBuf], size: WalSegmentSize) -> (Lsn, Bytes) {
    let number = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let part = |range: std::ops::Range<usize>| u64::from_str_radix(&name[range], 16).unwrap();
        part(8..16) * (0x1_0000_0000 / size.bytes()) + part(16..24)
    };
    let start = Lsn::new(number(&files[0]) * size.bytes());
    (start, files.iter().flat_map(|file| fs::read(file).unwrap()).collect::<Vec<u8>>().into())
}

/// Decodes all records up to `end`, fed in pieces of `piece` bytes.
fn decode(mut decoder: WalDecoder, wal: &Bytes, piece: usize, end: Lsn) -> Vec<OwnedRecord> {
    let mut records = Vec::new();
    let mut rest = wal.clone();
    while decoder.end_of_last_record() < end {
        match decoder.next().unwrap() {
            Some(record) => {
                let raw = Bytes::copy_from_slice(record.raw);
                let owned = OwnedRecord::parse(raw, record.start_lsn, record.end_lsn, PgMajor::V15).unwrap();
                assert_eq!(owned.get().blocks, record.blocks);
                records.push(owned);
            }
            None => {
                assert!(!rest.is_empty(), "the WAL ends before {end}");
                decoder.feed(rest.split_to(piece.min(rest.len())));
            }
        }
    }
    records
}

/// The WAL of a server that was stopped, and its records: each is what `pg_waldump` shows of it.
struct Shown {
    start: Lsn,
    end: Lsn,
    wal: Bytes,
    records: Vec<OwnedRecord>,
}

fn shown_by_waldump(mut server: TestPg, size: WalSegmentSize) -> Shown {
    let end: Lsn = server.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
    server.stop(StopMode::Immediate);
    let (start, wal) = read_wal(&segments(&server), size);
    let records = decode(WalDecoder::at_page(start, PgMajor::V15, size), &wal, 1 << 20, end);
    let expect = waldump(&server, size, records[0].get().start_lsn, end);
    assert_eq!(records.len(), expect.len());
    for (record, expect) in records.iter().zip(&expect) {
        assert_eq!(&show(&record.get()), expect);
    }
    Shown { start, end, wal, records }
}

fn check_against_waldump(options: TestPgOptions, size: WalSegmentSize) {
    let server = TestPg::start(options.set("max_prepared_transactions", "5").set("wal_keep_size", "1GB"));
    run_workload(&server);
    let Shown { start, end, wal, records } = shown_by_waldump(server, size);
    let records: Vec<_> = records.iter().map(OwnedRecord::get).collect();
    for record in &records {
        for block in record.blocks.iter().filter(|block| block.image.is_some()) {
            restore_image(record, block).unwrap();
        }
    }
    // The same records, however the bytes are cut, and from wherever reading starts.
    for piece in [1, 7, 1000, 8192, 100_000] {
        let middle = records[records.len() / 3].end_lsn;
        let decoder =
            WalDecoder::new(middle, PgMajor::V15, size).with_previous_record(records[records.len() / 3].start_lsn);
        let tail = wal.slice((middle.get() - start.get()) as usize..);
        let again = decode(decoder, &tail, piece, end);
        let expect = &records[records.len() / 3 + 1..];
        assert_eq!(again.len(), expect.len());
        for (a, b) in again.iter().map(OwnedRecord::get).zip(expect) {
            assert_eq!((a.start_lsn, a.end_lsn, a.raw, a.blocks), (b.start_lsn, b.end_lsn, b.raw, b.blocks));
        }
    }
}

#[test]
fn checklist_02_03_04_08_12_decode_is_what_pg_waldump_shows() {
    check_against_waldump(TestPgOptions::default(), WalSegmentSize::DEFAULT);
}

#[test]
fn checklist_12_origins_and_top_level_transactions_are_decoded() {
    let options = TestPgOptions::default().set("wal_level", "logical").set("wal_keep_size", "1GB");
    let server = TestPg::start(options);
    server.sql("create table t (a int)");
    let origin = server.sql("select pg_replication_origin_create('elsewhere')");
    let said = server.sql(
        "select pg_replication_origin_session_setup('elsewhere'); begin; insert into t values (1); \
         select pg_current_xact_id(); savepoint a; insert into t values (2), (3); commit",
    );
    let top: u32 = said.lines().last().expect("it gives its transaction's id").parse().expect("an id");
    let sub: u32 = server.sql("select xmin from t where a = 2").parse().expect("an id");
    let origin: u16 = origin.parse().expect("an origin's number");
    // A commit's origin is in what pg_waldump shows, and so it is compared; all else is known from SQL.
    let Shown { records, .. } = shown_by_waldump(server, WalSegmentSize::DEFAULT);
    let found: Vec<_> = records
        .iter()
        .map(OwnedRecord::get)
        .filter(|record| [top, sub].contains(&record.header.xid))
        .map(|record| {
            let (rmid, info, xid) = (record.header.rmid, record.header.info, record.header.xid);
            let name = rmgr::identify(rmid, info, PgMajor::V15).unwrap_or("UNKNOWN");
            (name, xid, record.origin, record.toplevel_xid)
        })
        .collect();
    // Only the first record of a subtransaction says whose it is.
    let expect = [
        ("INSERT+INIT", top, Some(origin), None),
        ("INSERT", sub, Some(origin), Some(top)),
        ("INSERT", sub, Some(origin), None),
        ("COMMIT", top, Some(origin), None),
    ];
    assert_eq!(found, expect);
}

#[test]
fn checklist_09_11_13_14_small_segments_consistency_images_and_pglz() {
    let options = TestPgOptions::default()
        .initdb_arg("--wal-segsize=1")
        .set("wal_consistency_checking", "all")
        .set("wal_compression", "pglz");
    check_against_waldump(options, WalSegmentSize::new(1 << 20).unwrap());
}

#[test]
fn checklist_14_lz4_and_zstd_images() {
    for method in ["lz4", "zstd"] {
        let options = TestPgOptions::default().set("wal_consistency_checking", "heap").set("wal_compression", method);
        check_against_waldump(options, WalSegmentSize::DEFAULT);
    }
}
