//! Segments: the files of a log. Byte table: `docs/formats/statement-log.md`.
//!
//! ```text
//!  NNNNNNNN.log    the newest: header, then blocks as they came; its end may be torn
//!  NNNNNNNN.zst    older ones: header, then all blocks in one compressed frame
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use ardent_types::TimelineId;

/// `ARDSLOG`; the version follows it.
const MAGIC: [u8; 7] = *b"ARDSLOG";
/// The version that is written.
const VERSION: u8 = 2;
/// The oldest that is read: its sessions have no address.
const VERSION_MIN: u8 = 1;
/// Bytes of a segment's header.
pub(crate) const HEADER_LEN: usize = 48;
/// Bytes before a block: its length and its checksum.
pub(crate) const BLOCK_HEADER_LEN: usize = 8;
/// Bytes of blocks after which a segment is closed.
pub(crate) const SEGMENT_LEN: usize = 4 << 20;
/// Longest block.
pub(crate) const BLOCK_LEN_MAX: usize = 16 << 20;
/// Most bytes of blocks in a segment.
const BLOCKS_LEN_MAX: usize = SEGMENT_LEN + BLOCK_LEN_MAX + BLOCK_HEADER_LEN;
/// Bytes before an entry's record: process id, start of the session, length.
pub(crate) const ENTRY_HEADER_LEN: usize = 16;

/// A file that is no segment of this version, or damaged.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Io {
        /// Its path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{path} is damaged at byte {offset}: {expected} was expected")]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What should be there.
        expected: &'static str,
    },
}

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The timeline that its positions in the WAL are on.
    pub timeline: TimelineId,
    /// The next transaction id, with its epoch, when the branch's Postgres first ran on that timeline: earlier transactions are those
    /// of another timeline.
    pub first_xid: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..7].copy_from_slice(&MAGIC);
        bytes[7] = VERSION;
        bytes[8..24].copy_from_slice(self.timeline.as_bytes());
        bytes[24..32].copy_from_slice(&self.first_xid.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..44]);
        bytes[44..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_LEN] = bytes.get(..HEADER_LEN)?.try_into().ok()?;
        let checksum = u32::from_le_bytes(bytes[44..].try_into().ok()?);
        let is_known = bytes[..7] == MAGIC && (VERSION_MIN..=VERSION).contains(&bytes[7]);
        if !is_known || crc32fast::hash(&bytes[..44]) != checksum {
            return None;
        }
        let timeline = TimelineId::from_bytes(bytes[8..24].try_into().ok()?);
        Some(SegmentHeader { timeline, first_xid: u64::from_le_bytes(bytes[24..32].try_into().ok()?) })
    }
}

/// A session, across all of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    /// Process id, as Postgres shows it.
    pub pid: u32,
    /// When it began, in microseconds since the Unix epoch.
    pub started_us: i64,
}

/// A segment's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Counts segments.
    pub number: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is closed and compressed.
    pub is_closed: bool,
}

/// A segment's content.
#[derive(Debug)]
pub struct Segment {
    /// What it says of itself.
    pub header: SegmentHeader,
    /// It has the version that is written: more can be appended.
    pub(crate) is_current: bool,
    /// Blocks that are whole, without their headers, one after the other.
    entries: Vec<u8>,
    /// Bytes of the file up to the end of the last whole block.
    pub(crate) whole_len: u64,
}

pub(crate) fn segment_path(folder: &Path, number: u64, is_closed: bool) -> PathBuf {
    folder.join(format!("{number:08}.{}", if is_closed { "zst" } else { "log" }))
}

/// The segments in a folder, oldest first. A folder that does not exist has none.
pub fn segments(folder: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut found: Vec<SegmentFile> = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let is_closed = match path.extension().and_then(|extension| extension.to_str()) {
            Some("zst") => true,
            Some("log") => false,
            _ => continue,
        };
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number {
            found.push(SegmentFile { number, path, is_closed });
        }
    }
    // A crash between closing a segment and removing what it was made from leaves both: the closed one is whole.
    found.sort_by_key(|file| (file.number, !file.is_closed));
    found.dedup_by_key(|file| file.number);
    Ok(found)
}

/// Reads only the header; `None`: it has none.
pub(crate) fn read_header(file: &SegmentFile) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; HEADER_LEN];
    match File::open(&file.path)?.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| SegmentHeader::decode(&bytes)),
    }
}

impl Segment {
    /// Reads a segment, open ones up to the last block that is whole. One that is closed or removed meanwhile is looked for again by
    /// the caller.
    pub fn read(file: &SegmentFile) -> Result<Self, SegmentError> {
        let io = |source| SegmentError::Io { path: file.path.clone(), source };
        let damaged = |offset: u64, expected| SegmentError::Damaged { path: file.path.clone(), offset, expected };
        let longest = (HEADER_LEN + BLOCKS_LEN_MAX) as u64;
        let mut bytes = Vec::new();
        File::open(&file.path).map_err(io)?.take(longest + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > longest {
            return Err(damaged(longest, "its end"));
        }
        let header = SegmentHeader::decode(&bytes).ok_or_else(|| damaged(0, "a segment's header"))?;
        let is_current = bytes[7] == VERSION;
        let body = &bytes[HEADER_LEN..];
        if !file.is_closed {
            let (entries, whole_len) = whole_blocks(body);
            return Ok(Segment { header, is_current, entries, whole_len: (HEADER_LEN + whole_len) as u64 });
        }
        let at = HEADER_LEN as u64;
        let word = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
        let (Some(len), Some(checksum)) = (word(0), word(4)) else {
            return Err(damaged(at, "length and checksum of its blocks"));
        };
        let packed = &body[BLOCK_HEADER_LEN..];
        if len as usize > BLOCKS_LEN_MAX {
            return Err(damaged(at, "a length that a segment can have"));
        }
        if crc32fast::hash(packed) != checksum {
            return Err(damaged(at, "compressed blocks with the header's checksum"));
        }
        let blocks = zstd::bulk::decompress(packed, len as usize)
            .map_err(|_| damaged(at + BLOCK_HEADER_LEN as u64, "blocks compressed by zstd"))?;
        let (entries, whole_len) = whole_blocks(&blocks);
        if whole_len != blocks.len() {
            return Err(damaged(at + BLOCK_HEADER_LEN as u64, "whole blocks"));
        }
        Ok(Segment { header, is_current, entries, whole_len: bytes.len() as u64 })
    }

    /// The entries: whose, and the record.
    pub fn entries(&self) -> impl Iterator<Item = (SessionKey, &[u8])> {
        let mut rest = &self.entries[..];
        std::iter::from_fn(move || {
            let header = rest.get(..ENTRY_HEADER_LEN)?;
            let pid = u32::from_le_bytes(header[..4].try_into().ok()?);
            let started_us = i64::from_le_bytes(header[4..12].try_into().ok()?);
            let len = u32::from_le_bytes(header[12..].try_into().ok()?) as usize;
            let record = rest.get(ENTRY_HEADER_LEN..ENTRY_HEADER_LEN + len)?;
            rest = &rest[ENTRY_HEADER_LEN + len..];
            Some((SessionKey { pid, started_us }, record))
        })
    }
}

/// The content of all blocks up to the first that is not whole, and where that begins.
fn whole_blocks(bytes: &[u8]) -> (Vec<u8>, usize) {
    let mut content = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + BLOCK_HEADER_LEN) {
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let start = at + BLOCK_HEADER_LEN;
        let len = word(0) as usize;
        // A length of 0 is a stretch that the file system has made room for, and no more.
        let Some(block) = start.checked_add(len).and_then(|end| bytes.get(start..end)) else { break };
        if len == 0 || crc32fast::hash(block) != word(4) {
            break;
        }
        content.extend_from_slice(block);
        at = start + len;
    }
    (content, at)
}

/// What a closed segment is after its header: `blocks` compressed.
pub(crate) fn pack(blocks: &[u8]) -> io::Result<Vec<u8>> {
    const LEVEL: i32 = 1;
    let packed = zstd::bulk::compress(blocks, LEVEL)?;
    let len = u32::try_from(blocks.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok([&len.to_le_bytes()[..], &crc32fast::hash(&packed).to_le_bytes(), &packed].concat())
}
