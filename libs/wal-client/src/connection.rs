//! One connection to one safekeeper.

use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use ardent_api::addr::ServiceAddr;
use ardent_api::frame::Frame;
use ardent_api::wal_service::{Hello, PROTOCOL_VERSION, Request, Response};
use ardent_service_tls::ConnectError;
use ardent_types::{TenantId, TimelineId};
use ardent_unix_stream::QuietStream;

use crate::error::ClientError;

const READ_BUFFER_LEN: usize = 64 << 10;

/// What a connection is bound to.
#[derive(Clone)]
pub(crate) struct Binding {
    pub(crate) tenant: TenantId,
    pub(crate) timeline: TimelineId,
    pub(crate) token: String,
}

type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// The receiving half.
pub(crate) struct Receiver {
    address: ServiceAddr,
    stream: ReadHalf,
    buffer: BytesMut,
    /// What the safekeeper can do, such as [`CAN_HURRY`](ardent_api::wal_service::CAN_HURRY).
    capabilities: u32,
}

/// The sending half.
pub(crate) struct Sender {
    address: ServiceAddr,
    stream: WriteHalf,
    buffer: BytesMut,
}

/// Connects and says hello.
pub(crate) async fn connect(address: &ServiceAddr, binding: &Binding) -> Result<(Sender, Receiver), ClientError> {
    let (read, write) = open(address).await?;
    greet(address, binding, read, write).await
}

/// Connects through a socket of this host, and says hello; the third is the same socket, to send descriptors through.
pub(crate) async fn connect_here(
    address: &ServiceAddr,
    path: &Path,
    binding: &Binding,
) -> Result<(Sender, Receiver, QuietStream), ClientError> {
    let failed = |source| ClientError::Connect { address: address.clone(), source: Arc::new(source) };
    let stream = QuietStream::connect(path).await.map_err(failed)?;
    let same = stream.try_clone().map_err(failed)?;
    let (read, write) = tokio::io::split(stream);
    let (sender, receiver) = greet(address, binding, Box::new(read), Box::new(write)).await?;
    Ok((sender, receiver, same))
}

async fn greet(
    address: &ServiceAddr,
    binding: &Binding,
    read: ReadHalf,
    write: WriteHalf,
) -> Result<(Sender, Receiver), ClientError> {
    let mut sender = Sender { address: address.clone(), stream: write, buffer: BytesMut::new() };
    let buffer = BytesMut::with_capacity(READ_BUFFER_LEN);
    let mut receiver = Receiver { address: address.clone(), stream: read, buffer, capabilities: 0 };
    let hello = Request::Hello(Hello {
        version: PROTOCOL_VERSION,
        capabilities: 0,
        tenant: binding.tenant,
        timeline: binding.timeline,
        token: binding.token.clone(),
    });
    sender.send(&hello).await?;
    match receiver.next().await? {
        Response::HelloOk { version: PROTOCOL_VERSION, capabilities } => {
            receiver.capabilities = capabilities;
            Ok((sender, receiver))
        }
        _ => Err(ClientError::unexpected(address)),
    }
}

async fn open(address: &ServiceAddr) -> Result<(ReadHalf, WriteHalf), ClientError> {
    let failed = |source| ClientError::Connect { address: address.clone(), source: Arc::new(source) };
    match address {
        ServiceAddr::Unix(path) => {
            let (read, write) = tokio::io::split(QuietStream::connect(path).await.map_err(failed)?);
            Ok((Box::new(read), Box::new(write)))
        }
        ServiceAddr::Tcp(host_port) => {
            let stream = TcpStream::connect(host_port).await.map_err(failed)?;
            if !stream.peer_addr().map_err(failed)?.ip().is_loopback() {
                return Err(ClientError::OffHost { address: address.clone() });
            }
            stream.set_nodelay(true).map_err(failed)?;
            let (read, write) = stream.into_split();
            Ok((Box::new(read), Box::new(write)))
        }
        ServiceAddr::Tls(host_port, pin) => match ardent_service_tls::connect(host_port, *pin).await {
            Ok(stream) => {
                let (read, write) = tokio::io::split(stream);
                Ok((Box::new(read), Box::new(write)))
            }
            Err(ConnectError::Io(source)) => Err(failed(source)),
            Err(ConnectError::NotTls) => Err(ClientError::NotTls { address: address.clone() }),
            Err(ConnectError::WrongKey(wrong)) => {
                Err(ClientError::WrongKey { address: address.clone(), shown: wrong.shown })
            }
        },
    }
}

impl Receiver {
    /// The next message; an error message is an error. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Response, ClientError> {
        loop {
            let decoded = Frame::take(&mut self.buffer).map_err(|error| ClientError::decode(&self.address, &error))?;
            if let Some(frame) = decoded {
                let response = Response::decode(frame).map_err(|error| ClientError::decode(&self.address, &error))?;
                return match response {
                    Response::Error { code, message, .. } => {
                        Err(ClientError::Answer { address: self.address.clone(), code, message })
                    }
                    response => Ok(response),
                };
            }
            if self.buffer.capacity() - self.buffer.len() < READ_BUFFER_LEN / 4 {
                self.buffer.reserve(READ_BUFFER_LEN);
            }
            let lost = |source| ClientError::Lost { address: self.address.clone(), source };
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(lost(None)),
                Ok(_) => {}
                // Closed as well, without TLS's farewell.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(lost(None)),
                Err(error) => return Err(lost(Some(Arc::new(error)))),
            }
        }
    }

    /// Whether the safekeeper has this ability.
    pub(crate) fn peer_can(&self, ability: u32) -> bool {
        self.capabilities & ability != 0
    }

    pub(crate) fn unexpected(&self) -> ClientError {
        ClientError::unexpected(&self.address)
    }
}

impl Sender {
    /// Adds a message to those that [`Sender::flush`] sends.
    pub(crate) fn queue(&mut self, request: &Request) {
        request.encode(&mut self.buffer);
    }

    /// Bytes queued.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Sends what is queued. Not cancel-safe.
    pub(crate) async fn flush(&mut self) -> Result<(), ClientError> {
        let mut sent = self.stream.write_all(&self.buffer).await;
        self.buffer.clear();
        if sent.is_ok() {
            // What is encrypted may be with the stream yet.
            sent = self.stream.flush().await;
        }
        sent.map_err(|error| ClientError::Lost { address: self.address.clone(), source: Some(Arc::new(error)) })
    }

    /// Says that nothing more will come.
    pub(crate) async fn finish(&mut self) -> Result<(), ClientError> {
        let finished = self.stream.shutdown().await;
        finished.map_err(|error| ClientError::Lost { address: self.address.clone(), source: Some(Arc::new(error)) })
    }

    /// Sends one message.
    pub(crate) async fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        self.queue(request);
        self.flush().await
    }
}
