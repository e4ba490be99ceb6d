//! What a server is asked to do with change sets, and what it says: control's and the command line's common words.

use ardent_api::control::ErrorInfo;
use ardent_diff::{ChangeSet, RowCounts};
use ardent_types::Lsn;
use serde::{Deserialize, Serialize};

use crate::apply::ApplyOptions;
use crate::guard::Prefer;
use crate::outcome::{Applied, Conflict};

/// Asks a server to apply a change set to the production server that a connector follows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// The branch whose changes are meant; absent: a change set file follows.
    #[serde(default)]
    pub branch: Option<String>,
    /// The database; absent: the connector's.
    #[serde(default)]
    pub database: Option<String>,
    /// How.
    #[serde(default)]
    pub options: ApplyOptions,
    /// The server is to wait before it commits, until whoever asks has what undoes it ([`ApplyEvent::Ready`]).
    #[serde(default)]
    pub confirms: bool,
}

/// What comes back, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApplyEvent {
    /// How far it is.
    Progress(String),
    /// All is done and nothing is committed. That is asked for with `POST /v1/connectors/{name}/apply/{token}/commit`.
    Ready {
        /// Stands for this apply.
        token: String,
        /// What was done, with what undoes it.
        done: Box<RemoteApplied>,
    },
    /// The end: what was ready is committed.
    Committed,
    /// The end: what was done, or what stands in the way.
    Done(Box<RemoteApplied>),
    /// The end: nothing was changed.
    Error(ErrorInfo),
    /// The end: whether something was changed is not known.
    Unknown(ErrorInfo),
}

/// What a server applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteApplied {
    /// The branch that the change set was taken from.
    pub branch: String,
    /// From here,
    pub from_lsn: Lsn,
    /// to here.
    pub to_lsn: Lsn,
    /// Databases with changes that were not applied: they are others.
    pub other_databases: Vec<String>,
    /// What was done.
    pub applied: Applied,
}

/// Answer of `POST /v1/connectors/{name}/apply/{token}/commit`: it is committed now, and how that ends is an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitReply {
    /// Version of this object.
    pub schema_version: u32,
}

/// Body of `POST /v1/branches/{name}/rebase`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebaseRequest {
    /// Do it all, and throw it away.
    #[serde(default)]
    pub dry_run: bool,
    /// Whose value counts where both changed a row.
    #[serde(default)]
    pub prefer: Option<Prefer>,
    /// Take the last rebase back instead.
    #[serde(default)]
    pub undo: bool,
}

/// Its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebaseReply {
    /// Version of this object.
    pub schema_version: u32,
    /// The branch.
    pub name: String,
    /// Whether it is another one now.
    pub rebased: bool,
    /// Whether that was not wanted.
    pub dry_run: bool,
    /// Its branch point before.
    pub from_lsn: Lsn,
    /// Its branch point now.
    pub onto_lsn: Lsn,
    /// The branch that has the state from before.
    pub kept_as: Option<String>,
    /// Schema statements that were run.
    pub statements: u64,
    /// Rows that were changed.
    pub rows: RowCounts,
    /// Large objects that were changed.
    #[serde(default)]
    pub large_objects: u64,
    /// Sequences that were set.
    #[serde(default)]
    pub sequences: u64,
    /// Changes that the parent had made as well.
    pub already_there: u64,
    /// Rows that both changed and that were settled as was wanted.
    pub settled: u64,
    /// Nothing was changed if there is any.
    pub conflicts: Vec<Conflict>,
    /// How many more there are.
    pub conflicts_left_out: u64,
    /// What is not, or not wholly, taken along.
    pub notes: Vec<String>,
}

/// What to say where a database has no changes and others have: nobody asks for that.
pub fn elsewhere(database: &str, others: &[ChangeSet]) -> Option<String> {
    let names: Vec<&str> = others.iter().map(|set| set.database.as_str()).collect();
    (!names.is_empty()).then(|| format!("nothing was changed in database {database}, but in {}", names.join(", ")))
}
