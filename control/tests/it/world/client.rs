//! A client of the API.

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// Sends one request; the status, and the body as text.
pub(super) async fn request<S>(
    stream: S,
    method: &str,
    path: &str,
    body: Option<Value>,
    token: Option<&str>,
) -> (u16, String)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    let connection = tokio::spawn(connection);
    let mut request = hyper::Request::builder().method(method).uri(path).header("host", "ardent");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let request = request.body(Full::new(bytes)).expect("request");
    let response = sender.send_request(request).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("the whole body").to_bytes();
    connection.abort();
    (status, String::from_utf8(body.to_vec()).expect("text"))
}

/// Sends requests with the same body over one connection, each after the answer to the one before; the status of each.
pub(super) async fn requests_in_turn<S>(
    stream: S,
    requests: &[(String, String)],
    body: &[u8],
    token: Option<&str>,
) -> Vec<u16>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    for (method, path) in requests {
        let ready = sender.ready().await;
        ready.unwrap_or_else(|error| panic!("no connection for {method} {path} after {answers:?}: {error}"));
        let mut request = hyper::Request::builder().method(method.as_str()).uri(path).header("host", "ardent");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).expect("request");
        let response = sender.send_request(request).await;
        let response = response.unwrap_or_else(|error| panic!("{method} {path} after {answers:?}: {error}"));
        answers.push(response.status().as_u16());
        response.into_body().collect().await.expect("the whole answer");
    }
    connection.abort();
    answers
}
