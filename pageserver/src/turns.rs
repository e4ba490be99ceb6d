//! Turns on a processor that others want, too.
//!
//! Whoever waits for a page waits for a thread that sleeps most of the time and then has some tens or hundreds of microseconds of work, while
//! ingest, flushes and compaction always have some. Linux (from 6.12 on) lets a thread ask for shorter turns: those come sooner, and are as much of a
//! processor in all. No privilege is needed for it; older kernels take the wish and do nothing.

use std::io;
use std::mem::size_of;

use nix::libc;

use crate::limits;

/// Asks for short turns for the calling thread; its class and niceness stay.
pub(crate) fn ask_for_short_turns() -> io::Result<()> {
    let mut attributes = own_attributes()?;
    attributes.sched_runtime = limits::CONNECTION_TURN.as_nanos() as u64;
    // SAFETY: the kernel reads `size` bytes of the struct, which is all of it. 0 is the calling thread; there are no flags.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn own_attributes() -> io::Result<libc::sched_attr> {
    const LEN: u32 = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size: LEN,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most as many bytes as it is told, which is the struct's length.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, LEN, 0) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_get_shorter_and_nothing_else_changes() {
        let asking = std::thread::spawn(|| {
            // SAFETY: no pointers; 0 is the calling thread.
            assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 3) }, 0);
            let before = own_attributes().expect("the kernel tells");
            ask_for_short_turns().expect("anybody may ask");
            (before, own_attributes().expect("the kernel tells"))
        });
        let (before, after) = asking.join().expect("it ends");
        assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, 3));
        // Kernels before 6.12 tell nothing here.
        let tells = before.sched_runtime > 0;
        let wanted = limits::CONNECTION_TURN.as_nanos() as u64;
        assert!(
            !tells || (after.sched_runtime, before.sched_runtime > wanted) == (wanted, true),
            "{}",
            after.sched_runtime
        );
    }
}
