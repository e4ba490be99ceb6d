//! A log from records to entries, and what is left of one that was damaged.

use std::ops::ControlFlow;
use std::path::Path;

use ardent_types::{Lsn, TimelineId};
use proptest::prelude::*;

use crate::record::tests::statement;
use crate::segment::Segment;
use crate::{
    Amount, End, EntryKind, Failed, LOG_LEN_MIN, LogEntry, LogFilter, LogWriter, Outcome, RECORD_MAX, ReadSummary,
    Record, SegmentHeader, Session, SessionKey, Statement, TransactionEnd, find_transaction, read_log, segments,
    statements_of,
};

fn header(timeline: u8, first_xid: u64) -> SegmentHeader {
    SegmentHeader { timeline: TimelineId::from_bytes([timeline; 16]), first_xid }
}

fn bytes(record: Record<'_>) -> Vec<u8> {
    let mut out = [0; RECORD_MAX];
    let len = record.encode(&mut out).expect("there is room");
    out[..len].to_vec()
}

fn session(pid: u32) -> Vec<u8> {
    bytes(Record::Session(Session {
        pid,
        started_us: 10,
        is_own: false,
        database: b"shop",
        session_role: b"app",
        role: b"app",
        application: b"psql",
        client: b"192.0.2.1:50000",
    }))
}

/// A statement of the time `number` seconds.
fn ran(number: u64, text: &str, xid: u64) -> Vec<u8> {
    let wal =
        if xid == 0 { (Lsn::INVALID, Lsn::INVALID) } else { (Lsn::new(number * 100), Lsn::new(number * 100 + 50)) };
    let started_us = number as i64 * 1_000_000;
    bytes(Record::Statement(Statement { started_us, xid, wal, ..statement(number, text.as_bytes()) }))
}

fn ended(end: End, xid: u64, first: u64, last: u64, children: &[u8]) -> Vec<u8> {
    let at_us = last as i64 * 1_000_000 + 500_000;
    let lsn = Lsn::new(last * 100 + 60);
    let children_count = children.len() as u32 / 4;
    bytes(Record::Transaction(TransactionEnd { end, at_us, xid, lsn, first, last, children_count, children }))
}

fn append(writer: &mut LogWriter, records: &[(u32, Vec<u8>)]) {
    writer.append(records.iter().map(|(slot, bytes)| (*slot, &bytes[..])), 0, 0).expect("appended");
    writer.tidy().expect("tidied");
}

fn read(folder: &Path, filter: &LogFilter, amount: Amount) -> (Vec<LogEntry>, ReadSummary) {
    let mut entries = Vec::new();
    let summary = read_log(folder, filter, amount, |entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    });
    (entries, summary.expect("read"))
}

fn told(entries: &[LogEntry]) -> Vec<(String, Outcome)> {
    entries.iter().map(|entry| (entry.statement.clone(), entry.outcome)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of_hex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits")).collect()
}

#[test]
fn the_bytes_of_a_segment_are_these() {
    let header_bytes = "415244534c4f470201010101010101010101010101010101\
                        bc02000000000000000000000000000000000000ff209152";
    let block = "6e0000000ecc951e\
                 070000000a0000000000000035000000\
                 07070000000a0000000000000000040073686f700300617070030061707004007073716c0f003139322e302e322e313a3530303030\
                 070000000a0000000000000019000000\
                 04e07072000000000006000000000000000600000000000000";
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
    let undone = bytes(Record::Undone { at_us: 7_500_000, first: 6, last: 6 });
    append(&mut writer, &[(0, session(7)), (0, undone.clone())]);
    let open = std::fs::read(folder.path().join("00000001.log")).expect("it is there");
    assert_eq!(hex(&open), header_bytes.to_owned() + block);

    // A closed one, in a frame of zstd that is not compressed: what compressing makes of it is zstd's own.
    let packed = "760000005a93b25c28b52ffd2076b10300";
    let folder = tempfile::tempdir().expect("a folder");
    let closed = bytes_of_hex(&[header_bytes, packed, block].concat());
    std::fs::write(folder.path().join("00000001.zst"), closed).expect("written");
    let files = segments(folder.path()).expect("listed");
    let segment = Segment::read(&files[0]).expect("it is whole");
    assert_eq!(segment.header, header(1, 700));
    let key = SessionKey { pid: 7, started_us: 10 };
    assert_eq!(segment.entries().collect::<Vec<_>>(), [(key, &session(7)[..]), (key, &undone[..])]);
}

#[test]
fn statements_are_told_with_what_became_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
    let failed = Failed { sqlstate: *b"42P01", message: b"relation \"x\" does not exist" };
    let failing =
        Statement { failed: Some(failed), rows: None, started_us: 3_000_000, ..statement(3, b"select * from x") };
    append(
        &mut writer,
        &[
            (0, session(7)),
            (0, ran(1, "select 1", 0)),
            (0, ran(2, "alter role bob password 'hunter2'", 800)),
            (0, ended(End::Committed, 800, 2, 2, b"")),
            (0, bytes(Record::Statement(failing))),
            (1, session(8)),
            (1, ran(4, "delete from t", 801)),
            (1, ran(5, "savepoint s", 801)),
            (1, ran(6, "update t set a = 1", 801)),
            (1, ran(7, "rollback to s", 801)),
            (1, bytes(Record::Undone { at_us: 7_500_000, first: 6, last: 6 })),
        ],
    );
    append(&mut writer, &[(1, ran(8, "insert into t", 801))]);
    let expect = |last: Outcome| {
        vec![
            ("select 1".to_owned(), Outcome::Done),
            ("alter role bob password '***'".to_owned(), Outcome::Committed),
            ("select * from x".to_owned(), Outcome::Failed),
            ("delete from t".to_owned(), last),
            ("savepoint s".to_owned(), last),
            ("update t set a = 1".to_owned(), Outcome::RolledBack),
            ("rollback to s".to_owned(), last),
            ("insert into t".to_owned(), last),
        ]
    };
    let all = LogFilter::default();
    assert_eq!(told(&read(folder.path(), &all, Amount::All).0), expect(Outcome::Open));
    append(
        &mut writer,
        &[(1, ended(End::Committed, 801, 4, 8, &[3, 3, 0, 0])), (1, ended(End::Committed, 802, 9, 8, b""))],
    );
    let (entries, summary) = read(folder.path(), &all, Amount::All);
    assert_eq!(told(&entries[..8]), expect(Outcome::Committed));
    assert_eq!((entries[8].kind, entries[8].xid), (EntryKind::NoStatement, Some(802)));
    assert_eq!((summary.shown, summary.has_earlier, summary.is_cut), (9, false, false));
    let first = &entries[0];
    assert_eq!((first.pid, &first.role[..], &first.application_name[..]), (7, "app", "psql"));
    assert_eq!(first.client_address.as_deref(), Some("192.0.2.1:50000"));
    assert_eq!((&first.at[..], first.rows, first.xid), ("1970-01-01T00:00:01.000000Z", Some(3), None));
    assert_eq!((entries[3].lsn_from, entries[3].end_lsn), (Some(Lsn::new(400)), Some(Lsn::new(860))));
    assert_eq!(entries[2].error.as_deref(), Some("relation \"x\" does not exist"));

    let filtered = |filter: LogFilter| told(&read(folder.path(), &filter, Amount::All).0).len();
    assert_eq!(filtered(LogFilter { failed: true, ..all.clone() }), 1);
    assert_eq!(filtered(LogFilter { writes: true, ..all.clone() }), 7, "with the one of no statement");
    assert_eq!(filtered(LogFilter { grep: Some("DELETE".into()), ..all.clone() }), 1);
    assert_eq!(filtered(LogFilter { role: Some("boss".into()), ..all.clone() }), 0);
    assert_eq!(filtered(LogFilter { application: Some("PSQL".into()), ..all.clone() }), 9);
    assert_eq!(filtered(LogFilter { database: Some("other".into()), ..all.clone() }), 0);
    for (address, expect) in [("192.0.2.1", 9), ("192.0.2.10", 0), ("::1", 0)] {
        assert_eq!(filtered(LogFilter { client: address.parse().ok(), ..all.clone() }), expect, "{address}");
    }
    assert_eq!(filtered(LogFilter { since_us: Some(2_000_000), until_us: Some(4_000_000), ..all.clone() }), 2);
    let (newest, summary) = read(folder.path(), &all, Amount::Newest(2));
    assert_eq!((newest[0].statement.as_str(), newest.len(), summary.has_earlier), ("insert into t", 2, true));

    let key = SessionKey { pid: 8, started_us: 10 };
    let timeline = TimelineId::from_bytes([1; 16]);
    for xid in [801, 0x303] {
        let found = find_transaction(folder.path(), timeline, Lsn::MAX, xid).expect("read").expect("known");
        assert_eq!((found.session, found.first, found.last), (key, 4, 8), "{xid}");
    }
    assert_eq!(statements_of(folder.path(), key, 4..=5).expect("read").len(), 2);
    let unknown = |timeline, until, xid| find_transaction(folder.path(), timeline, until, xid).expect("read");
    assert_eq!(unknown(timeline, Lsn::new(859), 801), Err(Some(header(1, 700))), "not up to there");
    assert_eq!(unknown(TimelineId::from_bytes([2; 16]), Lsn::MAX, 801), Err(None));
}

#[test]
fn who_leaves_a_transaction_that_failed_is_told_that_it_was_rolled_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
    // It ends when a statement fails, and has its id until it is left.
    let failed = |first: u64, xid: u64| {
        [
            (0, ran(first, "begin", 0)),
            (0, ran(first + 1, "update", xid)),
            (0, ended(End::RolledBack, xid, first, first + 2, b"")),
        ]
    };
    append(&mut writer, &[(0, session(7))]);
    append(&mut writer, &failed(1, 800));
    append(&mut writer, &[(0, ran(4, "commit", 800)), (0, ran(5, "insert", 801))]);
    append(&mut writer, &failed(6, 802));
    drop(writer);
    // The next segment begins between the failure and the command.
    let mut writer = LogWriter::open(folder.path(), header(2, 700), LOG_LEN_MIN).expect("opened");
    append(&mut writer, &[(0, session(7)), (0, ran(9, "rollback", 802)), (0, ran(10, "delete", 803))]);
    let rolled_back =
        |texts: &[&str]| texts.iter().map(|text| ((*text).to_owned(), Outcome::RolledBack)).collect::<Vec<_>>();
    let open = |text: &str| vec![(text.to_owned(), Outcome::Open)];
    let expect = [
        rolled_back(&["begin", "update", "commit"]),
        open("insert"),
        rolled_back(&["begin", "update", "rollback"]),
        open("delete"),
    ]
    .concat();
    let all = LogFilter::default();
    assert_eq!(told(&read(folder.path(), &all, Amount::All).0), expect);
    assert_eq!(told(&read(folder.path(), &all, Amount::Newest(2)).0), expect[6..], "with the segment before");
    let key = SessionKey { pid: 7, started_us: 10 };
    assert_eq!(told(&statements_of(folder.path(), key, 1..=10).expect("read")), expect);
}

#[test]
fn a_log_goes_on_after_a_crash_and_on_another_timeline() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
    append(&mut writer, &[(0, session(7)), (0, ran(1, "one", 0))]);
    append(&mut writer, &[(0, ran(2, "torn", 0))]);
    drop(writer);
    let file = segments(folder.path()).expect("listed").remove(0);
    let len = std::fs::metadata(&file.path).expect("there").len();
    std::fs::OpenOptions::new().write(true).open(&file.path).expect("opened").set_len(len - 1).expect("cut");
    // The same timeline, whose first transaction is known already.
    let mut writer = LogWriter::open(folder.path(), header(1, 999), LOG_LEN_MIN).expect("opened");
    append(&mut writer, &[(0, session(8)), (0, ran(2, "two", 0))]);
    drop(writer);
    let mut writer = LogWriter::open(folder.path(), header(2, 500), LOG_LEN_MIN).expect("opened");
    append(&mut writer, &[(0, session(9)), (0, ran(3, "three", 0))]);
    let (entries, summary) = read(folder.path(), &LogFilter::default(), Amount::All);
    let texts: Vec<&str> = entries.iter().map(|entry| entry.statement.as_str()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    assert_eq!(entries.iter().map(|entry| entry.pid).collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!((summary.is_cut, summary.damaged.len()), (false, 0));
    assert_ne!(entries[1].timeline_id, entries[2].timeline_id);
    let known = find_transaction(folder.path(), TimelineId::from_bytes([1; 16]), Lsn::MAX, 1).expect("read");
    assert_eq!(known, Err(Some(header(1, 700))));
    assert!(!segments(folder.path()).expect("listed").is_empty());
    assert_eq!(read(&folder.path().join("none"), &LogFilter::default(), Amount::All).1.shown, 0);
}

#[test]
fn full_segments_are_compressed_the_oldest_go_and_sessions_are_known_in_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
    append(&mut writer, &[(0, session(7))]);
    // Nothing that compresses.
    let mut seed = 1_u64;
    let mut text = || {
        let mut text = String::new();
        while text.len() < 16_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push(char::from(b'0' + (seed >> 58) as u8));
        }
        text
    };
    for number in 1..=1000 {
        append(&mut writer, &[(0, ran(number, &text(), 900))]);
    }
    append(&mut writer, &[(0, ended(End::Committed, 900, 1, 1000, b""))]);
    let files = segments(folder.path()).expect("listed");
    let total: u64 = files.iter().map(|file| std::fs::metadata(&file.path).expect("there").len()).sum();
    assert!(files.len() > 2 && files[0].is_closed && files[0].number > 1, "{files:?}");
    assert!(total < LOG_LEN_MIN + (5 << 20), "{total}");
    let (entries, summary) = read(folder.path(), &LogFilter::default(), Amount::All);
    assert!(entries.iter().all(|entry| entry.role == "app" && entry.outcome == Outcome::Committed));
    assert_eq!(entries.last().map(|entry| entry.number), Some(1000));
    assert!(summary.is_cut && summary.begins_us > Some(1_000_000));
    let (newest, summary) = read(folder.path(), &LogFilter::default(), Amount::Newest(10));
    assert_eq!(newest.iter().map(|entry| entry.number).collect::<Vec<_>>(), (991..=1000).collect::<Vec<_>>());
    assert!(summary.has_earlier);

    // One that cannot be read is told, and the others are.
    let mut bytes = std::fs::read(&files[0].path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&files[0].path, bytes).expect("written");
    let (fewer, summary) = read(folder.path(), &LogFilter::default(), Amount::All);
    assert!(!fewer.is_empty() && fewer.len() < entries.len());
    assert!(summary.damaged[0].contains("is damaged at byte"), "{:?}", summary.damaged);
}

#[test]
fn rows_that_are_fetched_later_are_counted_in_and_gaps_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
    append(&mut writer, &[(0, session(7)), (0, ran(1, "select", 0))]);
    append(&mut writer, &[(0, bytes(Record::More { number: 1, rows: 40, at_us: 9 })), (0, b"nonsense".to_vec())]);
    writer.append(std::iter::empty(), 2, 12_000_000).expect("appended");
    writer.append(std::iter::empty(), 0, 12_000_000).expect("appended");
    let (entries, _) =
        read(folder.path(), &LogFilter { role: Some("app".into()), ..LogFilter::default() }, Amount::All);
    assert_eq!(entries[0].rows, Some(43));
    assert_eq!((entries[1].kind, entries[1].rows), (EntryKind::Lost, Some(2)));
    assert_eq!(entries.len(), 2);
    let json = serde_json::to_string(&entries[0]).expect("plain data");
    assert!(json.contains("\"outcome\":\"done\"") && json.contains("\"xid\":null"), "{json}");
}

proptest! {
    #[test]
    fn no_damage_makes_reading_panic(at in 0..4000_usize, bit in 0..8_u32, len in 0..4000_u64, is_closed in any::<bool>()) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
        append(&mut writer, &[(0, session(7)), (0, ran(1, "select 1", 0)), (0, ended(End::Committed, 5, 1, 1, b""))]);
        drop(writer);
        if is_closed {
            // Another timeline closes the segment.
            drop(LogWriter::open(folder.path(), header(2, 700), LOG_LEN_MIN).expect("opened"));
        }
        let file = segments(folder.path()).expect("listed").remove(0);
        let mut bytes = std::fs::read(&file.path).expect("read");
        bytes.truncate(len as usize);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << bit;
        }
        std::fs::write(&file.path, bytes).expect("written");
        read(folder.path(), &LogFilter::default(), Amount::Newest(1));
        let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("it can go on");
        append(&mut writer, &[(0, session(7)), (0, ran(2, "select 2", 0))]);
        let (entries, _) = read(folder.path(), &LogFilter::default(), Amount::All);
        prop_assert_eq!(entries.last().map(|entry| entry.number), Some(2));
    }
}

#[test]
fn a_segment_of_version_1_is_read_and_another_one_begun() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
    append(&mut writer, &[(0, session(7)), (0, ran(1, "select 1", 0))]);
    drop(writer);
    let first = segments(folder.path()).expect("listed").remove(0).path;
    let mut bytes = std::fs::read(&first).expect("read");
    assert_eq!(&bytes[..8], b"ARDSLOG\x02");
    bytes[7] = 1;
    let checksum = crc32fast::hash(&bytes[..44]);
    bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&first, &bytes).expect("written");

    let mut writer = LogWriter::open(folder.path(), header(1, 800), LOG_LEN_MIN).expect("opened");
    append(&mut writer, &[(0, session(7)), (0, ran(2, "select 2", 0))]);
    let numbers: Vec<(u64, bool)> =
        segments(folder.path()).expect("listed").iter().map(|file| (file.number, file.is_closed)).collect();
    assert_eq!(numbers, [(1, true), (2, false)]);
    let (entries, summary) = read(folder.path(), &LogFilter::default(), Amount::All);
    assert_eq!(told(&entries).iter().map(|(text, _)| &text[..]).collect::<Vec<_>>(), ["select 1", "select 2"]);
    assert!(summary.damaged.is_empty(), "{summary:?}");
    // Of a later version nothing is known.
    bytes[7] = 3;
    let checksum = crc32fast::hash(&bytes[..44]);
    bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(SegmentHeader::decode(&bytes), None);
}

/// Somebody else has written the log up to now, of sessions that go on.
#[test]
fn sessions_are_known_again_by_who_goes_on_with_their_log() {
    // Of a Postgres that was started before its sessions, and of a later one, whose processes have the same numbers.
    for (since_us, expect) in [(10, [Outcome::RolledBack, Outcome::Committed]), (11, [Outcome::Open, Outcome::Open])] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
        let (one, other) = (ran(1, "update a", 700), ran(1, "update b", 701));
        append(&mut writer, &[(0, session(7)), (0, one), (2, session(8)), (2, other)]);
        drop(writer);
        let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened again");
        writer.resume(&[key(7), SessionKey::default(), key(8), key(9)], since_us, 1_000_000).expect("resumed");
        append(&mut writer, &[(0, ended(End::RolledBack, 700, 1, 1, &[])), (2, ended(End::Committed, 701, 1, 1, &[]))]);
        let (entries, _) = read(folder.path(), &LogFilter::default(), Amount::All);
        assert_eq!(entries.iter().map(|entry| entry.outcome).collect::<Vec<_>>(), expect, "since {since_us}");
    }
}

fn key(pid: u32) -> SessionKey {
    SessionKey { pid, started_us: 10 }
}

/// Its last words may be read only when it has left its slot, or another session has it.
#[test]
fn what_a_session_said_last_is_its_own_for_who_goes_on_with_its_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
    append(&mut writer, &[(0, session(7)), (0, ran(1, "update a", 700))]);
    // It had not run anything yet.
    append(&mut writer, &[(1, session(8))]);
    let sessions = [0, 1, 2].map(|slot| writer.session_of(slot));
    assert_eq!(sessions, [key(7), key(8), SessionKey::default()]);
    drop(writer);
    let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened again");
    writer.resume(&sessions, 10, 1_000_000).expect("resumed");
    append(
        &mut writer,
        &[
            (0, ended(End::Committed, 700, 1, 1, &[])),
            (0, session(9)),
            (0, ran(2, "update c", 0)),
            (1, ran(3, "update b", 0)),
        ],
    );
    let (entries, _) = read(folder.path(), &LogFilter::default(), Amount::All);
    let found: Vec<_> = entries.iter().map(|entry| (&entry.statement[..], &entry.role[..], entry.pid)).collect();
    assert_eq!(found, [("update a", "app", 7), ("update c", "app", 9), ("update b", "app", 8)]);
    assert_eq!(entries[0].outcome, Outcome::Committed);
}

/// Two crashes, and each time a session in the same slot of which nothing is known.
#[test]
fn a_session_that_is_not_known_is_never_another_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let unknown = [SessionKey::default()];
    let words = [ran(1, "update a", 700), ended(End::Committed, 701, 1, 1, &[])];
    for (now_us, words) in [(1_000_000, &words[..1]), (2_000_000, &words[1..])] {
        let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
        writer.resume(&unknown, i64::MIN, now_us).expect("resumed");
        append(&mut writer, &[(0, words[0].clone())]);
    }
    let (entries, _) = read(folder.path(), &LogFilter::default(), Amount::All);
    let found: Vec<_> = entries.iter().map(|entry| (&entry.statement[..], entry.outcome)).collect();
    assert_eq!(found, [("update a", Outcome::Open)], "{entries:?}");

    // Whoever goes on with the same rings finds whose they were.
    let folder = tempfile::tempdir().expect("a folder");
    let mut sessions = unknown;
    for (now_us, word) in [(1_000_000, ran(1, "update b", 701)), (2_000_000, words[1].clone())] {
        let mut writer = LogWriter::open(folder.path(), header(1, 700), LOG_LEN_MIN).expect("opened");
        writer.resume(&sessions, i64::MIN, now_us).expect("resumed");
        append(&mut writer, &[(0, word)]);
        sessions = [writer.session_of(0)];
    }
    let (entries, _) = read(folder.path(), &LogFilter::default(), Amount::All);
    assert_eq!(entries.iter().map(|entry| entry.outcome).collect::<Vec<_>>(), [Outcome::Committed], "{entries:?}");
}
