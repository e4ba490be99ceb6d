//! What the proxy asks of control.

use std::future::Future;
use std::path::PathBuf;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use ardent_api::control::{AuthInfo, ErrorReply, WakeReply, WakeRequest};

/// Largest answer taken from control, in bytes.
const ANSWER_LEN_MAX: usize = 256 * 1024;

/// Control did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It cannot be reached or does not speak our protocol.
    #[error("control does not answer: {0}")]
    Unreachable(String),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// A word for scripts.
        code: String,
        /// What failed and why.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// The two questions that the proxy has.
pub trait ControlPlane: Send + Sync + 'static {
    /// The SCRAM verifier of a role on a branch; `None` when there is no such role or branch.
    fn verifier(&self, branch: &str, role: &str) -> impl Future<Output = Result<Option<String>, ControlError>> + Send;

    /// Waits until the branch has a compute that takes connections. Many callers share one start.
    fn wake(&self, branch: &str) -> impl Future<Output = Result<WakeReply, ControlError>> + Send;
}

/// Control behind its Unix socket. Only this installation's user can open it.
#[derive(Clone, Debug)]
pub struct ControlSocket {
    path: PathBuf,
}

impl ControlSocket {
    /// Control's socket at `path`.
    pub fn new(path: PathBuf) -> Self {
        ControlSocket { path }
    }

    async fn call(&self, method: Method, uri: String, body: Bytes) -> Result<(StatusCode, Bytes), ControlError> {
        let unreachable = |error: &dyn std::fmt::Display| ControlError::Unreachable(error.to_string());
        let stream = UnixStream::connect(&self.path).await.map_err(|error| unreachable(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "control")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| unreachable(&error))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LEN_MAX);
            let bytes = body.collect().await.map_err(|error| unreachable(&error))?.to_bytes();
            Ok((status, bytes))
        };
        // The connection only makes progress while it is polled; it ends with the exchange.
        tokio::select! {
            biased;
            answer = exchange => answer,
            result = connection => Err(match result {
                Ok(()) => ControlError::Unreachable("the connection was closed".to_owned()),
                Err(error) => unreachable(&error),
            }),
        }
    }
}

impl ControlPlane for ControlSocket {
    async fn verifier(&self, branch: &str, role: &str) -> Result<Option<String>, ControlError> {
        let uri = format!("/internal/v1/auth?branch={}&role={}", percent_encode(branch), percent_encode(role));
        match self.call(Method::GET, uri, Bytes::new()).await? {
            (StatusCode::OK, body) => decode::<AuthInfo>(&body).map(|info| Some(info.verifier)),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => Err(refusal(status, &body)),
        }
    }

    async fn wake(&self, branch: &str) -> Result<WakeReply, ControlError> {
        let request = WakeRequest { branch: branch.to_owned() };
        let body = serde_json::to_vec(&request).map_err(|error| ControlError::Unreachable(error.to_string()))?;
        match self.call(Method::POST, "/internal/v1/wake".to_owned(), body.into()).await? {
            (StatusCode::OK, body) => decode(&body),
            (status, body) => Err(refusal(status, &body)),
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(body).map_err(|error| ControlError::Unreachable(format!("unexpected answer: {error}")))
}

fn refusal(status: StatusCode, body: &[u8]) -> ControlError {
    match serde_json::from_slice::<ErrorReply>(body) {
        Ok(ErrorReply { error, .. }) => {
            ControlError::Refused { code: error.code.to_string(), message: error.message, hint: error.hint }
        }
        Err(_) => ControlError::Unreachable(format!("status {status}")),
    }
}

fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_percent_encoded() {
        assert_eq!(percent_encode("a-b.c"), "a-b.c");
        assert_eq!(percent_encode("é&=?"), "%C3%A9%26%3D%3F");
    }

    #[tokio::test]
    async fn a_missing_socket_is_unreachable() {
        let control = ControlSocket::new("/nonexistent/control.sock".into());
        assert!(matches!(control.verifier("a", "b").await, Err(ControlError::Unreachable(_))));
    }
}
