//! The WAL of a pgbench run, or of Postgres's regression suite, and Postgres's own programs over it: what benchmarks of WAL measure
//! themselves against.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::programs::{program, server_command, temp_dir};
use crate::server::{StopMode, TestPg, TestPgOptions};
use crate::side_by_side::Took;

const SCALE: &str = "10";
const CLIENTS: u32 = 4;
/// Longest recovery.
const DEADLINE: Duration = Duration::from_secs(600);

/// How a pgbench run is made.
#[derive(Clone, Copy, Debug)]
pub struct PgbenchRunOptions {
    /// `full_page_writes` of the server.
    pub full_page_writes: bool,
    /// Transactions in all.
    pub transactions: u32,
}

/// A data directory from before a run, and the WAL of that run: of pgbench, or of what `scripts/verify-redo.sh` has run.
#[derive(Debug)]
pub struct PgbenchRun {
    /// Removed with the run, unless the caller gave the folder.
    _root: Option<TempDir>,
    base: PathBuf,
    wal: PathBuf,
    start: String,
    end: String,
}

impl PgbenchRun {
    /// Makes a run. With `$BENCH_RUNS`, a folder that the server's user can write to: kept there for later, or taken from there if it was
    /// made before.
    pub fn make(options: PgbenchRunOptions) -> PgbenchRun {
        let PgbenchRunOptions { full_page_writes, transactions } = options;
        let full_page_writes = if full_page_writes { "on" } else { "off" };
        let kept = std::env::var_os("BENCH_RUNS").map(PathBuf::from);
        let kept = kept.map(|folder| folder.join(format!("images-{full_page_writes}-{transactions}")));
        if let Some(folder) = kept.as_deref().filter(|folder| folder.join("end").exists()) {
            return PgbenchRun::open(folder, None);
        }
        let root = kept.is_none().then(temp_dir);
        let folder = kept.unwrap_or_else(|| root.as_ref().expect("made above").path().to_owned());
        succeed(server_command("mkdir").arg("-p").arg(&folder));
        let options = TestPgOptions::default()
            .set("full_page_writes", full_page_writes)
            .set("fsync", "off")
            .set("autovacuum", "off")
            .set("wal_keep_size", "50GB")
            .set("max_wal_size", "50GB")
            .set("checkpoint_timeout", "1h");
        let mut server = TestPg::start(options);
        pgbench(&server, &["-q", "-i", "-s", SCALE]);
        server.sql("vacuum (freeze, analyze)");
        server.stop(StopMode::Fast);
        copy(server.data_dir(), &folder.join("base"));
        server.start_server();
        let start = server.sql("select redo_lsn from pg_control_checkpoint()");
        pgbench(&server, &["-c", &CLIENTS.to_string(), "-t", &(transactions / CLIENTS).to_string()]);
        let end = server.sql("select pg_switch_wal()");
        server.stop(StopMode::Fast);
        copy(&server.data_dir().join("pg_wal"), &folder.join("pg_wal"));
        // The end comes last: it says that the run is whole.
        fs::write(folder.join("start"), start.trim()).expect("the folder can be written to");
        fs::write(folder.join("end"), end.trim()).expect("the folder can be written to");
        PgbenchRun::open(&folder, root)
    }

    /// The run that `scripts/verify-redo.sh` has left in its folder (`VERIFY_REDO_DIR`).
    pub fn of_suite(folder: &Path) -> PgbenchRun {
        let (base, data) = (folder.join("base"), folder.join("data"));
        let (start, end) = (control_lsn(&base, "checkpoint's REDO"), control_lsn(&data, "checkpoint"));
        PgbenchRun { _root: None, base, wal: data.join("pg_wal"), start, end }
    }

    fn open(folder: &Path, root: Option<TempDir>) -> PgbenchRun {
        let lsn = |name| fs::read_to_string(folder.join(name)).expect("the run's ends can be read");
        let (base, wal) = (folder.join("base"), folder.join("pg_wal"));
        PgbenchRun { _root: root, base, wal, start: lsn("start"), end: lsn("end") }
    }

    /// The data directory of the stopped server, before the run.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The folder of WAL segments.
    pub fn wal(&self) -> &Path {
        &self.wal
    }

    /// Where the run's WAL starts, as Postgres prints LSNs.
    pub fn start(&self) -> &str {
        &self.start
    }

    /// Where it ends.
    pub fn end(&self) -> &str {
        &self.end
    }

    /// Postgres's own recovery of the WAL on a copy of the base, from what its log says of "redo".
    pub fn recovery(&self) -> Took {
        let root = temp_dir();
        let data = root.path().join("data");
        copy(&self.base, &data);
        fs::remove_dir_all(data.join("pg_wal")).expect("the folder can be removed");
        copy(&self.wal, &data.join("pg_wal"));
        succeed(server_command("touch").arg(data.join("recovery.signal")));
        let log_path = data.join("recovery.log");
        let log = fs::File::create(&log_path).expect("a log can be made");
        let mut command = server_command(program("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(&data);
        // With no archive to ask, it ends recovery where the WAL ends.
        command.args(["-c", "restore_command=false", "-c", "hot_standby=off", "-c", "fsync=off"]);
        command.args(["-c", "recovery_target_timeline=current", "-c", "shared_buffers=1GB", "-c", "listen_addresses="]);
        // The suites prepare some.
        command.args(["-c", "max_prepared_transactions=20"]);
        let handle = log.try_clone().expect("a handle can be cloned");
        let mut child = command.stdin(Stdio::null()).stdout(handle).stderr(log).spawn().expect("postgres can be run");
        let deadline = Instant::now() + DEADLINE;
        let took = loop {
            let log = fs::read_to_string(&log_path).expect("the log can be read");
            let done = log.lines().find(|line| line.contains("redo done at") && line.ends_with(" s"));
            if let Some(line) = done {
                let seconds = |name: &str| {
                    let behind = line.split_once(name).expect("the line has all three").1;
                    let number = behind.split(' ').next().and_then(|number| number.parse().ok());
                    Duration::from_secs_f64(number.expect("a number of seconds"))
                };
                break Took { elapsed: seconds("elapsed: "), cpu: seconds("user: ") + seconds("system: ") };
            }
            assert!(Instant::now() < deadline, "recovery does not end: {log}");
            std::thread::sleep(Duration::from_millis(20));
        };
        child.kill().expect("the server can be ended");
        child.wait().expect("a child can be waited for");
        took
    }

    /// `pg_waldump --stats` over the WAL.
    pub fn waldump(&self) -> Took {
        let begun = Instant::now();
        let mut command = server_command(program("pg_waldump"));
        command.arg("--stats").arg("-p").arg(&self.wal).arg("-s").arg(&self.start);
        // It ends with an error where the WAL ends.
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("pg_waldump can be run");
        Took { elapsed: begun.elapsed(), cpu: Duration::ZERO }
    }
}

/// Of a stopped server: `Latest {what} location` in what `pg_controldata` prints.
fn control_lsn(data: &Path, what: &str) -> String {
    let output = server_command(program("pg_controldata")).arg("-D").arg(data).env("LC_ALL", "C").output();
    let output = output.expect("pg_controldata can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let label = format!("Latest {what} location:");
    let lsn = text.lines().find_map(|line| line.strip_prefix(label.as_str()));
    lsn.unwrap_or_else(|| panic!("{} is no stopped server's: {output:?}", data.display())).trim().to_owned()
}

fn succeed(command: &mut Command) {
    let output = command.output().expect("the program can be run");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path) {
    succeed(server_command("cp").arg("-a").arg(from).arg(to));
}

fn pgbench(server: &TestPg, arguments: &[&str]) {
    let port = server.port().to_string();
    let mut command = server_command(program("pgbench"));
    command.arg("-h").arg(server.socket_dir()).args(["-p", &port, "-U", server.superuser(), "-n"]);
    succeed(command.args(arguments).arg("postgres"));
}
