//! Copies production into a root timeline.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tokio::sync::mpsc;

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::ImportSpec;
use ardent_page_client::{Binding, Import, PageClient};
use ardent_pg_format::PgMajor;
use ardent_pg_wire::{BackupEvent, BaseBackup, BaseBackupOptions, CheckpointMode, Connection};
use ardent_types::{Lsn, WalSegmentSize};
use ardent_wal_client::{ClientError, SafekeeperClient, TimelineSpec};

use crate::config::ConnectorConfig;
use crate::error::ConnectorError;
use crate::position::drop_slot;
use crate::source_stream::SAFEKEEPER_PATIENCE;
use crate::tar_stream::{TarError, TarEvent, TarStream};

/// `MAX_RATE`'s bounds, in KiB per second.
const RATE_KIB: std::ops::RangeInclusive<u64> = 32..=1_048_576;

/// What an import is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportPhase {
    /// Production does the checkpoint at the backup's start.
    Checkpoint,
    /// Files are being copied.
    Copy,
    /// The page server makes them durable.
    Finish,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportProgress {
    /// What it is doing.
    pub phase: ImportPhase,
    /// Bytes that production has read.
    pub bytes_done: u64,
    /// Bytes to read, an estimate; 0: not known.
    pub bytes_total: u64,
}

/// What an import found and made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// What was announced to the page server.
    pub spec: ImportSpec,
    /// The timeline can be read once WAL has reached this.
    pub end_lsn: Lsn,
    /// The bootstrap superuser's name.
    pub superuser: String,
    /// The safekeepers that were away, and have yet to be told of the root timeline; the others are a quorum.
    pub away: Vec<ServiceAddr>,
    /// Settings that differ from Postgres's defaults and that sessions, or the start of a copy, depend on.
    pub settings: BTreeMap<String, String>,
}

/// Makes the slot on production, copies a base backup to the page server, and makes the root timeline on the safekeepers. What an
/// interrupted attempt left behind is replaced. Progress that nobody takes is dropped.
///
/// If the future is dropped, the slot is left on production: [`crate::delete`] drops it.
pub async fn import(
    config: &ConnectorConfig,
    progress: mpsc::Sender<ImportProgress>,
) -> Result<Imported, ConnectorError> {
    let found = read_settings(&mut config.sql().await?).await?;
    let mut connection = config.replication().await?;
    let (superuser, settings) = (found.superuser.clone(), found.server_wide(&mut connection).await?);
    let source = Source::read(&mut connection).await?;
    let slot = config.slot_name();
    drop_slot(&mut connection, &slot).await?;
    connection.create_physical_slot(&slot).await?;

    let report = |phase, bytes_done, bytes_total| {
        // A slow reader loses intermediate figures, never slows the import down.
        let _ = progress.try_send(ImportProgress { phase, bytes_done, bytes_total });
    };
    report(ImportPhase::Checkpoint, 0, 0);
    let options = BaseBackupOptions {
        label: "ardent".to_owned(),
        checkpoint: if config.fast { CheckpointMode::Fast } else { CheckpointMode::Spread },
        max_rate_kib: config.max_rate_bytes.map(|rate| (rate / 1024).clamp(*RATE_KIB.start(), *RATE_KIB.end()) as u32),
    };
    let mut backup = config.replication().await?.base_backup(&options).await?;
    let spec = ImportSpec {
        pg_major: source.major.number(),
        system_id: source.system_id,
        pg_tli: backup.tli(),
        wal_segment_size: source.wal_segment_size,
        data_checksums: source.data_checksums,
        start_lsn: backup.start_lsn(),
    };
    let away = make_wal_timeline(config, &spec).await?;
    let binding = Binding { tenant: config.tenant, timeline: config.timeline, token: config.token.clone() };
    let mut client = PageClient::connect(&config.pageserver, &binding).await?;
    let mut import = client.import(spec.clone()).await?;
    let total = backup.total_bytes();
    report(ImportPhase::Copy, 0, total);
    let end_lsn = copy(&mut backup, &mut import, |done| report(ImportPhase::Copy, done, total.max(done))).await?;
    report(ImportPhase::Finish, total, total);
    import.finish(end_lsn).await?;
    Ok(Imported { spec, end_lsn, superuser, away, settings })
}

/// Sends the backup's files; gives its end.
async fn copy(backup: &mut BaseBackup, import: &mut Import<'_>, report: impl Fn(u64)) -> Result<Lsn, ConnectorError> {
    let mut tar = TarStream::default();
    let mut prefix = String::new();
    let mut wanted = false;
    loop {
        match backup.next().await? {
            BackupEvent::Archive { name } => {
                check_complete(&tar)?;
                tar = TarStream::default();
                prefix = archive_prefix(&name);
            }
            BackupEvent::Data(data) => {
                tar.feed(data);
                while let Some(event) = tar.next()? {
                    send(event, &prefix, &mut wanted, import).await?;
                }
            }
            BackupEvent::Progress(done) => report(done),
            BackupEvent::End { end_lsn, .. } => {
                check_complete(&tar)?;
                return Ok(end_lsn);
            }
        }
    }
}

async fn send(event: TarEvent, prefix: &str, wanted: &mut bool, import: &mut Import<'_>) -> Result<(), ConnectorError> {
    match event {
        TarEvent::File { path, length } => {
            let path = format!("{prefix}{}", path.strip_prefix("./").unwrap_or(&path));
            *wanted = is_wanted(&path);
            if *wanted {
                import.file(&path, length).await?;
            }
        }
        TarEvent::Data(data) if *wanted => import.data(data).await?,
        TarEvent::Data(_) | TarEvent::Other => {}
    }
    Ok(())
}

fn check_complete(tar: &TarStream) -> Result<(), TarError> {
    let cut_off = TarError { offset: 0, problem: "it ends in the middle of a file" };
    if tar.is_complete() { Ok(()) } else { Err(cut_off) }
}

/// Where an archive's files belong: `16385.tar` is a tablespace's folder.
fn archive_prefix(name: &str) -> String {
    let stem = name.strip_suffix(".tar").unwrap_or(name);
    if stem.bytes().all(|byte| byte.is_ascii_digit()) { format!("pg_tblspc/{stem}/") } else { String::new() }
}

/// Whether a branch can need a file (checklist 64). The page server decides in the end; this saves sending what it would drop.
fn is_wanted(path: &str) -> bool {
    const FOLDERS: [&str; 9] = [
        "pg_wal/",
        "pg_replslot/",
        "pg_notify/",
        "pg_serial/",
        "pg_snapshots/",
        "pg_stat/",
        "pg_stat_tmp/",
        "pg_subtrans/",
        "pg_dynshmem/",
    ];
    let file = path.rsplit('/').next().unwrap_or(path);
    !FOLDERS.iter().any(|folder| path.starts_with(folder))
        && !path.split('/').any(|part| part.starts_with("pgsql_tmp"))
        && !file.starts_with("pg_internal.init")
        && !file.starts_with("postmaster.")
        && (!file.ends_with(".conf") || path.contains('/'))
        && !is_temporary_relation(file)
}

/// `t3_16384`: of backend 3.
fn is_temporary_relation(file: &str) -> bool {
    let backend = file.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    backend.is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The root timeline on a quorum of the safekeepers; gives those that are away. It starts where the backup does: the record before that
/// is not known.
async fn make_wal_timeline(config: &ConnectorConfig, spec: &ImportSpec) -> Result<Vec<ServiceAddr>, ConnectorError> {
    let making = config.safekeepers.iter().map(|safekeeper| async move {
        let made = tokio::time::timeout(SAFEKEEPER_PATIENCE, make_wal_timeline_on(config, spec, safekeeper)).await;
        (safekeeper, made.unwrap_or_else(|_| Err(ClientError::silent(safekeeper))))
    });
    let (mut away, mut why) = (Vec::new(), None);
    for (safekeeper, made) in join_all(making).await {
        match made {
            Ok(()) => {}
            Err(error) if error.is_retryable() => {
                tracing::warn!(%safekeeper, error = &error as &dyn std::error::Error, "a safekeeper is away");
                away.push(safekeeper.clone());
                why = Some(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    let quorum = config.safekeepers.len() / 2 + 1;
    match why {
        Some(error) if config.safekeepers.len() - away.len() < quorum => Err(error.into()),
        _ => Ok(away),
    }
}

async fn make_wal_timeline_on(
    config: &ConnectorConfig,
    spec: &ImportSpec,
    safekeeper: &ServiceAddr,
) -> Result<(), ClientError> {
    let mut client =
        SafekeeperClient::connect_to_timeline(safekeeper, config.tenant, config.timeline, &config.token).await?;
    // An interrupted import may have left one that starts elsewhere.
    client.delete_timeline(config.timeline).await?;
    let timeline = TimelineSpec {
        tenant: config.tenant,
        timeline: config.timeline,
        pg_major: spec.pg_major,
        system_id: spec.system_id,
        pg_tli: spec.pg_tli,
        wal_segment_size: spec.wal_segment_size,
        start_lsn: spec.start_lsn,
        prev_lsn: Lsn::INVALID,
        ancestor: None,
    };
    client.create_timeline(timeline).await
}

/// Facts about production from a replication connection.
pub(crate) struct Source {
    pub major: PgMajor,
    pub system_id: ardent_types::SystemId,
    pub wal_segment_size: WalSegmentSize,
    pub data_checksums: bool,
}

impl Source {
    pub(crate) async fn read(connection: &mut Connection) -> Result<Source, ConnectorError> {
        let system_id = connection.identify_system().await?.system_id;
        let version = show(connection, "server_version_num").await?;
        let major = version.parse::<u32>().ok().and_then(|number| PgMajor::from_number(number / 10_000));
        let major = major.ok_or(ConnectorError::Version { version })?;
        if show(connection, "in_hot_standby").await? == "on" {
            return Err(ConnectorError::Standby);
        }
        let size = show(connection, "wal_segment_size").await?;
        let bytes = parse_size(&size).and_then(|bytes| WalSegmentSize::new(bytes).ok());
        let wal_segment_size =
            bytes.ok_or(ConnectorError::Setting { name: "wal_segment_size".to_owned(), value: size })?;
        let data_checksums = show(connection, "data_checksums").await? == "on";
        Ok(Source { major, system_id, wal_segment_size, data_checksums })
    }
}

async fn show(connection: &mut Connection, name: &str) -> Result<String, ConnectorError> {
    let result = connection.query(&format!("SHOW {name}")).await?;
    let value = result.rows.first().and_then(|row| row.first()).and_then(Clone::clone);
    value.ok_or_else(|| ConnectorError::Setting { name: name.to_owned(), value: String::new() })
}

/// `16MB`, `1GB`, `512kB`.
fn parse_size(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[digits..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    text[..digits].parse::<u32>().ok()?.checked_mul(unit)
}

/// Settings of production that a branch takes over: what sessions see, and what must be as large as on production for prepared
/// transactions and locks to fit. Archiving, replication, logging, memory and authentication are the branch's own.
/// Null: only for the connector's role or database, and so no value of the server.
const SETTINGS: &str = "
    select name, case when source not in ('database', 'user', 'database user') then setting end as setting from pg_settings
    where (setting is distinct from boot_val or source in ('database', 'user', 'database user'))
        and source <> 'client' and source <> 'session' and name in (
        'max_connections', 'max_worker_processes', 'max_prepared_transactions', 'max_locks_per_transaction',
        'max_pred_locks_per_transaction', 'track_commit_timestamp', 'shared_preload_libraries', 'output_plugin_libraries',
        'DateStyle', 'IntervalStyle', 'TimeZone', 'timezone_abbreviations', 'extra_float_digits', 'bytea_output',
        'default_text_search_config', 'lc_monetary', 'lc_numeric', 'lc_time', 'search_path', 'xmloption', 'xmlbinary',
        'array_nulls', 'backslash_quote', 'escape_string_warning', 'lo_compat_privileges', 'quote_all_identifiers',
        'standard_conforming_strings', 'synchronize_seqscans', 'transform_null_equals', 'check_function_bodies',
        'default_toast_compression', 'default_transaction_isolation', 'default_transaction_deferrable',
        'row_security', 'statement_timeout', 'transaction_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout',
        'gin_fuzzy_search_limit', 'vacuum_freeze_min_age', 'vacuum_freeze_table_age', 'autovacuum_freeze_max_age')";

/// What a session found of production's settings.
#[derive(Clone, Debug)]
pub(crate) struct FoundSettings {
    /// The bootstrap superuser's name.
    pub(crate) superuser: String,
    /// Those that hold for the whole server.
    pub(crate) known: BTreeMap<String, String>,
    /// Names of those that are set for the session's role or database, which hide the server's values.
    pub(crate) hidden: Vec<String>,
}

impl FoundSettings {
    /// All of them, as they are where nothing is set for a role or database. The connection is of physical replication: such a one
    /// is in no database, and Postgres applies nothing to it that is set for roles.
    pub(crate) async fn server_wide(
        self,
        replication: &mut Connection,
    ) -> Result<BTreeMap<String, String>, ConnectorError> {
        let mut settings = self.known;
        for name in self.hidden {
            let value = show(replication, &name).await?;
            settings.insert(name, value);
        }
        Ok(settings)
    }
}

/// Reads the settings that branches take over.
pub(crate) async fn read_settings(sql: &mut Connection) -> Result<FoundSettings, ConnectorError> {
    let role = sql.query("select rolname from pg_roles where oid = 10").await?;
    let superuser = role.value("rolname").unwrap_or("postgres").to_owned();
    let mut found = FoundSettings { superuser, known: BTreeMap::new(), hidden: Vec::new() };
    for row in sql.query(SETTINGS).await?.rows {
        let mut values = row.into_iter();
        match (values.next().flatten(), values.next().flatten()) {
            (Some(name), Some(value)) => drop(found.known.insert(name, value)),
            (Some(name), None) => found.hidden.push(name),
            (None, _) => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checklist_64_files_that_no_branch_needs_are_not_sent() {
        for path in [
            "pg_wal/000000010000000000000001",
            "pg_replslot/s/state",
            "base/5/t3_16384",
            "base/5/pg_internal.init",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "postmaster.pid",
            "postgresql.conf",
            "pg_stat/pgstat.stat",
        ] {
            assert!(!is_wanted(path), "{path}");
        }
        for path in
            ["base/5/16384", "global/pg_control", "backup_label", "pg_xact/0000", "base/5/PG_VERSION", "PG_VERSION"]
        {
            assert!(is_wanted(path), "{path}");
        }
    }

    #[test]
    fn sizes_and_archives() {
        assert_eq!(parse_size("16MB"), Some(16 << 20));
        assert_eq!(parse_size("1GB"), Some(1 << 30));
        assert_eq!((parse_size("8TB"), parse_size("9GB")), (None, None));
        assert_eq!(
            (archive_prefix("base.tar").as_str(), archive_prefix("16385.tar").as_str()),
            ("", "pg_tblspc/16385/")
        );
    }
}
