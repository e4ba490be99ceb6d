//! The public routes.

use std::convert::Infallible;
use std::io::{Seek as _, Write as _};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body as ReplyBody, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use tokio::sync::watch;

use ardent_api::control::{
    AddTablesReply, AddTablesRequest, ApiErrorCode, BranchHistory, BranchInfo, BranchList, ChangeSafekeepersRequest,
    CheckpointInfo, CheckpointList, ConnectorEvent, ConnectorInfo, ConnectorList, CreateBranchReply,
    CreateBranchRequest, CreateCheckpointRequest, CreateConnectorRequest, DeleteReply, DiffRequest, ErrorInfo,
    MoveConnectorRequest, PasswordRequest, PreflightReply, PreflightRequest, ReindexReply, RenameRequest, ResetRequest,
    RestoreRequest, ResumeConnectorRequest, RewindRequest, SCHEMA_VERSION, SafekeeperChange, SafekeepersReply,
    StatusReply, SwitchReply, UndeleteRequest, UnnamedFilesReply, UpdateBranchRequest, UpdateConnectorRequest,
    UrlReply, VerifyReply, WakeReply, WhoamiReply,
};

use ardent_change_set::{ApplyEvent, ApplyRequest, ChangeSetFile, CommitReply, RebaseReply, RebaseRequest, read};
use ardent_diff::{DiffReport, Found, write_end, write_error, write_lines};
use ardent_masking::{CheckMaskingRequest, CreateMaskedRequest, MaskEvent, MaskedInfo, MaskedList, MaskingCheck};
use ardent_statement_log::{BlameReply, BlameRequest, LogRequest};

use super::reply::{Body, LongLines, LongReply};
use super::{BODY_LEN_MAX, Failure, Reply, openapi};
use crate::connectors::Creation;
use crate::deletion::Deletion;
use crate::diff::DiffEvent;
use crate::secrets::token_hash;
use crate::service::Control;
use crate::store::{TokenRow, iso8601};

type Shared = State<Arc<Control>>;
type Result<T> = std::result::Result<Reply<T>, Failure>;

pub(crate) fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/v1/openapi.json", get(describe))
        .route("/v1/status", get(status))
        .route("/v1/safekeepers", get(safekeepers))
        .route("/v1/safekeepers/change", post(change_safekeepers).delete(cancel_safekeeper_change))
        .route("/v1/whoami", get(whoami))
        .route("/v1/token", delete(revoke_token))
        .route("/v1/connectors", get(list_connectors).post(create_connector))
        .route("/v1/connectors/preflight", post(preflight))
        .route("/v1/connectors/{name}", get(show_connector).patch(update_connector).delete(delete_connector))
        .route("/v1/connectors/{name}/verify", post(verify_connector))
        .route("/v1/connectors/{name}/move", post(move_connector))
        .route("/v1/connectors/{name}/resume", post(resume_connector))
        .route("/v1/connectors/{name}/tables", post(add_tables))
        .route("/v1/branches", get(list_branches).post(create_branch))
        .route("/v1/branches/{name}", get(show_branch).patch(update_branch).delete(delete_branch))
        .route("/v1/branches/{name}/url", get(branch_url))
        .route("/v1/branches/{name}/unnamed-files", get(unnamed_files))
        .route("/v1/branches/{name}/password", post(new_password))
        .route("/v1/branches/{name}/reindex-collations", post(reindex_collations))
        .route("/v1/branches/{name}/wake", post(wake))
        .route("/v1/branches/{name}/suspend", post(suspend))
        .route("/v1/branches/{name}/diff", post(diff))
        .route("/v1/branches/{name}/diff/lines", post(diff_lines))
        .route("/v1/branches/{name}/log", post(log))
        .route("/v1/branches/{name}/blame", post(blame))
        .route("/v1/branches/{name}/rebase", post(rebase))
        .route("/v1/connectors/{name}/apply", post(apply))
        .route("/v1/connectors/{name}/apply/{token}/commit", post(commit_apply))
        .route("/v1/masked", get(list_masked).post(create_masked))
        .route("/v1/masked/check", post(check_masking))
        .route("/v1/masked/{name}", get(show_masked).delete(delete_masked))
        .route("/v1/branches/{name}/reset", post(reset))
        .route("/v1/branches/{name}/restore", post(restore))
        .route("/v1/branches/{name}/history", get(history))
        .route("/v1/branches/{name}/checkpoints", get(list_checkpoints).post(create_checkpoint))
        .route("/v1/branches/{name}/checkpoints/{label}", delete(delete_checkpoint))
        .route("/v1/branches/{name}/rewind", post(rewind))
        .route("/v1/branches/{name}/undelete", post(undelete))
        .route("/v1/branches/{name}/rename", post(rename))
        .method_not_allowed_fallback(no_such_route)
        .fallback(no_such_route)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        // Outermost, around the fallbacks too: a stranger does not even learn which routes there are.
        .layer(from_fn_with_state(control.clone(), authenticate))
        .with_state(control)
}

/// Lets only known tokens through.
async fn authenticate(State(control): Shared, mut request: Request, next: Next) -> Response {
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token_hash(token.trim()));
    let known = match token {
        None => Ok(None),
        Some(hash) => control.context.store.token(&hash).map(|row| row.map(|row| Caller { hash, row })),
    };
    match known {
        Ok(Some(caller)) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Ok(None) => {
            let error = ErrorInfo::new(ApiErrorCode::NotAuthenticated, "this needs a token that the server knows")
                .with_hint("ardent login --token-stdin takes one; ardent up logs in the user who starts it");
            let mut response = Failure(error).into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            response
        }
        Err(error) => Failure(error.into()).into_response(),
    }
}

/// Whose token it is.
#[derive(Clone)]
struct Caller {
    hash: [u8; 32],
    row: TokenRow,
}

async fn no_such_route(request: Request) -> Failure {
    let message = format!("there is no {} {}", request.method(), request.uri().path());
    Failure(ErrorInfo::new(ApiErrorCode::NotFound, message).with_hint("GET /v1/openapi.json lists what there is"))
}

async fn describe() -> Reply<serde_json::Value> {
    Reply(openapi::document())
}

async fn status(State(control): Shared) -> Result<StatusReply> {
    Ok(Reply(control.status()?))
}

async fn safekeepers(State(control): Shared) -> Result<SafekeepersReply> {
    Ok(Reply(control.safekeepers().await?))
}

async fn change_safekeepers(
    State(control): Shared,
    Body(request): Body<ChangeSafekeepersRequest>,
) -> Result<SafekeeperChange> {
    Ok(Reply(control.change_safekeepers(&request).await?))
}

async fn cancel_safekeeper_change(State(control): Shared) -> Result<SafekeepersReply> {
    control.cancel_safekeeper_change().await?;
    Ok(Reply(control.safekeepers().await?))
}

async fn whoami(request: Request) -> Result<WhoamiReply> {
    let caller = caller(&request)?;
    Ok(Reply(WhoamiReply {
        schema_version: SCHEMA_VERSION,
        token_name: caller.row.name,
        created_at: iso8601(caller.row.created_us),
    }))
}

async fn revoke_token(State(control): Shared, request: Request) -> Result<DeleteReply> {
    let caller = caller(&request)?;
    control.context.store.delete_token(&caller.hash).map_err(ErrorInfo::from)?;
    Ok(Reply(DeleteReply { schema_version: SCHEMA_VERSION, name: caller.row.name, warning: None, kept_until: None }))
}

fn caller(request: &Request) -> std::result::Result<Caller, Failure> {
    let missing = || ErrorInfo::new(ApiErrorCode::Internal, "the request was not authenticated");
    Ok(request.extensions().get::<Caller>().cloned().ok_or_else(missing)?)
}

async fn list_connectors(State(control): Shared) -> Result<ConnectorList> {
    Ok(Reply(ConnectorList { schema_version: SCHEMA_VERSION, connectors: control.list_connectors().await? }))
}

async fn preflight(State(control): Shared, Body(request): Body<PreflightRequest>) -> Result<PreflightReply> {
    Ok(Reply(control.preflight(&request.url, request.logical.as_ref()).await?))
}

async fn show_connector(State(control): Shared, Path(name): Path<String>) -> Result<ConnectorInfo> {
    Ok(Reply(control.show_connector(&name).await?))
}

async fn verify_connector(State(control): Shared, Path(name): Path<String>) -> Result<VerifyReply> {
    Ok(Reply(control.verify_connector(&name).await?))
}

async fn reindex_collations(State(control): Shared, Path(name): Path<String>) -> Result<ReindexReply> {
    Ok(Reply(control.reindex_collations(&name).await?))
}

async fn resume_connector(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<ResumeConnectorRequest>,
) -> Result<ConnectorInfo> {
    Ok(Reply(control.resume_connector(&name, request).await?))
}

async fn add_tables(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<AddTablesRequest>,
) -> Result<AddTablesReply> {
    Ok(Reply(control.add_tables(&name, request).await?))
}

async fn move_connector(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<MoveConnectorRequest>,
) -> Result<ConnectorInfo> {
    Ok(Reply(control.move_connector(&name, request).await?))
}

async fn delete_connector(State(control): Shared, Path(name): Path<String>) -> Result<DeleteReply> {
    Ok(Reply(control.delete_connector(&name).await?))
}

async fn create_connector(
    State(control): Shared,
    Body(request): Body<CreateConnectorRequest>,
) -> std::result::Result<Response, Failure> {
    let creation = control.create_connector(request)?;
    let lines = stream::unfold(Listener { creation, sent: Sent::default(), first: true }, Listener::next);
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/x-ndjson")], ReplyBody::from_stream(lines))
        .into_response())
}

/// Turns the state of a creation into lines: what is new since the last one.
struct Listener {
    creation: watch::Receiver<Creation>,
    sent: Sent,
    first: bool,
}

#[derive(Default)]
struct Sent {
    preflight: bool,
    progress: Option<ConnectorEvent>,
    end: bool,
}

impl Listener {
    async fn next(mut self) -> Option<(std::result::Result<Bytes, Infallible>, Listener)> {
        loop {
            if self.sent.end {
                return None;
            }
            if !std::mem::take(&mut self.first) && self.creation.changed().await.is_err() {
                let error = crate::branches::shutting_down();
                self.sent.end = true;
                return Some((Ok(line(&ConnectorEvent::Error { error })), self));
            }
            let now = self.creation.borrow_and_update().clone();
            let mut out = Vec::new();
            if !self.sent.preflight
                && let Some(report) = now.preflight
            {
                self.sent.preflight = true;
                out.extend_from_slice(&line(&ConnectorEvent::Preflight { report }));
            }
            if let Some(progress) = now.progress
                && self.sent.progress.as_ref() != Some(&progress)
            {
                out.extend_from_slice(&line(&progress));
                self.sent.progress = Some(progress);
            }
            if let Some(end) = now.end {
                self.sent.end = true;
                out.extend_from_slice(&line(&match end {
                    Ok(connector) => ConnectorEvent::Done { connector: *connector },
                    Err(error) => ConnectorEvent::Error { error },
                }));
            }
            if !out.is_empty() {
                return Some((Ok(Bytes::from(out)), self));
            }
        }
    }
}

fn line(event: &ConnectorEvent) -> Bytes {
    let mut line = serde_json::to_vec(event).expect("events are plain data");
    line.push(b'\n');
    Bytes::from(line)
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    deleted: bool,
}

async fn list_branches(
    State(control): Shared,
    super::reply::Query(query): super::reply::Query<ListQuery>,
) -> Result<BranchList> {
    let branches = if query.deleted { control.list_deleted()? } else { control.list_branches()? };
    Ok(Reply(BranchList { schema_version: SCHEMA_VERSION, branches }))
}

async fn create_branch(State(control): Shared, Body(request): Body<CreateBranchRequest>) -> Result<CreateBranchReply> {
    let began = Instant::now();
    let reply = control.create_branch(request).await?;
    control.context.metrics.created(began);
    Ok(Reply(reply))
}

async fn show_branch(State(control): Shared, Path(name): Path<String>) -> Result<BranchInfo> {
    Ok(Reply(control.show_branch(&name)?))
}

async fn update_connector(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<UpdateConnectorRequest>,
) -> Result<ConnectorInfo> {
    Ok(Reply(control.update_connector(&name, &request).await?))
}

async fn update_branch(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<UpdateBranchRequest>,
) -> Result<BranchInfo> {
    Ok(Reply(control.update_branch(&name, &request).await?))
}

#[derive(Deserialize)]
struct DeleteQuery {
    #[serde(default)]
    for_good: bool,
}

async fn delete_branch(
    State(control): Shared,
    Path(name): Path<String>,
    super::reply::Query(query): super::reply::Query<DeleteQuery>,
) -> Result<DeleteReply> {
    let deletion = if query.for_good { Deletion::ForGood } else { Deletion::Kept };
    Ok(Reply(control.delete_branch(&name, deletion).await?))
}

async fn reset(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<ResetRequest>,
) -> Result<SwitchReply> {
    Ok(Reply(control.reset_branch(&name, request).await?))
}

async fn restore(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<RestoreRequest>,
) -> Result<SwitchReply> {
    Ok(Reply(control.restore_branch(&name, request).await?))
}

async fn history(State(control): Shared, Path(name): Path<String>) -> Result<BranchHistory> {
    Ok(Reply(control.branch_history(&name).await?))
}

async fn list_checkpoints(State(control): Shared, Path(name): Path<String>) -> Result<CheckpointList> {
    Ok(Reply(control.list_checkpoints(&name).await?))
}

async fn create_checkpoint(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<CreateCheckpointRequest>,
) -> Result<CheckpointInfo> {
    Ok(Reply(control.create_checkpoint(&name, &request).await?))
}

async fn delete_checkpoint(State(control): Shared, Path((name, label)): Path<(String, String)>) -> Result<DeleteReply> {
    Ok(Reply(control.delete_checkpoint(&name, &label)?))
}

async fn rewind(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<RewindRequest>,
) -> Result<SwitchReply> {
    Ok(Reply(control.rewind_branch(&name, request).await?))
}

async fn undelete(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<UndeleteRequest>,
) -> Result<BranchInfo> {
    Ok(Reply(control.undelete_branch(&name, &request).await?))
}

async fn rename(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<RenameRequest>,
) -> Result<BranchInfo> {
    Ok(Reply(control.rename_branch(&name, &request).await?))
}

#[derive(Deserialize)]
struct UrlQuery {
    role: Option<String>,
}

async fn branch_url(
    State(control): Shared,
    Path(name): Path<String>,
    super::reply::Query(query): super::reply::Query<UrlQuery>,
) -> Result<UrlReply> {
    Ok(Reply(control.branch_url(&name, query.role.as_deref())?))
}

async fn unnamed_files(State(control): Shared, Path(name): Path<String>) -> Result<UnnamedFilesReply> {
    Ok(Reply(control.unnamed_files(&name).await?))
}

async fn new_password(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<PasswordRequest>,
) -> Result<UrlReply> {
    Ok(Reply(control.new_password(&name, &request)?))
}

async fn wake(State(control): Shared, Path(name): Path<String>) -> Result<WakeReply> {
    Ok(Reply(control.wake(&name).await?))
}

async fn suspend(State(control): Shared, Path(name): Path<String>) -> Result<BranchInfo> {
    Ok(Reply(control.suspend(&name).await?))
}

async fn diff(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<DiffRequest>,
) -> std::result::Result<LongReply<DiffReport>, Failure> {
    Ok(LongReply(control.diff_branch(&name, request).await?))
}

async fn diff_lines(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<DiffRequest>,
) -> std::result::Result<Response, Failure> {
    let mut events = control.diff_in_parts(&name, request)?;
    Ok(super::reply::long("application/x-ndjson", move |out| {
        while let Some(event) = events.blocking_recv() {
            match event {
                DiffEvent::Found(Found { database, piece }) => write_lines(out, &database, &piece)?,
                DiffEvent::End(end) => write_end(out, &end)?,
                DiffEvent::Error(error) => write_error(out, SCHEMA_VERSION, &error)?,
            }
            out.flush()?;
        }
        Ok(())
    }))
}

async fn log(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<LogRequest>,
) -> std::result::Result<Response, Failure> {
    let reading = control.open_statement_log(&name, &request).await?;
    Ok(super::reply::long("application/x-ndjson", move |out| reading.write_to(out)))
}

async fn blame(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<BlameRequest>,
) -> Result<BlameReply> {
    Ok(Reply(control.blame(&name, request).await?))
}

async fn rebase(
    State(control): Shared,
    Path(name): Path<String>,
    Body(request): Body<RebaseRequest>,
) -> Result<RebaseReply> {
    Ok(Reply(control.rebase_branch(&name, request).await?))
}

async fn list_masked(State(control): Shared) -> Result<MaskedList> {
    Ok(Reply(MaskedList { schema_version: SCHEMA_VERSION, templates: control.list_masked()? }))
}

async fn show_masked(State(control): Shared, Path(name): Path<String>) -> Result<MaskedInfo> {
    Ok(Reply(control.show_masked(&name)?))
}

async fn check_masking(State(control): Shared, Body(request): Body<CheckMaskingRequest>) -> Result<MaskingCheck> {
    Ok(Reply(control.check_masking(request).await?))
}

async fn create_masked(
    State(control): Shared,
    Body(request): Body<CreateMaskedRequest>,
) -> std::result::Result<LongLines<MaskEvent>, Failure> {
    let (events, receiver) = tokio::sync::mpsc::channel(EVENTS_WAITING_MAX);
    control.create_masked(request, events)?;
    Ok(LongLines(receiver))
}

async fn delete_masked(State(control): Shared, Path(name): Path<String>) -> Result<DeleteReply> {
    Ok(Reply(control.delete_masked(&name).await?))
}

#[derive(Deserialize)]
struct ApplyQuery {
    /// An [`ApplyRequest`] as JSON: the body is the change set.
    request: String,
}

/// Lines of an apply or a masking that may wait for the network.
const EVENTS_WAITING_MAX: usize = 64;

async fn apply(
    State(control): Shared,
    Path(name): Path<String>,
    super::reply::Query(query): super::reply::Query<ApplyQuery>,
    request: Request,
) -> std::result::Result<LongLines<ApplyEvent>, Failure> {
    let wanted: ApplyRequest = serde_json::from_str(&query.request).map_err(|error| {
        ErrorInfo::new(ApiErrorCode::InvalidArguments, format!("the request is not understood: {error}"))
    })?;
    // Known before a long change set is sent and kept.
    control.show_connector(&name).await?;
    let content = if wanted.branch.is_some() { None } else { Some(receive(&control, request).await?) };
    let (events, receiver) = tokio::sync::mpsc::channel(EVENTS_WAITING_MAX);
    control.apply_to_production(&name, wanted, content, events)?;
    Ok(LongLines(receiver))
}

async fn commit_apply(State(control): Shared, Path((_, token)): Path<(String, String)>) -> Result<CommitReply> {
    control.confirmations.confirm(&token)?;
    Ok(Reply(CommitReply { schema_version: SCHEMA_VERSION }))
}

/// Receives a change set file: into a temporary file, however long it is.
async fn receive(control: &Control, request: Request) -> std::result::Result<ChangeSetFile, ErrorInfo> {
    let kept = |error: std::io::Error| {
        ErrorInfo::new(ApiErrorCode::Internal, format!("the change set cannot be kept: {error}"))
            .with_hint("see whether the server's disk is full")
    };
    let mut file = tempfile::tempfile_in(control.spill_folder()).map_err(kept)?;
    let mut parts = request.into_body().into_data_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| {
            ErrorInfo::new(ApiErrorCode::InvalidArguments, format!("the change set was not sent whole: {error}"))
        })?;
        file.write_all(&part).map_err(kept)?;
    }
    let reading = tokio::task::spawn_blocking(move || {
        file.rewind().map_err(ardent_change_set::FileError::Io)?;
        read(&mut file)
    });
    reading.await.map_err(|_| crate::branches::shutting_down())?.map_err(|error| {
        ErrorInfo::new(
            ApiErrorCode::InvalidArguments,
            format!("the change set cannot be applied: {}", ardent_types::with_causes(&error)),
        )
        .with_hint("write it again: ardent branch diff NAME -o FILE")
    })
}
