//! The second oracle must notice whatever is wrong: a server's files are spoilt in one place after the other.

use std::fs;
use std::path::{Path, PathBuf};

use ardent_pg_format::ControlFile;
use ardent_redo_oracle::{EndReport, EndState, WalFolder};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, server_command, temp_dir};

fn copy(from: &Path, to: &Path) {
    let copied = server_command("cp").arg("-a").arg(from).arg(to).status().expect("cp can be run");
    assert!(copied.success());
}

/// The file of the relation's fork.
fn path_of(server: &TestPg, relation: &str, suffix: &str) -> String {
    server.sql(&format!("select pg_relation_filepath('{relation}')")) + suffix
}

/// Where the first tuple of the page at `page` stands in the file.
fn tuple(file: &[u8], page: usize) -> usize {
    let pointer = u32::from_le_bytes(file[page + 24..page + 28].try_into().expect("4 bytes"));
    page + (pointer & 0x7FFF) as usize
}

struct Spoilt<'a> {
    state: &'a EndState,
    data: PathBuf,
}

impl Spoilt<'_> {
    fn compare(&self) -> EndReport {
        self.state.compare(&self.data).expect("the directory can be compared")
    }

    /// Changes a file, sees that exactly that is noticed, and puts the file back.
    fn check(&self, what: &str, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.data.join(path);
        let before = fs::read(&path).expect("the file is there");
        let mut content = before.clone();
        change(&mut content);
        assert_ne!(content, before, "{what}: nothing was spoilt");
        fs::write(&path, content).expect("the file can be written");
        let report = self.compare();
        assert_eq!(report.differing, 1, "{what}: {report}");
        fs::write(&path, before).expect("the file can be written");
    }
}

#[test]
fn whatever_is_spoilt_is_noticed() {
    let options = TestPgOptions::default()
        .set("autovacuum", "off")
        .set("wal_keep_size", "1GB")
        .set("max_prepared_transactions", "5")
        .set("track_commit_timestamp", "on");
    let mut server = TestPg::init(options);
    let root = temp_dir();
    copy(server.data_dir(), &root.path().join("base"));
    server.start_server();
    for sql in [
        "create table t as select g as id, repeat('t', 100) as pad from generate_series(1, 5000) g",
        "create index t_id on t (id)",
        "vacuum (freeze) t",
        "update t set pad = 'changed' where id > 4000",
        "create sequence s",
        "select pg_replication_origin_create('o'); select pg_replication_origin_advance('o', '0/ABCD')",
        "select nextval('s') from generate_series(1, 3)",
        "begin; select count(*) from (select * from t where id < 50 for key share) x; savepoint a; update t set id = id where id < 20; commit",
        "begin; insert into t values (0, 'prepared'); prepare transaction 'kept'",
    ] {
        server.sql(sql);
    }
    let (heap, map) = (path_of(&server, "t", ""), path_of(&server, "t", "_vm"));
    let (index, sequence) = (path_of(&server, "t_id", ""), path_of(&server, "s", ""));
    server.stop(StopMode::Fast);

    let mut state = EndState::begin(&root.path().join("base")).expect("the base is whole");
    let mut wal = WalFolder::open(&server.data_dir().join("pg_wal"), None, None).expect("the WAL is there");
    while let Some(record) = wal.next_record().expect("the WAL is whole") {
        state.follow(&record).expect("the record is ingested");
    }
    let data = root.path().join("data");
    copy(server.data_dir(), &data);
    let spoilt = Spoilt { state: &state, data };
    let report = spoilt.compare();
    assert!(report.passed() && report.pages > 1000 && report.slru_pages > 3, "{report}");

    // Page 5 was frozen and not touched since; page 0 has locked rows.
    let page = 5 * 8192;
    spoilt.check("the page's LSN", &heap, |file| file[page + 7] ^= 0x08);
    spoilt.check("PD_ALL_VISIBLE", &heap, |file| file[page + 10] ^= 0x04);
    spoilt.check("a row's content", &heap, |file| {
        let at = tuple(file, page) + 60;
        file[at] ^= 0x01;
    });
    spoilt.check("a row's xmax", &heap, |file| {
        let at = tuple(file, 0) + 4;
        file[at] ^= 0x01;
    });
    spoilt.check("a frozen row is not any more", &heap, |file| {
        let at = tuple(file, page) + 21;
        file[at] &= !0x03;
    });
    spoilt.check("a hint that only we have", &heap, |file| {
        let at = tuple(file, page) + 21;
        file[at] &= !0x08;
    });
    spoilt.check("a line pointer is dead", &heap, |file| file[page + 26] |= 0x01);
    spoilt.check("the page is missing", &heap, |file| file.truncate(file.len() - 8192));
    spoilt.check("there is a page more", &heap, |file| file.extend_from_within(page..page + 8192));
    spoilt.check("an all-visible bit is lost", &map, |file| file[25] &= !0x04);
    spoilt.check("an all-visible bit too many", &map, |file| file[8191] |= 0x01);
    spoilt.check("the map's LSN", &map, |file| file[4] ^= 0x08);
    spoilt.check("a key of the index", &index, |file| file[2 * 8192 - 16 - 8] ^= 0x01);
    spoilt.check("a flag of the index", &index, |file| file[2 * 8192 - 4] ^= 0x02);
    spoilt.check("the sequence's id", &sequence, |file| file[8184] ^= 0x01);
    spoilt.check("a transaction's status", "pg_xact/0000", |file| file[180] ^= 0x01);
    spoilt.check("a multixact's offset", "pg_multixact/offsets/0000", |file| file[4] ^= 0x01);
    spoilt.check("a multixact's member", "pg_multixact/members/0000", |file| file[24] ^= 0x01);
    spoilt.check("a commit's time", "pg_commit_ts/0000", |file| file[7300] ^= 0x01);
    spoilt.check("an origin's progress", "pg_logical/replorigin_checkpoint", |file| file[4 + 8] ^= 0x01);
    spoilt.check("all status of transactions is gone", "pg_xact/0000", Vec::clear);
    spoilt.check("the shared relation map", "global/pg_filenode.map", |file| file[12] ^= 0x01);
    spoilt.check("the next OID", "global/pg_control", |file| {
        let mut control = ControlFile::decode(file).expect("it is whole");
        control.checkpoint.next_oid += 1;
        *file = control.encode();
    });
    let prepared = fs::read_dir(spoilt.data.join("pg_twophase")).expect("the folder is there").next();
    let prepared = prepared.expect("a transaction is prepared").expect("the entry can be read").path();
    let name = prepared.strip_prefix(&spoilt.data).expect("it is below").to_str().expect("plain").to_owned();
    spoilt.check("a prepared transaction's file", &name, |file| file[30] ^= 0x01);
    fs::remove_file(&prepared).expect("the file can be removed");
    assert_eq!(spoilt.compare().differing, 1, "a prepared transaction is gone");
}
