//! What a logical connector has on production: a slot and a publication.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::logical::config::LogicalConfig;
use crate::logical::error::{LogicalError, source};
use crate::logical::session::{connect_source, quoted};

/// How long a connection of ours that has just been closed may hold the slot.
const WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// Drops both. Fine if they are not there.
pub async fn delete_logical(config: &LogicalConfig) -> Result<(), LogicalError> {
    let production = connect_source(&config.connector.url).await?;
    drop_both(&production, &config.connector.slot_name()).await
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
