//! Every commit that was acknowledged is there after any process was killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use ardent_test_pg::TestPg;
use ardent_tests::{House, Ledger, Process, Session, pg_program, production_options, sql, wait_until};

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
        house.kill_one("the agent's supervisor", Process::is_supervisor);
        ledger.wait_for_more();
        house.kill_server();
        house.up();
    }
    ledger.wait_for_more();
    let acknowledged = ledger.finish();
    bank.finish();
    println!("{} commits were acknowledged in {} rounds of 5 kills", acknowledged.len(), rounds());
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

/// An agent is not what sessions run in: the next one goes on with the same Postgres.
#[test]
fn sessions_go_on_when_their_agent_is_killed() {
    let production = TestPg::start(production_options());
    let mut house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("work", "main");
    sql(&branch, "create table t (n int)");
    let postmaster =
        |house: &House| house.compute_processes().into_iter().find(Process::is_postmaster).expect("it runs");
    let first = postmaster(&house);
    for round in 0..2 {
        let marker = house.data_dir().join(format!("marker-{round}"));
        let waits = format!("\\! until test -e {}; do sleep 0.05; done", marker.display());
        let insert = format!("insert into t values ({round})");
        let session = Session::start(
            &branch,
            "long",
            &[
                "create temp table mine as select 1 as n",
                "begin",
                &insert,
                &waits,
                "commit",
                "select 'mine ' || n from mine",
            ],
        );
        wait_until("the session holds its transaction open", 60, || {
            let open = "select count(*) from pg_stat_activity where application_name = 'long' and state = 'idle in transaction'";
            (sql(&branch, open) == "1").then_some(())
        });
        house.kill_one("the agent", Process::is_agent);
        // It can be written at once, by new sessions too: commits wait for the next agent.
        sql(&branch, &format!("insert into t values ({})", 100 + round));
        std::fs::write(&marker, "").expect("written");
        let said = session.finish();
        assert!(said.output.contains("mine 1") && said.output.contains("COMMIT"), "{said:?}");
        assert_eq!(postmaster(&house), first, "the same Postgres");
    }
    assert_eq!(sql(&branch, "select string_agg(n::text, ',' order by n) from t"), "0,1,100,101");
    // What sessions ran while there was no agent is recorded by the next.
    let log = house.ok(&["branch", "log", "work"]);
    for text in ["insert into t values (0)", "insert into t values (100)", "insert into t values (101)"] {
        assert!(log.contains(text), "{text}: {log}");
    }
    // Whose it is, too, and what became of a transaction that was open when the agent was killed.
    for round in 0..2 {
        let text = format!("insert into t values ({round})");
        let line = log.lines().find(|line| line.ends_with(&text)).expect("it is there");
        assert!(line.contains(" long ") && line.contains(" committed "), "{line}");
    }
    // New roles are known outside, and it stops and wakes as ever.
    sql(&branch, "create role somebody login password 'secret'");
    let other = branch.replacen(
        branch.split("://").nth(1).and_then(|rest| rest.split('@').next()).expect("a user"),
        "somebody:secret",
        1,
    );
    assert_eq!(sql(&other, "select current_user"), "somebody");
    house.ok(&["branch", "suspend", "work"]);
    assert_eq!(sql(&branch, "select count(*) from t"), "4");
    assert_ne!(postmaster(&house), first);

    // What takes every agent along is not mended by one more: after three within a minute the compute ends with the next.
    let lasting = postmaster(&house);
    for _ in 0..3 {
        house.kill_one("the agent", Process::is_agent);
        sql(&branch, "select 1");
        assert_eq!(postmaster(&house), lasting);
    }
    house.kill_one("the agent", Process::is_agent);
    wait_until("it ends", 60, || (!lasting.runs()).then_some(()));
    assert_eq!(sql(&branch, "select count(*) from t"), "4");

    // Under a policy that counts what open transactions do, the compute ends with its agent, as nobody knows any more.
    house.ok(&["branch", "policy", "work", "--max-rows-changed", "1000"]);
    sql(&branch, "insert into t values (7)");
    let counted = postmaster(&house);
    house.kill_one("the agent", Process::is_agent);
    wait_until("it ends", 60, || (!counted.runs()).then_some(()));
    assert_eq!(sql(&branch, "select count(*) from t"), "5");
    house.stop();
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
