//! The tools for agents with a client that others wrote: `make test-full AREA=mcp` fetches it and names its Python.

use std::io::BufRead as _;

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options};

#[test]
fn a_client_from_a_package_uses_every_way_in() {
    let Ok(python) = std::env::var("ARDENT_MCP_PYTHON") else {
        eprintln!("ARDENT_MCP_PYTHON names no Python with the package mcp: make test-full AREA=mcp");
        return;
    };
    let production = TestPg::start(production_options());
    production.sql("create table users (id int primary key, name text); insert into users select n, n from generate_series(1, 2000) n");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    house.branch("work", "main");
    house.ardent(&["mcp", "--listen", "0.0.0.0:0"]).refused(2, &["in the clear", "127.0.0.1"]);
    let mut server = house.background(&["mcp", "--listen", "127.0.0.1:0"]);
    let mut line = String::new();
    server.output().read_line(&mut line).expect("a pipe can be read");
    let url =
        line.split([' ', ',']).find(|word| word.starts_with("http://")).expect("it says where it listens").to_owned();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/mcp_client.py");
    let program = house.program().to_string_lossy().into_owned();
    let finished = house.other(&python, &[script, &program, &url, &house.token()]);
    assert!(finished.code == 0 && finished.stdout == "ok", "{}{}", finished.stdout, finished.stderr);
    server.interrupt();
    assert_eq!(server.finish().code, 0);
}
