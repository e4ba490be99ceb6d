//! The lease that keeps the page server from forgetting the version that absent pages are read at.
//!
//! What is absent after a completed checkpoint was not changed before its redo LSN: a block that is changed is in Postgres's memory, and
//! the checkpoint puts it into its file, where it is absent no more. So absent blocks are the same at the redo LSN, and the lease moves up
//! to it: a compute that runs for months holds up garbage collection no longer than since its last checkpoint. Two names take turns,
//! so that what is still asked for at the position before stays pinned meanwhile.

use std::path::Path;
use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::{ErrorCode, ManageReply, ManageRequest};
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_types::Lsn;
use tokio::time::Instant;

use crate::error::ComputeError;
use crate::memory::unix_now_s;
use crate::start_point::completed_checkpoint;

/// How long a running compute's lease holds after the last renewal: a killed agent pins old versions no longer than this.
const RUNNING_TTL: Duration = Duration::from_secs(15 * 60);
const RENEW_EVERY: Duration = Duration::from_secs(3 * 60);
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// How long a stopped compute's data directory can be started again.
const WARM_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// What is read at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeasedAt {
    /// What absent pages are read at.
    pub(crate) base_lsn: Lsn,
    /// What the presence map was made at.
    pub(crate) map_lsn: Lsn,
}

/// A lease, held under this compute's own names.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pageserver: ServiceAddr,
    binding: Binding,
    name: String,
    at: LeasedAt,
    /// The second name's turn.
    second: bool,
    every: Duration,
    due: Instant,
}

impl Lease {
    /// A lease that has not been taken yet. `every`: how often it is renewed, if not as usual.
    pub(crate) fn new(
        pageserver: ServiceAddr,
        binding: Binding,
        name: String,
        at: LeasedAt,
        every: Option<Duration>,
    ) -> Self {
        let every = every.unwrap_or(RENEW_EVERY);
        Lease { pageserver, binding, name, at, second: false, every, due: Instant::now() + every }
    }

    /// What absent pages are read at.
    pub(crate) fn base_lsn(&self) -> Lsn {
        self.at.base_lsn
    }

    /// What the presence map was made at.
    pub(crate) fn map_lsn(&self) -> Lsn {
        self.at.map_lsn
    }

    /// Takes or renews the lease for a running compute.
    pub(crate) async fn take(&self, client: &mut PageClient) -> Result<(), PageError> {
        self.set(client, self.second, self.at.base_lsn, RUNNING_TTL).await
    }

    /// Renews until the lease has moved up, to what is given, or is lost. Cancel-safe: called again, it goes on.
    pub(crate) async fn keep(&mut self, data: &Path) -> Result<Lsn, ComputeError> {
        loop {
            tokio::time::sleep_until(self.due).await;
            match self.renew_or_move(data).await {
                Ok(moved) => {
                    self.due = Instant::now() + self.every;
                    if let Some(lsn) = moved {
                        return Ok(lsn);
                    }
                }
                Err(error) if lost(&error) => return Err(ComputeError::BaseLsnExpired { lsn: self.at.base_lsn }),
                Err(error) => {
                    self.due = Instant::now() + self.every.min(RETRY_EVERY);
                    tracing::warn!(error = &error as &dyn std::error::Error, "the lease cannot be renewed now");
                }
            }
        }
    }

    async fn renew_or_move(&mut self, data: &Path) -> Result<Option<Lsn>, PageError> {
        let mut client = PageClient::connect(&self.pageserver, &self.binding).await?;
        self.take(&mut client).await?;
        let Some(redo) = completed_checkpoint(data).filter(|redo| *redo > self.at.base_lsn) else { return Ok(None) };
        match self.set(&mut client, !self.second, redo, RUNNING_TTL).await {
            Ok(()) => {
                self.second = !self.second;
                self.at.base_lsn = redo;
                Ok(Some(redo))
            }
            // The page server has not come so far yet, or something is wrong with what was read: what is held is good.
            Err(error) if error.code().is_some() => {
                tracing::debug!(%error, %redo, "the lease is not moved up now");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Holds the lease for a stopped compute; gives the time when it runs out, in seconds since the Unix epoch.
    pub(crate) async fn keep_warm(&self) -> Result<u64, PageError> {
        let until_s = unix_now_s() + WARM_TTL.as_secs();
        let mut client = PageClient::connect(&self.pageserver, &self.binding).await?;
        self.set(&mut client, self.second, self.at.base_lsn, WARM_TTL).await.map(|()| until_s)
    }

    /// Gives the lease back.
    pub(crate) async fn release(&self) -> Result<(), PageError> {
        let mut client = PageClient::connect(&self.pageserver, &self.binding).await?;
        for second in [false, true] {
            self.set(&mut client, second, self.at.base_lsn, Duration::ZERO).await?;
        }
        Ok(())
    }

    async fn set(&self, client: &mut PageClient, second: bool, lsn: Lsn, ttl: Duration) -> Result<(), PageError> {
        let request = ManageRequest::Lease {
            timeline: self.binding.timeline,
            name: if second { format!("{}-2", self.name) } else { self.name.clone() },
            lsn,
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
