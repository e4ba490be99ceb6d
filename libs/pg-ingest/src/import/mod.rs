//! From the files of a base backup to values at the backup's start.
//!
//! Files come in any order, their bytes in any chunks; only `pg_control` must be among them. Memory: one page, the list of segments
//! seen, and small files. Pages that lie whole in a chunk are not copied: their values share its memory.

use ardent_api::page_service::ImportSpec;
use ardent_pg_format::PgMajor;
use ardent_pg_format::page::{self, PageBytes};
use ardent_pg_redo::Value;
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Key, RelTag, WalSegmentSize};
use bytes::Bytes;

use crate::ingest::{Origins, WITH_VERSION_FILE, WITHOUT_VERSION_FILE, encode_size, unreadable, zero_page};
use crate::slru;
use crate::state::Batch;

mod finish;
mod label;
mod path;

use path::ImportPath;

/// Blocks in one segment file of a relation (`RELSEG_SIZE`); other builds are refused.
const SEGMENT_BLOCKS: u32 = 131_072;
/// Files that are taken as a whole may be this long; the largest is a prepared transaction's state.
const SMALL_FILE_BYTES_MAX: u64 = 1 << 30;

/// Takes the files of a base backup and gives values, all at the spec's `start_lsn`.
///
/// ```text
/// new ─► (begin_file ─► data*)* ─► finish
/// ```
#[derive(Debug)]
pub struct Import {
    spec: ImportSpec,
    major: PgMajor,
    file: Option<OpenFile>,
    /// The page under way.
    partial: Vec<u8>,
    /// Every relation segment seen, with its blocks.
    segments: Vec<(RelTag, u32, u32)>,
    folders: Vec<(u32, u32, bool)>,
    control_file: Option<Bytes>,
    damaged_pages: u64,
}

/// What an import found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Relation forks.
    pub relations: u64,
    /// Their blocks together.
    pub blocks: u64,
    /// Pages at or below the start LSN whose checksum is wrong: kept as unreadable until WAL brings an image of them.
    pub damaged_pages: u64,
}

#[derive(Debug)]
struct OpenFile {
    path: String,
    kind: ImportPath,
    length: u64,
    received: u64,
    /// Pages done.
    pages: u32,
    /// A small file's content so far.
    content: Vec<u8>,
}

/// The base backup can't be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source's major is not known.
    #[error("Postgres {0} can't be imported: Ardent knows 15 to 18")]
    Major(u32),
    /// A new file, or the end, came before the bytes of the file before.
    #[error("{path} ended after {received} of {length} bytes: the transfer was cut off, import again")]
    CutOff {
        /// The file.
        path: String,
        /// Bytes that came.
        received: u64,
        /// Bytes announced.
        length: u64,
    },
    /// More bytes than announced, or bytes before any file.
    #[error("{path} has more than the {length} bytes that were announced")]
    TooLong {
        /// The file, empty if there was none.
        path: String,
        /// Bytes announced.
        length: u64,
    },
    /// A small file's content is wrong.
    #[error("{path} can't be imported: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A page number past what Postgres can have.
    #[error("{path} has a page past the last one that Postgres can have")]
    PageNumber {
        /// The file.
        path: String,
    },
    /// `global/pg_control` did not come.
    #[error("the backup has no global/pg_control: the transfer was cut off, import again")]
    NoControlFile,
    /// The backup is not of the cluster, or not the backup, that was announced.
    #[error("the backup's {what} is {found}, not {expected}: it is another cluster's or another backup's")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// In the backup.
        found: String,
        /// As announced.
        expected: String,
    },
    /// Taken from a standby: there is no end-of-backup record, so consistency could not be told.
    #[error("the backup was taken from a standby: connect to its primary instead")]
    FromStandby,
}

impl Import {
    /// Begins an import.
    pub fn new(spec: ImportSpec) -> Result<Import, ImportError> {
        let major = PgMajor::from_number(spec.pg_major).ok_or(ImportError::Major(spec.pg_major))?;
        Ok(Import {
            spec,
            major,
            file: None,
            partial: Vec::with_capacity(BLCKSZ),
            segments: Vec::new(),
            folders: Vec::new(),
            control_file: None,
            damaged_pages: 0,
        })
    }

    /// The next file begins. `path` is below the data directory, tablespaces under `pg_tblspc/OID/`.
    pub fn begin_file(&mut self, path: &str, length: u64, out: &mut Batch) -> Result<(), ImportError> {
        self.end_file(out)?;
        let kind = ImportPath::parse(path, self.major);
        let whole = !matches!(kind, ImportPath::Relation { .. } | ImportPath::Slru { .. } | ImportPath::Skipped);
        if whole && length > SMALL_FILE_BYTES_MAX {
            return Err(file_error(path, format!("it is {length} bytes long")));
        }
        if let ImportPath::Relation { rel, segment } = &kind {
            let blocks = u32::try_from(length / BLCKSZ as u64).ok().filter(|blocks| *blocks <= SEGMENT_BLOCKS);
            let first = segment.checked_mul(SEGMENT_BLOCKS);
            let end = blocks.zip(first).and_then(|(blocks, first)| first.checked_add(blocks));
            let (Some(blocks), Some(_)) = (blocks, end) else {
                return Err(ImportError::PageNumber { path: path.to_owned() });
            };
            self.segments.push((*rel, *segment, blocks));
        }
        self.file = Some(OpenFile { path: path.to_owned(), kind, length, received: 0, pages: 0, content: Vec::new() });
        Ok(())
    }

    /// The next bytes of the file.
    pub fn data(&mut self, data: Bytes, out: &mut Batch) -> Result<(), ImportError> {
        let Some(file) = &mut self.file else {
            return Err(ImportError::TooLong { path: String::new(), length: 0 });
        };
        file.received += data.len() as u64;
        if file.received > file.length {
            return Err(ImportError::TooLong { path: file.path.clone(), length: file.length });
        }
        match file.kind {
            ImportPath::Relation { .. } | ImportPath::Slru { .. } => self.pages(data, out),
            ImportPath::Skipped => Ok(()),
            _ => {
                file.content.extend_from_slice(&data);
                Ok(())
            }
        }
    }

    /// Cuts the bytes into pages. A last part that is no whole page does not exist for Postgres either.
    fn pages(&mut self, mut data: Bytes, out: &mut Batch) -> Result<(), ImportError> {
        while !data.is_empty() {
            if self.partial.is_empty() && data.len() >= BLCKSZ {
                self.page(data.split_to(BLCKSZ), out)?;
            } else {
                self.partial.extend_from_slice(&data.split_to(data.len().min(BLCKSZ - self.partial.len())));
                if self.partial.len() == BLCKSZ {
                    let page = std::mem::replace(&mut self.partial, Vec::with_capacity(BLCKSZ));
                    self.page(page.into(), out)?;
                }
            }
        }
        Ok(())
    }

    fn page(&mut self, content: Bytes, out: &mut Batch) -> Result<(), ImportError> {
        let file = self.file.as_mut().expect("pages are only cut while a file is open");
        let number = file.pages;
        file.pages += 1;
        let past_end = || ImportError::PageNumber { path: file.path.clone() };
        match &file.kind {
            ImportPath::Relation { rel, segment } => {
                let block = segment * SEGMENT_BLOCKS + number;
                let value = relation_page(&self.spec, *rel, block, content);
                self.damaged_pages += u64::from(matches!(value, Value::Unreadable(_)));
                out.push(Key::RelBlock(*rel, block), self.spec.start_lsn, value);
            }
            ImportPath::Slru { kind, segment } => {
                let page = segment.checked_mul(slru::PAGES_PER_SEGMENT).and_then(|first| first.checked_add(number));
                let page =
                    page.filter(|page| *page <= slru::page_of(*kind, u32::MAX) && number < slru::PAGES_PER_SEGMENT);
                let page = page.ok_or_else(past_end)?;
                out.push(slru::key(*kind, page), self.spec.start_lsn, Value::Image(content));
            }
            _ => {}
        }
        Ok(())
    }

    fn end_file(&mut self, out: &mut Batch) -> Result<(), ImportError> {
        self.partial.clear();
        let Some(file) = self.file.take() else { return Ok(()) };
        let OpenFile { path, kind, length, received, content, .. } = file;
        if received != length {
            return Err(ImportError::CutOff { path, received, length });
        }
        let lsn = self.spec.start_lsn;
        let mut put = |key, content| out.push(key, lsn, Value::Image(content));
        match kind {
            ImportPath::Relation { rel, .. } => self.folders.push((rel.spcnode, rel.dbnode, false)),
            ImportPath::RelMap { spcnode, dbnode } => put(Key::RelMap { spcnode, dbnode }, Bytes::from(content)),
            ImportPath::DatabaseVersion { spcnode, dbnode } => {
                self.check_version(&path, &content)?;
                self.folders.push((spcnode, dbnode, true));
            }
            ImportPath::ClusterVersion => self.check_version(&path, &content)?,
            ImportPath::TwoPhase { xid } => {
                let whole = content.len().checked_sub(4).map(|len| content.split_at(len));
                if whole.is_none_or(|(body, crc)| crc != crc32c::crc32c(body).to_le_bytes()) {
                    return Err(file_error(&path, "its CRC is wrong".to_owned()));
                }
                put(Key::TwoPhase { xid }, Bytes::from(content));
            }
            ImportPath::ControlFile => self.control_file = Some(Bytes::from(content)),
            ImportPath::BackupLabel => label::check(&content, &self.spec).map_err(|error| error.at(&path))?,
            ImportPath::TablespaceMap => {
                let tablespaces = label::tablespaces(&content).map_err(|problem| file_error(&path, problem))?;
                self.folders.extend(tablespaces.into_iter().map(|spcnode| (spcnode, 0, false)));
            }
            ImportPath::Origins => {
                Origins::decode(&content).ok_or_else(|| file_error(&path, "it is damaged".to_owned()))?;
                put(Origins::KEY, Bytes::from(content));
            }
            ImportPath::Slru { .. } | ImportPath::Skipped => {}
        }
        Ok(())
    }

    fn check_version(&self, path: &str, content: &[u8]) -> Result<(), ImportError> {
        let found = String::from_utf8_lossy(content).trim().to_owned();
        let expected = self.major.to_string();
        if found == expected {
            Ok(())
        } else {
            Err(file_error(path, format!("it says {found:?} where {expected} was announced")))
        }
    }
}

fn file_error(path: &str, problem: String) -> ImportError {
    ImportError::File { path: path.to_owned(), problem }
}

/// A page's value. Pages from after the start may be torn: WAL has an image of each of them (checklist 63). Older ones must be as
/// Postgres wrote them (checklist 65); one that isn't may be torn as well, so it only counts until an image comes.
fn relation_page(spec: &ImportSpec, rel: RelTag, block: BlockNumber, content: Bytes) -> Value {
    let page: &PageBytes = content[..].try_into().expect("one page");
    if page.iter().all(|&byte| byte == 0) {
        return zero_page();
    }
    let settled = page::lsn(page) <= spec.start_lsn;
    if spec.data_checksums && settled && !page::page_checksum_matches(page, block) {
        // Maps are hints: Postgres reads a damaged page of one as zeros.
        if matches!(rel.fork, ForkNumber::Fsm | ForkNumber::Vm) {
            return zero_page();
        }
        return unreadable(format_args!(
            "{rel} block {block} had a wrong checksum when it was imported at {}",
            spec.start_lsn
        ));
    }
    Value::Image(content)
}
