//! The process between control and an agent: parent of both the agent and its Postgres, so that an agent that is lost takes no session along.
//!
//! ```text
//!  control ══ standard input and output ══► agent ◄── messages ──► supervisor ──► Postgres
//!                                             └────── child of ────────┘
//! ```
//!
//! Invariants: both end with this process, by the kernel's doing; Postgres outlives an agent that was killed or crashed, for the next one to take over,
//! and no agent that has ended by itself. It reads and writes nothing of control's.
//!
//! It has one thread, which must not end before Postgres does, and no event loop: it sleeps but when something ends or is to be started.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::parent::{LeftServer, ToAgent, ToSupervisor, launch_of, pid_fd_of, receive, send};
use crate::pid_fd::PidFd;

/// The descriptor by which an agent reaches its supervisor.
pub const SUPERVISOR_FD: i32 = 3;
/// So many agents of one Postgres may be lost within [`STEADY_AFTER`]: what crashes every agent is not mended by one more.
const AGENTS_LOST_MAX: usize = 3;
const STEADY_AFTER: Duration = Duration::from_secs(60);
/// An agent that has ended like this has said why.
const DELIBERATE: [i32; 2] = [0, 1];

/// Runs agents, one after the other, until one ends by itself. `agent` makes the command for the next, which finds its supervisor
/// at [`SUPERVISOR_FD`]. The exit code is the last agent's.
pub fn supervise(agent: impl Fn() -> Command) -> io::Result<ExitCode> {
    let mut supervisor = Supervisor { server: None, lost: VecDeque::new() };
    loop {
        let status = supervisor.run_agent(agent())?;
        match status.code() {
            Some(code) if DELIBERATE.contains(&code) => {
                supervisor.end_server();
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            _ if supervisor.may_go_on() => {
                tracing::warn!(%status, "the agent was lost: another takes its Postgres over");
            }
            _ => {
                tracing::error!(%status, "the agent was lost");
                supervisor.end_server();
                return Ok(ExitCode::FAILURE);
            }
        }
    }
}

struct Supervisor {
    server: Option<Server>,
    /// When agents were lost.
    lost: VecDeque<Instant>,
}

/// A Postgres that was started.
struct Server {
    child: Child,
    pid_fd: PidFd,
    lifeline: OwnedFd,
    sandbox_init: Option<u32>,
    /// An agent has said that it serves.
    serves: bool,
    has_ended: bool,
    agents_lost: u32,
}

impl Supervisor {
    /// Starts an agent and serves it until it has ended.
    fn run_agent(&mut self, mut command: Command) -> io::Result<ExitStatus> {
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let (parent, theirs_fd) = (nix::unistd::getpid(), theirs.as_raw_fd());
        // SAFETY: between fork and exec only async-signal-safe calls are made.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::getppid() != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                // A copy that dup2 makes stays open over exec; one onto itself would not.
                let done = if theirs_fd == SUPERVISOR_FD {
                    libc::fcntl(theirs_fd, libc::F_SETFD, 0)
                } else {
                    libc::dup2(theirs_fd, SUPERVISOR_FD)
                };
                if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let mut agent = command.spawn()?;
        drop(theirs);
        let agent_fd = pid_fd_of(&mut agent)?;
        self.begin(&socket)?;
        let mut is_connected = true;
        loop {
            let readable = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
            let mut watched = vec![readable(agent_fd.fd.as_fd())];
            let running = self.server.as_ref().filter(|server| !server.has_ended);
            watched.extend(running.map(|server| readable(server.pid_fd.fd.as_fd())));
            let socket_at = watched.len();
            watched.extend(is_connected.then(|| readable(socket.as_fd())));
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let has_news = |at: usize| watched.get(at).is_some_and(|watched| watched.any().unwrap_or(false));
            let (agent_news, socket_news) = (has_news(0), is_connected && has_news(socket_at));
            if socket_news {
                is_connected = self.hear(&socket)?;
            }
            self.reap(&socket)?;
            // What it said before its end was heard first.
            if agent_news
                && !socket_news
                && let Some(status) = agent.try_wait()?
            {
                return Ok(status);
            }
        }
    }

    /// Tells a new agent what is there.
    fn begin(&self, socket: &OwnedFd) -> io::Result<()> {
        let Some(server) = &self.server else { return tell(socket, &ToAgent::Begin { left: None }, &[]) };
        let left =
            LeftServer { pid: server.pid_fd.pid, sandbox_init: server.sandbox_init, agents_lost: server.agents_lost };
        tell(socket, &ToAgent::Begin { left: Some(left) }, &[&server.pid_fd.fd, &server.lifeline])
    }

    /// Takes one message; whether there may be more.
    fn hear(&mut self, socket: &OwnedFd) -> io::Result<bool> {
        match receive::<ToSupervisor>(socket) {
            Ok(Some((ToSupervisor::Launch { line, is_sandboxed }, descriptors))) => {
                let started = launch_of(line, is_sandboxed, descriptors).and_then(|(launch, lifeline)| {
                    if self.server.is_some() {
                        return Err(io::Error::other("there is a Postgres already"));
                    }
                    let mut child = launch.spawn()?;
                    let pid_fd = pid_fd_of(&mut child)?;
                    let (sandbox_init, serves, has_ended) = (None, false, false);
                    Ok(Server { child, pid_fd, lifeline, sandbox_init, serves, has_ended, agents_lost: 0 })
                });
                match started {
                    Ok(server) => {
                        tell(socket, &ToAgent::Launched { pid: server.pid_fd.pid }, &[&server.pid_fd.fd])?;
                        self.server = Some(server);
                    }
                    Err(error) => {
                        let (errno, message) = (error.raw_os_error(), error.to_string());
                        tell(socket, &ToAgent::NotLaunched { errno, message }, &[])?;
                    }
                }
                Ok(true)
            }
            Ok(Some((ToSupervisor::Serving { sandbox_init }, _))) => {
                if let Some(server) = &mut self.server {
                    (server.serves, server.sandbox_init) = (true, sandbox_init);
                }
                Ok(true)
            }
            Ok(None) => Ok(false),
            // A message that cannot be read is the agent's mistake, and it waits for an answer.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let (errno, message) = (None, error.to_string());
                tell(socket, &ToAgent::NotLaunched { errno, message }, &[]).map(|()| true)
            }
            // An agent that was killed may leave its end reset.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits for a Postgres that has ended, and says so.
    fn reap(&mut self, socket: &OwnedFd) -> io::Result<()> {
        if let Some(server) = self.server.as_mut().filter(|server| !server.has_ended)
            && let Some(status) = server.child.try_wait()?
        {
            server.has_ended = true;
            tell(socket, &ToAgent::Exited { status: status.into_raw() }, &[])?;
        }
        Ok(())
    }

    /// An agent was lost: whether there is something for another to take over.
    fn may_go_on(&mut self) -> bool {
        let now = Instant::now();
        self.lost.retain(|at| now.duration_since(*at) < STEADY_AFTER);
        self.lost.push_back(now);
        match &mut self.server {
            Some(server) if server.serves && !server.has_ended => {
                server.agents_lost += 1;
                self.lost.len() <= AGENTS_LOST_MAX
            }
            _ => false,
        }
    }

    fn end_server(&mut self) {
        if let Some(server) = self.server.as_mut().filter(|server| !server.has_ended) {
            // An error means that it has ended.
            let _ = server.pid_fd.signal(Signal::SIGKILL);
            if let Err(error) = server.child.wait() {
                tracing::error!(%error, "cannot wait for Postgres");
            }
            server.has_ended = true;
        }
    }
}

/// An agent that has just ended hears nothing: its end is seen next.
fn tell(socket: &OwnedFd, message: &ToAgent, descriptors: &[&OwnedFd]) -> io::Result<()> {
    match send(socket, message, descriptors) {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
        sent => sent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn an_agent_that_ends_by_itself_is_the_last() {
        for (script, code) in [("exit 0", ExitCode::SUCCESS), ("exit 1", ExitCode::FAILURE)] {
            let ended = supervise(|| shell(script)).expect("supervised");
            assert_eq!(format!("{ended:?}"), format!("{code:?}"));
        }
    }

    #[test]
    fn one_that_is_lost_without_a_postgres_is_not_replaced() {
        let started = std::cell::Cell::new(0);
        let ended = supervise(|| {
            started.set(started.get() + 1);
            shell("kill -9 $$")
        });
        assert_eq!(format!("{:?}", ended.expect("supervised")), format!("{:?}", ExitCode::FAILURE));
        assert_eq!(started.get(), 1);
    }
}
