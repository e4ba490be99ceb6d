//! Servers of majors other than 15: what they say of their WAL and of `pg_control` is what we read in the files.

use std::fs;

use ardent_pg_format::segment::wal_file_name;
use ardent_pg_format::{ControlFile, WalDecoder, rmgr};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, other_majors};
use ardent_types::Lsn;

const WORK: &str = "
    create table t (a int primary key, b text);
    insert into t select g, repeat(md5(g::text), 10) from generate_series(1, 2000) g;
    create index on t using gin (to_tsvector('simple', b));
    create index on t using hash (b);
    update t set b = 'x' || b where a % 3 = 0;
    delete from t where a % 5 = 0;
    vacuum (freeze) t;
    begin; insert into t values (10000, 'p'); prepare transaction 'p';
    commit prepared 'p';
    create database d;
    drop database d;
    select pg_switch_wal();
    checkpoint;
    update t set b = 'y' where a < 300;
    truncate t;
";

fn control_file(server: &TestPg) -> (ControlFile, Vec<u8>) {
    let bytes = fs::read(server.data_dir().join("global/pg_control")).expect("pg_control can be read");
    (ControlFile::decode(&bytes).expect("pg_control is whole"), bytes)
}

/// A row of psql's with LSNs written as we write them.
fn normal(row: &str) -> String {
    let fields =
        row.split('|').map(|field| field.parse::<Lsn>().map_or_else(|_| field.to_owned(), |lsn| lsn.to_string()));
    fields.collect::<Vec<_>>().join("|")
}

/// Each record as `start|end|prev|xid|manager|type|length|main data`, which `pg_walinspect` shows as well.
fn decoded(server: &TestPg, start: Lsn, end: Lsn) -> Vec<String> {
    let (control, _) = control_file(server);
    let size = control.wal_segment_size;
    let mut decoder = WalDecoder::new(start, control.major, size).with_system_id(control.system_id);
    let mut offset = start.segment_offset(size) as usize;
    let mut lines = Vec::new();
    for number in start.segment_number(size).. {
        let path = server.data_dir().join("pg_wal").join(wal_file_name(control.checkpoint.tli, number, size));
        let segment = fs::read(path).expect("a segment can be read");
        decoder.feed_slice(&segment[offset..]);
        offset = 0;
        while decoder.end_of_last_record() < end {
            let Some(record) = decoder.next().expect("the WAL is whole") else { break };
            let header = &record.header;
            lines.push(format!(
                "{}|{}|{}|{}|{}|{}|{}|{}",
                record.start_lsn,
                record.end_lsn,
                header.prev,
                header.xid,
                rmgr::name(header.rmid),
                rmgr::identify(header.rmid, header.info, control.major).unwrap_or("UNKNOWN"),
                header.tot_len,
                record.main_data().len()
            ));
        }
        if decoder.end_of_last_record() >= end {
            break;
        }
    }
    lines
}

#[test]
fn decode_is_what_pg_walinspect_shows() {
    for major in other_majors() {
        let server = TestPg::start(
            TestPgOptions::default().major(major).set("max_prepared_transactions", "5").set("wal_keep_size", "1GB"),
        );
        server.sql("create extension pg_walinspect");
        let start: Lsn = server.sql("select pg_current_wal_insert_lsn()").parse().expect("an LSN");
        for statement in WORK.split(";\n") {
            server.sql(statement);
        }
        let end: Lsn = server.sql("select pg_current_wal_flush_lsn()").parse().expect("an LSN");
        let shown = server.sql(&format!(
            "select start_lsn, end_lsn, prev_lsn, xid, resource_manager, record_type, record_length, main_data_length \
             from pg_get_wal_records_info('{start}', '{end}')"
        ));
        let shown: Vec<String> = shown.lines().map(normal).collect();
        assert!(shown.len() > 2000, "{} records", shown.len());
        assert_eq!(decoded(&server, start, end), shown, "Postgres {major}");
    }
}

#[test]
fn control_files_are_what_the_server_says() {
    for major in other_majors() {
        let options =
            TestPgOptions::default().major(major).set("track_commit_timestamp", "on").set("wal_level", "logical");
        let mut server = TestPg::start(options);
        server.sql("create table t as select generate_series(1, 100) a");
        server.sql("checkpoint");
        let (control, bytes) = control_file(&server);
        assert_eq!(control.encode(), bytes, "decoding and encoding changes nothing");
        let checkpoint = &control.checkpoint;
        let ours = format!(
            "{}|{}|{}|{}:{}|{}|{}|{}|{}|{}|{}",
            control.checkpoint_lsn,
            checkpoint.redo,
            checkpoint.tli.get(),
            checkpoint.next_xid >> 32,
            checkpoint.next_xid as u32,
            checkpoint.next_oid,
            checkpoint.next_multi,
            checkpoint.next_multi_offset,
            checkpoint.oldest_xid,
            checkpoint.oldest_active_xid,
            checkpoint.newest_commit_ts_xid,
        );
        let said = server.sql(
            "select checkpoint_lsn, redo_lsn, timeline_id, next_xid, next_oid, next_multixact_id, next_multi_offset, oldest_xid, \
             oldest_active_xid, newest_commit_ts_xid from pg_control_checkpoint()",
        );
        assert_eq!(ours, normal(&said), "Postgres {major}");
        let ours = format!("{}|{}", control.major.control_version(), control.major.catalog_version());
        assert_eq!(ours, server.sql("select pg_control_version, catalog_version_no from pg_control_system()"));
        let ours = format!(
            "{}|{}|{}|{}|{}",
            control.name_data_len,
            control.index_max_keys,
            control.toast_max_chunk_size,
            control.large_object_block_size,
            control.data_checksum_version
        );
        let said = "select max_identifier_length, max_index_columns, max_toast_chunk_size, large_object_chunk_size, \
                    data_page_checksum_version from pg_control_init()";
        assert_eq!(ours, server.sql(said), "Postgres {major}");
        assert_eq!((control.wal_level, control.track_commit_timestamp), (2, true));
        if major >= 17 {
            assert_eq!(checkpoint.wal_level, 2);
        }
        server.stop(StopMode::Fast);
        let (control, bytes) = control_file(&server);
        assert_eq!(control.encode(), bytes, "decoding and encoding changes nothing");
    }
}
