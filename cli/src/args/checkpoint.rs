//! Flags of `ardent branch checkpoint` and `ardent branch rewind`.

use clap::{Args, Subcommand};

/// `ardent branch checkpoint ...`.
#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Mark what a branch has committed now, to go back to; prints the label
    #[command(after_help = "Examples:
  ardent branch checkpoint create feature-x
  ardent branch checkpoint create feature-x --name before-the-import
  LABEL=$(ardent branch checkpoint create feature-x)

It wakes no branch and copies nothing, so make one at each step. What a transaction that is open then has written is not a part of it. It \
can be gone to for as long as history is kept (ardent branch set --retention).")]
    Create(CheckpointCreateArgs),
    /// List a branch's checkpoints, in the order in which they were made
    #[command(after_help = "Examples:
  ardent branch checkpoint list feature-x
  ardent branch checkpoint list feature-x --json | jq -r '.checkpoints[] | select(.kept) | .label'

PLACE is current for the last one that the branch has passed, which ardent branch rewind goes to; passed for those before it; left for those on what \
a rewind, a reset or a restore left, which can be gone to all the same.")]
    List(CheckpointListArgs),
    /// Forget checkpoints; what the branch is and was stays
    #[command(after_help = "Examples:
  ardent branch checkpoint delete feature-x step-3
  ardent branch checkpoint delete feature-x step-1 step-2")]
    Delete(CheckpointDeleteArgs),
}

/// `ardent branch checkpoint create`.
#[derive(Debug, Args)]
pub struct CheckpointCreateArgs {
    /// The branch [default: ARDENT_BRANCH, or .ardent's]
    #[arg(env = "ARDENT_BRANCH")]
    pub branch: Option<String>,
    /// Its label: letters, digits, ., _ and -, at most 63 [default: step-N, with the next number]
    #[arg(long = "name", value_name = "LABEL")]
    pub label: Option<String>,
}

/// `ardent branch checkpoint list`.
#[derive(Debug, Args)]
pub struct CheckpointListArgs {
    /// The branch [default: ARDENT_BRANCH, or .ardent's]
    #[arg(env = "ARDENT_BRANCH")]
    pub branch: Option<String>,
}

/// `ardent branch checkpoint delete`.
#[derive(Debug, Args)]
pub struct CheckpointDeleteArgs {
    /// The branch
    pub branch: String,
    /// Their labels
    #[arg(value_name = "LABEL", required = true)]
    pub labels: Vec<String>,
}

/// `ardent branch rewind`.
#[derive(Debug, Args)]
pub struct BranchRewindArgs {
    /// The branch [default: ARDENT_BRANCH, or .ardent's]
    #[arg(env = "ARDENT_BRANCH")]
    pub branch: Option<String>,
    /// The checkpoint's label [default: the last one that the branch has passed]
    pub label: Option<String>,
}
