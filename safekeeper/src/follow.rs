//! Committed WAL, streamed to a follower as it comes.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use ardent_api::token::{Claims, Rights, Service};
use ardent_api::wal_service::{ErrorCode, Request, Response, WAL_LEN_MAX, WalChunk};
use ardent_types::Lsn;

use crate::archive::{ArchiveError, ArchivedWal};
use crate::connection::{ConnectionError, Frames, Shared, send_all};
use crate::disk_worker::{Command, Key};
use crate::failure::TimelineError;
use crate::timeline::TimelineView;
use crate::wal_files::WalFileError;

/// WAL this close to the commit position was written a moment ago and is in the page cache: reading it does not block.
const CACHED_TAIL_BYTES: u64 = 4 << 20;

/// After a chunk smaller than this the next one is held back for [`Shared::follow_gather`]: one that commits as often as it can would otherwise wake
/// its follower, and the follower's ingest, for each commit, on processors that the next commit wants. Unless the follower says that
/// somebody waits.
const SMALL_CHUNK_BYTES: usize = 64 << 10;

/// A position in a timeline's committed WAL. What it gives never changes later.
pub(crate) struct CommittedWal {
    view: Arc<TimelineView>,
    commit: watch::Receiver<Lsn>,
    at: Lsn,
    /// Where it reads what is not here any more; absent until it does, and while it does.
    archived: Option<ArchivedWal>,
    /// A read from there that is under way.
    reading: Option<JoinHandle<ArchivedRead>>,
}

type ArchivedRead = (Result<Option<Bytes>, ArchiveError>, ArchivedWal);

impl CommittedWal {
    /// Starts at `from`, which must be kept, here or in the archive, and not past the commit position.
    pub(crate) async fn open(view: Arc<TimelineView>, from: Lsn) -> Result<CommittedWal, TimelineError> {
        let commit = view.commit();
        let end_lsn = *commit.borrow();
        let oldest_lsn = view.oldest_lsn();
        let timeline = view.spec.timeline;
        let archived = if from < oldest_lsn { archived_at(&view, from).await? } else { None };
        if from > end_lsn || (from < oldest_lsn && archived.is_none()) {
            return Err(TimelineError::OutOfRange { timeline, lsn: from, oldest_lsn, end_lsn });
        }
        Ok(CommittedWal { view, commit, at: from, archived, reading: None })
    }

    /// As [`CommittedWal::open`], but `from` may be as early as the start of the oldest segment: readers that store whole segments
    /// begin there, also where the timeline begins in the middle.
    pub(crate) async fn open_segment(view: Arc<TimelineView>, from: Lsn) -> Result<CommittedWal, TimelineError> {
        let first = view.spec.start_lsn;
        let is_before_first = from < first && from >= first.segment_start(view.names.size());
        let mut wal = Self::open(view, if is_before_first { first } else { from }).await?;
        wal.at = from;
        Ok(wal)
    }

    /// The commit position now.
    pub(crate) fn commit_lsn(&self) -> Lsn {
        *self.commit.borrow()
    }

    /// The next bytes and the commit position, as soon as there are any. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<WalChunk, TimelineError> {
        let at = self.at;
        let waited = self.commit.wait_for(|commit| *commit > at).await;
        let commit_lsn = *waited.map_err(|_| TimelineError::Stopping)?;
        let length = commit_lsn.saturating_sub(at).min(WAL_LEN_MAX as u64) as usize;
        let bytes = self.read(commit_lsn, length).await?;
        self.at = at.advance(bytes.len() as u64);
        Ok(WalChunk { start: at, commit_lsn, bytes })
    }

    async fn read(&mut self, commit: Lsn, length: usize) -> Result<Bytes, TimelineError> {
        if self.at >= self.view.oldest_lsn().segment_start(self.view.names.size()) {
            match self.read_here(commit, length).await {
                // It was trimmed at this moment.
                Err(TimelineError::Wal { source: WalFileError::Missing { .. }, .. })
                    if self.view.archive().is_some() => {}
                read => return read,
            }
        }
        self.read_archived(length).await
    }

    /// Cancelled, it goes on with the same read next time: a store may take longer than a follower is silent.
    async fn read_archived(&mut self, length: usize) -> Result<Bytes, TimelineError> {
        let (at, view) = (self.at, &self.view);
        let timeline = view.spec.timeline;
        let missing = || {
            let path = view.names.path(at.segment_number(view.names.size()));
            TimelineError::Wal { timeline, source: WalFileError::Missing { lsn: at, path } }
        };
        let archive = view.archive().ok_or_else(missing)?;
        let reading = self.reading.get_or_insert_with(|| {
            let place = self.archived.take();
            let mut place = place.unwrap_or_else(|| ArchivedWal::new(Arc::clone(archive), view.spec));
            tokio::task::spawn_blocking(move || (place.read(at, length), place))
        });
        let done = reading.await;
        self.reading = None;
        let (read, archived) = done.map_err(|_| TimelineError::Stopping)?;
        let read = read.map_err(|source| TimelineError::Archive { timeline, lsn: at, source })?;
        let read = read.ok_or_else(missing);
        self.archived = Some(archived);
        read
    }

    async fn read_here(&self, commit: Lsn, length: usize) -> Result<Bytes, TimelineError> {
        let at = self.at;
        let read = if commit.saturating_sub(at) <= CACHED_TAIL_BYTES {
            self.view.names.read(at, length)
        } else {
            let view = Arc::clone(&self.view);
            let read = tokio::task::spawn_blocking(move || view.names.read(at, length)).await;
            read.map_err(|_| TimelineError::Stopping)?
        };
        read.map_err(|source| TimelineError::Wal { timeline: self.view.spec.timeline, source })
    }
}

/// A place in the archive at `lsn`, if that is archived.
async fn archived_at(view: &Arc<TimelineView>, lsn: Lsn) -> Result<Option<ArchivedWal>, TimelineError> {
    let Some(archive) = view.archive().filter(|_| lsn >= view.spec.start_lsn) else { return Ok(None) };
    let kept = view.take_place();
    let mut place = kept.unwrap_or_else(|| ArchivedWal::new(Arc::clone(archive), view.spec));
    let timeline = view.spec.timeline;
    let asked = tokio::task::spawn_blocking(move || {
        let has = place.has(lsn).map_err(|source| TimelineError::Archive { timeline, lsn, source })?;
        Ok(has.then_some(place))
    });
    asked.await.map_err(|_| TimelineError::Stopping)?
}

/// Some of the committed WAL in `[from, to)`, from the archive as far as it is not here any more. Who asks for what follows is served from the same block.
pub(crate) async fn read_committed(view: Arc<TimelineView>, from: Lsn, to: Lsn) -> Result<Bytes, TimelineError> {
    let mut wal = CommittedWal::open(Arc::clone(&view), from).await?;
    let mut bytes = wal.next().await?.bytes;
    bytes.truncate(usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX));
    if let Some(place) = wal.archived.take() {
        view.put_place(place);
    }
    Ok(bytes)
}

/// The oldest position that can be read, here or in the archive: that of a segment's first byte, where the timeline does not begin in it.
pub(crate) async fn oldest_readable(view: &Arc<TimelineView>) -> Result<Lsn, TimelineError> {
    let here = view.oldest_lsn().segment_start(view.names.size());
    let Some(archive) = view.archive().map(Arc::clone) else { return Ok(here) };
    let view = Arc::clone(view);
    let asked = tokio::task::spawn_blocking(move || {
        let timeline = view.spec.timeline;
        let oldest = archive.oldest_before(&view.spec, here);
        oldest.map_err(|source| TimelineError::Archive { timeline, lsn: here, source })
    });
    asked.await.map_err(|_| TimelineError::Stopping)?
}

/// Streams from `from` until either side ends the connection.
pub(crate) async fn serve<R, W>(
    shared: &Shared,
    key: Key,
    claims: &Claims,
    from: Lsn,
    mut frames: Frames<R>,
    mut writer: W,
) -> Result<(), ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut out = BytesMut::new();
    let opened = match shared.registry.open(key).await {
        Ok(view) => CommittedWal::open(view, from).await,
        Err(error) => Err(error),
    };
    let mut wal = match opened {
        Ok(wal) => wal,
        Err(error) => return fail(&mut writer, error.response(0)).await,
    };
    // The commit position is told at once, so that a follower that is up to date knows it.
    let commit_lsn = wal.commit_lsn();
    Response::Chunk(WalChunk { start: from, commit_lsn, bytes: Bytes::new() }).encode(&mut out);
    let mut not_before = Instant::now();
    let mut awaited = Lsn::INVALID;
    loop {
        send_all(&mut writer, &out).await?;
        out.clear();
        let gathered = async {
            if wal.at >= awaited {
                sleep_until(not_before).await;
            }
            wal.next().await
        };
        tokio::select! {
            chunk = gathered => match chunk {
                Ok(chunk) => {
                    if chunk.bytes.len() < SMALL_CHUNK_BYTES {
                        not_before = Instant::now() + shared.follow_gather;
                    }
                    Response::Chunk(chunk).encode(&mut out);
                }
                Err(error) => return fail(&mut writer, error.response(0)).await,
            },
            frame = frames.next() => {
                let Some(frame) = frame? else { return Ok(()) };
                let refusal = match Request::decode(frame)? {
                    Request::Await { lsn } => {
                        awaited = lsn;
                        None
                    }
                    request => position(shared, key, claims, request),
                };
                if let Some(refusal) = refusal {
                    return fail(&mut writer, refusal).await;
                }
            }
        }
    }
}

/// A follower says how far it is. Trimming rests on it, so it needs write rights.
fn position(shared: &Shared, key: Key, claims: &Claims, request: Request) -> Option<Response> {
    let refuse = |code, message: String| Some(Response::Error { id: 0, code, message });
    let Request::Position { durable_lsn } = request else {
        return refuse(ErrorCode::Invalid, "a follower sends nothing but what it has and what it waits for".to_owned());
    };
    match claims.allow(Service::Safekeeper, key.0, key.1, Rights::Write) {
        Err(error) => refuse(ErrorCode::Refused, format!("a position was sent, but {error}")),
        Ok(()) => shared.registry.send(key, Command::Followed(durable_lsn)).err().map(|error| error.response(0)),
    }
}

async fn fail<W: AsyncWrite + Unpin>(writer: &mut W, response: Response) -> Result<(), ConnectionError> {
    let mut out = BytesMut::new();
    response.encode(&mut out);
    send_all(writer, &out).await?;
    let Response::Error { message, .. } = response else { return Ok(()) };
    Err(ConnectionError::Failed(message))
}
