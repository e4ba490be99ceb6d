//! Tells the agent that roles have changed, so that the proxy can check the new passwords also while the branch is asleep.
//!
//! The session that changed them waits, after its commit, until the agent has told control: whoever reads
//! `CREATE ROLE` as done can log in as that role. If the agent does not answer, the change is found at its next look.

use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use crate::page_client::connect_unix;
use crate::pg;
use crate::settings;

/// Between two tries to reach an agent that is not there.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest wait for the agent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether this transaction has run a command that changes roles.
static mut CHANGED: bool = false;

/// Looks at a utility command.
///
/// # Safety
/// With a valid node.
pub unsafe fn look_at(node: *const pg::Node) {
    // SAFETY: a node's tag says which struct it is; single-threaded.
    unsafe {
        CHANGED |= match (*node).type_ {
            pg::T_CreateRoleStmt | pg::T_AlterRoleStmt | pg::T_DropRoleStmt => true,
            pg::T_RenameStmt => (*node.cast::<pg::RenameStmt>()).renameType == pg::OBJECT_ROLE,
            _ => false,
        };
    }
}

/// The transaction has committed.
pub fn committed() {
    // SAFETY: single-threaded.
    let changed = unsafe { (&raw mut CHANGED).replace(false) };
    let socket = settings::roles_socket();
    if changed && !socket.is_empty() {
        // There is nobody to tell about a failure: the transaction is committed.
        let _ = tell(socket);
    }
}

/// The transaction has come to another end.
pub fn forget() {
    // SAFETY: single-threaded.
    unsafe { CHANGED = false };
}

/// Knocks, and waits until the agent hangs up. Nobody behind the door: the agent was lost, and the next one is about to be there.
fn tell(path: &std::ffi::CStr) -> Option<()> {
    let deadline = Instant::now() + PATIENCE;
    let socket = loop {
        match connect_unix(path) {
            Ok(socket) => break socket,
            Err(_) => {
                deadline.checked_duration_since(Instant::now())?;
                std::thread::sleep(PAUSE);
            }
        }
    };
    let mut watched = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    while watched.revents == 0 {
        let left = deadline.checked_duration_since(Instant::now())?;
        let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
        // SAFETY: one valid structure. Interrupted waits are gone on with.
        unsafe { libc::poll(&raw mut watched, 1, left_ms) };
    }
    Some(())
}
