//! A process that can't be mistaken for a later one with the same number.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process, by its pidfd.
#[derive(Debug)]
pub(crate) struct PidFd {
    pub(crate) pid: u32,
    pub(crate) fd: OwnedFd,
}

impl PidFd {
    /// The process that has this number now.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
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

    /// The process behind a descriptor that somebody else opened.
    pub(crate) fn of(pid: u32, fd: OwnedFd) -> Self {
        PidFd { pid, fd }
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let (fd, none) = (self.fd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: the descriptor is ours and open; a null siginfo is allowed.
        let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, none, 0) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        // SAFETY: the descriptor is borrowed from us for as long as it is registered, and its number stays its own.
        let fd = unsafe { AsyncFd::register_with_interest(self.fd.as_fd(), Interest::READABLE)? };
        fd.readable().await.map(drop)
    }
}
