//! Section 2 of the ingest checklist: images, and what a record's blocks have to do with each other.

use ardent_pg_format::encode::{ImageParts, RecordBuilder};
use ardent_pg_format::{OwnedRecord, PgMajor, rmgr};
use ardent_pg_redo::{HintBits, Value, reconstruct};
use ardent_types::{BLCKSZ, ForkNumber, Key, Lsn, RelTag};
use bytes::{Bytes, BytesMut};

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
/// `BKPIMAGE_HAS_HOLE | BKPIMAGE_APPLY` of 15.
const HOLE_AND_APPLY: u8 = 0x03;
const APPLY: u8 = 0x02;
const START: Lsn = Lsn::new(0x100_0028);

fn decode(record: &RecordBuilder) -> OwnedRecord {
    let raw = Bytes::from(record.encode(Lsn::INVALID));
    let end = START.advance(raw.len() as u64).align_up_8();
    OwnedRecord::parse(raw, START, end, PgMajor::V15).expect("the record is well-formed")
}

/// An empty heap page, with `mark` as its last byte.
fn page(mark: u8) -> Vec<u8> {
    let mut page = vec![0; BLCKSZ];
    page[12..20].copy_from_slice(&[24, 0, 0xE8, 0x1F, 0, 0x20, 4, 0x20]);
    page[8191] = mark;
    page
}

fn value(record: &OwnedRecord, id: u8) -> Value {
    let record = record.get();
    let block = record.block(id).expect("the block is one of the record's");
    Value::for_block(PgMajor::V15, &record, block, HintBits::NotLogged, &mut BytesMut::new()).expect("it can be stored")
}

/// `Heap/INSERT` of a tuple full of `mark` at an offset number.
fn insert(offnum: u16, blkno: u32, init: bool, mark: u8) -> RecordBuilder {
    let mut main = offnum.to_le_bytes().to_vec();
    main.push(0);
    let mut data = vec![1, 0, 2, 8, 24, 0];
    data.extend([mark; 20]);
    let record = RecordBuilder::new(rmgr::HEAP, if init { 0x80 } else { 0 }).xid(900).main_data(main);
    record.block(0, REL, blkno, init, None, &data)
}

#[test]
fn checklist_15_a_record_holds_up_to_32_images_each_for_its_block() {
    let mut record = RecordBuilder::new(rmgr::XLOG, rmgr::xlog::FPI);
    for id in 0..32 {
        let page = page(id + 1);
        let stored: Vec<u8> = page[..24].iter().chain(&page[8168..]).copied().collect();
        let image = ImageParts { info: HOLE_AND_APPLY, hole_offset: 24, compressed_hole_length: None, stored: &stored };
        record = record.block(id, REL, u32::from(id) * 7, false, Some(image), &[]);
    }
    let record = decode(&record);
    let blocks = record.get().blocks;
    assert_eq!(blocks.len(), 32);
    for id in 0..32 {
        let Value::Image(stored) = value(&record, id) else { panic!("block {id} is not an image") };
        assert_eq!((stored[8191], blocks[usize::from(id)].blkno), (id + 1, u32::from(id) * 7));
    }
}

#[test]
fn checklist_16_an_image_is_stamped_unless_its_page_is_new() {
    let stamp = |page: &[u8]| {
        let stored = ImageParts { info: APPLY, hole_offset: 0, compressed_hole_length: None, stored: page };
        let record = RecordBuilder::new(rmgr::XLOG, rmgr::xlog::FPI).block(0, REL, 3, false, Some(stored), &[]);
        let record = decode(&record);
        let Value::Image(page) = value(&record, 0) else { panic!("not an image") };
        (u32::from_le_bytes(page[4..8].try_into().unwrap()), record.get().end_lsn.get() as u32)
    };
    let (found, end) = stamp(&page(1));
    assert_eq!(found, end);
    assert_eq!(stamp(&[0; BLCKSZ]).0, 0, "a page of zeros stays one");
}

#[test]
fn checklist_17_an_image_or_an_initialisation_needs_no_earlier_history() {
    let key = Key::RelBlock(REL, 3);
    let image = page(1);
    let image = ImageParts { info: APPLY, hole_offset: 0, compressed_hole_length: None, stored: &image };
    let image = decode(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::FPI).block(0, REL, 3, false, Some(image), &[]));
    let made = decode(&insert(1, 3, true, 7));
    let unreadable = || Value::Unreadable(Bytes::from_static(b"an unknown record"));
    for base in [value(&image, 0), value(&made, 0)] {
        assert!(base.is_base());
        let alone = reconstruct(PgMajor::V15, &key, None, [(START.advance(100), base.clone())]).expect("it is a base");
        // What came before may even be unreadable.
        let history = [(START, unreadable()), (START.advance(100), base)];
        assert_eq!(reconstruct(PgMajor::V15, &key, None, history).expect("it is a base"), alone);
    }
    let later = value(&decode(&insert(1, 3, false, 7)), 0);
    assert!(!later.is_base());
    assert!(reconstruct(PgMajor::V15, &key, None, [(START, later)]).is_err(), "this one needs what came before");
}

#[test]
fn checklist_33_an_insert_of_frozen_tuples_marks_its_page_all_visible() {
    // `Heap2/MULTI_INSERT+INIT` of one tuple; the flags are `XLH_INSERT_LAST_IN_MULTI`, alone and with `XLH_INSERT_ALL_FROZEN_SET`.
    for (flags, expect) in [(0x02u8, 0), (0x22, 0x04)] {
        let mut data = vec![21, 0, 1, 0, 2, 8, 24, 0];
        data.extend([7; 20]);
        let record = RecordBuilder::new(rmgr::HEAP2, 0xD0).xid(900).main_data([flags, 0, 1, 0]);
        let record = decode(&record.block(0, REL, 3, true, None, &data));
        let lsn = record.get().end_lsn;
        let page = reconstruct(PgMajor::V15, &Key::RelBlock(REL, 3), None, [(lsn, value(&record, 0))])
            .expect("the record makes the page");
        assert_eq!(page[10] & 0x04, expect, "PD_ALL_VISIBLE");
        // 44 bytes, aligned to 8.
        assert_eq!((page[8187], page[8188]), (7, 0), "the tuple is there");
    }
}

#[test]
fn checklist_18_redo_of_one_block_ignores_the_others() {
    // `Heap/UPDATE` from block 9 to block 3: the new tuple is block 0's, the old one's end block 1's.
    let mut main = 900u32.to_le_bytes().to_vec();
    main.extend(1u16.to_le_bytes());
    main.extend([0, 0]);
    main.extend(0u32.to_le_bytes());
    main.extend(1u16.to_le_bytes());
    let mut data = vec![1, 0, 2, 8, 24, 0];
    data.extend([5; 20]);
    let record = RecordBuilder::new(rmgr::HEAP, 0x20).xid(900).main_data(main);
    let record = decode(&record.block(0, REL, 3, false, None, &data).block(1, REL, 9, false, None, &[]));
    let old = {
        let made = decode(&insert(1, 9, true, 7));
        reconstruct(PgMajor::V15, &Key::RelBlock(REL, 9), None, [(START, value(&made, 0))]).expect("it is a base")
    };
    let rebuild = |id: u8, blkno: u32, base: Bytes| {
        // Past the page's LSN, as the next record would be.
        let lsn = record.get().end_lsn.advance(1000);
        reconstruct(PgMajor::V15, &Key::RelBlock(REL, blkno), Some(base), [(lsn, value(&record, id))])
            .expect("each block can be redone alone")
    };
    let (new, ended) = (rebuild(0, 3, Bytes::from(page(0))), rebuild(1, 9, old.clone()));
    let tuple = |page: &[u8]| usize::from(u16::from_le_bytes([page[24], page[25]]) & 0x7FFF);
    assert_eq!(new[tuple(&new) + 30], 5, "the new tuple is there");
    let xmax = |page: &[u8]| {
        let at = tuple(page);
        u32::from_le_bytes(page[at + 4..at + 8].try_into().unwrap())
    };
    assert_eq!((xmax(&old), xmax(&ended), xmax(&new)), (0, 900, 0));
    assert_eq!(ended[12..16], old[12..16], "nothing of block 0 came to block 1");
}
