//! Databases, tablespaces and relation maps (`dbcommands_xlog.h`, `tablespace.h`, `relmapper.h`).

use ardent_types::{Key, oid};
use bytes::Bytes;

use super::error::Fault;
use super::{Ingest, Progress, Step, StepResult, decode_size};
use crate::state::ReadState;

mod op {
    pub const CREATE_FILE_COPY: u8 = 0x00;
    pub const CREATE_WAL_LOG: u8 = 0x10;
    pub const DROP: u8 = 0x20;
}

const TABLESPACE_CREATE: u8 = 0x00;
const TABLESPACE_DROP: u8 = 0x10;
const RELMAP_UPDATE: u8 = 0x00;

/// Value of a [`Key::Database`] whose folder holds a `PG_VERSION`.
pub(crate) const WITH_VERSION_FILE: &[u8] = &[1];
/// Value of a [`Key::Database`] whose folder only holds relations.
pub(crate) const WITHOUT_VERSION_FILE: &[u8] = &[0];

impl Ingest {
    /// Copies and drops read what storage holds of a database, so everything before must be there.
    pub(super) fn database<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S, Progress> {
        let mut data = step.main_data();
        match step.op() {
            op::CREATE_FILE_COPY => {
                let (dbnode, spcnode) = (data.u32()?, data.u32()?);
                let (source_db, source_spc) = (data.u32()?, data.u32()?);
                return self.copy_database(step, (source_spc, source_db), (spcnode, dbnode));
            }
            op::CREATE_WAL_LOG => {
                let (dbnode, spcnode) = (data.u32()?, data.u32()?);
                step.push_image(Key::Database { spcnode, dbnode }, Bytes::from_static(WITH_VERSION_FILE));
            }
            op::DROP => {
                if !step.out.values.is_empty() {
                    return Ok(Progress::FlushFirst);
                }
                let dbnode = data.u32()?;
                let count = data.count(4)?;
                for spcnode in data.u32s(count)? {
                    self.drop_database(step, spcnode, dbnode)?;
                }
            }
            _ => step.note_unknown(),
        }
        Ok(Progress::Done)
    }

    fn drop_database<S: ReadState>(&mut self, step: &mut Step<'_, S>, spcnode: u32, dbnode: u32) -> StepResult<S> {
        self.missing.forget_database(spcnode, dbnode);
        for (key, size) in step.state.scan(Key::rel_sizes(spcnode, dbnode)).map_err(Fault::State)? {
            if let (Key::RelSize(rel), Some(_)) = (key, decode_size(Some(size))) {
                self.set_size(step, rel, None);
            }
        }
        step.push_image(Key::RelMap { spcnode, dbnode }, Bytes::new());
        step.push_image(Key::Database { spcnode, dbnode }, Bytes::new());
        Ok(())
    }

    /// A user's tablespace is a plain folder below `pg_tblspc` for us, wherever its link pointed (checklist 41).
    pub(super) fn tablespace<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let folder = match step.op() {
            TABLESPACE_CREATE => Bytes::from_static(WITHOUT_VERSION_FILE),
            TABLESPACE_DROP => Bytes::new(),
            _ => {
                step.note_unknown();
                return Ok(());
            }
        };
        let spcnode = step.main_data().u32()?;
        step.push_image(Key::Database { spcnode, dbnode: 0 }, folder);
        Ok(())
    }

    pub(super) fn relmap<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        if step.op() != RELMAP_UPDATE {
            step.note_unknown();
            return Ok(());
        }
        let mut data = step.main_data();
        let (dbnode, spcnode) = (data.u32()?, data.u32()?);
        let len = data.count(1)?;
        let map = Bytes::copy_from_slice(data.take(len)?);
        let spcnode = if dbnode == 0 { oid::GLOBAL_TABLESPACE } else { spcnode };
        step.push_image(Key::RelMap { spcnode, dbnode }, map);
        Ok(())
    }
}
