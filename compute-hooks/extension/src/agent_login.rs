//! Lets the agent in as the bootstrap superuser, whatever the branch's users have made of that role.
//!
//! The agent and control connect under a name that no role has ([`AGENT_ROLE`]), which `pg_hba.conf` admits for them alone.
//! Once it is authenticated, the name is replaced by the present one of role OID 10, and this session's cached copies of
//! the role's row say that it may log in and is a superuser. Nothing is written: a renamed role stays renamed, and one
//! that may not log in still cannot be used by anybody else.

use std::ffi::{CStr, c_char, c_int};

use ardent_api::compute::AGENT_ROLE;

use crate::pg;
use crate::report::{Level, Report, SqlState};

/// `STATUS_OK` of the server's headers.
const STATUS_OK: c_int = 0;
/// `BOOTSTRAP_SUPERUSERID`.
const BOOTSTRAP_SUPERUSER: pg::Oid = 10;

static mut NEXT: pg::ClientAuthentication_hook_type = None;
static mut IS_AGENT: bool = false;

/// Puts the hook in.
///
/// # Safety
/// Only from `_PG_init`.
pub unsafe fn install() {
    // SAFETY: nobody else runs yet.
    unsafe {
        NEXT = pg::ClientAuthentication_hook;
        pg::ClientAuthentication_hook = Some(authenticated);
    }
}

/// Whether this session is the agent's or control's own.
pub fn is_agent_session() -> bool {
    // SAFETY: written once, before the session's first command.
    unsafe { (&raw const IS_AGENT).read() }
}

unsafe extern "C-unwind" fn authenticated(port: *mut pg::Port, status: c_int) {
    // SAFETY: Postgres passes its own valid port; the catalog can be read here, as the authentication itself has done.
    unsafe {
        if let Some(next) = (&raw const NEXT).read() {
            next(port, status);
        }
        let name = (*port).user_name;
        if status != STATUS_OK || CStr::from_ptr(name).to_bytes() != AGENT_ROLE.as_bytes() {
            return;
        }
        let real = admit(pg::AUTHOID as c_int, BOOTSTRAP_SUPERUSER as pg::Datum, |role| {
            // The buffer holds a name of the greatest length, so any other fits.
            std::ptr::copy_nonoverlapping((*role).rolname.data.as_ptr(), name, pg::NAMEDATALEN as usize);
        });
        if !real {
            Report::plain(SqlState::CONFIG_FILE_ERROR, format_args!("there is no role with OID {BOOTSTRAP_SUPERUSER}"))
                .raise(Level::Fatal);
        }
        // What follows looks the role up by its name, and that is another cache.
        admit(pg::AUTHNAME as c_int, name as pg::Datum, |_| {});
        set_out_of_reach();
        IS_AGENT = true;
    }
}

/// What the branch's users can arrange for every session, since 17, must not end the agent's: triggers at log-in, and a limit on
/// transactions. Set here and not when connecting, because a server of an older major refuses names that it does not know.
#[cfg(pg_from = "17")]
unsafe fn set_out_of_reach() {
    for (name, value) in [(c"event_triggers", c"off"), (c"transaction_timeout", c"0")] {
        // SAFETY: both are C strings; the session has begun and may set what a superuser may. This source wins over what is
        // stored for databases and roles.
        unsafe { pg::SetConfigOption(name.as_ptr(), value.as_ptr(), pg::PGC_SUSET, pg::PGC_S_OVERRIDE) };
    }
}

#[cfg(not(pg_from = "17"))]
unsafe fn set_out_of_reach() {}

/// Marks this process's cached copy of a role's row as one that may do everything. False: there is no such role.
unsafe fn admit(cache: c_int, key: pg::Datum, also: impl FnOnce(*mut pg::FormData_pg_authid)) -> bool {
    // SAFETY: a row of pg_authid begins with the struct of that name; the cache entry is this process's own memory.
    unsafe {
        let row = pg::SearchSysCache1(cache, key);
        if row.is_null() {
            return false;
        }
        let header = (*row).t_data;
        let role = header.cast::<c_char>().add((*header).t_hoff.into()).cast::<pg::FormData_pg_authid>();
        (*role).rolcanlogin = true;
        (*role).rolsuper = true;
        (*role).rolreplication = true;
        also(role);
        pg::ReleaseSysCache(row);
        true
    }
}
