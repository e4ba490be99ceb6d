//! How many files a process may have open: a server as many as the system lets it, what it starts as many as the server was started with.
//!
//! ```text
//!  server: raise() ──► soft limit = hard limit
//!            ├─ agent --open-files N ──► limit_to(N) ──► Postgres
//!            └─ as_before(command) ──► initdb, pg_dump, restore commands
//! ```
//!
//! A safekeeper has a file open for each branch that is written to, and every session is a socket or two, while the usual soft limit is
//! 1024. More is not for everybody: a program that waits with `select()` breaks at descriptor 1024, which is why the limit is soft. So
//! what a branch's users run gets it as it was, and so do the programs of others.
//!
//! Knows nothing of who needs which files, but for a number for each branch ([`needed`]). Start reading at [`raise`].

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// What a server needs whatever its branches do.
const OF_THE_SERVER: u64 = 256;
/// What a branch in use needs of a server with three safekeepers: the file of its WAL and its writer's connection at each, both ends of the
/// page server's, the pipes to its agent, and a few sessions at the proxy and the page server.
const PER_BRANCH: u64 = 32;

/// The soft limit that this process was started with.
static STARTED_WITH: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit of this process to the hard one. A server that may not goes on with what it has, and says so.
pub fn raise() {
    let (soft, hard) = match limits() {
        Ok(limits) => limits,
        Err(error) => return warn!(%error, "how many files may be open cannot be found out"),
    };
    let soft = *STARTED_WITH.get_or_init(|| soft);
    match set(hard, hard) {
        Ok(()) => info!(from = soft, to = hard, "files that may be open"),
        Err(error) => warn!(%error, soft, hard, "the limit on open files cannot be raised"),
    }
}

/// The soft limit that this process was started with, if [`raise`] has found one.
pub fn started_with() -> Option<u64> {
    STARTED_WITH.get().copied()
}

/// Gives the program that `command` starts the soft limit that this process was started with, if [`raise`] has found one. It makes the
/// start a `fork`, which takes the longer the more memory this process has: what is started often sets its limit itself
/// ([`limit_to`]).
pub fn as_before(command: &mut Command) {
    let Some(soft) = started_with() else { return };
    // SAFETY: between fork and exec it makes two system calls, and neither allocates nor locks.
    unsafe { command.pre_exec(move || limit_to(soft)) };
}

/// Sets the soft limit of this process; not above the hard one.
pub fn limit_to(soft: u64) -> io::Result<()> {
    let (_, hard) = limits()?;
    set(soft.min(hard), hard)
}

/// About how many a server needs when so many branches are in use at once.
pub fn needed(branches: u64) -> u64 {
    branches.saturating_mul(PER_BRANCH).saturating_add(OF_THE_SERVER)
}

fn limits() -> io::Result<(u64, u64)> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?)
}

fn set(soft: u64, hard: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_all_that_it_may_and_what_it_starts_gets_back_what_was() {
        let (_, hard) = limits().expect("there are limits");
        let before = (hard.min(700), hard);
        limit_to(before.0).expect("less is always allowed");
        let said = |of: &dyn Fn(&mut Command)| {
            let mut command = Command::new("sh");
            command.args(["-c", "ulimit -S -n"]);
            of(&mut command);
            let output = command.output().expect("a shell can be run");
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        raise();
        assert_eq!(started_with(), Some(before.0));
        assert_eq!(limits().expect("there are limits"), (hard, hard));
        assert_eq!(said(&|_| ()), hard.to_string());
        assert_eq!(said(&as_before), before.0.to_string());
        assert_eq!(limits().expect("there are limits"), (hard, hard), "this process keeps its own");
        limit_to(u64::MAX).expect("the most that there may be");
        assert_eq!(limits().expect("there are limits"), (hard, hard));
        limit_to(before.0).expect("less is always allowed");
        assert_eq!(limits().expect("there are limits"), before);
    }

    #[test]
    fn the_usual_limit_is_no_limit_for_a_few_branches_only() {
        assert!(needed(20) <= 1024);
        assert!(needed(30) > 1024);
        assert_eq!(needed(u64::MAX), u64::MAX);
    }
}
