//! Redo in Rust: one pure function per WAL record type.
//!
//! ```text
//! DecodedRecord ──RecordView::of_record──► RecordView ──redo_block──► page as Postgres leaves it
//!       │                                      ▲
//!       └──Value::for_block──► Value::Record ──┘  (StoredRecord: what storage keeps per key)
//!       └──vm_changes──► Value::Delta             (what redo does to pages without a reference)
//!
//! base + (Lsn, Value), oldest to newest ──reconstruct──► content of the key
//! ```
//!
//! Invariants:
//! - Redo of one block reads that block, the record's main data and the block's own data; never another block's content.
//! - A record that a page already has (page LSN at or past the record's end) changes nothing.
//! - Bytes of a record or a page never panic and never write outside of the page: they give a [`RedoError`].
//! - Majors differ in tables and small functions, not in copies.
//!
//! It knows nothing of files, networks, layers or timelines. Start with [`redo_block`], then a resource manager's file.
//! `docs/redo.md` says how to add a record type.

mod brin;
mod btree;
mod delta;
mod fault;
mod fsm;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod heap2;
mod itup;
mod major;
mod page;
mod read;
mod reconstruct;
mod seq;
mod spgist;
mod stored;
pub mod value;
pub mod view;
mod vm;
mod xlog;

use ardent_pg_format::{PgMajor, rmgr};
use ardent_types::{BLCKSZ, ForkNumber};

pub use delta::{
    COMMIT_TS_PER_PAGE, Delta, DeltaError, MULTIXACT_MEMBERS_PER_PAGE, MULTIXACT_OFFSETS_PER_PAGE, MultiXactMember,
    XACTS_PER_PAGE, XactStatus,
};
pub use fault::RedoError;
pub use reconstruct::{ReconstructError, reconstruct};
pub use stored::{StoreError, StoredRecord};
pub use value::{Value, ValueDecodeError};
pub use view::{BlockView, HintBits, RecordView};
pub use vm::{
    ALL_FROZEN, ALL_VISIBLE, HEAP_BLOCKS_PER_PAGE, VmChange, VmPageChanges, bits as vm_bits, map_block as vm_map_block,
    may_change_vm, vm_changes,
};

use fault::Fault;
use page::Page;

/// What redo did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedoOutcome {
    /// The page was changed.
    Applied,
    /// The page's LSN is at or past the record's end: it has the change already.
    AlreadyApplied,
    /// The record references the block without changing it.
    Unchanged,
}

/// What a record's function did to the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Changed it; Postgres stamps the record's LSN.
    Stamp,
    /// Changed it without a stamp.
    KeepLsn,
    /// Changed nothing.
    Nothing,
}

/// What a record's function works from.
pub(crate) struct Context<'v, 'a> {
    pub(crate) major: PgMajor,
    pub(crate) view: &'v RecordView<'a>,
    pub(crate) block: &'v BlockView<'a>,
}

impl Context<'_, '_> {
    /// Whether the block is of a visibility map. Heap records that clear its bits reference it in recent minors of 17 and 18.
    pub(crate) fn is_map_page(&self) -> bool {
        self.block.rel.fork == ForkNumber::Vm
    }
}

/// Redoes `view` on the block that its reference `block_id` names, whose content is `page`, leaving it as Postgres's redo
/// does, LSN included. A page of zeros stands for a block that was never written. A reference whose image is to be applied
/// has no redo besides that image: it is refused here. After an error the page's content is unspecified.
pub fn redo_block(
    major: PgMajor,
    view: &RecordView<'_>,
    block_id: u8,
    page: &mut [u8; BLCKSZ],
) -> Result<RedoOutcome, RedoError> {
    let block = view.block(block_id).ok_or(RedoError::NoSuchBlock { id: block_id, lsn: view.end_lsn })?;
    let mut page = Page::new(page);
    let error = |fault| RedoError::new(fault, major, view, block.rel, block.blkno);
    if block.has_applied_image {
        return Err(error(Fault::Record("the block is restored from its image, not redone")));
    }
    if !block.will_init {
        if page.lsn() >= view.end_lsn {
            return Ok(RedoOutcome::AlreadyApplied);
        }
        // Map forks are read with RBM_ZERO_ON_ERROR and made up on the way (checklist 36).
        if page.is_new() && !matches!(block.rel.fork, ForkNumber::Vm | ForkNumber::Fsm) {
            return Err(error(Fault::Page("the page was never initialised")));
        }
    }
    let cx = Context { major, view, block };
    match dispatch(&cx, &mut page).map_err(error)? {
        Change::Stamp => {
            page.set_lsn(view.end_lsn);
            Ok(RedoOutcome::Applied)
        }
        Change::KeepLsn => Ok(RedoOutcome::Applied),
        Change::Nothing => Ok(RedoOutcome::Unchanged),
    }
}

/// Majors whose redo the oracle has proven. The others' records differ in places, so theirs are refused as a whole.
pub const PROVEN_MAJORS: [PgMajor; 4] = [PgMajor::V15, PgMajor::V16, PgMajor::V17, PgMajor::V18];

/// Whether there is proven redo for this record type of this major. Blocks of other records become unreadable (checklist 55).
pub fn has_redo(major: PgMajor, rmid: u8, info: u8) -> bool {
    let touches_blocks = matches!(
        rmid,
        rmgr::XLOG
            | rmgr::HEAP
            | rmgr::HEAP2
            | rmgr::BTREE
            | rmgr::HASH
            | rmgr::GIN
            | rmgr::GIST
            | rmgr::SEQUENCE
            | rmgr::SPGIST
            | rmgr::BRIN
            | rmgr::GENERIC
    );
    PROVEN_MAJORS.contains(&major) && touches_blocks && rmgr::identify(rmid, info, major).is_some()
}

/// What is left to do on a page that was just restored from the record's image: a few records change the page after Postgres
/// took the image.
pub(crate) fn redo_after_image(
    major: PgMajor,
    view: &RecordView<'_>,
    block_id: u8,
    page: &mut [u8; BLCKSZ],
) -> Result<(), RedoError> {
    let block = view.block(block_id).ok_or(RedoError::NoSuchBlock { id: block_id, lsn: view.end_lsn })?;
    let cx = Context { major, view, block };
    let mut page = Page::new(page);
    let change = match view.rmid {
        rmgr::HASH => hash::redo_after_image(&cx, &mut page),
        rmgr::GIST => gist::redo_after_image(&cx, &mut page),
        _ => Ok(Change::Nothing),
    };
    if change.map_err(|fault| RedoError::new(fault, major, view, block.rel, block.blkno))? == Change::Stamp {
        page.set_lsn(view.end_lsn);
    }
    Ok(())
}

fn dispatch(cx: &Context<'_, '_>, page: &mut Page<'_>) -> Result<Change, Fault> {
    if !PROVEN_MAJORS.contains(&cx.major) {
        return Err(Fault::Unsupported);
    }
    match cx.view.rmid {
        rmgr::XLOG => xlog::redo(cx),
        rmgr::HEAP => heap::redo(cx, page),
        rmgr::HEAP2 => heap2::redo(cx, page),
        rmgr::BTREE => btree::redo(cx, page),
        rmgr::HASH => hash::redo(cx, page),
        rmgr::GIN => gin::redo(cx, page),
        rmgr::GIST => gist::redo(cx, page),
        rmgr::SEQUENCE => seq::redo(cx, page),
        rmgr::SPGIST => spgist::redo(cx, page),
        rmgr::BRIN => brin::redo(cx, page),
        rmgr::GENERIC => generic::redo(cx, page),
        _ => Err(Fault::Unsupported),
    }
}
