//! The second oracle: what ingest makes of a base backup and all WAL after it, against the files of the server that wrote
//! that WAL, once it was shut down cleanly.
//!
//! ```text
//!  base: data directory ──Import──┐
//!                                 ├──► Contents (newest content of every key) ──┐
//!  records after it ──────Ingest──┘                                             ├─ page by page, file by file ─► EndReport
//!                                     data directory after the shutdown ────────┘
//! ```
//!
//! Here page LSNs, `PD_ALL_VISIBLE` and every bit of visibility maps are compared as they are. What Postgres changes on a
//! page without logging it can't be known from WAL: each such change is a [`Leave`], which is counted.

mod compare;
mod contents;
mod directory;
mod leave;
mod report;
mod small_files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ardent_api::page_service::ImportSpec;
use ardent_pg_format::{ClusterState, ControlFile, DecodedRecord, PgMajor, rmgr};
use ardent_pg_ingest::{Batch, Import, ImportError, Ingest, IngestError, Progress};
use ardent_pg_redo::ReconstructError;
use ardent_types::{BlockNumber, ForkNumber, Lsn, RelTag};

use contents::Contents;
use directory::DataDirectory;

pub use leave::Leave;

pub use report::{EndDifference, EndReport, LeaveCount};

/// The end state can't be compared at all.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// I/O.
    #[error("{path}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of a data directory is not what its name says.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The directory's server was not shut down cleanly.
    #[error("the server of {folder} was not shut down: its state is {state:?}; stop it with pg_ctl stop -m fast", folder = folder.display())]
    NotShutDown {
        /// The data directory.
        folder: PathBuf,
        /// What `pg_control` says.
        state: ClusterState,
    },
    /// The WAL ends before the shutdown of the server, or goes on behind it.
    #[error("the last record read starts at {read}, the shutdown checkpoint of {folder} at {expected}", folder = folder.display())]
    OtherEnd {
        /// The data directory.
        folder: PathBuf,
        /// Start of the last record.
        read: Lsn,
        /// Where `pg_control` says that the shutdown checkpoint is.
        expected: Lsn,
    },
    /// The base is refused.
    #[error("the base can't be imported")]
    Import(#[from] ImportError),
    /// Ingest refuses a record.
    #[error("ingest stopped")]
    Ingest(#[source] Box<IngestError<ReconstructError>>),
    /// A key that must be readable is not.
    #[error("a key can't be read")]
    Read(#[from] ReconstructError),
}

impl From<IngestError<ReconstructError>> for EndError {
    fn from(error: IngestError<ReconstructError>) -> EndError {
        EndError::Ingest(Box::new(error))
    }
}

/// What WAL tells of pages whose end state Postgres's own redo would not reach either.
#[derive(Default)]
struct Notes {
    /// Map pages that `CREATE DATABASE ... STRATEGY wal_log` logged without their content, each with the end of the last record that
    /// references it: a server references a map page only if it changes it.
    maps_logged_empty: BTreeMap<(RelTag, BlockNumber), Lsn>,
    /// Pages stamped with a hint's record that carries no image (checksums with `full_page_writes = off`).
    hints_without_image: BTreeMap<(RelTag, BlockNumber), Lsn>,
}

impl Notes {
    /// What is true of a database's pages is true of their copies.
    fn copy(&mut self, source: (u32, u32), target: (u32, u32)) {
        let of_source = |(rel, _): &(RelTag, BlockNumber)| (rel.spcnode, rel.dbnode) == source;
        let copied =
            |(rel, block): (RelTag, BlockNumber)| (RelTag { spcnode: target.0, dbnode: target.1, ..rel }, block);
        for pages in [&mut self.maps_logged_empty, &mut self.hints_without_image] {
            let copies = pages.iter().filter(|(page, _)| of_source(page));
            let copies: Vec<_> = copies.map(|(page, lsn)| (copied(*page), *lsn)).collect();
            pages.extend(copies);
        }
    }
}

/// Tablespace and database of source and target, if the record copies a database's files.
pub(crate) fn database_copy(record: &DecodedRecord) -> Option<((u32, u32), (u32, u32))> {
    const CREATE_FILE_COPY: u8 = 0x00;
    if record.header.rmid != rmgr::DATABASE || record.header.info & 0xF0 != CREATE_FILE_COPY {
        return None;
    }
    let main = record.main_data();
    let word = |index: usize| {
        let bytes = main.get(index * 4..index * 4 + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
    };
    let (db, spc, source_db, source_spc) = (word(0)?, word(1)?, word(2)?, word(3)?);
    Some(((source_spc, source_db), (spc, db)))
}

/// The state that ingest makes, record by record.
pub struct EndState {
    major: PgMajor,
    start: Lsn,
    contents: Contents,
    ingest: Ingest,
    batch: Batch,
    notes: Notes,
    last: Lsn,
    records: u64,
}

impl EndState {
    /// Imports the data directory of a server that was shut down; WAL goes on from there.
    pub fn begin(base: &Path) -> Result<EndState, EndError> {
        let directory = DataDirectory::open(base)?;
        let control = directory.shut_down_control()?;
        let spec = import_spec(&control);
        let start = spec.start_lsn;
        let mut contents = Contents::new(control.major);
        let mut batch = Batch::default();
        let mut import = Import::new(spec)?;
        for path in directory.files()? {
            let content = directory.read(&path)?;
            import.begin_file(&path, content.len() as u64, &mut batch)?;
            import.data(content.into(), &mut batch)?;
            contents.apply(&mut batch);
        }
        import.finish(&mut batch)?;
        contents.apply(&mut batch);
        let ingest = Ingest::load(control.major, Lsn::INVALID, &contents)?;
        let notes = Notes::default();
        Ok(EndState { major: control.major, start, contents, ingest, batch, notes, last: Lsn::INVALID, records: 0 })
    }

    /// Takes the next record; those from before the base are passed over.
    pub fn follow(&mut self, record: &DecodedRecord) -> Result<(), EndError> {
        if record.start_lsn < self.start {
            return Ok(());
        }
        self.note(record);
        self.records += 1;
        self.last = record.start_lsn;
        loop {
            let progress = self.ingest.ingest(record, &self.contents, &mut self.batch)?;
            self.contents.apply(&mut self.batch);
            if progress == Progress::Done {
                return Ok(());
            }
        }
    }

    fn note(&mut self, record: &DecodedRecord) {
        if let Some((source, target)) = database_copy(record) {
            self.notes.copy(source, target);
        }
        let is_hint = record.header.rmid == rmgr::XLOG && record.header.info & 0xF0 == rmgr::xlog::FPI_FOR_HINT;
        for block in record.blocks {
            let page = (block.rel, block.blkno);
            if let Some(last) = self.notes.maps_logged_empty.get_mut(&page) {
                *last = record.end_lsn;
            }
            match &block.image {
                Some(image) if image.apply && block.rel.fork == ForkNumber::Vm && image.hole_length > 0 => {
                    self.notes.maps_logged_empty.insert(page, record.end_lsn);
                }
                Some(image) if image.apply => {
                    self.notes.maps_logged_empty.remove(&page);
                    self.notes.hints_without_image.remove(&page);
                }
                _ if is_hint => {
                    self.notes.hints_without_image.insert(page, record.end_lsn);
                }
                _ => {}
            }
        }
    }

    /// Compares with the data directory after the shutdown.
    pub fn compare(&self, data: &Path) -> Result<EndReport, EndError> {
        let directory = DataDirectory::open(data)?;
        let control = directory.shut_down_control()?;
        if control.checkpoint_lsn != self.last {
            let folder = data.to_owned();
            return Err(EndError::OtherEnd { folder, read: self.last, expected: control.checkpoint_lsn });
        }
        let mut report = EndReport { records: self.records, ..EndReport::default() };
        compare::relations(self, &directory, &mut report)?;
        small_files::slrus(self, &directory, &mut report)?;
        small_files::maps_and_prepared(self, &directory, &mut report)?;
        small_files::control(self, &control, &mut report)?;
        Ok(report)
    }
}

fn import_spec(control: &ControlFile) -> ImportSpec {
    ImportSpec {
        pg_major: control.major.number(),
        system_id: control.system_id,
        pg_tli: control.checkpoint.tli,
        wal_segment_size: control.wal_segment_size,
        data_checksums: control.data_checksum_version != 0,
        start_lsn: control.checkpoint.redo,
    }
}
