//! Redo of one record on a page in memory, over the mix of record types of a pgbench run, and a page built from an image and
//! 100 records: at most 25 us are the target. `scripts/bench.sh` runs it, and prints what it measures.

use ardent_pg_format::{PgMajor, rmgr};
use ardent_pg_redo::{BlockView, HintBits, RecordView, redo_block};
use ardent_types::{BLCKSZ, ForkNumber, Lsn, RelTag};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use smallvec::smallvec;

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };

/// A record on one block.
struct Sample {
    rmid: u8,
    info: u8,
    will_init: bool,
    main: Vec<u8>,
    data: Vec<u8>,
}

impl Sample {
    fn redo(&self, lsn: u64, page: &mut [u8; BLCKSZ]) {
        let block = BlockView {
            id: 0,
            rel: REL,
            blkno: 9,
            will_init: self.will_init,
            has_applied_image: false,
            data: &self.data,
        };
        let view = RecordView {
            end_lsn: Lsn::new(lsn),
            rmid: self.rmid,
            info: self.info,
            xid: 1000,
            hint_bits: HintBits::NotLogged,
            main_data: &self.main,
            blocks: smallvec![block],
        };
        redo_block(PgMajor::V15, &view, 0, page).expect("the sample fits the page");
    }
}

/// `Heap/INSERT` of a row as wide as pgbench's history and, with a filler, its accounts.
fn heap_insert(offnum: u16, init: bool, width: usize) -> Sample {
    let mut main = offnum.to_le_bytes().to_vec();
    main.push(0x08);
    let mut data = vec![4, 0, 2, 8, 24, 0];
    data.resize(6 + width, 7);
    let info = if init { 0x80 } else { 0x00 };
    Sample { rmid: rmgr::HEAP, info, will_init: init, main, data }
}

/// `Heap/HOT_UPDATE` that changes the four bytes in the middle of a row.
fn hot_update(old: u16, new: u16) -> Sample {
    let mut main = 1000u32.to_le_bytes().to_vec();
    main.extend(old.to_le_bytes());
    main.extend([0x00, 0x60]);
    main.extend(0u32.to_le_bytes());
    main.extend(new.to_le_bytes());
    let mut data = 4u16.to_le_bytes().to_vec();
    data.extend(20u16.to_le_bytes());
    data.extend([4, 0x80, 2, 0x28, 24, 0, 1, 2, 3, 4]);
    Sample { rmid: rmgr::HEAP, info: 0x40, will_init: false, main, data }
}

fn btree_insert(offnum: u16) -> Sample {
    let mut data = vec![0, 0, 0, 9, 1, 0, 16, 0];
    data.extend([5; 8]);
    Sample { rmid: rmgr::BTREE, info: 0x00, will_init: false, main: offnum.to_le_bytes().to_vec(), data }
}

fn btree_root() -> Sample {
    let main = vec![0, 0, 0, 0, 0, 0, 0, 0];
    Sample { rmid: rmgr::BTREE, info: 0xA0, will_init: true, main, data: vec![] }
}

fn bench(c: &mut Criterion) {
    let mut heap = [0; BLCKSZ];
    heap_insert(1, true, 60).redo(100, &mut heap);
    let first_row = heap;
    (2..40).for_each(|offnum| heap_insert(offnum, false, 60).redo(100 + u64::from(offnum), &mut heap));
    let mut btree = [0; BLCKSZ];
    btree_root().redo(100, &mut btree);
    (1..100).for_each(|offnum| btree_insert(offnum).redo(100 + u64::from(offnum), &mut btree));

    let mut one = |name: &str, page: &[u8; BLCKSZ], sample: Sample| {
        c.bench_function(name, |b| {
            b.iter_batched_ref(|| Box::new(*page), |page| sample.redo(10_000, page), BatchSize::SmallInput);
        });
    };
    one("redo one heap insert", &heap, heap_insert(40, false, 60));
    one("redo one hot update", &heap, hot_update(5, 40));
    one("redo one btree insert", &btree, btree_insert(50));

    let heap_inserts: Vec<Sample> = (2..102).map(|offnum| heap_insert(offnum, false, 30)).collect();
    let btree_inserts: Vec<Sample> = (0..100).map(|offnum| btree_insert(offnum + 3)).collect();
    for (name, base, samples) in [
        ("page from an image and 100 heap inserts", &first_row, &heap_inserts),
        ("page from an image and 100 btree inserts", &btree, &btree_inserts),
    ] {
        c.bench_function(name, |b| {
            b.iter(|| {
                let mut page = *base;
                samples.iter().zip(1_000..).for_each(|(sample, lsn)| sample.redo(lsn, &mut page));
                page
            });
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
