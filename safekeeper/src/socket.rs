//! A client's connection, Unix or TCP, that can move from one thread's event loop to another's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use ardent_unix_stream::QuietStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A socket that this thread's event loop watches.
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(QuietStream),
    Tcp(TcpStream),
}

/// A socket that no event loop watches.
#[derive(Debug)]
pub(crate) enum Detached {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

impl Socket {
    /// Takes it off its event loop.
    pub(crate) fn detach(self) -> io::Result<Detached> {
        match self {
            Socket::Unix(stream) => Ok(Detached::Unix(stream.into_std())),
            Socket::Tcp(stream) => stream.into_std().map(Detached::Tcp),
        }
    }
}

impl Detached {
    /// Puts it on the event loop of the thread that this is called on.
    pub(crate) fn attach(self) -> io::Result<Socket> {
        match self {
            Detached::Unix(stream) => QuietStream::from_std(stream).map(Socket::Unix),
            Detached::Tcp(stream) => TcpStream::from_std(stream).map(Socket::Tcp),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, into),
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
