//! What a handler leaves unread of a request's body.
//!
//! A connection can take another request only after the whole of the one before. So the rest is read, and thrown away, before the reply goes
//! out; where that is too much, the reply says that the connection ends with it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody as _};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::stream::{self, Fuse, Stream as _, StreamExt as _};
use parking_lot::Mutex;

use super::BODY_LEN_MAX;

/// Longest rest of a body, in bytes, that is read for the connection to go on.
const REST_LEN_MAX: usize = BODY_LEN_MAX;
/// How long the rest may take to come.
const REST_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers with what `next` answers, once the request is read.
pub(super) async fn read_rest(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body.into_data_stream().fuse()));
    let handlers = body.clone();
    let handlers = Body::from_stream(stream::poll_fn(move |context| handlers.lock().poll_next_unpin(context)));
    let mut response = next.run(Request::from_parts(parts, handlers)).await;
    let is_read = match Arc::into_inner(body) {
        Some(rest) => tokio::time::timeout(REST_TIMEOUT, discard(rest.into_inner())).await.unwrap_or(false),
        // It is read while the reply is sent.
        None => false,
    };
    if !is_read {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads what is left; whether that was all, and not too much.
async fn discard(mut rest: Fuse<BodyDataStream>) -> bool {
    let mut left = REST_LEN_MAX;
    // As far as the client has said how long it is.
    if rest.size_hint().0 > left {
        return false;
    }
    while let Some(part) = rest.next().await {
        match part.ok().and_then(|part| left.checked_sub(part.len())) {
            Some(less) => left = less,
            None => return false,
        }
    }
    true
}
