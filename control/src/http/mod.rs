//! The HTTP API: public routes with bearer tokens on TCP and the Unix socket, internal ones on the Unix socket only.
//!
//! Handlers only translate; what they do is in [`crate::service`], [`crate::branches`] and [`crate::connectors`]. What they do not read of a
//! request is read for them, so that its connection can take the next one.

mod internal;
mod openapi;
mod public;
mod reply;
mod unread;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::service::Control;

pub(crate) use reply::{Failure, Reply};

/// Largest request body in bytes.
const BODY_LEN_MAX: usize = 1 << 20;

/// Serves the public API.
pub(crate) fn serve_tcp(listener: TcpListener, control: Arc<Control>, cancel: CancellationToken) -> JoinHandle<()> {
    let router = public::router(control).layer(from_fn(unread::read_rest));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await {
            warn!(%error, "the HTTP API has ended");
        }
    })
}

/// Serves the public and the internal API.
pub(crate) fn serve_unix(listener: UnixListener, control: Arc<Control>, cancel: CancellationToken) -> JoinHandle<()> {
    let router: Router = public::router(control.clone()).merge(internal::router(control));
    let router = router.layer(from_fn(unread::read_rest));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await {
            warn!(%error, "the HTTP API on the Unix socket has ended");
        }
    })
}
