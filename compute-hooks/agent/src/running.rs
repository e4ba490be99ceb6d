//! A running compute, until it stops: commands, idleness, and everything that can end it.
//!
//! ```text
//!              ┌── stop, idle ──► fast shutdown ──► all on the quorum ──► warm marker ──► Stopped{clean}
//!  running ────┤                        └─ deadline ──► kill ──┐
//!              ├── control gone, fenced, lease over ──► kill ──┼──► data directory discarded ──► Stopped / Failed
//!              └── Postgres ended by itself ───────────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use ardent_api::compute::{ComputeCommand, ComputeEvent, Usage};
use ardent_api::page_service::KeptAt;
use ardent_page_client::PageClient;
use ardent_pg_format::ClusterState;
use ardent_types::{Lsn, Term};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::activity::ActivityWatch;
use crate::channel::{Events, Order, Orders};
use crate::disk::DiskWatch;
use crate::error::ComputeError;
use crate::kept_state::{self, Header, Limits};
use crate::layout::PORT;
use crate::lease::Lease;
use crate::memory::{WarmFacts, WarmMarker};
use crate::overdue::OverdueWatch;
use crate::page_door::PageDoor;
use crate::policy::{MappedPage, TELL_EVERY};
use crate::postgres_log::PostgresLog;
use crate::postmaster::Postmaster;
use crate::roles::RolesWatch;
use crate::serving::Serving;
use crate::start::{Compute, How, Started};
use crate::start_point;
use crate::statement_log::StatementLog;
use crate::trash;

/// How long an idle compute may take to stop before it is killed.
const IDLE_STOP_DEADLINE: Duration = Duration::from_secs(60);
/// How long a killed Postgres may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long keeping what the compute leaves may take at least, however late it is.
const KEEP_PATIENCE_MIN: Duration = Duration::from_secs(2);

/// How long the last look at the roles may hold up a stop.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// A compute that serves.
#[derive(Debug)]
pub(crate) struct Running {
    compute: Compute,
    postmaster: Postmaster,
    door: PageDoor,
    policy: MappedPage,
    lease: Lease,
    log: PostgresLog,
    watch: ActivityWatch,
    roles: RolesWatch,
    statements: Option<StatementLog>,
    usage: UsageTeller,
    disk: DiskWatch,
    overdue: OverdueWatch,
    term: Term,
    serving: Arc<Serving>,
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
        compute: Compute,
        started: Started,
        events: &mut Events<W>,
    ) -> Self {
        let Started {
            postmaster,
            postmaster_pid,
            shipper,
            sender,
            door,
            roles,
            first_roles,
            statements,
            usage,
            policy,
            lease,
            log,
            term,
            serving,
            how,
        } = started;
        let idle_time = Duration::from_secs(compute.spec.idle_timeout_s);
        let watch = ActivityWatch::new(&compute.layout.run, &compute.layout.data, idle_time);
        let disk = DiskWatch::new(&compute.layout.compute_dir, postmaster.processes(), &compute.spec.limits);
        let overdue = OverdueWatch::new(&compute.layout.run, compute.spec.policy.statement_timeout_ms);
        let stopping = shipper.stopping.clone();
        let shipping = tokio::spawn(shipper.run(sender));
        let usage = UsageTeller::new(usage, compute.spec.policy.max_rows_changed.is_some());
        if let Some(event) = usage.event() {
            events.emit(&event).await;
        }
        if let Some((number, roles)) = first_roles {
            events.emit(&ComputeEvent::Roles { number, roles }).await;
        }
        compute.tell_serving(&postmaster);
        let ready = match how {
            How::Cold | How::Warm => ComputeEvent::Ready {
                socket_dir: compute.layout.run.clone(),
                port: PORT,
                base_lsn: lease.base_lsn(),
                postmaster_pid,
                warm: how == How::Warm,
                missing_libraries: compute.preload_libraries().1,
            },
            How::TakenOver => ComputeEvent::TakenOver { postmaster_pid },
        };
        events.emit(&ready).await;
        Running {
            compute,
            postmaster,
            door,
            policy,
            lease,
            log,
            watch,
            roles,
            statements,
            usage,
            disk,
            overdue,
            term,
            serving,
            shipping,
            stopping,
        }
    }

    /// Serves until the end.
    pub(crate) async fn run<R, W>(mut self, orders: &mut Orders<R>, events: &mut Events<W>) -> End
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let end = match self.serve(orders, events).await {
            Ok(Reason::Orphaned) => {
                self.kill().await;
                End::Stopped { clean: false, end_lsn: None }
            }
            Ok(Reason::Stop(deadline)) => self.stop(deadline, orders, events).await,
            Ok(Reason::Idle) => {
                events.emit(&ComputeEvent::Idle).await;
                self.stop(IDLE_STOP_DEADLINE, orders, events).await
            }
            Err(error) => {
                self.kill().await;
                End::Failed(error)
            }
        };
        // Postgres is gone: nobody writes to the rings any more.
        if let Some(statements) = &mut self.statements {
            statements.finish().await;
        }
        if let Some(event) = self.usage.event() {
            events.emit(&event).await;
        }
        if !matches!(end, End::Stopped { clean: true, .. }) {
            self.discard().await;
        }
        end
    }

    async fn serve<R, W>(&mut self, orders: &mut Orders<R>, events: &mut Events<W>) -> Result<Reason, ComputeError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            tokio::select! {
                biased;
                shipped = &mut self.shipping => return Err(self.shipping_ended(shipped).await),
                status = self.postmaster.exited() => {
                    return Err(ComputeError::Crashed { status: status.to_string(), log: self.log.tail() });
                }
                order = orders.next() => match order {
                    Order::Command(ComputeCommand::Stop { deadline_ms }) => {
                        return Ok(Reason::Stop(Duration::from_millis(deadline_ms)));
                    }
                    Order::Command(ComputeCommand::RolesTaken { number }) => self.roles.taken(number),
                    Order::Command(ComputeCommand::WriteLog { number }) => {
                        if let Some(statements) = &self.statements {
                            statements.write().await;
                        }
                        events.emit(&ComputeEvent::LogWritten { number }).await;
                    }
                    Order::Orphaned => return Ok(Reason::Orphaned),
                },
                kept = self.lease.keep(&self.compute.layout.data) => {
                    let base_lsn = kept?;
                    self.serving.set_held(self.lease.to_held());
                    // Only now: what is asked for is pinned.
                    self.policy.get().read_at(base_lsn);
                    events.emit(&ComputeEvent::BaseMoved { base_lsn }).await;
                }
                full = self.disk.full() => return Err(full),
                () = self.overdue.watch() => unreachable!("it watches for ever"),
                () = self.watch.idle() => return Ok(Reason::Idle),
                (number, roles) = self.roles.news() => events.emit(&ComputeEvent::Roles { number, roles }).await,
                event = self.usage.next() => events.emit(&event).await,
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
    async fn stop<R, W>(&mut self, deadline: Duration, orders: &mut Orders<R>, events: &mut Events<W>) -> End
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let until = Instant::now() + deadline;
        // The last look before Postgres is gone.
        let news = tokio::select! {
            news = self.roles.look() => news,
            () = self.door.serve() => None,
            () = tokio::time::sleep(LAST_LOOK.min(deadline)) => None,
        };
        if let Some((number, roles)) = news {
            events.emit(&ComputeEvent::Roles { number, roles }).await;
        }
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
        self.compute.layout.keep_settings();
        self.keep_state(end_lsn, until).await;
        match self.keep_warm(end_lsn).await {
            Ok(()) => End::Stopped { clean: true, end_lsn: Some(end_lsn) },
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the data directory is not kept");
                End::Stopped { clean: false, end_lsn: Some(end_lsn) }
            }
        }
    }

    /// Saves what the next cold start needs to be as after a clean restart. Without it, that is as after a crash.
    async fn keep_state(&self, end_lsn: Lsn, until: Instant) {
        let compute = &self.compute;
        if !compute.leaves_state() {
            return;
        }
        let saving = async {
            let control = start_point::read_control_file(&compute.layout.data)?;
            let connecting = PageClient::connect(&compute.spec.pageserver, &compute.binding()).await;
            let mut client =
                connecting.map_err(ComputeError::pageserver("keeping what the compute leaves", end_lsn))?;
            let at = KeptAt { lsn: end_lsn, term: self.term };
            let header = Header { major: compute.spec.pg_major, lsn: end_lsn, unlogged_lsn: control.unlogged_lsn };
            kept_state::save(&mut client, compute, at, header, Limits::default()).await.map_err(ComputeError::keeping)
        };
        let until = until.max(Instant::now() + KEEP_PATIENCE_MIN);
        match tokio::time::timeout_at(until, saving).await {
            Ok(Ok(found)) if found.unlogged_bytes_dropped > 0 => {
                tracing::warn!(
                    bytes = found.unlogged_bytes_dropped,
                    "there is too much in unlogged tables to be kept: they will be empty unless the branch wakes from its warm folder"
                );
            }
            Ok(Ok(found)) => tracing::info!(?found, "what the compute leaves is kept"),
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "what the compute leaves is not kept");
            }
            Err(_) => tracing::warn!("what the compute leaves is not kept: there was no time left"),
        }
    }

    async fn keep_warm(&self, end_lsn: Lsn) -> Result<(), ComputeError> {
        let layout = &self.compute.layout;
        let control = start_point::read_control_file(&layout.data)?;
        if control.state != ClusterState::ShutDown {
            return Err(ComputeError::Invalid("pg_control does not say that Postgres was shut down".to_owned()));
        }
        let (base_lsn, map_lsn) = (self.lease.base_lsn(), self.lease.map_lsn());
        let lease_until_s =
            self.lease.keep_warm().await.map_err(ComputeError::pageserver("keeping the lease", base_lsn))?;
        let checkpoint_lsn = control.checkpoint_lsn;
        let facts = WarmFacts { term: self.term, end_lsn, checkpoint_lsn, base_lsn, map_lsn, lease_until_s };
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
        layout.keep_settings();
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

/// Tells control of the count of rows, where there is one.
#[derive(Debug)]
struct UsageTeller {
    usage: watch::Receiver<Usage>,
    wanted: bool,
    next: Instant,
}

impl UsageTeller {
    fn new(usage: watch::Receiver<Usage>, wanted: bool) -> Self {
        UsageTeller { usage, wanted, next: Instant::now() + TELL_EVERY }
    }

    /// As it is now.
    fn event(&self) -> Option<ComputeEvent> {
        self.wanted.then(|| ComputeEvent::Usage { usage: *self.usage.borrow() })
    }

    /// When it has changed, but not too often. Cancel-safe.
    async fn next(&mut self) -> ComputeEvent {
        loop {
            tokio::time::sleep_until(self.next).await;
            let changed = self.usage.changed().await;
            match self.event() {
                Some(event) if changed.is_ok() => {
                    self.usage.mark_unchanged();
                    self.next = Instant::now() + TELL_EVERY;
                    return event;
                }
                // The gate is gone, or nobody wants to know.
                _ => std::future::pending().await,
            }
        }
    }
}
