//! Flags of `ardent branch`.

use clap::{Args, Subcommand};

use super::change::{BranchApplyArgs, BranchDiffArgs, BranchRebaseArgs, BranchRehearseArgs};
use super::checkpoint::{BranchRewindArgs, CheckpointCommand};
use super::history::{BranchRenameArgs, BranchResetArgs, BranchRestoreArgs, BranchUndeleteArgs};
use super::log::{BranchBlameArgs, BranchLogArgs};
use crate::duration::{parse_count, parse_lifetime, parse_milliseconds, parse_own_retention, parse_size, parse_switch};

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
  ardent branch create for-the-agent --masked
  ardent branch create feature-x --masked nightly --ttl 8h
  ardent branch create feature-x --reindex-collations
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
  ardent branch diff feature-x --stat --json | jq '.inserted + .updated + .deleted'
  ardent branch diff feature-x --table public.users --json
  ardent branch diff feature-x --against feature-y
  ardent branch diff feature-x --against 0/16B3748
  ardent branch diff feature-x --since step-2
  ardent branch diff feature-x --sql > migrate.sql
  ardent branch diff feature-x -o feature-x.changes
  ardent branch diff feature-x --exit-code >/dev/null || echo changed")]
    Diff(BranchDiffArgs),
    /// Show what a branch ran: every statement, by whom, when, how long, how many rows, and what became of it; also while it sleeps
    #[command(after_help = "Examples:
  ardent branch log feature-x
  ardent branch log feature-x --since 10m --writes
  ardent branch log feature-x --failed --role app --limit 5
  ardent branch log feature-x --grep 'drop table' --all
  ardent branch log feature-x --follow
  ardent branch log feature-x --all --ndjson | jq 'select(.type == \"entry\") | .statement'

The oldest comes first. What a function or a DO block ran is part of the statement that called it. Passwords in \
statements are not kept.")]
    Log(BranchLogArgs),
    /// Show which statement last changed a row
    #[command(after_help = "Examples:
  ardent branch blame feature-x public.users 42
  ardent branch blame feature-x lines 7,b --json
  ardent branch blame users 42

The statement may have run on a branch that this one was made from; what production ran is not recorded.")]
    Blame(BranchBlameArgs),
    /// Apply what changed on a branch, or a change set in a file, to another database
    #[command(after_help = "Examples:
  ardent branch apply feature-x --to 'postgresql://app:PASSWORD@db.example.com/shop' --dry-run
  ardent branch apply feature-x.changes --to \"$PRODUCTION_URL\" --inverse undo.changes
  ardent branch apply undo.changes --to \"$PRODUCTION_URL\"
  ardent branch apply feature-x --to shop --yes
  ardent branch apply feature-x --to \"$PRODUCTION_URL\" --table public.users
  ardent branch apply feature-x --to \"$PRODUCTION_URL\" --row public.users:42 --row public.lines:7,b
  ardent branch apply feature-x --to \"$PRODUCTION_URL\" --object 'column age of table public.users' --with-needed

One transaction: everything or nothing. What the target changed since the branch point, in another \
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
    /// Run a migration on a branch that is made for it and deleted again: shows locks, times, rewrites, errors, and what is different then
    #[command(after_help = "Examples:
  ardent branch rehearse migrate.sql
  ardent branch rehearse migrate.sql --from staging --role app
  ardent branch rehearse migrate.sql --stat
  ardent branch rehearse migrate.sql --json | jq '.blocked'
  cat *.sql | ardent branch rehearse - --keep

Statements are run one by one, as psql -v ON_ERROR_STOP=1 -f runs them; the first error ends it, and the exit code \
is 1. What is told of a lock is who would have waited: for reads, writes, or both, and how long at most.")]
    Rehearse(BranchRehearseArgs),
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

Its sessions end; the next connection finds it new. Branches made from it keep what they have. What it was \
can be restored for as long as history is kept: the command prints how.")]
    Reset(BranchResetArgs),
    /// Make a branch what it was at a time or LSN
    #[command(after_help = "Examples:
  ardent branch restore feature-x --at '2026-01-31T12:00:00Z'
  ardent branch restore feature-x --at 0/16B3748
  ardent branch history feature-x

A time means what the branch was then, also before an earlier reset or restore: so both can be undone. Its \
sessions end; the next connection finds it as it was. A time has its zone, as 2026-01-31T13:00:00+01:00 has.")]
    Restore(BranchRestoreArgs),
    /// Show what a branch was, and what it can be restored to
    #[command(after_help = "Examples:\n  ardent branch history feature-x\n  ardent branch history feature-x --json")]
    History(NameArgs),
    /// Checkpoints: marks at the steps of your work on a branch, to go back to
    #[command(subcommand)]
    #[command(after_help = "Examples:
  ardent branch checkpoint create feature-x
  ardent branch checkpoint list feature-x
  ardent branch rewind feature-x step-2")]
    Checkpoint(CheckpointCommand),
    /// Make a branch what it was at a checkpoint
    #[command(after_help = "Examples:
  ardent branch rewind feature-x
  ardent branch rewind feature-x step-2
  ardent branch checkpoint list feature-x

Same name, URL, passwords and limits; its sessions end, and the next connection finds it as it was. Nothing that was written since is lost while history is kept: the command prints how to undo it, and later checkpoints can be gone to as well.")]
    Rewind(BranchRewindArgs),
    /// Give a branch another name, and so another hostname
    #[command(after_help = "Examples:\n  ardent branch rename feature-x feature-y")]
    Rename(BranchRenameArgs),
    /// Delete branches
    #[command(after_help = "Examples:
  ardent branch delete feature-x
  ardent branch delete feature-x --for-good
  ardent branch delete feature-x feature-y

If one of several cannot be deleted, none is. A deleted branch can be had back with ardent branch undelete for as long as the \
server was told (24 hours, ardent up --keep-deleted); its name is free at once.")]
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
    /// The branch to start from [default: the root of the default connector, or of the only one]
    #[arg(long, value_name = "BRANCH")]
    pub from: Option<String>,
    /// Start from a masked template: nothing that was there before it was masked can be read [default: the only one]
    #[arg(long, value_name = "TEMPLATE", num_args = 0..=1, default_missing_value = "", conflicts_with = "from")]
    pub masked: Option<String>,
    /// latest, an LSN, or a time such as 2026-01-31T12:00:00Z [default: now, with all that is committed]
    #[arg(long, value_name = "POINT")]
    pub at: Option<String>,
    /// Delete it after this long, such as 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_lifetime)]
    pub ttl: Option<u64>,
    /// Suspend it after this long without activity; never for not at all [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = parse_lifetime)]
    pub idle_timeout: Option<u64>,
    /// The role of the connection string [default: the connector URL's]
    #[arg(long)]
    pub role: Option<String>,
    /// The password of the connection string is good for this long, such as 8h
    #[arg(long, value_name = "DURATION", value_parser = parse_lifetime)]
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
    /// Make those indexes anew whose texts this host sorts otherwise than production: of a branch that is there already as well
    #[arg(long, conflicts_with = "no_wait")]
    pub reindex_collations: bool,
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
    #[arg(long, value_name = "DURATION", value_parser = parse_lifetime)]
    pub idle_timeout: Option<u64>,
    /// Delete it after this long from now, or never
    #[arg(long, value_name = "DURATION", value_parser = parse_lifetime)]
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
    #[arg(long, value_name = "DURATION", value_parser = parse_lifetime)]
    pub expires: Option<u64>,
}

/// `ardent branch delete`.
#[derive(Debug, Args)]
pub struct BranchDeleteArgs {
    /// Their names, in any order
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Give the space back at once: they cannot be had back
    #[arg(long)]
    pub for_good: bool,
}
