//! One client's connection: decode, check rights, pass on, send what comes back.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use ardent_api::frame::{DecodeError, Frame};
use ardent_api::token::{Claims, Rights, Service, TOKEN_LEN_MAX, TokenVerifier};
use ardent_api::wal_service::{
    CAN_CHANGE_MEMBERS, CAN_HURRY, CAN_RECEIVE, CAN_TELL_STATUS, ErrorCode, Hello, ManageReply, ManageRequest,
    PROTOCOL_VERSION, Request, Response,
};
use ardent_types::{MemberGeneration, TenantId, TimelineId};

use crate::archive::Stalls;
use crate::disk_worker::{Command, Key};
use crate::failure::{TimelineError, with_causes};
use crate::follow;
use crate::metrics::Metrics;
use crate::receive;
use crate::registry::Registry;
use crate::socket::{Detached, Socket};
use crate::status::{StatusError, status};
use crate::timeline::Replies;

/// A client must have said hello after this long.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// WAL that one connection may have waiting for the disk, in bytes.
const QUEUED_BYTES_MAX: usize = 8 << 20;
const READ_BUFFER_LEN: usize = 64 << 10;
/// Longest hello, in bytes: nobody knows yet who it is that asks for memory.
const HELLO_LEN_MAX: usize = TOKEN_LEN_MAX + 1024;
/// What a TLS client sends first: a handshake's record, of version 3 of what was SSL.
const TLS_RECORD: [u8; 2] = [22, 3];

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) registry: Registry,
    /// Absent without an archive.
    pub(crate) archive_stalls: Option<Stalls>,
    pub(crate) verifier: TokenVerifier,
    pub(crate) metrics: Metrics,
    pub(crate) follow_gather: Duration,
}

impl Shared {
    /// Checks a token; the error is the text for the client.
    pub(crate) fn verify(&self, token: &str) -> Result<Claims, String> {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.verifier.verify(token, now_s).map_err(|error| error.to_string())
    }
}

/// Why a connection ended, where it did not just close.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("a message cannot be read")]
    Decode(#[from] DecodeError),
    #[error("no hello came in time")]
    NoHello,
    #[error("the client speaks TLS, which this address does not")]
    Encrypted,
    #[error("{0}")]
    Refused(String),
    #[error("request failed: {0}")]
    Failed(String),
}

/// The reading half with what has been read ahead.
pub(crate) struct Frames<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(stream: R) -> Self {
        Frames { stream, buffer: BytesMut::with_capacity(READ_BUFFER_LEN) }
    }

    /// The next frame, `None` when the client has closed. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, ConnectionError> {
        loop {
            if let Some(frame) = Frame::take(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            if self.buffer.capacity() - self.buffer.len() < READ_BUFFER_LEN / 4 {
                self.buffer.reserve(READ_BUFFER_LEN);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The first frame, of a client that may be anybody.
    async fn first(&mut self) -> Result<Option<Frame>, ConnectionError> {
        let length = loop {
            if let Some(length) = self.buffer.first_chunk::<4>() {
                break u32::from_le_bytes(*length) as usize;
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        };
        match length {
            0..=HELLO_LEN_MAX => self.next().await,
            _ if self.buffer.starts_with(&TLS_RECORD) => Err(ConnectionError::Encrypted),
            _ => Err(DecodeError::BadLength(length).into()),
        }
    }
}

/// Serves one connection until either side ends it, or until it turns out to be a writer's.
pub(crate) async fn serve(shared: Arc<Shared>, socket: Socket) -> Result<Option<Writer>, ConnectionError> {
    let (reader, mut writer) = tokio::io::split(socket);
    let mut frames = Frames::new(reader);
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, frames.first()).await {
        Err(_) => return Err(ConnectionError::NoHello),
        Ok(Ok(None)) => return Ok(None),
        Ok(Ok(Some(frame))) => Request::decode(frame)?,
        Ok(Err(error)) => {
            if matches!(error, ConnectionError::Encrypted) {
                // No TLS: that is what it has to understand of it.
                let message = "TLS is not spoken at this address".to_owned();
                send(&mut writer, &Response::Error { id: 0, code: ErrorCode::Refused, message }).await?;
            }
            return Err(error);
        }
    };
    let session = match Session::open(shared, hello) {
        Ok(session) => session,
        Err(message) => {
            let refusal = Response::Error { id: 0, code: ErrorCode::Refused, message: message.clone() };
            send(&mut writer, &refusal).await?;
            return Err(ConnectionError::Refused(message));
        }
    };
    let capabilities = CAN_HURRY | CAN_TELL_STATUS | CAN_CHANGE_MEMBERS | CAN_RECEIVE;
    send(&mut writer, &Response::HelloOk { version: PROTOCOL_VERSION, capabilities }).await?;
    session.run(frames, writer).await
}

/// A writer's connection on its way to the thread that owns its timeline.
pub(crate) struct Writer {
    session: Session,
    socket: Detached,
    /// What has been read already.
    buffer: BytesMut,
    first: Request,
}

impl Writer {
    /// The event loop that it has to go on with.
    pub(crate) fn runtime(&self) -> Handle {
        self.session.shared.registry.runtime(self.session.key).clone()
    }

    /// Serves it until either side ends it.
    pub(crate) async fn serve(self) -> Result<(), ConnectionError> {
        let Writer { mut session, socket, buffer, first } = self;
        session.is_home = true;
        let (shared, key) = (Arc::clone(&session.shared), session.key);
        let ended = match (first, socket.attach()?) {
            (Request::Receive(receive), Socket::Unix(stream)) if buffer.is_empty() => {
                receive::serve(session, stream, receive).await
            }
            (first, socket) => Self::write(session, socket, buffer, first).await,
        };
        if let Err(error) = shared.registry.send(key, Command::WriterLeft) {
            tracing::debug!(%error, "the commit position is saved with all others");
        }
        ended
    }

    async fn write(
        mut session: Session,
        socket: Socket,
        buffer: BytesMut,
        first: Request,
    ) -> Result<(), ConnectionError> {
        let (stream, writer) = tokio::io::split(socket);
        if let Err(response) = session.handle(first).await {
            // Through the queue, as all answers.
            let _ = session.replies.send(response);
        }
        session.run(Frames { stream, buffer }, writer).await.map(|_| ())
    }
}

pub(crate) async fn send<W: AsyncWrite + Unpin>(writer: &mut W, response: &Response) -> Result<(), ConnectionError> {
    let mut out = BytesMut::new();
    response.encode(&mut out);
    send_all(writer, &out).await?;
    Ok(())
}

/// Sends it, also what a stream that encrypts would keep until later.
pub(crate) async fn send_all<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> std::io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// A connection after its hello.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    claims: Claims,
    pub(crate) key: Key,
    pub(crate) replies: Replies,
    pub(crate) answers: mpsc::UnboundedReceiver<Response>,
    /// Bounds what is on its way to the disk.
    pub(crate) queued: Arc<Semaphore>,
    /// It is on the thread that owns its timeline.
    is_home: bool,
    /// Which members the writer goes by.
    generation: MemberGeneration,
}

enum Next {
    Continue,
    Follow(ardent_types::Lsn),
    /// The request is a writer's: it is to be handled where the timeline is.
    GoHome(Request),
}

impl Session {
    fn open(shared: Arc<Shared>, hello: Request) -> Result<Session, String> {
        let Request::Hello(Hello { version, tenant, timeline, token, .. }) = hello else {
            return Err("the first message must be a hello".to_owned());
        };
        if version != PROTOCOL_VERSION {
            return Err(format!("protocol version {version} is not spoken here, version {PROTOCOL_VERSION} is"));
        }
        let claims = shared.verify(&token)?;
        claims.allow(Service::Safekeeper, tenant, timeline, Rights::Read).map_err(|error| error.to_string())?;
        let (replies, answers) = mpsc::unbounded_channel();
        let queued = Arc::new(Semaphore::new(QUEUED_BYTES_MAX));
        let generation = MemberGeneration::default();
        Ok(Session { shared, claims, key: (tenant, timeline), replies, answers, queued, is_home: false, generation })
    }

    fn check_rights(&self, timeline: TimelineId, rights: Rights) -> Result<(), Response> {
        self.check_tenant_rights(self.key.0, timeline, rights)
    }

    fn check_tenant_rights(&self, tenant: TenantId, timeline: TimelineId, rights: Rights) -> Result<(), Response> {
        self.claims.allow(Service::Safekeeper, tenant, timeline, rights).map_err(|error| Response::Error {
            id: 0,
            code: ErrorCode::Refused,
            message: error.to_string(),
        })
    }

    /// `Some`: the connection has to go on elsewhere.
    async fn run(
        mut self,
        mut frames: Frames<ReadHalf<Socket>>,
        mut writer: WriteHalf<Socket>,
    ) -> Result<Option<Writer>, ConnectionError> {
        let mut out = BytesMut::new();
        loop {
            tokio::select! {
                biased;
                answer = self.answers.recv() => {
                    let mut answer = answer.expect("the session holds a sender");
                    loop {
                        answer.encode(&mut out);
                        if let Some(failure) = failure_that_closes(&answer) {
                            send_all(&mut writer, &out).await?;
                            return Err(failure);
                        }
                        match self.answers.try_recv() {
                            Ok(another) => answer = another,
                            Err(_) => break,
                        }
                    }
                    send_all(&mut writer, &out).await?;
                    out.clear();
                }
                frame = frames.next() => {
                    let Some(frame) = frame? else { return Ok(None) };
                    match self.handle(Request::decode(frame)?).await {
                        Ok(Next::Continue) => {}
                        Ok(Next::Follow(from)) => {
                            follow::serve(&self.shared, self.key, &self.claims, from, frames, writer).await?;
                            return Ok(None);
                        }
                        Ok(Next::GoHome(first)) => {
                            let Frames { stream, buffer } = frames;
                            let socket = stream.unsplit(writer).detach()?;
                            return Ok(Some(Writer { session: self, socket, buffer, first }));
                        }
                        Err(response) => {
                            // Through the queue, so that answers that are on their way come first.
                            let _ = self.replies.send(response);
                        }
                    }
                }
            }
        }
    }

    /// Passes a request on. An error is the answer.
    async fn handle(&mut self, request: Request) -> Result<Next, Response> {
        let key = self.key;
        let is_writers = matches!(
            request,
            Request::Vote(_) | Request::VoteIn(..) | Request::Begin(_) | Request::Append(_) | Request::Receive(_)
        );
        if !self.is_home && is_writers {
            self.check_rights(key.1, Rights::Write)?;
            return Ok(Next::GoHome(request));
        }
        let replies = self.replies.clone();
        let to = || replies.clone();
        let command = match request {
            Request::Hello(_) => return Err(invalid(0, "a second hello")),
            Request::Manage { id, request } => {
                let reply = self.manage(request).await.map_err(|failure| failure.response(id))?;
                let _ = self.replies.send(Response::Manage { id, reply });
                return Ok(Next::Continue);
            }
            Request::Follow { from } => {
                self.check_rights(key.1, Rights::Read)?;
                return Ok(Next::Follow(from));
            }
            Request::Vote(vote) => {
                self.generation = MemberGeneration::default();
                Command::Vote { vote, by: None, to: to() }
            }
            Request::VoteIn(vote, membership) => {
                self.generation = membership.generation;
                Command::Vote { vote, by: Some(membership), to: to() }
            }
            Request::Begin(begin) => Command::Begin { begin, generation: self.generation, to: to() },
            Request::Append(append) => {
                let permits = u32::try_from(append.data.len()).expect("WAL fits a frame").max(1);
                let permit = Arc::clone(&self.queued).acquire_many_owned(permits).await;
                let permit = permit.expect("the semaphore is never closed");
                Command::Append { append, generation: self.generation, to: to(), permit }
            }
            Request::Receive(_) => {
                let what =
                    "a walsender's connection is handed over by the first request of a writer, through a Unix socket";
                return Err(invalid(0, what));
            }
            Request::ReadWal { id, term, from, to: end } => {
                self.check_rights(key.1, Rights::Write)?;
                let read = self.shared.registry.read_for_writer(key, term, from, end).await;
                let _ = self.replies.send(match read {
                    Ok(bytes) => Response::Wal { id, start: from, bytes },
                    Err(error) => error.response(id),
                });
                return Ok(Next::Continue);
            }
            Request::Position { durable_lsn } => Command::Followed(durable_lsn),
            Request::Await { .. } => return Err(invalid(0, "a wait for WAL by one who does not follow it")),
        };
        self.check_rights(key.1, Rights::Write)?;
        self.shared.registry.send(key, command).map_err(|error| error.response(0))?;
        Ok(Next::Continue)
    }

    async fn manage(&self, request: ManageRequest) -> Result<ManageReply, ManageFailure> {
        let tenant = self.key.0;
        let registry = &self.shared.registry;
        match request {
            ManageRequest::CreateTimeline { spec } => {
                self.check_rights(spec.timeline, Rights::Manage)?;
                if spec.tenant != tenant {
                    return Err(ManageFailure::Response(invalid(0, "the timeline is of another tenant")));
                }
                registry.create(spec).await?;
                Ok(ManageReply::Done)
            }
            ManageRequest::DeleteTimeline { timeline } => {
                self.check_rights(timeline, Rights::Manage)?;
                registry.delete((tenant, timeline)).await?;
                Ok(ManageReply::Done)
            }
            ManageRequest::TimelineStatus { timeline } => {
                self.check_rights(timeline, Rights::Read)?;
                Ok(ManageReply::Timeline(registry.status((tenant, timeline)).await?))
            }
            ManageRequest::Identify => Ok(ManageReply::Disk { disk: registry.disk() }),
            ManageRequest::IsEmpty => {
                self.check_tenant_rights(TenantId::NONE, TimelineId::NONE, Rights::Read)?;
                let is_empty = registry.is_empty().await.map_err(|error| cannot_list(&error))?;
                Ok(ManageReply::Empty { is_empty })
            }
            ManageRequest::TimelineOutline { timeline } => {
                self.check_rights(timeline, Rights::Read)?;
                Ok(ManageReply::Outline(Box::new(registry.outline((tenant, timeline)).await?)))
            }
            ManageRequest::CopyTimeline { source } => {
                self.check_rights(source.timeline, Rights::Manage)?;
                if source.tenant != tenant {
                    return Err(ManageFailure::Response(invalid(0, "the timeline is of another tenant")));
                }
                registry.copy(&source).await?;
                Ok(ManageReply::Done)
            }
            ManageRequest::Configure { timeline, membership, promise } => {
                self.check_rights(timeline, Rights::Manage)?;
                let standing = registry.configure((tenant, timeline), membership, promise).await?;
                Ok(ManageReply::Standing(Box::new(standing)))
            }
            ManageRequest::ListTimelines => {
                self.check_rights(TimelineId::NONE, Rights::Read)?;
                let timelines = registry.list(tenant).await.map_err(|error| cannot_list(&error))?;
                Ok(ManageReply::Timelines { timelines })
            }
            ManageRequest::SafekeeperStatus => {
                self.check_tenant_rights(TenantId::NONE, TimelineId::NONE, Rights::Read)?;
                let status = status(registry, self.shared.archive_stalls.as_ref()).await;
                status.map(ManageReply::Safekeeper).map_err(|error| match error {
                    StatusError::Timelines(error) => ManageFailure::Timeline(error),
                    disk @ StatusError::Disk { .. } => ManageFailure::Response(Response::Error {
                        id: 0,
                        code: ErrorCode::Unavailable,
                        message: with_causes(&disk),
                    }),
                })
            }
        }
    }
}

enum ManageFailure {
    Timeline(TimelineError),
    Response(Response),
}

impl From<TimelineError> for ManageFailure {
    fn from(error: TimelineError) -> Self {
        ManageFailure::Timeline(error)
    }
}

impl From<Response> for ManageFailure {
    fn from(response: Response) -> Self {
        ManageFailure::Response(response)
    }
}

impl ManageFailure {
    fn response(self, id: u64) -> Response {
        match self {
            ManageFailure::Timeline(error) => error.response(id),
            ManageFailure::Response(Response::Error { code, message, .. }) => Response::Error { id, code, message },
            ManageFailure::Response(other) => other,
        }
    }
}

fn cannot_list(error: &std::io::Error) -> Response {
    let message = format!("the data folder cannot be listed: {error}");
    Response::Error { id: 0, code: ErrorCode::Unavailable, message }
}

fn invalid(id: u64, message: &str) -> Response {
    Response::Error { id, code: ErrorCode::Invalid, message: message.to_owned() }
}

/// Failures that belong to no request by id end the connection: what was sent after them cannot be right either.
fn failure_that_closes(answer: &Response) -> Option<ConnectionError> {
    match answer {
        Response::Error { id: 0, message, .. } => Some(ConnectionError::Failed(message.clone())),
        _ => None,
    }
}
