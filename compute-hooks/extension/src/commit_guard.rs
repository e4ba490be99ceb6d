//! Keeps a client from hearing "committed" before a quorum holds the commit.
//!
//! A backend that waits for the synchronous standby (`SyncRepWaitForLSN`) gives the wait up when a cancellation is
//! pending, warns, and then reports success. So from just before a commit until its end, `SIGINT`, which is how every
//! cancellation arrives (user, statement and lock timeout, autovacuum), is kept blocked; the kernel delivers it afterwards.
//! A termination is let through: there Postgres itself shuts off the output before it gives up the wait, and the client
//! sees a lost connection.
//!
//! `synchronous_commit = local` and `remote_write`, which production may have for a role, a database or everywhere, mean the disk of one
//! host there. A compute has no disk that counts: during a commit they mean the quorum's, like `on`. `off` stays what it is in Postgres:
//! the client asks not to wait, and what was committed in the last moment may be lost with the compute.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use crate::pg;
use crate::policy;
use crate::roles;

/// Whether this process has `SIGINT` blocked for a commit.
static mut HOLDING: bool = false;
/// A cancellation that was pending already and could not be served before the commit.
static mut HELD_BACK: bool = false;

/// What the session has set `synchronous_commit` to, while it is another for a commit.
static mut SET_BY_SESSION: Option<i32> = None;

/// Registers for the events of transactions.
///
/// # Safety
/// Only from `_PG_init`.
pub unsafe fn install() {
    // SAFETY: the callback is a function of this library, which is never unloaded.
    unsafe { pg::RegisterXactCallback(Some(on_transaction_event), std::ptr::null_mut()) };
}

unsafe extern "C-unwind" fn on_transaction_event(event: pg::XactEvent, _: *mut c_void) {
    // SAFETY: Postgres calls this in its only thread, at the stated point of a transaction.
    unsafe {
        match event {
            pg::XACT_EVENT_PRE_COMMIT | pg::XACT_EVENT_PRE_PREPARE => {
                policy::before_commit();
                hold();
            }
            pg::XACT_EVENT_COMMIT => {
                release();
                roles::committed();
            }
            pg::XACT_EVENT_PREPARE | pg::XACT_EVENT_ABORT => {
                release();
                roles::forget();
            }
            _ => {}
        }
    }
}

/// Holds cancellation back from here to the end of the transaction. One that is pending already is served first, by
/// raising an error.
///
/// # Safety
/// Where an error may be raised.
pub unsafe fn hold() {
    // SAFETY: single-threaded; the flags are also set by signal handlers, hence volatile.
    unsafe {
        if HOLDING {
            return;
        }
        block_sigint(true);
        HOLDING = true;
        wait_for_quorum();
        // If this raises, the abort of the transaction releases.
        pg::check_for_interrupts();
        let pending = &raw mut pg::QueryCancelPending;
        if pending.read_volatile() != 0 {
            pending.write_volatile(0);
            HELD_BACK = true;
        }
    }
}

/// Makes this commit wait for the quorum if it would wait for this host alone.
fn wait_for_quorum() {
    // SAFETY: single-threaded; the variable is the setting's own, which nothing reads between here and `release` but the commit.
    unsafe {
        let wished = (&raw const pg::synchronous_commit).read();
        let here_alone = [pg::SYNCHRONOUS_COMMIT_LOCAL_FLUSH, pg::SYNCHRONOUS_COMMIT_REMOTE_WRITE];
        if here_alone.iter().any(|level| i64::from(*level) == i64::from(wished)) {
            SET_BY_SESSION = Some(wished);
            set_level(pg::SYNCHRONOUS_COMMIT_REMOTE_FLUSH as i32);
        }
    }
}

/// Sets the level, and what Postgres derives from it: which of the standby's positions a commit waits for.
///
/// # Safety
/// With a level of the setting.
unsafe fn set_level(level: i32) {
    // SAFETY: single-threaded; the function is the setting's own hook, and has no extra data.
    unsafe {
        (&raw mut pg::synchronous_commit).write(level);
        pg::assign_synchronous_commit(level, std::ptr::null_mut());
    }
}

fn release() {
    // SAFETY: as for `hold`.
    unsafe {
        if let Some(wished) = (&raw mut SET_BY_SESSION).replace(None) {
            set_level(wished);
        }
        if !HOLDING {
            return;
        }
        HOLDING = false;
        if HELD_BACK {
            HELD_BACK = false;
            (&raw mut pg::QueryCancelPending).write_volatile(1);
            (&raw mut pg::InterruptPending).write_volatile(1);
        }
        block_sigint(false);
    }
}

/// A wait before the commit point (a deferred trigger's page, for example) may still be cancelled: lets a held-back
/// cancellation through if Postgres could serve it now.
///
/// # Safety
/// Where an error may be raised.
pub unsafe fn serve_cancellation_while_waiting() {
    // SAFETY: as for `hold`.
    unsafe {
        if HOLDING && (&raw const pg::InterruptHoldoffCount).read_volatile() == 0 && sigint_is_pending() {
            block_sigint(false);
            block_sigint(true);
            pg::check_for_interrupts();
        }
    }
}

unsafe fn block_sigint(block: bool) {
    let how = if block { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: a set that is initialised by sigemptyset.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut());
    }
}

unsafe fn sigint_is_pending() -> bool {
    // SAFETY: sigpending initialises the set.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigpending(set.as_mut_ptr()) == 0 && libc::sigismember(set.as_ptr(), libc::SIGINT) == 1
    }
}
