//! Keeps one large transaction from filling the disk with WAL while the quorum does not answer.
//!
//! A commit waits for the quorum by itself, but a long statement writes WAL without ever waiting, and all of it has to be
//! kept until the quorum has it. So whoever lets a relation grow waits first while more than the allowed amount is
//! unacknowledged.

use std::time::Duration;

use crate::filler::{self, Place};
use crate::pg;
use crate::settings;

/// How often the quorum's position is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Waits until at most `ardent.unacknowledged_wal_max` of WAL is on no quorum. Served interrupts may raise.
///
/// # Safety
/// Only in a process that Postgres runs.
pub unsafe fn hold_until_acknowledged(place: Place) {
    // SAFETY: waiting may raise, which is not done in a critical section.
    unsafe {
        while is_over_limit() && !pg::in_critical_section() {
            filler::wait(POLL, place);
        }
    }
}

/// Whether too much is unacknowledged. Without a synchronous standby configured there is nothing to wait for.
unsafe fn is_over_limit() -> bool {
    let Some(max) = settings::unacknowledged_wal_bytes_max() else { return false };
    // SAFETY: the setting is a C string that Postgres owns; the shared memory was set up before any child was forked. The
    // position is read without its lock: an older value means waiting one round longer.
    unsafe {
        let standby = (&raw const pg::SyncRepStandbyNames).read();
        let control = (&raw const pg::WalSndCtl).read();
        if standby.is_null() || *standby == 0 || control.is_null() {
            return false;
        }
        let acknowledged = (&raw const (*control).lsn[pg::SYNC_REP_WAIT_FLUSH as usize]).read_volatile();
        pg::GetXLogInsertRecPtr().saturating_sub(acknowledged) > max
    }
}
