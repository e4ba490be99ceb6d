//! Starts one stock Postgres on a lazily filled copy and ships its WAL.
//!
//! ```text
//!   control ── commands ──► agent ── events ──► control
//!                             │
//!      page server ◄── base backup, leases ──┤ data_dir, start_point: a directory that needs no recovery
//!           ▲                                │
//!           └──── page_door ◄── backends ────┤ sandbox, postmaster: Postgres and the compute library
//!                                            │
//!      safekeepers ◄── shipping ◄── walsender┘ the agent is the synchronous standby
//! ```
//!
//! Invariants:
//! - `AG-1`: Postgres runs only while the agent holds the timeline's term; fenced, it is killed at once.
//! - `AG-2`: Postgres is told that WAL is flushed only when a quorum has it, so a commit that a client saw survives us.
//! - `AG-3`: a data directory is started again only after a clean stop, on the same boot of the host, if the quorum's log ends
//!   where its own does; after anything else it is thrown away. Postgres never recovers here.
//! - `AG-4`: no token enters the sandbox, and the connections that do can only read.
//! - `AG-5`: Postgres ends with the agent, or with the agent's supervisor where there is one, and the agent's work ends when its standard input
//!   does. An agent that is lost is replaced by its supervisor, and the next one goes on with that Postgres only if the log is still its own.
//! - `AG-6`: no WAL that the branch's policy forbids reaches a quorum.
//! - `AG-7`: Postgres serves no longer than the page server's last promise to keep what it reads: without a renewal it is killed before
//!   that is over.
//!
//! ```text
//!   control ─────────────► supervisor ── starts, replaces ──► agent
//!      with a supervisor:      └── parent of ──► Postgres ◄── takes over ──┘
//! ```
//!
//! What it does not know: branches, passwords, other computes, how pages are made. What stock Postgres keeps over a clean
//! restart and WAL does not carry (free space maps, statistics, exact sequence values, unlogged tables) comes along with a warm
//! directory, and by way of the page server to a cold start right after a clean stop (`kept_state`). Start reading in `start.rs`, then
//! `running.rs`.

mod activity;
mod channel;
mod cold_start;
mod data_dir;
mod disk;
mod error;
mod kept_state;
mod launch;
mod layout;
mod lease;
mod limits;
mod memory;
mod mount_root;
mod overdue;
mod page_door;
mod parent;
mod pid_fd;
mod pid_file;
mod policy;
mod postgres_log;
mod postmaster;
mod precedence;
mod programs;
mod roles;
mod running;
mod sandbox;
mod serving;
mod session;
mod settings;
mod shipping;
mod socket_filter;
mod start;
mod start_point;
mod statement_log;
mod supervisor;
mod trash;
mod wal_sender;

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use ardent_api::compute::{ComputeEvent, ComputeSpec};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::channel::{Events, Orders};
use crate::parent::{Left, Parent};
use crate::running::{End, Running};
use crate::start::Compute;

pub use error::ComputeError;
pub use programs::ServerPrograms;
pub use sandbox::probe_sandbox;
pub use supervisor::{SUPERVISOR_FD, supervise};

/// Runs one compute to its end. Commands come on `stdin`, events go to `stdout`, one JSON object a line
/// ([`ardent_api::compute`]). The exit code is 0 when the compute was stopped, 1 when it failed.
///
/// When `stdin` is closed, Postgres is killed and the data directory thrown away: whoever started us is gone, and a new
/// compute may be on its way.
pub async fn run(spec: ComputeSpec, stdin: impl AsyncRead + Unpin, stdout: impl AsyncWrite + Unpin) -> ExitCode {
    run_with(spec, (Parent::Thread, None), stdin, stdout).await
}

/// The same for an agent that was started by [`supervise`]: `supervisor` is what it found at [`SUPERVISOR_FD`]. It takes over the Postgres that
/// is there, if one is.
pub async fn run_supervised(
    spec: ComputeSpec,
    supervisor: OwnedFd,
    stdin: impl AsyncRead + Unpin,
    stdout: impl AsyncWrite + Unpin,
) -> std::io::Result<ExitCode> {
    Ok(run_with(spec, Parent::supervisor(supervisor)?, stdin, stdout).await)
}

async fn run_with(
    spec: ComputeSpec,
    parent: (Parent, Option<Left>),
    stdin: impl AsyncRead + Unpin,
    stdout: impl AsyncWrite + Unpin,
) -> ExitCode {
    let mut orders = Orders::new(stdin);
    let mut events = Events::new(stdout);
    let compute_dir = spec.compute_dir.clone();
    let end = live(spec, parent, &mut orders, &mut events).await;
    let (event, code) = match end {
        End::Stopped { clean, end_lsn } => (ComputeEvent::Stopped { clean, end_lsn }, ExitCode::SUCCESS),
        End::Failed(error) => (error.event(), ExitCode::FAILURE),
    };
    events.emit(&event).await;
    if let Err(error) = tokio::task::spawn_blocking(move || trash::empty(&compute_dir)).await {
        tracing::warn!(%error, "old data directories were not removed");
    }
    code
}

async fn live<R, W>(
    spec: ComputeSpec,
    (parent, left): (Parent, Option<Left>),
    orders: &mut Orders<R>,
    events: &mut Events<W>,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let compute = match Compute::new(spec, parent) {
        Ok(compute) => compute,
        Err(error) => return End::Failed(error),
    };
    let starting = async {
        match left {
            Some(left) => compute.take_over(left).await,
            None => compute.start(events).await,
        }
    };
    let started = tokio::select! {
        started = starting => started,
        // Stopping a compute that is not there yet needs no ceremony: what the start had done is dropped.
        () = orders.stop() => return End::Stopped { clean: false, end_lsn: None },
    };
    match started {
        Ok(started) => Running::announce(compute, started, events).await.run(orders, events).await,
        Err(error) => End::Failed(error),
    }
}
