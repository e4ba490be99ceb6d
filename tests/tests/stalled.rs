//! While no quorum answers, no client hears of a commit, whatever is done to its session; afterwards nothing that was heard of is lost.

use std::time::{Duration, Instant};

use ardent_test_pg::TestPg;
use ardent_tests::{House, Process, Relay, Session, production_options, side_by_side, sql, wait_until};

/// How long sessions are watched for an answer that must not come.
const WATCH: Duration = Duration::from_millis(1500);

/// What is done to a session that waits for the quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Nothing,
    /// Ctrl-C in the client: a cancel request through the proxy.
    Cancel,
    /// `pg_cancel_backend` from another session.
    CancelByAnother,
    /// `pg_terminate_backend` from another session.
    Terminate,
    /// The client is gone.
    Abandon,
}

/// A session whose last statement commits.
struct Case {
    name: &'static str,
    statements: &'static [&'static str],
    /// What psql prints when it has heard that the last statement is done.
    heard: &'static str,
    /// Whether it committed: a query that gives `t`.
    proof: &'static str,
    trouble: Trouble,
}

const CASES: &[Case] = &[
    Case {
        name: "left alone",
        statements: &["insert into t values (100)"],
        heard: "INSERT",
        proof: "select exists (select from t where n = 100)",
        trouble: Trouble::Nothing,
    },
    Case {
        name: "cancelled",
        statements: &["insert into t values (101)"],
        heard: "INSERT",
        proof: "select exists (select from t where n = 101)",
        trouble: Trouble::Cancel,
    },
    Case {
        name: "cancelled by another",
        statements: &["insert into t values (102) returning 'done'"],
        heard: "done",
        proof: "select exists (select from t where n = 102)",
        trouble: Trouble::CancelByAnother,
    },
    Case {
        name: "cancelled in a block",
        statements: &["begin", "insert into t values (103)", "commit"],
        heard: "COMMIT",
        proof: "select exists (select from t where n = 103)",
        trouble: Trouble::Cancel,
    },
    Case {
        name: "timed out",
        statements: &["set statement_timeout = '300ms'", "insert into t values (104)"],
        heard: "INSERT",
        proof: "select exists (select from t where n = 104)",
        trouble: Trouble::Nothing,
    },
    Case {
        name: "terminated",
        statements: &["insert into t values (105)"],
        heard: "INSERT",
        proof: "select exists (select from t where n = 105)",
        trouble: Trouble::Terminate,
    },
    Case {
        name: "preparing",
        statements: &["begin", "insert into t values (106)", "prepare transaction 'stalled'"],
        heard: "PREPARE TRANSACTION",
        proof: "select exists (select from pg_prepared_xacts where gid = 'stalled')",
        trouble: Trouble::Cancel,
    },
    Case {
        name: "committing what was prepared",
        statements: &["commit prepared 'ready'"],
        heard: "COMMIT PREPARED",
        proof: "select exists (select from t where n = 1)",
        trouble: Trouble::Cancel,
    },
    Case {
        name: "rolling back what was prepared",
        statements: &["rollback prepared 'unwanted'"],
        heard: "ROLLBACK PREPARED",
        proof: "select not exists (select from pg_prepared_xacts where gid = 'unwanted')",
        trouble: Trouble::Terminate,
    },
    Case {
        name: "schema",
        statements: &["create table made (n int primary key)"],
        heard: "CREATE TABLE",
        proof: "select to_regclass('made') is not null",
        trouble: Trouble::Cancel,
    },
    Case {
        name: "procedure",
        statements: &["call commit_twice()"],
        heard: "CALL",
        proof: "select exists (select from t where n = 107)",
        trouble: Trouble::Cancel,
    },
    Case {
        name: "database",
        statements: &["create database made"],
        heard: "CREATE DATABASE",
        proof: "select exists (select from pg_database where datname = 'made')",
        trouble: Trouble::Terminate,
    },
    Case {
        name: "abandoned",
        statements: &["insert into t values (109)"],
        heard: "INSERT",
        proof: "select exists (select from t where n = 109)",
        trouble: Trouble::Abandon,
    },
];

const SETUP: &str = "
    create table t (n int primary key);
    create procedure commit_twice() language plpgsql as
        $$ begin insert into t values (107); commit; insert into t values (108); commit; end $$;
    begin; insert into t values (1); prepare transaction 'ready';
    begin; insert into t values (2); prepare transaction 'unwanted'";

fn start() -> (TestPg, House, String) {
    let production = TestPg::start(production_options());
    for statement in SETUP.split(";\n").map(str::trim) {
        production.sql(statement);
    }
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("work", "main");
    (production, house, branch)
}

fn wait_for_quorum(url: &str, name: &str) {
    wait_until(&format!("session {name:?} waits for the quorum"), 30, || {
        let waiting = "select count(*) > 0 from pg_stat_activity where wait_event = 'SyncRep' and application_name = ";
        (sql(url, &format!("{waiting}'{name}'")) == "t").then_some(())
    });
}

fn signal(url: &str, function: &str, name: &str) {
    let done = sql(url, &format!("select {function}(pid) from pg_stat_activity where application_name = '{name}'"));
    assert_eq!(done, "t", "{function} of {name}");
}

#[test]
fn nobody_hears_of_a_commit_during_a_stall_and_what_was_heard_of_is_kept() {
    // One watches sessions that must not be answered, the other waits for as long as a stop may take.
    side_by_side(&[
        ("no session hears", no_session_hears_of_a_commit_while_the_quorum_is_stalled),
        ("what was heard of", what_was_heard_of_survives_a_crash_during_a_stall),
    ]);
}

fn no_session_hears_of_a_commit_while_the_quorum_is_stalled() {
    let (_production, house, branch) = start();
    // Computes that start from now on reach the safekeeper through it.
    let relay = Relay::in_front_of(&house.data_dir().join("run/safekeeper.sock"));
    assert_eq!(sql(&branch, "insert into t values (50) returning n"), "50");

    // Both kinds of stall: the WAL does not get there, or the answer does not come back.
    relay.hold_all();
    let mut sessions: Vec<(&Case, Session)> = Vec::new();
    for case in CASES {
        let mut session = Session::start(&branch, case.name, case.statements);
        wait_for_quorum(&branch, case.name);
        match case.trouble {
            Trouble::Nothing => {}
            Trouble::Cancel => session.cancel(),
            Trouble::CancelByAnother => signal(&branch, "pg_cancel_backend", case.name),
            Trouble::Terminate => signal(&branch, "pg_terminate_backend", case.name),
            Trouble::Abandon => session.kill(),
        }
        sessions.push((case, session));
    }
    let watch = |url: &str, sessions: &mut Vec<(&Case, Session)>| {
        let until = Instant::now() + WATCH;
        while Instant::now() < until {
            // Others do not see it either, unless its session was ended by force: then its client hears that nobody knows.
            assert_eq!(sql(url, "select string_agg(n::text, ',') from t where n <> 105"), "50");
            for (case, session) in sessions.iter_mut() {
                if !matches!(case.trouble, Trouble::Abandon | Trouble::Terminate) {
                    assert!(session.is_busy(), "{} was answered", case.name);
                }
            }
        }
    };
    watch(&branch, &mut sessions);
    relay.hold_answers();
    watch(&branch, &mut sessions);

    relay.release();
    for (case, session) in sessions {
        let said = session.finish();
        let heard = said.output.lines().any(|line| line.starts_with(case.heard));
        println!("{}: heard {heard}, {:?}", case.name, said.errors.lines().next());
        if heard || case.trouble == Trouble::Nothing {
            assert_eq!(sql(&branch, case.proof), "t", "{}: {said:?}", case.name);
        }
        if case.trouble == Trouble::Terminate {
            assert!(!heard && said.errors.contains("terminating connection"), "{}: {said:?}", case.name);
        } else {
            // Nobody is told of a commit that may be here only.
            assert!(!said.errors.contains("committed locally"), "{}: {said:?}", case.name);
        }
    }
    // Sessions of every kind go on.
    assert_eq!(sql(&branch, "insert into t values (60) returning n"), "60");
    let before = sql(&branch, "select string_agg(n::text, ',' order by n) from t");
    house.ok(&["branch", "suspend", "work"]);
    house.throw_computes_away();
    assert_eq!(sql(&branch, "select string_agg(n::text, ',' order by n) from t"), before);
}

fn what_was_heard_of_survives_a_crash_during_a_stall() {
    let (production, mut house, branch) = start();
    let mut next = 1000;
    let mut heard = Vec::new();
    type Crash = fn(&mut House);
    type Hold = fn(&Relay);
    let postmaster: Crash = |house| kill_one(house, Process::is_postmaster);
    let agent: Crash = |house| kill_one(house, Process::is_agent);
    let supervisor: Crash = |house| kill_one(house, Process::is_supervisor);
    let suspend: Crash = |house| drop(house.ok(&["branch", "suspend", "work"]));
    let crashes: [(&str, Crash, Hold); 7] = [
        ("postmaster", postmaster, Relay::hold_all),
        ("postmaster", postmaster, Relay::hold_answers),
        ("agent", agent, Relay::hold_all),
        ("agent", agent, Relay::hold_answers),
        ("supervisor", supervisor, Relay::hold_answers),
        // Waits for as long as a stop may take.
        ("suspend", suspend, Relay::hold_all),
        ("server", House::kill_server, Relay::hold_answers),
    ];
    for (what, crash, held) in crashes {
        // The compute of the last round does not know the relay.
        house.ok(&["branch", "suspend", "work"]);
        let socket = house.data_dir().join("run/safekeeper.sock");
        let relay = Relay::in_front_of(&socket);
        let mut number = || {
            next += 1;
            next
        };
        let before = number();
        assert_eq!(sql(&branch, &format!("insert into t values ({before}) returning n")), before.to_string());
        heard.push(before);
        held(&relay);
        let waiting = number();
        let session = Session::start(&branch, "waiting", &[&format!("insert into t values ({waiting})")]);
        wait_for_quorum(&branch, "waiting");
        crash(&mut house);
        let is_down = what == "server";
        relay.release();
        if is_down {
            house.up();
        } else {
            relay.step_aside(&socket);
        }
        let said = session.finish();
        if said.output.contains("INSERT") {
            heard.push(waiting);
        }
        println!("{what}: {:?}", said.errors.lines().next());
        let after = number();
        assert_eq!(sql(&branch, &format!("insert into t values ({after}) returning n")), after.to_string());
        heard.push(after);
        let there = sql(&branch, "select n from t where n >= 1000 order by n");
        let there: Vec<i32> = there.lines().map(|line| line.parse().expect("a number")).collect();
        for number in &heard {
            assert!(there.contains(number), "{what}: {number} was heard of and is lost: {there:?}");
        }
    }
    assert_eq!(production.sql("select count(*) from t"), "0");
}

fn kill_one(house: &House, wanted: fn(&Process) -> bool) {
    let found = wait_until("the process is there", 60, || house.compute_processes().into_iter().find(wanted));
    found.kill();
    wait_until("it is gone", 60, || (!found.runs()).then_some(()));
}
