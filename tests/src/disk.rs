//! A disk that can be full, and calls for durability that can be slow.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::house::pid_of;
use crate::network::run;

/// A file system in memory, at a folder. Only who has a table of mounts of its own should make one. Unmounted when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many MiB at `at`, an empty folder.
    pub fn mount(at: &Path, mb: u32) -> SmallDisk {
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mb}m,mode=0700"), "tmpfs", &at.to_string_lossy()]);
        SmallDisk { at: at.to_owned() }
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file can be made");
        let chunk = vec![1; 64 << 10];
        let mut length = chunk.len();
        while length > 0 {
            match filler.write(&chunk[..length]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => length /= 2,
                Err(error) => panic!("filling {}: {error}", self.at.display()),
            }
        }
    }

    /// Gives the room back.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("the file is there");
    }

    fn filler(&self) -> PathBuf {
        self.at.join(".filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.at).status();
        if !thread::panicking() {
            assert!(unmounted.is_ok_and(|status| status.success()), "{} is unmounted", self.at.display());
        }
    }
}

/// Makes a process's `fsync` and `fdatasync` slow until it is dropped, or the process ends.
#[derive(Debug)]
pub struct SlowFsync {
    tracer: Child,
}

impl SlowFsync {
    /// Each takes so much longer.
    pub fn of(process: Pid, longer: Duration) -> SlowFsync {
        let tracer = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e"])
            .arg(format!("inject=fsync,fdatasync:delay_enter={}", longer.as_micros()))
            .args(["-p", &process.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace can be run (scripts/setup-chaos.sh installs it)");
        SlowFsync { tracer }
    }
}

impl Drop for SlowFsync {
    fn drop(&mut self) {
        // An error means that it has ended, with the process. Told so, it lets go of the process; killed, it would leave it halted.
        let _ = kill(pid_of(&self.tracer), Signal::SIGTERM);
        let _ = self.tracer.wait();
    }
}
