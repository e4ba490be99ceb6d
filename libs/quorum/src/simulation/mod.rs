//! Deterministic simulation of whole clusters: one seed decides everything that happens.
//!
//! Faults: loss, duplication, reordering and delay of messages; partitions; connections that come and go; proposers that
//! come, compete and vanish; crashes between any two effects, with loss and tearing of what was not fsynced; slow and full disks. With
//! spare nodes, members change meanwhile: any set of one, three or five becomes any other, by changers that crash and compete; disks are
//! lost for good; writers come that were told of members of long ago. In clusters of their own, the writers' clocks jump by up to an hour,
//! forwards and back.
//! An observer that sees all disks checks the invariants after every step.
//!
//! `ARDENT_SIMULATION_SEEDS=10000 cargo test -p ardent-quorum simulation` runs more; `ARDENT_SIMULATION_REPLAY=NODES+SPARES:SEED` runs
//! one seed and prints its last events, `NODES+SPARES~:SEED` one of a cluster whose clocks jump.

mod change;
mod clock;
mod dice;
mod node;
mod record;
mod world;

use std::fmt::{self, Display, Formatter};
use std::num::ParseIntError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use crate::bug::Bug;
use change::Seen;
use clock::{Clocks, Jumps};
use world::{Setup, World};

/// Seeds of a plain `cargo test`, for each cluster size.
const SEEDS: u64 = 150;
/// Seeds within which every deliberate bug must be found.
const SEEDS_PER_BUG_MAX: u64 = 200;
/// Where the search for the rarest ones starts, so that a test does not take a minute: from 0 they take this many seeds more.
const RARE: [(Bug, u64); 3] = [(Bug::FetchUnfenced, 7200), (Bug::StaleFetch, 5_600), (Bug::CountedBeforeBegin, 200)];

/// The members at first, and nodes more. With any, members change.
#[derive(Clone, Copy)]
struct Cluster {
    nodes: usize,
    spares: usize,
    clocks: Clocks,
}

const fn fixed(nodes: usize) -> Cluster {
    changing(nodes, 0)
}

const fn changing(nodes: usize, spares: usize) -> Cluster {
    Cluster { nodes, spares, clocks: Clocks::Steady }
}

const fn jumping(nodes: usize, spares: usize) -> Cluster {
    Cluster { nodes, spares, clocks: Clocks::Jumping }
}

/// Those that have always been the same and know no members, in the order in which bugs are looked for.
const FIXED: [Cluster; 3] = [fixed(3), fixed(5), fixed(1)];
const CHANGING: [Cluster; 3] = [changing(1, 3), changing(3, 2), changing(3, 4)];
const JUMPING: [Cluster; 4] = [jumping(1, 0), jumping(3, 0), jumping(5, 0), jumping(3, 2)];

impl Cluster {
    fn with(self, seed: u64, bug: Option<Bug>) -> Setup {
        let Cluster { nodes, spares, clocks } = self;
        Setup { seed, nodes, spares, clocks, bug }
    }
}

/// As it is given to a replay.
impl Display for Cluster {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let Cluster { nodes, spares, clocks } = self;
        write!(to, "{nodes}+{spares}{}", if *clocks == Clocks::Jumping { "~" } else { "" })
    }
}

impl FromStr for Cluster {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (text, clocks) = text.strip_suffix('~').map_or((text, Clocks::Steady), |rest| (rest, Clocks::Jumping));
        let (nodes, spares) = text.split_once('+').unwrap_or((text, "0"));
        Ok(Cluster { nodes: nodes.parse()?, spares: spares.parse()?, clocks })
    }
}

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

fn check_seeds(cluster: Cluster) {
    let seeds = seeds_wanted(SEEDS);
    let (mut committed, mut elections, mut seen, mut jumps) = (0, 0, Seen::default(), Jumps::default());
    for seed in 0..seeds {
        match run(cluster.with(seed, None)) {
            Ok(world) => {
                committed += world.committed_bytes();
                elections += world.elections;
                seen.add(world.changes.seen);
                jumps.add(world.jumps);
            }
            Err(what) => panic!(
                "seed {seed} with {cluster} nodes: {what}\nreplay with: \
                 ARDENT_SIMULATION_REPLAY={cluster}:{seed} cargo test -p ardent-quorum simulation::replay -- --nocapture"
            ),
        }
    }
    println!("{cluster} nodes: {seeds} seeds, {elections} elections, {committed} bytes committed");
    assert!(committed as u64 > seeds * 100, "hardly anything was committed: the faults are too many");
    if cluster.spares > 0 {
        println!("{seen:?}");
        assert!(seen.settled as u64 > seeds, "hardly any change of members was settled: the faults are too many");
        assert!(seen.is_all(), "something never happened: {seen:?}");
    }
    if cluster.clocks == Clocks::Jumping {
        println!("{jumps:?}");
        assert!(jumps.is_all(), "clocks never jumped both ways: {jumps:?}");
    }
}

#[test]
fn a_seed_gives_one_history() {
    for (seed, cluster) in
        [(0, fixed(3)), (1, fixed(3)), (2, fixed(3)), (0, changing(3, 3)), (1, changing(3, 3)), (0, jumping(3, 2))]
    {
        let trace = || {
            let mut world = World::new(cluster.with(seed, None));
            world.trace = Some(Vec::new());
            world.run().expect("no violation");
            world.trace.take().expect("set above")
        };
        let (first, second) = (trace(), trace());
        assert!(first.len() > 100);
        assert_eq!(first, second, "seed {seed} of {cluster}");
    }
}

#[test]
fn one_node_keeps_its_promises() {
    check_seeds(fixed(1));
}

#[test]
fn three_nodes_keep_their_promises() {
    check_seeds(fixed(3));
}

#[test]
fn five_nodes_keep_their_promises() {
    check_seeds(fixed(5));
}

#[test]
fn members_that_change_keep_their_promises() {
    CHANGING.into_iter().for_each(check_seeds);
}

#[test]
fn under_clocks_that_jump_all_keep_their_promises() {
    JUMPING.into_iter().for_each(check_seeds);
}

/// Seeds that once failed.
const ONCE_FAILED: [(Cluster, u64); 7] = [
    (fixed(5), 30),
    (fixed(3), 1164),
    (fixed(5), 5667),
    (fixed(1), 47),
    (changing(1, 3), 226),
    (changing(3, 4), 10990),
    (jumping(3, 2), 4337),
];

#[test]
fn seeds_that_once_failed_hold() {
    for (cluster, seed) in ONCE_FAILED {
        if let Err(what) = run(cluster.with(seed, None)) {
            panic!("seed {seed} with {cluster} nodes: {what}");
        }
    }
}

/// Does nothing unless asked for a seed.
#[test]
fn replay() {
    let Ok(which) = std::env::var("ARDENT_SIMULATION_REPLAY") else { return };
    let (cluster, seed) = which.split_once(':').expect("NODES:SEED, NODES+SPARES:SEED or NODES+SPARES~:SEED");
    let cluster: Cluster = cluster.parse().expect("numbers of nodes");
    let mut world = World::new(cluster.with(seed.parse().expect("a seed"), None));
    world.trace = Some(Vec::new());
    let result = world.run();
    let trace = world.trace.take().expect("set above");
    for line in &trace[trace.len().saturating_sub(200)..] {
        println!("{line}");
    }
    result.expect("no violation");
}

/// Every deliberate bug is found, and how soon. The list is documented in `docs/quorum.md`.
fn check_bug(bug: Bug, clusters: &[Cluster]) {
    let first = RARE.iter().find(|(rare, _)| *rare == bug).map_or(0, |(_, first)| *first);
    for seed in first..first + seeds_wanted(SEEDS_PER_BUG_MAX) {
        for cluster in clusters {
            if let Err(what) = run(cluster.with(seed, Some(bug))) {
                println!("{bug:?} found by seed {seed} with {cluster} nodes: {what}");
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
    FIXED =>
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
    finds_previous_term_kept: PreviousTermKept,
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

finds! {
    JUMPING =>
    finds_clock_never_set_back: ClockNeverSetBack,
}
