//! Processes and conditions to wait for.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process below another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    parent: i32,
    /// When it started, in ticks since boot: ids are used again, this with the id is not.
    started: u64,
    /// Its command line, words separated by spaces.
    pub command: String,
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold anything.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        if fields.next()? == "Z" {
            return None;
        }
        let parent = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
        Some(Process { pid, parent, started, command })
    }

    /// Whether this is the agent of a compute.
    pub fn is_agent(&self) -> bool {
        self.is_of_agent() && self.command.contains(" --supervised ")
    }

    /// Whether this is the supervisor of a compute's agent, with which agent and Postgres end.
    pub fn is_supervisor(&self) -> bool {
        self.is_of_agent() && !self.command.contains(" --supervised ")
    }

    fn is_of_agent(&self) -> bool {
        self.command.contains(" agent ") && self.command.contains(" --spec ")
    }

    /// Whether this is the first process of a Postgres server.
    pub fn is_postmaster(&self) -> bool {
        self.command.split(' ').next().is_some_and(|program| program.ends_with("/postgres"))
    }

    /// Whether it runs still.
    pub fn runs(&self) -> bool {
        Process::read(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        if self.runs() {
            // An error means that it has just ended by itself.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// Every process below `root`, at this moment.
pub fn descendants(root: i32) -> Vec<Process> {
    let all: Vec<Process> = fs::read_dir("/proc")
        .expect("/proc can be listed")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Process::read)
        .collect();
    let mut below = vec![root];
    let mut found = Vec::new();
    while let Some(parent) = below.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            below.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}

/// Waits until `condition` gives something; panics after `seconds` with `what`.
pub fn wait_until<T>(what: &str, seconds: u64, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
