//! What this process has of the host, and how many timelines a safekeeper in it has in memory.

use std::fs;

use ardent_api::addr::ServiceAddr;
use ardent_safekeeper::Safekeeper;
use ardent_types::Lsn;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::{World, reached};

/// What a process has at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// In memory, in bytes.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub descriptors: usize,
    pub threads: usize,
}

impl Usage {
    /// This process's.
    pub fn now() -> Usage {
        let status = fs::read_to_string("/proc/self/status").expect("the kernel keeps this");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is there");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        let entries = |folder: &str| fs::read_dir(folder).expect("the kernel keeps this").count();
        Usage {
            resident_bytes: kilobytes << 10,
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
        }
    }
}

/// A safekeeper's counters.
pub struct Counters(Registry);

impl Counters {
    pub fn of(safekeeper: &Safekeeper) -> Counters {
        let mut registry = Registry::default();
        safekeeper.register_metrics(&mut registry);
        Counters(registry)
    }

    /// How many timelines are in memory; told once a second.
    pub fn loaded(&self) -> usize {
        self.told("timelines_loaded")
    }

    /// How many requests have failed.
    pub fn failures(&self) -> usize {
        self.told("failures_total")
    }

    fn told(&self, name: &str) -> usize {
        let mut told = String::new();
        encode(&mut told, &self.0).expect("metrics can be told");
        let prefix = format!("ardent_safekeeper_{name} ");
        let line = told.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|number| number.parse().ok()).expect("it is told")
    }
}

/// Has a writer append a little, which is durable and committed when it leaves; where the log ends then.
pub async fn write_a_little(world: &World, addresses: &[ServiceAddr]) -> Lsn {
    let (proposer, elected) = world.elect(addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(1);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    proposer.shutdown().await;
    wal.end()
}
