//! One client's connection: frames in, answers out, in order.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ardent_api::frame::{DecodeError, Frame};
use ardent_api::page_service::{BackupItem, ErrorCode, Hello, ManageRequest, PROTOCOL_VERSION, Request, Response};
use ardent_api::token::{Claims, Rights, Service, TokenError};
use ardent_storage::Timeline;
use ardent_types::{BLCKSZ, Lsn, TenantId, TimelineId};
use bytes::BytesMut;

use crate::import::Import;
use crate::limits;
use crate::metrics;
use crate::rel_sizes::RelSizes;
use crate::server::Shared;
use crate::socket::Socket;

/// A request failed: what its client is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub code: ErrorCode,
    pub message: String,
}

impl Failure {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("connection lost")]
    Io(#[from] io::Error),
    #[error("the client broke the protocol")]
    Protocol(#[from] DecodeError),
    #[error("refused: {0}")]
    Refused(String),
}

/// Where a connection's answers go.
#[derive(Debug)]
pub(crate) struct Output {
    socket: Socket,
    buffer: BytesMut,
}

impl Output {
    /// Sends an answer, now or with the ones that follow.
    pub fn send(&mut self, response: &Response) -> io::Result<()> {
        response.encode(&mut self.buffer);
        self.flush_if_large()
    }

    fn flush_if_large(&mut self) -> io::Result<()> {
        if self.buffer.len() >= limits::OUTPUT_FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// What a hello bound a connection to.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub tenant: TenantId,
    pub timeline: TimelineId,
    claims: Claims,
}

impl Bound {
    /// Whether the token allows this on `timeline` (PS-S1).
    pub fn allow(&self, timeline: TimelineId, rights: Rights) -> Result<(), Failure> {
        if self.timeline != TimelineId::NONE && self.timeline != timeline {
            return Err(Failure::new(ErrorCode::Refused, "this connection is bound to another timeline"));
        }
        let allowed = self.claims.allow(Service::Pageserver, self.tenant, timeline, rights);
        allowed.map_err(|error| Failure::new(ErrorCode::Refused, error.to_string()))
    }
}

impl Bound {
    /// Whether the token allows this for every tenant.
    pub fn allow_everywhere(&self, rights: Rights) -> Result<(), Failure> {
        let allowed = self.claims.allow(Service::Pageserver, TenantId::NONE, TimelineId::NONE, rights);
        allowed.map_err(|error| Failure::new(ErrorCode::Refused, error.to_string()))
    }
}

/// A client's connection.
pub(crate) struct Connection<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    input: Socket,
    pub(crate) output: Output,
    bound: Option<Bound>,
    timeline: Option<Arc<Timeline>>,
    /// Of the timeline that the hello named.
    pages_sent: Arc<AtomicU64>,
    pub(crate) import: Option<Import>,
    /// Of the bound timeline.
    pub(crate) sizes: RelSizes,
    socket_error: Option<io::Error>,
}

/// Serves a client until it leaves.
pub(crate) fn serve(shared: &Arc<Shared>, socket: Socket) -> Result<(), ConnectionError> {
    let output = Output { socket: socket.try_clone()?, buffer: BytesMut::new() };
    let mut connection = Connection {
        shared,
        input: socket,
        output,
        bound: None,
        timeline: None,
        pages_sent: Arc::default(),
        import: None,
        sizes: RelSizes::default(),
        socket_error: None,
    };
    let ended = connection.run();
    // The list of open connections still has a handle of it, and the client would wait for an answer for ever.
    connection.input.shut_down();
    ended
}

impl Connection<'_> {
    fn run(&mut self) -> Result<(), ConnectionError> {
        let mut input = BytesMut::with_capacity(64 << 10);
        let mut chunk = vec![0; 64 << 10];
        loop {
            while let Some(frame) = Frame::take(&mut input)? {
                self.answer(Request::decode(frame)?)?;
            }
            self.output.flush()?;
            let length = if self.import.is_some() {
                // What comes is much, and goes on without a copy of it.
                let before = input.len();
                input.resize(before + chunk.len(), 0);
                let read = self.input.read(&mut input[before..]);
                input.truncate(before + *read.as_ref().unwrap_or(&0));
                read?
            } else {
                let length = self.input.read(&mut chunk)?;
                input.extend_from_slice(&chunk[..length]);
                length
            };
            if length == 0 {
                return Ok(());
            }
        }
    }

    fn answer(&mut self, request: Request) -> Result<(), ConnectionError> {
        let Some(bound) = self.bound.clone() else { return self.greet(request) };
        let (name, began) = (metrics::request_name(&request), Instant::now());
        let (id, result) = match request {
            Request::Hello(_) => (0, Err(Failure::new(ErrorCode::Invalid, "a second hello"))),
            Request::GetPages { id, lsn, rel, ranges } => (id, self.get_pages(&bound, id, lsn, rel, &ranges)),
            Request::GetRelSize { id, lsn, rel } => (id, self.get_rel_size(&bound, id, lsn, rel)),
            Request::GetBaseBackup { id, lsn } => (id, self.get_base_backup(&bound, id, lsn)),
            Request::GetChanged { id, from, to } => (id, self.get_changed(&bound, id, from, to)),
            Request::WaitLsn { id, lsn, timeout_ms } => (id, self.wait_lsn(&bound, id, lsn, timeout_ms)),
            Request::Manage { id, request } => (id, self.manage(&bound, id, request)),
            Request::KeepPart { id, at, part, data } => (id, self.keep_part(&bound, id, at, part, &data)),
            Request::GetKeptPart { id, at, part } => (id, self.get_kept_part(&bound, id, at, part)),
            Request::ImportFile { path, length } => (0, self.import_file(path, length)),
            Request::ImportData { data } => (0, self.import_data(data)),
        };
        if let Some(error) = self.socket_error.take() {
            return Err(error.into());
        }
        if let Some(name) = name {
            self.shared.metrics.answered(name, &result, began);
        }
        if let Err(Failure { code, message }) = result {
            tracing::info!(timeline = %bound.timeline, ?code, message, "a request failed");
            self.output.send(&Response::Error { id, code, message })?;
        }
        Ok(())
    }

    /// Queues an answer. A broken socket ends the connection after this request.
    pub(crate) fn reply(&mut self, response: &Response) -> Result<(), Failure> {
        if let Response::BackupItem { item: BackupItem::Page { .. }, .. } = response {
            self.count_pages(1);
        }
        self.output.send(response).map_err(|error| self.lost(error))
    }

    /// Queues an answer of pages that `fill` appends.
    pub(crate) fn reply_pages(
        &mut self,
        id: u64,
        fill: impl FnOnce(&Self, &mut BytesMut) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // Out of its place, so that what fills it can use the connection.
        let mut buffer = std::mem::take(&mut self.output.buffer);
        let before = buffer.len();
        let filled = Response::encode_pages(&mut buffer, id, |buffer| fill(self, buffer));
        // What stands before the pages is smaller than one.
        self.count_pages(((buffer.len() - before) / BLCKSZ) as u64);
        self.output.buffer = buffer;
        filled?;
        self.output.flush_if_large().map_err(|error| self.lost(error))
    }

    fn count_pages(&self, pages: u64) {
        self.pages_sent.fetch_add(pages, Ordering::Relaxed);
        self.shared.metrics.pages_sent(pages);
    }

    fn lost(&mut self, error: io::Error) -> Failure {
        self.socket_error = Some(error);
        Failure::new(ErrorCode::Internal, "the connection is lost")
    }

    fn greet(&mut self, request: Request) -> Result<(), ConnectionError> {
        let outcome = match request {
            Request::Hello(hello) => self.check_hello(hello),
            _ => Err("the first message must be a hello".to_owned()),
        };
        match outcome {
            Ok(bound) => {
                self.pages_sent = self.shared.pages_sent.of(bound.tenant, bound.timeline);
                self.bound = Some(bound);
                self.output.send(&Response::HelloOk { version: PROTOCOL_VERSION, capabilities: 0 })?;
                Ok(())
            }
            Err(message) => {
                self.output.send(&Response::Error { id: 0, code: ErrorCode::Refused, message: message.clone() })?;
                self.output.flush()?;
                Err(ConnectionError::Refused(message))
            }
        }
    }

    fn check_hello(&self, hello: Hello) -> Result<Bound, String> {
        if hello.version != PROTOCOL_VERSION {
            return Err(format!("protocol version {} is not spoken here, {PROTOCOL_VERSION} is", hello.version));
        }
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let allowed = |claims: &Claims| -> Result<(), TokenError> {
            claims.allow(Service::Pageserver, hello.tenant, hello.timeline, Rights::Read)
        };
        let claims = self.shared.verifier.verify(&hello.token, now_s).map_err(|error| error.to_string())?;
        allowed(&claims).map_err(|error| error.to_string())?;
        Ok(Bound { tenant: hello.tenant, timeline: hello.timeline, claims })
    }

    /// The timeline that the connection is bound to, loaded once.
    pub(crate) fn bound_timeline(&mut self, bound: &Bound) -> Result<Arc<Timeline>, Failure> {
        if bound.timeline == TimelineId::NONE {
            return Err(Failure::new(ErrorCode::Invalid, "this connection is bound to no timeline"));
        }
        let timeline = match &self.timeline {
            Some(timeline) => Arc::clone(timeline),
            None => {
                let timeline = self.shared.engine.timeline(bound.tenant, bound.timeline);
                timeline.map_err(|error| crate::pages::timeline_failure(&error))?
            }
        };
        timeline.check_owned().map_err(|error| crate::pages::commit_failure(&error))?;
        self.timeline = Some(Arc::clone(&timeline));
        Ok(timeline)
    }

    fn wait_lsn(&mut self, bound: &Bound, id: u64, lsn: Lsn, timeout_ms: u32) -> Result<(), Failure> {
        let timeline = self.bound_timeline(bound)?;
        let timeout = Duration::from_millis(u64::from(timeout_ms)).min(limits::WAIT_LSN_MAX);
        self.shared.followers.wait_for(&timeline, lsn, Instant::now() + timeout)?;
        self.reply(&Response::LsnReached { id, last_record_lsn: timeline.last_record().end })
    }

    fn manage(&mut self, bound: &Bound, id: u64, request: ManageRequest) -> Result<(), Failure> {
        let reply = self.run_manage(bound, request)?;
        self.reply(&Response::Manage { id, reply })
    }
}
