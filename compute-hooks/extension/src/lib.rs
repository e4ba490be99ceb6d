//! The library inside a compute's Postgres.
//!
//! A compute is stock Postgres on a data directory that has files of the right size and no pages in them. This library,
//! loaded by `shared_preload_libraries`, fetches a page from the page server when it is first touched, and keeps clients
//! from hearing of commits that no quorum holds.
//!
//! ```text
//!   buffer manager
//!        │ extend / truncate / unlink; read / write / prefetch: transfers
//!        ▼
//!   storage_hooks ──present──► Postgres's md functions ──► local files
//!        │ absent                      ▲
//!        ▼                             │ write, set bit (chunk_locks)
//!     filler ──► fetcher ──► page_client ──► page server (socket from the agent)
//!                  │
//!                  ├─ read_ahead       presence map: which blocks are absent (crate ardent-presence-map)
//!                  └─ claims           which of them some process has asked for
//!
//!   transaction end ──► commit_guard      utility commands ──► commands      extend ──► wal_brake
//!        │                 │                     │                             statements ──► policy
//!        │                 └─► policy            └─► policy, roles             log-in ──► agent_login
//!        │                                                                     functions ──► reading_session
//!        └──────────────┬────────────────────────┴─── statements, errors
//!                   statements ──► statement_ring ──► the agent (crate ardent-statement-log)
//! ```
//!
//! Invariants:
//! - `CH-1`: a block becomes present under its chunk's lock and after its content is in the file; it is never overwritten by
//!   a fetched page once it is present.
//! - `CH-2`: nothing with a destructor is alive in a frame below which Postgres can raise (see `pg.rs`).
//! - `CH-3`: a fetched page has an LSN at or below the base LSN, or it is refused.
//! - `CH-4`: a file is never lengthened by a fetch.
//! - `CH-5`: no client sees a commit succeed while its wait for the quorum was cut short.
//! - `CH-6`: what the branch's policy forbids fails with an error that names it; that nothing of it becomes durable is the
//!   agent's business.
//! - `CH-7`: a session that asked to be held to reading leaves nothing behind that outlasts its transactions (`reading_session`).
//! - `CH-8`: what a client hears as done is in the ring for the agent by then, or is counted as lost there.
//!
//! Beside all that, `huge_pages` has the server's code and shared memory lie in huge pages, where the kernel makes them.
//!
//! What it does not know: tokens, tenants, timelines, safekeepers. The agent hands it a connection that is bound and
//! authenticated. Start reading in `storage_hooks.rs`.

mod agent_login;
mod background_jobs;
mod chunk_locks;
mod claims;
mod commands;
mod commit_guard;
mod executable;
mod fetcher;
mod filler;
mod huge_pages;
mod page_client;
#[cfg(not(pg_from = "17"))]
mod page_run;
mod pg;
mod policy;
mod read_ahead;
mod reading_session;
mod relation;
mod report;
mod roles;
mod session_state;
mod settings;
mod statement_ring;
mod statements;
mod storage_abi;
mod storage_hooks;
mod storage_table;
mod transfers;
mod wal_brake;

use std::ffi::{c_char, c_int};

use report::refuse_start;

/// A struct that Postgres only reads.
struct Constant<T>(T);

// SAFETY: never written.
unsafe impl<T> Sync for Constant<T> {}

/// What `PG_MODULE_MAGIC` would define: Postgres refuses a library that was built for another major version or with other
/// limits.
#[cfg(not(pg_from = "18"))]
static MAGIC: Constant<pg::Pg_magic_struct> = Constant(pg::Pg_magic_struct {
    len: size_of::<pg::Pg_magic_struct>() as c_int,
    version: pg::PG_VERSION_NUM / 100,
    funcmaxargs: pg::FUNC_MAX_ARGS,
    indexmaxkeys: pg::INDEX_MAX_KEYS,
    namedatalen: pg::NAMEDATALEN,
    float8byval: pg::FLOAT8PASSBYVAL,
    abi_extra: abi_name(b"PostgreSQL"),
});

#[cfg(pg_from = "18")]
static MAGIC: Constant<pg::Pg_magic_struct> = Constant(pg::Pg_magic_struct {
    len: size_of::<pg::Pg_magic_struct>() as c_int,
    abi_fields: pg::Pg_abi_values {
        version: pg::PG_VERSION_NUM / 100,
        funcmaxargs: pg::FUNC_MAX_ARGS,
        indexmaxkeys: pg::INDEX_MAX_KEYS,
        namedatalen: pg::NAMEDATALEN,
        float8byval: pg::FLOAT8PASSBYVAL,
        abi_extra: abi_name(b"PostgreSQL"),
    },
    name: c"ardent_compute".as_ptr(),
    version: std::ptr::null(),
});

const fn abi_name(name: &[u8]) -> [c_char; 32] {
    let mut out = [0; 32];
    let mut at = 0;
    while at < name.len() {
        out[at] = name[at] as c_char;
        at += 1;
    }
    out
}

/// Looked up by Postgres before anything else in a library.
#[unsafe(no_mangle)]
pub extern "C" fn Pg_magic_func() -> *const pg::Pg_magic_struct {
    &raw const MAGIC.0
}

static mut NEXT_SHMEM_REQUEST: pg::shmem_request_hook_type = None;
static mut NEXT_SHMEM_STARTUP: pg::shmem_startup_hook_type = None;

/// Called by Postgres when the library is loaded.
///
/// # Safety
/// By Postgres only.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _PG_init() {
    // SAFETY: the postmaster, before it has children.
    unsafe {
        if !(&raw const pg::process_shared_preload_libraries_in_progress).read() {
            refuse_start(format_args!("ardent_compute must be loaded by shared_preload_libraries"));
        }
        huge_pages::install();
        settings::define();
        storage_hooks::install();
        commands::install();
        commit_guard::install();
        policy::install();
        reading_session::install();
        agent_login::install();
        // Around all others.
        statements::install();
        NEXT_SHMEM_REQUEST = pg::shmem_request_hook;
        pg::shmem_request_hook = Some(on_shmem_request);
        NEXT_SHMEM_STARTUP = pg::shmem_startup_hook;
        pg::shmem_startup_hook = Some(on_shmem_startup);
    }
}

unsafe extern "C-unwind" fn on_shmem_request() {
    // SAFETY: the postmaster, single-threaded.
    unsafe {
        if let Some(next) = (&raw const NEXT_SHMEM_REQUEST).read() {
            next();
        }
        background_jobs::leave_out();
    }
    chunk_locks::request();
}

unsafe extern "C-unwind" fn on_shmem_startup() {
    // SAFETY: the postmaster, single-threaded.
    unsafe {
        if let Some(next) = (&raw const NEXT_SHMEM_STARTUP).read() {
            next();
        }
    }
    chunk_locks::attach();
}
