//! Pages are fetched when they are read, and only then.

use ardent_extension_tests::HollowPg;
use ardent_test_pg::test_major;
use ardent_types::ForkNumber;

const TABLE: &str = "create table t (id int primary key, v text);
    insert into t select g, md5(g::text) from generate_series(1, 60000) g";
const SUM: &str = "select count(*), sum(id), md5(string_agg(v, ',' order by id)) from t";

/// The ways in which a server reads, where it has several: since 18 a backend or I/O workers.
fn ways_of_reading() -> &'static [&'static [(&'static str, &'static str)]] {
    if test_major() < 18 { &[&[]] } else { &[&[("io_method", "worker")], &[("io_method", "sync")]] }
}

#[test]
fn select_works_with_every_block_absent() {
    for settings in ways_of_reading() {
        select_works(settings);
    }
}

fn select_works(settings: &[(&str, &str)]) {
    let mut expected = String::new();
    let hollow = HollowPg::start(
        |server| {
            server.sql(TABLE);
            expected = server.sql(SUM);
        },
        settings,
    );
    let absent = hollow.map.absent_count();
    assert_eq!(hollow.server.sql("select 1"), "1");
    let fetched = absent - hollow.map.absent_count();
    assert!((20..200).contains(&fetched), "the first select fetched {fetched} blocks");
    assert_eq!(hollow.server.sql(SUM), expected);
    assert!(hollow.server.sql("show ardent.counters").contains("absent="));

    let table = hollow.rel("t", ForkNumber::Main);
    let entry = hollow.map.find(&table).expect("the table has an entry");
    assert_eq!(entry.absent_count(), 0);
    let (requests, pages) = (hollow.page_server.requests(), hollow.page_server.pages());
    assert_eq!(hollow.server.sql(SUM), expected);
    assert_eq!(
        (hollow.page_server.requests(), hollow.page_server.pages()),
        (requests, pages),
        "read twice, fetched once"
    );
    assert!(requests * 4 < pages, "{requests} requests for {pages} pages: read-ahead does not work");
}

#[test]
fn workers_of_a_parallel_scan_share_their_read_ahead() {
    let hollow = HollowPg::start(
        |server| {
            server.sql("create table p as select g as id, repeat('x', 900) as v from generate_series(1, 60000) g");
        },
        &[("max_parallel_workers_per_gather", "2"), ("min_parallel_table_scan_size", "0")],
    );
    let blocks: u64 = hollow.server.sql("select pg_relation_size('p') / 8192").parse().expect("a number");
    let before = hollow.page_server.pages();
    let plan = hollow.server.sql("explain (analyze, costs off) select count(*), sum(id) from p");
    assert!(plan.contains("Workers Launched: 2"), "{plan}");
    assert_eq!(hollow.server.sql("select count(*), sum(id) from p"), "60000|1800030000");
    let sent = hollow.page_server.pages() - before;
    assert!(sent < blocks * 2, "{sent} pages were sent for {blocks} blocks");
}
