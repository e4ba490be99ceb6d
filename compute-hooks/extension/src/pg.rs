//! The server's declarations, generated from its headers by `build.rs`, and the few macros that C would have expanded.
//!
//! Postgres raises errors with `siglongjmp`. Every function here that can raise is declared `C-unwind`, and the rule of
//! this crate is: no value with a destructor may be alive in a frame below which Postgres can raise. What must outlive
//! such a call lives in a static.

#[allow(warnings, clippy::all)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;

/// `CHECK_FOR_INTERRUPTS`: may raise, or end the process. Does nothing where Postgres holds interrupts off.
///
/// # Safety
/// Only in a process that Postgres runs, where an error may be raised.
pub unsafe fn check_for_interrupts() {
    // SAFETY: the flag is set by signal handlers of this very thread; a volatile read is what C does.
    unsafe {
        if (&raw const InterruptPending).read_volatile() != 0 {
            ProcessInterrupts();
        }
    }
}

/// Takes `count` holds on interrupts away, if no others are there. Gives how many were taken.
///
/// # Safety
/// Only in a process that Postgres runs; [`restore_holds`] follows unless an error is raised.
pub unsafe fn lift_holds(count: u32) -> u32 {
    // SAFETY: only this thread changes it.
    unsafe {
        let holds = &raw mut InterruptHoldoffCount;
        let lifted = if holds.read_volatile() == count { count } else { 0 };
        holds.write_volatile(holds.read_volatile() - lifted);
        lifted
    }
}

/// Undoes [`lift_holds`].
///
/// # Safety
/// With what it gave.
pub unsafe fn restore_holds(lifted: u32) {
    // SAFETY: as above.
    unsafe {
        let holds = &raw mut InterruptHoldoffCount;
        holds.write_volatile(holds.read_volatile() + lifted);
    }
}

/// From 18 on a process may have put off handing over reads that others already wait for: not while it sleeps.
///
/// # Safety
/// Only in a process that Postgres runs.
pub unsafe fn before_sleep() {
    // SAFETY: allowed anywhere; does nothing if there are none.
    #[cfg(pg_from = "18")]
    unsafe {
        pgaio_submit_staged();
    }
}

/// Whether an error raised now would take the whole server down.
pub fn in_critical_section() -> bool {
    // SAFETY: only this thread changes it.
    unsafe { (&raw const CritSectionCount).read_volatile() > 0 }
}

/// The process id, as Postgres knows it.
pub fn process_id() -> i32 {
    // SAFETY: set once, before this library runs in the process.
    unsafe { (&raw const MyProcPid).read() }
}

/// The descriptor that becomes readable when the postmaster is gone (`POSTMASTER_FD_WATCH`).
pub fn postmaster_watch_fd() -> i32 {
    // SAFETY: set before any child is forked.
    unsafe { (&raw const postmaster_alive_fds).read()[0] }
}

/// `PG_WAIT_EXTENSION`: what a session is shown as waiting for while it waits for pages.
const WAIT_EVENT_EXTENSION: uint32 = 0x0700_0000;

/// Shows in `pg_stat_activity` that this process waits for something of ours, or that it does no longer.
pub fn show_waiting(waiting: bool) {
    // SAFETY: points to this process's own field from the start of the process on; Postgres writes it the same way.
    unsafe {
        let field = (&raw const my_wait_event_info).read();
        field.write_volatile(if waiting { WAIT_EVENT_EXTENSION } else { 0 });
    }
}
