//! Flags of `ardent recover`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::StoreChoiceArgs;

/// `ardent recover ...`.
#[derive(Debug, Subcommand)]
pub enum RecoverCommand {
    /// Make a lost control.db anew from the manifests in the store
    #[command(after_help = "Examples:
  ardent recover control
  ardent recover control --data-dir /srv/ardent
  ardent recover control --data-dir /srv/ardent --store 's3://bucket/ardent?endpoint=https://minio.example.com' --json

The server must not run. Branches and connectors come back with their names, passwords and limits. Without keys/secrets.key \
passwords cannot be shown any more (log-ins with them work), and each connector's URL has to be given anew with \
'ardent connector move'. What nothing describes comes back as a branch named recovered-...")]
    Control(RecoverControlArgs),
    /// Give a safekeeper that lost its disk the WAL that the others have
    #[command(after_help = "Examples:
  ardent recover safekeeper 2
  ardent recover safekeeper 3 --data-dir /srv/ardent --json
  ardent recover safekeeper --into /mnt/new/wal --from /mnt/a/wal --from /mnt/b/wal --members 3

The server must not run, nor any safekeeper alone. As many of the others as make a majority are needed: of three, both.")]
    Safekeeper(RecoverSafekeeperArgs),
}

/// `ardent recover control`.
#[derive(Debug, Args)]
pub struct RecoverControlArgs {
    /// Which installation and store.
    #[command(flatten)]
    pub choice: StoreChoiceArgs,
}

/// `ardent recover safekeeper`.
#[derive(Debug, Args)]
pub struct RecoverSafekeeperArgs {
    /// Which one: 2 is the one in the folder safekeeper-2
    #[arg(value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=9), required_unless_present = "into")]
    pub number: Option<u8>,
    /// The installation's folder [default: as for ardent up]
    #[arg(long, value_name = "DIR", env = "ARDENT_DATA_DIR", conflicts_with = "into")]
    pub data_dir: Option<PathBuf>,
    /// The new folder of a safekeeper that runs alone
    #[arg(long, value_name = "DIR", conflicts_with = "number", requires_all = ["from", "members"])]
    pub into: Option<PathBuf>,
    /// The folder of another one; repeated
    #[arg(long, value_name = "DIR", requires = "into")]
    pub from: Vec<PathBuf>,
    /// How many safekeepers there are, with the lost one [default: as many as the installation was made with]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=9))]
    pub members: Option<u8>,
}
