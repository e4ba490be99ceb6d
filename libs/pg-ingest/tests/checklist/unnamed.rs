//! Files that no catalog names: a server is killed with transactions in flight that had made or rewritten relations.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ardent_pg_ingest::{Batch, Ingest, ReadState as _, Unnamed, UnnamedError, UnnamedFile, unnamed_files};
use ardent_pg_redo::Value;
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, program};
use ardent_types::{ForkNumber, Key, Lsn, RelTag};
use bytes::Bytes;

use crate::support::directory::{control_file, import, import_spec, records};
use crate::support::store::Store;

/// Everything that moves relations to other files, or makes files come and go.
const WORK: &[&str] = &[
    "create table kept (id int primary key, t text); insert into kept select g, repeat('k', 50) from generate_series(1, 2000) g",
    "create table rewritten as select g as id, 'r' as t from generate_series(1, 500) g; create index rewritten_id on rewritten (id)",
    "vacuum full rewritten",
    "create table cut (id int); insert into cut values (1); truncate cut",
    "create table gone (id int primary key); drop table gone",
    "begin; create table never (id int primary key); rollback",
    "create unlogged table unlogged (id int primary key); insert into unlogged values (1)",
    "create sequence s; create materialized view m as select * from kept",
    "create tablespace space location ''",
    "create table far (id int primary key) tablespace space; alter table cut set tablespace space",
    "begin; savepoint a; create table by_sub (t text); release a; commit",
    // A row of pg_class that is locked, and one that was replaced.
    "begin; select 1 from pg_class where relname = 'kept' for key share; comment on table kept is 'x'; commit",
    "create database copied strategy file_copy",
    "create database written strategy wal_log",
    "create database dropped",
    "drop database dropped",
    "vacuum full pg_class",
    "vacuum full pg_database",
    "vacuum (freeze) pg_class",
    "reindex table pg_class",
    "begin; create table prepared (id int primary key); savepoint a; create table prepared_sub (t text); prepare transaction 'p'",
];

/// A session that stays open.
struct Session {
    psql: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    fn open(server: &TestPg) -> Session {
        let mut psql = Command::new(program("psql"))
            .args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-d", &server.socket_url("postgres")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("psql can be run");
        let input = psql.stdin.take().expect("it is a pipe");
        let output = BufReader::new(psql.stdout.take().expect("it is a pipe"));
        Session { psql, input, output }
    }

    /// Runs statements and gives the rows.
    fn run(&mut self, sql: &str) -> Vec<String> {
        writeln!(self.input, "{sql};\nselect 'end of rows';").expect("psql reads");
        let mut rows = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).expect("psql writes") > 0, "psql ended: {sql}");
            match line.trim_end() {
                "end of rows" => return rows,
                row => rows.push(row.to_owned()),
            }
        }
    }

    /// Runs statements in a transaction that stays open; gives the files of these relations, and of what belongs to them.
    fn leave_open(&mut self, sql: &str, relation: &str) -> BTreeSet<u32> {
        self.run(sql);
        let files = format!(
            "with r as (select oid, reltoastrelid from pg_class where oid = '{relation}'::regclass),
                  all_of as (select oid from r union select reltoastrelid from r
                             union select indexrelid from pg_index where indrelid in (select oid from r union select reltoastrelid from r))
             select pg_relation_filenode(oid) from all_of where oid <> 0"
        );
        self.run(&files).iter().map(|file| file.parse().expect("a number")).collect()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Its server is gone; nobody waits for an answer.
        self.psql.kill().ok();
        self.psql.wait().ok();
    }
}

#[test]
fn checklist_68_files_that_no_catalog_names_are_found() {
    let options = TestPgOptions::default()
        .set("max_prepared_transactions", "5")
        .set("allow_in_place_tablespaces", "on")
        .set("autovacuum", "off")
        .set("wal_keep_size", "1GB");
    let mut server = TestPg::start(options);
    server.stop(StopMode::Fast);
    let mut store = Store::default();
    let spec = import_spec(server.data_dir());
    import(spec.clone(), server.data_dir(), &mut store);
    assert_eq!(unnamed_files(&store.newest()).expect("the catalogs can be read"), []);

    server.start_server();
    for sql in WORK {
        server.sql(sql);
    }
    server.sql_in("copied", "create table there (t text)");
    server.sql_in("copied", "vacuum full pg_class");
    let settled: Lsn = server.sql("select pg_current_wal_insert_lsn()").parse().expect("an LSN");
    let mut sessions: Vec<Session> = (0..4).map(|_| Session::open(&server)).collect();
    let mut expected = BTreeSet::new();
    expected.extend(sessions[0].leave_open(
        "begin; create table in_flight as select g as id, repeat('f', 100) as t from generate_series(1, 2000) g",
        "in_flight",
    ));
    assert_eq!(expected.len(), 3, "a table with its TOAST table and index: {expected:?}");
    expected.extend(sessions[1].leave_open("begin; reindex index kept_pkey", "kept_pkey"));
    expected.extend(sessions[2].leave_open("begin; truncate rewritten", "rewritten"));
    expected.extend(sessions[3].leave_open("begin; savepoint a; create table sub (id int); release a", "sub"));
    server.sql("checkpoint");
    let database: u32 = server.sql("select oid from pg_database where datname = 'postgres'").parse().expect("an OID");
    server.kill();
    drop(sessions);

    let mut ingest = Ingest::load(control_file(server.data_dir()).major, Lsn::INVALID, &store.newest())
        .expect("the import is whole");
    records(server.data_dir(), spec.start_lsn, |record| store.ingest(&mut ingest, record));
    let find = |store: &Store, at| unnamed_files(&store.at(at)).expect("the catalogs can be read");
    assert_eq!(find(&store, settled), []);
    let found = find(&store, Lsn::MAX);
    let files: BTreeSet<u32> = found.iter().map(|file| file.rel.relnode).collect();
    assert_eq!(files, expected, "{found:?}");
    assert!(found.iter().all(|file| file.reason == Unnamed::NoRelation && file.rel.dbnode == database), "{found:?}");
    let blocks = |file: &UnnamedFile| file.forks.iter().map(|(_, blocks)| blocks).sum::<u32>();
    assert!(found.iter().map(blocks).sum::<u32>() > 20, "{found:?}");

    // A database that no row of pg_database has; and a catalog that can't be read is an error, not a long list.
    let rel = RelTag { spcnode: 1663, dbnode: 77_777, relnode: 1259, fork: ForkNumber::Main };
    let put = |store: &mut Store, key: Key, value: Value| {
        let mut batch = Batch::default();
        batch.push(key, Lsn::new(u64::MAX - 100), value);
        store.apply(&mut batch);
    };
    put(&mut store, Key::RelSize(rel), Value::Image(Bytes::copy_from_slice(&3u32.to_le_bytes())));
    let left = find(&store, Lsn::MAX);
    let of_it = UnnamedFile { rel, forks: vec![(ForkNumber::Main, 3)], reason: Unnamed::NoDatabase };
    assert_eq!(left.len(), found.len() + 1);
    assert!(left.contains(&of_it), "{left:?}");
    let map = Key::RelMap { spcnode: 1663, dbnode: database };
    let mut content = store.newest().get(map).expect("it can be read").expect("it is there").to_vec();
    content[12] ^= 1;
    put(&mut store, map, Value::Image(Bytes::from(content)));
    let error = unnamed_files(&store.newest()).expect_err("the map is damaged");
    assert!(matches!(error, UnnamedError::Damaged { place, .. } if place == map), "{error}");
}
