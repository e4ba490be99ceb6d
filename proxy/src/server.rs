//! The listener: takes connections, runs a session for each, ends them all on shutdown.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::cancel::CancelRegistry;
use crate::certificate::Certificates;
use crate::control_plane::ControlPlane;
use crate::limits;
use crate::metrics::{Counted, Metrics};
use crate::route::HostNames;
use crate::session::{self, SessionError};
use crate::session_threads::SessionThreads;

/// What a proxy is made from.
#[derive(Debug)]
pub struct ProxyConfig<C> {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The names that branches have.
    pub hosts: HostNames,
    /// Its certificate.
    pub certificates: Certificates,
    /// Keyed into mock verifiers; constant for an installation, known to nobody else.
    pub mock_secret: Vec<u8>,
    /// Control.
    pub control: C,
}

/// The proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The port is taken or may not be used.
    #[error("cannot listen on {listen}: choose another address with --listen, or end what holds the port")]
    Listen {
        /// Address.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system gives no more threads or file descriptors.
    #[error("cannot start the threads that sessions run on: raise the limits of processes and open files")]
    Threads(#[source] io::Error),
}

/// What all sessions share.
#[derive(Debug)]
pub struct Shared<C> {
    pub(crate) hosts: HostNames,
    pub(crate) certificates: Certificates,
    pub(crate) mock_secret: Vec<u8>,
    pub(crate) control: C,
    pub(crate) cancels: CancelRegistry,
    pub(crate) metrics: Metrics,
}

/// A proxy that listens but does not serve yet.
#[derive(Debug)]
pub struct Proxy<C> {
    listener: TcpListener,
    sessions: SessionThreads,
    shared: Arc<Shared<C>>,
}

impl<C: ControlPlane> Proxy<C> {
    /// Binds the port, so that a port in use is an error at the start and not later.
    pub async fn bind(config: ProxyConfig<C>) -> Result<Self, ProxyError> {
        let listen = config.listen;
        let listener = TcpListener::bind(listen).await.map_err(|source| ProxyError::Listen { listen, source })?;
        let shared = Shared {
            hosts: config.hosts,
            certificates: config.certificates,
            mock_secret: config.mock_secret,
            control: config.control,
            cancels: CancelRegistry::default(),
            metrics: Metrics::default(),
        };
        let sessions = SessionThreads::start().map_err(ProxyError::Threads)?;
        Ok(Proxy { listener, sessions, shared: Arc::new(shared) })
    }

    /// The address it listens on, with the port that was chosen for port 0.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Adds what this proxy counts to `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    /// Serves until `cancel`; then ends every session and waits for them.
    pub async fn serve(self, cancel: CancellationToken) {
        let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = cancel.cancelled() => break,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or the client is gone already: both pass.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(limits::ACCEPT_RETRY_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!(%peer, limit = limits::CONNECTIONS_MAX, "refused: too many connections");
                continue;
            };
            let shared = Arc::clone(&self.shared);
            let started = self.sessions.run(tcp, move |tcp| async move {
                let _place = place;
                let counted = Counted::new(&shared.metrics);
                let result = session::serve(&shared, tcp, peer).await;
                counted.end(&result);
                log_end(peer, result);
            });
            if let Err(error) = started {
                tracing::warn!(%peer, %error, "cannot serve a connection");
            }
        }
        self.sessions.shut_down().await;
    }
}

fn log_end(peer: SocketAddr, result: Result<(), SessionError>) {
    match result {
        Ok(()) => {}
        Err(SessionError::Io(error)) => tracing::debug!(%peer, %error, "connection lost"),
        Err(error) => tracing::info!(%peer, %error, "session ended"),
    }
}
