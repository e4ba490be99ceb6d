//! Reset, restore and rewind: a branch moves to a new timeline, from its parent or from its own history.
//!
//! ```text
//!  point ──► row in `switches` ──► timeline on page server, safekeepers ──► made ──► gate closed, compute stopped, folder gone
//!                │ a crash up to here: undone, the timeline is deleted          │                                       │
//!                                                                               │ a crash from here: finished           ▼
//!                                                                               │ at the next start, from rows alone   the row moves
//! ```
//!
//! What has the branch's name, URL and passwords is its row, which stays. Up to the one transaction that moves it, the branch is
//! what it was, and from then on it is new: there is nothing in between that a session could see. Sessions that are open end when
//! the compute is stopped; connections that come then wait, and are on the new timeline. The timeline that the branch was on is kept
//! for as long as history is, and the branch can be restored from it.

use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use ardent_api::control::{ApiErrorCode, BranchState, ErrorInfo, ResetRequest, RestoreRequest, SwitchReply};
use ardent_types::{Lsn, TimelineId};

use crate::branches::{MadeTimeline, not_found, root_branch, shutting_down};
use crate::history::PointInHistory;
use crate::point::{Point, PointSpec};
use crate::service::Control;
use crate::store::{BeginSwitch, BranchRow, SwitchKind, SwitchRow, iso8601, iso8601_us, now_us};

/// What a branch is to become.
pub(crate) enum Goal {
    /// What its parent is or was.
    Parent(PointSpec),
    /// What it was itself.
    Past(PointSpec),
    /// What it was at the checkpoint of this label; absent: at the last one that it has passed.
    Checkpoint(Option<String>),
}

/// Where a new timeline begins.
#[derive(Clone, Copy, Debug)]
struct Origin {
    /// Whose history it is: must not be about to go.
    source: TimelineId,
    /// What it hangs on.
    ancestor: TimelineId,
    /// Where.
    point: Point,
}

impl Control {
    /// Makes a branch what its parent is. Goes on when the caller goes away.
    pub async fn reset_branch(self: &Arc<Self>, name: &str, request: ResetRequest) -> Result<SwitchReply, ErrorInfo> {
        let point = request.at.as_deref().map_or(Ok(PointSpec::Now), str::parse)?;
        self.switch_branch(name, Goal::Parent(point)).await
    }

    /// Makes a branch what it was. Goes on when the caller goes away.
    pub async fn restore_branch(
        self: &Arc<Self>,
        name: &str,
        request: RestoreRequest,
    ) -> Result<SwitchReply, ErrorInfo> {
        self.switch_branch(name, Goal::Past(request.at.parse()?)).await
    }

    pub(crate) async fn switch_branch(self: &Arc<Self>, name: &str, goal: Goal) -> Result<SwitchReply, ErrorInfo> {
        let began = Instant::now();
        let (control, name) = (self.clone(), name.to_owned());
        let task = self.tasks.spawn(async move {
            let lock = control.name_lock(&name);
            let _guard = lock.lock().await;
            let branch = control.branch_to_move(&name)?;
            let mut checkpoint = None;
            let at_lsn = match goal {
                Goal::Parent(point) => control.reset(&branch, point).await?,
                Goal::Past(point) => {
                    let found = control.point_in_history(&branch, point).await?;
                    control.restore(&branch, found).await?
                }
                Goal::Checkpoint(label) => {
                    let row = control.checkpoint_to_rewind_to(&branch, label.as_deref())?;
                    let found = control.position_in_history(&branch, row.position()).await?;
                    checkpoint = Some(row.label);
                    control.restore(&branch, found).await?
                }
            };
            Ok(SwitchReply { checkpoint, ..control.switch_reply(&branch, at_lsn, began)? })
        });
        task.await.map_err(|_| shutting_down())?
    }

    /// A branch that is there and has a history of its own. To be called with the name's lock held.
    pub(crate) fn branch_to_move(&self, name: &str) -> Result<BranchRow, ErrorInfo> {
        let branch = self.find_branch(name)?;
        if branch.is_root() {
            return Err(root_branch(&branch));
        }
        if branch.state != BranchState::Ready {
            let message = format!("branch {name} is just being made or deleted");
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint("try again in a moment"));
        }
        Ok(branch)
    }

    fn switch_reply(&self, branch: &BranchRow, at_lsn: Lsn, began: Instant) -> Result<SwitchReply, ErrorInfo> {
        let store = &self.context.store;
        let row = store.branch_by_id(branch.id)?.ok_or_else(|| not_found(&branch.name))?;
        let past = store.past_timelines(branch.id)?.into_iter().find(|past| past.timeline == branch.timeline);
        let past = past.ok_or_else(|| not_found(&branch.name))?;
        Ok(SwitchReply {
            branch: self.branch_info(&row)?,
            at_lsn,
            checkpoint: None,
            // The last moment at which it was on that one.
            undo_at: iso8601_us(past.until_us - 1),
            undo_until: iso8601(self.restorable_until_us(&past)?),
            server_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }

    async fn reset(&self, branch: &BranchRow, point: PointSpec) -> Result<Lsn, ErrorInfo> {
        self.check_not_withheld(branch, "reset")?;
        let parent = match branch.parent {
            Some(id) => self.context.store.branch_by_id(id)?,
            None => None,
        };
        let parent = parent.ok_or_else(|| not_found(&branch.name))?;
        let (parent, point) = self.parent_at(&parent, point).await?;
        let point = self.point_on(&parent, point).await?;
        let origin = Origin { source: parent.timeline, ancestor: parent.timeline, point };
        self.switch(branch, &parent, SwitchKind::Reset, origin).await
    }

    async fn restore(&self, branch: &BranchRow, found: PointInHistory) -> Result<Lsn, ErrorInfo> {
        let stretch = found.stretch;
        // One that begins where this one began hangs where this one hangs: going back to the same point again and again makes
        // no chain.
        let ancestor = match stretch.ancestor {
            Some(ancestor) if stretch.start_lsn == Some(found.lsn) => ancestor,
            _ => stretch.timeline,
        };
        let from = BranchRow { timeline: stretch.timeline, ..branch.clone() };
        let point = match self.context.point_at(&from, Some(found.lsn)).await {
            Ok(point) => point,
            Err(error) => return Err(self.context.with_range(&from, error).await),
        };
        let origin = Origin { source: stretch.timeline, ancestor, point };
        self.switch(branch, &from, SwitchKind::Restore, origin).await
    }

    /// Moves a branch to a new timeline; gives where that begins. `from` is what a point that is not there is said of.
    async fn switch(
        &self,
        branch: &BranchRow,
        from: &BranchRow,
        kind: SwitchKind,
        origin: Origin,
    ) -> Result<Lsn, ErrorInfo> {
        let row = SwitchRow { branch: branch.id, timeline: TimelineId::generate(), kind, made: false };
        match self.context.store.begin_switch(&row, origin.source, origin.ancestor)? {
            BeginSwitch::Begun => {}
            BeginSwitch::Busy => {
                let message = format!("an earlier reset or restore of branch {} is being cleared away", branch.name);
                return Err(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint("try again in a moment"));
            }
            BeginSwitch::Gone => {
                let message = format!("what branch {} would begin from is being deleted", branch.name);
                return Err(ErrorInfo::new(ApiErrorCode::Conflict, message));
            }
        }
        let switched = async {
            let start_lsn = {
                let lock = self.context.timeline_locks.of(row.timeline);
                let _guard = lock.lock().await;
                let made = self.make_timeline(branch.tenant, row.timeline, origin.ancestor, origin.point, None).await;
                let MadeTimeline { start_lsn, prev_lsn, away } = match made {
                    Ok(made) => made,
                    Err(error) => return Err(self.context.with_range(from, error).await),
                };
                if branch.retention_s.is_some() {
                    self.keep_history(branch.tenant, row.timeline, branch.retention_s).await?;
                }
                self.context.store.switch_made((branch.tenant, &row), start_lsn, prev_lsn, &away)?;
                start_lsn
            };
            self.finish_switch(branch, &row).await?;
            info!(branch = %branch.name, kind = kind.as_str(), %start_lsn, "branch is on a new timeline");
            Ok(start_lsn)
        };
        let switched = switched.await;
        if switched.is_err() {
            self.undo_switch(branch).await;
        }
        switched
    }

    /// What is left to do once the timeline is there.
    async fn finish_switch(&self, branch: &BranchRow, row: &SwitchRow) -> Result<(), ErrorInfo> {
        let _closed = self.pool.close_gate(branch.id).await;
        self.pool.discard(branch).await?;
        self.context.store.finish_switch(row, now_us())?;
        self.pool.forget_problem(branch.id);
        Ok(())
    }

    async fn undo_switch(&self, branch: &BranchRow) {
        let undone = async {
            self.context.store.undo_switch(branch.id)?;
            self.delete_leaving_timelines().await
        };
        if let Err(error) = undone.await {
            warn!(branch = %branch.name, %error, "a reset or restore that failed is not cleared away yet; it will be tried again");
        }
    }

    /// Finishes or undoes what is under way and in nobody's hands: after a crash before anybody can ask for the branch, and later
    /// what could not be finished or undone when it failed.
    pub(crate) async fn settle_switches(&self) -> Result<(), ErrorInfo> {
        for row in self.context.store.switches()? {
            let Some(branch) = self.context.store.branch_by_id(row.branch)? else { continue };
            let lock = self.name_lock(&branch.name);
            let Ok(_guard) = lock.try_lock() else { continue };
            // As it is under the lock.
            let Some(row) = self.context.store.switches()?.into_iter().find(|now| *now == row) else { continue };
            let Some(branch) = self.context.store.branch_by_id(row.branch)? else { continue };
            let is_live = branch.state == BranchState::Ready && branch.deleted.is_none();
            if row.made && is_live && self.finish_switch(&branch, &row).await.is_ok() {
                info!(branch = %branch.name, kind = row.kind.as_str(), "was interrupted, and is finished");
                continue;
            }
            self.context.store.undo_switch(row.branch)?;
            info!(branch = %branch.name, kind = row.kind.as_str(), "was interrupted, and is undone");
        }
        Ok(())
    }
}
