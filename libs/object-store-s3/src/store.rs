//! The store: each call is a task on the store's own runtime, and the caller's thread waits for it.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ardent_object_store::fault::FailPoints;
use ardent_object_store::{
    ErrorKind, ListPage, ListRequest, ObjectMeta, ObjectName, ObjectPart, ObjectStore, StoreError, UnfinishedUpload,
};
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, Delete, ObjectIdentifier};
use bytes::{Bytes, BytesMut};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::client::{self, S3OpenError};
use crate::failure::{Failure, causes};
use crate::location::S3Location;
use crate::retry::RetryPolicy;

/// Threads that move bytes; callers wait on their own.
const RUNTIME_THREADS: usize = 2;
/// Most objects in one call that deletes.
const DELETE_BATCH_MAX: usize = 1000;
/// Room that is made for a body before any of it came.
const BODY_ROOM_MAX: usize = 4 << 20;
/// The metadata entry that tells whose conditional put made an object (S3-1).
const MARK: &str = "ardent-put";

/// An access key and its secret.
#[derive(Clone)]
pub struct S3Keys {
    /// Access key.
    pub access: String,
    /// Secret key.
    pub secret: String,
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Keys").field("access", &self.access).finish_non_exhaustive()
    }
}

/// How the store is used.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Keys to use instead of what the SDK's chain finds.
    pub keys: Option<S3Keys>,
    /// Certificates in PEM to trust instead of the host's.
    pub ca_file: Option<PathBuf>,
    /// Timeouts and retries.
    pub retry: RetryPolicy,
    /// Requests under way at once.
    pub requests_max: usize,
    /// Fail points in uploads in parts, for tests: `multipart.begin`, `.part`, `.complete` and `.abort` before each call, and the same
    /// with `.answer` after it.
    pub faults: Arc<FailPoints>,
}

impl Default for S3Options {
    fn default() -> Self {
        S3Options { keys: None, ca_file: None, retry: RetryPolicy::default(), requests_max: 32, faults: Arc::default() }
    }
}

/// Objects in a bucket. Its methods block; they may be called from any thread that may wait.
pub struct S3Store {
    calls: Arc<Calls>,
    /// Taken when the store ends.
    runtime: Option<Runtime>,
}

impl S3Store {
    /// The store at `location`. Asks no server anything yet.
    pub fn open(location: &S3Location, options: &S3Options) -> Result<S3Store, S3OpenError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .thread_name("ardent-s3")
            .enable_all()
            .build()
            .map_err(S3OpenError::Runtime)?;
        let (for_task, of_caller) = (location.clone(), options.clone());
        let connecting = async move { client::connect(&for_task, &of_caller).await };
        let ended = || S3OpenError::Runtime(std::io::Error::other("the task that connects has ended"));
        let client = wait_for(&runtime, connecting).ok_or_else(ended)??;
        let calls = Calls {
            client,
            bucket: location.bucket.clone(),
            prefix: location.prefix.clone(),
            shown: location.to_string(),
            retry: options.retry,
            permits: Semaphore::new(options.requests_max.max(1)),
            faults: options.faults.clone(),
        };
        Ok(S3Store { calls: Arc::new(calls), runtime: Some(runtime) })
    }

    /// Runs a call to its end.
    fn run<T, F>(&self, operation: &'static str, object: &str, call: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let ended = || StoreError::new(ErrorKind::Internal, operation, object, "the task of the call has ended");
        let runtime = self.runtime.as_ref().ok_or_else(ended)?;
        wait_for(runtime, call).ok_or_else(ended)?
    }
}

/// Runs `call` on `runtime`. Not `block_on`, which would panic on a thread that belongs to a runtime.
fn wait_for<T, F>(runtime: &Runtime, call: F) -> Option<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (answer, waiting) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        // The receiver waits below; it is there.
        let _ = answer.send(call.await);
    });
    waiting.recv().ok()
}

impl Drop for S3Store {
    fn drop(&mut self) {
        // No call is under way, as each borrows the store. Waiting here would panic on a thread of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({})", self.calls.shown)
    }
}

impl ObjectStore for S3Store {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        let (calls, object, body) = (self.calls.clone(), name.clone(), Bytes::copy_from_slice(body));
        self.run("put", name.as_str(), async move { calls.put(&object, body).await })
    }

    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        let (calls, object, body) = (self.calls.clone(), name.clone(), Bytes::copy_from_slice(body));
        self.run("conditional put", name.as_str(), async move { calls.put_if_absent(&object, body).await })
    }

    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        let (calls, object, file) = (self.calls.clone(), name.clone(), path.to_owned());
        self.run("put of a file", name.as_str(), async move { calls.put_file(&object, &file).await })?;
        std::fs::remove_file(path).map_err(|error| {
            let detail = format!("{} can't be removed after it was stored: {error}", path.display());
            StoreError::new(ErrorKind::Internal, "put of a file", name.as_str(), detail).with_source(error)
        })
    }

    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let (calls, object) = (self.calls.clone(), name.clone());
        self.run("get", name.as_str(), async move { calls.get(&object).await })
    }

    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        if range.is_empty() {
            // A request can't ask for no bytes.
            let object_size_bytes = self.head(name)?.size_bytes;
            if range.start != range.end || range.end > object_size_bytes {
                return Err(StoreError::out_of_range(name, &range, object_size_bytes));
            }
            return Ok(ObjectPart { body: Bytes::new(), object_size_bytes });
        }
        let (calls, object) = (self.calls.clone(), name.clone());
        self.run("ranged get", name.as_str(), async move { calls.get_part(&object, range).await })
    }

    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        let (calls, object) = (self.calls.clone(), name.clone());
        self.run("head", name.as_str(), async move { calls.head(&object).await })
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let (calls, request) = (self.calls.clone(), request.clone());
        let prefix = request.prefix.clone();
        self.run("list", &prefix, async move { calls.list(&request).await })
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let (calls, object) = (self.calls.clone(), name.clone());
        self.run("delete", name.as_str(), async move { calls.delete(&object).await })
    }

    fn delete_many(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        for batch in names.chunks(DELETE_BATCH_MAX) {
            let (calls, batch) = (self.calls.clone(), batch.to_vec());
            let first = batch[0].clone();
            self.run("batch delete", first.as_str(), async move { calls.delete_batch(&batch).await })?;
        }
        Ok(())
    }

    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        let calls = self.calls.clone();
        self.run("list of uploads", "", async move { calls.unfinished_uploads().await })
    }

    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        let (calls, doomed) = (self.calls.clone(), upload.clone());
        self.run("abort of an upload", upload.name.as_str(), async move { calls.give_up(&doomed).await })
    }
}

/// What a task of a call needs.
pub(crate) struct Calls {
    pub(crate) client: Client,
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    shown: String,
    pub(crate) retry: RetryPolicy,
    permits: Semaphore,
    pub(crate) faults: Arc<FailPoints>,
}

impl Calls {
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Makes attempts until one succeeds, fails for good, or the deadline comes.
    pub(crate) async fn attempts<T, F>(
        &self,
        operation: &'static str,
        object: &str,
        policy: RetryPolicy,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let started = Instant::now();
        for number in 1u32.. {
            let failure = match self.one_attempt(policy, started, attempt()).await {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let pause = match failure.kind {
                ErrorKind::Retry => policy.pause(number, started.elapsed(), rand::random(), failure.retry_after),
                _ => None,
            };
            let Some(pause) = pause else {
                return Err(failure.into_error(operation, object, number, started.elapsed()));
            };
            let reason = failure.detail.as_str();
            tracing::debug!(operation, object, number, reason, ?pause, "trying the store again");
            tokio::time::sleep(pause).await;
        }
        Err(Failure::new(ErrorKind::Internal, "attempts ran out").into_error(operation, object, 0, started.elapsed()))
    }

    async fn one_attempt<T>(
        &self,
        policy: RetryPolicy,
        started: Instant,
        attempt: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let left = policy.deadline.saturating_sub(started.elapsed());
        let permit = tokio::time::timeout(left, self.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return Err(Failure::new(ErrorKind::Retry, "too many other requests are under way"));
        };
        let left = policy.deadline.saturating_sub(started.elapsed()).min(policy.attempt_timeout);
        let timed_out = |_| Failure::new(ErrorKind::Retry, format!("no answer within {:.1} s", left.as_secs_f64()));
        tokio::time::timeout(left.max(Duration::from_millis(1)), attempt).await.map_err(timed_out)?
    }

    pub(crate) async fn put(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        let policy = self.retry.with_body(body.len() as u64);
        let key = self.key(name.as_str());
        self.attempts("put", name.as_str(), policy, || async {
            let request = self.client.put_object().bucket(&self.bucket).key(&key);
            request.checksum_algorithm(ChecksumAlgorithm::Crc32).body(ByteStream::from(body.clone())).send().await?;
            Ok(())
        })
        .await
    }

    async fn put_if_absent(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        let policy = self.retry.with_body(body.len() as u64);
        let key = self.key(name.as_str());
        let mark = format!("{:032x}", rand::random::<u128>());
        self.attempts("conditional put", name.as_str(), policy, || async {
            let request = self.client.put_object().bucket(&self.bucket).key(&key).if_none_match("*");
            let request = request.metadata(MARK, &mark).checksum_algorithm(ChecksumAlgorithm::Crc32);
            match request.body(ByteStream::from(body.clone())).send().await {
                Ok(_) => Ok(()),
                Err(error) => {
                    let failure = Failure::from(error);
                    if failure.kind != ErrorKind::Precondition || self.has_mark(&key, &mark).await? {
                        // An earlier attempt made it and its answer was lost, or it is no question of whose it is.
                        return if failure.kind == ErrorKind::Precondition { Ok(()) } else { Err(failure) };
                    }
                    Err(Failure::new(ErrorKind::Precondition, "the object exists already"))
                }
            }
        })
        .await
    }

    /// Whether the object at `key` was made by the call with `mark`.
    async fn has_mark(&self, key: &str, mark: &str) -> Result<bool, Failure> {
        let there = self.client.head_object().bucket(&self.bucket).key(key).send().await.map_err(Failure::from);
        match there {
            Ok(there) => Ok(there.metadata().and_then(|entries| entries.get(MARK)).is_some_and(|found| found == mark)),
            Err(failure) if failure.kind == ErrorKind::NotFound => {
                Err(Failure::new(ErrorKind::Retry, "the object that was in the way is gone"))
            }
            Err(failure) => Err(failure),
        }
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let key = self.key(name.as_str());
        // What is read whole is small; a large object gets the time that its length is worth once that is known.
        let size = self.head(name).await?.size_bytes;
        self.attempts("get", name.as_str(), self.retry.with_body(size), || async {
            let answer = self.client.get_object().bucket(&self.bucket).key(&key).send().await?;
            let expected = answer.content_length().and_then(|length| u64::try_from(length).ok());
            whole_body(answer.body, expected).await
        })
        .await
    }

    async fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        let key = self.key(name.as_str());
        let policy = self.retry.with_body(range.end - range.start);
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        self.attempts("ranged get", name.as_str(), policy, || async {
            let request = self.client.get_object().bucket(&self.bucket).key(&key).range(&header);
            let answer = request.send().await.map_err(|error| out_of_range(Failure::from(error), &header))?;
            let Some(given) = answer.content_range().and_then(GivenRange::parse) else {
                return Err(Failure::new(ErrorKind::Internal, "the store gave the whole object for a range of it"));
            };
            let expected = range.start..range.end.min(given.object_size_bytes);
            if given.range != expected {
                let detail = format!("the store gave bytes {:?} for bytes {expected:?}", given.range);
                return Err(Failure::new(ErrorKind::Internal, detail));
            }
            let body = whole_body(answer.body, Some(expected.end - expected.start)).await?;
            Ok(ObjectPart { body, object_size_bytes: given.object_size_bytes })
        })
        .await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        let key = self.key(name.as_str());
        self.attempts("head", name.as_str(), self.retry, || async {
            let answer = self.client.head_object().bucket(&self.bucket).key(&key).send().await?;
            let size = answer.content_length().and_then(|length| u64::try_from(length).ok());
            let unknown = || Failure::new(ErrorKind::Internal, "the store did not say how long the object is");
            Ok(ObjectMeta {
                name: name.clone(),
                size_bytes: size.ok_or_else(unknown)?,
                modified_s: seconds(answer.last_modified()),
            })
        })
        .await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let prefix = self.key(&request.prefix);
        self.attempts("list", &request.prefix, self.retry, || async {
            let mut call = self.client.list_objects_v2().bucket(&self.bucket).prefix(&prefix);
            call = call.set_continuation_token(request.token.clone());
            call = call.set_max_keys(request.page_size.map(|size| i32::try_from(size.max(1)).unwrap_or(i32::MAX)));
            if request.folded {
                call = call.delimiter("/");
            }
            let answer = call.send().await?;
            let mut page = ListPage::default();
            for object in answer.contents() {
                let name = object.key().and_then(|key| key.strip_prefix(&self.prefix));
                // What somebody else put here under a name that we never give is not an object of ours.
                let Some(Ok(name)) = name.map(ObjectName::new) else { continue };
                let size_bytes = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
                let modified_s = seconds(object.last_modified());
                page.objects.push(ObjectMeta { name, size_bytes, modified_s });
            }
            let folders = answer.common_prefixes().iter().filter_map(|folder| folder.prefix());
            page.folders = folders.filter_map(|folder| folder.strip_prefix(&self.prefix)).map(str::to_owned).collect();
            if answer.is_truncated() == Some(true) {
                let lost = || Failure::new(ErrorKind::Internal, "the store gave part of a list and no way to go on");
                page.next = Some(answer.next_continuation_token().map(str::to_owned).ok_or_else(lost)?);
            }
            Ok(page)
        })
        .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let key = self.key(name.as_str());
        self.attempts("delete", name.as_str(), self.retry, || async {
            match self.client.delete_object().bucket(&self.bucket).key(&key).send().await.map_err(Failure::from) {
                Err(failure) if failure.kind != ErrorKind::NotFound => Err(failure),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn delete_batch(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        let doomed = |name: &ObjectName| ObjectIdentifier::builder().key(self.key(name.as_str())).build();
        let objects: Result<Vec<_>, _> = names.iter().map(doomed).collect();
        let batch = objects.and_then(|objects| Delete::builder().set_objects(Some(objects)).quiet(true).build());
        let batch = batch.map_err(|error| {
            StoreError::new(ErrorKind::Internal, "batch delete", names[0].as_str(), causes(&error)).with_source(error)
        })?;
        self.attempts("batch delete", names[0].as_str(), self.retry, || async {
            let answer = self.client.delete_objects().bucket(&self.bucket).delete(batch.clone()).send().await?;
            match answer.errors().iter().find(|error| error.code() != Some("NoSuchKey")) {
                None => Ok(()),
                Some(error) => {
                    Err(Failure::of_code(error.code().unwrap_or_default(), error.message().unwrap_or_default()))
                }
            }
        })
        .await
    }
}

/// Seconds since 1970; a time that the store does not say is as old as can be.
pub(crate) fn seconds(time: Option<&DateTime>) -> u64 {
    time.and_then(|time| u64::try_from(time.secs()).ok()).unwrap_or_default()
}

/// The range that an answer holds: `bytes FIRST-LAST/SIZE`.
struct GivenRange {
    range: Range<u64>,
    object_size_bytes: u64,
}

impl GivenRange {
    fn parse(header: &str) -> Option<GivenRange> {
        let (range, size) = header.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let range = first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?;
        Some(GivenRange { range, object_size_bytes: size.parse().ok()? })
    }
}

fn out_of_range(failure: Failure, header: &str) -> Failure {
    match failure.kind {
        ErrorKind::OutOfRange => Failure::new(ErrorKind::OutOfRange, format!("{header} is not inside the object")),
        _ => failure,
    }
}

/// A body, checked to be as long as announced.
async fn whole_body(mut body: ByteStream, expected: Option<u64>) -> Result<Bytes, Failure> {
    // Copied piece by piece into one buffer: each piece is hot then, and its memory free for the next.
    let announced = expected.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let mut whole = BytesMut::with_capacity(announced.min(BODY_ROOM_MAX));
    while let Some(piece) = body.next().await {
        whole.extend_from_slice(&piece.map_err(|error| Failure::new(ErrorKind::Retry, causes(&error)))?);
    }
    let body = whole.freeze();
    match expected.filter(|expected| *expected != body.len() as u64) {
        None => Ok(body),
        Some(expected) => {
            Err(Failure::new(ErrorKind::Retry, format!("{} bytes came instead of {expected}", body.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        let given = GivenRange::parse("bytes 5-9/100").unwrap();
        assert_eq!((given.range, given.object_size_bytes), (5..10, 100));
        for bad in ["", "bytes 5-9/*", "bytes */100", "5-9/100", "bytes 5-18446744073709551615/7"] {
            assert!(GivenRange::parse(bad).is_none(), "{bad}");
        }
    }
}
