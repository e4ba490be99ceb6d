//! Timelines that branches are about to move to, and those that they have left.
//!
//! A reset or restore is one row in `switches` from its first step to its last: not `made` while storage makes the new timeline,
//! `made` while the branch's compute is cleared away, gone when the branch is on the new timeline. The timeline that it was on
//! before is a row in `past_timelines` from the same transaction on, and so is a new one that the branch never came to be on,
//! which is `leaving` at once.

use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use ardent_api::addr::ServiceAddr;
use ardent_types::{BranchId, Lsn, TenantId, TimelineId};

use super::{Store, StoreError, WalDuty, parsed, parsed_option, wal_debt};

/// Why a branch moves to another timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchKind {
    /// To a new one from its parent.
    Reset,
    /// To a new one from its own history.
    Restore,
}

impl SwitchKind {
    /// The word, as in the schema and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SwitchKind::Reset => "reset",
            SwitchKind::Restore => "restore",
        }
    }

    pub(super) fn read(row: &Row<'_>, column: &str) -> rusqlite::Result<Self> {
        // The schema's CHECK leaves no third word.
        Ok(if row.get::<_, String>(column)? == "reset" { SwitchKind::Reset } else { SwitchKind::Restore })
    }
}

/// A move that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchRow {
    /// Which branch moves.
    pub branch: BranchId,
    /// Where to.
    pub timeline: TimelineId,
    /// Why.
    pub kind: SwitchKind,
    /// The timeline is there, on page server and safekeepers: what is left to do needs neither.
    pub made: bool,
}

/// What came of [`Store::begin_switch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeginSwitch {
    /// It has begun.
    Begun,
    /// Another one is under way.
    Busy,
    /// The branch, or the history that the new timeline begins in, is being deleted.
    Gone,
}

/// A timeline that a branch was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastTimeline {
    /// Tenant.
    pub tenant: TenantId,
    /// Which.
    pub timeline: TimelineId,
    /// The branch, which may be gone.
    pub branch: BranchId,
    /// The timeline that it hangs on.
    pub ancestor: Option<TimelineId>,
    /// Where it begins.
    pub start_lsn: Option<Lsn>,
    /// From when the branch was on it, microseconds since the Unix epoch.
    pub since_us: i64,
    /// Until when.
    pub until_us: i64,
    /// What ended it.
    pub ended_by: SwitchKind,
    /// To be deleted: nothing new hangs on it from now on.
    pub leaving: bool,
    /// The page server keeps of it only what others that hang on it need.
    pub retired: bool,
}

const PAST: &str =
    "SELECT p.timeline_id, t.tenant_id, t.ancestor_id, t.branch_lsn, p.branch_id, p.since_us, p.until_us, p.ended_by,
    p.leaving, p.retired FROM past_timelines p JOIN timelines t ON t.id = p.timeline_id";

impl PastTimeline {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(PastTimeline {
            tenant: parsed(row, "tenant_id")?,
            timeline: parsed(row, "timeline_id")?,
            branch: parsed(row, "branch_id")?,
            ancestor: parsed_option(row, "ancestor_id")?,
            start_lsn: parsed_option(row, "branch_lsn")?,
            since_us: row.get("since_us")?,
            until_us: row.get("until_us")?,
            ended_by: SwitchKind::read(row, "ended_by")?,
            leaving: row.get("leaving")?,
            retired: row.get("retired")?,
        })
    }
}

/// Adds a timeline that hangs on another.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    timeline: TimelineId,
    tenant: TenantId,
    ancestor: &str,
) -> rusqlite::Result<()> {
    transaction
        .execute(
            "INSERT INTO timelines (id, tenant_id, ancestor_id) VALUES (?1, ?2, ?3)",
            params![timeline.to_string(), tenant.to_string(), ancestor],
        )
        .map(|_| ())
}

/// What a branch is compared with on this timeline: what the oldest of the branch's timelines hangs on that this one descends from,
/// which a creation, a reset or a rebase has made, and where; restores make those in between. The timelines that the branch has left
/// must be past.
fn base_of(
    transaction: &Transaction<'_>,
    branch: &str,
    timeline: &str,
) -> rusqlite::Result<(Option<String>, Option<String>)> {
    transaction.query_row(
        "WITH RECURSIVE chain (ancestor_id, branch_lsn) AS (
            SELECT ancestor_id, branch_lsn FROM timelines WHERE id = ?2
            UNION ALL
            SELECT t.ancestor_id, t.branch_lsn FROM chain c JOIN past_timelines p ON p.timeline_id = c.ancestor_id
                JOIN timelines t ON t.id = p.timeline_id WHERE p.branch_id = ?1
         )
         SELECT ancestor_id, branch_lsn FROM chain
         WHERE NOT EXISTS (SELECT 1 FROM past_timelines p WHERE p.timeline_id = chain.ancestor_id AND p.branch_id = ?1)",
        params![branch, timeline],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Gives up a branch's move: the timeline that it was to move to is to be deleted.
pub(super) fn undo_switch(transaction: &Transaction<'_>, branch: &str) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO past_timelines (timeline_id, branch_id, since_us, until_us, ended_by, leaving, retired)
         SELECT timeline_id, branch_id, 0, 0, kind, 1, 0 FROM switches WHERE branch_id = ?1",
        params![branch],
    )?;
    transaction.execute("DELETE FROM switches WHERE branch_id = ?1", params![branch]).map(|_| ())
}

impl Store {
    /// Begins a move: the new timeline is a row before anything is made for it. It hangs on `ancestor`; `source` is the timeline
    /// whose history that is, which must not be about to go.
    pub fn begin_switch(
        &self,
        row: &SwitchRow,
        source: TimelineId,
        ancestor: TimelineId,
    ) -> Result<BeginSwitch, StoreError> {
        self.write(|transaction| {
            let (id, source) = (row.branch.to_string(), source.to_string());
            let tenant: Option<TenantId> = transaction
                .query_row(
                    "SELECT t.tenant_id FROM branches b JOIN timelines t ON t.id = b.timeline_id
                     WHERE b.id = ?1 AND b.state = 'ready' AND b.deleted_us IS NULL",
                    params![id],
                    |row| parsed(row, "tenant_id"),
                )
                .optional()?;
            let source_stays: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM timelines WHERE id = ?1)
                 AND NOT EXISTS (SELECT 1 FROM past_timelines WHERE timeline_id = ?1 AND leaving)",
                params![source],
                |row| row.get(0),
            )?;
            let Some(tenant) = tenant.filter(|_| source_stays) else { return Ok(BeginSwitch::Gone) };
            let is_busy: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM switches WHERE branch_id = ?1)",
                params![id],
                |row| row.get(0),
            )?;
            if is_busy {
                return Ok(BeginSwitch::Busy);
            }
            insert(transaction, row.timeline, tenant, &ancestor.to_string())?;
            transaction.execute(
                "INSERT INTO switches (branch_id, timeline_id, kind, made) VALUES (?1, ?2, ?3, 0)",
                params![id, row.timeline.to_string(), row.kind.as_str()],
            )?;
            Ok(BeginSwitch::Begun)
        })
    }

    /// The new timeline is there. `away` are the safekeepers that have yet to make it.
    pub fn switch_made(
        &self,
        (tenant, row): (TenantId, &SwitchRow),
        start_lsn: Lsn,
        prev_lsn: Lsn,
        away: &[ServiceAddr],
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            wal_debt::replace(transaction, (tenant, row.timeline), WalDuty::Create, away)?;
            transaction.execute(
                "UPDATE timelines SET branch_lsn = ?2, prev_lsn = ?3 WHERE id = ?1",
                params![row.timeline.to_string(), start_lsn.to_string(), prev_lsn.to_string()],
            )?;
            transaction
                .execute("UPDATE switches SET made = 1 WHERE branch_id = ?1", params![row.branch.to_string()])
                .map(|_| ())
        })
    }

    /// The branch is on the new timeline from now on, and what it was on is past. Its compute is forgotten: nothing of it may be
    /// left.
    ///
    /// A reset begins anew: nothing is counted yet, and the roles are the parent's; those that were renamed here have their old
    /// names again. After a restore the branch is compared with what it was compared with at that point, which a reset in between
    /// has changed; what was counted counts on, and roles are told from each other by the next report.
    pub fn finish_switch(&self, row: &SwitchRow, now_us: i64) -> Result<(), StoreError> {
        self.write(|transaction| {
            let (id, timeline) = (row.branch.to_string(), row.timeline.to_string());
            transaction.execute(
                "INSERT INTO past_timelines (timeline_id, branch_id, since_us, until_us, ended_by, leaving, retired)
                 SELECT timeline_id, id, coalesce(since_us, created_us), ?2, ?3, 0, 0 FROM branches WHERE id = ?1",
                params![id, now_us, row.kind.as_str()],
            )?;
            transaction.execute("DELETE FROM computes WHERE branch_id = ?1", params![id])?;
            match row.kind {
                SwitchKind::Reset => {
                    transaction.execute(
                        "UPDATE branches SET base_timeline_id = NULL, base_lsn = NULL, rows_changed = 0, rows_counted_to = NULL,
                            role = coalesce((SELECT sealed_for FROM credentials c WHERE c.branch_id = ?1 AND c.role = branches.role), role)
                         WHERE id = ?1",
                        params![id],
                    )?;
                    transaction.execute(
                        "UPDATE OR REPLACE credentials SET role = sealed_for WHERE branch_id = ?1 AND sealed_for <> role",
                        params![id],
                    )?;
                    transaction.execute("DELETE FROM roles WHERE branch_id = ?1", params![id])?;
                }
                SwitchKind::Restore => {
                    let left: String =
                        transaction.query_row("SELECT timeline_id FROM branches WHERE id = ?1", params![id], |row| {
                            row.get(0)
                        })?;
                    let base = base_of(transaction, &id, &timeline)?;
                    // With no reset in between, the branch's row is right, even where the database was made anew and older
                    // timelines are not known to be the branch's.
                    let stays = base == base_of(transaction, &id, &left)?;
                    transaction.execute(
                        "UPDATE branches SET
                            base_timeline_id = CASE WHEN ?5 THEN coalesce(base_timeline_id, ?3) ELSE ?3 END,
                            base_lsn = CASE WHEN ?5 THEN coalesce(base_lsn, ?4) ELSE ?4 END,
                            rows_counted_to = (SELECT branch_lsn FROM timelines t WHERE t.id = ?2)
                         WHERE id = ?1",
                        params![id, timeline, base.0, base.1, stays],
                    )?;
                }
            }
            transaction.execute(
                "UPDATE branches SET timeline_id = ?2, since_us = ?3, roles_known = 0 WHERE id = ?1",
                params![id, timeline, now_us],
            )?;
            transaction.execute("DELETE FROM switches WHERE branch_id = ?1", params![id]).map(|_| ())
        })
    }

    /// Gives a move up: the branch stays where it is.
    pub fn undo_switch(&self, branch: BranchId) -> Result<(), StoreError> {
        self.write(|transaction| undo_switch(transaction, &branch.to_string()))
    }

    /// All moves that are under way.
    pub fn switches(&self) -> Result<Vec<SwitchRow>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT branch_id, timeline_id, kind, made FROM switches")?;
            let rows = statement.query_map([], |row| {
                Ok(SwitchRow {
                    branch: parsed(row, "branch_id")?,
                    timeline: parsed(row, "timeline_id")?,
                    kind: SwitchKind::read(row, "kind")?,
                    made: row.get("made")?,
                })
            })?;
            rows.collect()
        })
    }

    /// The timelines that a branch was on and could be restored from, oldest first.
    pub fn past_timelines(&self, branch: BranchId) -> Result<Vec<PastTimeline>, StoreError> {
        self.read(|connection| {
            let sql = format!("{PAST} WHERE p.branch_id = ?1 AND NOT p.leaving ORDER BY p.until_us");
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_map(params![branch.to_string()], PastTimeline::read)?.collect()
        })
    }

    /// All timelines that branches have left.
    pub fn all_past_timelines(&self) -> Result<Vec<PastTimeline>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!("{PAST} ORDER BY p.until_us DESC"))?;
            statement.query_map([], PastTimeline::read)?.collect()
        })
    }

    /// The time is over in which the branch could be restored from it.
    pub fn let_past_timeline_go(&self, timeline: TimelineId) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute("UPDATE past_timelines SET leaving = 1 WHERE timeline_id = ?1", params![timeline.to_string()])
                .map(|_| ())
        })
    }

    /// The page server has given up what nobody needs of it.
    pub fn past_timeline_retired(&self, timeline: TimelineId) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute("UPDATE past_timelines SET retired = 1 WHERE timeline_id = ?1", params![timeline.to_string()])
                .map(|_| ())
        })
    }

    /// Whether timelines hang on this one.
    pub fn timeline_has_children(&self, timeline: TimelineId) -> Result<bool, StoreError> {
        self.read(|connection| {
            connection.query_row(
                "SELECT EXISTS (SELECT 1 FROM timelines WHERE ancestor_id = ?1)",
                params![timeline.to_string()],
                |row| row.get(0),
            )
        })
    }

    /// Forgets a timeline that storage has forgotten. `away` are the safekeepers that may have its WAL yet.
    pub fn remove_past_timeline(&self, past: &PastTimeline, away: &[ServiceAddr]) -> Result<(), StoreError> {
        self.write(|transaction| {
            wal_debt::replace(transaction, (past.tenant, past.timeline), WalDuty::Delete, away)?;
            let timeline = past.timeline.to_string();
            transaction.execute("DELETE FROM leases WHERE timeline_id = ?1", params![timeline])?;
            transaction.execute("DELETE FROM timelines WHERE id = ?1", params![timeline]).map(|_| ())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::BranchRow;
    use super::super::two_branches::two_branches;
    use super::*;

    /// `a` hangs on the root at 0/10, `b` at 0/50.
    fn store() -> (tempfile::TempDir, Store, TimelineId, [BranchRow; 2]) {
        let (folder, store, root, branches) = two_branches();
        for (branch, lsn) in branches.iter().zip([0x10, 0x50]) {
            store.branch_ready(branch, (Lsn::new(lsn), Lsn::new(8)), &[], None).expect("written");
        }
        (folder, store, root, branches)
    }

    /// Moves a branch to a new timeline that hangs there. Gives the timeline, and what the branch is compared with then.
    fn moved(
        store: &Store,
        branch: &BranchRow,
        kind: SwitchKind,
        (ancestor, lsn): (TimelineId, u64),
    ) -> (TimelineId, Option<(TimelineId, Lsn)>) {
        let row = SwitchRow { branch: branch.id, timeline: TimelineId::generate(), kind, made: false };
        assert_eq!(store.begin_switch(&row, ancestor, ancestor).expect("written"), BeginSwitch::Begun);
        store.switch_made((branch.tenant, &row), Lsn::new(lsn), Lsn::new(8), &[]).expect("written");
        store.finish_switch(&row, 7).expect("written");
        let now = store.branch_by_id(branch.id).expect("read").expect("it is there");
        assert_eq!(now.timeline, row.timeline);
        (now.timeline, now.base_timeline.zip(now.branch_lsn))
    }

    #[test]
    fn what_a_branch_is_compared_with_is_that_of_the_point_that_it_is_restored_to() {
        use SwitchKind::{Reset, Restore};
        let (_folder, store, root, [a, b]) = store();
        let at = |lsn| Some((root, Lsn::new(lsn)));
        let (reset, base) = moved(&store, &a, Reset, (root, 0x20));
        assert_eq!(base, at(0x20));
        assert_eq!(moved(&store, &a, Restore, (reset, 0x22)).1, at(0x20), "nothing was reset in between");
        let (before, base) = moved(&store, &a, Restore, (a.timeline, 0x12));
        assert_eq!(base, at(0x10), "before the reset");
        let (deeper, base) = moved(&store, &a, Restore, (before, 0x14));
        assert_eq!(base, at(0x10));
        assert_eq!(moved(&store, &a, Restore, (reset, 0x24)).1, at(0x20), "after it again");
        assert_eq!(moved(&store, &a, Restore, (deeper, 0x15)).1, at(0x10), "and before it again");
        assert_eq!(moved(&store, &a, Restore, (root, 0x20)).1, at(0x20), "where the reset began");
        assert_eq!(moved(&store, &a, Restore, (root, 0x10)).1, at(0x10), "where the branch began");

        // A rebase: what was past of a timeline goes with it.
        let [a, b] = [&a, &b].map(|branch| store.branch_by_id(branch.id).expect("read").expect("it is there"));
        store.exchange_timelines(&a, &b, "kept", 9).expect("written");
        assert_eq!(moved(&store, &a, Restore, (b.timeline, 0x51)).1, at(0x50));
        assert_eq!(moved(&store, &b, Restore, (reset, 0x25)).1, at(0x20));
        let (last, base) = moved(&store, &b, Restore, (before, 0x13));
        assert_eq!(base, at(0x10));

        // As after a recovery that did not find whose a timeline was.
        let lost = store.write(|transaction| {
            transaction.execute("DELETE FROM past_timelines WHERE timeline_id = ?1", params![before.to_string()])
        });
        assert_eq!(lost.expect("written"), 1);
        assert_eq!(moved(&store, &b, Restore, (last, 0x14)).1, at(0x10));
    }
}
