//! A pgbench run's WAL, with and without full-page images: decoding beside `pg_waldump --stats`, redo on pages in memory beside
//! Postgres's own recovery, all on the same files in one run. Prints a table.
//!
//! `BENCH_TRANSACTIONS` (default 20000) and `BENCH_ROUNDS` (default 5; the best of each side counts) set its size.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ardent_pg_format::{PgMajor, restore_image_into};
use ardent_pg_redo::{HintBits, RecordView, has_redo, redo_block, vm_changes};
use ardent_redo_oracle::WalFolder;
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, program, server_command, temp_dir};
use ardent_types::{BLCKSZ, BlockNumber, Lsn, RelTag};

const SCALE: &str = "10";
const CLIENTS: u32 = 4;

fn number_from(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn succeed(command: &mut Command) {
    let output = command.output().expect("the program can be run");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path) {
    succeed(server_command("cp").arg("-a").arg(from).arg(to));
}

/// A data directory before a pgbench run, and the WAL of that run.
struct Run {
    _root: tempfile::TempDir,
    base: PathBuf,
    wal: PathBuf,
    start: Lsn,
    bytes: u64,
}

fn pgbench(server: &TestPg, arguments: &[&str]) {
    let port = server.port().to_string();
    let mut command = server_command(program("pgbench"));
    command.arg("-h").arg(server.socket_dir()).args(["-p", &port, "-U", server.superuser(), "-n"]);
    succeed(command.args(arguments).arg("postgres"));
}

fn make(full_page_writes: &str) -> Run {
    let options = TestPgOptions::default()
        .set("full_page_writes", full_page_writes)
        .set("fsync", "off")
        .set("autovacuum", "off")
        .set("wal_keep_size", "20GB")
        .set("max_wal_size", "20GB")
        .set("checkpoint_timeout", "1h");
    let mut server = TestPg::start(options);
    pgbench(&server, &["-q", "-i", "-s", SCALE]);
    server.sql("vacuum (freeze, analyze)");
    server.stop(StopMode::Fast);
    let root = temp_dir();
    let base = root.path().join("base");
    copy(server.data_dir(), &base);
    server.start_server();
    let start: Lsn = server.sql("select redo_lsn from pg_control_checkpoint()").parse().expect("an LSN");
    let each = number_from("BENCH_TRANSACTIONS", 20_000) / CLIENTS;
    pgbench(&server, &["-c", &CLIENTS.to_string(), "-t", &each.to_string()]);
    let end: Lsn = server.sql("select pg_switch_wal()").parse().expect("an LSN");
    server.stop(StopMode::Fast);
    let wal = root.path().join("pg_wal");
    copy(&server.data_dir().join("pg_wal"), &wal);
    Run { _root: root, base, wal, start, bytes: end.saturating_sub(start) }
}

/// Pages in memory; what a record touches first comes from the base's files, as in Postgres.
#[derive(Default)]
struct Pages {
    pages: HashMap<(RelTag, BlockNumber), Box<[u8; BLCKSZ]>>,
    files: HashMap<RelTag, Option<Vec<u8>>>,
}

impl Pages {
    fn get(&mut self, base: &Path, rel: RelTag, block: BlockNumber) -> &mut [u8; BLCKSZ] {
        let files = &mut self.files;
        self.pages.entry((rel, block)).or_insert_with(|| {
            let path = || base.join(rel.path(PgMajor::V15.tablespace_directory()));
            let file = files.entry(rel).or_insert_with(|| fs::read(path()).ok());
            let at = block as usize * BLCKSZ;
            let content = file.as_ref().and_then(|file| file.get(at..at + BLCKSZ));
            Box::new(content.map_or([0; BLCKSZ], |content| content.try_into().expect("a page's length")))
        })
    }
}

/// Decodes and redoes all of it. With `block_ns`: also times each redo by itself, which slows the whole down.
fn redo_all(run: &Run, mut block_ns: Option<&mut Vec<u32>>) -> Duration {
    let mut pages = Pages::default();
    let begun = Instant::now();
    let mut folder = WalFolder::open(&run.wal, Some(run.start), None).expect("the WAL is there");
    let major = folder.major();
    while let Some(record) = folder.next_record().expect("the WAL is whole") {
        if record.blocks.is_empty() {
            continue;
        }
        let view = RecordView::of_record(&record, HintBits::NotLogged);
        for changes in vm_changes(major, &view).expect("the record is whole") {
            let page = pages.get(&run.base, changes.rel, changes.block);
            changes.changes.iter().for_each(|change| change.apply(page));
        }
        for block in &record.blocks {
            let page = pages.get(&run.base, block.rel, block.blkno);
            if block.image.as_ref().is_some_and(|image| image.apply) {
                restore_image_into(&record, block, page).expect("the image is whole");
                continue;
            }
            if !has_redo(major, record.header.rmid, record.header.info) {
                continue;
            }
            let started = block_ns.is_some().then(Instant::now);
            redo_block(major, &view, block.id, page).expect("redo fits the page");
            if let (Some(started), Some(block_ns)) = (started, block_ns.as_deref_mut()) {
                block_ns.push(started.elapsed().as_nanos() as u32);
            }
        }
    }
    begun.elapsed()
}

/// Postgres's own figure for its replay of the same WAL on a copy of the base.
fn recover(run: &Run) -> Duration {
    let root = temp_dir();
    let data = root.path().join("data");
    copy(&run.base, &data);
    fs::remove_dir_all(data.join("pg_wal")).expect("the folder can be removed");
    copy(&run.wal, &data.join("pg_wal"));
    succeed(server_command("touch").arg(data.join("recovery.signal")));
    let log_path = data.join("recovery.log");
    let log = fs::File::create(&log_path).expect("a log can be made");
    let mut command = server_command(program("postgres"));
    command.arg("-D").arg(&data).arg("-k").arg(&data);
    // With no archive to ask, it ends recovery where the WAL ends.
    command.args(["-c", "restore_command=false", "-c", "hot_standby=off", "-c", "fsync=off"]);
    command.args(["-c", "recovery_target_timeline=current", "-c", "shared_buffers=1GB", "-c", "listen_addresses="]);
    let handle = log.try_clone().expect("a handle can be cloned");
    let mut child = command.stdin(Stdio::null()).stdout(handle).stderr(log).spawn().expect("postgres can be run");
    let deadline = Instant::now() + Duration::from_secs(300);
    let seconds = loop {
        let log = fs::read_to_string(&log_path).expect("the log can be read");
        let found = log
            .lines()
            .find(|line| line.contains("redo done at"))
            .and_then(|line| line.rsplit("elapsed: ").next()?.trim_end_matches(" s").trim().parse::<f64>().ok());
        if let Some(seconds) = found {
            break seconds;
        }
        assert!(Instant::now() < deadline, "recovery does not end: {log}");
        std::thread::sleep(Duration::from_millis(20));
    };
    child.kill().expect("the server can be ended");
    child.wait().expect("a child can be waited for");
    Duration::from_secs_f64(seconds)
}

fn decode(run: &Run) -> (Duration, u64) {
    let begun = Instant::now();
    let mut folder = WalFolder::open(&run.wal, Some(run.start), None).expect("the WAL is there");
    let mut records = 0;
    while folder.next_record().expect("the WAL is whole").is_some() {
        records += 1;
    }
    (begun.elapsed(), records)
}

fn waldump(run: &Run) -> Duration {
    let begun = Instant::now();
    let mut command = server_command(program("pg_waldump"));
    command.arg("--stats").arg("-p").arg(&run.wal).arg("-s").arg(run.start.to_string());
    // It ends with an error where the WAL ends.
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("pg_waldump can be run");
    begun.elapsed()
}

/// The best of each side, in turns, so that both meet the same noise.
fn side_by_side(mut ours: impl FnMut() -> Duration, mut peer: impl FnMut() -> Duration) -> (Duration, Duration) {
    let rounds = number_from("BENCH_ROUNDS", 5).max(1);
    let both: Vec<_> = (0..rounds).map(|_| (ours(), peer())).collect();
    let best = |side: fn(&(Duration, Duration)) -> Duration| both.iter().map(side).min().expect("there is a round");
    (best(|round| round.0), best(|round| round.1))
}

fn main() {
    println!("| case | ours | peer | ratio | target |\n|---|---|---|---|---|");
    for (kind, setting) in [("without images", "off"), ("with images", "on")] {
        let run = make(setting);
        let records = decode(&run).1;
        let rate = |time: Duration| {
            let (records, mb) =
                (records as f64 / 1e6 / time.as_secs_f64(), run.bytes as f64 / 1e6 / time.as_secs_f64());
            format!("{records:.2} M records/s, {mb:.0} MB/s")
        };
        let row = |case: &str, (ours, peer): (Duration, Duration), name: &str, target: &str| {
            let ratio = peer.as_secs_f64() / ours.as_secs_f64();
            println!("| {case}, {kind} | {} | {} ({name}) | {ratio:.2} | {target} |", rate(ours), rate(peer));
        };
        row("decode with CRC", side_by_side(|| decode(&run).0, || waldump(&run)), "pg_waldump --stats", ">= 1");
        let redo = side_by_side(|| redo_all(&run, None), || recover(&run));
        row("decode and redo", redo, "recovery", if setting == "off" { ">= 3" } else { ">= 1" });
        let mut block_ns = Vec::new();
        redo_all(&run, Some(&mut block_ns));
        block_ns.sort_unstable();
        let clock_ns = |_| Instant::now().elapsed().as_nanos();
        let clock_ns = (0..1000).map(clock_ns).min().unwrap_or_default();
        if let Some(median) = block_ns.get(block_ns.len() / 2) {
            let blocks = block_ns.len();
            println!(
                "| redo of one block, median of {blocks}, {kind} | {median} ns ({clock_ns} ns of it the clock) | - | - | <= 300 ns |"
            );
        }
    }
}
