//! What the proxy asks. Only on the Unix socket, which only our own user can open.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};

use ardent_api::control::{
    ApiErrorCode, AuthInfo, AuthQuery, BranchState, ErrorInfo, SCHEMA_VERSION, WakeReply, WakeRequest,
};

use super::reply::{Body, Failure, Query, Reply};
use crate::service::Control;
use crate::store::now_us;

pub(crate) fn router(control: Arc<Control>) -> Router {
    Router::new().route("/internal/v1/auth", get(auth)).route("/internal/v1/wake", post(wake)).with_state(control)
}

async fn auth(State(control): State<Arc<Control>>, Query(query): Query<AuthQuery>) -> Result<Reply<AuthInfo>, Failure> {
    // One answer for both: the proxy must not let anyone tell them apart.
    let unknown = || ErrorInfo::new(ApiErrorCode::NotFound, "no such branch and role");
    let branch = control.find_branch(&query.branch).ok().filter(|row| row.state != BranchState::Deleting);
    let branch = branch.ok_or_else(unknown)?;
    let credential = control.context.store.credential(branch.id, &query.role).map_err(ErrorInfo::from)?;
    let credential = credential.ok_or_else(unknown)?;
    let good = |until_us: Option<i64>| until_us.is_none_or(|until_us| until_us > now_us());
    // As the compute reported it last: so a role that may not log in wakes nothing.
    let role = control.context.store.role(branch.id, &query.role).map_err(ErrorInfo::from)?;
    // After a restore, what was reported may not be so yet, or any more: whether a role may log in says Postgres then.
    let may_log_in =
        role.map_or(!branch.roles_known, |role| (role.can_login || !branch.roles_known) && good(role.valid_until_us));
    if !may_log_in || !good(credential.expires_us) {
        return Err(unknown().into());
    }
    Ok(Reply(AuthInfo { schema_version: SCHEMA_VERSION, branch_id: branch.id, verifier: credential.verifier }))
}

async fn wake(
    State(control): State<Arc<Control>>,
    Body(request): Body<WakeRequest>,
) -> Result<Reply<WakeReply>, Failure> {
    Ok(Reply(control.wake(&request.branch).await?))
}
