//! `ardent up`: every role in one process, on a local folder; and each role alone, with [`alone`].
//!
//! Started in this order, stopped in the opposite one: safekeepers, page server, control (which starts computes and
//! connectors), proxy. They talk over Unix sockets in `DATA/run` with the same protocols as when apart.

pub mod alone;
mod connectors;
pub mod data_lock;
mod first_start;
pub mod keys;
pub mod library;
pub mod logging;
mod logical;
mod lost_control;
mod metrics;
pub mod names;
pub mod object_store;
mod roles;
pub mod safekeepers;
mod wal_archive;

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use ardent_api::control::StatusReply;
use ardent_control::Control;

use crate::args::UpArgs;
use crate::config::{UserConfig, home};
use crate::failure::Failure;
use crate::output::{Output, pairs};
use roles::Roles;

/// `ardent up`.
pub fn run(output: &Output, args: &UpArgs) -> Result<(), Failure> {
    let root = data_dir(args.data_dir.as_ref())?;
    run_until_signal(output, args.log_json, async || {
        let roles = Roles::start(args, &root).await?;
        let announced = announce(output, args.no_login, roles.control(), roles.api_address());
        Ok((announced, async move { roles.shutdown().await }))
    })
}

/// Starts something and runs it until a signal ends it. `start` gives whether it could be announced (if not, it ends at once) and
/// its end.
fn run_until_signal<End: Future<Output = ()>>(
    output: &Output,
    log_json: bool,
    start: impl AsyncFnOnce() -> Result<(Result<(), Failure>, End), Failure>,
) -> Result<(), Failure> {
    logging::start(log_json);
    ardent_open_files::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("ardent")
        .build()
        .map_err(|error| Failure::local("threads cannot be started", &error))?;
    let result = runtime.block_on(async {
        // Before anything is started: a signal during the start ends it in order as well.
        let mut end = EndSignals::new()?;
        let (announced, shutdown) = start().await?;
        if announced.is_ok() {
            end.wait().await;
            output.note("stopping; once more to stop at once");
        }
        tokio::select! {
            () = shutdown => {}
            () = end.wait() => output.warning("stopped at once; the next start puts things right"),
        }
        announced
    });
    runtime.shutdown_background();
    result
}

/// The folder to keep everything in.
pub fn data_dir(given: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    let given = match given {
        Some(given) => given.clone(),
        None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/lib/ardent"),
        None => match std::env::var_os("XDG_DATA_HOME").filter(|value| !value.is_empty()) {
            Some(folder) => PathBuf::from(folder).join("ardent"),
            None => home()?.join(".local/share/ardent"),
        },
    };
    std::path::absolute(&given).map_err(|error| Failure::local(format!("{} is no path", given.display()), &error))
}

/// Signals that end the server.
struct EndSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl EndSignals {
    fn new() -> Result<Self, Failure> {
        let watch = |kind| signal(kind).map_err(|error| Failure::local("signals cannot be watched", &error));
        Ok(EndSignals { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Logs the user in and says that the server is ready. The last line of the start: scripts wait for it.
fn announce(output: &Output, no_login: bool, control: &Control, api_address: SocketAddr) -> Result<(), Failure> {
    let url = format!("http://{api_address}");
    if !no_login {
        log_in(control, &url)?;
    }
    let status = control.status()?;
    output.data(&status, |status: &StatusReply| {
        let branches_at = if status.proxy_wildcard {
            format!("NAME.{}:{}", status.proxy_host, status.proxy_port)
        } else {
            format!("{}:{} with options=branch%3DNAME", status.proxy_host, status.proxy_port)
        };
        let mut lines = vec![
            ("ready", format!("ardent {}", status.version)),
            ("data", status.data_dir.clone()),
            ("api", url.clone()),
            ("branches at", branches_at),
        ];
        if status.connectors == 0 {
            lines.push((
                "next",
                "ardent connector create postgresql 'postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE'".into(),
            ));
        }
        pairs(&lines)
    })
}

/// Writes this server and a token for it into the user's configuration, unless what is there works.
fn log_in(control: &Control, url: &str) -> Result<(), Failure> {
    let known = UserConfig::load()?;
    if known.url.as_deref() == Some(url)
        && let Some(token) = &known.token
        && control.knows_user_token(token)?
    {
        return Ok(());
    }
    let token = control.new_user_token("ardent up")?;
    UserConfig { url: Some(url.to_owned()), token: Some(token) }.save()
}
