//! Lets the process that every commit goes through run as soon as it can.
//!
//! A commit wakes the walsender with a signal. On a busy machine it would then stand in line behind sessions, while those that have
//! committed wait for it: 8 clients on two cores commit about a tenth more often if it does not. It needs some 20 microseconds each time.

use std::io;

use crate::postmaster::{children_of, inner_pid};

/// How far before others: of a processor that is fought over it could have nine times their share, of which it uses little.
const NICE: i32 = -10;

/// Gives precedence to the postmaster's child that calls itself `inner`. Who may not do that does without.
pub(crate) fn give(postmaster: u32, inner: u32) {
    let given = children_of(postmaster).and_then(|children| {
        let child = children.into_iter().find(|pid| inner_pid(*pid) == Some(inner));
        set_nice(child.ok_or(io::ErrorKind::NotFound)?)
    });
    if let Err(error) = given {
        tracing::debug!(%error, "the walsender runs like any session");
    }
}

fn set_nice(pid: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, NICE) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
