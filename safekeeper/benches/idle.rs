//! Many timelines on one safekeeper, most of them idle: `cargo test --workspace --bench idle`. Prints a table.
//!
//! `BENCH_TIMELINES` (default 5000) are made by `BENCH_CLIENTS` (default 8) clients at a time over a Unix socket; each has a writer that
//! appends a record and leaves. The safekeeper is started anew with them, all are loaded, left until none is in memory, and some of them
//! used again, one after the other. Each phase is a process of its own, so that none has memory of the one before; its clients are in it.
//! The files take about 300 KB for each timeline, in the temporary folder.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ardent_api::addr::ServiceAddr;
use ardent_safekeeper::Safekeeper;
use ardent_test_pg::side_by_side::{number_from, print_header};
use ardent_types::{TenantId, TimelineId};
use ardent_wal_client::SafekeeperClient;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use support::World;
use support::usage::{Counters, Usage, write_a_little};

const TENANT: TenantId = TenantId::from_bytes([7; 16]);
/// Says which phase a process is to run, and where.
const PHASE: &str = "BENCH_IDLE_PHASE";
const FOLDER: &str = "BENCH_IDLE_FOLDER";
/// After so long a timeline that nobody uses is unloaded; all must have been loaded by then.
const UNLOAD_AFTER: Duration = Duration::from_secs(30);
/// Longest wait for all to be loaded, or unloaded.
const PATIENCE: Duration = Duration::from_secs(120);
/// Timelines that are used again one after the other.
const USED_AGAIN: u32 = 100;

fn timeline(number: u32) -> TimelineId {
    TimelineId::from_bytes(
        (u128::from(number) + 1000).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes(),
    )
}

/// A safekeeper in this process, and what its clients need.
struct House {
    runtime: Runtime,
    world: World,
    safekeeper: Safekeeper,
    addresses: Vec<ServiceAddr>,
    counters: Counters,
}

impl House {
    fn start(folder: &Path, unload_after: Duration) -> House {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let mut world = World::new();
        world.spec.tenant = TENANT;
        let mut config = world.config(folder);
        config.unload_after = unload_after;
        let safekeeper = runtime.block_on(Safekeeper::start(config, CancellationToken::new())).expect("starts");
        let (addresses, counters) = (safekeeper.addresses().to_vec(), Counters::of(&safekeeper));
        House { runtime, world, safekeeper, addresses, counters }
    }

    fn stop(self) {
        self.runtime.block_on(self.safekeeper.shutdown());
    }

    /// Has something done to each timeline, by so many clients at once; how long it took.
    fn each(&self, timelines: u32, clients: u32, work: impl AsyncFn(&mut SafekeeperClient, &World) + Sync) -> Duration {
        let (tenant, address) = (&self.world, &self.addresses[0]);
        let began = Instant::now();
        thread::scope(|scope| {
            for first in 0..clients {
                let work = &work;
                scope.spawn(move || {
                    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
                    runtime.block_on(async {
                        let mut client = tenant.client(address).await;
                        for number in (first..timelines).step_by(clients as usize) {
                            let world = tenant.of(timeline(number));
                            work(&mut client, &world).await;
                        }
                    });
                });
            }
        });
        began.elapsed()
    }

    /// Waits until so many timelines are in memory.
    fn wait_until_loaded(&self, timelines: usize) {
        let began = Instant::now();
        while self.counters.loaded() != timelines {
            assert!(began.elapsed() < PATIENCE, "{} are in memory, not {timelines}", self.counters.loaded());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn row(case: &str, ours: &str) {
    println!("| {case} | {ours} | - | - | - | - |");
}

fn row_of_usage(when: &str, usage: Usage) {
    let megabytes = usage.resident_bytes as f64 / 1e6;
    let text = format!("{megabytes:.1} MB, {} descriptors, {} threads", usage.descriptors, usage.threads);
    row(&format!("safekeeper {when}"), &text);
}

fn row_of_rate(what: &str, timelines: u32, clients: u32, took: Duration) {
    let rate = f64::from(timelines) / took.as_secs_f64();
    row(&format!("timelines {what}, over {clients} connections"), &format!("{rate:.0}/s"));
}

fn row_of_each(what: &str, timelines: u32, before: Usage, after: Usage) {
    let bytes = after.resident_bytes.saturating_sub(before.resident_bytes) as f64 / f64::from(timelines);
    row(&format!("... memory of a timeline that {what}"), &format!("{bytes:.0} bytes"));
}

fn row_of_median(what: &str, mut taken: Vec<Duration>) {
    taken.sort_unstable();
    let (count, median) = (taken.len(), taken[taken.len() / 2]);
    row(&format!("{what}, median of {count}"), &format!("{:.2} ms", median.as_secs_f64() * 1e3));
}

fn make(folder: &Path, timelines: u32, clients: u32) {
    let house = House::start(folder, Duration::from_secs(3600));
    let before = Usage::now();
    row_of_usage("without timelines", before);
    let addresses = &house.addresses;
    let took = house.each(timelines, clients, async |client: &mut SafekeeperClient, world: &World| {
        client.create_timeline(world.spec).await.expect("the timeline is made");
        write_a_little(world, addresses).await;
    });
    row_of_rate("made and written to", timelines, clients, took);
    house.wait_until_loaded(timelines as usize);
    let after = Usage::now();
    row_of_usage(&format!("with {timelines} timelines that were written to and are in memory"), after);
    row_of_each("was written to and is in memory, with what clients left", timelines, before, after);
    house.stop();
}

async fn ask(client: &mut SafekeeperClient, world: &World) {
    client.status(world.spec.timeline).await.expect("the timeline is there");
}

fn use_them(folder: &Path, timelines: u32, clients: u32) {
    let began = Instant::now();
    let house = House::start(folder, UNLOAD_AFTER);
    house.each(1, 1, ask);
    let ms = began.elapsed().as_secs_f64() * 1e3;
    row(&format!("start with {timelines} timelines, until one of them has answered"), &format!("{ms:.1} ms"));
    let before = Usage::now();
    row_of_usage(&format!("started with {timelines} timelines"), before);

    let took = house.each(timelines, clients, ask);
    row_of_rate("loaded", timelines, clients, took);
    house.wait_until_loaded(timelines as usize);
    let loaded = Usage::now();
    row_of_usage(&format!("with {timelines} timelines in memory"), loaded);
    row_of_each("is in memory", timelines, before, loaded);

    house.wait_until_loaded(0);
    let idle = Usage::now();
    row_of_usage(&format!("with {timelines} idle timelines"), idle);
    row_of_each("is idle", timelines, before, idle);

    let (mut asked, mut written) = (Vec::new(), Vec::new());
    house.runtime.block_on(async {
        let mut client = house.world.client(&house.addresses[0]).await;
        for number in 0..USED_AGAIN.min(timelines / 2) {
            let began = Instant::now();
            client.status(timeline(2 * number)).await.expect("the timeline is there");
            asked.push(began.elapsed());
            let world = house.world.of(timeline(2 * number + 1));
            let began = Instant::now();
            write_a_little(&world, &house.addresses).await;
            written.push(began.elapsed());
        }
    });
    row_of_median("an idle timeline loaded", asked);
    row_of_median("an idle timeline loaded, a writer elected, its first append committed", written);
    house.stop();
}

fn main() {
    let timelines = number_from("BENCH_TIMELINES", 5000).max(2);
    let clients = number_from("BENCH_CLIENTS", 8).max(1);
    if let Ok(phase) = std::env::var(PHASE) {
        let folder = PathBuf::from(std::env::var_os(FOLDER).expect("the folder is said"));
        match phase.as_str() {
            "make" => make(&folder, timelines, clients),
            _ => use_them(&folder, timelines, clients),
        }
        return;
    }
    print_header();
    let folder = tempfile::tempdir().expect("a temporary folder");
    for phase in ["make", "use"] {
        let program = std::env::current_exe().expect("this program has a path");
        // A timeline that was written to has a file open while it is in memory.
        let with_more_descriptors = "ulimit -S -n \"$(ulimit -H -n)\" && exec \"$0\"";
        let mut command = Command::new("sh");
        command.args(["-c", with_more_descriptors]).arg(program).env(PHASE, phase).env(FOLDER, folder.path());
        assert!(command.status().expect("the phase runs").success(), "phase {phase} failed");
    }
}
