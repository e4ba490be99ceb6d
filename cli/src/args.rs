//! The command line: every verb, flag and help text.

mod branch;
mod change;
mod checkpoint;
mod connector;
mod history;
mod inspect;
mod log;
mod logical;
mod mask;
mod mcp;
mod reconfigure;
mod recover;
mod serve;
mod session;

use clap::{Args, Parser, Subcommand};

pub use branch::{
    BranchCommand, BranchCreateArgs, BranchDeleteArgs, BranchInfoArgs, BranchListArgs, BranchPasswordArgs,
    BranchPolicyArgs, BranchSetArgs, NameArgs,
};
pub use change::{BranchApplyArgs, BranchDiffArgs, BranchRebaseArgs, BranchRehearseArgs};
pub use checkpoint::{
    BranchRewindArgs, CheckpointCommand, CheckpointCreateArgs, CheckpointDeleteArgs, CheckpointListArgs,
};
pub use connector::{
    ConnectorAddTablesArgs, ConnectorCommand, ConnectorCreateArgs, ConnectorDeleteArgs, ConnectorMoveArgs,
    ConnectorResumeArgs, ConnectorSetArgs, ConnectorStatusArgs, OptionalNameArgs, SourceArgs,
};
pub use history::{BranchRenameArgs, BranchResetArgs, BranchRestoreArgs, BranchUndeleteArgs, KeepArgs};
pub use inspect::{
    InspectCommand, LayerInspectArgs, ManifestInspectArgs, PageInspectArgs, StoreChoiceArgs, StoreInspectArgs,
    UnnamedFilesArgs, VerifyRedoArgs, WalInspectArgs,
};
pub use log::{BranchBlameArgs, BranchLogArgs};
pub use mask::{MaskCheckArgs, MaskCommand, MaskCreateArgs, MaskDeleteArgs};
pub use mcp::{McpArgs, McpClient, McpCommand, McpInstallArgs};
pub use reconfigure::{ReconfigureCommand, ReconfigureSafekeepersArgs};
pub use recover::{RecoverCommand, RecoverControlArgs, RecoverSafekeeperArgs};
pub use serve::{
    AgentArgs, ComputeArgs, ControlArgs, FrontArgs, KeysArgs, MetricsArgs, PageserverArgs, ProxyArgs, SafekeeperArgs,
    SourcesArgs, StoreArgs, UpArgs,
};
pub use session::{CompletionsArgs, DoctorArgs, LoginArgs, ManArgs, PsqlArgs, StatusArgs};

/// Branches of a production Postgres, in an instant, on your own machine.
#[derive(Debug, Parser)]
#[command(name = "ardent", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  ardent up                                             run the server on this machine
  ardent connector create postgresql 'postgresql://...'  connect production
  ardent branch create feature-x                        a branch with all of its data
  ardent psql feature-x                                 a session on it
  ardent branch delete feature-x

Exit codes: 0 done, 1 failed, 2 wrong usage or failed preflight, 3 differences found, \
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
    #[command(after_help = "Examples:
  ardent connector preflight postgresql 'postgresql://app:PASSWORD@db.example.com/shop'
  ardent connector create postgresql 'postgresql://app:PASSWORD@db.example.com/shop' -n shop
  ardent connector status shop
  ardent connector switch shop")]
    Connector(ConnectorCommand),
    /// Branches
    #[command(subcommand)]
    #[command(after_help = "Examples:
  ardent branch create feature-x --ttl 8h
  ardent branch switch feature-x
  ardent branch diff feature-x
  ardent branch apply feature-x --to shop --dry-run
  ardent branch delete feature-x")]
    Branch(BranchCommand),
    /// Data that is masked by rules, for branches that can be handed out
    #[command(subcommand)]
    #[command(after_help = "Examples:
  ardent mask check mask.json
  ardent mask create nightly --rules mask.json
  ardent branch create for-the-agent --masked nightly")]
    Mask(MaskCommand),
    /// Open psql on a branch
    Psql(PsqlArgs),
    /// Give the same to coding agents and other programs, as tools of the Model Context Protocol
    Mcp(McpArgs),
    /// Look into files; for operators
    #[command(subcommand)]
    #[command(after_help = "Examples:
  ardent inspect store --data-dir /srv/ardent --verify
  ardent inspect unnamed-files feature-x
  ardent inspect wal /srv/pg/pg_wal --stats")]
    Inspect(InspectCommand),
    /// Make anew what was lost, from what is left; for operators
    #[command(subcommand)]
    #[command(after_help = "Examples:
  ardent recover control --data-dir /srv/ardent
  ardent recover safekeeper 2 --data-dir /srv/ardent")]
    Recover(RecoverCommand),
    /// Change what an installation was made with; for operators
    #[command(subcommand)]
    #[command(after_help = "Examples:
  ardent reconfigure safekeepers 3
  ardent reconfigure safekeepers --replace 2")]
    Reconfigure(ReconfigureCommand),
    /// Print a shell's completion script: of commands, flags, and the server's branches, checkpoints, connectors and templates
    #[command(after_help = "Examples:
  ardent completions bash > ~/.local/share/bash-completion/completions/ardent
  ardent completions zsh > ~/.zfunc/_ardent
  ardent completions fish > ~/.config/fish/completions/ardent.fish")]
    Completions(CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(ManArgs),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_and_group_has_examples() {
        let command = Cli::command();
        command.clone().debug_assert();
        check_examples(&command);
    }

    fn check_examples(command: &clap::Command) {
        for sub in command.get_subcommands() {
            if sub.is_hide_set() {
                continue;
            }
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  "), "{} has no examples", sub.get_name());
            check_examples(sub);
        }
    }
}
