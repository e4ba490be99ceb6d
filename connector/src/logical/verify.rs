//! Whether production and the root branch are equal, at a common point.

use std::time::Duration;

use futures_util::future::try_join;
use tokio_postgres::Client;

use ardent_api::control::{SCHEMA_VERSION, VerifiedTable, VerifyReply};
use ardent_pg_wire::SlotLifetime;
use ardent_types::Lsn;
use ardent_types::sql::quoted;

use crate::error::ConnectorError;
use crate::logical::config::{LogicalConfig, RootBranch};
use crate::logical::copy::Moment;
use crate::logical::drift::schema_differences;
use crate::logical::error::{LogicalError, root, source};
use crate::logical::run::LogicalHandle;
use crate::logical::sequences::{self, is_behind};
use crate::logical::session::{connect_root, connect_source};
use crate::logical::tables::{is_followed, tables};
use crate::position::flush_lsn;

/// How long production may take for a snapshot: it waits for the transactions that run.
const MOMENT_PATIENCE: Duration = Duration::from_secs(30);

/// Where production's log is at this moment.
pub async fn production_lsn(config: &LogicalConfig) -> Result<Lsn, LogicalError> {
    Ok(flush_lsn(&mut config.connector.sql().await?).await?)
}

/// Waits until the root has all that production has committed at this moment.
pub async fn bring_current(config: &LogicalConfig, handle: &LogicalHandle) -> Result<(), LogicalError> {
    handle.reach(production_lsn(config).await?).await
}

/// Number and checksum of a table's rows. The checksum does not depend on their order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sum {
    rows: i64,
    sum: String,
}

/// Holds production's tables and the root's against one another, each as of the same moment. Writing goes on, on production at once,
/// on the root as soon as its snapshot is taken.
pub async fn verify(
    config: &LogicalConfig,
    handle: &LogicalHandle,
    branch: &dyn RootBranch,
) -> Result<VerifyReply, LogicalError> {
    let database = config.connector.connect_config()?.database().to_owned();
    let name = format!("{}_verify", config.connector.slot_name());
    // First, or changes behind the moment could be on the root before it is there.
    let paused = handle.pause().await?;
    let moment = tokio::time::timeout(MOMENT_PATIENCE, Moment::take(config, &name, SlotLifetime::Temporary)).await;
    let moment = moment.map_err(|_| {
        let seconds = MOMENT_PATIENCE.as_secs();
        LogicalError::Refused(format!(
            "production gave no snapshot within {seconds} s: transactions that began before must end first"
        ))
    })?;
    let moment = moment.map_err(no_slot)?;
    let production = moment.session(&config.connector.url).await?;
    let held = paused.hold_at(moment.slot.consistent_lsn).await?;
    let at = branch.wake().await.map_err(LogicalError::Branch)?;
    let client = connect_root(&at, &database).await?;
    // The second statement takes the snapshot.
    let begin = "begin isolation level repeatable read read only; select 1";
    client.batch_execute(begin).await.map_err(root("taking a snapshot"))?;
    drop(held);
    let found = tables(&production, &config.options).await?;
    let mut reply = VerifyReply {
        schema_version: SCHEMA_VERSION,
        name: String::new(),
        at_lsn: moment.slot.consistent_lsn,
        equal: true,
        tables: Vec::new(),
        sequences_behind: Vec::new(),
        not_followed: Vec::new(),
        schema_differences: schema_differences(&production, &client, &config.options).await?,
    };
    let here = tables(&client, &config.options).await?;
    for table in found {
        let full_name = format!("{}.{}", table.schema, table.name);
        let own = here.iter().find(|own| (&own.schema, &own.name) == (&table.schema, &table.name));
        if !is_followed(&table) || own.is_none() {
            reply.not_followed.push(full_name);
            continue;
        }
        let sql = sum_statement(&production, table.oid, &table.quoted()).await?;
        let (theirs, ours) =
            try_join(async { sum(&production, &sql).await.map_err(source("summing up a table")) }, async {
                sum(&client, &sql).await.map_err(root(format!("summing up table {full_name}")))
            })
            .await?;
        let equal = theirs == ours;
        reply.tables.push(VerifiedTable {
            table: full_name,
            production_rows: u64::try_from(theirs.rows).unwrap_or_default(),
            root_rows: u64::try_from(ours.rows).unwrap_or_default(),
            equal,
        });
    }
    client.batch_execute("commit").await.map_err(root("ending a snapshot"))?;
    // Sequences obey no snapshot: production's are read first, so that the root's have had the time to follow.
    let values = connect_source(&config.connector.url).await?;
    let values = sequences::read(&values, &config.options).await.map_err(source("reading its sequences"))?;
    bring_current(config, handle).await?;
    let own = sequences::read(&client, &config.options).await.map_err(root("reading its sequences"))?;
    for sequence in values.iter().filter(|sequence| !sequence.cycles) {
        let at = own.iter().find(|own| (&own.schema, &own.name) == (&sequence.schema, &sequence.name));
        if is_behind(sequence, at.map(|at| at.last)) {
            reply.sequences_behind.push(format!("{}.{}", sequence.schema, sequence.name));
        }
    }
    reply.equal = reply.tables.iter().all(|table| table.equal) && reply.sequences_behind.is_empty();
    Ok(reply)
}

/// Runs statements on the root in one transaction, as its superuser: what somebody decided who knows what production did. Nothing is
/// applied meanwhile.
pub async fn run_on_root(config: &LogicalConfig, branch: &dyn RootBranch, sql: &str) -> Result<(), LogicalError> {
    let database = config.connector.connect_config()?.database().to_owned();
    let at = branch.wake().await.map_err(LogicalError::Branch)?;
    let client = connect_root(&at, &database).await?;
    let run = |statement: String| {
        let client = client.clone();
        async move {
            let done = client.batch_execute(&statement).await;
            done.map_err(|source| LogicalError::Schema { statement, source })
        }
    };
    run("begin; set local search_path to public".to_owned()).await?;
    run(sql.to_owned()).await?;
    run("commit".to_owned()).await
}

fn no_slot(error: LogicalError) -> LogicalError {
    match &error {
        LogicalError::Replication(ConnectorError::Production(wire)) if wire.code() == Some("53400") => {
            LogicalError::Refused(
                "production has no free replication slot: verifying needs one for a moment (max_replication_slots)"
                    .into(),
            )
        }
        _ => error,
    }
}

/// Sums up rows as they are written out, in the order of production's columns, generated ones included. Two hashes with different
/// seeds: by chance alone, different rows do not agree in both.
async fn sum_statement(production: &Client, oid: u32, table: &str) -> Result<String, LogicalError> {
    let columns = production
        .query(
            "select attname::text from pg_catalog.pg_attribute where attrelid = $1 and attnum > 0 and not attisdropped order by attnum",
            &[&oid],
        )
        .await
        .map_err(source("listing a table's columns"))?;
    let columns: Vec<String> = columns.iter().map(|row| quoted(row.get(0))).collect();
    let hash = |seed: u32| {
        format!("coalesce(pg_catalog.sum(pg_catalog.hashtextextended(r.t collate \"C\", {seed})::numeric), 0)::text")
    };
    Ok(format!(
        "select pg_catalog.count(*), {} || ' ' || {} from (select row({})::text as t from only {table}) r",
        hash(0),
        hash(1),
        columns.join(", ")
    ))
}

async fn sum(client: &Client, sql: &str) -> Result<Sum, tokio_postgres::Error> {
    let row = client.query_one(sql, &[]).await?;
    Ok(Sum { rows: row.get(0), sum: row.get(1) })
}
