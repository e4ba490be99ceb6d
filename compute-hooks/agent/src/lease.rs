//! The lease that keeps the page server from forgetting the version that absent pages are read at.

use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::{ErrorCode, ManageReply, ManageRequest};
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_types::Lsn;

use crate::error::ComputeError;
use crate::memory::unix_now_s;

/// How long a running compute's lease holds after the last renewal: a killed agent pins old versions no longer than this.
const RUNNING_TTL: Duration = Duration::from_secs(15 * 60);
const RENEW_EVERY: Duration = Duration::from_secs(3 * 60);
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// How long a stopped compute's data directory can be started again.
const WARM_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A lease, held under this compute's own name.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) pageserver: ServiceAddr,
    pub(crate) binding: Binding,
    pub(crate) name: String,
    pub(crate) base_lsn: Lsn,
}

impl Lease {
    /// Takes or renews the lease for a running compute.
    pub(crate) async fn take(&self, client: &mut PageClient) -> Result<(), PageError> {
        self.set(client, RUNNING_TTL).await
    }

    /// Renews for ever; returns only when the lease is lost. Cancel-safe.
    pub(crate) async fn keep(&self) -> ComputeError {
        let mut pause = RENEW_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.set_on_new_connection(RUNNING_TTL).await {
                Ok(()) => RENEW_EVERY,
                Err(error) if lost(&error) => return ComputeError::BaseLsnExpired { lsn: self.base_lsn },
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the lease cannot be renewed now");
                    RETRY_EVERY
                }
            };
        }
    }

    /// Holds the lease for a stopped compute; gives the time when it runs out, in seconds since the Unix epoch.
    pub(crate) async fn keep_warm(&self) -> Result<u64, PageError> {
        let until_s = unix_now_s() + WARM_TTL.as_secs();
        self.set_on_new_connection(WARM_TTL).await.map(|()| until_s)
    }

    /// Gives the lease back.
    pub(crate) async fn release(&self) -> Result<(), PageError> {
        self.set_on_new_connection(Duration::ZERO).await
    }

    async fn set_on_new_connection(&self, ttl: Duration) -> Result<(), PageError> {
        let mut client = PageClient::connect(&self.pageserver, &self.binding).await?;
        self.set(&mut client, ttl).await
    }

    async fn set(&self, client: &mut PageClient, ttl: Duration) -> Result<(), PageError> {
        let request = ManageRequest::Lease {
            timeline: self.binding.timeline,
            name: self.name.clone(),
            lsn: self.base_lsn,
            ttl_s: ttl.as_secs(),
        };
        let reply = client.manage(request).await?;
        if reply != ManageReply::Done {
            tracing::warn!(?reply, "a lease is answered with something else");
        }
        Ok(())
    }
}

/// Whether the page server no longer keeps that version.
pub(crate) fn lost(error: &PageError) -> bool {
    matches!(error.code(), Some(ErrorCode::BaseLsnExpired | ErrorCode::LsnOutOfRange | ErrorCode::TimelineNotFound))
}
