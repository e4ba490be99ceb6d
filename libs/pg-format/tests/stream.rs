//! Streams that no healthy server writes: damage, gaps, records given up.

use bytes::Bytes;
use proptest::prelude::*;

use ardent_pg_format::encode::{RecordBuilder, WalStream, WalWriter};
use ardent_pg_format::{PgMajor, RecordBoundaryTracker, WalDecoder, WalError, WalProblem};
use ardent_types::{Lsn, PgTli, SystemId, WalSegmentSize};

const START: Lsn = Lsn::new(0x100_0000 - 16_000);
const PREV: Lsn = Lsn::new(0x80_0000);

fn writer() -> WalWriter {
    let segment_size = WalSegmentSize::new(1 << 20).unwrap();
    let stream = WalStream { major: PgMajor::V15, segment_size, tli: PgTli::new(1), system_id: SystemId::new(7) };
    WalWriter::new(stream, START, PREV)
}

fn message(length: usize) -> RecordBuilder {
    RecordBuilder::new(21, 0).main_data(vec![9; length])
}

fn decode(bytes: &[u8]) -> (Vec<(Lsn, Lsn)>, Option<WalError>) {
    let mut decoder =
        WalDecoder::new(START, PgMajor::V15, WalSegmentSize::new(1 << 20).unwrap()).with_previous_record(PREV);
    decoder.feed_slice(bytes);
    let mut spans = Vec::new();
    loop {
        match decoder.next() {
            Ok(Some(record)) => spans.push((record.start_lsn, record.end_lsn)),
            Ok(None) => return (spans, None),
            Err(error) => {
                assert_eq!(decoder.next().unwrap_err(), error, "an error stays");
                return (spans, Some(error));
            }
        }
    }
}

fn sample() -> (Vec<u8>, Vec<(Lsn, Lsn)>) {
    let mut writer = writer();
    let spans = [100, 9000, 1, 30_000, 50, 2500].map(|length| writer.append(&message(length)));
    (writer.bytes().to_vec(), spans.map(|span| (span.start, span.end)).to_vec())
}

#[test]
fn checklist_01_a_record_that_ends_with_its_page_ends_at_the_boundary() {
    let mut writer = writer();
    let first = writer.append(&message(100));
    // A header of 24 bytes, 2 or 5 for the length of the main data.
    let room = 0x2000 - (first.end.get() % 0x2000) as usize;
    let to_the_end = writer.append(&message(room - 24 - 5));
    let after = writer.append(&message(10));
    assert_eq!(to_the_end.end.get() % 0x2000, 0, "not past the next page's header");
    assert_eq!(after.start, to_the_end.end.advance(24), "where the next record starts is another matter");
    assert_eq!(first.end.get() % 8, 0);
    let spans = [first, to_the_end, after].map(|span| (span.start, span.end));
    assert_eq!(decode(writer.bytes()), (spans.to_vec(), None));
}

#[test]
fn checklist_02_records_cross_pages_and_segments() {
    let (bytes, spans) = sample();
    assert_eq!(decode(&bytes), (spans, None));
}

#[test]
fn checklist_04_a_switch_ends_the_segment() {
    let mut writer = writer();
    let switch = writer.switch_segment();
    let after = writer.append(&message(10));
    assert_eq!(switch.end.get() % (1 << 20), 0);
    assert_eq!(decode(writer.bytes()).0, [(switch.start, switch.end), (after.start, after.end)]);
}

#[test]
fn checklist_06_a_record_given_up_is_dropped() {
    let mut writer = writer();
    let first = writer.append(&message(10));
    let overwrite = writer.abort_and_overwrite(&message(20_000));
    let after = writer.append(&message(10));
    let spans = [first, overwrite, after].map(|span| (span.start, span.end));
    assert_eq!(decode(writer.bytes()), (spans.to_vec(), None));
}

#[test]
fn checklist_07_a_gap_is_an_error() {
    let mut decoder = WalDecoder::new(START, PgMajor::V15, WalSegmentSize::DEFAULT);
    let error = decoder.feed_at(START.advance(8), Bytes::from_static(b"x")).unwrap_err();
    assert!(matches!(error.problem, WalProblem::Gap { .. }) && !error.may_be_end_of_wal());
}

#[test]
fn checklist_08_10_damage_is_named() {
    let (mut bytes, spans) = sample();
    bytes[60] ^= 1;
    let (read, error) = decode(&bytes);
    assert!(read.is_empty() && matches!(error.unwrap().problem, WalProblem::Crc { .. }));
    let (mut bytes, _) = sample();
    let second = (spans[1].0.get() - START.get()) as usize;
    bytes[second + 8] ^= 1;
    assert!(matches!(decode(&bytes).1.unwrap().problem, WalProblem::PrevLink { .. }));
    bytes[second..second + 4].fill(0);
    let error = decode(&bytes).1.unwrap();
    assert!(error.problem == WalProblem::ZeroLength && error.may_be_end_of_wal());
}

/// Who cuts a log at its last whole record cuts a record without its padding, and must not have told of it before.
#[test]
fn a_record_is_whole_when_its_padding_has_come() {
    let (bytes, spans) = sample();
    let mut tracker = RecordBoundaryTracker::new(START, PgMajor::V15, WalSegmentSize::new(1 << 20).unwrap());
    tracker = tracker.with_previous_record(PREV);
    let (mut last, mut padding) = ((PREV, START), 0);
    let mut expected = spans.iter().peekable();
    for byte in &bytes {
        let given = tracker.feed_slice(&[*byte]).unwrap().map(|span| (span.start, span.end));
        let whole = expected.next_if(|(_, end)| *end == tracker.fed_to());
        assert_eq!(given, whole.copied(), "at {}", tracker.fed_to());
        last = whole.copied().unwrap_or(last);
        assert_eq!((tracker.start_of_last_record(), tracker.end_of_last_record()), (Some(last.0), last.1));
    }
    assert_eq!(expected.next(), None);
    for cut in 1..8 {
        let mut tracker = RecordBoundaryTracker::new(START, PgMajor::V15, WalSegmentSize::new(1 << 20).unwrap());
        let given = tracker.feed_slice(&bytes[..bytes.len() - cut]).unwrap().expect("records");
        assert_eq!((given.start, given.end), spans[spans.len() - 2]);
        padding += usize::from(decode(&bytes[..bytes.len() - cut]).0 == spans);
    }
    assert_eq!(padding, 7, "the last record has that much padding");
}

proptest! {
    #[test]
    fn damage_and_truncation_never_panic_or_invent_records(at in 0usize..50_000, bit in 0u8..8, cut in 0usize..60_000) {
        let (mut bytes, spans) = sample();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        bytes.truncate(cut);
        let (read, _) = decode(&bytes);
        prop_assert!(spans.starts_with(&read));
    }
}
