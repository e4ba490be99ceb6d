//! Those safekeepers that have a timeline, none of which runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use ardent_api::wal_service::ProposerId;
use ardent_object_store::fault::FailPoints;
use ardent_quorum::AcceptorState;
use ardent_types::{DiskId, Lsn, MemberGeneration, TenantId, Term, TimelineId};

use crate::control_file;
use crate::failure::TimelineError;
use crate::service::StartError;
use crate::timeline::Timeline;
use crate::wal_files::is_timeline_dir;

/// Nobody is told which disk it is while it does not run.
const NO_DISK: DiskId = DiskId::new(0);

/// A timeline that was given to safekeepers which lacked it, or the end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedTimeline {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// Bytes of WAL of one copy.
    pub wal_bytes: u64,
    /// End of the log.
    pub end: Lsn,
}

/// Why the safekeepers' folders cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
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
    /// Fewer than a majority are there.
    #[error(
        "{given} of {members} safekeepers are there, and {needed} are needed: what was committed may be on those that are missing"
    )]
    NoMajority {
        /// How many were given.
        given: usize,
        /// How many there are.
        members: usize,
        /// How many are needed.
        needed: usize,
    },
    /// They were changed while the server ran, which wrote down who they are.
    #[error(
        "the safekeepers of {timeline} were changed while the server ran (generation {generation}): that is how they are changed from now on"
    )]
    ChangedOnline {
        /// A timeline that was told.
        timeline: TimelineId,
        /// Of which generation.
        generation: MemberGeneration,
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

/// All that have a timeline, of those that are there.
pub(crate) struct Holders<'a> {
    tenant: TenantId,
    timeline: TimelineId,
    loaded: Vec<(&'a Path, Timeline)>,
    /// Above what any of them had promised.
    term: Term,
    faults: &'a Arc<FailPoints>,
}

impl<'a> Holders<'a> {
    /// Brings each to what it has durably, as its safekeeper's start would. There is at least one.
    pub(crate) fn load(
        folders: &[&'a PathBuf],
        tenant: TenantId,
        timeline: TimelineId,
        faults: &'a Arc<FailPoints>,
    ) -> Result<Holders<'a>, OfflineError> {
        let mut loaded = Vec::with_capacity(folders.len());
        for folder in folders {
            let dir = dir_of(folder, tenant, timeline);
            let failed = |source| OfflineError::Timeline { folder: folder.to_path_buf(), source };
            let holder = Timeline::load(&dir, timeline, NO_DISK, None, None, faults).map_err(failed)?;
            let generation = holder.membership().generation;
            if generation > MemberGeneration::default() {
                return Err(OfflineError::ChangedOnline { timeline, generation });
            }
            loaded.push((folder.as_path(), holder));
        }
        let promised = loaded.iter().map(|(_, timeline)| timeline.state().term).max().unwrap_or(Term::new(0));
        Ok(Holders { tenant, timeline, loaded, term: Term::new(promised.get() + 1), faults })
    }

    /// Lets all of them promise a term above what any had promised: no writer from before is listened to.
    pub(crate) fn raise(&self) -> Result<(), OfflineError> {
        for (folder, holder) in &self.loaded {
            let dir = dir_of(folder, self.tenant, self.timeline);
            control_file::store(&dir, holder.spec(), &self.promised(holder), holder.membership(), self.faults)
                .map_err(|source| {
                    let source = TimelineError::ControlFile { timeline: self.timeline, source };
                    OfflineError::Timeline { folder: folder.to_path_buf(), source }
                })?;
        }
        Ok(())
    }

    /// The state of one with the promise.
    fn promised(&self, holder: &Timeline) -> AcceptorState {
        AcceptorState { term: self.term, voted_for: ProposerId::NONE, ..holder.state().clone() }
    }

    /// The one with the highest position.
    fn best(&self) -> (&'a Path, &Timeline) {
        let best = self.loaded.iter().max_by_key(|(_, timeline)| timeline.position());
        let (folder, timeline) = best.expect("somebody has it");
        (folder, timeline)
    }

    /// Whether it has all that the best one has.
    pub(crate) fn has_all(&self, folder: &Path) -> bool {
        let (_, best) = self.best();
        self.loaded.iter().any(|(holder, timeline)| *holder == folder && timeline.position() == best.position())
    }

    /// Gives these the log of the highest position, with its history and the promise.
    pub(crate) fn copy_to(&self, folders: &[&Path]) -> Result<CopiedTimeline, OfflineError> {
        let (folder, best) = self.best();
        let from = dir_of(folder, self.tenant, self.timeline);
        let state = self.promised(best);
        let mut wal_bytes = 0;
        for to in folders {
            wal_bytes = self.install(to, &from, best, &state)?;
        }
        Ok(CopiedTimeline { tenant: self.tenant, timeline: self.timeline, wal_bytes, end: best.flush_lsn() })
    }
}

/// Each timeline, with the folders that have it.
pub(crate) fn timelines_of(
    folders: &[PathBuf],
) -> Result<BTreeMap<(TenantId, TimelineId), Vec<&PathBuf>>, OfflineError> {
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
fn ids_in<I: std::str::FromStr>(dir: &Path) -> Result<Vec<(I, PathBuf)>, OfflineError> {
    let failed = |source| OfflineError::Io { action: "list", path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(id.map(|id| (id, entry.path())));
    }
    Ok(found)
}

pub(crate) fn dir_of(folder: &Path, tenant: TenantId, timeline: TimelineId) -> PathBuf {
    folder.join(tenant.to_string()).join(timeline.to_string())
}

impl Holders<'_> {
    /// Copies the log in `from`, and puts it in its place in the folder `to` with `state`, where it takes the place of what is there. Gives
    /// the bytes of its files.
    fn install(&self, to: &Path, from: &Path, source: &Timeline, state: &AcceptorState) -> Result<u64, OfflineError> {
        let (timeline, parent) = (self.timeline, to.join(self.tenant.to_string()));
        let fresh = parent.join(format!(".creating-{timeline}"));
        if fresh.exists() {
            let failed = |source| OfflineError::Io { action: "remove", path: fresh.clone(), source };
            fs::remove_dir_all(&fresh).map_err(failed)?;
        }
        self.at("copy.mkdir", "create", &fresh, || fs::create_dir_all(fresh.join("wal")))?;
        let list_failed = |source| OfflineError::Io { action: "list", path: from.to_owned(), source };
        let mut bytes = 0;
        for entry in fs::read_dir(from.join("wal")).map_err(list_failed)? {
            let entry = entry.map_err(list_failed)?;
            let copy = fresh.join("wal").join(entry.file_name());
            bytes += self.at("copy.write", "copy", &entry.path(), || fs::copy(entry.path(), &copy))?;
            self.at("copy.fsync", "fsync", &copy, || File::open(&copy)?.sync_all())?;
        }
        let control = |source| OfflineError::Timeline {
            folder: to.to_owned(),
            source: TimelineError::ControlFile { timeline, source },
        };
        let file =
            control_file::create(&fresh, source.spec(), state, source.membership(), self.faults).map_err(control)?;
        self.at("copy.fsync", "fsync", &fresh, || file.sync_all())?;
        for folder in [&fresh.join("wal"), &fresh] {
            self.at("copy.folder_fsync", "fsync", folder, || control_file::sync_dir(folder))?;
        }
        let dir = dir_of(to, self.tenant, timeline);
        if dir.exists() {
            // At no moment there is none. What was there has the name of a leftover then.
            let exchange = || Ok(renameat2(AT_FDCWD, &fresh, AT_FDCWD, &dir, RenameFlags::RENAME_EXCHANGE)?);
            self.at("copy.exchange", "replace", &dir, exchange)?;
        } else {
            self.at("copy.rename", "create", &dir, || fs::rename(&fresh, &dir))?;
        }
        for folder in [&parent, &to.to_owned()] {
            self.at("copy.folder_fsync", "fsync", folder, || control_file::sync_dir(folder))?;
        }
        if fresh.exists() {
            self.at("copy.remove", "remove", &fresh, || fs::remove_dir_all(&fresh))?;
        }
        Ok(bytes)
    }

    /// Does something with the file system at a fail point.
    fn at<T>(
        &self,
        point: &str,
        action: &'static str,
        path: &Path,
        work: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, OfflineError> {
        let done = self.faults.pass(point).and_then(|()| work());
        done.map_err(|source| OfflineError::Io { action, path: path.to_owned(), source })
    }
}
