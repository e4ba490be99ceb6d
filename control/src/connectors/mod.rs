//! Connectors: making, finding, deleting. Following production is in `following.rs`, what is said of them in `status.rs`.
//!
//! Creating one: preflight (nothing is stored before it passes), a row in state `creating`, the import, following, and once the
//! root timeline is consistent `ready` with its root branch. Failing in the middle, or found half-made at start, it is undone.

mod following;
mod status;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use ardent_api::control::{
    ApiErrorCode, BranchName, CheckOutcome, ConnectorEvent, ConnectorInfo, ConnectorState, CreateConnectorRequest,
    DeleteReply, ErrorInfo, LogicalOptions, PreflightCheck, PreflightReply, SCHEMA_VERSION,
};
use ardent_api::token::{Claims, Rights, Service};
use ardent_types::{Lsn, TenantId, TimelineId};

use crate::branches::shutting_down;
use crate::deps::{ConnectorSpec, ImportProgress, Imported, StorageErrorKind};
use crate::logical::progress_to;
use crate::pgurl::PgUrl;
use crate::service::Control;
use crate::store::{BranchRow, ConnectorRow, NotInserted, now_us, template_name_of};

pub(crate) use following::for_connector;
use following::{Follower, Unfollowed};

/// Longest wait for the WAL of the base backup's time to be ingested without any progress.
const CATCH_UP_STALL: Duration = Duration::from_secs(300);
/// Step in which catching up is watched.
const CATCH_UP_STEP: Duration = Duration::from_millis(500);
/// Longest wait for a preflight.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the slot to be dropped at a delete.
const DROP_SLOT_TIMEOUT: Duration = Duration::from_secs(15);

/// How far a creation is, for any number of listeners.
#[derive(Clone, Debug, Default)]
pub(crate) struct Creation {
    pub preflight: Option<PreflightReply>,
    pub progress: Option<ConnectorEvent>,
    pub end: Option<Result<Box<ConnectorInfo>, ErrorInfo>>,
}

/// Followers by connector name, and creations under way.
#[derive(Default)]
pub(crate) struct Connectors {
    followers: Mutex<HashMap<String, Follower>>,
    unfollowed: Unfollowed,
    creations: Mutex<HashMap<String, watch::Receiver<Creation>>>,
}

impl Control {
    /// Looks at a server that may become a source.
    pub async fn preflight(&self, url: &str, logical: Option<&LogicalOptions>) -> Result<PreflightReply, ErrorInfo> {
        PgUrl::parse(url)?;
        let looking = match logical {
            Some(options) => self.context.logical.preflight(url, options),
            None => self.context.connectors.preflight(url),
        };
        let looked = tokio::time::timeout(PREFLIGHT_TIMEOUT, looking).await;
        let checks = looked.map_err(|_| {
            let message = format!("the source did not answer within {} s", PREFLIGHT_TIMEOUT.as_secs());
            ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, message).with_hint("see whether this host can reach it")
        })??;
        let passed = checks.iter().all(|check| check.outcome != CheckOutcome::Failed);
        Ok(PreflightReply { schema_version: SCHEMA_VERSION, passed, checks })
    }

    /// Starts making a connector, or joins who does. What is heard ends with `end`.
    pub(crate) fn create_connector(
        self: &Arc<Self>,
        request: CreateConnectorRequest,
    ) -> Result<watch::Receiver<Creation>, ErrorInfo> {
        let url = PgUrl::parse(&request.url)?;
        let name = connector_name(request.name.as_deref(), &url)?;
        let mut creations = self.connectors.creations.lock();
        if let Some(running) = creations.get(name.as_str()) {
            return Ok(running.clone());
        }
        if let Some(existing) = self.context.store.connector(name.as_str())? {
            return self.join_existing(&existing, &request);
        }
        let (sender, receiver) = watch::channel(Creation::default());
        creations.insert(name.as_str().to_owned(), receiver.clone());
        drop(creations);
        let control = self.clone();
        self.tasks.spawn(async move {
            let made = control.import_connector(name.as_str(), &url, &request, &sender).await;
            if let Err(error) = &made {
                warn!(connector = name.as_str(), %error, "connector could not be made");
            }
            control.end_creation(name.as_str(), &sender, made);
        });
        Ok(receiver)
    }

    /// Lets others join the creation of a connector that is there already.
    pub(crate) fn begin_creation(&self, name: &str) -> watch::Sender<Creation> {
        let (sender, receiver) = watch::channel(Creation::default());
        self.connectors.creations.lock().insert(name.to_owned(), receiver);
        sender
    }

    pub(crate) fn end_creation(
        &self,
        name: &str,
        listeners: &watch::Sender<Creation>,
        made: Result<ConnectorInfo, ErrorInfo>,
    ) {
        self.connectors.creations.lock().remove(name);
        listeners.send_modify(|creation| creation.end = Some(made.map(Box::new)));
    }

    /// The same connector again is answered as if it had just been made.
    fn join_existing(
        &self,
        existing: &ConnectorRow,
        request: &CreateConnectorRequest,
    ) -> Result<watch::Receiver<Creation>, ErrorInfo> {
        let name = &existing.name;
        let known = self.context.keyring.open(&url_context(existing.tenant), &existing.url_sealed)?;
        if existing.state == ConnectorState::Creating {
            return Err(ErrorInfo::new(
                ApiErrorCode::Conflict,
                format!("connector {name} is about to go on being made"),
            )
            .with_hint("try again in a moment"));
        }
        if existing.state != ConnectorState::Ready {
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("connector {name} is being deleted"))
                .with_hint("try again in a moment, or take another name with -n"));
        }
        if known != request.url || existing.logical != request.logical {
            return Err(ErrorInfo::new(
                ApiErrorCode::AlreadyExists,
                format!(
                    "connector {name} exists already, for {}{}",
                    existing.source,
                    if existing.logical.is_some() { " in logical mode" } else { "" }
                ),
            )
            .with_hint("take another name with -n"));
        }
        let info = self.connector_info(existing, None, None)?;
        Ok(watch::channel(Creation { end: Some(Ok(Box::new(info))), ..Creation::default() }).1)
    }

    async fn import_connector(
        self: &Arc<Self>,
        name: &str,
        url: &PgUrl,
        request: &CreateConnectorRequest,
        listeners: &watch::Sender<Creation>,
    ) -> Result<ConnectorInfo, ErrorInfo> {
        let report = self.preflight(&request.url, request.logical.as_ref()).await?;
        listeners.send_modify(|creation| creation.preflight = Some(report.clone()));
        if !report.passed {
            return Err(preflight_failed(&report.checks));
        }
        let tenant = TenantId::generate();
        let row = ConnectorRow {
            name: name.to_owned(),
            tenant,
            timeline: TimelineId::generate(),
            state: ConnectorState::Creating,
            url_sealed: self.context.keyring.seal(&url_context(tenant), request.url.as_bytes())?,
            source: url.to_string(),
            fast: request.fast,
            max_rate_bytes: request.max_rate_bytes,
            pg_major: None,
            superuser: None,
            settings: Default::default(),
            logical: request.logical.clone(),
            collation_warning: collation_warning(&report.checks),
            masked_only: false,
            created_us: now_us(),
        };
        match self.context.store.insert_connector(&row)? {
            Ok(()) => {}
            Err(NotInserted::NameTaken) => {
                return Err(ErrorInfo::new(
                    ApiErrorCode::AlreadyExists,
                    format!("there is a branch named {name} already"),
                )
                .with_hint("take another name with -n"));
            }
            Err(NotInserted::SafekeepersChange) => {
                return Err(ErrorInfo::new(ApiErrorCode::Conflict, "the safekeepers are just being changed")
                    .with_hint("give the command again when ardent status shows no change on its way"));
            }
        }
        let imported = match row.logical {
            Some(_) => self.import_logical(&row, url, listeners).await,
            None => self.import_inserted(&row, url, listeners).await,
        };
        self.made_or_undone(&row, imported).await
    }

    /// What was made; what could not be made is undone, unless it goes on at the next start.
    pub(crate) async fn made_or_undone(
        self: &Arc<Self>,
        row: &ConnectorRow,
        imported: Result<(), ErrorInfo>,
    ) -> Result<ConnectorInfo, ErrorInfo> {
        match imported {
            Ok(()) => {
                let row = self.find_connector(&row.name)?;
                self.connector_status_of(&row).await
            }
            Err(error) if self.cancel.is_cancelled() && self.context.store.root_branch_id(&row.name)?.is_some() => {
                Err(error)
            }
            Err(error) => {
                let retry = "when that is seen to, run ardent connector create again";
                let hint = match self.undo_connector(row).await {
                    Some(warning) => format!("{warning}; {retry}"),
                    None => retry.to_owned(),
                };
                Err(if error.hint.is_some() { error } else { error.with_hint(hint) })
            }
        }
    }

    async fn import_inserted(
        self: &Arc<Self>,
        row: &ConnectorRow,
        url: &PgUrl,
        listeners: &watch::Sender<Creation>,
    ) -> Result<(), ErrorInfo> {
        let report = progress_to(listeners);
        let (progress_in, mut progress) = mpsc::channel(16);
        let mut import = self.context.connectors.import(self.connector_spec_of(row)?, progress_in);
        let imported: Imported = loop {
            tokio::select! {
                done = &mut import => break done?,
                Some(step) = progress.recv() => report(step),
                () = self.cancel.cancelled() => return Err(shutting_down()),
            }
        };
        self.start_following(row).await?;
        self.catch_up(row, &report).await?;
        self.reach_production(row).await;
        let root = root_row(row, url);
        let credential = self.context.new_credential(&root, &root.role)?;
        self.context.store.connector_ready(row, &imported, &root, &credential)?;
        info!(connector = %row.name, "connector is made");
        Ok(())
    }

    /// Waits until WAL has made the base backup consistent.
    pub(crate) async fn catch_up(&self, row: &ConnectorRow, report: &impl Fn(ImportProgress)) -> Result<(), ErrorInfo> {
        let mut furthest = Lsn::INVALID;
        let mut moved_at = Instant::now();
        loop {
            let status = self.context.timeline_status(row.tenant, row.timeline).await?;
            if status.last_record_lsn >= status.consistent_from_lsn {
                return Ok(());
            }
            if status.last_record_lsn > furthest {
                furthest = status.last_record_lsn;
                moved_at = Instant::now();
            } else if moved_at.elapsed() > CATCH_UP_STALL {
                let why = self.following(&row.name).1.unwrap_or_else(|| "no WAL arrives".to_owned());
                let message =
                    format!("the copy is not consistent yet, and catching up has stalled at {furthest}: {why}");
                return Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, message)
                    .with_hint("see whether the source can still be reached, and create the connector again"));
            }
            report(ImportProgress {
                phase: "catch_up".into(),
                bytes_done: 0,
                bytes_total: status.consistent_from_lsn.saturating_sub(status.last_record_lsn),
                ..ImportProgress::default()
            });
            let waiting =
                self.context.page_service.wait_lsn(row.tenant, row.timeline, status.consistent_from_lsn, CATCH_UP_STEP);
            tokio::select! {
                waited = waiting => match waited {
                    Err(error) if error.kind != StorageErrorKind::Timeout => return Err(error.into()),
                    _ => {}
                },
                why = self.given_up(&row.name) => {
                    let message = format!("the copy could not be made consistent: {why}");
                    return Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, message));
                }
                () = self.cancel.cancelled() => return Err(shutting_down()),
            }
        }
    }

    /// Waits a moment for what production has written since the copy: the WAL segment that ends a base backup alone would be shown as
    /// lag, and waited for by the first branch. The connector works as well without, so whatever goes wrong here is left to following.
    async fn reach_production(&self, row: &ConnectorRow) {
        let reach = async {
            let spec = self.connector_spec_of(row).ok()?;
            let flushed = self.context.connectors.production_flush_lsn(spec).await.ok()?;
            self.context.page_service.wait_lsn(row.tenant, row.timeline, flushed, CATCH_UP_STEP).await.ok()
        };
        tokio::select! {
            _ = reach => {}
            () = self.cancel.cancelled() => {}
        }
    }

    /// The connector with this name.
    pub(crate) fn find_connector(&self, name: &str) -> Result<ConnectorRow, ErrorInfo> {
        self.context.store.connector(name)?.ok_or_else(|| {
            ErrorInfo::new(ApiErrorCode::NotFound, format!("there is no connector {name}"))
                .with_hint("ardent connector list shows which there are")
        })
    }

    /// One that is neither just being made nor deleted.
    pub(crate) fn find_ready_connector(&self, name: &str) -> Result<ConnectorRow, ErrorInfo> {
        let row = self.find_connector(name)?;
        if row.state != ConnectorState::Ready {
            let message = format!("connector {name} is just being made or deleted");
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint("try again in a moment"));
        }
        Ok(row)
    }

    /// What the runtime needs to know about a connector.
    pub(crate) fn connector_spec(&self, name: &str) -> Result<ConnectorSpec, ErrorInfo> {
        self.connector_spec_of(&self.find_connector(name)?)
    }

    pub(crate) fn connector_spec_of(&self, row: &ConnectorRow) -> Result<ConnectorSpec, ErrorInfo> {
        let token = self.context.tokens.issue(&Claims {
            service: Service::Any,
            tenant: Some(row.tenant),
            timeline: Some(row.timeline),
            rights: Rights::Manage,
            expires_at_s: None,
        });
        Ok(ConnectorSpec {
            name: row.name.clone(),
            tenant: row.tenant,
            timeline: row.timeline,
            url: self.context.keyring.open(&url_context(row.tenant), &row.url_sealed)?,
            fast: row.fast,
            max_rate_bytes: row.max_rate_bytes,
            pageserver: self.context.page_service.addr(),
            safekeepers: self.context.wal_service.addrs(),
            members: self.context.wal_service.membership(),
            token,
            logical: row.logical.clone(),
        })
    }

    /// Deletes a connector that has no branches. Goes on when the caller goes away.
    pub async fn delete_connector(self: &Arc<Self>, name: &str) -> Result<DeleteReply, ErrorInfo> {
        let (control, name) = (self.clone(), name.to_owned());
        let task = self.tasks.spawn(async move {
            let lock = control.name_lock(&name);
            let _guard = lock.lock().await;
            let row = control.find_connector(&name)?;
            // One that goes on after a restart may wait for production without end: it can be deleted.
            let can_be_left = row.logical.is_some() && control.context.store.root_branch_id(&name)?.is_some();
            if row.state == ConnectorState::Creating && !can_be_left {
                return Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("connector {name} is still being made"))
                    .with_hint("wait until it is, or stop the server: what is half made is undone at its next start"));
            }
            if let Err(branches) = control.context.store.begin_delete_connector(&name)? {
                return Err(ErrorInfo::new(
                    ApiErrorCode::Conflict,
                    format!("connector {name} has branches: {}", branches.join(", ")),
                )
                .with_hint(how_to_delete(&branches)));
            }
            let warning = control.finish_delete_connector(&row).await?;
            Ok(DeleteReply { schema_version: SCHEMA_VERSION, name, warning, kept_until: None })
        });
        task.await.map_err(|_| shutting_down())?
    }

    /// Deletes a connector that is marked for it. A slot that cannot be dropped is a warning: production may be gone for good.
    pub(crate) async fn finish_delete_connector(&self, row: &ConnectorRow) -> Result<Option<String>, ErrorInfo> {
        self.stop_following(&row.name).await;
        self.connectors.unfollowed.forget(&row.name);
        self.slots.forget(&row.name);
        let spec = self.connector_spec_of(row)?;
        let dropping = match row.logical {
            Some(_) => {
                self.discard_logical_root(row).await?;
                self.context.logical.delete(spec)
            }
            None => self.context.connectors.delete(spec),
        };
        let slot_left = |why: String| {
            format!(
                "the replication slot on {} could not be dropped, and keeps WAL there ({why}). When it is back, look for it: \
                 SELECT slot_name FROM pg_replication_slots WHERE NOT active; and drop it: SELECT pg_drop_replication_slot(NAME)",
                row.source
            )
        };
        let warning = match tokio::time::timeout(DROP_SLOT_TIMEOUT, dropping).await {
            Ok(Ok(())) => None,
            // Which of slot and publication is left, and how to drop it, is in the error.
            Ok(Err(error)) if row.logical.is_some() => Some(format!("on {}, {}", row.source, error.message)),
            Ok(Err(error)) => Some(slot_left(error.message)),
            Err(_) => Some(slot_left(format!("production did not answer within {} s", DROP_SLOT_TIMEOUT.as_secs()))),
        };
        if let Some(warning) = &warning {
            warn!(connector = %row.name, warning, "deleting a connector");
        }
        self.purge_deleted_of(&row.name).await?;
        let lock = self.context.timeline_locks.of(row.timeline);
        let _guard = lock.lock().await;
        let away = self.delete_in_storage(row.tenant, row.timeline).await?;
        self.context.store.remove_connector(row, &away)?;
        info!(connector = %row.name, "connector is deleted");
        Ok(warning)
    }

    /// Takes back a connector that could not be made. Gives what is left on production, if anything is.
    async fn undo_connector(&self, row: &ConnectorRow) -> Option<String> {
        // Against the housekeeper, who finishes deletions too.
        let lock = self.name_lock(&row.name);
        let _guard = lock.lock().await;
        let undone = async {
            let _ = self.context.store.begin_delete_connector(&row.name)?;
            self.finish_delete_connector(row).await
        };
        undone.await.unwrap_or_else(|error| {
            warn!(connector = %row.name, %error, "a connector that could not be made is not undone yet; it will be tried again");
            None
        })
    }
}

/// A connector's root branch.
pub(crate) fn root_row(row: &ConnectorRow, url: &PgUrl) -> BranchRow {
    BranchRow {
        role: url.role.clone(),
        database: url.database.clone(),
        ..BranchRow::fresh(row.name.clone(), row.name.clone(), row.tenant, row.timeline)
    }
}

/// The commands that delete the branches and masked templates whose rows have these names.
fn how_to_delete(rows: &[String]) -> String {
    let templates =
        rows.iter().filter_map(|row| template_name_of(row)).map(|name| format!("ardent mask delete {name}"));
    let branches: Vec<&str> = rows.iter().filter(|row| template_name_of(row).is_none()).map(String::as_str).collect();
    // Branches first: they may be made from templates.
    let branches = (!branches.is_empty()).then(|| format!("ardent branch delete {}", branches.join(" ")));
    format!("delete them first: {}", branches.into_iter().chain(templates).collect::<Vec<_>>().join("; "))
}

pub(crate) fn url_context(tenant: TenantId) -> String {
    format!("source of tenant {tenant}")
}

/// The name given, or one made from the database's.
fn connector_name(given: Option<&str>, url: &PgUrl) -> Result<BranchName, ErrorInfo> {
    match given {
        Some(name) => Ok(name.parse()?),
        None => match url.database.parse::<BranchName>() {
            Ok(name) => Ok(name),
            Err(error) => match error.suggestion.and_then(|name| name.parse().ok()) {
                Some(name) => Ok(name),
                None => Err(ErrorInfo::new(
                    ApiErrorCode::InvalidArguments,
                    format!("no connector name can be made from the database name {:?}", url.database),
                )
                .with_hint("name it with -n NAME")),
            },
        },
    }
}

/// What preflight found of how texts sort here and there.
fn collation_warning(checks: &[PreflightCheck]) -> Option<String> {
    let found = checks.iter().find(|check| check.name == "collation_version" && check.fix.is_some());
    found.map(|check| check.message.clone())
}

fn preflight_failed(checks: &[PreflightCheck]) -> ErrorInfo {
    let failed: Vec<&PreflightCheck> = checks.iter().filter(|check| check.outcome == CheckOutcome::Failed).collect();
    let messages: Vec<&str> = failed.iter().map(|check| check.message.as_str()).collect();
    let info = ErrorInfo::new(
        ApiErrorCode::PreflightFailed,
        format!("the source does not meet what a connector needs: {}", messages.join("; ")),
    );
    let fixes: Vec<&str> = failed.iter().filter_map(|check| check.fix.as_deref()).collect();
    if fixes.is_empty() { info } else { info.with_hint(fixes.join("; ")) }
}
