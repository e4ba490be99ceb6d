//! Ends sessions whose statement goes on long after the branch's policy: the library cancels in time, and this is for those
//! that have got around it.

use std::path::Path;
use std::time::Duration;

use crate::session::Sessions;

/// How long after twice the limit a session is ended.
const GRACE: Duration = Duration::from_secs(5);
/// Shortest time between two looks.
const LOOK_EVERY_MIN: Duration = Duration::from_secs(1);

/// Watches one compute's statements.
#[derive(Debug)]
pub(crate) struct OverdueWatch {
    sessions: Sessions,
    limit: Option<Duration>,
}

impl OverdueWatch {
    pub(crate) fn new(run: &Path, limit_ms: Option<u64>) -> Self {
        OverdueWatch { sessions: Sessions::new(run), limit: limit_ms.map(Duration::from_millis) }
    }

    /// Watches for ever. Cancel-safe.
    pub(crate) async fn watch(&self) {
        let Some(limit) = self.limit else { return std::future::pending().await };
        let latest = limit * 2 + GRACE;
        // Who waits for the quorum only has done what it asked for.
        let query = format!(
            "select pid, pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
             where backend_type = 'client backend' and state = 'active' and pid <> pg_catalog.pg_backend_pid()
               and wait_event is distinct from 'SyncRep'
               and query_start < pg_catalog.clock_timestamp() - interval '{} milliseconds'",
            latest.as_millis()
        );
        loop {
            tokio::time::sleep(limit.max(LOOK_EVERY_MIN)).await;
            match tokio::time::timeout(GRACE, self.sessions.ask(&query)).await {
                Ok(Ok(ended)) if !ended.is_empty() => {
                    tracing::warn!(?ended, "sessions past the statement timeout were ended")
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "statements cannot be looked at");
                }
                Err(_) => tracing::warn!("a look at the statements took too long"),
            }
        }
    }
}
