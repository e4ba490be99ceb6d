//! Replies and errors, and requests whose bad form is answered as every other error is.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::error;

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
