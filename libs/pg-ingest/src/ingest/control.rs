//! The counters of checkpoints and the settings in `pg_control`, kept current by every record that affects them, so that a branch can
//! begin at any LSN (checklist 44 to 48).

use ardent_pg_format::rmgr::xlog as op;
use ardent_pg_format::{CHECKPOINT_LEN, CheckPoint, ControlFile, PgMajor};
use ardent_pg_redo::HintBits;
use ardent_types::{Key, PgTli};
use bytes::Bytes;

use super::error::Fault;
use super::xid::{circle_precedes, next_after, precedes};
use super::{Ingest, Step, StepResult};
use crate::state::ReadState;

/// `WAL_LEVEL_MINIMAL`
const WAL_LEVEL_MINIMAL: i32 = 0;

/// [`Key::Checkpoint`] and [`Key::ControlFile`], opened.
#[derive(Debug)]
pub(crate) struct Control {
    major: PgMajor,
    /// What a checkpoint taken now would say.
    pub checkpoint: CheckPoint,
    file: ControlFile,
    checkpoint_changed: bool,
    file_changed: bool,
}

impl Control {
    /// Opens the two keys' values; the error is the key that can't be.
    pub fn decode(major: PgMajor, checkpoint: &[u8], file: &[u8]) -> Result<Control, Key> {
        let checkpoint = CheckPoint::decode(checkpoint, major).map_err(|_| Key::Checkpoint)?;
        let file = ControlFile::decode(file).map_err(|_| Key::ControlFile)?;
        if file.major != major {
            return Err(Key::ControlFile);
        }
        Ok(Control { major, checkpoint, file, checkpoint_changed: false, file_changed: false })
    }

    /// The new [`Key::Checkpoint`], if it changed since the last call.
    #[inline]
    pub fn take_checkpoint_change(&mut self) -> Option<Bytes> {
        let changed = std::mem::take(&mut self.checkpoint_changed);
        changed.then(|| Bytes::copy_from_slice(&self.checkpoint.encode(self.major)))
    }

    /// The new [`Key::ControlFile`], if it changed since the last call.
    #[inline]
    pub fn take_file_change(&mut self) -> Option<Bytes> {
        std::mem::take(&mut self.file_changed).then(|| Bytes::from(self.file.encode()))
    }

    /// Redo of `XLOG_HEAP2_VISIBLE` depends on it (checklist 35).
    pub fn hint_bits(&self) -> HintBits {
        let logged = self.file.wal_log_hints || self.file.data_checksum_version != 0;
        if logged { HintBits::Logged } else { HintBits::NotLogged }
    }

    pub fn tracks_commit_timestamps(&self) -> bool {
        self.file.track_commit_timestamp
    }

    /// The next transaction id without its epoch.
    pub fn next_xid(&self) -> u32 {
        self.checkpoint.next_xid as u32
    }

    /// The key of a prepared transaction's state: since 17 with the epoch of its id (checklist 52).
    pub fn two_phase_key(&self, xid: u32) -> Key {
        let next = self.checkpoint.next_xid;
        let epoch = if xid > next as u32 { (next >> 32).saturating_sub(1) } else { next >> 32 };
        let epoch = if self.major >= PgMajor::V17 { epoch } else { 0 };
        Key::TwoPhase { xid: epoch << 32 | u64::from(xid) }
    }

    /// `xid` was given out; 0 and the other special ids never are.
    #[inline]
    pub fn see_xid(&mut self, xid: u32) {
        if let Some(next) = next_after(self.checkpoint.next_xid, xid) {
            self.update(|checkpoint| checkpoint.next_xid = next);
        }
    }

    pub fn set_oldest_xid(&mut self, xid: u32, database: u32) {
        self.update(|checkpoint| (checkpoint.oldest_xid, checkpoint.oldest_xid_db) = (xid, database));
    }

    pub fn set_oldest_active(&mut self, xid: u32) {
        self.update(|checkpoint| checkpoint.oldest_active_xid = xid);
    }

    pub fn set_oldest_multi(&mut self, multi: u32, database: u32) {
        self.update(|checkpoint| (checkpoint.oldest_multi, checkpoint.oldest_multi_db) = (multi, database));
    }

    /// `MultiXactAdvanceNextMXact`
    pub fn advance_next_multi(&mut self, multi: u32, offset: u32) {
        self.update(|checkpoint| {
            if circle_precedes(checkpoint.next_multi, multi) {
                checkpoint.next_multi = multi;
            }
            if circle_precedes(checkpoint.next_multi_offset, offset) {
                checkpoint.next_multi_offset = offset;
            }
        });
    }

    /// `AdvanceOldestCommitTsXid`
    pub fn advance_oldest_commit_ts(&mut self, xid: u32) {
        self.update(|checkpoint| {
            if checkpoint.oldest_commit_ts_xid != 0 && precedes(checkpoint.oldest_commit_ts_xid, xid) {
                checkpoint.oldest_commit_ts_xid = xid;
            }
        });
    }

    pub fn advance_newest_commit_ts(&mut self, xid: u32) {
        self.update(|checkpoint| {
            if precedes(checkpoint.newest_commit_ts_xid, xid) {
                checkpoint.newest_commit_ts_xid = xid;
            }
        });
    }

    /// Commit timestamps begin with the next transaction, unless they have begun.
    pub fn begin_commit_ts(&mut self, next: u32) {
        self.update(|checkpoint| {
            if checkpoint.oldest_commit_ts_xid == 0 {
                (checkpoint.oldest_commit_ts_xid, checkpoint.newest_commit_ts_xid) = (next, next);
            }
        });
    }

    /// Commit timestamps end: none is valid. Gives the oldest and newest that was.
    pub fn end_commit_ts(&mut self) -> Option<(u32, u32)> {
        let (oldest, newest) = (self.checkpoint.oldest_commit_ts_xid, self.checkpoint.newest_commit_ts_xid);
        self.update(|checkpoint| (checkpoint.oldest_commit_ts_xid, checkpoint.newest_commit_ts_xid) = (0, 0));
        (oldest != 0).then_some((oldest, newest))
    }

    /// A shutdown checkpoint is exact; nothing runs then but prepared transactions (checklist 47).
    fn believe_shutdown_checkpoint(&mut self, checkpoint: CheckPoint, prepared: &[u32]) {
        let next = checkpoint.next_xid as u32;
        let oldest =
            prepared.iter().copied().fold(next, |oldest, xid| if precedes(xid, oldest) { xid } else { oldest });
        self.update(|current| *current = CheckPoint { oldest_active_xid: oldest, ..checkpoint });
    }

    /// An online checkpoint's counters are from its begin: minimums. Its next OID says nothing new.
    fn merge_online_checkpoint(&mut self, checkpoint: CheckPoint) {
        self.advance_next_multi(checkpoint.next_multi, checkpoint.next_multi_offset);
        self.update(|current| {
            if circle_precedes(current.oldest_multi, checkpoint.oldest_multi) {
                current.oldest_multi = checkpoint.oldest_multi;
                current.oldest_multi_db = checkpoint.oldest_multi_db;
            }
            if precedes(current.oldest_xid, checkpoint.oldest_xid) {
                current.oldest_xid = checkpoint.oldest_xid;
                current.oldest_xid_db = checkpoint.oldest_xid_db;
            }
            current.next_xid = current.next_xid.max(checkpoint.next_xid);
            current.redo = checkpoint.redo;
            current.tli = checkpoint.tli;
            current.previous_tli = checkpoint.previous_tli;
            current.full_page_writes = checkpoint.full_page_writes;
            current.wal_level = checkpoint.wal_level;
            current.time = checkpoint.time;
            current.oldest_active_xid = checkpoint.oldest_active_xid;
        });
    }

    #[inline]
    fn update(&mut self, change: impl FnOnce(&mut CheckPoint)) {
        let before = self.checkpoint;
        change(&mut self.checkpoint);
        self.checkpoint_changed |= self.checkpoint != before;
    }
}

impl Ingest {
    pub(super) fn xlog<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let mut data = step.main_data();
        match step.op() {
            op @ (op::CHECKPOINT_SHUTDOWN | op::CHECKPOINT_ONLINE) => {
                let checkpoint = CheckPoint::decode(data.take(CHECKPOINT_LEN)?, self.major)
                    .map_err(|error| Fault::Malformed(error.to_string()))?;
                if op == op::CHECKPOINT_SHUTDOWN {
                    self.control.believe_shutdown_checkpoint(checkpoint, &self.prepared);
                } else {
                    self.control.merge_online_checkpoint(checkpoint);
                }
            }
            op::NEXTOID => {
                // Believed as it is: the counter wraps (checklist 46).
                let oid = data.u32()?;
                self.control.update(|checkpoint| checkpoint.next_oid = oid);
            }
            op::PARAMETER_CHANGE => self.parameter_change(step)?,
            op::FPW_CHANGE => {
                let on = data.flag()?;
                self.control.update(|checkpoint| checkpoint.full_page_writes = on);
            }
            op::END_OF_RECOVERY => {
                data.take(8)?; // when
                let (tli, previous_tli) = (PgTli::new(data.u32()?), PgTli::new(data.u32()?));
                self.control.update(|checkpoint| (checkpoint.tli, checkpoint.previous_tli) = (tli, previous_tli));
                if self.major >= PgMajor::V17 {
                    let wal_level = data.u32()?.cast_signed();
                    self.control.update(|checkpoint| checkpoint.wal_level = wal_level);
                }
            }
            op::NOOP
            | op::SWITCH
            | op::BACKUP_END
            | op::RESTORE_POINT
            | op::FPI_FOR_HINT
            | op::FPI
            | op::OVERWRITE_CONTRECORD
            | op::CHECKPOINT_REDO => {}
            _ => step.note_unknown(),
        }
        Ok(())
    }

    fn parameter_change<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let mut data = step.main_data();
        let mut setting = || data.u32().map(u32::cast_signed);
        let file = &mut self.control.file;
        file.max_connections = setting()?;
        file.max_worker_processes = setting()?;
        file.max_wal_senders = setting()?;
        file.max_prepared_xacts = setting()?;
        file.max_locks_per_xact = setting()?;
        file.wal_level = setting()?;
        file.wal_log_hints = data.flag()?;
        let track = data.flag()?;
        if file.wal_level == WAL_LEVEL_MINIMAL {
            return Err(Fault::MinimalWal);
        }
        let tracked = std::mem::replace(&mut file.track_commit_timestamp, track);
        let wal_level = file.wal_level;
        self.control.file_changed = true;
        if self.major >= PgMajor::V17 {
            self.control.update(|checkpoint| checkpoint.wal_level = wal_level);
        }
        if track != tracked { self.switch_commit_ts(step, track) } else { Ok(()) }
    }
}
