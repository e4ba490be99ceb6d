//! One loaded timeline: the acceptor, its control file and its WAL, owned by one disk worker.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use ardent_api::token::TokenVerifier;
use ardent_api::wal_service::{
    Append, Begin, MemberStanding, Membership, PromisedTerm, Receive, RecordEnd, Response, TimelineOutline,
    TimelineSpec, TimelineStatus, Vote, VoteReply, VoteSource, WAL_LEN_MAX,
};
use ardent_object_store::fault::FailPoints;
use ardent_pg_format::PgMajor;
use ardent_quorum::{
    Acceptor, AcceptorEffect, AcceptorState, Configuration, DiskId, MemberGeneration, OutOfOrder, Promise, Reply,
    VoteAnswer,
};
use ardent_types::{Lsn, Term, TimelineId};

use crate::archive::{ArchivedWal, Archiver, WalArchive};
use crate::control_file;
use crate::failure::TimelineError;
use crate::wal_files::{SegmentNames, WalFileError, WalFiles};

/// Where answers for a connection go.
pub(crate) type Replies = mpsc::UnboundedSender<Response>;

/// How long a place in the archive is kept for who reads there next.
const PLACE_KEPT_FOR: Duration = Duration::from_secs(10);

/// What stays on this disk although it may go, in bytes behind the commit position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// Always.
    pub(crate) near_bytes: u64,
    /// What other safekeepers lack. Where it is archived they get it from there.
    pub(crate) for_others_bytes: u64,
}

/// Durable WAL, for a writer.
#[derive(Debug)]
pub(crate) enum WalForWriter {
    Here(Bytes),
    /// Committed, and not here any more.
    Archived(Arc<TimelineView>),
}

/// What readers see of a loaded timeline. Holding one keeps it loaded.
#[derive(Debug)]
pub(crate) struct TimelineView {
    pub(crate) spec: TimelineSpec,
    pub(crate) names: SegmentNames,
    /// End of the last committed record.
    commit: watch::Receiver<Lsn>,
    oldest: AtomicU64,
    durable: AtomicU64,
    archive: Option<Arc<WalArchive>>,
    /// The start of a segment: all before it is archived. Without an archive it stays what it is.
    archived: AtomicU64,
    /// Where a safekeeper that catches up from the archive was read for, with the block of it: its next request goes on there.
    place: Mutex<Option<(Instant, ArchivedWal)>>,
}

impl TimelineView {
    /// The commit position as it moves; closed when the timeline goes away.
    pub(crate) fn commit(&self) -> watch::Receiver<Lsn> {
        self.commit.clone()
    }

    pub(crate) fn oldest_lsn(&self) -> Lsn {
        Lsn::new(self.oldest.load(Ordering::Acquire))
    }

    /// What followers have made durable.
    pub(crate) fn durable_lsn(&self) -> Lsn {
        Lsn::new(self.durable.load(Ordering::Acquire))
    }

    /// Where older WAL is than is kept here, if it goes anywhere.
    pub(crate) fn archive(&self) -> Option<&Arc<WalArchive>> {
        self.archive.as_ref()
    }

    /// The start of the first segment that is not archived, as far as is known here.
    pub(crate) fn archived_lsn(&self) -> Lsn {
        Lsn::new(self.archived.load(Ordering::Acquire))
    }

    pub(crate) fn set_archived(&self, lsn: Lsn) {
        self.archived.fetch_max(lsn.get(), Ordering::AcqRel);
    }

    /// The place that [`TimelineView::put_place`] was given last.
    pub(crate) fn take_place(&self) -> Option<ArchivedWal> {
        self.place.lock().take().map(|(_, place)| place)
    }

    pub(crate) fn put_place(&self, place: ArchivedWal) {
        *self.place.lock() = Some((Instant::now(), place));
    }

    fn drop_old_place(&self) {
        let mut place = self.place.lock();
        if place.as_ref().is_some_and(|(put_at, _)| put_at.elapsed() >= PLACE_KEPT_FOR) {
            *place = None;
        }
    }

    /// Whether the timeline was deleted, unloaded, or is being loaded again.
    pub(crate) fn is_gone(&self) -> bool {
        self.commit.has_changed().is_err()
    }
}

#[derive(Debug)]
pub(crate) struct Timeline {
    dir: PathBuf,
    acceptor: Acceptor,
    files: WalFiles,
    view: Arc<TimelineView>,
    commit: watch::Sender<Lsn>,
    /// The acceptor's configuration, with addresses.
    membership: Membership,
    disk: DiskId,
    /// The connection that appended last.
    writer: Option<Replies>,
    /// The connection that was promised a term last.
    candidate: Option<Replies>,
    dirty: bool,
    archiver: Option<Archiver>,
    /// The segment that the log had reached when the archiver was last told.
    offered: u64,
    faults: Arc<FailPoints>,
    pub(crate) last_used: Instant,
}

impl Timeline {
    /// Makes a new timeline's folder, durably. `before`: see [`WalFiles::create`].
    pub(crate) fn create(
        dir: &Path,
        spec: &TimelineSpec,
        before: Option<&[u8]>,
        faults: &Arc<FailPoints>,
    ) -> Result<(), TimelineError> {
        let (io, wal) = (control_failure(spec.timeline), wal_failure(spec.timeline));
        let parent = dir.parent().expect("a timeline's folder is in its tenant's");
        let fresh = parent.join(format!(".creating-{}", spec.timeline));
        let make = || {
            if fresh.exists() {
                fs::remove_dir_all(&fresh)?;
            }
            faults.pass("timeline.mkdir")?;
            fs::create_dir_all(fresh.join("wal"))
        };
        make().map_err(|source| io("create", &fresh, source))?;
        let names = SegmentNames::new(fresh.join("wal"), spec);
        let mut files = WalFiles::create(names, spec, known_major(spec)?, before, faults).map_err(&wal)?;
        let start = RecordEnd { end: spec.start_lsn, start: spec.prev_lsn };
        let (state, membership) = (AcceptorState::new(start), Membership::default());
        let state = control_file::create(&fresh, spec, &state, &membership, faults)
            .map_err(|source| TimelineError::ControlFile { timeline: spec.timeline, source })?;
        // Both at once: a file system's journal takes them in one commit.
        let (state_synced, files_synced) = std::thread::scope(|scope| {
            let state_synced = scope.spawn(|| faults.pass("state.fsync").and_then(|()| state.sync_all()));
            let files_synced = files.sync();
            (state_synced.join(), files_synced)
        });
        files_synced.map_err(&wal)?;
        match state_synced {
            Ok(synced) => synced.map_err(|source| io("fsync", &fresh, source))?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        let synced = faults.pass("timeline.folder_fsync").and_then(|()| control_file::sync_dir(&fresh));
        synced.map_err(|source| io("fsync", &fresh, source))?;
        let renamed = faults.pass("timeline.rename").and_then(|()| fs::rename(&fresh, dir));
        renamed.map_err(|source| io("create", dir, source))?;
        Self::sync_place(dir, spec.timeline, faults)
    }

    /// Makes it durable that the folder is where it is.
    pub(crate) fn sync_place(dir: &Path, timeline: TimelineId, faults: &FailPoints) -> Result<(), TimelineError> {
        let io = control_failure(timeline);
        let parent = dir.parent().expect("a timeline's folder is in its tenant's");
        // The tenant's folder may be new as well.
        for folder in [Some(parent), parent.parent()].into_iter().flatten() {
            let synced = faults.pass("timeline.folder_fsync").and_then(|()| control_file::sync_dir(folder));
            synced.map_err(|source| io("fsync", folder, source))?;
        }
        Ok(())
    }

    /// Loads a timeline from its folder and brings it to a state in which all that it has is durable. After a failed write or
    /// fsync `limit` is the end of what was durable then: what lies behind may only seem to be on disk.
    pub(crate) fn load(
        dir: &Path,
        timeline: TimelineId,
        disk: DiskId,
        limit: Option<Lsn>,
        archiver: Option<&Archiver>,
        faults: &Arc<FailPoints>,
    ) -> Result<Timeline, TimelineError> {
        if !crate::wal_files::is_timeline_dir(dir) {
            return Err(TimelineError::NotFound(timeline));
        }
        let control_file::Content { spec, state, membership } =
            control_file::load(dir).map_err(|source| TimelineError::ControlFile { timeline, source })?;
        let major = known_major(&spec)?;
        let names = SegmentNames::new(dir.join("wal"), &spec);
        let wal = wal_failure(timeline);
        let (files, end) = WalFiles::recover(names.clone(), &spec, major, state.commit, limit, faults).map_err(&wal)?;
        let oldest = files.oldest(spec.start_lsn).map_err(&wal)?;
        let known = archiver.and_then(|archiver| archiver.archived(timeline));
        let (commit, committed) = watch::channel(state.commit.end);
        let view = TimelineView {
            spec,
            names,
            commit: committed,
            oldest: AtomicU64::new(oldest.get()),
            durable: AtomicU64::new(0),
            archive: archiver.map(|archiver| Arc::clone(archiver.archive())),
            // What is no longer here was archived, or needed by nobody.
            archived: AtomicU64::new(known.unwrap_or_default().max(oldest.segment_start(spec.wal_segment_size)).get()),
            place: Mutex::default(),
        };
        tracing::info!(%timeline, term = %state.term, commit = %state.commit.end, flush = %end, "timeline loaded");
        let mut timeline = Timeline {
            dir: dir.to_owned(),
            acceptor: Acceptor::recover(state, end),
            files,
            view: Arc::new(view),
            commit,
            membership,
            disk,
            writer: None,
            candidate: None,
            dirty: false,
            archiver: archiver.cloned(),
            offered: known.unwrap_or_default().max(oldest).segment_number(spec.wal_segment_size),
            faults: Arc::clone(faults),
            last_used: Instant::now(),
        };
        timeline.offer();
        Ok(timeline)
    }

    /// Tells the archiver that the log has gone past the end of a segment.
    fn offer(&mut self) {
        let Some(archiver) = &self.archiver else { return };
        let reached = self.acceptor.state().commit.end.segment_number(self.view.spec.wal_segment_size);
        if reached > self.offered {
            self.offered = reached;
            archiver.offer(Arc::clone(&self.view));
        }
    }

    pub(crate) fn view(&self) -> Arc<TimelineView> {
        Arc::clone(&self.view)
    }

    fn id(&self) -> TimelineId {
        self.view.spec.timeline
    }

    pub(crate) fn spec(&self) -> &TimelineSpec {
        &self.view.spec
    }

    pub(crate) fn state(&self) -> &AcceptorState {
        self.acceptor.state()
    }

    /// By which its log is compared with others': the last term in it, then its end.
    pub(crate) fn position(&self) -> (Term, Lsn) {
        let end = self.flush_lsn();
        (self.state().history.up_to(end).last_term(), end)
    }

    /// End of what is surely durable.
    pub(crate) fn flush_lsn(&self) -> Lsn {
        self.acceptor.flush_lsn()
    }

    /// The connection that would be told of a failed fsync.
    pub(crate) fn take_writer(&mut self) -> Option<Replies> {
        self.writer.take()
    }

    /// Whether anybody but its worker holds it.
    pub(crate) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.view) > 1 || self.has_writer()
    }

    /// Whether somebody is connected who writes it, or asked to.
    fn has_writer(&self) -> bool {
        [&self.writer, &self.candidate].into_iter().flatten().any(|writer| !writer.is_closed())
    }

    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    pub(crate) fn status(&self) -> TimelineStatus {
        TimelineStatus {
            spec: self.view.spec,
            term: self.acceptor.state().term,
            flush_lsn: self.acceptor.flush_lsn(),
            commit_lsn: self.acceptor.state().commit.end,
            oldest_lsn: self.view.oldest_lsn(),
            durable_lsn: self.view.durable_lsn(),
        }
    }

    /// `by`: the members that the writer goes by. One that does not say is of a version that knows of none, and goes by generation 0.
    pub(crate) fn vote(
        &mut self,
        vote: &Vote,
        by: Option<&Membership>,
        verifier: &TokenVerifier,
        to: &Replies,
    ) -> Result<(), TimelineError> {
        let (timeline, none) = (self.id(), Membership::default());
        if by.is_none() && self.membership.generation > none.generation {
            return Err(TimelineError::UntoldWriter { timeline, in_force: self.membership.generation });
        }
        let membership = by.unwrap_or(&none);
        let configuration = self.configuration_of(membership, verifier)?;
        let mut effects = Vec::new();
        self.acceptor.vote(vote, &configuration, &mut effects).map_err(out_of_order(timeline))?;
        self.members_taken(membership, Some(to));
        // Whoever is refused is nobody's writer: it must not stand in the way of one that is.
        let is_granted =
            |effect: &AcceptorEffect| matches!(effect, AcceptorEffect::Reply(Reply::Vote(answer)) if answer.granted);
        if effects.iter().any(is_granted) {
            self.candidate = Some(to.clone());
        }
        for effect in effects {
            let reply = match effect {
                AcceptorEffect::Reply(Reply::Vote(answer)) => self.vote_reply(answer),
                effect => {
                    self.carry_out(vec![effect], Some(to))?;
                    continue;
                }
            };
            let source = || VoteSource { disk: self.disk, membership: self.membership.clone() };
            // A writer that has gone away asks again when it is back.
            let _ = to.send(match by {
                Some(_) => Response::VoteIn(reply, source()),
                None => Response::Vote(reply),
            });
        }
        Ok(())
    }

    pub(crate) fn begin(
        &mut self,
        begin: &Begin,
        generation: MemberGeneration,
        to: &Replies,
    ) -> Result<(), TimelineError> {
        let mut effects = Vec::new();
        let out_of_order = out_of_order(self.id());
        self.acceptor.begin(begin, generation, &mut effects).map_err(out_of_order)?;
        self.carry_out(effects, Some(to))
    }

    /// A list that is newer than the one here counts with control's seal only: who may write a branch must not be able to say who keeps it.
    fn configuration_of(
        &self,
        membership: &Membership,
        verifier: &TokenVerifier,
    ) -> Result<Configuration, TimelineError> {
        let (timeline, generation) = (self.id(), membership.generation);
        let configuration = Configuration::of(membership).ok_or(TimelineError::BadMembers { timeline })?;
        if generation > self.membership.generation && !verifier.has_sealed(membership) {
            return Err(TimelineError::ForgedMembers { timeline, generation });
        }
        Ok(configuration)
    }

    /// After the acceptor was told of these members: if it has taken them, their addresses are its own's as well, and whoever writes by older
    /// ones is told to ask again, `told` excepted.
    fn members_taken(&mut self, membership: &Membership, told: Option<&Replies>) {
        let in_force = self.acceptor.state().configuration.generation();
        if in_force != membership.generation || self.membership.generation == in_force {
            return;
        }
        let given = std::mem::replace(&mut self.membership, membership.clone()).generation;
        let error = out_of_order(self.id())(OutOfOrder::OtherMembers { given, in_force });
        let mut others: Vec<Replies> = [self.writer.take(), self.candidate.take()].into_iter().flatten().collect();
        others.dedup_by(|one, other| one.same_channel(other));
        for other in others.iter().filter(|other| !told.is_some_and(|told| told.same_channel(other))) {
            // One that has gone away asks anyway when it is back.
            let _ = other.send(error.response(0));
        }
    }

    /// The members change: see [`Acceptor::configure`]. What is answered is durable.
    pub(crate) fn configure(
        &mut self,
        membership: &Membership,
        verifier: &TokenVerifier,
        promise: Option<PromisedTerm>,
    ) -> Result<MemberStanding, TimelineError> {
        let configuration = self.configuration_of(membership, verifier)?;
        let promise = promise.map(|promise| Promise { term: promise.term, proposer: promise.proposer });
        let mut effects = Vec::new();
        self.acceptor.configure(&configuration, promise, &mut effects).map_err(out_of_order(self.id()))?;
        self.members_taken(membership, None);
        self.carry_out(effects, None)?;
        let standing = self.acceptor.standing();
        Ok(MemberStanding {
            disk: self.disk,
            membership: self.membership.clone(),
            promise: PromisedTerm { term: standing.promise.term, proposer: standing.promise.proposer },
            last_term: standing.position.term,
            flush_lsn: standing.position.flush_lsn,
            has_begun: standing.has_begun,
            has_writer: self.has_writer(),
            oldest_lsn: self.view.oldest_lsn(),
        })
    }

    /// What one that joins has to begin with.
    pub(crate) fn outline(&self) -> TimelineOutline {
        let state = self.acceptor.state().for_joining();
        TimelineOutline {
            spec: self.view.spec,
            promise: PromisedTerm { term: state.term, proposer: state.voted_for },
            history: state.history.entries().to_vec(),
            commit: state.commit,
            start: state.start,
            oldest_lsn: self.view.oldest_lsn(),
            membership: self.membership.clone(),
        }
    }

    /// Writes; the answer comes when [`Timeline::sync`] has made it durable. True: there is something to sync.
    pub(crate) fn append(
        &mut self,
        append: Append,
        generation: MemberGeneration,
        to: &Replies,
    ) -> Result<bool, TimelineError> {
        let mut effects = Vec::new();
        let out_of_order = out_of_order(self.id());
        self.acceptor.append(append, generation, &mut effects).map_err(out_of_order)?;
        // A stale writer is answered at once; only one that was not refused becomes the one that syncs answer.
        let wrote = effects.iter().any(|effect| matches!(effect, AcceptorEffect::Write { .. }));
        if wrote && !self.writer.as_ref().is_some_and(|writer| writer.same_channel(to)) {
            self.writer = Some(to.clone());
        }
        self.dirty |= wrote;
        self.carry_out(effects, Some(to))?;
        Ok(self.dirty)
    }

    /// The log is handed over: `to` gets the answers of what is appended from here on. Whoever was fenced before is told so there.
    pub(crate) fn hand_over(&mut self, receive: &Receive, to: &Replies) -> Result<Arc<TimelineView>, TimelineError> {
        let Receive { term, generation, end, .. } = receive;
        let nothing = Append { term: *term, start: end.end, commit: *end, peers_lsn: end.end, data: Bytes::new() };
        let mut effects = Vec::new();
        let out_of_order = out_of_order(self.id());
        self.acceptor.append(nothing, *generation, &mut effects).map_err(out_of_order)?;
        if !effects.iter().any(|effect| matches!(effect, AcceptorEffect::Reply(_))) {
            self.writer = Some(to.clone());
        }
        self.carry_out(effects, Some(to))?;
        Ok(self.view())
    }

    /// Makes what was written durable and answers the writer.
    pub(crate) fn sync(&mut self) -> Result<(), TimelineError> {
        if !self.dirty {
            return Ok(());
        }
        self.files.sync().map_err(wal_failure(self.id()))?;
        self.dirty = false;
        let mut effects = Vec::new();
        self.acceptor.flushed(self.acceptor.write_lsn(), &mut effects);
        let writer = self.writer.clone();
        self.carry_out(effects, writer.as_ref())
    }

    fn carry_out(&mut self, effects: Vec<AcceptorEffect>, to: Option<&Replies>) -> Result<(), TimelineError> {
        for effect in effects {
            match effect {
                AcceptorEffect::Persist(state) => self.store(&state)?,
                AcceptorEffect::Truncate(lsn) => self.files.truncate(lsn).map_err(wal_failure(self.id()))?,
                AcceptorEffect::Write { start, data } => {
                    self.files.append(start, &data).map_err(wal_failure(self.id()))?;
                }
                AcceptorEffect::Committed(commit) => {
                    self.commit.send_replace(commit.end);
                    self.offer();
                }
                AcceptorEffect::Reply(reply) => {
                    let response = self.response(reply);
                    // A writer that has gone away asks again when it is back.
                    let _ = to.map(|to| to.send(response));
                }
            }
        }
        Ok(())
    }

    fn response(&self, reply: Reply) -> Response {
        match reply {
            Reply::Vote(answer) => Response::Vote(self.vote_reply(answer)),
            Reply::Begin(reply) => Response::Begin(reply),
            Reply::Append(reply) => Response::Append(reply),
        }
    }

    fn vote_reply(&self, answer: VoteAnswer) -> VoteReply {
        VoteReply {
            attempt: answer.attempt,
            term: answer.term,
            granted: answer.granted,
            history: answer.history.entries().to_vec(),
            flush_lsn: answer.flush_lsn,
            commit: answer.commit,
            start: answer.start,
            oldest_lsn: self.view.oldest_lsn(),
            pg_major: self.view.spec.pg_major,
            wal_segment_size: self.view.spec.wal_segment_size,
        }
    }

    fn store(&self, state: &AcceptorState) -> Result<(), TimelineError> {
        control_file::store(&self.dir, &self.view.spec, state, &self.membership, &self.faults)
            .map_err(|source| TimelineError::ControlFile { timeline: self.id(), source })
    }

    /// Writes the commit position down if it has moved since it was.
    pub(crate) fn save_commit(&mut self) -> Result<(), TimelineError> {
        if self.acceptor.commit_is_unsaved() {
            self.store(self.acceptor.state())?;
            self.acceptor.state_saved();
        }
        Ok(())
    }

    /// Durable WAL from `from` on, for a writer of `term`; empty when there is none.
    pub(crate) fn read_for_writer(&self, term: Term, from: Lsn, to: Lsn) -> Result<WalForWriter, TimelineError> {
        if !self.acceptor.may_read(term) {
            let last_term = self.acceptor.state().term;
            return Err(out_of_order(self.id())(OutOfOrder::NotBegun { term, last_term }));
        }
        let (oldest_lsn, end_lsn) = (self.view.oldest_lsn(), self.acceptor.flush_lsn());
        if from < oldest_lsn {
            // It is committed, and so the same in the log of every later term, whatever is promised while the archive is read.
            if self.view.archive.is_some() {
                return Ok(WalForWriter::Archived(self.view()));
            }
            return Err(TimelineError::OutOfRange { timeline: self.id(), lsn: from, oldest_lsn, end_lsn });
        }
        let length = to.min(end_lsn).saturating_sub(from).min(WAL_LEN_MAX as u64) as usize;
        if length == 0 {
            return Ok(WalForWriter::Here(Bytes::new()));
        }
        self.view.names.read(from, length).map(WalForWriter::Here).map_err(wal_failure(self.id()))
    }

    /// A follower has made everything below `lsn` durable.
    pub(crate) fn followed(&mut self, lsn: Lsn) {
        let lsn = lsn.min(self.acceptor.state().commit.end);
        self.view.durable.fetch_max(lsn.get(), Ordering::AcqRel);
    }

    /// Up to where WAL may go, as far as this safekeeper is concerned: further back than what is near, and archived; without an archive what the
    /// follower has made durable.
    fn own_horizon(&self, keep: Keep) -> Lsn {
        let kept_elsewhere = match self.view.archive {
            Some(_) => self.view.archived_lsn(),
            None => self.view.durable_lsn(),
        };
        kept_elsewhere.min(self.behind_commit(keep.near_bytes))
    }

    fn behind_commit(&self, bytes: u64) -> Lsn {
        Lsn::new(self.acceptor.state().commit.end.get().saturating_sub(bytes))
    }

    /// Up to where the other safekeepers need nothing from this disk. One that stays away must not fill it: what is archived it gets from
    /// there when it is back.
    fn others_horizon(&self, keep: Keep) -> Lsn {
        let has_archive = self.view.archive.is_some();
        let bound = if has_archive { self.behind_commit(keep.for_others_bytes) } else { Lsn::INVALID };
        self.acceptor.peers_lsn().max(bound)
    }

    /// WAL that is on this disk only since another safekeeper lacks it, or has not said yet that it has it, in bytes.
    pub(crate) fn kept_for_others_bytes(&self, keep: Keep) -> u64 {
        let (size, oldest) = (self.view.spec.wal_segment_size, self.view.oldest_lsn());
        let goes = |horizon: Lsn| horizon.segment_start(size).max(oldest);
        goes(self.own_horizon(keep)).saturating_sub(goes(self.others_horizon(keep)))
    }

    /// Removes segments that nobody needs from this disk.
    pub(crate) fn trim(&mut self, keep: Keep) -> Result<(), TimelineError> {
        self.view.drop_old_place();
        let before = self.own_horizon(keep).min(self.others_horizon(keep));
        if before.segment_start(self.view.spec.wal_segment_size) <= self.view.oldest_lsn() {
            return Ok(());
        }
        // Recovery starts at the commit position on disk: it must not lie in a segment that goes.
        self.save_commit()?;
        if let Some(oldest) = self.files.trim(before).map_err(wal_failure(self.id()))? {
            self.view.oldest.store(oldest.get(), Ordering::Release);
            tracing::info!(timeline = %self.id(), %oldest, "WAL trimmed");
        }
        Ok(())
    }
}

pub(crate) fn known_major(spec: &TimelineSpec) -> Result<PgMajor, TimelineError> {
    let unknown = TimelineError::UnknownMajor { timeline: spec.timeline, pg_major: spec.pg_major };
    PgMajor::from_number(spec.pg_major).ok_or(unknown)
}

fn wal_failure(timeline: TimelineId) -> impl Fn(WalFileError) -> TimelineError {
    move |source| TimelineError::Wal { timeline, source }
}

fn out_of_order(timeline: TimelineId) -> impl FnOnce(OutOfOrder) -> TimelineError {
    move |source| TimelineError::OutOfOrder { timeline, source }
}

fn control_failure(timeline: TimelineId) -> impl Fn(&'static str, &Path, std::io::Error) -> TimelineError {
    move |action, path, source| TimelineError::ControlFile {
        timeline,
        source: control_file::ControlFileError::Io { action, path: path.to_owned(), source },
    }
}
