//! A kept state on its way to the page server and back, in parts.

use std::io::{self, Read, Write};

use ardent_api::page_service::{KEPT_PART_LEN_MAX, KeptAt, KeptState, ManageReply, ManageRequest};
use ardent_page_client::{PageClient, PageError};
use ardent_types::TimelineId;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::collect::{Collect, Found, Limits};
use super::format::Header;
use super::restore::{Restore, Restored, settings as settings_of};
use crate::error::ComputeError;
use crate::start::Compute;

/// Parts on their way between network and disk.
const PARTS_IN_FLIGHT: usize = 2;
/// zstd's level: free space maps are mostly zeros, and somebody may wait for the branch to wake again.
const COMPRESSION: i32 = 1;

/// Why a state was not kept, or not given back. Never a reason not to go on: the next start is as after a crash.
#[derive(Debug, thiserror::Error)]
pub enum KeptStateError {
    /// The page server.
    #[error("the page server cannot keep it")]
    Pageserver(#[from] PageError),
    /// Files, or what was kept is none.
    #[error("its files cannot be read or written")]
    Files(#[from] io::Error),
    /// Our own bug.
    #[error("{0}")]
    Internal(&'static str),
}

/// What is kept of the timeline, if anything is.
pub(crate) async fn find(client: &mut PageClient, timeline: TimelineId) -> Result<Option<KeptState>, KeptStateError> {
    match client.manage(ManageRequest::KeptState { timeline }).await? {
        ManageReply::KeptState { state } => Ok(state),
        _ => Err(KeptStateError::Internal("the page server answered something else")),
    }
}

/// Saves the state of a stopped compute.
pub(crate) async fn save(
    client: &mut PageClient,
    compute: &Compute,
    at: KeptAt,
    header: Header,
    limits: Limits,
) -> Result<Found, KeptStateError> {
    let (parts, mut sent) = mpsc::channel(PARTS_IN_FLIGHT);
    let (data, major) = (compute.layout.data.clone(), compute.major());
    let collecting = tokio::task::spawn_blocking(move || {
        let out = zstd::stream::Encoder::new(PartWriter { part: Vec::new(), parts }, COMPRESSION)?;
        let collect = Collect { data: &data, major, header, limits };
        let (out, found) = collect.run(out)?;
        out.finish()?.end()?;
        Ok::<_, io::Error>(found)
    });
    let mut count = 0;
    let mut outcome = Ok(());
    while let Some(part) = sent.recv().await {
        outcome = client.keep_part(at, count, part).await;
        if outcome.is_err() {
            break;
        }
        count += 1;
    }
    // The collector's next part meets a closed queue.
    drop(sent);
    let found =
        collecting.await.map_err(|_| KeptStateError::Internal("looking through the data directory panicked"))?;
    outcome?;
    let found = found?;
    client.manage(ManageRequest::KeepState { timeline: compute.spec.timeline, at, parts: count }).await?;
    Ok(found)
}

/// Gives a state back to a new data directory.
pub(crate) async fn restore(
    client: &mut PageClient,
    compute: &Compute,
    state: &KeptState,
) -> Result<Restored, KeptStateError> {
    let (data, major, run_as, lsn) = (compute.layout.data.clone(), compute.major(), compute.run_as(), state.at.lsn);
    read(client, state, move |input| Restore { data: &data, major, lsn, run_as }.run(input)).await
}

/// What `ALTER SYSTEM` wrote, of a state that is not given back.
pub(crate) async fn settings(client: &mut PageClient, state: &KeptState) -> Result<Option<String>, KeptStateError> {
    // It comes first: the first part has all of it, or as much as there can be.
    let first = KeptState { parts: state.parts.min(1), ..*state };
    read(client, &first, settings_of).await
}

/// The compute goes on from its own folder.
pub(crate) async fn outdate(client: &mut PageClient, timeline: TimelineId, at: KeptAt) -> Result<(), ComputeError> {
    let outdated = client.manage(ManageRequest::OutdateKeptState { timeline, at }).await;
    outdated.map(|_| ()).map_err(ComputeError::pageserver("giving up what was kept", at.lsn))
}

async fn read<T: Send + 'static>(
    client: &mut PageClient,
    state: &KeptState,
    take: impl FnOnce(zstd::stream::Decoder<'static, io::BufReader<PartReader>>) -> io::Result<T> + Send + 'static,
) -> Result<T, KeptStateError> {
    let (parts, received) = mpsc::channel(PARTS_IN_FLIGHT);
    let taking = tokio::task::spawn_blocking(move || {
        take(zstd::stream::Decoder::new(PartReader { part: Bytes::new(), parts: received })?)
    });
    let mut outcome = Ok(());
    for number in 0..state.parts {
        match client.get_kept_part(state.at, number).await {
            Ok(part) => {
                if parts.send(part).await.is_err() {
                    // Whoever takes them has enough, or has failed.
                    break;
                }
            }
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    drop(parts);
    let taken = taking.await.map_err(|_| KeptStateError::Internal("filling the data directory panicked"))?;
    outcome?;
    Ok(taken?)
}

/// Cuts what is written into parts.
struct PartWriter {
    part: Vec<u8>,
    parts: mpsc::Sender<Bytes>,
}

impl PartWriter {
    fn send(&mut self) -> io::Result<()> {
        let part = Bytes::from(std::mem::take(&mut self.part));
        self.parts.blocking_send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn end(mut self) -> io::Result<()> {
        if self.part.is_empty() { Ok(()) } else { self.send() }
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(KEPT_PART_LEN_MAX - self.part.len());
        self.part.extend_from_slice(&bytes[..length]);
        if self.part.len() == KEPT_PART_LEN_MAX {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads parts one after the other.
struct PartReader {
    part: Bytes,
    parts: mpsc::Receiver<Bytes>,
}

impl Read for PartReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.part = part,
                None => return Ok(0),
            }
        }
        let part = self.part.split_to(self.part.len().min(out.len()));
        out[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}
