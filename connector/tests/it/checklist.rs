//! Section 9 of the ingest checklist, as far as it is the connector's.

use ardent_api::addr::ServiceAddr;
use ardent_api::control::CheckOutcome;
use ardent_connector::{ClusterCheck, ConnectorConfig, HostFacts, PositionProbe, preflight};
use ardent_test_pg::{TestPg, TestPgOptions};
use ardent_types::{Lsn, TenantId, TimelineId};

#[tokio::test(flavor = "multi_thread")]
async fn checklist_66_preflight_says_what_bounds_the_slot() {
    for (limit, outcome, says) in
        [("-1", CheckOutcome::Warning, "unlimited"), ("64MB", CheckOutcome::Ok, "at most 64 MB")]
    {
        let server = TestPg::start(TestPgOptions::default().with_tcp().set("max_slot_wal_keep_size", limit));
        let url = server.tcp_url("postgres", "postgres");
        let checks = preflight(&url, &HostFacts::default()).await.expect("the server can be asked");
        let check = checks.iter().find(|check| check.name == "max_slot_wal_keep_size").expect("it is checked");
        assert_eq!(check.outcome, outcome, "{check:?}");
        assert!(check.message.contains(says), "{check:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checklist_67_now_is_what_production_has_flushed_and_holds_asynchronous_commits() {
    let options = TestPgOptions::default().with_tcp().set("synchronous_commit", "off").set("wal_writer_delay", "200ms");
    let server = TestPg::start(options);
    server.sql("create table t (a int)");
    let config = ConnectorConfig {
        tenant: TenantId::generate(),
        timeline: TimelineId::generate(),
        url: server.tcp_url("postgres", "postgres"),
        fast: true,
        max_rate_bytes: None,
        archive: None,
        pageserver: ServiceAddr::Unix("unused".into()),
        safekeepers: vec![],
        members: ardent_api::wal_service::Membership::default(),
        token: String::new(),
    };
    let probe = PositionProbe::default();
    for n in 0..5 {
        let sql = format!("insert into t values ({n}); select pg_current_wal_insert_lsn()");
        let inserted: Lsn = server.sql(&sql).lines().last().expect("a line").parse().expect("an LSN");
        let now = probe.flush_lsn(&config, ClusterCheck::LeftOut).await.expect("production answers");
        assert!(now >= inserted, "the commit was acknowledged before {now} was asked for, and ends at {inserted}");
        let flushed: Lsn = server.sql("select pg_current_wal_flush_lsn()").parse().expect("an LSN");
        assert!(now <= flushed, "{now} is not flushed yet");
    }
}
