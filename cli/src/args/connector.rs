//! Flags of `ardent connector`.

use clap::{Args, Subcommand, ValueEnum};

use super::branch::NameArgs;
use super::logical::LogicalArgs;
use crate::duration::{parse_byte_rate, parse_switch};

/// `ardent connector ...`.
#[derive(Debug, Subcommand)]
pub enum ConnectorCommand {
    /// Say what a server lacks to be a source, and the SQL that mends it; changes nothing
    #[command(after_help = "Examples:
  ardent connector preflight postgresql 'postgresql://app:PASSWORD@db.example.com/shop'
  ardent connector preflight postgresql 'postgresql://...' --logical")]
    Preflight(SourceArgs),
    /// Copy a server and follow it from then on
    #[command(after_help = "Examples:
  ardent connector create postgresql 'postgresql://app:PASSWORD@db.example.com/shop' -n shop
  ardent connector create postgresql - < url.txt
  ardent connector create postgresql 'postgresql://...' --max-rate 20M
  ardent connector create postgresql 'postgresql://...' --logical --schemas shop,billing

The copy goes on when this command is interrupted; the same command again shows how far it is. If the server itself ends before
that, a physical copy is undone at its next start: give the command again.")]
    Create(ConnectorCreateArgs),
    /// List connectors
    #[command(after_help = "Examples:\n  ardent connector list\n  ardent connector list --json")]
    List,
    /// Make a connector the default one of this folder (kept in .ardent)
    #[command(after_help = "Examples:
  ardent connector switch shop
  ARDENT_CONNECTOR=shop ardent branch create feature-x

Where no connector or branch is named, commands mean the one in ARDENT_CONNECTOR, else the one in .ardent, else the only one.")]
    Switch(NameArgs),
    /// Show how far a connector is behind production, and what production keeps for it
    #[command(after_help = "Examples:
  ardent connector status
  ardent connector status shop --json
  ardent connector status shop --exit-code >/dev/null || echo 'look at shop'

With --exit-code: 3 if production is not followed, or a warning is shown.")]
    Status(ConnectorStatusArgs),
    /// Follow the same production at another URL, or the server that has taken its place
    #[command(after_help = "Examples:
  ardent connector move shop 'postgresql://app:PASSWORD@db2.example.com/shop'
  ardent connector move shop - < url.txt

For another address, role or password, and after a fail-over to a standby that was promoted. The \
server must be of the same cluster (system identifier), and have the WAL that follows on what is \
here: the end of that is compared byte for byte. If it does not, nothing is changed. A connector in \
logical mode needs its slot there. The slot on the old server is left alone: drop it there if that \
server goes on.")]
    Move(ConnectorMoveArgs),
    /// Prove that a logical connector's root branch and production are equal, at a common point
    #[command(after_help = "Examples:
  ardent connector verify shop
  ardent connector verify shop --json

Every row of every table that is followed is read on both sides, as of the same moment. Writing \
goes on meanwhile. Exit code 3: something differs.")]
    Verify(OptionalNameArgs),
    /// Take over tables that are new on production, with their rows
    #[command(after_help = "Examples:
  ardent connector add-tables shop
  ardent connector add-tables shop --table sales.refunds --table sales.returns
  ardent connector add-tables shop --json | jq '.skipped'

For a connector in logical mode. Definitions and rows come as of one moment, in one transaction; \
nothing else is applied while they are copied. What they need besides (types, functions, schemas \
that are new, too) is made first with ardent connector resume NAME --sql. Exit code 1: a table that \
was named cannot be followed.")]
    AddTables(ConnectorAddTablesArgs),
    /// Go on at once where following has stopped, after SQL on the root branch if need be
    #[command(after_help = "Examples:
  ardent connector resume shop
  ardent connector resume shop --sql 'alter table orders rename column note to remark'
  ardent connector resume shop --sql - < changes.sql

A connector in logical mode stops where production changed a table in a way that cannot be told from \
what is sent; ardent connector status says which. The statements bring the root branch's table into \
the same form, in one transaction; then it goes on, or says why not. ardent connector verify proves \
the result.")]
    Resume(ConnectorResumeArgs),
    /// Change a connector's settings
    #[command(after_help = "Examples:
  ardent connector set shop --masked-only on
  ardent connector set shop --masked-only off

With --masked-only a branch can only be made --masked, or of a masked branch. Branches that are not masked \
stay, and so do their URLs; they cannot be reset, rebased or, once deleted, had back. ardent connector status \
names them.")]
    Set(ConnectorSetArgs),
    /// Delete a connector and drop its replication slot
    #[command(after_help = "Examples:\n  ardent connector delete shop --yes")]
    Delete(ConnectorDeleteArgs),
}

/// The kind of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// A Postgres server.
    Postgresql,
}

/// A source.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Kind of the source
    #[arg(value_enum)]
    pub kind: SourceKind,
    /// postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE, or - to read it from standard input
    #[arg(value_name = "URL", env = "ARDENT_SOURCE_URL", hide_env_values = true)]
    pub source: String,
    /// How it is followed.
    #[command(flatten)]
    pub logical: LogicalArgs,
}

/// `ardent connector create`.
#[derive(Debug, Args)]
pub struct ConnectorCreateArgs {
    /// The source.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Name of the connector and its root branch [default: made from the database's name]
    #[arg(short, long)]
    pub name: Option<String>,
    /// Ask production for an immediate checkpoint: starts sooner, writes a burst there
    #[arg(long)]
    pub fast: bool,
    /// Most bytes per second to copy, such as 20M
    #[arg(long, value_name = "RATE", value_parser = parse_byte_rate)]
    pub max_rate: Option<u64>,
}

/// `ardent connector set`.
#[derive(Debug, Args)]
pub struct ConnectorSetArgs {
    /// Its name
    pub name: String,
    /// Refuse branches that are not masked; off allows them again
    #[arg(long, value_name = "on|off", num_args = 0..=1, default_missing_value = "on", value_parser = parse_switch)]
    pub masked_only: Option<bool>,
}

/// `ardent connector delete`.
#[derive(Debug, Args)]
pub struct ConnectorDeleteArgs {
    /// Its name
    pub name: String,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// `ardent connector status`.
#[derive(Debug, Args)]
pub struct ConnectorStatusArgs {
    /// The connector.
    #[command(flatten)]
    pub name: OptionalNameArgs,
    /// Exit with code 3 if production is not followed, or something is warned of
    #[arg(long)]
    pub exit_code: bool,
}

/// `ardent connector add-tables`.
#[derive(Debug, Args)]
pub struct ConnectorAddTablesArgs {
    /// The connector.
    #[command(flatten)]
    pub name: OptionalNameArgs,
    /// This table, as SCHEMA.NAME; may be given more than once [default: all that can be followed]
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,
}

/// `ardent connector resume`.
#[derive(Debug, Args)]
pub struct ConnectorResumeArgs {
    /// Its name
    pub name: String,
    /// Statements to run on the root branch first, or - to read them from standard input
    #[arg(long, value_name = "STATEMENTS")]
    pub sql: Option<String>,
}

/// `ardent connector move`.
#[derive(Debug, Args)]
pub struct ConnectorMoveArgs {
    /// Its name
    pub name: String,
    /// postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE, or - to read it from standard input
    #[arg(value_name = "URL", env = "ARDENT_SOURCE_URL", hide_env_values = true)]
    pub source: String,
}

/// A name that may be left out.
#[derive(Debug, Args)]
pub struct OptionalNameArgs {
    /// Its name [default: ARDENT_CONNECTOR, or .ardent's, or the only one]
    pub name: Option<String>,
}
