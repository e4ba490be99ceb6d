//! Ends of transactions, and prepared ones (`xact.h`).

use ardent_pg_redo::XactStatus;
use ardent_types::Key;
use bytes::{BufMut, Bytes, BytesMut};

use super::slru_pages::{set_commit_times, set_statuses};
use super::xact_record::{End, OP_MASK, Prepared, TransactionEnd};
use super::{Ingest, Step, StepResult};
use crate::state::ReadState;

mod op {
    pub const COMMIT: u8 = 0x00;
    pub const PREPARE: u8 = 0x10;
    pub const ABORT: u8 = 0x20;
    pub const COMMIT_PREPARED: u8 = 0x30;
    pub const ABORT_PREPARED: u8 = 0x40;
    pub const ASSIGNMENT: u8 = 0x50;
    pub const INVALIDATIONS: u8 = 0x60;
}

/// Microseconds from the Unix epoch to 2000-01-01, Postgres's.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// When the last transaction ended; makes "as of a time" a search over LSNs. Clocks step back and commits overtake each other on
/// their way into WAL: the latest time so far stands, so that the search finds one point.
pub(super) const LAST_END_KEY: Key = Key::AuxFile(1);

impl Ingest {
    pub(super) fn transaction<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let info = step.record.header.info;
        match info & OP_MASK {
            op::COMMIT | op::COMMIT_PREPARED => self.end_of_transaction(step, End::Commit),
            op::ABORT | op::ABORT_PREPARED => self.end_of_transaction(step, End::Abort),
            op::PREPARE => self.prepare(step),
            op::ASSIGNMENT => {
                let mut data = step.main_data();
                self.control.see_xid(data.u32()?);
                let count = data.count(4)?;
                for xid in data.u32s(count)? {
                    self.control.see_xid(xid);
                }
                Ok(())
            }
            op::INVALIDATIONS => Ok(()),
            _ => {
                step.note_unknown();
                Ok(())
            }
        }
    }

    fn end_of_transaction<S: ReadState>(&mut self, step: &mut Step<'_, S>, end: End) -> StepResult<S> {
        let header = &step.record.header;
        let parsed = TransactionEnd::parse(self.major, end, header.info, step.record.main_data())?;
        let xid = parsed.prepared_xid.unwrap_or(header.xid);
        self.control.see_xid(xid);
        parsed.subxacts.iter().for_each(|xid| self.control.see_xid(*xid));
        // 0 only in a commit record of a transaction without an id, which has no status.
        if xid != 0 {
            let status = if end == End::Commit { XactStatus::Committed } else { XactStatus::Aborted };
            set_statuses(step, status, xid, &parsed.subxacts);
            if end == End::Commit && self.control.tracks_commit_timestamps() {
                let time = parsed.origin.map_or(parsed.time, |origin| origin.timestamp);
                set_commit_times(step, time, step.record.origin.unwrap_or(0), xid, &parsed.subxacts);
                self.control.advance_newest_commit_ts(parsed.subxacts.last().copied().unwrap_or(xid));
            }
        }
        if let (Some(origin), Some(id)) = (parsed.origin, step.record.origin) {
            self.origins.advance(id, origin.remote_lsn);
        }
        for rel in &parsed.dropped {
            self.drop_relation(step, *rel)?;
        }
        if let Some(xid) = parsed.prepared_xid {
            step.push_image(self.control.two_phase_key(xid), Bytes::new());
            self.prepared.retain(|prepared| *prepared != xid);
        }
        let unix_us = parsed.time.saturating_add(POSTGRES_EPOCH_US);
        if unix_us > self.last_end_unix_us {
            self.last_end_unix_us = unix_us;
            step.out.buffer.extend_from_slice(&unix_us.to_le_bytes());
            let content = step.out.buffer.split().freeze();
            step.push_image(LAST_END_KEY, content);
        }
        Ok(())
    }

    /// The record is the state file without its CRC (checklist 52).
    fn prepare<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let body = step.record.main_data();
        let prepared = Prepared::parse(body)?;
        self.control.see_xid(prepared.xid);
        prepared.subxacts.iter().for_each(|xid| self.control.see_xid(*xid));
        if let (Some(origin), Some(id)) = (prepared.origin, step.record.origin) {
            self.origins.advance(id, origin.remote_lsn);
        }
        let mut file = BytesMut::with_capacity(body.len() + 4);
        file.put_slice(body);
        file.put_u32_le(crc32c::crc32c(body));
        step.push_image(self.control.two_phase_key(prepared.xid), file.freeze());
        if !self.prepared.contains(&prepared.xid) {
            self.prepared.push(prepared.xid);
        }
        Ok(())
    }
}
