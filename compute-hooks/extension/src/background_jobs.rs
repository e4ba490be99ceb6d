//! Keeps production's jobs off a branch: the background workers that preloaded libraries want started with the server (the scheduler of
//! `pg_cron`, maintenance of partitions, jobs of `timescaledb`).
//!
//! Libraries register them while they are loaded. What they register is taken off the postmaster's list after the last library and before
//! shared memory is made, which has a place for each. The libraries themselves stay, with their functions, tables and settings; workers
//! that a session starts (`RegisterDynamicBackgroundWorker`) are not on that list then.

use std::ffi::CStr;
use std::mem::offset_of;

use crate::pg;
use crate::report::Text;

/// The library that the server's own workers are said to be in.
const SERVERS_OWN: &CStr = c"postgres";

/// Takes the workers of libraries off the list, and says so in the server's log.
///
/// # Safety
/// In the postmaster, when all libraries are loaded and it has no children.
pub unsafe fn leave_out() {
    // SAFETY: the list is the postmaster's, whose only thread this is; each node is part of a worker that is never freed.
    #[cfg(not(pg_from = "18"))]
    unsafe {
        let mut link = &raw mut pg::BackgroundWorkerList.head.next;
        while !(*link).is_null() {
            let node = *link;
            if is_servers_own(worker_of(node.cast())) {
                link = &raw mut (*node).next;
            } else {
                *link = (*node).next;
            }
        }
    }
    // SAFETY: as above. A list that nobody has used has null links.
    #[cfg(pg_from = "18")]
    unsafe {
        let head = &raw mut pg::BackgroundWorkerList.head;
        let mut node = (*head).next;
        while !node.is_null() && node != head {
            let (previous, next) = ((*node).prev, (*node).next);
            if !is_servers_own(worker_of(node.cast())) {
                (*previous).next = next;
                (*next).prev = previous;
            }
            node = next;
        }
    }
}

/// The worker that a node of the list is part of.
///
/// # Safety
/// With a node of the list.
unsafe fn worker_of(node: *mut u8) -> *const pg::RegisteredBgWorker {
    // SAFETY: the node lies there within its worker.
    unsafe { node.sub(offset_of!(pg::RegisteredBgWorker, rw_lnode)).cast() }
}

/// Whether it may start; logged if it may not.
///
/// # Safety
/// With a worker of the list.
unsafe fn is_servers_own(worker: *const pg::RegisteredBgWorker) -> bool {
    // SAFETY: Postgres ends both names within their arrays.
    unsafe {
        let worker = &raw const (*worker).rw_worker;
        let library = CStr::from_ptr((&raw const (*worker).bgw_library_name).cast());
        if library == SERVERS_OWN {
            return true;
        }
        let name = CStr::from_ptr((&raw const (*worker).bgw_name).cast());
        let text = Text::format(format_args!(
            "background worker \"{}\" of \"{}\" is not started: branches do not run production's jobs",
            Lossy(name),
            Lossy(library)
        ));
        if pg::errstart(pg::LOG, std::ptr::null()) {
            pg::errmsg_internal(c"%s".as_ptr(), text.as_c_str().as_ptr());
            pg::errfinish(c"ardent_compute".as_ptr(), 0, c"ardent".as_ptr());
        }
        false
    }
}

/// Text of an unknown encoding, without an allocation: what is not ASCII is a question mark.
struct Lossy<'a>(&'a CStr);

impl std::fmt::Display for Lossy<'_> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::fmt::Write as _;
        self.0
            .to_bytes()
            .iter()
            .try_for_each(|byte| to.write_char(if byte.is_ascii() { char::from(*byte) } else { '?' }))
    }
}
