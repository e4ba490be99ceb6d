//! Flags of `ardent reconfigure`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `ardent reconfigure ...`.
#[derive(Debug, Subcommand)]
pub enum ReconfigureCommand {
    /// Keep WAL on another number of safekeepers
    #[command(after_help = "Examples:
  ardent reconfigure safekeepers 3
  ardent reconfigure safekeepers 1 --data-dir /srv/ardent --json

The server must not run. The new ones get the folders safekeeper-2, safekeeper-3 and so on: mount each one's own disk there \
first. With fewer than before those with the lowest numbers stay; the folders of the others are left as they are, and can be \
removed. As many of the present ones as make a majority must be there.")]
    Safekeepers(ReconfigureSafekeepersArgs),
}

/// `ardent reconfigure safekeepers`.
#[derive(Debug, Args)]
pub struct ReconfigureSafekeepersArgs {
    /// How many from now on: a majority of them must be up for a commit
    #[arg(value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub count: u8,
    /// The installation's folder [default: as for ardent up]
    #[arg(long, value_name = "DIR", env = "ARDENT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}
