//! Control as a whole: start, recovery, housekeeping, shutdown.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use ardent_api::control::{BranchState, ConnectorState, ErrorInfo, SCHEMA_VERSION, StatusReply};
use ardent_api::page_service::ManageRequest;
use ardent_api::token::KeyError;
use ardent_trusted_clock::KeptClock;

use crate::apply::Confirmations;
use crate::compute::{ComputePool, PoolConfig, end_process, sweep_discarded};
use crate::connectors::Connectors;
use crate::context::{Context, LEASE_TTL};
use crate::data_dir::{DataDir, check_socket};
use crate::deps::{ConnectorRuntime, LogicalRuntime, PageService, SafekeeperHost, WalService};
use crate::http;
use crate::members::Changing;
use crate::metrics::{self, Metrics};
use crate::pgurl::PublicAddress;
use crate::secrets::{Keyring, SecretError, random_text, token_hash};
use crate::slots::Slots;
use crate::store::{BranchRow, Store, StoreError, iso8601, now_us};
use crate::wal_debts::TimelineLocks;

/// How often expired branches and folders are looked for and unfinished deletions tried again.
const HOUSEKEEPING_PERIOD: Duration = Duration::from_secs(10);
/// How long computes of a crashed server get to stop by themselves (their agents notice that it is gone).
const LEFTOVER_GRACE: Duration = Duration::from_secs(5);
/// Characters of a user token: 238 bits.
const TOKEN_LEN: usize = 40;

/// Where and how control runs.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Folder with `control.db`, `keys/`, `run/`, `computes/`, `logs/`.
    pub data_dir: PathBuf,
    /// Where the HTTP API listens.
    pub listen: SocketAddr,
    /// How clients reach branches.
    pub public: PublicAddress,
    /// The proxy's address, for clients that cannot resolve a branch's hostname.
    pub proxy_address: String,
    /// The CA certificate, for clients that verify.
    pub ca_file: PathBuf,
    /// How computes are run.
    pub pool: PoolConfig,
    /// How long branches can be restored to what they were: as long as the page server keeps history.
    pub retention: Duration,
    /// How long a deleted branch can be had back; zero: not at all.
    pub keep_deleted: Duration,
    /// Bytes of WAL that a production without a limit may keep for a slot before that is warned of.
    pub slot_bytes_warn: u64,
}

/// The other services.
#[derive(Clone)]
pub struct Dependencies {
    /// Page server.
    pub page_service: Arc<dyn PageService>,
    /// Safekeepers.
    pub wal_service: Arc<dyn WalService>,
    /// Connectors.
    pub connectors: Arc<dyn ConnectorRuntime>,
    /// Connectors in logical mode.
    pub logical: Arc<dyn LogicalRuntime>,
    /// Who starts more safekeepers, where that is done here.
    pub safekeeper_host: Option<Arc<dyn SafekeeperHost>>,
}

/// Why control could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key file.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The signing key.
    #[error("{path} cannot be used")]
    SigningKey {
        /// Its path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: KeyError,
    },
    /// A folder.
    #[error("the folder {path} cannot be made")]
    Folder {
        /// Its path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A folder that is there, with other permissions.
    #[error("the permissions of the folder {path} cannot be set to {mode:o}")]
    FolderMode {
        /// Its path.
        path: PathBuf,
        /// Those that it is to have.
        mode: u32,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Somebody else listens there.
    #[error("port {} of {} is in use by another program: stop it, or choose another with --api-listen", address.port(), address.ip())]
    PortInUse {
        /// The address.
        address: SocketAddr,
    },
    /// It cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Address or path.
        address: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The data directory's path is too long for sockets in it.
    #[error("{path} is too long for a Unix socket ({} of at most 107 characters): choose a shorter --data-dir", path.as_os_str().len())]
    SocketPath {
        /// The socket's path.
        path: PathBuf,
    },
    /// A reset or restore that a crash interrupted can neither be finished nor undone.
    #[error("a reset or restore that was interrupted can neither be finished nor undone")]
    Unsettled(#[source] ErrorInfo),
    /// What a crash left behind cannot be ended.
    #[error("process {pid} of an earlier run cannot be ended: end it by hand and start again")]
    Leftover {
        /// Process id.
        pid: u32,
    },
}

/// The running service.
pub struct Control {
    pub(crate) context: Arc<Context>,
    pub(crate) pool: Arc<ComputePool>,
    pub(crate) connectors: Connectors,
    pub(crate) host: Option<Arc<dyn SafekeeperHost>>,
    pub(crate) changing: Changing,
    pub(crate) slots: Slots,
    pub(crate) confirmations: Confirmations,
    /// By which branches get old.
    pub(crate) clock: KeptClock,
    pub(crate) config: ControlConfig,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
    /// One operation on a name at a time.
    names: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    started_us: i64,
}

/// The running service with its listeners.
pub struct RunningControl {
    control: Arc<Control>,
    address: SocketAddr,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl RunningControl {
    /// The service.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Adds what control counts to `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        metrics::register(&self.control, registry);
    }

    /// What tells, whenever it is called, what does not work: connectors that are not followed, branches that did not start, a clock that
    /// has jumped.
    pub fn problems(&self) -> impl Fn() -> Vec<String> + Send + Sync + use<> {
        let control = Arc::downgrade(&self.control);
        move || control.upgrade().map(|control| control.problems()).unwrap_or_default()
    }

    /// Where the HTTP API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends everything: no new requests, computes stopped in order, operations under way finished or left to be undone.
    pub async fn shutdown(self) {
        self.control.cancel.cancel();
        for server in self.servers {
            // It can only fail by panicking, which was logged.
            let _ = server.await;
        }
        self.control.pool.close().await;
        self.control.tasks.close();
        self.control.tasks.wait().await;
    }
}

impl Control {
    /// Opens the store, ends what a crash left behind, finishes or undoes what was half done, and listens.
    pub async fn start(
        config: ControlConfig,
        dependencies: Dependencies,
        cancel: CancellationToken,
    ) -> Result<RunningControl, StartError> {
        let data_dir = DataDir::new(&config.data_dir);
        data_dir.create()?;
        // A diff may be longer than memory holds, and this is the disk that has room.
        ardent_diff::spill_into(data_dir.spill());
        let context = Arc::new(Context {
            store: Store::open(&config.data_dir.join("control.db"))?,
            keyring: Keyring::open_or_create(&data_dir.key("secrets.key"))?,
            tokens: data_dir.token_issuer()?,
            page_service: dependencies.page_service,
            wal_service: dependencies.wal_service,
            connectors: dependencies.connectors,
            logical: dependencies.logical,
            pool: config.pool.clone(),
            public: config.public.clone(),
            metrics: Metrics::default(),
            timeline_locks: TimelineLocks::default(),
        });
        // What it was started with says nothing any more once they were changed.
        if let (Some(membership), Some(members)) = (context.store.membership()?, context.wal_service.members()) {
            members.set_membership(context.tokens.seal(&membership));
        }
        let tcp = listen_tcp(config.listen).await?;
        let address = tcp.local_addr().unwrap_or(config.listen);
        let unix = listen_unix(&data_dir.run("control.sock"))?;
        end_leftovers(&context).await?;
        sweep_discarded(&config.pool.computes_dir);
        let control = Arc::new(Control {
            pool: Arc::new(ComputePool::new(context.clone())),
            context,
            connectors: Connectors::default(),
            host: dependencies.safekeeper_host,
            changing: Changing::default(),
            slots: Slots::default(),
            confirmations: Confirmations::default(),
            clock: KeptClock::open(data_dir.clock()),
            config,
            tasks: TaskTracker::new(),
            cancel: cancel.child_token(),
            names: Mutex::default(),
            started_us: now_us(),
        });
        // Before anybody can ask for a name whose row is half made.
        control.mark_half_made()?;
        control.settle_switches().await.map_err(StartError::Unsettled)?;
        let (starting, housekeeper, describing) = (control.clone(), control.clone(), control.clone());
        let changing = control.clone();
        // Storage may still be starting: what needs it is tried until it answers, and does not hold up the listeners.
        control.tasks.spawn(async move { starting.recover().await });
        control.tasks.spawn(async move { housekeeper.keep_house().await });
        control.tasks.spawn(async move { describing.keep_described().await });
        control.tasks.spawn(async move { changing.keep_members().await });
        let servers = vec![
            http::serve_tcp(tcp, control.clone(), control.cancel.clone()),
            http::serve_unix(unix, control.clone(), control.cancel.clone()),
        ];
        info!(%address, "control is listening");
        Ok(RunningControl { control, address, servers })
    }

    /// A new user token with this name. It is shown once, here.
    pub fn new_user_token(&self, name: &str) -> Result<String, ErrorInfo> {
        let token = format!("ardent_{}", random_text(TOKEN_LEN)?);
        self.add_user_token(&token, name)?;
        Ok(token)
    }

    /// Whether this is a token that is accepted.
    pub fn knows_user_token(&self, token: &str) -> Result<bool, ErrorInfo> {
        Ok(self.context.store.token(&token_hash(token))?.is_some())
    }

    /// Accepts this token from now on.
    pub fn add_user_token(&self, token: &str, name: &str) -> Result<(), ErrorInfo> {
        Ok(self.context.store.insert_token(&token_hash(token), name, now_us())?)
    }

    fn problems(&self) -> Vec<String> {
        let rows = self.context.store.connectors().and_then(|rows| Ok((rows, self.context.store.branches()?)));
        let (connectors, branches) = match rows {
            Ok(rows) => rows,
            Err(error) => return vec![format!("control: its database cannot be read: {error}")],
        };
        let connectors = connectors.iter().filter(|row| row.state == ConnectorState::Ready);
        let failing = connectors.filter_map(|row| {
            let problem = self.following(&row.name).1.or_else(|| self.why_unfollowed(&row.name))?;
            Some(format!("connector {}: {problem}", row.name))
        });
        let stuck = branches.iter().filter_map(|row| {
            let problem = self.pool.problem(row.id)?;
            Some(format!("branch {}: {problem}", row.name))
        });
        let clock = self.clock.problem().map(|problem| format!("control: {problem}"));
        failing.chain(stuck).chain(clock).collect()
    }

    /// Facts about the server.
    pub fn status(&self) -> Result<StatusReply, ErrorInfo> {
        let branches = self.context.store.branches()?;
        let disk = disk_bytes(&self.config.data_dir);
        Ok(StatusReply {
            schema_version: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: iso8601(self.started_us),
            data_dir: self.config.data_dir.display().to_string(),
            proxy_host: self.config.public.host.clone(),
            proxy_port: self.config.public.port,
            proxy_wildcard: self.config.public.wildcard,
            ca_file: self.config.ca_file.display().to_string(),
            connectors: self.context.store.connectors()?.len() as u64,
            branches: branches.iter().filter(|row| !row.is_root() && row.is_listed()).count() as u64,
            computes_running: self.pool.running(),
            clock_problem: self.clock.problem(),
            open_files_max: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
            disk_free_bytes: disk.map(|(free, _)| free),
            disk_size_bytes: disk.map(|(_, size)| size),
            storage_problems: self.storage_problems(&branches),
        })
    }

    fn storage_problems(&self, branches: &[BranchRow]) -> Vec<String> {
        let problems = self.context.page_service.problems().into_iter();
        let named = problems.map(|(timeline, problem)| match branches.iter().find(|row| row.timeline == timeline) {
            Some(row) => format!("branch {}: {problem}", row.known_name()),
            None => format!("timeline {timeline}: {problem}"),
        });
        named.collect()
    }

    /// Where temporary files go.
    pub(crate) fn spill_folder(&self) -> PathBuf {
        DataDir::new(&self.config.data_dir).spill()
    }

    /// The lock of operations on this name.
    pub(crate) fn name_lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut names = self.names.lock();
        // Locks that nobody holds or waits for are only ever referred to from here.
        names.retain(|_, lock| Arc::strong_count(lock) > 1);
        names.entry(name.to_owned()).or_default().clone()
    }

    /// Follows every connector again.
    async fn recover(self: &Arc<Self>) {
        let mut pending = match self.context.store.connectors() {
            Ok(rows) => rows,
            Err(error) => {
                warn!(%error, "connectors cannot be read");
                return;
            }
        };
        for row in &pending {
            if row.state == ConnectorState::Creating && row.logical.is_some() {
                self.resume_logical(row);
            }
        }
        pending.retain(|row| row.state == ConnectorState::Ready);
        while !pending.is_empty() && !self.cancel.is_cancelled() {
            let mut later = Vec::new();
            for row in pending {
                if let Err(error) = self.start_following(&row).await {
                    warn!(connector = %row.name, %error, "the page server cannot follow yet");
                    self.note_unfollowed(&row.name, &error);
                    later.push(row);
                }
            }
            pending = later;
            if !pending.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    () = self.cancel.cancelled() => {}
                }
            }
        }
    }

    /// Rows that were being created, or that only the last run needed, become rows to be deleted. The housekeeper does it.
    fn mark_half_made(&self) -> Result<(), StoreError> {
        for row in self.context.store.branches()? {
            // The root of a connector whose import goes on is hidden too.
            let is_half_made = row.state == BranchState::Creating || (row.hidden && !row.is_root());
            if row.created_us < self.started_us && is_half_made {
                info!(branch = %row.name, "was half made when the server ended: undoing it");
                // One that has children by now was ready and is not hidden.
                let _ = self.context.store.begin_delete_branch(row.id)?;
            }
        }
        for row in self.context.store.connectors()? {
            let goes_on = self.context.store.root_branch_id(&row.name)?.is_some();
            if row.created_us < self.started_us && row.state == ConnectorState::Creating && !goes_on {
                info!(connector = %row.name, "was half imported when the server ended: undoing it");
                let _ = self.context.store.begin_delete_connector(&row.name)?;
            }
        }
        Ok(())
    }

    async fn keep_house(self: &Arc<Self>) {
        let mut ticks = tokio::time::interval(HOUSEKEEPING_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut renewed: Option<tokio::time::Instant> = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.cancel.cancelled() => return,
            }
            for done in [self.settle_switches().await, self.delete_what_is_due().await, self.delete_connectors().await]
            {
                if let Err(error) = done {
                    warn!(%error, "housekeeping could not finish");
                }
            }
            if let Err(error) = self.context.settle_wal_debts(None).await {
                warn!(%error, "what safekeepers missed cannot be read");
            }
            if renewed.is_none_or(|at| at.elapsed() > LEASE_TTL / 8) {
                match self.renew_leases().await {
                    Ok(()) => renewed = Some(tokio::time::Instant::now()),
                    Err(error) => warn!(%error, "leases could not be renewed; trying again"),
                }
            }
            if let Err(error) = self.pool.remove_warm_folders(self.clock.look()).await {
                warn!(%error, "what suspended computes left cannot be looked through");
            }
        }
    }

    /// Finishes deletions of connectors.
    async fn delete_connectors(self: &Arc<Self>) -> Result<(), ErrorInfo> {
        for row in self.context.store.connectors()? {
            let lock = self.name_lock(&row.name);
            let Ok(_guard) = lock.try_lock() else { continue };
            let Some(row) = self.context.store.connector(&row.name)? else { continue };
            if row.state == ConnectorState::Deleting
                && let Err(error) = self.finish_delete_connector(&row).await
            {
                warn!(connector = %row.name, %error, "cannot be deleted yet");
            }
        }
        Ok(())
    }

    /// Renews what computes and kept folders read, so that the page server keeps it. One that fails keeps no other from being
    /// renewed; the last failure is told.
    async fn renew_leases(&self) -> Result<(), ErrorInfo> {
        let mut result = Ok(());
        for lease in self.context.store.leases()? {
            // A lease on what cannot be read yet would wait for it.
            self.make_readable(lease.tenant, lease.timeline, lease.lsn).await;
            let request = ManageRequest::Lease {
                timeline: lease.timeline,
                name: lease.name,
                lsn: lease.lsn,
                ttl_s: LEASE_TTL.as_secs(),
            };
            if let Err(error) = self.context.page_service.manage(lease.tenant, request).await {
                result = Err(error.into());
            }
        }
        result
    }
}

/// Ends the processes of a run that ended without ending them: two writers of one timeline would fence each other, and two
/// servers in one folder destroy it.
async fn end_leftovers(context: &Context) -> Result<(), StartError> {
    let computes = context.store.computes()?;
    let ending = computes.iter().map(|row| async move {
        for (process, grace) in [(&row.agent, LEFTOVER_GRACE), (&row.postmaster, Duration::ZERO)] {
            if let Some(process) = process
                && !end_process(process, grace).await
            {
                return Err(StartError::Leftover { pid: process.pid });
            }
        }
        if row.agent.is_some() || row.postmaster.is_some() {
            context.store.set_processes(row.id, None, None)?;
        }
        Ok(())
    });
    join_all(ending).await.into_iter().collect()
}

/// How much of the disk of `folder` is free, and how large it is.
fn disk_bytes(folder: &Path) -> Option<(u64, u64)> {
    let disk = statvfs(folder).ok()?;
    #[allow(clippy::useless_conversion, reason = "the types differ between platforms")]
    let bytes = |blocks: nix::libc::fsblkcnt_t| u64::from(blocks).saturating_mul(u64::from(disk.fragment_size()));
    Some((bytes(disk.blocks_available()), bytes(disk.blocks())))
}

/// Listens where the API is to be reached.
pub async fn listen_tcp(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::PortInUse { address },
        _ => StartError::Listen { address: address.to_string(), source },
    })
}

/// Listens on a socket that only our own user can open. A leftover of an earlier run is replaced: the data directory's lock
/// says that nobody uses it.
fn listen_unix(path: &Path) -> Result<UnixListener, StartError> {
    check_socket(path)?;
    let listen = || {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The folder is 0700, so nobody gets in between these two.
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    listen().map_err(|source| StartError::Listen { address: path.display().to_string(), source })
}
