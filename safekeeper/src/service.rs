//! The running service: listeners, connections, workers, and their end.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use ardent_api::addr::{ListenAddr, ServiceAddr};
use ardent_api::token::TokenVerifier;
use ardent_object_store::ObjectStore;
use ardent_object_store::fault::FailPoints;
use ardent_service_tls::{Identity, IdentityError};
use ardent_types::{DiskId, ParseDiskIdError};

use crate::archive::{Archiver, ArchiverThread, Stalls};
use crate::connection::{self, Shared, Writer};
use crate::control_file::sync_dir;
use crate::disk;
use crate::disk_worker::WorkerConfig;
use crate::failure::with_causes;
use crate::listener::{Accepted, Encryption, Listener, Protocol};
use crate::metrics::{Connected, Metrics};
use crate::registry::Registry;
use crate::replication;
use crate::timeline::Keep;

/// How a safekeeper runs.
#[derive(Clone, Debug)]
pub struct SafekeeperConfig {
    /// Its folder; made if it is not there. One process at a time.
    pub data_dir: PathBuf,
    /// Where it listens; TCP only on this host, TLS anywhere. Port 0 is any free one, see [`Safekeeper::addresses`].
    pub listen: Vec<ListenAddr>,
    /// Where it serves Postgres's streaming replication protocol, for `pg_receivewal` and its like; may be empty. libpq finds a
    /// Unix socket only if it is named `.s.PGSQL.PORT`.
    pub listen_replication: Vec<ListenAddr>,
    /// Host names and IP addresses that its certificate is for, besides those that it listens at. Only clients that verify certificates
    /// (`pg_receivewal`) look at them; all others know its key.
    pub tls_names: Vec<String>,
    /// Checks tokens.
    pub verifier: TokenVerifier,
    /// Threads that write and fsync.
    pub disk_workers: usize,
    /// WAL this close to the commit position is kept even where nobody needs it any more, in bytes.
    pub wal_keep_bytes: u64,
    /// What is archived and another safekeeper lacks is kept up to this far behind the commit position, in bytes of one timeline; what lies further back it
    /// gets from the archive. Without an archive all that another lacks is kept.
    pub keep_for_others_bytes: u64,
    /// A timeline that nobody has used for this long takes no memory.
    pub unload_after: Duration,
    /// Where whole segments are archived before they are trimmed; absent: they are trimmed once the page server is durable past them.
    /// Once there was an archive, it must stay: WAL that the page server has not taken yet may be nowhere else.
    pub archive: Option<Arc<dyn ObjectStore>>,
    /// How long a follower that nobody waits for gets no more after a small piece of WAL, so that more of them come as one.
    pub follow_gather: Duration,
    /// Where tests make writes fail.
    pub faults: Arc<FailPoints>,
}

impl SafekeeperConfig {
    /// A configuration with everything but the necessary at its default.
    pub fn new(data_dir: PathBuf, listen: Vec<impl Into<ListenAddr>>, verifier: TokenVerifier) -> Self {
        SafekeeperConfig {
            data_dir,
            listen: listen.into_iter().map(Into::into).collect(),
            listen_replication: Vec::new(),
            tls_names: Vec::new(),
            verifier,
            disk_workers: 4,
            wal_keep_bytes: 32 << 20,
            keep_for_others_bytes: 1 << 30,
            unload_after: Duration::from_secs(60),
            archive: None,
            follow_gather: Duration::from_millis(20),
            faults: Arc::default(),
        }
    }
}

/// A safekeeper cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its folder.
    #[error("cannot use the safekeeper's data folder {path}")]
    DataDir {
        /// The folder or a file in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It archived once, and is to go on without.
    #[error(
        "WAL of {path} is archived in an object store, and may be nowhere else: start this safekeeper with that store, --archive URL"
    )]
    ArchiveMissing {
        /// The folder.
        path: PathBuf,
    },
    /// The file that says which disk it is.
    #[error(
        "{path} does not say which disk this is: put back what it said, or empty the folder and let this safekeeper replace the one that it was"
    )]
    DiskId {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ParseDiskIdError,
    },
    /// Another process has it.
    #[error("another safekeeper uses the data folder {path}; stop that one first")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// An address.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: ListenAddr,
        /// Why.
        source: io::Error,
    },
    /// An address that others can reach, without encryption.
    #[error("other hosts can reach {host_port}, and tcp: is not encrypted: listen on tls:{host_port} instead")]
    OffHost {
        /// Which.
        host_port: String,
    },
    /// What it encrypts with.
    #[error("it cannot encrypt")]
    Identity(#[source] IdentityError),
    /// A thread.
    #[error("cannot start a disk thread")]
    Thread(#[source] io::Error),
}

/// A running safekeeper.
#[derive(Debug)]
pub struct Safekeeper {
    disk: DiskId,
    addresses: Vec<ServiceAddr>,
    replication_addresses: Vec<ServiceAddr>,
    cancel: CancellationToken,
    tasks: TaskTracker,
    threads: Vec<JoinHandle<()>>,
    archiver: Option<ArchiverThread>,
    archive_stalls: Option<Stalls>,
    metrics: Metrics,
    _lock: Flock<File>,
}

impl Safekeeper {
    /// Starts serving. Everything ends when `cancel` is cancelled or [`Safekeeper::shutdown`] is called.
    pub async fn start(config: SafekeeperConfig, cancel: CancellationToken) -> Result<Safekeeper, StartError> {
        let lock = prepare_data_dir(&config.data_dir)?;
        let disk = disk::load_or_make(&config.data_dir, &config.faults)?;
        mark_archive(&config.data_dir, config.archive.is_some(), &config.faults)?;
        let mut listeners = Vec::with_capacity(config.listen.len());
        let encryption = encryption(&config)?;
        for address in &config.listen {
            listeners.push(Listener::bind(address, Protocol::Wal, encryption.as_ref()).await?);
        }
        for address in &config.listen_replication {
            listeners.push(Listener::bind(address, Protocol::Replication, encryption.as_ref()).await?);
        }
        let metrics = Metrics::default();
        let archiver = config.archive.map(|store| Archiver::start(store, metrics.clone()));
        let (archiver, archiver_thread) = archiver.transpose().map_err(StartError::Thread)?.unzip();
        let archive_stalls = archiver.as_ref().map(|archiver| archiver.stalls().clone());
        let worker = WorkerConfig {
            archiver,
            faults: config.faults,
            metrics: metrics.clone(),
            data_dir: config.data_dir.clone(),
            disk,
            verifier: config.verifier.clone(),
            keep: Keep { near_bytes: config.wal_keep_bytes, for_others_bytes: config.keep_for_others_bytes },
            unload_after: config.unload_after,
        };
        let (registry, threads) = Registry::start(worker, config.disk_workers.max(1)).map_err(StartError::Thread)?;
        let shared = Arc::new(Shared {
            registry,
            archive_stalls: archive_stalls.clone(),
            verifier: config.verifier,
            metrics: metrics.clone(),
            follow_gather: config.follow_gather,
        });
        let tasks = TaskTracker::new();
        let cancel = cancel.child_token();
        let addresses_of = |protocol| {
            let speaking = listeners.iter().filter(|listener| listener.protocol() == protocol);
            speaking.map(|listener| listener.address().clone()).collect()
        };
        let (addresses, replication_addresses) = (addresses_of(Protocol::Wal), addresses_of(Protocol::Replication));
        for listener in listeners {
            tasks.spawn(accept_all(listener, Arc::clone(&shared), tasks.clone(), cancel.clone()));
        }
        tasks.close();
        Ok(Safekeeper {
            disk,
            addresses,
            replication_addresses,
            cancel,
            tasks,
            threads,
            archiver: archiver_thread,
            archive_stalls,
            metrics,
            _lock: lock,
        })
    }

    /// Adds what this safekeeper counts to `registry`.
    pub fn register_metrics(&self, registry: &mut MetricsRegistry) {
        self.metrics.register(registry);
    }

    /// What does not work at present: timelines whose WAL cannot be archived.
    pub fn problems(&self) -> impl Fn() -> Vec<String> + Send + Sync + use<> {
        let stalls = self.archive_stalls.clone();
        move || stalls.as_ref().map(Stalls::problems).unwrap_or_default()
    }

    /// Which disk it is on.
    pub fn disk(&self) -> DiskId {
        self.disk
    }

    /// Where it listens, with real port numbers.
    pub fn addresses(&self) -> &[ServiceAddr] {
        &self.addresses
    }

    /// Where it serves streaming replication, with real port numbers.
    pub fn replication_addresses(&self) -> &[ServiceAddr] {
        &self.replication_addresses
    }

    /// Ends all connections, saves what is in memory, joins all threads.
    pub async fn shutdown(self) {
        self.cancel.cancel();
        self.join().await;
    }

    /// Waits for the end, which `cancel` brings.
    pub async fn join(self) {
        // The last connection drops the registry, and with it the queues that keep the threads going.
        self.tasks.wait().await;
        let (threads, archiver) = (self.threads, self.archiver);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a disk thread panicked");
                }
            }
            // Their timelines were the last that could offer it anything.
            if let Some(archiver) = archiver {
                archiver.stop();
            }
        });
        if joined.await.is_err() {
            tracing::error!("joining the disk threads failed");
        }
        for address in self.addresses.iter().chain(&self.replication_addresses) {
            if let ServiceAddr::Unix(path) = address {
                // It may be gone already; the next start replaces it anyway.
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// With its key, made at the first start with an address that asks for one; absent if none does.
fn encryption(config: &SafekeeperConfig) -> Result<Option<Encryption>, StartError> {
    let listen: Vec<_> = config.listen.iter().chain(&config.listen_replication).cloned().collect();
    if !listen.iter().any(|address| matches!(address, ListenAddr::Tls(_))) {
        return Ok(None);
    }
    let identity = Identity::load_or_make(&config.data_dir).map_err(StartError::Identity)?;
    Encryption::new(&identity, &listen, &config.tls_names).map(Some)
}

/// Makes the folder, takes its lock, removes what an interrupted creation or deletion left.
pub(crate) fn prepare_data_dir(dir: &Path) -> Result<Flock<File>, StartError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StartError::DataDir { path, source }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    let lock_path = dir.join("lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(&lock_path).map_err(failed(&lock_path))?;
    let lock =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StartError::InUse { path: dir.to_owned() })?;
    remove_leftovers(dir).map_err(failed(dir))?;
    Ok(lock)
}

/// Remembers durably that a folder's WAL is archived; refuses to go on without, once it is.
fn mark_archive(dir: &Path, has_archive: bool, faults: &FailPoints) -> Result<(), StartError> {
    let path = dir.join("archived");
    let failed = |source| StartError::DataDir { path: path.clone(), source };
    match (has_archive, path.try_exists().map_err(failed)?) {
        (false, true) => Err(StartError::ArchiveMissing { path: dir.to_owned() }),
        (true, false) => {
            let mark = || {
                faults.pass("mark.create")?;
                let mark = File::create(&path)?;
                faults.pass("mark.fsync")?;
                mark.sync_all()?;
                faults.pass("mark.folder_fsync")?;
                sync_dir(dir)
            };
            mark().map_err(failed)
        }
        _ => Ok(()),
    }
}

/// How the names begin of what an interruption leaves beside timelines.
const LEFTOVERS: [&str; 3] = [".creating-", ".copying-", ".deleted-"];

fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for tenant in fs::read_dir(dir)? {
        let tenant = tenant?.path();
        if !tenant.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&tenant)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_leftover = name.to_str().is_some_and(|name| LEFTOVERS.iter().any(|prefix| name.starts_with(prefix)));
            if is_leftover {
                fs::remove_dir_all(entry.path())?;
            }
        }
    }
    Ok(())
}

async fn accept_all(listener: Listener, shared: Arc<Shared>, tasks: TaskTracker, cancel: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(client) => {
                let serving = run(listener.protocol(), Arc::clone(&shared), client, tasks.clone(), cancel.clone());
                tasks.spawn(serving);
            }
            Err(error) => {
                // Out of file descriptors, mostly: give connections time to end.
                tracing::warn!(%error, address = %listener.address(), "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn run(protocol: Protocol, shared: Arc<Shared>, client: Accepted, tasks: TaskTracker, cancel: CancellationToken) {
    let connected = shared.metrics.connected();
    let serving = async {
        let socket = match client {
            Accepted::Open(socket) => socket,
            // Boxed: what it needs would be a part of every connection for as long as that lasts.
            Accepted::ToEncrypt(handshake) => match Box::pin(handshake.run()).await {
                Ok(socket) => socket,
                Err(error) => return tracing::info!(error = with_causes(&error), "a client is not served"),
            },
        };
        match protocol {
            Protocol::Wal => match connection::serve(shared, socket).await {
                Ok(None) => {}
                Ok(Some(writer)) => {
                    let runtime = writer.runtime();
                    tasks.spawn_on(run_writer(writer, connected, cancel.clone()), &runtime);
                }
                Err(error) => tracing::info!(error = with_causes(&error), "connection ended"),
            },
            Protocol::Replication => {
                let (reader, writer) = tokio::io::split(socket);
                if let Err(error) = replication::serve(shared, reader, writer).await {
                    tracing::info!(error = with_causes(&error), "replication connection ended");
                }
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = serving => {}
    }
}

async fn run_writer(writer: Writer, _connected: Connected, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        ended = writer.serve() => {
            if let Err(error) = ended {
                tracing::info!(error = with_causes(&error), "a writer's connection ended");
            }
        }
    }
}
