//! How a Postgres client asks for encryption before it says anything else. Source: PostgreSQL's documentation, "SSL Session Encryption".

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::wire::{self, Asked, REQUEST_LEN};
use crate::handshake::HandshakeError;

/// Until the client asks for TLS and is told to go on with it; one that goes on without is told to ask.
pub(crate) async fn agree_on_tls(stream: &mut TcpStream) -> Result<(), HandshakeError> {
    loop {
        // Not a byte more: what follows the request is for TLS alone, and what somebody put in behind it fails there.
        let mut request = [0; REQUEST_LEN];
        stream.read_exact(&mut request).await?;
        match wire::asked(&request) {
            Asked::Tls => {
                stream.write_all(b"S").await?;
                return Ok(());
            }
            Asked::Gss => stream.write_all(b"N").await?,
            Asked::Nothing => {
                // What is closed with something unread is reset, and the answer with it.
                stream.read_buf(&mut BytesMut::with_capacity(16 << 10)).await?;
                let mut out = BytesMut::new();
                let message = "only TLS is spoken at this address: connect with sslmode=verify-full (or require)";
                wire::put_error(&mut out, "FATAL", "28000", message);
                stream.write_all(&out).await?;
                stream.shutdown().await?;
                return Err(HandshakeError::NotEncrypted);
            }
        }
    }
}
