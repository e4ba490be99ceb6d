//! A table and an index as Postgres 15 lays them out, and the WAL of random updates of its rows, as it writes it with
//! `full_page_writes` off: HOT updates with what stayed the same taken from the old row, updates that move a row to another page and give
//! the index new entries, pruning, vacuum, commits.
//!
//! What the table should hold is kept beside it, a few bytes a row, so that any page can be checked.
#![allow(dead_code, reason = "each program that has this module uses a part of it")]

use std::sync::Arc;

use ardent_pg_format::encode::{RecordBuilder, WalStream, WalWriter};
use ardent_pg_format::{CheckPoint, ClusterState, ControlFile, PgMajor, rmgr};
use ardent_storage::{Engine, Timeline, TimelineFacts};
use ardent_types::{
    BLCKSZ, ForkNumber, Key, Lsn, PgTli, RelTag, SlruKind, SystemId, TenantId, TimelineId, WalSegmentSize,
};
use bytes::Bytes;

pub const START: Lsn = Lsn::new(0x100_0028);
pub const STREAM: WalStream = WalStream {
    major: PgMajor::V15,
    segment_size: WalSegmentSize::DEFAULT,
    tli: PgTli::new(1),
    system_id: SystemId::new(7),
};
const TABLE: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16_384, fork: ForkNumber::Main };
const INDEX: RelTag = RelTag { relnode: 16_385, ..TABLE };
/// Header and null bitmap, two numbers, text.
const TUPLE_LEN: usize = 136;
const HOFF: usize = 24;
/// Where a row's numbers are in its tuple: the first never changes, the second counts its updates.
const ID_AT: usize = HOFF;
const COUNTER_AT: usize = HOFF + 4;
const TEXT_AT: usize = HOFF + 8;
/// Bytes of text that an update changes; the rest behind it stays.
const CHANGED_TEXT: usize = 64;
/// Tuples that a page has room for beside as many line pointers as it ever has here.
const TUPLES_MAX: usize = 55;
const ROWS_AT_FIRST: usize = 48;
const ROWS_MAX: usize = 51;
const INDEX_TUPLE_LEN: usize = 16;
const INDEX_ENTRIES_AT_FIRST: u16 = 250;
const INDEX_ENTRIES_MAX: u16 = 380;
/// One in so many updates moves its row.
const MOVE_ONE_IN: u64 = 10;
const UPDATES_PER_TRANSACTION: u64 = 10;
const FIRST_XID: u32 = 1024;
const XIDS_PER_CLOG_PAGE: u32 = 32_768;

#[derive(Clone, Copy)]
struct Row {
    id: u32,
    counter: u32,
    /// The line pointer that the index knows.
    root: u8,
    /// Where its tuple is.
    at: u8,
}

#[derive(Default)]
struct HeapPage {
    rows: Vec<Row>,
    /// One bit for each line pointer in use; bit 0 is never free.
    used: u128,
    tuples: usize,
    /// Rows of which the next pruning makes their root point to where they are.
    redirected: Vec<u8>,
    /// Line pointers of dead tuples that no index knows, and of rows that have moved away.
    unused: Vec<u8>,
    gone: Vec<u8>,
}

impl HeapPage {
    fn take_line_pointer(&mut self) -> u8 {
        let free = (!self.used).trailing_zeros() as u8;
        self.used |= 1 << free;
        self.tuples += 1;
        free
    }
}

/// See the module's documentation.
pub struct Workload {
    state: u64,
    pages: Vec<HeapPage>,
    leaves: Vec<u16>,
    xid: u32,
    updates: u64,
    end: (Lsn, Lsn),
}

impl Workload {
    /// A table of so many bytes.
    pub fn new(table_bytes: u64) -> Workload {
        let blocks = (table_bytes / BLCKSZ as u64).max(2) as u32;
        let page = |block: u32| {
            let row = |place: u8| Row {
                id: block * ROWS_AT_FIRST as u32 + u32::from(place),
                counter: 0,
                root: place + 1,
                at: place + 1,
            };
            HeapPage {
                rows: (0..ROWS_AT_FIRST as u8).map(row).collect(),
                used: (1 << (ROWS_AT_FIRST + 1)) - 1,
                tuples: ROWS_AT_FIRST,
                ..HeapPage::default()
            }
        };
        let leaves = blocks as usize * ROWS_AT_FIRST / usize::from(INDEX_ENTRIES_AT_FIRST) + 1;
        Workload {
            state: 1,
            pages: (0..blocks).map(page).collect(),
            leaves: vec![INDEX_ENTRIES_AT_FIRST; leaves],
            xid: FIRST_XID,
            updates: 0,
            end: (START, Lsn::INVALID),
        }
    }

    /// Blocks of the table.
    pub fn blocks(&self) -> u32 {
        self.pages.len() as u32
    }

    pub fn updates(&self) -> u64 {
        self.updates
    }

    pub fn key(&self, block: u32) -> Key {
        Key::RelBlock(TABLE, block)
    }

    /// A random page of the table or, as often as it is longer, of the index.
    pub fn any_key(&mut self) -> Key {
        let place = self.below(self.pages.len() + self.leaves.len());
        let past = place.checked_sub(self.pages.len());
        past.map_or(Key::RelBlock(TABLE, place as u32), |leaf| Key::RelBlock(INDEX, leaf as u32))
    }

    /// What an import would have brought beside pages.
    pub fn small_values(&self, control_file: Bytes) -> Vec<(Key, Bytes)> {
        let checkpoint =
            CheckPoint { redo: START, tli: PgTli::new(1), next_xid: u64::from(FIRST_XID), ..CheckPoint::default() };
        let size = |blocks: usize| Bytes::copy_from_slice(&(blocks as u32).to_le_bytes());
        vec![
            (Key::Checkpoint, Bytes::copy_from_slice(&checkpoint.encode(PgMajor::V15))),
            (Key::ControlFile, control_file),
            (Key::Database { spcnode: 1663, dbnode: 5 }, Bytes::from_static(&[1])),
            (Key::RelMap { spcnode: 1663, dbnode: 5 }, Bytes::from_static(b"map")),
            (Key::RelSize(TABLE), size(self.pages.len())),
            (Key::RelSize(INDEX), size(self.leaves.len())),
            (Key::SlruPage(SlruKind::Xact, 0), vec![0; BLCKSZ].into()),
        ]
    }

    /// The pages as they are before the first update, some at a time.
    pub fn give_pages(&mut self, mut each: impl FnMut(&[(Key, Bytes)])) {
        for first in (0..self.pages.len()).step_by(1024) {
            let blocks = first..(first + 1024).min(self.pages.len());
            let pages: Vec<_> =
                blocks.map(|block| (Key::RelBlock(TABLE, block as u32), self.heap_page(block))).collect();
            each(&pages);
        }
        for first in (0..self.leaves.len()).step_by(1024) {
            let blocks = first..(first + 1024).min(self.leaves.len());
            let pages: Vec<_> = blocks.map(|block| (Key::RelBlock(INDEX, block as u32), self.leaf_page())).collect();
            each(&pages);
        }
    }

    fn heap_page(&mut self, block: usize) -> Bytes {
        let mut page = empty_page(0);
        for row in self.pages[block].rows.clone() {
            let mut tuple = vec![0; TUPLE_LEN];
            tuple[0..4].copy_from_slice(&3u32.to_le_bytes());
            tuple[12..16].copy_from_slice(&[(block >> 16) as u8, (block >> 24) as u8, block as u8, (block >> 8) as u8]);
            tuple[16..18].copy_from_slice(&u16::from(row.at).to_le_bytes());
            tuple[18..20].copy_from_slice(&3u16.to_le_bytes());
            tuple[20..22].copy_from_slice(&0x0902u16.to_le_bytes());
            tuple[22] = HOFF as u8;
            tuple[ID_AT..ID_AT + 4].copy_from_slice(&row.id.to_le_bytes());
            self.put_text(&mut tuple[TEXT_AT..]);
            add_item(&mut page, &tuple);
        }
        page.into()
    }

    fn leaf_page(&mut self) -> Bytes {
        let mut page = empty_page(16);
        // The only flag of a leaf; without neighbours.
        page[BLCKSZ - 4] = 1;
        for _ in 0..INDEX_ENTRIES_AT_FIRST {
            add_item(&mut page, &self.index_tuple(0, 1));
        }
        page.into()
    }

    fn index_tuple(&mut self, block: u32, offset: u8) -> [u8; INDEX_TUPLE_LEN] {
        let mut tuple = [0; INDEX_TUPLE_LEN];
        tuple[0..2].copy_from_slice(&((block >> 16) as u16).to_le_bytes());
        tuple[2..4].copy_from_slice(&(block as u16).to_le_bytes());
        tuple[4..6].copy_from_slice(&u16::from(offset).to_le_bytes());
        tuple[6..8].copy_from_slice(&(INDEX_TUPLE_LEN as u16).to_le_bytes());
        tuple[8..16].copy_from_slice(&self.next().to_le_bytes());
        tuple
    }

    /// WAL of at least so many bytes that follows what was given before, and where it starts.
    pub fn wal(&mut self, bytes: usize) -> (Lsn, Vec<u8>) {
        let (start, previous) = self.end;
        let mut writer = WalWriter::new(STREAM, start, previous);
        let mut last = previous;
        while writer.bytes().len() < bytes {
            let block = self.below(self.pages.len());
            if self.next().is_multiple_of(MOVE_ONE_IN) {
                self.move_row(block, &mut writer);
            } else {
                self.update_row(block, &mut writer);
            }
            self.updates += 1;
            if self.updates.is_multiple_of(UPDATES_PER_TRANSACTION) {
                last = self.commit(&mut writer);
            }
        }
        // The next WAL begins behind a record whose start is known.
        last = last.max(self.commit(&mut writer));
        self.end = (writer.position(), last);
        (start, writer.bytes().to_vec())
    }

    fn commit(&mut self, writer: &mut WalWriter) -> Lsn {
        let time = (self.updates as i64) * 1000;
        let commit = RecordBuilder::new(rmgr::TRANSACTION, 0).xid(self.xid).main_data(time.to_le_bytes());
        let mut start = writer.append(&commit).start;
        self.xid += 1;
        if self.xid.is_multiple_of(XIDS_PER_CLOG_PAGE) {
            let page = self.xid / XIDS_PER_CLOG_PAGE;
            start = writer.append(&RecordBuilder::new(rmgr::CLOG, 0).main_data(page.to_le_bytes())).start;
        }
        start
    }

    fn update_row(&mut self, block: usize, writer: &mut WalWriter) {
        self.make_room(block, writer);
        let place = self.below(self.pages[block].rows.len());
        let mut middle = [0; 4 + CHANGED_TEXT];
        self.put_text(&mut middle[4..]);
        let page = &mut self.pages[block];
        let at = page.take_line_pointer();
        let row = &mut page.rows[place];
        let old = std::mem::replace(&mut row.at, at);
        row.counter += 1;
        middle[..4].copy_from_slice(&row.counter.to_le_bytes());
        if old != row.root {
            page.unused.push(old);
        }
        if !page.redirected.contains(&row.root) {
            page.redirected.push(row.root);
        }
        let suffix = (TUPLE_LEN - TEXT_AT - CHANGED_TEXT) as u16;
        let mut data = Vec::with_capacity(80);
        data.extend_from_slice(&4u16.to_le_bytes());
        data.extend_from_slice(&suffix.to_le_bytes());
        // Three attributes, heap only; varying width, no xmax, an update.
        data.extend_from_slice(&(3u16 | 0x8000).to_le_bytes());
        data.extend_from_slice(&0x2802u16.to_le_bytes());
        data.push(HOFF as u8);
        data.push(0);
        data.extend_from_slice(&middle);
        let main = update_data(self.xid, old, 0x60, at);
        writer.append(
            &RecordBuilder::new(rmgr::HEAP, 0x40)
                .xid(self.xid)
                .block(0, TABLE, block as u32, false, None, &data)
                .main_data(main),
        );
    }

    /// An update of a row that goes to another page, where there is room for one more.
    fn move_row(&mut self, from: usize, writer: &mut WalWriter) {
        let to = self.below(self.pages.len());
        if to == from || self.pages[to].rows.len() >= ROWS_MAX || self.pages[from].rows.len() < 2 {
            return self.update_row(from, writer);
        }
        self.make_room(to, writer);
        let place = self.below(self.pages[from].rows.len());
        let page = &mut self.pages[from];
        let row = page.rows.swap_remove(place);
        page.gone.push(row.root);
        page.redirected.retain(|root| *root != row.root);
        if row.at != row.root {
            page.unused.push(row.at);
        }
        let at = self.pages[to].take_line_pointer();
        self.pages[to].rows.push(Row { counter: row.counter + 1, root: at, at, ..row });
        let mut data = vec![0; 5 + TUPLE_LEN - 23];
        data[0..2].copy_from_slice(&3u16.to_le_bytes());
        data[2..4].copy_from_slice(&0x2802u16.to_le_bytes());
        data[4] = HOFF as u8;
        data[6..10].copy_from_slice(&row.id.to_le_bytes());
        data[10..14].copy_from_slice(&(row.counter + 1).to_le_bytes());
        self.put_text(&mut data[14..]);
        let main = update_data(self.xid, row.at, 0, at);
        writer.append(
            &RecordBuilder::new(rmgr::HEAP, 0x20)
                .xid(self.xid)
                .block(0, TABLE, to as u32, false, None, &data)
                .block(1, TABLE, from as u32, false, None, &[])
                .main_data(main),
        );
        self.insert_into_index(to as u32, at, writer);
    }

    fn insert_into_index(&mut self, block: u32, offset: u8, writer: &mut WalWriter) {
        let leaf = self.below(self.leaves.len());
        if self.leaves[leaf] >= INDEX_ENTRIES_MAX {
            // Every second of the first ones was found dead.
            let dead: Vec<u8> = (0..120u16).flat_map(|n| (2 * n + 2).to_le_bytes()).collect();
            let mut main = self.xid.to_le_bytes().to_vec();
            main.extend_from_slice(&120u16.to_le_bytes());
            main.extend_from_slice(&0u16.to_le_bytes());
            let delete = RecordBuilder::new(rmgr::BTREE, 0x70).block(0, INDEX, leaf as u32, false, None, &dead);
            writer.append(&delete.main_data(main));
            self.leaves[leaf] -= 120;
        }
        let place = self.below(usize::from(self.leaves[leaf])) as u16 + 1;
        let tuple = self.index_tuple(block, offset);
        self.leaves[leaf] += 1;
        let insert =
            RecordBuilder::new(rmgr::BTREE, 0x00).xid(self.xid).block(0, INDEX, leaf as u32, false, None, &tuple);
        writer.append(&insert.main_data(place.to_le_bytes()));
    }

    /// Prunes the page if it is full; and vacuums what that leaves dead.
    fn make_room(&mut self, block: usize, writer: &mut WalWriter) {
        let xid = self.xid;
        let page = &mut self.pages[block];
        if page.tuples < TUPLES_MAX {
            return;
        }
        let mut data = Vec::new();
        let mut add = |offset: u8| data.extend_from_slice(&u16::from(offset).to_le_bytes());
        for root in &page.redirected {
            let row = page.rows.iter().find(|row| row.root == *root).expect("a row that was updated is there");
            add(*root);
            add(row.at);
        }
        page.gone.iter().chain(&page.unused).for_each(|offset| add(*offset));
        let mut main = xid.to_le_bytes().to_vec();
        main.extend_from_slice(&(page.redirected.len() as u16).to_le_bytes());
        main.extend_from_slice(&(page.gone.len() as u16).to_le_bytes());
        let prune = RecordBuilder::new(rmgr::HEAP2, 0x10).block(0, TABLE, block as u32, false, None, &data);
        writer.append(&prune.main_data(main));
        if !page.gone.is_empty() {
            let data: Vec<u8> = page.gone.iter().flat_map(|offset| u16::from(*offset).to_le_bytes()).collect();
            let main = (page.gone.len() as u16).to_le_bytes();
            let vacuum = RecordBuilder::new(rmgr::HEAP2, 0x20).block(0, TABLE, block as u32, false, None, &data);
            writer.append(&vacuum.main_data(main));
        }
        for offset in page.unused.drain(..).chain(page.gone.drain(..)) {
            page.used &= !(1 << offset);
        }
        page.redirected.clear();
        page.tuples = page.rows.len();
    }

    /// Whether the table's `block` holds what it should.
    pub fn check(&self, block: u32, page: &[u8]) {
        for row in &self.pages[block as usize].rows {
            let at = 24 + 4 * (usize::from(row.at) - 1);
            let id = u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes"));
            let tuple = &page[(id & 0x7FFF) as usize..][..TUPLE_LEN];
            let number = |at: usize| u32::from_le_bytes(tuple[at..at + 4].try_into().expect("4 bytes"));
            assert_eq!((number(ID_AT), number(COUNTER_AT)), (row.id, row.counter), "block {block}, item {}", row.at);
        }
    }

    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Hexadecimal digits, like those of an `md5()`.
    fn put_text(&mut self, text: &mut [u8]) {
        for part in text.chunks_mut(16) {
            let digits = self.next();
            part.iter_mut()
                .zip(0..)
                .for_each(|(byte, at)| *byte = b"0123456789abcdef"[(digits >> (4 * at)) as usize & 15]);
        }
    }
}

/// Imports the table as it is at first into a new root.
pub fn import_into(engine: &Engine, tenant: TenantId, timeline: TimelineId, workload: &mut Workload) -> Arc<Timeline> {
    let facts = TimelineFacts {
        pg_major: STREAM.major,
        system_id: STREAM.system_id,
        pg_tli: STREAM.tli,
        wal_segment_size: STREAM.segment_size,
        start_lsn: START,
    };
    let root = engine.create_root(tenant, timeline, facts).expect("a root is made");
    root.import_images(&workload.small_values(control_file().encode().into())).expect("values are taken");
    workload.give_pages(|pages| root.import_images(pages).expect("pages are taken"));
    root.finish_import().expect("the import is finished");
    root
}

/// The `pg_control` of the cluster that the table is in.
pub fn control_file() -> ControlFile {
    ControlFile {
        major: PgMajor::V15,
        system_id: SystemId::new(7),
        state: ClusterState::InProduction,
        time: 0,
        checkpoint_lsn: START,
        checkpoint: CheckPoint { redo: START, tli: PgTli::new(1), next_xid: 1024, ..CheckPoint::default() },
        unlogged_lsn: Lsn::new(1000),
        min_recovery_point: Lsn::INVALID,
        min_recovery_point_tli: PgTli::new(0),
        backup_start: Lsn::INVALID,
        backup_end: Lsn::INVALID,
        backup_end_required: false,
        wal_level: 1,
        wal_log_hints: false,
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_xacts: 0,
        max_locks_per_xact: 64,
        track_commit_timestamp: false,
        relation_segment_blocks: 131_072,
        wal_segment_size: WalSegmentSize::DEFAULT,
        name_data_len: 64,
        index_max_keys: 32,
        toast_max_chunk_size: 1996,
        large_object_block_size: 2048,
        data_checksum_version: 0,
        default_char_signedness: true,
        mock_authentication_nonce: [1; 32],
    }
}

/// `xl_heap_update`
fn update_data(xid: u32, old: u8, flags: u8, new: u8) -> Vec<u8> {
    let mut main = xid.to_le_bytes().to_vec();
    main.extend_from_slice(&u16::from(old).to_le_bytes());
    main.extend_from_slice(&[0, flags]);
    main.extend_from_slice(&0u32.to_le_bytes());
    main.extend_from_slice(&u16::from(new).to_le_bytes());
    main
}

/// A page without items, with so many bytes for whoever the page belongs to.
pub fn empty_page(special: usize) -> Vec<u8> {
    let mut page = vec![0; BLCKSZ];
    let end = ((BLCKSZ - special) as u16).to_le_bytes();
    page[12..14].copy_from_slice(&24u16.to_le_bytes());
    page[14..16].copy_from_slice(&end);
    page[16..18].copy_from_slice(&end);
    page[18..20].copy_from_slice(&(BLCKSZ as u16 | 4).to_le_bytes());
    page
}

/// Puts an item on a page that has room for it; its length is a multiple of 8.
pub fn add_item(page: &mut [u8], item: &[u8]) {
    let lower = usize::from(u16::from_le_bytes([page[12], page[13]]));
    let upper = usize::from(u16::from_le_bytes([page[14], page[15]])) - item.len();
    page[upper..upper + item.len()].copy_from_slice(item);
    let id = upper as u32 | 1 << 15 | (item.len() as u32) << 17;
    page[lower..lower + 4].copy_from_slice(&id.to_le_bytes());
    page[12..14].copy_from_slice(&(lower as u16 + 4).to_le_bytes());
    page[14..16].copy_from_slice(&(upper as u16).to_le_bytes());
}
