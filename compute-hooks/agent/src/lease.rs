//! The lease that keeps the page server from forgetting the version that absent pages are read at.
//!
//! What is absent after a completed checkpoint was not changed before its redo LSN: a block that is changed is in Postgres's memory, and
//! the checkpoint puts it into its file, where it is absent no more. So absent blocks are the same at the redo LSN, and the lease moves up
//! to it: a compute that runs for months holds up garbage collection no longer than since its last checkpoint. Two names take turns,
//! so that what is still asked for at the position before stays pinned meanwhile.
//!
//! A compute that is cut off from storage does not see that another one has taken its place. It ends when a lease would run out, counted from
//! when the page server was last met: that bounds for how long it serves what may be out of date (`docs/isolation.md`). A page server that
//! answers and cannot renew, because its store is away, is met all the same: nothing is collected then either.

use std::path::Path;
use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::compute::ComputeSpec;
use ardent_api::page_service::{ErrorCode, ManageReply, ManageRequest};
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_types::Lsn;
use tokio::time::Instant;

use crate::error::ComputeError;
use crate::memory::unix_now_s;
use crate::serving::HeldLease;
use crate::start_point::completed_checkpoint;

/// How long a running compute's lease holds after the last renewal: a killed agent pins old versions no longer than this.
const RUNNING_TTL: Duration = Duration::from_secs(15 * 60);
const RENEW_EVERY: Duration = Duration::from_secs(3 * 60);
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Longest that one try to renew may take: longer than the page server waits for WAL that it lacks.
const TRY_PATIENCE: Duration = Duration::from_secs(60);
/// The part of its lease's time by which a compute ends early. The page server counts in whole seconds and by another clock, and must
/// not be the one that lets go first: what is absent could not be read any more, by sessions that are still there.
const MARGIN_SHARE: u32 = 20;
/// The part of that time that is left to try in, where a start took longer than the lease holds. Less than the margin: who was held up until
/// shortly before the end must not get past it.
const LATE_SHARE: u32 = 30;
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

/// How the lease of a running compute is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseTimes {
    /// How often it is renewed.
    every: Duration,
    /// How long it holds after a renewal.
    ttl: Duration,
}

impl LeaseTimes {
    /// As the specification says, or as usual.
    pub(crate) fn of(spec: &ComputeSpec) -> Self {
        let usual = LeaseTimes::default();
        LeaseTimes {
            every: spec.lease_renewal_ms.map_or(usual.every, Duration::from_millis),
            ttl: spec.lease_ttl_ms.map_or(usual.ttl, Duration::from_millis),
        }
    }
}

impl Default for LeaseTimes {
    fn default() -> Self {
        LeaseTimes { every: RENEW_EVERY, ttl: RUNNING_TTL }
    }
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
    times: LeaseTimes,
    due: Instant,
    /// When the last connection that the page server answered was begun: it counts from later on.
    met_at: Instant,
    /// When the first of the tries was made that have failed since.
    failing_since: Option<Instant>,
}

impl Lease {
    /// A lease that is taken next.
    pub(crate) fn new(
        pageserver: ServiceAddr,
        binding: Binding,
        name: String,
        at: LeasedAt,
        times: LeaseTimes,
    ) -> Self {
        let now = Instant::now();
        let due = now + times.every;
        Lease { pageserver, binding, name, at, second: false, times, due, met_at: now, failing_since: None }
    }

    /// One that an agent before this one held, and that is taken next.
    pub(crate) fn held(
        pageserver: ServiceAddr,
        binding: Binding,
        name: String,
        held: HeldLease,
        times: LeaseTimes,
    ) -> Self {
        let HeldLease { base_lsn, map_lsn, second } = held;
        Lease { second, ..Lease::new(pageserver, binding, name, LeasedAt { base_lsn, map_lsn }, times) }
    }

    /// For whoever takes it over.
    pub(crate) fn to_held(&self) -> HeldLease {
        HeldLease { base_lsn: self.at.base_lsn, map_lsn: self.at.map_lsn, second: self.second }
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
        self.set(client, self.second, self.at.base_lsn, self.times.ttl).await
    }

    /// Renews until the lease has moved up, to what is given, is lost, or nobody has been met for as long as one holds. Cancel-safe: called again, it goes on.
    pub(crate) async fn keep(&mut self, data: &Path) -> Result<Lsn, ComputeError> {
        let mut last = None;
        loop {
            tokio::time::sleep_until(self.due).await;
            let now = Instant::now();
            let failing_since = *self.failing_since.get_or_insert(now);
            let until = self.ends_at(failing_since).min(now + TRY_PATIENCE);
            match tokio::time::timeout_at(until, self.renew_or_move(data)).await {
                Ok(Ok(moved)) => {
                    self.failing_since = None;
                    self.due = Instant::now() + self.times.every;
                    match moved {
                        Some(lsn) => return Ok(lsn),
                        None => continue,
                    }
                }
                Ok(Err(error)) if lost(&error) => return Err(ComputeError::BaseLsnExpired { lsn: self.at.base_lsn }),
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the lease cannot be renewed now");
                    last = Some(error);
                }
                Err(_) => tracing::warn!("the page server does not answer: the lease cannot be renewed now"),
            }
            // It may have been met, and no more.
            let (now, ends_at) = (Instant::now(), self.ends_at(failing_since));
            if now >= ends_at {
                return Err(ComputeError::LeaseRanOut { silent: now - self.met_at, source: last });
            }
            self.due = ends_at.min(now + self.times.every.min(RETRY_EVERY));
        }
    }

    /// When the compute ends, if the page server is not met up to then.
    fn ends_at(&self, failing_since: Instant) -> Instant {
        let held = self.met_at + (self.times.ttl - self.times.ttl / MARGIN_SHARE);
        held.max(failing_since + self.times.ttl / LATE_SHARE)
    }

    async fn renew_or_move(&mut self, data: &Path) -> Result<Option<Lsn>, PageError> {
        let asked_at = Instant::now();
        let mut client = PageClient::connect(&self.pageserver, &self.binding).await?;
        self.met_at = asked_at;
        self.take(&mut client).await?;
        let Some(redo) = completed_checkpoint(data).filter(|redo| *redo > self.at.base_lsn) else { return Ok(None) };
        match self.set(&mut client, !self.second, redo, self.times.ttl).await {
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
            // A part of a second must not become none: that gives the lease back.
            ttl_s: ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0),
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

#[cfg(test)]
mod tests {
    use ardent_types::{TenantId, TimelineId};

    use super::*;

    /// A lease at a page server that takes connections and says nothing.
    fn unanswered(folder: &Path) -> (std::os::unix::net::UnixListener, Lease) {
        let socket = folder.join("pageserver.sock");
        let silent = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        let binding =
            Binding { tenant: TenantId::generate(), timeline: TimelineId::generate(), token: "token".to_owned() };
        let at = LeasedAt { base_lsn: Lsn::new(8), map_lsn: Lsn::new(8) };
        let lease = Lease::new(ServiceAddr::Unix(socket), binding, "compute-x".to_owned(), at, LeaseTimes::default());
        (silent, lease)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_not_renewed_ends_the_compute_before_the_page_server_lets_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_silent, mut lease) = unanswered(folder.path());
        let began = Instant::now();
        // Interrupted, as it is by whatever else a compute does: no try comes to its own end.
        let error = loop {
            match tokio::time::timeout(TRY_PATIENCE / 3, lease.keep(folder.path())).await {
                Ok(outcome) => break outcome.expect_err("nobody renews it"),
                Err(_) => assert!(began.elapsed() < RUNNING_TTL, "it goes on without a lease"),
            }
        };
        let served = began.elapsed();
        assert!(RUNNING_TTL * 9 / 10 < served && served < RUNNING_TTL, "{served:?}");
        assert_eq!(error.code(), "lease_ran_out");
        assert!(error.to_string().contains("page server"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_at_the_socket_is_the_same_and_says_why() {
        let folder = tempfile::tempdir().expect("a folder");
        let (silent, mut lease) = unanswered(folder.path());
        drop(silent);
        let began = Instant::now();
        let error = lease.keep(folder.path()).await.expect_err("nobody renews it");
        assert!(began.elapsed() < RUNNING_TTL);
        assert_eq!(error.code(), "lease_ran_out");
        assert!(std::error::Error::source(&error).is_some(), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_took_longer_than_the_lease_holds_leaves_time_for_a_try() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_silent, mut lease) = unanswered(folder.path());
        tokio::time::advance(RUNNING_TTL * 2).await;
        let began = Instant::now();
        lease.keep(folder.path()).await.expect_err("nobody renews it");
        assert_eq!(began.elapsed().as_secs(), (RUNNING_TTL / LATE_SHARE).as_secs());
    }
}
