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
//! A descriptor can be sent along with a byte, and received by a peer that expects it there.
//!
//! Invariants: a write that is refused for want of room is woken when there is room; bytes are sent in order; nothing is buffered here; a
//! descriptor that was received is closed by whoever dropped it.
//!
//! What it does not know: what is sent.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// The byte that carries a descriptor.
const DESCRIPTOR: u8 = 1;

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

    /// Another one of the same socket, on the same event loop.
    pub fn try_clone(&self) -> io::Result<Self> {
        Self::from_std(self.stream.get_ref().try_clone()?)
    }

    /// Takes it off its event loop.
    pub fn into_std(self) -> StdStream {
        self.stream.into_inner()
    }

    /// Sends a descriptor, and the byte that carries it. Cancel-safe.
    pub async fn send_descriptor(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let descriptors = [descriptor.as_raw_fd()];
        let send = |stream: &StdStream| {
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let data = [IoSlice::new(&[DESCRIPTOR])];
            Ok(sendmsg::<UnixAddr>(stream.as_raw_fd(), &data, &rights, MsgFlags::MSG_NOSIGNAL, None)?)
        };
        match std::future::poll_fn(|cx| self.poll_send(cx, send)).await? {
            1 => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Receives the descriptor that the peer sends now with [`QuietStream::send_descriptor`]: nothing of what comes before its byte may be
    /// unread. Cancel-safe.
    pub async fn receive_descriptor(&mut self) -> io::Result<OwnedFd> {
        loop {
            let mut ready = self.stream.readable().await?;
            match ready.try_io(|stream| receive_descriptor(stream.get_ref())) {
                Ok(received) => return received,
                Err(_would_block) => {}
            }
        }
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

/// One byte with one descriptor; whatever else comes is an error, and closed.
fn receive_descriptor(stream: &StdStream) -> io::Result<OwnedFd> {
    let mut byte = [0; 1];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut data, Some(&mut space), flags)?;
    let (length, is_cut) = (received.bytes, received.flags.contains(MsgFlags::MSG_CTRUNC));
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(sent) = message {
            // SAFETY: the kernel has just made them for this process, and nobody else knows of them.
            descriptors.extend(sent.into_iter().map(|sent| unsafe { OwnedFd::from_raw_fd(sent) }));
        }
    }
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (Some(descriptor), true, false, DESCRIPTOR) = (descriptors.pop(), descriptors.is_empty(), is_cut, byte[0])
    else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "one descriptor was to come, and did not"));
    };
    Ok(descriptor)
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
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

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
    async fn a_descriptor_arrives_between_bytes_and_nothing_else_is_taken_for_one() {
        let (mut sender, mut receiver) = pair();
        let (given, mut kept) = StdStream::pair().expect("a pair");
        sender.write_all(b"before").await.expect("sent");
        sender.send_descriptor(given.as_fd()).await.expect("sent");
        sender.write_all(b"after").await.expect("sent");
        drop(given);
        receiver.read_exact(&mut [0; 6]).await.expect("received");
        let mut taken = StdStream::from(receiver.receive_descriptor().await.expect("a descriptor"));
        taken.write_all(b"x").expect("written");
        let mut byte = [0];
        kept.read_exact(&mut byte).expect("read");
        assert_eq!(byte, *b"x");
        // A byte that carries none.
        let error = receiver.receive_descriptor().await.expect_err("only a byte");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(sender);
        receiver.read_exact(&mut [0; 4]).await.expect("received");
        assert_eq!(receiver.receive_descriptor().await.expect_err("the end").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error_or_the_end() {
        let (mut sender, receiver) = pair();
        drop(receiver);
        assert_eq!(sender.write_all(&[1]).await.expect_err("broken").kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(sender.read(&mut [0; 8]).await.expect("the end"), 0);
    }
}
