//! A safekeeper in a process of its own, killed with SIGKILL while it is written to.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use ardent_api::addr::ServiceAddr;
use ardent_api::token::{Rights, TokenVerifier};
use ardent_object_store::{LocalFolder, list_all};
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};
use ardent_types::Lsn;
use ardent_wal_client::SafekeeperClient;
use tokio_util::sync::CancellationToken;

use crate::support::{World, eventually, reached, read_up_to};

/// Below its folder: where it archives WAL, if that is there.
const STORE: &str = "store";
const DIR_VARIABLE: &str = "ARDENT_TEST_SAFEKEEPER_DIR";

/// Does nothing, unless this process was started to be the safekeeper: then it runs until it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn be_the_safekeeper() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else { return };
    let dir = Path::new(&dir);
    let key = std::fs::read(dir.join("public-key")).expect("the key");
    let address = ServiceAddr::Unix(dir.join("sk.sock"));
    let mut config = SafekeeperConfig::new(dir.join("data"), vec![address], TokenVerifier::from_public_key(key));
    if dir.join(STORE).exists() {
        config.wal_keep_bytes = 0;
        config.archive = Some(Arc::new(LocalFolder::open(&dir.join(STORE)).expect("a store")));
    }
    let safekeeper = Safekeeper::start(config, CancellationToken::new()).await.expect("starts");
    safekeeper.join().await;
}

fn spawn(dir: &Path) -> Child {
    Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "killed::be_the_safekeeper"])
        .env(DIR_VARIABLE, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("spawned")
}

async fn up(world: &World, address: &ServiceAddr) {
    let token = world.token(Rights::Manage);
    eventually("the safekeeper answers", async || {
        SafekeeperClient::connect(address, world.spec.tenant, &token).await.is_ok()
    })
    .await;
}

/// Whoever reads when no writer is there is served up to the commit position, also after a kill.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_when_the_writer_left_is_read_after_a_kill() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    std::fs::write(dir.path().join("public-key"), world.issuer.verifier().public_key()).expect("written");
    let address = ServiceAddr::Unix(dir.path().join("sk.sock"));
    let addresses = [address.clone()];
    let mut process = spawn(dir.path());
    up(&world, &address).await;
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(10_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    proposer.shutdown().await;
    let state =
        dir.path().join("data").join(world.spec.tenant.to_string()).join(world.spec.timeline.to_string()).join("state");
    let end = wal.end().get().to_le_bytes();
    eventually("the commit position is written down", async || {
        // A timeline that is asked about is in use: it is not saved for having rested.
        world.client(&address).await.status(world.spec.timeline).await.expect("a status");
        std::fs::read(&state).expect("the state").windows(8).any(|bytes| bytes == end)
    })
    .await;
    process.kill().expect("killed");
    process.wait().expect("reaped");

    let mut process = spawn(dir.path());
    up(&world, &address).await;
    let mut reader = world.reader(&addresses, elected.end_lsn).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes(), "the reader got other bytes");
    process.kill().expect("killed");
    process.wait().expect("reaped");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_is_there_after_each_kill() {
    let dir = tempfile::tempdir().expect("a folder");
    kill_again_and_again(dir.path()).await;
}

/// The same where it archives and trims all the while.
#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_is_there_or_archived_after_each_kill() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join(STORE)).expect("made");
    kill_again_and_again(dir.path()).await;
    let store = LocalFolder::attach(&dir.path().join(STORE)).expect("a store");
    let archived = list_all(&store, "timelines/", false).expect("listed").objects.len();
    assert!(archived >= 3, "{archived} segments");
}

async fn kill_again_and_again(dir: &Path) {
    let world = World::new();
    std::fs::write(dir.join("public-key"), world.issuer.verifier().public_key()).expect("written");
    let address = ServiceAddr::Unix(dir.join("sk.sock"));
    let addresses = [address.clone()];
    let start = world.spec.start_lsn;
    let mut log: Vec<u8> = Vec::new();
    let mut acknowledged = start;
    for round in 0..6_u64 {
        let mut process = spawn(dir);
        up(&world, &address).await;
        if round == 0 {
            world.create(&addresses).await;
        }
        let (proposer, elected) = world.elect(&addresses).await;
        assert!(elected.end_lsn >= acknowledged, "{acknowledged} was acknowledged, {} is left", elected.end_lsn);
        let kept = elected.end_lsn.checked_sub(start).expect("after the start") as usize;
        log.truncate(kept);
        let mut reader = world.reader(&addresses, start).await;
        assert!(read_up_to(&mut reader, elected.end_lsn).await == log, "other bytes after the kill");

        let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
        let committed = proposer.committed();
        let pieces = 20 + 10 * round;
        let mut record_ends: Vec<Lsn> = Vec::new();
        for piece in 0..pieces {
            let length = 1 + wal.random(400_000) as usize;
            let (at, data) = wal.take(length);
            proposer.append(at, data).await.expect("appended");
            record_ends.push(wal.end());
            if piece == pieces / 2 {
                // At least that much is acknowledged, the rest is anywhere between here and the disk.
                reached(committed.clone(), record_ends[0]).await;
            }
        }
        process.kill().expect("killed");
        process.wait().expect("reaped");
        acknowledged = *committed.borrow();
        proposer.shutdown().await;
        log.extend_from_slice(wal.bytes());
    }
}
