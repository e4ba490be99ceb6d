//! Flags of `ardent mask`.

use clap::{Args, Subcommand};

use super::branch::NameArgs;

/// `ardent mask ...`.
#[derive(Debug, Subcommand)]
pub enum MaskCommand {
    /// Mask a branch's data by the rules in a file, for branches to be made from
    #[command(after_help = "Examples:
  ardent mask create nightly --rules mask.json
  ardent mask create nightly --rules mask.json --from staging
  ardent mask create nightly --rules mask.json && ardent branch create for-the-agent --masked nightly

Nobody can connect to anything of it before all is masked. A column that no rule names, nor its type, stops it before \
anything is done. It copies and writes anew all that there is: it takes as long as that does.")]
    Create(MaskCreateArgs),
    /// Show what the rules in a file would do to each column
    #[command(after_help = "Examples:
  ardent mask check mask.json
  ardent mask check mask.json --from staging --json
  echo '{ \"version\": 1 }' | ardent mask check -")]
    Check(MaskCheckArgs),
    /// List masked templates
    #[command(after_help = "Examples:\n  ardent mask list\n  ardent mask list --json")]
    List,
    /// Show what was done to each column, and to how many values
    #[command(after_help = "Examples:
  ardent mask report nightly
  ardent mask report nightly --json | jq '.report.columns[] | select(.unchanged > 0)'")]
    Report(NameArgs),
    /// Delete a masked template for good
    #[command(after_help = "Examples:\n  ardent mask delete nightly\n  ardent mask delete nightly --yes")]
    Delete(MaskDeleteArgs),
}

/// `ardent mask create`.
#[derive(Debug, Args)]
pub struct MaskCreateArgs {
    /// Its name: a-z, 0-9 and -, at most 63 characters
    pub name: String,
    /// The file with the rules, - for standard input
    #[arg(long, value_name = "FILE")]
    pub rules: String,
    /// The branch to mask [default: the root of the default connector, or of the only one]
    #[arg(long, value_name = "BRANCH")]
    pub from: Option<String>,
}

/// `ardent mask check`.
#[derive(Debug, Args)]
pub struct MaskCheckArgs {
    /// The file with the rules, - for standard input
    #[arg(value_name = "FILE")]
    pub rules: String,
    /// The branch to look at [default: the root of the default connector, or of the only one]
    #[arg(long, value_name = "BRANCH")]
    pub from: Option<String>,
}

/// `ardent mask delete`.
#[derive(Debug, Args)]
pub struct MaskDeleteArgs {
    /// Its name
    pub name: String,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}
