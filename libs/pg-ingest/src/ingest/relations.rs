//! Relation files: created, truncated, dropped (`storage_xlog.h`).

use ardent_pg_redo::{Delta, HEAP_BLOCKS_PER_PAGE, vm_map_block};
use ardent_types::{BlockNumber, ForkNumber, Key, RelTag};

use super::error::Fault;
use super::{Ingest, Step, StepResult, encode_size};
use crate::state::ReadState;

const CREATE: u8 = 0x10;
const TRUNCATE: u8 = 0x20;

/// `SlotsPerFSMPage`
const FSM_SLOTS_PER_PAGE: u32 = 4069;

mod truncate {
    pub const HEAP: u32 = 0x1;
    pub const VM: u32 = 0x2;
    pub const FSM: u32 = 0x4;
}

impl Ingest {
    pub(super) fn storage<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let mut data = step.main_data();
        match step.op() {
            CREATE => {
                let rel =
                    RelTag { spcnode: data.u32()?, dbnode: data.u32()?, relnode: data.u32()?, fork: ForkNumber::Main };
                let fork = u8::try_from(data.u32()?).ok().and_then(ForkNumber::from_raw);
                let fork = fork.ok_or_else(|| Fault::Malformed("unknown fork".to_owned()))?;
                self.create(step, rel.with_fork(fork))
            }
            TRUNCATE => {
                let blocks = data.u32()?;
                let rel =
                    RelTag { spcnode: data.u32()?, dbnode: data.u32()?, relnode: data.u32()?, fork: ForkNumber::Main };
                let flags = data.u32()?;
                self.truncate(step, rel, blocks, flags)
            }
            _ => {
                step.note_unknown();
                Ok(())
            }
        }
    }

    /// An existing fork stays as it is: an import may already hold what follows.
    fn create<S: ReadState>(&mut self, step: &mut Step<'_, S>, rel: RelTag) -> StepResult<S> {
        if self.sizes.get(rel, step.state).map_err(Fault::State)?.is_none() {
            self.set_size(step, rel, Some(0));
        }
        Ok(())
    }

    /// Cuts the heap to `blocks`, and the maps to what belongs to so many (checklist 23 to 25).
    fn truncate<S: ReadState>(
        &mut self,
        step: &mut Step<'_, S>,
        rel: RelTag,
        blocks: BlockNumber,
        flags: u32,
    ) -> StepResult<S> {
        if flags & truncate::HEAP != 0 {
            self.missing.forget_from(rel, blocks);
            self.shrink(step, rel, blocks)?;
        }
        if flags & truncate::FSM != 0 {
            let tag = rel.with_fork(ForkNumber::Fsm);
            let slots = FSM_SLOTS_PER_PAGE;
            let (page, first_gone) = (fsm_leaf_block(blocks / slots), blocks % slots);
            let tail = (first_gone > 0).then(|| Delta::FsmTruncate { slots: first_gone as u16 });
            self.shrink_map(step, tag, page, tail)?;
        }
        if flags & truncate::VM != 0 {
            let tag = rel.with_fork(ForkNumber::Vm);
            let tail =
                (!blocks.is_multiple_of(HEAP_BLOCKS_PER_PAGE)).then_some(Delta::VmTruncate { heap_blocks: blocks });
            self.shrink_map(step, tag, vm_map_block(blocks), tail)?;
        }
        Ok(())
    }

    /// Cuts a map whose page `page` holds the first entry that is gone. `tail` clears the rest of that page if entries before it
    /// stay.
    fn shrink_map<S: ReadState>(
        &mut self,
        step: &mut Step<'_, S>,
        map: RelTag,
        page: BlockNumber,
        tail: Option<Delta>,
    ) -> StepResult<S> {
        let Some(size) = self.sizes.get(map, step.state).map_err(Fault::State)? else { return Ok(()) };
        let keep = match tail {
            Some(tail) if page < size => {
                step.push_delta(Key::RelBlock(map, page), &tail);
                page + 1
            }
            Some(_) => return Ok(()),
            None => page,
        };
        self.missing.forget_from(map, keep);
        self.shrink(step, map, keep)
    }

    /// Never makes a fork longer, nor one that doesn't exist.
    fn shrink<S: ReadState>(&mut self, step: &mut Step<'_, S>, rel: RelTag, blocks: BlockNumber) -> StepResult<S> {
        if self.sizes.get(rel, step.state).map_err(Fault::State)?.is_some_and(|size| size > blocks) {
            self.set_size(step, rel, Some(blocks));
        }
        Ok(())
    }

    /// Ends all forks of a relation; most of them never existed (checklist 27).
    pub(super) fn drop_relation<S: ReadState>(&mut self, step: &mut Step<'_, S>, rel: RelTag) -> StepResult<S> {
        for fork in ForkNumber::ALL {
            let tag = rel.with_fork(fork);
            self.missing.forget_from(tag, 0);
            if self.sizes.get(tag, step.state).map_err(Fault::State)?.is_some() {
                self.set_size(step, tag, None);
            }
        }
        Ok(())
    }

    pub(super) fn set_size<S>(&mut self, step: &mut Step<'_, S>, rel: RelTag, size: Option<BlockNumber>) {
        self.sizes.set(rel, size);
        step.push_image(Key::RelSize(rel), encode_size(size));
    }
}

/// The block in the fork of the free space map's leaf page `leaf`: the tree of three levels is stored depth first
/// (`fsm_logical_to_physical`).
fn fsm_leaf_block(leaf: u32) -> BlockNumber {
    let fan_out = FSM_SLOTS_PER_PAGE;
    // Before a leaf stand all earlier leaves, and the inner pages above them and above itself: one page for each started
    // group of leaves, and the root.
    leaf + (leaf / fan_out + 1) + (leaf / fan_out / fan_out + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checklist_24_fsm_leaves_lie_behind_their_inner_pages() {
        let fan_out = FSM_SLOTS_PER_PAGE;
        let delta = |slots: u32| Delta::FsmTruncate { slots: slots as u16 };
        let rel = RelTag { spcnode: 1, dbnode: 1, relnode: 1, fork: ForkNumber::Fsm };
        assert!(delta(fan_out).apply(&Key::RelBlock(rel, 2), &mut [0; 8192]).is_err());
        assert!(delta(fan_out - 1).apply(&Key::RelBlock(rel, 2), &mut [0; 8192]).is_ok());
        // Root, first inner page, first leaf.
        assert_eq!(fsm_leaf_block(0), 2);
        assert_eq!(fsm_leaf_block(1), 3);
        assert_eq!(fsm_leaf_block(fan_out - 1), fan_out + 1);
        // A second inner page stands between.
        assert_eq!(fsm_leaf_block(fan_out), fan_out + 3);
    }
}
