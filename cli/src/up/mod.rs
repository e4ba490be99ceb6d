//! `ardent up`: every role in one process, over one folder.
//!
//! The roles talk over Unix sockets in the folder, with the same protocols as when they run apart. Start order: safekeeper, page
//! server, control, proxy; the end is the other way round.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ardent_api::addr::ServiceAddr;
use ardent_api::compute::Sandbox;
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_control::{
    Control, ControlConfig, DataDir, Dependencies, PageServerAt, PoolConfig, RunningControl, SafekeepersAt, secrets,
};
use ardent_object_store::LocalFolder;
use ardent_pageserver::{Pageserver, PageserverConfig};
use ardent_proxy::{Certificates, ControlSocket, HostNames, Proxy, ProxyConfig};
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};
use ardent_storage::EngineConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

mod args;
mod checks;
mod connectors;
mod library;

pub use args::UpArgs;

/// User ids of computes begin here when the server runs as root: above what distributions give out.
const FIRST_COMPUTE_UID: u32 = 2_100_000;
/// Longest that a wake may take.
const WAKE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a compute gets for a clean stop.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Runs until SIGINT or SIGTERM. `log_in` is given the API's URL and a token for the user who runs this.
pub async fn run(args: UpArgs, log_in: impl FnOnce(&str, &str) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    let folder = args.data_dir()?;
    let data_dir = DataDir::new(&folder);
    data_dir.create()?;
    checks::data_dir_is_reachable(&folder)?;
    let _lock = checks::lock(&folder)?;
    if !args.no_sandbox {
        checks::sandbox_works()?;
    }
    anyhow::ensure!(
        args.api_listen.ip().is_loopback(),
        "the HTTP API is not encrypted and listens on loopback only: give --api-listen a loopback address"
    );
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;

    let roles = Roles::start(&args, &data_dir).await?;
    let token = secrets::read_or_create(&data_dir.key("user.token"), || {
        Ok(format!("ardent_{}", secrets::random_text(40)?).into_bytes())
    })?;
    let token = String::from_utf8(token).context("keys/user.token is not text: remove it and start again")?;
    roles.control.control().add_user_token(&token, "up")?;
    let url = format!("http://{}", roles.control.address());
    log_in(&url, &token)?;

    eprintln!("ardent is up: branches at {}, API at {url}, data in {}", args.listen, folder.display());
    eprintln!("next: ardent connector create postgresql 'postgresql://USER:PASSWORD@HOST/DATABASE'");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    eprintln!("stopping: computes finish what they do");
    roles.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// The running roles.
struct Roles {
    proxy: (CancellationToken, JoinHandle<()>),
    control: RunningControl,
    pageserver: (CancellationToken, JoinHandle<()>),
    safekeeper: Safekeeper,
}

impl Roles {
    async fn start(args: &UpArgs, data_dir: &DataDir) -> anyhow::Result<Roles> {
        let issuer = data_dir.token_issuer()?;
        let safekeeper_addr = ServiceAddr::Unix(data_dir.run("safekeeper.sock"));
        let pageserver_addr = ServiceAddr::Unix(data_dir.run("pageserver.sock"));

        let safekeeper_config = SafekeeperConfig::new(
            data_dir.root().join("safekeeper"),
            vec![safekeeper_addr.clone()],
            issuer.verifier(),
        );
        let safekeeper = Safekeeper::start(safekeeper_config, CancellationToken::new()).await?;

        let store = LocalFolder::open(&data_dir.root().join("store")).context("the object store cannot be used")?;
        let pageserver_config = PageserverConfig {
            engine: EngineConfig::new(data_dir.root().join("pageserver"), Arc::new(store)),
            listen: vec![pageserver_addr.clone()],
            verifier: issuer.verifier(),
            safekeepers: vec![safekeeper_addr.clone()],
            safekeeper_token: service_token(&issuer, Service::Safekeeper, Rights::Write),
        };
        let pageserver_cancel = CancellationToken::new();
        let pageserver = Pageserver::start(pageserver_config, pageserver_cancel.clone()).await?;
        let pageserver = (pageserver_cancel, tokio::spawn(pageserver.run()));

        let public = checks::public_address(args);
        let mut hosts = vec![public.host.clone()];
        hosts.retain(|_| public.wildcard);
        let hosts = HostNames::new(hosts);
        let certificates = Certificates::load_or_make(&data_dir.root().join("tls"), &hosts)?;
        let ca_file = certificates.ca_path().to_owned();
        // Bound before control starts: a port in use must not leave half a server.
        let proxy = Proxy::bind(ProxyConfig {
            listen: args.listen,
            hosts,
            mock_secret: secrets::read_or_create(&data_dir.key("mock-scram"), || {
                Ok(secrets::random_text(40)?.into_bytes())
            })?,
            control: ControlSocket::new(data_dir.run("control.sock")),
            certificates,
        });
        let proxy = proxy.await?;

        let control_config = ControlConfig {
            data_dir: data_dir.root().to_owned(),
            listen: args.api_listen,
            public,
            proxy_address: args.listen.to_string(),
            ca_file,
            pool: pool_config(args, data_dir)?,
        };
        let dependencies = Dependencies {
            page_service: Arc::new(PageServerAt::new(
                pageserver_addr,
                service_token(&issuer, Service::Pageserver, Rights::Manage),
            )),
            wal_service: Arc::new(SafekeepersAt::new(
                vec![safekeeper_addr],
                service_token(&issuer, Service::Safekeeper, Rights::Manage),
            )),
            connectors: Arc::new(connectors::Connectors),
        };
        let control = Control::start(control_config, dependencies, CancellationToken::new()).await?;

        let proxy_cancel = CancellationToken::new();
        let proxy = (proxy_cancel.clone(), tokio::spawn(proxy.serve(proxy_cancel)));
        Ok(Roles { proxy, control, pageserver, safekeeper })
    }

    async fn stop(self) {
        let (cancel, serving) = self.proxy;
        cancel.cancel();
        log_panic("proxy", serving.await);
        self.control.shutdown().await;
        let (cancel, serving) = self.pageserver;
        cancel.cancel();
        log_panic("page server", serving.await);
        self.safekeeper.shutdown().await;
    }
}

fn log_panic(role: &str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(role, %error, "a role did not end cleanly");
    }
}

fn pool_config(args: &UpArgs, data_dir: &DataDir) -> anyhow::Result<PoolConfig> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(PoolConfig {
        computes_dir: data_dir.computes(),
        agent_command: vec![program.into_os_string(), "agent".into()],
        lib_dir: library::unpack(&data_dir.root().join("lib"))?,
        pg_bin_dirs: args.pg_bin.iter().cloned().collect(),
        sandbox: if args.no_sandbox { Sandbox::None } else { Sandbox::Bubblewrap },
        first_uid: nix::unistd::geteuid().is_root().then_some(FIRST_COMPUTE_UID),
        wake_timeout: WAKE_TIMEOUT,
        stop_deadline: STOP_DEADLINE,
    })
}


/// A token for one role to talk to another: for every tenant, for as long as the key lives.
fn service_token(issuer: &TokenIssuer, service: Service, rights: Rights) -> String {
    issuer.issue(&Claims { service, tenant: None, timeline: None, rights, expires_at_s: None })
}
