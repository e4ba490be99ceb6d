//! A server that logs pages for the oracles, and workloads for it.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod damage;

use std::path::Path;
use std::process::{Command, Stdio};

use ardent_pg_redo::HintBits;
use ardent_redo_oracle::{EndStateArgs, Report, VerifyRedoArgs, run};
use ardent_test_pg::{TempDir, TestPg, TestPgOptions, program, server_command, temp_dir};

/// The workloads that together reach every record type.
pub const WORKLOADS: [&str; 7] = ["heap.sql", "btree.sql", "gin.sql", "gist.sql", "spgist.sql", "brin.sql", "hash.sql"];

/// Settings with which a server logs each page as it left it.
pub fn options() -> TestPgOptions {
    TestPgOptions::default()
        .set("wal_consistency_checking", "all")
        .set("fsync", "off")
        .set("autovacuum", "off")
        .set("max_wal_size", "20GB")
        .set("wal_keep_size", "20GB")
        .set("checkpoint_timeout", "1h")
        .set("max_prepared_transactions", "10")
}

/// A server that is running, and its data directory as it was before.
pub fn start_with_base(options: TestPgOptions) -> (TestPg, TempDir) {
    let mut server = TestPg::init(options);
    let root = temp_dir();
    let copied = server_command("cp").arg("-a").arg(server.data_dir()).arg(root.path().join("base")).status();
    assert!(copied.expect("cp can be run").success());
    server.start_server();
    (server, root)
}

/// Runs a file of `tests/sql` in one session, and fails with psql's words if a statement does.
pub fn run_sql_file(server: &TestPg, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql").join(name);
    let file = std::fs::File::open(&path).expect("the workload is in the repository");
    let output = Command::new(program("psql"))
        .arg("-h")
        .arg(server.socket_dir())
        .args(["-p", &server.port().to_string(), "-U", server.superuser(), "-d", "postgres"])
        .args(["-qX", "-v", "ON_ERROR_STOP=1", "-f", "-"])
        .env("PGOPTIONS", "-c client_min_messages=warning")
        .stdin(Stdio::from(file))
        .output()
        .expect("psql can be run");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Verifies all of a stopped server's WAL.
pub fn verify(server: &TestPg, hint_bits: HintBits) -> Report {
    let args = VerifyRedoArgs { wal: server.data_dir().join("pg_wal"), hint_bits, ..VerifyRedoArgs::default() };
    run(&args).expect("the WAL can be read")
}

/// Both oracles.
pub fn verify_with_end_state(server: &TestPg, base: &Path, hint_bits: HintBits) -> Report {
    let data = server.data_dir().to_owned();
    let end_state = Some(EndStateArgs { base: base.join("base"), data: data.clone() });
    let args = VerifyRedoArgs { wal: data.join("pg_wal"), hint_bits, end_state, ..VerifyRedoArgs::default() };
    run(&args).expect("the WAL and the directories can be read")
}
