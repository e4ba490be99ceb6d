//! Branches, their timelines and their roles' passwords.

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use ardent_api::addr::ServiceAddr;
use ardent_api::compute::Usage;
use ardent_api::control::BranchState;
use ardent_api::policy::BranchPolicy;
use ardent_types::{BranchId, Lsn, TenantId, TimelineId};

use super::description::{self, Description};
use super::wal_debt::{self, WalDuty};
use super::{Store, StoreError, now_us, parsed, parsed_option};

/// A branch with the facts of its timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchRow {
    /// Id.
    pub id: BranchId,
    /// Name.
    pub name: String,
    /// Where it is in its life.
    pub state: BranchState,
    /// The connector it descends from.
    pub connector: String,
    /// The branch it was made from; absent for a root.
    pub parent: Option<BranchId>,
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// Where it leaves its parent, once known. A restore does not change it, a reset does.
    pub branch_lsn: Option<Lsn>,
    /// The timeline that `branch_lsn` is on: what the branch is compared with.
    pub base_timeline: Option<TimelineId>,
    /// The timeline that its own hangs on. After a restore, one that the branch has left.
    pub ancestor: Option<TimelineId>,
    /// Where its own timeline begins, once known.
    pub start_lsn: Option<Lsn>,
    /// Since when it is on its timeline, microseconds since the Unix epoch.
    pub since_us: i64,
    /// When it was deleted, if it was and can be had back.
    pub deleted: Option<Deleted>,
    /// How long its history is kept, in seconds, if not as the server says.
    pub retention_s: Option<u64>,
    /// Not shown to users: made by the server for its own needs, deleted at start.
    pub hidden: bool,
    /// The branch whose state a rebase has kept here.
    pub kept_of: Option<BranchId>,
    /// Its limits.
    pub policy: BranchPolicy,
    /// Rows changed, where they are limited.
    pub usage: Usage,
    /// Its roles have been reported, so that later changes can be told from what production had.
    pub roles_known: bool,
    /// Role of the printed URL.
    pub role: String,
    /// Database of the printed URL.
    pub database: String,
    /// Suspend after this long without activity; 0: never.
    pub idle_timeout_s: u64,
    /// When it will be deleted, microseconds since the Unix epoch.
    pub expires_us: Option<i64>,
    /// When it was made, microseconds since the Unix epoch.
    pub created_us: i64,
}

/// A deletion that can be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The name that the branch had: its row has another, so that the name is free.
    pub name: String,
    /// When, microseconds since the Unix epoch.
    pub at_us: i64,
}

impl BranchRow {
    /// The row of a branch of `parent` that is about to be made, without limits; its role, database and idle time are the parent's.
    pub fn below(parent: &BranchRow, name: String) -> BranchRow {
        let fresh = BranchRow::fresh(name, parent.connector.clone(), parent.tenant, TimelineId::generate());
        BranchRow {
            state: BranchState::Creating,
            parent: Some(parent.id),
            role: parent.role.clone(),
            database: parent.database.clone(),
            idle_timeout_s: parent.idle_timeout_s,
            ..fresh
        }
    }

    /// Whether it was on another timeline before: it was reset or restored, or is a masked copy that was refreshed.
    pub fn has_moved(&self) -> bool {
        !self.is_root() && self.since_us != self.created_us
    }

    /// The row of a branch that is ready and has nothing to it: no parent, limits, role, database or end.
    pub fn fresh(name: String, connector: String, tenant: TenantId, timeline: TimelineId) -> BranchRow {
        BranchRow {
            id: BranchId::generate(),
            name,
            state: BranchState::Ready,
            connector,
            parent: None,
            tenant,
            timeline,
            branch_lsn: None,
            base_timeline: None,
            ancestor: None,
            start_lsn: None,
            since_us: now_us(),
            deleted: None,
            retention_s: None,
            hidden: false,
            kept_of: None,
            policy: BranchPolicy::default(),
            usage: Usage::default(),
            roles_known: false,
            role: String::new(),
            database: String::new(),
            idle_timeout_s: 0,
            expires_us: None,
            created_us: now_us(),
        }
    }

    /// A connector's root: no compute.
    pub fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// Whether users see it as a branch: neither the server's own, nor deleted, nor a masked template.
    pub fn is_listed(&self) -> bool {
        !self.hidden && self.deleted.is_none() && self.template_name().is_none()
    }

    /// Whether its timeline was there at one time: one that is being deleted without that could not be made.
    pub fn was_made(&self) -> bool {
        self.is_root() || self.start_lsn.is_some()
    }

    /// The name that users know it by.
    pub fn known_name(&self) -> &str {
        self.deleted.as_ref().map_or(&self.name, |deleted| &deleted.name)
    }
}

/// A role's password on one branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRow {
    /// Role.
    pub role: String,
    /// The password, sealed; absent where only its verifier is known.
    pub password_sealed: Option<Vec<u8>>,
    /// Name that the role had when it was sealed.
    pub sealed_for: Option<String>,
    /// SCRAM-SHA-256 verifier.
    pub verifier: String,
    /// When it stops being good, microseconds since the Unix epoch.
    pub expires_us: Option<i64>,
}

pub(super) const CREDENTIAL_COLUMNS: &str = "role, password_sealed, sealed_for, verifier, expires_us";

impl CredentialRow {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(CredentialRow {
            role: row.get("role")?,
            password_sealed: row.get("password_sealed")?,
            sealed_for: row.get("sealed_for")?,
            verifier: row.get("verifier")?,
            expires_us: row.get("expires_us")?,
        })
    }
}

/// What came of [`Store::insert_branch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InsertBranch {
    /// It is being created.
    Inserted {
        /// On this timeline.
        ancestor: TimelineId,
    },
    /// The name is taken by this one.
    Exists(Box<BranchRow>),
    /// The parent is gone or being deleted.
    ParentGone,
    /// The parent's data is not masked, and its connector gives out masked data only.
    Withheld,
}

pub(super) const SELECT: &str = "SELECT b.id, b.name, b.state, b.connector, b.parent_id, t.tenant_id, b.timeline_id,
    coalesce(b.base_lsn, t.branch_lsn) AS branch_lsn, coalesce(b.base_timeline_id, t.ancestor_id) AS base_timeline_id,
    t.ancestor_id, t.branch_lsn AS start_lsn, coalesce(b.since_us, b.created_us) AS since_us, b.deleted_us, b.deleted_name,
    b.retention_s, b.hidden, b.kept_of, b.policy, b.rows_changed, b.rows_counted_to, b.roles_known, b.role, b.database, b.idle_timeout_s,
    b.expires_us, b.created_us
    FROM branches b JOIN timelines t ON t.id = b.timeline_id";

impl BranchRow {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let state: String = row.get("state")?;
        let (deleted_us, deleted_name): (Option<i64>, Option<String>) =
            (row.get("deleted_us")?, row.get("deleted_name")?);
        Ok(BranchRow {
            id: parsed(row, "id")?,
            name: row.get("name")?,
            // The schema's CHECK leaves no fourth word.
            state: match state.as_str() {
                "creating" => BranchState::Creating,
                "ready" => BranchState::Ready,
                _ => BranchState::Deleting,
            },
            connector: row.get("connector")?,
            parent: parsed_option(row, "parent_id")?,
            tenant: parsed(row, "tenant_id")?,
            timeline: parsed(row, "timeline_id")?,
            branch_lsn: parsed_option(row, "branch_lsn")?,
            base_timeline: parsed_option(row, "base_timeline_id")?,
            ancestor: parsed_option(row, "ancestor_id")?,
            start_lsn: parsed_option(row, "start_lsn")?,
            since_us: row.get("since_us")?,
            deleted: deleted_us.zip(deleted_name).map(|(at_us, name)| Deleted { name, at_us }),
            retention_s: row.get("retention_s")?,
            hidden: row.get("hidden")?,
            kept_of: parsed_option(row, "kept_of")?,
            policy: parsed_policy(row)?,
            usage: Usage {
                rows_changed: row.get("rows_changed")?,
                counted_to: parsed_option(row, "rows_counted_to")?.unwrap_or_default(),
            },
            roles_known: row.get("roles_known")?,
            role: row.get("role")?,
            database: row.get("database")?,
            idle_timeout_s: row.get("idle_timeout_s")?,
            expires_us: row.get("expires_us")?,
            created_us: row.get("created_us")?,
        })
    }
}

pub(super) fn parsed_policy(row: &Row<'_>) -> rusqlite::Result<BranchPolicy> {
    let text: String = row.get("policy")?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error)))
}

pub(super) fn policy_text(policy: &BranchPolicy) -> String {
    serde_json::to_string(policy).expect("plain data")
}

/// Inserts the row of a branch whose timeline exists.
pub(super) fn insert(transaction: &Transaction<'_>, row: &BranchRow) -> rusqlite::Result<()> {
    let state = match row.state {
        BranchState::Creating => "creating",
        // Deleted ones keep the word: they are as they were, under another name.
        BranchState::Ready | BranchState::Deleted => "ready",
        BranchState::Deleting => "deleting",
    };
    transaction
        .execute(
            "INSERT INTO branches (id, name, state, connector, parent_id, timeline_id, hidden, read_only, role, database,
                idle_timeout_s, expires_us, created_us, policy)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            params![
                row.id.to_string(),
                row.name,
                state,
                row.connector,
                row.parent.map(|id| id.to_string()),
                row.timeline.to_string(),
                row.hidden,
                row.policy.read_only,
                row.role,
                row.database,
                row.idle_timeout_s,
                row.expires_us,
                row.created_us,
                policy_text(&row.policy)
            ],
        )
        .map(|_| ())
}

/// Sets a role's password on a branch.
pub(super) fn put_credential(
    transaction: &Transaction<'_>,
    branch: BranchId,
    credential: &CredentialRow,
) -> rusqlite::Result<()> {
    transaction
        .execute(
            "INSERT INTO credentials (branch_id, role, password_sealed, sealed_for, verifier, expires_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (branch_id, role)
             DO UPDATE SET password_sealed = ?3, sealed_for = ?4, verifier = ?5, expires_us = ?6",
            params![
                branch.to_string(),
                credential.role,
                credential.password_sealed,
                credential.sealed_for,
                credential.verifier,
                credential.expires_us
            ],
        )
        .map(|_| ())
}

/// The row with this name.
pub(super) fn by_name(connection: &Connection, name: &str) -> rusqlite::Result<Option<BranchRow>> {
    let mut statement = connection.prepare_cached(&format!("{SELECT} WHERE b.name = ?1"))?;
    statement.query_row(params![name], BranchRow::read).optional()
}

impl Store {
    /// Adds a branch that is being created, with its timeline and its role's password. Its parent must be there and stay: both are
    /// seen to in one transaction. It hangs on `row.ancestor`, or on the timeline that the parent is on at this moment. What is not hidden
    /// has to be masked, if the connector is so.
    pub fn insert_branch(&self, row: &BranchRow, credential: &CredentialRow) -> Result<InsertBranch, StoreError> {
        self.write(|transaction| {
            if let Some(existing) = by_name(transaction, &row.name)? {
                return Ok(InsertBranch::Exists(Box::new(existing)));
            }
            let parent = row.parent.map(|id| id.to_string());
            let parent_timeline: Option<String> = transaction
                .query_row(
                    "SELECT timeline_id FROM branches WHERE id = ?1 AND state = 'ready' AND deleted_us IS NULL",
                    params![parent],
                    |row| row.get(0),
                )
                .optional()?;
            let Some(parent_timeline) = parent_timeline else { return Ok(InsertBranch::ParentGone) };
            let ancestor = row.ancestor.map_or(parent_timeline, |timeline| timeline.to_string());
            let is_there: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM timelines WHERE id = ?1)
                 AND NOT EXISTS (SELECT 1 FROM past_timelines WHERE timeline_id = ?1 AND leaving)",
                params![ancestor],
                |row| row.get(0),
            )?;
            if !is_there {
                return Ok(InsertBranch::ParentGone);
            }
            if let Some(parent) = row.parent.filter(|_| !row.hidden)
                && super::masked::is_withheld(transaction, parent)?
            {
                return Ok(InsertBranch::Withheld);
            }
            super::timeline::insert(transaction, row.timeline, row.tenant, &ancestor)?;
            insert(transaction, row)?;
            put_credential(transaction, row.id, credential)?;
            let ancestor = ancestor.parse().map_err(|_| rusqlite::Error::InvalidQuery)?;
            Ok(InsertBranch::Inserted { ancestor })
        })
    }

    /// The branch with this name.
    pub fn branch(&self, name: &str) -> Result<Option<BranchRow>, StoreError> {
        self.read(|connection| by_name(connection, name))
    }

    /// The branch with this id.
    pub fn branch_by_id(&self, id: BranchId) -> Result<Option<BranchRow>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!("{SELECT} WHERE b.id = ?1"))?
                .query_row(params![id.to_string()], BranchRow::read)
                .optional()
        })
    }

    /// The branch whose timeline this is.
    pub fn branch_of_timeline(&self, timeline: TimelineId) -> Result<Option<BranchRow>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!("{SELECT} WHERE b.timeline_id = ?1"))?
                .query_row(params![timeline.to_string()], BranchRow::read)
                .optional()
        })
    }

    /// The timeline that this one descends from, and where it left it; `None` for a root.
    pub fn ancestor(&self, timeline: TimelineId) -> Result<Option<(TimelineId, Lsn)>, StoreError> {
        self.read(|connection| {
            let found = connection
                .prepare_cached("SELECT ancestor_id, branch_lsn FROM timelines WHERE id = ?1")?
                .query_row(params![timeline.to_string()], |row| {
                    Ok((parsed_option(row, "ancestor_id")?, parsed_option(row, "branch_lsn")?))
                })
                .optional()?;
            Ok(found.and_then(|(ancestor, lsn)| Some((ancestor?, lsn?))))
        })
    }

    /// The states that rebases of this branch have kept, the newest last.
    pub fn kept_states(&self, branch: BranchId) -> Result<Vec<BranchRow>, StoreError> {
        self.read(|connection| {
            let sql = format!(
                "{SELECT} WHERE b.kept_of = ?1 AND b.state = 'ready' AND b.deleted_us IS NULL ORDER BY b.created_us, b.id"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_map(params![branch.to_string()], BranchRow::read)?.collect()
        })
    }

    /// All branches, hidden ones included, by name.
    pub fn branches(&self) -> Result<Vec<BranchRow>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!("{SELECT} ORDER BY b.name"))?;
            statement.query_map([], BranchRow::read)?.collect()
        })
    }

    /// Names of the branches made from this one, deleted ones not counted.
    pub fn children(&self, id: BranchId) -> Result<Vec<String>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT name FROM branches WHERE parent_id = ?1 AND deleted_us IS NULL ORDER BY name",
            )?;
            statement.query_map(params![id.to_string()], |row| row.get(0))?.collect()
        })
    }

    /// Storage has made the branch, with this description: it is ready. `away` are the safekeepers that are to be told yet.
    pub fn branch_ready(
        &self,
        row: &BranchRow,
        (branch_lsn, prev_lsn): (Lsn, Lsn),
        away: &[ServiceAddr],
        description: Option<&Description>,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            if let Some(description) = description {
                description::made_with(transaction, row.timeline, description)?;
            }
            wal_debt::replace(transaction, (row.tenant, row.timeline), WalDuty::Create, away)?;
            transaction.execute(
                "UPDATE timelines SET branch_lsn = ?2, prev_lsn = ?3 WHERE id = ?1",
                params![row.timeline.to_string(), branch_lsn.to_string(), prev_lsn.to_string()],
            )?;
            transaction
                .execute("UPDATE branches SET state = 'ready' WHERE id = ?1", params![row.id.to_string()])
                .map(|_| ())
        })
    }

    /// Marks a branch for deletion for good, unless branches were made from it: then their names, those of deleted ones included.
    pub fn begin_delete_branch(&self, id: BranchId) -> Result<Result<(), Vec<String>>, StoreError> {
        self.write(|transaction| {
            let mut statement = transaction
                .prepare("SELECT coalesce(deleted_name, name) FROM branches WHERE parent_id = ?1 ORDER BY 1")?;
            let children: Vec<String> =
                statement.query_map(params![id.to_string()], |row| row.get(0))?.collect::<Result<_, _>>()?;
            if children.is_empty() {
                transaction.execute("UPDATE branches SET state = 'deleting' WHERE id = ?1", params![id.to_string()])?;
                return Ok(Ok(()));
            }
            Ok(Err(children))
        })
    }

    /// Forgets a branch with its timeline, compute and passwords. `away` are the safekeepers that may have its WAL yet. The timelines
    /// that it has left are to go next.
    pub fn remove_branch(&self, row: &BranchRow, away: &[ServiceAddr]) -> Result<(), StoreError> {
        self.write(|transaction| {
            wal_debt::replace(transaction, (row.tenant, row.timeline), WalDuty::Delete, away)?;
            let (id, timeline) = (row.id.to_string(), row.timeline.to_string());
            super::timeline::undo_switch(transaction, &id)?;
            transaction.execute("UPDATE past_timelines SET leaving = 1 WHERE branch_id = ?1", params![id])?;
            transaction.execute("DELETE FROM leases WHERE timeline_id = ?1", params![timeline])?;
            transaction.execute("DELETE FROM computes WHERE branch_id = ?1", params![id])?;
            transaction.execute("DELETE FROM branches WHERE id = ?1", params![id])?;
            transaction.execute("DELETE FROM timelines WHERE id = ?1", params![timeline]).map(|_| ())
        })
    }

    /// Gives `branch` the timeline of `other`, which gets the branch's and this name, for users to see, as a kept state of it. What a timeline is compared
    /// with, those that came before it, the checkpoints on them and the branches that hang on it go with it. Rows that a limit counts are counted anew.
    /// Both computes are forgotten: nothing of them may be left.
    pub fn exchange_timelines(
        &self,
        branch: &BranchRow,
        other: &BranchRow,
        name: &str,
        now_us: i64,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            // Both timelines have an owner again when the transaction ends.
            transaction.execute_batch("PRAGMA defer_foreign_keys = ON")?;
            let (id, other_id) = (branch.id.to_string(), other.id.to_string());
            let (timeline, other_timeline) = (branch.timeline.to_string(), other.timeline.to_string());
            let mut moved = Vec::new();
            for (parent, timeline) in [(&id, &timeline), (&other_id, &other_timeline)] {
                let mut children = transaction.prepare(
                    "SELECT id FROM branches WHERE parent_id = ?1 AND timeline_id IN (SELECT id FROM timelines WHERE ancestor_id = ?2
                        OR ancestor_id IN (SELECT timeline_id FROM past_timelines WHERE branch_id = ?1))",
                )?;
                let children = children.query_map(params![parent, timeline], |row| row.get(0))?;
                moved.push(children.collect::<Result<Vec<String>, _>>()?);
            }
            for (children, parent) in moved.iter().zip([&other_id, &id]) {
                for child in children {
                    transaction.execute("UPDATE branches SET parent_id = ?1 WHERE id = ?2", params![parent, child])?;
                }
            }
            let base = |id: &str| {
                transaction.query_row(
                    "SELECT base_timeline_id, base_lsn FROM branches WHERE id = ?1",
                    params![id],
                    |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<String>>(1)?)),
                )
            };
            let (own_base, other_base) = (base(&id)?, base(&other_id)?);
            transaction.execute("UPDATE branches SET timeline_id = 'exchanged' WHERE id = ?1", params![id])?;
            transaction.execute(
                "UPDATE branches SET timeline_id = ?2, name = ?3, hidden = 0, since_us = ?4, base_timeline_id = ?5, base_lsn = ?6,
                    kept_of = ?7 WHERE id = ?1",
                params![other_id, timeline, name, branch.since_us, own_base.0, own_base.1, id],
            )?;
            transaction.execute(
                "UPDATE branches SET timeline_id = ?2, rows_changed = 0, rows_counted_to = NULL, since_us = ?3,
                    base_timeline_id = ?4, base_lsn = ?5 WHERE id = ?1",
                params![id, other_timeline, now_us, other_base.0, other_base.1],
            )?;
            transaction.execute(
                "UPDATE past_timelines SET branch_id = CASE branch_id WHEN ?1 THEN ?2 ELSE ?1 END WHERE branch_id IN (?1, ?2)",
                params![id, other_id],
            )?;
            super::checkpoint::exchange(transaction, &id, &other_id)?;
            transaction.execute("DELETE FROM computes WHERE branch_id IN (?1, ?2)", params![id, other_id])?;
            // What roles there are, and with which passwords, is another timeline's now: taken for changes made on the branch,
            // production's newer passwords would be accepted there.
            transaction.execute("DELETE FROM roles WHERE branch_id IN (?1, ?2)", params![id, other_id])?;
            transaction
                .execute("UPDATE branches SET roles_known = 0 WHERE id IN (?1, ?2)", params![id, other_id])
                .map(|_| ())
        })
    }

    /// Changes settings; what is `None` stays.
    pub fn update_branch(
        &self,
        id: BranchId,
        idle_timeout_s: Option<u64>,
        expires_us: Option<Option<i64>>,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            if let Some(idle_timeout_s) = idle_timeout_s {
                transaction.execute(
                    "UPDATE branches SET idle_timeout_s = ?2 WHERE id = ?1",
                    params![id.to_string(), idle_timeout_s],
                )?;
            }
            if let Some(expires_us) = expires_us {
                transaction.execute(
                    "UPDATE branches SET expires_us = ?2 WHERE id = ?1",
                    params![id.to_string(), expires_us],
                )?;
            }
            Ok(())
        })
    }

    /// Sets the limits. Rows are counted from the next start on where they were not limited before.
    pub fn set_policy(&self, branch: &BranchRow, policy: &BranchPolicy) -> Result<(), StoreError> {
        self.write(|transaction| {
            let id = branch.id.to_string();
            transaction.execute("UPDATE branches SET policy = ?2 WHERE id = ?1", params![id, policy_text(policy)])?;
            if branch.policy.max_rows_changed.is_none() {
                transaction.execute(
                    "UPDATE branches SET rows_changed = 0, rows_counted_to = NULL WHERE id = ?1",
                    params![id],
                )?;
            }
            Ok(())
        })
    }

    /// Keeps the count of rows.
    pub fn put_usage(&self, branch: BranchId, usage: Usage) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE branches SET rows_changed = ?2, rows_counted_to = ?3 WHERE id = ?1",
                    params![branch.to_string(), usage.rows_changed, usage.counted_to.to_string()],
                )
                .map(|_| ())
        })
    }

    /// A role's password on a branch.
    pub fn credential(&self, branch: BranchId, role: &str) -> Result<Option<CredentialRow>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT {CREDENTIAL_COLUMNS} FROM credentials WHERE branch_id = ?1 AND role = ?2"
                ))?
                .query_row(params![branch.to_string(), role], CredentialRow::read)
                .optional()
        })
    }

    /// Sets a role's password on a branch. False: there is no such branch any more.
    pub fn put_credential(&self, branch: BranchId, credential: &CredentialRow) -> Result<bool, StoreError> {
        self.write(|transaction| {
            let query = "SELECT EXISTS (SELECT 1 FROM branches WHERE id = ?1)";
            let is_there = transaction.query_row(query, params![branch.to_string()], |row| row.get(0))?;
            if is_there {
                put_credential(transaction, branch, credential)?;
            }
            Ok(is_there)
        })
    }
}
