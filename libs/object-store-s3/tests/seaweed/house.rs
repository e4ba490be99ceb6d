//! A bucket of a test's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ardent_object_store_s3::{RetryPolicy, S3Keys, S3Location, S3Options, S3Store};
use ardent_test_s3::{FaultProxy, Seaweed};

/// The server, and a bucket in it.
pub struct House {
    pub server: Arc<Seaweed>,
    pub bucket: String,
}

impl House {
    pub fn new() -> House {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = Seaweed::shared();
        let bucket = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        server.make_bucket(&bucket);
        House { server, bucket }
    }

    pub fn location(&self, endpoint: &str, prefix: &str) -> S3Location {
        S3Location::parse(&format!("s3://{}/{prefix}?endpoint={endpoint}", self.bucket)).unwrap()
    }

    /// Where a store is, for another process: the server's keys are the same for all.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}?endpoint={}", self.bucket, self.server.endpoint())
    }

    pub fn options(&self) -> S3Options {
        let (access, secret) = self.server.keys();
        let keys = S3Keys { access: access.to_owned(), secret: secret.to_owned() };
        S3Options { keys: Some(keys), ..S3Options::default() }
    }

    /// The store below `p` with other options.
    pub fn store_with(&self, options: S3Options) -> S3Store {
        S3Store::open(&self.location(&self.server.endpoint(), "p"), &options).unwrap()
    }

    pub fn store(&self, prefix: &str) -> S3Store {
        S3Store::open(&self.location(&self.server.endpoint(), prefix), &self.options()).unwrap()
    }

    /// A store that is reached through a proxy, with pauses that a test can wait for.
    pub fn behind_proxy(&self) -> (S3Store, FaultProxy) {
        let retry = RetryPolicy { pause_first: Duration::from_millis(5), ..RetryPolicy::default() };
        self.behind_proxy_with(retry)
    }

    pub fn behind_proxy_with(&self, retry: RetryPolicy) -> (S3Store, FaultProxy) {
        let proxy = FaultProxy::start(self.server.address());
        let options = S3Options { retry, ..self.options() };
        (S3Store::open(&self.location(&proxy.endpoint(), "p"), &options).unwrap(), proxy)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // What a test put there is in memory, and the server lives on.
        if !std::thread::panicking() {
            self.server.remove_bucket(&self.bucket);
        }
    }
}
