//! A pgbench run's WAL, with and without full-page images: decoding beside `pg_waldump --stats`, redo on pages in memory beside
//! Postgres's own recovery, all on the same files in one run. Prints a table.
//!
//! `BENCH_TRANSACTIONS` (default 100000) and `BENCH_ROUNDS` (default 5; the best of each side counts) set its size. `BENCH_RUNS` names a
//! folder where runs are kept and taken from again, `BENCH_ONLY=decode`, `redo` or `memory` leaves everything else and the peers out: for
//! a profiler. `BENCH_SUITE_WITHOUT_IMAGES` and `BENCH_SUITE_WITH_IMAGES` name folders of `scripts/verify-redo.sh` with the regression
//! suite's WAL, which is taken instead of pgbench's (`BENCH_CASES=suite scripts/bench.sh` makes them).

mod pages;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ardent_pg_format::{DecodedRecord, PgMajor, restore_image_into, rmgr};
use ardent_pg_redo::{HintBits, RecordView, has_redo, may_change_vm, redo_block, vm_changes};
use ardent_redo_oracle::WalFolder;
use ardent_test_pg::side_by_side::{Amount, Took, number_from, print_header, print_row, side_by_side};
use ardent_test_pg::{PgbenchRun, PgbenchRunOptions};
use ardent_types::{ForkNumber, Lsn, RelTag};

use pages::Pages;

fn open(run: &PgbenchRun) -> WalFolder {
    let start: Lsn = run.start().parse().expect("an LSN");
    WalFolder::open(run.wal(), Some(start), None).expect("the WAL is there")
}

/// Decodes all of it; gives the number of records.
fn decode(run: &PgbenchRun) -> u64 {
    let mut folder = open(run);
    let mut records = 0;
    while folder.next_record().expect("the WAL is whole").is_some() {
        records += 1;
    }
    records
}

/// Decodes and redoes all of it, starting from the files of the base, which are read where a record needs them, as recovery does.
/// `block_ns`: also times each redo by itself, which slows the whole down. Gives the number of blocks that redo did not fit: pages of
/// databases and files that were copied past the WAL, or dropped before they reached their file, have no content here.
fn redo_all(run: &PgbenchRun, pages: &mut Pages, mut block_ns: Option<&mut Vec<u32>>) -> u64 {
    let mut folder = open(run);
    let major = folder.major();
    let mut passed_over = 0;
    while let Some(record) = folder.next_record().expect("the WAL is whole") {
        if !record.blocks.is_empty() {
            passed_over += redo(major, &record, pages, &mut block_ns);
        } else if record.header.rmid == rmgr::STORAGE && record.header.info & 0xF0 == SMGR_TRUNCATE {
            truncate(record.main_data(), pages);
        }
    }
    passed_over
}

/// `XLOG_SMGR_TRUNCATE` (`storage_xlog.h`).
const SMGR_TRUNCATE: u8 = 0x20;

fn truncate(data: &[u8], pages: &mut Pages) {
    let number = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().expect("cut to this length"));
    let (blocks, spcnode, dbnode, relnode) = (number(0), number(4), number(8), number(12));
    pages.truncate(RelTag { spcnode, dbnode, relnode, fork: ForkNumber::Main }, blocks);
}

fn redo(major: PgMajor, record: &DecodedRecord<'_>, pages: &mut Pages, block_ns: &mut Option<&mut Vec<u32>>) -> u64 {
    let view = RecordView::of_record(record, HintBits::NotLogged);
    let mut passed_over = 0;
    if may_change_vm(record) {
        for changes in vm_changes(major, &view).expect("the record is whole") {
            let page = pages.get(changes.rel, changes.block);
            changes.changes.iter().for_each(|change| change.apply(page));
        }
    }
    for block in record.blocks {
        let page = pages.get(block.rel, block.blkno);
        if block.has_applied_image() {
            restore_image_into(record, block, page).expect("the image is whole");
            continue;
        }
        if !has_redo(major, record.header.rmid, record.header.info) {
            continue;
        }
        let started = block_ns.is_some().then(Instant::now);
        passed_over += u64::from(redo_block(major, &view, block.id, page).is_err());
        if let (Some(started), Some(block_ns)) = (started, block_ns.as_deref_mut()) {
            block_ns.push(started.elapsed().as_nanos() as u32);
        }
    }
    passed_over
}

fn timed(run: &PgbenchRun, pages: &mut Pages) -> Took {
    Took::by(|| {
        redo_all(run, pages, None);
    })
}

/// Only our side, again and again.
fn profile(run: &PgbenchRun, what: &str, records: u64) {
    let mut touched = Pages::new(run.base());
    redo_all(run, &mut touched, None);
    for _ in 0..number_from("BENCH_ROUNDS", 5).max(1) {
        let took = match what {
            "decode" => Took::by(|| {
                decode(run);
            }),
            "redo" => timed(run, &mut Pages::new(run.base())),
            "memory" => timed(run, &mut touched.again()),
            other => panic!("BENCH_ONLY is decode, redo or memory, not {other}"),
        };
        let ns = |time: Duration| time.as_nanos() as u64 / records;
        println!("{what}: {} ns a record, {} ns of the processor", ns(took.elapsed), ns(took.cpu));
    }
}

/// The median of redoing one block.
fn one_block(run: &PgbenchRun, kind: &str) {
    let mut block_ns = Vec::new();
    redo_all(run, &mut Pages::new(run.base()), Some(&mut block_ns));
    block_ns.sort_unstable();
    let clock_ns = (0..1000).map(|_| Instant::now().elapsed().as_nanos()).min().unwrap_or_default();
    if let Some(median) = block_ns.get(block_ns.len() / 2) {
        let blocks = block_ns.len();
        println!(
            "| redo of one block, median of {blocks}, {kind} | {median} ns ({clock_ns} ns of it the clock) | - | - | - | <= 300 ns |"
        );
    }
}

fn bytes_of(run: &PgbenchRun) -> u64 {
    let lsn = |text: &str| text.parse::<Lsn>().expect("an LSN");
    lsn(run.end()).saturating_sub(lsn(run.start()))
}

/// What is measured: the kind of WAL for the table, its run, and what redo is to reach beside recovery.
fn runs() -> Vec<(String, PgbenchRun, &'static str)> {
    let suites =
        [("without images", "BENCH_SUITE_WITHOUT_IMAGES", ">= 3"), ("with images", "BENCH_SUITE_WITH_IMAGES", ">= 1")];
    let of_suites = suites.iter().filter_map(|(kind, variable, target)| {
        let folder = PathBuf::from(std::env::var_os(variable)?);
        Some((format!("regression suite, {kind}"), PgbenchRun::of_suite(&folder), *target))
    });
    let of_suites: Vec<_> = of_suites.collect();
    if !of_suites.is_empty() {
        return of_suites;
    }
    let transactions = number_from("BENCH_TRANSACTIONS", 100_000);
    let make = |full_page_writes| PgbenchRun::make(PgbenchRunOptions { full_page_writes, transactions });
    vec![("without images".to_owned(), make(false), ">= 3"), ("with images".to_owned(), make(true), ">= 1")]
}

fn main() {
    let only = std::env::var("BENCH_ONLY").ok();
    if only.is_none() {
        print_header();
    }
    for (kind, run, target) in runs() {
        let amount = Amount { records: decode(&run), bytes: bytes_of(&run) };
        if let Some(what) = &only {
            profile(&run, what, amount.records);
            continue;
        }
        let decoded = || {
            Took::by(|| {
                decode(&run);
            })
        };
        let both = side_by_side(decoded, || run.waldump());
        print_row(&format!("decode with CRC, {kind}"), amount, both, "pg_waldump --stats", ">= 1");
        let both = side_by_side(|| timed(&run, &mut Pages::new(run.base())), || run.recovery());
        print_row(&format!("decode and redo, {kind}, pages read from files"), amount, both, "recovery", "-");
        let mut touched = Pages::new(run.base());
        let passed_over = redo_all(&run, &mut touched, None);
        // Nothing of pgbench's, and little of a suite's: else what is timed is not redo.
        assert!(passed_over <= amount.records / 200, "redo does not fit {passed_over} of the blocks");
        let in_memory = || timed(&run, &mut touched.again());
        let (ours, _) = side_by_side(in_memory, in_memory);
        print_row(&format!("decode and redo, {kind}, pages in memory"), amount, (ours, both.1), "recovery", target);
        if passed_over > 0 {
            println!("| ... blocks that redo passed over | {passed_over} | - | - | - | - |");
        }
        one_block(&run, &kind);
    }
}
