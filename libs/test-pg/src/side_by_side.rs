//! Two programs over the same WAL, in turns: how a benchmark compares us with Postgres's own.

use std::time::{Duration, Instant};

/// How long something took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Took {
    /// By the clock.
    pub elapsed: Duration,
    /// Of the processor, in user mode and in the kernel: what other programs do meanwhile is not in it. Zero where it is not known.
    pub cpu: Duration,
}

impl Took {
    /// Does `work` on this thread and says how long it took.
    pub fn by(work: impl FnOnce()) -> Took {
        let (cpu, begun) = (thread_cpu(), Instant::now());
        work();
        Took { elapsed: begun.elapsed(), cpu: thread_cpu().saturating_sub(cpu) }
    }
}

fn thread_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel keeps this");
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number of ns"))
}

/// A number from an environment variable.
pub fn number_from(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The best of each side of `$BENCH_ROUNDS` (5), in turns, so that both meet the same noise.
pub fn side_by_side(mut ours: impl FnMut() -> Took, mut peer: impl FnMut() -> Took) -> (Took, Took) {
    let rounds = number_from("BENCH_ROUNDS", 5).max(1);
    let both: Vec<_> = (0..rounds).map(|_| (ours(), peer())).collect();
    let best = |side: fn(&(Took, Took)) -> Took| Took {
        elapsed: both.iter().map(|round| side(round).elapsed).min().expect("there is a round"),
        cpu: both.iter().map(|round| side(round).cpu).min().expect("there is a round"),
    };
    (best(|round| round.0), best(|round| round.1))
}

/// The WAL that both sides have read.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Records.
    pub records: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    fn rate(self, time: Duration) -> String {
        let per_us = |amount: u64| amount as f64 / 1e6 / time.as_secs_f64();
        format!("{:.2} M records/s, {:.0} MB/s", per_us(self.records), per_us(self.bytes))
    }
}

/// Begins the table of [`print_row`].
pub fn print_header() {
    println!("| case | ours | peer | ratio | ratio of CPU time | target |\n|---|---|---|---|---|---|");
}

/// A line of the table.
pub fn print_row(case: &str, amount: Amount, (ours, peer): (Took, Took), peer_name: &str, target: &str) {
    let ratio = |ours: Duration, peer: Duration| {
        let known = !ours.is_zero() && !peer.is_zero();
        if known { format!("{:.2}", peer.as_secs_f64() / ours.as_secs_f64()) } else { "-".to_owned() }
    };
    let (ratio, cpu) = (ratio(ours.elapsed, peer.elapsed), ratio(ours.cpu, peer.cpu));
    let (ours, peer) = (amount.rate(ours.elapsed), amount.rate(peer.elapsed));
    println!("| {case} | {ours} | {peer} ({peer_name}) | {ratio} | {cpu} | {target} |");
}
