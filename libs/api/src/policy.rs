//! What a branch may do, and the page of memory through which the agent tells the compute library.
//!
//! The agent keeps the page in a file that the sandbox shows read-only, and maps it; the library maps the same file. Byte
//! table: `docs/formats/policy-page.md`.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use ardent_types::Lsn;

/// The limits that a branch was given. Absent: no such limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchPolicy {
    /// Nothing is changed on it.
    #[serde(default)]
    pub read_only: bool,
    /// No statement runs longer than this many milliseconds.
    #[serde(default)]
    pub statement_timeout_ms: Option<u64>,
    /// At most so many rows are inserted, updated and deleted.
    #[serde(default)]
    pub max_rows_changed: Option<u64>,
    /// At most so many bytes of WAL are written from the branch point on.
    #[serde(default)]
    pub max_bytes_written: Option<u64>,
}

impl BranchPolicy {
    /// The same, with limits of 0 taken for none, as people and programs write them.
    #[must_use]
    pub fn normalized(self) -> Self {
        let some = |limit: Option<u64>| limit.filter(|limit| *limit > 0);
        BranchPolicy {
            read_only: self.read_only,
            statement_timeout_ms: some(self.statement_timeout_ms),
            max_rows_changed: some(self.max_rows_changed),
            max_bytes_written: some(self.max_bytes_written),
        }
    }

    /// Whether there is no limit at all.
    pub fn is_empty(&self) -> bool {
        *self == BranchPolicy::default()
    }
}

/// Why a branch takes no changes (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was made read-only.
    ReadOnly,
    /// More rows were changed than allowed.
    RowsChanged,
    /// More bytes were written than allowed.
    BytesWritten,
}

impl Refusal {
    /// The policy's name, as flags and errors have it.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::ReadOnly => "read-only",
            Refusal::RowsChanged => "max-rows-changed",
            Refusal::BytesWritten => "max-bytes-written",
        }
    }
}

/// The shared page. All numbers are in the machine's byte order: it never leaves the host.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PolicyPage {
    magic: AtomicU64,
    read_only: AtomicU64,
    statement_timeout_ms: AtomicU64,
    rows_max: AtomicU64,
    bytes_max: AtomicU64,
    wal_limit: AtomicU64,
    rows_changed: AtomicU64,
    examined: AtomicU64,
    read_lsn: AtomicU64,
}

impl PolicyPage {
    /// `ARDPOL` and version 2.
    const MAGIC: u64 = 0x4152_4450_4F4C_0002;
    /// Length of the file.
    pub const LEN: usize = 4096;

    /// Writes the limits; `from` is where bytes are counted from, `rows_changed` what was counted before.
    pub fn set(&self, policy: &BranchPolicy, from: Lsn, rows_changed: u64) {
        let limit = |value: Option<u64>| value.map_or(0, |value| value.saturating_add(1));
        self.read_only.store(policy.read_only.into(), Ordering::Relaxed);
        self.statement_timeout_ms.store(policy.statement_timeout_ms.unwrap_or(0), Ordering::Relaxed);
        self.rows_max.store(limit(policy.max_rows_changed), Ordering::Relaxed);
        self.bytes_max.store(limit(policy.max_bytes_written), Ordering::Relaxed);
        let wal_limit = policy.max_bytes_written.map_or(0, |bytes| from.get().saturating_add(bytes));
        self.wal_limit.store(wal_limit, Ordering::Relaxed);
        self.rows_changed.store(rows_changed, Ordering::Relaxed);
        self.read_lsn.store(0, Ordering::Relaxed);
        self.magic.store(Self::MAGIC, Ordering::Release);
    }

    /// From now on absent pages are read at `lsn`, or where they were read before if that is later.
    pub fn read_at(&self, lsn: Lsn) {
        self.read_lsn.fetch_max(lsn.get(), Ordering::Release);
    }

    /// What absent pages are read at, if that is later than what the presence map says.
    pub fn read_lsn(&self) -> Lsn {
        Lsn::new(self.read_lsn.load(Ordering::Acquire))
    }

    /// Whether it is a page of this version.
    pub fn is_valid(&self) -> bool {
        self.magic.load(Ordering::Acquire) == Self::MAGIC
    }

    /// All WAL below `lsn` has been looked at and holds, together with what was counted before, so many changed rows.
    pub fn count(&self, lsn: Lsn, rows_changed: u64) {
        self.rows_changed.store(rows_changed, Ordering::Relaxed);
        self.examined.store(lsn.get(), Ordering::Release);
    }

    /// How far the WAL has been looked at; what [`Self::rows_changed`] gives afterwards is at least as new.
    pub fn examined(&self) -> Lsn {
        Lsn::new(self.examined.load(Ordering::Acquire))
    }

    /// Rows changed so far.
    pub fn rows_changed(&self) -> u64 {
        self.rows_changed.load(Ordering::Relaxed)
    }

    /// The limit on statements, in milliseconds.
    pub fn statement_timeout_ms(&self) -> Option<u64> {
        Some(self.statement_timeout_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }

    /// The limit on rows.
    pub fn rows_max(&self) -> Option<u64> {
        self.rows_max.load(Ordering::Relaxed).checked_sub(1)
    }

    /// The limit on bytes.
    pub fn bytes_max(&self) -> Option<u64> {
        self.bytes_max.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Whether and why changes are refused, when the log's end is at `insert_lsn`.
    pub fn refusal(&self, insert_lsn: Lsn) -> Option<Refusal> {
        if self.read_only.load(Ordering::Relaxed) != 0 {
            return Some(Refusal::ReadOnly);
        }
        if self.rows_max().is_some_and(|max| self.rows_changed() > max) {
            return Some(Refusal::RowsChanged);
        }
        let limited = self.bytes_max().is_some() && insert_lsn.get() > self.wal_limit.load(Ordering::Relaxed);
        limited.then_some(Refusal::BytesWritten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_refuse_what_is_past_them() {
        let page = PolicyPage::default();
        assert!(!page.is_valid());
        let policy =
            BranchPolicy { max_rows_changed: Some(10), max_bytes_written: Some(100), ..BranchPolicy::default() };
        page.set(&policy, Lsn::new(1000), 3);
        assert!(page.is_valid());
        assert_eq!((page.rows_max(), page.bytes_max(), page.statement_timeout_ms()), (Some(10), Some(100), None));
        assert_eq!(page.refusal(Lsn::new(1100)), None);
        assert_eq!(page.refusal(Lsn::new(1101)), Some(Refusal::BytesWritten));
        page.count(Lsn::new(1050), 11);
        assert_eq!((page.examined(), page.refusal(Lsn::new(1050))), (Lsn::new(1050), Some(Refusal::RowsChanged)));
        page.set(&BranchPolicy { read_only: true, ..BranchPolicy::default() }, Lsn::new(1000), 0);
        assert_eq!(page.refusal(Lsn::new(1)), Some(Refusal::ReadOnly));
        page.set(&BranchPolicy { max_rows_changed: Some(0), ..BranchPolicy::default() }, Lsn::new(1000), 0);
        assert_eq!(page.refusal(Lsn::new(1)), None, "nothing was changed yet");
        page.read_at(Lsn::new(9));
        page.read_at(Lsn::new(7));
        assert_eq!(page.read_lsn(), Lsn::new(9), "it never goes back");
    }

    #[test]
    fn the_page_is_laid_out_as_documented() {
        assert_eq!(size_of::<PolicyPage>(), 72);
        assert!(BranchPolicy::default().is_empty());
    }
}
