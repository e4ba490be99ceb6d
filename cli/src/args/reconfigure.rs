//! Flags of `ardent reconfigure`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use ardent_api::addr::ServiceAddr;

/// `ardent reconfigure ...`.
#[derive(Debug, Subcommand)]
pub enum ReconfigureCommand {
    /// Keep WAL on other safekeepers, or on another number of them
    #[command(after_help = "Examples:
  ardent reconfigure safekeepers 3
  ardent reconfigure safekeepers --replace 2
  ardent reconfigure safekeepers --replace 2 --with tls:10.0.0.4:7431/KEY
  ardent reconfigure safekeepers --add unix:/run/ardent/wal-4.sock --remove 1
  ardent reconfigure safekeepers --cancel
  ardent reconfigure safekeepers 1 --data-dir /srv/ardent --json

While the server runs it is asked to change them, and branches go on: those that join get what the others have, then old \
and new ones decide together, then the new ones alone. The command waits for the end and says how far it is; interrupted, the \
change goes on. ardent up starts new ones itself, on folders of its own; where the roles run apart, start each one first, on an \
empty folder. As many of the present ones as make a majority must be up.

While no server runs on the folder, only a number can be given: the new ones get the folders safekeeper-2, safekeeper-3 and \
so on (mount each one's own disk there first), and with fewer than before those with the lowest numbers stay. As many of the \
present ones as make a majority must be there.")]
    Safekeepers(ReconfigureSafekeepersArgs),
}

/// `ardent reconfigure safekeepers`.
#[derive(Debug, Args)]
pub struct ReconfigureSafekeepersArgs {
    /// How many from now on: a majority of them must be up for a commit
    #[arg(value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=9),
        conflicts_with_all = ["add", "remove", "replace", "cancel"])]
    pub count: Option<u8>,
    /// One more, which runs already: unix:PATH, tcp:HOST:PORT or tls:HOST:PORT/KEY; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub add: Vec<ServiceAddr>,
    /// One less: its number or its address, as ardent status shows them; may be repeated
    #[arg(long, value_name = "WHICH")]
    pub remove: Vec<String>,
    /// Another one for this one, which may be lost with its disk: its number or its address
    #[arg(long, value_name = "WHICH", conflicts_with_all = ["add", "remove"])]
    pub replace: Option<String>,
    /// What takes its place, which runs already [default: one that ardent up starts]
    #[arg(long, value_name = "ADDR", requires = "replace")]
    pub with: Option<ServiceAddr>,
    /// Give up a change that is on its way: the old ones stay
    #[arg(long, conflicts_with_all = ["add", "remove", "replace"])]
    pub cancel: bool,
    /// Do not wait for the end
    #[arg(long)]
    pub detach: bool,
    /// The installation's folder: the server that runs on it is asked, and no other [default: of the server that was logged into, if
    /// that answers; else as for ardent up]
    #[arg(long, value_name = "DIR", env = "ARDENT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}
