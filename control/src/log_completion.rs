//! What was committed just before everything ended at once, and what nobody says to be committed since.
//!
//! A safekeeper notes its commit position when it rests (`docs/quorum.md`). After a crash the log goes on behind what it had noted, and is
//! committed anew when somebody is elected to write it: for a branch that is when it is woken. Who branches from it, reads its history or
//! wakes what was made from it needs that end as well, and wakes nobody. So control has a writer elected there, which writes nothing, and
//! keeps it until the page server has the WAL. Where the safekeepers have no more than they say to be committed, that is one question to them.

use std::time::Duration;

use futures_util::future::join_all;
use tracing::{info, warn};

use ardent_types::{Lsn, TenantId, TimelineId};

use crate::deps::StorageErrorKind;
use crate::service::Control;
use crate::store::BranchRow;
use crate::writers::{ElectError, Writer};

/// How long the page server may take to ingest what was completed.
const INGEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A log that has a writer now, and what it turned out to have.
struct Completed {
    tenant: TenantId,
    timeline: TimelineId,
    committed: Lsn,
    _writer: Writer,
}

impl Control {
    /// Before something is read at `lsn`, which somebody was told to be committed: what stands in the way after a crash goes out of it, on the
    /// timeline and on what it hangs on. What else does is told by whoever reads.
    pub(crate) async fn make_readable(&self, tenant: TenantId, timeline: TimelineId, lsn: Lsn) {
        let looked_at = self.context.page_service.wait_lsn(tenant, timeline, lsn, Duration::ZERO).await;
        if !looked_at.is_err_and(|error| error.kind == StorageErrorKind::Timeout) {
            return;
        }
        let own = self.writer_for(tenant, timeline).await.unwrap_or_else(|error| {
            warn!(%timeline, %error, "its log cannot be completed");
            None
        });
        self.with_ancestors(tenant, timeline, own).await;
    }

    /// The same before a branch is started.
    pub(crate) async fn make_ancestors_readable(&self, branch: &BranchRow) {
        if let (Some(ancestor), Some(start_lsn)) = (branch.ancestor, branch.start_lsn) {
            self.make_readable(branch.tenant, ancestor, start_lsn).await;
        }
    }

    /// Before somebody asks how far the timeline is committed: all that was ever told to be is, and the page server has it.
    pub(crate) async fn complete_log(&self, tenant: TenantId, timeline: TimelineId) -> Result<(), ElectError> {
        if let Some(own) = self.writer_for(tenant, timeline).await? {
            self.with_ancestors(tenant, timeline, Some(own)).await;
        }
        Ok(())
    }

    /// Completes what the timeline hangs on, and waits until the page server has that, and `own`, the timeline's own log.
    async fn with_ancestors(&self, tenant: TenantId, timeline: TimelineId, own: Option<Completed>) {
        let above = self.context.store.ancestors_of(timeline).unwrap_or_else(|error| {
            warn!(%timeline, %error, "what it hangs on cannot be looked up");
            Vec::new()
        });
        // Ingest of one needs the other: all have writers before the first is waited for.
        let found = join_all(above.iter().map(|timeline| self.writer_for(tenant, *timeline))).await;
        let mut completed = Vec::from_iter(own);
        for (timeline, found) in above.iter().zip(found) {
            match found {
                Ok(found) => completed.extend(found),
                Err(error) => warn!(%timeline, %error, "its log cannot be completed"),
            }
        }
        join_all(completed.iter().map(|log| self.ingested(log))).await;
    }

    /// A writer, if the safekeepers hold more than they say to be committed and nobody else is about to write it.
    async fn writer_for(&self, tenant: TenantId, timeline: TimelineId) -> Result<Option<Completed>, ElectError> {
        let Some(service) = self.context.wal_service.members() else { return Ok(None) };
        if self.expects_writer(timeline)? {
            return Ok(None);
        }
        let Some(end) = self.context.wal_service.log_end(tenant, timeline).await? else { return Ok(None) };
        if end.flush_lsn <= end.commit_lsn {
            return Ok(None);
        }
        let membership = self.context.wal_service.membership();
        let elected = self.elect_for(service, (tenant, timeline), &membership).await?;
        Ok(elected.map(|(writer, committed)| {
            info!(%timeline, said = %end.commit_lsn, %committed, "a log that a crash had left was completed");
            Completed { tenant, timeline, committed, _writer: writer }
        }))
    }

    /// Waiting makes the page server receive it.
    async fn ingested(&self, log: &Completed) {
        let Completed { tenant, timeline, committed, .. } = log;
        let ingested = self.context.page_service.wait_lsn(*tenant, *timeline, *committed, INGEST_TIMEOUT).await;
        if let Err(error) = ingested {
            warn!(%timeline, %committed, %error, "the page server has not got what was completed yet");
        }
    }
}
