//! What filling on first touch costs: first select, cold sequential scan, warm reads beside stock Postgres on the same files.
//!
//! Run with `cargo bench -p ardent-extension-tests`. The page server is the tests' one (pages from files, page cache warm), so
//! these figures are the library's own part.

use std::process::Command;
use std::time::{Duration, Instant};

use ardent_extension_tests::HollowPg;
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, program, server_command, temp_dir};

const SCALE: &str = "20";

fn pgbench(server: &TestPg, args: &[&str]) -> String {
    let mut command = server_command(program("pgbench"));
    command.args(args).args(["-U", "postgres", "-h"]).arg(server.socket_dir());
    let output = command.args(["-p", &server.port().to_string(), "postgres"]).output().expect("pgbench runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn tps(server: &TestPg, clients: &str) -> f64 {
    let printed = pgbench(server, &["-n", "-S", "-c", clients, "-T", "5", "-M", "prepared"]);
    let line = printed.lines().find_map(|line| line.strip_prefix("tps = ")).expect("pgbench prints tps");
    line.split(' ').next().expect("a number").parse().expect("a number")
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn start_to_first_select(server: &mut TestPg) -> Duration {
    timed(|| {
        server.start_server();
        server.sql("select 1");
    })
}

fn main() {
    let mut source = TestPg::start(
        TestPgOptions::default().set("shared_buffers", "128MB").set("max_parallel_workers_per_gather", "0"),
    );
    pgbench(&source, &["-i", "-q", "-s", SCALE]);
    source.stop(StopMode::Fast);
    let stock_root = temp_dir();
    let stock_data = stock_root.path().join("data");
    let copied = Command::new("cp").arg("-a").arg(source.data_dir()).arg(&stock_data).status();
    assert!(copied.expect("cp runs").success());
    let mut stock = TestPg::adopt(stock_root, stock_data, "postgres");
    let mut hollow = HollowPg::hollow_out(source, &[]);

    println!(
        "start to first select, stock:              {:>8.1} ms",
        start_to_first_select(&mut stock).as_secs_f64() * 1e3
    );
    let first = start_to_first_select(&mut hollow.server);
    println!("start to first select, every page absent:  {:>8.1} ms", first.as_secs_f64() * 1e3);

    let pages: f64 = stock.sql("select pg_relation_size('pgbench_accounts') / 8192").parse().expect("a number");
    let scan = "select sum(abalance) from pgbench_accounts";
    for (name, server) in
        [("stock, page cache warm", &stock), ("every page absent", &hollow.server), ("the same again", &hollow.server)]
    {
        let took = timed(|| drop(server.sql(scan)));
        println!("sequential scan, {name:<24}  {:>8.2} us a page", took.as_secs_f64() * 1e6 / pages);
    }
    let requests = hollow.counter("requests");
    println!("requests so far: {requests}, pages: {}", hollow.counter("pages_filled"));

    for server in [&stock, &hollow.server] {
        server.sql("select count(abalance), count(aid) from pgbench_accounts");
        pgbench(server, &["-n", "-S", "-c", "8", "-t", "20000"]);
    }
    for clients in ["1", "8"] {
        let rounds: Vec<(f64, f64)> = (0..3).map(|_| (tps(&stock, clients), tps(&hollow.server, clients))).collect();
        let best = |pick: fn(&(f64, f64)) -> f64| rounds.iter().map(pick).fold(0.0, f64::max);
        let (stock_tps, hollow_tps) = (best(|round| round.0), best(|round| round.1));
        println!(
            "pgbench -S, {clients} clients: stock {stock_tps:.0} tps, ours {hollow_tps:.0} tps, ratio {:.2}",
            hollow_tps / stock_tps
        );
    }
}
