//! Sections 6 and 7 of the ingest checklist, with made-up records.

use ardent_api::page_service::BackupItem;
use ardent_pg_format::encode::RecordBuilder;
use ardent_pg_format::{CheckPoint, ControlFile, PgMajor, rmgr};
use ardent_pg_ingest::{BackupPoint, Batch, IngestError, base_backup};
use ardent_types::{BLCKSZ, Key, Lsn, PgTli, SlruKind};

use crate::support::timeline::{Timeline, checkpoint, control_file, words};

const XINFO_SUBXACTS: u32 = 1 << 1;
const XINFO_TWOPHASE: u32 = 1 << 4;
const XINFO_ORIGIN: u32 = 1 << 5;

/// Microseconds since 2000-01-01 in all ends of transactions here.
const TIME: i64 = 1_000_000;

/// Commit (0x00), abort (0x20) and their prepared kinds (0x30, 0x40).
fn end(info: u8, xid: u32, subxacts: &[u32], prepared: Option<u32>) -> RecordBuilder {
    let mut data = TIME.to_le_bytes().to_vec();
    data.extend(words(&[XINFO_SUBXACTS | if prepared.is_some() { XINFO_TWOPHASE } else { 0 }, subxacts.len() as u32]));
    data.extend(words(subxacts));
    data.extend(words(&prepared.into_iter().collect::<Vec<_>>()));
    RecordBuilder::new(rmgr::TRANSACTION, info | 0x80).xid(xid).main_data(data)
}

fn status(timeline: &Timeline, xid: u32) -> u8 {
    let page = timeline.slru(SlruKind::Xact, u64::from(xid / 32_768)).expect("the page exists");
    page[(xid % 32_768 / 4) as usize] >> (xid % 4 * 2) & 3
}

fn next_xid(timeline: &Timeline) -> u64 {
    timeline.checkpoint().next_xid
}

fn record(rmid: u8, info: u8, fields: &[u32]) -> RecordBuilder {
    RecordBuilder::new(rmid, info).main_data(words(fields))
}

#[test]
fn checklist_42_an_end_sets_its_own_status_and_its_subtransactions() {
    let mut timeline = Timeline::new();
    timeline.add(&record(rmgr::CLOG, 0, &[1]));
    timeline.add(&end(0x00, 32_700, &[32_767, 32_768, 32_800], None));
    for xid in [32_700, 32_767, 32_768, 32_800] {
        assert_eq!(status(&timeline, xid), 1, "{xid}");
    }
    timeline.add(&end(0x20, 32_900, &[32_901], None));
    assert_eq!((status(&timeline, 32_900), status(&timeline, 32_901), status(&timeline, 32_902)), (2, 2, 0));
    let time = timeline.get(Key::AuxFile(1)).expect("the time of the last end is kept");
    assert_eq!(i64::from_le_bytes(time[..].try_into().expect("8 bytes")), 946_684_800_000_000 + TIME);
}

#[test]
fn the_time_of_the_last_end_never_goes_back() {
    let mut timeline = Timeline::new();
    let time = |timeline: &Timeline| {
        let time = timeline.get(Key::AuxFile(1)).expect("the time of the last end is kept");
        i64::from_le_bytes(time[..].try_into().expect("8 bytes")) - 946_684_800_000_000
    };
    let commit = |time: i64| RecordBuilder::new(rmgr::TRANSACTION, 0).xid(1030).main_data(time.to_le_bytes());
    for (at, expect) in [(500, 500), (400, 500), (600, 600)] {
        timeline.add(&commit(at));
        assert_eq!(time(&timeline), expect);
        timeline.restart(Lsn::INVALID);
    }
    timeline.add(&commit(300));
    assert_eq!(time(&timeline), 600);
}

#[test]
fn checklist_44_every_id_seen_moves_the_next_one() {
    let check = |record: RecordBuilder, expect: u64| {
        let mut timeline = Timeline::new();
        timeline.add(&record);
        assert_eq!(next_xid(&timeline), expect);
    };
    let nothing = RecordBuilder::new(rmgr::XLOG, rmgr::xlog::NOOP);
    check(nothing.clone(), 1024);
    check(nothing.clone().xid(1023).toplevel_xid(5000), 5120);
    check(nothing.xid(5000), 5120);
    check(end(0x00, 1100, &[3000], None), 3072);
    check(end(0x20, 1100, &[1101, 3000], None), 3072);
    check(end(0x30, 0, &[3000], Some(4000)), 4096);
    // Of the subtransactions 2048 and 2049, which are past what the transaction's own id is rounded up to.
    check(prepare(2047), 3072);
    // ASSIGNMENT: top, count, subtransactions; RUNNING_XACTS: counts, overflow, next, oldest, latest.
    check(record(rmgr::TRANSACTION, 0x50, &[1100, 2, 1101, 9000]), 9216);
    check(record(rmgr::STANDBY, 0x10, &[0, 0, 0, 6000, 1000, 5999]), 6144);
    // CREATE_ID: multi, offset, members of id and status.
    check(record(rmgr::MULTIXACT, 0x20, &[1, 1, 2, 700, 0, 8000, 4]), 8192);
    let mut online = checkpoint();
    online.next_xid = 7777;
    check(RecordBuilder::new(rmgr::XLOG, 0x10).main_data(online.encode(PgMajor::V15)), 7777);
}

#[test]
fn checklist_44_the_next_id_wraps_with_its_epoch() {
    let start = CheckPoint { next_xid: 4 << 32 | 0xFFFF_FC00, ..checkpoint() };
    let mut timeline = Timeline::with(start, control_file(), Lsn::INVALID);
    timeline.add(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::NOOP).xid(0xFFFF_FFFF));
    assert_eq!(next_xid(&timeline), 5 << 32 | 3);
    timeline.add(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::NOOP).xid(3));
    assert_eq!(next_xid(&timeline), 5 << 32 | 1024);
    timeline.add(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::NOOP).xid(0xFFFF_FFF0));
    assert_eq!(next_xid(&timeline), 5 << 32 | 1024, "an older id, from before the wrap");
}

#[test]
fn checklist_45_truncation_drops_segments_and_moves_the_oldest_id() {
    let mut timeline = Timeline::new();
    for page in [0, 31, 32, 63, 64, 65] {
        timeline.add(&record(rmgr::CLOG, 0, &[page]));
    }
    // The cutoff is in the third segment: two go.
    timeline.add(&record(rmgr::CLOG, 0x10, &[65, 65 * 32_768, 7]));
    let live: Vec<u64> = (0..66).filter(|page| timeline.slru(SlruKind::Xact, *page).is_some()).collect();
    assert_eq!(live, [64, 65]);
    assert_eq!((timeline.checkpoint().oldest_xid, timeline.checkpoint().oldest_xid_db), (65 * 32_768, 7));
}

#[test]
fn checklist_46_48_settings_and_counters_follow_their_records() {
    let mut timeline = Timeline::new();
    timeline.add(&record(rmgr::XLOG, rmgr::xlog::NEXTOID, &[16_384]));
    assert_eq!(timeline.checkpoint().next_oid, 16_384, "lower than before: it wrapped");
    let mut online = checkpoint();
    online.next_oid = 99;
    online.redo = Lsn::new(0x500);
    timeline.add(&RecordBuilder::new(rmgr::XLOG, 0x10).main_data(online.encode(PgMajor::V15)));
    assert_eq!((timeline.checkpoint().next_oid, timeline.checkpoint().redo), (16_384, Lsn::new(0x500)));
    timeline.add(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::FPW_CHANGE).main_data([0]));
    assert!(!timeline.checkpoint().full_page_writes);
    let mut data = 0i64.to_le_bytes().to_vec();
    data.extend(words(&[3, 2]));
    timeline.add(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::END_OF_RECOVERY).main_data(data));
    assert_eq!((timeline.checkpoint().tli, timeline.checkpoint().previous_tli), (PgTli::new(3), PgTli::new(2)));
    let mut data = words(&[50, 4, 5, 6, 70, 2]);
    data.extend([1, 0, 0, 0]);
    timeline.add(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::PARAMETER_CHANGE).main_data(data));
    let file = ControlFile::decode(&timeline.get(Key::ControlFile).expect("there is one")).expect("it decodes");
    assert_eq!((file.max_connections, file.max_prepared_xacts, file.wal_level), (50, 6, 2));
    assert!(file.wal_log_hints && !file.track_commit_timestamp);
}

#[test]
fn checklist_47_a_shutdown_checkpoint_is_exact_and_only_prepared_transactions_run() {
    let mut timeline = Timeline::new();
    timeline.add(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::NOOP).xid(1500));
    assert_eq!(next_xid(&timeline), 2048);
    let shutdown = CheckPoint { next_xid: 1501, ..checkpoint() };
    let shutdown = RecordBuilder::new(rmgr::XLOG, 0).main_data(shutdown.encode(PgMajor::V15));
    timeline.add(&shutdown);
    assert_eq!((next_xid(&timeline), timeline.checkpoint().oldest_active_xid), (1501, 1501));
    timeline.add(&prepare(1400));
    timeline.restart(Lsn::INVALID);
    timeline.add(&shutdown);
    assert_eq!(timeline.checkpoint().oldest_active_xid, 1400);
}

#[test]
fn wal_that_leaves_changes_out_is_refused() {
    let mut timeline = Timeline::new();
    let mut data = words(&[50, 4, 5, 6, 70, 0]);
    data.extend([0; 4]);
    let record = RecordBuilder::new(rmgr::XLOG, rmgr::xlog::PARAMETER_CHANGE).main_data(data);
    assert!(matches!(timeline.try_add(&record), Err(IngestError::MinimalWal { .. })));
}

#[test]
fn checklist_07_a_record_again_is_refused() {
    let mut timeline = Timeline::new();
    let record = timeline.next_record(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::NOOP));
    let mut batch = Batch::default();
    assert!(timeline.ingest.ingest(&record.get(), &timeline.store.newest(), &mut batch).is_ok());
    let place = (record.get().start_lsn, record.get().end_lsn);
    assert_eq!(batch.last_record.map(|last| (last.start, last.end)), Some(place));
    let again = timeline.ingest.ingest(&record.get(), &timeline.store.newest(), &mut batch);
    assert!(matches!(again, Err(IngestError::OutOfOrder { .. })));
}

/// A member's status and transaction.
fn member(timeline: &Timeline, offset: u32) -> (u8, u32) {
    let page = timeline.slru(SlruKind::MultiXactMembers, u64::from(offset / 1636)).expect("the page exists");
    let index = offset % 1636;
    let group = (index / 4 * 20) as usize;
    let at = group + 4 + (index % 4) as usize * 4;
    (page[group + (index % 4) as usize], u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes")))
}

fn first_offset(timeline: &Timeline, multi: u32) -> u32 {
    let page = timeline.slru(SlruKind::MultiXactOffsets, u64::from(multi / 2048)).expect("the page exists");
    let at = (multi % 2048) as usize * 4;
    u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes"))
}

#[test]
fn checklist_49_multixacts_span_pages_and_wrap() {
    let start = CheckPoint { next_multi: 2047, next_multi_offset: 1634, ..checkpoint() };
    let mut timeline = Timeline::with(start, control_file(), Lsn::INVALID);
    timeline.add(&record(rmgr::MULTIXACT, 0x00, &[0]));
    timeline.add(&record(rmgr::MULTIXACT, 0x00, &[1]));
    timeline.add(&record(rmgr::MULTIXACT, 0x10, &[0]));
    timeline.add(&record(rmgr::MULTIXACT, 0x10, &[1]));
    timeline.add(&record(rmgr::MULTIXACT, 0x20, &[2047, 1634, 4, 900, 0, 901, 1, 902, 2, 903, 5]));
    assert_eq!((first_offset(&timeline, 2047), first_offset(&timeline, 2048)), (1634, 1638));
    let members: Vec<_> = (1634..1638).map(|offset| member(&timeline, offset)).collect();
    assert_eq!(members, [(0, 900), (1, 901), (2, 902), (5, 903)]);
    assert_eq!((timeline.checkpoint().next_multi, timeline.checkpoint().next_multi_offset), (2048, 1638));

    let start = CheckPoint {
        next_multi: u32::MAX,
        next_multi_offset: u32::MAX - 1,
        oldest_multi: u32::MAX - 5,
        ..checkpoint()
    };
    let mut timeline = Timeline::with(start, control_file(), Lsn::INVALID);
    timeline.add(&record(rmgr::MULTIXACT, 0x20, &[u32::MAX, u32::MAX - 1, 3, 900, 0, 901, 1, 902, 2]));
    assert_eq!((first_offset(&timeline, u32::MAX), first_offset(&timeline, 1)), (u32::MAX - 1, 1));
    assert_eq!(
        (member(&timeline, u32::MAX - 1), member(&timeline, u32::MAX), member(&timeline, 0)),
        ((0, 900), (1, 901), (2, 902))
    );
    assert_eq!((timeline.checkpoint().next_multi, timeline.checkpoint().next_multi_offset), (0, 1));
}

#[test]
fn checklist_49_a_page_that_older_minors_zero_late_keeps_the_offset_it_has() {
    let start = CheckPoint { next_multi: 2047, next_multi_offset: 10, ..checkpoint() };
    let mut timeline = Timeline::with(start, control_file(), Lsn::INVALID);
    timeline.add(&record(rmgr::MULTIXACT, 0x00, &[0]));
    timeline.add(&record(rmgr::MULTIXACT, 0x10, &[0]));
    timeline.add(&record(rmgr::MULTIXACT, 0x20, &[2047, 10, 2, 900, 0, 901, 1]));
    assert_eq!(first_offset(&timeline, 2048), 12);
    // Recent minors log the new page before the multixact that needs its first entry; older ones when it is given out itself.
    timeline.add(&record(rmgr::MULTIXACT, 0x00, &[1]));
    assert_eq!((first_offset(&timeline, 2047), first_offset(&timeline, 2048)), (10, 12), "a branch can begin here");
    assert_eq!(first_offset(&timeline, 2049), 0);
    // A page that nothing was put on is zeros, whatever it held a circle ago.
    timeline.add(&record(rmgr::MULTIXACT, 0x20, &[4096, 500, 1, 900, 0]));
    timeline.add(&record(rmgr::MULTIXACT, 0x00, &[2]));
    assert_eq!((first_offset(&timeline, 4096), first_offset(&timeline, 4097)), (0, 0));
}

#[test]
fn checklist_49_multixact_truncation_drops_whole_segments_around_the_circle() {
    let last_members_segment = 0x14078;
    let mut timeline = Timeline::new();
    for segment in [0, 1, 2] {
        timeline.add(&record(rmgr::MULTIXACT, 0x00, &[segment * 32]));
        timeline.add(&record(rmgr::MULTIXACT, 0x10, &[segment * 32]));
    }
    timeline.add(&record(rmgr::MULTIXACT, 0x10, &[last_members_segment * 32]));
    // Database, offsets from and to, members from and to: from the circle's last segment into the second.
    timeline.add(&record(rmgr::MULTIXACT, 0x30, &[5, 1, 65_536 * 2 + 1, u32::MAX - 9, 32 * 1636 + 1]));
    let offsets: Vec<u64> =
        [0, 32, 64].into_iter().filter(|page| timeline.slru(SlruKind::MultiXactOffsets, *page).is_some()).collect();
    let members = [0, 32, 64, u64::from(last_members_segment) * 32];
    let members: Vec<u64> =
        members.into_iter().filter(|page| timeline.slru(SlruKind::MultiXactMembers, *page).is_some()).collect();
    assert_eq!((offsets, members), (vec![64], vec![32, 64]));
    assert_eq!((timeline.checkpoint().oldest_multi, timeline.checkpoint().oldest_multi_db), (131_073, 5));
}

#[test]
fn checklist_50_pages_past_the_last_are_refused() {
    let mut timeline = Timeline::new();
    let error = timeline.try_add(&record(rmgr::CLOG, 0, &[131_072])).expect_err("there is no such page");
    assert!(matches!(error, IngestError::Malformed { rmid: rmgr::CLOG, .. }), "{error}");
}

#[test]
fn checklist_50_new_pages_and_gaps_between_pages_are_zeros() {
    let mut timeline = Timeline::new();
    for page in [40, 43] {
        timeline.add(&record(rmgr::CLOG, 0, &[page]));
        timeline.add(&end(0x00, page * 32_768 + 4, &[], None));
    }
    let files = backup_files(&timeline);
    let (_, content) = files.iter().find(|(path, _)| path == "pg_xact/0001").expect("the segment is sent");
    // It begins with page 32. Of its pages only two were ever made: each is in its place, the others are zeros.
    let marked: Vec<usize> = (0..content.len()).filter(|&at| content[at] != 0).collect();
    assert_eq!((content.len(), marked), (12 * BLCKSZ, vec![8 * BLCKSZ + 1, 11 * BLCKSZ + 1]));
    // The circle comes around: what the page held is not to be seen again.
    timeline.add(&record(rmgr::CLOG, 0, &[40]));
    let page = timeline.slru(SlruKind::Xact, 40).expect("the page exists");
    assert!(page.len() == BLCKSZ && page.iter().all(|&byte| byte == 0));
}

#[test]
fn checklist_50_page_numbers_have_64_bits_since_17() {
    let mut timeline = Timeline::of_major(PgMajor::V17);
    for page in [0, 31, 32, 65] {
        timeline.add(&record(rmgr::CLOG, 0, &[page, 0]));
    }
    // What follows a page number lies behind its upper half.
    timeline.add(&record(rmgr::CLOG, 0x10, &[65, 0, 65 * 32_768, 7]));
    let live: Vec<u64> = (0..66).filter(|page| timeline.slru(SlruKind::Xact, *page).is_some()).collect();
    assert_eq!(live, [65]);
    assert_eq!((timeline.checkpoint().oldest_xid, timeline.checkpoint().oldest_xid_db), (65 * 32_768, 7));

    let start = CheckPoint { oldest_commit_ts_xid: 1000, newest_commit_ts_xid: 1000, ..checkpoint() };
    let control = ControlFile { major: PgMajor::V17, track_commit_timestamp: true, ..control_file() };
    let mut timeline = Timeline::with(start, control, Lsn::INVALID);
    timeline.add(&record(rmgr::COMMIT_TS, 0x10, &[3, 0, 2457]));
    assert_eq!(timeline.checkpoint().oldest_commit_ts_xid, 2457);

    // A number that only its upper half makes impossible, and one of which the upper half is missing.
    let kinds = [(rmgr::CLOG, 0x00), (rmgr::COMMIT_TS, 0x00), (rmgr::MULTIXACT, 0x00), (rmgr::MULTIXACT, 0x10)];
    for (rmid, info) in kinds {
        for fields in [&[3, 1][..], &[3]] {
            let mut timeline = Timeline::of_major(PgMajor::V17);
            let error = timeline.try_add(&record(rmid, info, fields)).expect_err("there is no such page");
            assert!(matches!(error, IngestError::Malformed { rmid: of, .. } if of == rmid), "{error}");
        }
    }
}

fn track_commit_timestamp(on: bool) -> RecordBuilder {
    let mut data = words(&[100, 8, 10, 0, 64, 1]);
    data.extend([0, u8::from(on), 0, 0]);
    RecordBuilder::new(rmgr::XLOG, rmgr::xlog::PARAMETER_CHANGE).main_data(data)
}

#[test]
fn checklist_51_commit_timestamps_are_kept_while_they_are_tracked() {
    let mut timeline = Timeline::new();
    timeline.add(&end(0x00, 1024, &[], None));
    assert_eq!(timeline.slru(SlruKind::CommitTs, 1), None, "not tracked");
    timeline.add(&track_commit_timestamp(true));
    let next = next_xid(&timeline) as u32;
    assert_eq!((timeline.checkpoint().oldest_commit_ts_xid, timeline.checkpoint().newest_commit_ts_xid), (next, next));
    timeline.add(&record(rmgr::COMMIT_TS, 0x00, &[3]));
    timeline.add(&end(0x00, 2450, &[2456, 2457], None));
    let entry = |xid: u32| {
        let page = timeline.slru(SlruKind::CommitTs, u64::from(xid / 819)).expect("the page exists");
        let at = (xid % 819) as usize * 10;
        i64::from_le_bytes(page[at..at + 8].try_into().expect("8 bytes"))
    };
    assert_eq!((entry(2450), entry(2456), entry(2457), entry(2458)), (TIME, TIME, TIME, 0));
    assert_eq!(timeline.checkpoint().newest_commit_ts_xid, 2457);
    timeline.add(&record(rmgr::COMMIT_TS, 0x10, &[3, 2457]));
    assert_eq!(timeline.checkpoint().oldest_commit_ts_xid, 2457);
    timeline.add(&track_commit_timestamp(false));
    assert_eq!((timeline.slru(SlruKind::CommitTs, 2), timeline.slru(SlruKind::CommitTs, 3)), (None, None));
    assert_eq!((timeline.checkpoint().oldest_commit_ts_xid, timeline.checkpoint().newest_commit_ts_xid), (0, 0));
}

/// `XLOG_XACT_PREPARE` with two subtransactions.
fn prepare(xid: u32) -> RecordBuilder {
    let mut data = words(&[0x57F9_4534, 0, xid, 5, 0, 0, 10, 2, 0, 0, 0, 0, 0]);
    data.extend([0, 0, 4, 0]);
    data.extend([0; 16]);
    data.extend(b"gid\0\0\0\0\0");
    data.extend(words(&[xid + 1, xid + 2]));
    RecordBuilder::new(rmgr::TRANSACTION, 0x10).xid(xid).main_data(data)
}

#[test]
fn checklist_52_53_prepared_transactions_have_a_file_until_they_end() {
    for info in [0x30, 0x40] {
        let mut timeline = Timeline::new();
        timeline.add(&prepare(3000));
        assert_eq!(next_xid(&timeline), 3072);
        let file = timeline.get(Key::TwoPhase { xid: 3000 }).expect("the file exists");
        let (body, crc) = file.split_at(file.len() - 4);
        assert_eq!(crc, crc32c::crc32c(body).to_le_bytes());
        let paths = backup_files(&timeline);
        assert!(paths.iter().any(|(path, content)| path == "pg_twophase/00000BB8" && *content == file));
        timeline.add(&end(info, 0, &[3001, 3002], Some(3000)));
        assert_eq!(timeline.get(Key::TwoPhase { xid: 3000 }), None);
        let expect = if info == 0x30 { 1 } else { 2 };
        assert_eq!((status(&timeline, 3000), status(&timeline, 3002)), (expect, expect));
        assert!(!backup_files(&timeline).iter().any(|(path, _)| path.starts_with("pg_twophase")));
    }
}

#[test]
fn checklist_54_origins_come_from_commits_and_their_own_records() {
    let mut timeline = Timeline::new();
    let mut data = TIME.to_le_bytes().to_vec();
    data.extend(words(&[XINFO_ORIGIN]));
    data.extend(0xABCDu64.to_le_bytes());
    data.extend(77i64.to_le_bytes());
    timeline.add(&RecordBuilder::new(rmgr::TRANSACTION, 0x80).xid(1030).origin(4).main_data(data));
    let set = |lsn: u64, id: u16, force: u8| {
        let mut data = lsn.to_le_bytes().to_vec();
        data.extend(id.to_le_bytes());
        data.extend([force, 0, 0, 0, 0, 0]);
        RecordBuilder::new(rmgr::REPLICATION_ORIGIN, 0).main_data(data)
    };
    timeline.add(&set(9, 5, 0));
    timeline.add(&set(8, 5, 0));
    timeline.restart(Lsn::INVALID);
    timeline.add(&set(0x1000, 4, 0));
    let file = timeline.get(Key::AuxFile(0)).expect("there are origins");
    let entry = |file: &[u8], at: usize| {
        let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("8 bytes"));
        (number(4 + at * 16), number(12 + at * 16))
    };
    assert_eq!((entry(&file, 0), entry(&file, 1), file.len()), ((4, 0xABCD), (5, 9), 40));
    timeline.add(&set(7, 4, 1));
    let drop = RecordBuilder::new(rmgr::REPLICATION_ORIGIN, 0x10).main_data(5u16.to_le_bytes());
    timeline.add(&drop);
    let file = timeline.get(Key::AuxFile(0)).expect("there is one origin");
    assert_eq!((entry(&file, 0), file.len()), ((4, 7), 24), "forced back");
    assert!(
        backup_files(&timeline)
            .iter()
            .any(|(path, content)| path == "pg_logical/replorigin_checkpoint" && *content == file)
    );
}

/// The files of a base backup of the newest state.
fn backup_files(timeline: &Timeline) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let point = BackupPoint { lsn: Lsn::MAX, prev_lsn: Lsn::INVALID };
    base_backup(PgMajor::V15, point, &timeline.store.newest(), |item| {
        if let BackupItem::File { path, zstd } = item {
            files.push((path, zstd::stream::decode_all(&zstd[..]).expect("it decompresses")));
        }
        Ok::<(), std::io::Error>(())
    })
    .expect("a base backup can be made");
    files
}

#[test]
fn base_backups_hold_the_live_segments_and_the_current_pages() {
    let length = |files: &[(String, Vec<u8>)], path: &str| {
        files.iter().find(|(name, _)| name == path).map(|(_, content)| content.len() / BLCKSZ)
    };
    let mut timeline = Timeline::new();
    for page in [40, 41] {
        timeline.add(&record(rmgr::CLOG, 0, &[page]));
    }
    timeline.add(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::NOOP).xid(41 * 32_768 + 5));
    let files = backup_files(&timeline);
    assert_eq!(length(&files, "pg_xact/0001"), Some(10), "pages before the first that exists are zeros");
    assert_eq!((length(&files, "pg_xact/0000"), length(&files, "pg_xact/0002")), (None, None));
    assert_eq!(
        length(&files, "pg_multixact/offsets/0000"),
        Some(1),
        "the current page is there even if nothing wrote it"
    );
    assert!(
        !files.iter().any(|(path, _)| path.starts_with("pg_commit_ts") || path.starts_with("pg_multixact/members"))
    );
    // The next id would be its page's first: that page is made when the id is given out.
    let start = CheckPoint { next_xid: 32_768 * 32, oldest_xid: 32_768 * 32 - 9, ..checkpoint() };
    let mut timeline = Timeline::with(start, control_file(), Lsn::INVALID);
    timeline.add(&record(rmgr::CLOG, 0, &[31]));
    assert_eq!(length(&backup_files(&timeline), "pg_xact/0000"), Some(32));
    assert_eq!(length(&backup_files(&timeline), "pg_xact/0001"), None);
}

/// Numbers that look random, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn any_bytes_in_any_record_end_in_a_value_or_an_error() {
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let (mut done, mut refused) = (0, 0);
    for round in 0..30_000 {
        // Most fields small, so that counts and numbers are sometimes plausible.
        let len = numbers.next() % 80;
        let data: Vec<u8> =
            (0..len).map(|_| if numbers.next().is_multiple_of(3) { numbers.next() as u8 } else { 0 }).collect();
        let (rmid, info) = ((numbers.next() % 23) as u8, numbers.next() as u8);
        let mut timeline = Timeline::new();
        let record = timeline.next_record(&RecordBuilder::new(rmid, info & 0xF0).xid(round).main_data(data));
        match timeline.ingest.ingest(&record.get(), &timeline.store.newest(), &mut Batch::default()) {
            Ok(_) => done += 1,
            Err(IngestError::Malformed { .. } | IngestError::MinimalWal { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(done > 1000 && refused > 1000, "{done} done, {refused} refused");
}
