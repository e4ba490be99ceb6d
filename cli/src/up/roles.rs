//! The roles of one process: started, and stopped in the opposite order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use ardent_api::addr::ServiceAddr;
use ardent_api::compute::Sandbox;
use ardent_api::control::ApiErrorCode;
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_control::{
    Control, ControlConfig, DataDir, Dependencies, PageServerAt, PoolConfig, RunningControl, SafekeepersAt, StartError,
};
use ardent_object_store::LocalFolder;
use ardent_pageserver::{Pageserver, PageserverConfig};
use ardent_proxy::{Certificates, ControlSocket, HostNames, Proxy, ProxyConfig};
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};
use ardent_storage::EngineConfig;

use super::connectors::Connectors;
use super::data_lock::DataLock;
use super::{library, names, sandbox};
use crate::args::UpArgs;
use crate::failure::Failure;

/// First user id of computes, when the server runs as root: beyond those of people and services.
const FIRST_COMPUTE_UID: u32 = 210_000;
/// How long history is kept: branches can be made at any point of it.
const RETENTION: Duration = Duration::from_secs(7 * 86_400);
/// Longest that a connection waits for a branch's Postgres to start.
const WAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a branch's Postgres may take to stop cleanly.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of the secret behind mock verifiers.
const MOCK_SECRET_LEN: usize = 32;

/// All roles, running.
pub struct Roles {
    control: RunningControl,
    proxy: (JoinHandle<()>, CancellationToken),
    page_server: (JoinHandle<()>, CancellationToken),
    safekeeper: Safekeeper,
    _lock: DataLock,
}

impl Roles {
    /// Starts everything, or nothing.
    pub async fn start(args: &UpArgs, root: &Path) -> Result<Self, Failure> {
        let data_dir = DataDir::new(root);
        data_dir.create().map_err(|error| start_failed(&error))?;
        let lock = DataLock::take(root)?;
        let is_root = nix::unistd::geteuid().is_root();
        let confined = confinement(args)?;
        let (lib_dir, elsewhere) = library::unpack(root, is_root)?;
        if elsewhere {
            info!(folder = %lib_dir.display(), "the data directory cannot be read by computes: their library is put here");
        }
        refuse_off_host(args)?;

        let issuer = data_dir.token_issuer().map_err(|error| start_failed(&error))?;
        let safekeeper_addr = ServiceAddr::Unix(data_dir.run("safekeeper.sock"));
        let page_server_addr = ServiceAddr::Unix(data_dir.run("pageserver.sock"));
        // First, before anything that would have to be stopped again.
        let hosts = HostNames::new(args.host.clone());
        let certificates =
            Certificates::load_or_make(&data_dir.key("tls"), &hosts).map_err(|error| Failure::of(&error))?;
        let ca_file = certificates.ca_path().to_owned();
        let proxy = Proxy::bind(ProxyConfig {
            listen: args.listen,
            hosts,
            certificates,
            mock_secret: mock_secret(&data_dir)?,
            control: ControlSocket::new(data_dir.run("control.sock")),
        })
        .await
        .map_err(|error| Failure::of(&error).code(ApiErrorCode::Conflict))?;
        let port = proxy.local_addr().map_or(args.listen.port(), |address| address.port());

        let safekeeper = start_safekeeper(root, &safekeeper_addr, &issuer).await?;
        let page_server = match start_page_server(root, &page_server_addr, &safekeeper_addr, &issuer).await {
            Ok(page_server) => page_server,
            Err(failure) => {
                safekeeper.shutdown().await;
                return Err(failure);
            }
        };
        let pg_bin_dirs: BTreeMap<u32, PathBuf> = args.pg_bin.iter().cloned().collect();
        let manage = token(&issuer, Service::Any, Rights::Manage);
        let dependencies = Dependencies {
            page_service: Arc::new(PageServerAt::new(page_server_addr, manage.clone())),
            wal_service: Arc::new(SafekeepersAt::new(vec![safekeeper_addr], manage)),
            connectors: Arc::new(Connectors::new(&pg_bin_dirs)),
        };
        let (public, proxy_address) = names::public_address(args, port);
        let config = ControlConfig {
            data_dir: root.to_owned(),
            listen: args.api_listen,
            public,
            proxy_address,
            ca_file,
            pool: PoolConfig {
                computes_dir: data_dir.computes(),
                agent_command: agent_command()?,
                lib_dir,
                pg_bin_dirs,
                sandbox: confined,
                first_uid: is_root.then_some(FIRST_COMPUTE_UID),
                wake_timeout: WAKE_TIMEOUT,
                stop_deadline: STOP_DEADLINE,
            },
        };
        let control = match Control::start(config, dependencies, CancellationToken::new()).await {
            Ok(control) => control,
            Err(error) => {
                stop(page_server, "page server").await;
                safekeeper.shutdown().await;
                return Err(start_failed(&error));
            }
        };
        let cancel = CancellationToken::new();
        let serving = tokio::spawn(proxy.serve(cancel.clone()));
        Ok(Roles { control, proxy: (serving, cancel), page_server, safekeeper, _lock: lock })
    }

    /// Control.
    pub fn control(&self) -> &Arc<Control> {
        self.control.control()
    }

    /// Where the HTTP API listens.
    pub fn api_address(&self) -> std::net::SocketAddr {
        self.control.address()
    }

    /// Stops everything: sessions end, computes are suspended, what is in memory becomes durable.
    pub async fn shutdown(self) {
        stop(self.proxy, "proxy").await;
        self.control.shutdown().await;
        stop(self.page_server, "page server").await;
        self.safekeeper.shutdown().await;
    }
}

async fn stop((task, cancel): (JoinHandle<()>, CancellationToken), role: &str) {
    cancel.cancel();
    if let Err(error) = task.await {
        warn!(role, %error, "a role did not end in order");
    }
}

async fn start_safekeeper(root: &Path, address: &ServiceAddr, issuer: &TokenIssuer) -> Result<Safekeeper, Failure> {
    let config = SafekeeperConfig::new(root.join("safekeeper"), vec![address.clone()], issuer.verifier());
    Safekeeper::start(config, CancellationToken::new()).await.map_err(|error| Failure::of(&error))
}

async fn start_page_server(
    root: &Path,
    address: &ServiceAddr,
    safekeeper: &ServiceAddr,
    issuer: &TokenIssuer,
) -> Result<(JoinHandle<()>, CancellationToken), Failure> {
    let folder = root.join("pageserver");
    let store = LocalFolder::open(&folder.join("store")).map_err(|error| Failure::of(&error))?;
    let config = PageserverConfig {
        engine: EngineConfig::new(folder.join("local"), Arc::new(store)),
        retention: RETENTION,
        listen: vec![address.clone()],
        verifier: issuer.verifier(),
        safekeepers: vec![safekeeper.clone()],
        safekeeper_token: token(issuer, Service::Safekeeper, Rights::Write),
    };
    let cancel = CancellationToken::new();
    let server = Pageserver::start(config, cancel.clone()).await.map_err(|error| Failure::of(&error))?;
    Ok((tokio::spawn(server.run()), cancel))
}

/// A token of the server itself, for every tenant.
fn token(issuer: &TokenIssuer, service: Service, rights: Rights) -> String {
    issuer.issue(&Claims { service, tenant: None, timeline: None, rights, expires_at_s: None })
}

fn confinement(args: &UpArgs) -> Result<Sandbox, Failure> {
    if args.no_sandbox {
        warn!(
            "computes run without a sandbox: a branch's users can reach the files and networks that its Postgres can"
        );
        return Ok(Sandbox::None);
    }
    match sandbox::probe() {
        Ok(()) => Ok(Sandbox::Bubblewrap),
        Err(why) => Err(Failure::usage(format!("computes cannot be confined on this machine: {why}")).hint(
            "install bubblewrap (Debian: apt-get install bubblewrap), or accept it with --no-sandbox if you trust every branch's users",
        )),
    }
}

/// The API is plain HTTP: tokens would go over the network for all to read.
fn refuse_off_host(args: &UpArgs) -> Result<(), Failure> {
    if args.api_listen.ip().is_loopback() {
        return Ok(());
    }
    let message =
        format!("the API would listen on {}, which other hosts can reach, without encryption", args.api_listen);
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
    Ok(vec![program.into(), "agent".into()])
}

fn start_failed(error: &StartError) -> Failure {
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
