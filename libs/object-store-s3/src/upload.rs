//! Files become objects: small ones with one put, large ones in parts that are sent side by side.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ardent_object_store::{ErrorKind, ObjectName, StoreError, UnfinishedUpload};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::store::{Calls, seconds};

/// Files up to this long go with one put.
const ONE_PUT_MAX: u64 = 16 << 20;
/// Smallest part, but for the last.
const PART_BYTES_MIN: u64 = 8 << 20;
/// S3 takes 10,000 parts at most.
const PARTS_MAX: u64 = 9_000;
/// Parts of one file under way at once; each is in memory.
const PARTS_AT_ONCE: usize = 4;

/// An upload that has begun.
struct Upload {
    calls: Arc<Calls>,
    name: ObjectName,
    key: String,
    id: String,
}

impl Calls {
    /// Makes the file at `path` an object. The file stays.
    pub(crate) async fn put_file(self: &Arc<Self>, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        let failed = |error: std::io::Error| file_error(name, path, error);
        let size = tokio::fs::metadata(path).await.map_err(failed)?.len();
        if size <= ONE_PUT_MAX {
            return self.put(name, read_part(path.to_owned(), 0, size).await.map_err(failed)?).await;
        }
        let upload = Arc::new(self.begin(name).await?);
        let result = match upload.clone().send_parts(path, size).await {
            Ok(parts) => upload.complete(parts, size).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            // Harmless if the upload was completed after all and only its answer was lost.
            upload.abort().await;
        }
        result
    }

    /// Passes a fail point.
    fn pass(&self, point: &str, name: &ObjectName) -> Result<(), StoreError> {
        self.faults.pass(point).map_err(|error| {
            StoreError::new(ErrorKind::Retry, "put of a file", name.as_str(), error.to_string()).with_source(error)
        })
    }

    async fn begin(self: &Arc<Self>, name: &ObjectName) -> Result<Upload, StoreError> {
        self.pass("multipart.begin", name)?;
        let key = self.key(name.as_str());
        let id = self
            .attempts("begin of an upload", name.as_str(), self.retry, || async {
                let request = self.client.create_multipart_upload().bucket(&self.bucket).key(&key);
                let answer = request.checksum_algorithm(ChecksumAlgorithm::Crc32).send().await?;
                let nameless = || Failure::new(ErrorKind::Internal, "the store began an upload and gave it no id");
                answer.upload_id.ok_or_else(nameless)
            })
            .await?;
        self.pass("multipart.begin.answer", name)?;
        Ok(Upload { calls: self.clone(), name: name.clone(), key, id })
    }

    /// Uploads of objects below the prefix, whoever began them.
    pub(crate) async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        let mut found = Vec::new();
        let (mut after, mut after_id): (Option<String>, Option<String>) = (None, None);
        loop {
            let (from, from_id): (&Option<String>, &Option<String>) = (&after, &after_id);
            let page = self
                .attempts("list of uploads", "", self.retry, || async {
                    let call = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(&self.prefix);
                    let call = call.set_key_marker(from.clone()).set_upload_id_marker(from_id.clone());
                    let page = call.send().await?;
                    let next = (page.next_key_marker(), page.next_upload_id_marker());
                    if page.is_truncated() == Some(true) && next == (from.as_deref(), from_id.as_deref()) {
                        let lost = "the store gave part of a list of uploads and no way to go on";
                        return Err(Failure::new(ErrorKind::Internal, lost));
                    }
                    Ok(page)
                })
                .await?;
            for upload in page.uploads() {
                let name = upload.key().and_then(|key| key.strip_prefix(&self.prefix)).map(ObjectName::new);
                // What somebody else uploads under a name that we never give is not ours.
                let (Some(Ok(name)), Some(id)) = (name, upload.upload_id()) else { continue };
                found.push(UnfinishedUpload { name, id: id.to_owned(), begun_s: seconds(upload.initiated()) });
            }
            if page.is_truncated() != Some(true) {
                return Ok(found);
            }
            (after, after_id) = (page.next_key_marker, page.next_upload_id_marker);
        }
    }

    pub(crate) async fn give_up(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.abort(&upload.name, &self.key(upload.name.as_str()), &upload.id).await
    }

    async fn abort(&self, name: &ObjectName, key: &str, id: &str) -> Result<(), StoreError> {
        self.attempts("abort of an upload", name.as_str(), self.retry, || async {
            let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(key);
            match request.upload_id(id).send().await.map_err(Failure::from) {
                Err(failure) if failure.kind != ErrorKind::NotFound => Err(failure),
                _ => Ok(()),
            }
        })
        .await
    }
}

impl Upload {
    /// Sends all parts; in order of their numbers.
    async fn send_parts(self: Arc<Self>, path: &Path, size: u64) -> Result<Vec<CompletedPart>, StoreError> {
        let part_bytes = PART_BYTES_MIN.max(size.div_ceil(PARTS_MAX));
        let count = size.div_ceil(part_bytes);
        let mut parts = Vec::new();
        let mut under_way: JoinSet<Result<CompletedPart, StoreError>> = JoinSet::new();
        let mut next = 0;
        while next < count || !under_way.is_empty() {
            if next < count && under_way.len() < PARTS_AT_ONCE {
                let (upload, path, offset) = (self.clone(), path.to_owned(), next * part_bytes);
                next += 1;
                let number = i32::try_from(next).expect("at most 9,000 parts");
                let length = part_bytes.min(size - offset);
                under_way.spawn(async move {
                    let body = read_part(path.clone(), offset, length).await;
                    upload.send_part(number, body.map_err(|error| file_error(&upload.name, &path, error))?).await
                });
            } else if let Some(done) = under_way.join_next().await {
                // The others end with the set.
                let name = self.name.as_str();
                let lost = |_| StoreError::new(ErrorKind::Internal, "upload of a part", name, "its task has ended");
                parts.push(done.map_err(lost)??);
            }
        }
        parts.sort_unstable_by_key(|part| part.part_number());
        Ok(parts)
    }

    async fn send_part(&self, number: i32, body: Bytes) -> Result<CompletedPart, StoreError> {
        let calls = &self.calls;
        let policy = calls.retry.with_body(body.len() as u64 * PARTS_AT_ONCE as u64);
        calls.pass("multipart.part", &self.name)?;
        let part = calls
            .attempts("upload of a part", self.name.as_str(), policy, || async {
                let request = calls.client.upload_part().bucket(&calls.bucket).key(&self.key).upload_id(&self.id);
                let request = request.part_number(number).checksum_algorithm(ChecksumAlgorithm::Crc32);
                let sent = request.body(ByteStream::from(body.clone())).send().await?;
                let part = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag);
                Ok(part.set_checksum_crc32(sent.checksum_crc32).build())
            })
            .await?;
        calls.pass("multipart.part.answer", &self.name)?;
        Ok(part)
    }

    async fn complete(&self, parts: Vec<CompletedPart>, size: u64) -> Result<(), StoreError> {
        let calls = &self.calls;
        let all = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        // Servers put the parts together before they answer.
        let policy = calls.retry.with_body(size);
        calls.pass("multipart.complete", &self.name)?;
        calls
            .attempts("end of an upload", self.name.as_str(), policy, || async {
                let request = calls.client.complete_multipart_upload().bucket(&calls.bucket).key(&self.key);
                let request = request.upload_id(&self.id).multipart_upload(all.clone());
                match request.send().await.map_err(Failure::from) {
                    // An earlier attempt has done it, if the whole object is there.
                    Err(failure) if failure.code == "NoSuchUpload" && self.is_there(size).await? => Ok(()),
                    Err(failure) => Err(failure),
                    Ok(_) => Ok(()),
                }
            })
            .await?;
        calls.pass("multipart.complete.answer", &self.name)
    }

    async fn is_there(&self, size: u64) -> Result<bool, Failure> {
        let calls = &self.calls;
        let there = calls.client.head_object().bucket(&calls.bucket).key(&self.key).send().await.map_err(Failure::from);
        match there {
            Ok(there) => Ok(there.content_length().and_then(|length| u64::try_from(length).ok()) == Some(size)),
            Err(failure) if failure.kind == ErrorKind::NotFound => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Gives the upload up, so that its parts cost nothing. What can't be given up is found by `ardent inspect store`.
    async fn abort(&self) {
        if let Err(error) = self.try_abort().await {
            tracing::warn!(%error, "the parts of an upload that failed stay in the bucket until ardent inspect store --delete, or a lifecycle rule, removes them");
        }
    }

    async fn try_abort(&self) -> Result<(), StoreError> {
        self.calls.pass("multipart.abort", &self.name)?;
        self.calls.abort(&self.name, &self.key, &self.id).await?;
        self.calls.pass("multipart.abort.answer", &self.name)
    }
}

async fn read_part(path: PathBuf, offset: u64, length: u64) -> std::io::Result<Bytes> {
    let read = move || {
        let file = std::fs::File::open(path)?;
        let mut body = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
        file.read_exact_at(&mut body, offset)?;
        Ok(Bytes::from(body))
    };
    tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)?
}

fn file_error(name: &ObjectName, path: &Path, error: std::io::Error) -> StoreError {
    let detail = format!("the local file {} can't be read: {error}", path.display());
    StoreError::new(ErrorKind::Internal, "put of a file", name.as_str(), detail).with_source(error)
}
