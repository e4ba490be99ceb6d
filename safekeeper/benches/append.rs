//! What an append costs by the way on which it comes: `cargo test --workspace --bench append`. Prints a table.
//!
//! One safekeeper listens on a Unix socket, on TCP and on TLS; for each a writer is elected that appends a small record, waits until
//! it is durable, and appends the next: the way of a commit, with its fsync. The three take turns. What is read is 8 MiB of committed WAL.
//!
//! `BENCH_APPENDS` (default 2000, in each round) and `BENCH_ROUNDS` (default 5) set the size.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_safekeeper::Safekeeper;
use ardent_test_pg::side_by_side::number_from;
use ardent_types::Lsn;

use support::{World, reached, read_up_to};

const READ_BYTES: usize = 8 << 20;

fn main() {
    let (appends, rounds) = (number_from("BENCH_APPENDS", 2000) as usize, number_from("BENCH_ROUNDS", 5) as usize);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let dir = tempfile::tempdir().expect("a folder");
        let world = World::new();
        let mut config = world.config(dir.path());
        config.listen.push("tcp:127.0.0.1:0".parse().expect("an address"));
        config.listen.push("tls:127.0.0.1:0".parse().expect("an address"));
        let safekeeper = Safekeeper::start(config, CancellationToken::new()).await.expect("starts");
        let addresses = safekeeper.addresses().to_vec();
        world.create(&addresses[..1]).await;
        let (proposer, elected) = world.elect(&addresses[..1]).await;
        let (start, data) = world.wal(elected.end_lsn, elected.prev_lsn).take(READ_BYTES);
        let end = start.advance(data.len() as u64);
        proposer.append(start, data).await.expect("appended");
        reached(proposer.committed(), end).await;
        proposer.shutdown().await;

        let mut appended: Vec<Vec<Duration>> = vec![Vec::new(); addresses.len()];
        let mut read: Vec<Vec<Duration>> = vec![Vec::new(); addresses.len()];
        for _ in 0..rounds {
            for (at, address) in addresses.iter().enumerate() {
                appended[at].extend(append(&world, address, appends).await);
                read[at].push(read_all(&world, address, elected.end_lsn, end).await);
            }
        }
        println!("address  append_median_us  append_p99_us  read_mb_s");
        for (at, address) in addresses.iter().enumerate() {
            let kind = address.to_string();
            let (kind, _) = kind.split_once(':').expect("it has a kind");
            let (median, p99) = (quantile(&mut appended[at], 0.5), quantile(&mut appended[at], 0.99));
            let seconds = quantile(&mut read[at], 0.5).as_secs_f64();
            let mb_s = (READ_BYTES as f64) / seconds / 1e6;
            println!("{kind:7}  {:16}  {:13}  {mb_s:9.0}", median.as_micros(), p99.as_micros());
        }
        safekeeper.shutdown().await;
    });
}

/// How long each of so many appends takes until it is durable.
async fn append(world: &World, address: &ServiceAddr, count: usize) -> Vec<Duration> {
    let (proposer, elected) = world.elect(std::slice::from_ref(address)).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        let (start, data) = wal.take(1);
        let before = Instant::now();
        proposer.append(start, data).await.expect("appended");
        reached(proposer.flushed(), wal.end()).await;
        taken.push(before.elapsed());
    }
    proposer.shutdown().await;
    taken
}

async fn read_all(world: &World, address: &ServiceAddr, from: Lsn, to: Lsn) -> Duration {
    let before = Instant::now();
    let mut reader = world.reader(std::slice::from_ref(address), from).await;
    assert!(read_up_to(&mut reader, to).await.len() >= READ_BYTES, "less came");
    before.elapsed()
}

fn quantile(values: &mut [Duration], at: f64) -> Duration {
    values.sort_unstable();
    values[((values.len() - 1) as f64 * at) as usize]
}
