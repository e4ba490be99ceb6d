//! The connection and its requests.

use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::frame::Frame;
use ardent_api::page_service::{
    BackupItem, BlockRange, ChangedRelation, Hello, KEPT_PART_LEN_MAX, KeptAt, ManageReply, ManageRequest,
    PAGES_PER_REQUEST_MAX, PROTOCOL_VERSION, Request, Response,
};
use ardent_types::{BLCKSZ, BlockNumber, Lsn, RelTag, TenantId, TimelineId};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::PageError;
use crate::stream::PageStream;

/// Room that a read asks for: most answers come in one.
const READ_CHUNK_LEN: usize = 64 << 10;

/// What a connection may do: the timeline it is bound to and the token that allows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Binding {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline, or [`TimelineId::NONE`] to manage a whole page server.
    pub timeline: TimelineId,
    /// Service token.
    pub token: String,
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Binding")
            .field("tenant", &self.tenant)
            .field("timeline", &self.timeline)
            .finish_non_exhaustive()
    }
}

/// One connection to a page server, after its hello.
#[derive(Debug)]
pub struct PageClient {
    addr: ServiceAddr,
    stream: PageStream,
    /// Bytes received and not yet taken as frames.
    received: BytesMut,
    next_id: u64,
    /// Set while a request is on the wire; still set afterwards if its future was dropped or it failed.
    in_step: bool,
}

impl PageClient {
    /// Connects and says hello. A refused token is [`PageError::Server`] with the code `Refused`.
    pub async fn connect(addr: &ServiceAddr, binding: &Binding) -> Result<Self, PageError> {
        let stream = PageStream::connect(addr).await?;
        let received = BytesMut::new();
        let mut client = PageClient { addr: addr.clone(), stream, received, next_id: 1, in_step: true };
        let hello = Hello {
            version: PROTOCOL_VERSION,
            capabilities: 0,
            tenant: binding.tenant,
            timeline: binding.timeline,
            token: binding.token.clone(),
        };
        client.start(&Request::Hello(hello)).await?;
        match client.receive().await? {
            Response::HelloOk { version: PROTOCOL_VERSION, .. } => client.finish(()),
            Response::Error { code, message, .. } => Err(PageError::Server { code, message }),
            answer => Err(client.unexpected("a hello", &answer)),
        }?;
        Ok(client)
    }

    /// The socket, for handing on to someone who speaks the protocol from here. Only between requests.
    pub fn into_stream(self) -> Result<PageStream, PageError> {
        if self.in_step && self.received.is_empty() {
            Ok(self.stream)
        } else {
            Err(PageError::Broken { addr: self.addr })
        }
    }

    /// Waits until WAL up to `lsn` is ingested, at most `timeout`; gives the end of the last record ingested.
    pub async fn wait_lsn(&mut self, lsn: Lsn, timeout: Duration) -> Result<Lsn, PageError> {
        let id = self.take_id();
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        match self.call(id, &Request::WaitLsn { id, lsn, timeout_ms }).await? {
            Response::LsnReached { last_record_lsn, .. } => Ok(last_record_lsn),
            answer => Err(self.unexpected("a wait for an LSN", &answer)),
        }
    }

    /// The size in blocks of `rel` at `lsn`; `None` when it does not exist.
    pub async fn get_rel_size(&mut self, lsn: Lsn, rel: RelTag) -> Result<Option<BlockNumber>, PageError> {
        let id = self.take_id();
        match self.call(id, &Request::GetRelSize { id, lsn, rel }).await? {
            Response::RelSize { nblocks, .. } => Ok(nblocks),
            answer => Err(self.unexpected("a request for a relation's size", &answer)),
        }
    }

    /// Pages of `rel` at `lsn` in the order of `ranges`: [`BLCKSZ`] bytes each. At most [`PAGES_PER_REQUEST_MAX`] pages
    /// together.
    pub async fn get_pages(&mut self, lsn: Lsn, rel: RelTag, ranges: &[BlockRange]) -> Result<Bytes, PageError> {
        let count: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
        assert!(count <= u64::from(PAGES_PER_REQUEST_MAX), "{count} pages in one request");
        let id = self.take_id();
        let request = Request::GetPages { id, lsn, rel, ranges: ranges.to_vec() };
        match self.call(id, &request).await? {
            Response::Pages { pages, .. } if pages.len() as u64 == count * BLCKSZ as u64 => Ok(pages),
            answer => Err(self.unexpected("a request for pages", &answer)),
        }
    }

    /// The relation forks with blocks that changed in `(from, to]`, in key order.
    pub async fn get_changed(&mut self, from: Lsn, to: Lsn) -> Result<Vec<ChangedRelation>, PageError> {
        let id = self.take_id();
        self.start(&Request::GetChanged { id, from, to }).await?;
        let mut changed = Vec::new();
        loop {
            match self.receive_for(id).await? {
                Response::Changed { relations, last, .. } => {
                    changed.extend(relations);
                    if last {
                        return self.finish(changed);
                    }
                }
                answer => return Err(self.unexpected("a request for changed blocks", &answer)),
            }
        }
    }

    /// Asks for the base backup at `lsn`; its parts come from the stream.
    pub async fn base_backup(&mut self, lsn: Lsn) -> Result<BackupStream<'_>, PageError> {
        let id = self.take_id();
        self.start(&Request::GetBaseBackup { id, lsn }).await?;
        Ok(BackupStream { client: self, id, ended: false })
    }

    /// A management request.
    pub async fn manage(&mut self, request: ManageRequest) -> Result<ManageReply, PageError> {
        let id = self.take_id();
        match self.call(id, &Request::Manage { id, request }).await? {
            Response::Manage { reply, .. } => Ok(reply),
            answer => Err(self.unexpected("a management request", &answer)),
        }
    }

    /// Sends a part of what a compute leaves, at most [`KEPT_PART_LEN_MAX`] bytes.
    pub async fn keep_part(&mut self, at: KeptAt, part: u32, data: Bytes) -> Result<(), PageError> {
        assert!(data.len() <= KEPT_PART_LEN_MAX, "a part of {} bytes", data.len());
        let id = self.take_id();
        match self.call(id, &Request::KeepPart { id, at, part, data }).await? {
            Response::Manage { reply: ManageReply::Done, .. } => Ok(()),
            answer => Err(self.unexpected("a part to keep", &answer)),
        }
    }

    /// A part of what was kept.
    pub async fn get_kept_part(&mut self, at: KeptAt, part: u32) -> Result<Bytes, PageError> {
        let id = self.take_id();
        match self.call(id, &Request::GetKeptPart { id, at, part }).await? {
            Response::KeptPart { data, .. } => Ok(data),
            answer => Err(self.unexpected("a request for a kept part", &answer)),
        }
    }

    async fn call(&mut self, id: u64, request: &Request) -> Result<Response, PageError> {
        self.start(request).await?;
        let response = self.receive_for(id).await?;
        self.finish(response)
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Sends a request; the connection is out of step until [`Self::finish`].
    async fn start(&mut self, request: &Request) -> Result<(), PageError> {
        self.step_out()?;
        let mut out = BytesMut::new();
        request.encode(&mut out);
        self.stream.write_all(&out).await.map_err(|source| PageError::Lost { addr: self.addr.clone(), source })
    }

    /// Marks the connection as out of step, which it stays unless [`Self::finish`] is reached.
    pub(crate) fn step_out(&mut self) -> Result<(), PageError> {
        if std::mem::replace(&mut self.in_step, false) {
            Ok(())
        } else {
            Err(PageError::Broken { addr: self.addr.clone() })
        }
    }

    pub(crate) fn finish<T>(&mut self, value: T) -> Result<T, PageError> {
        self.in_step = true;
        Ok(value)
    }

    /// The next answer to request `id`. A failed request leaves the connection in step: its error was its answer.
    async fn receive_for(&mut self, id: u64) -> Result<Response, PageError> {
        let response = self.receive().await?;
        match response {
            Response::Error { id: about, code, message } if about == id || about == 0 => {
                self.in_step = about == id;
                Err(PageError::Server { code, message })
            }
            response if response_id(&response) == id => Ok(response),
            response => Err(self.unexpected("a request", &response)),
        }
    }

    /// The next message. Cancel-safe: bytes received stay in the buffer.
    pub(crate) async fn receive(&mut self) -> Result<Response, PageError> {
        loop {
            let malformed = |source| PageError::Malformed { addr: self.addr.clone(), source };
            if let Some(frame) = Frame::take(&mut self.received).map_err(malformed)? {
                return Response::decode(frame).map_err(malformed);
            }
            self.received.reserve(READ_CHUNK_LEN);
            let lost = |source| PageError::Lost { addr: self.addr.clone(), source };
            if self.stream.read_buf(&mut self.received).await.map_err(lost)? == 0 {
                return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    pub(crate) fn unexpected(&self, request: &'static str, answer: &Response) -> PageError {
        PageError::Unexpected { addr: self.addr.clone(), request, answer: response_name(answer) }
    }

    pub(crate) fn stream_mut(&mut self) -> (&mut PageStream, &mut BytesMut) {
        (&mut self.stream, &mut self.received)
    }

    pub(crate) fn addr(&self) -> &ServiceAddr {
        &self.addr
    }
}

/// The parts of one base backup, as they arrive.
#[derive(Debug)]
pub struct BackupStream<'a> {
    client: &'a mut PageClient,
    id: u64,
    ended: bool,
}

impl BackupStream<'_> {
    /// The next part, `None` after the last. Dropping the stream before that leaves the connection unusable.
    pub async fn next(&mut self) -> Result<Option<BackupItem>, PageError> {
        if self.ended {
            return Ok(None);
        }
        match self.client.receive_for(self.id).await {
            Ok(Response::BackupItem { item: BackupItem::End, .. }) => {
                self.ended = true;
                self.client.finish(None)
            }
            Ok(Response::BackupItem { item, .. }) => Ok(Some(item)),
            Ok(answer) => Err(self.client.unexpected("a request for a base backup", &answer)),
            Err(error) => {
                self.ended = true;
                Err(error)
            }
        }
    }
}

fn response_id(response: &Response) -> u64 {
    match response {
        Response::HelloOk { .. } => 0,
        Response::Pages { id, .. }
        | Response::RelSize { id, .. }
        | Response::BackupItem { id, .. }
        | Response::Changed { id, .. }
        | Response::LsnReached { id, .. }
        | Response::Manage { id, .. }
        | Response::KeptPart { id, .. }
        | Response::Error { id, .. } => *id,
    }
}

fn response_name(response: &Response) -> &'static str {
    match response {
        Response::HelloOk { .. } => "a hello",
        Response::Pages { .. } => "pages",
        Response::RelSize { .. } => "a relation's size",
        Response::BackupItem { .. } => "a part of a base backup",
        Response::Changed { .. } => "changed blocks",
        Response::LsnReached { .. } => "an LSN",
        Response::Manage { .. } => "a management reply",
        Response::KeptPart { .. } => "a kept part",
        Response::Error { .. } => "an error about something else",
    }
}
