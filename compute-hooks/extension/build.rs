//! Generates bindings for the few declarations of the server headers that the library uses, and says to the code which majors'
//! storage manager it is built for: `cfg(pg_from = "17")` holds from 17 on.
//!
//! The major is the feature `pgNN`. Its headers are in the folder that `ARDENT_PG_INCLUDE_<major>` names, or where that major's
//! `pg_config` says: `PG_CONFIG` (a path), else `/usr/lib/postgresql/<major>/bin/pg_config`, else `pg_config` on the path.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bindgen::{Abi, Builder, EnumVariation, MacroTypeVariation, RustEdition};

/// The majors that this library can be built for; each has a feature.
const MAJORS: [u32; 4] = [15, 16, 17, 18];

const FUNCTIONS: &[&str] = &[
    "assign_synchronous_commit",
    "DefineCustomBoolVariable",
    "DefineCustomIntVariable",
    "DefineCustomStringVariable",
    "enable_timeout_after",
    "errcode",
    "errdetail_internal",
    "errfinish",
    "errhint",
    "errmsg_internal",
    "errstart",
    "get_database_oid",
    "get_timeout_active",
    "get_timeout_finish_time",
    "GetConfigOption",
    "GetCurrentStatementStartTimestamp",
    "GetCurrentTimestamp",
    "geterrcode",
    "GetNamedLWLockTranche",
    "GetRelationPath",
    "GetTopTransactionIdIfAny",
    "GetXLogInsertRecPtr",
    "IsTransactionState",
    "LockAcquire",
    "LockRelease",
    "LWLockAcquire",
    "LWLockRelease",
    "MarkGUCPrefixReserved",
    "pfree",
    "ProcessInterrupts",
    "RegisterXactCallback",
    "ReleaseSysCache",
    "RequestNamedLWLockTranche",
    "SearchSysCache1",
    "smgropen",
    "standard_ExecutorRun",
    "standard_ExecutorStart",
    "standard_ProcessUtility",
    "XLogFlush",
    "BuildParamLogString",
    "GetCurrentTransactionNestLevel",
    "get_database_name",
    "GetSessionUserId",
    "GetTopFullTransactionIdIfAny",
    "GetUserId",
    "GetUserNameFromId",
    "on_proc_exit",
    "palloc",
    "cstring_to_text",
    "get_typlen",
    "toast_raw_datum_size",
    "RegisterSubXactCallback",
    "standard_ExecutorFinish",
    "xactGetCommittedChildren",
];

const VARIABLES: &[&str] = &[
    "ACL_EXECUTE",
    "BLCKSZ",
    "ClanguageId",
    "ClientAuthentication_hook",
    "cluster_name",
    "CritSectionCount",
    "ERROR",
    "LOG",
    "error_context_stack",
    "ExecutorRun_hook",
    "ExecutorStart_hook",
    "FATAL",
    "FLOAT8PASSBYVAL",
    "FUNC_MAX_ARGS",
    "huge_pages",
    "GUC_(DISALLOW_IN_FILE|NO_SHOW_ALL|NOT_IN_SAMPLE|UNIT_MB|UNIT_MS)",
    "INDEX_MAX_KEYS",
    "INTERNALlanguageId",
    "IsUnderPostmaster",
    "InterruptHoldoffCount",
    "InterruptPending",
    "my_wait_event_info",
    "CURSOR_OPT_HOLD",
    "DEFAULT_LOCKMETHOD",
    "MyBackendType",
    "MyDatabaseId",
    "ShareLock",
    "MyProcPid",
    "NAMEDATALEN",
    "object_access_hook",
    "PG_VERSION_NUM",
    "postmaster_alive_fds",
    "process_shared_preload_libraries_in_progress",
    "ProcedureRelationId",
    "ProcessUtility_hook",
    "PROVOLATILE_VOLATILE",
    "QueryCancelHoldoffCount",
    "QueryCancelPending",
    "RELSEG_SIZE",
    "shmem_request_hook",
    "shmem_startup_hook",
    "SQLlanguageId",
    "StatementTimeout",
    "SYNC_REP_WAIT_FLUSH",
    "SyncRepStandbyNames",
    "synchronous_commit",
    "WalSndCtl",
    "XactLastRecEnd",
    "XactReadOnly",
    "ActivePortal",
    "application_name",
    "BackgroundWorkerList",
    "debug_query_string",
    "emit_log_hook",
    "ExecutorFinish_hook",
    "MyProcPort",
    "MyStartTimestamp",
    "ParallelWorkerNumber",
    "ProcLastRecPtr",
    "XactLastCommitEnd",
];

const TYPES: &[&str] = &[
    "AclMode",
    "AclResult",
    "AlterDatabaseStmt",
    "BackendType",
    "ClientAuthentication_hook_type",
    "CmdType",
    "CopyStmt",
    "CreatedbStmt",
    "ClosePortalStmt",
    "DeclareCursorStmt",
    "DefElem",
    "DiscardMode",
    "DiscardStmt",
    "LOCKTAG",
    "LockTagType",
    "UnlistenStmt",
    "DropdbStmt",
    "ErrorContextCallback",
    "ExecutorRun_hook_type",
    "ExecutorStart_hook_type",
    "ForkNumber",
    "FormData_pg_authid",
    "FormData_pg_language",
    "FormData_pg_proc",
    "HugePagesType",
    "List",
    "ListCell",
    "LWLockMode",
    "LWLockPadded",
    "Node",
    "NodeTag",
    "object_access_hook_type",
    "ObjectAccessType",
    "ObjectType",
    "Pg_magic_struct",
    "PlannedStmt",
    "Port",
    "ProcessUtility_hook_type",
    "QueryDesc",
    "RenameStmt",
    "shmem_request_hook_type",
    "shmem_startup_hook_type",
    "SMgrRelation",
    "String",
    "SysCacheIdentifier",
    "TimeoutId",
    "TransactionStmt",
    "TransactionStmtKind",
    "RegisteredBgWorker",
    "SyncCommitLevel",
    "XactEvent",
    "emit_log_hook_type",
    "ErrorData",
    "ExecutorFinish_hook_type",
    "FullTransactionId",
    "ParamExternData",
    "ParamListInfoData",
    "SubXactEvent",
];

/// Declarations that only some majors have.
const ONLY_FROM: &[(u32, &[&str])] = &[
    (16, &["object_aclcheck"]),
    (17, &["SetConfigOption", "GucContext", "GucSource"]),
    (18, &["pgaio_submit_staged", "PgAioHandle", "Pg_abi_values"]),
];

fn main() {
    println!("cargo:rerun-if-changed=wrapper.h");
    println!("cargo:rerun-if-env-changed=PG_CONFIG");
    let major = major();
    for from in MAJORS.into_iter().filter(|from| *from > MAJORS[0] && *from <= major) {
        println!("cargo:rustc-cfg=pg_from=\"{from}\"");
    }
    let include = include_folder(major);
    let config = include.join("pg_config.h");
    println!("cargo:rerun-if-changed={}", config.display());
    let text = fs::read_to_string(&config).unwrap_or_else(|error| {
        panic!("{}: {error}: install postgresql-server-dev-{major}, or see build.sh", config.display())
    });
    assert!(
        text.contains(&format!("#define PG_MAJORVERSION \"{major}\"")),
        "{} is of another major than {major}",
        config.display()
    );
    let mut builder = Builder::default()
        .header("wrapper.h")
        .clang_arg(format!("-I{}", include.display()))
        .clang_args(["-I/usr/include/postgresql", "-D_GNU_SOURCE"])
        .override_abi(Abi::CUnwind, ".*")
        .default_enum_style(EnumVariation::Consts)
        .default_macro_constant_type(MacroTypeVariation::Signed)
        .prepend_enum_name(false)
        .derive_default(false)
        .merge_extern_blocks(true)
        .rust_edition(RustEdition::Edition2024)
        .wrap_unsafe_ops(true)
        .layout_tests(true);
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in VARIABLES {
        builder = builder.allowlist_var(name);
    }
    let locator = if major == 15 { "RelFileNodeBackend" } else { "RelFileLocatorBackend" };
    for name in TYPES.iter().chain([&locator]) {
        builder = builder.allowlist_type(name);
    }
    if major == 15 {
        builder = builder.allowlist_function("pg_proc_aclcheck");
    }
    for name in ONLY_FROM.iter().filter(|(from, _)| *from <= major).flat_map(|(_, names)| *names) {
        builder = builder.allowlist_function(name).allowlist_type(name);
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    let bindings = builder.generate().unwrap_or_else(|error| {
        panic!(
            "cannot read the server headers in {} ({error}): install postgresql-server-dev-{major} and libclang",
            include.display()
        )
    });
    bindings.write_to_file(out).expect("OUT_DIR can be written");
}

/// The one major that is asked for.
fn major() -> u32 {
    let asked: Vec<u32> =
        MAJORS.into_iter().filter(|major| env::var_os(format!("CARGO_FEATURE_PG{major}")).is_some()).collect();
    match asked[..] {
        [major] => major,
        _ => panic!("exactly one of the features pg15, pg16, pg17 and pg18 must be on, not {asked:?}"),
    }
}

fn include_folder(major: u32) -> PathBuf {
    let variable = format!("ARDENT_PG_INCLUDE_{major}");
    println!("cargo:rerun-if-env-changed={variable}");
    if let Some(folder) = env::var_os(&variable) {
        return folder.into();
    }
    let pg_config = find_pg_config(major);
    let output = Command::new(&pg_config).arg("--includedir-server").output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "cannot run {} ({error}): install postgresql-server-dev-{major}, or set PG_CONFIG or {variable}",
            pg_config.display()
        )
    });
    String::from_utf8(output.stdout).expect("pg_config prints text").trim().into()
}

fn find_pg_config(major: u32) -> PathBuf {
    if let Some(path) = env::var_os("PG_CONFIG") {
        return path.into();
    }
    let debian = Path::new("/usr/lib/postgresql").join(major.to_string()).join("bin/pg_config");
    if debian.exists() { debian } else { "pg_config".into() }
}
