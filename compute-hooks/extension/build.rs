//! Generates bindings for the few declarations of the server headers that the library uses.
//!
//! Which server: `PG_CONFIG` (a path), else `/usr/lib/postgresql/15/bin/pg_config`, else `pg_config` on the path.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use bindgen::{Abi, Builder, EnumVariation, MacroTypeVariation, RustEdition};

const MAJOR: &str = "15";

const FUNCTIONS: &[&str] = &[
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
];

const VARIABLES: &[&str] = &[
    "BLCKSZ",
    "ClientAuthentication_hook",
    "cluster_name",
    "CritSectionCount",
    "ERROR",
    "error_context_stack",
    "ExecutorRun_hook",
    "ExecutorStart_hook",
    "FATAL",
    "FLOAT8PASSBYVAL",
    "FUNC_MAX_ARGS",
    "GUC_(DISALLOW_IN_FILE|NO_SHOW_ALL|NOT_IN_SAMPLE|UNIT_MB|UNIT_MS)",
    "INDEX_MAX_KEYS",
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
    "PG_VERSION_NUM",
    "postmaster_alive_fds",
    "process_shared_preload_libraries_in_progress",
    "ProcessUtility_hook",
    "QueryCancelHoldoffCount",
    "QueryCancelPending",
    "RELSEG_SIZE",
    "shmem_request_hook",
    "shmem_startup_hook",
    "StatementTimeout",
    "SYNC_REP_WAIT_FLUSH",
    "SyncRepStandbyNames",
    "WalSndCtl",
    "XactLastRecEnd",
    "XactReadOnly",
];

const TYPES: &[&str] = &[
    "AlterDatabaseStmt",
    "BackendType",
    "ClientAuthentication_hook_type",
    "CmdType",
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
    "List",
    "ListCell",
    "LWLockMode",
    "LWLockPadded",
    "Node",
    "NodeTag",
    "ObjectType",
    "Pg_magic_struct",
    "PlannedStmt",
    "Port",
    "ProcessUtility_hook_type",
    "QueryDesc",
    "RelFileNodeBackend",
    "RenameStmt",
    "shmem_request_hook_type",
    "shmem_startup_hook_type",
    "SMgrRelation",
    "String",
    "SysCacheIdentifier",
    "TimeoutId",
    "TransactionStmt",
    "TransactionStmtKind",
    "XactEvent",
];

fn main() {
    println!("cargo:rerun-if-changed=wrapper.h");
    println!("cargo:rerun-if-env-changed=PG_CONFIG");
    let pg_config = find_pg_config();
    let version = ask(&pg_config, "--version");
    assert!(
        version.starts_with(&format!("PostgreSQL {MAJOR}.")),
        "{} is of {version}; this build is for Postgres {MAJOR}: name that major's pg_config in PG_CONFIG",
        pg_config.display()
    );
    let include = ask(&pg_config, "--includedir-server");
    println!("cargo:rerun-if-changed={include}/pg_config.h");
    let mut builder = Builder::default()
        .header("wrapper.h")
        .clang_arg(format!("-I{include}"))
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
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    let bindings = builder.generate().unwrap_or_else(|error| {
        panic!(
            "cannot read the server headers in {include} ({error}): install postgresql-server-dev-{MAJOR} and libclang"
        )
    });
    bindings.write_to_file(out).expect("OUT_DIR can be written");
}

fn find_pg_config() -> PathBuf {
    if let Some(path) = env::var_os("PG_CONFIG") {
        return path.into();
    }
    let debian = Path::new("/usr/lib/postgresql").join(MAJOR).join("bin/pg_config");
    if debian.exists() { debian } else { "pg_config".into() }
}

fn ask(pg_config: &Path, what: &str) -> String {
    let output = Command::new(pg_config).arg(what).output();
    let output = output.unwrap_or_else(|error| {
        panic!("cannot run {} ({error}): install postgresql-server-dev-{MAJOR} or set PG_CONFIG", pg_config.display())
    });
    String::from_utf8(output.stdout).expect("pg_config prints text").trim().to_owned()
}
