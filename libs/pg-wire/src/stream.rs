//! The byte stream below a connection.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// TCP, TLS over TCP, or a Unix socket.
pub(crate) enum WireStream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl WireStream {
    /// Has the kernel tell of what comes once it is this many bytes (`SO_RCVLOWAT`), or the end; of what has come, at once, if it is that many. Only
    /// TCP knows this; elsewhere, and where it fails, each piece is told of as it comes.
    pub(crate) fn tell_from(&self, bytes: libc::c_int) {
        let tcp = match self {
            WireStream::Tcp(stream) => stream,
            WireStream::Tls(stream) => stream.get_ref().0,
            WireStream::Unix(_) => return,
        };
        // SAFETY: the pointer is to a live integer of the length that is given; the descriptor is the stream's own.
        let set = unsafe {
            libc::setsockopt(
                tcp.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if set < 0 {
            tracing::debug!(error = %io::Error::last_os_error(), "what comes is told of in small pieces");
        }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            WireStream::Tcp($stream) => $call,
            WireStream::Tls($stream) => $call,
            WireStream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for WireStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for WireStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            WireStream::Tcp(stream) => stream.is_write_vectored(),
            WireStream::Tls(stream) => stream.is_write_vectored(),
            WireStream::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
