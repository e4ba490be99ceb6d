//! A server that is to be started: its command line, and the descriptors that it gets.
//!
//! It is plain data, so that whoever is to be the server's parent can be another process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ardent_api::compute::RunAs;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::mount_root;
use crate::sandbox::{FILTER_FD, INFO_FD};

/// Among the first to go when the host's memory runs out, before the server that many branches need.
const OOM_SCORE: &std::ffi::CStr = c"500";
/// Descriptors from here on are none that a sandbox is told of.
const FREE_FD: i32 = 16;

/// What is run. It finds nothing in its environment but what is named here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CommandLine {
    program: Vec<u8>,
    arguments: Vec<Vec<u8>>,
    environment: Vec<(String, String)>,
    directory: Vec<u8>,
    /// The user that it is started as; absent: as its parent's.
    user: Option<(u32, u32)>,
    /// An empty folder that can become the mount point of its root, where the root is none.
    root: Option<Vec<u8>>,
}

impl CommandLine {
    pub(crate) fn new(program: &Path, directory: &Path) -> Self {
        CommandLine {
            program: program.as_os_str().as_bytes().to_vec(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: directory.as_os_str().as_bytes().to_vec(),
            user: None,
            root: None,
        }
    }

    pub(crate) fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.arguments.push(argument.as_ref().as_bytes().to_vec());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = A>) -> &mut Self {
        for argument in arguments {
            self.arg(argument);
        }
        self
    }

    pub(crate) fn environment(&mut self, variables: &[(&str, &str)]) -> &mut Self {
        self.environment.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self
    }

    pub(crate) fn user(&mut self, RunAs { uid, gid }: RunAs) -> &mut Self {
        self.user = Some((uid, gid));
        self
    }

    /// See [`mount_root::ensure`].
    pub(crate) fn root(&mut self, folder: &Path) -> &mut Self {
        self.root = Some(folder.as_os_str().as_bytes().to_vec());
        self
    }

    pub(crate) fn program(&self) -> PathBuf {
        OsString::from_vec(self.program.clone()).into()
    }

    fn command(&self) -> io::Result<Command> {
        let mut command = Command::new(OsStr::from_bytes(&self.program));
        command.args(self.arguments.iter().map(|argument| OsStr::from_bytes(argument)));
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(OsStr::from_bytes(&self.directory));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        if let Some(folder) = &self.root {
            mount_root::ensure(&mut command, Path::new(OsStr::from_bytes(folder)))?;
        }
        Ok(command)
    }
}

/// What a sandbox is told by descriptors.
#[derive(Debug)]
pub(crate) struct SandboxPipes {
    /// Where it says who its first process is.
    pub(crate) info: OwnedFd,
    /// The filter of system calls.
    pub(crate) filter: OwnedFd,
}

/// A command line with its descriptors.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) line: CommandLine,
    /// Standard output and error.
    pub(crate) log: OwnedFd,
    /// Stays open in it and in all that it starts.
    pub(crate) held: OwnedFd,
    pub(crate) sandbox: Option<SandboxPipes>,
    /// Files of control groups that take new members.
    pub(crate) members: Vec<OwnedFd>,
}

impl Launch {
    /// Starts it. It is killed when the calling *thread* ends: that is what the kernel takes for a parent.
    pub(crate) fn spawn(self) -> io::Result<Child> {
        let Launch { line, log, held, sandbox, members } = self;
        let mut command = line.command()?;
        let log = File::from(log);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let parent = nix::unistd::getpid();
        let held_fd = held.as_raw_fd();
        let pipes =
            sandbox.as_ref().map(|pipes| [(pipes.info.as_raw_fd(), INFO_FD), (pipes.filter.as_raw_fd(), FILTER_FD)]);
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid, dup2, fcntl, open, write, close.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::getppid() != parent {
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
                let Some(pipes) = pipes else { return Ok(()) };
                // Out of each other's way first. A copy that dup2 makes stays open over exec.
                for (from, to) in pipes.map(|(from, to)| (libc::fcntl(from, libc::F_DUPFD_CLOEXEC, FREE_FD), to)) {
                    if from < 0 || libc::dup2(from, to) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn();
        drop((held, sandbox));
        child
    }
}
