//! Replies and errors, and requests whose bad form is answered as every other error is.

use std::io::{self, BufWriter, Write};

use axum::body::{Body as ReplyBody, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{error, warn};

use ardent_api::control::{ApiErrorCode, ErrorInfo};

/// A JSON body with status 200.
pub(crate) struct Reply<T>(pub T);

/// An error.
#[derive(Debug)]
pub(crate) struct Failure(pub ErrorInfo);

impl From<ErrorInfo> for Failure {
    fn from(error: ErrorInfo) -> Self {
        Failure(error)
    }
}

impl<T: Serialize> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, &self.0)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if self.0.code == ApiErrorCode::Internal {
            error!(error = %self.0, "a request failed");
        }
        let status = StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, &self.0.into_reply())
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        // Replies may hold passwords.
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], body)
            .into_response(),
        Err(error) => {
            error!(%error, "a reply cannot be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A JSON body with status 200 that may be longer than memory holds: it is written while it is sent.
pub(crate) struct LongReply<T>(pub T);

/// Bytes of a long reply that are sent at once, and how many such parts may wait for the network.
const PART_LEN: usize = 64 << 10;
const PARTS_WAITING_MAX: usize = 4;

impl<T: Serialize + Send + 'static> IntoResponse for LongReply<T> {
    fn into_response(self) -> Response {
        long("application/json", move |out| serde_json::to_writer(out, &self.0).map_err(io::Error::from))
    }
}

/// JSON values, one a line, sent as they come.
pub(crate) struct LongLines<T>(pub mpsc::Receiver<T>);

impl<T: Serialize + Send + 'static> IntoResponse for LongLines<T> {
    fn into_response(mut self) -> Response {
        long("application/x-ndjson", move |mut out| {
            // Nobody who has gone is waited for: what the values come from ends with their receiver.
            while let Some(value) = out.get_ref().while_read(self.0.recv()) {
                serde_json::to_writer(&mut out, &value)?;
                writeln!(out)?;
                out.flush()?;
            }
            Ok(())
        })
    }
}

/// A reply that `write` writes while it is sent.
pub(crate) fn long(
    media: &'static str,
    write: impl FnOnce(&mut BufWriter<Outgoing>) -> io::Result<()> + Send + 'static,
) -> Response {
    let (parts, receiver) = mpsc::channel(PARTS_WAITING_MAX);
    // Ends with the reply, or when nobody reads it any more.
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(PART_LEN, Outgoing(parts.clone()));
        if let Err(error) = write(&mut out).and_then(|()| out.flush()) {
            warn!(%error, "a long reply ends in the middle");
            // The reader must not take it for the end.
            let _ = parts.blocking_send(Err(error));
        }
    });
    let parts = stream::unfold(receiver, |mut parts| async move { Some((parts.recv().await?, parts)) });
    let headers = [(header::CONTENT_TYPE, media), (header::CACHE_CONTROL, "no-store")];
    (StatusCode::OK, headers, ReplyBody::from_stream(parts)).into_response()
}

/// Hands on what is written, waiting where the reader is slower.
pub(crate) struct Outgoing(mpsc::Sender<io::Result<Bytes>>);

impl Outgoing {
    /// Waits for something, as long as somebody reads. Called where blocking is allowed.
    fn while_read<T>(&self, next: impl Future<Output = Option<T>>) -> Option<T> {
        Handle::current().block_on(async {
            tokio::select! {
                next = next => next,
                () = self.0.closed() => None,
            }
        })
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A JSON body.
pub(crate) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Body(value)),
            Err(rejection) => Err(malformed(&rejection.body_text())),
        }
    }
}

/// A query string.
pub(crate) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Query(value)),
            Err(rejection) => Err(malformed(&rejection.body_text())),
        }
    }
}

fn malformed(why: &str) -> Failure {
    Failure(
        ErrorInfo::new(ApiErrorCode::InvalidArguments, why.to_owned())
            .with_hint("GET /v1/openapi.json describes the requests"),
    )
}
