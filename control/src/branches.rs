//! Branches: making, waking, deleting.
//!
//! Making one: a row in state `creating` (with its timeline id and password), the timeline on the page server and on the
//! safekeepers, then `ready`. Failing in the middle, or found half-made at start, it is undone: the row becomes `deleting`
//! and is deleted as any other. Deleting is finished at the next start, or by the housekeeper, however often it fails.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use ardent_api::addr::ServiceAddr;
use ardent_api::compute::Usage;
use ardent_api::control::{
    ApiErrorCode, BranchInfo, BranchName, BranchState, ComputeState, CreateBranchReply, CreateBranchRequest,
    DeleteReply, ErrorInfo, PasswordRequest, SCHEMA_VERSION, UnnamedFilesReply, UpdateBranchRequest, UrlReply,
    WakeReply,
};
use ardent_api::page_service::{ManageReply, ManageRequest};
use ardent_api::policy::BranchPolicy;
use ardent_types::{BranchId, Lsn, TimelineId};

use crate::compute::end_process;
use crate::deps::{ConnectorSpec, StorageErrorKind, WalBranch};
use crate::point::{Point, PointSpec, unexpected_reply};
use crate::service::Control;
use crate::store::{BranchRow, InsertBranch, iso8601, now_us};

/// Idle time of branches that are made without one.
const IDLE_TIMEOUT_DEFAULT_S: u64 = 300;
/// Longest idle time and lifetime: 10 years.
const SECONDS_MAX: u64 = 10 * 366 * 86_400;

/// What came of a create, before it is shown.
struct Made {
    branch: BranchRow,
    created: bool,
    waited: Duration,
}

impl Control {
    /// Makes a branch, or answers with the one that has the name already. Goes on when the caller goes away.
    pub async fn create_branch(self: &Arc<Self>, request: CreateBranchRequest) -> Result<CreateBranchReply, ErrorInfo> {
        let began = Instant::now();
        let name: BranchName = request.name.parse()?;
        let point = request.at.as_deref().map_or(Ok(PointSpec::Now), str::parse)?;
        check_seconds("ttl_s", request.ttl_s)?;
        check_seconds("idle_timeout_s", request.idle_timeout_s)?;
        check_seconds("password_expires_s", request.password_expires_s)?;
        let no_wait = request.no_wait;
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let control = self.clone();
        let task = self.tasks.spawn(async move {
            let lock = control.name_lock(name.as_str());
            let _guard = lock.lock().await;
            let parent = control.parent_of(&request)?;
            let connector = if parent.is_root() { Some(control.connector_spec(&parent.connector)?) } else { None };
            // Side by side: the row has to reach the disk, and production is asked where it is.
            let resolving = control.resolve(&parent, connector, point);
            tokio::pin!(resolving);
            let mut inserting = tokio::task::spawn_blocking({
                let (control, parent) = (control.clone(), parent.clone());
                move || control.insert_or_find(&name, &parent, &request)
            });
            let mut resolved = None;
            let inserted = loop {
                tokio::select! {
                    biased;
                    inserted = &mut inserting => break inserted,
                    point = &mut resolving, if resolved.is_none() => resolved = Some(point),
                }
            };
            let (branch, created) = inserted.map_err(|_| shutting_down())??;
            // Nobody listens unless the caller asked not to wait.
            let _ = begun.send((branch.clone(), created));
            if !created {
                return Ok(Made { branch, created, waited: Duration::ZERO });
            }
            let resolved = match resolved {
                Some(resolved) => resolved,
                None => resolving.await,
            };
            let made = match resolved {
                Ok(point) => control.make_in_storage(&branch, parent.timeline, point).await.map(|()| point.waited),
                Err(error) => Err(error),
            };
            match made {
                Ok(waited) => Ok(Made { branch, created, waited }),
                Err(error) => {
                    control.undo(&branch).await;
                    Err(error)
                }
            }
        });
        let made = if no_wait && let Ok((branch, created)) = has_begun.await {
            Made { branch, created, waited: Duration::ZERO }
        } else {
            task.await.map_err(|_| shutting_down())??
        };
        let row = self.context.store.branch_by_id(made.branch.id)?.unwrap_or(made.branch);
        let mut branch = self.branch_info(&row)?;
        // One that was set by SQL is not known here.
        if let Some(url) = self.context.url_with_password(&row, &row.role)? {
            branch.url = url;
        }
        Ok(CreateBranchReply {
            branch,
            created: made.created,
            server_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            waited_us: u64::try_from(made.waited.as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// The branch that a new one starts from.
    fn parent_of(&self, request: &CreateBranchRequest) -> Result<BranchRow, ErrorInfo> {
        if let Some(from) = &request.from {
            let parent = self.find_branch(from)?;
            return match parent.state {
                BranchState::Ready => Ok(parent),
                BranchState::Creating => {
                    Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("branch {from} is still being made"))
                        .with_hint("try again in a moment"))
                }
                BranchState::Deleting => Err(not_found(from)),
            };
        }
        let roots: Vec<BranchRow> =
            self.context.store.branches()?.into_iter().filter(|row| row.is_root() && !row.hidden).collect();
        match roots.as_slice() {
            [root] => Ok(root.clone()),
            [] => Err(ErrorInfo::new(
                ApiErrorCode::NotFound,
                "there is nothing to branch from: no database is connected",
            )
            .with_hint(
                "connect one: ardent connector create postgresql 'postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE'",
            )),
            several => {
                let names: Vec<&str> = several.iter().map(|row| row.name.as_str()).collect();
                Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, "there is more than one connector to branch from")
                    .with_hint(format!("say which with --from: {}", names.join(", "))))
            }
        }
    }

    /// The new branch's row, or the one that has the name.
    fn insert_or_find(
        &self,
        name: &BranchName,
        parent: &BranchRow,
        request: &CreateBranchRequest,
    ) -> Result<(BranchRow, bool), ErrorInfo> {
        let row = BranchRow {
            id: BranchId::generate(),
            name: name.as_str().to_owned(),
            state: BranchState::Creating,
            connector: parent.connector.clone(),
            parent: Some(parent.id),
            tenant: parent.tenant,
            timeline: TimelineId::generate(),
            branch_lsn: None,
            hidden: false,
            policy: request.policy.clone().normalized(),
            usage: Usage::default(),
            roles_known: false,
            role: request.role.clone().unwrap_or_else(|| parent.role.clone()),
            database: parent.database.clone(),
            idle_timeout_s: request.idle_timeout_s.unwrap_or(IDLE_TIMEOUT_DEFAULT_S),
            expires_us: request.ttl_s.map(expiry),
            created_us: now_us(),
        };
        let mut credential = self.context.new_credential(&row, &row.role)?;
        credential.expires_us = request.password_expires_s.filter(|seconds| *seconds > 0).map(expiry);
        match self.context.store.insert_branch(&row, &credential)? {
            InsertBranch::Inserted => Ok((row, true)),
            InsertBranch::ParentGone => Err(not_found(&parent.name)),
            InsertBranch::Exists(existing) => {
                self.check_same(&existing, parent, request)?;
                Ok((*existing, false))
            }
        }
    }

    /// Whether `existing` is what the request would make.
    fn check_same(
        &self,
        existing: &BranchRow,
        parent: &BranchRow,
        request: &CreateBranchRequest,
    ) -> Result<(), ErrorInfo> {
        let name = &existing.name;
        if existing.state == BranchState::Deleting {
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("branch {name} is being deleted"))
                .with_hint("try again in a moment, or take another name"));
        }
        if existing.is_root() {
            return Err(ErrorInfo::new(
                ApiErrorCode::AlreadyExists,
                format!("{name} is the name of a connector's root branch"),
            )
            .with_hint("take another name"));
        }
        if request.from.is_some() && existing.parent != Some(parent.id) {
            return Err(ErrorInfo::new(
                ApiErrorCode::AlreadyExists,
                format!("branch {name} exists already, and was not made from {}", parent.name),
            )
            .with_hint(format!("take another name, or delete it: ardent branch delete {name}")));
        }
        Ok(())
    }

    /// Where on `parent` the branch is to begin. `connector` is its connector if it is a root.
    async fn resolve(
        &self,
        parent: &BranchRow,
        connector: Option<ConnectorSpec>,
        point: PointSpec,
    ) -> Result<Point, ErrorInfo> {
        let follows_production = connector.is_some() && point == PointSpec::Now;
        tokio::select! {
            biased;
            point = self.context.resolve_point(parent, connector, point) => point,
            why = self.given_up(&parent.connector), if follows_production => {
                let message = format!("production ({}) is not followed any more: {why}", parent.connector);
                Err(self.context.production_unavailable(parent, message).await)
            }
        }
    }

    /// Makes the branch on the page server and on the safekeepers, side by side: each is a chain of writes that have to reach the disk
    /// one after another.
    async fn make_in_storage(&self, branch: &BranchRow, ancestor: TimelineId, point: Point) -> Result<(), ErrorInfo> {
        let (tenant, timeline) = (branch.tenant, branch.timeline);
        let request = ManageRequest::CreateBranch { timeline, ancestor, at: Some(point.lsn) };
        let wal_from = |start_lsn, prev_lsn| WalBranch { tenant, timeline, ancestor, start_lsn, prev_lsn };
        let lock = self.context.timeline_locks.of(timeline);
        let _guard = lock.lock().await;
        let (made, made_for_wal) = tokio::join!(
            self.context.page_service.manage(tenant, request),
            self.context.wal_service.create_branch(wal_from(point.lsn, point.prev_lsn)),
        );
        let (start_lsn, prev_lsn) = match made? {
            ManageReply::Branch { lsn, prev_lsn } => (lsn, prev_lsn),
            other => return Err(unexpected_reply("the making of a branch", &other).into()),
        };
        let away = if (start_lsn, prev_lsn) == (point.lsn, point.prev_lsn) {
            made_for_wal?
        } else {
            // The page server decides where a branch begins. What began elsewhere must be gone from all before it is made anew: one
            // that kept it would never take the other.
            if let Some(away) = self.context.wal_service.delete_timeline(tenant, timeline).await?.first() {
                let message = format!("the safekeeper at {away} does not answer");
                return Err(ErrorInfo::new(ApiErrorCode::StorageUnavailable, message)
                    .with_hint("try again; ardent status shows the services"));
            }
            self.context.wal_service.create_branch(wal_from(start_lsn, prev_lsn)).await?
        };
        self.context.store.branch_ready(branch, start_lsn, prev_lsn, &away)?;
        info!(branch = %branch.name, %start_lsn, "branch is made");
        Ok(())
    }

    /// Takes back a branch that could not be made.
    async fn undo(&self, branch: &BranchRow) {
        let undone = async {
            // A branch that was never ready has no children.
            let _ = self.context.store.begin_delete_branch(branch.id)?;
            self.finish_delete(branch).await
        };
        if let Err(error) = undone.await {
            warn!(branch = %branch.name, %error, "a branch that could not be made is not undone yet; it will be tried again");
        }
    }

    /// A branch for the server's own use, with a compute that refuses writes: it is not listed, and gone after a restart.
    /// To be deleted by [`Self::delete_hidden`].
    pub async fn create_hidden(&self, parent: &BranchRow, at: Lsn) -> Result<BranchRow, ErrorInfo> {
        self.create_hidden_with(parent, at, BranchPolicy { read_only: true, ..BranchPolicy::default() }).await
    }

    /// The same with a compute that does what `policy` says.
    pub(crate) async fn create_hidden_with(
        &self,
        parent: &BranchRow,
        at: Lsn,
        policy: BranchPolicy,
    ) -> Result<BranchRow, ErrorInfo> {
        let id = BranchId::generate();
        let row = BranchRow {
            id,
            // A name that no user can give: a DNS label has no dot.
            name: format!("hidden.{id}"),
            state: BranchState::Creating,
            parent: Some(parent.id),
            timeline: TimelineId::generate(),
            branch_lsn: None,
            hidden: true,
            policy,
            usage: Usage::default(),
            roles_known: false,
            idle_timeout_s: IDLE_TIMEOUT_DEFAULT_S,
            expires_us: None,
            created_us: now_us(),
            ..parent.clone()
        };
        let credential = self.context.new_credential(&row, &row.role)?;
        match self.context.store.insert_branch(&row, &credential)? {
            InsertBranch::Inserted => {}
            InsertBranch::ParentGone | InsertBranch::Exists(_) => return Err(not_found(&parent.name)),
        }
        let made = match self.context.point_at(parent, Some(at)).await {
            Ok(point) => self.make_in_storage(&row, parent.timeline, point).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = made {
            self.undo(&row).await;
            return Err(error);
        }
        Ok(self.context.store.branch_by_id(id)?.unwrap_or(row))
    }

    /// Deletes what [`Self::create_hidden`] made.
    pub async fn delete_hidden(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        self.begin_delete(branch)?;
        self.finish_delete(branch).await
    }

    /// A branch as the API shows it.
    pub(crate) fn branch_info(&self, row: &BranchRow) -> Result<BranchInfo, ErrorInfo> {
        let parent = match row.parent {
            Some(id) => self.context.store.branch_by_id(id)?.map(|parent| parent.name),
            None => None,
        };
        let compute = if row.is_root() { ComputeState::None } else { self.pool.state(row.id) };
        Ok(BranchInfo {
            schema_version: SCHEMA_VERSION,
            id: row.id,
            name: row.name.clone(),
            state: row.state,
            connector: row.connector.clone(),
            is_root: row.is_root(),
            parent,
            branch_lsn: row.branch_lsn,
            tenant_id: row.tenant,
            timeline_id: row.timeline,
            created_at: iso8601(row.created_us),
            expires_at: row.expires_us.map(iso8601),
            compute,
            compute_problem: self.pool.problem(row.id),
            idle_timeout_s: row.idle_timeout_s,
            policy: row.policy.clone(),
            rows_changed: row.policy.max_rows_changed.map(|_| row.usage.rows_changed),
            role: row.role.clone(),
            database: row.database.clone(),
            url: self.context.url(row),
            children: self.context.store.children(row.id)?.into_iter().filter(|name| !name.contains('.')).collect(),
        })
    }

    /// All branches that users see.
    pub fn list_branches(&self) -> Result<Vec<BranchInfo>, ErrorInfo> {
        let rows = self.context.store.branches()?;
        rows.iter().filter(|row| !row.hidden).map(|row| self.branch_info(row)).collect()
    }

    /// The branch with this name, whatever its state.
    pub fn find_branch(&self, name: &str) -> Result<BranchRow, ErrorInfo> {
        let found = self.context.store.branch(name)?.filter(|row| !row.hidden);
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

    /// The branch's connection string with the password of `role`, which gets one if it has none.
    pub fn branch_url(&self, name: &str, role: Option<&str>) -> Result<UrlReply, ErrorInfo> {
        let branch = self.find_branch(name)?;
        let role = role.unwrap_or(&branch.role).to_owned();
        let url = self.context.url_with_password(&branch, &role)?.ok_or_else(|| {
            let message = format!("the password of role {role} was set on branch {name} by SQL and is not known here");
            ErrorInfo::new(ApiErrorCode::Conflict, message)
                .with_hint(format!("use it, or make a new one: ardent branch password {name} --role {role}"))
        })?;
        self.url_reply(branch, role, url)
    }

    /// A new password for a role; the old one is good no longer. Sessions that are open go on.
    pub fn new_password(&self, name: &str, request: &PasswordRequest) -> Result<UrlReply, ErrorInfo> {
        check_seconds("expires_s", request.expires_s)?;
        let branch = self.find_branch(name)?;
        if branch.is_root() {
            return Err(root_branch(&branch));
        }
        let role = request.role.clone().unwrap_or_else(|| branch.role.clone());
        let mut credential = self.context.new_credential(&branch, &role)?;
        credential.expires_us = request.expires_s.filter(|seconds| *seconds > 0).map(expiry);
        self.context.store.put_credential(branch.id, &credential)?;
        let url = self.context.url_with_password(&branch, &role)?.unwrap_or_default();
        self.url_reply(branch, role, url)
    }

    fn url_reply(&self, branch: BranchRow, role: String, url: String) -> Result<UrlReply, ErrorInfo> {
        Ok(UrlReply {
            schema_version: SCHEMA_VERSION,
            url,
            host_address: self.config.proxy_address.clone(),
            ca_file: self.config.ca_file.display().to_string(),
            name: branch.name,
            role,
        })
    }

    /// Changes a branch's settings.
    ///
    /// New limits hold for every session: a running compute is stopped, and the next connection starts it with them.
    pub async fn update_branch(&self, name: &str, request: &UpdateBranchRequest) -> Result<BranchInfo, ErrorInfo> {
        check_seconds("idle_timeout_s", request.idle_timeout_s)?;
        check_seconds("ttl_s", request.ttl_s)?;
        let branch = self.find_branch(name)?;
        if branch.is_root() {
            return Err(root_branch(&branch));
        }
        let expires = request.ttl_s.map(|ttl_s| (ttl_s > 0).then(|| expiry(ttl_s)));
        self.context.store.update_branch(branch.id, request.idle_timeout_s, expires)?;
        let policy = changed_policy(&branch.policy, request);
        if policy != branch.policy {
            self.context.store.set_policy(&branch, &policy)?;
            self.pool.suspend(branch.id).await?;
        }
        self.show_branch(name)
    }

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

    /// Deletes a branch. Goes on when the caller goes away.
    pub async fn delete_branch(self: &Arc<Self>, name: &str) -> Result<DeleteReply, ErrorInfo> {
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
            control.begin_delete(&branch)?;
            control.finish_delete(&branch).await?;
            Ok(DeleteReply { schema_version: SCHEMA_VERSION, name, warning: None })
        });
        task.await.map_err(|_| shutting_down())?
    }

    fn begin_delete(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        match self.context.store.begin_delete_branch(branch.id)? {
            Ok(()) => Ok(()),
            Err(children) => Err(ErrorInfo::new(
                ApiErrorCode::Conflict,
                format!("branch {} has branches made from it: {}", branch.name, children.join(", ")),
            )
            .with_hint(format!("delete them first: ardent branch delete {}", children.join(" ")))),
        }
    }

    /// Deletes a branch that is marked for it, from wherever an earlier attempt stopped.
    pub(crate) async fn finish_delete(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        if branch.hidden {
            self.pool.kill(branch.id).await?
        } else {
            self.pool.suspend(branch.id).await?
        };
        self.remove_compute_folder(branch).await?;
        let lock = self.context.timeline_locks.of(branch.timeline);
        let _guard = lock.lock().await;
        let away = self.delete_in_storage(branch.tenant, branch.timeline).await?;
        self.context.store.remove_branch(branch, &away)?;
        self.pool.forget_problem(branch.id);
        info!(branch = %branch.name, "branch is deleted");
        Ok(())
    }

    /// Throws away what a compute at rest keeps of the branch: the next start is a cold one.
    pub(crate) async fn discard_compute(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        self.remove_compute_folder(branch).await?;
        Ok(self.context.store.forget_compute(branch.id)?)
    }

    async fn remove_compute_folder(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        if let Some(compute) = self.context.store.compute(branch.id)? {
            for process in [&compute.agent, &compute.postmaster].into_iter().flatten() {
                if !end_process(process, Duration::ZERO).await {
                    let message = format!("process {} of branch {} cannot be ended", process.pid, branch.name);
                    return Err(ErrorInfo::new(ApiErrorCode::Internal, message));
                }
            }
            let folder = self.context.pool.computes_dir.join(compute.id.to_string());
            let spec = self.context.pool.computes_dir.join(format!("{}.spec", compute.id));
            let removed = tokio::task::spawn_blocking(move || {
                gone(fs::remove_dir_all(folder))?;
                gone(fs::remove_file(spec))
            });
            let removed = removed.await.map_err(|_| shutting_down())?;
            removed.map_err(|error| {
                ErrorInfo::new(
                    ApiErrorCode::Internal,
                    format!("the folder of branch {} cannot be removed: {error}", branch.name),
                )
            })?;
        }
        Ok(())
    }

    /// Deletes a timeline on page server and safekeepers; fine if it is not there. Gives the safekeepers that are to be told yet.
    pub(crate) async fn delete_in_storage(
        &self,
        tenant: ardent_types::TenantId,
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
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn expiry(ttl_s: u64) -> i64 {
    // Bounded by `check_seconds`.
    now_us().saturating_add(i64::try_from(ttl_s).unwrap_or(i64::MAX).saturating_mul(1_000_000))
}

fn changed_policy(policy: &BranchPolicy, request: &UpdateBranchRequest) -> BranchPolicy {
    let policy = BranchPolicy {
        read_only: request.read_only.unwrap_or(policy.read_only),
        statement_timeout_ms: request.statement_timeout_ms.or(policy.statement_timeout_ms),
        max_rows_changed: request.max_rows_changed.or(policy.max_rows_changed),
        max_bytes_written: request.max_bytes_written.or(policy.max_bytes_written),
    };
    policy.normalized()
}

fn check_seconds(name: &str, value: Option<u64>) -> Result<(), ErrorInfo> {
    match value {
        Some(seconds) if seconds > SECONDS_MAX => Err(ErrorInfo::new(
            ApiErrorCode::InvalidArguments,
            format!("{name} is {seconds} s, and at most {SECONDS_MAX} s (ten years) can be kept"),
        )),
        _ => Ok(()),
    }
}

pub(crate) fn not_found(name: &str) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::NotFound, format!("there is no branch {name}"))
        .with_hint("ardent branch list shows which there are")
}

fn root_branch(branch: &BranchRow) -> ErrorInfo {
    let name = &branch.name;
    ErrorInfo::new(ApiErrorCode::RootBranch, format!("{name} follows production: it is read-only and runs no Postgres"))
        .with_hint(format!("make a branch of it: ardent branch create NAME --from {name}"))
}

pub(crate) fn shutting_down() -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::Internal, "the server is shutting down").with_hint("start it again with ardent up")
}
