//! Starts and stops a page server: opens storage, listens, owns the threads.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::token::TokenVerifier;
use ardent_storage::{Engine, EngineConfig, OpenError};
use ardent_trusted_clock::KeptClock;
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::connection;
use crate::follower::Followers;
use crate::limits;
use crate::metrics::{self, Metrics};
use crate::pages_sent::PagesSent;
use crate::retention;
use crate::socket::Socket;
use crate::turns::ask_for_short_turns;

/// Why it listens nowhere else.
const NOT_LOCAL: &str = "pages are served on this host alone, on Unix sockets and loopback addresses: computes are given connections that the \
                         agent has made, and these do not leave a host";

/// In the engine's folder: what was last seen of the clock.
const CLOCK_FILE: &str = "clock";

/// What a page server is made from.
#[derive(Debug)]
pub struct PageserverConfig {
    /// Storage.
    pub engine: EngineConfig,
    /// History older than this is given up where no branch point and no lease needs it.
    pub retention: Duration,
    /// Where to listen. A stale Unix socket file is replaced.
    pub listen: Vec<ServiceAddr>,
    /// Checks clients' tokens.
    pub verifier: TokenVerifier,
    /// The safekeepers that hold timelines' WAL unless control names others.
    pub safekeepers: Vec<ServiceAddr>,
    /// Our own token for them: read rights on every timeline.
    pub safekeeper_token: String,
}

/// The page server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Storage.
    #[error("the page server's storage could not be opened")]
    Open(#[from] OpenError),
    /// A thread.
    #[error("the page server cannot start a thread")]
    Thread(#[source] io::Error),
    /// An address.
    #[error("the page server cannot listen on {address}")]
    Listen {
        /// Address.
        address: ServiceAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub engine: Arc<Engine>,
    pub verifier: TokenVerifier,
    pub followers: Followers,
    pub pages_sent: PagesSent,
    pub metrics: Metrics,
    /// By which history and leases get old.
    pub clock: Arc<KeptClock>,
}

/// A running page server.
#[derive(Debug)]
pub struct Pageserver {
    shared: Arc<Shared>,
    cancel: CancellationToken,
    acceptors: JoinSet<()>,
    /// Dropping the sender ends the thread.
    retention: (Sender<()>, JoinHandle<()>),
    connections: Arc<Connections>,
}

impl Pageserver {
    /// Opens storage, listens, and serves from then on. Must be called within a tokio runtime of several threads.
    pub async fn start(config: PageserverConfig, cancel: CancellationToken) -> Result<Pageserver, StartError> {
        let engine = Engine::open(config.engine)?;
        let runtime = tokio::runtime::Handle::current();
        let followers = Followers::new(runtime, Arc::clone(&engine), config.safekeepers, config.safekeeper_token);
        let pages_sent = PagesSent::default();
        let (verifier, metrics) = (config.verifier, Metrics::default());
        let clock = Arc::new(KeptClock::open(engine.config().local_dir.join(CLOCK_FILE)));
        let shared = Arc::new(Shared { engine, verifier, followers, pages_sent, metrics, clock });
        let retention = start_retention(&shared.engine, config.retention, &shared.clock).map_err(StartError::Thread)?;
        let mut server = Pageserver {
            shared,
            cancel,
            acceptors: JoinSet::new(),
            retention,
            connections: Arc::new(Connections::default()),
        };
        for address in config.listen {
            server.listen(&address).await.map_err(|source| StartError::Listen { address, source })?;
        }
        Ok(server)
    }

    /// Its storage, for who runs it in a process of its own.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.shared.engine
    }

    /// Adds what this page server counts to `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        metrics::register(&self.shared, registry);
    }

    /// What tells, whenever it is called, what does not work: timelines whose WAL cannot be received or ingested, or whose files cannot
    /// be compacted, and a clock that has jumped.
    pub fn problems(&self) -> impl Fn() -> Vec<String> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move || {
            let Some(shared) = shared.upgrade() else { return Vec::new() };
            let named = |(timeline, problem)| format!("page server: timeline {timeline}: {problem}");
            let engine = shared.engine.problems().into_iter().map(named);
            let clock = shared.clock.problem().map(|problem| format!("page server: {problem}"));
            shared.followers.problems().into_iter().chain(engine).chain(clock).collect()
        }
    }

    async fn listen(&mut self, address: &ServiceAddr) -> io::Result<()> {
        let (shared, connections) = (Arc::clone(&self.shared), Arc::clone(&self.connections));
        let cancel = self.cancel.clone();
        match address {
            ServiceAddr::Unix(path) => {
                remove_stale_socket(path)?;
                let listener = UnixListener::bind(path)?;
                self.acceptors.spawn(async move {
                    while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
                        let socket = accepted.and_then(|(stream, _)| stream.into_std()).and_then(|stream| {
                            stream.set_nonblocking(false)?;
                            setsockopt(&stream, sockopt::SndBuf, &limits::SOCKET_BUFFER_BYTES)?;
                            Ok(Socket::Unix(stream))
                        });
                        connections.serve(&shared, socket);
                    }
                });
            }
            ServiceAddr::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                if !listener.local_addr()?.ip().is_loopback() {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, NOT_LOCAL));
                }
                self.acceptors.spawn(async move {
                    while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
                        let socket = accepted.and_then(|(stream, _)| stream.into_std()).and_then(|stream| {
                            stream.set_nonblocking(false)?;
                            stream.set_nodelay(true)?;
                            Ok(Socket::Tcp(stream))
                        });
                        connections.serve(&shared, socket);
                    }
                });
            }
            ServiceAddr::Tls(..) => return Err(io::Error::new(io::ErrorKind::InvalidInput, NOT_LOCAL)),
        }
        Ok(())
    }

    /// Waits for the cancellation that [`Pageserver::start`] was given, then ends connections and followers and makes durable
    /// what is in memory, so that the next start needs no WAL again.
    pub async fn run(mut self) {
        self.cancel.cancelled().await;
        while self.acceptors.join_next().await.is_some() {}
        let (connections, shared) = (self.connections, self.shared);
        let (stop, retention) = self.retention;
        let stopped = tokio::task::spawn_blocking(move || {
            drop(stop);
            if retention.join().is_err() {
                tracing::error!("the retention thread panicked");
            }
            connections.end_all();
            shared.followers.end_all();
            if let Err(error) = shared.engine.shutdown() {
                tracing::warn!(
                    error = ardent_types::with_causes(&error),
                    "not all that is in memory became durable; WAL will be read again"
                );
            }
        });
        if let Err(error) = stopped.await {
            tracing::error!(%error, "the page server did not stop cleanly");
        }
    }
}

fn start_retention(
    engine: &Arc<Engine>,
    retention: Duration,
    clock: &Arc<KeptClock>,
) -> io::Result<(Sender<()>, JoinHandle<()>)> {
    let (sender, stop) = std::sync::mpsc::channel();
    let (engine, clock) = (Arc::clone(engine), Arc::clone(clock));
    let thread = std::thread::Builder::new().name("retention".to_owned());
    Ok((sender, thread.spawn(move || retention::run(&engine, retention, &clock, &stop))?))
}

fn remove_stale_socket(path: &PathBuf) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The threads that serve clients.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<HashMap<u64, (Socket, JoinHandle<()>)>>,
    next: AtomicU64,
}

impl Connections {
    fn serve(self: &Arc<Self>, shared: &Arc<Shared>, socket: io::Result<Socket>) {
        let started = socket.and_then(|socket| self.start_thread(shared, socket));
        if let Err(error) = started {
            tracing::warn!(%error, "a connection was not taken");
        }
    }

    fn start_thread(self: &Arc<Self>, shared: &Arc<Shared>, socket: Socket) -> io::Result<()> {
        let mut open = self.open.lock();
        open.retain(|_, (_, thread)| !thread.is_finished());
        if open.len() >= limits::CONNECTIONS_MAX {
            return Err(io::Error::other(format!("there are {} connections already", open.len())));
        }
        let handle = socket.try_clone()?;
        let shared = Arc::clone(shared);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name(format!("page-client-{number}")).spawn(move || {
            if let Err(error) = ask_for_short_turns() {
                tracing::debug!(%error, "a connection's turns are as long as everybody's");
            }
            if let Err(error) = connection::serve(&shared, socket) {
                tracing::debug!(%error, "a page service connection ended");
            }
        })?;
        open.insert(number, (handle, thread));
        Ok(())
    }

    fn end_all(&self) {
        let open = std::mem::take(&mut *self.open.lock());
        for (socket, _) in open.values() {
            socket.shut_down();
        }
        for (_, thread) in open.into_values() {
            if thread.join().is_err() {
                tracing::error!("a connection's thread panicked");
            }
        }
    }
}
