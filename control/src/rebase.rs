//! Takes a branch's changes onto newer states of its parent.
//!
//! ```text
//!  parent ──┬─────────────┬──► fresh, hidden: the changes are applied there, guarded as in production
//!           └─► branch    │
//!                ▲        ▼
//!                └─ exchange of timelines in one transaction; the old state stays as a branch of its own
//! ```

use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use ardent_api::control::{ApiErrorCode, DiffRequest, ErrorInfo, SCHEMA_VERSION};
use ardent_api::policy::BranchPolicy;
use ardent_change_set::{Applied, ApplyOptions, RebaseReply, RebaseRequest, apply};
use ardent_diff::DiffReport;
use ardent_types::{Lsn, with_causes};

use crate::branches::shutting_down;
use crate::diff::connect;
use crate::point::PointSpec;
use crate::service::Control;
use crate::store::{BranchRow, now_us};

/// Longest name of a branch: a DNS label.
const NAME_LEN_MAX: usize = 63;
/// What stands between a branch's name and the number of a state that it left, in the name of that. It is not known by its name.
const KEPT_WORD: &str = "-before-rebase-";
/// Most old states that are kept of one branch by number.
const KEPT_MAX: u32 = 1000;
/// Most attempts, if the branch was written to meanwhile: also by Postgres itself, which tidies pages when they are read.
const ATTEMPTS_MAX: u32 = 3;
/// Nothing limits what the server itself waits for on a branch of its own.
const NO_TIMEOUT_MS: u64 = 0;

impl Control {
    /// Rebases a branch, or takes that back. Goes on when the caller goes away.
    pub async fn rebase_branch(self: &Arc<Self>, name: &str, request: RebaseRequest) -> Result<RebaseReply, ErrorInfo> {
        let (control, name) = (self.clone(), name.to_owned());
        let task = self.tasks.spawn(async move {
            let lock = control.name_lock(&name);
            let _guard = lock.lock().await;
            let branch = control.find_branch(&name)?;
            if request.undo { control.take_back(&branch).await } else { control.rebase(&branch, &request).await }
        });
        task.await.map_err(|_| shutting_down())?
    }

    async fn rebase(self: &Arc<Self>, branch: &BranchRow, request: &RebaseRequest) -> Result<RebaseReply, ErrorInfo> {
        let name = &branch.name;
        let parent = match branch.parent {
            Some(id) => self.context.store.branch_by_id(id)?,
            None => {
                let message = format!("{name} follows production: there is nothing to take it onto");
                return Err(ErrorInfo::new(ApiErrorCode::RootBranch, message));
            }
        };
        let parent = parent.ok_or_else(|| crate::branches::not_found(name))?;
        self.check_not_withheld(branch, "rebased")?;
        for _ in 0..ATTEMPTS_MAX {
            if let Some(reply) = self.try_rebase(branch, &parent, request).await? {
                return Ok(reply);
            }
        }
        let message = format!("branch {name} was written to while it was being rebased: nothing was changed");
        Err(ErrorInfo::new(ApiErrorCode::Conflict, message)
            .with_hint("give the command again when nobody writes there"))
    }

    /// One attempt; `None` if the branch was written to meanwhile.
    async fn try_rebase(
        self: &Arc<Self>,
        branch: &BranchRow,
        parent: &BranchRow,
        request: &RebaseRequest,
    ) -> Result<Option<RebaseReply>, ErrorInfo> {
        let name = &branch.name;
        let report = self.diff(branch, &DiffRequest::default()).await?;
        if !report.databases_not_compared.is_empty() {
            let message = format!(
                "databases were made, renamed or dropped on branch {name}, which cannot be taken along: {}",
                report.databases_not_compared.join(", ")
            );
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, message)
                .with_hint("undo that first (dump and drop those that are new), or apply the branch's changes elsewhere: ardent branch apply"));
        }
        let at = self.newest(parent).await?;
        // Made for its owner: it is his, with his limits, once it has taken the branch's place.
        let fresh = self.create_hidden_with(parent, parent.timeline, at, BranchPolicy::default()).await?;
        let result = self.rebase_onto(branch, &fresh, &report, request).await;
        if !matches!(&result, Ok(Some(reply)) if reply.rebased)
            && let Err(error) = self.delete_hidden(&fresh).await
        {
            warn!(branch = %name, %error, "what a rebase made is not deleted yet; the housekeeper tries again");
        }
        result
    }

    /// The newest state of a parent: of production, what it has committed now.
    async fn newest(&self, parent: &BranchRow) -> Result<Lsn, ErrorInfo> {
        Ok(self.point_on(parent, PointSpec::Now).await?.lsn)
    }

    async fn rebase_onto(
        self: &Arc<Self>,
        branch: &BranchRow,
        fresh: &BranchRow,
        report: &DiffReport,
        request: &RebaseRequest,
    ) -> Result<Option<RebaseReply>, ErrorInfo> {
        let mut reply = RebaseReply {
            schema_version: SCHEMA_VERSION,
            name: branch.name.clone(),
            dry_run: request.dry_run,
            from_lsn: branch.branch_lsn.unwrap_or_default(),
            onto_lsn: fresh.branch_lsn.unwrap_or_default(),
            ..RebaseReply::default()
        };
        let at = self.wake_branch(fresh, Instant::now()).await?;
        let options = ApplyOptions {
            // Each database has a transaction of its own, and all are thrown away together.
            prefer: request.prefer,
            lock_timeout_ms: NO_TIMEOUT_MS,
            statement_timeout_ms: NO_TIMEOUT_MS,
            ..ApplyOptions::default()
        };
        for set in &report.databases {
            let client = connect(&at, &set.database).await?;
            let allow = client.batch_execute("set default_transaction_read_only = off").await;
            allow.map_err(|error| ErrorInfo::new(ApiErrorCode::ComputeFailed, with_causes(&error)))?;
            let applied = apply(&client, set, &options, |_| {}).await;
            let applied = applied.map_err(|error| ErrorInfo::new(ApiErrorCode::ComputeFailed, with_causes(&error)))?;
            take(&mut reply, applied);
        }
        if !reply.conflicts.is_empty() || request.dry_run {
            return Ok(Some(reply));
        }
        // Whoever connects from here on waits, and meets what the rebase made.
        let _closed = (self.pool.close_gate(branch.id).await, self.pool.close_gate(fresh.id).await);
        self.pool.suspend(fresh.id).await?;
        self.pool.suspend(branch.id).await?;
        if !self.is_unchanged(branch, report).await? {
            return Ok(None);
        }
        let kept = self.exchange(branch, fresh, None).await?;
        reply.rebased = true;
        reply.kept_as = Some(kept);
        Ok(Some(reply))
    }

    /// Whether nothing was written on the branch after the diff looked at it, which would be left behind.
    async fn is_unchanged(&self, branch: &BranchRow, report: &DiffReport) -> Result<bool, ErrorInfo> {
        let end = self.context.wal_service.commit_lsn(branch.tenant, branch.timeline).await?.unwrap_or(report.to_lsn);
        if end <= report.to_lsn {
            return Ok(true);
        }
        let changed = self.changed_blocks(branch, report.to_lsn, end).await?;
        // Catalogs change by themselves: statistics, freezing.
        let is_users = |relation: &ardent_api::page_service::ChangedRelation| relation.rel.relnode >= FIRST_USER_FILE;
        Ok(!changed.iter().any(is_users))
    }

    /// Gives the branch the state of `other`, which gets the branch's, and a name to keep it under. Both gates are closed.
    async fn exchange(&self, branch: &BranchRow, other: &BranchRow, name: Option<&str>) -> Result<String, ErrorInfo> {
        // Their folders hold the other's pages from now on.
        self.pool.discard(branch).await?;
        self.pool.discard(other).await?;
        let kept = match name {
            Some(name) => name.to_owned(),
            None => self.name_to_keep(&branch.name)?,
        };
        self.context.store.exchange_timelines(branch, other, &kept, now_us())?;
        Ok(kept)
    }

    /// `NAME-before-rebase-N`, with the next number.
    fn name_to_keep(&self, name: &str) -> Result<String, ErrorInfo> {
        for number in 1..=KEPT_MAX {
            let kept = kept_name(name, number);
            if self.context.store.branch(&kept)?.is_none() {
                return Ok(kept);
            }
        }
        Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("branch {name} has {KEPT_MAX} kept states"))
            .with_hint(format!("delete some: ardent branch delete {}", kept_name(name, 1))))
    }

    /// The branch that has what was there before, if the branch's timeline was made by a rebase.
    pub(crate) fn kept_by_last_rebase(&self, branch: &BranchRow) -> Result<Option<String>, ErrorInfo> {
        let Some(kept) = self.last_kept(branch)? else { return Ok(None) };
        // A rebase that was taken back left an older state, and a reset or a restore another timeline.
        let is_newer = kept.branch_lsn < branch.branch_lsn;
        let past = self.context.store.past_timelines(branch.id)?;
        let is_switched = past.iter().any(|past| past.until_us == branch.since_us);
        Ok((is_newer && !is_switched).then_some(kept.name))
    }

    /// The branches that have been on the same timelines by rebases: the one that was rebased, and the states that it left.
    pub(crate) fn rebase_family(&self, branch: &BranchRow) -> Result<Vec<BranchRow>, ErrorInfo> {
        let mut family = self.context.store.kept_states(branch.id)?;
        if let Some(rebased) = branch.kept_of {
            family.extend(self.context.store.kept_states(rebased)?);
            family.extend(self.context.store.branch_by_id(rebased)?);
        }
        Ok(family)
    }

    /// The last state that a rebase kept. Names do not count: whoever makes a branch may call it as a rebase would.
    fn last_kept(&self, branch: &BranchRow) -> Result<Option<BranchRow>, ErrorInfo> {
        let kept = self.context.store.kept_states(branch.id)?;
        Ok(kept.into_iter().rfind(|row| row.parent == branch.parent))
    }

    /// Takes the last rebase back: the branch gets the state from before, which keeps what the rebase made.
    async fn take_back(self: &Arc<Self>, branch: &BranchRow) -> Result<RebaseReply, ErrorInfo> {
        let other = self.last_kept(branch)?.ok_or_else(|| {
            ErrorInfo::new(ApiErrorCode::NotFound, format!("no state of {} from before a rebase is kept", branch.name))
        })?;
        let _closed = (self.pool.close_gate(branch.id).await, self.pool.close_gate(other.id).await);
        let kept = self.exchange(branch, &other, Some(&other.name)).await?;
        Ok(RebaseReply {
            schema_version: SCHEMA_VERSION,
            name: branch.name.clone(),
            rebased: true,
            from_lsn: branch.branch_lsn.unwrap_or_default(),
            onto_lsn: other.branch_lsn.unwrap_or_default(),
            kept_as: Some(kept),
            ..RebaseReply::default()
        })
    }
}

/// Files of users' tables have numbers from here on (`FirstNormalObjectId`).
const FIRST_USER_FILE: u32 = 16_384;

fn kept_name(name: &str, number: u32) -> String {
    let ending = format!("{KEPT_WORD}{number}");
    // A name is ASCII.
    let stem: String = name.chars().take(NAME_LEN_MAX - ending.len()).collect();
    format!("{}{ending}", stem.trim_end_matches('-'))
}

fn take(reply: &mut RebaseReply, applied: Applied) {
    reply.statements += applied.statements;
    reply.rows.inserted += applied.rows.inserted;
    reply.rows.updated += applied.rows.updated;
    reply.rows.deleted += applied.rows.deleted;
    reply.large_objects += applied.large_objects();
    reply.sequences += applied.sequences;
    reply.already_there += applied.already_there;
    reply.settled += applied.settled;
    reply.conflicts.extend(applied.conflicts);
    reply.conflicts_left_out += applied.conflicts_left_out;
    reply.notes.extend(applied.notes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_names_are_names() {
        assert_eq!(kept_name("feature-x", 2), "feature-x-before-rebase-2");
        let long = kept_name(&"a".repeat(63), 12);
        assert_eq!(long.len(), 63);
        assert!(long.parse::<ardent_api::control::BranchName>().is_ok() && long.ends_with("-before-rebase-12"));
    }
}
