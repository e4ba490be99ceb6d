//! Drivers and tools that people use, by the connection string that is printed. `make test-full AREA=drivers` fetches them.

use std::path::PathBuf;

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options};

#[test]
fn drivers_that_people_use_connect_by_the_printed_url_and_work() {
    let Some(folder) = std::env::var_os("ARDENT_DRIVERS").map(PathBuf::from) else {
        eprintln!("ARDENT_DRIVERS names no folder with drivers: make test-full AREA=drivers");
        return;
    };
    let production = TestPg::start(production_options());
    production.sql("create table users (id int primary key, name text); insert into users select n, n from generate_series(1, 2000) n");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let script = |name: &str| format!("{}/clients/{name}", env!("CARGO_MANIFEST_DIR"));
    let path = |below: &str| folder.join(below).to_string_lossy().into_owned();
    let (python, node, jdbc) = (path("python/bin/python"), path("node"), path("jdbc.jar"));
    let (python_script, node_script, java_script) =
        (script("drivers.py"), script("drivers.mjs"), script("Drivers.java"));
    let url = house.branch("python", "main");
    let finished = house.other(&python, &[&python_script, &url]);
    assert_eq!(
        (finished.code, finished.stdout.as_str()),
        (0, "psycopg\nasyncpg\nsqlalchemy\ndjango"),
        "{}",
        finished.stderr
    );
    let url = house.branch("node", "main");
    // node-postgres takes `require` for `verify-full`, and so has to know the server's certificates.
    let known = format!("NODE_EXTRA_CA_CERTS={}", house.ok(&["status", "--ca"]));
    let finished = house.other("env", &[&known, "node", &node_script, &node, &url]);
    assert_eq!((finished.code, finished.stdout.as_str()), (0, "pg\npostgres\ndrizzle\nprisma"), "{}", finished.stderr);
    let url = house.branch("java", "main");
    let finished = house.other("java", &["-cp", &jdbc, &java_script, &url]);
    assert_eq!((finished.code, finished.stdout.as_str()), (0, "jdbc"), "{}", finished.stderr);
}
