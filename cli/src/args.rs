//! The command line: every verb, flag and help text.

mod history;
mod inspect;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use ardent_api::addr::ServiceAddr;

use crate::duration::{
    parse_byte_rate, parse_cache_size, parse_count, parse_milliseconds, parse_own_retention, parse_seconds, parse_size,
    parse_switch,
};
use crate::up::object_store::StorePlace;

pub use history::{BranchRenameArgs, BranchResetArgs, BranchRestoreArgs, BranchUndeleteArgs, KeepArgs, RetentionArgs};
pub use inspect::{
    InspectCommand, LayerInspectArgs, ManifestInspectArgs, PageInspectArgs, StoreChoiceArgs, StoreInspectArgs,
    UnnamedFilesArgs, VerifyRedoArgs, WalInspectArgs,
};

/// Branches of a production Postgres, in an instant, on your own machine.
#[derive(Debug, Parser)]
#[command(name = "ardent", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  ardent up                                             run the server on this machine
  ardent connector create postgresql 'postgresql://...'  connect production
  ardent branch create feature-x                        a branch with all of its data
  ardent psql feature-x                                 a session on it
  ardent branch delete feature-x

Exit codes: 0 done, 1 failed, 2 wrong usage or failed preflight, 3 differences found,
4 not authenticated, 5 not found, 6 conflict, 7 timed out.")]
pub struct Cli {
    /// What all commands have.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub struct GlobalArgs {
    /// Print JSON: one object on standard output, errors as JSON on standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// The server's API [default: the one that was logged into]
    #[arg(long, global = true, value_name = "URL", env = "ARDENT_URL", hide_env_values = true)]
    pub url: Option<String>,
    /// Never ask; fail and name the flag that answers
    #[arg(long, global = true)]
    pub no_input: bool,
    /// No colours (also: NO_COLOR)
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every role in one process, on a local folder
    Up(UpArgs),
    /// Use a server: keep its address and a token
    Login(LoginArgs),
    /// Revoke the token and forget it
    #[command(after_help = "Examples:\n  ardent logout")]
    Logout,
    /// Show the server and what it runs
    Status(StatusArgs),
    /// Show whose token is in use
    #[command(after_help = "Examples:\n  ardent whoami\n  ardent whoami --json")]
    Whoami,
    /// Look for what is missing on this machine
    #[command(
        after_help = "Examples:\n  ardent doctor\n  ardent doctor --pg-bin 15=/opt/pg15/bin\n  ardent doctor --store 's3://bucket/ardent?region=eu-central-1'"
    )]
    Doctor(DoctorArgs),
    /// Production servers that branches are made from
    #[command(subcommand)]
    Connector(ConnectorCommand),
    /// Branches
    #[command(subcommand)]
    Branch(BranchCommand),
    /// Open psql on a branch
    Psql(PsqlArgs),
    /// Look into files; for operators
    #[command(subcommand)]
    Inspect(InspectCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  ardent completions bash > ~/.local/share/bash-completion/completions/ardent")]
    Completions(CompletionsArgs),
    /// Run a safekeeper alone
    Safekeeper(SafekeeperArgs),
    /// Run a page server alone
    Pageserver(PageserverArgs),
    /// Run control alone, with computes and connectors
    Control(ControlArgs),
    /// Run a proxy alone
    Proxy(ProxyArgs),
    /// Make the keys that roles which run apart know each other by
    Keys(KeysArgs),
    /// Run one compute; started by the server
    #[command(hide = true)]
    Agent(AgentArgs),
}

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
    /// How long what was is kept.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// How computes run.
    #[command(flatten)]
    pub computes: ComputeArgs,
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

/// How computes run.
#[derive(Clone, Debug, Args)]
pub struct ComputeArgs {
    /// Run Postgres without a sandbox: its users can then reach files and networks that this server's host can
    #[arg(long)]
    pub no_sandbox: bool,
    /// Most memory of one compute, such as 2GB, where control groups can be made [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub compute_memory: Option<u64>,
    /// Most local disk of one compute, such as 50GB [default: half of what is free when it starts]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub compute_disk: Option<u64>,
    /// Folder with a major version's server programs; may be repeated
    #[arg(long, value_name = "MAJOR=DIR", value_parser = parse_pg_bin)]
    pub pg_bin: Vec<(u32, PathBuf)>,
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

It is not encrypted, and so listens on Unix sockets and loopback only.")]
pub struct SafekeeperArgs {
    /// Its own folder, for WAL
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where it serves: unix:PATH or tcp:HOST:PORT; may be repeated
    #[arg(long, value_name = "ADDR", required = true)]
    pub listen: Vec<ServiceAddr>,
    /// Where it serves streaming replication, for pg_receivewal; the socket's name must be .s.PGSQL.PORT
    #[arg(long, value_name = "ADDR")]
    pub listen_replication: Vec<ServiceAddr>,
    /// The installation's public key: service.pub, see ardent keys
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
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
    /// Where it serves: unix:PATH or tcp:HOST:PORT; may be repeated
    #[arg(long, value_name = "ADDR", required = true)]
    pub listen: Vec<ServiceAddr>,
    /// Each safekeeper; repeated
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
    #[arg(long, value_name = "ADDR")]
    pub pageserver: ServiceAddr,
    /// Each safekeeper; repeated, always the same ones
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

/// `ardent login`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  echo \"$TOKEN\" | ardent login --token-stdin
  ARDENT_TOKEN=... ardent login --url http://127.0.0.1:7480

`ardent up` logs in the user who starts it.")]
pub struct LoginArgs {
    /// Read the token from standard input
    #[arg(long)]
    pub token_stdin: bool,
}

/// `ardent status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ardent status\n  psql \"$(ardent branch info feature-x --print-url)&sslrootcert=$(ardent status --ca)\""
)]
pub struct StatusArgs {
    /// Print only the path of the CA certificate, for sslmode=verify-full
    #[arg(long)]
    pub ca: bool,
}

/// `ardent doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Folder with a major version's server programs; may be repeated
    #[arg(long, value_name = "MAJOR=DIR", value_parser = parse_pg_bin)]
    pub pg_bin: Vec<(u32, PathBuf)>,
    /// The store to examine.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `ardent connector ...`.
#[derive(Debug, Subcommand)]
pub enum ConnectorCommand {
    /// Say what a server lacks to be a source, and the SQL that mends it; changes nothing
    #[command(
        after_help = "Examples:\n  ardent connector preflight postgresql 'postgresql://app:PASSWORD@db.example.com/shop'"
    )]
    Preflight(SourceArgs),
    /// Copy a server and follow it from then on
    #[command(after_help = "Examples:
  ardent connector create postgresql 'postgresql://app:PASSWORD@db.example.com/shop' -n shop
  ardent connector create postgresql - < url.txt
  ardent connector create postgresql 'postgresql://...' --max-rate 20M

The copy goes on when this command is interrupted; the same command again shows how far it is.")]
    Create(ConnectorCreateArgs),
    /// List connectors
    #[command(after_help = "Examples:\n  ardent connector list\n  ardent connector list --json")]
    List,
    /// Show how far a connector is behind production
    #[command(after_help = "Examples:\n  ardent connector status\n  ardent connector status shop --json")]
    Status(OptionalNameArgs),
    /// Delete a connector and drop its replication slot
    #[command(after_help = "Examples:\n  ardent connector delete shop --yes")]
    Delete(ConnectorDeleteArgs),
}

/// The kind of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// A Postgres server that allows physical replication.
    Postgresql,
}

/// A source.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Kind of the source
    #[arg(value_enum)]
    pub kind: SourceKind,
    /// postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE, or - to read it from standard input
    #[arg(value_name = "URL", env = "ARDENT_SOURCE_URL", hide_env_values = true)]
    pub source: String,
}

/// `ardent connector create`.
#[derive(Debug, Args)]
pub struct ConnectorCreateArgs {
    /// The source.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Name of the connector and its root branch [default: made from the database's name]
    #[arg(short, long)]
    pub name: Option<String>,
    /// Ask production for an immediate checkpoint: starts sooner, writes a burst there
    #[arg(long)]
    pub fast: bool,
    /// Most bytes per second to copy, such as 20M
    #[arg(long, value_name = "RATE", value_parser = parse_byte_rate)]
    pub max_rate: Option<u64>,
}

/// `ardent connector delete`.
#[derive(Debug, Args)]
pub struct ConnectorDeleteArgs {
    /// Its name
    pub name: String,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// A name that may be left out.
#[derive(Debug, Args)]
pub struct OptionalNameArgs {
    /// Its name
    pub name: Option<String>,
}

/// A name.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// Its name
    pub name: String,
}

/// `ardent branch ...`.
#[derive(Debug, Subcommand)]
pub enum BranchCommand {
    /// Make a branch, or show the one that has the name already
    #[command(after_help = "Examples:
  ardent branch create feature-x
  ardent branch create feature-x --from staging --ttl 2h
  ardent branch create before-it-happened --at '2026-01-31T12:00:00Z'
  ardent branch create for-the-agent --ttl 4h --max-rows-changed 10000 --statement-timeout 30s --expires 4h
  DATABASE_URL=$(ardent branch create feature-x --print-url)")]
    Create(BranchCreateArgs),
    /// List branches
    #[command(
        after_help = "Examples:\n  ardent branch list\n  ardent branch list --tree\n  ardent branch list --deleted"
    )]
    List(BranchListArgs),
    /// Show a branch
    #[command(after_help = "Examples:\n  ardent branch info feature-x\n  ardent branch info --print-url")]
    Info(BranchInfoArgs),
    /// Make a branch the default one of this folder (kept in .ardent)
    #[command(after_help = "Examples:\n  ardent branch switch feature-x")]
    Switch(NameArgs),
    /// Show how the schema and which rows changed on a branch since it was made, or how it differs from another
    #[command(after_help = "Examples:
  ardent branch diff feature-x
  ardent branch diff feature-x --stat
  ardent branch diff feature-x --table public.users --json
  ardent branch diff feature-x --against feature-y
  ardent branch diff feature-x --against 0/16B3748
  ardent branch diff feature-x --sql > migrate.sql
  ardent branch diff feature-x -o feature-x.changes
  ardent branch diff feature-x --exit-code >/dev/null || echo changed")]
    Diff(BranchDiffArgs),
    /// Apply what changed on a branch, or a change set in a file, to another database
    #[command(after_help = "Examples:
  ardent branch apply feature-x --to 'postgresql://app:PASSWORD@db.example.com/shop' --dry-run
  ardent branch apply feature-x.changes --to \"$PRODUCTION_URL\" --inverse undo.changes
  ardent branch apply undo.changes --to \"$PRODUCTION_URL\"
  ardent branch apply feature-x --to shop --yes
  ardent branch apply feature-x --to \"$PRODUCTION_URL\" --table public.users

One transaction: everything or nothing. What the target changed since the branch point, in another
way than the branch did, is a conflict: all are shown, nothing is applied, the exit code is 6.")]
    Apply(BranchApplyArgs),
    /// Take a branch's changes onto the newest state of its parent; the old state stays as a branch of its own
    #[command(after_help = "Examples:
  ardent branch rebase feature-x --dry-run
  ardent branch rebase feature-x
  ardent branch rebase feature-x --prefer branch
  ardent branch rebase feature-x --undo

What the parent changed since the branch point, in another way than the branch did, is a conflict:
all are shown, nothing is changed, the exit code is 6. The URL and its password stay the same.")]
    Rebase(BranchRebaseArgs),
    /// Change a branch's settings
    #[command(
        after_help = "Examples:\n  ardent branch set feature-x --idle-timeout 1h\n  ardent branch set feature-x --ttl never\n  ardent branch set shop --retention 30d"
    )]
    Set(BranchSetArgs),
    /// Show or change what a branch may do
    #[command(after_help = "Examples:
  ardent branch policy feature-x
  ardent branch policy feature-x --read-only
  ardent branch policy feature-x --read-only off --max-bytes-written 1GB
  ardent branch policy feature-x --statement-timeout none

A change ends the branch's sessions; it holds from the next connection on.")]
    Policy(BranchPolicyArgs),
    /// Make a new password for a role of a branch; the old one is good no longer
    #[command(after_help = "Examples:
  ardent branch password feature-x
  ardent branch password feature-x --role app --expires 8h")]
    Password(BranchPasswordArgs),
    /// Start a branch's Postgres before it is needed
    #[command(after_help = "Examples:\n  ardent branch wake feature-x")]
    Wake(NameArgs),
    /// Stop a branch's Postgres; the next connection starts it
    #[command(after_help = "Examples:\n  ardent branch suspend feature-x")]
    Suspend(NameArgs),
    /// Make a branch what its parent is now: same name, URL, passwords and limits
    #[command(after_help = "Examples:
  ardent branch reset feature-x
  ardent branch reset feature-x --at '2026-01-31T12:00:00Z'

Its sessions end; the next connection finds it new. Branches made from it keep what they have. What it was
can be restored for as long as history is kept: the command prints how.")]
    Reset(BranchResetArgs),
    /// Make a branch what it was at a time or LSN
    #[command(after_help = "Examples:
  ardent branch restore feature-x --at '2026-01-31T12:00:00Z'
  ardent branch restore feature-x --at 0/16B3748
  ardent branch history feature-x

A time means what the branch was then, also before an earlier reset or restore: so both can be undone. Its
sessions end; the next connection finds it as it was. A time has its zone, as 2026-01-31T13:00:00+01:00 has.")]
    Restore(BranchRestoreArgs),
    /// Show what a branch was, and what it can be restored to
    #[command(after_help = "Examples:\n  ardent branch history feature-x\n  ardent branch history feature-x --json")]
    History(NameArgs),
    /// Give a branch another name, and so another hostname
    #[command(after_help = "Examples:\n  ardent branch rename feature-x feature-y")]
    Rename(BranchRenameArgs),
    /// Delete branches
    #[command(after_help = "Examples:
  ardent branch delete feature-x
  ardent branch delete feature-x --for-good

A deleted branch can be had back with ardent branch undelete for as long as the server was told (24 hours,
ardent up --keep-deleted); its name is free at once.")]
    Delete(BranchDeleteArgs),
    /// Bring a deleted branch back, with its data, passwords and limits
    #[command(after_help = "Examples:
  ardent branch list --deleted
  ardent branch undelete feature-x
  ardent branch undelete feature-x --as feature-x-old

Of several that had the name, the one that was deleted last. It does not expire any more.")]
    Undelete(BranchUndeleteArgs),
}

/// `ardent branch create`.
#[derive(Debug, Args)]
pub struct BranchCreateArgs {
    /// Its name: a-z, 0-9 and -, at most 63 characters; it becomes a hostname
    pub name: String,
    /// The branch to start from [default: the only connector's root]
    #[arg(long, value_name = "BRANCH")]
    pub from: Option<String>,
    /// latest, an LSN, or a time such as 2026-01-31T12:00:00Z [default: now, with all that is committed]
    #[arg(long, value_name = "POINT")]
    pub at: Option<String>,
    /// Delete it after this long, such as 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    pub ttl: Option<u64>,
    /// Suspend it after this long without activity; never for not at all [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    pub idle_timeout: Option<u64>,
    /// The role of the connection string [default: the connector URL's]
    #[arg(long)]
    pub role: Option<String>,
    /// The password of the connection string is good for this long, such as 8h
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    pub expires: Option<u64>,
    /// What the branch may do.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Print the connection string and nothing else
    #[arg(long, conflicts_with_all = ["psql", "json"])]
    pub print_url: bool,
    /// Open psql on it
    #[arg(long, conflicts_with = "json")]
    pub psql: bool,
    /// Do not wait until it is made
    #[arg(long, conflicts_with = "psql")]
    pub no_wait: bool,
}

/// `ardent branch list`.
#[derive(Debug, Args)]
pub struct BranchListArgs {
    /// Show which branch was made from which
    #[arg(long, conflicts_with = "deleted")]
    pub tree: bool,
    /// Show those that are deleted and can be had back
    #[arg(long)]
    pub deleted: bool,
}

/// `ardent branch info`.
#[derive(Debug, Args)]
pub struct BranchInfoArgs {
    /// Its name [default: ARDENT_BRANCH, or .ardent's]
    #[arg(env = "ARDENT_BRANCH")]
    pub name: Option<String>,
    /// Print the connection string with its password and nothing else
    #[arg(long, conflicts_with = "json")]
    pub print_url: bool,
    /// The role of the connection string; one that has no password here gets one
    #[arg(long, requires = "print_url")]
    pub role: Option<String>,
}

/// `ardent branch set`.
#[derive(Debug, Args)]
pub struct BranchSetArgs {
    /// Its name
    pub name: String,
    /// Suspend it after this long without activity, or never
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    pub idle_timeout: Option<u64>,
    /// Delete it after this long from now, or never
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    pub ttl: Option<u64>,
    /// Keep its history this long, such as 30d; default for as long as the server was told. A root branch has this as well
    #[arg(long, value_name = "DURATION", value_parser = parse_own_retention)]
    pub retention: Option<u64>,
}

/// Limits that the server holds, also against superusers of the branch.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits, held by the server")]
pub struct PolicyArgs {
    /// Refuse every change; off allows them again
    #[arg(long, value_name = "on|off", num_args = 0..=1, default_missing_value = "on", value_parser = parse_switch)]
    pub read_only: Option<bool>,
    /// No statement runs longer than this, such as 30s or 500ms; none lifts the limit
    #[arg(long, value_name = "DURATION", value_parser = parse_milliseconds)]
    pub statement_timeout: Option<u64>,
    /// Most rows inserted, updated and deleted; none lifts the limit
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub max_rows_changed: Option<u64>,
    /// Most bytes of WAL written since the branch was made, such as 1GB; none lifts the limit
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_bytes_written: Option<u64>,
}

/// `ardent branch policy`.
#[derive(Debug, Args)]
pub struct BranchPolicyArgs {
    /// Its name
    pub name: String,
    /// What is to change.
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// `ardent branch password`.
#[derive(Debug, Args)]
pub struct BranchPasswordArgs {
    /// Its name
    pub name: String,
    /// The role [default: the branch's]
    #[arg(long)]
    pub role: Option<String>,
    /// Good for this long, such as 8h [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    pub expires: Option<u64>,
}

/// `ardent branch diff`.
#[derive(Debug, Args)]
pub struct BranchDiffArgs {
    /// Its name [default: the branch of this folder]
    pub name: Option<String>,
    /// Compare with another branch, or with the branch as it was at an LSN [default: its branch point]
    #[arg(long, value_name = "BRANCH|LSN")]
    pub against: Option<String>,
    /// Only count statements and rows per table
    #[arg(long)]
    pub stat: bool,
    /// Print the SQL script that makes the same changes
    #[arg(long, conflicts_with_all = ["stat", "json", "ndjson"])]
    pub sql: bool,
    /// Print one JSON object a line: statements, rows, sequences
    #[arg(long, conflicts_with_all = ["stat", "json"])]
    pub ndjson: bool,
    /// Write a change set, for ardent branch apply
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["table", "schema_only", "data_only"])]
    pub output: Option<PathBuf>,
    /// Only the schema
    #[arg(long, conflicts_with = "data_only")]
    pub schema_only: bool,
    /// Only rows, sequences and large objects
    #[arg(long)]
    pub data_only: bool,
    /// Show long values whole
    #[arg(long)]
    pub full: bool,
    /// Only this table, as NAME or SCHEMA.NAME; may be given more than once
    #[arg(long, value_name = "TABLE")]
    pub table: Vec<String>,
    /// Exit with 3 if there are differences
    #[arg(long)]
    pub exit_code: bool,
}

/// `ardent branch rebase`.
#[derive(Debug, Args)]
pub struct BranchRebaseArgs {
    /// Its name [default: the branch of this folder]
    pub name: Option<String>,
    /// Do it all and throw it away: shows conflicts and counts
    #[arg(long)]
    pub dry_run: bool,
    /// Settle rows that both changed: with the branch's values, or with the parent's
    #[arg(long, value_name = "branch|parent", value_parser = ["branch", "parent"])]
    pub prefer: Option<String>,
    /// Take the last rebase back: the branch gets the state that was kept
    #[arg(long, conflicts_with_all = ["dry_run", "prefer"])]
    pub undo: bool,
}

/// `ardent branch apply`.
#[derive(Debug, Args)]
pub struct BranchApplyArgs {
    /// A branch, or a file that ardent branch diff -o wrote
    #[arg(value_name = "NAME|FILE")]
    pub source: String,
    /// postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE of the target, with sslmode and sslrootcert as in psql; - to read it from standard input; or a connector, for the production server that it follows
    #[arg(long, value_name = "URL|CONNECTOR", env = "ARDENT_TARGET_URL", hide_env_values = true)]
    pub to: String,
    /// The database of the change set [default: the one that URL names]
    #[arg(long)]
    pub database: Option<String>,
    /// Only rows of this table, as NAME or SCHEMA.NAME; may be given more than once
    #[arg(long, value_name = "TABLE")]
    pub table: Vec<String>,
    /// Only the schema
    #[arg(long, conflicts_with = "data_only")]
    pub schema_only: bool,
    /// Only rows, sequences and large objects
    #[arg(long)]
    pub data_only: bool,
    /// Do it all and take it back: shows conflicts and counts
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before a connector's production server is changed
    #[arg(long, short)]
    pub yes: bool,
    /// Settle rows that both changed: with the branch's values, or with the target's
    #[arg(long, value_name = "branch|target", value_parser = ["branch", "target"])]
    pub prefer: Option<String>,
    /// Where to write the change set that undoes this one [default: NAME-undo-TIME.changes]
    #[arg(long, value_name = "FILE")]
    pub inverse: Option<PathBuf>,
    /// Longest wait for a lock in the target
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds, default_value = "5s")]
    pub lock_timeout: u64,
    /// Longest run of one statement in the target
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds, default_value = "5m")]
    pub statement_timeout: u64,
}

/// `ardent branch delete`.
#[derive(Debug, Args)]
pub struct BranchDeleteArgs {
    /// Their names; children before their parents
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Give the space back at once: they cannot be had back
    #[arg(long)]
    pub for_good: bool,
}

/// `ardent psql`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ardent psql feature-x
  ardent psql feature-x -- -c 'select now()'
  ARDENT_BRANCH=feature-x ardent psql")]
pub struct PsqlArgs {
    /// The branch [default: ARDENT_BRANCH, or .ardent's]
    #[arg(env = "ARDENT_BRANCH")]
    pub branch: Option<String>,
    /// The role [default: the branch's]
    #[arg(long)]
    pub role: Option<String>,
    /// Arguments for psql
    #[arg(last = true)]
    pub arguments: Vec<String>,
}

/// `ardent completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `ardent agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// What to run
    #[arg(long, value_name = "FILE")]
    pub spec: PathBuf,
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

fn parse_pg_bin(text: &str) -> Result<(u32, PathBuf), String> {
    let parsed = text.split_once('=').and_then(|(major, dir)| Some((major.parse().ok()?, PathBuf::from(dir))));
    parsed.ok_or_else(|| format!("{text:?} is not MAJOR=DIR, such as 15=/usr/lib/postgresql/15/bin"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_examples() {
        let command = Cli::command();
        command.clone().debug_assert();
        check_examples(&command);
    }

    fn check_examples(command: &clap::Command) {
        for sub in command.get_subcommands() {
            if sub.is_hide_set() {
                continue;
            }
            if sub.has_subcommands() {
                check_examples(sub);
            } else {
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Examples:"), "{} has no examples", sub.get_name());
            }
        }
    }
}
