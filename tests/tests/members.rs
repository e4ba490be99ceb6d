//! Which safekeepers there are changes while branches are written to: no acknowledged commit is lost, and who is a member no more does not count.

use std::fs;

use ardent_test_pg::TestPg;
use ardent_tests::{Apart, House, Ledger, production_options, sql, wait_until};

/// Addresses and generation, as `ardent status --json` tells them.
fn told(status: &serde_json::Value) -> (usize, u64) {
    let count = status["safekeepers"].as_array().expect("safekeepers").len();
    (count, status["safekeeper_generation"].as_u64().expect("a number"))
}

/// From one to three under load, with a kill of everything on the way, and back to one. A branch that sleeps meanwhile has all that it had.
#[test]
fn one_safekeeper_becomes_three_and_one_again_under_load() {
    let production = TestPg::start(production_options());
    production.sql(Ledger::TABLE);
    let mut house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("ledger", "main");
    let asleep = house.branch("asleep", "main");
    sql(&asleep, "insert into ledger values (-1)");
    house.ok(&["branch", "suspend", "asleep"]);
    let ledger = Ledger::start(&branch);
    ledger.wait_for_more();

    let report = house.json(&["reconfigure", "safekeepers", "3"]);
    assert_eq!((report["state"].as_str(), report["generation"].as_u64()), (Some("done"), Some(3)), "{report}");
    ledger.wait_for_more();
    assert_eq!(told(&house.json(&["status"])), (3, 3));
    house.ardent(&["reconfigure", "safekeepers", "3"]).refused(2, &["changes nothing"]);
    house.ardent(&["reconfigure", "safekeepers", "--cancel"]).refused(5, &["no change"]);
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
    refused.refused(6, &["changed while the server ran"]);
    house.up();
    acknowledged.check(&branch);
    assert_eq!(sql(&asleep, "insert into ledger values (-3); select count(*) from ledger where n < 0"), "2");
    assert_eq!(sql(&during, "select count(*) from ledger where n = -2"), "1");
    house.stop();
}

/// One of three is lost with its disk. Another takes its place; the lost one comes back, and is nobody.
#[test]
fn a_safekeeper_that_is_lost_with_its_disk_is_replaced_under_load() {
    let production = TestPg::start(production_options());
    production.sql(Ledger::TABLE);
    let mut house = House::prepare().with_arguments(&["--safekeepers", "3"]);
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("ledger", "main");
    let asleep = house.branch("asleep", "main");
    sql(&asleep, "insert into ledger values (-1)");
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
