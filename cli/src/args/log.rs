//! Flags of what shows what a branch ran.

use std::net::IpAddr;

use clap::Args;

/// `ardent branch blame`.
#[derive(Debug, Args)]
pub struct BranchBlameArgs {
    /// The branch [default: ARDENT_BRANCH, or .ardent's], a table as NAME or SCHEMA.NAME, and the row's key: several columns' values are
    /// parted by commas, in the key's order, and quoted as in CSV where they have one
    #[arg(value_names = ["[NAME] TABLE", "KEY"], num_args = 2..=3, required = true)]
    pub row: Vec<String>,
    /// The database [default: the one that the branch's URL names]
    #[arg(long)]
    pub database: Option<String>,
    /// Show long statements whole
    #[arg(long)]
    pub full: bool,
}

/// `ardent branch log`.
#[derive(Debug, Args)]
pub struct BranchLogArgs {
    /// Its name [default: ARDENT_BRANCH, or .ardent's]
    pub name: Option<String>,
    /// That began at this time or later, such as 10m (ago) or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// That began before this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Of this role: that logged in, or that the statement ran as
    #[arg(long)]
    pub role: Option<String>,
    /// Of sessions with this in their application_name
    #[arg(long, value_name = "TEXT")]
    pub application: Option<String>,
    /// Of clients at this address
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// In this database
    #[arg(long)]
    pub database: Option<String>,
    /// Only what failed
    #[arg(long)]
    pub failed: bool,
    /// Only what wrote
    #[arg(long)]
    pub writes: bool,
    /// With this in statement, parameters or error
    #[arg(long, value_name = "TEXT")]
    pub grep: Option<String>,
    /// The newest, so many of them
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, conflicts_with = "all")]
    pub limit: u64,
    /// All of them, however many
    #[arg(long)]
    pub all: bool,
    /// Go on with what comes, until Ctrl-C
    #[arg(long, short, conflicts_with = "json")]
    pub follow: bool,
    /// Show long statements whole
    #[arg(long)]
    pub full: bool,
    /// Print one JSON object a line as they are read; the last is of type end, or error
    #[arg(long, conflicts_with = "json")]
    pub ndjson: bool,
}
