//! A table of 100 GB of which only few blocks hold anything.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ardent_api::page_service::{BlockRange, ErrorCode, ManageReply, ManageRequest};
use ardent_api::wal_service::WalChunk;
use ardent_page_client::PageClient;
use ardent_pageserver::Intake;
use ardent_pg_format::encode::{RecordBuilder, WalWriter};
use ardent_pg_format::rmgr;
use ardent_storage::Timeline;
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Key, Lsn, RelTag, TimelineId, oid};
use bytes::Bytes;

use super::cluster::{DATABASE, cluster, size};
use super::house::{BRANCH, House, ROOT, import, open};
use super::many_tables::{backed_up_forks, changed_relation};
use crate::workload::{START, STREAM, add_item, empty_page};

const TABLE: RelTag =
    RelTag { spcnode: oid::DEFAULT_TABLESPACE, dbnode: DATABASE, relnode: 20_000, fork: ForkNumber::Main };
/// 100 GB.
const BLOCKS: BlockNumber = 13_107_200;
/// Blocks of one of its files.
const SEGMENT: BlockNumber = 131_072;
/// Where it is cut: at the end of a file.
const MIDDLE: BlockNumber = 50 * SEGMENT;
/// The last block of what it grows to again, in the file after the next one.
const REGROWN: BlockNumber = 51 * SEGMENT + 10;
/// Blocks with a row, and how a range of blocks that changed names them: both sides of some ends of files, and both ends.
const FILLED: [(BlockNumber, u32); 6] =
    [(0, 1), (SEGMENT - 1, 2), (MIDDLE - 1, 2), (51 * SEGMENT - 1, 2), (99 * SEGMENT - 1, 2), (BLOCKS - 1, 1)];

/// Pages of the maps of so long a table, and of half of it; and the page of each on which the first entry of the second half stands.
const MAP_BLOCKS: BlockNumber = 402;
const MAP_BLOCKS_OF_HALF: BlockNumber = 201;
const FSM_BLOCKS: BlockNumber = 3224;
const FSM_BLOCKS_OF_HALF: BlockNumber = 1613;
/// Where on its map page that entry is.
const MAP_ENTRY_AT: usize = 24 + 4800;

/// Rows of a page of zeros.
const EMPTY: &[u64] = &[];
const XID: u32 = 1024;
const ROW_LEN: usize = 32;
const ROW_HEADER_LEN: usize = 24;

fn filled() -> impl Iterator<Item = BlockNumber> {
    FILLED.into_iter().flat_map(|(start, count)| start..start + count)
}

/// The number in a row that a block had from the beginning, and in one that came later.
fn first(block: BlockNumber) -> u64 {
    u64::from(block)
}

fn second(block: BlockNumber) -> u64 {
    u64::from(block) | 1 << 40
}

fn page_of(number: u64) -> Bytes {
    let mut row = vec![0; ROW_LEN];
    row[20..22].copy_from_slice(&0x0902u16.to_le_bytes());
    row[22] = ROW_HEADER_LEN as u8;
    row[ROW_HEADER_LEN..].copy_from_slice(&number.to_le_bytes());
    let mut page = empty_page(0);
    add_item(&mut page, &row);
    page.into()
}

/// The numbers of a page's rows; none on a page of zeros.
fn rows(page: &[u8]) -> Vec<u64> {
    let lower = usize::from(u16::from_le_bytes([page[12], page[13]]));
    let row = |at: usize| {
        let pointer = u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes"));
        let row = &page[(pointer & 0x7FFF) as usize..][..ROW_LEN];
        u64::from_le_bytes(row[ROW_HEADER_LEN..].try_into().expect("8 bytes"))
    };
    (24..lower).step_by(4).map(row).collect()
}

/// `xl_heap_insert` of row `place` of the block; the first one makes the page.
fn insert(block: BlockNumber, place: u16, number: u64) -> RecordBuilder {
    const INIT_PAGE: u8 = 0x80;
    let mut data = Vec::new();
    data.extend_from_slice(&1u16.to_le_bytes());
    data.extend_from_slice(&0x0802u16.to_le_bytes());
    data.extend_from_slice(&[ROW_HEADER_LEN as u8, 0]);
    data.extend_from_slice(&number.to_le_bytes());
    let mut main = place.to_le_bytes().to_vec();
    main.push(0);
    let (new, info) = if place == 1 { (true, INIT_PAGE) } else { (false, 0) };
    RecordBuilder::new(rmgr::HEAP, info).xid(XID).block(0, TABLE, block, new, None, &data).main_data(main)
}

/// `xl_smgr_truncate` of the table and its maps.
fn truncate(blocks: BlockNumber) -> RecordBuilder {
    const TRUNCATE: u8 = 0x20;
    const ALL_FORKS: u32 = 7;
    let fields = [blocks, TABLE.spcnode, TABLE.dbnode, TABLE.relnode, ALL_FORKS];
    let data: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
    RecordBuilder::new(rmgr::STORAGE, TRUNCATE).main_data(data)
}

/// WAL that goes on, and what takes it in.
struct Log {
    writer: WalWriter,
    taken: usize,
    intake: Intake,
    root: Arc<Timeline>,
}

impl Log {
    fn new(root: &Arc<Timeline>) -> Log {
        let intake = Intake::open(root).expect("the timeline takes WAL");
        Log { writer: WalWriter::new(STREAM, START, Lsn::INVALID), taken: 0, intake, root: Arc::clone(root) }
    }

    /// Has these records taken in, and made durable; the end of the last one.
    fn take(&mut self, records: impl Iterator<Item = RecordBuilder>) -> Lsn {
        for record in records {
            self.writer.append(&record);
        }
        let start = START.advance(self.taken as u64);
        let bytes = Bytes::copy_from_slice(&self.writer.bytes()[self.taken..]);
        self.taken += bytes.len();
        let began = Instant::now();
        self.intake.take(WalChunk { start, bytes, commit_lsn: self.writer.position() }).expect("the WAL is taken");
        self.root.flush().expect("it is written");
        let ms = began.elapsed().as_secs_f64() * 1e3;
        println!("up to {}: {ms:.1} ms, {:?}", self.root.last_record().end, self.root.sizes());
        self.root.last_record().end
    }
}

/// Where the table was what.
struct Made {
    written: Lsn,
    truncated: Lsn,
    regrown: Lsn,
}

fn make(folder: &Path) -> Made {
    let engine = open(folder);
    let (vm, fsm) = (TABLE.with_fork(ForkNumber::Vm), TABLE.with_fork(ForkNumber::Fsm));
    let mut values = cluster(std::iter::once(TABLE.relnode));
    values.extend(
        [(TABLE, BLOCKS), (vm, MAP_BLOCKS), (fsm, FSM_BLOCKS)].map(|(rel, n)| (Key::RelSize(rel), size(Some(n)))),
    );
    values.extend(filled().map(|block| (Key::RelBlock(TABLE, block), page_of(first(block)))));
    let mut map = empty_page(0);
    map[24..].fill(0xFF);
    values.push((Key::RelBlock(vm, MAP_BLOCKS_OF_HALF - 1), map.into()));
    let root = import(&engine, &values);
    println!("imported: {:?}", root.sizes());

    let mut log = Log::new(&root);
    let written = log.take(filled().map(|block| insert(block, 2, second(block))));
    let truncated = log.take(std::iter::once(truncate(MIDDLE)));
    let regrown = log.take([MIDDLE, REGROWN].into_iter().map(|block| insert(block, 1, second(block))));
    drop(log);
    let began = Instant::now();
    root.compact().expect("it is compacted");
    assert!(engine.stats().compactions > 0, "{:?}", root.sizes());
    println!("compacted in {:.1} ms: {:?}", began.elapsed().as_secs_f64() * 1e3, root.sizes());
    engine.shutdown().expect("all is durable");
    Made { written, truncated, regrown }
}

/// Whether `client`'s timeline has these rows at `lsn`, in the blocks from `start` on.
async fn check_rows(client: &mut PageClient, lsn: Lsn, start: BlockNumber, expect: &[&[u64]]) {
    let count = u32::try_from(expect.len()).expect("a few");
    let got = client.get_pages(lsn, TABLE, &[BlockRange { start, count }]).await.expect("the blocks are there");
    let got: Vec<_> = got.chunks(BLCKSZ).map(rows).collect();
    assert_eq!(got, expect, "from block {start} on at {lsn}");
}

async fn check_absent(client: &mut PageClient, lsn: Lsn, start: BlockNumber) {
    let error = client.get_pages(lsn, TABLE, &[BlockRange { start, count: 1 }]).await.expect_err("no such block");
    assert_eq!(error.code(), Some(ErrorCode::NotFound), "block {start} at {lsn}: {error}");
}

/// The table as it was before it was cut.
async fn check_whole(client: &mut PageClient, lsn: Lsn) {
    assert_eq!(client.get_rel_size(lsn, TABLE).await.expect("its size"), Some(BLOCKS));
    for block in filled() {
        check_rows(client, lsn, block, &[&[first(block), second(block)]]).await;
    }
    let at_end_of_file = SEGMENT - 2;
    let both = [SEGMENT - 1, SEGMENT].map(|block| [first(block), second(block)]);
    check_rows(client, lsn, at_end_of_file, &[EMPTY, &both[0], &both[1], EMPTY]).await;
    for empty in [1, 7 * SEGMENT - 4, 30_000 + MIDDLE, BLOCKS - 9] {
        check_rows(client, lsn, empty, &[EMPTY; 8]).await;
    }
    check_absent(client, lsn, BLOCKS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_100_gb_is_read_cut_grown_compared_and_branched() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Made { written, truncated, regrown } = make(folder.path());
    let house = House::start(folder.path()).await;
    let mut client = house.client(ROOT).await;

    for block in filled() {
        check_rows(&mut client, START, block, &[&[first(block)]]).await;
    }
    check_whole(&mut client, written).await;

    // Cut, with its maps.
    let (vm, fsm) = (TABLE.with_fork(ForkNumber::Vm), TABLE.with_fork(ForkNumber::Fsm));
    assert_eq!(client.get_rel_size(truncated, TABLE).await.expect("its size"), Some(MIDDLE));
    check_rows(&mut client, truncated, MIDDLE - 1, &[&[first(MIDDLE - 1), second(MIDDLE - 1)]]).await;
    for gone in [MIDDLE, 51 * SEGMENT, BLOCKS - 1] {
        check_absent(&mut client, truncated, gone).await;
    }
    let range = [BlockRange { start: MAP_BLOCKS_OF_HALF - 1, count: 1 }];
    let map = client.get_pages(truncated, vm, &range).await.expect("the map's page stays");
    assert!(
        map[24..MAP_ENTRY_AT].iter().all(|byte| *byte == 0xFF) && map[MAP_ENTRY_AT..].iter().all(|byte| *byte == 0)
    );

    // Grown again: what the blocks between held before does not come back.
    assert_eq!(client.get_rel_size(regrown, TABLE).await.expect("its size"), Some(REGROWN + 1));
    let middle = [second(MIDDLE)];
    check_rows(&mut client, regrown, MIDDLE - 1, &[&[first(MIDDLE - 1), second(MIDDLE - 1)], &middle, EMPTY]).await;
    check_rows(&mut client, regrown, 51 * SEGMENT - 2, &[EMPTY; 4]).await;
    check_rows(&mut client, regrown, REGROWN, &[&[second(REGROWN)]]).await;
    for gone in [REGROWN + 1, 99 * SEGMENT, BLOCKS - 1] {
        check_absent(&mut client, regrown, gone).await;
    }

    let new = [(MIDDLE, REGROWN + 1 - MIDDLE)];
    for (from, to, expect) in [
        (START, written, changed_relation(TABLE, (BLOCKS, BLOCKS), &FILLED)),
        (written, truncated, changed_relation(TABLE, (BLOCKS, MIDDLE), &[])),
        (truncated, regrown, changed_relation(TABLE, (MIDDLE, REGROWN + 1), &new)),
        (written, regrown, changed_relation(TABLE, (BLOCKS, REGROWN + 1), &new)),
    ] {
        let began = Instant::now();
        let changed = client.get_changed(from, to).await.expect("changed blocks are told");
        println!("changed blocks from {from} to {to}: {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
        assert_eq!(changed, [expect], "from {from} to {to}");
    }
    for (at, blocks, map_blocks, fsm_blocks) in [
        (written, BLOCKS, MAP_BLOCKS, FSM_BLOCKS),
        (truncated, MIDDLE, MAP_BLOCKS_OF_HALF, FSM_BLOCKS_OF_HALF),
        (regrown, REGROWN + 1, MAP_BLOCKS_OF_HALF, FSM_BLOCKS_OF_HALF),
    ] {
        let forks = backed_up_forks(&mut client, at).await;
        let sizes = [TABLE, vm, fsm].map(|fork| forks.get(&fork).copied());
        assert_eq!(sizes, [Some(blocks), Some(map_blocks), Some(fsm_blocks)], "at {at}");
    }

    // A branch from before the cut has all of it.
    let create = ManageRequest::CreateBranch { timeline: BRANCH, ancestor: ROOT, at: Some(written), description: None };
    let began = Instant::now();
    let reply = house.client(TimelineId::NONE).await.manage(create).await.expect("the branch is made");
    println!("a branch of it: {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
    assert!(matches!(reply, ManageReply::Branch { lsn, .. } if lsn == written), "{reply:?}");
    let mut branch = house.client(BRANCH).await;
    check_whole(&mut branch, written).await;
    assert_eq!(backed_up_forks(&mut branch, written).await.get(&TABLE), Some(&BLOCKS));
    house.stop().await;
}
