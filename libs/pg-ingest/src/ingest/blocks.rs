//! Block references: one value per block, and the sizes that follow from them.

use std::sync::LazyLock;

use ardent_pg_format::{DecodedBlock, rmgr};
use ardent_pg_redo::{Delta, RecordView, Value, may_change_vm, vm_changes};
use ardent_types::{ForkNumber, Key, RelTag};
use bytes::Bytes;
use smallvec::SmallVec;

use super::error::Fault;
use super::{Ingest, Step, StepResult, encode_size};
use crate::state::ReadState;

/// Zero pages that one record may put in: 32 GB. The most that Postgres does at a time is a quarter of a hash index.
const GAP_BLOCKS_MAX: u32 = 1 << 22;

/// A page of zeros as a value of two bytes.
pub(crate) fn zero_page() -> Value {
    static ZERO_PAGE: LazyLock<Bytes> = LazyLock::new(|| Delta::ZeroPage.encode());
    Value::Delta(ZERO_PAGE.clone())
}

/// The value that says why a block can't be rebuilt from here on.
pub(crate) fn unreadable(reason: impl std::fmt::Display) -> Value {
    Value::Unreadable(Bytes::from(reason.to_string()))
}

/// Forks that a record grew: each gets one size, however many of its blocks the record touches.
type Grown = SmallVec<[RelTag; 4]>;

impl Ingest {
    /// The values of all blocks that the record references.
    pub(super) fn blocks<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let record = step.record;
        // With full_page_writes off a hint's record has no image, and then nothing to say.
        let only_hints = record.header.rmid == rmgr::XLOG && step.op() == rmgr::xlog::FPI_FOR_HINT;
        let mut grown = Grown::new();
        for block in record.blocks {
            let has_image = block.has_applied_image();
            if only_hints && !has_image {
                continue;
            }
            let size = self.sizes.get(block.rel, step.state).map_err(Fault::State)?;
            let mut orphan = false;
            let made = size.is_none_or(|blocks| block.blkno >= blocks);
            if made {
                orphan = !has_image && !block.will_init && !starts_from_zeros(block.rel);
                if orphan && self.in_fuzzy_window(step.lsn) {
                    self.missing.note(block.rel, block.blkno);
                    continue;
                }
                let gap = block.blkno.saturating_sub(size.unwrap_or(0));
                if gap > GAP_BLOCKS_MAX {
                    return Err(Fault::Malformed(format!("{} would grow by {gap} blocks at once", block.rel)));
                }
                self.grow(step, block, size.unwrap_or(0), &mut grown);
            }
            let key = Key::RelBlock(block.rel, block.blkno);
            let value = if orphan {
                self.orphan(step, block)
            } else {
                // An image that can't be restored leaves its page unreadable, not the timeline stopped.
                let value = Value::for_block(self.major, record, block, self.hint_bits(), &mut step.out.buffer);
                let value = value.unwrap_or_else(unreadable);
                if made { from_zeros(value) } else { value }
            };
            step.push(key, value);
        }
        for rel in grown {
            let size = self.sizes.get(rel, step.state).map_err(Fault::State)?;
            step.push_image(Key::RelSize(rel), encode_size(size));
        }
        Ok(())
    }

    /// Makes the fork long enough for `block`. Blocks between the old end and this one read as zeros from here on, whatever
    /// they held before a truncation (checklist 21, 26), unless the record has something for them itself.
    fn grow<S>(&mut self, step: &mut Step<'_, S>, block: &DecodedBlock, size: u32, grown: &mut Grown) {
        for gap in size..block.blkno {
            let in_record = step.record.blocks.iter().any(|other| other.rel == block.rel && other.blkno == gap);
            if !in_record {
                step.push(Key::RelBlock(block.rel, gap), zero_page());
            }
        }
        self.sizes.set(block.rel, Some(block.blkno.saturating_add(1)));
        if !grown.contains(&block.rel) {
            grown.push(block.rel);
        }
    }

    /// The block should exist and doesn't, and no import explains it.
    fn orphan<S>(&self, step: &Step<'_, S>, block: &DecodedBlock) -> Value {
        let header = &step.record.header;
        let (manager, lsn) = (rmgr::name(header.rmid), step.lsn);
        let kind = rmgr::identify(header.rmid, header.info, self.major).unwrap_or("unknown");
        unreadable(format_args!(
            "the {manager}/{kind} record that ends at {lsn} changes {} block {}, which no earlier record made",
            block.rel, block.blkno
        ))
    }

    /// Changes of visibility-map pages that the record implies without referencing them (checklist 31 to 34).
    pub(super) fn visibility_map<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        if !may_change_vm(step.record) {
            return Ok(());
        }
        let view = RecordView::of_record(step.record, self.hint_bits());
        for page in vm_changes(self.major, &view)? {
            let size = self.sizes.get(page.rel, step.state).map_err(Fault::State)?;
            // Without a map page no bit is set that would have to go.
            if size.is_some_and(|blocks| page.block < blocks) {
                step.push_delta(Key::RelBlock(page.rel, page.block), &Delta::Vm(page.changes));
            }
        }
        Ok(())
    }
}

/// A map page that a record makes without initialising it starts from zeros, and not from what the block held before it was
/// truncated away or dropped: else old all-visible bits come back (checklist 26).
fn from_zeros(value: Value) -> Value {
    match value {
        Value::Record { record, .. } => Value::Record { will_init: true, record },
        other => other,
    }
}

/// Postgres writes these forks' pages without a first image (checklist 36).
fn starts_from_zeros(rel: RelTag) -> bool {
    matches!(rel.fork, ForkNumber::Fsm | ForkNumber::Vm)
}
