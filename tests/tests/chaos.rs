//! Faults from a seed, one after another, while clients write: no acknowledged commit is lost, no money is made, and there is progress whenever
//! there is a quorum.
//!
//! In `make test` for some seconds, with processes that are killed and halted. `make test-full AREA=chaos` sets `ARDENT_CHAOS_S`: then for so many
//! seconds in a network of its own, where safekeepers are cut off as well, and their disks become full and slow. `ARDENT_SEED` says which faults.

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use ardent_test_pg::TestPg;
use ardent_tests::{Apart, Bank, Ledger, Lost, Network, Process, SlowFsync, production_options, sql, wait_until};

const SAFEKEEPERS: [&str; 3] = ["safekeeper-1", "safekeeper-2", "safekeeper-3"];
/// How long nobody may wait for a commit when a quorum is up.
const PROGRESS_DEADLINE_S: u64 = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill(&'static str),
    Halt(&'static str),
    KillAgent,
    KillSupervisor,
    KillPostmaster,
    KillTwo,
    HaltTwo,
    Cut(&'static str, Lost),
    CutTwo,
    FullDisk(&'static str),
    SlowFsync(&'static str),
}

impl Fault {
    fn any(random: &mut StdRng, has_network: bool) -> Fault {
        let safekeeper = *SAFEKEEPERS.choose(random).expect("there are three");
        match random.random_range(0..if has_network { 14 } else { 8 }) {
            0 | 1 => Fault::Kill(safekeeper),
            2 => Fault::Halt(safekeeper),
            3 => Fault::Kill(["pageserver", "control", "proxy"].choose(random).expect("there are three")),
            4 => Fault::Halt("pageserver"),
            5 => *[Fault::KillAgent, Fault::KillSupervisor, Fault::KillPostmaster]
                .choose(random)
                .expect("there are three"),
            6 => Fault::KillTwo,
            7 => Fault::HaltTwo,
            8 => Fault::Cut(safekeeper, Lost::All),
            9 => Fault::Cut(safekeeper, *[Lost::ToIt, Lost::FromIt].choose(random).expect("there are two")),
            10 => Fault::Cut(safekeeper, Lost::Some),
            11 => Fault::CutTwo,
            12 => Fault::FullDisk(safekeeper),
            _ => Fault::SlowFsync(safekeeper),
        }
    }

    /// What its line in the table is called: which of three safekeepers it was says nothing.
    fn kind(self) -> String {
        let one = |role: &'static str| if SAFEKEEPERS.contains(&role) { "a safekeeper" } else { role };
        match self {
            Fault::Kill(role) => format!("kill {}", one(role)),
            Fault::Halt(role) => format!("halt {}", one(role)),
            Fault::Cut(role, lost) => format!("cut off {}: {lost:?}", one(role)),
            Fault::FullDisk(role) => format!("full disk of {}", one(role)),
            Fault::SlowFsync(role) => format!("slow fsync of {}", one(role)),
            other => format!("{other:?}"),
        }
    }

    /// Whether commits must go on while it lasts.
    fn leaves_a_quorum(self) -> bool {
        match self {
            Fault::Kill(role) | Fault::Halt(role) => SAFEKEEPERS.contains(&role),
            Fault::Cut(..) | Fault::FullDisk(_) | Fault::SlowFsync(_) => true,
            // These end at once, and are waited for at their end.
            Fault::KillAgent
            | Fault::KillSupervisor
            | Fault::KillPostmaster
            | Fault::KillTwo
            | Fault::HaltTwo
            | Fault::CutTwo => false,
        }
    }

    /// Whether commits must wait while it lasts.
    fn leaves_no_quorum(self) -> bool {
        matches!(self, Fault::KillTwo | Fault::HaltTwo | Fault::CutTwo)
    }
}

/// The installation with what is wrong in it.
struct Chaos {
    apart: Apart,
    network: Option<Network>,
    slow: Option<SlowFsync>,
}

impl Chaos {
    fn begin(&mut self, fault: Fault, spared: &str) {
        let two = || SAFEKEEPERS.into_iter().filter(|name| *name != spared);
        match fault {
            Fault::Kill(role) => self.apart.kill(role),
            Fault::Halt(role) => self.apart.signal(role, Signal::SIGSTOP),
            // Clients may have none at this moment.
            Fault::KillAgent => self.apart.below_control(Process::is_agent).iter().for_each(Process::kill),
            Fault::KillSupervisor => {
                self.apart.below_control(Process::is_supervisor).iter().for_each(Process::kill);
            }
            Fault::KillPostmaster => self.apart.below_control(Process::is_postmaster).iter().for_each(Process::kill),
            Fault::KillTwo => two().for_each(|role| self.apart.kill(role)),
            Fault::HaltTwo => two().for_each(|role| self.apart.signal(role, Signal::SIGSTOP)),
            Fault::Cut(role, lost) => self.network().cut(Apart::host(role), lost),
            Fault::CutTwo => two().for_each(|role| self.network().cut(Apart::host(role), Lost::All)),
            Fault::FullDisk(role) => self.apart.disk(role).fill(),
            Fault::SlowFsync(role) => {
                self.slow = Some(SlowFsync::of(self.apart.pid(role), Duration::from_millis(200)));
            }
        }
    }

    fn end(&mut self, fault: Fault, spared: &str) {
        let two = || SAFEKEEPERS.into_iter().filter(|name| *name != spared);
        match fault {
            Fault::Kill(role) => self.apart.up(role),
            Fault::Halt(role) => self.apart.signal(role, Signal::SIGCONT),
            Fault::KillAgent | Fault::KillSupervisor | Fault::KillPostmaster => {}
            Fault::KillTwo => two().for_each(|role| self.apart.up(role)),
            Fault::HaltTwo => two().for_each(|role| self.apart.signal(role, Signal::SIGCONT)),
            Fault::Cut(..) | Fault::CutTwo => self.network().heal(),
            Fault::FullDisk(role) => self.apart.disk(role).free(),
            Fault::SlowFsync(_) => self.slow = None,
        }
    }

    fn network(&self) -> &Network {
        self.network.as_ref().expect("only drawn where there is a network")
    }
}

fn number_from(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn acknowledged_commits_and_money_survive_faults_and_there_is_progress_with_a_quorum() {
    let long = number_from("ARDENT_CHAOS_S");
    let seed = number_from("ARDENT_SEED").unwrap_or(1);
    let mut random = StdRng::seed_from_u64(seed);
    println!("ARDENT_SEED={seed}");
    let network = long.map(|_| Network::own());
    let production = TestPg::start(production_options());
    production.sql(Ledger::TABLE);
    production.sql(Bank::TABLES);
    let apart = network.as_ref().map_or_else(Apart::start, Apart::start_in);
    apart.ok(&[
        "connector",
        "create",
        "postgresql",
        &production.tcp_url("postgres", "postgres"),
        "--name",
        "main",
        "--fast",
    ]);
    let branch = apart.ok(&["branch", "create", "one", "--from", "main", "--print-url"]);
    sql(&branch, "select 1");
    let mut chaos = Chaos { apart, network, slow: None };
    let (ledger, bank) = (Ledger::start(&branch), Bank::start(&branch));

    let end = Instant::now() + Duration::from_secs(long.unwrap_or(3));
    let mut pauses: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    while Instant::now() < end {
        let fault = Fault::any(&mut random, chaos.network.is_some());
        let spared = *SAFEKEEPERS.choose(&mut random).expect("there are three");
        let lasts = Duration::from_millis(random.random_range(200..if long.is_some() { 6000 } else { 1000 }));
        let began = Instant::now();
        chaos.begin(fault, spared);
        if fault.leaves_no_quorum() {
            // What a quorum had when it began may be on its way to clients still, on a busy machine.
            thread::sleep(Duration::from_secs(1));
            let without = Instant::now();
            thread::sleep(lasts);
            let late = ledger.last_after(without).map(|at| at - without);
            assert_eq!(late, None, "{fault:?}: acknowledged by one of three (ARDENT_SEED={seed})");
        } else {
            thread::sleep(lasts);
        }
        if fault.leaves_a_quorum() {
            let what = format!("commits while two of three are up, {fault:?} (ARDENT_SEED={seed})");
            wait_until(&what, PROGRESS_DEADLINE_S, || ledger.last_after(began));
        }
        chaos.end(fault, spared);
        let ended = Instant::now();
        let what = format!("commits after {fault:?} (ARDENT_SEED={seed})");
        wait_until(&what, PROGRESS_DEADLINE_S, || ledger.last_after(ended));
        // Where there was no quorum only what comes after counts.
        let since = if fault.leaves_no_quorum() { ended } else { began };
        pauses.entry(fault.kind()).or_default().push(ledger.longest_pause(since));
        thread::sleep(Duration::from_millis(random.random_range(0..1500)));
    }
    let acknowledged = ledger.finish();
    let audits = bank.finish();
    acknowledged.check(&branch);
    let transfers = Bank::check(&branch);
    println!("{} commits acknowledged, {transfers} transfers, the money counted {audits} times", acknowledged.len());
    println!("fault | times | median and longest time without a commit, ms");
    for (kind, mut times) in pauses {
        times.sort_unstable();
        println!(
            "{kind} | {} | {} | {}",
            times.len(),
            times[times.len() / 2].as_millis(),
            times[times.len() - 1].as_millis()
        );
    }

    // Each two of the three have it all, and so has the page server, which a cold start asks.
    for away in SAFEKEEPERS {
        chaos.apart.kill(away);
        chaos.apart.ok(&["branch", "suspend", "one"]);
        acknowledged.check(&branch);
        assert_eq!(Bank::check(&branch), transfers);
        chaos.apart.up(away);
    }
    assert_eq!(sql(&branch, "create extension amcheck; select bt_index_check('ledger_pkey', true)"), "");
    assert_eq!(production.sql("select (select count(*) from ledger), (select count(*) from transfers)"), "0|0");
}
