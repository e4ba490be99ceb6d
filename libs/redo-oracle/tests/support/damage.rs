//! Real records and pages with bytes changed at random: redo must refuse or make some page, never panic, never take long.
//!
//! `ARDENT_SEED` says where the dice begin, `ARDENT_SEEDS` how often each record is spoilt (default: once).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ardent_pg_format::{DecodedBlock, DecodedRecord, PgMajor, restore_image, rmgr};
use ardent_pg_redo::{HintBits, RecordView, Value, reconstruct, redo_block, vm_changes};
use ardent_redo_oracle::Expectations;
use ardent_types::Key;
use bytes::{Bytes, BytesMut};

/// For redo of one record on one page, on a busy machine. It takes microseconds.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Spoils records, and remembers which types it spoilt.
pub struct Damage {
    dice: u64,
    seed: u64,
    rounds: u64,
    reached: BTreeMap<String, u64>,
}

impl Damage {
    pub fn new() -> Damage {
        let number = |variable: &str, default: u64| {
            std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
        };
        let seed = number("ARDENT_SEED", 0x9E37_79B9_7F4A_7C15).max(1);
        Damage { dice: seed, seed, rounds: number("ARDENT_SEEDS", 1).clamp(1, 100), reached: BTreeMap::new() }
    }

    /// Spoils each of the record's blocks, and what storage would keep of it.
    pub fn redo_damaged(&mut self, record: &DecodedRecord, major: PgMajor) {
        let frequent = record.header.rmid == rmgr::HEAP && record.header.info & 0x70 == 0;
        if frequent && self.next(10) > 0 {
            return;
        }
        let kind = rmgr::identify(record.header.rmid, record.header.info, major).unwrap_or("unknown");
        let name = format!("{}/{kind}", rmgr::name(record.header.rmid));
        for block in record.blocks.iter().filter(|block| block.image.is_some()) {
            for _ in 0..self.rounds {
                let begun = Instant::now();
                self.block(record, block, major);
                let took = begun.elapsed();
                assert!(took < TIME_MAX, "ARDENT_SEED={}: {name} took {took:?}", self.seed);
                *self.reached.entry(name.clone()).or_default() += 1;
            }
        }
    }

    /// Every record type that touches blocks was spoilt.
    pub fn assert_reached(&self, list: &Expectations) {
        let all = list.checked.iter().chain(&list.images);
        let missed: Vec<&String> = all.filter(|name| !self.reached.contains_key(*name)).collect();
        assert!(missed.is_empty(), "never spoilt: {missed:?}");
    }

    fn block(&mut self, record: &DecodedRecord, block: &DecodedBlock, major: PgMajor) {
        let mut page = restore_image(record, block).expect("the server's image is whole");
        self.spoil(&mut page[10..24]);
        self.spoil(&mut page[24..]);
        // Old enough for redo not to be skipped.
        page[..8].fill(0);
        let (mut main, mut data) = (record.main_data().to_vec(), record.block_data(block).to_vec());
        self.spoil(&mut main);
        self.spoil(&mut data);
        data.truncate(data.len() - self.next(3).min(data.len()));
        let mut damaged = RecordView::of_record(record, HintBits::Logged);
        damaged.main_data = &main;
        if self.next(16) == 0 {
            damaged.info ^= (self.next(16) as u8) << 4;
        }
        for other in damaged.blocks.iter_mut() {
            other.has_applied_image = false;
            if other.id == block.id {
                other.data = &data;
            }
        }
        let before = Bytes::copy_from_slice(&page[..]);
        // Errors are what is wanted; a panic fails the test.
        let _ = redo_block(major, &damaged, block.id, &mut page);
        let _ = vm_changes(major, &damaged);
        if let Ok(value) = Value::for_block(major, record, block, HintBits::Logged, &mut BytesMut::new()) {
            let mut stored = value.encode().to_vec();
            self.spoil(&mut stored);
            if let Ok(value) = Value::decode(Bytes::from(stored)) {
                let _ =
                    reconstruct(major, &Key::RelBlock(block.rel, block.blkno), Some(before), [(record.end_lsn, value)]);
            }
        }
    }

    fn next(&mut self, below: usize) -> usize {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 11) as usize % below.max(1)
    }

    fn spoil(&mut self, bytes: &mut [u8]) {
        for _ in 0..self.next(4) {
            let at = self.next(bytes.len());
            let new = if self.next(2) == 0 { self.next(256) as u8 } else { 1 << self.next(8) };
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= new;
            }
        }
    }
}
