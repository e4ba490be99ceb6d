//! A real Postgres 15 runs workloads that reach every record type; every page that redo makes is compared with the page that
//! Postgres logged. Then redo is made wrong on purpose, and the oracle must say so.

mod support;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use ardent_pg_format::{DecodedRecord, rmgr};
use ardent_pg_redo::HintBits;
use ardent_redo_oracle::{
    EXPECTED_15, Expectations, ExpectedTypes, Mismatch, Oracle, Tamper, VerifyRedoArgs, WalFolder, run,
};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions};
use ardent_types::{BlockNumber, ForkNumber, Lsn, RelTag};
use support::damage::Damage;
use support::{WORKLOADS, options, run_sql_file, start_with_base, verify, verify_with_end_state};

/// One server for both: the workloads are what takes long.
#[test]
fn every_record_type_of_15_redoes_as_postgres_does_and_wrong_redo_is_caught() {
    let (mut server, base) = start_with_base(options().set("wal_compression", "lz4"));
    for name in WORKLOADS.into_iter().chain(["cluster.sql"]) {
        run_sql_file(&server, name);
    }
    server.stop(StopMode::Fast);

    let mut report = verify_with_end_state(&server, base.path(), HintBits::NotLogged);
    report.expect(&Expectations::parse(EXPECTED_15).unwrap().of_blocks());
    assert!(report.passed(), "{report}");
    let total = report.total();
    assert!(total.checked > 100_000 && total.lsns_checked > 100_000 && total.derived_vm_changes > 100, "{report}");
    assert!(total.masked_bytes > 1_000_000, "what is masked is counted: {report}");
    // Only pages that initdb made before checking was on may be taken over.
    assert!(total.first_seen < 1_000, "{report}");

    wrong_redo_is_caught(&server.data_dir().join("pg_wal"));
}

#[test]
fn checksums_small_segments_pglz() {
    let options = options().initdb_arg("--data-checksums").initdb_arg("--wal-segsize=1");
    check_settings(options.set("wal_compression", "pglz"), HintBits::Logged);
}

#[test]
fn full_page_writes_off_zstd() {
    check_settings(options().set("full_page_writes", "off").set("wal_compression", "zstd"), HintBits::NotLogged);
}

#[test]
fn hints_logged_logical_large_segments() {
    let options = options().initdb_arg("--wal-segsize=64").set("wal_log_hints", "on");
    check_settings(options.set("wal_level", "logical"), HintBits::Logged);
}

/// Settings that change what is logged.
fn check_settings(options: TestPgOptions, hint_bits: HintBits) {
    {
        let (mut server, base) = start_with_base(options.set("track_commit_timestamp", "on"));
        server.sql("CHECKPOINT");
        run_sql_file(&server, "heap.sql");
        // After a checkpoint, reading pages with new hint bits logs their images.
        server.sql("CHECKPOINT");
        for sql in ["SELECT count(*) FROM h", "UPDATE h SET v = 1 WHERE id % 9 = 0", "VACUUM h"] {
            server.sql(sql);
        }
        run_sql_file(&server, "cluster.sql");
        server.stop(StopMode::Fast);
        let report = verify_with_end_state(&server, base.path(), hint_bits);
        assert!(report.passed(), "{report}");
        let hint_images = report.types.get("XLOG/FPI_FOR_HINT").map_or(0, |counts| counts.images_applied);
        assert_eq!(hint_images > 0, hint_bits == HintBits::Logged, "{report}");
    }
}

/// A way to be wrong about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    /// A byte of an item or of the access method's own data.
    Content,
    /// A flag in the special space, or in a heap page's header.
    Flag,
    /// `pd_lower`, as after an offset number that is off by one.
    Offset,
    /// The page's LSN; seen when the page is changed the next time.
    Lsn,
    /// A bit of a map page that Postgres did not set.
    ExtraMapBit,
    /// A bit of a map page that Postgres set.
    LostMapBit,
}

const PAGE_WRONGS: [Wrong; 4] = [Wrong::Content, Wrong::Flag, Wrong::Offset, Wrong::Lsn];

/// Spoils the page, unless it isn't one that this mistake can be made on.
fn spoil(page: &mut [u8; 8192], rmid: u8, wrong: Wrong) -> bool {
    let word = |page: &[u8; 8192], at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
    let (lower, upper, special) = (word(page, 12), word(page, 14), word(page, 16));
    match wrong {
        // The start of the item that is nearest to the special space is never padding.
        Wrong::Content if upper + 16 <= special && lower > 24 => page[special - 16] ^= 0x40,
        // Pages without items keep their data below pd_lower.
        Wrong::Content if lower >= 40 => page[lower - 8] ^= 0x40,
        Wrong::Content => return false,
        Wrong::Flag if rmid == rmgr::HEAP || rmid == rmgr::HEAP2 => page[10] ^= 0x04,
        Wrong::Flag if rmid == rmgr::BTREE => page[special + 12] ^= 0x02,
        Wrong::Flag if rmid == rmgr::GENERIC || rmid == rmgr::SEQUENCE => page[8191 - 4] ^= 0x01,
        Wrong::Flag => page[8191] ^= 0x80,
        Wrong::Offset => page[12..14].copy_from_slice(&((lower + 4) as u16).to_le_bytes()),
        Wrong::Lsn => page[7] ^= 1,
        Wrong::ExtraMapBit => page[8000] |= 0x01,
        Wrong::LostMapBit if page[24] & 0x01 != 0 => page[24] &= !0x01,
        Wrong::LostMapBit => return false,
    }
    true
}

/// Reads the WAL once more with redo made wrong in one place for each resource manager and kind of mistake (a few places for
/// LSNs, which are only seen if the page is changed again).
fn wrong_redo_is_caught(wal: &Path) {
    type Mistake = (u8, Wrong);
    let plan: Vec<(Mistake, u32)> = [
        rmgr::HEAP,
        rmgr::HEAP2,
        rmgr::BTREE,
        rmgr::HASH,
        rmgr::GIN,
        rmgr::GIST,
        rmgr::SPGIST,
        rmgr::BRIN,
        rmgr::GENERIC,
        rmgr::SEQUENCE,
    ]
    .into_iter()
    .flat_map(|rmid| PAGE_WRONGS.map(|wrong| ((rmid, wrong), if wrong == Wrong::Lsn { 10 } else { 1 })))
    // A sequence's page is made anew each time, so no later record shows the LSN that it had.
    .filter(|(mistake, _)| *mistake != (rmgr::SEQUENCE, Wrong::Lsn))
    .chain([((rmgr::HEAP2, Wrong::ExtraMapBit), 1), ((rmgr::HEAP2, Wrong::LostMapBit), 1)])
    .collect();

    type Made = Rc<RefCell<Vec<(Mistake, RelTag, BlockNumber, Lsn)>>>;
    let made: Made = Rc::default();
    let mut left = plan.clone();
    let log = Rc::clone(&made);
    let tamper: Tamper = Box::new(move |record: &DecodedRecord, block, page| {
        let rmid = record.header.rmid;
        // Pages from before checking was on are not compared. A mistake that is seen later keeps its page for itself.
        let waits = |wrong: Wrong| wrong == Wrong::Lsn || wrong == Wrong::ExtraMapBit;
        let on_page =
            |(_, rel, blkno, _): &&(Mistake, RelTag, BlockNumber, Lsn)| (*rel, *blkno) == (block.rel, block.blkno);
        let taken = log.borrow().iter().filter(on_page).any(|((_, wrong), ..)| waits(*wrong));
        if block.image.is_none() || taken {
            return;
        }
        let map = block.rel.fork == ForkNumber::Vm;
        let fits = |wrong: Wrong| map == matches!(wrong, Wrong::ExtraMapBit | Wrong::LostMapBit);
        for ((of, wrong), count) in left.iter_mut().filter(|((of, _), count)| *of == rmid && *count > 0) {
            if fits(*wrong) && spoil(page, rmid, *wrong) {
                *count -= 1;
                log.borrow_mut().push(((*of, *wrong), block.rel, block.blkno, record.end_lsn));
                return;
            }
        }
    });
    let mut folder = WalFolder::open(wal, None, None).unwrap();
    let major = folder.major();
    let mut oracle = Oracle::new(major, HintBits::NotLogged).with_tamper(tamper);
    let mut damage = Damage::new();
    while let Some(record) = folder.next_record().unwrap() {
        oracle.check(&record).unwrap();
        damage.redo_damaged(&record, major);
    }
    damage.assert_reached(&Expectations::parse(EXPECTED_15).unwrap());
    let report = oracle.finish();

    let caught: BTreeSet<Mistake> = made
        .borrow()
        .iter()
        .filter(|((_, wrong), rel, block, lsn)| {
            let on_page = |m: &&Mismatch| m.rel == *rel && m.block == *block && m.lsn >= *lsn;
            report
                .mismatches
                .iter()
                .filter(on_page)
                .any(|m| *wrong == Wrong::Lsn || *wrong == Wrong::ExtraMapBit || m.lsn == *lsn)
        })
        .map(|(mistake, ..)| *mistake)
        .collect();
    let missed: Vec<String> = plan
        .iter()
        .filter(|(mistake, _)| !caught.contains(mistake))
        .map(|((rmid, wrong), _)| format!("{} {wrong:?}", rmgr::name(*rmid)))
        .collect();
    assert!(missed.is_empty(), "the oracle did not notice: {missed:?}");
}

#[test]
fn expected_types_that_never_came_fail_the_run() {
    let mut server = TestPg::start(options());
    server.sql("CREATE TABLE t AS SELECT 1 AS a; INSERT INTO t VALUES (2)");
    server.stop(StopMode::Fast);
    let mut report = verify(&server, HintBits::NotLogged);
    assert!(report.passed(), "{report}");
    let list =
        "Heap/INSERT\nimage XLOG/FPI\nHash/INSERT # none here\nseen Transaction/COMMIT\nseen Transaction/PREPARE";
    report.expect(&Expectations::parse(list).unwrap());
    assert_eq!(report.missing, ["Hash/INSERT", "Transaction/PREPARE"]);
    assert!(report.unlisted.contains(&"XLOG/CHECKPOINT_SHUTDOWN".to_owned()), "{:?}", report.unlisted);
    assert!(!report.unlisted.contains(&"Transaction/COMMIT".to_owned()), "{:?}", report.unlisted);
    assert!(!report.passed());
    assert!(Expectations::parse("Heap INSERT").is_err());

    // The built-in list has all of the major's types, so it is missing most of them here, and knows what came.
    let wal = server.data_dir().join("pg_wal");
    let args = VerifyRedoArgs { wal, expect: Some(ExpectedTypes::OfMajor), ..VerifyRedoArgs::default() };
    let report = run(&args).expect("the WAL can be read");
    let missing = |name: &str| report.missing.iter().any(|missing| missing == name);
    assert!(missing("Hash/INSERT") && missing("Transaction/PREPARE"), "{:?}", report.missing);
    assert!(!missing("Heap/INSERT"), "{:?}", report.missing);
    assert!(report.unlisted.is_empty() && !report.passed(), "{:?}", report.unlisted);
}
