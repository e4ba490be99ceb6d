//! `global/pg_control` (`ControlFileData`); byte table in `docs/formats/postgres-control.md`.

use ardent_types::{BLCKSZ, Lsn, PgTli, SystemId, WalSegmentSize, WalSegmentSizeError};

use crate::bytes_at::{put, u32_at, u64_at};
use crate::checkpoint::{CHECKPOINT_LEN, CheckPoint};
use crate::major::PgMajor;

/// Length of the file. Only the first few hundred bytes say something.
pub const CONTROL_FILE_LEN: usize = 8192;
/// Length of the authentication nonce.
const NONCE_LEN: usize = 32;
const CHECKPOINT_AT: usize = 40;
/// `FLOATFORMAT_VALUE`
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// `DBState`: how the cluster was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ClusterState {
    /// Being made.
    Startup = 0,
    /// Shut down; the next start recovers nothing.
    ShutDown = 1,
    /// Shut down while in recovery.
    ShutDownInRecovery = 2,
    /// Shutting down.
    ShuttingDown = 3,
    /// In crash recovery.
    InCrashRecovery = 4,
    /// In archive recovery, as a standby is.
    InArchiveRecovery = 5,
    /// Running.
    InProduction = 6,
}

impl ClusterState {
    const ALL: [ClusterState; 7] = [
        ClusterState::Startup,
        ClusterState::ShutDown,
        ClusterState::ShutDownInRecovery,
        ClusterState::ShuttingDown,
        ClusterState::InCrashRecovery,
        ClusterState::InArchiveRecovery,
        ClusterState::InProduction,
    ];
}

/// The content of `pg_control`. All fields can be changed; [`ControlFile::encode`] computes the CRC anew.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlFile {
    /// The major that wrote it, known by its catalog version.
    pub major: PgMajor,
    /// Identifies the cluster.
    pub system_id: SystemId,
    /// How the cluster was left.
    pub state: ClusterState,
    /// When the file was last written, in seconds since 1970.
    pub time: i64,
    /// Start of the last checkpoint record.
    pub checkpoint_lsn: Lsn,
    /// Copy of that record's body.
    pub checkpoint: CheckPoint,
    /// The fake LSN counter of unlogged relations.
    pub unlogged_lsn: Lsn,
    /// Archive recovery must reach this.
    pub min_recovery_point: Lsn,
    /// On this Postgres timeline.
    pub min_recovery_point_tli: PgTli,
    /// Redo point of the backup being recovered.
    pub backup_start: Lsn,
    /// End of the backup being recovered, if it was taken from a standby.
    pub backup_end: Lsn,
    /// Recovery must see a backup-end record.
    pub backup_end_required: bool,
    /// `wal_level` as a number.
    pub wal_level: i32,
    /// `wal_log_hints`
    pub wal_log_hints: bool,
    /// `max_connections`
    pub max_connections: i32,
    /// `max_worker_processes`
    pub max_worker_processes: i32,
    /// `max_wal_senders`
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`
    pub max_prepared_xacts: i32,
    /// `max_locks_per_transaction`
    pub max_locks_per_xact: i32,
    /// `track_commit_timestamp`
    pub track_commit_timestamp: bool,
    /// Blocks per segment file of a relation.
    pub relation_segment_blocks: u32,
    /// WAL segment size.
    pub wal_segment_size: WalSegmentSize,
    /// `NAMEDATALEN`
    pub name_data_len: u32,
    /// `INDEX_MAX_KEYS`
    pub index_max_keys: u32,
    /// `TOAST_MAX_CHUNK_SIZE`
    pub toast_max_chunk_size: u32,
    /// `LOBLKSIZE`
    pub large_object_block_size: u32,
    /// 0 without data checksums, else the version of their algorithm (1).
    pub data_checksum_version: u32,
    /// Whether `char` was signed where the cluster was made. Stored since 18; true before.
    pub default_char_signedness: bool,
    /// Secret of failing authentications.
    pub mock_authentication_nonce: [u8; NONCE_LEN],
}

/// `pg_control` can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// Cut off.
    #[error("pg_control has {0} bytes and should have {CONTROL_FILE_LEN}")]
    Length(usize),
    /// Another major.
    #[error("pg_control is of catalog version {catalog}, format {format}: this is none of Postgres 15 to 18")]
    Version {
        /// Catalog version.
        catalog: u32,
        /// Format version.
        format: u32,
    },
    /// Damaged.
    #[error("pg_control's CRC is {found:#010X}, its bytes have {computed:#010X}: the file is damaged")]
    Crc {
        /// In the file.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Unknown state.
    #[error("pg_control says the cluster is in state {0}, which does not exist")]
    State(u32),
    /// Built in a way that Ardent doesn't read.
    #[error("the cluster was built with {name} {found}; Ardent reads {expected}")]
    Build {
        /// Which size.
        name: &'static str,
        /// Of the cluster.
        found: u32,
        /// What is needed.
        expected: u32,
    },
    /// The floating-point format of another architecture.
    #[error("the cluster was made on an architecture with another floating-point format")]
    FloatFormat,
    /// Impossible WAL segment size.
    #[error(transparent)]
    SegmentSize(#[from] WalSegmentSizeError),
}

/// Where fields behind the settings stand; 18 has one more.
fn nonce_at(major: PgMajor) -> usize {
    if major >= PgMajor::V18 { 257 } else { 256 }
}

fn crc_at(major: PgMajor) -> usize {
    (nonce_at(major) + NONCE_LEN).next_multiple_of(4)
}

impl ControlFile {
    /// Reads the file. Errors if it is damaged, of another major, or of a build that Ardent can't read.
    pub fn decode(bytes: &[u8]) -> Result<ControlFile, ControlFileError> {
        if bytes.len() != CONTROL_FILE_LEN {
            return Err(ControlFileError::Length(bytes.len()));
        }
        let (format, catalog) = (u32_at(bytes, 8), u32_at(bytes, 12));
        let major = PgMajor::from_catalog_version(catalog).filter(|major| major.control_version() == format);
        let major = major.ok_or(ControlFileError::Version { catalog, format })?;
        let crc_at = crc_at(major);
        let (found, computed) = (u32_at(bytes, crc_at), crc32c::crc32c(&bytes[..crc_at]));
        if found != computed {
            return Err(ControlFileError::Crc { found, computed });
        }
        for (name, at, expected) in [
            ("a maximum alignment of", 204, 8),
            ("a block size of", 216, BLCKSZ as u32),
            ("a WAL block size of", 224, 8192),
        ] {
            let found = u32_at(bytes, at);
            if found != expected {
                return Err(ControlFileError::Build { name, found, expected });
            }
        }
        if u64_at(bytes, 208) != FLOAT_FORMAT.to_bits() {
            return Err(ControlFileError::FloatFormat);
        }
        Self::read_fields(bytes, major)
    }

    fn read_fields(bytes: &[u8], major: PgMajor) -> Result<ControlFile, ControlFileError> {
        let state = u32_at(bytes, 16);
        let lsn = |at| Lsn::new(u64_at(bytes, at));
        let int = |at| u32_at(bytes, at).cast_signed();
        let nonce_at = nonce_at(major);
        let checkpoint = CheckPoint::decode(&bytes[CHECKPOINT_AT..CHECKPOINT_AT + CHECKPOINT_LEN], major);
        Ok(ControlFile {
            major,
            system_id: SystemId::new(u64_at(bytes, 0)),
            state: ClusterState::ALL.get(state as usize).copied().ok_or(ControlFileError::State(state))?,
            time: u64_at(bytes, 24).cast_signed(),
            checkpoint_lsn: lsn(32),
            checkpoint: checkpoint.expect("the slice has that length"),
            unlogged_lsn: lsn(128),
            min_recovery_point: lsn(136),
            min_recovery_point_tli: PgTli::new(u32_at(bytes, 144)),
            backup_start: lsn(152),
            backup_end: lsn(160),
            backup_end_required: bytes[168] != 0,
            wal_level: int(172),
            wal_log_hints: bytes[176] != 0,
            max_connections: int(180),
            max_worker_processes: int(184),
            max_wal_senders: int(188),
            max_prepared_xacts: int(192),
            max_locks_per_xact: int(196),
            track_commit_timestamp: bytes[200] != 0,
            relation_segment_blocks: u32_at(bytes, 220),
            wal_segment_size: WalSegmentSize::new(u32_at(bytes, 228))?,
            name_data_len: u32_at(bytes, 232),
            index_max_keys: u32_at(bytes, 236),
            toast_max_chunk_size: u32_at(bytes, 240),
            large_object_block_size: u32_at(bytes, 244),
            data_checksum_version: u32_at(bytes, 252),
            default_char_signedness: major < PgMajor::V18 || bytes[256] != 0,
            mock_authentication_nonce: bytes[nonce_at..nonce_at + NONCE_LEN].try_into().expect("32 bytes"),
        })
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_FILE_LEN];
        let major = self.major;
        put(&mut bytes, CHECKPOINT_AT, &self.checkpoint.encode(major));
        for (at, value) in [
            (0, self.system_id.get()),
            (24, self.time.cast_unsigned()),
            (32, self.checkpoint_lsn.get()),
            (128, self.unlogged_lsn.get()),
            (136, self.min_recovery_point.get()),
            (152, self.backup_start.get()),
            (160, self.backup_end.get()),
            (208, FLOAT_FORMAT.to_bits()),
        ] {
            put(&mut bytes, at, &value.to_le_bytes());
        }
        for (at, value) in [
            (8, major.control_version()),
            (12, major.catalog_version()),
            (16, self.state as u32),
            (144, self.min_recovery_point_tli.get()),
            (172, self.wal_level.cast_unsigned()),
            (180, self.max_connections.cast_unsigned()),
            (184, self.max_worker_processes.cast_unsigned()),
            (188, self.max_wal_senders.cast_unsigned()),
            (192, self.max_prepared_xacts.cast_unsigned()),
            (196, self.max_locks_per_xact.cast_unsigned()),
            (204, 8),
            (216, BLCKSZ as u32),
            (220, self.relation_segment_blocks),
            (224, 8192),
            (228, u32::from(self.wal_segment_size)),
            (232, self.name_data_len),
            (236, self.index_max_keys),
            (240, self.toast_max_chunk_size),
            (244, self.large_object_block_size),
            (252, self.data_checksum_version),
        ] {
            put(&mut bytes, at, &value.to_le_bytes());
        }
        for (at, flag) in [
            (168, self.backup_end_required),
            (176, self.wal_log_hints),
            (200, self.track_commit_timestamp),
            // float8 is passed by value on every 64-bit build.
            (248, true),
        ] {
            bytes[at] = u8::from(flag);
        }
        if major >= PgMajor::V18 {
            bytes[256] = u8::from(self.default_char_signedness);
        }
        put(&mut bytes, nonce_at(major), &self.mock_authentication_nonce);
        let crc_at = crc_at(major);
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        put(&mut bytes, crc_at, &crc.to_le_bytes());
        bytes
    }

    /// Makes it say that the cluster was shut down cleanly with the checkpoint record at `checkpoint_lsn`: nothing is to be recovered.
    pub fn set_shut_down(&mut self, checkpoint_lsn: Lsn, checkpoint: CheckPoint) {
        self.state = ClusterState::ShutDown;
        self.checkpoint_lsn = checkpoint_lsn;
        self.checkpoint = checkpoint;
        self.time = checkpoint.time;
        self.min_recovery_point = Lsn::INVALID;
        self.min_recovery_point_tli = PgTli::new(0);
        self.backup_start = Lsn::INVALID;
        self.backup_end = Lsn::INVALID;
        self.backup_end_required = false;
    }
}
