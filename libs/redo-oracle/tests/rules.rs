//! The oracle's own rules: a block that was skipped must be listed, and what is masked is counted.

use std::collections::BTreeSet;

use ardent_pg_format::encode::{ImageParts, RecordBuilder};
use ardent_pg_format::{OwnedRecord, PgMajor, rmgr};
use ardent_pg_redo::HintBits;
use ardent_redo_oracle::{Expectations, Oracle};
use ardent_types::{BLCKSZ, ForkNumber, Lsn, RelTag};
use bytes::Bytes;

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
/// `XLR_CHECK_CONSISTENCY`
const CHECKED: u8 = 0x02;
const APPLY: u8 = 0x02;

fn record(start: u64, builder: &RecordBuilder) -> OwnedRecord {
    let start = Lsn::new(start);
    let raw = Bytes::from(builder.encode(Lsn::INVALID));
    let end = start.advance(raw.len() as u64).align_up_8();
    OwnedRecord::parse(raw, start, end, PgMajor::V15).expect("the record is well-formed")
}

fn empty_page() -> Vec<u8> {
    let mut page = vec![0; BLCKSZ];
    page[12..20].copy_from_slice(&[24, 0, 0, 0x20, 0, 0x20, 4, 0x20]);
    page
}

fn image(page: &[u8], apply: bool) -> ImageParts<'_> {
    ImageParts { info: if apply { APPLY } else { 0 }, hole_offset: 0, compressed_hole_length: None, stored: page }
}

#[test]
fn a_block_that_is_skipped_fails_the_run_unless_it_is_listed() {
    let page = empty_page();
    let first = RecordBuilder::new(rmgr::XLOG, rmgr::xlog::FPI).block(0, REL, 0, false, Some(image(&page, true)), &[]);
    let custom = RecordBuilder::new(130, 0).block(0, REL, 0, false, None, &[1]);
    let mut oracle = Oracle::new(PgMajor::V15, HintBits::NotLogged);
    oracle.check(&record(0x100_0028, &first).get()).expect("the record is whole");
    oracle.check(&record(0x101_0028, &custom).get()).expect("the record is whole");
    let mut report = oracle.finish();
    assert_eq!((report.total().unreadable, report.total().mismatches), (1, 0));
    let [name] = &report.unexpected_unreadable[..] else { panic!("{report}") };
    let list = format!("image XLOG/FPI\nunreadable {name}\n");
    assert!(!report.passed(), "{report}");
    report.expect(&Expectations::parse("image XLOG/FPI\nunreadable Heap/INSERT").expect("a list"));
    assert!(!report.passed(), "another one is listed: {report}");
    report.expect(&Expectations::parse(&list).expect("a list"));
    assert!(report.passed(), "{report}");
}

#[test]
fn the_lists_have_every_record_type_of_their_major_once() {
    for major in PgMajor::ALL {
        let list = Expectations::of_major(major.number()).expect("there is a list for each major");
        let listed = [&list.checked, &list.images, &list.seen].into_iter().flatten().chain(list.absent.keys());
        let listed: Vec<&String> = listed.collect();
        let all: BTreeSet<String> = (0..=rmgr::LOGICAL_MESSAGE)
            .flat_map(|rmid| (0..16u8).map(move |kind| (rmid, kind << 4)))
            .filter_map(|(rmid, info)| Some(format!("{}/{}", rmgr::name(rmid), rmgr::identify(rmid, info, major)?)))
            .collect();
        assert_eq!(listed.iter().map(|name| (*name).clone()).collect::<BTreeSet<_>>(), all, "Postgres {major}");
        assert_eq!(listed.len(), all.len(), "Postgres {major}: one is listed twice");
        assert!(list.unreadable.is_empty(), "Postgres {major} has redo for all");
    }
    for bad in ["absent XLOG/NOOP", "absent no type at all", "seen Heap INSERT", "Heap"] {
        assert!(Expectations::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn masked_bytes_are_counted_and_what_is_not_masked_is_compared() {
    // One tuple of 32 bytes, at the page's end.
    let mut after = empty_page();
    after[12..16].copy_from_slice(&[28, 0, 0xE0, 0x1F]);
    after[24..28].copy_from_slice(&(0x1FE0u32 | 1 << 15 | 32 << 17).to_le_bytes());
    let tuple = 8192 - 32;
    after[tuple..tuple + 4].copy_from_slice(&900u32.to_le_bytes());
    after[tuple + 16..tuple + 18].copy_from_slice(&1u16.to_le_bytes());
    after[tuple + 18..tuple + 23].copy_from_slice(&[1, 0, 2, 8, 24]);
    after[tuple + 24..].fill(7);
    let mut data = vec![1, 0, 2, 8, 24, 0];
    data.extend([7; 8]);
    let insert = |page: &[u8]| {
        let builder = RecordBuilder::new(rmgr::HEAP, 0x80 | CHECKED).xid(900).main_data([1, 0, 0]);
        record(0x100_0028, &builder.block(0, REL, 0, true, Some(image(page, false)), &data))
    };
    let run = |page: &[u8]| {
        let mut oracle = Oracle::new(PgMajor::V15, HintBits::NotLogged);
        oracle.check(&insert(page).get()).expect("the record is whole");
        oracle.finish()
    };
    let report = run(&after);
    assert!(report.passed(), "{report}");
    let total = report.total();
    // The unused space, hints, LSN and checksum, command id; not the tuple.
    let unused = 8192 - 32 - 28;
    assert!((unused..unused + 40).contains(&total.masked_bytes), "{report}");
    for (at, matters) in [(9, false), (100, false), (tuple + 8, false), (tuple + 24, true), (tuple, true), (24, true)] {
        let mut other = after.clone();
        other[at] ^= 1;
        assert_eq!(run(&other).passed(), !matters, "offset {at}");
    }
}
