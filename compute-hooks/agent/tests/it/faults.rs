//! What ends a compute without being asked to, and what must survive it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ardent_api::compute::Sandbox;
use ardent_statement_log::Outcome;
use ardent_test_pg::TestPgOptions;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::rig::{Agent, Client, DEADLINE, StatementLog, World, eventually};

const SOURCE: &str = "create table t (id int primary key, v text)";

async fn world() -> World {
    World::new(TestPgOptions::default(), SOURCE).await
}

/// Whether it has ended; it may not have been waited for yet.
fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])))
}

fn kill_9(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).expect("small")), Signal::SIGKILL).expect("is there");
}

/// Inserts rows one by one until the connection breaks; gives the last id that was acknowledged.
async fn insert_until_it_breaks(client: Client, acknowledged: std::sync::Arc<std::sync::atomic::AtomicU64>) {
    for id in 1_u64.. {
        if client.sql(&format!("insert into t values ({id}, 'x')")).await.is_err() {
            return;
        }
        acknowledged.store(id, Ordering::SeqCst);
    }
}

async fn acknowledged_commits_survive_a_killed_postmaster(sandbox: Sandbox) {
    let world = world().await;
    let mut spec = world.spec();
    spec.sandbox = sandbox;
    let log = StatementLog::new(&mut spec);
    let mut agent = world.start_with(spec).await;
    let pid = agent.ready().postmaster_pid;
    let acknowledged = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let writer = tokio::spawn(insert_until_it_breaks(agent.connect().await, std::sync::Arc::clone(&acknowledged)));
    eventually("two hundred commits", || acknowledged.load(Ordering::SeqCst) > 200).await;
    kill_9(pid);
    let (code, _) = agent.until_failed().await;
    assert_eq!(code, "crashed");
    tokio::time::timeout(DEADLINE, writer).await.expect("the session ends").expect("no panic");
    let last = acknowledged.load(Ordering::SeqCst);
    let recovered: u64 = world.recover().sql("select count(*) from t").parse().expect("a number");
    assert!(recovered == last || recovered == last + 1, "{last} acknowledged, {recovered} there");
    let committed = log.entries().into_iter().filter(|entry| entry.outcome == Outcome::Committed).count() as u64;
    assert!(committed == last || committed == last + 1, "{last} acknowledged, {committed} in the log of statements");
    assert!(!world.compute_dir().join("data").exists(), "the data directory is thrown away");
    assert!(world.page_server.seen.leases.lock().expect("leases").is_empty(), "the lease is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_commits_survive_a_killed_postmaster_in_a_sandbox() {
    acknowledged_commits_survive_a_killed_postmaster(Sandbox::Bubblewrap).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_commits_survive_a_killed_postmaster_without_a_sandbox() {
    acknowledged_commits_survive_a_killed_postmaster(Sandbox::None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_backend_ends_the_compute() {
    let world = world().await;
    let mut agent = world.start().await;
    agent.sql("insert into t values (1, 'kept')").await;
    // The shell's parent is the backend.
    let crash = agent.connect().await.sql("copy t to program 'kill -SEGV $PPID; sleep 5'").await;
    assert!(crash.is_err());
    let (code, message) = agent.until_failed().await;
    assert_eq!(code, "crashed", "{message}");
    assert!(message.contains("terminated by signal 11"), "{message}");
    assert_eq!(world.recover().sql("select v from t"), "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_agent_fences_the_older_one() {
    let world = world().await;
    let mut old = world.start().await;
    old.sql("insert into t values (1, 'old')").await;
    let session = old.connect().await;
    let mut spec = world.spec();
    spec.compute_dir = world.folder.path().join("d");
    let mut new = world.start_with(spec).await;
    // Whatever the old one still says, it says it to nobody.
    let late = tokio::spawn(async move { session.sql("insert into t values (2, 'late')").await });
    let (code, message) = old.until_failed().await;
    assert_eq!(code, "fenced", "{message}");
    assert!(is_gone(old.ready().postmaster_pid));
    assert!(late.await.expect("no panic").is_err());
    let (clean, end) = new.stop(DEADLINE).await;
    assert!(clean);
    // Both starts and the one clean stop; nothing in between is missing or doubled.
    assert_eq!(world.check_wal(end.expect("clean")), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_quorum_makes_commits_wait_and_loses_none() {
    let mut world = world().await;
    let mut agent = world.start().await;
    agent.sql("insert into t values (1, 'before')").await;
    // What comes over from production: there these wait for a disk, and here that is the quorum's.
    agent.sql("alter role postgres in database postgres set synchronous_commit = local").await;
    let (writer, reader) = (agent.connect().await, agent.connect().await);
    assert_eq!(writer.sql("show synchronous_commit").await.expect("shown"), "local");
    world.stop_safekeeper().await;
    let insert = tokio::spawn(async move {
        writer.sql("insert into t values (2, 'during')").await?;
        writer.sql("show synchronous_commit").await
    });
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    let deadline = std::time::Instant::now() + DEADLINE;
    while reader.sql(waiting).await.expect("reads go on") != "1" {
        assert!(std::time::Instant::now() < deadline && !insert.is_finished(), "the commit does not wait");
        tokio::task::yield_now().await;
    }
    assert_eq!(reader.sql("select count(*) from t").await.expect("reads go on"), "1");
    assert!(!insert.is_finished());
    world.start_safekeeper().await;
    let level = tokio::time::timeout(DEADLINE, insert).await.expect("goes on").expect("no panic").expect("committed");
    assert_eq!(level, "local", "the session's setting is as it was");
    assert!(agent.stop(DEADLINE).await.0);
    assert_eq!(world.recover().sql("select string_agg(v, ',' order by id) from t"), "before,during");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_quorum_bounds_the_wal_that_only_this_host_has() {
    const LIMIT: u64 = 64 << 20;
    let mut world = world().await;
    let mut agent = world.start().await;
    let (writer, reader) = (agent.connect().await, agent.connect().await);
    let position = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')";
    let bytes = async || reader.sql(position).await.expect("reads go on").parse::<u64>().expect("a number");
    world.stop_safekeeper().await;
    let before = bytes().await;
    // Three times the limit, in one statement that would not wait for anything by itself.
    let fill = "insert into t select i, repeat(md5(i::text), 60) from generate_series(1, 100000) i";
    let fill = tokio::spawn(async move { writer.sql(fill).await });
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'Extension' and query like 'insert%'";
    let deadline = std::time::Instant::now() + DEADLINE;
    while reader.sql(waiting).await.expect("reads go on") != "1" || bytes().await < before + LIMIT {
        assert!(std::time::Instant::now() < deadline && !fill.is_finished(), "the statement does not wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let held = bytes().await - before;
    assert!(held < LIMIT + (LIMIT >> 3), "{held} bytes were written without a quorum");
    world.start_safekeeper().await;
    tokio::time::timeout(DEADLINE, fill).await.expect("goes on").expect("no panic").expect("committed");
    assert!(bytes().await - before > 2 * LIMIT);
    assert!(agent.stop(DEADLINE).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_cannot_finish_in_time_is_a_kill() {
    let mut world = world().await;
    let mut agent = world.start().await;
    agent.sql("insert into t values (1, 'kept')").await;
    let pid = agent.ready().postmaster_pid;
    world.stop_safekeeper().await;
    let (clean, _) = agent.stop(Duration::from_millis(300)).await;
    assert!(!clean && is_gone(pid));
    world.start_safekeeper().await;
    assert!(!world.start().await.ready().warm);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_that_goes_away_takes_the_compute_along() {
    let world = world().await;
    let mut agent = world.start().await;
    let pid = agent.ready().postmaster_pid;
    agent.close_stdin();
    assert!(!agent.until_stopped().await.0);
    assert!(is_gone(pid));
    assert_eq!(format!("{:?}", agent.exit_code().await), format!("{:?}", std::process::ExitCode::SUCCESS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_the_walsender_delays_commits_only() {
    let world = world().await;
    let mut agent = world.start().await;
    let client = agent.connect().await;
    for id in 0..5 {
        let before = client.sql("select pid from pg_stat_replication").await.expect("superuser");
        client.sql("select pg_terminate_backend(pid) from pg_stat_replication").await.expect("superuser");
        client.sql(&format!("insert into t values ({id}, 'x')")).await.expect("commits");
        // The old one may have lived long enough for that commit.
        let another = format!("select count(*) from pg_stat_replication where state = 'streaming' and pid <> {before}");
        while client.sql(&another).await.expect("superuser") != "1" {
            tokio::task::yield_now().await;
        }
    }
    drop(client);
    let (clean, end) = agent.stop(DEADLINE).await;
    assert!(clean);
    assert_eq!(world.recover().sql("select count(*) from t"), "5");
    world.check_wal(end.expect("clean"));
}

/// Not a test of its own: the process that [`a_killed_agent_takes_postgres_along`] kills.
#[tokio::test(flavor = "multi_thread")]
async fn agent_process() {
    let Some(spec) = std::env::var_os(SPEC_VARIABLE) else { return };
    let spec = serde_json::from_slice(&std::fs::read(spec).expect("spec")).expect("valid");
    ardent_agent::run(spec, tokio::io::stdin(), tokio::io::stdout()).await;
}

const SPEC_VARIABLE: &str = "ARDENT_TEST_AGENT_SPEC";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_takes_postgres_along() {
    use std::io::BufRead as _;
    for sandbox in [Sandbox::Bubblewrap, Sandbox::None] {
        let world = world().await;
        let mut spec = world.spec();
        spec.sandbox = sandbox;
        let path = world.folder.path().join("spec.json");
        std::fs::write(&path, serde_json::to_vec(&spec).expect("plain")).expect("written");
        let mut process = std::process::Command::new(std::env::current_exe().expect("known"))
            .args(["--exact", "faults::agent_process", "--nocapture"])
            .env(SPEC_VARIABLE, &path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("runs");
        let stdout = std::io::BufReader::new(process.stdout.take().expect("piped"));
        let postmaster = tokio::task::spawn_blocking(move || {
            stdout.lines().map_while(Result::ok).find_map(|line| {
                let event: serde_json::Value = serde_json::from_str(line.get(line.find('{')?..)?).ok()?;
                event["postmaster_pid"].as_u64()
            })
        });
        let postmaster = postmaster.await.expect("no panic").expect("becomes ready");
        let postmaster = u32::try_from(postmaster).expect("small");
        let client = Client::connect(&world.compute_dir().join("run"), "postgres").await;
        client.sql("insert into t values (1, 'kept')").await.expect("commits");
        kill_9(process.id());
        process.wait().expect("ended");
        eventually("the end of Postgres", || is_gone(postmaster)).await;
        assert_eq!(world.recover().sql("select v from t"), "kept");
        // What it left is of no use to the next.
        assert!(!world.start().await.ready().warm);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_to_start_say_why() {
    let world = world().await;
    let cases: [(&str, &str, fn(&mut ardent_api::compute::ComputeSpec)); 5] = [
        ("postgres_failed", "no_such_value", |spec| {
            spec.settings.insert("log_statement".into(), "no_such_value".into());
        }),
        ("safekeeper_unavailable", "token", |spec| spec.token = "x.y".into()),
        ("no_postgres", "--pg-bin", |spec| spec.pg_bin_dir = Some("/nonexistent".into())),
        ("invalid", "library", |spec| spec.lib_dir = "/nonexistent".into()),
        ("invalid", "socket", |spec| spec.compute_dir = spec.compute_dir.join("x".repeat(100))),
    ];
    for (expected, words, change) in cases {
        let mut spec = world.spec();
        change(&mut spec);
        let (code, message) = Agent::spawn(spec).until_failed().await;
        assert_eq!(code, expected, "{message}");
        assert!(message.contains(words), "{message}");
    }
}
