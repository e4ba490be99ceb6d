//! From a TCP connection between hosts to an encrypted one.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use ardent_api::wal_service::{ErrorCode, Response};
use ardent_service_tls::TlsAcceptor;

use crate::listener::Protocol;
use crate::replication;
use crate::socket::{Socket, TcpSlot};

/// How long it may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The type of a TLS record that belongs to a handshake: what every TLS client sends first.
const HANDSHAKE_RECORD: u8 = 22;
/// What a client that speaks something else is told.
const ENCRYPTED_ONLY: &str =
    "only TLS is spoken at this address: give it as tls:HOST:PORT/KEY, as the safekeeper printed it when it started";

/// A client that is to be encrypted.
pub(crate) struct Handshake {
    pub(crate) stream: TcpStream,
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) protocol: Protocol,
    /// Given back at the end, whatever it is.
    pub(crate) _turn: OwnedSemaphorePermit,
}

/// It did not come to that.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the handshake failed")]
    Io(#[from] io::Error),
    #[error("the client does not encrypt; it was told to")]
    NotEncrypted,
    #[error("the client went away")]
    Gone,
    #[error("the handshake took too long")]
    TimedOut,
}

impl Handshake {
    /// Encrypts it.
    pub(crate) async fn run(self) -> Result<Socket, HandshakeError> {
        let Handshake { mut stream, acceptor, protocol, _turn } = self;
        let encrypting = async {
            match protocol {
                Protocol::Wal => expect_tls(&mut stream).await?,
                Protocol::Replication => replication::agree_on_tls(&mut stream).await?,
            }
            Ok(Socket::Tls(Box::new(acceptor.accept(TcpSlot::new(stream)).await?)))
        };
        timeout(HANDSHAKE_TIMEOUT, encrypting).await.map_err(|_| HandshakeError::TimedOut)?
    }
}

/// A client of the WAL service that does not begin with TLS would wait for an answer that it understands: it gets one.
async fn expect_tls(stream: &mut TcpStream) -> Result<(), HandshakeError> {
    let mut first = [0];
    match (stream.peek(&mut first).await?, first) {
        (0, _) => Err(HandshakeError::Gone),
        (_, [HANDSHAKE_RECORD]) => Ok(()),
        _ => {
            // What is closed with something unread is reset, and the answer with it.
            stream.read_buf(&mut BytesMut::with_capacity(16 << 10)).await?;
            let mut out = BytesMut::new();
            Response::Error { id: 0, code: ErrorCode::Refused, message: ENCRYPTED_ONLY.to_owned() }.encode(&mut out);
            stream.write_all(&out).await?;
            stream.shutdown().await?;
            Err(HandshakeError::NotEncrypted)
        }
    }
}
