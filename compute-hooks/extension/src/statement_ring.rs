//! This session's end of the ring that takes its records to the agent (`ardent-statement-log`).
//!
//! Nothing here raises. A full ring is waited for, so that the log is whole; an agent that takes nothing for long costs records,
//! which are counted, and not the session.

use std::ffi::{CStr, c_int, c_void};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use ardent_statement_log::{Pushed, RECORD_MAX, Record, Ring, Slot};

use crate::pg;
use crate::report::refuse_start;
use crate::settings;

/// Longest wait for room in the ring.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the ring is looked at meanwhile.
const POLL: Duration = Duration::from_millis(1);

/// The mapped file; `None`: nothing is recorded.
static mut RING: Option<Ring> = None;
static mut OUTLET: Outlet = Outlet { slot: None, lost: 0, gave_up: false, record: [0; RECORD_MAX] };

/// What this process has of it.
struct Outlet {
    slot: Option<Slot>,
    /// Records that were not taken.
    lost: u64,
    /// The last wait was in vain: until there is room again, nobody waits.
    gave_up: bool,
    record: [u8; RECORD_MAX],
}

/// Maps the file.
///
/// # Safety
/// Only from `_PG_init`.
pub unsafe fn install() {
    let path = settings::statement_rings();
    if path.is_empty() {
        return;
    }
    let text = path.to_str().unwrap_or("?");
    // SAFETY: nobody else runs yet.
    unsafe {
        match map(text) {
            Some(ring) => RING = Some(ring),
            None => refuse_start(format_args!("the rings for statements cannot be used: {text}")),
        }
    }
}

unsafe fn map(path: &str) -> Option<Ring> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).ok()?;
    let len = usize::try_from(file.metadata().ok()?.len()).ok()?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of an open file, never unmapped.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: as above.
    unsafe { Ring::attach(base.cast(), len) }
}

/// Whether anybody takes records.
pub fn is_open() -> bool {
    // SAFETY: written once, before there are children.
    unsafe { (&raw const RING).read() }.is_some()
}

/// Hands a record over. Waits where there is no room for it.
pub fn tell(record: &Record<'_>) {
    let outlet = &raw mut OUTLET;
    // SAFETY: single-threaded process, and nothing below comes back here.
    let outlet = unsafe { &mut *outlet };
    let Some(slot) = outlet.slot() else {
        outlet.lost += 1;
        return;
    };
    if outlet.lost > 0 {
        let lost = Record::Lost { count: outlet.lost, at_us: unix_us(now()) };
        if !outlet.push(slot, &lost) {
            outlet.lost += 1;
            return;
        }
        outlet.lost = 0;
    }
    if !outlet.push(slot, record) {
        outlet.lost += 1;
    }
}

impl Outlet {
    fn slot(&mut self) -> Option<Slot> {
        if self.slot.is_none() {
            // SAFETY: written once, before there are children.
            let ring = unsafe { (&raw const RING).read() }?;
            let slot = ring.claim(pg::process_id().unsigned_abs())?;
            if !has_room_on_disk(slot) {
                slot.release();
                return None;
            }
            self.slot = Some(slot);
            // SAFETY: a function of this library, which is never unloaded.
            unsafe { pg::on_proc_exit(Some(at_exit), 0) };
        }
        self.slot
    }

    /// Whether the record is in the ring.
    fn push(&mut self, slot: Slot, record: &Record<'_>) -> bool {
        let Some(len) = record.encode(&mut self.record) else { return false };
        let mut waiting_since = None;
        loop {
            match slot.push(&self.record[..len]) {
                Pushed::Done { wake } => {
                    self.gave_up = false;
                    if wake {
                        ring_bell();
                    }
                    return true;
                }
                Pushed::Full if self.gave_up => return false,
                Pushed::Full => {
                    let since = *waiting_since.get_or_insert_with(|| {
                        ring_bell();
                        Instant::now()
                    });
                    if since.elapsed() > PATIENCE {
                        self.gave_up = true;
                        return false;
                    }
                    pg::show_waiting(true);
                    std::thread::sleep(POLL);
                    pg::show_waiting(false);
                }
            }
        }
    }
}

/// A page of the file that finds no room when it is first written to would end the process.
fn has_room_on_disk(slot: Slot) -> bool {
    let path = settings::statement_rings().to_str().unwrap_or_default();
    let Ok(file) = std::fs::OpenOptions::new().write(true).open(path) else { return false };
    let (start, len) = slot.extent();
    // SAFETY: no pointers.
    let refused = unsafe { libc::posix_fallocate(file.as_raw_fd(), start as libc::off_t, len as libc::off_t) };
    refused == 0
}

unsafe extern "C-unwind" fn at_exit(_: c_int, _: pg::Datum) {
    let outlet = &raw mut OUTLET;
    // SAFETY: single-threaded process.
    if let Some(slot) = unsafe { (*outlet).slot.take() } {
        slot.release();
    }
}

/// Wakes the agent. If that fails, it looks by itself a little later.
fn ring_bell() {
    let bell: &CStr = settings::statement_bell();
    if let (Ok(socket), Ok(path)) = (UnixDatagram::unbound(), bell.to_str())
        && socket.set_nonblocking(true).is_ok()
    {
        let _ = socket.send_to(b"!", path);
    }
}

/// The time, as Postgres counts it.
pub fn now() -> pg::TimestampTz {
    // SAFETY: reads a clock.
    unsafe { pg::GetCurrentTimestamp() }
}

/// A time as microseconds since the Unix epoch.
pub fn unix_us(at: pg::TimestampTz) -> i64 {
    const FROM_1970_TO_2000_US: i64 = 946_684_800_000_000;
    at.saturating_add(FROM_1970_TO_2000_US)
}

/// Bytes of a C string; none for no string.
///
/// # Safety
/// Null, or a C string that stays for as long as the result is used.
pub unsafe fn bytes<'a>(text: *const std::ffi::c_char) -> &'a [u8] {
    // SAFETY: the caller's promise.
    if text.is_null() { b"" } else { unsafe { CStr::from_ptr(text) }.to_bytes() }
}

/// As `c_void`, for callbacks without an argument.
pub const NOTHING: *mut c_void = std::ptr::null_mut();
