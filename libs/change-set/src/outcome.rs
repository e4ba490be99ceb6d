//! What comes of applying a change set.

use ardent_diff::{ChangeSet, RowCounts};
use serde::{Deserialize, Serialize};
use tokio_postgres::error::{Severity, SqlState};

/// A column that both sides changed, in different ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnConflict {
    /// Its name at the branch point.
    pub column: String,
    /// Its value at the branch point.
    pub base: Option<String>,
    /// What the branch made of it; absent with the row deleted: see [`Conflict::Row`].
    pub branch: Option<String>,
    /// What the target has.
    pub target: Option<String>,
}

/// Something that branch and target changed in different ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "conflict", rename_all = "snake_case")]
pub enum Conflict {
    /// A row.
    Row {
        /// Its table, as at the branch point.
        table: String,
        /// Names and values of its key; all values, if it has no key.
        key: Vec<(String, Option<String>)>,
        /// What each side did.
        why: String,
        /// Columns whose values are at odds.
        columns: Vec<ColumnConflict>,
    },
    /// A part of the schema.
    Schema {
        /// Which, as at the branch point.
        object: String,
        /// What each side did.
        why: String,
        /// Its definition at the branch point.
        base: Option<String>,
        /// What the branch made of it.
        branch: Option<String>,
        /// What the target has.
        target: Option<String>,
    },
    /// A large object.
    LargeObject {
        /// Its OID.
        oid: u32,
        /// What each side did.
        why: String,
    },
    /// All rows together break a constraint of the target, though each alone fits.
    Constraint {
        /// Postgres's message.
        message: String,
        /// Its detail.
        detail: Option<String>,
    },
}

/// Most conflicts that are kept: more are counted.
pub const CONFLICTS_MAX: usize = 10_000;

/// What was done, or what stands in the way of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Nothing was changed if there is any. At most [`CONFLICTS_MAX`].
    pub conflicts: Vec<Conflict>,
    /// How many more there are.
    #[serde(default)]
    pub conflicts_left_out: u64,
    /// Rows that were changed.
    pub rows: RowCounts,
    /// Rows that branch and target changed in different ways, and that were settled as the options say.
    #[serde(default)]
    pub settled: u64,
    /// Changes that the target had already.
    pub already_there: u64,
    /// Schema statements that were run.
    pub statements: u64,
    /// Sequences that were set.
    #[serde(default)]
    pub sequences: u64,
    /// Objects of the schema that were not chosen, and taken along because chosen ones need them.
    #[serde(default)]
    pub taken_along: Vec<String>,
    /// What undoes it.
    pub inverse: ChangeSet,
    /// What is not, or not wholly, brought over or undone.
    pub notes: Vec<String>,
}

impl Applied {
    /// Whether the target is as it was, as nothing was left to be done: there is nothing to undo.
    pub fn is_unchanged(&self) -> bool {
        let counts = [self.rows.inserted, self.rows.updated, self.rows.deleted, self.statements, self.sequences];
        counts == [0; 5] && self.large_objects() == 0
    }

    /// Large objects that were changed: what undoes it has each.
    pub fn large_objects(&self) -> u64 {
        self.inverse.large_objects.len() as u64
    }

    pub(crate) fn conflict(&mut self, conflict: Conflict) {
        if self.conflicts.len() < CONFLICTS_MAX {
            self.conflicts.push(conflict);
        } else {
            self.conflicts_left_out += 1;
        }
    }
}

/// A change set was not applied. Nothing was changed, but where that is [not known](ApplyError::Unknown).
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The target refused a statement, or went away.
    #[error("{}: {statement}", what_failed(.source))]
    Statement {
        /// The statement's beginning, in one line.
        statement: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The target went away while it committed: it was changed, or it was not.
    #[error("the connection to the target was lost while it committed")]
    Unknown(#[source] tokio_postgres::Error),
    /// The target answers in a form that is not known.
    #[error("the target answered in an unexpected form: {what}")]
    Unexpected {
        /// What.
        what: String,
    },
    /// Rows that memory has no room for could not be kept.
    #[error("the rows to be changed could not be kept")]
    Spool(#[from] ardent_diff::SpoolError),
    /// What is chosen is not there, needs what is not chosen, or cannot be told from something else.
    #[error("{what}")]
    Choice {
        /// Which, and why.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The target's catalog cannot be understood.
    #[error("the target's catalog cannot be understood")]
    Catalog(#[from] ardent_schema_diff::CatalogError),
}

impl ApplyError {
    /// Whether the target gave up waiting: for a lock, or for a statement's end.
    pub fn is_timeout(&self) -> bool {
        let timeouts = [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED];
        self.sql_state().is_some_and(|state| timeouts.contains(state))
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            ApplyError::Choice { hint, .. } => hint.clone(),
            ApplyError::Unknown(_) => {
                "whether the target was changed is not known: --dry-run shows what of it is there".to_owned()
            }
            _ if self.is_timeout() => {
                "nothing was changed; --lock-timeout and --statement-timeout give it more time".to_owned()
            }
            _ if self.sql_state() == Some(&SqlState::UNSAFE_NEW_ENUM_VALUE_USAGE) => {
                "nothing was changed; a label cannot be used in the transaction that adds it: apply with --schema-only, then with --data-only"
                    .to_owned()
            }
            _ if self.sql_state() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                "nothing was changed; apply as a role that owns what is to be changed, and has BYPASSRLS where row-level security is forced on owners"
                    .to_owned()
            }
            _ => "nothing was changed; --dry-run shows what would be".to_owned(),
        }
    }

    /// This, of the statement that commits. `changes_nothing`: there is nothing to commit, or nobody left who could.
    pub(crate) fn of_commit(self, changes_nothing: bool) -> ApplyError {
        match self {
            ApplyError::Statement { source, .. } if !changes_nothing && !is_answer(&source) => {
                ApplyError::Unknown(source)
            }
            other => other,
        }
    }

    fn sql_state(&self) -> Option<&SqlState> {
        match self {
            ApplyError::Statement { source, .. } => source.code(),
            _ => None,
        }
    }

    /// Class 22: data exception, which is all that a value can be refused with by a type that it is none of.
    pub(crate) fn is_about_values(&self) -> bool {
        self.sql_state().is_some_and(|state| state.code().starts_with("22"))
    }
}

/// Whether a session said this that goes on: a statement was refused. A session that ends may have done what it was told before.
fn is_answer(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|said| said.parsed_severity() == Some(Severity::Error))
}

fn what_failed(error: &tokio_postgres::Error) -> &'static str {
    if is_answer(error) { "the target refused" } else { "the connection to the target was lost during" }
}
