//! How many files may be open: the server has as many as the system lets it, what a branch's users run as many as before.

use std::fs;

use ardent_test_pg::TestPg;
use ardent_tests::{House, Process, production_options, sql};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

/// What the server is started with.
const SOFT: u64 = 700;

/// Soft and hard limit of a process.
fn limits_of(process: &Process) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{}/limits", process.pid)).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the limit is told");
    let mut numbers = line.split_whitespace().map(|word| word.parse().expect("a number"));
    let mut next = || numbers.next().expect("there are two");
    (next(), next())
}

#[test]
fn the_server_has_all_files_that_it_may_and_computes_what_it_was_started_with() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    assert!(hard > SOFT, "this host allows {hard} open files");
    setrlimit(Resource::RLIMIT_NOFILE, SOFT, hard).expect("less than there may be");
    let production = TestPg::start(production_options());
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("work", "main");
    assert_eq!(sql(&branch, "select 1"), "1");

    assert_eq!(house.json(&["status"])["open_files_max"], hard);
    let processes = house.compute_processes();
    for is_it in [Process::is_agent, Process::is_postmaster] {
        let found = processes.iter().find(|process| is_it(process)).expect("the compute runs");
        assert_eq!(limits_of(found), (SOFT, hard), "{found:?}");
    }

    let said: Value = serde_json::from_str(&house.ardent(&["--json", "doctor"]).stdout).expect("JSON");
    let checks = said["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == "open_files").expect("it is looked at");
    assert!(check["message"].as_str().expect("a text").contains(&hard.to_string()), "{check}");
}
