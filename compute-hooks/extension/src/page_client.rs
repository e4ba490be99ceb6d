//! A backend's connection to the page server: requests out, pages in, never blocking for long and never raising.
//!
//! ```text
//!  Down ──connect to the agent──► Waiting ──one byte + descriptor──► Up ──GetPages / Pages──► ...
//!   ▲                                │                               │
//!   └────────────── any failure; requests in flight are forgotten ───┘
//! ```
//!
//! The agent's socket hands over a connection that is already authenticated and bound to this timeline (see
//! `docs/formats/compute-socket.md`); no token enters Postgres. Requests are answered in order.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use ardent_api::frame::{DecodeError, Frame};
use ardent_api::page_service::{BlockRange, ErrorCode, Request, Response};
use ardent_types::{BLCKSZ, BlockNumber, Lsn, RelTag};
use bytes::{Bytes, BytesMut};

/// Room for one read from the socket.
const READ_LEN: usize = 256 << 10;
/// Longest reason that the agent may give for not handing over a connection.
const REASON_LEN_MAX: usize = 500;

/// Why a request was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A reader waits for its first block.
    Demand,
    /// A reader is expected to need it.
    ReadAhead,
    /// Postgres announced that it will read it.
    Prefetch,
}

/// A request in flight: `count` blocks from `start`.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    id: u64,
    /// Relation fork.
    pub rel: RelTag,
    /// First block.
    pub start: BlockNumber,
    /// How many.
    pub count: u32,
    /// Why.
    pub why: Why,
}

impl Asked {
    /// Whether the block is among those asked for.
    pub fn covers(&self, rel: &RelTag, block: BlockNumber) -> bool {
        self.rel == *rel && block.checked_sub(self.start).is_some_and(|at| at < self.count)
    }
}

/// What a request came to.
#[derive(Debug)]
pub enum Answer {
    /// As many pages as were asked for.
    Pages(Asked, Bytes),
    /// The page server refused.
    Refused(Asked, ErrorCode, String),
}

/// Why there is no connection now. Trying again may help.
#[derive(Debug)]
pub enum LinkError {
    /// A system call failed.
    Io(&'static str, io::Error),
    /// The other side closed the connection.
    Closed,
    /// The agent has no connection to give, and says why.
    NotGiven(String),
    /// An answer that is none.
    Garbled(DecodeError),
    /// An answer to something that was not asked.
    Unexpected,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::Io(what, error) => write!(f, "cannot {what}: {error}"),
            LinkError::Closed => write!(f, "the page server closed the connection"),
            LinkError::NotGiven(reason) if reason.is_empty() => write!(f, "the agent closed the connection"),
            LinkError::NotGiven(reason) => write!(f, "the agent says: {reason}"),
            LinkError::Garbled(error) => write!(f, "the page server sent something unreadable: {error}"),
            LinkError::Unexpected => write!(f, "the page server sent an answer to another question"),
        }
    }
}

#[derive(Debug)]
enum Link {
    Down,
    /// Connected to the agent, which has not handed over the connection yet.
    Waiting(OwnedFd),
    Up(OwnedFd),
}

/// The connection and the requests on it.
#[derive(Debug)]
pub struct PageClient {
    agent_socket: &'static CStr,
    link: Link,
    inbox: BytesMut,
    in_flight: VecDeque<Asked>,
    next_id: u64,
}

impl PageClient {
    /// A client that is not connected yet.
    pub fn new(agent_socket: &'static CStr) -> Self {
        PageClient { agent_socket, link: Link::Down, inbox: BytesMut::new(), in_flight: VecDeque::new(), next_id: 1 }
    }

    /// Requests whose answers have not been taken yet, oldest first.
    pub fn in_flight(&self) -> impl Iterator<Item = &Asked> {
        self.in_flight.iter()
    }

    /// Whether requests can be sent.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Begins to connect if there is no connection. True: a new attempt was made.
    pub fn connect(&mut self) -> Result<bool, LinkError> {
        if !matches!(self.link, Link::Down) {
            return Ok(false);
        }
        self.link = Link::Waiting(connect_unix(self.agent_socket)?);
        Ok(true)
    }

    /// Sends a request for `count` blocks from `start`.
    pub fn ask(&mut self, lsn: Lsn, rel: RelTag, start: BlockNumber, count: u32, why: Why) -> Result<(), LinkError> {
        let Link::Up(socket) = &self.link else { return Err(LinkError::Closed) };
        let id = self.next_id;
        let mut out = BytesMut::with_capacity(64);
        Request::GetPages { id, lsn, rel, ranges: vec![BlockRange { start, count }] }.encode(&mut out);
        let sent = send_all(socket.as_raw_fd(), &out);
        if let Err(error) = sent {
            self.disconnect();
            return Err(error);
        }
        self.next_id += 1;
        self.in_flight.push_back(Asked { id, rel, start, count, why });
        Ok(())
    }

    /// The next answer if it has arrived; the connection if the agent has handed it over. Any error ends the connection.
    pub fn poll(&mut self) -> Result<Option<Answer>, LinkError> {
        let result = self.try_poll();
        if result.is_err() {
            self.disconnect();
        }
        result
    }

    /// Waits until something may have arrived, a signal came, or `max` has passed. False: the postmaster is gone.
    pub fn wait(&self, max: Duration, postmaster_watch_fd: RawFd) -> bool {
        let socket = match &self.link {
            Link::Down => -1,
            Link::Waiting(socket) | Link::Up(socket) => socket.as_raw_fd(),
        };
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut watched = [watch(socket), watch(postmaster_watch_fd)];
        let longest = libc::timespec { tv_sec: max.as_secs() as _, tv_nsec: max.subsec_nanos() as _ };
        let count = watched.len() as libc::nfds_t;
        // SAFETY: a valid array of its stated length; negative descriptors are ignored; the signal mask stays.
        let ready = unsafe { libc::ppoll(watched.as_mut_ptr(), count, &raw const longest, std::ptr::null()) };
        ready <= 0 || watched[1].revents == 0
    }

    /// Closes the connection and forgets what was asked.
    pub fn disconnect(&mut self) {
        self.link = Link::Down;
        self.inbox.clear();
        self.in_flight.clear();
    }

    fn try_poll(&mut self) -> Result<Option<Answer>, LinkError> {
        match &self.link {
            Link::Down => Err(LinkError::Closed),
            Link::Waiting(agent) => {
                if let Some(socket) = receive_descriptor(agent.as_raw_fd())? {
                    self.link = Link::Up(socket);
                }
                Ok(None)
            }
            Link::Up(socket) => {
                let socket = socket.as_raw_fd();
                loop {
                    if let Some(frame) = Frame::take(&mut self.inbox).map_err(LinkError::Garbled)? {
                        return self.answer(frame).map(Some);
                    }
                    if !receive(socket, &mut self.inbox)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn answer(&mut self, frame: Frame) -> Result<Answer, LinkError> {
        let response = Response::decode(frame).map_err(LinkError::Garbled)?;
        let asked = self.in_flight.pop_front().ok_or(LinkError::Unexpected)?;
        match response {
            Response::Pages { id, pages } if id == asked.id && pages.len() == asked.count as usize * BLCKSZ => {
                Ok(Answer::Pages(asked, pages))
            }
            Response::Error { id, code, message } if id == asked.id => Ok(Answer::Refused(asked, code, message)),
            _ => Err(LinkError::Unexpected),
        }
    }
}

fn last_error(what: &'static str) -> LinkError {
    LinkError::Io(what, io::Error::last_os_error())
}

/// Connects to a Unix socket without waiting.
pub fn connect_unix(path: &CStr) -> Result<OwnedFd, LinkError> {
    // SAFETY: all-zero is a valid address structure.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    let bytes = path.to_bytes_with_nul();
    if bytes.len() > address.sun_path.len() {
        return Err(LinkError::Io("use ardent.agent_socket", io::ErrorKind::InvalidInput.into()));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: no pointers.
    let raw = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if raw < 0 {
        return Err(last_error("make a socket"));
    }
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: a valid address of the length given.
    let done =
        unsafe { libc::connect(raw, (&raw const address).cast(), size_of::<libc::sockaddr_un>() as libc::socklen_t) };
    if done == 0 { Ok(socket) } else { Err(last_error("connect to the agent")) }
}

/// Requests are small and few are in flight, so the socket's buffer always has room; if it has none, the page server has
/// stopped reading and the connection is given up.
fn send_all(socket: RawFd, bytes: &[u8]) -> Result<(), LinkError> {
    loop {
        // SAFETY: a valid buffer of the length given.
        let sent =
            unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(_) => return Err(LinkError::Io("send a request", io::ErrorKind::WouldBlock.into())),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(last_error("send a request")),
        }
    }
}

/// Reads what has arrived. False: nothing.
fn receive(socket: RawFd, inbox: &mut BytesMut) -> Result<bool, LinkError> {
    inbox.reserve(READ_LEN);
    loop {
        let room = inbox.spare_capacity_mut();
        // SAFETY: writes at most the length of the spare capacity into it.
        let got = unsafe { libc::recv(socket, room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(got) {
            Ok(0) => return Err(LinkError::Closed),
            Ok(got) => {
                // SAFETY: so many bytes were written.
                unsafe { inbox.set_len(inbox.len() + got) };
                return Ok(true);
            }
            Err(_) => match io::Error::last_os_error().kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(false),
                _ => return Err(last_error("receive pages")),
            },
        }
    }
}

/// Takes the connection that the agent hands over. None: not yet.
fn receive_descriptor(agent: RawFd) -> Result<Option<OwnedFd>, LinkError> {
    #[repr(align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut text = [0_u8; REASON_LEN_MAX];
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: all-zero is a valid message header.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: all buffers are valid for the lengths given.
    let got = unsafe { libc::recvmsg(agent, &raw mut header, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) };
    let Ok(got) = usize::try_from(got) else {
        return match io::Error::last_os_error().kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(None),
            _ => Err(last_error("receive a connection from the agent")),
        };
    };
    // SAFETY: the kernel filled in the header; the macros stay within its control buffer.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        if !message.is_null()
            && (*message).cmsg_level == libc::SOL_SOCKET
            && (*message).cmsg_type == libc::SCM_RIGHTS
            && (*message).cmsg_len as usize >= libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize
        {
            let descriptor = libc::CMSG_DATA(message).cast::<RawFd>().read_unaligned();
            return Ok(Some(OwnedFd::from_raw_fd(descriptor)));
        }
    }
    // Without a descriptor, what follows the first byte is the reason.
    let reason = text.get(1..got).unwrap_or_default();
    Err(LinkError::NotGiven(String::from_utf8_lossy(reason).into_owned()))
}
