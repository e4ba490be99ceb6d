//! What the comparison found.

use std::collections::BTreeMap;
use std::fmt;

use ardent_types::{BlockNumber, RelTag};
use serde::Serialize;

use super::leave::Leave;
use crate::report::{MISMATCHES_MAX, hex};

/// How often a leave was needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeaveCount {
    /// Places that have it: a page's header, one tuple, one line pointer.
    pub places: u64,
    /// Bytes of which a bit may differ.
    pub bytes: u64,
    /// Those that do.
    pub differing: u64,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndDifference {
    /// A relation fork, or a file's path.
    pub place: String,
    /// Block, or page of an SLRU segment.
    pub block: Option<BlockNumber>,
    /// What differs.
    pub what: String,
    /// Offset of the first byte that differs.
    pub offset: Option<usize>,
    /// Our bytes from there.
    pub ours: Vec<u8>,
    /// The server's.
    pub server: Vec<u8>,
}

impl EndDifference {
    pub(super) fn of_fork(rel: RelTag, what: String) -> EndDifference {
        EndDifference::of_file(&rel.to_string(), what)
    }

    pub(super) fn of_page(rel: RelTag, block: BlockNumber, what: String) -> EndDifference {
        EndDifference { block: Some(block), ..EndDifference::of_fork(rel, what) }
    }

    pub(super) fn of_file(path: &str, what: String) -> EndDifference {
        let (ours, server) = (Vec::new(), Vec::new());
        EndDifference { place: path.to_owned(), block: None, what, offset: None, ours, server }
    }
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EndReport {
    /// Records ingested.
    pub records: u64,
    /// Keys with a value at the end.
    pub keys: u64,
    /// Relation forks compared.
    pub relations: u64,
    /// Pages compared.
    pub pages: u64,
    /// Those equal in every byte.
    pub identical_pages: u64,
    /// Pages of visibility maps among them.
    pub map_pages: u64,
    /// SLRU pages compared.
    pub slru_pages: u64,
    /// Relation maps and two-phase files compared.
    pub files: u64,
    /// Fields of `pg_control` compared.
    pub control_fields: u64,
    /// Where pages may differ, and do.
    pub leaves: BTreeMap<Leave, LeaveCount>,
    /// How many differences without leave there are.
    pub differing: u64,
    /// The first of them.
    pub differences: Vec<EndDifference>,
}

impl EndReport {
    pub(super) fn leave(&mut self, leave: Leave, bytes: u64, differing: u64) {
        let count = self.leaves.entry(leave).or_default();
        count.places += 1;
        count.bytes += bytes;
        count.differing += differing;
    }

    pub(super) fn differs(&mut self, difference: EndDifference) {
        self.differing += 1;
        if self.differences.len() < MISMATCHES_MAX {
            self.differences.push(difference);
        }
    }

    /// Whether nothing differs without leave.
    pub fn passed(&self) -> bool {
        self.differing == 0
    }
}

impl fmt::Display for EndReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "the server's files against ingest of {} records: {} relation forks, {} pages ({} identical, {} of visibility maps), \
             {} SLRU pages, {} other files, {} fields of pg_control; {} differ",
            self.records,
            self.relations,
            self.pages,
            self.identical_pages,
            self.map_pages,
            self.slru_pages,
            self.files,
            self.control_fields,
            self.differing
        )?;
        writeln!(f, "{:<22} {:>10} {:>14} {:>14}", "may differ", "places", "bytes", "differing")?;
        for (leave, count) in &self.leaves {
            let name = leave.to_string();
            writeln!(f, "{name:<22} {:>10} {:>14} {:>14}", count.places, count.bytes, count.differing)?;
        }
        for difference in &self.differences {
            write!(f, "differs: {}", difference.place)?;
            if let Some(block) = difference.block {
                write!(f, " block {block}")?;
            }
            if let Some(offset) = difference.offset {
                write!(f, " at offset {offset}")?;
            }
            writeln!(f, ": {}", difference.what)?;
            if !difference.ours.is_empty() {
                writeln!(f, "  ours   {}\n  theirs {}", hex(&difference.ours), hex(&difference.server))?;
            }
        }
        Ok(())
    }
}
