//! Where a process tells how it is: `/metrics` for Prometheus and `/health`, on a port of their own, on this host only,
//! for who shows the installation's metrics token. `docs/metrics.md` lists what is told.

mod process;
mod store;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tracing::info;

use ardent_api::control::ApiErrorCode;
use ardent_api::token::{Rights, Service, TokenVerifier};
use ardent_types::{TenantId, TimelineId};

use super::roles::Task;
use crate::args::MetricsArgs;
use crate::failure::Failure;

pub use store::StoreMetrics;

/// `schema_version` of [`Health`].
const SCHEMA_VERSION: u32 = 1;
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Says what of a role does not work now.
type Check = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// What a process tells, gathered while its roles start.
pub struct Metrics {
    registry: Registry,
    checks: Vec<Check>,
    listener: Option<TcpListener>,
}

struct Told {
    registry: Registry,
    checks: Vec<Check>,
    verifier: TokenVerifier,
}

#[derive(Serialize)]
struct Health {
    schema_version: u32,
    status: &'static str,
    problems: Vec<String>,
}

impl Metrics {
    /// Takes the port, if one is wanted.
    pub async fn bind(args: &MetricsArgs) -> Result<Self, Failure> {
        let listener = match args.metrics_listen {
            None => None,
            Some(address) => Some(listen(address).await?),
        };
        let mut registry = Registry::default();
        process::register(&mut registry);
        Ok(Metrics { registry, checks: Vec::new(), listener })
    }

    /// Where roles add what they count.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Adds to what `/health` tells.
    pub fn check(&mut self, check: impl Fn() -> Vec<String> + Send + Sync + 'static) {
        self.checks.push(Box::new(check));
    }

    /// Answers from now on; `None` if nobody wants to know.
    pub fn serve(self, verifier: TokenVerifier) -> Option<Task> {
        let listener = self.listener?;
        if let Ok(address) = listener.local_addr() {
            info!(%address, "metrics and health are told");
        }
        let told = Arc::new(Told { registry: self.registry, checks: self.checks, verifier });
        let router = Router::new().route("/metrics", get(metrics)).route("/health", get(health)).with_state(told);
        Some(Task::spawn(async move |cancel| {
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await {
                tracing::warn!(%error, "metrics are not told any more");
            }
        }))
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    if !address.ip().is_loopback() {
        let message = format!("metrics would be told on {address}, which other hosts can reach, without encryption");
        return Err(
            Failure::usage(message).hint("give --metrics-listen an address of this host, such as 127.0.0.1:7481")
        );
    }
    TcpListener::bind(address).await.map_err(|error| {
        Failure::local(format!("cannot listen on {address}"), &error)
            .code(ApiErrorCode::Conflict)
            .hint("choose another address with --metrics-listen, or end what holds the port")
    })
}

async fn metrics(State(told): State<Arc<Told>>, request: Request) -> Response {
    if let Some(refusal) = refuse(&told, &request) {
        return refusal;
    }
    let mut body = String::new();
    match text::encode(&mut body, &told.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn health(State(told): State<Arc<Told>>, request: Request) -> Response {
    if let Some(refusal) = refuse(&told, &request) {
        return refusal;
    }
    let problems: Vec<String> = told.checks.iter().flat_map(|check| check()).collect();
    let (code, status) =
        if problems.is_empty() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "degraded") };
    (code, axum::Json(Health { schema_version: SCHEMA_VERSION, status, problems })).into_response()
}

/// What somebody without the token is told.
fn refuse(told: &Told, request: &Request) -> Option<Response> {
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let allowed = token.is_some_and(|token| {
        let claims = told.verifier.verify(token, now_s);
        let allow = |claims: ardent_api::token::Claims| {
            claims.allow(Service::Metrics, TenantId::NONE, TimelineId::NONE, Rights::Read)
        };
        claims.and_then(allow).is_ok()
    });
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let text = "this needs the installation's metrics token: metrics.token, see ardent keys\n";
    (!allowed).then(|| (StatusCode::UNAUTHORIZED, challenge, text).into_response())
}
