//! What a branch was, and when: the timelines that it was on, one stretch of time each.

use std::time::Duration;

use ardent_api::control::{ApiErrorCode, BranchHistory, ErrorInfo, HistoryStretch, SCHEMA_VERSION};
use ardent_api::page_service::{ManageReply, ManageRequest, TimelineStatus};
use ardent_types::{Lsn, TenantId, TimelineId};

use crate::checkpoints::Position;
use crate::context::Context;
use crate::deps::{StorageError, StorageErrorKind};
use crate::point::{PointSpec, unexpected_reply};
use crate::service::Control;
use crate::store::{BranchRow, iso8601, now_us};

/// How far a time may lie ahead of this host's clock: whoever gives it may have another.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(60);

/// Longest wait for the page server to have all that was committed on a timeline.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);

/// A time during which a branch was on one timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub timeline: TimelineId,
    /// What the timeline hangs on.
    pub ancestor: Option<TimelineId>,
    /// Where it begins.
    pub start_lsn: Option<Lsn>,
    pub since_us: i64,
    /// Absent: the branch is on it.
    pub until_us: Option<i64>,
}

/// A point in a branch's history.
#[derive(Clone, Debug)]
pub(crate) struct PointInHistory {
    pub stretch: Stretch,
    pub lsn: Lsn,
}

impl Control {
    /// The stretches that a branch can be restored from, oldest first.
    pub(crate) fn stretches(&self, branch: &BranchRow) -> Result<Vec<Stretch>, ErrorInfo> {
        let past = self.context.store.past_timelines(branch.id)?;
        let mut stretches: Vec<Stretch> = past
            .iter()
            .map(|past| Stretch {
                timeline: past.timeline,
                ancestor: past.ancestor,
                start_lsn: past.start_lsn,
                since_us: past.since_us,
                until_us: Some(past.until_us),
            })
            .collect();
        stretches.push(Stretch {
            timeline: branch.timeline,
            ancestor: branch.ancestor,
            start_lsn: branch.start_lsn,
            since_us: branch.since_us,
            until_us: None,
        });
        Ok(stretches)
    }

    /// Where `point` is in a branch's history. A time means what the branch was then; an LSN the newest stretch that has it, since
    /// each begins anew at an LSN that others may have passed.
    pub(crate) async fn point_in_history(
        &self,
        branch: &BranchRow,
        point: PointSpec,
    ) -> Result<PointInHistory, ErrorInfo> {
        let stretches = self.stretches(branch)?;
        let found = match point {
            PointSpec::Now | PointSpec::Latest => {
                let message = format!("branch {} is what it is now", branch.name);
                return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
                    .with_hint(format!("give a time or an LSN: ardent branch history {} shows which", branch.name)));
            }
            PointSpec::Time(at_us) => {
                check_past(at_us)?;
                let was_on = |stretch: &&Stretch| {
                    stretch.since_us <= at_us && stretch.until_us.is_none_or(|until_us| at_us < until_us)
                };
                match stretches.iter().rev().find(was_on) {
                    Some(stretch) => self.lsn_at_time(branch, stretch, at_us).await?.map(|lsn| (stretch, lsn)),
                    None => None,
                }
            }
            PointSpec::Lsn(lsn) => {
                let mut found = None;
                for stretch in stretches.iter().rev() {
                    let status = self.caught_up(branch, stretch).await?;
                    let oldest = status.oldest_lsn.unwrap_or(status.retained_from_lsn);
                    if (oldest..=status.last_record_lsn).contains(&lsn) {
                        found = Some((stretch, lsn));
                        break;
                    }
                }
                found
            }
        };
        match found {
            Some((stretch, lsn)) => Ok(PointInHistory { stretch: stretch.clone(), lsn }),
            None => Err(self.outside_history(branch, &stretches).await),
        }
    }

    /// What a new timeline leaves at `point` of `parent`'s history: the branch as it was on the timeline that it was on then, and the point on
    /// that. Only a time says which one: where a branch was reset or restored since, it is on another by now.
    pub(crate) async fn parent_at(
        &self,
        parent: &BranchRow,
        point: PointSpec,
    ) -> Result<(BranchRow, PointSpec), ErrorInfo> {
        let PointSpec::Time(at_us) = point else { return Ok((parent.clone(), point)) };
        if !parent.has_moved() || parent.since_us <= at_us {
            return Ok((parent.clone(), point));
        }
        let PointInHistory { stretch, lsn } = self.point_in_history(parent, point).await?;
        let Stretch { timeline, ancestor, start_lsn, since_us, .. } = stretch;
        Ok((BranchRow { timeline, ancestor, start_lsn, since_us, ..parent.clone() }, PointSpec::Lsn(lsn)))
    }

    /// Where a position is that the branch was at: on its timeline, or else where another timeline of the branch's begins.
    pub(crate) async fn position_in_history(
        &self,
        branch: &BranchRow,
        (timeline, lsn): Position,
    ) -> Result<PointInHistory, ErrorInfo> {
        let stretches = self.stretches(branch)?;
        if let Some(stretch) = stretches.iter().find(|stretch| stretch.timeline == timeline) {
            let status = self.caught_up(branch, stretch).await?;
            if status.oldest_lsn.unwrap_or(status.retained_from_lsn) <= lsn {
                return Ok(PointInHistory { stretch: stretch.clone(), lsn });
            }
        }
        for stretch in stretches.iter().rev().filter(|stretch| stretch.start_lsn == Some(lsn)) {
            let Some(ancestor) = stretch.ancestor else { continue };
            if self.first_with(stretch.timeline, lsn)? == timeline {
                // What begins there anew begins on that one.
                self.make_readable(branch.tenant, ancestor, lsn).await;
                self.context.page_service.wait_lsn(branch.tenant, ancestor, lsn, CATCH_UP_TIMEOUT).await?;
                return Ok(PointInHistory { stretch: stretch.clone(), lsn });
            }
        }
        Err(self.outside_history(branch, &stretches).await)
    }

    /// A stretch's LSN at a time that lies within it; `None` if that is not kept any more.
    async fn lsn_at_time(&self, branch: &BranchRow, stretch: &Stretch, at_us: i64) -> Result<Option<Lsn>, ErrorInfo> {
        let status = self.caught_up(branch, stretch).await?;
        let request = ManageRequest::LsnForTimestamp { timeline: stretch.timeline, timestamp_us: at_us };
        match self.context.page_service.manage(branch.tenant, request).await {
            Ok(ManageReply::LsnForTimestamp { lsn }) => Ok(Some(lsn)),
            Ok(other) => Err(unexpected_reply("an LSN for a time", &other).into()),
            // Nothing was committed on it until then, if all of it is kept: the clock of the commits before it may be another.
            Err(error) if error.kind == StorageErrorKind::OutOfRange => {
                Ok(stretch.start_lsn.filter(|start| status.oldest_lsn.is_some_and(|oldest| oldest <= *start)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The stretch's timeline as it is once the page server has all that was committed on it.
    async fn caught_up(&self, branch: &BranchRow, stretch: &Stretch) -> Result<TimelineStatus, ErrorInfo> {
        let (tenant, timeline) = (branch.tenant, stretch.timeline);
        self.complete_log(tenant, timeline).await?;
        if let Some(committed) = self.context.wal_service.commit_lsn(tenant, timeline).await? {
            self.make_readable(tenant, timeline, committed).await;
            // Waiting makes the page server receive it, for as long as somebody waits.
            self.context.page_service.wait_lsn(tenant, timeline, committed, CATCH_UP_TIMEOUT).await?;
        }
        Ok(self.context.timeline_status(tenant, timeline).await?)
    }

    async fn outside_history(&self, branch: &BranchRow, stretches: &[Stretch]) -> ErrorInfo {
        let mut ranges = Vec::new();
        for stretch in stretches {
            if let Ok(status) = self.context.timeline_status(branch.tenant, stretch.timeline).await {
                let mut range = range_text(&status);
                if let Some(until_us) = stretch.until_us {
                    range.push_str(&format!(", as it was from {} to {}", iso8601(stretch.since_us), iso8601(until_us)));
                } else {
                    range.push_str(&format!(", as it is since {}", iso8601(stretch.since_us)));
                }
                ranges.push(range);
            }
        }
        let message =
            format!("that point is not in the history of branch {}, which goes {}", branch.name, ranges.join("; and "));
        ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
            .with_hint(format!("ardent branch history {} shows what it can be restored to", branch.name))
    }

    /// What a branch was, and can be restored to.
    pub async fn branch_history(&self, name: &str) -> Result<BranchHistory, ErrorInfo> {
        let branch = self.find_branch(name)?;
        let past = self.context.store.past_timelines(branch.id)?;
        let mut stretches = Vec::new();
        for stretch in self.stretches(&branch)? {
            let status = self.caught_up(&branch, &stretch).await?;
            let past = past.iter().find(|past| past.timeline == stretch.timeline);
            let kept_until_us = past.map(|past| self.restorable_until_us(past)).transpose()?;
            stretches.push(HistoryStretch {
                timeline_id: stretch.timeline,
                since: iso8601(stretch.since_us),
                until: stretch.until_us.map(iso8601),
                ended_by: past.map(|past| past.ended_by.as_str().to_owned()),
                kept_until: kept_until_us.map(iso8601),
                oldest_lsn: status.oldest_lsn.unwrap_or(status.retained_from_lsn),
                oldest_at: status.oldest_commit_us.map(iso8601),
                newest_lsn: status.last_record_lsn,
                newest_at: status.last_commit_us.map(iso8601),
            });
        }
        Ok(BranchHistory { schema_version: SCHEMA_VERSION, name: branch.name, stretches })
    }
}

impl Context {
    /// An error of the page server about a point on `parent`; if it lies outside, with the range that there is.
    pub(crate) async fn with_range(&self, parent: &BranchRow, error: StorageError) -> ErrorInfo {
        if error.kind != StorageErrorKind::OutOfRange {
            return error.into();
        }
        match self.timeline_status(parent.tenant, parent.timeline).await {
            Ok(status) => {
                let message =
                    format!("{}; the history of branch {} goes {}", error.message, parent.name, range_text(&status));
                // Before it was made there was its parent, however long history is kept.
                let made_from = match status.oldest_lsn {
                    Some(oldest) if Some(oldest) == parent.start_lsn => parent.parent,
                    _ => None,
                };
                let above = made_from.and_then(|id| self.store.branch_by_id(id).ok().flatten());
                let hint = match above {
                    // What was before is its own.
                    Some(_) if parent.has_moved() => {
                        format!("choose a later point; ardent branch history {} shows what it was before", parent.name)
                    }
                    Some(above) => format!(
                        "branch {} was made there: choose a later point, or what was before: --from {}",
                        parent.name, above.name
                    ),
                    None => format!(
                        "choose a point in it; ardent branch set {} --retention keeps more from now on",
                        parent.name
                    ),
                };
                ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint(hint)
            }
            Err(_) => error.into(),
        }
    }

    /// What is said of an LSN that is ahead of all that `parent` has: with the range that there is, if the page server tells it.
    pub(crate) async fn ahead(&self, parent: &BranchRow, lsn: Lsn) -> ErrorInfo {
        let name = &parent.name;
        let message = format!("{lsn} is ahead of all that branch {name} has");
        let Ok(status) = self.timeline_status(parent.tenant, parent.timeline).await else {
            return StorageError::new(StorageErrorKind::OutOfRange, message).into();
        };
        let message = format!("{message}; the history of branch {name} goes {}", range_text(&status));
        let hint = match parent.has_moved() {
            true => format!("choose an earlier point; ardent branch history {name} shows what it was before"),
            false => "choose an earlier point".to_owned(),
        };
        ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint(hint)
    }

    /// Refuses a time from before all that is known of `parent`. Where its oldest state has a commit, the page server goes by that one's time;
    /// where it has none, as nothing was committed on production meanwhile, the page server would take that state for the state of any time.
    async fn check_known(&self, parent: &BranchRow, timestamp_us: i64) -> Result<(), ErrorInfo> {
        let since_us = self.known_since_us(parent)?;
        if since_us <= timestamp_us {
            return Ok(());
        }
        let status = self.timeline_status(parent.tenant, parent.timeline).await?;
        if status.oldest_commit_us.is_some() {
            return Ok(());
        }
        let message = format!(
            "what branch {name} begins with is here since {}, and {} is before that; the history of branch {name} goes {}",
            iso8601(since_us),
            iso8601(timestamp_us),
            range_text(&status),
            name = parent.name
        );
        Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
            .with_hint("choose a later point: what was before that is not here"))
    }

    /// Since when that is here which a branch's history begins with: since its root was copied from production, or cut.
    fn known_since_us(&self, branch: &BranchRow) -> Result<i64, ErrorInfo> {
        let mut root = branch.timeline;
        while let Some((ancestor, _)) = self.store.ancestor(root)? {
            root = ancestor;
        }
        Ok(self.store.branch_of_timeline(root)?.map_or(branch.since_us, |row| row.since_us))
    }

    /// The LSN of a time on `parent`.
    pub(crate) async fn lsn_of_time(
        &self,
        parent: &BranchRow,
        tenant: TenantId,
        timestamp_us: i64,
    ) -> Result<Lsn, ErrorInfo> {
        self.check_known(parent, timestamp_us).await?;
        let request = ManageRequest::LsnForTimestamp { timeline: parent.timeline, timestamp_us };
        match self.page_service.manage(tenant, request).await {
            Ok(ManageReply::LsnForTimestamp { lsn }) => Ok(lsn),
            Ok(other) => Err(unexpected_reply("an LSN for a time", &other).into()),
            Err(error) => Err(self.with_range(parent, error).await),
        }
    }
}

/// A time that has not come has no state.
pub(crate) fn check_past(at_us: i64) -> Result<(), ErrorInfo> {
    let ahead_us = at_us.saturating_sub(now_us());
    if u128::try_from(ahead_us).is_ok_and(|ahead_us| ahead_us > CLOCK_DIFFERENCE.as_micros()) {
        let message = format!("{} lies in the future", iso8601(at_us));
        return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
            .with_hint(format!("the server's clock says {}", iso8601(now_us()))));
    }
    Ok(())
}

fn range_text(status: &TimelineStatus) -> String {
    let end = |lsn: Lsn, at_us: Option<i64>| match at_us {
        Some(at_us) => format!("{lsn} (last commit {})", iso8601(at_us)),
        None => lsn.to_string(),
    };
    format!(
        "from {} to {}",
        end(status.oldest_lsn.unwrap_or(status.retained_from_lsn), status.oldest_commit_us),
        end(status.last_record_lsn, status.last_commit_us)
    )
}
