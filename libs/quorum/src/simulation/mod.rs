//! Deterministic simulation of whole clusters: one seed decides everything that happens.
//!
//! Faults: loss, duplication, reordering and delay of messages; partitions; connections that come and go; proposers that
//! come, compete and vanish; crashes between any two effects, with loss and tearing of what was not fsynced; slow and full disks. With
//! spare nodes, members change meanwhile: any set of one, three or five becomes any other, by changers that crash and compete; disks are
//! lost for good; writers come that were told of members of long ago.
//! An observer that sees all disks checks the invariants after every step.
//!
//! `ARDENT_SIMULATION_SEEDS=10000 cargo test -p ardent-quorum simulation` runs more; `ARDENT_SIMULATION_REPLAY=NODES+SPARES:SEED` runs
//! one seed and prints its last events.

mod change;
mod dice;
mod node;
mod record;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::bug::Bug;
use change::Seen;
use world::{Setup, World};

/// Seeds of a plain `cargo test`, for each cluster size.
const SEEDS: u64 = 150;
/// Seeds within which every deliberate bug must be found.
const SEEDS_PER_BUG_MAX: u64 = 200;
/// Where the search for the rarest ones starts, so that a test does not take a minute: from 0 they take this many seeds more.
const RARE: [(Bug, u64); 3] = [(Bug::FetchUnfenced, 7200), (Bug::StaleFetch, 5_600), (Bug::CountedBeforeBegin, 200)];

/// Clusters whose members change, as (members at first, nodes more).
const CHANGING: [(usize, usize); 3] = [(1, 3), (3, 2), (3, 4)];

/// Runs one seed. The error says what is broken; a panic of the code under test counts.
fn run(setup: Setup) -> Result<World, String> {
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(setup);
        let result = world.run();
        (world, result)
    }));
    match attempt {
        Ok((world, Ok(()))) => Ok(world),
        Ok((_, Err(violation))) => Err(violation.to_string()),
        Err(_) => Err("a panic".to_owned()),
    }
}

fn seeds_wanted(otherwise: u64) -> u64 {
    std::env::var("ARDENT_SIMULATION_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(otherwise)
}

fn check_seeds(nodes: usize, spares: usize) {
    let seeds = seeds_wanted(SEEDS);
    let (mut committed, mut elections, mut seen) = (0, 0, Seen::default());
    for seed in 0..seeds {
        match run(Setup { seed, nodes, spares, bug: None }) {
            Ok(world) => {
                committed += world.committed_bytes();
                elections += world.elections;
                seen.add(world.changes.seen);
            }
            Err(what) => panic!(
                "seed {seed} with {nodes} nodes and {spares} spare: {what}\nreplay with: \
                 ARDENT_SIMULATION_REPLAY={nodes}+{spares}:{seed} cargo test -p ardent-quorum simulation::replay -- --nocapture"
            ),
        }
    }
    println!("{nodes} nodes and {spares} spare: {seeds} seeds, {elections} elections, {committed} bytes committed");
    assert!(committed as u64 > seeds * 100, "hardly anything was committed: the faults are too many");
    if spares > 0 {
        println!("{seen:?}");
        assert!(seen.settled as u64 > seeds, "hardly any change of members was settled: the faults are too many");
        assert!(seen.is_all(), "something never happened: {seen:?}");
    }
}

#[test]
fn a_seed_gives_one_history() {
    for (seed, spares) in [(0, 0), (1, 0), (2, 0), (0, 3), (1, 3)] {
        let trace = || {
            let mut world = World::new(Setup { seed, nodes: 3, spares, bug: None });
            world.trace = Some(Vec::new());
            world.run().expect("no violation");
            world.trace.take().expect("set above")
        };
        let (first, second) = (trace(), trace());
        assert!(first.len() > 100);
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn one_node_keeps_its_promises() {
    check_seeds(1, 0);
}

#[test]
fn three_nodes_keep_their_promises() {
    check_seeds(3, 0);
}

#[test]
fn five_nodes_keep_their_promises() {
    check_seeds(5, 0);
}

#[test]
fn members_that_change_keep_their_promises() {
    for (nodes, spares) in CHANGING {
        check_seeds(nodes, spares);
    }
}

/// Seeds that once failed, as (nodes, spares, seed).
const ONCE_FAILED: [(usize, usize, u64); 6] =
    [(5, 0, 30), (3, 0, 1164), (5, 0, 5667), (1, 0, 47), (1, 3, 226), (3, 4, 10990)];

#[test]
fn seeds_that_once_failed_hold() {
    for (nodes, spares, seed) in ONCE_FAILED {
        if let Err(what) = run(Setup { seed, nodes, spares, bug: None }) {
            panic!("seed {seed} with {nodes} nodes and {spares} spare: {what}");
        }
    }
}

/// Does nothing unless asked for a seed.
#[test]
fn replay() {
    let Ok(which) = std::env::var("ARDENT_SIMULATION_REPLAY") else { return };
    let (nodes, seed) = which.split_once(':').expect("NODES:SEED or NODES+SPARES:SEED");
    let (nodes, spares) = nodes.split_once('+').unwrap_or((nodes, "0"));
    let number = |text: &str| text.parse().expect("a number");
    let setup = Setup { seed: seed.parse().expect("a seed"), nodes: number(nodes), spares: number(spares), bug: None };
    let mut world = World::new(setup);
    world.trace = Some(Vec::new());
    let result = world.run();
    let trace = world.trace.take().expect("set above");
    for line in &trace[trace.len().saturating_sub(200)..] {
        println!("{line}");
    }
    result.expect("no violation");
}

/// Every deliberate bug is found, and how soon. The list is documented in `docs/quorum.md`.
fn check_bug(bug: Bug, clusters: &[(usize, usize)]) {
    let first = RARE.iter().find(|(rare, _)| *rare == bug).map_or(0, |(_, first)| *first);
    for seed in first..first + seeds_wanted(SEEDS_PER_BUG_MAX) {
        for (nodes, spares) in clusters.iter().copied() {
            if let Err(what) = run(Setup { seed, nodes, spares, bug: Some(bug) }) {
                println!("{bug:?} found by seed {seed} with {nodes} nodes and {spares} spare: {what}");
                return;
            }
        }
    }
    panic!("{bug:?} was not found in {SEEDS_PER_BUG_MAX} seeds from {first}");
}

macro_rules! finds {
    ($clusters:expr => $($name:ident: $bug:ident,)*) => {$(
        #[test]
        fn $name() {
            check_bug(Bug::$bug, &$clusters);
        }
    )*};
}

finds! {
    [(3, 0), (5, 0), (1, 0)] =>
    finds_vote_not_persisted: VoteNotPersisted,
    finds_vote_twice: VoteTwice,
    finds_ack_before_fsync: AckBeforeFsync,
    finds_stale_term_accepted: StaleTermAccepted,
    finds_no_truncation: NoTruncation,
    finds_history_not_persisted: HistoryNotPersisted,
    finds_begin_twice: BeginTwice,
    finds_gap_accepted: GapAccepted,
    finds_commit_at_one: CommitAtOne,
    finds_minority_election: MinorityElection,
    finds_donor_by_length: DonorByLength,
    finds_no_completion: NoCompletion,
    finds_commit_unasked: CommitUnasked,
    finds_commit_after_promise: CommitAfterPromise,
    finds_commit_mid_record: CommitMidRecord,
    finds_fetch_unfenced: FetchUnfenced,
    finds_stale_fetch: StaleFetch,
}

finds! {
    CHANGING =>
    finds_generation_not_persisted: GenerationNotPersisted,
    finds_old_generation_accepted: OldGenerationAccepted,
    finds_ack_after_change: AckAfterChange,
    finds_commit_after_change: CommitAfterChange,
    finds_next_majority_only: NextMajorityOnly,
    finds_old_majority_only: OldMajorityOnly,
    finds_counted_too_early: CountedTooEarly,
    finds_counted_before_begin: CountedBeforeBegin,
    finds_disk_not_checked: DiskNotChecked,
}
