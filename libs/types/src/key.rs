//! What the page server stores versions of.

use std::fmt;

use crate::rel::{BlockNumber, ForkNumber, RelTag};

/// Length in bytes of an encoded [`Key`].
pub const KEY_LEN: usize = 18;

/// An SLRU that outlives a restart and is therefore kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SlruKind {
    /// `pg_xact`.
    Xact = 0,
    /// `pg_multixact/offsets`.
    MultiXactOffsets = 1,
    /// `pg_multixact/members`.
    MultiXactMembers = 2,
    /// `pg_commit_ts`.
    CommitTs = 3,
}

impl SlruKind {
    /// All kinds.
    pub const ALL: [SlruKind; 4] =
        [SlruKind::Xact, SlruKind::MultiXactOffsets, SlruKind::MultiXactMembers, SlruKind::CommitTs];

    /// Its folder below the data directory.
    pub fn directory(self) -> &'static str {
        match self {
            SlruKind::Xact => "pg_xact",
            SlruKind::MultiXactOffsets => "pg_multixact/offsets",
            SlruKind::MultiXactMembers => "pg_multixact/members",
            SlruKind::CommitTs => "pg_commit_ts",
        }
    }

    fn from_raw(raw: u8) -> Option<Self> {
        Self::ALL.get(usize::from(raw)).copied()
    }
}

/// One thing that has versions. The order of keys is the order of their encodings; relation sizes stand apart from the
/// blocks, so that listing a database is a range scan over small values.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The checkpoint fields (Postgres's `CheckPoint` struct, encoded by pg-format), kept current by every record that affects them.
    Checkpoint,
    /// `pg_control` as imported; settings that WAL changes (`XLOG_PARAMETER_CHANGE`) applied.
    ControlFile,
    /// A database's folder in a tablespace; with database 0 and a user's tablespace, that tablespace's own folder. One byte: 1 if
    /// the folder holds a `PG_VERSION` file (it is the database's default tablespace), else 0. Empty: dropped.
    Database {
        /// Tablespace.
        spcnode: u32,
        /// Database, 0 for `global`.
        dbnode: u32,
    },
    /// `pg_filenode.map` of a database, or of `global` with database 0.
    RelMap {
        /// Tablespace.
        spcnode: u32,
        /// Database, 0 for `global`.
        dbnode: u32,
    },
    /// A relation fork's size in blocks: u32 little-endian. No value, or an empty one: it does not exist.
    RelSize(RelTag),
    /// A prepared transaction's state file, CRC included. Empty: finished.
    TwoPhase {
        /// Its transaction id, with the epoch in the upper half where the major knows it, else 0 there.
        xid: u64,
    },
    /// A small value kept whole, by a number that ingest assigns. 0: replication origins' progress, as Postgres's checkpoint file
    /// of them. 1: latest time so far of a commit or abort, microseconds since the Unix epoch, i64 little-endian. 2: pages that WAL
    /// referred to and an import did not hold. Empty: absent.
    AuxFile(u32),
    /// A page of an SLRU. Empty: truncated away.
    SlruPage(SlruKind, u64),
    /// A block of a relation fork.
    RelBlock(RelTag, BlockNumber),
}

const TAG_CHECKPOINT: u8 = 0x01;
const TAG_CONTROL: u8 = 0x02;
const TAG_DATABASE: u8 = 0x10;
const TAG_RELMAP: u8 = 0x11;
const TAG_REL_SIZE: u8 = 0x20;
const TAG_TWO_PHASE: u8 = 0x30;
const TAG_AUX: u8 = 0x31;
const TAG_SLRU: u8 = 0x40;
const TAG_REL_BLOCK: u8 = 0x80;

impl Key {
    /// Its encoding: a tag byte, then big-endian fields, zero-padded. Sorts as `Key` does. See `docs/formats/keys.md`.
    #[inline]
    pub fn encode(&self) -> [u8; KEY_LEN] {
        let mut out = [0; KEY_LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        let mut rel = |tag: u8, rel: &RelTag, block: BlockNumber| {
            put(0, &[tag]);
            put(1, &rel.spcnode.to_be_bytes());
            put(5, &rel.dbnode.to_be_bytes());
            put(9, &rel.relnode.to_be_bytes());
            put(13, &[rel.fork as u8]);
            put(14, &block.to_be_bytes());
        };
        match self {
            Key::RelSize(tag) => rel(TAG_REL_SIZE, tag, 0),
            Key::RelBlock(tag, block) => rel(TAG_REL_BLOCK, tag, *block),
            Key::Checkpoint => put(0, &[TAG_CHECKPOINT]),
            Key::ControlFile => put(0, &[TAG_CONTROL]),
            Key::Database { spcnode, dbnode } | Key::RelMap { spcnode, dbnode } => {
                let tag = if matches!(self, Key::Database { .. }) { TAG_DATABASE } else { TAG_RELMAP };
                put(0, &[tag]);
                put(1, &spcnode.to_be_bytes());
                put(5, &dbnode.to_be_bytes());
            }
            Key::TwoPhase { xid } => {
                put(0, &[TAG_TWO_PHASE]);
                put(1, &xid.to_be_bytes());
            }
            Key::AuxFile(number) => {
                put(0, &[TAG_AUX]);
                put(1, &number.to_be_bytes());
            }
            Key::SlruPage(kind, page) => {
                put(0, &[TAG_SLRU, *kind as u8]);
                put(2, &page.to_be_bytes());
            }
        }
        out
    }

    /// The key with this encoding. Errors on an unknown tag, fork or SLRU, or padding that isn't zero.
    pub fn decode(bytes: &[u8; KEY_LEN]) -> Result<Key, KeyDecodeError> {
        let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let error = || KeyDecodeError(*bytes);
        let rel = || {
            let fork = ForkNumber::from_raw(bytes[13]).ok_or_else(error)?;
            Ok(RelTag { spcnode: u32_at(1), dbnode: u32_at(5), relnode: u32_at(9), fork })
        };
        let key = match bytes[0] {
            TAG_CHECKPOINT => Key::Checkpoint,
            TAG_CONTROL => Key::ControlFile,
            TAG_DATABASE => Key::Database { spcnode: u32_at(1), dbnode: u32_at(5) },
            TAG_RELMAP => Key::RelMap { spcnode: u32_at(1), dbnode: u32_at(5) },
            TAG_REL_SIZE => Key::RelSize(rel()?),
            TAG_TWO_PHASE => Key::TwoPhase { xid: u64_at(1) },
            TAG_AUX => Key::AuxFile(u32_at(1)),
            TAG_SLRU => Key::SlruPage(SlruKind::from_raw(bytes[1]).ok_or_else(error)?, u64_at(2)),
            TAG_REL_BLOCK => Key::RelBlock(rel()?, u32_at(14)),
            _ => return Err(error()),
        };
        if key.encode() == *bytes { Ok(key) } else { Err(error()) }
    }

    /// First and last block key of a relation fork, both included.
    pub fn rel_blocks(rel: RelTag) -> std::ops::RangeInclusive<Key> {
        Key::RelBlock(rel, 0)..=Key::RelBlock(rel, BlockNumber::MAX)
    }

    /// The keys of the sizes of all relations of one database in one tablespace, both ends included.
    pub fn rel_sizes(spcnode: u32, dbnode: u32) -> std::ops::RangeInclusive<Key> {
        let end = |relnode, fork| Key::RelSize(RelTag { spcnode, dbnode, relnode, fork });
        end(0, ForkNumber::Main)..=end(u32::MAX, ForkNumber::Init)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Checkpoint => write!(f, "checkpoint"),
            Key::ControlFile => write!(f, "pg_control"),
            Key::Database { spcnode, dbnode } => write!(f, "database {spcnode}/{dbnode}"),
            Key::RelMap { spcnode, dbnode } => write!(f, "relmap {spcnode}/{dbnode}"),
            Key::RelSize(rel) => write!(f, "size of {rel}"),
            Key::TwoPhase { xid } => write!(f, "two-phase {xid}"),
            Key::AuxFile(number) => write!(f, "auxiliary file {number}"),
            Key::SlruPage(kind, page) => write!(f, "{} page {page}", kind.directory()),
            Key::RelBlock(rel, block) => write!(f, "{rel} block {block}"),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes that are not an encoded key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a storage key: {}", hex::encode(.0))]
pub struct KeyDecodeError([u8; KEY_LEN]);

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Key> {
        let rel = |spcnode, relnode, fork| RelTag { spcnode, dbnode: 5, relnode, fork };
        vec![
            Key::Checkpoint,
            Key::ControlFile,
            Key::Database { spcnode: 1663, dbnode: 1 },
            Key::Database { spcnode: 1663, dbnode: 5 },
            Key::RelMap { spcnode: 1663, dbnode: 5 },
            Key::RelSize(rel(1663, 7, ForkNumber::Main)),
            Key::RelSize(rel(1663, 7, ForkNumber::Vm)),
            Key::TwoPhase { xid: 700 },
            Key::AuxFile(0),
            Key::SlruPage(SlruKind::Xact, 0),
            Key::SlruPage(SlruKind::Xact, 1 << 40),
            Key::SlruPage(SlruKind::CommitTs, 3),
            Key::RelBlock(rel(1663, 7, ForkNumber::Main), 0),
            Key::RelBlock(rel(1663, 7, ForkNumber::Main), 300),
            Key::RelBlock(rel(1663, 7, ForkNumber::Vm), 0),
            Key::RelBlock(rel(1664, 7, ForkNumber::Main), 0),
        ]
    }

    #[test]
    fn encoding_round_trips_and_sorts_as_keys_do() {
        let keys = samples();
        assert!(keys.is_sorted());
        let encoded: Vec<_> = keys.iter().map(Key::encode).collect();
        assert!(encoded.is_sorted());
        for (key, bytes) in keys.iter().zip(&encoded) {
            assert_eq!(Key::decode(bytes).as_ref(), Ok(key));
        }
    }

    #[test]
    fn golden_bytes() {
        let golden = [
            "010000000000000000000000000000000000",
            "020000000000000000000000000000000000",
            "100000067f00000001000000000000000000",
            "100000067f00000005000000000000000000",
            "110000067f00000005000000000000000000",
            "200000067f00000005000000070000000000",
            "200000067f00000005000000070200000000",
            "3000000000000002bc000000000000000000",
            "310000000000000000000000000000000000",
            "400000000000000000000000000000000000",
            "400000000100000000000000000000000000",
            "400300000000000000030000000000000000",
            "800000067f00000005000000070000000000",
            "800000067f0000000500000007000000012c",
            "800000067f00000005000000070200000000",
            "800000068000000005000000070000000000",
        ];
        assert_eq!(samples().iter().map(|key| hex::encode(key.encode())).collect::<Vec<_>>(), golden);
    }

    #[test]
    fn decode_rejects_unknown_tags_forks_and_padding() {
        let mut bytes = Key::Checkpoint.encode();
        bytes[17] = 1;
        assert!(Key::decode(&bytes).is_err());
        let rel = RelTag { spcnode: 1, dbnode: 2, relnode: 3, fork: ForkNumber::Main };
        let mut bytes = Key::RelBlock(rel, 4).encode();
        bytes[13] = 9;
        assert!(Key::decode(&bytes).is_err());
        assert!(Key::decode(&[0xEE; KEY_LEN]).is_err());
    }
}
