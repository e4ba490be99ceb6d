//! Flags of what shows a branch's changes and takes them elsewhere.

use std::path::PathBuf;

use clap::Args;

use ardent_change_set::RowChoice;

use crate::duration::parse_timeout;

/// `ardent branch diff`.
#[derive(Debug, Args)]
pub struct BranchDiffArgs {
    /// Its name [default: ARDENT_BRANCH, or .ardent's]
    pub name: Option<String>,
    /// Compare with another branch, or with the branch as it was at an LSN [default: its branch point]
    #[arg(long, value_name = "BRANCH|LSN")]
    pub against: Option<String>,
    /// Compare with the branch as it was at a checkpoint that it has passed
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "against")]
    pub since: Option<String>,
    /// Only count statements and rows per table
    #[arg(long)]
    pub stat: bool,
    /// Print the SQL script that makes the same changes
    #[arg(long, conflicts_with_all = ["stat", "json", "ndjson"])]
    pub sql: bool,
    /// Print one JSON object a line while it is being found: statements, tables, rows, sequences; the last line is of type end, or
    /// error
    #[arg(long, conflicts_with_all = ["stat", "json"])]
    pub ndjson: bool,
    /// Write a change set, for ardent branch apply
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["table", "schema_only", "data_only", "sql", "ndjson"])]
    pub output: Option<PathBuf>,
    /// Only the schema
    #[arg(long, conflicts_with = "data_only")]
    pub schema_only: bool,
    /// Only rows, sequences and large objects
    #[arg(long)]
    pub data_only: bool,
    /// Show long values whole
    #[arg(long)]
    pub full: bool,
    /// Only this table, as NAME or SCHEMA.NAME; may be given more than once
    #[arg(long, value_name = "TABLE")]
    pub table: Vec<String>,
    /// Exit with 3 if there are differences
    #[arg(long)]
    pub exit_code: bool,
}

/// `ardent branch rebase`.
#[derive(Debug, Args)]
pub struct BranchRebaseArgs {
    /// Its name [default: ARDENT_BRANCH, or .ardent's]
    pub name: Option<String>,
    /// Do it all and throw it away: shows conflicts and counts
    #[arg(long)]
    pub dry_run: bool,
    /// Settle rows that both changed: with the branch's values, or with the parent's
    #[arg(long, value_name = "branch|parent", value_parser = ["branch", "parent"])]
    pub prefer: Option<String>,
    /// Take the last rebase back: the branch gets the state that was kept
    #[arg(long, conflicts_with_all = ["dry_run", "prefer"])]
    pub undo: bool,
}

/// `ardent branch rehearse`.
#[derive(Debug, Args)]
pub struct BranchRehearseArgs {
    /// The migration: SQL as psql takes it, without psql's own commands; - to read it from standard input
    #[arg(value_name = "FILE")]
    pub file: String,
    /// The branch or connector whose newest state it is run on [default: the root of the default connector, or of the
    /// only one]
    #[arg(long, value_name = "BRANCH|CONNECTOR")]
    pub from: Option<String>,
    /// latest, an LSN, or a time such as 2026-01-31T12:00:00Z [default: now, with all that is committed]
    #[arg(long, value_name = "POINT")]
    pub at: Option<String>,
    /// The role that runs it [default: the connector URL's]
    #[arg(long)]
    pub role: Option<String>,
    /// The database [default: the connector URL's]
    #[arg(long)]
    pub database: Option<String>,
    /// Keep the branch
    #[arg(long)]
    pub keep: bool,
    /// Of what is different afterwards, only count statements and rows per table
    #[arg(long, conflicts_with = "full")]
    pub stat: bool,
    /// Show long values whole
    #[arg(long)]
    pub full: bool,
}

/// What of a change set is to be applied.
#[derive(Debug, Args)]
pub struct ChoiceArgs {
    /// Rows of this table, as NAME or SCHEMA.NAME; may be given more than once
    #[arg(long, value_name = "TABLE")]
    pub table: Vec<String>,
    /// This row, by its key; several columns' values are parted by commas, in the key's order, and quoted as in CSV where they have
    /// one; may be given more than once
    #[arg(long, value_name = "TABLE:KEY")]
    pub row: Vec<RowChoice>,
    /// This object of the schema, with all that is a part of it, as ardent branch diff --stat names it; may be given more than once
    #[arg(long, value_name = "OBJECT")]
    pub object: Vec<String>,
    /// Take along what the named objects need of the branch's other changes to the schema; else that is said, and nothing is applied
    #[arg(long)]
    pub with_needed: bool,
    /// Only the schema
    #[arg(long, conflicts_with_all = ["data_only", "table", "row"])]
    pub schema_only: bool,
    /// Only rows, sequences and large objects
    #[arg(long, conflicts_with = "object")]
    pub data_only: bool,
}

/// `ardent branch apply`.
#[derive(Debug, Args)]
pub struct BranchApplyArgs {
    /// A branch, or a file that ardent branch diff -o wrote
    #[arg(value_name = "NAME|FILE")]
    pub source: String,
    /// postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE of the target, with sslmode and sslrootcert as in psql; - to read it from standard input; or a connector, for the production server that it follows
    #[arg(long, value_name = "URL|CONNECTOR", env = "ARDENT_TARGET_URL", hide_env_values = true)]
    pub to: String,
    /// The database of the change set [default: the one that URL names]
    #[arg(long)]
    pub database: Option<String>,
    /// What of it.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// Do it all and take it back: shows conflicts and counts
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before a connector's production server is changed
    #[arg(long, short)]
    pub yes: bool,
    /// Settle rows that both changed: with the branch's values, or with the target's
    #[arg(long, value_name = "branch|target", value_parser = ["branch", "target"])]
    pub prefer: Option<String>,
    /// Where to write the change set that undoes this one [default: NAME-undo-TIME.changes]
    #[arg(long, value_name = "FILE")]
    pub inverse: Option<PathBuf>,
    /// Longest wait for a lock in the target, such as 5s or 500ms
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout, default_value = "5s")]
    pub lock_timeout: u64,
    /// Longest run of one statement in the target
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout, default_value = "5m")]
    pub statement_timeout: u64,
}
