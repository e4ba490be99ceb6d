//! A branch's Postgres: waking it, and suspending it.

use std::time::Instant;

use ardent_api::control::{ApiErrorCode, BranchInfo, BranchState, ErrorInfo, SCHEMA_VERSION, WakeReply};

use super::{not_found, root_branch};
use crate::service::Control;
use crate::store::{BranchRow, iso8601, now_us};

impl Control {
    /// The branch's running Postgres, started if need be.
    pub async fn wake(&self, name: &str) -> Result<WakeReply, ErrorInfo> {
        let began = Instant::now();
        let mut branch = self.find_branch(name)?;
        if branch.state == BranchState::Creating {
            // Whoever makes it holds this lock.
            let lock = self.name_lock(name);
            let limit = self.context.pool.wake_timeout;
            let waited = tokio::time::timeout(limit, lock.lock()).await;
            drop(
                waited
                    .map_err(|_| ErrorInfo::new(ApiErrorCode::Timeout, format!("branch {name} is still being made")))?,
            );
            branch = self.find_branch(name)?;
        }
        if let Some(expired) = branch.expires_us.filter(|at_us| *at_us <= now_us()) {
            let message = format!("branch {name} has expired at {}", iso8601(expired));
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint(format!(
                "it is there for the branches that were made from it; ardent branch set {name} --ttl 4h takes it up again"
            )));
        }
        self.wake_branch(&branch, began).await
    }

    /// The same for a row, hidden ones included.
    pub async fn wake_branch(&self, branch: &BranchRow, began: Instant) -> Result<WakeReply, ErrorInfo> {
        if branch.is_root() {
            return Err(root_branch(branch));
        }
        if branch.state != BranchState::Ready {
            return Err(not_found(&branch.name));
        }
        if !self.pool.has_slot(branch.id) {
            self.make_ancestors_readable(branch).await;
        }
        let (running, was_running) = self.pool.wake(branch).await?;
        Ok(WakeReply {
            schema_version: SCHEMA_VERSION,
            branch_id: branch.id,
            compute_id: running.id,
            incarnation: running.incarnation,
            socket_dir: running.socket_dir,
            port: running.port,
            warm: running.warm || was_running,
            was_running,
            missing_libraries: running.missing_libraries,
            waited_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Stops the branch's Postgres. The next connection starts it again.
    pub async fn suspend(&self, name: &str) -> Result<BranchInfo, ErrorInfo> {
        let branch = self.find_branch(name)?;
        if branch.is_root() {
            return Err(root_branch(&branch));
        }
        self.pool.suspend(branch.id).await?;
        self.branch_info(&branch)
    }
}
