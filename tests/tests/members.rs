//! Which safekeepers there are changes while branches are written to: no acknowledged commit is lost, and who is a member no more does not count.

use std::fs;

use ardent_test_pg::TestPg;
use ardent_tests::{Apart, House, Ledger, production_options, sql, wait_until};
use nix::sys::signal::Signal;

/// Addresses and generation, as `ardent status --json` tells them.
fn told(status: &serde_json::Value) -> (usize, u64) {
    let count = status["safekeepers"].as_array().expect("safekeepers").len();
    (count, status["safekeeper_generation"].as_u64().expect("a number"))
}

/// A server with a branch for a ledger, and one that has a row and is to sleep.
struct Written {
    production: TestPg,
    house: House,
    branch: String,
    asleep: String,
}

fn written(safekeepers: &str) -> Written {
    let production = TestPg::start(production_options());
    production.sql(Ledger::TABLE);
    let mut house = House::prepare().with_arguments(&["--safekeepers", safekeepers]);
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("ledger", "main");
    let asleep = house.branch("asleep", "main");
    sql(&asleep, "insert into ledger values (-1)");
    Written { production, house, branch, asleep }
}

/// From one to three under load, with a kill of everything on the way, and back to one. A branch that sleeps meanwhile has all that it had.
#[test]
fn one_safekeeper_becomes_three_and_one_again_under_load() {
    // It starts in the middle of the change back to one, and when that is over.
    let Written { production: _production, mut house, branch, asleep } = written("1");
    house.ok(&["branch", "suspend", "asleep"]);
    let ledger = Ledger::start(&branch);
    ledger.wait_for_more();

    let report = house.json(&["reconfigure", "safekeepers", "3"]);
    assert_eq!((report["state"].as_str(), report["generation"].as_u64()), (Some("done"), Some(3)), "{report}");
    ledger.wait_for_more();
    assert_eq!(told(&house.json(&["status"])), (3, 3));
    house.ardent(&["reconfigure", "safekeepers", "3"]).refused(2, &["changes nothing"]);
    let two = "there would be 2 safekeepers, of which 2 must be up";
    house.ardent(&["reconfigure", "safekeepers", "2"]).refused(2, &[two, "ardent reconfigure safekeepers 1 (or 3)"]);
    house.ardent(&["reconfigure", "safekeepers", "--remove", "3"]).refused(2, &[two]);
    house.ardent(&["reconfigure", "safekeepers", "4"]).refused(2, &["ardent reconfigure safekeepers 3 (or 5)"]);
    assert_eq!(told(&house.json(&["status"])), (3, 3), "what is refused changes nothing");
    house.ardent(&["reconfigure", "safekeepers", "--cancel"]).refused(5, &["no change"]);
    house.ardent(&["reconfigure", "safekeepers"]).refused(2, &["--replace", "--cancel"]);
    // A branch that is made now is on all three.
    let during = house.branch("during", "main");
    sql(&during, "insert into ledger values (-2)");

    // The server goes in the middle of a change, and the change goes on when it is back.
    house.ok(&["reconfigure", "safekeepers", "1", "--detach"]);
    house.kill_server();
    house.up();
    wait_until("the change is over", 120, || {
        let status = house.json(&["status"]);
        (status["safekeeper_change"].is_null() && told(&status) == (1, 5)).then_some(())
    });
    ledger.wait_for_more();
    let acknowledged = ledger.finish();
    println!("{} commits were acknowledged", acknowledged.len());
    house.stop();
    for number in [2, 3] {
        fs::remove_dir_all(house.data_dir().join(format!("safekeeper-{number}"))).expect("it is not used any more");
    }
    let dir = house.data_dir().to_string_lossy().into_owned();
    let refused = house.ardent(&["reconfigure", "safekeepers", "3", "--data-dir", &dir]);
    let next = format!("start ardent up --data-dir {dir}; then: ardent reconfigure safekeepers 3");
    refused.refused(6, &["changed while the server ran", &next]);
    house.up();
    acknowledged.check(&branch);
    assert_eq!(sql(&asleep, "insert into ledger values (-3); select count(*) from ledger where n < 0"), "2");
    assert_eq!(sql(&during, "select count(*) from ledger where n = -2"), "1");
    house.stop();
}

/// One of three is lost with its disk. Another takes its place; the lost one comes back, and is nobody.
#[test]
fn a_safekeeper_that_is_lost_with_its_disk_is_replaced_under_load() {
    let Written { production: _production, mut house, branch, asleep } = written("3");
    house.kill_server();
    let (disk, lost) = (house.data_dir().join("safekeeper-3"), house.data_dir().join("lost"));
    fs::rename(&disk, &lost).expect("moved");
    house.up();
    let ledger = Ledger::start(&branch);
    ledger.wait_for_more();
    let status = house.ok(&["status"]);
    assert!(status.contains("2 of 3 up"), "{status}");

    let report = house.json(&["reconfigure", "safekeepers", "--replace", "3"]);
    assert_eq!(report["generation"].as_u64(), Some(3), "{report}");
    assert!(report["safekeepers"].to_string().contains("safekeeper-4.sock"), "{report}");
    ledger.wait_for_more();
    let acknowledged = ledger.finish();
    house.stop();
    // It has what it had promised and acknowledged, and is not asked.
    fs::rename(&lost, &disk).expect("moved");
    fs::rename(house.data_dir().join("safekeeper-2"), house.data_dir().join("away")).expect("moved");
    house.up();
    let status = house.ok(&["status"]);
    assert!(status.contains("2 of 3 up"), "{status}");
    acknowledged.check(&branch);
    assert_eq!(sql(&asleep, "insert into ledger values (-2); select count(*) from ledger where n < 0"), "2");
    house.stop();
}

/// Roles apart: control dies in the middle, and a safekeeper comes back on the disk that another took the place of.
#[test]
fn control_dies_in_the_middle_of_a_change_and_goes_on() {
    let production = TestPg::start(production_options());
    production.sql(Ledger::TABLE);
    let mut apart = Apart::start();
    let url = production.tcp_url("postgres", "postgres");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "main", "--fast"]);
    let branch = apart.ok(&["branch", "create", "ledger", "--from", "main", "--print-url"]);
    let ledger = Ledger::start(&branch);
    ledger.wait_for_more();
    apart.kill("safekeeper-3");
    let lost = apart.address("safekeeper-3");
    apart.ardent(&["reconfigure", "safekeepers", "--replace", &lost]).refused(2, &["--add ADDR"]);
    let nowhere = ["reconfigure", "safekeepers", "--replace", &lost, "--with", "unix:/nowhere"];
    apart.ardent(&nowhere).refused(1, &["/nowhere"]);
    let second = apart.address("safekeeper-2");
    let used = ["reconfigure", "safekeepers", "--replace", &lost, "--with", &second];
    apart.ardent(&used).refused(2, &["one of them already"]);

    apart.up("safekeeper-4");
    let new = apart.address("safekeeper-4");
    apart.ok(&["reconfigure", "safekeepers", "--replace", &lost, "--with", &new, "--detach"]);
    apart.kill("control");
    apart.up("control");
    let ends = |apart: &Apart| {
        let status: serde_json::Value = serde_json::from_str(&apart.ok(&["status", "--json"])).expect("JSON");
        (status["safekeeper_change"].is_null() && told(&status) == (3, 3)).then_some(status)
    };
    let status = wait_until("the change is over", 120, || ends(&apart));
    assert!(status["safekeepers"].to_string().contains(&new), "{status}");
    // Its branch's compute went with control.
    let acknowledged = ledger.finish();
    acknowledged.check(&branch);

    // With the second one gone the new one is needed, and the old one, which is back, is of no use.
    apart.up("safekeeper-3");
    apart.kill("safekeeper-2");
    sql(&branch, "insert into ledger values (-1)");
    apart.kill("safekeeper-4");
    apart.up("safekeeper-4");
    sql(&branch, "insert into ledger values (-2)");
    assert_eq!(sql(&branch, "select count(*) from ledger where n < 0"), "2");
    let used = ["reconfigure", "safekeepers", "--add", &lost];
    apart.ardent(&used).refused(6, &["from another time", "empty folder"]);
    apart.up("safekeeper-2");
    sql(&branch, "delete from ledger where n < 0");
    acknowledged.check(&branch);
}

fn told_by(apart: &Apart) -> serde_json::Value {
    // A warning that one is away is no error.
    serde_json::from_str(&apart.ok(&["status", "--json"])).expect("JSON")
}

fn until_over(apart: &Apart, count: usize, generation: u64) {
    wait_until("the change is over", 180, || {
        let status = told_by(apart);
        (status["safekeeper_change"].is_null() && told(&status) == (count, generation)).then_some(())
    });
}

fn until_phase(apart: &Apart, phase: &str) {
    wait_until(phase, 120, || (told_by(apart)["safekeeper_change"]["phase"] == phase).then_some(()));
}

/// A disk is lost, and its safekeeper is started anew at the same host and port: it shows another key. Then another one is replaced, and while old and
/// new ones decide together everything dies once that takes part.
#[test]
fn everything_dies_once_while_old_and_new_safekeepers_decide_together() {
    let production = TestPg::start(production_options());
    production.sql(Ledger::TABLE);
    let mut apart = Apart::start();
    let url = production.tcp_url("postgres", "postgres");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "main", "--fast"]);
    let branch = apart.ok(&["branch", "create", "ledger", "--from", "main", "--print-url"]);
    let ledger = Ledger::start(&branch);
    ledger.wait_for_more();
    let old = apart.address("safekeeper-3");
    apart.lose_disk("safekeeper-3");
    apart.up("safekeeper-3");
    let new = apart.address("safekeeper-3");
    assert_ne!(old, new, "it has another key");
    let report = apart.ok(&["reconfigure", "safekeepers", "--replace", &old, "--with", &new]);
    assert!(report.contains("3 safekeepers now"), "{report}");
    ledger.wait_for_more();

    apart.up("safekeeper-4");
    let fourth = apart.address("safekeeper-4");
    // With one away and one halted the old ones are no quorum: the change comes so far and no further.
    apart.kill("safekeeper-3");
    apart.signal("safekeeper-2", Signal::SIGSTOP);
    apart.ok(&["reconfigure", "safekeepers", "--replace", &new, "--with", &fourth, "--detach"]);
    until_phase(&apart, "joint");
    for role in ["safekeeper-4", "control", "pageserver", "safekeeper-1"] {
        apart.kill(role);
        apart.up(role);
        until_phase(&apart, "joint");
    }
    apart.kill("safekeeper-2");
    apart.up("safekeeper-2");
    until_over(&apart, 3, 5);
    let acknowledged = ledger.finish();
    println!("{} commits were acknowledged", acknowledged.len());
    acknowledged.check(&branch);
    // All of them count now: any two are enough.
    for away in ["safekeeper-1", "safekeeper-2", "safekeeper-4"] {
        apart.kill(away);
        sql(&branch, "insert into ledger values (-1)");
        sql(&branch, "delete from ledger where n < 0");
        apart.up(away);
    }
    acknowledged.check(&branch);
}

/// With all but one removed, that one's disk is not mounted when another is to join: what it answers from an empty folder is not believed, and the
/// change waits for the disk.
#[test]
fn a_disk_that_is_not_mounted_is_waited_for() {
    let production = TestPg::start(production_options());
    production.sql(Ledger::TABLE);
    let mut apart = Apart::start();
    let url = production.tcp_url("postgres", "postgres");
    apart.ok(&["connector", "create", "postgresql", &url, "--name", "main", "--fast"]);
    let branch = apart.ok(&["branch", "create", "ledger", "--from", "main", "--print-url"]);
    let ledger = Ledger::start(&branch);
    ledger.wait_for_more();
    let second = apart.address("safekeeper-2");
    let third = apart.address("safekeeper-3");
    apart.ok(&["reconfigure", "safekeepers", "--remove", &second, "--remove", &third]);
    ledger.wait_for_more();
    let acknowledged = ledger.finish();
    // One that left comes back as another, with nothing of what it had.
    apart.lose_disk("safekeeper-2");
    apart.up("safekeeper-2");
    apart.up("safekeeper-4");
    let (second, fourth) = (apart.address("safekeeper-2"), apart.address("safekeeper-4"));
    let disk = apart.lose_disk("safekeeper-1");
    apart.up("safekeeper-1");
    apart.ok(&["reconfigure", "safekeepers", "--add", &second, "--add", &fourth, "--detach"]);
    let problem = wait_until("it waits", 60, || {
        let status = told_by(&apart);
        assert!(!status["safekeeper_change"].is_null(), "it is over: {status}");
        status["safekeeper_change"]["problem"].as_str().map(str::to_owned)
    });
    assert!(problem.contains("another disk"), "{problem}");
    assert_eq!(told_by(&apart)["safekeeper_change"]["phase"], "copying");
    apart.find_disk("safekeeper-1", &disk);
    apart.up("safekeeper-1");
    until_over(&apart, 3, 5);
    acknowledged.check(&branch);
    let first = apart.address("safekeeper-1");
    apart.ok(&["reconfigure", "safekeepers", "--remove", &first, "--remove", &second]);
    apart.kill("safekeeper-1");
    apart.kill("safekeeper-2");
    sql(&branch, "insert into ledger values (-1); delete from ledger where n < 0");
    acknowledged.check(&branch);
}

/// A folder that is named is the one that is meant, whichever server was logged into.
#[test]
fn the_server_of_another_folder_is_not_asked() {
    let house = House::start();
    let mut other = House::start();
    let dir = other.data_dir().to_string_lossy().into_owned();
    let mine = house.data_dir().to_string_lossy().into_owned();
    let named = ["reconfigure", "safekeepers", "3", "--data-dir", &dir];
    house.ardent(&named).refused(6, &[&dir, &mine, "--url"]);
    let none = ["reconfigure", "safekeepers", "--replace", "1", "--data-dir", "/nowhere"];
    house.ardent(&none).refused(6, &["no server runs on /nowhere", "ardent up"]);
    for server in [&house, &other] {
        assert_eq!(told(&server.json(&["status"])), (1, 0), "nothing has changed");
    }
    other.ok(&named);
    assert_eq!((told(&other.json(&["status"])), told(&house.json(&["status"]))), ((3, 3), (1, 0)));
    other.stop();
}
