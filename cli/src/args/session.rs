//! Flags of what a user does with a server: logging in, looking, opening psql.

use std::path::PathBuf;

use clap::Args;

use super::serve::{StoreArgs, parse_pg_bin};

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
    after_help = "Examples:\n  ardent status\n  ardent status --exit-code >/dev/null || echo 'look at the safekeepers'\n  psql \"$(ardent branch info feature-x --print-url)&sslrootcert=$(ardent status --ca)\""
)]
pub struct StatusArgs {
    /// Print only the path of the CA certificate, for sslmode=verify-full
    #[arg(long)]
    pub ca: bool,
    /// Exit with code 3 if a safekeeper is away, or something is warned of
    #[arg(long)]
    pub exit_code: bool,
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

/// `ardent man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ardent man | man -l -
  ardent man --dir ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Write a page for each command into this folder
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}
