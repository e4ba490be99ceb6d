//! Gives a safekeeper that lost its disk what the others have, while none of them runs.
//!
//! What the lost one had promised and acknowledged is not known any more. So:
//!
//! 1. As many others as make a majority are needed. Whatever was committed was on a majority, so at least one of these has it, and the
//!    one with the highest position has all of it.
//! 2. The others promise a term above all that any of them had promised. A writer from before, which may count on what the
//!    lost one had acknowledged, finds no majority any more.
//! 3. Only then the lost one gets the log of the highest position, with its history and that promise, and so do others that lack the
//!    timeline, as they were away when it was made: made empty later, they would listen to that writer. It is in its place,
//!    durable and whole, or not at all; what is interrupted is begun again.
//!
//! A timeline that the folder still has stays as it is. See `docs/quorum.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use ardent_api::wal_service::ProposerId;
use ardent_quorum::AcceptorState;
use ardent_types::{Lsn, TenantId, Term, TimelineId};

use crate::control_file;
use crate::failure::TimelineError;
use crate::service::{StartError, prepare_data_dir};
use crate::timeline::Timeline;
use crate::wal_files::is_timeline_dir;

/// A timeline that the safekeeper has again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuiltTimeline {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// Bytes of WAL.
    pub wal_bytes: u64,
    /// End of the log.
    pub end: Lsn,
}

/// Why a safekeeper cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Of too few others is known what they have.
    #[error(
        "{given} of the other {others} safekeepers are there, and {needed} are needed: what was committed may be on those that are missing"
    )]
    TooFew {
        /// How many were given.
        given: usize,
        /// How many others there are.
        others: usize,
        /// How many are needed.
        needed: usize,
    },
    /// A folder cannot be used.
    #[error(transparent)]
    Folder(#[from] StartError),
    /// A timeline cannot be read.
    #[error("{folder}: {source}")]
    Timeline {
        /// The safekeeper's folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: TimelineError,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Makes in `lost`, the folder of one of `members` safekeepers, all timelines that it lacks and `wanted` says yes to, from the folders
/// of `others`. None of them may run; their locks are held meanwhile. `done` is called after each timeline. Blocks.
pub fn rebuild(
    lost: &Path,
    others: &[PathBuf],
    members: usize,
    wanted: impl Fn(TimelineId) -> bool,
    mut done: impl FnMut(&RebuiltTimeline),
) -> Result<usize, RebuildError> {
    let needed = members / 2 + 1;
    if others.len() < needed || members < 2 {
        return Err(RebuildError::TooFew { given: others.len(), others: members.saturating_sub(1), needed });
    }
    let folders: BTreeSet<&Path> = others.iter().map(PathBuf::as_path).chain([lost]).collect();
    let _locks: Vec<_> = folders.into_iter().map(prepare_data_dir).collect::<Result<_, _>>()?;
    let mut count = 0;
    for ((tenant, timeline), holders) in timelines_of(others)? {
        if is_timeline_dir(&dir_of(lost, tenant, timeline)) || !wanted(timeline) {
            continue;
        }
        // The lost one comes last: while it lacks the timeline, all of this is done again.
        let lacking: Vec<&Path> =
            others.iter().filter(|other| !holders.contains(other)).map(PathBuf::as_path).chain([lost]).collect();
        done(&copy(&lacking, &holders, tenant, timeline)?);
        count += 1;
    }
    Ok(count)
}

/// Each timeline, with the folders that have it.
fn timelines_of(folders: &[PathBuf]) -> Result<BTreeMap<(TenantId, TimelineId), Vec<&PathBuf>>, RebuildError> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for folder in folders {
        for (tenant, tenant_dir) in ids_in::<TenantId>(folder)? {
            for (timeline, dir) in ids_in::<TimelineId>(&tenant_dir)? {
                if is_timeline_dir(&dir) {
                    found.entry((tenant, timeline)).or_default().push(folder);
                }
            }
        }
    }
    Ok(found)
}

/// The folders in `dir` whose names are ids; others are not ours.
fn ids_in<I: std::str::FromStr>(dir: &Path) -> Result<Vec<(I, PathBuf)>, RebuildError> {
    let failed = |source| RebuildError::Io { action: "list", path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(id.map(|id| (id, entry.path())));
    }
    Ok(found)
}

fn dir_of(folder: &Path, tenant: TenantId, timeline: TimelineId) -> PathBuf {
    folder.join(tenant.to_string()).join(timeline.to_string())
}

fn copy(
    lacking: &[&Path],
    holders: &[&PathBuf],
    tenant: TenantId,
    timeline: TimelineId,
) -> Result<RebuiltTimeline, RebuildError> {
    let failed = |folder: &Path| {
        let folder = folder.to_owned();
        move |source| RebuildError::Timeline { folder, source }
    };
    // Loading brings each to what it has durably, as its safekeeper's start would.
    let mut loaded = Vec::with_capacity(holders.len());
    for folder in holders {
        let dir = dir_of(folder, tenant, timeline);
        loaded.push((folder.as_path(), Timeline::load(&dir, timeline, None).map_err(failed(folder))?));
    }
    let promised = loaded.iter().map(|(_, timeline)| timeline.state().term).max().unwrap_or(Term::new(0));
    let term = Term::new(promised.get() + 1);
    for (folder, holder) in &loaded {
        let state = AcceptorState { term, voted_for: ProposerId::NONE, ..holder.state().clone() };
        let dir = dir_of(folder, tenant, timeline);
        control_file::store(&dir, holder.spec(), &state)
            .map_err(|source| TimelineError::ControlFile { timeline, source })
            .map_err(failed(folder))?;
    }
    let best = loaded.iter().max_by_key(|(_, timeline)| timeline.position());
    let (folder, best) = best.expect("somebody has it");
    let state = AcceptorState { term, voted_for: ProposerId::NONE, ..best.state().clone() };
    let mut wal_bytes = 0;
    for to in lacking {
        wal_bytes = install(to, &dir_of(folder, tenant, timeline), tenant, best, &state)?;
    }
    Ok(RebuiltTimeline { tenant, timeline, wal_bytes, end: best.flush_lsn() })
}

/// Copies the log in `from`, and puts it in its place in the folder `lost` with `state`. Gives the bytes of its files.
fn install(
    lost: &Path,
    from: &Path,
    tenant: TenantId,
    source: &Timeline,
    state: &AcceptorState,
) -> Result<u64, RebuildError> {
    let (timeline, parent) = (source.spec().timeline, lost.join(tenant.to_string()));
    let fresh = parent.join(format!(".creating-{timeline}"));
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| RebuildError::Io { action, path, source }
    };
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(io("remove", &fresh))?;
    }
    fs::create_dir_all(fresh.join("wal")).map_err(io("create", &fresh))?;
    let mut bytes = 0;
    for entry in fs::read_dir(from.join("wal")).map_err(io("list", from))? {
        let entry = entry.map_err(io("list", from))?;
        let to = fresh.join("wal").join(entry.file_name());
        bytes += fs::copy(entry.path(), &to).map_err(io("copy", &entry.path()))?;
        File::open(&to).and_then(|file| file.sync_all()).map_err(io("fsync", &to))?;
    }
    let control = |source| RebuildError::Timeline {
        folder: lost.to_owned(),
        source: TimelineError::ControlFile { timeline, source },
    };
    let file = control_file::create(&fresh, source.spec(), state).map_err(control)?;
    file.sync_all().map_err(io("fsync", &fresh))?;
    for folder in [&fresh.join("wal"), &fresh] {
        control_file::sync_dir(folder).map_err(io("fsync", folder))?;
    }
    let dir = dir_of(lost, tenant, timeline);
    fs::rename(&fresh, &dir).map_err(io("create", &dir))?;
    for folder in [&parent, &lost.to_owned()] {
        control_file::sync_dir(folder).map_err(io("fsync", folder))?;
    }
    Ok(bytes)
}
