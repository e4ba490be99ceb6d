//! A request for chunks that is under way: one thread makes it, others wait for it.

use std::ops::Range;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::CHUNK_BYTES;
use crate::error::{ErrorKind, StoreError};
use crate::store::ObjectPart;

/// How a request ended.
#[derive(Clone, Debug)]
enum Outcome {
    Done(ObjectPart),
    Failed(StoreError),
    /// Nobody made it.
    Abandoned,
}

/// Chunks that are being fetched.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) chunks: Range<u32>,
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
}

impl Fetch {
    pub(crate) fn new(chunks: Range<u32>) -> Self {
        Fetch { chunks, outcome: Mutex::new(None), ended: Condvar::new() }
    }

    /// The bytes to ask for.
    pub(crate) fn range(&self) -> Range<u64> {
        u64::from(self.chunks.start) * CHUNK_BYTES..u64::from(self.chunks.end) * CHUNK_BYTES
    }

    /// Says how it ended.
    pub(crate) fn finish(&self, result: Result<ObjectPart, StoreError>) {
        self.end(match result {
            Ok(part) => Outcome::Done(part),
            Err(error) => Outcome::Failed(error),
        });
    }

    /// Says that it will not be made: those who wait have to see for themselves.
    pub(crate) fn abandon(&self) {
        self.end(Outcome::Abandoned);
    }

    fn end(&self, outcome: Outcome) {
        self.outcome.lock().get_or_insert(outcome);
        self.ended.notify_all();
    }

    /// Waits for the end: all that was fetched. `None`: it says nothing of `chunk`, look again.
    pub(crate) fn wait(&self, chunk: u32) -> Result<Option<ObjectPart>, StoreError> {
        let mut outcome = self.outcome.lock();
        let ended = loop {
            match &*outcome {
                Some(ended) => break ended.clone(),
                None => self.ended.wait(&mut outcome),
            }
        };
        let is_ours = self.chunks.contains(&chunk);
        match ended {
            Outcome::Done(part) if is_ours => Ok(Some(part)),
            // What is wrong with another chunk need not be wrong with this one; that the store is away is.
            Outcome::Failed(error) if is_ours || error.kind() == ErrorKind::Retry => Err(error),
            _ => Ok(None),
        }
    }

    /// What was fetched, if it was.
    pub(crate) fn done(&self) -> Option<ObjectPart> {
        match &*self.outcome.lock() {
            Some(Outcome::Done(part)) => Some(part.clone()),
            _ => None,
        }
    }

    /// The bytes of `range`, which begins in it, as far as they were fetched; none if the object ends before them.
    pub(crate) fn bytes_of(&self, part: &ObjectPart, range: Range<u64>) -> Bytes {
        let fetched_from = self.range().start;
        let within = |at: u64| {
            usize::try_from(at.saturating_sub(fetched_from)).map_or(part.body.len(), |at| at.min(part.body.len()))
        };
        part.body.slice(within(range.start)..within(range.end))
    }
}
