//! A running compute, until it stops: commands, idleness, and everything that can end it.
//!
//! ```text
//!              ┌── stop, idle ──► fast shutdown ──► all on the quorum ──► warm marker ──► Stopped{clean}
//!  running ────┤                        └─ deadline ──► kill ──┐
//!              ├── control gone, fenced, lease lost ──► kill ──┼──► data directory discarded ──► Stopped / Failed
//!              └── Postgres ended by itself ───────────────────┘
//! ```

use std::time::Duration;

use ardent_api::compute::{ComputeCommand, ComputeEvent};
use ardent_pg_format::ClusterState;
use ardent_types::{Lsn, Term};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::activity::ActivityWatch;
use crate::channel::{Events, Order, Orders};
use crate::error::ComputeError;
use crate::layout::PORT;
use crate::lease::Lease;
use crate::memory::{WarmFacts, WarmMarker};
use crate::page_door::PageDoor;
use crate::postgres_log::PostgresLog;
use crate::postmaster::Postmaster;
use crate::start::{Compute, Started};
use crate::start_point;
use crate::trash;

/// How long an idle compute may take to stop before it is killed.
const IDLE_STOP_DEADLINE: Duration = Duration::from_secs(60);
/// How long a killed Postgres may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A compute that serves.
#[derive(Debug)]
pub(crate) struct Running {
    compute: Compute,
    postmaster: Postmaster,
    door: PageDoor,
    lease: Lease,
    log: PostgresLog,
    watch: ActivityWatch,
    term: Term,
    shipping: JoinHandle<Result<Lsn, ComputeError>>,
    stopping: CancellationToken,
}

/// Why a compute is to be stopped.
enum Reason {
    Stop(Duration),
    Idle,
    Orphaned,
}

/// How it ended.
pub(crate) enum End {
    /// As it was told to.
    Stopped {
        clean: bool,
        end_lsn: Option<Lsn>,
    },
    Failed(ComputeError),
}

impl Running {
    /// Takes over a started compute and tells control.
    pub(crate) async fn announce<W: AsyncWrite + Unpin>(
        mut compute: Compute,
        started: Started,
        events: &mut Events<W>,
    ) -> Self {
        let Started { postmaster, postmaster_pid, shipper, sender, door, lease, log, superuser, term, warm } = started;
        compute.remember_superuser(&superuser);
        let idle_time = Duration::from_secs(compute.spec.idle_timeout_s);
        let watch = ActivityWatch::new(&compute.layout.run, &compute.layout.data, &superuser, idle_time);
        let stopping = shipper.stopping.clone();
        let shipping = tokio::spawn(shipper.run(sender));
        let ready = ComputeEvent::Ready {
            socket_dir: compute.layout.run.clone(),
            port: PORT,
            base_lsn: lease.base_lsn,
            postmaster_pid,
            warm,
        };
        events.emit(&ready).await;
        Running { compute, postmaster, door, lease, log, watch, term, shipping, stopping }
    }

    /// Serves until the end.
    pub(crate) async fn run<R, W>(mut self, orders: &mut Orders<R>, events: &mut Events<W>) -> End
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let end = match self.serve(orders).await {
            Ok(Reason::Orphaned) => {
                self.kill().await;
                End::Stopped { clean: false, end_lsn: None }
            }
            Ok(Reason::Stop(deadline)) => self.stop(deadline, orders).await,
            Ok(Reason::Idle) => {
                events.emit(&ComputeEvent::Idle).await;
                self.stop(IDLE_STOP_DEADLINE, orders).await
            }
            Err(error) => {
                self.kill().await;
                End::Failed(error)
            }
        };
        if !matches!(end, End::Stopped { clean: true, .. }) {
            self.discard().await;
        }
        end
    }

    async fn serve<R: AsyncRead + Unpin>(&mut self, orders: &mut Orders<R>) -> Result<Reason, ComputeError> {
        loop {
            tokio::select! {
                biased;
                shipped = &mut self.shipping => return Err(self.shipping_ended(shipped).await),
                status = self.postmaster.exited() => {
                    return Err(ComputeError::Crashed { status: status.to_string(), log: self.log.tail() });
                }
                order = orders.next() => return Ok(match order {
                    Order::Command(ComputeCommand::Stop { deadline_ms }) => {
                        Reason::Stop(Duration::from_millis(deadline_ms))
                    }
                    Order::Orphaned => Reason::Orphaned,
                }),
                lost = self.lease.keep() => return Err(lost),
                () = self.watch.idle() => return Ok(Reason::Idle),
                () = self.door.serve() => {}
            }
        }
    }

    /// Shipping ends by itself when we are fenced, when Postgres has been told to stop by somebody else, or by our own bug.
    async fn shipping_ended(&mut self, shipped: Result<Result<Lsn, ComputeError>, JoinError>) -> ComputeError {
        match shipped {
            Ok(Err(error)) => error,
            Ok(Ok(_)) => {
                let status = match tokio::time::timeout(KILL_PATIENCE, self.postmaster.exited()).await {
                    Ok(status) => status.to_string(),
                    Err(_) => "it was told to stop by somebody else".to_owned(),
                };
                ComputeError::Crashed { status, log: self.log.tail() }
            }
            Err(error) => ComputeError::Invalid(format!("shipping WAL failed: {error}")),
        }
    }

    /// A fast shutdown: Postgres ends the sessions, writes its checkpoint, and waits until the quorum has all of it. Past the
    /// deadline, or when control goes away, it is killed.
    async fn stop<R: AsyncRead + Unpin>(&mut self, deadline: Duration, orders: &mut Orders<R>) -> End {
        let until = Instant::now() + deadline;
        self.stopping.cancel();
        if let Err(error) = self.postmaster.stop_fast() {
            tracing::warn!(%error, "Postgres cannot be told to stop");
        }
        let shut_down = tokio::select! {
            down = shut_down(&mut self.postmaster, &mut self.shipping) => down,
            () = self.door.serve() => None,
            () = orphaned(orders) => None,
            () = tokio::time::sleep_until(until) => None,
        };
        let Some(end_lsn) = shut_down else {
            self.kill().await;
            return End::Stopped { clean: false, end_lsn: None };
        };
        match self.keep_warm(end_lsn).await {
            Ok(()) => End::Stopped { clean: true, end_lsn: Some(end_lsn) },
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the data directory is not kept");
                End::Stopped { clean: false, end_lsn: Some(end_lsn) }
            }
        }
    }

    async fn keep_warm(&self, end_lsn: Lsn) -> Result<(), ComputeError> {
        let layout = &self.compute.layout;
        let control = start_point::read_control_file(&layout.data)?;
        if control.state != ClusterState::ShutDown {
            return Err(ComputeError::Invalid("pg_control does not say that Postgres was shut down".to_owned()));
        }
        let base_lsn = self.lease.base_lsn;
        let lease_until_s =
            self.lease.keep_warm().await.map_err(ComputeError::pageserver("keeping the lease", base_lsn))?;
        let checkpoint_lsn = control.checkpoint_lsn;
        let facts = WarmFacts { term: self.term, end_lsn, checkpoint_lsn, base_lsn, lease_until_s };
        WarmMarker::write(&layout.warm_marker, &self.compute.spec, facts)
    }

    async fn kill(&mut self) {
        self.stopping.cancel();
        self.shipping.abort();
        self.postmaster.kill();
        if tokio::time::timeout(KILL_PATIENCE, self.postmaster.exited()).await.is_err() {
            tracing::error!("Postgres does not end");
        }
    }

    /// Throws the data directory away and gives the lease back. Neither failure matters beyond some space.
    async fn discard(&mut self) {
        let layout = &self.compute.layout;
        if let Err(error) = trash::discard(&layout.compute_dir, &layout.data) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the data directory stays");
        }
        match tokio::time::timeout(KILL_PATIENCE, self.lease.release()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the lease runs out by itself"),
            Err(_) => tracing::debug!("the lease runs out by itself"),
        }
    }
}

/// Waits for the clean end of both, in either order; gives the end of the log.
async fn shut_down(postmaster: &mut Postmaster, shipping: &mut JoinHandle<Result<Lsn, ComputeError>>) -> Option<Lsn> {
    let shipped = match shipping.await {
        Ok(Ok(end_lsn)) => Some(end_lsn),
        Ok(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the log was not shipped to its end");
            None
        }
        Err(error) => {
            tracing::error!(%error, "shipping WAL failed");
            None
        }
    };
    let end_lsn = shipped?;
    postmaster.exited().await.success().then_some(end_lsn)
}

/// Waits until control is gone; a second order to stop changes nothing.
async fn orphaned<R: AsyncRead + Unpin>(orders: &mut Orders<R>) {
    while orders.next().await != Order::Orphaned {}
}
