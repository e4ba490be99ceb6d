//! Deleting branches, for a while or for good, and having them back.
//!
//! A branch that is deleted keeps its row and timeline for the grace time that the server was told, under a name that nobody can
//! give; its compute goes at once. Then, or at once if it is asked for, the row becomes `deleting`: timeline, WAL and the row go,
//! and after them the timelines that the branch was on before. Deleting for good is finished by the housekeeper, however often it
//! fails and whenever it was interrupted. Timelines go leaves first: one that others hang on stays, and gives up what they don't need.
//! Whether something is old enough is told by a clock that believes no jump of the host's ([`ardent_trusted_clock`]).

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{
    ApiErrorCode, BranchInfo, BranchName, BranchState, DeleteReply, ErrorInfo, SCHEMA_VERSION, UndeleteRequest,
};
use ardent_api::page_service::ManageRequest;
use ardent_types::{TenantId, TimelineId};

use crate::branches::{name_taken, not_found, shutting_down};
use crate::deps::StorageErrorKind;
use crate::service::Control;
use crate::store::{BranchRow, PastTimeline, SoftDelete, Undelete, iso8601, now_us};

/// Whether a deleted branch can be had back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// For as long as the server keeps deleted branches.
    Kept,
    /// Never: its space is given back at once.
    ForGood,
}

impl Control {
    /// Until when a branch that was deleted at this time can be had back.
    pub(crate) fn kept_until_us(&self, deleted_us: i64) -> i64 {
        deleted_us.saturating_add(microseconds(self.config.keep_deleted))
    }

    /// The time by which what is old enough goes, in microseconds since the Unix epoch: no clock that has just jumped.
    fn deletion_time_us(&self) -> i64 {
        microseconds(self.clock.look())
    }

    /// Deletes a branch. Goes on when the caller goes away.
    pub async fn delete_branch(self: &Arc<Self>, name: &str, deletion: Deletion) -> Result<DeleteReply, ErrorInfo> {
        let (control, name) = (self.clone(), name.to_owned());
        let task = self.tasks.spawn(async move {
            let lock = control.name_lock(&name);
            let _guard = lock.lock().await;
            let branch = control.find_branch(&name)?;
            if branch.is_root() {
                let hint = format!("delete the connector instead: ardent connector delete {name}");
                return Err(ErrorInfo::new(ApiErrorCode::RootBranch, format!("{name} is a connector's root branch"))
                    .with_hint(hint));
            }
            let is_kept = deletion == Deletion::Kept && !control.config.keep_deleted.is_zero();
            let kept_until_us = if is_kept && branch.state == BranchState::Ready {
                Some(control.soft_delete(&branch).await?)
            } else {
                control.delete_for_good(&branch).await?;
                None
            };
            let kept_until = kept_until_us.map(iso8601);
            Ok(DeleteReply { schema_version: SCHEMA_VERSION, name, warning: None, kept_until })
        });
        task.await.map_err(|_| shutting_down())?
    }

    /// Deletes a ready branch, so that it can be had back; gives until when.
    pub(crate) async fn soft_delete(&self, branch: &BranchRow) -> Result<i64, ErrorInfo> {
        // Before anybody's sessions end for nothing.
        let children = self.context.store.children(branch.id)?;
        if !children.is_empty() {
            return Err(has_children(branch, &children));
        }
        let _closed = self.pool.close_gate(branch.id).await;
        self.pool.discard(branch).await?;
        let now = now_us();
        match self.context.store.soft_delete(branch.id, now)? {
            SoftDelete::Done => {}
            SoftDelete::Children(children) => return Err(has_children(branch, &children)),
            SoftDelete::NotReady => return Err(not_found(&branch.name)),
        }
        self.pool.forget_problem(branch.id);
        info!(branch = %branch.name, "branch is deleted, and kept for a while");
        Ok(self.kept_until_us(now))
    }

    /// Deletes a branch, and the deleted ones that were made from it, which cannot be without it.
    pub(crate) async fn delete_for_good(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        let children = self.context.store.children(branch.id)?;
        if !children.is_empty() {
            return Err(has_children(branch, &children));
        }
        // Every branch before those that were made from it.
        let mut doomed = vec![branch.clone()];
        let mut next = 0;
        while next < doomed.len() {
            doomed.extend(self.context.store.deleted_children(doomed[next].id)?);
            next += 1;
        }
        for branch in doomed.iter().rev() {
            if branch.deleted.is_none() {
                self.begin_delete(branch)?;
            } else if !self.context.store.begin_purge(branch.id)? {
                // It was just brought back, or was deleted for good at this moment.
                let message = format!("what was deleted of branch {} is changing", branch.known_name());
                return Err(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint("try again"));
            }
            self.finish_delete(branch).await?;
        }
        Ok(())
    }

    /// Deletes for good what a connector that goes would otherwise leave: deleted branches, and timelines that are past.
    pub(crate) async fn purge_deleted_of(&self, connector: &str) -> Result<(), ErrorInfo> {
        let rows = self.context.store.branches()?;
        for branch in rows.iter().filter(|row| row.connector == connector && row.deleted.is_some()) {
            // It may have gone with one that it was made from.
            if let Some(branch) = self.context.store.branch_by_id(branch.id)? {
                self.delete_for_good(&branch).await?;
            }
        }
        self.delete_leaving_timelines().await
    }

    pub(crate) fn begin_delete(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        match self.context.store.begin_delete_branch(branch.id)? {
            Ok(()) => Ok(()),
            Err(children) => Err(has_children(branch, &children)),
        }
    }

    /// Deletes for good a branch that is marked for it, from wherever an earlier attempt stopped.
    pub(crate) async fn finish_delete(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        if branch.hidden {
            // It has no clients, and nothing of it is wanted.
            self.pool.kill(branch.id).await?;
        }
        self.pool.discard(branch).await?;
        self.delete_statement_log(branch.id).await?;
        {
            let lock = self.context.timeline_locks.of(branch.timeline);
            let _guard = lock.lock().await;
            let away = self.delete_in_storage(branch.tenant, branch.timeline).await?;
            self.context.store.remove_branch(branch, &away)?;
        }
        self.pool.forget_problem(branch.id);
        info!(branch = %branch.known_name(), "branch is deleted for good");
        // The branch is gone whether they go now or when the housekeeper tries again.
        if let Err(error) = self.delete_leaving_timelines().await {
            warn!(branch = %branch.known_name(), %error, "timelines that the branch was on are not deleted yet");
        }
        Ok(())
    }

    /// Deletes a branch of the server's own.
    pub async fn delete_hidden(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        self.begin_delete(branch)?;
        self.finish_delete(branch).await
    }

    /// Deletes a timeline on page server and safekeepers; fine if it is not there. Gives the safekeepers that are to be told yet.
    pub(crate) async fn delete_in_storage(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Vec<ServiceAddr>, ErrorInfo> {
        // The page server first: it reads from the safekeepers, and would report the missing timeline as a fault.
        match self.context.page_service.manage(tenant, ManageRequest::DeleteTimeline { timeline }).await {
            Ok(_) => {}
            Err(error) if error.kind == StorageErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.context.wal_service.delete_timeline(tenant, timeline).await?)
    }

    /// Deletes the timelines that no branch will be on again. One that others hang on gives up what they don't need, and goes
    /// after them.
    pub(crate) async fn delete_leaving_timelines(&self) -> Result<(), ErrorInfo> {
        let mut leaving: Vec<PastTimeline> = self.context.store.all_past_timelines()?;
        leaving.retain(|past| past.leaving);
        let mut result = Ok(());
        loop {
            let mut stay = Vec::new();
            let before = leaving.len();
            for past in leaving {
                if self.context.store.timeline_has_children(past.timeline)? {
                    stay.push(past);
                    continue;
                }
                let lock = self.context.timeline_locks.of(past.timeline);
                let _guard = lock.lock().await;
                match self.delete_in_storage(past.tenant, past.timeline).await {
                    Ok(away) => {
                        self.context.store.remove_past_timeline(&past, &away)?;
                        info!(timeline = %past.timeline, "a timeline that its branch has left is deleted");
                    }
                    // One that fails keeps no other from going.
                    Err(error) => result = Err(error),
                }
            }
            let nothing_went = stay.len() == before;
            leaving = stay;
            // What hung on others is gone: those may go now.
            if nothing_went || leaving.is_empty() {
                break;
            }
        }
        for past in leaving.iter().filter(|past| !past.retired) {
            let request = ManageRequest::RetireTimeline { timeline: past.timeline };
            match self.context.page_service.manage(past.tenant, request).await {
                Ok(_) => self.context.store.past_timeline_retired(past.timeline)?,
                Err(error) => result = Err(error.into()),
            }
        }
        result
    }

    /// Lets timelines go from which branches were to be restorable for as long as history is kept.
    pub(crate) async fn delete_expired_timelines(&self) -> Result<(), ErrorInfo> {
        let now = self.deletion_time_us();
        for past in self.context.store.all_past_timelines()? {
            if !past.leaving && self.restorable_until_us(&past)? <= now {
                self.context.store.let_past_timeline_go(past.timeline)?;
            }
        }
        self.delete_leaving_timelines().await
    }

    /// Until when a branch can be restored from a timeline that it has left.
    pub(crate) fn restorable_until_us(&self, past: &PastTimeline) -> Result<i64, ErrorInfo> {
        let branch = self.context.store.branch_by_id(past.branch)?;
        Ok(past.until_us.saturating_add(self.retention_us(branch.and_then(|branch| branch.retention_s))))
    }

    /// How long history is kept, in microseconds, where a branch says this itself or not.
    pub(crate) fn retention_us(&self, own_s: Option<u64>) -> i64 {
        microseconds(own_s.map_or(self.config.retention, Duration::from_secs))
    }

    /// Brings a deleted branch back, with all that it had. It never expires then.
    pub async fn undelete_branch(&self, name: &str, request: &UndeleteRequest) -> Result<BranchInfo, ErrorInfo> {
        let new: BranchName = request.name.as_deref().unwrap_or(name).parse()?;
        let lock = self.name_lock(new.as_str());
        let _guard = lock.lock().await;
        let Some(branch) = self.context.store.deleted_branch(name)? else {
            let message = format!("there is no deleted branch {name} that could be had back");
            return Err(ErrorInfo::new(ApiErrorCode::NotFound, message)
                .with_hint("ardent branch list --deleted shows which there are"));
        };
        match self.context.store.undelete(branch.id, new.as_str())? {
            Undelete::Done => {
                info!(branch = new.as_str(), "branch is back");
                self.show_branch(new.as_str())
            }
            Undelete::NameTaken => {
                Err(name_taken(new.as_str()).with_hint(format!("ardent branch undelete {name} --as OTHER-NAME")))
            }
            Undelete::ParentDeleted(parent) => Err(ErrorInfo::new(
                ApiErrorCode::Conflict,
                format!("branch {name} was made from {parent}, which is deleted as well"),
            )
            .with_hint(format!("ardent branch undelete {parent}, then this one"))),
            Undelete::Gone => Err(not_found(name)),
            Undelete::Withheld => {
                let what = format!("deleted branch {name} is not masked, and stays deleted");
                Err(self.withheld(&branch.connector, &what))
            }
        }
    }

    /// Finishes deletions, deletes expired branches, and deletes for good those whose time to be had back is over. One that has
    /// children waits for them.
    pub(crate) async fn delete_what_is_due(self: &Arc<Self>) -> Result<(), ErrorInfo> {
        for row in self.context.store.branches()? {
            let lock = self.name_lock(&row.name);
            let Ok(_guard) = lock.try_lock() else { continue };
            // As it is under the lock.
            let Some(row) = self.context.store.branch_by_id(row.id)? else { continue };
            if let Err(error) = self.delete_if_due(&row).await {
                warn!(branch = %row.known_name(), %error, "cannot be deleted yet");
            }
        }
        self.delete_expired_timelines().await
    }

    async fn delete_if_due(&self, row: &BranchRow) -> Result<(), ErrorInfo> {
        let now = self.deletion_time_us();
        if row.is_root() {
            return Ok(());
        }
        if row.state == BranchState::Deleting {
            return self.finish_delete(row).await;
        }
        if let Some(deleted) = &row.deleted {
            let is_over = self.kept_until_us(deleted.at_us) <= now;
            // Not if it was brought back since it was looked at.
            return match is_over && self.context.store.begin_purge(row.id)? {
                true => self.finish_delete(row).await,
                false => Ok(()),
            };
        }
        let has_expired = row.state == BranchState::Ready && row.expires_us.is_some_and(|at| at <= now);
        if !has_expired {
            return Ok(());
        }
        // Branches that were made from it need its history, and nobody its compute.
        if !self.context.store.children(row.id)?.is_empty() {
            self.pool.suspend(row.id).await?;
            return Ok(());
        }
        info!(branch = %row.name, "has expired");
        if self.config.keep_deleted.is_zero() {
            self.delete_for_good(row).await
        } else {
            self.soft_delete(row).await.map(|_| ())
        }
    }
}

fn has_children(branch: &BranchRow, children: &[String]) -> ErrorInfo {
    ErrorInfo::new(
        ApiErrorCode::Conflict,
        format!("branch {} has branches made from it: {}", branch.known_name(), children.join(", ")),
    )
    .with_hint(format!("delete them first: ardent branch delete {}", children.join(" ")))
}

fn microseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
