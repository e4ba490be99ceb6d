//! The body of checkpoint records, and its copy in `pg_control` (`CheckPoint`); byte table in `docs/formats/postgres-control.md`.

use ardent_types::{Lsn, PgTli};

use crate::bytes_at::{put, u32_at, u64_at};
use crate::major::PgMajor;

/// Length of an encoded [`CheckPoint`], the same for all majors known: 17's new field fills what was padding.
pub const CHECKPOINT_LEN: usize = 88;

/// What a checkpoint says of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckPoint {
    /// Where redo starts. For a shutdown checkpoint, the record's own start.
    pub redo: Lsn,
    /// `ThisTimeLineID`
    pub tli: PgTli,
    /// `PrevTimeLineID`: the same, unless this checkpoint begins a new timeline.
    pub previous_tli: PgTli,
    /// Current `full_page_writes`.
    pub full_page_writes: bool,
    /// Current `wal_level` as a number (0 minimal, 1 replica, 2 logical). Only stored since 17; 0 before.
    pub wal_level: i32,
    /// Next transaction id, the epoch in the upper half.
    pub next_xid: u64,
    /// Next OID.
    pub next_oid: u32,
    /// Next multixact id.
    pub next_multi: u32,
    /// Next offset in the multixact members.
    pub next_multi_offset: u32,
    /// Oldest `datfrozenxid`.
    pub oldest_xid: u32,
    /// The database that has it.
    pub oldest_xid_db: u32,
    /// Oldest `datminmxid`.
    pub oldest_multi: u32,
    /// The database that has it.
    pub oldest_multi_db: u32,
    /// When, in seconds since 1970.
    pub time: i64,
    /// Oldest transaction id with a commit timestamp, 0 if none.
    pub oldest_commit_ts_xid: u32,
    /// Newest transaction id with a commit timestamp, 0 if none.
    pub newest_commit_ts_xid: u32,
    /// Oldest transaction id still running; 0 for a shutdown checkpoint (checklist 47).
    pub oldest_active_xid: u32,
}

/// Bytes that are not a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a checkpoint has {CHECKPOINT_LEN} bytes, not {0}")]
pub struct CheckPointLengthError(pub usize);

impl CheckPoint {
    /// Reads `bytes`, which must be exactly [`CHECKPOINT_LEN`] long.
    pub fn decode(bytes: &[u8], major: PgMajor) -> Result<CheckPoint, CheckPointLengthError> {
        if bytes.len() != CHECKPOINT_LEN {
            return Err(CheckPointLengthError(bytes.len()));
        }
        Ok(CheckPoint {
            redo: Lsn::new(u64_at(bytes, 0)),
            tli: PgTli::new(u32_at(bytes, 8)),
            previous_tli: PgTli::new(u32_at(bytes, 12)),
            full_page_writes: bytes[16] != 0,
            wal_level: if major >= PgMajor::V17 { u32_at(bytes, 20).cast_signed() } else { 0 },
            next_xid: u64_at(bytes, 24),
            next_oid: u32_at(bytes, 32),
            next_multi: u32_at(bytes, 36),
            next_multi_offset: u32_at(bytes, 40),
            oldest_xid: u32_at(bytes, 44),
            oldest_xid_db: u32_at(bytes, 48),
            oldest_multi: u32_at(bytes, 52),
            oldest_multi_db: u32_at(bytes, 56),
            time: u64_at(bytes, 64).cast_signed(),
            oldest_commit_ts_xid: u32_at(bytes, 72),
            newest_commit_ts_xid: u32_at(bytes, 76),
            oldest_active_xid: u32_at(bytes, 80),
        })
    }

    /// Its bytes. Padding is zero.
    pub fn encode(&self, major: PgMajor) -> [u8; CHECKPOINT_LEN] {
        let mut bytes = [0; CHECKPOINT_LEN];
        put(&mut bytes, 0, &self.redo.get().to_le_bytes());
        put(&mut bytes, 8, &self.tli.get().to_le_bytes());
        put(&mut bytes, 12, &self.previous_tli.get().to_le_bytes());
        bytes[16] = u8::from(self.full_page_writes);
        if major >= PgMajor::V17 {
            put(&mut bytes, 20, &self.wal_level.to_le_bytes());
        }
        put(&mut bytes, 24, &self.next_xid.to_le_bytes());
        for (at, value) in [
            (32, self.next_oid),
            (36, self.next_multi),
            (40, self.next_multi_offset),
            (44, self.oldest_xid),
            (48, self.oldest_xid_db),
            (52, self.oldest_multi),
            (56, self.oldest_multi_db),
            (72, self.oldest_commit_ts_xid),
            (76, self.newest_commit_ts_xid),
            (80, self.oldest_active_xid),
        ] {
            put(&mut bytes, at, &value.to_le_bytes());
        }
        put(&mut bytes, 64, &self.time.to_le_bytes());
        bytes
    }
}
