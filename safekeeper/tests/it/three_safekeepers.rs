//! A quorum of two out of three, on real files and sockets.

use std::path::PathBuf;
use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_safekeeper::{CopiedTimeline, OfflineError, Safekeeper, rebuild, reconfigure};
use ardent_types::Lsn;
use ardent_wal_client::{Proposer, ProposerError};

use crate::support::{WalSource, World, eventually, reached, read_up_to};

struct Cluster {
    world: World,
    _root: tempfile::TempDir,
    dirs: Vec<PathBuf>,
    nodes: Vec<Option<Safekeeper>>,
    addresses: Vec<ServiceAddr>,
}

impl Cluster {
    async fn start() -> Cluster {
        let (world, root) = (World::new(), tempfile::tempdir().expect("a folder"));
        let (mut dirs, mut nodes, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..3 {
            let dir = root.path().join(number.to_string());
            std::fs::create_dir(&dir).expect("a folder");
            let node = world.start(&dir).await;
            addresses.push(node.addresses()[0].clone());
            dirs.push(dir);
            nodes.push(Some(node));
        }
        world.create(&addresses).await;
        Cluster { world, _root: root, dirs, nodes, addresses }
    }

    async fn stop(&mut self, number: usize) {
        self.nodes[number].take().expect("it runs").shutdown().await;
    }

    async fn restart(&mut self, number: usize) {
        self.nodes[number] = Some(self.world.start(&self.dirs[number]).await);
    }

    async fn flush_lsn(&self, number: usize) -> Lsn {
        let mut client = self.world.client(&self.addresses[number]).await;
        client.status(self.world.spec.timeline).await.expect("status").flush_lsn
    }

    /// Sees to it that one gives all that was written, up to `end`.
    async fn has_all(&self, number: usize, wal: &WalSource, end: Lsn) {
        let start = self.world.spec.start_lsn;
        let mut reader = self.world.reader(&self.addresses[number..=number], start).await;
        let read = read_up_to(&mut reader, end).await;
        assert!(read == wal.bytes()[..end.saturating_sub(start) as usize]);
    }

    async fn shutdown(mut self) {
        for node in &mut self.nodes {
            if let Some(node) = node.take() {
                node.shutdown().await;
            }
        }
    }
}

/// Sees to it that nobody listens to a writer from before.
async fn is_refused(proposer: &Proposer, wal: &mut WalSource) {
    let (start, data) = wal.take(1000);
    let _ended_or_queued = proposer.append(start, data).await;
    let ended =
        tokio::time::timeout(Duration::from_secs(20), proposer.closed()).await.expect("it is no writer any more");
    assert!(matches!(ended, ProposerError::Fenced { .. }), "{ended}");
}

/// No append carries the last commit position: it has to go out before the connections end.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_ends_has_told_all_of_them_what_is_committed() {
    let cluster = Cluster::start().await;
    for round in 0..10 {
        let (proposer, elected) = cluster.world.elect(&cluster.addresses).await;
        let mut wal = cluster.world.wal(elected.end_lsn, elected.prev_lsn);
        let (start, data) = wal.take(5000);
        proposer.append(start, data).await.expect("appended");
        // One that is not in the quorum of the election may come later.
        for number in 0..3 {
            eventually("it takes part", async || cluster.flush_lsn(number).await == wal.end()).await;
        }
        let (start, data) = wal.take(5000);
        proposer.append(start, data).await.expect("appended");
        reached(proposer.committed(), wal.end()).await;
        proposer.shutdown().await;
        for (number, address) in cluster.addresses.iter().enumerate() {
            eventually(&format!("safekeeper {number} knows it in round {round}"), async || {
                let status = cluster.world.client(address).await.status(cluster.world.spec.timeline).await;
                status.expect("a status").commit_lsn == wal.end()
            })
            .await;
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_are_enough_and_the_third_catches_up() {
    let mut cluster = Cluster::start().await;
    let (proposer, elected) = cluster.world.elect(&cluster.addresses).await;
    let mut wal = cluster.world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(500_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;

    cluster.stop(2).await;
    // More than the writer keeps for those that lag: the third must get it from the others.
    for _ in 0..24 {
        let (start, data) = wal.take(1 << 20);
        proposer.append(start, data).await.expect("appended");
    }
    reached(proposer.committed(), wal.end()).await;
    cluster.restart(2).await;
    eventually("the third has everything", async || cluster.flush_lsn(2).await == wal.end()).await;
    let mut reader = cluster.world.reader(&cluster.addresses[2..], elected.end_lsn).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes());
    proposer.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_takes_nothing_and_goes_on_when_there_is_a_quorum_again() {
    let mut cluster = Cluster::start().await;
    let (proposer, elected) = cluster.world.elect(&cluster.addresses).await;
    let mut wal = cluster.world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(100_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let safe = wal.end();

    cluster.stop(1).await;
    cluster.stop(2).await;
    let (start, data) = wal.take(100_000);
    proposer.append(start, data).await.expect("queued");
    eventually("the one that is left has it", async || cluster.flush_lsn(0).await == wal.end()).await;
    assert_eq!(*proposer.flushed().borrow(), safe);

    cluster.restart(1).await;
    reached(proposer.committed(), wal.end()).await;
    proposer.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_writer_cuts_off_what_only_a_minority_has_and_keeps_what_a_quorum_has() {
    let mut cluster = Cluster::start().await;
    let (proposer, elected) = cluster.world.elect(&cluster.addresses).await;
    let mut wal = cluster.world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(100_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let safe = wal.end();
    cluster.stop(1).await;
    cluster.stop(2).await;
    let (start, data) = wal.take(50_000);
    proposer.append(start, data).await.expect("queued");
    eventually("the one that is left has it", async || cluster.flush_lsn(0).await == wal.end()).await;
    proposer.shutdown().await;
    cluster.stop(0).await;

    // The others know nothing of it: their writer goes another way.
    cluster.restart(1).await;
    cluster.restart(2).await;
    let (proposer, again) = cluster.world.elect(&cluster.addresses).await;
    assert_eq!(again.end_lsn, safe);
    let mut other = cluster.world.wal(again.end_lsn, again.prev_lsn);
    let (start, data) = other.take(20_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), other.end()).await;
    cluster.restart(0).await;
    eventually("the first follows", async || cluster.flush_lsn(0).await == other.end()).await;
    let mut reader = cluster.world.reader(&cluster.addresses[..1], safe).await;
    assert!(read_up_to(&mut reader, other.end()).await == other.bytes());
    proposer.shutdown().await;
    cluster.shutdown().await;
}

/// What two of three have acknowledged is there after one of the two has lost its disk, and the one that has it all is in no
/// quorum: the third, which lags, and the one that was rebuilt.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_lost_its_disk_gets_what_the_others_have_and_counts_again() {
    let mut cluster = Cluster::start().await;
    let (proposer, elected) = cluster.world.elect(&cluster.addresses).await;
    let mut wal = cluster.world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(300_000);
    proposer.append(start, data).await.expect("appended");
    eventually("the third takes part", async || cluster.flush_lsn(2).await == wal.end()).await;
    cluster.stop(2).await;
    let (start, data) = wal.take(3 << 20);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;

    // Its writer does not end meanwhile, and does not know.
    let (survivor, lost, lagging) = (0, 1, 2);
    cluster.stop(lost).await;
    cluster.stop(survivor).await;
    let acknowledged = wal.end();
    let folder = |number: usize| cluster.dirs[number].join("data");
    std::fs::remove_dir_all(folder(lost)).expect("lost");

    let one = [folder(survivor)];
    let refused = rebuild(&folder(lost), &one, 3, |_| true, |_| {}).expect_err("what the third has is not known");
    assert!(matches!(refused, OfflineError::TooFew { given: 1, others: 2, needed: 2 }), "{refused}");
    let others = [folder(survivor), folder(lagging)];
    assert_eq!(rebuild(&folder(lost), &others, 3, |_| false, |_| {}).expect("nothing to do"), 0);
    let mut ends = Vec::new();
    let count = rebuild(&folder(lost), &others, 3, |_| true, |timeline| ends.push(timeline.end)).expect("rebuilt");
    assert_eq!((count, ends), (1, vec![wal.end()]));
    assert_eq!(rebuild(&folder(lost), &others, 3, |_| true, |_| {}).expect("it has all"), 0);

    // The writer from before still counts what the lost one had acknowledged to it, which may be more than the rebuilt one has: not
    // one of the others may take its WAL.
    cluster.restart(lagging).await;
    is_refused(&proposer, &mut wal).await;
    assert_eq!(*proposer.flushed().borrow(), acknowledged);

    cluster.restart(lost).await;
    let (next, elected) = cluster.world.elect(&cluster.addresses).await;
    assert_eq!(elected.end_lsn, acknowledged, "all that was acknowledged, and nothing else");
    cluster.has_all(1, &wal, acknowledged).await;
    next.shutdown().await;
    cluster.shutdown().await;
}

/// One that was away when the timeline was made is made late, and empty. That would listen to a writer which counts on what the lost
/// one had acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_had_the_timeline_gets_it_with_the_lost_one() {
    let mut cluster = Cluster::start().await;
    let timeline = cluster.world.spec.timeline;
    cluster.world.client(&cluster.addresses[2]).await.delete_timeline(timeline).await.expect("never made");
    let (proposer, elected) = cluster.world.elect(&cluster.addresses).await;
    let mut wal = cluster.world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(100_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let acknowledged = wal.end();
    for number in 0..3 {
        cluster.stop(number).await;
    }
    let folder = |number: usize| cluster.dirs[number].join("data");
    std::fs::remove_dir_all(folder(1)).expect("lost");
    let count = rebuild(&folder(1), &[folder(0), folder(2)], 3, |_| true, |_| {}).expect("rebuilt");
    assert_eq!(count, 1);
    cluster.restart(2).await;
    assert_eq!(cluster.flush_lsn(2).await, acknowledged);
    is_refused(&proposer, &mut wal).await;
    assert_eq!(*proposer.flushed().borrow(), acknowledged);
    cluster.restart(1).await;
    let (next, elected) = cluster.world.elect(&cluster.addresses).await;
    assert_eq!(elected.end_lsn, acknowledged);
    next.shutdown().await;
    cluster.shutdown().await;
}

/// The writer of the one goes on meanwhile, and does not know.
#[tokio::test(flavor = "multi_thread")]
async fn one_becomes_three_of_which_any_two_have_all() {
    let mut cluster = Cluster::start().await;
    let timeline = cluster.world.spec.timeline;
    for number in [1, 2] {
        cluster.world.client(&cluster.addresses[number]).await.delete_timeline(timeline).await.expect("never made");
    }
    let (proposer, elected) = cluster.world.elect(&cluster.addresses[..1]).await;
    let mut wal = cluster.world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(2 << 20);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let acknowledged = wal.end();
    for number in 0..3 {
        cluster.stop(number).await;
    }
    let folders: Vec<PathBuf> = cluster.dirs.iter().map(|dir| dir.join("data")).collect();
    let mut ends = Vec::new();
    let done = |copied: &CopiedTimeline| ends.push(copied.end);
    assert_eq!(reconfigure(&folders[..1], 1, &folders, |_| true, done).expect("reconfigured"), 1);
    assert_eq!(ends, [acknowledged]);
    let again = |_: &CopiedTimeline| panic!("all have it");
    assert_eq!(reconfigure(&folders, 3, &folders, |_| true, again).expect("nothing to do"), 1);

    cluster.restart(0).await;
    is_refused(&proposer, &mut wal).await;
    cluster.stop(0).await;
    cluster.restart(1).await;
    cluster.restart(2).await;
    let (next, elected) = cluster.world.elect(&cluster.addresses).await;
    assert_eq!(elected.end_lsn, acknowledged, "all that was acknowledged, and nothing else");
    cluster.has_all(2, &wal, acknowledged).await;
    next.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_become_one_which_was_away_when_the_last_was_written() {
    let mut cluster = Cluster::start().await;
    let (proposer, elected) = cluster.world.elect(&cluster.addresses).await;
    let mut wal = cluster.world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(300_000);
    proposer.append(start, data).await.expect("appended");
    eventually("the first takes part", async || cluster.flush_lsn(0).await == wal.end()).await;
    cluster.stop(0).await;
    let (start, data) = wal.take(100_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let acknowledged = wal.end();
    for number in [1, 2] {
        cluster.stop(number).await;
    }
    let folders: Vec<PathBuf> = cluster.dirs.iter().map(|dir| dir.join("data")).collect();
    let refused = reconfigure(&folders[..1], 3, &folders[..1], |_| true, |_| {}).expect_err("it lacks the last");
    assert!(matches!(refused, OfflineError::NoMajority { given: 1, members: 3, needed: 2 }), "{refused}");
    let mut copied = 0;
    reconfigure(&folders[..2], 3, &folders[..1], |_| true, |_| copied += 1).expect("reconfigured");
    assert_eq!(copied, 1);

    // Those that left promised not to listen to who counts on them.
    cluster.restart(1).await;
    is_refused(&proposer, &mut wal).await;
    cluster.restart(0).await;
    let (next, elected) = cluster.world.elect(&cluster.addresses[..1]).await;
    assert_eq!(elected.end_lsn, acknowledged, "all that was acknowledged, and nothing else");
    next.shutdown().await;
    cluster.shutdown().await;
}
