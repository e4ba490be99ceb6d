//! Replication origins' progress, kept as the file that Postgres's checkpoint writes (`pg_logical/replorigin_checkpoint`).

use std::collections::BTreeMap;

use ardent_types::Key;
use bytes::{BufMut, Bytes, BytesMut};

use super::{Ingest, Step, StepResult};
use crate::state::ReadState;

const SET: u8 = 0x00;
const DROP: u8 = 0x10;

/// `REPLICATION_STATE_MAGIC`
const MAGIC: u32 = 0x1257_DADE;
/// `ReplicationStateOnDisk`: a u16, padding, a u64.
const ENTRY_LEN: usize = 16;

/// Progress by origin: the remote LSN up to which it is applied.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    progress: BTreeMap<u16, u64>,
    changed: bool,
}

impl Origins {
    /// Where they are stored.
    pub const KEY: Key = Key::AuxFile(0);
    /// The file's path.
    pub const PATH: &str = "pg_logical/replorigin_checkpoint";

    /// Reads the file; `None` if it is damaged.
    pub fn decode(file: &[u8]) -> Option<Origins> {
        let (body, crc) = file.split_at_checked(file.len().checked_sub(4)?)?;
        let (magic, entries) = body.split_at_checked(4)?;
        let intact = crc == crc32c::crc32c(body).to_le_bytes() && magic == MAGIC.to_le_bytes();
        if !intact || !entries.len().is_multiple_of(ENTRY_LEN) {
            return None;
        }
        let progress = entries.chunks_exact(ENTRY_LEN).map(|entry| {
            let id = u16::from_le_bytes([entry[0], entry[1]]);
            (id, u64::from_le_bytes(entry[8..].try_into().expect("8 bytes")))
        });
        Some(Origins { progress: progress.collect(), changed: false })
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(8 + self.progress.len() * ENTRY_LEN);
        out.put_u32_le(MAGIC);
        for (id, lsn) in &self.progress {
            out.put_u64_le(u64::from(*id));
            out.put_u64_le(*lsn);
        }
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    /// Moves an origin forward; back never (`replorigin_advance` without `go_backward`).
    pub fn advance(&mut self, id: u16, remote_lsn: u64) {
        let progress = self.progress.entry(id).or_insert(0);
        if *progress < remote_lsn {
            *progress = remote_lsn;
            self.changed = true;
        }
    }

    fn set(&mut self, id: u16, remote_lsn: u64) {
        self.changed |= self.progress.insert(id, remote_lsn) != Some(remote_lsn);
    }

    fn remove(&mut self, id: u16) {
        self.changed |= self.progress.remove(&id).is_some();
    }

    /// The new file, if it changed since the last call.
    pub fn take_change(&mut self) -> Option<Bytes> {
        std::mem::take(&mut self.changed).then(|| self.encode())
    }
}

impl Ingest {
    pub(super) fn origin<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let mut data = step.main_data();
        match step.op() {
            SET => {
                let (remote_lsn, id, backward) = (data.u64()?, data.u16()?, data.flag()?);
                if backward { self.origins.set(id, remote_lsn) } else { self.origins.advance(id, remote_lsn) }
            }
            DROP => {
                let id = data.u16()?;
                self.origins.remove(id);
            }
            _ => step.note_unknown(),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checklist_54_origins_round_trip_as_postgres_file() {
        let mut origins = Origins::default();
        origins.advance(3, 500);
        origins.advance(3, 400);
        origins.set(9, 1);
        let file = origins.take_change().expect("changed");
        assert_eq!(origins.take_change(), None);
        assert_eq!(file.len(), 4 + 2 * 16 + 4);
        let mut read = Origins::decode(&file).expect("reads");
        assert_eq!(read.progress, BTreeMap::from([(3, 500), (9, 1)]));
        read.remove(3);
        read.set(9, 0);
        assert!(read.take_change().is_some());
        for at in 0..file.len() {
            let mut damaged = file.to_vec();
            damaged[at] ^= 1;
            assert!(Origins::decode(&damaged).is_none(), "{at}");
        }
    }
}
