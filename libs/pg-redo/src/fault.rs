//! What can be wrong with a record or a page, cheap to make and without context; [`RedoError`] adds the context once.

use std::borrow::Cow;

use ardent_pg_format::{PgMajor, rmgr};
use ardent_types::{BlockNumber, Lsn, RelTag};

/// Why a redo function gave up. The page may be half changed then and must be thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The record's own bytes make no sense.
    Record(&'static str),
    /// The page is not one that this record could have been written for.
    Page(&'static str),
    /// The record type is not known.
    Unsupported,
}

/// Why a record could not be redone on a block. The page's content is unspecified afterwards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedoError {
    /// No redo for this record type: the block is unreadable until an image or a new initialisation of it follows.
    #[error("no redo for {rmgr} record type {info:#04x} (resource manager {rmid}) that ends at {lsn}")]
    Unsupported {
        /// Resource manager id.
        rmid: u8,
        /// Its name.
        rmgr: Cow<'static, str>,
        /// The record's `xl_info`.
        info: u8,
        /// End of the record.
        lsn: Lsn,
    },
    /// The record's bytes contradict themselves, or it has no such block.
    #[error("malformed {record} record that ends at {lsn}, for {rel} block {blkno}: {what}")]
    Record {
        /// Resource manager and record type.
        record: String,
        /// End of the record.
        lsn: Lsn,
        /// Relation fork.
        rel: RelTag,
        /// Block.
        blkno: BlockNumber,
        /// What is wrong.
        what: &'static str,
    },
    /// The page and the record do not fit together: an earlier version is missing or damaged.
    #[error("{record} record that ends at {lsn} does not fit {rel} block {blkno}: {what}")]
    Page {
        /// Resource manager and record type.
        record: String,
        /// End of the record.
        lsn: Lsn,
        /// Relation fork.
        rel: RelTag,
        /// Block.
        blkno: BlockNumber,
        /// What is wrong.
        what: &'static str,
    },
    /// The record has no reference to such a block.
    #[error("the record that ends at {lsn} has no block reference {id}")]
    NoSuchBlock {
        /// The id asked for.
        id: u8,
        /// End of the record.
        lsn: Lsn,
    },
}

impl RedoError {
    pub(crate) fn new(
        fault: Fault,
        major: PgMajor,
        view: &crate::RecordView<'_>,
        rel: RelTag,
        blkno: BlockNumber,
    ) -> RedoError {
        let record = || {
            let kind = rmgr::identify(view.rmid, view.info, major).unwrap_or("unknown");
            format!("{}/{kind}", rmgr::name(view.rmid))
        };
        let lsn = view.end_lsn;
        match fault {
            Fault::Record(what) => RedoError::Record { record: record(), lsn, rel, blkno, what },
            Fault::Page(what) => RedoError::Page { record: record(), lsn, rel, blkno, what },
            Fault::Unsupported => {
                RedoError::Unsupported { rmid: view.rmid, rmgr: rmgr::name(view.rmid), info: view.info, lsn }
            }
        }
    }
}
