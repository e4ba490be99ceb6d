//! What a logical connector has on production: a slot and a publication.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use ardent_types::Lsn;
use ardent_types::sql::quoted;

use crate::logical::config::LogicalConfig;
use crate::logical::error::{LogicalError, source};
use crate::logical::session::connect_source;

/// How long a connection of ours that has just been closed may hold the slot.
const WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// Drops both. Fine if they are not there.
pub async fn delete_logical(config: &LogicalConfig) -> Result<(), LogicalError> {
    let production = connect_source(&config.connector.url).await?;
    drop_both(&production, &config.connector.slot_name()).await
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
    let deadline = Instant::now() + WAIT;
    loop {
        let dropped = production
            .execute(
                "select pg_catalog.pg_drop_replication_slot(slot_name) from pg_catalog.pg_replication_slots where slot_name = $1",
                &[&name],
            )
            .await;
        match dropped {
            Ok(_) => break,
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => break,
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) && Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(source("dropping the replication slot")(error)),
        }
    }
    let drop = format!("drop publication if exists {}", quoted(name));
    production.batch_execute(&drop).await.map_err(source("dropping the publication"))
}
