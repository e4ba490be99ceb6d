//! What is wrong is said, with what to do, and breaks nothing.

use std::net::TcpListener;

use ardent_test_pg::{TestPg, TestPgOptions};
use ardent_tests::{Finished, House, production_options, sql, try_sql};

/// Local sessions are trusted, all others need their password.
const HBA: &str =
    "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n";

fn secured(settings: TestPgOptions) -> TestPg {
    let production = TestPg::start(TestPgOptions { hba: Some(HBA.to_owned()), ..settings });
    production.sql("alter role postgres password 'secret'; create role app login password 'app'");
    production
}

fn create(house: &House, url: &str) -> Finished {
    house.ardent(&["connector", "create", "postgresql", url, "--name", "shop", "--fast", "--no-input"])
}

fn url(production: &TestPg, user: &str) -> String {
    production.tcp_url(user, "postgres")
}

#[test]
fn wrong_sources_are_refused_by_name() {
    let production = secured(production_options());
    let house = House::start();

    create(&house, "nonsense").refused(2, &["postgresql://"]);
    let nobody = TcpListener::bind(("127.0.0.1", 0)).expect("a local port can be bound");
    let port = nobody.local_addr().expect("a bound socket has an address").port();
    drop(nobody);
    create(&house, &format!("postgresql://postgres:x@127.0.0.1:{port}/postgres")).refused(1, &["127.0.0.1"]);
    create(&house, &url(&production, "postgres:wrong")).refused(1, &["password"]);
    let unprivileged = create(&house, &url(&production, "app:app"));
    unprivileged.refused(2, &["alter role", "replication"]);
    // Nothing of it is left, here or there.
    assert_eq!(house.json(&["connector", "list"])["connectors"], serde_json::json!([]));
    assert_eq!(production.sql("select count(*) from pg_replication_slots"), "0");

    house.ardent(&["branch", "create", "x", "--from", "nowhere"]).refused(5, &["nowhere"]);
    house.ardent(&["branch", "create", "Bad_Name"]).refused(2, &["bad-name"]);
    house.ardent(&["branch", "delete", "nothing"]).refused(5, &["nothing"]);
    house.ardent(&["branch", "create", "x", "--ttl", "0s"]).refused(2, &["--ttl", "never"]);
    house.ardent(&["branch", "create", "x", "--ttl", "999999999999d"]).refused(2, &["--ttl", "ten years"]);

    // The same command works with what was missing; no more than replication is needed.
    production.sql("alter role app replication; create table t as select 42 as n; grant select on t to app");
    house.connect("shop", &url(&production, "app:app"));
    create(&house, &url(&production, "postgres:wrong")).refused(6, &["shop"]);

    // Strangers cannot tell a branch that is there from one that isn't.
    let branch = house.branch("real", "shop");
    let (_, password) = branch.split_once("app:").expect("the string names the role");
    let (password, _) = password.split_once('@').expect("the string holds a password");
    let unknown = try_sql(
        &branch.replace("branch%3Dreal", "branch%3Dunreal").replace("real.localhost", "unreal.localhost"),
        "select 1",
    );
    let wrong = try_sql(&branch.replace(password, "wrong"), "select 1");
    let (unknown, wrong) = (unknown.expect_err("no such branch"), wrong.expect_err("no such password"));
    assert_eq!(unknown.replace("unreal", "real"), wrong);
    assert!(wrong.contains("password"), "{wrong}");
    assert_eq!(house.json(&["branch", "info", "real"])["compute"], "suspended", "a stranger wakes nothing");
    assert_eq!(sql(&branch, "select n from t"), "42");
}

#[test]
fn a_source_without_room_for_replication_is_refused() {
    let production = secured(production_options().set("wal_level", "minimal").set("max_wal_senders", "0"));
    let house = House::start();
    create(&house, &url(&production, "postgres:secret")).refused(2, &["wal_level", "max_wal_senders"]);
}

#[test]
fn two_servers_share_neither_folder_nor_port() {
    let house = House::start();
    let up = |listen: u16, api: u16| {
        let arguments = house.up_arguments(listen, api);
        house.ardent(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let data = house.data_dir();
    up(0, 0).refused(6, &[&data.to_string_lossy()]);

    let (listen, api) = house.ports();
    let elsewhere = data.with_file_name("elsewhere");
    let other = |listen: u16, api: &str, more: &[&str]| {
        let (folder, listen) = (elsewhere.to_string_lossy(), format!("127.0.0.1:{listen}"));
        let up = ["up", "--data-dir", &folder, "--listen", &listen, "--api-listen", api];
        house.ardent(&[&up[..], more].concat())
    };
    let (free, api_taken) = ("127.0.0.1:0", format!("127.0.0.1:{api}"));
    let refuse_all = || {
        other(listen, free, &[]).refused(6, &[&listen.to_string(), "--listen"]);
        other(0, &api_taken, &[]).refused(6, &[&api.to_string(), "--api-listen"]);
        other(0, free, &["--metrics-listen", &api_taken]).refused(6, &[&api.to_string(), "--metrics-listen"]);
        other(0, free, &["--metrics-listen", "0.0.0.0:0"]).refused(2, &["--metrics-listen"]);
        other(0, "0.0.0.0:0", &[]).refused(2, &["--api-listen"]);
    };
    refuse_all();
    assert!(!elsewhere.exists(), "nothing is left of what was refused");
    // Nor in a folder that was there.
    std::fs::create_dir(&elsewhere).expect("a folder can be made");
    refuse_all();
    let mut left = std::fs::read_dir(&elsewhere).expect("it can be listed");
    assert!(left.next().is_none(), "something is left of what was refused");
    // The first one has not noticed.
    let said = house.ok(&["status"]);
    assert!(said.contains("free (data directory, safekeeper 1)"), "{said}");
}
