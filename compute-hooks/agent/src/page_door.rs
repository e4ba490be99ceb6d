//! The door through which Postgres reaches the page server: a Unix socket that hands out connected sockets.
//!
//! ```text
//!  backend ── connects ──► door ── connects, says hello with the token ──► page server
//!     ▲                      │
//!     └── 1 byte + socket ───┘   (SCM_RIGHTS; for TCP the socket is one end of a pair that the door relays)
//! ```
//!
//! Byte table: `docs/formats/compute-socket.md`. The token stays outside the sandbox; what comes in is a connection that is bound
//! to this timeline and may only read.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_page_client::{Binding, PageClient, PageError, PageStream};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::ComputeError;

/// First byte of an answer: a socket comes along.
const GIVEN: u8 = 1;
/// First byte of an answer: there is none, and the reason follows.
const NOT_GIVEN: u8 = 0;
/// Longest reason given to a visitor that gets no connection.
const REASON_LEN_MAX: usize = 499;
/// How long a page server may be away before a backend is told.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// An open door. Dropping it closes it and ends the relays.
#[derive(Debug)]
pub(crate) struct PageDoor {
    listener: UnixListener,
    guide: Arc<Guide>,
    visits: JoinSet<()>,
}

/// Where a visitor is led.
#[derive(Debug)]
struct Guide {
    pageserver: ServiceAddr,
    binding: Binding,
}

impl PageDoor {
    /// Listens at `path`, in a folder that only Postgres's user and the agent can enter.
    pub(crate) fn open(path: &Path, pageserver: ServiceAddr, binding: Binding) -> Result<Self, ComputeError> {
        let listener = listen(path)?;
        Ok(PageDoor { listener, guide: Arc::new(Guide { pageserver, binding }), visits: JoinSet::new() })
    }

    /// Serves visitors for ever. Cancel-safe; ongoing visits end when the door is dropped.
    pub(crate) async fn serve(&mut self) {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((visitor, _)) => {
                        let guide = Arc::clone(&self.guide);
                        self.visits.spawn(async move { guide.receive(visitor).await });
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: the visitor tries again.
                        tracing::warn!(%error, "the page door cannot accept");
                        tokio::time::sleep(RECONNECT_PAUSE).await;
                    }
                },
                Some(ended) = self.visits.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a visit at the page door failed");
                    }
                }
            }
        }
    }
}

/// A socket at `path`, in place of an old one, that everybody who can enter its folder may connect to.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, ComputeError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ComputeError::io("cannot remove the old socket", path)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(ComputeError::io("cannot listen at", path))?;
    let everybody = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(path, everybody).map_err(ComputeError::io("cannot set the mode of", path))?;
    Ok(listener)
}

impl Guide {
    async fn receive(&self, visitor: UnixStream) {
        let stream = match self.connect().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "no connection to the page server");
                refuse(&visitor, &error.to_string()).await;
                return;
            }
        };
        let outcome = match stream {
            PageStream::Unix(stream) => hand_over(&visitor, stream).await,
            PageStream::Tcp(stream) => relay(&visitor, stream).await,
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "a visit at the page door ended early");
        }
    }

    /// A page server that is being restarted is waited for.
    async fn connect(&self) -> Result<PageStream, PageError> {
        let deadline = Instant::now() + RECONNECT_PATIENCE;
        loop {
            let connected = PageClient::connect(&self.pageserver, &self.binding).await;
            match connected.and_then(PageClient::into_stream) {
                Err(error) if error.is_retryable() && Instant::now() < deadline => {
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }
}

/// Gives the connection away: from here on the backend and the page server talk to each other alone.
async fn hand_over(visitor: &UnixStream, stream: UnixStream) -> io::Result<()> {
    let stream = stream.into_std()?;
    // The flag belongs to the connection, not to the descriptor, and backends use blocking calls.
    stream.set_nonblocking(false)?;
    send_descriptor(visitor, &stream.into()).await
}

async fn relay(visitor: &UnixStream, mut far: TcpStream) -> io::Result<()> {
    let (near, given) = std::os::unix::net::UnixStream::pair()?;
    send_descriptor(visitor, &given.into()).await?;
    near.set_nonblocking(true)?;
    tokio::io::copy_bidirectional(&mut UnixStream::from_std(near)?, &mut far).await.map(|_| ())
}

/// Tells the visitor why there is no connection. If that fails, it sees its own connection closed.
async fn refuse(visitor: &UnixStream, reason: &str) {
    let mut message = vec![NOT_GIVEN];
    message.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(REASON_LEN_MAX)]);
    if visitor.writable().await.is_ok() {
        let _ = visitor.try_write(&message);
    }
}

async fn send_descriptor(visitor: &UnixStream, descriptor: &OwnedFd) -> io::Result<()> {
    let descriptors = [descriptor.as_raw_fd()];
    visitor
        .async_io(Interest::WRITABLE, || {
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let data = [IoSlice::new(&[GIVEN])];
            sendmsg::<UnixAddr>(visitor.as_raw_fd(), &data, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
            Ok(())
        })
        .await
}
