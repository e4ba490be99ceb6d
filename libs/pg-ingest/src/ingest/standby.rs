//! Snapshots of running transactions (`standbydefs.h`).

use super::{Ingest, Step, StepResult};
use crate::state::ReadState;

const LOCK: u8 = 0x00;
const RUNNING_XACTS: u8 = 0x10;
const INVALIDATIONS: u8 = 0x20;

impl Ingest {
    pub(super) fn standby<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        match step.op() {
            RUNNING_XACTS => {
                let mut data = step.main_data();
                data.take(4 + 4 + 4)?; // counts, and a flag with its padding
                let (next, oldest_running) = (data.u32()?, data.u32()?);
                // `next` itself is not given out yet.
                self.control.see_xid(next.wrapping_sub(1));
                self.control.set_oldest_active(oldest_running);
            }
            LOCK | INVALIDATIONS => {}
            _ => step.note_unknown(),
        }
        Ok(())
    }
}
