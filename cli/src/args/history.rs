//! Flags of what branches were, and of how long that is kept.

use std::time::Duration;

use clap::Args;

use crate::duration::{parse_log_size, parse_retention, parse_seconds};

/// How long history is kept: the same for page server and control.
#[derive(Clone, Copy, Debug, Args)]
pub struct RetentionArgs {
    /// How long history is kept: branches can be made at, and restored to, any point of it. ardent branch set says otherwise for one
    /// branch
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = parse_retention)]
    pub retention: u64,
}

impl RetentionArgs {
    /// As a duration.
    pub fn retention(&self) -> Duration {
        Duration::from_secs(self.retention)
    }
}

/// What control keeps.
#[derive(Clone, Copy, Debug, Args)]
pub struct KeepArgs {
    /// How long history is kept.
    #[command(flatten)]
    pub history: RetentionArgs,
    /// How long a deleted branch can be had back with ardent branch undelete, and takes its space; never for not at all
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_seconds)]
    pub keep_deleted: u64,
    /// How much of what each branch runs is kept, compressed, for ardent branch log: the oldest goes first; none for no log at all
    #[arg(long, value_name = "SIZE", default_value = "64MB", value_parser = parse_log_size)]
    pub statement_log: u64,
}

/// `ardent branch reset`.
#[derive(Debug, Args)]
pub struct BranchResetArgs {
    /// Its name
    pub name: String,
    /// What the parent was there: latest, an LSN, or a time such as 2026-01-31T12:00:00Z [default: now]
    #[arg(long, value_name = "POINT")]
    pub at: Option<String>,
}

/// `ardent branch restore`.
#[derive(Debug, Args)]
pub struct BranchRestoreArgs {
    /// Its name
    pub name: String,
    /// A time such as 2026-01-31T12:00:00Z, or an LSN; ardent branch history shows which there are
    #[arg(long, value_name = "TIMESTAMP|LSN")]
    pub at: String,
}

/// `ardent branch undelete`.
#[derive(Debug, Args)]
pub struct BranchUndeleteArgs {
    /// The name that it had
    pub name: String,
    /// Another name, if that one is taken
    #[arg(long = "as", value_name = "NEW-NAME")]
    pub new_name: Option<String>,
}

/// `ardent branch rename`.
#[derive(Debug, Args)]
pub struct BranchRenameArgs {
    /// Its name
    pub name: String,
    /// The new one
    pub new_name: String,
}
