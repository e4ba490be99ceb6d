//! Who writes a timeline: its branch's compute, its connector, or, where nobody does, one that control has elected for a moment.

use std::any::Any;

use ardent_api::control::ErrorInfo;
use ardent_api::token::{Claims, Rights, Service};
use ardent_api::wal_service::Membership;
use ardent_types::{Lsn, TenantId, TimelineId};

use crate::deps::{MemberService, StorageError};
use crate::service::Control;
use crate::store::StoreError;

/// A writer that writes nothing, but has completed the log on the safekeepers. It is one until it is dropped.
pub(crate) type Writer = Box<dyn Any + Send + Sync>;

/// Nobody was elected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ElectError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Control {
    /// Whether somebody writes the timeline, as far as this server knows: a compute, or a connector that follows production.
    pub(crate) fn expects_writer(&self, timeline: TimelineId) -> Result<bool, StoreError> {
        let branches = self.context.store.branches()?;
        let branch = branches.iter().find(|row| row.timeline == timeline);
        if branch.is_some_and(|branch| self.pool.has_slot(branch.id)) {
            return Ok(true);
        }
        let connectors = self.context.store.connectors()?;
        let connector = connectors.iter().find(|row| row.timeline == timeline && row.logical.is_none());
        Ok(connector.is_some_and(|row| self.following(&row.name) == (true, None)))
    }

    /// A writer that writes nothing, for a timeline that nobody else writes, and where the log ends; `None` if somebody may be about to write.
    pub(crate) async fn elect_for(
        &self,
        service: &dyn MemberService,
        (tenant, timeline): (TenantId, TimelineId),
        membership: &Membership,
    ) -> Result<Option<(Writer, Lsn)>, ElectError> {
        let branch = self.context.store.branches()?.into_iter().find(|row| row.timeline == timeline);
        // While the gate is closed nobody wakes the branch; one that is awake, or about to be, has a writer of its own.
        let _closed = match &branch {
            Some(branch) => Some(self.pool.close_gate(branch.id).await),
            None => None,
        };
        if branch.as_ref().is_some_and(|branch| self.pool.has_slot(branch.id)) {
            return Ok(None);
        }
        let token = self.context.tokens.issue(&Claims {
            service: Service::Safekeeper,
            tenant: Some(tenant),
            timeline: Some(timeline),
            rights: Rights::Write,
            expires_at_s: None,
        });
        Ok(Some(service.elect((tenant, timeline), membership.clone(), token).await?))
    }
}

impl From<ElectError> for ErrorInfo {
    fn from(error: ElectError) -> Self {
        match error {
            ElectError::Store(error) => error.into(),
            ElectError::Storage(error) => error.into(),
        }
    }
}
