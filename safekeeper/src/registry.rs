//! Which worker owns which timeline; requests to workers as async calls.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use ardent_api::token::TokenVerifier;
use ardent_api::wal_service::{
    CopySource, MemberStanding, Membership, PromisedTerm, Receive, TimelineOutline, TimelineSpec, TimelineStatus,
};
use ardent_object_store::fault::FailPoints;
use ardent_pg_format::PgMajor;
use ardent_types::{DiskId, Lsn, MemberGeneration, TenantId, Term, TimelineId};

use crate::copy::{self, CopyError};
use crate::disk_worker::{Command, DiskWorker, Key, WorkerConfig};
use crate::failure::{TimelineError, with_causes};
use crate::follow::read_committed;
use crate::timeline::{Replies, TimelineView, WalForWriter};
use crate::wal_files::{WalFileError, ancestor_bytes, is_timeline_dir};

/// The way to all timelines. When it is dropped, the workers save what they have and end.
#[derive(Debug)]
pub(crate) struct Registry {
    data_dir: PathBuf,
    disk: DiskId,
    workers: Vec<Worker>,
    copying: Copying,
    verifier: TokenVerifier,
    faults: Arc<FailPoints>,
}

/// Timelines that are being copied: one copy of each at a time, since they are in one folder until they are whole.
#[derive(Debug, Default)]
struct Copying(Arc<Mutex<HashMap<Key, UnderWay>>>);

/// A copy.
#[derive(Clone, Debug, Default)]
struct UnderWay {
    /// Rung when it is not wanted any more.
    unwanted: CancellationToken,
    /// Rung when nothing of it is written any more.
    ended: CancellationToken,
}

/// Ends with the copy.
struct CopyTurn {
    key: Key,
    all: Arc<Mutex<HashMap<Key, UnderWay>>>,
    unwanted: CancellationToken,
    /// Dropped after it is taken off the list.
    _ended: DropGuard,
}

impl Copying {
    fn begin(&self, key: Key) -> Option<CopyTurn> {
        let mut all = self.0.lock();
        if all.contains_key(&key) {
            return None;
        }
        let under_way = UnderWay::default();
        all.insert(key, under_way.clone());
        let UnderWay { unwanted, ended } = under_way;
        Some(CopyTurn { key, all: Arc::clone(&self.0), unwanted, _ended: ended.drop_guard() })
    }

    /// Ends the copy of it, if one is under way, and waits for that.
    async fn end(&self, key: Key) {
        loop {
            let Some(under_way) = self.0.lock().get(&key).cloned() else { return };
            under_way.unwanted.cancel();
            under_way.ended.cancelled().await;
        }
    }
}

impl Drop for CopyTurn {
    fn drop(&mut self) {
        self.all.lock().remove(&self.key);
    }
}

/// A thread that owns timelines.
#[derive(Debug)]
struct Worker {
    commands: mpsc::UnboundedSender<(Key, Command)>,
    runtime: Handle,
}

impl Registry {
    /// Starts the workers.
    pub(crate) fn start(config: WorkerConfig, workers: usize) -> io::Result<(Registry, Vec<JoinHandle<()>>)> {
        let mut senders = Vec::with_capacity(workers);
        let mut threads = Vec::with_capacity(workers);
        for number in 0..workers {
            let (commands, receiver) = mpsc::unbounded_channel();
            let worker = DiskWorker::new(config.clone());
            let runtime = Builder::new_current_thread().enable_all().build()?;
            senders.push(Worker { commands, runtime: runtime.handle().clone() });
            let thread = std::thread::Builder::new().name(format!("wal-disk-{number}"));
            let body = move || {
                // As a task among the connections' tasks: waking one of these costs no system call.
                let worker = runtime.spawn(worker.run(receiver));
                if let Err(error) = runtime.block_on(worker) {
                    tracing::error!(%error, "a disk worker failed");
                }
            };
            threads.push(thread.spawn(body)?);
        }
        let WorkerConfig { data_dir, disk, verifier, faults, .. } = config;
        Ok((Registry { data_dir, disk, workers: senders, copying: Copying::default(), verifier, faults }, threads))
    }

    pub(crate) fn disk(&self) -> DiskId {
        self.disk
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Gives a command to the timeline's worker.
    pub(crate) fn send(&self, key: Key, command: Command) -> Result<(), TimelineError> {
        self.worker(key).commands.send((key, command)).map_err(|_| TimelineError::Stopping)
    }

    /// The event loop of the thread that owns the timeline.
    pub(crate) fn runtime(&self, key: Key) -> &Handle {
        &self.worker(key).runtime
    }

    fn worker(&self, key: Key) -> &Worker {
        let bytes = key.1.as_bytes();
        let number = bytes.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        &self.workers[number % self.workers.len()]
    }

    async fn ask<T>(
        &self,
        key: Key,
        command: impl FnOnce(oneshot::Sender<Result<T, TimelineError>>) -> Command,
    ) -> Result<T, TimelineError> {
        let (sender, answer) = oneshot::channel();
        self.send(key, command(sender))?;
        answer.await.map_err(|_| TimelineError::Stopping)?
    }

    pub(crate) async fn open(&self, key: Key) -> Result<std::sync::Arc<TimelineView>, TimelineError> {
        self.ask(key, Command::Open).await
    }

    /// A log is handed over; answers of what is appended from here on go to `to`.
    pub(crate) async fn hand_over(
        &self,
        key: Key,
        receive: Receive,
        to: Replies,
    ) -> Result<Arc<TimelineView>, TimelineError> {
        self.ask(key, |answer| Command::HandOver { receive, to, answer }).await
    }

    pub(crate) async fn status(&self, key: Key) -> Result<TimelineStatus, TimelineError> {
        self.ask(key, Command::Status).await
    }

    /// Durable WAL from `from` on, up to `to` at most, for a writer of `term`.
    pub(crate) async fn read_for_writer(
        &self,
        key: Key,
        term: Term,
        from: Lsn,
        to: Lsn,
    ) -> Result<Bytes, TimelineError> {
        match self.ask(key, |answer| Command::ReadWal { term, from, to, answer }).await? {
            WalForWriter::Here(bytes) => Ok(bytes),
            // The store may take its time: not on the timeline's thread.
            WalForWriter::Archived(view) => read_committed(view, from, to).await,
        }
    }

    /// How many bytes all loaded timelines keep only since another safekeeper lacks them.
    pub(crate) async fn kept_for_others_bytes(&self) -> Result<u64, TimelineError> {
        let mut all = 0_u64;
        for worker in &self.workers {
            let (sender, answer) = oneshot::channel();
            let no_timeline = (TenantId::NONE, TimelineId::NONE);
            let sent = worker.commands.send((no_timeline, Command::KeptForOthers(sender)));
            sent.map_err(|_| TimelineError::Stopping)?;
            all = all.saturating_add(answer.await.map_err(|_| TimelineError::Stopping)??);
        }
        Ok(all)
    }

    pub(crate) async fn outline(&self, key: Key) -> Result<TimelineOutline, TimelineError> {
        self.ask(key, Command::Outline).await
    }

    pub(crate) async fn configure(
        &self,
        key: Key,
        membership: Membership,
        promise: Option<PromisedTerm>,
    ) -> Result<MemberStanding, TimelineError> {
        self.ask(key, |answer| Command::Configure { membership, promise, answer }).await
    }

    /// Makes a timeline by copying what is committed of it. One that is here already stays as it is.
    pub(crate) async fn copy(&self, source: &CopySource) -> Result<(), TimelineError> {
        let key = (source.tenant, source.timeline);
        let dir = self.data_dir.join(source.tenant.to_string()).join(source.timeline.to_string());
        let failed = |error| TimelineError::Copy { timeline: source.timeline, source: error };
        let turn = Arc::new(self.copying.begin(key).ok_or_else(|| failed(CopyError::UnderWay))?);
        if is_timeline_dir(&dir) {
            let faults = Arc::clone(&self.faults);
            let synced = tokio::task::spawn_blocking(move || copy::sync_place(&dir, &faults)).await;
            return synced.map_err(|_| failed(CopyError::Stopping))?.map_err(failed);
        }
        tokio::select! {
            copied = self.copy_anew(key, source, &dir, &turn) => copied,
            () = turn.unwanted.cancelled() => Err(failed(CopyError::Deleted)),
        }
    }

    /// A copy that is given up in the middle is not put in its place any more.
    async fn copy_anew(
        &self,
        key: Key,
        source: &CopySource,
        dir: &Path,
        turn: &Arc<CopyTurn>,
    ) -> Result<(), TimelineError> {
        let failed = |error| TimelineError::Copy { timeline: source.timeline, source: error };
        let outline = copy::outline_of(source).await.map_err(failed)?;
        if (outline.spec.tenant, outline.spec.timeline) != key {
            return Err(failed(CopyError::Contradiction("it is another timeline")));
        }
        check_spec(&outline.spec)?;
        let membership = &outline.membership;
        if membership.generation > MemberGeneration::default() && !self.verifier.has_sealed(membership) {
            let (timeline, generation) = (source.timeline, membership.generation);
            return Err(TimelineError::ForgedMembers { timeline, generation });
        }
        let before = self.ancestor_bytes(&outline.spec).await?;
        let fresh = dir.with_file_name(format!(".copying-{}", source.timeline));
        copy::copy(source, outline, before, fresh.clone(), Arc::clone(turn), &self.faults).await.map_err(failed)?;
        self.ask(key, |answer| Command::Install { fresh, answer }).await
    }

    /// Whether no tenant has a timeline here.
    pub(crate) async fn is_empty(&self) -> io::Result<bool> {
        let dir = self.data_dir.clone();
        let look = move || {
            for tenant in std::fs::read_dir(&dir)? {
                let tenant = tenant?;
                let is_tenant = tenant.file_name().to_str().is_some_and(|name| name.parse::<TenantId>().is_ok());
                if !is_tenant {
                    continue;
                }
                for timeline in std::fs::read_dir(tenant.path())? {
                    if is_timeline_dir(&timeline?.path()) {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        };
        tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
    }

    pub(crate) async fn delete(&self, key: Key) -> Result<(), TimelineError> {
        // A copy that ends later would bring it back.
        self.copying.end(key).await;
        self.ask(key, Command::Delete).await
    }

    /// Makes a timeline; its first segment begins with its ancestor's bytes, if they are here and committed. If they cannot be read, none
    /// is made.
    pub(crate) async fn create(&self, spec: TimelineSpec) -> Result<(), TimelineError> {
        check_spec(&spec)?;
        let before = self.ancestor_bytes(&spec).await?;
        let key = (spec.tenant, spec.timeline);
        self.ask(key, |answer| Command::Create { spec, before, answer }).await
    }

    /// What the timeline's first segment begins with; `None` if its ancestor is not here, or has not got that. An ancestor that is here and
    /// cannot be read is an error: without these bytes the segment would be another than on other safekeepers, for good.
    async fn ancestor_bytes(&self, spec: &TimelineSpec) -> Result<Option<Bytes>, TimelineError> {
        let Some(ancestor) = spec.ancestor else { return Ok(None) };
        let read = self.read_ancestor(spec, ancestor.timeline).await;
        read.map_err(|source| {
            let (timeline, source) = (spec.timeline, Box::new(source));
            let error = TimelineError::Ancestor { timeline, ancestor: ancestor.timeline, source };
            tracing::warn!(%timeline, error = with_causes(&error), "a timeline is not made now");
            error
        })
    }

    async fn read_ancestor(&self, spec: &TimelineSpec, ancestor: TimelineId) -> Result<Option<Bytes>, TimelineError> {
        let view = match self.open((spec.tenant, ancestor)).await {
            Err(TimelineError::NotFound(_)) => return Ok(None),
            view => view?,
        };
        let same = view.spec.wal_segment_size == spec.wal_segment_size && view.spec.pg_tli == spec.pg_tli;
        if !same || *view.commit().borrow() < spec.start_lsn {
            return Ok(None);
        }
        let start_lsn = spec.start_lsn;
        let path = view.names.path(start_lsn.segment_number(view.names.size()));
        let read =
            tokio::task::spawn_blocking(move || ancestor_bytes(&view.names, start_lsn, || view.oldest_lsn())).await;
        let read = read
            .unwrap_or_else(|ended| Err(WalFileError::Io { action: "read", path, source: io::Error::other(ended) }));
        read.map_err(|source| TimelineError::Wal { timeline: ancestor, source })
    }

    /// The timelines of a tenant.
    pub(crate) async fn list(&self, tenant: TenantId) -> io::Result<Vec<TimelineId>> {
        let dir = self.data_dir.join(tenant.to_string());
        let list = move || {
            let entries = match std::fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let mut timelines = Vec::new();
            for entry in entries {
                let entry = entry?;
                let id: Option<TimelineId> = entry.file_name().to_str().and_then(|name| name.parse().ok());
                timelines.extend(id.filter(|_| is_timeline_dir(&entry.path())));
            }
            Ok(timelines)
        };
        tokio::task::spawn_blocking(list).await.map_err(io::Error::other)?
    }
}

fn check_spec(spec: &TimelineSpec) -> Result<(), TimelineError> {
    let bad = |what| Err(TimelineError::BadSpec { timeline: spec.timeline, what });
    if spec.timeline == TimelineId::NONE || spec.tenant == TenantId::NONE {
        return bad("its id or its tenant's is missing");
    }
    if PgMajor::from_number(spec.pg_major).is_none() {
        return bad("this build does not know its major version of Postgres");
    }
    if !spec.start_lsn.is_valid() || spec.start_lsn.align_up_8() != spec.start_lsn {
        return bad("its start is not a record boundary");
    }
    if spec.prev_lsn >= spec.start_lsn {
        return bad("the record before its start begins after it");
    }
    Ok(())
}
