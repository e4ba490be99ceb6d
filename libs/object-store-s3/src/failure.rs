//! What a failed attempt means: from status, code and cause to an error's kind and the next step.

use std::error::Error;
use std::time::Duration;

use ardent_object_store::{ErrorKind, StoreError};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// One attempt failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    /// The store's code, if it gave one.
    pub(crate) code: String,
    pub(crate) detail: String,
    /// How long the store asks to wait.
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Failure { kind, code: String::new(), detail: detail.into(), retry_after: None }
    }

    /// What the store said of one object among several.
    pub(crate) fn of_code(code: &str, message: &str) -> Self {
        let (kind, step) = judge(0, code);
        Failure { code: code.to_owned(), ..Failure::new(kind, said(0, code, message, step)) }
    }

    /// The error of a call that ended with this failure after `attempts` in `elapsed`.
    pub(crate) fn into_error(
        self,
        operation: &'static str,
        object: &str,
        attempts: u32,
        elapsed: Duration,
    ) -> StoreError {
        let detail = match self.kind {
            ErrorKind::Retry => format!(
                "the store was not available: tried {attempts} times in {:.1} s, last: {}",
                elapsed.as_secs_f64(),
                self.detail
            ),
            _ => self.detail,
        };
        StoreError::new(self.kind, operation, object, detail)
    }
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let causes = causes(&error);
        let (kind, detail) = match &error {
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                let code = service.err().code().unwrap_or_default();
                let message = service.err().message().unwrap_or_default();
                let (kind, step) = judge(status, code);
                (kind, said(status, code, message, step))
            }
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                // An answer that can't be read was cut off, or is not from a store at all.
                (ErrorKind::Retry, format!("an answer with status {status} can't be read: {causes}"))
            }
            _ => judge_connection(&causes),
        };
        let retry_after = error
            .raw_response()
            .and_then(|response| response.headers().get("retry-after"))
            .and_then(|seconds| seconds.parse().ok())
            .map(Duration::from_secs);
        let code = error.code().unwrap_or_default().to_owned();
        Failure { kind, code, detail, retry_after }
    }
}

fn said(status: u16, code: &str, message: &str, step: &str) -> String {
    let status = if status == 0 { String::new() } else { format!("status {status}") };
    let parts = [&status, code, message, step].into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("; ")
}

/// Kind and next step for an answer of the store.
fn judge(status: u16, code: &str) -> (ErrorKind, &'static str) {
    match (status, code) {
        (_, "NoSuchBucket") => (ErrorKind::Denied, "make the bucket, or name another with --store"),
        (_, "ExpiredToken" | "ExpiredTokenException" | "InvalidToken") => {
            (ErrorKind::Denied, "renew the credentials of this server")
        }
        (_, "RequestTimeTooSkewed") => (ErrorKind::Denied, "set this host's clock: it differs from the store's"),
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AuthorizationHeaderMalformed") => {
            (ErrorKind::Denied, "check access key, secret key and region")
        }
        (
            _,
            "RequestTimeout"
            | "RequestTimeoutException"
            | "SlowDown"
            | "Throttling"
            | "TooManyRequests"
            | "InternalError",
        ) => (ErrorKind::Retry, ""),
        // Two conditional puts at once: one of them may have won, the next attempt sees.
        (_, "ConditionalRequestConflict" | "OperationAborted") => (ErrorKind::Retry, ""),
        (_, "XAmzContentSHA256Mismatch" | "BadDigest" | "IncompleteBody") => (ErrorKind::Retry, ""),
        (_, "NoSuchKey" | "NotFound") | (404, _) => (ErrorKind::NotFound, ""),
        (_, "PreconditionFailed") | (412, _) => (ErrorKind::Precondition, ""),
        (_, "InvalidRange") | (416, _) => (ErrorKind::OutOfRange, ""),
        (301 | 307 | 308, _) => (ErrorKind::Denied, "the bucket is in another region: give region= in --store"),
        (_, "AccessDenied") | (401 | 403, _) => {
            (ErrorKind::Denied, "give these credentials the rights that docs/s3.md lists")
        }
        (501, _) | (_, "NotImplemented") => {
            (ErrorKind::Denied, "the store lacks a call that is needed: docs/s3.md lists them")
        }
        (408 | 425 | 429 | 500.., _) => (ErrorKind::Retry, ""),
        (_, "InvalidBucketName") => (ErrorKind::Denied, "name another bucket with --store"),
        _ => (ErrorKind::Internal, ""),
    }
}

/// The same for an attempt that got no answer, by its causes.
fn judge_connection(causes: &str) -> (ErrorKind, String) {
    let lower = causes.to_lowercase();
    let step = if lower.contains("certificate") {
        "the store's certificate is not trusted: give its CA with --store-ca FILE, or install it on this host"
    } else if lower.contains("credentials") || lower.contains("no providers in chain") {
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile (docs/s3.md)"
    } else {
        return (ErrorKind::Retry, causes.to_owned());
    };
    (ErrorKind::Denied, format!("{causes}; {step}"))
}

/// An error with its causes, each said once. Layers of the client's own that say nothing to people are left out.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut last = Some(error);
    while let Some(error) = last {
        let said = error.to_string();
        let said = plain(&said);
        if !text.contains(said) {
            let between = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{between}{said}");
        }
        last = error.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

/// What a layer of the client means; empty where it only says that the next one failed.
fn plain(said: &str) -> &str {
    match said {
        "dispatch failure" | "response error" | "service error" | "io error" | "other" => "",
        "client error (Connect)" | "tcp connect error" => "no connection",
        "client error (SendRequest)" => "the connection ended before an answer came",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_kinds() {
        let cases = [
            (404, "NoSuchKey", ErrorKind::NotFound),
            (404, "", ErrorKind::NotFound),
            (404, "NoSuchBucket", ErrorKind::Denied),
            (412, "PreconditionFailed", ErrorKind::Precondition),
            (409, "ConditionalRequestConflict", ErrorKind::Retry),
            (416, "InvalidRange", ErrorKind::OutOfRange),
            (403, "AccessDenied", ErrorKind::Denied),
            (400, "ExpiredToken", ErrorKind::Denied),
            (403, "RequestTimeTooSkewed", ErrorKind::Denied),
            (400, "RequestTimeout", ErrorKind::Retry),
            (429, "", ErrorKind::Retry),
            (500, "InternalError", ErrorKind::Retry),
            (502, "", ErrorKind::Retry),
            (503, "SlowDown", ErrorKind::Retry),
            (501, "NotImplemented", ErrorKind::Denied),
            (301, "PermanentRedirect", ErrorKind::Denied),
            (400, "InvalidArgument", ErrorKind::Internal),
        ];
        for (status, code, expect) in cases {
            assert_eq!(judge(status, code).0, expect, "{status} {code}");
        }
        assert_eq!(judge_connection("connection refused").0, ErrorKind::Retry);
        assert_eq!(judge_connection("invalid peer certificate: UnknownIssuer").0, ErrorKind::Denied);
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    fn check_causes(layers: &[&'static str], expect: &str) {
        let chain = layers.iter().rev().fold(None, |below, said| Some(Box::new(Layer(*said, below))));
        assert_eq!(causes(&*chain.expect("a layer")), expect);
    }

    #[test]
    fn the_clients_own_layers_are_left_out_or_put_plainly() {
        let refused = "Connection refused (os error 111)";
        let layers = ["dispatch failure", "io error", "client error (Connect)", "tcp connect error", refused];
        check_causes(&layers, "no connection: Connection refused (os error 111)");
        check_causes(&["dispatch failure", "other", "no providers in chain"], "no providers in chain");
        check_causes(&["dispatch failure", "io error"], "dispatch failure");
    }

    #[test]
    fn an_unavailable_store_says_how_long_it_was_tried() {
        let failure = Failure::new(ErrorKind::Retry, "connection refused");
        let text = failure.into_error("get", "a/b", 7, Duration::from_millis(30_040)).to_string();
        assert!(text.contains("tried 7 times in 30.0 s, last: connection refused"), "{text}");
    }
}
