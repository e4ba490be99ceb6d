//! Every commit that was acknowledged is there after any process was killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use ardent_test_pg::TestPg;
use ardent_tests::{House, Ledger, Process, pg_program, production_options, sql};

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
    production.sql(Ledger::TABLE);
    let made = pg_program("pgbench").args(["-i", "-q", "-d"]).arg(production.socket_url("postgres")).output();
    assert!(made.expect("pgbench can be run").status.success());
    let mut house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("ledger", "main");
    let (ledger, bank) = (Ledger::start(&branch), Bank::start(&branch));
    for _ in 0..rounds() {
        ledger.wait_for_more();
        house.kill_one("a backend", |process| process.command.contains("[local]"));
        ledger.wait_for_more();
        house.kill_one("the compute's postmaster", Process::is_postmaster);
        ledger.wait_for_more();
        house.kill_one("the agent", Process::is_agent);
        ledger.wait_for_more();
        house.kill_server();
        house.up();
    }
    ledger.wait_for_more();
    let acknowledged = ledger.finish();
    bank.finish();
    println!("{} commits were acknowledged in {} rounds of 4 kills", acknowledged.len(), rounds());
    acknowledged.check(&branch);
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

/// Nobody wakes a parent because something was made from it, and a safekeeper that dies knows only what it had noted when it rested last.
#[test]
fn a_branch_of_a_branch_is_woken_after_everything_died_at_once() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key)");
    let mut house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let parent = house.branch("parent", "main");
    sql(&parent, "insert into t values (1)");
    let child = house.branch("child", "parent");
    sql(&child, "insert into t values (2)");
    let grandchild = house.branch("grandchild", "child");
    house.kill_server();
    house.up();
    // The youngest first, so that it needs both.
    assert_eq!(sql(&grandchild, "select string_agg(n::text, ',' order by n) from t"), "1,2");
    assert_eq!(sql(&child, "select string_agg(n::text, ',' order by n) from t"), "1,2");
    assert_eq!(sql(&parent, "select string_agg(n::text, ',' order by n) from t"), "1");
    // Nor does who branches from it wake it.
    sql(&child, "insert into t values (3)");
    house.kill_server();
    house.up();
    let late = house.branch("late", "child");
    assert_eq!(sql(&late, "select string_agg(n::text, ',' order by n) from t"), "1,2,3");
    house.stop();
}
