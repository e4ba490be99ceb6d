//! What is said of branches: one by its name, all of them, and the files of one that no catalog names.

use ardent_api::control::{BranchInfo, BranchState, ComputeState, ErrorInfo, SCHEMA_VERSION, UnnamedFilesReply};
use ardent_api::page_service::{ManageReply, ManageRequest};

use super::not_found;
use crate::point::unexpected_reply;
use crate::service::Control;
use crate::store::{BranchRow, iso8601};

impl Control {
    /// A branch as the API shows it.
    pub(crate) fn branch_info(&self, row: &BranchRow) -> Result<BranchInfo, ErrorInfo> {
        let parent = match row.parent {
            Some(id) => self.context.store.branch_by_id(id)?.map(|parent| parent.known_name().to_owned()),
            None => None,
        };
        // What is not there yet, or not any more, has no Postgres and cannot be connected to.
        let is_made = row.state == BranchState::Ready;
        let has_none = row.is_root() || row.deleted.is_some() || !is_made;
        let compute = if has_none { ComputeState::None } else { self.pool.state(row.id) };
        let deleted_us = row.deleted.as_ref().map(|deleted| deleted.at_us);
        Ok(BranchInfo {
            schema_version: SCHEMA_VERSION,
            id: row.id,
            name: row.known_name().to_owned(),
            state: if row.deleted.is_some() { BranchState::Deleted } else { row.state },
            connector: row.connector.clone(),
            is_root: row.is_root(),
            parent,
            masked: self.masked_by(row)?,
            branch_lsn: row.branch_lsn,
            tenant_id: row.tenant,
            timeline_id: row.timeline,
            created_at: iso8601(row.created_us),
            expires_at: row.expires_us.map(iso8601),
            deleted_at: deleted_us.map(iso8601),
            kept_until: deleted_us.map(|at_us| iso8601(self.kept_until_us(at_us))),
            retention_s: row.retention_s,
            compute,
            compute_problem: self.pool.problem(row.id),
            missing_libraries: self.pool.missing_libraries(row.id),
            idle_timeout_s: row.idle_timeout_s,
            policy: row.policy.clone(),
            rows_changed: row.policy.max_rows_changed.map(|_| row.usage.rows_changed),
            role: row.role.clone(),
            database: row.database.clone(),
            url: if is_made { self.context.url(row) } else { String::new() },
            children: self.context.store.children(row.id)?.into_iter().filter(|name| !name.contains('.')).collect(),
        })
    }

    /// All branches that users see.
    pub fn list_branches(&self) -> Result<Vec<BranchInfo>, ErrorInfo> {
        let rows = self.context.store.branches()?;
        rows.iter().filter(|row| row.is_listed()).map(|row| self.branch_info(row)).collect()
    }

    /// Deleted branches that can be had back, by the names that they had.
    pub fn list_deleted(&self) -> Result<Vec<BranchInfo>, ErrorInfo> {
        let mut rows = self.context.store.branches()?;
        rows.retain(|row| row.deleted.is_some() && row.state == BranchState::Ready);
        rows.sort_by_key(|row| row.deleted.as_ref().map(|deleted| (deleted.name.clone(), deleted.at_us)));
        rows.iter().map(|row| self.branch_info(row)).collect()
    }

    /// The branch with this name, whatever its state.
    pub fn find_branch(&self, name: &str) -> Result<BranchRow, ErrorInfo> {
        let found = self.context.store.branch(name)?.filter(BranchRow::is_listed);
        found.ok_or_else(|| not_found(name))
    }

    /// One branch.
    pub fn show_branch(&self, name: &str) -> Result<BranchInfo, ErrorInfo> {
        self.branch_info(&self.find_branch(name)?)
    }

    /// Files of the branch that no catalog names, as far as WAL has been ingested.
    pub async fn unnamed_files(&self, name: &str) -> Result<UnnamedFilesReply, ErrorInfo> {
        let branch = self.find_branch(name)?;
        if branch.state != BranchState::Ready {
            return Err(not_found(name));
        }
        let request = ManageRequest::FindUnnamedFiles { timeline: branch.timeline };
        match self.context.page_service.manage(branch.tenant, request).await? {
            ManageReply::UnnamedFiles(files) => {
                Ok(UnnamedFilesReply { schema_version: SCHEMA_VERSION, name: branch.name, files })
            }
            other => Err(unexpected_reply("the search for unnamed files", &other).into()),
        }
    }
}
