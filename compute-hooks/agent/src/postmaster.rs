//! One running Postgres: its process, its signals, its end.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::disk::Processes;
use crate::error::ComputeError;
use crate::limits::ControlGroup;
use crate::sandbox::{FILTER_FD, INFO_FD};
use crate::socket_filter;

/// Among the first to go when the host's memory runs out, before the server that many branches need.
const OOM_SCORE: &std::ffi::CStr = c"500";

/// How long what runs in it may outlive its first process.
const GONE_PATIENCE: Duration = Duration::from_secs(5);

/// A started server. Dropping it kills whatever still runs.
#[derive(Debug)]
pub(crate) struct Postmaster {
    /// What we spawned: the postmaster itself, or the sandbox around it, whose end is the end of everything in it.
    spawned: PidFd,
    /// The postmaster, once it is known.
    server: Option<PidFd>,
    /// In a sandbox, its first process as seen from outside.
    sandbox_init: Option<u32>,
    exit: watch::Receiver<Option<ExitStatus>>,
    /// Its other end is open in the postmaster and all that it starts.
    lifeline: pipe::Receiver,
    /// Goes last: it can be removed only when it is empty.
    group: Option<ControlGroup>,
}

/// Descriptors from here on are none that a sandbox is told of.
const FREE_FD: i32 = 16;

impl Postmaster {
    /// Runs `command`, with `log` as standard output and error. `sandboxed` commands report their child on [`INFO_FD`], and find a
    /// filter of system calls on [`FILTER_FD`].
    ///
    /// The parent of the new process is a thread that lives exactly as long as it does: the kernel's "signal me when my
    /// parent dies" means the parent *thread*, so a pool's thread will not do.
    pub(crate) async fn spawn(
        mut command: Command,
        log: &File,
        sandboxed: bool,
        group: Option<ControlGroup>,
    ) -> Result<Self, ComputeError> {
        let program = command.get_program().to_owned();
        let failed = |source| ComputeError::Io { doing: "cannot run", path: Path::new(&program).to_owned(), source };
        let log_copy = || log.try_clone().map_err(failed);
        command.stdin(std::process::Stdio::null()).stdout(log_copy()?).stderr(log_copy()?);
        let (info_read, info_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let (lifeline, held) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let lifeline = pipe::Receiver::from_owned_fd(lifeline).map_err(failed)?;
        let held_fd = held.as_raw_fd();
        let agent = nix::unistd::getpid();
        let filter = if sandboxed { Some(socket_filter::file().map_err(failed)?) } else { None };
        let (info_fd, filter_fd) = (info_write.as_raw_fd(), filter.as_ref().map_or(-1, File::as_raw_fd));
        let members = group.as_ref().map(ControlGroup::members).unwrap_or_default();
        let open = |path: &std::path::PathBuf| std::fs::OpenOptions::new().write(true).open(path).ok();
        // Where its own processes cannot be put in, the limits of the sandbox are all there is.
        let members: Vec<File> = members.iter().filter_map(open).collect();
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid, dup2, fcntl, open, write, close.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::getppid() != agent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                // "0" is whoever writes it. Failing costs a limit only.
                for file in &members {
                    libc::write(file.as_raw_fd(), c"0".as_ptr().cast(), 1);
                }
                let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if score >= 0 {
                    libc::write(score, OOM_SCORE.as_ptr().cast(), OOM_SCORE.count_bytes());
                    libc::close(score);
                }
                // A copy that stays open over exec; the sandbox's own processes close it, and what they run has it.
                if libc::fcntl(held_fd, libc::F_DUPFD, FREE_FD) < 0 {
                    return Err(io::Error::last_os_error());
                }
                if !sandboxed {
                    return Ok(());
                }
                // Out of each other's way first. A copy that dup2 makes stays open over exec.
                for (from, to) in [(info_fd, INFO_FD), (filter_fd, FILTER_FD)]
                    .map(|(from, to)| (libc::fcntl(from, libc::F_DUPFD_CLOEXEC, FREE_FD), to))
                {
                    if from < 0 || libc::dup2(from, to) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let (spawned, exit) = spawn_on_own_thread(command).await.map_err(failed)?;
        drop((info_write, held));
        let sandbox_init = if sandboxed { Some(read_sandbox_info(info_read).await?) } else { None };
        let server = if sandboxed { None } else { Some(PidFd::open(spawned.pid).map_err(failed)?) };
        Ok(Postmaster { spawned, server, sandbox_init, exit, lifeline, group })
    }

    /// The postmaster's process id as seen from outside the sandbox. `inner` is what it calls itself.
    pub(crate) fn identify(&mut self, inner: u32) -> io::Result<u32> {
        if let Some(server) = &self.server {
            return Ok(server.pid);
        }
        let init = self.sandbox_init.ok_or(io::ErrorKind::NotFound)?;
        let pid = children_of(init)?.into_iter().find(|pid| inner_pid(*pid) == Some(inner));
        let pid = pid.ok_or_else(|| io::Error::other(format!("process {inner} of the sandbox was not found")))?;
        self.server = Some(PidFd::open(pid)?);
        Ok(pid)
    }

    /// Where all that runs for it is found.
    pub(crate) fn processes(&self) -> Processes {
        let groups = self.group.as_ref().map(ControlGroup::members).unwrap_or_default();
        Processes::new(self.spawned.pid, groups)
    }

    /// Asks the postmaster for a fast shutdown.
    pub(crate) fn stop_fast(&self) -> io::Result<()> {
        match &self.server {
            Some(server) => server.signal(Signal::SIGINT),
            None => self.spawned.signal(Signal::SIGKILL),
        }
    }

    /// Ends everything now: no checkpoint, no goodbye.
    pub(crate) fn kill(&self) {
        if self.exit.borrow().is_some() {
            return;
        }
        // Outside a sandbox SIGQUIT makes the postmaster take its children along; inside, the end of the sandbox's
        // first process is the end of them all.
        let outcome = match (&self.server, self.sandbox_init) {
            (Some(server), None) => server.signal(Signal::SIGQUIT),
            _ => self.spawned.signal(Signal::SIGKILL),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "Postgres could not be signalled");
        }
    }

    /// Waits for the end. Cancel-safe, and gives the same status ever after.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        let status = loop {
            if let Some(status) = *self.exit.borrow_and_update() {
                break status;
            }
            self.exit.changed().await.expect("the waiting thread tells the status before it ends");
        };
        self.all_gone().await;
        status
    }

    /// Waits until nothing of it runs any more. A sandbox that is killed may end a moment before what is in it; without one, sessions
    /// outlive a postmaster that is killed until they notice. They still hand over what they did, and whoever starts again in this folder
    /// must not meet them.
    async fn all_gone(&mut self) {
        let gone = async {
            if let Some(server) = &self.server {
                server.ended().await?;
            }
            // Whatever is written there: it ends when the last of them has closed it.
            while self.lifeline.read(&mut [0; 64]).await? > 0 {}
            io::Result::Ok(())
        };
        match tokio::time::timeout(GONE_PATIENCE, gone).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "whether processes of Postgres's are left cannot be told"),
            Err(_) => tracing::warn!("processes of Postgres's outlive it"),
        }
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if self.exit.borrow().is_none() {
            // An error means that it ended meanwhile.
            let _ = self.spawned.signal(Signal::SIGKILL);
        }
    }
}

async fn spawn_on_own_thread(mut command: Command) -> io::Result<(PidFd, watch::Receiver<Option<ExitStatus>>)> {
    let (started, is_started) = tokio::sync::oneshot::channel();
    let (ended, exit) = watch::channel(None);
    std::thread::Builder::new().name("postgres-parent".to_owned()).spawn(move || {
        let spawned = command.spawn().and_then(|mut child| match PidFd::open(child.id()) {
            Ok(pid_fd) => Ok((child, pid_fd)),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        });
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

/// Reads bubblewrap's report. It closes the descriptor after it, or, when it fails, without having written it.
async fn read_sandbox_info(pipe: OwnedFd) -> Result<u32, ComputeError> {
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        File::from(pipe).read_to_string(&mut text).map(|_| text)
    });
    let text = match read.await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => {
            return Err(ComputeError::NoSandbox { reason: format!("its report cannot be read: {error}") });
        }
        Err(error) => return Err(ComputeError::NoSandbox { reason: format!("its report was not read: {error}") }),
    };
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    report["child-pid"]
        .as_u64()
        .and_then(|pid| u32::try_from(pid).ok())
        .ok_or_else(|| ComputeError::NoSandbox { reason: "bubblewrap could not make its namespaces".to_owned() })
}

/// A process that can't be mistaken for a later one with the same number.
#[derive(Debug)]
struct PidFd {
    pid: u32,
    fd: OwnedFd,
}

impl PidFd {
    fn open(pid: u32) -> io::Result<Self> {
        let raw_pid = i32::try_from(pid).map_err(io::Error::other)?;
        // SAFETY: the call takes plain numbers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, raw_pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel just gave us this descriptor, and nobody else owns it.
        Ok(PidFd { pid, fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let (fd, none) = (self.fd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: the descriptor is ours and open; a null siginfo is allowed.
        let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, none, 0) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for its end.
    async fn ended(&self) -> io::Result<()> {
        // SAFETY: the descriptor is borrowed from us for as long as it is registered, and its number stays its own.
        let fd = unsafe { AsyncFd::register_with_interest(self.fd.as_fd(), Interest::READABLE)? };
        fd.readable().await.map(drop)
    }
}

/// The process ids of its children.
pub(crate) fn children_of(parent: u32) -> io::Result<Vec<u32>> {
    let threads = format!("/proc/{parent}/task");
    if let Ok(mut text) = std::fs::read_to_string(format!("{threads}/{parent}/children")) {
        // Each thread has children of its own.
        let others = std::fs::read_dir(threads)?.flatten().filter(|thread| *thread.file_name() != *parent.to_string());
        for thread in others {
            text.push(' ');
            text.push_str(&std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        }
        return Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect());
    }
    // Kernels without that file: look at everybody.
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if status_field(pid, "PPid:").and_then(|line| line.trim().parse().ok()) == Some(parent) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// Whether it runs no more, though it may not have been waited for yet.
pub(crate) fn has_ended(pid: u32) -> bool {
    status_field(pid, "State:").is_none_or(|state| state.trim_start().starts_with(['Z', 'X']))
}

/// The process's id in its own, innermost namespace.
pub(crate) fn inner_pid(pid: u32) -> Option<u32> {
    status_field(pid, "NSpid:")?.split_whitespace().next_back()?.parse().ok()
}

fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}
