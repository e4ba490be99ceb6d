//! Arguments of connectors in logical mode.

use clap::{Args, ValueEnum};

use ardent_api::control::{KeylessTables, LogicalOptions, NewTables};

/// How a source is followed.
#[derive(Clone, Debug, Args)]
pub struct LogicalArgs {
    /// Follow one database by logical replication, for servers that give no physical replication
    #[arg(long)]
    pub logical: bool,
    /// With --logical: the schemas to copy [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "logical")]
    pub schemas: Vec<String>,
    /// With --logical: what becomes of tables without a primary key or other replica identity
    #[arg(long, value_enum, default_value_t = Keyless::Refuse, requires = "logical")]
    pub keyless: Keyless,
    /// With --logical: what becomes of tables that are new on production later
    #[arg(long, value_enum, default_value_t = New::Report, requires = "logical")]
    pub new_tables: New,
}

/// What becomes of tables without a replica identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keyless {
    /// Preflight fails and names them
    Refuse,
    /// They are made and stay empty
    Empty,
}

/// What becomes of tables that are new on production.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum New {
    /// They are named, with the command that takes them over
    Report,
    /// They are taken over by themselves, if they have a replica identity
    Add,
}

impl LogicalArgs {
    /// As the API has it.
    pub fn options(&self) -> Option<LogicalOptions> {
        self.logical.then(|| LogicalOptions {
            schemas: self.schemas.clone(),
            keyless: match self.keyless {
                Keyless::Refuse => KeylessTables::Refuse,
                Keyless::Empty => KeylessTables::Empty,
            },
            new_tables: match self.new_tables {
                New::Report => NewTables::Report,
                New::Add => NewTables::Add,
            },
        })
    }
}
