//! Where production is, and what its slot says.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ardent_pg_wire::{Connection, WireError};
use ardent_types::{Lsn, SystemId, WalSegmentSize};
use parking_lot::Mutex;

use crate::config::ConnectorConfig;
use crate::error::ConnectorError;
use crate::source_stream::timeline_status;

/// How often production is asked whether it has flushed.
const POLL: Duration = Duration::from_millis(20);
/// Asynchronous commits are flushed within three times `wal_writer_delay`; this is how long we wait at least.
const FLUSH_WAIT_MIN: Duration = Duration::from_secs(1);

/// What production says about the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStatus {
    /// Whether WAL is being streamed through it.
    pub active: bool,
    /// WAL from here on is kept.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes that production keeps for it.
    pub kept_bytes: Option<u64>,
    /// Bytes that may still be written before it is in danger; absent if there is no limit.
    pub safe_wal_bytes: Option<i64>,
}

/// Whether it matters which cluster answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterCheck {
    /// It must be the one that the root timeline is of.
    IsRoots,
    /// The root is a cluster of its own, as in logical mode.
    LeftOut,
}

/// Asks production where it is, over a connection that is kept for the next question: making one costs production a process and both
/// sides a password check.
#[derive(Debug, Default)]
pub struct PositionProbe {
    /// The connection and when it was used last. Out of its place while a question is being asked.
    kept: Mutex<Option<(Connection, Instant)>>,
    /// The cluster that is followed, once known.
    expected: OnceLock<SystemId>,
}

impl PositionProbe {
    /// What production has committed at this moment (checklist 67): its flush position, once that has passed the insert position
    /// first seen, or once every commit that was in memory only must have been flushed.
    pub async fn flush_lsn(&self, config: &ConnectorConfig, check: ClusterCheck) -> Result<Lsn, ConnectorError> {
        let kept = self.kept.lock().take();
        if let Some((mut sql, _)) = kept {
            match flush_lsn(&mut sql).await {
                Ok(lsn) => {
                    self.keep(sql);
                    return Ok(lsn);
                }
                // It may have been closed since: production's answer is what a new one gets.
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "the kept connection failed"),
            }
        }
        let mut sql = config.sql().await?;
        if check == ClusterCheck::IsRoots {
            self.check_cluster(config, &mut sql).await?;
        }
        let lsn = flush_lsn(&mut sql).await?;
        self.keep(sql);
        Ok(lsn)
    }

    /// An error if another cluster answers at production's address, whose position says nothing: below ours it would make what is
    /// here look current.
    async fn check_cluster(&self, config: &ConnectorConfig, sql: &mut Connection) -> Result<(), ConnectorError> {
        let expected = match self.expected.get() {
            Some(expected) => *expected,
            None => {
                let expected = timeline_status(config).await?.spec.system_id;
                *self.expected.get_or_init(|| expected)
            }
        };
        let found = sql.query("select system_identifier from pg_control_system()").await?;
        // Postgres shows it signed.
        let found = found.value("system_identifier").and_then(|text| text.parse::<i64>().ok());
        let found = found.map(|id| SystemId::new(id.cast_unsigned()));
        match found {
            Some(found) if found != expected => Err(ConnectorError::OtherCluster { expected, found }),
            _ => Ok(()),
        }
    }

    /// Closes the connection if it was not used for `idle`.
    pub fn close_idle(&self, idle: Duration) {
        self.kept.lock().take_if(|(_, used)| used.elapsed() >= idle);
    }

    fn keep(&self, sql: Connection) {
        *self.kept.lock() = Some((sql, Instant::now()));
    }
}

pub(crate) async fn flush_lsn(sql: &mut Connection) -> Result<Lsn, ConnectorError> {
    let first = sql
        .query(
            "select pg_is_in_recovery() as standby, \
             case when not pg_is_in_recovery() then pg_current_wal_insert_lsn() end as insert_lsn, \
             case when not pg_is_in_recovery() then pg_current_wal_flush_lsn() end as flush_lsn, \
             pg_size_bytes(current_setting('wal_segment_size')) as segment_bytes, \
             (extract(epoch from current_setting('wal_writer_delay')::interval) * 1000)::bigint as delay_ms",
        )
        .await?;
    if first.value("standby") == Some("t") {
        return Err(ConnectorError::Standby);
    }
    let insert_lsn = parse_lsn("pg_current_wal_insert_lsn", first.value("insert_lsn"))?;
    // An idle server can stand just past a page's header, where nothing will ever be flushed up to.
    let segment_size = first.value("segment_bytes").and_then(|text| WalSegmentSize::new(text.parse().ok()?).ok());
    let insert_lsn = segment_size.map_or(insert_lsn, |size| insert_lsn.record_end(size));
    let delay_ms = first.value("delay_ms").and_then(|text| text.parse().ok()).unwrap_or(200);
    let deadline = Instant::now() + FLUSH_WAIT_MIN.max(Duration::from_millis(delay_ms) * 4);
    let mut flush_lsn = parse_lsn("pg_current_wal_flush_lsn", first.value("flush_lsn"))?;
    // The insert position can stay ahead for long where nobody waits for what is written there.
    while flush_lsn < insert_lsn && Instant::now() < deadline {
        tokio::time::sleep(POLL).await;
        let result = sql.query("select pg_current_wal_flush_lsn() as lsn").await?;
        flush_lsn = parse_lsn("pg_current_wal_flush_lsn", result.value("lsn"))?;
    }
    Ok(flush_lsn)
}

/// What production says about the connector's slot; `None` if it has none.
pub async fn slot_status(config: &ConnectorConfig) -> Result<Option<SlotStatus>, ConnectorError> {
    let mut sql = config.sql().await?;
    // The slot's name is made of letters, digits and underscores.
    let result = sql
        .query(&format!(
            "select active, restart_lsn, wal_status, safe_wal_size, \
             case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint end as kept \
             from pg_replication_slots where slot_name = '{}'",
            config.slot_name()
        ))
        .await?;
    if result.rows.is_empty() {
        return Ok(None);
    }
    Ok(Some(SlotStatus {
        active: result.value("active") == Some("t"),
        restart_lsn: result.value("restart_lsn").and_then(|text| text.parse().ok()),
        wal_status: result.value("wal_status").map(str::to_owned),
        kept_bytes: result.value("kept").and_then(|text| text.parse().ok()),
        safe_wal_bytes: result.value("safe_wal_size").and_then(|text| text.parse().ok()),
    }))
}

/// Drops the connector's slot on production. Fine if it is not there.
pub async fn delete(config: &ConnectorConfig) -> Result<(), ConnectorError> {
    drop_slot(&mut config.replication().await?, &config.slot_name()).await
}

/// Drops a slot if it is there. One that a connection of ours still holds, which has just been closed, is waited for.
pub(crate) async fn drop_slot(connection: &mut Connection, slot: &str) -> Result<(), ConnectorError> {
    const WAIT: Duration = Duration::from_secs(5);
    let deadline = Instant::now() + WAIT;
    loop {
        match connection.drop_slot(slot).await {
            Ok(()) => return Ok(()),
            // Undefined object.
            Err(error) if error.code() == Some("42704") => return Ok(()),
            // Object in use.
            Err(WireError::Server(error)) if error.code == "55006" && Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn parse_lsn(name: &'static str, value: Option<&str>) -> Result<Lsn, ConnectorError> {
    let value = value.unwrap_or_default();
    value.parse().map_err(|_| ConnectorError::Setting { name: name.to_owned(), value: value.to_owned() })
}
