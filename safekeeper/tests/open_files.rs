//! A safekeeper that can open no more files: nothing that it acknowledged is lost, and it goes on by itself when it can. Alone in its
//! program, as the limit is the whole process's.

mod support;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use support::usage::Counters;
use support::{World, eventually, reached, read_up_to};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_cannot_be_opened_for_want_of_descriptors_is_written_later() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let (addresses, counters) = (safekeeper.addresses().to_vec(), Counters::of(&safekeeper));
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(900_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    assert_eq!(counters.failures(), 0);

    // The next segment cannot be opened, nor the timeline be loaded again, nor a connection be made.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("less is always allowed");
    let (start, data) = wal.take(400_000);
    proposer.append(start, data).await.expect("appended");
    eventually("a request fails", async || counters.failures() > 0).await;
    assert!(*proposer.committed().borrow() < wal.end(), "what is in no file is not acknowledged");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("as before");

    reached(proposer.committed(), wal.end()).await;
    let mut reader = world.reader(&addresses, world.spec.start_lsn).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes(), "other bytes");
    drop(reader);
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}
