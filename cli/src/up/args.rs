//! What `ardent up` can be told.

use std::net::SocketAddr;
use std::path::PathBuf;

use ardent_api::control::{DEFAULT_API_PORT, DEFAULT_PROXY_PORT};

/// Run every role in one process, over one folder.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  ardent up
  ardent up --data-dir /srv/ardent --listen 0.0.0.0:7432 --host branches.example.com
  ardent up --pg-bin 15=/opt/postgresql-15/bin")]
pub struct UpArgs {
    /// Folder for everything: branches' data, keys, sockets. [default: /var/lib/ardent as root, else ~/.local/share/ardent]
    #[arg(long, env = "ARDENT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where Postgres clients connect.
    #[arg(long, env = "ARDENT_LISTEN", value_name = "ADDR:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], DEFAULT_PROXY_PORT)))]
    pub listen: SocketAddr,
    /// Where the HTTP API listens; loopback only, since it is not encrypted.
    #[arg(long, env = "ARDENT_API_LISTEN", value_name = "ADDR:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], DEFAULT_API_PORT)))]
    pub api_listen: SocketAddr,
    /// Domain whose names all resolve to this host: branches are NAME.DOMAIN. [default: localhost]
    #[arg(long, env = "ARDENT_HOST", value_name = "DOMAIN")]
    pub host: Option<String>,
    /// Run computes without bubblewrap. A branch's superuser can then reach whatever this host can reach.
    #[arg(long)]
    pub no_sandbox: bool,
    /// Folder with the server programs of a major version. May be given once for each.
    #[arg(long, value_name = "MAJOR=DIR", value_parser = parse_pg_bin)]
    pub pg_bin: Vec<(u32, PathBuf)>,
    /// How much is logged, as RUST_LOG takes it.
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

fn parse_pg_bin(text: &str) -> Result<(u32, PathBuf), String> {
    let parse = || {
        let (major, folder) = text.split_once('=')?;
        Some((major.parse().ok()?, PathBuf::from(folder)))
    };
    parse().ok_or_else(|| format!("{text:?} is not MAJOR=DIR, for example 15=/usr/lib/postgresql/15/bin"))
}

impl UpArgs {
    /// The data directory: as given, or where this user's data goes.
    pub fn data_dir(&self) -> anyhow::Result<PathBuf> {
        let chosen = match &self.data_dir {
            Some(folder) => folder.clone(),
            None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/lib/ardent"),
            None => {
                let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
                let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
                let base = base.or_else(home);
                base.ok_or_else(|| anyhow::anyhow!("neither XDG_DATA_HOME nor HOME is set: name a --data-dir"))?.join("ardent")
            }
        };
        Ok(std::path::absolute(chosen)?)
    }
}
