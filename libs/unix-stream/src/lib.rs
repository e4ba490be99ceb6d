//! A connected Unix socket for event loops that sleeps through what its peer reads.
//!
//! ```text
//!  read  ──► watched for reading, always
//!  write ──► sent at once ──buffer full──► watched for writing (a second descriptor) until there is room
//! ```
//!
//! Tokio's own stream is watched for reading and writing from the start. On Unix sockets Linux reports room for writing
//! whenever the peer has read something, full or not, so every message sent wakes the sender once more, just when the peer wants the
//! processor. Where a round trip passes several processes, as a commit and a relayed query do, that is half of all wake-ups.
//!
//! Invariants: a write that is refused for want of room is woken when there is room; bytes are sent in order; nothing is buffered here.
//!
//! What it does not know: what is sent.

use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// The stream.
#[derive(Debug)]
pub struct QuietStream {
    stream: AsyncFd<StdStream>,
    /// There while a write waits for room.
    room: Option<AsyncFd<StdStream>>,
}

impl QuietStream {
    /// Connects to the socket at `path`.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        // Connecting may have to wait for a place in the listener's queue, which Tokio's stream knows how to do.
        UnixStream::connect(path).await?.try_into()
    }

    /// A stream from one that does not block, watched by the event loop of the thread that this is called on.
    pub fn from_std(stream: StdStream) -> io::Result<Self> {
        Ok(QuietStream { stream: watch(stream, Interest::READABLE)?, room: None })
    }

    /// Takes it off its event loop.
    pub fn into_std(self) -> StdStream {
        self.stream.into_inner()
    }

    /// Writes, waiting for room where there is none.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        send: impl Fn(&StdStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match send(self.stream.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => {
                    self.room = None;
                    return Poll::Ready(done);
                }
            }
            let room = match &self.room {
                Some(room) => room,
                None => {
                    let watched = self.stream.get_ref().try_clone()?;
                    self.room.insert(watch(watched, Interest::WRITABLE)?)
                }
            };
            // What was true before the attempt that found no room says nothing: it is looked at again after the next report.
            ready!(room.poll_write_ready(cx))?.clear_ready();
        }
    }
}

/// Reads into memory that need not be initialised. Readers offer a buffer as large as the largest message, of which a message fills a
/// small part: to zero the buffer first costs more than the system call.
fn receive(stream: &StdStream, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most the length given.
    let length = unsafe { libc::recv(stream.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

fn watch(stream: StdStream, interest: Interest) -> io::Result<AsyncFd<StdStream>> {
    // SAFETY: a stream always names the same descriptor, and closes it only when it is dropped.
    unsafe { AsyncFd::register_with_interest(stream, interest) }.map_err(io::Error::from)
}

impl TryFrom<UnixStream> for QuietStream {
    type Error = io::Error;

    fn try_from(stream: UnixStream) -> io::Result<Self> {
        Self::from_std(stream.into_std()?)
    }
}

impl AsyncRead for QuietStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut ready = ready!(this.stream.poll_read_ready(cx))?;
            // SAFETY: `receive` leaves what has been initialised so.
            let free = unsafe { into.unfilled_mut() };
            let wanted = free.len();
            match receive(ready.get_inner(), free) {
                Ok(length) => {
                    // SAFETY: so many bytes were written to the beginning of what was free.
                    unsafe { into.assume_init(length) };
                    // Less than there was room for: nothing is left, and what comes next is reported anew.
                    if 0 < length && length < wanted {
                        ready.clear_ready();
                    }
                    into.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for QuietStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, |mut stream| stream.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (QuietStream, QuietStream) {
        let (one, other) = StdStream::pair().expect("a pair");
        for stream in [&one, &other] {
            stream.set_nonblocking(true).expect("non-blocking");
        }
        (QuietStream::from_std(one).expect("watched"), QuietStream::from_std(other).expect("watched"))
    }

    #[tokio::test]
    async fn more_than_the_buffers_hold_arrives_whole_and_the_end_is_seen() {
        let (mut sender, mut receiver) = pair();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|at| at.to_le_bytes()[(at % 3) as usize]).collect();
        let expect = sent.clone();
        let send = async move {
            sender.write_all(&sent).await.expect("sent");
            sender.shutdown().await.expect("shut down");
            assert!(sender.room.is_none(), "watched for writing for ever");
        };
        let mut received = Vec::new();
        let (_, length) = tokio::join!(send, receiver.read_to_end(&mut received));
        assert_eq!(length.expect("received"), expect.len());
        assert!(received == expect, "other bytes came");
    }

    #[tokio::test]
    async fn a_full_peer_keeps_a_writer_waiting_until_it_reads() {
        let (mut sender, mut receiver) = pair();
        poll_fn(|cx| {
            while let Poll::Ready(sent) = Pin::new(&mut sender).poll_write(cx, &[7; 4096]) {
                sent.expect("sent");
            }
            Poll::Ready(())
        })
        .await;
        assert!(sender.room.is_some(), "nothing would wake it");
        let mut sunk = vec![0; 1 << 20];
        let (written, read) = tokio::join!(sender.write_all(&[8]), receiver.read(&mut sunk));
        written.expect("sent");
        assert!(read.expect("received") > 0);
    }

    #[tokio::test]
    async fn nobody_is_told_of_what_the_peer_reads() {
        let (mut sender, mut receiver) = pair();
        for byte in 0..3 {
            sender.write_all(&[byte]).await.expect("sent");
            assert_eq!(receiver.read_u8().await.expect("received"), byte);
            // The event loop takes what the kernel has to report.
            tokio::task::yield_now().await;
        }
        let told = poll_fn(|cx| Poll::Ready(sender.stream.poll_write_ready(cx).is_ready())).await;
        assert!(!told, "it is watched for room for writing");
        receiver.write_all(b"x").await.expect("sent");
        assert_eq!(sender.read_u8().await.expect("received"), b'x');
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error_or_the_end() {
        let (mut sender, receiver) = pair();
        drop(receiver);
        assert_eq!(sender.write_all(&[1]).await.expect_err("broken").kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(sender.read(&mut [0; 8]).await.expect("the end"), 0);
    }
}
