//! Brings change sets into the production server that a connector follows. Its URL, with its password, stays here.

use std::sync::Arc;

use tokio::sync::mpsc;

use ardent_api::control::{ApiErrorCode, DiffRequest, ErrorInfo};
use ardent_change_set::{ApplyError, ApplyEvent, ApplyRequest, ChangeSetFile, RemoteApplied, apply, elsewhere};
use ardent_diff::{ChangeSet, DiffReport};
use ardent_pg_wire::driver;
use ardent_types::with_causes;

use crate::service::Control;

impl Control {
    /// Applies `content`, or what changed on the branch that the request names. What it does and how it ends is told by `events`;
    /// when nobody listens any more before the end, nothing is changed.
    pub(crate) fn apply_to_production(
        self: &Arc<Self>,
        connector: &str,
        request: ApplyRequest,
        content: Option<ChangeSetFile>,
        events: mpsc::Sender<ApplyEvent>,
    ) -> Result<(), ErrorInfo> {
        let spec = self.connector_spec(connector)?;
        let (control, connector) = (self.clone(), connector.to_owned());
        self.tasks.spawn(async move {
            let work = control.apply_content(&connector, &spec.url, &request, content, &events);
            let end = tokio::select! {
                done = work => done,
                // The connection to production ends with the work, and the transaction with the connection.
                () = events.closed() => return,
            };
            let end = end.map_or_else(ApplyEvent::Error, |applied| ApplyEvent::Done(Box::new(applied)));
            // Whoever went away in this moment finds the result in production.
            let _ = events.send(end).await;
        });
        Ok(())
    }

    async fn apply_content(
        self: &Arc<Self>,
        connector: &str,
        url: &str,
        request: &ApplyRequest,
        content: Option<ChangeSetFile>,
        events: &mpsc::Sender<ApplyEvent>,
    ) -> Result<RemoteApplied, ErrorInfo> {
        let content = match (content, &request.branch) {
            (Some(content), _) => content,
            (None, Some(branch)) => content_of(self.diff(&self.find_branch(branch)?, &DiffRequest::default()).await?),
            (None, None) => {
                return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, "there is nothing to apply")
                    .with_hint("name a branch, or send a change set"));
            }
        };
        let (mut config, tls) = driver(url).map_err(|error| {
            ErrorInfo::new(
                ApiErrorCode::ConnectorUnavailable,
                format!("connector {connector}: {}", with_causes(&error)),
            )
        })?;
        config.application_name("ardent branch apply");
        let database = request.database.clone().or(config.get_dbname().map(str::to_owned));
        let database = database.or(config.get_user().map(str::to_owned)).unwrap_or_else(|| "postgres".to_owned());
        config.dbname(&database);
        let (client, connection) = config.connect(tls).await.map_err(|error| {
            let message = format!("production ({connector}) cannot be reached: {}", with_causes(&error));
            ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, message)
                .with_hint(format!("ardent connector status {connector} says more"))
        })?;
        // Ends with the client; its errors reach the statements.
        let connection = tokio::spawn(connection);
        let ChangeSetFile { branch, from_lsn, to_lsn, databases } = content;
        let (mut wanted, others): (Vec<_>, Vec<_>) = databases.into_iter().partition(|set| set.database == database);
        if let Some(message) = elsewhere(&database, &others).filter(|_| wanted.is_empty()) {
            return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
                .with_hint(format!("choose: --database {}", others[0].database)));
        }
        let set = wanted.pop().unwrap_or_else(|| ChangeSet { database, ..ChangeSet::default() });
        // A line that there is no room for is not missed.
        let progress = |line: &str| drop(events.try_send(ApplyEvent::Progress(line.to_owned())));
        let applied = apply(&client, &set, &request.options, progress).await;
        drop(client);
        let _ = connection.await;
        let applied = applied.map_err(|error| match error {
            ApplyError::Choice { what, hint } => ErrorInfo::new(ApiErrorCode::InvalidArguments, what).with_hint(hint),
            error => {
                let code = if error.is_timeout() { ApiErrorCode::Timeout } else { ApiErrorCode::Internal };
                ErrorInfo::new(code, with_causes(&error)).with_hint(error.hint())
            }
        })?;
        let other_databases = others.into_iter().map(|set| set.database).collect();
        Ok(RemoteApplied { branch, from_lsn, to_lsn, other_databases, applied })
    }
}

/// What a diff says, as a file's content.
pub(crate) fn content_of(report: DiffReport) -> ChangeSetFile {
    let DiffReport { branch, from_lsn, to_lsn, databases, .. } = report;
    ChangeSetFile { branch, from_lsn, to_lsn, databases }
}
