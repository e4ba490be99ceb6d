//! Commands that go around the storage manager.
//!
//! `CREATE DATABASE ... STRATEGY file_copy` and `ALTER DATABASE ... SET TABLESPACE` copy files, holes included, and would succeed in
//! silence: what the source lacks is fetched first. `DROP DATABASE` removes a folder without a call for each relation.

use std::ffi::{CStr, c_char};

use crate::commit_guard;
use crate::filler;
use crate::pg;
use crate::policy;
use crate::roles;
use crate::session_state;
use crate::storage_hooks::{self, Storage};

static mut NEXT: pg::ProcessUtility_hook_type = None;

/// Puts the hook in.
///
/// # Safety
/// Only from `_PG_init`.
pub unsafe fn install() {
    // SAFETY: nobody else runs yet.
    unsafe {
        NEXT = pg::ProcessUtility_hook;
        pg::ProcessUtility_hook = Some(process_utility);
    }
}

#[allow(clippy::too_many_arguments, reason = "the signature is Postgres's")]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg::ProcessUtilityContext,
    parameters: pg::ParamListInfo,
    environment: *mut pg::QueryEnvironment,
    destination: *mut pg::DestReceiver,
    completion: *mut pg::QueryCompletion,
) {
    // SAFETY: Postgres passes valid nodes; nothing here has a destructor.
    unsafe {
        let node = (*statement).utilityStmt;
        policy::before_command(node);
        roles::look_at(node);
        let mut note = policy::Note::new();
        note.enter();
        let dropped = before(node, context);
        let next = (&raw const NEXT).read().unwrap_or(pg::standard_ProcessUtility);
        next(statement, text, read_only_tree, context, parameters, environment, destination, completion);
        note.leave();
        session_state::after_command(node);
        if let (Some(database), Some(storage)) = (dropped, storage_hooks::storage()) {
            storage_hooks::forget_database(storage, database);
        }
    }
}

/// What has to be done first. Gives the database that the command is going to drop.
unsafe fn before(node: *mut pg::Node, context: pg::ProcessUtilityContext) -> Option<pg::Oid> {
    // SAFETY: a node's tag says which struct it is.
    unsafe {
        match (*node).type_ {
            pg::T_TransactionStmt => {
                let kind = (*node.cast::<pg::TransactionStmt>()).kind;
                let second_phase = matches!(kind, pg::TRANS_STMT_COMMIT_PREPARED | pg::TRANS_STMT_ROLLBACK_PREPARED);
                // Anywhere else it is an error, which a function could catch and go on, deaf to cancellation.
                if second_phase && context == pg::PROCESS_UTILITY_TOPLEVEL {
                    commit_guard::hold();
                }
            }
            pg::T_CreatedbStmt => {
                let options = (*node.cast::<pg::CreatedbStmt>()).options;
                if option(options, c"strategy").is_some_and(|strategy| is_option_value(strategy, c"file_copy")) {
                    let template = option(options, c"template").unwrap_or(c"template1".as_ptr());
                    fill_source(storage_hooks::storage(), template);
                }
            }
            pg::T_AlterDatabaseStmt => {
                let command = node.cast::<pg::AlterDatabaseStmt>();
                if option((*command).options, c"tablespace").is_some() {
                    fill_source(storage_hooks::storage(), (*command).dbname);
                }
            }
            pg::T_DropdbStmt => {
                let database = pg::get_database_oid((*node.cast::<pg::DropdbStmt>()).dbname, true);
                return (database != 0).then_some(database);
            }
            _ => {}
        }
        None
    }
}

/// Fetches what the database lacks; a database that does not exist is Postgres's error to report.
unsafe fn fill_source(storage: Option<&'static Storage>, name: *const c_char) {
    let Some(storage) = storage else { return };
    // SAFETY: a valid C string; the look-up needs a transaction, and utility commands have one.
    unsafe {
        let database = pg::get_database_oid(name, true);
        if database != 0 {
            filler::fill_database(storage, database);
        }
    }
}

/// The string value of an option in a list of `DefElem`s. The last one wins, as a repeated one is an error anyway.
unsafe fn option(options: *mut pg::List, name: &CStr) -> Option<*const c_char> {
    if options.is_null() {
        return None;
    }
    let mut found = None;
    // SAFETY: the grammar makes lists of DefElem here, with String or no arguments for the options asked for.
    unsafe {
        for at in 0..(*options).length as usize {
            let element = (*(*options).elements.add(at)).ptr_value.cast::<pg::DefElem>();
            let argument = (*element).arg;
            if CStr::from_ptr((*element).defname) == name && !argument.is_null() && (*argument).type_ == pg::T_String {
                found = Some((*argument.cast::<pg::String>()).sval.cast_const());
            }
        }
    }
    found
}

unsafe fn is_option_value(value: *const c_char, expected: &CStr) -> bool {
    // SAFETY: a valid C string.
    unsafe { CStr::from_ptr(value) }.to_bytes().eq_ignore_ascii_case(expected.to_bytes())
}
