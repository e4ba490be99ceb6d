//! What is said of a connector: its state, how far it is behind production, and what will hurt.

use std::time::Duration;

use ardent_api::control::{ConnectorInfo, ConnectorState, ErrorInfo, SCHEMA_VERSION};
use ardent_api::page_service::TimelineStatus;
use ardent_types::Lsn;
use tokio::time::error::Elapsed;

use crate::service::Control;
use crate::store::{ConnectorRow, iso8601, now_us};

/// Longest wait for production's position, and for what the page server knows, in a status.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);
/// Being away for less is no news: a restart of production, a network that was gone for a moment.
const INTERRUPTED_WARN: Duration = Duration::from_secs(10);
/// Being behind by less is soon over, whatever compaction does.
const LAG_WARN_BYTES: u64 = 64 << 20;

impl Control {
    /// All connectors, without asking production.
    pub async fn list_connectors(&self) -> Result<Vec<ConnectorInfo>, ErrorInfo> {
        let (mut list, mut answers) = (Vec::new(), true);
        for row in self.context.store.connectors()? {
            // A page server whose store is away does not answer, of none of them.
            let status = if answers { self.page_server_status(&row).await } else { Ok(None) };
            answers &= status.is_ok();
            let status = status.ok().flatten();
            list.push(self.connector_info(&row, status.as_ref(), None)?);
        }
        Ok(list)
    }

    /// One connector with its lag.
    pub async fn show_connector(&self, name: &str) -> Result<ConnectorInfo, ErrorInfo> {
        self.connector_status_of(&self.find_connector(name)?).await
    }

    pub(crate) async fn connector_status_of(&self, row: &ConnectorRow) -> Result<ConnectorInfo, ErrorInfo> {
        self.refresh_logical(row).await;
        let asked = self.context.connectors.production_flush_lsn(self.connector_spec_of(row)?);
        let looked = async {
            if row.state == ConnectorState::Ready {
                self.look_at_slot(row).await;
            }
        };
        // Side by side: a production that does not answer is waited for once.
        let (production, ()) = tokio::join!(tokio::time::timeout(STATUS_TIMEOUT, asked), looked);
        let production = production.ok().and_then(Result::ok);
        let status = self.page_server_status(row).await.ok().flatten();
        self.connector_info(row, status.as_ref(), production)
    }

    /// What the page server says of its timeline, if it does in time; nothing where it has none yet.
    async fn page_server_status(&self, row: &ConnectorRow) -> Result<Option<TimelineStatus>, Elapsed> {
        let asked = self.context.timeline_status(row.tenant, row.timeline);
        Ok(tokio::time::timeout(STATUS_TIMEOUT, asked).await?.ok())
    }

    /// What will hurt if nothing is done.
    pub(crate) fn connector_warnings(&self, row: &ConnectorRow) -> Vec<String> {
        let mut warnings = self.slot_warnings(&row.name);
        warnings.extend(self.logical_warnings(row));
        warnings.extend(self.interruption_warning(row));
        warnings
    }

    /// That production is not followed, though it should be, once that lasts.
    fn interruption_warning(&self, row: &ConnectorRow) -> Option<String> {
        if row.state != ConnectorState::Ready {
            return None;
        }
        let (lasts, why) = self.interruption(&row.name)?;
        warning(lasts, &why)
    }

    pub(crate) fn connector_info(
        &self,
        row: &ConnectorRow,
        status: Option<&ardent_api::page_service::TimelineStatus>,
        production: Option<Lsn>,
    ) -> Result<ConnectorInfo, ErrorInfo> {
        let ingested = status.map(|status| status.last_record_lsn);
        let last_commit_us = status.and_then(|status| status.last_commit_us);
        let logical = self.logical_info(row);
        // The root branch of a connector in logical mode has a log of its own.
        let reached = match &logical {
            Some(logical) => logical.applied_lsn,
            None => ingested,
        };
        let lag_bytes = production.zip(reached).map(|(production, reached)| production.saturating_sub(reached));
        let lag_seconds = match (lag_bytes, last_commit_us) {
            (Some(0), _) => Some(0),
            (Some(_), Some(at_us)) => u64::try_from(now_us().saturating_sub(at_us) / 1_000_000).ok(),
            _ => None,
        };
        let waits = status.is_some_and(|status| status.waits_for_compaction);
        let mut warnings = self.connector_warnings(row);
        warnings.extend(lag_bytes.filter(|_| waits).and_then(compaction_warning));
        let branches = self.context.store.branches()?;
        let (following, problem) = self.following(&row.name);
        let unmasked = self.unmasked(row)?;
        Ok(ConnectorInfo {
            schema_version: SCHEMA_VERSION,
            name: row.name.clone(),
            state: row.state,
            source: row.source.clone(),
            tenant_id: row.tenant,
            timeline_id: row.timeline,
            created_at: iso8601(row.created_us),
            pg_major: row.pg_major,
            following,
            problem,
            ingested_lsn: ingested,
            last_commit_at: last_commit_us.map(iso8601),
            production_lsn: production,
            lag_bytes,
            lag_seconds,
            logical_size_bytes: status.and_then(|status| status.logical_size_bytes),
            slot: self.slots.last(&row.name),
            warnings,
            branches: branches.iter().filter(|b| b.connector == row.name && !b.is_root() && b.is_listed()).count()
                as u64,
            masked_only: row.masked_only,
            unmasked_branches: unmasked.as_ref().map(|(count, _)| *count),
            unmasked_first: unmasked.map(|(_, first)| first).unwrap_or_default(),
            logical,
        })
    }
}

/// What there is to say of a connector that is not followed.
fn warning(lasts: Duration, why: &str) -> Option<String> {
    (lasts >= INTERRUPTED_WARN).then(|| format!("production has not been followed for {} s: {why}", lasts.as_secs()))
}

/// What there is to say of a page server that is so far behind production, and whose compaction is behind.
fn compaction_warning(lag_bytes: u64) -> Option<String> {
    (lag_bytes >= LAG_WARN_BYTES).then(|| {
        format!(
            "the page server is {} MB behind, as compaction of what came before takes longer than the WAL to come: it catches up by itself when less is \
             written, or with more processors; branch create waits for it, with --at latest it does not",
            lag_bytes >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compaction_that_holds_wal_back_is_told_of_when_it_is_much() {
        assert_eq!(compaction_warning(LAG_WARN_BYTES - 1), None);
        let warning = compaction_warning(100 << 20).expect("it is much");
        assert!(warning.contains("is 100 MB behind") && warning.contains("--at latest"), "{warning}");
    }

    #[test]
    fn an_interruption_is_told_of_once_it_lasts() {
        assert_eq!(warning(Duration::from_secs(9), "connection refused"), None);
        assert_eq!(
            warning(Duration::from_secs(12), "connection refused").as_deref(),
            Some("production has not been followed for 12 s: connection refused")
        );
    }
}
