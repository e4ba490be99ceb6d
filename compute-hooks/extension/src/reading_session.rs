//! Sessions that are held to reading, because they asked for it when they began (`ardent.read_only_session=on`).
//!
//! ```text
//!  statement ──► XactReadOnly forced (policy)          function ──► refused if its effects do not end with the transaction
//!  command ──► refused if it reaches beyond Postgres   commit ──► refused if something was written all the same
//! ```
//!
//! Postgres's read-only transactions stop what writes rows. This stops what they let pass, for superusers too: files and
//! programs, other sessions, the WAL, replication slots, code of languages that may do anything. A session cannot take it back. It
//! is no wall against code that a superuser has loaded before: that holds for a whole branch, at the agent (`policy`).

use std::ffi::{CStr, c_int, c_void};

use crate::agent_login;
use crate::pg;
use crate::report::{Level, Report, SqlState, Text};
use crate::settings;

static mut NEXT: pg::object_access_hook_type = None;

/// Functions that everybody may call, and whose effects outlast a transaction that is rolled back.
const OUTLASTING: &[&CStr] = &[
    c"brin_desummarize_range",
    c"brin_summarize_new_values",
    c"brin_summarize_range",
    c"gin_clean_pending_list",
    c"pg_cancel_backend",
    c"pg_copy_logical_replication_slot",
    c"pg_copy_physical_replication_slot",
    c"pg_create_logical_replication_slot",
    c"pg_create_physical_replication_slot",
    c"pg_drop_replication_slot",
    c"pg_logical_emit_message",
    c"pg_logical_slot_get_binary_changes",
    c"pg_logical_slot_get_changes",
    c"pg_replication_slot_advance",
    c"pg_sync_replication_slots",
    c"pg_terminate_backend",
];

/// Puts the hook in.
///
/// # Safety
/// Only from `_PG_init`.
pub unsafe fn install() {
    // SAFETY: nobody else runs yet.
    unsafe {
        NEXT = pg::object_access_hook;
        pg::object_access_hook = Some(object_access);
    }
}

/// Whether this session only reads. The agent's and control's own never ask for it.
pub fn is_one() -> bool {
    settings::read_only_session() && !agent_login::is_agent_session()
}

/// Before a utility command. Postgres refuses most that change something, as the transaction is read-only.
///
/// # Safety
/// With a valid node, where an error may be raised.
pub unsafe fn before_command(node: *const pg::Node) {
    if !is_one() {
        return;
    }
    // SAFETY: a node's tag says which struct it is.
    unsafe {
        let reaches_beyond = match (*node).type_ {
            pg::T_CopyStmt => {
                let copy = node.cast::<pg::CopyStmt>();
                (*copy).is_program || !(*copy).filename.is_null()
            }
            pg::T_TransactionStmt => matches!(
                (*node.cast::<pg::TransactionStmt>()).kind,
                pg::TRANS_STMT_COMMIT_PREPARED | pg::TRANS_STMT_ROLLBACK_PREPARED | pg::TRANS_STMT_PREPARE
            ),
            pg::T_VacuumStmt
            | pg::T_ReindexStmt
            | pg::T_ClusterStmt
            | pg::T_AlterSystemStmt
            | pg::T_LoadStmt
            | pg::T_NotifyStmt => true,
            _ => false,
        };
        if reaches_beyond {
            refuse(format_args!("this command is refused in a session that only reads"));
        }
    }
}

/// Before a transaction commits that has written something.
///
/// # Safety
/// Where an error may be raised.
pub unsafe fn before_commit() {
    // SAFETY: this process's own variables.
    unsafe {
        if is_one() && pg::GetTopTransactionIdIfAny() != 0 {
            refuse(format_args!("what this transaction wrote is refused in a session that only reads"));
        }
    }
}

unsafe extern "C-unwind" fn object_access(
    access: pg::ObjectAccessType,
    class: pg::Oid,
    object: pg::Oid,
    part: c_int,
    argument: *mut c_void,
) {
    // SAFETY: Postgres's arguments, unchanged; nothing here has a destructor.
    unsafe {
        if let Some(next) = (&raw const NEXT).read() {
            next(access, class, object, part, argument);
        }
        if access == pg::OAT_FUNCTION_EXECUTE && is_one() {
            before_function(object);
        }
    }
}

/// Before a function is run, by whatever calls it.
unsafe fn before_function(function: pg::Oid) {
    // SAFETY: a row of pg_proc begins with the struct of that name; an entry of the cache is held until it is released.
    unsafe {
        let row = pg::SearchSysCache1(pg::PROCOID as c_int, function as pg::Datum);
        if row.is_null() {
            return;
        }
        let header = (*row).t_data;
        let about = header.cast::<u8>().add((*header).t_hoff.into()).cast::<pg::FormData_pg_proc>();
        let name = CStr::from_ptr((*about).proname.data.as_ptr());
        let outlasts = match (*about).prolang as i32 {
            pg::SQLlanguageId => false,
            pg::INTERNALlanguageId | pg::ClanguageId => {
                let is_volatile = (*about).provolatile == pg::PROVOLATILE_VOLATILE as std::ffi::c_char;
                // What not everybody may call reaches further than a transaction: that is why.
                (is_volatile && !is_everybodys(function))
                    || OUTLASTING.contains(&name)
                    || name.to_bytes().starts_with(b"dblink")
            }
            _ => !is_trusted((*about).prolang),
        };
        let name = if outlasts { Text::format(format_args!("{}", name.to_str().unwrap_or("?"))) } else { Text::new() };
        pg::ReleaseSysCache(row);
        if outlasts {
            let name = name.as_c_str().to_str().unwrap_or("?");
            refuse(format_args!("function {name} is refused in a session that only reads"));
        }
    }
}

/// Whether a language keeps its functions inside of the database.
unsafe fn is_trusted(language: pg::Oid) -> bool {
    // SAFETY: as above, for pg_language.
    unsafe {
        let row = pg::SearchSysCache1(pg::LANGOID as c_int, language as pg::Datum);
        if row.is_null() {
            return false;
        }
        let header = (*row).t_data;
        let about = header.cast::<u8>().add((*header).t_hoff.into()).cast::<pg::FormData_pg_language>();
        let trusted = (*about).lanpltrusted;
        pg::ReleaseSysCache(row);
        trusted
    }
}

/// Whether `PUBLIC`, which is role 0 here, may call a function.
unsafe fn is_everybodys(function: pg::Oid) -> bool {
    // SAFETY: looks at catalogs only.
    #[cfg(not(pg_from = "16"))]
    let may = unsafe { pg::pg_proc_aclcheck(function, 0, pg::ACL_EXECUTE as pg::AclMode) };
    // SAFETY: the same.
    #[cfg(pg_from = "16")]
    let may =
        unsafe { pg::object_aclcheck(pg::ProcedureRelationId as pg::Oid, function, 0, pg::ACL_EXECUTE as pg::AclMode) };
    may == pg::ACLCHECK_OK
}

unsafe fn refuse(message: std::fmt::Arguments<'_>) -> ! {
    let report = Report {
        state: SqlState::READ_ONLY_TRANSACTION,
        message: Text::format(message),
        detail: Text::new(),
        hint: Text::format(format_args!(
            "The session was begun with ardent.read_only_session=on, which holds it to reading. Use another one."
        )),
    };
    // SAFETY: nothing in these frames has a destructor.
    unsafe { report.raise(Level::Error) }
}
