//! The library's settings (`ardent.*`).

use std::ffi::{CStr, c_char, c_int};
use std::fmt::Write as _;
use std::time::Duration;

use crate::huge_pages;
use crate::pg;
use crate::report::Text;
use crate::storage_hooks;

/// Default of `ardent.fetch_timeout`.
const FETCH_TIMEOUT_DEFAULT_MS: c_int = 60_000;
/// [`ardent_api::compute::CLIENT_ADDRESS_SETTING`] for C.
const CLIENT_ADDRESS_NAME: &CStr = c"ardent.client_address";
/// Most blocks that read-ahead asks for at once.
pub const READ_AHEAD_BLOCKS_MAX: u32 = 128;

static mut PRESENCE_MAP: *mut c_char = std::ptr::null_mut();
static mut AGENT_SOCKET: *mut c_char = std::ptr::null_mut();
static mut BASE_LSN: *mut c_char = std::ptr::null_mut();
static mut POLICY: *mut c_char = std::ptr::null_mut();
static mut ROLES_SOCKET: *mut c_char = std::ptr::null_mut();
static mut STATEMENT_RINGS: *mut c_char = std::ptr::null_mut();
static mut STATEMENT_BELL: *mut c_char = std::ptr::null_mut();
static mut CLIENT_ADDRESS: *mut c_char = std::ptr::null_mut();
static mut COUNTERS: *mut c_char = std::ptr::null_mut();
static mut HUGE_PAGES: *mut c_char = std::ptr::null_mut();
static mut FETCH_TIMEOUT_MS: c_int = FETCH_TIMEOUT_DEFAULT_MS;
static mut READ_AHEAD_BLOCKS: c_int = READ_AHEAD_BLOCKS_MAX as c_int;
static mut UNACKNOWLEDGED_WAL_MAX_MB: c_int = 0;
static mut READ_ONLY_SESSION: bool = false;
static mut COUNTERS_TEXT: Text = Text::new();

/// The text of a string setting. Postgres replaces it only between statements, and for these settings never.
unsafe fn text(value: *const *mut c_char) -> &'static CStr {
    // SAFETY: Postgres owns the string and keeps it for the life of the process (PGC_POSTMASTER).
    unsafe {
        let value = value.read();
        if value.is_null() { c"" } else { CStr::from_ptr(value) }
    }
}

/// `ardent.presence_map`: the map's file; empty: this data directory is complete.
pub fn presence_map() -> &'static CStr {
    // SAFETY: single-threaded process.
    unsafe { text(&raw const PRESENCE_MAP) }
}

/// `ardent.agent_socket`: where to get connections to the page server.
pub fn agent_socket() -> &'static CStr {
    // SAFETY: single-threaded process.
    unsafe { text(&raw const AGENT_SOCKET) }
}

/// `ardent.base_lsn`: the LSN that absent pages are read at.
pub fn base_lsn() -> &'static CStr {
    // SAFETY: single-threaded process.
    unsafe { text(&raw const BASE_LSN) }
}

/// `ardent.policy`: the file with the branch's limits; empty: there are none.
pub fn policy() -> &'static CStr {
    // SAFETY: single-threaded process.
    unsafe { text(&raw const POLICY) }
}

/// `ardent.roles_socket`: whom to tell that roles have changed; empty: nobody.
pub fn roles_socket() -> &'static CStr {
    // SAFETY: single-threaded process.
    unsafe { text(&raw const ROLES_SOCKET) }
}

/// `ardent.read_only_session`: whether this session asked to be held to reading, when it began.
pub fn read_only_session() -> bool {
    // SAFETY: single-threaded process.
    unsafe { (&raw const READ_ONLY_SESSION).read() }
}

/// `ardent.statement_rings`: the file that sessions say in what they run; empty: they do not.
pub fn statement_rings() -> &'static CStr {
    // SAFETY: single-threaded process.
    unsafe { text(&raw const STATEMENT_RINGS) }
}

/// `ardent.statement_bell`: the socket that wakes whoever takes that.
pub fn statement_bell() -> &'static CStr {
    // SAFETY: single-threaded process.
    unsafe { text(&raw const STATEMENT_BELL) }
}

/// `ardent.client_address`: where the proxy says that the session's client is; whoever connects past the proxy may say anything.
pub fn client_address() -> &'static CStr {
    // SAFETY: single-threaded process; it is set when the session begins, and never after (PGC_BACKEND).
    unsafe { text(&raw const CLIENT_ADDRESS) }
}

/// The branch's name, for errors: the agent sets it as `cluster_name`.
pub fn branch() -> &'static str {
    // SAFETY: Postgres owns the string and keeps it for the life of the process (PGC_POSTMASTER).
    unsafe { text(&raw const pg::cluster_name) }.to_str().unwrap_or_default()
}

/// `ardent.fetch_timeout`.
pub fn fetch_timeout() -> Duration {
    // SAFETY: single-threaded process; Postgres keeps the value within the bounds given below.
    Duration::from_millis(unsafe { (&raw const FETCH_TIMEOUT_MS).read() }.unsigned_abs().into())
}

/// `ardent.read_ahead`.
pub fn read_ahead_blocks() -> u32 {
    // SAFETY: as above.
    unsafe { (&raw const READ_AHEAD_BLOCKS).read() }.unsigned_abs()
}

/// `ardent.unacknowledged_wal_max` in bytes; None: no limit.
pub fn unacknowledged_wal_bytes_max() -> Option<u64> {
    // SAFETY: as above.
    let megabytes = unsafe { (&raw const UNACKNOWLEDGED_WAL_MAX_MB).read() }.unsigned_abs();
    (megabytes > 0).then_some(u64::from(megabytes) << 20)
}

/// `SHOW ardent.counters`.
unsafe extern "C-unwind" fn show_counters() -> *const c_char {
    let place = &raw mut COUNTERS_TEXT;
    // SAFETY: single-threaded process; Postgres copies the text before anybody asks again.
    let out = unsafe { &mut *place };
    *out = Text::new();
    if let Some(map) = storage_hooks::presence_map() {
        for (name, value) in map.counters().values().named() {
            let _cut = write!(out, "{name}={value} ");
        }
        let _cut = write!(out, "absent={}", map.absent_count());
    }
    out.as_c_str().as_ptr()
}

/// Defines all settings.
///
/// # Safety
/// Only from `_PG_init`.
pub unsafe fn define() {
    let string = |name: &CStr, about: &CStr, value: *mut *mut c_char, context, flags, show| {
        // SAFETY: all pointers are to statics.
        unsafe {
            pg::DefineCustomStringVariable(
                name.as_ptr(),
                about.as_ptr(),
                std::ptr::null(),
                value,
                c"".as_ptr(),
                context,
                flags,
                None,
                None,
                show,
            );
        }
    };
    let number = |name: &CStr, about: &CStr, value: *mut c_int, default, min, max, context, flags| {
        // SAFETY: all pointers are to statics.
        unsafe {
            pg::DefineCustomIntVariable(
                name.as_ptr(),
                about.as_ptr(),
                std::ptr::null(),
                value,
                default,
                min,
                max,
                context,
                flags,
                None,
                None,
                None,
            );
        }
    };
    let fixed = pg::PGC_POSTMASTER;
    string(
        c"ardent.presence_map",
        c"File that says which blocks this compute still lacks.",
        &raw mut PRESENCE_MAP,
        fixed,
        pg::GUC_NOT_IN_SAMPLE,
        None,
    );
    string(
        c"ardent.agent_socket",
        c"Unix socket that hands out connections to the page server.",
        &raw mut AGENT_SOCKET,
        fixed,
        pg::GUC_NOT_IN_SAMPLE,
        None,
    );
    string(
        c"ardent.base_lsn",
        c"LSN that the blocks this compute lacks are read at.",
        &raw mut BASE_LSN,
        fixed,
        pg::GUC_NOT_IN_SAMPLE,
        None,
    );
    string(
        c"ardent.policy",
        c"File with the branch's limits, kept by the agent.",
        &raw mut POLICY,
        fixed,
        pg::GUC_NOT_IN_SAMPLE,
        None,
    );
    string(
        c"ardent.roles_socket",
        c"Unix socket of the agent that is told when roles have changed.",
        &raw mut ROLES_SOCKET,
        fixed,
        pg::GUC_NOT_IN_SAMPLE,
        None,
    );
    string(
        c"ardent.statement_rings",
        c"File through which the agent is told what sessions run.",
        &raw mut STATEMENT_RINGS,
        fixed,
        pg::GUC_NOT_IN_SAMPLE,
        None,
    );
    string(
        c"ardent.statement_bell",
        c"Unix socket of the agent that is told when there is something new in the file of statements.",
        &raw mut STATEMENT_BELL,
        fixed,
        pg::GUC_NOT_IN_SAMPLE,
        None,
    );
    string(
        CLIENT_ADDRESS_NAME,
        c"Address and port of the client, said by the proxy when the session begins.",
        &raw mut CLIENT_ADDRESS,
        pg::PGC_BACKEND,
        pg::GUC_NOT_IN_SAMPLE | pg::GUC_DISALLOW_IN_FILE,
        None,
    );
    string(
        c"ardent.counters",
        c"What this compute has fetched from the page server since its data directory was made.",
        &raw mut COUNTERS,
        pg::PGC_INTERNAL,
        pg::GUC_NOT_IN_SAMPLE | pg::GUC_DISALLOW_IN_FILE | pg::GUC_NO_SHOW_ALL,
        Some(show_counters as unsafe extern "C-unwind" fn() -> *const c_char),
    );
    string(
        huge_pages::SETTING,
        c"How much of this compute's code and shared memory was made huge pages.",
        &raw mut HUGE_PAGES,
        pg::PGC_INTERNAL,
        pg::GUC_NOT_IN_SAMPLE | pg::GUC_DISALLOW_IN_FILE | pg::GUC_NO_SHOW_ALL,
        Some(huge_pages::show as unsafe extern "C-unwind" fn() -> *const c_char),
    );
    number(
        c"ardent.fetch_timeout",
        c"How long a read waits for the page server before it fails.",
        &raw mut FETCH_TIMEOUT_MS,
        FETCH_TIMEOUT_DEFAULT_MS,
        100,
        c_int::MAX,
        pg::PGC_USERSET,
        pg::GUC_UNIT_MS,
    );
    number(
        c"ardent.read_ahead",
        c"Most blocks to have asked the page server for ahead of the reader when a relation is read in sequence.",
        &raw mut READ_AHEAD_BLOCKS,
        READ_AHEAD_BLOCKS_MAX as c_int,
        1,
        READ_AHEAD_BLOCKS_MAX as c_int,
        pg::PGC_USERSET,
        0,
    );
    number(
        c"ardent.unacknowledged_wal_max",
        c"Relations do not grow while so much WAL is on no quorum yet; 0: they do.",
        &raw mut UNACKNOWLEDGED_WAL_MAX_MB,
        0,
        0,
        1 << 20,
        pg::PGC_SIGHUP,
        pg::GUC_UNIT_MB,
    );
    // SAFETY: all pointers are to statics.
    unsafe {
        pg::DefineCustomBoolVariable(
            c"ardent.read_only_session".as_ptr(),
            c"Holds the session to reading; can be asked for when it begins, and not be taken back.".as_ptr(),
            std::ptr::null(),
            &raw mut READ_ONLY_SESSION,
            false,
            pg::PGC_BACKEND,
            pg::GUC_NOT_IN_SAMPLE | pg::GUC_DISALLOW_IN_FILE,
            None,
            None,
            None,
        );
    }
    // SAFETY: called from `_PG_init`, as the function asks.
    unsafe { pg::MarkGUCPrefixReserved(c"ardent".as_ptr()) };
}
