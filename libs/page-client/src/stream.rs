//! The transport under a client: a Unix socket or loopback TCP.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use ardent_api::addr::ServiceAddr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::error::PageError;

/// A connected socket.
#[derive(Debug)]
pub enum PageStream {
    /// A Unix socket; its descriptor can be handed to another process on this host.
    Unix(UnixStream),
    /// Loopback TCP.
    Tcp(TcpStream),
}

impl PageStream {
    /// Connects. No token is sent yet.
    pub async fn connect(addr: &ServiceAddr) -> Result<Self, PageError> {
        let failed = |source| PageError::Connect { addr: addr.clone(), source };
        match addr {
            ServiceAddr::Unix(path) => UnixStream::connect(path).await.map(PageStream::Unix).map_err(failed),
            ServiceAddr::Tcp(address) => {
                if !is_loopback(address) {
                    return Err(PageError::OffHost { addr: addr.clone() });
                }
                let stream = TcpStream::connect(address).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                // A name such as `localhost` is what the resolver makes of it: look where it led.
                if !stream.peer_addr().map_err(failed)?.ip().to_canonical().is_loopback() {
                    return Err(PageError::OffHost { addr: addr.clone() });
                }
                Ok(PageStream::Tcp(stream))
            }
            ServiceAddr::Tls(..) => Err(PageError::OffHost { addr: addr.clone() }),
        }
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

impl AsyncRead for PageStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PageStream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            PageStream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for PageStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            PageStream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            PageStream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            PageStream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            PageStream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            PageStream::Unix(stream) => stream.is_write_vectored(),
            PageStream::Tcp(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PageStream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            PageStream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PageStream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            PageStream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_counts_as_this_host() {
        for near in ["127.0.0.1:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"] {
            assert!(is_loopback(near), "{near}");
        }
        for far in ["10.0.0.1:1", "example.org:1", "[2001:db8::1]:1", "0.0.0.0:1"] {
            assert!(!is_loopback(far), "{far}");
        }
    }
}
