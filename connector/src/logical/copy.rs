//! Copies tables as of one snapshot, several at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::SinkExt as _;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use ardent_pg_wire::{ConnectConfig, Connection, LogicalSlot, SlotLifetime};
use ardent_types::sql::{literal, qualified};

use crate::logical::config::{LogicalConfig, RootAt, RootBranch};
use crate::logical::error::{LogicalError, filling, reading, root, source};
use crate::logical::relation::root_columns;
use crate::logical::row_format::SourceColumns;
use crate::logical::same_columns::{SameColumns, SourceNumbers};
use crate::logical::session::{connect_root, connect_source, fill_root, read_source, replicate_source};
use crate::logical::state::{LogicalState, TableState};

/// Tables that are copied at the same time.
const TABLES_AT_ONCE: usize = 4;
/// Rows go on to the root in pieces of this size.
const PIECE_LEN: usize = 128 << 10;

/// A moment of production's, seen by every session that imports it, for as long as this is kept.
#[derive(Debug)]
pub(crate) struct Moment {
    pub slot: LogicalSlot,
    _connection: Connection,
}

impl Moment {
    /// Makes a slot, and keeps the snapshot of where it begins.
    pub async fn take(config: &LogicalConfig, slot: &str, lifetime: SlotLifetime) -> Result<Moment, LogicalError> {
        let connect = config.connector.connect_config()?;
        let mut connection = replicate_source(&connect).await?;
        let slot = connection.create_logical_slot(slot, lifetime).await?;
        Ok(Moment { slot, _connection: connection })
    }

    /// A session on production that sees what was committed before this moment.
    pub async fn session(&self, url: &str) -> Result<Client, LogicalError> {
        let client = connect_source(url).await?;
        client.batch_execute(&self.begin()).await.map_err(source("reading as of one moment"))?;
        Ok(client)
    }

    /// The same, to read tables in bulk.
    pub async fn reader(&self, connect: &ConnectConfig) -> Result<Connection, LogicalError> {
        let mut reader = read_source(connect).await?;
        reader.query(&self.begin()).await.map_err(reading("reading as of one moment"))?;
        Ok(reader)
    }

    fn begin(&self) -> String {
        let snapshot = literal(&self.slot.snapshot);
        format!("begin isolation level repeatable read read only; set transaction snapshot {snapshot}")
    }
}

/// What is known of a copy while it runs.
#[derive(Debug, Default)]
pub(crate) struct CopyProgress {
    /// Bytes of rows that have come, of all tables.
    pub bytes: AtomicU64,
}

struct Copier {
    config: LogicalConfig,
    root: Arc<dyn RootBranch>,
    at: RootAt,
    database: String,
    moment: Moment,
    state: Arc<Mutex<LogicalState>>,
    waiting: Mutex<VecDeque<u32>>,
    pace: Pace,
}

/// Copies the tables that are not copied yet, the largest first. Each is remembered as soon as the root has it.
pub(crate) async fn copy_tables(
    config: &LogicalConfig,
    root: &Arc<dyn RootBranch>,
    moment: Moment,
    state: &Arc<Mutex<LogicalState>>,
    progress: &Arc<CopyProgress>,
) -> Result<(), LogicalError> {
    let at = root.wake().await.map_err(LogicalError::Branch)?;
    let mut waiting: Vec<(u64, u32)> = {
        let state = state.lock();
        let tables = state.tables.iter().filter(|(_, table)| table.copied_at.is_none());
        tables.map(|(oid, table)| (table.bytes, *oid)).collect()
    };
    waiting.sort_unstable_by(|one, other| other.cmp(one));
    let database = config.connector.connect_config()?.database().to_owned();
    let workers = waiting.len().min(TABLES_AT_ONCE);
    let copier = Arc::new(Copier {
        config: config.clone(),
        root: root.clone(),
        at,
        database,
        moment,
        state: state.clone(),
        waiting: Mutex::new(waiting.into_iter().map(|(_, oid)| oid).collect()),
        pace: Pace { progress: progress.clone(), ..Pace::new(config.connector.max_rate_bytes) },
    });
    // Dropped with this future, they end.
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let copier = copier.clone();
        running.spawn(async move { copier.work().await });
    }
    while let Some(ended) = running.join_next().await {
        ended.map_err(|error| LogicalError::State(format!("a copy ended: {error}")))??;
    }
    Ok(())
}

impl Copier {
    async fn work(&self) -> Result<(), LogicalError> {
        let mut production = self.moment.reader(&self.config.connector.connect_config()?).await?;
        let client = connect_root(&self.at, &self.database).await?;
        let mut filler = fill_root(&self.at, &self.database).await?;
        loop {
            let Some(oid) = self.waiting.lock().pop_front() else { return Ok(()) };
            let table = self.state.lock().tables.get(&oid).cloned();
            let Some(table) = table else { continue };
            let columns = self.copy(&mut production, &client, &mut filler, oid, &table).await?;
            // Durable on the root first: a table that is there and not remembered is copied again.
            let text = {
                let mut state = self.state.lock();
                if let Some(table) = state.tables.get_mut(&oid) {
                    table.copied_at = Some(self.moment.slot.consistent_lsn);
                    table.columns = columns;
                }
                encode(&state)
            };
            self.root.save(&text).map_err(LogicalError::Branch)?;
            tracing::info!(schema = %table.schema, name = %table.name, "table is copied");
        }
    }

    async fn copy(
        &self,
        production: &mut Connection,
        client: &Client,
        filler: &mut Connection,
        oid: u32,
        table: &TableState,
    ) -> Result<SameColumns, LogicalError> {
        let name = qualified(&table.schema, &table.name);
        let copy = RowCopy::plan(production, client, oid, (&table.schema, &table.name)).await?;
        let begin = format!("begin; truncate only {name}");
        filler.query(&begin).await.map_err(filling(format!("emptying table {name}")))?;
        let failed = || filling(copy.action.clone());
        let mut sink = filler.copy_in(&copy.into).await.map_err(failed())?;
        let mut rows = production.copy_out(&copy.out).await.map_err(reading(READING))?;
        let mut piece = BytesMut::with_capacity(2 * PIECE_LEN);
        loop {
            let more_may_come = rows.fill(&mut piece, PIECE_LEN).await.map_err(reading(READING))?;
            self.pace.count(piece.len()).await;
            sink.send(piece.split().freeze()).await.map_err(failed())?;
            if !more_may_come {
                break;
            }
        }
        sink.finish().await.map_err(failed())?;
        filler.query("commit").await.map_err(failed())?;
        Ok(copy.columns)
    }
}

/// What is being done where production's rows are read.
const READING: &str = "reading a table";

/// How the rows of one of production's tables get to the root's.
struct RowCopy {
    /// For production.
    out: String,
    /// For the root. The session is in the transaction that made or emptied the table, so the rows are frozen: no branch will have to look at
    /// who wrote them.
    into: String,
    /// What is being done meanwhile.
    action: String,
    /// Which columns the rows come from.
    columns: SameColumns,
}

impl RowCopy {
    /// From the table as production's session sees it to the one of this schema and name.
    async fn plan(
        production: &mut Connection,
        client: &Client,
        oid: u32,
        (schema, name): (&str, &str),
    ) -> Result<RowCopy, LogicalError> {
        let columns = SourceColumns::read(production, oid).await?;
        let list = columns.list();
        let here = root_columns(client, schema, name).await?;
        let same = SameColumns::of_copy(&SourceNumbers::read_as_of(production, oid).await?, &here);
        let is_binary = columns.are_binary(&here);
        let (out_options, in_options) =
            if is_binary { (" (format binary)", "freeze, format binary") } else { ("", "freeze") };
        let name = qualified(schema, name);
        Ok(RowCopy {
            out: format!("copy {name}{list} to stdout{out_options}"),
            into: format!("copy {name}{list} from stdin ({in_options})"),
            action: format!("filling table {name}"),
            columns: same,
        })
    }
}

/// Copies the rows of one of production's tables, as its session sees them, to the root's table of this schema and name, by a session that
/// has just made it. What comes back: which columns they came from.
pub(crate) async fn copy_rows(
    production: &mut Connection,
    client: &Client,
    oid: u32,
    table: (&str, &str),
    pace: &Pace,
) -> Result<SameColumns, LogicalError> {
    let copy = RowCopy::plan(production, client, oid, table).await?;
    let failed = || root(copy.action.clone());
    let mut rows = production.copy_out(&copy.out).await.map_err(reading(READING))?;
    let sink = client.copy_in(&copy.into).await.map_err(failed())?;
    tokio::pin!(sink);
    let mut piece = BytesMut::with_capacity(2 * PIECE_LEN);
    loop {
        let more_may_come = rows.fill(&mut piece, PIECE_LEN).await.map_err(reading(READING))?;
        pace.count(piece.len()).await;
        sink.send(piece.split().freeze()).await.map_err(failed())?;
        if !more_may_come {
            break;
        }
    }
    sink.finish().await.map_err(failed())?;
    Ok(copy.columns)
}

/// Counts what is copied, and keeps all copies together to a rate.
#[derive(Debug)]
pub(crate) struct Pace {
    progress: Arc<CopyProgress>,
    rate: tokio::sync::Mutex<Rate>,
}

impl Pace {
    pub fn new(bytes_per_s: Option<u64>) -> Pace {
        Pace { progress: Arc::default(), rate: tokio::sync::Mutex::new(Rate::new(bytes_per_s)) }
    }

    async fn count(&self, bytes: usize) {
        self.progress.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let pause = self.rate.lock().await.pause_after(bytes as u64, Instant::now());
        // A timer of nothing is one of up to a millisecond.
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// What is kept, as text.
pub(crate) fn encode(state: &LogicalState) -> String {
    serde_json::to_string(state).expect("plain data")
}

/// Keeps what all copies take together to a rate.
#[derive(Debug)]
struct Rate {
    bytes_per_s: Option<u64>,
    free_at: Option<Instant>,
}

impl Rate {
    fn new(bytes_per_s: Option<u64>) -> Rate {
        Rate { bytes_per_s: bytes_per_s.filter(|rate| *rate > 0), free_at: None }
    }

    /// How long to wait after so many bytes.
    fn pause_after(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_s else { return Duration::ZERO };
        let took = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let free_at = self.free_at.map_or(now, |at| at.max(now)) + took;
        self.free_at = Some(free_at);
        free_at - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_by_all_together() {
        let now = Instant::now();
        let mut rate = Rate::new(Some(1000));
        assert_eq!(rate.pause_after(500, now), Duration::from_millis(500));
        assert_eq!(rate.pause_after(500, now), Duration::from_secs(1), "another copy's bytes count");
        assert_eq!(rate.pause_after(1000, now + Duration::from_secs(5)), Duration::from_secs(1), "nothing is saved up");
        assert_eq!(Rate::new(None).pause_after(1 << 40, now), Duration::ZERO);
    }
}
