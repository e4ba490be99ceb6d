//! A root folder that is a mount point.
//!
//! Bubblewrap makes a new root by `pivot_root`, which the kernel refuses where the present root is no mount point: in a
//! chroot. There, root can mount the root folder over a folder in it, in a mount namespace of the child's own, and change
//! into that. Who is not root cannot: the kernel makes no user namespaces in a chroot.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Lets `command` run with a mount point as its root, by way of `folder`, an empty one of its own. Changes nothing where the root
/// is one already, and nothing for who is not root.
pub(crate) fn ensure(command: &mut Command, folder: &Path) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() || is_mount_point()? {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let folder = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: between fork and exec only system calls are made, on memory that was prepared before.
    unsafe {
        command.pre_exec(move || enter(&folder));
    }
    Ok(())
}

/// Whether the root is no mount point and this user cannot do anything about it.
pub(crate) fn is_out_of_reach() -> io::Result<bool> {
    Ok(!nix::unistd::geteuid().is_root() && !is_mount_point()?)
}

fn enter(folder: &CString) -> io::Result<()> {
    let done = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: all pointers are to strings that end with a zero byte, or null where the call allows it.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS))?;
        let none = std::ptr::null();
        done(libc::mount(c"/".as_ptr(), folder.as_ptr(), none, libc::MS_BIND | libc::MS_REC, none.cast()))?;
        done(libc::mount(none, folder.as_ptr(), none, libc::MS_PRIVATE | libc::MS_REC, none.cast()))?;
        done(libc::chroot(folder.as_ptr()))?;
        done(libc::chdir(c"/".as_ptr()))
    }
}

/// The fifth field of a line of `mountinfo` is the mount point as this process sees it; mounts outside its root are not listed.
fn is_mount_point() -> io::Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some("/")))
}
