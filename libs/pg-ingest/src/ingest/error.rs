//! Why ingest stops.

use ardent_pg_format::DecodedRecord;
use ardent_pg_redo::RedoError;
use ardent_types::{Key, Lsn};

use super::main_data::CutShort;

/// Ingest of a timeline cannot go on. `E` is storage's error.
#[derive(Debug, thiserror::Error)]
pub enum IngestError<E: std::error::Error + 'static> {
    /// Storage could not be read. Load again once it can.
    #[error("the state needed to ingest {} can't be read", ingested(*lsn))]
    State {
        /// End of the record; zero while loading.
        lsn: Lsn,
        /// Storage's reason.
        source: E,
    },
    /// A key that ingest keeps itself is missing or damaged: the timeline needs a new import.
    #[error("{key} is missing or damaged in storage")]
    Damaged {
        /// The key.
        key: Key,
    },
    /// The record does not follow the last one: the stream was not continued where storage's last batch ended.
    #[error("a WAL record that ends at {lsn} came after one that ends at {last}")]
    OutOfOrder {
        /// End of the record.
        lsn: Lsn,
        /// End of the record before.
        last: Lsn,
    },
    /// From here on WAL does not say all that changes: what is built from it would be wrong.
    #[error(
        "from {lsn} on the source writes its WAL with wal_level=minimal, which leaves changes out: set wal_level to replica, \
         restart the source and import it again"
    )]
    MinimalWal {
        /// End of the record that says so.
        lsn: Lsn,
    },
    /// A record of a known resource manager makes no sense although its CRC is right: it is of a version that this build does not
    /// know.
    #[error(
        "the WAL record that ends at {lsn} (resource manager {rmid}, type {info:#04x}) is malformed: {what}; it may need a \
         newer Ardent"
    )]
    Malformed {
        /// End of the record.
        lsn: Lsn,
        /// Resource manager id.
        rmid: u8,
        /// Type and flags.
        info: u8,
        /// What is wrong.
        what: String,
    },
}

/// What was to be ingested: a record, by its end, or all WAL that comes next.
fn ingested(lsn: Lsn) -> String {
    if lsn.is_valid() { format!("the WAL record that ends at {lsn}") } else { "WAL".to_owned() }
}

/// [`IngestError`] without its record.
#[derive(Debug)]
pub(super) enum Fault<E> {
    State(E),
    Malformed(String),
    OutOfOrder { last: Lsn },
    MinimalWal,
}

impl<E: std::error::Error + 'static> Fault<E> {
    pub fn of_record(self, record: &DecodedRecord<'_>) -> IngestError<E> {
        let lsn = record.end_lsn;
        match self {
            Fault::State(source) => IngestError::State { lsn, source },
            Fault::OutOfOrder { last } => IngestError::OutOfOrder { lsn, last },
            Fault::MinimalWal => IngestError::MinimalWal { lsn },
            Fault::Malformed(what) => {
                IngestError::Malformed { lsn, rmid: record.header.rmid, info: record.header.info, what }
            }
        }
    }
}

impl<E> From<CutShort> for Fault<E> {
    fn from(_: CutShort) -> Self {
        Fault::Malformed("its main data is cut short".to_owned())
    }
}

impl<E> From<RedoError> for Fault<E> {
    fn from(error: RedoError) -> Self {
        Fault::Malformed(error.to_string())
    }
}
