//! Who starts Postgres and waits for it, and is killed before it: a thread of the agent's, or the agent's supervisor.
//!
//! ```text
//!  agent ── Launch, descriptors ──► supervisor ── fork ──► Postgres
//!     ◄── Launched, pidfd ──┘
//!     ◄── Exited ───────────┘
//! ```
//!
//! One packet is one message, with its descriptors. Byte table: `docs/formats/compute-dir.md`.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::sync::Arc;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::launch::{CommandLine, Launch, SandboxPipes};
use crate::pid_fd::PidFd;

/// Longest packet. A command line has some kilobytes.
const PACKET_LEN_MAX: usize = 128 << 10;
/// Most descriptors that come with one.
const DESCRIPTORS_MAX: usize = 32;

/// How a server ended, once it has.
pub(crate) type Exit = watch::Receiver<Option<ExitStatus>>;

/// What an agent tells its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// To start a server. Descriptors: log, held, lifeline, then info and filter if it is sandboxed, then those of control groups.
    Launch { line: CommandLine, is_sandboxed: bool },
    /// It serves: if the agent is lost, another is to take it over.
    Serving { sandbox_init: Option<u32> },
}

/// What a supervisor tells its agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToAgent {
    /// The first message: whether a server runs already. Descriptors: its pidfd and its lifeline.
    Begin { left: Option<LeftServer> },
    /// It has been started. Descriptor: its pidfd.
    Launched { pid: u32 },
    /// It could not be started.
    NotLaunched { errno: Option<i32>, message: String },
    /// It has ended, with this status of `waitpid`.
    Exited { status: i32 },
}

/// A server that an agent that was lost has left.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct LeftServer {
    pub(crate) pid: u32,
    pub(crate) sandbox_init: Option<u32>,
    /// How many agents it has outlived.
    pub(crate) agents_lost: u32,
}

/// A server to be taken over.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) server: LeftServer,
    pub(crate) spawned: PidFd,
    pub(crate) lifeline: OwnedFd,
    pub(crate) exit: Exit,
}

/// Who starts servers.
#[derive(Clone, Debug)]
pub(crate) enum Parent {
    /// A thread for each, which lives exactly as long as the server does: a pool's thread will not do.
    Thread,
    Supervisor(Arc<Link>),
}

/// The way to the supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    /// Who waits for an answer to a launch.
    launching: Mutex<Option<oneshot::Sender<io::Result<PidFd>>>>,
    exit: watch::Sender<Option<ExitStatus>>,
}

impl Parent {
    /// The supervisor at the other end of `socket`, and the server that is to be taken over, if there is one.
    pub(crate) fn supervisor(socket: OwnedFd) -> io::Result<(Parent, Option<Left>)> {
        let (begin, descriptors) = receive::<ToAgent>(&socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let ToAgent::Begin { left } = begin else { return Err(unexpected(&begin)) };
        let exit = watch::Sender::new(None);
        let left = match left {
            Some(server) => {
                let [pid_fd, lifeline] = exactly(descriptors)?;
                Some(Left { server, spawned: PidFd::of(server.pid, pid_fd), lifeline, exit: exit.subscribe() })
            }
            None => None,
        };
        let link = Arc::new(Link { socket, launching: Mutex::new(None), exit });
        let listening = link.clone();
        std::thread::Builder::new().name("supervisor-link".to_owned()).spawn(move || listening.listen())?;
        Ok((Parent::Supervisor(link), left))
    }

    /// Starts a server. `lifeline`: the end of a pipe whose other end the server holds.
    pub(crate) async fn start(&self, launch: Launch, lifeline: &OwnedFd) -> io::Result<(PidFd, Exit)> {
        match self {
            Parent::Thread => start_on_own_thread(launch).await,
            Parent::Supervisor(link) => link.start(launch, lifeline).await,
        }
    }

    /// The server serves, and is to be taken over if this agent is lost.
    pub(crate) fn tell_serving(&self, sandbox_init: Option<u32>) {
        if let Parent::Supervisor(link) = self
            && let Err(error) = send(&link.socket, &ToSupervisor::Serving { sandbox_init }, &[])
        {
            tracing::warn!(%error, "the supervisor cannot be told that Postgres serves: it will end with this agent");
        }
    }
}

impl Link {
    async fn start(&self, launch: Launch, lifeline: &OwnedFd) -> io::Result<(PidFd, Exit)> {
        let (reply, answer) = oneshot::channel();
        *self.launching.lock() = Some(reply);
        let Launch { line, log, held, sandbox, members } = launch;
        let message = ToSupervisor::Launch { line, is_sandboxed: sandbox.is_some() };
        let pipes = sandbox.iter().flat_map(|pipes| [&pipes.info, &pipes.filter]);
        let descriptors: Vec<&OwnedFd> = [&log, &held, lifeline].into_iter().chain(pipes).chain(&members).collect();
        send(&self.socket, &message, &descriptors)?;
        let spawned = answer.await.map_err(|_| io::Error::other("the supervisor is gone"))??;
        Ok((spawned, self.exit.subscribe()))
    }

    /// The thread that reads what the supervisor says.
    fn listen(&self) {
        loop {
            let answered = |outcome| {
                if let Some(reply) = self.launching.lock().take() {
                    // Whoever asked may be gone: the start was given up, and dropping the descriptor changes nothing.
                    let _ = reply.send(outcome);
                }
            };
            match receive::<ToAgent>(&self.socket) {
                Ok(Some((ToAgent::Launched { pid }, descriptors))) => {
                    answered(exactly(descriptors).map(|[pid_fd]| PidFd::of(pid, pid_fd)));
                }
                Ok(Some((ToAgent::NotLaunched { errno, message }, _))) => {
                    answered(Err(errno.map_or_else(|| io::Error::other(message), io::Error::from_raw_os_error)));
                }
                Ok(Some((ToAgent::Exited { status }, _))) => {
                    self.exit.send_replace(Some(ExitStatus::from_raw(status)));
                }
                Ok(Some((ToAgent::Begin { .. }, _))) => tracing::warn!("the supervisor begins again"),
                // It is gone, and this process is about to be.
                Ok(None) => return answered(Err(io::Error::other("the supervisor is gone"))),
                Err(error) => {
                    tracing::error!(%error, "what the supervisor says cannot be read");
                    return answered(Err(error));
                }
            }
        }
    }
}

/// The launch that came with these descriptors, and the lifeline.
pub(crate) fn launch_of(
    line: CommandLine,
    is_sandboxed: bool,
    descriptors: Vec<OwnedFd>,
) -> io::Result<(Launch, OwnedFd)> {
    let mut rest = descriptors.into_iter();
    let mut next = || rest.next().ok_or_else(|| io::Error::other("a descriptor is missing"));
    let (log, held, lifeline) = (next()?, next()?, next()?);
    let sandbox = if is_sandboxed { Some(SandboxPipes { info: next()?, filter: next()? }) } else { None };
    let members = rest.collect();
    Ok((Launch { line, log, held, sandbox, members }, lifeline))
}

/// Sends one message with its descriptors.
pub(crate) fn send(socket: &OwnedFd, message: &impl Serialize, descriptors: &[&OwnedFd]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let raw: Vec<i32> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&text)], rights, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits for one message; `None`: the other side is gone.
pub(crate) fn receive<M: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut text = vec![0; PACKET_LEN_MAX];
    let mut space = nix::cmsg_space!([i32; DESCRIPTORS_MAX]);
    let (length, descriptors, flags) = loop {
        let mut data = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut data, Some(&mut space), flags) {
            Ok(received) => {
                let mut descriptors = Vec::new();
                for message in received.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(sent) = message {
                        // SAFETY: the kernel just gave us these descriptors, and nobody else owns them.
                        descriptors.extend(sent.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
                    }
                }
                break (received.bytes, descriptors, received.flags);
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    if length == 0 {
        return Ok(None);
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    Ok(Some((serde_json::from_slice(&text[..length])?, descriptors)))
}

fn exactly<const COUNT: usize>(descriptors: Vec<OwnedFd>) -> io::Result<[OwnedFd; COUNT]> {
    descriptors.try_into().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "another number of descriptors came"))
}

fn unexpected(message: &ToAgent) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the supervisor says {message:?}"))
}

/// A pidfd of a child that was not waited for.
pub(crate) fn pid_fd_of(child: &mut Child) -> io::Result<PidFd> {
    PidFd::open(child.id()).inspect_err(|_| {
        // Errors mean that it has ended.
        let _ = child.kill();
        let _ = child.wait();
    })
}

async fn start_on_own_thread(launch: Launch) -> io::Result<(PidFd, Exit)> {
    let (started, is_started) = oneshot::channel();
    let (ended, exit) = watch::channel(None);
    std::thread::Builder::new().name("postgres-parent".to_owned()).spawn(move || {
        let spawned = launch.spawn().and_then(|mut child| pid_fd_of(&mut child).map(|pid_fd| (child, pid_fd)));
        let mut child = match spawned {
            Ok((child, pid_fd)) => {
                if started.send(Ok(pid_fd)).is_err() {
                    // Nobody waits any more: the start was given up.
                    let _ = { child }.kill();
                    return;
                }
                child
            }
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        match child.wait() {
            Ok(status) => {
                ended.send_replace(Some(status));
            }
            Err(error) => tracing::error!(%error, "cannot wait for Postgres"),
        }
    })?;
    let pid_fd = is_started.await.map_err(|_| io::Error::other("the spawning thread has ended"))??;
    Ok((pid_fd, exit))
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a pair")
    }

    #[test]
    fn a_message_comes_with_its_descriptors() {
        let (here, there) = pair();
        let file = tempfile::tempfile().expect("a file");
        let descriptor = OwnedFd::from(file);
        send(&here, &ToAgent::Launched { pid: 7 }, &[&descriptor, &descriptor]).expect("sent");
        send(&here, &ToAgent::Exited { status: 9 }, &[]).expect("sent");
        drop(here);
        let (message, descriptors) = receive::<ToAgent>(&there).expect("received").expect("a message");
        assert!(matches!(message, ToAgent::Launched { pid: 7 }), "{message:?}");
        assert_eq!(descriptors.len(), 2);
        let (message, descriptors) = receive::<ToAgent>(&there).expect("received").expect("another");
        assert!(matches!(message, ToAgent::Exited { status: 9 }) && descriptors.is_empty(), "{message:?}");
        assert!(receive::<ToAgent>(&there).expect("received").is_none(), "the other side is gone");
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (here, there) = pair();
        send(&here, &"nonsense", &[]).expect("sent");
        assert_eq!(receive::<ToAgent>(&there).expect_err("refused").kind(), io::ErrorKind::InvalidData);
        assert!(launch_of(CommandLine::new("/bin/true".as_ref(), "/".as_ref()), true, Vec::new()).is_err());
    }
}
