//! Connectors in logical mode: their making, which goes on after a restart, and their root branch, which has a compute of its own.
//!
//! Making one: preflight, a row in state `creating`, the root timeline out of an empty cluster, a hidden root branch, the copy, and
//! once the copy is consistent `ready` with the root branch for all to see. Up to the hidden root branch an interruption undoes it;
//! from then on it is continued.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::watch;
use tracing::{info, warn};

use ardent_api::control::{
    AddTablesReply, AddTablesRequest, ApiErrorCode, ConnectorEvent, ConnectorInfo, ConnectorState, ErrorInfo,
    LogicalInfo, NewTables, ResumeConnectorRequest, SkippedTable, VerifyReply,
};
use ardent_api::page_service::ManageRequest;
use ardent_types::{BranchId, Lsn};

use crate::branches::shutting_down;
use crate::compute::ComputePool;
use crate::connectors::{Creation, for_connector};
use crate::context::Context;
use crate::deps::{ConnectorSpec, ImportProgress, LogicalStatus, PostgresAt, RootBranch};
use crate::pgurl::PgUrl;
use crate::service::Control;
use crate::store::{BranchRow, ConnectorRow};

/// Idle time of a root branch's compute: it is woken by the next change.
pub(crate) const ROOT_IDLE_TIMEOUT_S: u64 = 300;
/// Longest wait for all that production had committed to be on the root branch.
const CURRENT_TIMEOUT: Duration = Duration::from_secs(60);
/// The same, where it only makes a status more exact.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connector that is resumed may take to show whether it goes on.
const RESUME_PATIENCE: Duration = Duration::from_secs(10);
/// How often a creation is looked at.
const POLL: Duration = Duration::from_millis(100);

/// The root branch, for what runs its connector.
struct LogicalRoot {
    context: Arc<Context>,
    pool: Arc<ComputePool>,
    connector: String,
    branch: BranchId,
}

impl RootBranch for LogicalRoot {
    fn wake(&self) -> BoxFuture<'_, Result<PostgresAt, ErrorInfo>> {
        async move {
            let branch = self.context.store.branch_by_id(self.branch)?;
            let branch = branch.ok_or_else(|| crate::branches::not_found(&self.connector))?;
            let (running, _) = self.pool.wake(&branch).await?;
            Ok(PostgresAt { socket_dir: running.socket_dir, port: running.port })
        }
        .boxed()
    }

    fn saved(&self) -> Result<Option<String>, ErrorInfo> {
        Ok(self.context.store.logical_state(&self.connector)?)
    }

    fn save(&self, state: &str) -> Result<(), ErrorInfo> {
        Ok(self.context.store.set_logical_state(&self.connector, state)?)
    }

    fn script(&self) -> Result<String, ErrorInfo> {
        Ok(self.context.store.logical_script(&self.connector)?.unwrap_or_default())
    }

    fn save_script(&self, script: &str) -> Result<(), ErrorInfo> {
        Ok(self.context.store.set_logical_script(&self.connector, script)?)
    }
}

impl Context {
    /// Up to where the root branch has committed, once that is all that production has committed at this moment.
    pub(crate) async fn logical_lsn(&self, parent: &BranchRow, connector: ConnectorSpec) -> Result<Lsn, ErrorInfo> {
        let reached = tokio::time::timeout(CURRENT_TIMEOUT, self.logical.bring_current(connector)).await;
        let why = match reached {
            Ok(Ok(())) => {
                let committed = self.wal_service.commit_lsn(parent.tenant, parent.timeline).await?;
                return Ok(committed.unwrap_or(Lsn::INVALID));
            }
            Ok(Err(error)) => error.message,
            Err(_) => format!("its changes were not applied within {} s", CURRENT_TIMEOUT.as_secs()),
        };
        let message = format!("production ({}) is ahead of its root branch: {why}", parent.connector);
        Err(self.production_unavailable(parent, message).await)
    }
}

impl Control {
    fn logical_root(&self, connector: &str) -> Result<Arc<dyn RootBranch>, ErrorInfo> {
        let branch = self.context.store.root_branch_id(connector)?;
        let branch = branch.ok_or_else(|| crate::branches::not_found(connector))?;
        Ok(Arc::new(LogicalRoot {
            context: self.context.clone(),
            pool: self.pool.clone(),
            connector: connector.to_owned(),
            branch,
        }))
    }

    /// Copies and follows until cancelled.
    pub(crate) async fn run_logical(
        &self,
        row: &ConnectorRow,
        cancel: tokio_util::sync::CancellationToken,
        problem: watch::Sender<Option<String>>,
    ) -> Result<(), ErrorInfo> {
        let root = self.logical_root(&row.name)?;
        self.context.logical.run(self.connector_spec_of(row)?, root, cancel, problem).await
    }

    /// Everything from the row on.
    pub(crate) async fn import_logical(
        self: &Arc<Self>,
        row: &ConnectorRow,
        url: &PgUrl,
        listeners: &watch::Sender<Creation>,
    ) -> Result<(), ErrorInfo> {
        let report = progress_to(listeners);
        report(ImportProgress { phase: "empty_root".into(), ..ImportProgress::default() });
        let imported = tokio::select! {
            imported = self.context.logical.begin(self.connector_spec_of(row)?) => imported?,
            () = self.cancel.cancelled() => return Err(shutting_down()),
        };
        let request =
            ManageRequest::FollowWal { timeline: row.timeline, safekeepers: self.context.wal_service.addrs() };
        self.context.page_service.manage(row.tenant, request).await?;
        self.catch_up(row, &report).await?;
        let root =
            BranchRow { hidden: true, idle_timeout_s: ROOT_IDLE_TIMEOUT_S, ..crate::connectors::root_row(row, url) };
        let credential = self.context.new_credential(&root, &root.role)?;
        self.context.store.logical_begun(row, &imported, &root, &credential)?;
        self.finish_logical(row, listeners).await
    }

    /// Follows what runs the connector until branches can be made.
    async fn finish_logical(
        self: &Arc<Self>,
        row: &ConnectorRow,
        listeners: &watch::Sender<Creation>,
    ) -> Result<(), ErrorInfo> {
        let report = progress_to(listeners);
        self.start_following(row).await?;
        let mut ticks = tokio::time::interval(POLL);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                why = self.given_up(&row.name) => {
                    return Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, format!("the import failed: {why}")));
                }
                () = self.cancel.cancelled() => return Err(shutting_down()),
            }
            if !self.is_followed(&row.name) {
                let message = format!("connector {} was deleted while it was being made", row.name);
                return Err(ErrorInfo::new(ApiErrorCode::Conflict, message));
            }
            let Some(status) = self.context.logical.status(row.timeline) else { continue };
            if status.is_ready {
                self.context.store.logical_ready(row)?;
                info!(connector = %row.name, "connector is made");
                return Ok(());
            }
            let (bytes_done, bytes_total) = status.progress;
            report(ImportProgress { phase: status.phase, bytes_done, bytes_total, waits_for: status.waits_for });
        }
    }

    /// Goes on with an import that a restart interrupted. Who asks for the same connector hears of it.
    pub(crate) fn resume_logical(self: &Arc<Self>, row: &ConnectorRow) {
        info!(connector = %row.name, "the import goes on");
        let sender = self.begin_creation(&row.name);
        let (control, row) = (self.clone(), row.clone());
        self.tasks.spawn(async move {
            let made = control.finish_logical(&row, &sender).await;
            let made = control.made_or_undone(&row, made).await;
            if let Err(error) = &made {
                warn!(connector = %row.name, %error, "connector could not be made");
            }
            control.end_creation(&row.name, &sender, made);
        });
    }

    /// What to show of it.
    pub(crate) fn logical_info(&self, row: &ConnectorRow) -> Option<LogicalInfo> {
        let options = row.logical.clone()?;
        let status = self.context.logical.status(row.timeline).unwrap_or_default();
        Some(LogicalInfo {
            options,
            phase: status.phase,
            tables: status.tables,
            applied_lsn: status.applied_lsn,
            left_out: status.left_out,
            new_tables: status.new_tables,
            not_followed: status.not_followed,
            schema_changes: status.schema_changes.iter().map(|change| for_connector(change, &row.name)).collect(),
            look_age_s: status.look_age.map(|age| age.as_secs()),
        })
    }

    /// What of production is not on the root branch of a connector in logical mode, and will not come by itself.
    pub(crate) fn logical_warnings(&self, row: &ConnectorRow) -> Vec<String> {
        let (Some(options), Some(status)) = (&row.logical, self.context.logical.status(row.timeline)) else {
            return Vec::new();
        };
        warnings(&row.name, options.new_tables, &status)
    }

    /// Lets production say how far it is, and has its schema looked at, so that what is shown is of this moment. Whatever goes wrong shows in
    /// the status itself; of the look, once that lasts.
    pub(crate) async fn refresh_logical(&self, row: &ConnectorRow) {
        if row.logical.is_some()
            && row.state == ConnectorState::Ready
            && let Ok(spec) = self.connector_spec_of(row)
        {
            let logical = &self.context.logical;
            let refreshing = async {
                logical.bring_current(spec).await?;
                logical.look(row.timeline).await
            };
            let _ = tokio::time::timeout(STATUS_TIMEOUT, refreshing).await;
        }
    }

    /// Holds production and the root branch against one another.
    pub async fn verify_connector(&self, name: &str) -> Result<VerifyReply, ErrorInfo> {
        let row = self.find_ready_connector(name)?;
        if row.logical.is_none() {
            let message =
                format!("connector {name} follows by physical replication: its root branch is a copy byte for byte");
            return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
                .with_hint("only connectors made with --logical can be verified"));
        }
        let root = self.logical_root(name)?;
        let reply = self.context.logical.verify(self.connector_spec_of(&row)?, root).await?;
        Ok(VerifyReply { name: name.to_owned(), ..reply })
    }

    /// Takes over tables that are new on production.
    pub async fn add_tables(
        self: &Arc<Self>,
        name: &str,
        request: AddTablesRequest,
    ) -> Result<AddTablesReply, ErrorInfo> {
        let (control, name) = (self.clone(), name.to_owned());
        let task = self.tasks.spawn(async move {
            let lock = control.name_lock(&name);
            let _guard = lock.lock().await;
            let row = control.find_ready_connector(&name)?;
            if row.logical.is_none() {
                let message =
                    format!("connector {name} follows by physical replication: all tables are there by themselves");
                return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
                    .with_hint("only connectors made with --logical have tables added"));
            }
            let root = control.logical_root(&name)?;
            let adding = control.context.logical.add_tables(control.connector_spec_of(&row)?, root, request.tables);
            let reply = tokio::select! {
                reply = adding => reply?,
                () = control.cancel.cancelled() => return Err(shutting_down()),
            };
            Ok(AddTablesReply { name, ..reply })
        });
        task.await.map_err(|_| shutting_down())?
    }

    /// Tries again at once what could not go on, after `sql` was run on the root branch.
    pub async fn resume_connector(
        self: &Arc<Self>,
        name: &str,
        request: ResumeConnectorRequest,
    ) -> Result<ConnectorInfo, ErrorInfo> {
        let (control, name) = (self.clone(), name.to_owned());
        let task = self.tasks.spawn(async move {
            let lock = control.name_lock(&name);
            let _guard = lock.lock().await;
            let row = control.find_ready_connector(&name)?;
            if request.sql.is_some() && row.logical.is_none() {
                let message = format!("connector {name} follows by physical replication: its root branch takes no SQL");
                return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint("leave --sql away"));
            }
            control.stop_following(&name).await;
            let ran = match request.sql {
                Some(sql) => {
                    let root = control.logical_root(&name)?;
                    control.context.logical.run_on_root(control.connector_spec_of(&row)?, root, sql).await
                }
                None => Ok(()),
            };
            control.start_following(&row).await?;
            ran?;
            // Whether it goes on, or why not, is known in a moment.
            tokio::select! {
                _ = control.given_up(&name) => {}
                () = tokio::time::sleep(RESUME_PATIENCE) => {}
                () = control.reaches_production(&row) => {}
            }
            control.connector_status_of(&row).await
        });
        task.await.map_err(|_| shutting_down())?
    }

    /// Ends when all that production has is on the root branch; not at all if that cannot be known.
    async fn reaches_production(&self, row: &ConnectorRow) {
        if row.logical.is_some() {
            while let Ok(spec) = self.connector_spec_of(row) {
                if self.context.logical.bring_current(spec).await.is_ok() {
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        }
        std::future::pending().await
    }

    /// Ends the root branch's compute for good.
    pub(crate) async fn discard_logical_root(&self, row: &ConnectorRow) -> Result<(), ErrorInfo> {
        let Some(id) = self.context.store.root_branch_id(&row.name)? else { return Ok(()) };
        if let Some(root) = self.context.store.branch_by_id(id)? {
            self.pool.kill(id).await?;
            self.pool.discard(&root).await?;
            self.pool.forget_problem(id);
        }
        Ok(())
    }
}

/// What there is to say of a connector, with the commands to type.
fn warnings(name: &str, wanted: NewTables, status: &LogicalStatus) -> Vec<String> {
    let waits = status.waits_for.iter();
    let mut warnings: Vec<String> =
        waits.map(|what| format!("production gives a snapshot when this has ended: {what}")).collect();
    let tables = status.new_tables.join(", ");
    match (&status.adding_error, wanted) {
        _ if status.new_tables.is_empty() => {}
        (Some(why), NewTables::Add) => warnings.push(format!(
            "tables that are new on production are not on the root branch yet ({tables}), as they could not be taken over: {why}; when that \
             is seen to, they are, or at once by ardent connector add-tables {name}"
        )),
        (_, NewTables::Add) => {}
        (_, NewTables::Report) => warnings.push(format!(
            "tables that are new on production are not on the root branch ({tables}): ardent connector add-tables {name} takes them over"
        )),
    }
    for SkippedTable { table, why } in &status.not_followed {
        warnings.push(format!(
            "table {table} is new on production, and not followed: {}",
            why.replace(" NAME ", &format!(" {name} "))
        ));
    }
    if let Some(why) = &status.look_error {
        warnings.push(format!(
            "production's schema cannot be looked at, so what changes there is not said before it stops something: {why}; \
             ardent connector verify {name} compares all"
        ));
    }
    if !status.schema_changes.is_empty() {
        warnings.push(format!(
            "production's schema has changed, and the root branch's has not ({}): ardent connector status {name} lists what, and ardent \
             connector resume {name} --sql STATEMENTS brings it over",
            status.schema_changes.len()
        ));
    }
    warnings
}

/// Tells listeners how far it is.
pub(crate) fn progress_to(listeners: &watch::Sender<Creation>) -> impl Fn(ImportProgress) {
    let began = Instant::now();
    move |progress: ImportProgress| {
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let ImportProgress { phase, bytes_done, bytes_total, waits_for } = progress;
        let event = ConnectorEvent::Progress { phase, bytes_done, bytes_total, elapsed_ms, waits_for };
        listeners.send_modify(|creation| creation.progress = Some(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_by_itself_is_said_with_the_command() {
        let new = LogicalStatus { new_tables: vec!["s.a".into(), "s.b".into()], ..LogicalStatus::default() };
        let failed = LogicalStatus { adding_error: Some("no slot".into()), ..new.clone() };
        let refused = SkippedTable { table: "s.c".into(), why: "run ardent connector resume NAME --sql".into() };
        let skipped = LogicalStatus { not_followed: vec![refused], ..LogicalStatus::default() };
        let changed = LogicalStatus { schema_changes: vec!["DROP TABLE s.d".into()], ..LogicalStatus::default() };
        let blind = LogicalStatus { look_error: Some("no answer".into()), ..LogicalStatus::default() };
        let waiting = LogicalStatus { waits_for: vec!["process 7".into()], ..LogicalStatus::default() };
        for (status, wanted, words) in [
            (LogicalStatus::default(), NewTables::Report, None),
            (new.clone(), NewTables::Report, Some("(s.a, s.b): ardent connector add-tables shop takes")),
            (new, NewTables::Add, None),
            (failed, NewTables::Add, Some("no slot")),
            (
                skipped,
                NewTables::Report,
                Some("table s.c is new on production, and not followed: run ardent connector resume shop"),
            ),
            (blind, NewTables::Report, Some("no answer; ardent connector verify shop")),
            (waiting, NewTables::Report, Some("when this has ended: process 7")),
            (changed, NewTables::Add, Some("(1): ardent connector status shop")),
        ] {
            let said = warnings("shop", wanted, &status);
            assert_eq!(said.len(), usize::from(words.is_some()), "{said:?}");
            assert!(said.concat().contains(words.unwrap_or_default()), "{said:?}");
        }
    }
}
