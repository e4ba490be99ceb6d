//! What a logical connector has on production: a slot and a publication.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use ardent_types::Lsn;
use ardent_types::sql::{literal, quoted};

use crate::logical::config::{LogicalConfig, RootBranch};
use crate::logical::copy::encode;
use crate::logical::error::{LogicalError, root, source};
use crate::logical::session::{connect_root, connect_source};
use crate::logical::state::LogicalState;

/// How long a connection of ours that has just been closed may hold the slot.
const WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// Drops both. Fine if they are not there. An error says which of them is left, and how to drop it.
pub async fn delete_logical(config: &LogicalConfig) -> Result<(), LogicalError> {
    let name = config.connector.slot_name();
    let slot_left = |error: LogicalError| {
        LogicalError::Refused(format!(
            "the replication slot {name} could not be dropped, and keeps WAL there ({}). When that is seen to, drop it: \
             SELECT pg_drop_replication_slot({}); and the publication: DROP PUBLICATION {}",
            error.chain(),
            literal(&name),
            quoted(&name)
        ))
    };
    let production = connect_source(&config.connector.url).await.map_err(&slot_left)?;
    drop_slot(&production, &name).await.map_err(&slot_left)?;
    drop_publication(&production, &name).await.map_err(|error| {
        LogicalError::Refused(format!(
            "the replication slot is gone, but the publication {name} could not be dropped, which keeps no WAL ({}). Drop it there: \
             DROP PUBLICATION {}",
            error.chain(),
            quoted(&name)
        ))
    })
}

/// Makes sure that production still sends all that the root lacks: that the slot, which nobody else can use at this moment, is not
/// further than production was ever told that all is here. What is not known of it yet is remembered.
pub(crate) async fn check_position(
    production: &Client,
    config: &LogicalConfig,
    branch: &dyn RootBranch,
) -> Result<(), LogicalError> {
    const AT: &str = "select confirmed_flush_lsn::text from pg_catalog.pg_replication_slots \
         where slot_name = $1 and slot_type = 'logical'";
    let slot = config.connector.slot_name();
    let row = production.query_opt(AT, &[&slot]).await.map_err(source("looking at its replication slot"))?;
    let at = row.and_then(|row| row.get::<_, Option<String>>(0));
    let Some(at) = at.and_then(|text| text.parse::<Lsn>().ok()) else {
        return Err(LogicalError::SlotDropped { slot });
    };
    let mut state = LogicalState::read(branch)?;
    match state.confirmed_lsn {
        Some(confirmed) if at <= confirmed => Ok(()),
        // What was committed on the root was confirmed without being remembered.
        Some(confirmed) => {
            let known = confirmed.max(applied_on_root(config, branch, &slot).await?);
            if at <= known {
                return Ok(());
            }
            state.is_objected_to = true;
            branch.save(&encode(&state)).map_err(LogicalError::Branch)?;
            Err(LogicalError::SlotMoved { slot, at, known })
        }
        None => {
            state.confirmed_lsn = Some(at);
            branch.save(&encode(&state)).map_err(LogicalError::Branch)
        }
    }
}

/// Up to where the root's transactions say that production's log was applied.
async fn applied_on_root(config: &LogicalConfig, branch: &dyn RootBranch, origin: &str) -> Result<Lsn, LogicalError> {
    const PROGRESS: &str = "select pg_catalog.pg_replication_origin_progress(roname, true)::text \
         from pg_catalog.pg_replication_origin where roname = $1";
    let database = config.connector.connect_config()?.database().to_owned();
    let at = branch.wake().await.map_err(LogicalError::Branch)?;
    let client = connect_root(&at, &database).await?;
    let row = client.query_opt(PROGRESS, &[&origin]).await.map_err(root("asking how far it is"))?;
    let applied = row.and_then(|row| row.get::<_, Option<String>>(0)).and_then(|text| text.parse().ok());
    Ok(applied.unwrap_or(Lsn::INVALID))
}

/// Somebody has made up for what may have been missed: where it was said that slot or publication were changed, they are taken as they
/// are from here on.
pub(crate) fn accept(branch: &dyn RootBranch) -> Result<(), LogicalError> {
    let mut state = LogicalState::read(branch)?;
    if !state.is_objected_to {
        return Ok(());
    }
    (state.is_objected_to, state.confirmed_lsn, state.publication) = (false, None, None);
    branch.save(&encode(&state)).map_err(LogicalError::Branch)
}

/// Whether the server at the connector's URL can be followed in place of the one that was followed: it has the connector's slot and
/// publication, and nothing that follows on `applied` is missing. A slot cannot be made there: it would not know of earlier changes.
pub async fn can_follow_logical(config: &LogicalConfig, applied: Option<Lsn>) -> Result<(), LogicalError> {
    let production = connect_source(&config.connector.url).await?;
    let name = config.connector.slot_name();
    let refused = |why: String| Err(LogicalError::Refused(why));
    let row = production
        .query_one(
            "select pg_catalog.pg_is_in_recovery(), \
             case when not pg_catalog.pg_is_in_recovery() then pg_catalog.pg_current_wal_flush_lsn()::text end, \
             exists (select 1 from pg_catalog.pg_publication where pubname = $1), \
             (select confirmed_flush_lsn::text from pg_catalog.pg_replication_slots \
              where slot_name = $1 and slot_type = 'logical' and database = current_database())",
            &[&name],
        )
        .await
        .map_err(source("looking for the connector's slot"))?;
    if row.get(0) {
        return refused("the server at that address is in recovery: connect to its primary instead".into());
    }
    let lsn = |index: usize| row.get::<_, Option<String>>(index).and_then(|text| text.parse::<Lsn>().ok());
    let Some(confirmed) = lsn(3).filter(|_| row.get(2)) else {
        return refused(format!(
            "the server at that address has no slot and publication {name} in this database: it is another server, or a standby to \
             which slots were not synchronised, and what changed there meanwhile cannot be known"
        ));
    };
    if let Some(applied) = applied.filter(|applied| applied.is_valid()) {
        if confirmed > applied {
            return refused(format!(
                "the slot there is at {confirmed}, and the root branch has changes up to {applied} only"
            ));
        }
        if lsn(1).is_some_and(|flushed| flushed < applied) {
            return refused(format!(
                "the root branch has changes up to {applied}, which that server never had: it lacks what was committed last"
            ));
        }
    }
    Ok(())
}

pub(crate) async fn drop_both(production: &Client, name: &str) -> Result<(), LogicalError> {
    drop_slot(production, name).await?;
    drop_publication(production, name).await
}

async fn drop_slot(production: &Client, name: &str) -> Result<(), LogicalError> {
    let deadline = Instant::now() + WAIT;
    loop {
        let dropped = production
            .execute(
                "select pg_catalog.pg_drop_replication_slot(slot_name) from pg_catalog.pg_replication_slots where slot_name = $1",
                &[&name],
            )
            .await;
        match dropped {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) && Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(source("dropping the replication slot")(error)),
        }
    }
}

async fn drop_publication(production: &Client, name: &str) -> Result<(), LogicalError> {
    const IS_THERE: &str = "select exists (select 1 from pg_catalog.pg_publication where pubname = $1)";
    let is_there = production.query_one(IS_THERE, &[&name]).await.map_err(source("looking for the publication"))?;
    // A server that lets nothing be written refuses to drop what was never made as well.
    if !is_there.get::<_, bool>(0) {
        return Ok(());
    }
    let drop = format!("drop publication if exists {}", quoted(name));
    production.batch_execute(&drop).await.map_err(source("dropping the publication"))
}
