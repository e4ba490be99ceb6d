//! Why a diff could not be made.

use crate::spool::SpoolError;

/// A diff could not be made. Nothing was changed anywhere.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// One side's Postgres refused a query or went away.
    #[error("the {side} side of database \"{database}\" could not be read")]
    Query {
        /// `branch point`, `head`, or the branch.
        side: String,
        /// Database.
        database: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// One side's catalog is not as it is read.
    #[error("the catalog of the {side} side of database \"{database}\" cannot be understood")]
    Catalog {
        /// `branch point`, `head`, or the branch.
        side: String,
        /// Database.
        database: String,
        /// Why.
        #[source]
        source: ardent_schema_diff::CatalogError,
    },
    /// Rows that memory has no room for could not be kept.
    #[error("the changed rows could not be kept")]
    Spool(#[from] SpoolError),
    /// Whoever asked for it went away.
    #[error("nobody waits for the diff any more")]
    Unwanted,
    /// The answer to a query of ours has an unexpected form.
    #[error("database \"{database}\" answered in an unexpected form: {what}")]
    Unexpected {
        /// Database.
        database: String,
        /// What.
        what: &'static str,
    },
}
