//! Building WAL: records, their pages, and the segment files of a new data directory.
//!
//! ```text
//!  RecordBuilder ──► WalWriter (page headers, xl_prev, CRC) ──► bytes from the writer's start LSN on
//!  CheckPoint ─────► shutdown_checkpoint ──────────────────────► EncodedWal ──► segment_files
//! ```

use ardent_types::{BlockNumber, Lsn, PgTli, RelTag, SystemId, WalSegmentSize};

use crate::bytes_at::put;
use crate::checkpoint::CheckPoint;
use crate::crc::record_crc;
use crate::major::PgMajor;
use crate::record::RECORD_HEADER_LEN;
use crate::rmgr;
use crate::segment::wal_file_name;
use crate::wal::{PageFlags, RecordSpan, WAL_PAGE_LEN, WalPageHeader, WalPageLongFields, page_header_len};

/// What all pages of a WAL stream say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalStream {
    /// Major version.
    pub major: PgMajor,
    /// Segment size.
    pub segment_size: WalSegmentSize,
    /// Postgres timeline.
    pub tli: PgTli,
    /// The cluster.
    pub system_id: SystemId,
}

impl WalStream {
    /// A header for a page of which only what starts at `readable_from` is there: it says that everything before is the rest of a
    /// record, so that readers that look for the first record of the page (as `pg_waldump` does) find the one at `readable_from`.
    pub fn synthetic_page_header(&self, page: Lsn, readable_from: Lsn) -> WalPageHeader {
        let first_byte = page.advance(page_header_len(page, self.segment_size) as u64);
        let missing = readable_from.saturating_sub(first_byte).min(u64::from(u32::MAX)) as u32;
        let flags = PageFlags { first_is_contrecord: missing > 0, ..PageFlags::default() };
        self.page_header(page, flags, missing)
    }

    /// The header of the page that starts at `page`.
    pub fn page_header(&self, page: Lsn, flags: PageFlags, remaining_len: u32) -> WalPageHeader {
        let long = page.segment_offset(self.segment_size) == 0;
        WalPageHeader {
            magic: self.major.wal_page_magic(),
            flags,
            tli: self.tli,
            address: page,
            remaining_len,
            long: long.then(|| WalPageLongFields {
                system_id: self.system_id,
                segment_size: u32::from(self.segment_size),
                wal_page_len: WAL_PAGE_LEN as u32,
            }),
        }
    }
}

/// A record to be written.
#[derive(Clone, Debug, Default)]
pub struct RecordBuilder {
    rmid: u8,
    info: u8,
    xid: u32,
    /// Block headers as they are encoded.
    headers: Vec<u8>,
    /// Images and block data, in the order of the headers.
    payload: Vec<u8>,
    main_data: Vec<u8>,
}

/// A full-page image to be put into a record, as stored.
#[derive(Clone, Copy, Debug)]
pub struct ImageParts<'a> {
    /// `BKPIMAGE_*` bits.
    pub info: u8,
    /// Start of the hole.
    pub hole_offset: u16,
    /// Length of the hole, if the image is compressed and has one.
    pub compressed_hole_length: Option<u16>,
    /// Stored bytes.
    pub stored: &'a [u8],
}

impl RecordBuilder {
    /// A record without blocks and data.
    pub fn new(rmid: u8, info: u8) -> RecordBuilder {
        RecordBuilder { rmid, info, ..RecordBuilder::default() }
    }

    /// Sets the transaction id.
    #[must_use]
    pub fn xid(mut self, xid: u32) -> RecordBuilder {
        self.xid = xid;
        self
    }

    /// Sets the main data.
    #[must_use]
    pub fn main_data(mut self, data: impl Into<Vec<u8>>) -> RecordBuilder {
        self.main_data = data.into();
        self
    }

    /// Adds a replication origin.
    #[must_use]
    pub fn origin(mut self, origin: u16) -> RecordBuilder {
        self.headers.push(253);
        self.headers.extend_from_slice(&origin.to_le_bytes());
        self
    }

    /// Adds the top-level transaction of the subtransaction that the record is of.
    #[must_use]
    pub fn toplevel_xid(mut self, xid: u32) -> RecordBuilder {
        self.headers.push(252);
        self.headers.extend_from_slice(&xid.to_le_bytes());
        self
    }

    /// Adds a block reference. Ids must be added in ascending order.
    #[must_use]
    pub fn block(
        mut self,
        id: u8,
        rel: RelTag,
        blkno: BlockNumber,
        will_init: bool,
        image: Option<ImageParts<'_>>,
        data: &[u8],
    ) -> RecordBuilder {
        let data_len = u16::try_from(data.len()).expect("block data is at most 64 KiB");
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(image.is_some(), 0x10) | flag(!data.is_empty(), 0x20) | flag(will_init, 0x40);
        self.headers.extend_from_slice(&[id, rel.fork as u8 | flags]);
        self.headers.extend_from_slice(&data_len.to_le_bytes());
        if let Some(image) = image {
            let length = u16::try_from(image.stored.len()).expect("an image is at most a page");
            self.headers.extend_from_slice(&length.to_le_bytes());
            self.headers.extend_from_slice(&image.hole_offset.to_le_bytes());
            self.headers.push(image.info);
            if let Some(hole_length) = image.compressed_hole_length {
                self.headers.extend_from_slice(&hole_length.to_le_bytes());
            }
            self.payload.extend_from_slice(image.stored);
        }
        for part in [rel.spcnode, rel.dbnode, rel.relnode, blkno] {
            self.headers.extend_from_slice(&part.to_le_bytes());
        }
        self.payload.extend_from_slice(data);
        self
    }

    /// The record's bytes, without page headers.
    pub fn encode(&self, prev: Lsn) -> Vec<u8> {
        let mut raw = vec![0; RECORD_HEADER_LEN];
        raw.extend_from_slice(&self.headers);
        if !self.main_data.is_empty() {
            if let Ok(length) = u8::try_from(self.main_data.len()) {
                raw.extend_from_slice(&[255, length]);
            } else {
                let length = u32::try_from(self.main_data.len()).expect("a record is at most 1 GiB");
                raw.push(254);
                raw.extend_from_slice(&length.to_le_bytes());
            }
        }
        raw.extend_from_slice(&self.payload);
        raw.extend_from_slice(&self.main_data);
        let total_len = u32::try_from(raw.len()).expect("a record is at most 1 GiB");
        put(&mut raw, 0, &total_len.to_le_bytes());
        put(&mut raw, 4, &self.xid.to_le_bytes());
        put(&mut raw, 8, &prev.get().to_le_bytes());
        raw[16] = self.info;
        raw[17] = self.rmid;
        let crc = record_crc(&raw);
        put(&mut raw, 20, &crc.to_le_bytes());
        raw
    }
}

/// Writes records one after the other, with the page headers that fall between.
#[derive(Debug)]
pub struct WalWriter {
    stream: WalStream,
    start: Lsn,
    previous: Lsn,
    bytes: Vec<u8>,
}

impl WalWriter {
    /// A writer at `start`, the end of a record. `previous` is the start of that record.
    pub fn new(stream: WalStream, start: Lsn, previous: Lsn) -> WalWriter {
        WalWriter { stream, start, previous, bytes: Vec::new() }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> Lsn {
        self.start.advance(self.bytes.len() as u64)
    }

    /// All bytes written, from the start LSN on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the next record will start.
    pub fn next_record_start(&self) -> Lsn {
        self.position().record_start(self.stream.segment_size)
    }

    /// Writes a record and the padding behind it. The span's end is aligned and not past a page header.
    pub fn append(&mut self, record: &RecordBuilder) -> RecordSpan {
        self.pad();
        let start = self.next_record_start();
        let raw = record.encode(self.previous);
        let mut rest = raw.as_slice();
        while !rest.is_empty() {
            if self.position().page_offset() == 0 {
                let continues = rest.len() < raw.len();
                let flags = PageFlags { first_is_contrecord: continues, ..PageFlags::default() };
                self.page_header(flags, if continues { rest.len() as u32 } else { 0 });
            }
            let room = (WAL_PAGE_LEN - self.position().page_offset()) as usize;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.bytes.extend_from_slice(now);
            rest = later;
        }
        self.pad();
        self.previous = start;
        RecordSpan { start, end: self.position() }
    }

    /// Writes a segment switch, and zeros up to the segment's end. The span's end is that.
    pub fn switch_segment(&mut self) -> RecordSpan {
        let span = self.append(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::SWITCH));
        let size = self.stream.segment_size;
        let past = span.end.segment_offset(size);
        if past != 0 {
            self.bytes.resize(self.bytes.len() + (size.bytes() - past) as usize, 0);
        }
        RecordSpan { start: span.start, end: self.position() }
    }

    /// Fills the page with the beginning of a record that is then given up, as a crash does, and starts the next page with the record
    /// that says so (checklist 6).
    pub fn abort_and_overwrite(&mut self, aborted: &RecordBuilder) -> RecordSpan {
        self.pad();
        let aborted_start = self.next_record_start();
        let raw = aborted.encode(self.previous);
        if self.position().page_offset() == 0 {
            self.page_header(PageFlags::default(), 0);
        }
        let room = (WAL_PAGE_LEN - self.position().page_offset()) as usize;
        assert!(raw.len() > room, "only a record that crosses a page boundary can lose its rest");
        self.bytes.extend_from_slice(&raw[..room]);
        self.page_header(PageFlags { first_is_overwrite_contrecord: true, ..PageFlags::default() }, 0);
        let mut data = aborted_start.get().to_le_bytes().to_vec();
        data.extend_from_slice(&[0; 8]);
        self.append(&RecordBuilder::new(rmgr::XLOG, rmgr::xlog::OVERWRITE_CONTRECORD).main_data(data))
    }

    fn page_header(&mut self, flags: PageFlags, remaining_len: u32) {
        self.stream.page_header(self.position(), flags, remaining_len).write(&mut self.bytes);
    }

    fn pad(&mut self) {
        let missing = self.position().align_up_8().get() - self.position().get();
        self.bytes.resize(self.bytes.len() + missing as usize, 0);
    }
}

/// Some WAL, made of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedWal {
    /// Where the bytes start: the end of the record before.
    pub start: Lsn,
    /// The record. It starts past `start` where a page header comes first.
    pub record: RecordSpan,
    /// The bytes from `start` to the record's end.
    pub bytes: Vec<u8>,
}

/// The WAL of a shutdown checkpoint record that stands exactly at `end_of_log`, whose last record starts at `previous`. The checkpoint's
/// redo pointer is set to the record's own start, and no transaction is said to run: that is what makes it a shutdown checkpoint.
/// Gives the checkpoint as written, for `pg_control`.
pub fn shutdown_checkpoint(
    stream: WalStream,
    end_of_log: Lsn,
    previous: Lsn,
    checkpoint: &CheckPoint,
) -> (EncodedWal, CheckPoint) {
    let mut writer = WalWriter::new(stream, end_of_log.align_up_8(), previous);
    let written = CheckPoint { redo: writer.next_record_start(), oldest_active_xid: 0, ..*checkpoint };
    let body = written.encode(stream.major);
    let builder = RecordBuilder::new(rmgr::XLOG, rmgr::xlog::CHECKPOINT_SHUTDOWN).main_data(body);
    let record = writer.append(&builder);
    (EncodedWal { start: writer.start, record, bytes: writer.bytes }, written)
}

/// A WAL segment file of a new data directory. What no part covers is zero: the file can be made sparse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// File name in `pg_wal`.
    pub name: String,
    /// Length in bytes: the segment size.
    pub len: u64,
    /// Offset and bytes, in ascending order.
    pub parts: Vec<(u64, Vec<u8>)>,
}

/// The segment files that hold `wal` and nothing before it, readable from `wal.start` on: pages that it doesn't begin get a header.
pub fn segment_files(stream: WalStream, wal: &EncodedWal) -> Vec<SegmentFile> {
    let size = stream.segment_size;
    let mut files: Vec<SegmentFile> = Vec::new();
    let mut add = |at: Lsn, bytes: &[u8]| {
        let name = wal_file_name(stream.tli, at.segment_number(size), size);
        if files.last().is_none_or(|file| file.name != name) {
            files.push(SegmentFile { name, len: size.bytes(), parts: Vec::new() });
        }
        let file = files.last_mut().expect("one was just added");
        file.parts.push((at.segment_offset(size), bytes.to_vec()));
    };
    let segment = wal.start.segment_start(size);
    let page = Lsn::new(wal.start.get() - wal.start.page_offset());
    let mut synthetic = vec![segment, page];
    synthetic.dedup();
    for at in synthetic.into_iter().filter(|&at| at < wal.start) {
        let mut header = Vec::new();
        stream.synthetic_page_header(at, wal.start).write(&mut header);
        debug_assert_eq!(header.len(), page_header_len(at, size));
        add(at, &header);
    }
    let mut at = wal.start;
    let mut rest = wal.bytes.as_slice();
    while !rest.is_empty() {
        let room = (size.bytes() - at.segment_offset(size)) as usize;
        let (now, later) = rest.split_at(rest.len().min(room));
        add(at, now);
        at = at.advance(now.len() as u64);
        rest = later;
    }
    files
}
