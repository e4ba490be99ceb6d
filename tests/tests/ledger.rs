//! Every commit that was acknowledged is there after any process was killed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use ardent_test_pg::TestPg;
use ardent_tests::{House, Process, pg_program, production_options, sql, wait_until};

const WRITERS: usize = 3;

/// Sessions that insert numbers, one transaction each, and note those whose commit was acknowledged.
struct Ledger {
    acknowledged: Arc<Mutex<BTreeSet<usize>>>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
}

impl Ledger {
    fn start(url: &str) -> Ledger {
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicUsize::new(1));
        let writers = (0..WRITERS)
            .map(|_| {
                let (url, acknowledged, stop, next) =
                    (url.to_owned(), Arc::clone(&acknowledged), Arc::clone(&stop), Arc::clone(&next));
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let noted = write_some(&url, &next);
                        acknowledged.lock().expect("no writer panics").extend(noted);
                    }
                })
            })
            .collect();
        Ledger { acknowledged, stop, writers }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().expect("no writer panics").len()
    }

    fn wait_for_more(&self) {
        let before = self.count();
        wait_until("commits are acknowledged", 90, || (self.count() >= before + 100).then_some(()));
    }

    fn finish(self) -> BTreeSet<usize> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.join().expect("no writer panics");
        }
        Arc::into_inner(self.acknowledged).expect("the writers are gone").into_inner().expect("no writer panics")
    }
}

/// One session; ends early when the connection breaks. psql prints a row only when it has seen its `CommandComplete`.
fn write_some(url: &str, next: &AtomicUsize) -> Vec<usize> {
    let mut script = String::new();
    for _ in 0..40 {
        let number = next.fetch_add(1, Ordering::Relaxed);
        writeln!(script, "insert into ledger values ({number}) returning n;").expect("strings can be written to");
    }
    let mut arguments =
        vec!["-XAtq".to_owned(), "-v".to_owned(), "ON_ERROR_STOP=1".to_owned(), "-d".to_owned(), url.to_owned()];
    for statement in script.lines() {
        arguments.extend(["-c".to_owned(), statement.to_owned()]);
    }
    let output = pg_program("psql").args(&arguments).output().expect("psql can be run");
    String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()).collect()
}

/// pgbench on a branch, started again whenever it ends, as it does when its connections break.
struct Bank {
    stop: Arc<AtomicBool>,
    clients: JoinHandle<()>,
}

impl Bank {
    fn start(url: &str) -> Bank {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (url.to_owned(), Arc::clone(&stop));
        let clients = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Failing is its lot here; what it leaves is what counts.
                let _ = pg_program("pgbench").args(["-n", "-c", "2", "-T", "2", &url]).output();
            }
        });
        Bank { stop, clients }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join().expect("it does not panic");
    }
}

/// How often everything is killed.
fn rounds() -> usize {
    std::env::var("ARDENT_KILL_ROUNDS").map_or(2, |text| text.parse().expect("ARDENT_KILL_ROUNDS is a number"))
}

#[test]
fn acknowledged_commits_survive_kills_of_everything() {
    let production = TestPg::start(production_options());
    production.sql("create table ledger (n int primary key)");
    let made = pg_program("pgbench").args(["-i", "-q", "-d"]).arg(production.socket_url("postgres")).output();
    assert!(made.expect("pgbench can be run").status.success());
    let mut house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("ledger", "main");
    let (ledger, bank) = (Ledger::start(&branch), Bank::start(&branch));
    for _ in 0..rounds() {
        ledger.wait_for_more();
        kill_one(&house, "a backend", |process| process.command.contains("[local]"));
        ledger.wait_for_more();
        kill_one(&house, "the compute's postmaster", Process::is_postmaster);
        ledger.wait_for_more();
        kill_one(&house, "the agent", Process::is_agent);
        ledger.wait_for_more();
        house.kill_server();
        house.up();
    }
    ledger.wait_for_more();
    let acknowledged = ledger.finish();
    bank.finish();
    println!("{} commits were acknowledged in {} rounds of 4 kills", acknowledged.len(), rounds());

    let rows = sql(&branch, "select n from ledger order by n");
    let there: BTreeSet<usize> = rows.lines().map(|line| line.parse().expect("a number")).collect();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged commits are lost: {lost:?}", lost.len(), acknowledged.len());
    assert_eq!(rows.lines().count(), there.len(), "no row is there twice");
    let balances = sql(
        &branch,
        "select count(distinct sum), max(rows) > 0 from (
             select sum(bbalance), 0 as rows from pgbench_branches
             union all select sum(tbalance), 0 from pgbench_tellers
             union all select sum(abalance), 0 from pgbench_accounts
             union all select sum(delta), count(*) from pgbench_history) as sums",
    );
    assert_eq!(balances, "1|t", "the books of pgbench balance");
    let checked = sql(&branch, "create extension amcheck; select bt_index_check('ledger_pkey', true)");
    assert_eq!(checked, "");
    assert_eq!(production.sql("select count(*) from ledger"), "0");
}

fn kill_one(house: &House, what: &str, wanted: impl Fn(&Process) -> bool) {
    let found = wait_until(what, 60, || house.compute_processes().into_iter().find(|process| wanted(process)));
    found.kill();
    wait_until("it is gone", 60, || (!found.runs()).then_some(()));
}
