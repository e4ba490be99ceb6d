//! What verification found, for people and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use ardent_types::{BlockNumber, Lsn, RelTag};
use serde::Serialize;

use crate::end::EndReport;

/// At most this many mismatches are kept in detail.
pub(crate) const MISMATCHES_MAX: usize = 20;

/// Counts for one record type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeReport {
    /// Records.
    pub records: u64,
    /// Blocks whose redo was compared with the logged page.
    pub checked: u64,
    /// Blocks that differed.
    pub mismatches: u64,
    /// Blocks whose logged image was to be applied: taken over, nothing to compare.
    pub images_applied: u64,
    /// Blocks that appeared for the first time with their history before this WAL: the logged page was taken over.
    pub first_seen: u64,
    /// Blocks that were skipped because there is no redo.
    pub unreadable: u64,
    /// Blocks without a logged page: redone, not compared.
    pub unchecked: u64,
    /// Bytes with ignored bits, over all comparisons.
    pub masked_bytes: u64,
    /// Page LSNs compared: that of the logged page, which is from before the record, with ours before redo.
    pub lsns_checked: u64,
    /// Map bits cleared on pages that the record does not reference.
    pub derived_vm_changes: u64,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// End of the record.
    pub lsn: Lsn,
    /// Resource manager and record type.
    pub record: String,
    /// Relation fork.
    pub rel: RelTag,
    /// Block.
    pub block: BlockNumber,
    /// What was compared, or redo's error.
    pub what: String,
    /// Offset of the first byte that differs.
    pub offset: usize,
    /// Our bytes from there.
    pub ours: Vec<u8>,
    /// Postgres's bytes from there.
    pub theirs: Vec<u8>,
}

/// The outcome of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// From the first record's start to the last one's end.
    pub range: Option<(Lsn, Lsn)>,
    /// All records, those without blocks included.
    pub records: u64,
    /// Pages in memory at the end.
    pub pages: u64,
    /// By resource manager and record type, as `Heap/INSERT`; only records that reference blocks.
    pub types: BTreeMap<String, TypeReport>,
    /// Records that reference no block, by type: there is nothing to redo, only to ingest.
    pub without_blocks: BTreeMap<String, u64>,
    /// The first mismatches.
    pub mismatches: Vec<Mismatch>,
    /// Expected record types that no block was checked for, or that never appeared.
    pub missing: Vec<String>,
    /// Record types that appeared and that the list of expected ones does not know.
    pub unlisted: Vec<String>,
    /// Record types that were skipped as unreadable and are not listed as allowed.
    pub unexpected_unreadable: Vec<String>,
    /// The comparison with the server's files, if it was asked for.
    pub end_state: Option<EndReport>,
}

/// Record types that must be checked or appear, those that may have no redo, and those that can't be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    /// Must have at least one check.
    pub checked: BTreeSet<String>,
    /// Consist of images: must have at least one applied.
    pub images: BTreeSet<String>,
    /// May be unreadable.
    pub unreadable: BTreeSet<String>,
    /// Reference no block that could be checked: must appear.
    pub seen: BTreeSet<String>,
    /// Can't be provoked, each for a reason.
    pub absent: BTreeMap<String, String>,
}

/// Which list of record types a run is held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedTypes {
    /// The built-in one of the major that wrote the WAL. It has every record type, so only WAL that was made to reach them all passes.
    OfMajor,
    /// One in a file.
    File(PathBuf),
}

impl From<OsString> for ExpectedTypes {
    /// `major`, or the path of a file.
    fn from(text: OsString) -> ExpectedTypes {
        if text == "major" { ExpectedTypes::OfMajor } else { ExpectedTypes::File(PathBuf::from(text)) }
    }
}

impl ExpectedTypes {
    /// The list, for WAL of `major`.
    pub fn load(&self, major: u32) -> Result<Expectations, ExpectationsError> {
        match self {
            ExpectedTypes::OfMajor => Expectations::of_major(major).ok_or(ExpectationsError::NoList { major }),
            ExpectedTypes::File(path) => Expectations::load(path),
        }
    }
}

/// The list can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ExpectationsError {
    /// No list is built in for the major.
    #[error("no list of record types is built in for Postgres {major}: name a file with one")]
    NoList {
        /// The major.
        major: u32,
    },
    /// I/O.
    #[error("{path}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line is not a record type, alone or after one of the words, or an absence has no reason.
    #[error(
        "line {line}: {text:?} is not a record type such as Heap/INSERT, alone or after image, unreadable, seen, or absent with a reason behind"
    )]
    Line {
        /// Counted from 1.
        line: usize,
        /// What it says.
        text: String,
    },
}

impl Expectations {
    /// Reads a list: one record type a line; `image TYPE` for those that consist of images, `seen TYPE` for those without blocks,
    /// `absent TYPE REASON` for those that can't be had, `unreadable TYPE` for allowed refusals; `#` starts a comment.
    pub fn parse(text: &str) -> Result<Expectations, ExpectationsError> {
        let mut expectations = Expectations::default();
        for (index, line) in text.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or_default().trim();
            let error = || ExpectationsError::Line { line: index + 1, text: line.to_owned() };
            let (set, name) = match entry.split_once(' ') {
                Some(("unreadable", name)) => (&mut expectations.unreadable, name.trim()),
                Some(("image", name)) => (&mut expectations.images, name.trim()),
                Some(("seen", name)) => (&mut expectations.seen, name.trim()),
                Some(("absent", rest)) => {
                    let (name, reason) = rest.trim().split_once(' ').ok_or_else(error)?;
                    if !is_record_type(name) {
                        return Err(error());
                    }
                    expectations.absent.insert(name.to_owned(), reason.trim().to_owned());
                    continue;
                }
                _ => (&mut expectations.checked, entry),
            };
            if name.is_empty() {
                continue;
            }
            if !is_record_type(name) {
                return Err(error());
            }
            set.insert(name.to_owned());
        }
        Ok(expectations)
    }

    /// The list of a major, if there is one.
    pub fn of_major(major: u32) -> Option<Expectations> {
        let text = match major {
            15 => crate::EXPECTED_15,
            16 => crate::EXPECTED_16,
            17 => crate::EXPECTED_17,
            18 => crate::EXPECTED_18,
            _ => return None,
        };
        Expectations::parse(text).ok()
    }

    /// The list without the record types that must only appear: for a workload that does not reach those.
    #[must_use]
    pub fn of_blocks(mut self) -> Expectations {
        let seen = std::mem::take(&mut self.seen);
        self.absent.extend(seen.into_iter().map(|name| (name, "the workload does not reach it".to_owned())));
        self
    }

    /// Whether the list says anything of this record type.
    pub fn knows(&self, name: &str) -> bool {
        let sets = [&self.checked, &self.images, &self.seen, &self.unreadable];
        sets.iter().any(|set| set.contains(name)) || self.absent.contains_key(name)
    }

    /// Reads a list from a file.
    pub fn load(path: &Path) -> Result<Expectations, ExpectationsError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ExpectationsError::Io { path: path.to_owned(), source })?;
        Expectations::parse(&text)
    }
}

impl Report {
    pub(crate) fn entry(&mut self, record: &str) -> &mut TypeReport {
        if !self.types.contains_key(record) {
            self.types.insert(record.to_owned(), TypeReport::default());
        }
        self.types.get_mut(record).expect("just inserted")
    }

    /// Applies a list of expectations: fills [`Report::missing`] and [`Report::unlisted`], and takes allowed refusals out of
    /// [`Report::unexpected_unreadable`].
    pub fn expect(&mut self, expectations: &Expectations) {
        let lacks = |name: &&String, count: fn(&TypeReport) -> u64| self.types.get(*name).is_none_or(|t| count(t) == 0);
        let checked = expectations.checked.iter().filter(|name| lacks(name, |counts| counts.checked));
        let images = expectations.images.iter().filter(|name| lacks(name, |counts| counts.images_applied));
        let appeared = |name: &&String| self.types.contains_key(*name) || self.without_blocks.contains_key(*name);
        let seen = expectations.seen.iter().filter(|name| !appeared(name));
        self.missing = checked.chain(images).chain(seen).cloned().collect();
        let all = self.types.keys().chain(self.without_blocks.keys());
        self.unlisted = all.filter(|name| !expectations.knows(name)).cloned().collect();
        self.unexpected_unreadable.retain(|name| !expectations.unreadable.contains(name));
    }

    /// Counts over all record types.
    pub fn total(&self) -> TypeReport {
        self.types.values().fold(TypeReport::default(), |sum, part| TypeReport {
            records: sum.records + part.records,
            checked: sum.checked + part.checked,
            mismatches: sum.mismatches + part.mismatches,
            images_applied: sum.images_applied + part.images_applied,
            first_seen: sum.first_seen + part.first_seen,
            unreadable: sum.unreadable + part.unreadable,
            unchecked: sum.unchecked + part.unchecked,
            masked_bytes: sum.masked_bytes + part.masked_bytes,
            lsns_checked: sum.lsns_checked + part.lsns_checked,
            derived_vm_changes: sum.derived_vm_changes + part.derived_vm_changes,
        })
    }

    /// Whether nothing differed, nothing expected is missing, nothing unknown appeared, and nothing was skipped without leave. Otherwise the command
    /// exits with 1.
    pub fn passed(&self) -> bool {
        let end_state = self.end_state.as_ref().is_none_or(EndReport::passed);
        self.total().mismatches == 0
            && self.missing.is_empty()
            && self.unlisted.is_empty()
            && self.unexpected_unreadable.is_empty()
            && end_state
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((from, to)) = self.range {
            writeln!(f, "WAL from {from} to {to}: {} records, {} pages", self.records, self.pages)?;
        }
        writeln!(
            f,
            "{:<32} {:>9} {:>9} {:>10} {:>8} {:>10} {:>10} {:>9} {:>9} {:>12}",
            "record type",
            "records",
            "checked",
            "mismatches",
            "images",
            "first seen",
            "unreadable",
            "unchecked",
            "LSNs",
            "masked bytes"
        )?;
        let mut line = |name: &str, counts: &TypeReport| {
            writeln!(
                f,
                "{:<32} {:>9} {:>9} {:>10} {:>8} {:>10} {:>10} {:>9} {:>9} {:>12}",
                name,
                counts.records,
                counts.checked,
                counts.mismatches,
                counts.images_applied,
                counts.first_seen,
                counts.unreadable,
                counts.unchecked,
                counts.lsns_checked,
                counts.masked_bytes
            )
        };
        for (name, counts) in &self.types {
            line(name, counts)?;
        }
        let total = self.total();
        line("total", &total)?;
        writeln!(f, "visibility-map changes derived from heap records: {}", total.derived_vm_changes)?;
        writeln!(f, "{:<32} {:>9}", "records without blocks", self.without_blocks.values().sum::<u64>())?;
        for (name, records) in &self.without_blocks {
            writeln!(f, "{name:<32} {records:>9}")?;
        }
        for mismatch in &self.mismatches {
            writeln!(
                f,
                "mismatch: {} that ends at {}, {} block {}, {} at offset {}\n  ours   {}\n  theirs {}",
                mismatch.record,
                mismatch.lsn,
                mismatch.rel,
                mismatch.block,
                mismatch.what,
                mismatch.offset,
                hex(&mismatch.ours),
                hex(&mismatch.theirs)
            )?;
        }
        for name in &self.missing {
            writeln!(f, "never checked, but expected: {name}")?;
        }
        for name in &self.unlisted {
            writeln!(f, "not in the list of expected record types: {name}")?;
        }
        for name in &self.unexpected_unreadable {
            writeln!(f, "skipped without redo, and not listed as allowed: {name}")?;
        }
        if let Some(end_state) = &self.end_state {
            write!(f, "{end_state}")?;
        }
        writeln!(f, "{}", if self.passed() { "passed" } else { "FAILED" })
    }
}

fn is_record_type(name: &str) -> bool {
    name.contains('/') && !name.contains(char::is_whitespace)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
