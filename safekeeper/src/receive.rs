//! A walsender's connection that its writer handed over: what Postgres sends is written in the writer's term, and what is durable is reported to
//! Postgres, without anybody between.
//!
//! ```text
//!  walsender ── WAL ──► receive ── Append ──► disk worker (same thread)
//!      ▲                   │                      │
//!      └── flushed to ─────┘◄──── durable to ─────┘
//!  agent ── Receive, descriptor ──►  ◄── Received, or why not
//! ```
//!
//! Invariants: the acceptor judges every piece of WAL as it judges a writer's appends, by term and generation; what is reported was fsynced; it ends
//! when the agent goes away. What comes from Postgres is a branch's: it may be anything.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::Instant;

use ardent_api::wal_service::{Append, ErrorCode, Receive, Received, RecordEnd, Response, StreamEnd, WAL_LEN_MAX};
use ardent_pg_format::wal::RecordBoundaryTracker;
use ardent_types::{Lsn, MemberGeneration, Term, WalSegmentSize};
use ardent_unix_stream::QuietStream;
use ardent_wal_client::walsender::{Incoming, Reports, Sent, WalSenderError};

use crate::connection::{ConnectionError, Session, send};
use crate::disk_worker::Command;
use crate::failure::with_causes;
use crate::timeline::known_major;

/// How long the descriptor may take to come after it was asked for.
const DESCRIPTOR_PATIENCE: Duration = Duration::from_secs(10);
/// A report is sent at least this often; Postgres gives a silent standby up after `wal_sender_timeout`.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How long the last words of a connection that takes no reports any more may take to arrive.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);

/// Serves a connection whose first request of a writer is `receive`, until either side ends.
pub(crate) async fn serve(session: Session, mut agent: QuietStream, receive: Receive) -> Result<(), ConnectionError> {
    let mut log = match Log::open(session, &receive).await {
        Ok(log) => log,
        Err(response) => return Ok(send(&mut agent, &response).await?),
    };
    send(&mut agent, &Response::Receiving).await?;
    let descriptor = tokio::time::timeout(DESCRIPTOR_PATIENCE, agent.receive_descriptor()).await;
    let stream = match descriptor {
        Ok(Ok(descriptor)) => UnixStream::from(descriptor),
        Ok(Err(error)) if error.kind() != io::ErrorKind::InvalidData => return Err(error.into()),
        // Somebody passes bytes on between the two, and no descriptors: the writer goes on as over any other connection.
        Ok(Err(_)) | Err(_) => {
            let message = "no descriptor of a walsender's connection came".to_owned();
            return Ok(send(&mut agent, &Response::Error { id: 0, code: ErrorCode::Invalid, message }).await?);
        }
    };
    stream.set_nonblocking(true)?;
    let (incoming, reports) = tokio::io::split(QuietStream::from_std(stream)?);
    let mut incoming = Incoming::new(incoming, BytesMut::from(&receive.read[..]));
    let mut reports = Reports::new(reports);
    let response = tokio::select! {
        biased;
        response = log.write_all(&mut incoming, &mut reports) => response,
        () = gone(&mut agent) => return Ok(()),
    };
    Ok(send(&mut agent, &response).await?)
}

/// Waits until the agent closes its connection. It has nothing more to say.
async fn gone(agent: &mut QuietStream) {
    let mut byte = [0; 1];
    match agent.read(&mut byte).await {
        Ok(0) => {}
        Ok(_) => tracing::debug!("a writer that has handed its log over says something more: its connection ends"),
        Err(error) => tracing::debug!(%error, "the connection of a writer that has handed its log over failed"),
    }
}

/// The log as this connection writes it.
struct Log {
    session: Session,
    term: Term,
    generation: MemberGeneration,
    tracker: RecordBoundaryTracker,
    /// First byte not received.
    end: Lsn,
    /// The last record end that was received.
    record: RecordEnd,
    /// First byte not durable.
    flushed: Lsn,
    /// Pieces that are not durable yet: their ends, and the last record ends up to there.
    pieces: VecDeque<(Lsn, Lsn)>,
    /// The last record end that is durable.
    recorded: Lsn,
    segment_size: WalSegmentSize,
}

impl Log {
    async fn open(session: Session, receive: &Receive) -> Result<Log, Response> {
        let (registry, to) = (&session.shared.registry, session.replies.clone());
        let view = registry.hand_over(session.key, receive.clone(), to).await;
        let view = view.map_err(|error| error.response(0))?;
        let major = known_major(&view.spec).map_err(|error| error.response(0))?;
        let mut tracker = RecordBoundaryTracker::new(receive.end.end, major, view.spec.wal_segment_size);
        if receive.end.start.is_valid() {
            tracker = tracker.with_previous_record(receive.end.start);
        }
        let end = receive.end.end;
        let (term, generation) = (receive.term, receive.generation);
        Ok(Log {
            session,
            term,
            generation,
            tracker,
            end,
            record: receive.end,
            flushed: end,
            pieces: VecDeque::new(),
            recorded: end,
            segment_size: view.spec.wal_segment_size,
        })
    }

    /// Writes until the walsender's stream ends, or this safekeeper must not or cannot go on. Gives the answer for the agent.
    async fn write_all<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        incoming: &mut Incoming<R>,
        reports: &mut Reports<W>,
    ) -> Response {
        // A Postgres that has said goodbye takes no reports any more: what it said before is still to be read.
        let mut deaf: Option<(Instant, WalSenderError)> = None;
        let mut is_complete = false;
        // Timers are as coarse as milliseconds: what is to be reported at once waits for none.
        let mut is_news = true;
        let mut report_at = Instant::now();
        loop {
            if is_news && deaf.is_none() {
                report_at = Instant::now() + REPORT_EVERY;
                if let Err(error) = reports.report(self.reported()).await {
                    deaf = Some((Instant::now() + GOODBYE_PATIENCE, error));
                }
            }
            if is_complete && self.flushed >= self.end {
                return self.ended(StreamEnd::Complete, String::new());
            }
            is_news = false;
            tokio::select! {
                biased;
                answer = self.session.answers.recv() => {
                    if let Err(response) = self.take(answer.expect("the session holds a sender")) {
                        return response;
                    }
                    is_news = true;
                }
                sent = incoming.next(), if !is_complete => match sent {
                    Ok(Sent::Wal { start, bytes }) => {
                        if let Err(response) = self.write(start, bytes).await {
                            return response;
                        }
                    }
                    Ok(Sent::Keepalive { reply_wanted }) => is_news = reply_wanted,
                    Ok(Sent::End) => is_complete = true,
                    Err(error) if error.is_wal_gone() || matches!(error, WalSenderError::Unexpected(_)) => {
                        return self.ended(StreamEnd::Malformed, with_causes(&error));
                    }
                    Err(error) => return self.ended(StreamEnd::Lost, with_causes(&error)),
                },
                () = tokio::time::sleep_until(report_at), if deaf.is_none() => is_news = true,
                () = until(deaf.as_ref().map(|(until, _)| *until)) => {
                    let (_, error) = deaf.expect("there is a time to wait for");
                    return self.ended(StreamEnd::Lost, with_causes(&error));
                }
            }
        }
    }

    /// What Postgres is told: what is durable, but not past the segment that the last whole record ends in. Postgres removes segments up to what it
    /// was told, and an election cuts what is not whole: what comes again then begins in that segment.
    fn reported(&self) -> Lsn {
        let next_segment = self.recorded.segment_start(self.segment_size).advance(self.segment_size.bytes());
        self.flushed.min(Lsn::new(next_segment.get() - 1))
    }

    /// Takes answers of the disk worker, as many as there are. An error is the answer for the agent.
    fn take(&mut self, answer: Response) -> Result<(), Response> {
        let mut next = Some(answer);
        while let Some(answer) = next {
            match answer {
                Response::Append(reply) if reply.term <= self.term => self.flushed = self.flushed.max(reply.flush_lsn),
                refusal @ (Response::Append(_) | Response::Error { .. }) => return Err(refusal),
                _ => {
                    let message = "a log that was handed over got an answer to another question".to_owned();
                    return Err(Response::Error { id: 0, code: ErrorCode::Internal, message });
                }
            }
            next = self.session.answers.try_recv().ok();
        }
        while let Some((_, recorded)) = self.pieces.pop_front_if(|(end, _)| *end <= self.flushed) {
            self.recorded = recorded;
        }
        Ok(())
    }

    async fn write(&mut self, start: Lsn, mut bytes: Bytes) -> Result<(), Response> {
        if start != self.end {
            let what = format!("the log ends at {}, WAL from {start} cannot be appended", self.end);
            return Err(self.ended(StreamEnd::Malformed, what));
        }
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(WAL_LEN_MAX));
            match self.tracker.feed(data.clone()) {
                Ok(Some(span)) => self.record = RecordEnd { end: span.end, start: span.start },
                Ok(None) => {}
                Err(error) => return Err(self.ended(StreamEnd::Malformed, with_causes(&error))),
            }
            let start = self.end;
            self.end = start.advance(data.len() as u64);
            self.pieces.push_back((self.end, self.record.end));
            let permits = u32::try_from(data.len()).expect("a piece is at most 1 MiB");
            let permit = Arc::clone(&self.session.queued).acquire_many_owned(permits).await;
            let permit = permit.expect("the semaphore is never closed");
            // There is no other safekeeper: what is durable here is committed, and nobody needs it from here.
            let append = Append { term: self.term, start, commit: self.record, peers_lsn: self.end, data };
            let to = self.session.replies.clone();
            let command = Command::Append { append, generation: self.generation, to, permit };
            self.session.shared.registry.send(self.session.key, command).map_err(|error| error.response(0))?;
        }
        Ok(())
    }

    fn ended(&self, end: StreamEnd, message: String) -> Response {
        Response::Received(Received { end_lsn: self.flushed, end, message })
    }
}

/// Waits until then; for ever, if there is no time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
