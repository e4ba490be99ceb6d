//! Statements that reach the storage manager's corners leave the same data as on a stock server.

use std::path::Path;
use std::process::Command;

use ardent_extension_tests::HollowPg;
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, program, server_command, temp_dir};

const SCRIPT: &str = include_str!("../sql/torture.sql");

fn prepare(server: &TestPg) {
    let mut pgbench = server_command(program("pgbench"));
    pgbench.args(["-i", "-q", "-s", "1", "-U", "postgres", "-h"]).arg(server.socket_dir());
    let status = pgbench.args(["-p", &server.port().to_string(), "postgres"]).status();
    assert!(status.expect("pgbench runs").success());
    server.sql(
        "create extension pg_prewarm; create sequence sq; select nextval('sq');
         create table t2 (id int primary key, v text, j jsonb);
         insert into t2 select g, md5(g::text), jsonb_build_object('a', g) from generate_series(1, 30000) g;
         create index on t2 using gin (j); create index on t2 using brin (id); create index on t2 using gist (int4range(id, id + 5));
         create table big (id int, v text);
         insert into big select g, repeat(md5(g::text), 60) from generate_series(1, 13000) g;
         create unlogged table ul as select generate_series(1, 2000) as id",
    );
    server.sql("create database d2");
    server.sql_in("d2", "create table x0 as select generate_series(1, 3000) as id");
}

/// The tablespace's folder of one server, which the script names by the port, made the same for both.
fn neutral(text: &str, server: &TestPg, scratch: &Path) -> String {
    let scratch = scratch.to_str().expect("a plain name");
    text.replace(&format!("{scratch}/ts.{}", server.port()), "SPACE").replace(scratch, "SCRATCH")
}

/// What the script printed.
fn run_script(server: &TestPg, scratch: &Path) -> String {
    let script = scratch.join("torture.sql");
    std::fs::write(&script, SCRIPT).expect("the script can be written");
    let output = server_command(program("psql"))
        .args(["-X", "-a", "-U", "postgres", "-h"])
        .arg(server.socket_dir())
        .args(["-p", &server.port().to_string(), "-f"])
        .arg(&script)
        .arg("postgres")
        .env("SCRATCH", scratch)
        .env("PGPORT", server.port().to_string())
        .output()
        .expect("psql runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    neutral(&text, server, scratch)
}

fn dump(server: &TestPg, scratch: &Path) -> String {
    let mut command = server_command(program("pg_dumpall"));
    command.args(["-U", "postgres", "-h"]).arg(server.socket_dir()).args(["-p", &server.port().to_string()]);
    let output = command.output().expect("pg_dumpall runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("a dump is text");
    // Newer minors protect a dump with a random word.
    let kept = text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    neutral(&kept.collect::<Vec<_>>().join("\n"), server, scratch)
}

#[test]
fn the_torture_script_leaves_what_a_stock_server_leaves() {
    let mut source = TestPg::start(TestPgOptions::default());
    prepare(&source);
    source.stop(StopMode::Fast);
    let stock_root = temp_dir();
    let stock_data = stock_root.path().join("data");
    let copied = Command::new("cp").arg("-a").arg(source.data_dir()).arg(&stock_data).status();
    assert!(copied.expect("cp runs").success());
    let scratch = temp_dir();
    let mut stock = TestPg::adopt(stock_root, stock_data, "postgres");
    let mut hollow = HollowPg::hollow_out(source, &[]);
    let mut results = Vec::new();
    for server in [&mut stock, &mut hollow.server] {
        server.start_server();
        let printed = run_script(server, scratch.path());
        let dumped = dump(server, scratch.path());
        server.stop(StopMode::Fast);
        results.push((printed, dumped));
    }
    assert!(!results[0].0.contains("could not"), "{}", results[0].0);
    assert_same("output", &results[0].0, &results[1].0);
    assert_same("dump", &results[0].1, &results[1].1);
    // A kept data directory starts again as it is.
    hollow.server.start_server();
    assert_eq!(dump(&hollow.server, scratch.path()), results[1].1);
}

fn assert_same(what: &str, stock: &str, ours: &str) {
    let difference = stock.lines().zip(ours.lines()).enumerate().find(|(_, (stock, ours))| stock != ours);
    assert!(difference.is_none() && stock.len() == ours.len(), "{what} differs: {difference:.1000?}");
}
