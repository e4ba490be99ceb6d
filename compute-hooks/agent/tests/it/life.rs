//! The life of one compute: start, work, stop, start again.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ardent_api::compute::{ComputeEvent, ComputeSpec, Sandbox};
use ardent_test_pg::{TestPgOptions, test_major};
use ardent_types::Lsn;

use crate::rig::{Agent, Client, DEADLINE, World, eventually, quick_renewal};

const SOURCE: &str =
    "create table t (id int primary key, v text); insert into t select i, 'v' || i from generate_series(1, 1000) i";

async fn world() -> World {
    World::new(TestPgOptions::default(), SOURCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_serves_stops_and_wakes_warm_on_one_gapless_log() {
    let world = world().await;
    let mut agent = world.start().await;
    println!("cold: {:?}", agent.steps);
    assert!(!agent.ready().warm);
    assert_eq!(agent.ready().base_lsn, world.timeline.start_lsn);
    assert_eq!(agent.sql("select count(*) from t").await, "1000");
    let mut end = None;
    for round in 0..3 {
        agent.sql(&format!("insert into t values (-{round}, 'new')")).await;
        let (clean, stopped_at) = agent.stop(DEADLINE).await;
        assert!(clean && stopped_at > end);
        end = stopped_at;
        assert_eq!(world.page_server.seen.leases.lock().expect("leases").len(), 1, "a warm directory holds its lease");
        agent = world.start().await;
        println!("warm: {:?}", agent.steps);
        assert!(agent.ready().warm);
        assert_eq!(agent.ready().base_lsn, world.timeline.start_lsn);
        assert_eq!(agent.sql("select count(*) from t where v = 'new'").await, (round + 1).to_string());
    }
    let (clean, end) = agent.stop(DEADLINE).await;
    assert!(clean);
    assert_eq!(world.page_server.seen.base_backups.load(Ordering::Relaxed), 1);
    // One of ours at the start, one of Postgres's at each stop.
    assert_eq!(world.check_wal(end.expect("clean")), 5);
    assert_eq!(world.recover().sql("select count(*) from t"), "1003");
}

/// How nice the postmaster's child with this in its title is.
fn nice_of(postmaster: u32, title: &str) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).ok()?;
    let is_meant = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command.contains(title))
    };
    let pid = children.split_whitespace().find(is_meant)?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The nineteenth field; the second, in parentheses, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_walsender_goes_before_sessions_where_the_agent_may_say_so() {
    let world = world().await;
    let mut agent = world.start().await;
    let postmaster = agent.ready().postmaster_pid;
    let expected = if nix::unistd::geteuid().is_root() { -10 } else { 0 };
    eventually("the walsender has its place", || nice_of(postmaster, "walsender") == Some(expected)).await;
    assert_eq!(nice_of(postmaster, "checkpointer"), Some(0));
    // A new one gets it as well.
    agent.sql("select pg_terminate_backend(pid) from pg_stat_replication").await;
    agent.sql("insert into t values (-1, 'waits for the new one')").await;
    eventually("the new walsender has its place", || nice_of(postmaster, "walsender") == Some(expected)).await;
    assert!(agent.stop(DEADLINE).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_without_a_sandbox_under_another_superusers_name() {
    let options = TestPgOptions { superuser: "Über owner".to_owned(), ..TestPgOptions::default() };
    let world = World::new(options, SOURCE).await;
    let mut spec = world.spec();
    spec.sandbox = Sandbox::None;
    let mut agent = world.start_with(spec).await;
    let client = Client::connect(&agent.ready().socket_dir, world.source.superuser()).await;
    assert_eq!(client.sql("select count(*) from t").await.expect("reads"), "1000");
    drop(client);
    assert!(agent.stop(DEADLINE).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_get_connections_that_can_only_read() {
    let world = world().await;
    let mut agent = world.start().await;
    assert_eq!(agent.sql("select count(*) from t").await, "1000");
    // The page server of these tests panics where such a connection asks for more than pages.
    let seen = &world.page_server.seen;
    assert!(seen.backend_connections.load(Ordering::Relaxed) > 0 && seen.pages.load(Ordering::Relaxed) > 0);
    assert!(agent.stop(DEADLINE).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstrap_superuser_may_be_renamed_disabled_and_demoted() {
    let world = world().await;
    let mut agent = world.start().await;
    let client = agent.connect().await;
    client.sql("create role other superuser login").await.expect("created");
    drop(client);
    let other = Client::connect(&agent.ready().socket_dir, "other").await;
    other.sql("alter role postgres rename to \"Nobody's own\"").await.expect("renamed");
    other.sql("alter role \"Nobody's own\" nologin noreplication").await.expect("changed");
    // Since 16 it stays a superuser.
    let demoted = other.sql("alter role \"Nobody's own\" nosuperuser").await;
    assert_eq!(demoted.is_ok(), test_major() < 16, "{demoted:?}");
    other.sql("alter role \"Nobody's own\" set role = 'other'").await.expect("set");
    other.sql("alter database template1 rename to elsewhere").await.expect("renamed");
    // The agent's connection for WAL comes back as well.
    other
        .sql("select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'")
        .await
        .expect("superuser");
    other.sql("insert into t values (-1, 'after')").await.expect("a quorum has it");
    drop(other);
    assert!(agent.stop(DEADLINE).await.0);
    let mut agent = world.start().await;
    let again = Client::connect(&agent.ready().socket_dir, "other").await;
    assert_eq!(again.sql("select v from t where id = -1").await.expect("reads"), "after");
    assert_eq!(again.sql("select rolcanlogin from pg_roles where oid = 10").await.expect("reads"), "f");
    let as_nobody = Client::try_connect(&agent.ready().socket_dir, "Nobody's own").await;
    assert!(as_nobody.is_err(), "the role itself still may not log in");
    drop(again);
    assert!(agent.stop(DEADLINE).await.0);
}

/// Postgres removes at a checkpoint what it was told is safe, and is asked again from the last whole record on.
#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_is_ended_within_a_record_of_many_segments_sends_it_again() {
    let world = world().await;
    let mut agent = world.start().await;
    let writer = agent.connect().await;
    let other = agent.connect().await;
    let large = async {
        for _ in 0..2 {
            let message = "select pg_logical_emit_message(true, 'x', repeat('a', 100000000)) is not null";
            assert_eq!(writer.sql(message).await.expect("written"), "t");
        }
    };
    // It ends: who is ended again and again sends such a record from its beginning each time.
    let disturb = async {
        for _ in 0..15 {
            other.sql("select count(pg_terminate_backend(pid)) from pg_stat_get_wal_senders()").await.expect("ended");
            other.sql("checkpoint").await.expect("superuser");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let both = async { tokio::join!(large, disturb) };
    tokio::time::timeout(Duration::from_secs(120), both).await.expect("commits go on");
    writer.sql("insert into t values (-2, 'after')").await.expect("a quorum has it");
    assert!(agent.stop(DEADLINE).await.0);
}

/// A compute that runs for long holds up garbage collection no longer than since its last checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn the_base_moves_up_after_a_checkpoint_and_a_lost_lease_ends_the_compute() {
    let world = world().await;
    let spec = || quick_renewal(world.spec());
    let mut agent = world.start_with(spec()).await;
    let start = agent.ready().base_lsn;
    let seen = &world.page_server.seen;
    let held = || seen.leases.lock().expect("leases").values().copied().collect::<Vec<_>>();
    assert_eq!(held(), [start]);
    let client = agent.connect().await;
    client.sql("insert into t select n, 'more' from generate_series(1001, 2000) n").await.expect("written");
    assert_eq!(held(), [start], "without a checkpoint it stays");
    client.sql("checkpoint").await.expect("superuser");
    let redo = client.sql("select redo_lsn from pg_control_checkpoint()").await.expect("reads");
    let redo: Lsn = redo.parse().expect("an LSN");
    assert!(redo > start);
    eventually("the move of the lease", || held().contains(&redo)).await;
    // What was asked for a moment ago at the position before is pinned until the next move.
    assert_eq!(held().len(), 2);
    assert_eq!(agent.until_moved().await, redo, "control is told");
    // Blocks that are still absent are asked for there.
    client.sql("select count(*) from pg_description").await.expect("nobody has read it before");
    assert_eq!(seen.pages_at.load(Ordering::Relaxed), redo.get());
    drop(client);
    assert!(agent.stop(DEADLINE).await.0);

    // The warm folder goes on from there.
    let mut agent = world.start_with(spec()).await;
    assert!(agent.ready().warm);
    assert!(agent.ready().base_lsn >= redo);
    let client = agent.connect().await;
    assert_eq!(client.sql("select count(*) from t where v = 'more'").await.expect("reads"), "1000");
    client.sql("select sum(length(prosrc)) from pg_proc").await.expect("absent blocks are read at the new base");

    // Never an approximation: a version that is gone ends the compute, and control starts another.
    seen.refuse_leases.store(true, Ordering::Relaxed);
    let (code, message) = agent.until_failed().await;
    assert_eq!(code, "base_lsn_expired", "{message}");
}

/// The bound on what a compute that is cut off from storage serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_compute_whose_page_server_is_silent_ends_with_its_lease_and_the_next_one_starts() {
    const TTL: Duration = Duration::from_secs(6);
    let world = world().await;
    let lease_ttl_ms = Some(u64::try_from(TTL.as_millis()).expect("short"));
    let mut agent = world.start_with(ComputeSpec { lease_ttl_ms, ..quick_renewal(world.spec()) }).await;
    let client = agent.connect().await;
    client.sql("insert into t values (-1, 'kept')").await.expect("commits");
    // A page server that answers, and cannot renew, is no reason to end.
    world.page_server.seen.store_away.store(true, Ordering::Relaxed);
    let began = Instant::now();
    eventually("more time than a lease holds", || began.elapsed() > TTL + TTL / 4).await;
    assert_eq!(client.sql("select count(*) from t").await.expect("it goes on"), "1001");

    let silent = &world.page_server.seen.silent;
    silent.store(true, Ordering::Relaxed);
    let (code, message) = agent.until_failed().await;
    assert_eq!(code, "lease_ran_out", "{message}");
    assert!(message.contains("the page server does not answer"), "{message}");
    client.sql("select count(*) from t").await.expect_err("nothing old is served");

    silent.store(false, Ordering::Relaxed);
    world.page_server.seen.store_away.store(false, Ordering::Relaxed);
    let mut agent = world.start().await;
    // This rig's page server takes no WAL: what a cold start has is what it began with.
    assert_eq!(agent.sql("select count(*) from t").await, "1000");
    assert!(agent.stop(DEADLINE).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_makes_the_next_start_cold() {
    let world = world().await;
    assert!(world.start().await.stop(DEADLINE).await.0);
    world.page_server.seen.refuse_leases.store(true, Ordering::Relaxed);
    // Refused for the new base as well here: but it has tried, and with that one only.
    let (code, message) = Agent::spawn(world.spec()).until_failed().await;
    assert_eq!(code, "base_lsn_expired", "{message}");
    world.page_server.seen.refuse_leases.store(false, Ordering::Relaxed);
    let agent = world.start().await;
    assert!(!agent.ready().warm, "the marker was used up");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_source_are_carried_and_guards_hold() {
    let world = World::new(TestPgOptions::default().set("max_connections", "77"), SOURCE).await;
    let mut spec = world.spec();
    for (name, value) in [("work_mem", "5MB"), ("synchronous_standby_names", ""), ("fsync", "on")] {
        spec.settings.insert(name.into(), value.into());
    }
    spec.settings.insert("shared_preload_libraries".into(), "pg_stat_statements, pg_prewarm, no_such_library".into());
    let mut agent = world.start_with(spec).await;
    let client = agent.connect().await;
    for name in ["synchronous_standby_names", "fsync", "restart_after_crash"] {
        client.sql(&format!("alter system set {name} to default")).await.expect("superuser");
    }
    client.sql("select pg_reload_conf()").await.expect("superuser");
    for (name, value) in [
        ("work_mem", "5MB"),
        ("max_connections", "100"),
        ("synchronous_standby_names", "ardent"),
        ("fsync", "off"),
        ("restart_after_crash", "off"),
        ("listen_addresses", ""),
        ("cluster_name", "dev"),
        ("TimeZone", "UTC"),
    ] {
        assert_eq!(client.sql(&format!("show {name}")).await.expect("shown"), value, "{name}");
    }
    let libraries = client.sql("show shared_preload_libraries").await.expect("shown");
    assert!(libraries.ends_with(",pg_stat_statements,pg_prewarm") && !libraries.contains("no_such"), "{libraries}");
    // Which starts a worker with the server by itself, as schedulers of jobs do.
    assert_eq!(client.sql("show pg_prewarm.autoprewarm").await.expect("shown"), "on");
    let workers = "select count(*) from pg_stat_activity where backend_type = 'autoprewarm leader'";
    assert_eq!(client.sql(workers).await.expect("counted"), "0", "a library's worker runs");
    assert_eq!(agent.ready().missing_libraries, ["no_such_library"]);
    drop(client);
    assert!(agent.stop(DEADLINE).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_compute_stops_itself_and_a_busy_one_does_not() {
    let world = world().await;
    let mut spec = world.spec();
    spec.idle_timeout_s = 2;
    let mut agent = world.start_with(spec).await;
    // An open session is no reason to stay; a transaction, a lock, a temporary table is.
    let idle = agent.connect().await;
    let busy = agent.connect().await;
    for (begin, end) in [
        ("begin", "commit"),
        ("select pg_advisory_lock(7)", "select pg_advisory_unlock(7)"),
        ("create temp table own (i int)", "drop table own"),
        ("listen news; select pg_advisory_unlock_all()", "unlisten *"),
        ("declare c cursor with hold for select * from t", "close all"),
    ] {
        busy.sql(begin).await.expect("works");
        let quiet = tokio::time::timeout(Duration::from_secs(5), agent.event()).await;
        assert!(quiet.is_err(), "it stopped during {begin:?}");
        busy.sql(end).await.expect("works");
    }
    assert_eq!(agent.event().await, Some(ComputeEvent::Idle));
    assert!(agent.until_stopped().await.0);
    let ended = idle.sql("select 1").await.expect_err("the session was ended");
    assert!(ended.is_closed() || ended.code().is_some_and(|code| code.code() == "57P01"), "{ended}");
    assert!(world.start().await.ready().warm);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_keeps_what_alter_system_set() {
    let world = world().await;
    let mut agent = world.start().await;
    agent.sql("alter system set work_mem = '7MB'").await;
    agent.sql("alter system set listen_addresses = '*'").await;
    agent.close_stdin();
    agent.until_stopped().await;
    let mut agent = world.start().await;
    assert!(!agent.ready().warm);
    assert_eq!(agent.sql("show work_mem").await, "7MB");
    assert_eq!(agent.sql("show listen_addresses").await, "");
    assert!(agent.stop(DEADLINE).await.0);
    assert!(world.start().await.ready().warm);
}
