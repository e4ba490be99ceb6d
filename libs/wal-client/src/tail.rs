//! Reading the uncommitted tail of a safekeeper's log, for elections and for safekeepers that lag.

use bytes::Bytes;

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{RecordEnd, Request, Response};
use ardent_pg_format::PgMajor;
use ardent_pg_format::wal::RecordBoundaryTracker;
use ardent_types::{Lsn, Term, WalSegmentSize};

use crate::connection::{Binding, Receiver, Sender, connect};
use crate::error::ClientError;

/// How a timeline's WAL is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WalShape {
    pub(crate) major: PgMajor,
    pub(crate) segment_size: WalSegmentSize,
}

impl WalShape {
    /// A tracker that starts behind the record `at`.
    pub(crate) fn tracker(self, at: RecordEnd) -> RecordBoundaryTracker {
        let tracker = RecordBoundaryTracker::new(at.end, self.major, self.segment_size);
        if at.start.is_valid() { tracker.with_previous_record(at.start) } else { tracker }
    }
}

/// A connection that reads a log as a writer of `term`.
pub(crate) struct TailReader {
    sender: Sender,
    receiver: Receiver,
    term: Term,
    next_id: u64,
}

impl TailReader {
    pub(crate) async fn connect(address: &ServiceAddr, binding: &Binding, term: Term) -> Result<Self, ClientError> {
        let (sender, receiver) = connect(address, binding).await?;
        Ok(TailReader { sender, receiver, term, next_id: 1 })
    }

    /// Some of `[from, to)`; empty when nothing at `from` is durable.
    pub(crate) async fn read(&mut self, from: Lsn, to: Lsn) -> Result<Bytes, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        self.sender.send(&Request::ReadWal { id, term: self.term, from, to }).await?;
        match self.receiver.next().await? {
            Response::Wal { id: answered, start, bytes } if answered == id && start == from => Ok(bytes),
            _ => Err(self.receiver.unexpected()),
        }
    }

    /// The last whole record in `[from.end, to)`, `from` if there is none.
    pub(crate) async fn last_record(
        &mut self,
        shape: WalShape,
        from: RecordEnd,
        to: Lsn,
    ) -> Result<RecordEnd, ClientError> {
        let mut tracker = shape.tracker(from);
        let mut at = from.end;
        while at < to {
            let bytes = self.read(at, to).await?;
            if bytes.is_empty() {
                break;
            }
            at = at.advance(bytes.len() as u64);
            // The tail may be torn: what does not check out is not a record.
            if let Err(error) = tracker.feed(bytes) {
                tracing::info!(%error, "the log is cut at its last whole record");
                break;
            }
        }
        Ok(match tracker.start_of_last_record() {
            Some(start) if tracker.end_of_last_record() > from.end => {
                RecordEnd { end: tracker.end_of_last_record(), start }
            }
            _ => from,
        })
    }
}
