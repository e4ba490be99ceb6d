//! The tools over HTTP: for clients that do not start a program, and for several at once.
//!
//! Whoever calls shows a token of the server's own, and acts with it: this process has no rights to lend. There is no TLS, so it listens
//! on loopback alone; requests for other hosts, and those that a browser makes for a page, are refused before they are read.

use std::net::SocketAddr;
use std::sync::Arc;

use ardent_api::control::{ApiErrorCode, ErrorInfo, SCHEMA_VERSION, WhoamiReply};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::server::{Caller, Tools};
use crate::api::Api;
use crate::commands::wait_for_signal;
use crate::config::Session;
use crate::failure::Failure;
use crate::output::Output;

/// Where clients find it.
const PATH: &str = "/mcp";

/// What is printed when it listens.
#[derive(Serialize)]
struct Reply {
    schema_version: u32,
    url: String,
}

/// Serves until it is told to end.
pub async fn serve(output: &Output, tools: Tools, api_url: String, listen: SocketAddr) -> Result<(), Failure> {
    if !listen.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "{listen} is reached from other hosts, and tokens would go there in the clear"
        ))
        .hint("listen on 127.0.0.1, and put a proxy with TLS in front of it"));
    }
    let cannot_listen = |error: std::io::Error| Failure::local(format!("nothing can listen on {listen}"), &error);
    let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
    let listen = listener.local_addr().map_err(cannot_listen)?;
    let ending = CancellationToken::new();
    let config =
        StreamableHttpServerConfig::default().enforce_origin_validation().with_cancellation_token(ending.clone());
    let service =
        StreamableHttpService::new(move || Ok(tools.clone()), Arc::new(LocalSessionManager::default()), config);
    let app = Router::new().route_service(PATH, service).layer(from_fn_with_state(Arc::new(api_url), authenticated));
    let reply = Reply { schema_version: SCHEMA_VERSION, url: format!("http://{listen}{PATH}") };
    output.data(&reply, |reply| {
        format!("ready: {}, with the token of ardent login as Authorization: Bearer", reply.url)
    })?;
    let ended = async move {
        let _signal = wait_for_signal().await;
        ending.cancel();
    };
    let served = axum::serve(listener, app).with_graceful_shutdown(ended).await;
    served.map_err(|error| Failure::local("the connection to clients failed", &error))
}

/// Lets nobody in whom the server does not know.
async fn authenticated(State(url): State<Arc<String>>, mut request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given.and_then(|value| value.strip_prefix("Bearer ")).map(|token| token.trim().to_owned());
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return refused(
            ErrorInfo::new(ApiErrorCode::NotAuthenticated, "a token is missing")
                .with_hint("send Authorization: Bearer TOKEN, with a token of the ardent server"),
        );
    };
    let session = Session { url: url.to_string(), token: Some(token.clone()) };
    let known = tokio::task::spawn_blocking(move || Api::with_session(session).get::<WhoamiReply>("/v1/whoami")).await;
    match known {
        Ok(Ok(_)) => {
            request.extensions_mut().insert(Caller { token });
            next.run(request).await
        }
        Ok(Err(failure)) => refused(failure.info),
        Err(error) => refused(ErrorInfo::new(ApiErrorCode::Internal, error.to_string())),
    }
}

fn refused(error: ErrorInfo) -> Response {
    let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    (status, challenge, Json(error.into_reply())).into_response()
}
