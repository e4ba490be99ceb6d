//! One that joins gets a timeline from a safekeeper that has it: what is committed, with its history and its promise.
//!
//! ```text
//!  other safekeeper ──outline──► .copying-TIMELINE/{state, wal/...} ──whole and durable──► TIMELINE
//!                   ──committed WAL──►
//! ```
//!
//! It begins as if it had been there. What is interrupted is thrown away and begun again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{CopySource, ErrorCode, RecordEnd, TimelineOutline};
use ardent_object_store::fault::FailPoints;
use ardent_quorum::{AcceptorState, Configuration, TermHistory};
use ardent_types::Lsn;
use ardent_wal_client::{ClientError, SafekeeperClient, WalReader};

use crate::control_file::{self, ControlFileError, sync_dir};
use crate::timeline::known_major;
use crate::wal_files::{SegmentNames, WalFileError, WalFiles};

/// How long the other safekeeper may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Pieces of WAL, of at most 1 MiB, that have come and are not written yet.
const PIECES_WAITING_MAX: usize = 4;
/// So much is made durable at a time, and its files are closed: the end is not held up by all of it, and however long a log is, few files are open.
const SYNC_EVERY_BYTES: u64 = 64 << 20;

/// A timeline cannot be copied from another safekeeper.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The other one.
    #[error("it cannot be read where it is")]
    Source(#[source] ClientError),
    /// It says nothing.
    #[error("the safekeeper that has it, at {address}, has been silent for {} s", SILENCE_MAX.as_secs())]
    Silent {
        /// Which.
        address: ServiceAddr,
    },
    /// What the other one says makes no timeline.
    #[error("what the safekeeper that has it says is contradictory: {0}")]
    Contradiction(&'static str),
    /// It is being copied already.
    #[error("it is being copied already")]
    UnderWay,
    /// It was deleted meanwhile.
    #[error("it is not to be here any more")]
    Deleted,
    /// Its WAL here.
    #[error("its WAL cannot be written")]
    Wal(#[source] WalFileError),
    /// Its state here.
    #[error("its state cannot be written")]
    ControlFile(#[source] ControlFileError),
    /// Its folder here.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The safekeeper is stopping.
    #[error("this safekeeper is stopping")]
    Stopping,
}

impl CopyError {
    /// The code on the wire: most may be tried again.
    pub fn code(&self) -> ErrorCode {
        match self {
            CopyError::Source(error) => {
                error.code().unwrap_or(if error.is_retryable() { ErrorCode::Unavailable } else { ErrorCode::Refused })
            }
            CopyError::Contradiction(_) => ErrorCode::Corrupt,
            CopyError::Silent { .. }
            | CopyError::UnderWay
            | CopyError::Deleted
            | CopyError::Wal(_)
            | CopyError::ControlFile(_)
            | CopyError::Io { .. }
            | CopyError::Stopping => ErrorCode::Unavailable,
        }
    }
}

/// Does something with the file system at a fail point.
fn at<T>(
    faults: &FailPoints,
    point: &str,
    action: &'static str,
    path: &Path,
    work: impl FnOnce() -> io::Result<T>,
) -> Result<T, CopyError> {
    let done = faults.pass(point).and_then(|()| work());
    done.map_err(|source| CopyError::Io { action, path: path.to_owned(), source })
}

/// What a joining acceptor knows.
struct Joining {
    outline: TimelineOutline,
    state: AcceptorState,
}

impl Joining {
    fn of(outline: TimelineOutline) -> Result<Self, CopyError> {
        let history = TermHistory::from_entries(outline.history.clone());
        let history = history.ok_or(CopyError::Contradiction("its history is out of order"))?;
        let configuration = Configuration::of(&outline.membership);
        let configuration = configuration.ok_or(CopyError::Contradiction("its members are out of order"))?;
        let RecordEnd { end, .. } = outline.start;
        if end != outline.spec.start_lsn || outline.commit.end < end || outline.oldest_lsn > outline.commit.end {
            return Err(CopyError::Contradiction("it ends before it begins"));
        }
        let state = AcceptorState {
            term: outline.promise.term,
            voted_for: outline.promise.proposer,
            history,
            commit: outline.commit,
            start: outline.start,
            configuration,
        };
        Ok(Joining { outline, state })
    }
}

/// Asks what one that joins has to begin with.
pub(crate) async fn outline_of(source: &CopySource) -> Result<TimelineOutline, CopyError> {
    let asking = async {
        let CopySource { tenant, timeline, address, token } = source;
        let mut client = SafekeeperClient::connect_to_timeline(address, *tenant, *timeline, token).await?;
        client.outline(*timeline).await
    };
    let asked = tokio::time::timeout(SILENCE_MAX, asking).await;
    asked.map_err(|_| CopyError::Silent { address: source.address.clone() })?.map_err(CopyError::Source)
}

/// Copies it to the folder `fresh`, whole and durable. `before`: see [`WalFiles::create`]. `turn` is dropped when nothing is written any more,
/// also if this future is dropped before.
pub(crate) async fn copy(
    source: &CopySource,
    outline: TimelineOutline,
    before: Option<Bytes>,
    fresh: PathBuf,
    turn: impl Send + 'static,
    faults: &Arc<FailPoints>,
) -> Result<(), CopyError> {
    let joining = Joining::of(outline)?;
    let (start, commit) = (joining.outline.spec.start_lsn, joining.state.commit.end);
    let from = joining.outline.oldest_lsn.max(start);
    let (pieces, incoming) = mpsc::channel(PIECES_WAITING_MAX);
    let writing = {
        let faults = Arc::clone(faults);
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            write(&joining, from, before.as_deref(), &fresh, incoming, &faults)
        })
    };
    let read = read(source, from, commit, &pieces).await;
    // The end of the pieces is the end of the log only if all of them came.
    let whole = read.as_ref().is_ok_and(|whole| *whole);
    drop(pieces);
    let written = writing.await.map_err(|_| CopyError::Stopping)?;
    read?;
    let end = written?;
    if whole && end == commit { Ok(()) } else { Err(CopyError::Stopping) }
}

/// Reads `[from, to)`. False: nobody writes it.
async fn read(source: &CopySource, from: Lsn, to: Lsn, pieces: &mpsc::Sender<Bytes>) -> Result<bool, CopyError> {
    let silent = |_| CopyError::Silent { address: source.address.clone() };
    let CopySource { tenant, timeline, address, token } = source;
    let mut reader = WalReader::connect(std::slice::from_ref(address), *tenant, *timeline, token, from)
        .await
        .map_err(CopyError::Source)?;
    while reader.next_lsn() < to {
        let next = tokio::time::timeout(SILENCE_MAX, reader.next()).await.map_err(silent)?;
        let mut chunk = next.map_err(CopyError::Source)?;
        // What was committed since belongs to later terms, maybe.
        let wanted = to.saturating_sub(chunk.start).min(chunk.bytes.len() as u64);
        if wanted > 0 && pieces.send(chunk.bytes.split_to(wanted as usize)).await.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes a timeline's folder, durably; gives the end of what came. Blocks.
fn write(
    joining: &Joining,
    from: Lsn,
    before: Option<&[u8]>,
    fresh: &Path,
    mut pieces: mpsc::Receiver<Bytes>,
    faults: &Arc<FailPoints>,
) -> Result<Lsn, CopyError> {
    let spec = &joining.outline.spec;
    let major =
        known_major(spec).map_err(|_| CopyError::Contradiction("its major version of Postgres is not known here"))?;
    if fresh.exists() {
        let failed = |source| CopyError::Io { action: "remove", path: fresh.to_owned(), source };
        fs::remove_dir_all(fresh).map_err(failed)?;
    }
    let wal = fresh.join("wal");
    at(faults, "join.mkdir", "create", &wal, || fs::create_dir_all(&wal))?;
    let names = SegmentNames::new(wal.clone(), spec);
    let mut files = if from == spec.start_lsn {
        WalFiles::create(names, spec, major, before, faults).map_err(CopyError::Wal)?
    } else {
        WalFiles::new(names, faults)
    };
    let (mut end, mut durable) = (from, from);
    while let Some(piece) = pieces.blocking_recv() {
        files.append(end, &piece).map_err(CopyError::Wal)?;
        end = end.advance(piece.len() as u64);
        if end.saturating_sub(durable) >= SYNC_EVERY_BYTES {
            files.sync().map_err(CopyError::Wal)?;
            durable = end;
        }
    }
    if end < joining.state.commit.end {
        // The reader says why.
        return Ok(end);
    }
    files.sync().map_err(CopyError::Wal)?;
    let state = control_file::create(fresh, spec, &joining.state, &joining.outline.membership, faults);
    let state: File = state.map_err(CopyError::ControlFile)?;
    at(faults, "join.fsync", "fsync", fresh, || state.sync_all())?;
    at(faults, "join.folder_fsync", "fsync", fresh, || sync_dir(fresh))?;
    Ok(end)
}

/// Puts what was copied in its place, durably.
pub(crate) fn install(fresh: &Path, dir: &Path, faults: &FailPoints) -> Result<(), CopyError> {
    at(faults, "join.rename", "create", dir, || fs::rename(fresh, dir))?;
    sync_place(dir, faults)
}

/// Makes it durable that the folder is where it is: an attempt may have failed right before that.
pub(crate) fn sync_place(dir: &Path, faults: &FailPoints) -> Result<(), CopyError> {
    let parent = dir.parent().expect("a timeline's folder is in its tenant's");
    // The tenant's folder may be new as well.
    for folder in [Some(parent), parent.parent()].into_iter().flatten() {
        at(faults, "join.folder_fsync", "fsync", folder, || sync_dir(folder))?;
    }
    Ok(())
}
