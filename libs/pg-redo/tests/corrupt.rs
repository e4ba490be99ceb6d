//! Corrupt records on corrupt pages: an error or a page, never a panic and never a write outside of the page.
//!
//! Records are made up from the shapes that Postgres writes (plausible lengths, small numbers, index tuples with lengths), because
//! pure noise rarely gets past the first check.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use ardent_pg_format::{PgMajor, rmgr};
use ardent_pg_redo::{
    BlockView, Delta, HintBits, RecordView, StoredRecord, Value, reconstruct, redo_block, vm_changes,
};
use ardent_types::{BLCKSZ, ForkNumber, Key, Lsn, RelTag};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };

/// Two bytes of record data: mostly small numbers, as offset numbers, counts and lengths are.
fn word() -> impl Strategy<Value = u16> {
    prop_oneof![6 => 0u16..12, 3 => 0u16..300, 2 => (8u16..80).prop_map(|n| n & !7), 1 => any::<u16>()]
}

fn data(words: usize) -> impl Strategy<Value = Vec<u8>> {
    (vec(word(), 0..words), any::<bool>()).prop_map(|(words, odd)| {
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u16::to_le_bytes).collect();
        if odd {
            bytes.pop();
        }
        bytes
    })
}

/// A page with line pointers and items that make sense, then spoilt in some places.
fn page() -> impl Strategy<Value = Vec<u8>> {
    let special = prop_oneof![Just(0usize), Just(8), Just(16)];
    let spoilt = vec((0usize..BLCKSZ, any::<u8>()), 0..4);
    let spoilt_header = vec((8usize..64, any::<u8>()), 0..3);
    (special, vec((8usize..200, 0u32..4), 0..30), any::<[u8; 32]>(), spoilt, spoilt_header).prop_map(
        |(special, items, fill, spoilt, spoilt_header)| {
            let mut page = vec![0; BLCKSZ];
            let mut upper = BLCKSZ - special;
            page[16..18].copy_from_slice(&(upper as u16).to_le_bytes());
            page[18..20].copy_from_slice(&0x2004u16.to_le_bytes());
            for (at, byte) in page[upper..].iter_mut().enumerate() {
                *byte = fill[at];
            }
            for (index, (len, state)) in items.iter().enumerate() {
                upper -= len.next_multiple_of(8);
                let id = upper as u32 | state << 15 | (*len as u32) << 17;
                page[24 + index * 4..28 + index * 4].copy_from_slice(&id.to_le_bytes());
                for (at, byte) in page[upper..upper + len].iter_mut().enumerate() {
                    *byte = fill[at % 32] & 0x1F;
                }
                // As an index tuple, the item states its length.
                page[upper + 6..upper + 8].copy_from_slice(&(*len as u16).to_le_bytes());
            }
            page[12..14].copy_from_slice(&(24 + items.len() as u16 * 4).to_le_bytes());
            page[14..16].copy_from_slice(&(upper as u16).to_le_bytes());
            for (at, byte) in spoilt.into_iter().chain(spoilt_header) {
                page[at] = byte;
            }
            page
        },
    )
}

fn rmid() -> impl Strategy<Value = u8> {
    prop_oneof![
        Just(rmgr::XLOG),
        Just(rmgr::HEAP),
        Just(rmgr::HEAP2),
        Just(rmgr::BTREE),
        Just(rmgr::HASH),
        Just(rmgr::GIN),
        Just(rmgr::GIST),
        Just(rmgr::SEQUENCE),
        Just(rmgr::SPGIST),
        Just(rmgr::BRIN),
        Just(rmgr::GENERIC),
        any::<u8>(),
    ]
}

fn major() -> impl Strategy<Value = PgMajor> {
    prop_oneof![2 => Just(PgMajor::V15), 1 => prop::sample::select(PgMajor::ALL.to_vec())]
}

/// `ARDENT_FUZZ_CASES`, for longer runs.
fn cases() -> u32 {
    std::env::var("ARDENT_FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(60_000)
}

/// Counts what a thread asks for, so that redo can be held to a bound.
struct Counting;

thread_local! {
    static ASKED_FOR: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED_FOR.with(|bytes| bytes.set(bytes.get().saturating_add(layout.size())));
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer is from the system allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `redo`, which may ask for some pages' worth of memory and take a while on a busy machine, but no more.
fn bounded<T>(redo: impl FnOnce() -> T) -> T {
    const BYTES_MAX: usize = 64 * BLCKSZ;
    const TIME_MAX: Duration = Duration::from_secs(10);
    let (before, begun) = (ASKED_FOR.with(Cell::get), Instant::now());
    let done = redo();
    let (asked_for, took) = (ASKED_FOR.with(Cell::get) - before, begun.elapsed());
    assert!(asked_for <= BYTES_MAX, "{asked_for} bytes of memory");
    assert!(took < TIME_MAX, "{took:?}");
    done
}

#[test]
fn memory_is_counted() {
    let before = ASKED_FOR.with(Cell::get);
    drop(std::hint::black_box(vec![0u8; 100_000]));
    assert!(ASKED_FOR.with(Cell::get) - before >= 100_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn redo_of_corrupt_records_and_pages_never_panics(
        major in major(),
        rmid in rmid(),
        op in 0u8..16,
        block_id in 0u8..7,
        blocks in 1u8..7,
        will_init in any::<bool>(),
        main in data(40),
        block_data in data(120),
        page in page(),
    ) {
        let block = |id| BlockView {
            id,
            rel: REL,
            blkno: u32::from(id) * 3,
            will_init,
            has_applied_image: false,
            data: if id == block_id { &block_data } else { &[] },
        };
        let view = RecordView {
            end_lsn: Lsn::new(u64::MAX / 2),
            rmid,
            info: op << 4,
            xid: 1000,
            hint_bits: HintBits::Logged,
            main_data: &main,
            blocks: (0..blocks.max(block_id + 1)).map(block).collect(),
        };
        let mut bytes: [u8; BLCKSZ] = page.try_into().expect("a page's length");
        let _ = bounded(|| redo_block(major, &view, block_id, &mut bytes));
        let _ = bounded(|| vm_changes(major, &view));
    }

    #[test]
    fn majors_without_proven_redo_are_refused(major in major(), rmid in rmid(), op in 0u8..16) {
        prop_assert!(ardent_pg_redo::PROVEN_MAJORS.contains(&major) || !ardent_pg_redo::has_redo(major, rmid, op << 4));
    }

    #[test]
    fn corrupt_stored_values_never_panic(
        major in major(),
        stored in vec(any::<u8>(), 0..80),
        small in vec(prop_oneof![0u8..16, any::<u8>()], 0..80),
        will_init in any::<bool>(),
    ) {
        let key = Key::RelBlock(REL, 7);
        for bytes in [stored, small] {
            let _ = StoredRecord::decode(&bytes, Lsn::new(99), REL, 7);
            let _ = Value::decode(Bytes::from(bytes.clone()));
            let _ = Delta::decode(&bytes);
            let base = Some(Bytes::from(vec![0; BLCKSZ]));
            let record = Value::Record { will_init, record: Bytes::from(bytes.clone()) };
            let _ = bounded(|| reconstruct(major, &key, base.clone(), [(Lsn::new(99), record)]));
            let _ = bounded(|| reconstruct(major, &key, base, [(Lsn::new(99), Value::Delta(Bytes::from(bytes)))]));
        }
    }
}
