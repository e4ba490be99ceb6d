//! Branches: making and changing. What is said of them is in `info.rs`, waking in `wake.rs`; what a new one starts from in
//! `../parent.rs`, deleting in [`crate::deletion`], resetting and restoring in [`crate::switch`].
//!
//! Making one: a row in state `creating` (with its timeline id and password), the timeline on the page server and on the
//! safekeepers, then `ready`. Failing in the middle, or found half-made at start, it is undone: the row becomes `deleting`
//! and is deleted for good as any other.

mod info;
mod wake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{
    ApiErrorCode, BranchInfo, BranchName, BranchState, CreateBranchReply, CreateBranchRequest, ErrorInfo,
    PasswordRequest, RenameRequest, SCHEMA_VERSION, UpdateBranchRequest, UrlReply,
};
use ardent_api::page_service::{ManageReply, ManageRequest};
use ardent_api::policy::BranchPolicy;
use ardent_types::{Lsn, TenantId, TimelineId};

use crate::deps::{ConnectorSpec, StorageError, StorageErrorKind, WalBranch};
use crate::point::{Point, PointSpec, unexpected_reply};
use crate::service::Control;
use crate::store::{BranchRow, Description, InsertBranch, now_us};

/// Idle time of branches that are made without one.
pub(crate) const IDLE_TIMEOUT_DEFAULT_S: u64 = 300;
/// Longest idle time and lifetime: 10 years.
const SECONDS_MAX: u64 = 10 * 366 * 86_400;

/// What came of a create, before it is shown.
struct Made {
    branch: BranchRow,
    created: bool,
    waited: Duration,
}

/// When a branch that could not be made is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undone {
    /// It is.
    Now,
    /// Once storage answers: the housekeeper tries it again.
    Later,
}

/// A timeline that storage has made.
pub(crate) struct MadeTimeline {
    /// Where it begins.
    pub start_lsn: Lsn,
    /// Start of the record that ends there.
    pub prev_lsn: Lsn,
    /// The safekeepers that have yet to be told.
    pub away: Vec<ServiceAddr>,
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
            // A time is of the timeline that the parent was on then, whatever becomes of the parent meanwhile.
            let is_time = matches!(point, PointSpec::Time(_));
            let (parent, point) = control.parent_at(&parent, point).await?;
            let ancestor = is_time.then_some(parent.timeline);
            let connector = if parent.is_root() { Some(control.connector_spec(&parent.connector)?) } else { None };
            // Side by side: the row has to reach the disk, and production is asked where it is.
            let resolving = control.resolve(&parent, connector, point);
            tokio::pin!(resolving);
            let mut inserting = tokio::task::spawn_blocking({
                let (control, parent) = (control.clone(), parent.clone());
                move || control.insert_or_find(&name, (&parent, ancestor), &request)
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
            // Which timeline the parent is on was settled with the row: it may have been reset since it was looked up.
            let settled = BranchRow { timeline: branch.ancestor.unwrap_or(parent.timeline), ..parent.clone() };
            let resolved = match resolved {
                Ok(_) if settled.timeline != parent.timeline => control.point_on(&settled, point).await,
                resolved => resolved,
            };
            let made = match resolved {
                Ok(point) => control.make_in_storage(&branch, &settled, point).await.map(|()| point.waited),
                Err(error) => Err(error),
            };
            match made {
                Ok(waited) => Ok(Made { branch, created, waited }),
                Err(error) => match control.undo(&branch).await {
                    Undone::Now => Err(error),
                    Undone::Later => Err(undone_later(&branch, error)),
                },
            }
        });
        let made = if no_wait && let Ok((branch, created)) = has_begun.await {
            Made { branch, created, waited: Duration::ZERO }
        } else {
            task.await.map_err(|_| shutting_down())??
        };
        let gone = || {
            let message =
                format!("branch {} is gone again: somebody has deleted it, or it could not be made", made.branch.name);
            ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint("create it again, or take another name")
        };
        let row = self.context.store.branch_by_id(made.branch.id)?.ok_or_else(gone)?;
        let mut branch = self.branch_info(&row)?;
        // One that was set by SQL is not known here.
        let url = self.context.url_with_password(&row, &row.role);
        let url = url.map_err(|error| if error.code == ApiErrorCode::NotFound { gone() } else { error })?;
        if let Some(url) = url {
            branch.url = url;
        }
        Ok(CreateBranchReply {
            branch,
            created: made.created,
            server_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            waited_us: u64::try_from(made.waited.as_micros()).unwrap_or(u64::MAX),
            warnings: self.collation_warnings(&row)?,
        })
    }

    /// The new branch's row, or the one that has the name. It hangs on `ancestor`; without one, on what its parent is on.
    fn insert_or_find(
        &self,
        name: &BranchName,
        (parent, ancestor): (&BranchRow, Option<TimelineId>),
        request: &CreateBranchRequest,
    ) -> Result<(BranchRow, bool), ErrorInfo> {
        let row = BranchRow {
            policy: request.policy.clone().normalized(),
            role: request.role.clone().unwrap_or_else(|| parent.role.clone()),
            idle_timeout_s: request.idle_timeout_s.unwrap_or(IDLE_TIMEOUT_DEFAULT_S),
            expires_us: request.ttl_s.map(expiry),
            ancestor,
            ..BranchRow::below(parent, name.as_str().to_owned())
        };
        let mut credential = self.context.new_credential(&row, &row.role)?;
        credential.expires_us = request.password_expires_s.filter(|seconds| *seconds > 0).map(expiry);
        match self.context.store.insert_branch(&row, &credential)? {
            InsertBranch::Inserted { ancestor } => Ok((BranchRow { ancestor: Some(ancestor), ..row }, true)),
            InsertBranch::ParentGone => Err(not_found(&parent.name)),
            InsertBranch::Withheld => {
                Err(self.withheld(&parent.connector, &format!("a branch of {} would not be masked", parent.name)))
            }
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
            let message = match existing.was_made() {
                true => format!("branch {name} is being deleted"),
                false => format!("branch {name} could not be made, and what was begun of it is not undone yet"),
            };
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, message)
                .with_hint("try again in a moment, or take another name"));
        }
        if existing.is_root() {
            return Err(ErrorInfo::new(
                ApiErrorCode::AlreadyExists,
                format!("{name} is the name of a connector's root branch"),
            )
            .with_hint("take another name"));
        }
        // Least of all may one pass for masked that is not. Where no parent is named, one of the same production is meant.
        let is_other = match request.from.is_some() || request.masked.is_some() {
            true => existing.parent != Some(parent.id),
            false => existing.connector != parent.connector,
        };
        if is_other {
            return Err(ErrorInfo::new(
                ApiErrorCode::AlreadyExists,
                format!("branch {name} exists already, and was not made from {}", parent.name),
            )
            .with_hint(format!("take another name, or delete it: ardent branch delete {name}")));
        }
        Ok(())
    }

    /// Where `point` is on `parent`.
    pub(crate) async fn point_on(&self, parent: &BranchRow, point: PointSpec) -> Result<Point, ErrorInfo> {
        let connector = if parent.is_root() { Some(self.connector_spec(&parent.connector)?) } else { None };
        self.resolve(parent, connector, point).await
    }

    /// The same. `connector` is its connector if it is a root.
    async fn resolve(
        &self,
        parent: &BranchRow,
        connector: Option<ConnectorSpec>,
        point: PointSpec,
    ) -> Result<Point, ErrorInfo> {
        // A root's last commit is asked of production.
        if connector.is_none() && point != PointSpec::Latest {
            self.complete_log(parent.tenant, parent.timeline).await?;
        }
        let follows_production = connector.is_some() && point == PointSpec::Now;
        let is_logical = connector.as_ref().is_some_and(|connector| connector.logical.is_some());
        let why = tokio::select! {
            biased;
            // What another cluster says of its position says nothing of this one's.
            why = self.given_up(&parent.connector), if follows_production => why,
            point = self.context.resolve_point(parent, connector, point) => match (point, self.following(&parent.connector)) {
                // One that does not run at this moment cannot say why; it was said when that began.
                (Err(error), (_, Some(why))) if is_logical && error.code == ApiErrorCode::ConnectorUnavailable => why,
                (point, _) => return point,
            },
        };
        let message = format!("production ({}) is not followed any more: {why}", parent.connector);
        Err(self.context.production_unavailable(parent, message).await)
    }

    async fn make_in_storage(&self, branch: &BranchRow, parent: &BranchRow, point: Point) -> Result<(), ErrorInfo> {
        let lock = self.context.timeline_locks.of(branch.timeline);
        let _guard = lock.lock().await;
        let description = self.context.store.description(branch.timeline)?;
        let made =
            self.make_timeline(branch.tenant, branch.timeline, parent.timeline, point, description.as_ref()).await;
        let MadeTimeline { start_lsn, prev_lsn, away } = match made {
            Ok(made) => made,
            Err(error) => return Err(self.context.with_range(parent, error).await),
        };
        self.context.store.branch_ready(branch, (start_lsn, prev_lsn), &away, description.as_ref())?;
        info!(branch = %branch.name, %start_lsn, "branch is made");
        Ok(())
    }

    /// Makes a timeline on the page server and on the safekeepers, side by side: each is a chain of writes that have to reach the
    /// disk one after another. The same again gives the same. To be called with the timeline's lock held until what it gives is
    /// recorded.
    pub(crate) async fn make_timeline(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        ancestor: TimelineId,
        point: Point,
        description: Option<&Description>,
    ) -> Result<MadeTimeline, StorageError> {
        let description = description.map(Description::to_json);
        let request = ManageRequest::CreateBranch { timeline, ancestor, at: Some(point.lsn), description };
        let wal_from = |start_lsn, prev_lsn| WalBranch { tenant, timeline, ancestor, start_lsn, prev_lsn };
        let (made, made_for_wal) = tokio::join!(
            self.context.page_service.manage(tenant, request),
            self.context.wal_service.create_branch(wal_from(point.lsn, point.prev_lsn)),
        );
        let (start_lsn, prev_lsn) = match made? {
            ManageReply::Branch { lsn, prev_lsn } => (lsn, prev_lsn),
            other => return Err(unexpected_reply("the making of a branch", &other)),
        };
        let away = if (start_lsn, prev_lsn) == (point.lsn, point.prev_lsn) {
            made_for_wal?
        } else {
            // The page server decides where a branch begins. What began elsewhere must be gone from all before it is made anew: one
            // that kept it would never take the other.
            if let Some(away) = self.context.wal_service.delete_timeline(tenant, timeline).await?.first() {
                let message = format!("the safekeeper at {away} does not answer");
                return Err(StorageError::new(StorageErrorKind::Unavailable, message));
            }
            self.context.wal_service.create_branch(wal_from(start_lsn, prev_lsn)).await?
        };
        Ok(MadeTimeline { start_lsn, prev_lsn, away })
    }

    /// Takes back a branch that could not be made: now, or, where storage does not answer, whenever it does.
    pub(crate) async fn undo(&self, branch: &BranchRow) -> Undone {
        let undone = async {
            // A branch that was never ready has no children.
            let _ = self.context.store.begin_delete_branch(branch.id)?;
            self.finish_delete(branch).await
        };
        match undone.await {
            Ok(()) => Undone::Now,
            Err(error) => {
                warn!(branch = %branch.name, %error, "a branch that could not be made is not undone yet; it will be tried again");
                Undone::Later
            }
        }
    }

    /// A branch for the server's own use, with a compute that refuses writes: it is not listed, and gone after a restart.
    /// It begins on `ancestor`, which `parent` is or was on. To be deleted by [`Self::delete_hidden`].
    pub async fn create_hidden(
        &self,
        parent: &BranchRow,
        ancestor: TimelineId,
        at: Lsn,
    ) -> Result<BranchRow, ErrorInfo> {
        let policy = BranchPolicy { read_only: true, ..BranchPolicy::default() };
        self.create_hidden_with(parent, ancestor, at, policy).await
    }

    /// The same with a compute that does what `policy` says.
    pub(crate) async fn create_hidden_with(
        &self,
        parent: &BranchRow,
        ancestor: TimelineId,
        at: Lsn,
        policy: BranchPolicy,
    ) -> Result<BranchRow, ErrorInfo> {
        let below = BranchRow::below(parent, String::new());
        let row = BranchRow {
            // A name that no user can give: a DNS label has no dot.
            name: format!("hidden.{}", below.id),
            ancestor: Some(ancestor),
            hidden: true,
            policy,
            idle_timeout_s: IDLE_TIMEOUT_DEFAULT_S,
            ..below
        };
        let credential = self.context.new_credential(&row, &row.role)?;
        match self.context.store.insert_branch(&row, &credential)? {
            InsertBranch::Inserted { .. } => {}
            // What no name reaches is not withheld.
            InsertBranch::ParentGone | InsertBranch::Exists(_) | InsertBranch::Withheld => {
                return Err(not_found(&parent.name));
            }
        }
        let parent = BranchRow { timeline: ancestor, ..parent.clone() };
        let made = match self.context.point_at(&parent, Some(at)).await {
            Ok(point) => self.make_in_storage(&row, &parent, point).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = made {
            self.undo(&row).await;
            return Err(error);
        }
        Ok(self.context.store.branch_by_id(row.id)?.unwrap_or(row))
    }

    /// Gives a branch another name, and with it another hostname. Open sessions go on.
    pub async fn rename_branch(&self, name: &str, request: &RenameRequest) -> Result<BranchInfo, ErrorInfo> {
        let new: BranchName = request.name.parse()?;
        // In one order, whoever renames what to what.
        let mut names = [name, new.as_str()];
        names.sort_unstable();
        let (first, second) = (self.name_lock(names[0]), self.name_lock(names[1]));
        let _first = first.lock().await;
        let _second = if names[0] == names[1] { None } else { Some(second.lock().await) };
        let branch = self.find_branch(name)?;
        if branch.is_root() {
            return Err(ErrorInfo::new(
                ApiErrorCode::RootBranch,
                format!("{name} is a connector's root branch and keeps the connector's name"),
            )
            .with_hint(
                "connect production again under another name: ardent connector create postgresql URL --name NAME",
            ));
        }
        if branch.state != BranchState::Ready {
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("branch {name} is just being made or deleted"))
                .with_hint("try again in a moment"));
        }
        if new.as_str() != name && !self.context.store.rename_branch(branch.id, new.as_str())? {
            return Err(name_taken(new.as_str()));
        }
        self.show_branch(new.as_str())
    }

    /// The branch's connection string with the password of `role`, which gets one if it has none.
    pub fn branch_url(&self, name: &str, role: Option<&str>) -> Result<UrlReply, ErrorInfo> {
        let branch = self.find_branch(name)?;
        if branch.state == BranchState::Deleting {
            return Err(not_found(name));
        }
        let role = role.unwrap_or(&branch.role).to_owned();
        let url = self.context.url_with_password(&branch, &role)?.ok_or_else(|| {
            let message = format!("the password of role {role} on branch {name} is not known here: it was set by SQL, or came back without its key");
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
        if !self.context.store.put_credential(branch.id, &credential)? {
            return Err(not_found(name));
        }
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
        check_seconds("retention_s", request.retention_s)?;
        let branch = self.find_branch(name)?;
        let nothing_else = UpdateBranchRequest { retention_s: request.retention_s, ..UpdateBranchRequest::default() };
        if branch.is_root() && *request != nothing_else {
            return Err(root_branch(&branch));
        }
        if let Some(seconds) = request.retention_s {
            let retention_s = Some(seconds).filter(|seconds| *seconds > 0);
            self.keep_history(branch.tenant, branch.timeline, retention_s).await?;
            for past in self.context.store.past_timelines(branch.id)? {
                self.keep_history(branch.tenant, past.timeline, retention_s).await?;
            }
            self.context.store.set_retention(branch.id, retention_s)?;
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

    /// Tells the page server how long a timeline's history is kept.
    pub(crate) async fn keep_history(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        retention_s: Option<u64>,
    ) -> Result<(), StorageError> {
        let request = ManageRequest::SetRetention { timeline, retention_s };
        self.context.page_service.manage(tenant, request).await.map(|_| ())
    }
}

/// The error with what becomes of what was begun, in place of a hint that nothing was.
fn undone_later(branch: &BranchRow, error: ErrorInfo) -> ErrorInfo {
    let begun = format!(
        "what was begun of branch {} is undone as soon as storage answers again, and the name is taken until then",
        branch.name
    );
    let hint = match &error.hint {
        Some(hint) if error.code != ApiErrorCode::StorageUnavailable => format!("{hint}; {begun}"),
        _ => format!("{begun}; ardent status and the server's log may say more"),
    };
    error.with_hint(hint)
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

pub(crate) fn name_taken(name: &str) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::AlreadyExists, format!("the name {name} is taken")).with_hint("take another name")
}

pub(crate) fn root_branch(branch: &BranchRow) -> ErrorInfo {
    let name = &branch.name;
    ErrorInfo::new(ApiErrorCode::RootBranch, format!("{name} follows production: it is read-only and runs no Postgres"))
        .with_hint(format!("make a branch of it: ardent branch create NAME --from {name}"))
}

pub(crate) fn shutting_down() -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::Internal, "the server is shutting down").with_hint("start it again with ardent up")
}
