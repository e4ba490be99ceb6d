//! The process itself, under the names that Prometheus's own clients give it.

use std::fmt;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Adds the process and its version.
pub fn register(registry: &mut Registry) {
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("ardent_build", "The program", version);
    registry.register_collector(Box::new(Process));
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if let Some(bytes) = resident_bytes() {
            let gauge = ConstGauge::new(bytes);
            let help = "Memory of the process that is in RAM";
            gauge.encode(encoder.encode_descriptor(
                "process_resident_memory_bytes",
                help,
                None,
                gauge.metric_type(),
            )?)?;
        }
        if let Some(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let help = "Processor time that the process has used";
            counter.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?)?;
        }
        if let Some(open) = fs::read_dir("/proc/self/fd").ok().map(Iterator::count) {
            let gauge = ConstGauge::new(open as i64);
            let help = "Open file descriptors of the process";
            gauge.encode(encoder.encode_descriptor("process_open_fds", help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// From `/proc/self/statm`: the second field, in pages.
fn resident_bytes() -> Option<i64> {
    let pages: i64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * sysconf(SysconfVar::PAGE_SIZE).ok()??)
}

/// From `/proc/self/stat`: the 14th and 15th fields, in ticks. The second, the program's name in brackets, may hold blanks.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some((user + system) as f64 / sysconf(SysconfVar::CLK_TCK).ok()?? as f64)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_running_process_has_memory_and_has_used_time() {
        assert!(super::resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
        let mut seconds = 0.0;
        while seconds == 0.0 {
            seconds = super::cpu_seconds().expect("told");
        }
    }
}
