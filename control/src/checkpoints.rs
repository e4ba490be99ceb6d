//! Checkpoints: marks that a branch's users set in its history, and what a rewind goes back to.
//!
//! ```text
//!  checkpoint ──► where all is that the branch has committed ──► a row: label, timeline, LSN
//!  rewind ──► the row ──► the stretch of the branch's history that has it ──► restore (`switch.rs`)
//! ```
//!
//! A checkpoint is a row and nothing else: storage holds nothing for it, no compute is woken, and it can be gone to for as long as history is
//! kept. A position where a timeline begins is written as one of the timeline that it hangs on, so that each has one form, whichever of the branch's
//! timelines begin there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ardent_api::control::{
    ApiErrorCode, CheckpointInfo, CheckpointLabel, CheckpointList, CheckpointPlace, CreateCheckpointRequest,
    DeleteReply, ErrorInfo, RewindRequest, SCHEMA_VERSION, SwitchReply,
};
use ardent_types::{Lsn, TimelineId};

use crate::history::Stretch;
use crate::lineage::History;
use crate::point::PointSpec;
use crate::service::Control;
use crate::store::{BranchRow, CHECKPOINTS_MAX, CheckpointRow, InsertCheckpoint, iso8601, now_us};
use crate::switch::Goal;

/// Most labels that an error lists.
const LABELS_SHOWN: usize = 10;

/// The end of a record on a timeline.
pub(crate) type Position = (TimelineId, Lsn);

/// What a branch's present state has behind it, since the branch was made or reset.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    /// The branch's timelines, the present one first, each with where it was left.
    timelines: History,
    /// Where the last of these begins.
    begins: Option<Position>,
}

impl Line {
    /// The part of a history that is on the branch's own timelines.
    fn of(history: &History, own: &BTreeSet<TimelineId>) -> Line {
        let (mine, above) = history.split_at(history.iter().take_while(|(timeline, _)| own.contains(timeline)).count());
        let begins = above.first().and_then(|(_, lsn)| *lsn).and_then(|lsn| {
            let there = above.iter().take_while(|(_, end)| *end == Some(lsn));
            there.last().map(|(timeline, _)| (*timeline, lsn))
        });
        Line { timelines: mine.to_vec(), begins }
    }

    /// How late a position is on the line; `None`: it is not on it.
    fn place_of(&self, (timeline, lsn): Position) -> Option<(Reverse<usize>, Lsn)> {
        if self.begins == Some((timeline, lsn)) {
            return Some((Reverse(self.timelines.len()), lsn));
        }
        let has_it = |(own, end): &(TimelineId, Option<Lsn>)| *own == timeline && end.is_none_or(|end| lsn <= end);
        self.timelines.iter().position(has_it).map(|back| (Reverse(back), lsn))
    }

    /// Of checkpoints in the order in which they were made, the number of the last one on the line.
    fn current(&self, rows: &[CheckpointRow]) -> Option<usize> {
        let places = rows.iter().enumerate();
        places.filter_map(|(index, row)| Some((self.place_of(row.position())?, index))).max().map(|(_, index)| index)
    }
}

impl CheckpointRow {
    /// Where it is.
    pub(crate) fn position(&self) -> Position {
        (self.timeline, self.lsn)
    }
}

impl Control {
    /// Marks what a branch has committed now.
    pub async fn create_checkpoint(
        &self,
        name: &str,
        request: &CreateCheckpointRequest,
    ) -> Result<CheckpointInfo, ErrorInfo> {
        let label = request.label.as_deref().map(str::parse::<CheckpointLabel>).transpose()?;
        // The branch stays on its timeline meanwhile.
        let lock = self.name_lock(name);
        let _guard = lock.lock().await;
        let branch = self.branch_to_move(name)?;
        let lsn = self.point_on(&branch, PointSpec::Now).await?.lsn;
        let position = (self.first_with(branch.timeline, lsn)?, lsn);
        let label = label.as_ref().map(CheckpointLabel::as_str);
        match self.context.store.insert_checkpoint(branch.id, label, position, now_us())? {
            InsertCheckpoint::Inserted(row) => Ok(self.checkpoint_info(&branch, row, CheckpointPlace::Current, true)),
            InsertCheckpoint::LabelTaken(label) => {
                let message = format!("branch {name} has a checkpoint {label} already");
                Err(ErrorInfo::new(ApiErrorCode::AlreadyExists, message).with_hint(format!(
                    "take another label, or delete that one: ardent branch checkpoint delete {name} {label}"
                )))
            }
            InsertCheckpoint::Full { oldest } => {
                let message = format!("branch {name} has {CHECKPOINTS_MAX} checkpoints, and more are not kept");
                Err(ErrorInfo::new(ApiErrorCode::Conflict, message)
                    .with_hint(format!("delete some: ardent branch checkpoint delete {name} {oldest}")))
            }
        }
    }

    /// A branch's checkpoints.
    pub async fn list_checkpoints(&self, name: &str) -> Result<CheckpointList, ErrorInfo> {
        let branch = self.find_branch(name)?;
        let rows = self.context.store.checkpoints(branch.id)?;
        let line = self.line_of(&branch)?;
        let current = line.current(&rows);
        let kept = self.kept(&branch, &rows).await?;
        let shown = rows.into_iter().zip(kept).enumerate().map(|(index, (row, kept))| {
            let place = match line.place_of(row.position()) {
                Some(_) if current == Some(index) => CheckpointPlace::Current,
                Some(_) => CheckpointPlace::Passed,
                None => CheckpointPlace::Left,
            };
            self.checkpoint_info(&branch, row, place, kept)
        });
        let checkpoints = shown.collect();
        Ok(CheckpointList { schema_version: SCHEMA_VERSION, name: branch.name, checkpoints })
    }

    /// Forgets a checkpoint. What the branch is and was stays.
    pub fn delete_checkpoint(&self, name: &str, label: &str) -> Result<DeleteReply, ErrorInfo> {
        let branch = self.find_branch(name)?;
        if !self.context.store.delete_checkpoint(branch.id, label)? {
            return Err(no_such_checkpoint(&branch, label, &self.context.store.checkpoints(branch.id)?));
        }
        Ok(DeleteReply { schema_version: SCHEMA_VERSION, name: label.to_owned(), warning: None, kept_until: None })
    }

    /// Makes a branch what it was at a checkpoint. Goes on when the caller goes away.
    pub async fn rewind_branch(self: &Arc<Self>, name: &str, request: RewindRequest) -> Result<SwitchReply, ErrorInfo> {
        self.switch_branch(name, Goal::Checkpoint(request.checkpoint)).await
    }

    /// The checkpoint that a rewind goes to.
    pub(crate) fn checkpoint_to_rewind_to(
        &self,
        branch: &BranchRow,
        label: Option<&str>,
    ) -> Result<CheckpointRow, ErrorInfo> {
        let name = &branch.name;
        let rows = self.context.store.checkpoints(branch.id)?;
        if let Some(label) = label {
            let found = rows.iter().find(|row| row.label == label).cloned();
            return found.ok_or_else(|| no_such_checkpoint(branch, label, &rows));
        }
        let current = self.line_of(branch)?.current(&rows);
        current.and_then(|index| rows.get(index).cloned()).ok_or_else(|| match rows.is_empty() {
            true => ErrorInfo::new(ApiErrorCode::NotFound, format!("branch {name} has no checkpoint"))
                .with_hint(format!("make one at each step: ardent branch checkpoint create {name}")),
            false => {
                let message =
                    format!("branch {name} has passed none of its checkpoints since it was made, reset or restored");
                ErrorInfo::new(ApiErrorCode::NotFound, message).with_hint(format!(
                    "name the one to go to: ardent branch rewind {name} LABEL; {}",
                    labels(branch, &rows)
                ))
            }
        })
    }

    /// Where on its present line a branch passed a checkpoint.
    pub(crate) fn passed_checkpoint(&self, branch: &BranchRow, label: &str) -> Result<Lsn, ErrorInfo> {
        let row = self.checkpoint_to_rewind_to(branch, Some(label))?;
        if self.line_of(branch)?.place_of(row.position()).is_some() {
            return Ok(row.lsn);
        }
        let name = &branch.name;
        let message =
            format!("branch {name} is not what came of checkpoint {label}: a rewind, a reset or a restore left that");
        Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
            .with_hint(format!("take one that it has passed: ardent branch checkpoint list {name}")))
    }

    fn line_of(&self, branch: &BranchRow) -> Result<Line, ErrorInfo> {
        let own: BTreeSet<TimelineId> = self.stretches(branch)?.iter().map(|stretch| stretch.timeline).collect();
        Ok(Line::of(&self.history(branch)?, &own))
    }

    /// Which of these checkpoints can be gone to.
    async fn kept(&self, branch: &BranchRow, rows: &[CheckpointRow]) -> Result<Vec<bool>, ErrorInfo> {
        let stretches = self.stretches(branch)?;
        let marked: BTreeSet<TimelineId> = rows.iter().map(|row| row.timeline).collect();
        let (mut begins, mut oldest) = (BTreeSet::new(), BTreeMap::new());
        for Stretch { timeline, start_lsn, .. } in &stretches {
            if let Some(lsn) = *start_lsn {
                begins.insert((self.first_with(*timeline, lsn)?, lsn));
            }
            if marked.contains(timeline) {
                let status = self.context.timeline_status(branch.tenant, *timeline).await?;
                oldest.insert(*timeline, status.oldest_lsn.unwrap_or(status.retained_from_lsn));
            }
        }
        let is_kept = |row: &CheckpointRow| {
            // Where a timeline begins is held for as long as that is there.
            begins.contains(&row.position()) || oldest.get(&row.timeline).is_some_and(|oldest| *oldest <= row.lsn)
        };
        Ok(rows.iter().map(is_kept).collect())
    }

    /// The timeline that a position is written with: where the given one begins, the one that it hangs on.
    pub(crate) fn first_with(&self, mut timeline: TimelineId, lsn: Lsn) -> Result<TimelineId, ErrorInfo> {
        while let Some((above, _)) = self.context.store.ancestor(timeline)?.filter(|(_, start)| *start == lsn) {
            timeline = above;
        }
        Ok(timeline)
    }

    fn checkpoint_info(
        &self,
        branch: &BranchRow,
        row: CheckpointRow,
        place: CheckpointPlace,
        kept: bool,
    ) -> CheckpointInfo {
        let until_us = row.created_us.saturating_add(self.retention_us(branch.retention_s));
        CheckpointInfo {
            schema_version: SCHEMA_VERSION,
            branch: branch.name.clone(),
            label: row.label,
            timeline_id: row.timeline,
            lsn: row.lsn,
            created_at: iso8601(row.created_us),
            place,
            kept,
            kept_until: (kept && until_us > now_us()).then(|| iso8601(until_us)),
        }
    }
}

fn no_such_checkpoint(branch: &BranchRow, label: &str, rows: &[CheckpointRow]) -> ErrorInfo {
    let name = &branch.name;
    let hint = match rows.is_empty() {
        true if branch.is_root() => format!("it has none: {name} follows production, and is not rewound"),
        true => format!("it has none; make one at each step: ardent branch checkpoint create {name}"),
        false => labels(branch, rows),
    };
    ErrorInfo::new(ApiErrorCode::NotFound, format!("branch {name} has no checkpoint {label:?}")).with_hint(hint)
}

/// Which ones there are.
fn labels(branch: &BranchRow, rows: &[CheckpointRow]) -> String {
    let newest: Vec<&str> = rows.iter().rev().take(LABELS_SHOWN).map(|row| row.label.as_str()).collect();
    let more = if rows.len() > newest.len() { " and older ones" } else { "" };
    format!("it has {}{more}: ardent branch checkpoint list {}", newest.join(", "), branch.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u8) -> TimelineId {
        TimelineId::from_bytes([number; 16])
    }

    fn history(parts: &[(u8, Option<u64>)]) -> History {
        parts.iter().map(|(number, end)| (timeline(*number), end.map(Lsn::new))).collect()
    }

    fn checkpoint(number: u8, lsn: u64) -> CheckpointRow {
        CheckpointRow { label: String::new(), timeline: timeline(number), lsn: Lsn::new(lsn), created_us: 0 }
    }

    /// `own`: the branch's timelines. `expect`: for each checkpoint whether it is on the line, and which one is the last.
    fn check(parts: &[(u8, Option<u64>)], own: &[u8], marks: &[(u8, u64)], expect: (&[bool], Option<usize>)) {
        let own: BTreeSet<TimelineId> = own.iter().map(|number| timeline(*number)).collect();
        let line = Line::of(&history(parts), &own);
        let rows: Vec<CheckpointRow> = marks.iter().map(|(number, lsn)| checkpoint(*number, *lsn)).collect();
        let passed: Vec<bool> = rows.iter().map(|row| line.place_of(row.position()).is_some()).collect();
        assert_eq!((&passed[..], line.current(&rows)), expect, "{line:?}");
    }

    #[test]
    fn a_branch_has_passed_what_its_present_state_came_of() {
        // Made from timeline 9 at 100, marked there, at 110 and at 120.
        let marks = [(9, 100), (1, 110), (1, 120)];
        check(&[(1, None), (9, Some(100))], &[1], &marks, (&[true, true, true], Some(2)));
        // Rewound to the second one; to the first, which is where it began; and to the third from there.
        check(&[(2, None), (1, Some(110)), (9, Some(100))], &[1, 2], &marks, (&[true, true, false], Some(1)));
        check(&[(3, None), (9, Some(100))], &[1, 2, 3], &marks, (&[true, false, false], Some(0)));
        check(&[(4, None), (1, Some(120)), (9, Some(100))], &[1, 2, 3, 4], &marks, (&[true, true, true], Some(2)));
        // Reset onto what the parent is later: these are past, though the parent has the first one's state behind it.
        check(&[(5, None), (9, Some(200))], &[1, 5], &marks, (&[false, false, false], None));
    }

    #[test]
    fn later_on_the_line_is_not_later_in_time() {
        // 115 on what was left; then 130 beyond it on what is there now; then one more at the same place as the first.
        let marks = [(1, 110), (1, 115), (2, 130), (1, 110)];
        check(&[(2, None), (1, Some(110)), (9, Some(100))], &[1, 2], &marks, (&[true, false, true, true], Some(2)));
        check(&[(3, None), (1, Some(110)), (9, Some(100))], &[1, 2, 3], &marks, (&[true, false, false, true], Some(3)));
    }

    #[test]
    fn a_line_begins_on_the_timeline_that_has_something() {
        // 8 begins at 100 as well, and nothing was written on it.
        check(&[(1, None), (8, Some(100)), (9, Some(100))], &[1], &[(9, 100), (8, 100)], (&[true, false], Some(0)));
        // What it hung on was given up, and is no timeline of the branch any more.
        check(&[(2, None), (1, Some(110)), (9, Some(100))], &[2], &[(1, 110), (1, 105)], (&[true, false], Some(0)));
        // A root has no beginning.
        check(&[(9, None)], &[9], &[(9, 1)], (&[true], Some(0)));
    }
}
