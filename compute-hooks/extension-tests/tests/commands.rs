//! Commands that go around the storage manager, and what shrinks and ends relations.

use ardent_extension_tests::HollowPg;
use ardent_test_pg::{TestPg, program, server_command};
use ardent_types::ForkNumber;

fn prepare(server: &TestPg) {
    server.sql("create database d2");
    server.sql_in("d2", "create table x as select g as id, md5(g::text) as v from generate_series(1, 5000) g");
    server.sql("create table t (id int primary key, v text)");
    server.sql("insert into t select g, md5(g::text) from generate_series(1, 20000) g");
    server.sql("create extension pg_prewarm");
}

const X_SUM: &str = "select count(*), sum(id), md5(string_agg(v, '' order by id)) from x";

#[test]
fn copies_of_databases_are_complete() {
    let mut expected = String::new();
    let hollow = HollowPg::start(
        |server| {
            prepare(server);
            expected = server.sql_in("d2", X_SUM);
        },
        &[],
    );
    hollow.server.sql("create database copied template d2 strategy file_copy");
    assert_eq!(hollow.server.sql_in("copied", X_SUM), expected);
    hollow.server.sql("create database logged template d2");
    assert_eq!(hollow.server.sql_in("logged", X_SUM), expected);
    let space = hollow.dir().join("space");
    let made = server_command("mkdir").arg(&space).status().expect("mkdir runs");
    assert!(made.success());
    hollow.server.sql(&format!("create tablespace s location '{}'", space.display()));
    hollow.server.sql("alter database d2 set tablespace s");
    assert_eq!(hollow.server.sql_in("d2", X_SUM), expected);
    // A plain file copy of the default template.
    hollow.server.sql("create database plain strategy = 'FILE_COPY'");
    assert_eq!(hollow.server.sql_in("plain", "select count(*) > 300 from pg_class"), "t");
}

#[test]
fn a_dropped_database_is_forgotten_even_if_its_numbers_come_back() {
    let hollow = HollowPg::start(prepare, &[]);
    let database = hollow.server.sql("select oid from pg_database where datname = 'd2'");
    let left = || {
        hollow
            .map
            .entries()
            .filter(|entry| entry.rel().dbnode.to_string() == database && entry.base_nblocks() > 0)
            .count()
    };
    assert!(left() > 100);
    hollow.server.sql("drop database d2");
    assert_eq!(left(), 0);
    hollow.server.sql(&format!("create database again template template0 oid = {database}"));
    assert_eq!(hollow.server.sql_in("again", "select count(*) from pg_class where relname = 'x'"), "0");
}

#[test]
fn a_cut_relation_grows_again_with_its_own_pages() {
    let hollow = HollowPg::start(prepare, &[]);
    let table = hollow.rel("t", ForkNumber::Main);
    hollow.server.sql("delete from t where id > 5000");
    hollow.server.sql("vacuum t");
    let entry = hollow.map.find(&table).expect("has an entry");
    let blocks: u32 = hollow.server.sql("select pg_relation_size('t') / 8192").parse().expect("a number");
    assert_eq!(entry.base_nblocks(), blocks, "the map was cut with the file");
    hollow.server.sql("insert into t select g, 'new' from generate_series(30001, 45000) g");
    hollow.server.sql("checkpoint");
    let sum = "select count(*), count(*) filter (where v = 'new'), max(id) from t";
    assert_eq!(hollow.server.sql(sum), "20000|15000|45000");
    let relnode = table.relnode;
    hollow.server.sql("truncate t; checkpoint");
    let main_left = hollow.map.entries().any(|entry| entry.rel().relnode == relnode && entry.base_nblocks() > 0);
    assert!(!main_left, "the old file is forgotten");
}

#[test]
fn prefetch_is_asynchronous_and_complete() {
    let hollow = HollowPg::start(prepare, &[]);
    let table = hollow.rel("t", ForkNumber::Main);
    let blocks: u64 = hollow.server.sql("select pg_relation_size('t') / 8192").parse().expect("a number");
    let got = hollow.server.sql("select pg_prewarm('t', 'prefetch')");
    assert_eq!(got, blocks.to_string());
    assert!(hollow.counter("pages_prefetched") > blocks / 2);
    assert_eq!(hollow.server.sql("select count(*), sum(id) from t"), "20000|200010000");
    assert_eq!(hollow.map.find(&table).expect("has an entry").absent_count(), 0);
    // A bitmap scan prefetches on its own.
    hollow.server.sql("set enable_indexscan = off; set enable_seqscan = off; select count(*) from t where id < 7000");
}

#[test]
fn many_clients_over_absent_pages() {
    let bench = |server: &TestPg, args: &[&str]| {
        let mut command = server_command(program("pgbench"));
        command.args(args).args(["-U", "postgres", "-h"]).arg(server.socket_dir());
        let output = command.args(["-p", &server.port().to_string(), "postgres"]).output().expect("pgbench runs");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !err.contains("aborted"), "{err}");
    };
    let hollow = HollowPg::start(|server| bench(server, &["-i", "-q", "-s", "3"]), &[("shared_buffers", "1MB")]);
    bench(&hollow.server, &["-n", "-c", "8", "-t", "300"]);
    hollow.server.sql("set max_parallel_workers_per_gather = 4; set min_parallel_table_scan_size = 0; select sum(abalance) from pgbench_accounts");
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches),
        (select sum(delta) from pgbench_history) = (select sum(tbalance) from pgbench_tellers), (select count(*) from pgbench_history)";
    assert_eq!(hollow.server.sql(sums), "t|t|2400");
}
