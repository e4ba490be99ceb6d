//! What production lacks, before anything is stored. Each check that fails carries what mends it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ardent_api::control::{CheckOutcome, PreflightCheck};
use ardent_pg_format::PgMajor;
use ardent_pg_wire::{ConnectConfig, ConnectMode, Connection, QueryResult, WireError};

use crate::collations;
use crate::error::ConnectorError;

/// What the host where branches run has, as far as preflight compares it.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// The majors whose server programs are installed; empty: not known.
    pub majors: BTreeMap<u32, MajorFacts>,
    /// Version of the C library, which orders texts: `2.36`; `None`: not known.
    pub libc_version: Option<String>,
    /// Locales that exist, normalised as [`normalize_locale`] does; `None`: not known.
    pub locales: Option<Vec<String>>,
}

/// What the host has of one major.
#[derive(Clone, Debug)]
pub struct MajorFacts {
    /// The folder of its server programs; `None`: not known.
    pub bin_dir: Option<PathBuf>,
    /// Whether there is a library for its computes to load.
    pub compute_library: bool,
    /// Libraries in the server's library folder, without `.so`; `None`: not known.
    pub libraries: Option<Vec<String>>,
}

/// Looks at a server that may become a source. Failing checks are part of the answer; an error means that it could not be looked at.
pub async fn preflight(url: &str, host: &HostFacts) -> Result<Vec<PreflightCheck>, ConnectorError> {
    let config = ConnectConfig::parse(url)?.with_application_name("ardent");
    let mut sql = Connection::connect(&config, ConnectMode::Sql).await?;
    let mut checks = Checks(Vec::new());
    let facts = sql.query(FACTS).await?;
    server(&mut checks, &facts, host);
    wal(&mut checks, &facts);
    privileges(&mut checks, &facts, &config).await;
    slots(&mut checks, &facts);
    tablespaces(&mut checks, &sql.query(TABLESPACES).await?);
    // Hidden from roles that may not read all settings.
    let preload = facts.value("shared_preload_libraries");
    let role = facts.value("me_quoted").unwrap_or_default();
    let here = host.majors.get(&major(&facts)).and_then(|here| here.libraries.as_deref());
    preloaded(&mut checks, preload, here, role);
    libraries(&mut checks, &mut sql, here).await?;
    locales(&mut checks, &sql.query(LOCALES).await?, host);
    let bin_dir = host.majors.get(&major(&facts)).and_then(|here| here.bin_dir.as_deref());
    collations::check(&mut checks, &config, host, bin_dir).await?;
    checksums_and_role(&mut checks, &facts);
    Ok(checks.0)
}

pub(crate) const FACTS: &str = "
    select current_setting('server_version_num') as version_num, current_setting('server_version') as version, version() as build,
        current_setting('block_size') as block_size, current_setting('wal_block_size') as wal_block_size,
        current_setting('segment_size') as segment_size, pg_is_in_recovery() as standby,
        current_setting('wal_level') as wal_level, current_setting('fsync') as fsync,
        current_setting('full_page_writes') as full_page_writes,
        current_setting('max_wal_senders')::int as senders,
        (select count(*) from pg_stat_replication) as senders_used,
        current_setting('max_replication_slots')::int as slots,
        (select count(*) from pg_replication_slots) as slots_used,
        (select setting::bigint from pg_settings where name = 'max_slot_wal_keep_size') as keep_mb,
        current_setting('allow_alter_system', true) as alter_system,
        current_user as me, quote_ident(current_user) as me_quoted,
        (select rolsuper or rolreplication from pg_roles where rolname = current_user) as replication,
        (select rolname from pg_roles where oid = 10) as superuser,
        current_setting('data_checksums') as data_checksums,
        (select setting from pg_settings where name = 'shared_preload_libraries') as shared_preload_libraries";

const TABLESPACES: &str =
    "select string_agg(spcname, ', ' order by spcname) as names from pg_tablespace where oid not in (1663, 1664)";

pub(crate) const LOCALES: &str = "
    select distinct datcollate as collate, datctype as ctype from pg_database where datallowconn";

#[derive(Default)]
pub(crate) struct Checks(Vec<PreflightCheck>);

impl Checks {
    pub(crate) fn into_list(self) -> Vec<PreflightCheck> {
        self.0
    }

    pub(crate) fn add(&mut self, name: &str, outcome: CheckOutcome, message: impl Into<String>, fix: Option<String>) {
        self.0.push(PreflightCheck { name: name.to_owned(), outcome, message: message.into(), fix });
    }

    /// A check that is fine or fails.
    pub(crate) fn require(
        &mut self,
        name: &str,
        fine: bool,
        good: impl Into<String>,
        bad: impl Into<String>,
        fix: Option<String>,
    ) {
        if fine {
            self.add(name, CheckOutcome::Ok, good, None);
        } else {
            self.add(name, CheckOutcome::Failed, bad, fix);
        }
    }

    /// A check that is fine or has a consequence.
    pub(crate) fn warn(
        &mut self,
        name: &str,
        fine: bool,
        good: impl Into<String>,
        bad: impl Into<String>,
        fix: Option<String>,
    ) {
        let (outcome, message, fix) =
            if fine { (CheckOutcome::Ok, good.into(), None) } else { (CheckOutcome::Warning, bad.into(), fix) };
        self.add(name, outcome, message, fix);
    }
}

pub(crate) fn number(facts: &QueryResult, name: &str) -> i64 {
    facts.value(name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(crate) fn major(facts: &QueryResult) -> u32 {
    u32::try_from(number(facts, "version_num") / 10_000).unwrap_or(0)
}

/// When a server takes a changed setting over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TakenOver {
    WhenReloaded,
    AtStart,
}

/// What changes a setting of the server: SQL, or a line of its configuration file where SQL may not (`allow_alter_system`, since 17).
pub(crate) fn change_setting(facts: &QueryResult, setting: &str, taken_over: TakenOver) -> String {
    let then = match taken_over {
        TakenOver::WhenReloaded => "select pg_reload_conf()",
        TakenOver::AtStart => "-- then restart",
    };
    if facts.value("alter_system") == Some("off") {
        return format!("in the configuration file (allow_alter_system is off): {setting}; {then}");
    }
    format!("alter system set {setting}; {then}")
}

pub(crate) fn server(checks: &mut Checks, facts: &QueryResult, host: &HostFacts) {
    let fact = |name| facts.value(name).unwrap_or_default();
    let major = major(facts);
    let version = fact("version");
    checks.require(
        "version",
        PgMajor::from_number(major).is_some(),
        format!("Postgres {version}"),
        format!("Postgres {version}: branches run {}", PgMajor::ALL.map(|known| known.number().to_string()).join(", ")),
        None,
    );
    if !host.majors.is_empty() {
        let here = host.majors.get(&major);
        checks.require(
            "host_version",
            here.is_some(),
            format!("the server programs of Postgres {major} are installed here"),
            format!("branches run Postgres {major}, whose server programs are not installed on this host"),
            Some(format!(
                "apt-get install postgresql-{major} postgresql-contrib, or start ardent up with --pg-bin {major}=DIR"
            )),
        );
        if let Some(here) = here {
            checks.require(
                "host_library",
                here.compute_library,
                format!("this program has the library for computes of Postgres {major}"),
                format!("this program was built without the library for computes of Postgres {major}"),
                Some(format!(
                    "install the server headers (Debian: postgresql-server-dev-{major}), and build again with: make build"
                )),
            );
        }
    }
    let build = fact("build");
    checks.require(
        "architecture",
        build.contains("x86_64") == cfg!(target_arch = "x86_64") && !build.contains("32-bit"),
        "built for this host's architecture",
        format!("built for another architecture than this host's: {build}"),
        None,
    );
    let sizes = (fact("block_size"), fact("wal_block_size"), fact("segment_size"));
    checks.require(
        "block_size",
        sizes == ("8192", "8192", "1GB"),
        "pages of 8 KiB, files of 1 GiB",
        format!(
            "built with pages of {} bytes, WAL pages of {}, files of {}: Ardent reads 8192, 8192, 1GB",
            sizes.0, sizes.1, sizes.2
        ),
        None,
    );
    checks.require(
        "primary",
        fact("standby") == "f",
        "a primary",
        "a standby: its backups have no end-of-backup record; use the primary's URL",
        None,
    );
}

fn wal(checks: &mut Checks, facts: &QueryResult) {
    let fact = |name| facts.value(name).unwrap_or_default();
    let level = fact("wal_level");
    checks.require(
        "wal_level",
        level != "minimal",
        format!("wal_level is {level}"),
        "wal_level is minimal: WAL does not hold everything; a change needs a restart",
        Some(change_setting(facts, "wal_level = replica", TakenOver::AtStart)),
    );
    checks.warn(
        "full_page_writes",
        fact("full_page_writes") == "on",
        "full_page_writes is on",
        "full_page_writes is off: it is forced on while the base backup runs, which writes more WAL",
        Some(change_setting(facts, "full_page_writes = on", TakenOver::WhenReloaded)),
    );
    let free = number(facts, "senders") - number(facts, "senders_used");
    let wanted = number(facts, "senders_used") + 2;
    checks.require(
        "max_wal_senders",
        free >= 2,
        format!("{free} WAL senders are free"),
        format!("{free} WAL senders are free, 2 are needed; a change needs a restart"),
        Some(change_setting(facts, &format!("max_wal_senders = {}", wanted.max(10)), TakenOver::AtStart)),
    );
}

async fn privileges(checks: &mut Checks, facts: &QueryResult, config: &ConnectConfig) {
    let role = facts.value("me_quoted").unwrap_or_default();
    checks.require(
        "replication_privilege",
        facts.value("replication") == Some("t"),
        format!("role {role} may replicate"),
        format!("role {role} may not replicate"),
        Some(format!("alter role {role} replication")),
    );
    // The way in for replication is another line of pg_hba.conf: trying it is the only test that counts.
    let attempt = Connection::connect(config, ConnectMode::Replication).await;
    let (fine, found) = match attempt {
        Ok(_) => (true, String::new()),
        // No more senders, or no privilege: named above.
        Err(WireError::Server(error)) if error.code == "53300" || error.code == "42501" => (true, String::new()),
        Err(WireError::Server(error)) => (false, error.message),
        Err(error) => (false, error.to_string()),
    };
    checks.require(
        "pg_hba",
        fine,
        "replication connections are let in",
        format!("replication connections are not let in: {found}"),
        Some(format!(
            "add to pg_hba.conf: host replication {role} <this host>/32 scram-sha-256\nselect pg_reload_conf()"
        )),
    );
}

pub(crate) fn slots(checks: &mut Checks, facts: &QueryResult) {
    let free = number(facts, "slots") - number(facts, "slots_used");
    let wanted = number(facts, "slots_used") + 1;
    checks.require(
        "max_replication_slots",
        free >= 1,
        format!("{free} replication slots are free"),
        "no replication slot is free; a change needs a restart",
        Some(change_setting(facts, &format!("max_replication_slots = {}", wanted.max(10)), TakenOver::AtStart)),
    );
    let keep_mb = number(facts, "keep_mb");
    checks.warn(
        "max_slot_wal_keep_size",
        keep_mb >= 0,
        format!("production keeps at most {keep_mb} MB of WAL for a slot; when Ardent is away for longer, the connector must be made again"),
        "max_slot_wal_keep_size is unlimited: when Ardent is away for long, its slot fills production's disk",
        Some(change_setting(facts, "max_slot_wal_keep_size = '50GB'", TakenOver::WhenReloaded)),
    );
}

fn tablespaces(checks: &mut Checks, result: &QueryResult) {
    let names = result.value("names");
    checks.warn(
        "tablespaces",
        names.is_none(),
        "no tablespaces of its own",
        format!("tablespaces ({}) become plain folders in branches", names.unwrap_or_default()),
        None,
    );
}

/// What production loads at its start, which branches do as well where they can.
fn preloaded(checks: &mut Checks, preload: Option<&str>, present: Option<&[String]>, role: &str) {
    let Some(preload) = preload else {
        let found = format!(
            "role {role} may not read shared_preload_libraries: branches start without the libraries named there"
        );
        let fix = Some(format!("grant pg_read_all_settings to {role}"));
        return checks.add("preload_libraries", CheckOutcome::Warning, found, fix);
    };
    let missing = present.map(|present| missing(preload.split(','), present)).unwrap_or_default();
    checks.warn(
        "preload_libraries",
        missing.is_empty(),
        "branches preload the libraries that production preloads",
        format!(
            "production preloads {}, which this host lacks: branches start without, and what needs them fails there",
            missing.join(", ")
        ),
        Some(
            "install the packages of these extensions on this host; branches take them up at their next start"
                .to_owned(),
        ),
    );
}

async fn libraries(
    checks: &mut Checks,
    sql: &mut Connection,
    present: Option<&[String]>,
) -> Result<(), ConnectorError> {
    let Some(present) = present else { return Ok(()) };
    let loaded = sql
        .query("select distinct probin from pg_proc where probin is not null and prolang = (select oid from pg_language where lanname = 'c')")
        .await?;
    let missing = missing(loaded.rows.iter().flatten().flatten().map(String::as_str), present);
    checks.warn(
        "libraries",
        missing.is_empty(),
        "every library that production uses in this database is here",
        format!("libraries that this host lacks: {}; what needs them fails on branches", missing.join(", ")),
        Some("install the packages of these extensions on this host".to_owned()),
    );
    Ok(())
}

/// Those of these libraries that are not present, sorted, by their names without folder and ending.
fn missing<'a>(used: impl Iterator<Item = &'a str>, present: &[String]) -> Vec<String> {
    let name = |path: &str| {
        path.trim().trim_matches('"').rsplit('/').next().unwrap_or_default().trim_end_matches(".so").to_owned()
    };
    let mut missing: Vec<_> = used.map(name).filter(|name| !name.is_empty() && !present.contains(name)).collect();
    missing.sort();
    missing.dedup();
    missing
}

/// A locale's name as lists of locales have it: lower case, the encoding without dashes.
pub fn normalize_locale(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    match lower.split_once('.') {
        Some((language, encoding)) => format!("{language}.{}", encoding.replace('-', "")),
        None => lower,
    }
}

pub(crate) fn locales(checks: &mut Checks, result: &QueryResult, host: &HostFacts) {
    let column = |name: &str| result.columns.iter().position(|column| column == name);
    let value = |row: &[Option<String>], name: &str| column(name).and_then(|index| row.get(index)?.clone());
    let plain = |locale: &str| matches!(locale, "C" | "POSIX" | "C.UTF-8" | "C.utf8");
    let mut missing = Vec::new();
    for row in &result.rows {
        for locale in ["collate", "ctype"].iter().filter_map(|name| value(row, name)) {
            let known = host.locales.as_ref().is_none_or(|known| known.contains(&normalize_locale(&locale)));
            if !plain(&locale) && !known && !missing.contains(&locale) {
                missing.push(locale);
            }
        }
    }
    let fix = missing
        .iter()
        .map(|locale| format!("localedef -i {} -f UTF-8 {locale}", locale.split('.').next().unwrap_or(locale)));
    checks.require(
        "locales",
        missing.is_empty(),
        "the databases' locales exist here",
        format!("locales that this host lacks: {}; no connection to a branch would be possible", missing.join(", ")),
        Some(fix.collect::<Vec<_>>().join("\n")),
    );
}

fn checksums_and_role(checks: &mut Checks, facts: &QueryResult) {
    let fact = |name| facts.value(name).unwrap_or_default();
    checks.warn(
        "data_checksums",
        fact("data_checksums") == "on",
        "pages have checksums, which are verified on import",
        "pages have no checksums: damage on production's disk is copied unnoticed",
        None,
    );
    checks.add("superuser", CheckOutcome::Ok, format!("the bootstrap superuser is {}", fact("superuser")), None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_changed_in_the_file_where_sql_may_not() {
        let facts = |value: Option<&str>| QueryResult {
            columns: vec!["alter_system".to_owned()],
            rows: vec![vec![value.map(str::to_owned)]],
        };
        // Earlier majors do not know the setting.
        for may in [None, Some("on")] {
            let fix = change_setting(&facts(may), "wal_level = replica", TakenOver::AtStart);
            assert_eq!(fix, "alter system set wal_level = replica; -- then restart");
        }
        let fix = change_setting(&facts(Some("off")), "max_slot_wal_keep_size = '50GB'", TakenOver::WhenReloaded);
        assert!(fix.starts_with("in the configuration file") && !fix.contains("alter system"), "{fix}");
        assert!(fix.ends_with("max_slot_wal_keep_size = '50GB'; select pg_reload_conf()"), "{fix}");
    }
}
