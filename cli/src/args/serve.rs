//! Flags of what runs: the server in one process, and its roles apart.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use ardent_api::addr::{ListenAddr, ServiceAddr};
use ardent_connector::RestoreCommand;

use super::history::{KeepArgs, RetentionArgs};
use crate::duration::{parse_cache_size, parse_page_cache_size, parse_size};
use crate::up::object_store::StorePlace;

/// `ardent up`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ardent up
  ardent up --data-dir /srv/ardent
  ardent up --listen 0.0.0.0:7432 --host branches.example.com
  ardent up --pg-bin 15=/opt/postgresql-15/bin
  ardent up --data-dir /srv/ardent --safekeepers 3
  ardent up --retention 30d --keep-deleted 3d
  ardent up --store 's3://bucket/ardent?endpoint=https://minio.example.com' --store-ca ca.pem

Stop it with Ctrl-C or SIGTERM: branches are suspended, nothing is lost.")]
pub struct UpArgs {
    /// Folder that everything is kept in [default: /var/lib/ardent for root, else ~/.local/share/ardent]
    #[arg(long, value_name = "DIR", env = "ARDENT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where branches are reached.
    #[command(flatten)]
    pub front: FrontArgs,
    /// Where the HTTP API listens; on this host only
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7480")]
    pub api_listen: SocketAddr,
    /// How many safekeepers keep each commit's WAL, each in a folder of its own; a commit waits for most of them. Stays as at
    /// the first start [default: 1]
    #[arg(long, value_name = "1|3|5", value_parser = parse_safekeepers)]
    pub safekeepers: Option<u8>,
    /// Where pages are kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// What a page server keeps in memory.
    #[command(flatten)]
    pub memory: PageMemoryArgs,
    /// Whether WAL goes to the store too, a segment at a time, and is kept there as long as history: then the safekeepers' own disks hold
    /// little even while pages cannot be made of it. Once on, it stays on [default: on with an S3 store, off with a folder]
    #[arg(long, value_name = "on|off", value_parser = parse_on_off)]
    pub wal_archive: Option<bool>,
    /// How long what was is kept.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// How computes run.
    #[command(flatten)]
    pub computes: ComputeArgs,
    /// What is said of productions.
    #[command(flatten)]
    pub sources: SourcesArgs,
    /// Do not write this server's address and token into your configuration
    #[arg(long)]
    pub no_login: bool,
    /// Metrics and health.
    #[command(flatten)]
    pub metrics: MetricsArgs,
    /// Write the log as JSON lines
    #[arg(long)]
    pub log_json: bool,
}

fn parse_on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

/// Where branches are reached: the same for proxy and control, which prints it in URLs.
#[derive(Clone, Debug, Args)]
pub struct FrontArgs {
    /// Where branches are reached (TLS)
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7432")]
    pub listen: SocketAddr,
    /// A domain whose names all resolve to this host: branches become NAME.DOMAIN
    #[arg(long, value_name = "DOMAIN")]
    pub host: Option<String>,
}

/// Where a process tells how it is.
#[derive(Clone, Debug, Args)]
pub struct MetricsArgs {
    /// Where metrics (/metrics, for Prometheus) and health (/health) are told, on this host only, to who has metrics.token (see
    /// ardent keys) [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

/// Where a page server keeps pages.
#[derive(Clone, Debug, Args)]
pub struct StoreArgs {
    /// Where pages are kept: file:DIR, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME&path-style=BOOL&profile=NAME. Stays as at
    /// the first start [default: a folder in the data directory]
    #[arg(long, value_name = "URL", env = "ARDENT_STORE")]
    pub store: Option<StorePlace>,
    /// Certificates (PEM) to trust for the store, instead of this host's
    #[arg(long, value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// Largest size of the cache on local disk in front of an S3 store
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = parse_cache_size)]
    pub cache_size: u64,
}

/// What a page server keeps in memory to be read again.
#[derive(Clone, Copy, Debug, Args)]
pub struct PageMemoryArgs {
    /// Most memory for pages that branches may ask for again, and for the parts of layer files that they come from; 16M at least
    #[arg(long, value_name = "SIZE", default_value = "192M", value_parser = parse_page_cache_size)]
    pub page_cache_size: u64,
}

/// How computes run.
#[derive(Clone, Debug, Args)]
pub struct ComputeArgs {
    /// Run Postgres without a sandbox: its users can then reach files and networks that this server's host can
    #[arg(long)]
    pub no_sandbox: bool,
    /// Most memory of one compute, such as 2GB, where control groups can be made; none for no limit [default: half of the host's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub compute_memory: Option<u64>,
    /// Most processors that one compute uses at a time, such as 1.5, where control groups can be made [default: no limit]
    #[arg(long, value_name = "NUMBER", value_parser = parse_processors)]
    pub compute_cpus: Option<u64>,
    /// Most local disk of one compute, such as 50GB; none for no limit [default: half of what is free when it starts]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub compute_disk: Option<u64>,
    /// Most local disk that suspended branches take together to start fast, of which the longest suspended lose theirs first; none to
    /// keep nothing [default: a quarter of what is free without it]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub warm_disk: Option<u64>,
    /// Folder with a major version's server programs; may be repeated
    #[arg(long, value_name = "MAJOR=DIR", value_parser = parse_pg_bin)]
    pub pg_bin: Vec<(u32, PathBuf)>,
}

/// What is said of productions.
#[derive(Clone, Debug, Args)]
pub struct SourcesArgs {
    /// Warn when a production that sets no limit (max_slot_wal_keep_size) keeps this much WAL for a connector
    #[arg(long, value_name = "SIZE", default_value = "10GB", value_parser = parse_size)]
    pub slot_warn: u64,
    /// Shell command that fetches WAL which a production has removed from its archive, as Postgres's restore_command:
    /// %f is the file, %p the path to put it at, %n the connector's name [default: none]
    #[arg(long, value_name = "COMMAND")]
    pub restore_command: Option<RestoreCommand>,
}

/// `ardent keys`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ardent keys --data-dir /srv/ardent

For roles that run apart; ardent up needs none of this.")]
pub struct KeysArgs {
    /// The installation's folder [default: as for ardent up]
    #[arg(long, value_name = "DIR", env = "ARDENT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

/// `ardent safekeeper`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ardent safekeeper --data-dir /srv/wal-1 --listen unix:/run/ardent/wal-1.sock --key /srv/ardent/keys/service.pub
  ardent safekeeper --data-dir /srv/wal --listen tls:10.0.0.2:7431 --key service.pub

On TLS it prints its address with the key by which it is known, tls:HOST:PORT/KEY: control and page \
server are given all of it. The key is tls.key in its folder: who has a copy can stand in for it.")]
pub struct SafekeeperArgs {
    /// Its own folder, for WAL
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where it serves: unix:PATH, tcp:HOST:PORT (on this host only) or tls:HOST:PORT; may be repeated
    #[arg(long, value_name = "ADDR", required = true)]
    pub listen: Vec<ListenAddr>,
    /// Where it serves streaming replication, for pg_receivewal: as --listen; the socket's name must be .s.PGSQL.PORT. Over TLS,
    /// sslmode=verify-full works with tls-ca.pem in its folder
    #[arg(long, value_name = "ADDR")]
    pub listen_replication: Vec<ListenAddr>,
    /// Another name or IP address by which it is reached, for sslmode=verify-full; may be repeated [default: the hosts that it
    /// listens at, and this host's own names]
    #[arg(long, value_name = "NAME")]
    pub tls_name: Vec<String>,
    /// The installation's public key: service.pub, see ardent keys
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The page server's --store: whole segments of WAL go there before they are removed here. Once given, always give it: WAL
    /// may be there alone [default: none]
    #[arg(long, value_name = "URL")]
    pub archive: Option<StorePlace>,
    /// Certificates (PEM) to trust for the archive, instead of this host's
    #[arg(long, value_name = "FILE")]
    pub archive_ca: Option<PathBuf>,
    /// Metrics and health.
    #[command(flatten)]
    pub metrics: MetricsArgs,
    /// Write the log as JSON lines
    #[arg(long)]
    pub log_json: bool,
}

/// `ardent pageserver`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ardent pageserver --data-dir /srv/pages --listen unix:/run/ardent/pages.sock --safekeeper unix:/run/ardent/wal-1.sock \\
    --key /srv/ardent/keys/service.pub --token-file /srv/ardent/keys/pageserver.token")]
pub struct PageserverArgs {
    /// Its own folder, for layers
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where it serves the computes of this host: unix:PATH or tcp:HOST:PORT; may be repeated
    #[arg(long, value_name = "ADDR", required = true, value_parser = parse_local_addr)]
    pub listen: Vec<ServiceAddr>,
    /// Each safekeeper: unix:PATH, tcp:HOST:PORT or tls:HOST:PORT/KEY; repeated
    #[arg(long, value_name = "ADDR", required = true)]
    pub safekeeper: Vec<ServiceAddr>,
    /// The installation's public key: service.pub, see ardent keys
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Its token for reading WAL: pageserver.token, see ardent keys
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Where pages are kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// What a page server keeps in memory.
    #[command(flatten)]
    pub memory: PageMemoryArgs,
    /// How long history is kept.
    #[command(flatten)]
    pub history: RetentionArgs,
    /// Metrics and health.
    #[command(flatten)]
    pub metrics: MetricsArgs,
    /// Write the log as JSON lines
    #[arg(long)]
    pub log_json: bool,
}

/// `ardent control`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ardent control --data-dir /srv/ardent --pageserver unix:/run/ardent/pages.sock --safekeeper unix:/run/ardent/wal-1.sock

It starts the computes and follows production. Give --listen and --host as to ardent proxy.")]
pub struct ControlArgs {
    /// The installation's folder [default: as for ardent up]
    #[arg(long, value_name = "DIR", env = "ARDENT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The page server: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDR", value_parser = parse_local_addr)]
    pub pageserver: ServiceAddr,
    /// Each safekeeper: unix:PATH, tcp:HOST:PORT or tls:HOST:PORT/KEY; repeated, always the same ones
    #[arg(long, value_name = "ADDR", required = true)]
    pub safekeeper: Vec<ServiceAddr>,
    /// Where branches are reached.
    #[command(flatten)]
    pub front: FrontArgs,
    /// Where the HTTP API listens; on this host only
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7480")]
    pub api_listen: SocketAddr,
    /// How long what was is kept.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// How computes run.
    #[command(flatten)]
    pub computes: ComputeArgs,
    /// What is said of productions.
    #[command(flatten)]
    pub sources: SourcesArgs,
    /// Do not write this server's address and token into your configuration
    #[arg(long)]
    pub no_login: bool,
    /// Metrics and health.
    #[command(flatten)]
    pub metrics: MetricsArgs,
    /// Write the log as JSON lines
    #[arg(long)]
    pub log_json: bool,
}

/// `ardent proxy`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ardent proxy --data-dir /srv/ardent --listen 0.0.0.0:7432 --host branches.example.com

It finds control by the socket in the installation's folder.")]
pub struct ProxyArgs {
    /// The installation's folder [default: as for ardent up]
    #[arg(long, value_name = "DIR", env = "ARDENT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where branches are reached.
    #[command(flatten)]
    pub front: FrontArgs,
    /// Metrics and health.
    #[command(flatten)]
    pub metrics: MetricsArgs,
    /// Write the log as JSON lines
    #[arg(long)]
    pub log_json: bool,
}

/// `ardent agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// What to run
    #[arg(long, value_name = "FILE")]
    pub spec: PathBuf,
    /// Most files that it and what it runs may each have open
    #[arg(long, value_name = "NUMBER")]
    pub open_files: Option<u64>,
    /// It is the one that a supervisor started, and not the supervisor
    #[arg(long)]
    pub supervised: bool,
}

/// The page service gives computes connections of this host.
fn parse_local_addr(text: &str) -> Result<ServiceAddr, String> {
    if text.starts_with("tls:") {
        return Err(
            "the page server is on the host of its computes: write unix:/path/to.sock or tcp:HOST:PORT".to_owned()
        );
    }
    text.parse().map_err(|_| format!("{text:?} is not unix:/path/to.sock or tcp:HOST:PORT"))
}

/// A number of processors, in thousandths: the kernel takes no less than a hundredth.
fn parse_processors(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of processors: write a number of 0.01 or more, such as 2 or 1.5");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_plain = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain(whole) || !is_plain(part) || part.len() > 3 {
        return Err(wrong());
    }
    let thousandths = format!("{part:0<3}").parse::<u64>().map_err(|_| wrong())?;
    let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(1000));
    whole.and_then(|whole| whole.checked_add(thousandths)).filter(|milli| *milli >= 10).ok_or_else(wrong)
}

/// A number of safekeepers: odd, since another one would not let one more fail.
fn parse_safekeepers(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("write 1, 3 or 5".to_owned()),
    }
}

pub(super) fn parse_pg_bin(text: &str) -> Result<(u32, PathBuf), String> {
    let parsed = text.split_once('=').and_then(|(major, dir)| Some((major.parse().ok()?, PathBuf::from(dir))));
    parsed.ok_or_else(|| format!("{text:?} is not MAJOR=DIR, such as 15=/usr/lib/postgresql/15/bin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_as_people_write_them() {
        for (text, thousandths) in [("2", 2000), ("1.5", 1500), ("0.25", 250), ("0.01", 10), ("16.125", 16_125)] {
            assert_eq!(parse_processors(text), Ok(thousandths), "{text}");
        }
        for bad in ["", ".", "0", "0.001", "1.", ".5", "-1", "+1", "1e3", "1,5", "1.2345", "99999999999999999999"] {
            assert!(parse_processors(bad).is_err(), "{bad:?} parsed");
        }
    }
}
