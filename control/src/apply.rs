//! Brings change sets into the production server that a connector follows. Its URL, with its password, stays here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Client;

use ardent_api::control::{ApiErrorCode, DiffRequest, ErrorInfo};
use ardent_change_set::{
    Applied, ApplyError, ApplyEvent, ApplyRequest, ChangeSetFile, RemoteApplied, elsewhere, prepare,
};
use ardent_diff::{ChangeSet, DiffReport};
use ardent_pg_wire::driver;
use ardent_types::with_causes;

use crate::secrets::random_text;
use crate::service::Control;

/// Longest wait for whoever asked to have what undoes it: production's rows are locked meanwhile.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(600);
/// Characters of what stands for an apply that waits.
const TOKEN_LEN: usize = 24;

/// Applies that wait until whoever asked has what undoes them.
#[derive(Default)]
pub(crate) struct Confirmations(Mutex<HashMap<String, oneshot::Sender<()>>>);

impl Confirmations {
    /// A token, and what ends when it is used.
    fn ask(&self) -> Result<(String, oneshot::Receiver<()>), ErrorInfo> {
        let token = random_text(TOKEN_LEN)?;
        let (confirmed, confirmation) = oneshot::channel();
        let mut waiting = self.0.lock();
        // Those that nobody waits for any more.
        waiting.retain(|_, confirmed| !confirmed.is_closed());
        waiting.insert(token.clone(), confirmed);
        Ok((token, confirmation))
    }

    /// Lets an apply commit.
    pub(crate) fn confirm(&self, token: &str) -> Result<(), ErrorInfo> {
        let confirmed = self.0.lock().remove(token);
        confirmed.and_then(|confirmed| confirmed.send(()).ok()).ok_or_else(|| {
            ErrorInfo::new(ApiErrorCode::NotFound, "no apply waits for this: nothing was committed by it")
                .with_hint("apply it again")
        })
    }
}

impl Control {
    /// Applies `content`, or what changed on the branch that the request names. What it does and how it ends is told by `events`;
    /// when nobody listens any more before it is committed, nothing is changed.
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
            // Whoever went away in this moment finds the result in production.
            let _ = events.send(end.unwrap_or_else(ApplyEvent::Error)).await;
        });
        Ok(())
    }

    /// Gives the event that it ends with.
    async fn apply_content(
        self: &Arc<Self>,
        connector: &str,
        url: &str,
        request: &ApplyRequest,
        content: Option<ChangeSetFile>,
        events: &mpsc::Sender<ApplyEvent>,
    ) -> Result<ApplyEvent, ErrorInfo> {
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
        let other_databases = others.into_iter().map(|set| set.database).collect();
        let nothing = RemoteApplied { branch, from_lsn, to_lsn, other_databases, applied: Applied::default() };
        let end = self.apply_set(&client, &set, request, nothing, events).await;
        drop(client);
        let _ = connection.await;
        end
    }

    /// `done`: what is said of it, with nothing applied yet.
    async fn apply_set(
        &self,
        client: &Client,
        set: &ChangeSet,
        request: &ApplyRequest,
        done: RemoteApplied,
        events: &mpsc::Sender<ApplyEvent>,
    ) -> Result<ApplyEvent, ErrorInfo> {
        // A line that there is no room for is not missed.
        let progress = |line: &str| drop(events.try_send(ApplyEvent::Progress(line.to_owned())));
        let prepared = prepare(client, set, &request.options, progress).await.map_err(failed)?;
        let confirms = request.confirms && prepared.changes_target();
        if confirms {
            let (token, confirmation) = self.confirmations.ask()?;
            let done = Box::new(RemoteApplied { applied: prepared.applied().clone(), ..done.clone() });
            // Whoever has gone confirms nothing.
            let _ = events.send(ApplyEvent::Ready { token, done }).await;
            self.confirmed(confirmation).await?;
        }
        match prepared.end().await {
            Ok(_) if confirms => Ok(ApplyEvent::Committed),
            Ok(applied) => Ok(ApplyEvent::Done(Box::new(RemoteApplied { applied, ..done }))),
            Err(error @ ApplyError::Unknown(_)) => Ok(ApplyEvent::Unknown(failed(error))),
            Err(error) => Err(failed(error)),
        }
    }

    async fn confirmed(&self, confirmation: oneshot::Receiver<()>) -> Result<(), ErrorInfo> {
        let waited = tokio::select! {
            waited = tokio::time::timeout(CONFIRMATION_TIMEOUT, confirmation) => waited,
            () = self.cancel.cancelled() => return Err(crate::branches::shutting_down()),
        };
        match waited {
            Ok(Ok(())) => Ok(()),
            // The sender is kept until it is used.
            Ok(Err(_)) | Err(_) => {
                let seconds = CONFIRMATION_TIMEOUT.as_secs();
                let message = format!("whoever asked did not take what undoes it within {seconds} s");
                Err(ErrorInfo::new(ApiErrorCode::Timeout, message).with_hint("nothing was changed; apply it again"))
            }
        }
    }
}

fn failed(error: ApplyError) -> ErrorInfo {
    match error {
        ApplyError::Choice { what, hint } => ErrorInfo::new(ApiErrorCode::InvalidArguments, what).with_hint(hint),
        error => {
            let code = if error.is_timeout() { ApiErrorCode::Timeout } else { ApiErrorCode::Internal };
            ErrorInfo::new(code, with_causes(&error)).with_hint(error.hint())
        }
    }
}

/// What a diff says, as a file's content.
pub(crate) fn content_of(report: DiffReport) -> ChangeSetFile {
    let DiffReport { branch, from_lsn, to_lsn, databases, .. } = report;
    ChangeSetFile { branch, from_lsn, to_lsn, databases }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_lets_one_apply_commit_once() {
        let confirmations = Confirmations::default();
        let (first, waits) = confirmations.ask().expect("random bytes");
        let (second, _gone) = confirmations.ask().expect("random bytes");
        assert_ne!(first, second);
        confirmations.confirm(&first).expect("it waits");
        waits.await.expect("confirmed");
        assert!(confirmations.confirm(&first).is_err(), "twice");
        assert!(confirmations.confirm("other").is_err());
    }

    #[test]
    fn what_has_ended_cannot_be_confirmed_and_is_forgotten() {
        let confirmations = Confirmations::default();
        let (ended, waits) = confirmations.ask().expect("random bytes");
        drop(waits);
        let (_, _waits) = confirmations.ask().expect("random bytes");
        assert_eq!(confirmations.0.lock().len(), 1);
        let error = confirmations.confirm(&ended).expect_err("nobody waits");
        assert_eq!(error.code, ApiErrorCode::NotFound);
    }
}
