//! The settings that a compute's Postgres runs with.
//!
//! Three layers, the later winning: our defaults and the caller's wishes in `postgresql.conf`; what a session may set
//! for itself; the guards on the postmaster's command line, which neither `ALTER SYSTEM` nor a configuration file can
//! override.

use std::collections::BTreeMap;
use std::path::Path;

use ardent_pg_format::PgMajor;
use ardent_types::Lsn;

use ardent_api::compute::AGENT_ROLE;

use crate::layout::{BELL_SOCKET, PAGE_SOCKET, PRESENCE_MAP, ROLES_SOCKET, View};

/// What the source server's control file says about settings that a compute must not undercut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// `wal_level` is `logical`.
    pub wal_level_logical: bool,
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// Everything that settings are made from.
#[derive(Debug)]
pub(crate) struct SettingsInput<'a> {
    pub(crate) major: PgMajor,
    pub(crate) branch: &'a str,
    pub(crate) view: &'a View,
    pub(crate) limits: &'a SourceLimits,
    /// The caller's wishes.
    pub(crate) wishes: &'a BTreeMap<String, String>,
    /// Those of [`NEW_IN_MINORS`] that the server does not know.
    pub(crate) unknown: &'a [&'static str],
    /// Libraries of the source that exist here.
    pub(crate) libraries: Vec<String>,
    /// What sessions run is recorded.
    pub(crate) records_statements: bool,
    /// Nothing is changed on the branch, so there is nothing to vacuum.
    pub(crate) read_only: bool,
    pub(crate) port: u16,
    /// What absent pages are read at.
    pub(crate) base_lsn: Lsn,
}

/// The name that the agent has as a standby, and of its slot.
pub(crate) const STANDBY_NAME: &str = "ardent";

/// Relations stop growing while more WAL than this is on no quorum: what a stalled quorum costs in local disk.
pub(crate) const UNACKNOWLEDGED_WAL_MAX_MB: u64 = 64;

/// Settings of a foreign server that mean nothing here, or would undo what the agent arranges. Prefixes end in `*`.
const NOT_TAKEN: [&str; 26] = [
    "archive_*",
    "recovery_*",
    "primary_*",
    "restore_command",
    "promote_trigger_file",
    "ssl*",
    "krb_*",
    "listen_addresses",
    "port",
    "unix_*",
    "bonjour*",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "include*",
    "log_destination",
    "log_directory",
    "log_filename",
    "logging_collector",
    "log_file_mode",
    "syslog_*",
    "event_source",
    "stats_temp_directory",
    "data_sync_retry",
];

/// Settings that came with a minor release: a server that is older than the source would not start with them.
pub(crate) const NEW_IN_MINORS: [&str; 1] = ["output_plugin_libraries"];

/// `postgresql.conf`.
pub(crate) fn configuration_file(input: &SettingsInput<'_>) -> String {
    let defaults = [
        // What Postgres itself would take. Memory is used as pages are: a compute that does little holds little of it.
        ("shared_buffers", "128MB"),
        ("wal_buffers", "4MB"),
        // Lean: a compute is one of many on its host.
        ("min_wal_size", "32MB"),
        // The local disk is a cache: nothing is gained by writing it back early or by writing zeros first.
        ("wal_init_zero", "off"),
        ("checkpoint_flush_after", "0"),
        ("bgwriter_flush_after", "0"),
        ("log_line_prefix", "%m [%p] "),
        ("max_replication_slots", "10"),
    ];
    let defaults = defaults.into_iter().filter(|(name, _)| !input.wishes.contains_key(*name));
    let wishes = input.wishes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut text = String::from("# Written by the agent at every cold start. The guards are on the command line.\n");
    let taken = wishes.filter(|(name, _)| is_taken(name) && !input.unknown.contains(name));
    for (name, value) in defaults.chain(taken) {
        text.push_str(&format!("{name} = {}\n", quoted(value)));
    }
    text
}

/// What of a `postgresql.auto.conf` a new data directory takes over: all that `ALTER SYSTEM` wrote but the settings that mean nothing
/// here. The guards are on the command line, which it cannot override.
pub(crate) fn kept_settings(auto_conf: &str) -> String {
    let kept = |line: &&str| {
        let name = line.split('=').next().unwrap_or_default().trim();
        line.starts_with('#') || is_taken(name)
    };
    auto_conf.lines().filter(kept).flat_map(|line| [line, "\n"]).collect()
}

/// The postmaster's arguments.
pub(crate) fn postmaster_arguments(input: &SettingsInput<'_>) -> Vec<String> {
    let mut arguments = vec!["-D".to_owned(), text(&input.view.data)];
    for (name, value) in guards(input) {
        arguments.push("-c".to_owned());
        arguments.push(format!("{name}={value}"));
    }
    arguments
}

fn guards(input: &SettingsInput<'_>) -> Vec<(&'static str, String)> {
    let limits = input.limits;
    let at_least = |name: &str, source: u32, own: u32| {
        let wished = input.wishes.get(name).and_then(|value| value.trim().parse().ok());
        wished.unwrap_or(own).max(source).to_string()
    };
    let logical = limits.wal_level_logical || input.wishes.get("wal_level").is_some_and(|level| level == "logical");
    let on_off = |on: bool| if on { "on" } else { "off" }.to_owned();
    let track_timestamps = limits.track_commit_timestamp
        || input.wishes.get("track_commit_timestamp").is_some_and(|value| value == "on" || value == "true");
    let libraries: Vec<String> =
        std::iter::once(text(&input.view.library)).chain(input.libraries.iter().cloned()).collect();
    let mut guards = vec![
        // A commit is acknowledged when the agent, that is a quorum, has it.
        ("synchronous_standby_names", STANDBY_NAME.to_owned()),
        ("synchronous_commit", "on".to_owned()),
        ("max_slot_wal_keep_size", "-1".to_owned()),
        ("wal_level", if logical { "logical" } else { "replica" }.to_owned()),
        // No local durability and no local recovery.
        ("fsync", "off".to_owned()),
        ("full_page_writes", "off".to_owned()),
        ("wal_log_hints", "off".to_owned()),
        ("restart_after_crash", "off".to_owned()),
        // A branch does nothing to the outside on its own.
        ("archive_mode", "off".to_owned()),
        ("archive_command", String::new()),
        ("max_logical_replication_workers", "0".to_owned()),
        ("listen_addresses", String::new()),
        ("ssl", "off".to_owned()),
        ("unix_socket_directories", text(&input.view.run)),
        ("port", input.port.to_string()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("cluster_name", input.branch.to_owned()),
        ("shared_preload_libraries", libraries.join(",")),
        ("max_connections", at_least("max_connections", limits.max_connections, 100)),
        ("max_worker_processes", at_least("max_worker_processes", limits.max_worker_processes, 8)),
        ("max_wal_senders", at_least("max_wal_senders", limits.max_wal_senders, 10)),
        ("max_prepared_transactions", at_least("max_prepared_transactions", limits.max_prepared_transactions, 0)),
        ("max_locks_per_transaction", at_least("max_locks_per_transaction", limits.max_locks_per_transaction, 64)),
        ("track_commit_timestamp", on_off(track_timestamps)),
        ("ardent.presence_map", text(&input.view.data.join(PRESENCE_MAP))),
        ("ardent.agent_socket", text(&input.view.door.join(PAGE_SOCKET))),
        ("ardent.base_lsn", input.base_lsn.to_string()),
        ("ardent.policy", text(&input.view.policy)),
        ("ardent.roles_socket", text(&input.view.door.join(ROLES_SOCKET))),
        ("ardent.unacknowledged_wal_max", format!("{UNACKNOWLEDGED_WAL_MAX_MB}MB")),
    ];
    if input.records_statements {
        guards.push(("ardent.statement_rings", text(&input.view.rings)));
        guards.push(("ardent.statement_bell", text(&input.view.door.join(BELL_SOCKET))));
    }
    if input.major >= PgMajor::V17 {
        // Nobody takes incremental backups of a compute, and a summarizer keeps a server that is told to stop waiting for it.
        guards.push(("summarize_wal", "off".to_owned()));
    }
    if input.major >= PgMajor::V18 {
        // What nobody reads for a while is still the agent's to read.
        guards.push(("idle_replication_slot_timeout", "0".to_owned()));
        // The sandbox has no io_uring (see `socket_filter`): a server that is told to use it would not start.
        let is_sync = input.wishes.get("io_method").is_some_and(|method| method == "sync");
        guards.push(("io_method", if is_sync { "sync" } else { "worker" }.to_owned()));
    }
    if input.read_only {
        guards.push(("default_transaction_read_only", "on".to_owned()));
        guards.push(("autovacuum", "off".to_owned()));
    }
    guards
}

/// How many processes these settings call for.
pub(crate) fn processes(arguments: &[String]) -> u64 {
    let counted = ["max_connections=", "max_worker_processes=", "max_wal_senders="];
    let numbers = arguments
        .iter()
        .filter_map(|argument| counted.iter().find_map(|name| argument.strip_prefix(name)?.parse::<u64>().ok()));
    numbers.sum()
}

/// The libraries named in a `shared_preload_libraries` value.
pub(crate) fn library_list(value: &str) -> Vec<String> {
    let names = value.split(',').map(|name| name.trim().trim_matches('"').to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// `pg_hba.conf`: everybody who can reach the socket may be any role (the socket's folder is private, the proxy
/// authenticates), but only the agent may replicate, and be [`AGENT_ROLE`].
pub(crate) fn hba_file(agent_is_root: bool) -> String {
    // Nobody inside is root, so the operating system tells a root agent from everybody else.
    let method = if agent_is_root { "peer map=agent" } else { "trust" };
    format!(
        "# Written by the agent.\nlocal replication,all \"{AGENT_ROLE}\" {method}\nlocal replication all reject\nlocal all all trust\n"
    )
}

/// `pg_ident.conf`: root outside is the agent.
pub(crate) fn ident_file() -> String {
    format!("# Written by the agent.\nagent root \"{AGENT_ROLE}\"\n")
}

fn is_taken(name: &str) -> bool {
    let well_formed = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
        && !name.starts_with("ardent.");
    let refused = NOT_TAKEN.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *pattern,
    });
    well_formed && !refused && name != "shared_preload_libraries"
}

fn quoted(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n");
    format!("'{escaped}'")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> SourceLimits {
        SourceLimits {
            wal_level_logical: false,
            max_connections: 250,
            max_worker_processes: 4,
            max_wal_senders: 3,
            max_prepared_transactions: 7,
            max_locks_per_transaction: 64,
            track_commit_timestamp: true,
        }
    }

    fn with_wishes(wishes: &[(&str, &str)], check: impl FnOnce(String, Vec<String>)) {
        with_wishes_on(PgMajor::V15, wishes, check);
    }

    fn with_wishes_on(major: PgMajor, wishes: &[(&str, &str)], check: impl FnOnce(String, Vec<String>)) {
        let view = View {
            data: "/ardent/data".into(),
            run: "/ardent/run".into(),
            door: "/ardent/door".into(),
            policy: "/ardent/policy".into(),
            rings: "/ardent/statements".into(),
            library: "/ardent/lib/ardent_compute.so".into(),
        };
        let wishes = wishes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let input = SettingsInput {
            major,
            branch: "dev",
            view: &view,
            limits: &limits(),
            wishes: &wishes,
            unknown: &["output_plugin_libraries"],
            libraries: vec!["pg_stat_statements".to_owned()],
            records_statements: true,
            read_only: false,
            port: 5432,
            base_lsn: Lsn::new(0x0100_0028),
        };
        check(configuration_file(&input), postmaster_arguments(&input));
    }

    #[test]
    fn a_server_is_not_given_settings_that_it_is_too_old_for() {
        with_wishes(&[("output_plugin_libraries", "wal2json"), ("work_mem", "5MB")], |file, _| {
            assert!(file.contains("work_mem = '5MB'") && !file.contains("output_plugin"), "{file}");
        });
    }

    #[test]
    fn no_server_is_told_to_use_io_uring() {
        for (wish, method) in [("io_uring", "worker"), ("worker", "worker"), ("sync", "sync")] {
            with_wishes_on(PgMajor::V18, &[("io_method", wish)], |_, arguments| {
                assert!(arguments.contains(&format!("io_method={method}")), "{arguments:?}");
            });
        }
        // Earlier ones do not know the setting.
        with_wishes_on(PgMajor::V17, &[], |_, arguments| {
            assert!(!arguments.iter().any(|argument| argument.starts_with("io_method")), "{arguments:?}");
        });
    }

    #[test]
    fn no_server_summarizes_its_wal() {
        let summarizes =
            |arguments: Vec<String>| arguments.iter().find_map(|a| a.strip_prefix("summarize_wal=").map(str::to_owned));
        for (major, expect) in [(PgMajor::V16, None), (PgMajor::V17, Some("off")), (PgMajor::V18, Some("off"))] {
            with_wishes_on(major, &[("summarize_wal", "on")], |_, arguments| {
                assert_eq!(summarizes(arguments).as_deref(), expect, "{major:?}");
            });
        }
    }

    #[test]
    fn guards_win_over_wishes_and_limits_are_never_undercut() {
        let wishes = [
            ("fsync", "on"),
            ("synchronous_standby_names", ""),
            ("max_connections", "20"),
            ("max_prepared_transactions", "9"),
            ("wal_level", "minimal"),
        ];
        with_wishes(&wishes, |_, arguments| {
            let has = |argument: &str| arguments.iter().any(|given| given == argument);
            assert!(has("fsync=off") && has("synchronous_standby_names=ardent") && has("wal_level=replica"));
            assert!(has("max_connections=250") && has("max_prepared_transactions=9"));
            assert!(has("track_commit_timestamp=on") && has("restart_after_crash=off"));
            assert!(
                has("ardent.statement_rings=/ardent/statements") && has("ardent.statement_bell=/ardent/door/bell.sock")
            );
            assert!(has("shared_preload_libraries=/ardent/lib/ardent_compute.so,pg_stat_statements"));
        });
    }

    #[test]
    fn wishes_are_quoted_and_foreign_ones_left_out() {
        let wishes = [
            ("work_mem", "5MB"),
            ("search_path", "\"a\\b\", o'x"),
            ("archive_command", "rm -rf"),
            ("ssl_cert_file", "x"),
            ("bad name\n", "x"),
            ("shared_buffers", "64MB"),
            ("ardent.agent_socket", "/tmp/x"),
        ];
        with_wishes(&wishes, |file, _| {
            assert!(file.contains("work_mem = '5MB'\n"));
            assert!(file.contains("search_path = '\"a\\\\b\", o''x'\n"));
            assert!(file.contains("shared_buffers = '64MB'\n") && !file.contains("128MB"));
            for left_out in ["archive_command", "ssl_cert_file", "bad name", "agent_socket"] {
                assert!(!file.contains(left_out), "{left_out} is in:\n{file}");
            }
        });
    }

    #[test]
    fn what_was_set_by_alter_system_is_kept_but_for_what_means_nothing_here() {
        let text = "# Do not edit\nwork_mem = '5MB'\nlisten_addresses = '*'\nssl = 'on'\nardent.policy = ''\nauto_explain.log_min_duration = '1s'\n";
        let kept = "# Do not edit\nwork_mem = '5MB'\nauto_explain.log_min_duration = '1s'\n";
        assert_eq!(kept_settings(text), kept);
    }

    #[test]
    fn library_lists_are_taken_apart() {
        assert_eq!(library_list("pg_stat_statements, \"auto_explain\",,"), ["pg_stat_statements", "auto_explain"]);
        assert!(library_list("").is_empty());
    }
}
