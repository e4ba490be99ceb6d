//! One running Postgres: its process, its signals, its end.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use crate::disk::Processes;
use crate::error::ComputeError;
use crate::launch::{CommandLine, Launch, SandboxPipes};
use crate::limits::ControlGroup;
use crate::parent::{Exit, Left, LeftServer, Parent};
use crate::pid_fd::PidFd;
use crate::socket_filter;

/// How long what runs in it may outlive its first process.
const GONE_PATIENCE: Duration = Duration::from_secs(5);

/// A started server. Dropping it kills whatever still runs.
#[derive(Debug)]
pub(crate) struct Postmaster {
    /// What was spawned: the postmaster itself, or the sandbox around it, whose end is the end of everything in it.
    spawned: PidFd,
    /// The postmaster, once it is known.
    server: Option<PidFd>,
    /// In a sandbox, its first process as seen from outside.
    sandbox_init: Option<u32>,
    exit: Exit,
    /// Its other end is open in the postmaster and all that it starts.
    lifeline: pipe::Receiver,
    /// Goes last: it can be removed only when it is empty.
    group: Option<ControlGroup>,
}

impl Postmaster {
    /// Has `parent` run `line`, with `log` as standard output and error. `sandboxed` commands report their child on [`INFO_FD`](crate::sandbox::INFO_FD),
    /// and find a filter of system calls on [`FILTER_FD`](crate::sandbox::FILTER_FD).
    pub(crate) async fn spawn(
        parent: &Parent,
        line: CommandLine,
        log: &File,
        sandboxed: bool,
        group: Option<ControlGroup>,
    ) -> Result<Self, ComputeError> {
        let program = line.program();
        let failed = |source| ComputeError::Io { doing: "cannot run", path: program.clone(), source };
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()));
        let ((info_read, info), (lifeline, held)) = (pipe()?, pipe()?);
        let sandbox = if sandboxed {
            Some(SandboxPipes { info, filter: socket_filter::file().map_err(failed)?.into() })
        } else {
            None
        };
        let members = group.as_ref().map(ControlGroup::members).unwrap_or_default();
        let open = |path: &std::path::PathBuf| std::fs::OpenOptions::new().write(true).open(path).ok();
        // Where its own processes cannot be put in, the limits of the sandbox are all there is.
        let members = members.iter().filter_map(open).map(OwnedFd::from).collect();
        let log = log.try_clone().map_err(failed)?.into();
        let launch = Launch { line, log, held, sandbox, members };
        let (spawned, exit) = parent.start(launch, &lifeline).await.map_err(failed)?;
        let lifeline = pipe::Receiver::from_owned_fd(lifeline).map_err(failed)?;
        let sandbox_init = if sandboxed { Some(read_sandbox_info(info_read).await?) } else { None };
        let server = if sandboxed { None } else { Some(PidFd::open(spawned.pid).map_err(failed)?) };
        Ok(Postmaster { spawned, server, sandbox_init, exit, lifeline, group })
    }

    /// Takes over a server that an agent before this one has left.
    pub(crate) fn take_over(left: Left, sandboxed: bool, group: Option<ControlGroup>) -> io::Result<Self> {
        let Left { server: LeftServer { pid, sandbox_init, .. }, spawned, lifeline, exit } = left;
        let server = if sandboxed { None } else { Some(PidFd::open(pid)?) };
        let lifeline = pipe::Receiver::from_owned_fd(lifeline)?;
        Ok(Postmaster { spawned, server, sandbox_init, exit, lifeline, group })
    }

    /// In a sandbox, its first process as seen from outside.
    pub(crate) fn sandbox_init(&self) -> Option<u32> {
        self.sandbox_init
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
        if parent_of(pid) == Some(parent) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// The process id of its parent.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    status_field(pid, "PPid:")?.trim().parse().ok()
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
