//! What a safekeeper has of its process: timelines that nobody uses keep nothing open, however many there are; and where no more files
//! can be opened nothing that it acknowledged is lost, and it goes on by itself when they can. A program of its own, and one test at a
//! time, as they count and limit what the whole process has.

mod support;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ardent_safekeeper::Safekeeper;
use ardent_types::TimelineId;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use support::usage::{Counters, Usage, write_a_little};
use support::{World, eventually, reached, read_up_to};

const TIMELINES: usize = 200;
/// What comes and goes besides: connections that are about to be closed, threads for blocking work.
const OTHERS_MAX: usize = 24;

/// A test that has the process to itself, on two threads.
fn alone(test: impl Future<Output = ()>) {
    static PROCESS: Mutex<()> = Mutex::new(());
    let _process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(test);
}

#[test]
fn idle_timelines_cost_no_descriptor_and_no_thread() {
    alone(idle_timelines());
}

async fn idle_timelines() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let start = async |unload_after: Duration| {
        let mut config = world.config(dir.path());
        config.unload_after = unload_after;
        Safekeeper::start(config, CancellationToken::new()).await.expect("starts")
    };
    let timelines: Vec<World> = (0..TIMELINES).map(|_| world.of(TimelineId::generate())).collect();

    // While all are in memory each has the file open that was written last.
    let safekeeper = start(Duration::from_secs(3600)).await;
    let (addresses, before) = (safekeeper.addresses().to_vec(), Usage::now());
    for timeline in &timelines {
        timeline.create(&addresses).await;
        write_a_little(timeline, &addresses).await;
    }
    let counters = Counters::of(&safekeeper);
    eventually("all are in memory", async || counters.loaded() == TIMELINES).await;
    let (descriptors_max, threads_max) = (before.descriptors + TIMELINES + OTHERS_MAX, before.threads + OTHERS_MAX);
    eventually("one descriptor each at most", async || Usage::now().descriptors <= descriptors_max).await;
    eventually("no thread for any", async || Usage::now().threads <= threads_max).await;
    println!("{before:?} without timelines, {:?} with {TIMELINES} in memory", Usage::now());
    safekeeper.shutdown().await;

    // The same when each was used and left: nothing is open for any of them.
    let safekeeper = start(Duration::from_secs(1)).await;
    let (addresses, before) = (safekeeper.addresses().to_vec(), Usage::now());
    let mut ends = Vec::new();
    for timeline in &timelines {
        ends.push(write_a_little(timeline, &addresses).await);
    }
    let (descriptors_max, threads_max) = (before.descriptors + OTHERS_MAX, before.threads + OTHERS_MAX);
    eventually("no descriptor is left", async || Usage::now().descriptors <= descriptors_max).await;
    eventually("no thread is left", async || Usage::now().threads <= threads_max).await;
    let counters = Counters::of(&safekeeper);
    eventually("none is in memory", async || counters.loaded() == 0).await;
    println!("{before:?} after the restart, {:?} with {TIMELINES} that are idle", Usage::now());

    // And they are what they were.
    let mut client = world.client(&addresses[0]).await;
    for (timeline, end) in timelines.iter().zip(ends) {
        let status = client.status(timeline.spec.timeline).await.expect("it is loaded again");
        assert_eq!((status.flush_lsn, status.commit_lsn), (end, end));
    }
    safekeeper.shutdown().await;
}

#[test]
fn a_segment_that_cannot_be_opened_for_want_of_descriptors_is_written_later() {
    alone(a_segment_that_cannot_be_opened());
}

async fn a_segment_that_cannot_be_opened() {
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
