//! Computes: where each branch's Postgres runs, and the processes to end after a crash.

use rusqlite::{OptionalExtension as _, Row, params};

use ardent_types::{BranchId, ComputeId, Lsn, TenantId, TimelineId};

use crate::compute::ProcessIdentity;

use super::{Store, StoreError, parsed};

/// A branch's compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComputeRow {
    /// Id, also the name of its folder.
    pub id: ComputeId,
    /// The branch.
    pub branch: BranchId,
    /// Its own user id, when the server runs as root.
    pub uid: Option<u32>,
    /// How many times it was started.
    pub incarnation: u64,
    /// The agent, while it may run.
    pub agent: Option<ProcessIdentity>,
    /// The postmaster, while it may run.
    pub postmaster: Option<ProcessIdentity>,
}

/// A pinned LSN that is renewed for as long as the compute's folder may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// Name, unique.
    pub name: String,
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// What is pinned.
    pub lsn: Lsn,
}

const COLUMNS: &str = "id, branch_id, uid, incarnation, agent_pid, agent_started, postmaster_pid, postmaster_started";

impl ComputeRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let process = |pid: &str, started: &str| {
            let (pid, started): (Option<u32>, Option<String>) = (row.get(pid)?, row.get(started)?);
            Ok::<_, rusqlite::Error>(pid.zip(started).map(|(pid, started)| ProcessIdentity { pid, started }))
        };
        Ok(ComputeRow {
            id: parsed(row, "id")?,
            branch: parsed(row, "branch_id")?,
            uid: row.get("uid")?,
            incarnation: row.get("incarnation")?,
            agent: process("agent_pid", "agent_started")?,
            postmaster: process("postmaster_pid", "postmaster_started")?,
        })
    }
}

impl Store {
    /// The branch's compute, made if there is none, with its incarnation counted up. `first_uid` asks for a user id of
    /// its own: the smallest free one from there.
    pub fn begin_compute(&self, branch: BranchId, first_uid: Option<u32>) -> Result<ComputeRow, StoreError> {
        self.write(|transaction| {
            let id = branch.to_string();
            let exists: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM computes WHERE branch_id = ?1)",
                params![id],
                |row| row.get(0),
            )?;
            if !exists {
                let uid: Option<u32> = match first_uid {
                    None => None,
                    Some(first) => Some(transaction.query_row(
                        "SELECT min(uid) FROM (SELECT ?1 AS uid UNION SELECT uid + 1 FROM computes WHERE uid >= ?1)
                         WHERE uid NOT IN (SELECT uid FROM computes WHERE uid IS NOT NULL)",
                        params![first],
                        |row| row.get(0),
                    )?),
                };
                transaction.execute(
                    "INSERT INTO computes (id, branch_id, uid, incarnation) VALUES (?1, ?2, ?3, 0)",
                    params![ComputeId::generate().to_string(), id, uid],
                )?;
            }
            transaction
                .execute("UPDATE computes SET incarnation = incarnation + 1 WHERE branch_id = ?1", params![id])?;
            transaction.query_row(
                &format!("SELECT {COLUMNS} FROM computes WHERE branch_id = ?1"),
                params![id],
                ComputeRow::read,
            )
        })
    }

    /// The branch's compute, if it was ever started.
    pub fn compute(&self, branch: BranchId) -> Result<Option<ComputeRow>, StoreError> {
        self.read(|connection| {
            connection
                .query_row(
                    &format!("SELECT {COLUMNS} FROM computes WHERE branch_id = ?1"),
                    params![branch.to_string()],
                    ComputeRow::read,
                )
                .optional()
        })
    }

    /// All computes.
    pub fn computes(&self) -> Result<Vec<ComputeRow>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM computes"))?;
            statement.query_map([], ComputeRow::read)?.collect()
        })
    }

    /// Records the processes that a crash of ours would leave behind. A crash of the host leaves none.
    pub fn set_processes(
        &self,
        id: ComputeId,
        agent: Option<&ProcessIdentity>,
        postmaster: Option<&ProcessIdentity>,
    ) -> Result<(), StoreError> {
        self.note(|transaction| {
            transaction
                .execute(
                    "UPDATE computes SET agent_pid = ?2, agent_started = ?3, postmaster_pid = ?4, postmaster_started = ?5
                     WHERE id = ?1",
                    params![
                        id.to_string(),
                        agent.map(|process| process.pid),
                        agent.map(|process| &process.started),
                        postmaster.map(|process| process.pid),
                        postmaster.map(|process| &process.started)
                    ],
                )
                .map(|_| ())
        })
    }

    /// Records that the compute reads at `lsn`, in place of what it held before. After a crash of the host its folder is not used
    /// again, and nothing has to be held.
    pub fn put_lease(&self, compute: ComputeId, timeline: TimelineId, lsn: Lsn) -> Result<String, StoreError> {
        let name = format!("compute-{compute}");
        self.note(|transaction| {
            transaction.execute(
                "INSERT INTO leases (name, compute_id, timeline_id, lsn) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET timeline_id = ?3, lsn = ?4",
                params![name, compute.to_string(), timeline.to_string(), lsn.to_string()],
            )
        })?;
        Ok(name)
    }

    /// Forgets what the compute held: its folder will not be used again.
    pub fn remove_lease(&self, compute: ComputeId) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM leases WHERE compute_id = ?1", params![compute.to_string()]).map(|_| ())
        })
    }

    /// All leases, to be renewed.
    pub fn leases(&self) -> Result<Vec<LeaseRow>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare(
                "SELECT l.name, t.tenant_id, l.timeline_id, l.lsn FROM leases l JOIN timelines t ON t.id = l.timeline_id",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(LeaseRow {
                    name: row.get("name")?,
                    tenant: parsed(row, "tenant_id")?,
                    timeline: parsed(row, "timeline_id")?,
                    lsn: parsed(row, "lsn")?,
                })
            })?;
            rows.collect()
        })
    }
}
