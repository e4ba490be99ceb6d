//! The page server.

use std::time::Duration;

use futures_util::future::BoxFuture;

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::{ManageReply, ManageRequest, TimelineStatus, UnnamedFiles, UnnamedRelation};
use ardent_control::deps::{PageService, StorageError, StorageErrorKind};
use ardent_types::{Lsn, TenantId, TimelineId};

use super::fakes::{FakeState, FakeTimeline, Fakes, Held, down, held};

impl PageService for Fakes {
    fn addr(&self) -> ServiceAddr {
        ServiceAddr::Unix("/fake/pageserver.sock".into())
    }

    fn manage(&self, _tenant: TenantId, request: ManageRequest) -> BoxFuture<'_, Result<ManageReply, StorageError>> {
        let mut state = self.state.lock();
        let is_create = matches!(request, ManageRequest::CreateBranch { .. });
        if is_create && state.is_held(Held::BeforePageServer) {
            return held();
        }
        let answer = if state.page_server_down { Err(down("page server")) } else { self.answer(&mut state, request) };
        if is_create && state.is_held(Held::AfterPageServer) {
            return held();
        }
        Box::pin(async move { answer })
    }

    fn wait_lsn(
        &self,
        _tenant: TenantId,
        _timeline: TimelineId,
        lsn: Lsn,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Lsn, StorageError>> {
        let mut ingested = self.ingested.subscribe();
        Box::pin(async move {
            match tokio::time::timeout(timeout, ingested.wait_for(|at| *at >= lsn)).await {
                Ok(Ok(at)) => Ok(*at),
                _ => Err(StorageError::new(StorageErrorKind::Timeout, "not ingested yet")),
            }
        })
    }

    fn problems(&self) -> Vec<(TimelineId, String)> {
        self.state.lock().page_server_problems.clone()
    }
}

impl Fakes {
    fn answer(&self, state: &mut FakeState, request: ManageRequest) -> Result<ManageReply, StorageError> {
        let missing = || StorageError::new(StorageErrorKind::NotFound, "no such timeline");
        let ingested = *self.ingested.borrow();
        match request {
            ManageRequest::BranchPoint { at: Some(Lsn::INVALID), .. } => {
                Err(StorageError::new(StorageErrorKind::OutOfRange, "0/00000000 is not retained any more"))
            }
            ManageRequest::BranchPoint { timeline, at } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                Ok(ManageReply::Branch { lsn: at.unwrap_or(ingested), prev_lsn: Lsn::new(0xF00) })
            }
            ManageRequest::CreateBranch { timeline, ancestor, at, description } => {
                state.requests.push(format!("branch at {at:?}"));
                if !state.page_server.contains_key(&ancestor) {
                    return Err(missing());
                }
                let branch_lsn = state.begins_at.or(at).unwrap_or(ingested);
                let new = FakeTimeline { ancestor: Some(ancestor), branch_lsn, following: false };
                let made = state.page_server.entry(timeline).or_insert(new);
                state.descriptions.extend(description.map(|description| (timeline, description)));
                Ok(ManageReply::Branch { lsn: made.branch_lsn, prev_lsn: Lsn::new(0xF00) })
            }
            ManageRequest::Describe { timeline, description } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                state.described.push(timeline);
                state.descriptions.insert(timeline, description);
                Ok(ManageReply::Done)
            }
            ManageRequest::DeleteTimeline { timeline } => {
                state.descriptions.remove(&timeline);
                if state.page_server.values().any(|other| other.ancestor == Some(timeline)) {
                    return Err(StorageError::new(StorageErrorKind::Conflict, "it has children"));
                }
                state.page_server.remove(&timeline).map(|_| ManageReply::Done).ok_or_else(missing)
            }
            ManageRequest::FindUnnamedFiles { timeline } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                let left =
                    UnnamedRelation { tablespace: 1663, database: 5, file: 16_400, bytes: 8192, database_exists: true };
                let (found, bytes) = (1, left.bytes);
                Ok(ManageReply::UnnamedFiles(UnnamedFiles { lsn: ingested, found, bytes, relations: vec![left] }))
            }
            ManageRequest::TimelineStatus { timeline } => {
                state.status_asked += 1;
                let found = state.page_server.get(&timeline).ok_or_else(missing)?;
                Ok(ManageReply::Timeline(TimelineStatus {
                    timeline,
                    ancestor: found.ancestor,
                    ancestor_lsn: found.branch_lsn,
                    last_record_lsn: ingested,
                    prev_record_lsn: Lsn::new(0xF00),
                    disk_consistent_lsn: ingested,
                    retained_from_lsn: Lsn::new(1),
                    pg_major: 15,
                    logical_size_bytes: Some(8192),
                    problem: None,
                    pages_sent: 0,
                    stored_bytes: 100,
                    consistent_from_lsn: Lsn::new(0x1000),
                    following: found.following,
                    last_commit_us: Some(1_000_000),
                    oldest_lsn: Some(found.branch_lsn.max(Lsn::new(1))),
                    oldest_commit_us: Some(1),
                    waits_for_compaction: false,
                }))
            }
            ManageRequest::FollowWal { .. } if state.follow_wal_fails => Err(down("page server")),
            ManageRequest::NameSafekeepers { safekeepers } if !state.old_page_server => {
                state.named.push(safekeepers);
                Ok(ManageReply::Done)
            }
            ManageRequest::FollowWal { timeline, .. } => {
                state.page_server.get_mut(&timeline).ok_or_else(missing)?.following = true;
                Ok(ManageReply::Done)
            }
            ManageRequest::UnfollowWal { timeline } => {
                state.page_server.get_mut(&timeline).ok_or_else(missing)?.following = false;
                Ok(ManageReply::Done)
            }
            ManageRequest::RetireTimeline { timeline } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                state.retired.push(timeline);
                Ok(ManageReply::Done)
            }
            ManageRequest::SetRetention { timeline, retention_s } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                match retention_s {
                    Some(seconds) => state.retention_s.insert(timeline, seconds),
                    None => state.retention_s.remove(&timeline),
                };
                Ok(ManageReply::Done)
            }
            ManageRequest::LsnForTimestamp { timestamp_us, .. } if timestamp_us < state.oldest_us => {
                Err(StorageError::new(StorageErrorKind::OutOfRange, "the time lies before 0/00000001"))
            }
            ManageRequest::LsnForTimestamp { timestamp_us, .. } => {
                Ok(ManageReply::LsnForTimestamp { lsn: Lsn::new(timestamp_us as u64) })
            }
            ManageRequest::Lease { name, lsn, .. } => {
                state.leases.insert(name, lsn);
                Ok(ManageReply::Done)
            }
            other => Err(StorageError::new(StorageErrorKind::Failed, format!("not faked: {other:?}"))),
        }
    }
}
