//! A client's connection, encrypted or not, that can move from one thread's event loop to another's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use ardent_service_tls::ServerStream;
use ardent_unix_stream::QuietStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A socket that this thread's event loop watches.
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(QuietStream),
    Tcp(TcpStream),
    Tls(Box<ServerStream<TcpSlot>>),
}

/// A socket that no event loop watches.
#[derive(Debug)]
pub(crate) enum Detached {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
    Tls(Box<ServerStream<TcpSlot>>),
}

/// The TCP socket below an encrypted stream, which has to stay where it is while the socket is on no event loop.
#[derive(Debug)]
pub(crate) enum TcpSlot {
    Watched(TcpStream),
    Unwatched(std::net::TcpStream),
    /// It was lost between two event loops.
    Empty,
}

impl Socket {
    /// Takes it off its event loop.
    pub(crate) fn detach(self) -> io::Result<Detached> {
        match self {
            Socket::Unix(stream) => Ok(Detached::Unix(stream.into_std())),
            Socket::Tcp(stream) => stream.into_std().map(Detached::Tcp),
            Socket::Tls(mut stream) => {
                stream.get_mut().0.detach()?;
                Ok(Detached::Tls(stream))
            }
        }
    }
}

impl Detached {
    /// Puts it on the event loop of the thread that this is called on.
    pub(crate) fn attach(self) -> io::Result<Socket> {
        match self {
            Detached::Unix(stream) => QuietStream::from_std(stream).map(Socket::Unix),
            Detached::Tcp(stream) => TcpStream::from_std(stream).map(Socket::Tcp),
            Detached::Tls(mut stream) => {
                stream.get_mut().0.attach()?;
                Ok(Socket::Tls(stream))
            }
        }
    }
}

impl TcpSlot {
    pub(crate) fn new(stream: TcpStream) -> Self {
        TcpSlot::Watched(stream)
    }

    fn detach(&mut self) -> io::Result<()> {
        if let TcpSlot::Watched(stream) = std::mem::replace(self, TcpSlot::Empty) {
            *self = TcpSlot::Unwatched(stream.into_std()?);
        }
        Ok(())
    }

    fn attach(&mut self) -> io::Result<()> {
        if let TcpSlot::Unwatched(stream) = std::mem::replace(self, TcpSlot::Empty) {
            *self = TcpSlot::Watched(TcpStream::from_std(stream)?);
        }
        Ok(())
    }

    fn watched(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        match self.get_mut() {
            TcpSlot::Watched(stream) => Ok(Pin::new(stream)),
            TcpSlot::Unwatched(_) | TcpSlot::Empty => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for TcpSlot {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.watched()?.poll_read(cx, into)
    }
}

impl AsyncWrite for TcpSlot {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.watched()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watched()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watched()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watched()?.poll_shutdown(cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, into),
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
            Socket::Tls(stream) => match Pin::new(stream).poll_read(cx, into) {
                // Who goes away without TLS's farewell has gone away: messages say themselves whether they are whole.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                read => read,
            },
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
