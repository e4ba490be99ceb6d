//! Where a new data directory begins: a shutdown checkpoint exactly at the end of the log.
//!
//! The record is part of the timeline's WAL like any other, so it goes through the quorum; the control file points at it
//! and says that the cluster was shut down. Postgres then recovers nothing, and goes on writing right behind it.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ardent_api::compute::RunAs;
use ardent_pg_format::encode::{EncodedWal, SegmentFile, WalStream, segment_files, shutdown_checkpoint};
use ardent_pg_format::{CONTROL_FILE_LEN, CheckPoint, ControlFile, PgMajor};
use ardent_types::Lsn;

use crate::cold_start::Origin;
use crate::data_dir::write_file;
use crate::error::ComputeError;
use crate::memory::unix_now_s;
use crate::settings::SourceLimits;

/// `FirstNormalUnloggedLSN`: where unlogged relations start over, so does their LSN counter.
const FIRST_UNLOGGED_LSN: Lsn = Lsn::new(1000);

/// What Postgres is started from.
#[derive(Debug)]
pub(crate) struct StartPoint {
    /// The checkpoint record, to be appended to the quorum's log.
    pub(crate) wal: EncodedWal,
    control_file: Vec<u8>,
    segments: Vec<SegmentFile>,
    pub(crate) limits: SourceLimits,
}

impl StartPoint {
    /// The start point at `end`, the end of the log, whose last record starts at `previous` (or is not known). `unlogged_lsn`: the
    /// counter that unlogged relations were kept with.
    pub(crate) fn new(
        origin: &Origin,
        end: Lsn,
        previous: Lsn,
        unlogged_lsn: Option<Lsn>,
    ) -> Result<Self, ComputeError> {
        let header = &origin.header;
        let invalid = |what: &str, error: &dyn std::error::Error| ComputeError::Invalid(format!("{what}: {error}"));
        let mut control = ControlFile::decode(&origin.control_file)
            .map_err(|error| invalid("the base backup's pg_control", &error))?;
        let major = control.major;
        if major.number() != header.pg_major || control.wal_segment_size != header.wal_segment_size {
            return Err(ComputeError::Invalid("the base backup's header and its pg_control disagree".to_owned()));
        }
        let bytes = hex::decode(&header.checkpoint_hex).map_err(|error| invalid("the checkpoint fields", &error))?;
        let fields = CheckPoint::decode(&bytes, major).map_err(|error| invalid("the checkpoint fields", &error))?;
        let limits = limits(&control);
        let checkpoint = CheckPoint {
            tli: header.pg_tli,
            previous_tli: header.pg_tli,
            full_page_writes: false,
            wal_level: if major >= PgMajor::V17 { 1 + i32::from(limits.wal_level_logical) } else { 0 },
            time: i64::try_from(unix_now_s()).unwrap_or(i64::MAX),
            ..fields
        };
        let stream =
            WalStream { major, segment_size: header.wal_segment_size, tli: header.pg_tli, system_id: header.system_id };
        let previous = [previous, header.prev_lsn].into_iter().find(|lsn| lsn.is_valid());
        // Where the stream begins, any smaller position will do.
        let previous = previous.unwrap_or_else(|| Lsn::new(end.get().saturating_sub(8)));
        let (wal, written) = shutdown_checkpoint(stream, end, previous, &checkpoint);
        if wal.start != end {
            return Err(ComputeError::Invalid(format!("the log ends at {end}, which is not the end of a record")));
        }
        control.set_shut_down(wal.record.start, written);
        control.system_id = header.system_id;
        control.data_checksum_version = 0;
        control.unlogged_lsn = unlogged_lsn.map_or(FIRST_UNLOGGED_LSN, |lsn| lsn.max(FIRST_UNLOGGED_LSN));
        let segments = segment_files(stream, &wal);
        Ok(StartPoint { control_file: control.encode(), segments, limits, wal })
    }

    /// Completes the data directory at `root`.
    pub(crate) fn write(&self, root: &Path, run_as: Option<RunAs>) -> Result<(), ComputeError> {
        for segment in &self.segments {
            let path = root.join("pg_wal").join(&segment.name);
            write_file(&path, &[], run_as)?;
            let file = std::fs::OpenOptions::new().write(true).open(&path);
            let file = file.map_err(ComputeError::io("cannot open", &path))?;
            file.set_len(segment.len).map_err(ComputeError::io("cannot set the size of", &path))?;
            for (offset, bytes) in &segment.parts {
                file.write_all_at(bytes, *offset).map_err(ComputeError::io("cannot write", &path))?;
            }
        }
        write_file(&root.join("global/pg_control"), &self.control_file, run_as)
    }
}

/// What a data directory that was stopped cleanly says about itself.
pub(crate) fn read_control_file(root: &Path) -> Result<ControlFile, ComputeError> {
    let path = root.join("global/pg_control");
    let bytes = std::fs::read(&path).map_err(ComputeError::io("cannot read", &path))?;
    ControlFile::decode(&bytes).map_err(|error| ComputeError::Invalid(format!("{}: {error}", path.display())))
}

/// The redo LSN of the last completed checkpoint of a server that runs: every block that was changed before is in its files. `None` while the
/// file is being written, or if it is none: the folder is Postgres's.
pub(crate) fn completed_checkpoint(root: &Path) -> Option<Lsn> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let plain = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(plain).open(root.join("global/pg_control")).ok()?;
    let mut bytes = Vec::new();
    file.take(CONTROL_FILE_LEN as u64).read_to_end(&mut bytes).ok()?;
    ControlFile::decode(&bytes).ok().map(|control| control.checkpoint.redo)
}

/// The settings that a compute must not undercut.
pub(crate) fn limits(control: &ControlFile) -> SourceLimits {
    let positive = |value: i32| u32::try_from(value).unwrap_or(0);
    SourceLimits {
        wal_level_logical: control.wal_level >= 2,
        max_connections: positive(control.max_connections),
        max_worker_processes: positive(control.max_worker_processes),
        max_wal_senders: positive(control.max_wal_senders),
        max_prepared_transactions: positive(control.max_prepared_xacts),
        max_locks_per_transaction: positive(control.max_locks_per_xact),
        track_commit_timestamp: control.track_commit_timestamp,
    }
}
