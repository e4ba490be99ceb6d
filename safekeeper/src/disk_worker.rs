//! What owns timelines and does all their writing: a task on a thread that it shares with the connections of its timelines' writers.
//! Everything that has queued up while an fsync ran, here or in their sockets, is written before the next one: many appends, one fsync.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use ardent_api::token::TokenVerifier;
use ardent_api::wal_service::{
    Append, Begin, MemberStanding, Membership, PromisedTerm, Receive, TimelineOutline, TimelineSpec, TimelineStatus,
    Vote,
};
use ardent_object_store::fault::FailPoints;
use ardent_types::{DiskId, Lsn, MemberGeneration, TenantId, Term, TimelineId};

use crate::archive::Archiver;
use crate::control_file;
use crate::copy;
use crate::failure::{TimelineError, with_causes};
use crate::metrics::Metrics;
use crate::timeline::{Keep, Replies, Timeline, TimelineView, WalForWriter};

/// Most bytes written between two fsyncs, so that the first of many appends does not wait for all.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// How often idle timelines are looked at.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

/// Names a timeline.
pub(crate) type Key = (TenantId, TimelineId);

type Answer<T> = oneshot::Sender<Result<T, TimelineError>>;

/// What a worker is asked to do with a timeline.
#[derive(Debug)]
pub(crate) enum Command {
    Open(Answer<Arc<TimelineView>>),
    Status(Answer<TimelineStatus>),
    Create {
        spec: TimelineSpec,
        before: Option<Bytes>,
        answer: Answer<()>,
    },
    Delete(Answer<()>),
    /// A timeline that was copied to a folder beside its place.
    Install {
        fresh: PathBuf,
        answer: Answer<()>,
    },
    Outline(Answer<TimelineOutline>),
    Configure {
        membership: Membership,
        promise: Option<PromisedTerm>,
        answer: Answer<MemberStanding>,
    },
    /// `by`: the members that the writer goes by, if it says.
    Vote {
        vote: Vote,
        by: Option<Membership>,
        to: Replies,
    },
    Begin {
        begin: Begin,
        generation: MemberGeneration,
        to: Replies,
    },
    /// The permit bounds what a connection may have queued.
    Append {
        append: Append,
        generation: MemberGeneration,
        to: Replies,
        permit: OwnedSemaphorePermit,
    },
    /// A log is handed over: see [`Timeline::hand_over`].
    HandOver {
        receive: Receive,
        to: Replies,
        answer: Answer<Arc<TimelineView>>,
    },
    ReadWal {
        term: Term,
        from: Lsn,
        to: Lsn,
        answer: Answer<WalForWriter>,
    },
    /// How many bytes this worker's loaded timelines keep only since another safekeeper lacks them. The key says nothing.
    KeptForOthers(Answer<u64>),
    Followed(Lsn),
    /// Its connection has ended.
    WriterLeft,
}

/// What a worker is told about its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct WorkerConfig {
    pub(crate) data_dir: PathBuf,
    pub(crate) disk: DiskId,
    /// Knows what control has sealed.
    pub(crate) verifier: TokenVerifier,
    pub(crate) keep: Keep,
    pub(crate) unload_after: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) archiver: Option<Archiver>,
    pub(crate) faults: Arc<FailPoints>,
}

enum Slot {
    Loaded(Box<Timeline>),
    /// A write or fsync failed; only what was durable then can be trusted when it is loaded again.
    Failed {
        durable: Lsn,
    },
}

/// The state of the thread.
pub(crate) struct DiskWorker {
    config: WorkerConfig,
    timelines: HashMap<Key, Slot>,
    dirty: HashSet<Key>,
    /// Whose writer has left, and whose commit position is to be written down once what was written last is durable.
    left: HashSet<Key>,
    batch_bytes: usize,
    /// How many timelines the metrics know of.
    counted_timelines: usize,
    counted_kept_bytes: u64,
}

impl DiskWorker {
    pub(crate) fn new(config: WorkerConfig) -> Self {
        DiskWorker {
            config,
            timelines: HashMap::new(),
            dirty: HashSet::new(),
            left: HashSet::new(),
            batch_bytes: 0,
            counted_timelines: 0,
            counted_kept_bytes: 0,
        }
    }

    /// Works until all senders are gone.
    pub(crate) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<(Key, Command)>) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING_INTERVAL);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // Commands can come without end; this is ready once a second.
                _ = housekeeping.tick() => {
                    self.keep_house();
                    self.count();
                }
                command = commands.recv() => {
                    let Some((key, command)) = command else { break };
                    self.execute(key, command);
                    while self.batch_bytes < BATCH_BYTES_MAX {
                        let Ok((key, command)) = commands.try_recv() else { break };
                        self.execute(key, command);
                    }
                    self.sync_all();
                    self.save_left();
                    // Answers go out, and what has arrived meanwhile comes in, before the next batch.
                    tokio::task::yield_now().await;
                }
            }
        }
        self.save_all();
    }

    fn execute(&mut self, key: Key, command: Command) {
        // An answer whose asker has gone away is of no use to anybody.
        match command {
            Command::Open(answer) => {
                let _ = answer.send(self.loaded(key).map(|timeline| timeline.view()));
            }
            Command::Status(answer) => {
                let _ = answer.send(self.loaded(key).map(|timeline| timeline.status()));
            }
            Command::Create { spec, before, answer } => {
                let _ = answer.send(self.create(key, &spec, before.as_deref()));
            }
            Command::Delete(answer) => {
                let _ = answer.send(self.delete(key));
            }
            Command::Install { fresh, answer } => {
                let _ = answer.send(self.install(key, &fresh));
            }
            Command::Outline(answer) => {
                let _ = answer.send(self.loaded(key).map(|timeline| timeline.outline()));
            }
            Command::Configure { membership, promise, answer } => {
                let verifier = self.config.verifier.clone();
                let configured =
                    self.loaded(key).and_then(|timeline| timeline.configure(&membership, &verifier, promise));
                if let Err(error @ (TimelineError::Wal { .. } | TimelineError::ControlFile { .. })) = &configured {
                    self.fail(key, error, None);
                }
                let _ = answer.send(configured);
            }
            Command::Vote { vote, by, to } => {
                let verifier = self.config.verifier.clone();
                self.write(key, &to, |timeline| timeline.vote(&vote, by.as_ref(), &verifier, &to));
            }
            Command::Begin { begin, generation, to } => {
                self.write(key, &to, |timeline| timeline.begin(&begin, generation, &to));
            }
            Command::Append { append, generation, to, permit } => {
                self.batch_bytes += append.data.len();
                self.config.metrics.appended(append.data.len());
                let mut is_dirty = false;
                self.write(key, &to, |timeline| {
                    is_dirty = timeline.append(append, generation, &to)?;
                    Ok(())
                });
                if is_dirty {
                    self.dirty.insert(key);
                }
                drop(permit);
            }
            Command::HandOver { receive, to, answer } => {
                let _ = answer.send(self.loaded(key).and_then(|timeline| timeline.hand_over(&receive, &to)));
            }
            Command::ReadWal { term, from, to, answer } => {
                let _ = answer.send(self.loaded(key).and_then(|timeline| timeline.read_for_writer(term, from, to)));
            }
            Command::KeptForOthers(answer) => {
                let _ = answer.send(Ok(self.kept_for_others_bytes()));
            }
            Command::Followed(lsn) => self.followed(key, lsn),
            Command::WriterLeft => _ = self.left.insert(key),
        }
    }

    fn dir(&self, key: Key) -> PathBuf {
        self.config.data_dir.join(key.0.to_string()).join(key.1.to_string())
    }

    /// The timeline, loaded if it was not.
    fn loaded(&mut self, key: Key) -> Result<&mut Timeline, TimelineError> {
        let limit = match self.timelines.get(&key) {
            Some(Slot::Loaded(_)) => None,
            Some(Slot::Failed { durable }) => Some(Some(*durable)),
            None => Some(None),
        };
        if let Some(limit) = limit {
            let (archiver, faults) = (self.config.archiver.as_ref(), &self.config.faults);
            let timeline = Timeline::load(&self.dir(key), key.1, self.config.disk, limit, archiver, faults)?;
            self.timelines.insert(key, Slot::Loaded(Box::new(timeline)));
        }
        match self.timelines.get_mut(&key) {
            Some(Slot::Loaded(timeline)) => {
                timeline.last_used = Instant::now();
                Ok(timeline)
            }
            _ => Err(TimelineError::NotFound(key.1)),
        }
    }

    /// Does a writer's request; a failure is told to it and ends its connection.
    fn write(&mut self, key: Key, to: &Replies, work: impl FnOnce(&mut Timeline) -> Result<(), TimelineError>) {
        let result = self.loaded(key).and_then(work);
        if let Err(error) = result {
            self.fail(key, &error, Some(to));
        }
    }

    fn fail(&mut self, key: Key, error: &TimelineError, to: Option<&Replies>) {
        tracing::warn!(timeline = %key.1, error = with_causes(error), "request failed");
        self.config.metrics.failed();
        let mut told = to.cloned();
        if matches!(error, TimelineError::Wal { .. } | TimelineError::ControlFile { .. }) {
            // What is in memory may be ahead of the disk: start over from the disk.
            self.dirty.remove(&key);
            // One that failed before stays what it is: if loading it fails too, as when no more files can be opened, what may only seem to be
            // on disk must not be believed by the next attempt.
            if let Some(Slot::Loaded(timeline)) = self.timelines.get_mut(&key) {
                told = told.or_else(|| timeline.take_writer());
                let durable = timeline.flush_lsn();
                self.timelines.insert(key, Slot::Failed { durable });
            }
        }
        if let Some(to) = told {
            let _ = to.send(error.response(0));
        }
    }

    fn sync_all(&mut self) {
        self.batch_bytes = 0;
        let dirty = std::mem::take(&mut self.dirty);
        for key in dirty {
            let Some(Slot::Loaded(timeline)) = self.timelines.get_mut(&key) else { continue };
            let began = Instant::now();
            let synced = timeline.sync();
            self.config.metrics.flushed(began);
            if let Err(error) = synced {
                let writer = timeline.take_writer();
                self.fail(key, &error, writer.as_ref());
            }
        }
    }

    /// Nobody may write again for long. Whoever reads meanwhile is served up to what is known to be committed, also if this process was
    /// killed right after.
    fn save_left(&mut self) {
        for key in std::mem::take(&mut self.left) {
            let Some(Slot::Loaded(timeline)) = self.timelines.get_mut(&key) else { continue };
            if let Err(error) = timeline.save_commit() {
                self.fail(key, &error, None);
            }
        }
    }

    /// Brings the metrics up to date, which all workers share.
    fn count(&mut self) {
        let loaded = self.timelines.len();
        self.config.metrics.loaded_changed(loaded as i64 - self.counted_timelines as i64);
        self.counted_timelines = loaded;
        let kept_bytes = self.kept_for_others_bytes();
        self.config.metrics.kept_for_others_changed(kept_bytes as i64 - self.counted_kept_bytes as i64);
        self.counted_kept_bytes = kept_bytes;
    }

    fn kept_for_others_bytes(&self) -> u64 {
        let kept = self.timelines.values().map(|slot| match slot {
            Slot::Loaded(timeline) => timeline.kept_for_others_bytes(self.config.keep),
            Slot::Failed { .. } => 0,
        });
        kept.sum()
    }

    fn create(&mut self, key: Key, spec: &TimelineSpec, before: Option<&[u8]>) -> Result<(), TimelineError> {
        let dir = self.dir(key);
        if crate::wal_files::is_timeline_dir(&dir) {
            let existing = self.loaded(key)?.status().spec;
            if existing != *spec {
                return Err(TimelineError::Conflict(key.1));
            }
            // An attempt may have failed between its last rename and what makes that durable.
            return Timeline::sync_place(&dir, key.1, &self.config.faults);
        }
        Timeline::create(&dir, spec, before, &self.config.faults)
    }

    /// Puts a timeline that was copied, and is durable, in its place.
    fn install(&mut self, key: Key, fresh: &Path) -> Result<(), TimelineError> {
        let dir = self.dir(key);
        if crate::wal_files::is_timeline_dir(&dir) {
            return Err(TimelineError::Conflict(key.1));
        }
        copy::install(fresh, &dir, &self.config.faults)
            .map_err(|source| TimelineError::Copy { timeline: key.1, source })
    }

    fn delete(&mut self, key: Key) -> Result<(), TimelineError> {
        self.dirty.remove(&key);
        self.timelines.remove(&key);
        if let Some(archiver) = &self.config.archiver {
            archiver.forget(key.1);
        }
        let dir = self.dir(key);
        let gone = dir.with_file_name(format!(".deleted-{}", key.1));
        let faults = &self.config.faults;
        let remove = || {
            if dir.exists() {
                faults.pass("delete.rename")?;
                fs::rename(&dir, &gone)?;
                faults.pass("delete.folder_fsync")?;
                control_file::sync_dir(dir.parent().expect("a timeline's folder is in its tenant's"))?;
            }
            faults.pass("delete.remove")?;
            if gone.exists() { fs::remove_dir_all(&gone) } else { Ok(()) }
        };
        remove().map_err(|source| TimelineError::ControlFile {
            timeline: key.1,
            source: control_file::ControlFileError::Io { action: "remove", path: dir.clone(), source },
        })
    }

    fn followed(&mut self, key: Key, lsn: Lsn) {
        let keep = self.config.keep;
        let result = self.loaded(key).and_then(|timeline| {
            timeline.followed(lsn);
            timeline.trim(keep)
        });
        if let Err(error) = result {
            self.fail(key, &error, None);
        }
    }

    /// Trims what was archived meanwhile, writes down the commit positions of timelines that have come to rest, unloads those that nobody
    /// uses.
    fn keep_house(&mut self) {
        let mut failed = Vec::new();
        let (unload_after, keep) = (self.config.unload_after, self.config.keep);
        self.timelines.retain(|key, slot| {
            let Slot::Loaded(timeline) = slot else { return true };
            if let Err(error) = timeline.trim(keep) {
                failed.push((*key, error));
                return true;
            }
            let idle = timeline.last_used.elapsed();
            if idle >= HOUSEKEEPING_INTERVAL
                && let Err(error) = timeline.save_commit()
            {
                failed.push((*key, error));
                return true;
            }
            idle < unload_after || timeline.is_in_use()
        });
        for (key, error) in failed {
            self.fail(key, &error, None);
        }
    }

    fn save_all(&mut self) {
        for (key, slot) in &mut self.timelines {
            let Slot::Loaded(timeline) = slot else { continue };
            // Not saved is not lost: the next start finds the end of the log by reading further.
            if let Err(error) = timeline.save_commit() {
                tracing::warn!(timeline = %key.1, error = with_causes(&error), "commit position not saved");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal_files::WalFileError;

    fn worker(data_dir: &Path) -> DiskWorker {
        DiskWorker::new(WorkerConfig {
            data_dir: data_dir.to_owned(),
            disk: DiskId::generate(),
            verifier: TokenVerifier::from_public_key(Vec::new()),
            keep: Keep { near_bytes: 0, for_others_bytes: 0 },
            unload_after: Duration::ZERO,
            metrics: Metrics::default(),
            archiver: None,
            faults: Arc::default(),
        })
    }

    #[test]
    fn what_was_durable_when_a_timeline_failed_is_known_until_it_is_loaded() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut worker, key) = (worker(dir.path()), (TenantId::generate(), TimelineId::generate()));
        let durable = Lsn::new(0x0200_2000);
        worker.timelines.insert(key, Slot::Failed { durable });
        // Loading it fails as well, for want of a descriptor.
        let source = std::io::Error::from_raw_os_error(nix::libc::EMFILE);
        let source = WalFileError::Io { action: "open", path: dir.path().to_owned(), source };
        let error = TimelineError::Wal { timeline: key.1, source };
        let (to, mut told) = mpsc::unbounded_channel();
        worker.fail(key, &error, Some(&to));
        let Some(Slot::Failed { durable: known }) = worker.timelines.get(&key) else { panic!("it is forgotten") };
        assert_eq!(*known, durable);
        assert_eq!(told.try_recv().expect("the writer is told"), error.response(0));
    }
}
