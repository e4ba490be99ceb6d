//! Timelines that nobody uses keep nothing open, however many there are.

mod support;

use std::time::Duration;

use ardent_safekeeper::Safekeeper;
use ardent_types::TimelineId;
use tokio_util::sync::CancellationToken;

use support::usage::{Counters, Usage, write_a_little};
use support::{World, eventually};

const TIMELINES: usize = 200;
/// What comes and goes besides: connections that are about to be closed, threads for blocking work.
const OTHERS_MAX: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_timelines_cost_no_descriptor_and_no_thread() {
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
