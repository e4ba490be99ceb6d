//! Processes that outlive a crash of ours, known by id, start time and boot: a process id alone may belong to another by now.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that cannot be mistaken for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Boot id and start time in clock ticks since that boot.
    pub started: String,
}

impl ProcessIdentity {
    /// The process that has this id now; `None` if there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, the name, is in parentheses and may hold anything; what follows the last one is plain.
        let after_name = stat.rsplit_once(')')?.1;
        let mut fields = after_name.split_ascii_whitespace();
        let state = fields.next()?;
        let start_ticks = fields.nth(18)?;
        // A zombie has ended already; it only waits for its parent to look.
        (state != "Z" && state != "X")
            .then(|| ProcessIdentity { pid, started: format!("{}/{start_ticks}", boot.trim()) })
    }

    /// Whether that very process still runs.
    pub fn is_alive(&self) -> bool {
        ProcessIdentity::of(self.pid).as_ref() == Some(self)
    }
}

/// Waits until `process` has ended, for at most `grace`; then kills it and waits for that. Gives whether it is gone.
pub(crate) async fn end_process(process: &ProcessIdentity, grace: Duration) -> bool {
    const AFTER_KILL: Duration = Duration::from_secs(5);
    if wait_for_end(process, grace).await {
        return true;
    }
    let Ok(pid) = i32::try_from(process.pid) else { return true };
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => wait_for_end(process, AFTER_KILL).await,
        Err(_) => false,
    }
}

async fn wait_for_end(process: &ProcessIdentity, limit: Duration) -> bool {
    const STEP: Duration = Duration::from_millis(10);
    let deadline = tokio::time::Instant::now() + limit;
    while process.is_alive() {
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(STEP).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_process_is_known_by_its_start_and_ended() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep runs");
        let identity = ProcessIdentity::of(child.id()).expect("it runs");
        assert!(identity.is_alive());
        let other = ProcessIdentity { pid: identity.pid, started: "another boot/1".into() };
        assert!(!other.is_alive(), "the same id with another start is another process");
        assert!(end_process(&other, Duration::ZERO).await, "nothing to end");
        assert!(identity.is_alive(), "and it was not the one that was killed");
        assert!(end_process(&identity, Duration::ZERO).await);
        child.wait().expect("reaped");
        assert_eq!(ProcessIdentity::of(child.id()), None);
    }
}
