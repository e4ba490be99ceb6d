//! Management: branches, facts, leases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ardent_api::page_service::{ErrorCode, ManageReply, ManageRequest, TimelineStatus};
use ardent_api::token::Rights;
use ardent_storage::{CutError, CutRoot, Glance, Timeline, TimelineError};
use ardent_types::{ForkNumber, Key, Lsn, RelTag, TimelineId, with_causes};

use crate::connection::{Bound, Connection, Failure};
use crate::description;
use crate::import::{CONSISTENT_FROM, check_consistent, consistent_from, consistent_from_of};
use crate::kept_state;
use crate::limits;
use crate::pages::{code_of, commit_failure, decode_size, read_failure, timeline_failure};
use crate::retention;

impl Connection<'_> {
    pub(crate) fn run_manage(&mut self, bound: &Bound, request: ManageRequest) -> Result<ManageReply, Failure> {
        match request {
            ManageRequest::ImportBegin { spec } => self.import_begin(bound, spec),
            ManageRequest::ImportFinish { end_lsn } => self.import_finish(end_lsn),
            ManageRequest::BranchPoint { timeline, at } => {
                let timeline = self.timeline(bound, timeline, Rights::Read)?;
                self.wait_for_branch_point(&timeline, at)?;
                let (_, point) = timeline.branch_point(at).map_err(|error| timeline_failure(&error))?;
                Ok(ManageReply::Branch { lsn: point.lsn, prev_lsn: point.prev_lsn })
            }
            ManageRequest::CreateBranch { timeline, ancestor, at, description } => {
                let metadata = description.map(description::entry).transpose()?;
                self.create_branch(bound, timeline, ancestor, at, metadata.into_iter().collect())
            }
            ManageRequest::CutRoot { timeline, source, at, description } => {
                let metadata = description.map(description::entry).transpose()?;
                let metadata = metadata.into_iter().collect();
                self.cut_root(
                    bound,
                    CutRoot { tenant: bound.tenant, timeline, source, at, without: BTreeSet::new(), metadata },
                )
            }
            ManageRequest::Describe { timeline, description } => {
                let timeline = self.timeline(bound, timeline, Rights::Manage)?;
                description::set(&timeline, description)?;
                Ok(ManageReply::Done)
            }
            ManageRequest::DeleteTimeline { timeline } => self.delete_timeline(bound, timeline),
            ManageRequest::TimelineStatus { timeline } => {
                let timeline = self.timeline(bound, timeline, Rights::Read)?;
                self.status(&timeline).map(ManageReply::Timeline)
            }
            ManageRequest::ListTimelines => self.list_timelines(bound),
            ManageRequest::FollowWal { timeline, safekeepers } => {
                let timeline = self.timeline(bound, timeline, Rights::Write)?;
                self.shared.followers.follow(&timeline, safekeepers)?;
                Ok(ManageReply::Done)
            }
            ManageRequest::NameSafekeepers { safekeepers } => {
                bound.allow_everywhere(Rights::Manage)?;
                if safekeepers.is_empty() {
                    return Err(Failure::new(ErrorCode::Invalid, "no safekeeper is named"));
                }
                self.shared.followers.name_safekeepers(safekeepers);
                Ok(ManageReply::Done)
            }
            ManageRequest::UnfollowWal { timeline } => {
                let timeline = self.timeline(bound, timeline, Rights::Write)?;
                self.shared.followers.unfollow(&timeline);
                Ok(ManageReply::Done)
            }
            ManageRequest::LsnForTimestamp { timeline, timestamp_us } => {
                let timeline = self.timeline(bound, timeline, Rights::Read)?;
                let lsn = self.lsn_for_timestamp(&timeline, timestamp_us)?;
                Ok(ManageReply::LsnForTimestamp { lsn })
            }
            ManageRequest::KeepState { timeline, at, parts } => {
                let timeline = self.timeline(bound, timeline, Rights::Write)?;
                kept_state::keep(&timeline, at, parts)
            }
            ManageRequest::KeptState { timeline } => {
                let timeline = self.timeline(bound, timeline, Rights::Read)?;
                kept_state::kept(&timeline)
            }
            ManageRequest::OutdateKeptState { timeline, at } => {
                let timeline = self.timeline(bound, timeline, Rights::Write)?;
                kept_state::outdate(&timeline, at)
            }
            ManageRequest::OldestRunning { timeline, lsn } => {
                let timeline = self.timeline(bound, timeline, Rights::Read)?;
                self.oldest_running(&timeline, lsn)
            }
            ManageRequest::FindUnnamedFiles { timeline } => {
                let timeline = self.timeline(bound, timeline, Rights::Read)?;
                self.find_unnamed_files(&timeline).map(ManageReply::UnnamedFiles)
            }
            ManageRequest::Lease { timeline, name, lsn, ttl_s } => {
                let timeline = self.timeline(bound, timeline, Rights::Write)?;
                // After a restart a timeline that nobody follows may lack what a suspended compute had written.
                if ttl_s > 0 {
                    self.shared.followers.wait_for(&timeline, lsn, Instant::now() + limits::READ_WAIT_MAX)?;
                }
                let leased = timeline.lease(&name, lsn, Duration::from_secs(ttl_s));
                match leased {
                    Ok(()) => Ok(ManageReply::Done),
                    Err(error @ TimelineError::Retired { .. }) => {
                        Err(Failure::new(ErrorCode::BaseLsnExpired, error.to_string()))
                    }
                    Err(error) => Err(timeline_failure(&error)),
                }
            }
            ManageRequest::RetireTimeline { timeline } => {
                let timeline = self.timeline(bound, timeline, Rights::Manage)?;
                self.shared.followers.end(bound.tenant, timeline.id());
                timeline.retire().map_err(|error| timeline_failure(&error))?;
                Ok(ManageReply::Done)
            }
            ManageRequest::SetRetention { timeline, retention_s } => {
                let timeline = self.timeline(bound, timeline, Rights::Manage)?;
                let set = retention::set(&timeline, retention_s.map(Duration::from_secs));
                set.map_err(|error| commit_failure(&error))?;
                Ok(ManageReply::Done)
            }
        }
    }

    fn timeline(&mut self, bound: &Bound, timeline: TimelineId, rights: Rights) -> Result<Arc<Timeline>, Failure> {
        bound.allow(timeline, rights)?;
        let timeline = self.shared.engine.timeline(bound.tenant, timeline).map_err(|error| timeline_failure(&error))?;
        timeline.check_owned().map_err(|error| commit_failure(&error))?;
        Ok(timeline)
    }

    fn create_branch(
        &mut self,
        bound: &Bound,
        timeline: TimelineId,
        ancestor: TimelineId,
        at: Option<Lsn>,
        metadata: BTreeMap<String, serde_json::Value>,
    ) -> Result<ManageReply, Failure> {
        bound.allow(timeline, Rights::Manage)?;
        let parent = self.timeline(bound, ancestor, Rights::Manage)?;
        self.wait_for_branch_point(&parent, at)?;
        let point = self.shared.engine.create_branch_with(bound.tenant, timeline, ancestor, at, metadata);
        let point = point.map_err(|error| timeline_failure(&error))?;
        Ok(ManageReply::Branch { lsn: point.lsn, prev_lsn: point.prev_lsn })
    }

    fn cut_root(&mut self, bound: &Bound, mut cut: CutRoot) -> Result<ManageReply, Failure> {
        bound.allow(cut.timeline, Rights::Manage)?;
        let source = self.timeline(bound, cut.source, Rights::Manage)?;
        self.wait_for_branch_point(&source, Some(cut.at))?;
        // What no catalog names nobody meant to keep: a superuser could have a catalog name it. It is looked for first because reading
        // catalogs waits for ancestors that have to catch up after a restart, which the copy does not.
        let (_, point) = source.branch_point(Some(cut.at)).map_err(|error| timeline_failure(&error))?;
        cut.without = self.unnamed_files_at(&source, point.lsn)?.into_iter().map(|file| file.rel).collect();
        let (made, left_out) = (cut.timeline, cut.without.len());
        let point = self.shared.engine.cut_root(cut).map_err(|error| cut_failure(&error))?;
        tracing::info!(timeline = %made, source = %source.id(), at = %point.lsn, left_out, "a root was cut from a timeline's history");
        Ok(ManageReply::Branch { lsn: point.lsn, prev_lsn: point.prev_lsn })
    }

    /// Waits until the parent has what is to be branched from.
    fn wait_for_branch_point(&self, parent: &Arc<Timeline>, at: Option<Lsn>) -> Result<(), Failure> {
        if let Some(at) = at.filter(|at| parent.last_record().end < *at) {
            self.shared.followers.wait_for(parent, at, Instant::now() + limits::READ_WAIT_MAX)?;
        }
        check_consistent(parent, at.unwrap_or(parent.last_record().end))
    }

    fn delete_timeline(&mut self, bound: &Bound, timeline: TimelineId) -> Result<ManageReply, Failure> {
        bound.allow(timeline, Rights::Manage)?;
        self.shared.followers.end(bound.tenant, timeline);
        let deleted = self.shared.engine.delete_timeline(bound.tenant, timeline);
        deleted.map_err(|error| timeline_failure(&error))?;
        self.shared.pages_sent.forget(bound.tenant, timeline);
        Ok(ManageReply::Done)
    }

    fn list_timelines(&mut self, bound: &Bound) -> Result<ManageReply, Failure> {
        bound.allow(TimelineId::NONE, Rights::Read)?;
        let ids = self.shared.engine.list(bound.tenant).map_err(|error| timeline_failure(&error))?;
        let mut timelines = Vec::with_capacity(ids.len());
        for id in ids {
            // However many there are, none is loaded for this.
            if let Some(timeline) = self.shared.engine.if_loaded(bound.tenant, id) {
                timelines.push(self.facts(&timeline));
                continue;
            }
            let glance = self.shared.engine.glance(bound.tenant, id).map_err(|error| timeline_failure(&error))?;
            timelines.extend(
                glance.filter(|glance| !glance.is_deleted).map(|glance| self.facts_at_rest(bound, id, &glance)),
            );
        }
        Ok(ManageReply::Timelines { timelines })
    }

    /// [`Connection::facts`] of a timeline that is not loaded: nobody follows it, and all that it has is durable.
    fn facts_at_rest(&self, bound: &Bound, timeline: TimelineId, glance: &Glance) -> TimelineStatus {
        TimelineStatus {
            timeline,
            ancestor: glance.ancestor.map(|ancestor| ancestor.timeline),
            ancestor_lsn: glance.ancestor.map_or(Lsn::INVALID, |ancestor| ancestor.point.lsn),
            last_record_lsn: glance.durable_record.end,
            prev_record_lsn: glance.durable_record.start,
            disk_consistent_lsn: glance.durable_record.end,
            retained_from_lsn: glance.retained_from,
            pg_major: glance.facts.pg_major.number(),
            logical_size_bytes: None,
            stored_bytes: glance.stored_bytes,
            consistent_from_lsn: consistent_from_of(glance.get_metadata(CONSISTENT_FROM)),
            following: false,
            last_commit_us: None,
            oldest_lsn: None,
            oldest_commit_us: None,
            waits_for_compaction: false,
            problem: None,
            pages_sent: self.shared.pages_sent.of(bound.tenant, timeline).load(Ordering::Relaxed),
        }
    }

    /// What costs no reads.
    fn facts(&self, timeline: &Arc<Timeline>) -> TimelineStatus {
        let last = timeline.last_record();
        let ancestor = timeline.ancestor();
        TimelineStatus {
            timeline: timeline.id(),
            ancestor: ancestor.map(|ancestor| ancestor.timeline),
            ancestor_lsn: ancestor.map_or(Lsn::INVALID, |ancestor| ancestor.point.lsn),
            last_record_lsn: last.end,
            prev_record_lsn: last.start,
            disk_consistent_lsn: timeline.disk_consistent_lsn(),
            retained_from_lsn: timeline.retained_from(),
            pg_major: timeline.facts().pg_major.number(),
            logical_size_bytes: None,
            stored_bytes: timeline.sizes().stored_bytes,
            consistent_from_lsn: consistent_from(timeline),
            following: self.shared.followers.is_following(timeline),
            last_commit_us: None,
            oldest_lsn: None,
            oldest_commit_us: None,
            waits_for_compaction: timeline.is_held_by_compaction(),
            problem: self.shared.followers.problem(timeline),
            pages_sent: self.shared.pages_sent.of(timeline.tenant(), timeline.id()).load(Ordering::Relaxed),
        }
    }

    fn status(&self, timeline: &Arc<Timeline>) -> Result<TimelineStatus, Failure> {
        let mut status = self.facts(timeline);
        let is_readable = !timeline.is_importing() && status.last_record_lsn >= status.consistent_from_lsn;
        if !is_readable || timeline.is_retired() {
            return Ok(status);
        }
        let lsn = status.last_record_lsn;
        let first = RelTag { spcnode: 0, dbnode: 0, relnode: 0, fork: ForkNumber::Main };
        let last = RelTag { spcnode: u32::MAX, dbnode: u32::MAX, relnode: u32::MAX, fork: ForkNumber::Init };
        let sizes = self.read(timeline, |timeline| timeline.scan(Key::RelSize(first)..=Key::RelSize(last), lsn))?;
        let mut blocks = 0u64;
        for (key, size) in sizes {
            if let Key::RelSize(rel) = key {
                blocks += u64::from(decode_size(rel, Some(&size))?.unwrap_or(0));
            }
        }
        status.logical_size_bytes = Some(blocks * ardent_types::BLCKSZ as u64);
        status.last_commit_us = self.read(timeline, |timeline| retention::last_commit_us(timeline, lsn))?;
        let oldest = self.read(timeline, retention::oldest_lsn)?;
        if oldest <= lsn {
            status.oldest_lsn = Some(oldest);
            status.oldest_commit_us = self.read(timeline, |timeline| retention::last_commit_us(timeline, oldest))?;
        }
        Ok(status)
    }

    /// The last commit that is not later than the time.
    fn lsn_for_timestamp(&self, timeline: &Arc<Timeline>, timestamp_us: i64) -> Result<Lsn, Failure> {
        let found = self.read(timeline, |timeline| retention::lsn_at_time(timeline, timestamp_us))?;
        let Some(lsn) = found else {
            let oldest = self.read(timeline, retention::oldest_lsn)?;
            let message = format!("the time lies before {oldest}, the oldest LSN that is retained");
            return Err(Failure::new(ErrorCode::LsnOutOfRange, message));
        };
        let (_, point) = timeline.branch_point(Some(lsn)).map_err(|error| timeline_failure(&error))?;
        Ok(point.lsn)
    }
}

fn cut_failure(error: &CutError) -> Failure {
    match error {
        CutError::Timeline(error) => timeline_failure(error),
        CutError::Read(error) => read_failure(error),
        other => Failure::new(code_of(other.kind(), ErrorCode::Unreadable), with_causes(other)),
    }
}
