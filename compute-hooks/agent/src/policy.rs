//! The branch's policy: the page of memory that tells the compute library, and the gate that WAL passes on its way to the
//! quorum.
//!
//! ```text
//!  walsender ── WAL ──► PolicyGate ──► quorum
//!                         │ counts rows, looks for commits of what is forbidden
//!                         └──► page ──► library (refuses in time, with an error that names the policy)
//! ```
//!
//! Invariant: what the gate refuses is on no quorum, so it never happened, whatever was run inside Postgres. The library
//! refuses before, so the gate closes only on a session that has got around the library.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use ardent_api::compute::Usage;
use ardent_api::policy::{BranchPolicy, PolicyPage, Refusal};
use ardent_pg_format::rmgr::{self, xlog};
use ardent_pg_format::{DecodedRecord, PgMajor, WalDecoder};
use ardent_types::{Lsn, WalSegmentSize};
use bytes::Bytes;
use tokio::sync::watch;

use crate::error::ComputeError;

/// How much the log may pass the limit of bytes: the library stops everybody at the limit, and what was under way, the
/// checkpoints and vacuum go on a little.
const BYTES_SLACK: u64 = 64 << 20;
/// How many more rows than allowed may have been changed when a transaction commits that was within the limit when the
/// library let it pass.
const ROWS_SLACK_MIN: u64 = 1000;
/// Transactions with changes that are neither committed nor aborted; more are not kept track of but refused.
const OPEN_MAX: usize = 1 << 20;
/// `FirstNormalObjectId`: relations below are the catalog's.
const FIRST_NORMAL_RELNODE: u32 = 16384;
/// `pg_largeobject`: in the catalog, and users' data all the same.
const LARGE_OBJECTS: u32 = 2613;
/// `pg_statistic`, `pg_statistic_ext_data` and what they keep out of line.
const STATISTICS: [u32; 4] = [2619, 2840, 3429, 3430];
/// How often control is told of the count.
pub(crate) const TELL_EVERY: Duration = Duration::from_secs(2);

/// Record types of the heap (`heapam_xlog.h`), without the flag for a new page.
mod heap {
    pub(super) const INSERT: u8 = 0x00;
    pub(super) const DELETE: u8 = 0x10;
    pub(super) const UPDATE: u8 = 0x20;
    pub(super) const TRUNCATE: u8 = 0x30;
    pub(super) const HOT_UPDATE: u8 = 0x40;
    pub(super) const MULTI_INSERT: u8 = 0x50;
}

/// Record types of transactions (`xact.h`), without the flag for more fields.
mod xact {
    pub(super) const COMMIT: u8 = 0x00;
    pub(super) const PREPARE: u8 = 0x10;
    pub(super) const ABORT: u8 = 0x20;
    pub(super) const COMMIT_PREPARED: u8 = 0x30;
    pub(super) const HAS_INFO: u8 = 0x80;
    pub(super) const HAS_DATABASE: u32 = 1;
    pub(super) const HAS_SUBTRANSACTIONS: u32 = 2;
}

/// The page, mapped for writing.
#[derive(Debug)]
pub(crate) struct MappedPage {
    page: *const PolicyPage,
}

// SAFETY: the page is made of atomics, and the mapping belongs to nobody else.
unsafe impl Send for MappedPage {}
// SAFETY: as above.
unsafe impl Sync for MappedPage {}

impl MappedPage {
    pub(crate) fn create(path: &Path) -> Result<Self, ComputeError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path);
        let file = file.map_err(ComputeError::io("cannot make", path))?;
        file.set_len(PolicyPage::LEN as u64).map_err(ComputeError::io("cannot set the size of", path))?;
        // The umask may have taken away what Postgres's user needs.
        let readable = std::fs::Permissions::from_mode(0o644);
        file.set_permissions(readable).map_err(ComputeError::io("cannot set the mode of", path))?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of an open file that is long enough.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), PolicyPage::LEN, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(ComputeError::io("cannot map", path)(std::io::Error::last_os_error()));
        }
        Ok(MappedPage { page: at.cast_const().cast() })
    }

    pub(crate) fn get(&self) -> &PolicyPage {
        // SAFETY: mapped until we are dropped; aligned to a memory page.
        unsafe { &*self.page }
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `create`, with this length.
        unsafe { libc::munmap(self.page.cast_mut().cast(), PolicyPage::LEN) };
    }
}

/// Everything that WAL is held against.
#[derive(Debug)]
pub(crate) struct PolicyGate {
    branch: String,
    policy: BranchPolicy,
    page: MappedPage,
    /// Only where records have to be looked at.
    decoder: Option<WalDecoder>,
    /// Transactions (and subtransactions) with changes that have not ended.
    open: HashSet<u32>,
    usage: watch::Sender<Usage>,
    /// No WAL beyond.
    last_lsn: Option<Lsn>,
}

/// What a gate is made from.
#[derive(Debug)]
pub(crate) struct GateInput<'a> {
    pub(crate) branch: &'a str,
    pub(crate) policy: &'a BranchPolicy,
    /// Where bytes are counted from.
    pub(crate) branch_lsn: Lsn,
    /// What was counted before.
    pub(crate) rows_changed: u64,
    /// Where the WAL of this run begins: the end of a record.
    pub(crate) start: Lsn,
    pub(crate) major: PgMajor,
    pub(crate) segment_size: WalSegmentSize,
}

impl PolicyGate {
    /// Writes the page at `path` and stands ready for WAL.
    pub(crate) fn open(path: &Path, input: &GateInput<'_>) -> Result<Self, ComputeError> {
        let page = MappedPage::create(path)?;
        page.get().set(input.policy, input.branch_lsn, input.rows_changed);
        page.get().count(input.start, input.rows_changed);
        Ok(Self::with(page, input))
    }

    /// Stands ready for the WAL of a Postgres that goes on, with the page that it has. Only where [`can_be_taken_over`] says so.
    pub(crate) fn take_over(path: &Path, input: &GateInput<'_>) -> Result<Self, ComputeError> {
        Ok(Self::with(MappedPage::create(path)?, input))
    }

    fn with(page: MappedPage, input: &GateInput<'_>) -> Self {
        let GateInput { branch, policy, branch_lsn, rows_changed, start, major, segment_size } = *input;
        let looks_inside = looks_inside(policy);
        let limit = policy.max_bytes_written.map(|bytes| branch_lsn.advance(bytes).max(start).advance(BYTES_SLACK));
        PolicyGate {
            branch: branch.to_owned(),
            policy: policy.clone(),
            page,
            decoder: looks_inside.then(|| WalDecoder::new(start, major, segment_size)),
            open: HashSet::new(),
            usage: watch::Sender::new(Usage { rows_changed, counted_to: start }),
            last_lsn: limit,
        }
    }

    /// The count, as it goes on.
    pub(crate) fn usage(&self) -> watch::Receiver<Usage> {
        self.usage.subscribe()
    }

    /// Whether there is nothing that WAL could be refused for: then nobody has to look at it.
    pub(crate) fn lets_all_pass(&self) -> bool {
        self.decoder.is_none() && self.last_lsn.is_none()
    }

    /// Looks at WAL before it goes on to the quorum. Bytes that were looked at before may come again.
    pub(crate) fn pass(&mut self, start: Lsn, bytes: &Bytes) -> Result<(), ComputeError> {
        let end = start.advance(bytes.len() as u64);
        if self.last_lsn.is_some_and(|last| end > last) {
            return Err(self.broken(Refusal::BytesWritten));
        }
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        let known = decoder.fed_to().get().saturating_sub(start.get());
        let Some(new) = usize::try_from(known).ok().filter(|known| *known < bytes.len()) else { return Ok(()) };
        let unreadable = |error| ComputeError::Invalid(format!("Postgres wrote WAL that cannot be read: {error}"));
        decoder.feed_at(start.advance(known), bytes.slice(new..)).map_err(unreadable)?;
        let mut usage = *self.usage.borrow();
        loop {
            let Some(decoder) = &mut self.decoder else { return Ok(()) };
            let Some(record) = decoder.next().map_err(unreadable)? else {
                usage.counted_to = decoder.end_of_last_record();
                break;
            };
            usage.rows_changed += changed_rows(&record);
            if let Some(refusal) = refusal(&self.policy, &mut self.open, &record, usage.rows_changed) {
                return Err(self.broken(refusal));
            }
        }
        self.page.get().count(usage.counted_to, usage.rows_changed);
        self.usage.send_if_modified(|known| std::mem::replace(known, usage) != usage);
        Ok(())
    }

    fn broken(&self, refusal: Refusal) -> ComputeError {
        let limit = match refusal {
            Refusal::ReadOnly => String::new(),
            Refusal::RowsChanged => format!(" {}", self.policy.max_rows_changed.unwrap_or_default()),
            Refusal::BytesWritten => format!(" {}", self.policy.max_bytes_written.unwrap_or_default()),
        };
        let (policy, branch) = (refusal.name(), self.branch.clone());
        ComputeError::Policy { policy: format!("{policy}{limit}"), branch }
    }
}

/// Whether records have to be looked at.
fn looks_inside(policy: &BranchPolicy) -> bool {
    policy.read_only || policy.max_rows_changed.is_some()
}

/// Whether a Postgres under this policy can go on when what was known of its WAL is lost: which open transactions have changed something is known
/// to who has seen all of their records only.
pub(crate) fn can_be_taken_over(policy: &BranchPolicy) -> bool {
    !looks_inside(policy)
}

/// Why this record may not become part of the branch, if it may not. `open`: transactions with changes that have not ended.
fn refusal(
    policy: &BranchPolicy,
    open: &mut HashSet<u32>,
    record: &DecodedRecord<'_>,
    rows_changed: u64,
) -> Option<Refusal> {
    let info = record.info();
    let read_only = policy.read_only.then_some(Refusal::ReadOnly);
    match (record.header.rmid, info) {
        // Autovacuum goes on where nobody may change more rows.
        (rmgr::HEAP | rmgr::HEAP2, _) if is_change(record) && (policy.read_only || !is_of_statistics(record)) => {
            open.insert(record.header.xid);
            if open.len() > OPEN_MAX { read_only.or(Some(Refusal::RowsChanged)) } else { None }
        }
        (rmgr::TRANSACTION, info) => match info & !xact::HAS_INFO {
            xact::COMMIT | xact::PREPARE | xact::COMMIT_PREPARED => {
                let prepared = info & !xact::HAS_INFO == xact::COMMIT_PREPARED;
                if !close(open, record) && !prepared {
                    return None;
                }
                let max = policy.max_rows_changed;
                let most = max.map(|max| max.saturating_add((max / 10).max(ROWS_SLACK_MIN)));
                let over = most.is_some_and(|most| rows_changed > most);
                read_only.or(over.then_some(Refusal::RowsChanged))
            }
            xact::ABORT => {
                close(open, record);
                None
            }
            _ => None,
        },
        // What takes effect without a commit, and is not what reading or vacuum leaves behind.
        (rmgr::SEQUENCE | rmgr::DATABASE | rmgr::TABLESPACE | rmgr::RELMAP, _)
        | (rmgr::XLOG, xlog::FPI | xlog::FPI_FOR_HINT) => read_only,
        _ => None,
    }
}

/// Forgets the transaction that ends with `record`; whether it had changed anything.
fn close(open: &mut HashSet<u32>, record: &DecodedRecord<'_>) -> bool {
    let mut changed = open.remove(&record.header.xid);
    for xid in subtransactions(record) {
        changed |= open.remove(&xid);
    }
    changed
}

/// Counts the rows in WAL that was written in an earlier run and not counted then.
#[derive(Debug)]
pub(crate) struct RowCounter {
    decoder: WalDecoder,
    rows: u64,
}

impl RowCounter {
    /// A counter that begins at the end of a record.
    pub(crate) fn new(start: Lsn, major: PgMajor, segment_size: WalSegmentSize) -> Self {
        RowCounter { decoder: WalDecoder::new(start, major, segment_size), rows: 0 }
    }

    /// Takes the next bytes; gives the count so far.
    pub(crate) fn take(&mut self, start: Lsn, bytes: Bytes) -> Result<u64, ComputeError> {
        let unreadable = |error| ComputeError::Invalid(format!("the branch's WAL cannot be read: {error}"));
        self.decoder.feed_at(start, bytes).map_err(unreadable)?;
        while let Some(record) = self.decoder.next().map_err(unreadable)? {
            self.rows += changed_rows(&record);
        }
        Ok(self.rows)
    }
}

/// Whether a heap record changes what a table holds, if its transaction commits.
fn is_change(record: &DecodedRecord<'_>) -> bool {
    let kind = record.info() & 0x70;
    match record.header.rmid {
        rmgr::HEAP => {
            matches!(kind, heap::INSERT | heap::DELETE | heap::UPDATE | heap::HOT_UPDATE | heap::TRUNCATE)
        }
        rmgr::HEAP2 => kind == heap::MULTI_INSERT,
        _ => false,
    }
}

/// Whether a heap record is of what `ANALYZE` finds out.
fn is_of_statistics(record: &DecodedRecord<'_>) -> bool {
    record.block(0).is_some_and(|block| STATISTICS.contains(&block.rel.relnode))
}

/// How many rows of users' tables a record changes.
fn changed_rows(record: &DecodedRecord<'_>) -> u64 {
    let users = |relnode: u32| relnode >= FIRST_NORMAL_RELNODE || relnode == LARGE_OBJECTS;
    if !is_change(record) || !record.block(0).is_some_and(|block| users(block.rel.relnode)) {
        return 0;
    }
    if record.header.rmid == rmgr::HEAP2 {
        // `xl_heap_multi_insert`: a byte of flags, a byte of padding, the number of rows.
        return record.main_data().get(2..4).map_or(0, |bytes| u64::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    }
    1
}

/// The subtransactions that a commit or abort record names (`xl_xact_commit` and what follows it).
fn subtransactions(record: &DecodedRecord<'_>) -> Vec<u32> {
    let word = |at: usize| {
        let bytes = record.main_data().get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let listed = || {
        if record.info() & xact::HAS_INFO == 0 {
            return None;
        }
        let flags = word(8)?;
        let mut at = 12;
        if flags & xact::HAS_DATABASE != 0 {
            at += 8;
        }
        if flags & xact::HAS_SUBTRANSACTIONS == 0 {
            return None;
        }
        let count = word(at)?;
        (0..count as usize).map(|number| word(at + 4 + number * 4)).collect()
    };
    listed().unwrap_or_default()
}
