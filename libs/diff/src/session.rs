//! One side of a diff: a connection with one snapshot and fixed output settings.

use std::str::FromStr as _;

use ardent_types::{Lsn, WalSegmentSize};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::error::DiffError;

/// Settings that decide how values turn into text, so that both sides turn them alike.
const SETTINGS: &str = "set search_path = pg_catalog; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; \
     set timezone = 'UTC'; set bytea_output = 'hex'; set extra_float_digits = 1; set xmlbinary = 'base64'; \
     set lc_monetary = 'C'; set row_security = off; set statement_timeout = 0; set lock_timeout = '30s'; \
     set idle_in_transaction_session_timeout = 0; set enable_seqscan = on; set enable_tidscan = on; \
     set synchronize_seqscans = off; set max_parallel_workers_per_gather = 0; set quote_all_identifiers = off";

/// A connection that reads one snapshot.
#[derive(Debug)]
pub struct Session {
    client: Client,
    pub(crate) side: String,
    pub(crate) database: String,
}

impl Session {
    /// Begins a read-only transaction on `client` and takes its snapshot. The LSN is a record end at or past everything that the
    /// snapshot sees: changed blocks up to it cover the snapshot (DF-2). `side` names it in errors.
    pub async fn open(client: Client, side: &str, database: &str) -> Result<(Session, Lsn), DiffError> {
        let session = Session { client, side: side.to_owned(), database: database.to_owned() };
        session.run(SETTINGS).await?;
        session.run("begin isolation level repeatable read read only").await?;
        // The snapshot is taken before the first query runs, so its LSN is never too small.
        let position = "select pg_catalog.pg_current_wal_insert_lsn()::text, \
             pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))::int";
        let rows = session.query(position, &[]).await?;
        let text: Option<&str> = rows.first().and_then(|row| row.try_get(0).ok());
        let size: Option<i32> = rows.first().and_then(|row| row.try_get(1).ok());
        let size = size.and_then(|bytes| WalSegmentSize::new(bytes.try_into().ok()?).ok());
        let lsn = text.and_then(|text| Lsn::from_str(text).ok()).zip(size).map(|(lsn, size)| lsn.record_end(size));
        let lsn = lsn.ok_or_else(|| session.unexpected("no current LSN"))?;
        Ok((session, lsn))
    }

    async fn run(&self, sql: &str) -> Result<(), DiffError> {
        self.client.batch_execute(sql).await.map_err(|source| self.failed(source))
    }

    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, DiffError> {
        self.client.query(sql, parameters).await.map_err(|source| self.failed(source))
    }

    pub(crate) async fn text_stream(&self, sql: &str) -> Result<tokio_postgres::SimpleQueryStream, DiffError> {
        self.client.simple_query_raw(sql).await.map_err(|source| self.failed(source))
    }

    /// The first column of each statement's rows, all in one round trip. It must be text.
    pub(crate) async fn texts(&self, statements: &[String]) -> Result<Vec<Vec<String>>, DiffError> {
        let messages = self.client.simple_query(&statements.join("; ")).await.map_err(|source| self.failed(source))?;
        let (mut answers, mut answer) = (Vec::new(), Vec::new());
        for message in messages {
            match message {
                SimpleQueryMessage::Row(row) => {
                    answer.extend(row.try_get(0).map_err(|source| self.failed(source))?.map(str::to_owned));
                }
                SimpleQueryMessage::CommandComplete(_) => answers.push(std::mem::take(&mut answer)),
                _ => {}
            }
        }
        Ok(answers)
    }

    pub(crate) fn failed(&self, source: tokio_postgres::Error) -> DiffError {
        DiffError::Query { side: self.side.clone(), database: self.database.clone(), source }
    }

    pub(crate) fn unexpected(&self, what: &'static str) -> DiffError {
        DiffError::Unexpected { database: self.database.clone(), what }
    }
}
