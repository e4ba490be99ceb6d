//! The roles of one process: started, and stopped in the opposite order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use ardent_api::addr::ServiceAddr;
use ardent_api::compute::{ComputeLimits, Sandbox};
use ardent_api::control::ApiErrorCode;
use ardent_api::token::{Claims, Rights, Service, TokenIssuer, TokenVerifier};
use ardent_control::deps::SafekeeperHost;
use ardent_control::{
    Control, ControlConfig, DataDir, Dependencies, PageServerAt, PoolConfig, RunningControl, SafekeepersAt, StartError,
    StatementLogs,
};
use ardent_object_store::ObjectStore;
use ardent_pageserver::{Pageserver, PageserverConfig};
use ardent_proxy::{Certificates, ControlSocket, HostNames, Proxy, ProxyConfig};
use ardent_storage::{Engine, EngineConfig};

use super::connectors::Connectors;
use super::data_lock::DataLock;
use super::logical::LogicalConnectors;
use super::metrics::Metrics;
use super::object_store::{OpenStore, StorePlace};
use super::safekeepers::{self, Safekeepers};
use super::{first_start, keys, library, lost_control, names, object_store, wal_archive};
use crate::args::{ComputeArgs, FrontArgs, KeepArgs, SourcesArgs, StoreArgs, UpArgs};
use crate::failure::Failure;

/// First user id of computes, when the server runs as root: beyond those of people and services.
const FIRST_COMPUTE_UID: u32 = 210_000;
/// Longest that a connection waits for a branch's Postgres to start.
const WAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a branch's Postgres may take to stop cleanly.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of the secret behind mock verifiers.
const MOCK_SECRET_LEN: usize = 32;

/// All roles, running.
pub struct Roles {
    control: RunningControl,
    proxy: Task,
    page_server: Task,
    safekeepers: Safekeepers,
    metrics: Option<Task>,
    _lock: DataLock,
}

impl Roles {
    /// Starts everything, or nothing. What is refused at the first start makes nothing.
    pub async fn start(args: &UpArgs, root: &Path) -> Result<Self, Failure> {
        // Before anything is made in a new folder; and again with the lock, as somebody else may have begun there meanwhile.
        refuse_if_lost(root, args.store.clone()).await?;
        first_start::check(args, root).await?;
        let place = Place::open(root)?;
        let lock = DataLock::take(root)?;
        refuse_if_lost(root, args.store.clone()).await?;
        let safekeeper_addrs = safekeepers::addresses(&place, args.safekeepers)?;
        let page_server_addr = ServiceAddr::Unix(place.files.run("pageserver.sock"));
        // First, before anything that would have to be stopped again.
        let mut metrics = Metrics::bind(&args.metrics).await?;
        let proxy = bind_proxy(&place, &args.front).await?;
        proxy.register_metrics(metrics.registry());
        let port = proxy.local_addr().map_or(args.front.listen.port(), |address| address.port());

        let folder = root.join("pageserver");
        let store = open_store(folder.clone(), args.store.clone()).await?;
        let archive = choose_archive(root, store.uncached.clone(), args).await?;
        let safekeepers = Safekeepers::start(&place, archive).await?;
        safekeepers.register_metrics(metrics.registry());
        metrics.check(safekeepers.problems());
        let (verifier, wal_token) = (place.issuer.verifier(), place.token(Service::Safekeeper, Rights::Write));
        if args.metrics.metrics_listen.is_some() {
            keys::metrics_token(&place)?;
        }
        let (page_cache_size, retention) = (args.memory.page_cache_size, args.keep.history.retention());
        let keeping = PageKeeping { folder, store, page_cache_size, retention };
        let listen = [page_server_addr.clone()];
        let started = start_page_server(keeping, &listen, &safekeeper_addrs, verifier, wal_token, &mut metrics).await;
        let (page_server, engine) = match started {
            Ok(started) => started,
            Err(failure) => {
                safekeepers.shutdown().await;
                return Err(failure);
            }
        };
        let host: Arc<dyn SafekeeperHost> = Arc::new(safekeepers.clone());
        let services = Services {
            page_server: page_server_addr,
            engine: Some(engine),
            safekeepers: safekeeper_addrs,
            host: Some(host),
        };
        let front = FrontArgs { listen: SocketAddr::new(args.front.listen.ip(), port), ..args.front.clone() };
        let (computes, api) = (&args.computes, args.api_listen);
        let started =
            start_control(&place, services, computes, (args.keep, args.sources.clone()), api, &front, &mut metrics)
                .await;
        let control = match started {
            Ok(control) => control,
            Err(failure) => {
                page_server.stop("page server").await;
                safekeepers.shutdown().await;
                return Err(failure);
            }
        };
        let verifier = place.issuer.verifier();
        let metrics = metrics.serve(verifier);
        Ok(Roles { control, proxy: serve_proxy(proxy), page_server, safekeepers, metrics, _lock: lock })
    }

    /// Control.
    pub fn control(&self) -> &Arc<Control> {
        self.control.control()
    }

    /// Where the HTTP API listens.
    pub fn api_address(&self) -> SocketAddr {
        self.control.address()
    }

    /// Stops everything: sessions end, computes are suspended, what is in memory becomes durable.
    pub async fn shutdown(self) {
        if let Some(metrics) = self.metrics {
            metrics.stop("metrics").await;
        }
        self.proxy.stop("proxy").await;
        self.control.shutdown().await;
        self.page_server.stop("page server").await;
        self.safekeepers.shutdown().await;
    }
}

/// An installation's folder, with what every role needs of it.
pub struct Place {
    /// The folder.
    pub root: PathBuf,
    /// The names of the files in it.
    pub files: DataDir,
    /// Signs the tokens by which the roles know each other.
    pub issuer: TokenIssuer,
}

impl Place {
    /// The folder, made if it is not there, with its keys.
    pub fn open(root: &Path) -> Result<Self, Failure> {
        let files = DataDir::new(root);
        files.create().map_err(|error| start_failed(&error))?;
        let issuer = files.token_issuer().map_err(|error| start_failed(&error))?;
        Ok(Place { root: root.to_owned(), files, issuer })
    }

    /// A token of the server itself, for every tenant.
    pub fn token(&self, service: Service, rights: Rights) -> String {
        self.issuer.issue(&Claims { service, tenant: None, timeline: None, rights, expires_at_s: None })
    }
}

/// A role that runs until it is told to stop.
pub struct Task {
    running: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Task {
    /// Runs `role`, which ends when its token is cancelled.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(role: impl FnOnce(CancellationToken) -> F) -> Self {
        let cancel = CancellationToken::new();
        Task { running: tokio::spawn(role(cancel.clone())), cancel }
    }

    /// Tells it, and waits until it has.
    pub async fn stop(self, role: &str) {
        self.cancel.cancel();
        if let Err(error) = self.running.await {
            warn!(role, %error, "a role did not end in order");
        }
    }
}

/// Where the other services are.
pub struct Services {
    /// Page server.
    pub page_server: ServiceAddr,
    /// Its storage, if this process runs it.
    pub engine: Option<Weak<Engine>>,
    /// All safekeepers.
    pub safekeepers: Vec<ServiceAddr>,
    /// Who starts more of them, if this program does.
    pub host: Option<Arc<dyn SafekeeperHost>>,
}

/// Control, which starts computes and connectors.
pub async fn start_control(
    place: &Place,
    services: Services,
    computes: &ComputeArgs,
    (keep, sources): (KeepArgs, SourcesArgs),
    api_listen: SocketAddr,
    front: &FrontArgs,
    metrics: &mut Metrics,
) -> Result<RunningControl, Failure> {
    refuse_off_host(api_listen)?;
    let is_root = nix::unistd::geteuid().is_root();
    let confined = confinement(computes.no_sandbox)?;
    let (lib_dir, elsewhere) = library::unpack(&place.root, is_root)?;
    if elsewhere {
        info!(folder = %lib_dir.display(), "the data directory cannot be read by computes: their library is put here");
    }
    let pg_bin_dirs: BTreeMap<u32, PathBuf> = computes.pg_bin.iter().cloned().collect();
    let manage = place.token(Service::Any, Rights::Manage);
    let connectors = Arc::new(Connectors::new(&pg_bin_dirs, sources.restore_command));
    let logical = Arc::new(LogicalConnectors::new(connectors.host(), &pg_bin_dirs));
    let mut page_server = PageServerAt::new(services.page_server, manage.clone());
    if let Some(engine) = services.engine {
        page_server = page_server.with_problems(move || engine.upgrade().map(|e| e.problems()).unwrap_or_default());
    }
    let dependencies = Dependencies {
        page_service: Arc::new(page_server),
        wal_service: Arc::new(SafekeepersAt::new(services.safekeepers, manage)),
        connectors: connectors.clone(),
        logical: logical.clone(),
        safekeeper_host: services.host,
    };
    let (public, proxy_address) = names::public_address(front);
    let config = ControlConfig {
        data_dir: place.root.clone(),
        listen: api_listen,
        public,
        proxy_address,
        ca_file: certificates(place, front)?.ca_path().to_owned(),
        pool: PoolConfig {
            computes_dir: place.files.computes(),
            agent_command: agent_command()?,
            lib_dir,
            pg_bin_dirs,
            sandbox: confined,
            first_uid: is_root.then_some(FIRST_COMPUTE_UID),
            limits: ComputeLimits {
                memory_bytes: computes.compute_memory,
                disk_bytes: computes.compute_disk,
                cpus_milli: computes.compute_cpus,
            },
            warm_bytes_max: computes.warm_disk,
            statement_log: StatementLogs { dir: place.files.statement_logs(), bytes_max: keep.statement_log },
            wake_timeout: WAKE_TIMEOUT,
            stop_deadline: STOP_DEADLINE,
        },
        retention: keep.history.retention(),
        keep_deleted: Duration::from_secs(keep.keep_deleted),
        slot_bytes_warn: sources.slot_warn,
    };
    let control = Control::start(config, dependencies, CancellationToken::new()).await;
    let control = control.map_err(|error| start_failed(&error))?;
    control.register_metrics(metrics.registry());
    connectors.register_metrics(metrics.registry());
    logical.register_metrics(metrics.registry());
    metrics.check(control.problems());
    Ok(control)
}

/// The proxy, listening but not serving yet.
pub async fn bind_proxy(place: &Place, front: &FrontArgs) -> Result<Proxy<ControlSocket>, Failure> {
    Proxy::bind(ProxyConfig {
        listen: front.listen,
        hosts: HostNames::new(front.host.clone()),
        certificates: certificates(place, front)?,
        mock_secret: mock_secret(&place.files)?,
        control: ControlSocket::new(place.files.run("control.sock")),
    })
    .await
    .map_err(|error| Failure::of(&error).code(ApiErrorCode::Conflict))
}

/// Takes clients from now on.
pub fn serve_proxy(proxy: Proxy<ControlSocket>) -> Task {
    let cancel = CancellationToken::new();
    Task { running: tokio::spawn(proxy.serve(cancel.clone())), cancel }
}

fn certificates(place: &Place, front: &FrontArgs) -> Result<Certificates, Failure> {
    let hosts = HostNames::new(front.host.clone());
    Certificates::load_or_make(&place.files.key("tls"), &hosts).map_err(|error| Failure::of(&error))
}

/// Where and for how long a page server keeps pages.
pub struct PageKeeping {
    /// Its own folder.
    pub folder: PathBuf,
    /// Its store.
    pub store: OpenStore,
    /// What it keeps in memory, in bytes.
    pub page_cache_size: u64,
    /// How long it keeps history.
    pub retention: Duration,
}

/// A page server's store, as the user chose it.
pub async fn open_store(folder: PathBuf, args: StoreArgs) -> Result<OpenStore, Failure> {
    let opening = tokio::task::spawn_blocking(move || object_store::open(&folder, &args));
    opening.await.map_err(|error| Failure::local("the store could not be opened", &error))?
}

/// Refuses to start beside what a lost database knew.
async fn refuse_if_lost(root: &Path, store: StoreArgs) -> Result<(), Failure> {
    let root = root.to_owned();
    let looking = tokio::task::spawn_blocking(move || lost_control::refuse(&root, &store));
    looking.await.map_err(|error| Failure::local("the data directory could not be looked at", &error))?
}

/// Where safekeepers archive WAL, if they do.
async fn choose_archive(
    root: &Path,
    store: Arc<dyn ObjectStore>,
    args: &UpArgs,
) -> Result<Option<Arc<dyn ObjectStore>>, Failure> {
    let (wanted, is_far) = (args.wal_archive, matches!(args.store.store, Some(StorePlace::S3(_))));
    let root = root.to_owned();
    let choosing =
        tokio::task::spawn_blocking(move || Ok(wal_archive::chosen(&root, &*store, wanted, is_far)?.then_some(store)));
    choosing.await.map_err(|error| Failure::local("the store could not be asked", &error))?
}

/// The page server, and its storage.
pub async fn start_page_server(
    keeping: PageKeeping,
    listen: &[ServiceAddr],
    safekeepers: &[ServiceAddr],
    verifier: TokenVerifier,
    safekeeper_token: String,
    metrics: &mut Metrics,
) -> Result<(Task, Weak<Engine>), Failure> {
    let store = keeping.store;
    let engine = EngineConfig::new(keeping.folder.join("local"), store.store);
    let page_cache_size = usize::try_from(keeping.page_cache_size).unwrap_or(usize::MAX);
    let config = PageserverConfig {
        engine: EngineConfig { spill: store.is_far, ..engine.with_caches_of(page_cache_size) },
        retention: keeping.retention,
        listen: listen.to_vec(),
        verifier,
        safekeepers: safekeepers.to_vec(),
        safekeeper_token,
    };
    let cancel = CancellationToken::new();
    let server = Pageserver::start(config, cancel.clone()).await.map_err(|error| Failure::of(&error))?;
    store.metrics.register(metrics.registry());
    server.register_metrics(metrics.registry());
    metrics.check(server.problems());
    let engine = Arc::downgrade(server.engine());
    Ok((Task { running: tokio::spawn(server.run()), cancel }, engine))
}

/// How computes are confined here.
pub fn confinement(no_sandbox: bool) -> Result<Sandbox, Failure> {
    if no_sandbox {
        warn!(
            "computes run without a sandbox: a branch's users can reach the files and networks that its Postgres can"
        );
        return Ok(Sandbox::None);
    }
    match ardent_agent::probe_sandbox() {
        Ok(()) => Ok(Sandbox::Bubblewrap),
        Err(why) => Err(Failure::usage(format!("computes cannot be confined on this machine: {why}")).hint(
            "install bubblewrap (Debian: apt-get install bubblewrap), in a chroot run as root, or accept it with --no-sandbox if you trust every branch's users",
        )),
    }
}

/// The API is plain HTTP: tokens would go over the network for all to read.
pub fn refuse_off_host(api_listen: SocketAddr) -> Result<(), Failure> {
    if api_listen.ip().is_loopback() {
        return Ok(());
    }
    let message = format!("the API would listen on {api_listen}, which other hosts can reach, without encryption");
    Err(Failure::usage(message)
        .hint("give --api-listen an address of this host, such as 127.0.0.1:7480; branches (--listen) are encrypted"))
}

fn mock_secret(data_dir: &DataDir) -> Result<Vec<u8>, Failure> {
    let path = data_dir.key("mock-verifiers.key");
    let make = || ardent_control::secrets::random_bytes::<MOCK_SECRET_LEN>().map(|bytes| bytes.to_vec());
    ardent_control::secrets::read_or_create(&path, make).map_err(|error| Failure::of(&error))
}

fn agent_command() -> Result<Vec<OsString>, Failure> {
    let program = match std::env::current_exe() {
        Ok(program) if program.exists() => program,
        // It was replaced by a newer one while it runs.
        Ok(_) => PathBuf::from("/proc/self/exe"),
        Err(error) => return Err(Failure::local("this program's own file cannot be found", &error)),
    };
    let mut command: Vec<OsString> = vec![program.into(), "agent".into()];
    if let Some(soft) = ardent_open_files::started_with() {
        command.push("--open-files".into());
        command.push(soft.to_string().into());
    }
    Ok(command)
}

pub fn start_failed(error: &StartError) -> Failure {
    let failure = match error {
        StartError::Store(inner) => Failure::of(inner),
        StartError::Secret(inner) => Failure::of(inner),
        other => Failure::of(other),
    };
    match error {
        StartError::PortInUse { .. } => failure.code(ApiErrorCode::Conflict),
        _ => failure,
    }
}
