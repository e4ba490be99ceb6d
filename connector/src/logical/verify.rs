//! Whether production and the root branch are equal, at a common point.

use std::time::Duration;

use futures_util::future::try_join;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use ardent_api::control::{SCHEMA_VERSION, VerifiedTable, VerifyReply};
use ardent_pg_wire::SlotLifetime;
use ardent_types::Lsn;
use ardent_types::sql::quoted;

use crate::error::ConnectorError;
use crate::logical::config::{LogicalConfig, RootBranch};
use crate::logical::copy::Moment;
use crate::logical::drift::schema_differences;
use crate::logical::error::{LogicalError, root, source};
use crate::logical::outside::outside_parts;
use crate::logical::replaced::Replaced;
use crate::logical::rewrites::found_equal;
use crate::logical::run::LogicalHandle;
use crate::logical::sequences::{self, is_behind};
use crate::logical::session::{connect_root, connect_source};
use crate::logical::slot::accept;
use crate::logical::state::LogicalState;
use crate::logical::tables::{SourceTable, is_followed, tables};
use crate::logical::waits::within;
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
    let kept = LogicalState::read(branch)?;
    let taking = Moment::take(config, &name, SlotLifetime::Temporary);
    let moment = within(&config.connector.url, MOMENT_PATIENCE, taking).await?;
    let moment = moment.map_err(no_slot)?;
    let production = moment.session(&config.connector.url).await?;
    let held = paused.hold_at(moment.slot.consistent_lsn).await?;
    let at = branch.wake().await.map_err(LogicalError::Branch)?;
    let client = connect_root(&at, &database).await?;
    // The second statement takes the snapshot.
    let begin = "begin isolation level repeatable read read only; select 1";
    client.batch_execute(begin).await.map_err(root("taking a snapshot"))?;
    // The root is at that very moment: nothing is on its way.
    let replaced = Replaced::find(&production, &client, &LogicalState::read(branch)?).await?;
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
        let replaced = replaced.iter().find(|replaced| replaced.table.oid == table.oid);
        reply.tables.push(verify_table(&production, &client, &table, replaced).await?);
    }
    // Their rows show in tables that are equal otherwise.
    let parts = outside_parts(&production, &config.options).await?;
    reply.not_followed.extend(parts.into_iter().map(|part| part.name));
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
    found_equal(branch, &kept, &reply.tables)?;
    reply.equal = reply.tables.iter().all(|table| table.equal) && reply.sequences_behind.is_empty();
    Ok(reply)
}

/// Holds one of production's tables and the root's of its name against one another. Both sessions are in transactions with a snapshot
/// each, which does not keep what columns are: that is looked up as it is when a table is read. `replaced`: columns of it that are other
/// ones than the root's of the same name, whatever they hold.
async fn verify_table(
    production: &Client,
    client: &Client,
    table: &SourceTable,
    replaced: Option<&Replaced>,
) -> Result<VerifiedTable, LogicalError> {
    let full_name = table.full_name();
    let theirs = columns(production, &table.quoted()).await.map_err(source("listing a table's columns"))?;
    let ours = columns(client, &table.quoted()).await;
    let ours = ours.map_err(root(format!("listing the columns of table {full_name}")))?;
    let common: Vec<String> = theirs.iter().filter(|column| ours.contains(column)).cloned().collect();
    let sql = sum_statement(&common, &table.quoted());
    let (their_sum, our_sum) =
        try_join(async { sum(production, &sql).await.map_err(source("summing up a table")) }, async {
            sum(client, &sql).await.map_err(root(format!("summing up table {full_name}")))
        })
        .await?;
    let columns_differ = match (&their_sum, &our_sum) {
        (Some(_), Some(_)) => columns_differ(&theirs, &ours),
        _ => Some("they were changed while they were looked at".to_owned()),
    };
    let differ: Vec<String> = replaced.map(Replaced::why).into_iter().chain(columns_differ).collect();
    let columns_differ = (!differ.is_empty()).then(|| differ.join("; "));
    let rows = |sum: &Option<Sum>| sum.as_ref().map_or(0, |sum| u64::try_from(sum.rows).unwrap_or_default());
    Ok(VerifiedTable {
        table: full_name,
        production_rows: rows(&their_sum),
        root_rows: rows(&our_sum),
        equal: columns_differ.is_none() && their_sum == our_sum,
        columns_differ,
    })
}

/// `only production has a, b; only the root branch has c`; `None` if both have the same ones, in whichever order.
fn columns_differ(theirs: &[String], ours: &[String]) -> Option<String> {
    let only = |these: &[String], others: &[String]| {
        let only: Vec<&str> = these.iter().filter(|column| !others.contains(column)).map(String::as_str).collect();
        only.join(", ")
    };
    let sides = [("production", only(theirs, ours)), ("the root branch", only(ours, theirs))];
    let sides: Vec<String> = sides
        .iter()
        .filter(|(_, columns)| !columns.is_empty())
        .map(|(side, columns)| format!("only {side} has {columns}"))
        .collect();
    (!sides.is_empty()).then(|| sides.join("; "))
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
    run("commit".to_owned()).await?;
    accept(branch)
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

/// The names of a table's columns, generated ones included, in their order; none if there is no such table.
async fn columns(client: &Client, table: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    const COLUMNS: &str = "select attname::text from pg_catalog.pg_attribute \
         where attrelid = pg_catalog.to_regclass($1) and attnum > 0 and not attisdropped order by attnum";
    let rows = client.query(COLUMNS, &[&table]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Sums up rows as they are written out, in the order of production's columns. Two hashes with different seeds: by chance alone,
/// different rows do not agree in both.
fn sum_statement(columns: &[String], table: &str) -> String {
    let columns: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
    let hash = |seed: u32| {
        format!("coalesce(pg_catalog.sum(pg_catalog.hashtextextended(r.t collate \"C\", {seed})::numeric), 0)::text")
    };
    format!(
        "select pg_catalog.count(*), {} || ' ' || {} from (select row({})::text as t from only {table}) r",
        hash(0),
        hash(1),
        columns.join(", ")
    )
}

/// `None`: the table is not there any more, or not all of these columns are. The transaction goes on.
async fn sum(client: &Client, sql: &str) -> Result<Option<Sum>, tokio_postgres::Error> {
    const CHANGED: [SqlState; 2] = [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN];
    client.batch_execute("savepoint summed").await?;
    match client.query_one(sql, &[]).await {
        Ok(row) => {
            client.batch_execute("release savepoint summed").await?;
            Ok(Some(Sum { rows: row.get(0), sum: row.get(1) }))
        }
        Err(error) if error.code().is_some_and(|code| CHANGED.contains(code)) => {
            client.batch_execute("rollback to savepoint summed").await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_one_side_has_are_named() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(columns_differ(&names(&["a", "b"]), &names(&["b", "a"])), None);
        assert_eq!(
            columns_differ(&names(&["a", "new", "other"]), &names(&["a", "old"])).as_deref(),
            Some("only production has new, other; only the root branch has old")
        );
        assert_eq!(
            columns_differ(&names(&["a"]), &names(&["a", "old"])).as_deref(),
            Some("only the root branch has old")
        );
        let sql = sum_statement(&names(&["a", "b c"]), "s.t");
        assert!(sql.contains(r#"row("a", "b c")::text"#) && sql.contains("from only s.t"), "{sql}");
    }
}
